package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"hima/internal/control"
)

// TestExitCodes pins every code: scripts of users rely on them.
func TestExitCodes(t *testing.T) {
	want := map[control.Code]int{
		control.Invalid: 2, control.Ambiguous: 2, control.NotRunning: 69, control.Locked: 77, control.WrongPassword: 77, control.Denied: 77,
		control.NotAllowed: 77, control.Muted: 77,
	}
	for _, c := range control.Codes() {
		code := 1
		if special, ok := want[c]; ok {
			code = special
		}
		require.Equal(t, code, exitCode(&control.Error{Code: c}), c)
		require.Equal(t, code, exitCode(fmt.Errorf("doing: %w", fail(c, "x"))), c)
	}
	require.Equal(t, 0, exitCode(nil))
	require.Equal(t, 1, exitCode(errors.New("anything")))
	require.Equal(t, 2, exitCode(usage("x")))
	require.Equal(t, 2, exitCode(&cobraError{errors.New("unknown flag")}))
	require.Equal(t, 75, exitCode(&silent{75}))
	require.Equal(t, 130, exitCode(context.Canceled))
}

// TestErrorsInChinese: the code is translated, the node's own sentence follows, and nothing of it moves the cursor.
func TestErrorsInChinese(t *testing.T) {
	a := testApp(t)
	a.flags.lang = "zh-CN"
	var b strings.Builder
	a.errOut = &b
	a.report(&control.Error{
		Code: control.Ambiguous, Message: "two\x1b[2Jpeople\nhere", Hint: "English only",
		Candidates: []control.Candidate{{Account: "hima1x", Username: "bob", Nickname: "B\x1b[31mob", Source: "nearby"}},
	})
	require.Contains(t, b.String(), "hima: 错误： 这个名字对应多个人（two")
	require.Contains(t, b.String(), "请使用账号 ID")
	require.Contains(t, b.String(), "hima1x")
	require.NotContains(t, b.String(), "\x1b")
	require.NotContains(t, b.String(), "nobody")
}

func TestErrorsAsJSON(t *testing.T) {
	a := testApp(t)
	a.flags.json = true
	var b strings.Builder
	a.errOut = &b
	a.report(fail(control.Locked, "error.locked"))
	require.Equal(t, `{"v":1,"error":"locked","message":"the node is locked"}`+"\n", b.String())
}

// TestLanguageAsLocalesWriteIt: --lang takes what LANG does.
func TestLanguageAsLocalesWriteIt(t *testing.T) {
	f := fakeClub()
	for lang, want := range map[string]string{"zh": "群主", "zh_CN.UTF-8": "群主", "zh-CN": "群主", "en": "owner", "en_GB": "owner"} {
		r := f.do(t, "C", "--lang", lang, "group", "members", "hikers")
		require.Equal(t, exitOK, r.code, r)
		require.Contains(t, r.stdout, want)
	}
	require.Equal(t, exitUsage, f.do(t, "C", "--lang", "klingon", "group", "list").code)
}
