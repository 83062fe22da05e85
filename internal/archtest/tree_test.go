package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// module is the module's path; the imports of its own packages begin with it.
const module = "hima"

// source is one Go file of the tree.
type source struct {
	path      string // slash-separated, relative to the root of the module
	pkg       string // its folder, "" for the root
	syntax    *ast.File
	test      bool
	generated bool
	lines     int
}

// tree is every Go file of the module.
type tree struct {
	fset  *token.FileSet
	files []source
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	require.NoError(t, err)
	_, err = os.Stat(filepath.Join(dir, "go.mod"))
	require.NoError(t, err)
	return dir
}

// walk calls f for every file of the project: not what git keeps for itself, nor what builds and runs leave behind.
func walk(t *testing.T, f func(rel string, content []byte)) {
	t.Helper()
	top := root(t)
	require.NoError(t, filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(top, p)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		switch {
		case d.IsDir() && (rel == ".git" || rel == "dist" || rel == ".ci/tmp"):
			return fs.SkipDir
		case d.IsDir(), !d.Type().IsRegular(), rel == ".git", rel == "hima", strings.HasSuffix(rel, ".test"), strings.HasSuffix(rel, ".out"):
			return nil
		}
		b, err := os.ReadFile(p)
		if os.IsNotExist(err) { // an editor or another test took it away
			return nil
		}
		if err == nil {
			f(rel, b)
		}
		return err
	}))
}

// loaded keeps the tree for all tests: parsing it is most of what they cost.
var loaded tree

func load(t *testing.T) tree {
	t.Helper()
	if loaded.fset != nil {
		return loaded
	}
	tr := tree{fset: token.NewFileSet()}
	walk(t, func(rel string, content []byte) {
		if !strings.HasSuffix(rel, ".go") || strings.Contains("/"+rel, "/testdata/") {
			return
		}
		syntax, err := parser.ParseFile(tr.fset, rel, content, parser.ParseComments)
		require.NoError(t, err)
		pkg := path.Dir(rel)
		if pkg == "." {
			pkg = ""
		}
		tr.files = append(tr.files, source{
			path: rel, pkg: pkg, syntax: syntax, test: strings.HasSuffix(rel, "_test.go"),
			generated: ast.IsGenerated(syntax), lines: strings.Count(string(content), "\n"),
		})
	})
	require.NotEmpty(t, tr.files)
	loaded = tr
	return tr
}

// code calls f for the files that people wrote and that end up in the program.
func (tr tree) code(f func(s source)) {
	for _, s := range tr.files {
		if !s.test && !s.generated {
			f(s)
		}
	}
}

// at names the place of a node as file:line.
func (tr tree) at(n ast.Node) string {
	p := tr.fset.Position(n.Pos())
	return p.Filename + ":" + strconv.Itoa(p.Line)
}

// imports lists the paths a file imports.
func (s source) imports(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, i := range s.syntax.Imports {
		p, err := strconv.Unquote(i.Path.Value)
		require.NoError(t, err)
		out = append(out, p)
	}
	return out
}
