package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"hima/internal/control"
)

// TestWhatNodesSay: every refusal that the messenger words itself is said in Chinese as well, and so is what to do next.
func TestWhatNodesSay(t *testing.T) {
	a := testApp(t)
	a.flags.lang = "zh-CN"
	files, err := filepath.Glob("../../internal/messenger/*.go")
	require.NoError(t, err)
	found := 0
	for _, path := range files {
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		require.NoError(t, err)
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) != 3 {
				return true
			}
			if called, ok := call.Fun.(*ast.Ident); !ok || called.Name != "refuse" {
				return true
			}
			for i, group := range []string{"said", "do"} {
				lit, ok := call.Args[i+1].(*ast.BasicLit)
				if !ok {
					continue // made of parts
				}
				said, err := strconv.Unquote(lit.Value)
				require.NoError(t, err)
				if said == "" || strings.Contains(said, "snapshot") || strings.Contains(said, "idempotency") {
					continue // what no command leads to
				}
				found++
				if a.translated(group, said) == "" {
					id, _ := saidID(group, said)
					t.Errorf("%s: no text %s", filepath.Base(path), id)
				}
			}
			return true
		})
	}
	require.Greater(t, found, 50, "the search for refusals finds them")
}

// TestSaid: what somebody typed comes back inside the translation, and what is not known is not lost.
func TestSaid(t *testing.T) {
	a := testApp(t)
	a.flags.lang = "zh-CN"
	v := a.describe(&control.Error{Code: control.NotFound, Message: `no network "demo" is joined`, Hint: "`hima network list` shows those that are"})
	require.Equal(t, "没有加入名为 demo 的网络", v.Message)
	require.Equal(t, "用 hima network list 查看已加入的网络", v.Hint)
	v = a.describe(&control.Error{Code: control.TooLarge, Message: "a message has at most 16384 bytes, this one has 20000", Hint: "send it in parts"})
	require.Equal(t, "一条消息最多 16384 字节，这条有 20000 字节", v.Message)
	v = a.describe(&control.Error{Code: control.Full, Message: "the moon is full", Hint: "wait"})
	require.Equal(t, "已满，放不下更多（the moon is full）", v.Message)
	require.Equal(t, "wait", v.Hint, "better in English than lost")
}
