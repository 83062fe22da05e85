package archtest

import (
	"bytes"
	"go/ast"
	"go/token"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

const (
	maxFileLines     = 600
	maxFunctionLines = 100
)

func TestOnePackageDoc(t *testing.T) {
	type state struct {
		docs []string
		name string
		hand bool // has a file that somebody wrote
	}
	pkgs := map[string]*state{}
	for _, s := range load(t).files {
		if s.test && strings.HasSuffix(s.syntax.Name.Name, "_test") {
			continue
		}
		p := pkgs[s.pkg]
		if p == nil {
			p = &state{}
			pkgs[s.pkg] = p
		}
		p.name = s.syntax.Name.Name
		p.hand = p.hand || !s.generated
		if s.syntax.Doc == nil || s.generated {
			continue
		}
		p.docs = append(p.docs, s.path)
		want := "Package " + p.name + " "
		if p.name == "main" {
			want = strings.ToUpper(path.Base(s.pkg)[:1]) + path.Base(s.pkg)[1:] + " "
		}
		if text := s.syntax.Doc.Text(); !strings.HasPrefix(text, want) {
			t.Errorf("%s: the doc comment must begin with %q", s.path, want)
		}
		if path.Base(s.path) != "doc.go" {
			t.Errorf("%s: the doc comment of a package stands in doc.go", s.path)
		}
	}
	for pkg, p := range pkgs {
		if p.hand && len(p.docs) != 1 {
			t.Errorf("package %s has %d doc comments, want one: %v", pkg, len(p.docs), p.docs)
		}
	}
}

func TestFilesAndFunctionsAreShort(t *testing.T) {
	tr := load(t)
	tr.code(func(s source) {
		if s.lines > maxFileLines {
			t.Errorf("%s has %d lines, at most %d are allowed", s.path, s.lines, maxFileLines)
		}
		for _, d := range s.syntax.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if n := tr.fset.Position(f.End()).Line - tr.fset.Position(f.Pos()).Line + 1; n > maxFunctionLines {
				t.Errorf("%s: %s has %d lines, at most %d are allowed", tr.at(f), f.Name.Name, n, maxFunctionLines)
			}
		}
	})
}

func TestNoInitAndNoContextFields(t *testing.T) {
	tr := load(t)
	tr.code(func(s source) {
		ast.Inspect(s.syntax, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Name.Name == "init" && n.Recv == nil {
					t.Errorf("%s: no init functions: what happens, happens in main's order", tr.at(n))
				}
			case *ast.StructType:
				for _, f := range n.Fields.List {
					if sel, ok := f.Type.(*ast.SelectorExpr); ok && isName(sel.X, "context") && sel.Sel.Name == "Context" {
						t.Errorf("%s: a context is passed, not kept", tr.at(f))
					}
				}
			}
			return true
		})
	})
}

// A package variable must be a constant in all but name: nothing assigns to it, takes its address, or could change it from
// outside. Errors, compiled expressions, embedded files and look-up tables are fine.
func TestNoPackageState(t *testing.T) {
	tr := load(t)
	names := map[string]map[string]bool{} // package -> names of its variables
	tr.code(func(s source) {
		for _, d := range s.syntax.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.VAR {
				continue
			}
			for _, spec := range g.Specs {
				v := spec.(*ast.ValueSpec)
				for i, name := range v.Names {
					if name.Name == "_" {
						continue // an assertion for the compiler
					}
					if names[s.pkg] == nil {
						names[s.pkg] = map[string]bool{}
					}
					names[s.pkg][name.Name] = true
					var value ast.Expr
					if i < len(v.Values) {
						value = v.Values[i]
					}
					if why := mutable(name.Name, v.Type, value, g.Doc != nil || v.Doc != nil); why != "" {
						t.Errorf("%s: package variable %s %s", tr.at(name), name.Name, why)
					}
				}
			}
		}
	})
	tr.code(func(s source) {
		for _, d := range s.syntax.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			local := declared(f)
			ast.Inspect(f, func(n ast.Node) bool {
				for _, e := range changed(n) {
					if id := rootName(e); id != nil && names[s.pkg][id.Name] && !local[id.Name] {
						t.Errorf("%s: package variable %s is changed", tr.at(n), id.Name)
					}
				}
				return true
			})
		}
	})
}

// changed lists what a node assigns to.
func changed(n ast.Node) []ast.Expr {
	switch n := n.(type) {
	case *ast.AssignStmt:
		if n.Tok != token.DEFINE {
			return n.Lhs
		}
	case *ast.IncDecStmt:
		return []ast.Expr{n.X}
	case *ast.CallExpr:
		if (isName(n.Fun, "delete") || isName(n.Fun, "clear")) && len(n.Args) > 0 {
			return n.Args[:1]
		}
	}
	return nil
}

// declared lists the names a function declares anywhere: they hide the package's.
func declared(f *ast.FuncDecl) map[string]bool {
	names := map[string]bool{}
	add := func(ids ...*ast.Ident) {
		for _, id := range ids {
			names[id.Name] = true
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Field:
			add(n.Names...)
		case *ast.ValueSpec:
			add(n.Names...)
		case *ast.AssignStmt:
			for _, e := range n.Lhs {
				if id, ok := e.(*ast.Ident); ok && n.Tok == token.DEFINE {
					add(id)
				}
			}
		case *ast.RangeStmt:
			for _, e := range []ast.Expr{n.Key, n.Value} {
				if id, ok := e.(*ast.Ident); ok && n.Tok == token.DEFINE {
					add(id)
				}
			}
		}
		return true
	})
	return names
}

// mutable says why a package variable may not be, "" if it may. documented tells whether it has a comment (embed directives
// are comments).
func mutable(name string, typ, value ast.Expr, documented bool) string {
	if sel, ok := typ.(*ast.SelectorExpr); ok {
		if isName(sel.X, "sync") || isName(sel.X, "atomic") {
			return "is state"
		}
		if isName(sel.X, "embed") && documented {
			return ""
		}
	}
	switch typ.(type) {
	case *ast.ChanType:
		return "is state"
	}
	switch v := value.(type) {
	case nil:
		return "has no value: it can only be state"
	case *ast.UnaryExpr:
		if v.Op == token.AND {
			return "is a pointer to something that can change"
		}
	case *ast.CallExpr:
		if isName(v.Fun, "make") || isName(v.Fun, "new") {
			return "is state"
		}
		return ""
	case *ast.CompositeLit:
		if ast.IsExported(name) {
			return "is exported and can be changed from outside"
		}
	}
	return ""
}

func rootName(e ast.Expr) *ast.Ident {
	for {
		switch v := e.(type) {
		case *ast.Ident:
			return v
		case *ast.IndexExpr:
			e = v.X
		case *ast.SelectorExpr:
			e = v.X
		case *ast.StarExpr:
			e = v.X
		case *ast.ParenExpr:
			e = v.X
		default:
			return nil
		}
	}
}

func TestErrorsAreNotMatchedByText(t *testing.T) {
	tr := load(t)
	tr.code(func(s source) {
		ast.Inspect(s.syntax, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.BinaryExpr:
				if (n.Op == token.EQL || n.Op == token.NEQ) && (errorText(n.X) || errorText(n.Y)) {
					t.Errorf("%s: an error is compared by its text", tr.at(n))
				}
			case *ast.SwitchStmt:
				if n.Tag != nil && errorText(n.Tag) {
					t.Errorf("%s: an error is compared by its text", tr.at(n))
				}
			case *ast.CallExpr:
				sel, ok := n.Fun.(*ast.SelectorExpr)
				matching := ok && (isName(sel.X, "strings") && slices.Contains([]string{
					"Contains", "HasPrefix", "HasSuffix",
					"EqualFold", "Index", "Cut",
				}, sel.Sel.Name) || strings.HasPrefix(sel.Sel.Name, "Match"))
				if matching && slices.ContainsFunc(n.Args, errorText) {
					t.Errorf("%s: an error is matched by its text", tr.at(n))
				}
			}
			return true
		})
	})
}

// errorText tells x.Error().
func errorText(e ast.Expr) bool {
	call, ok := e.(*ast.CallExpr)
	if !ok || len(call.Args) != 0 {
		return false
	}
	sel, ok := call.Fun.(*ast.SelectorExpr)
	return ok && sel.Sel.Name == "Error"
}

// A test that sleeps to let something happen is slow on a fast machine and wrong on a slow one. A sleep inside a loop is the
// pause between two looks at a condition, and inside synctest it is how virtual time passes.
func TestTestsDoNotSleep(t *testing.T) {
	tr := load(t)
	virtual := map[string]bool{}
	for _, s := range tr.files {
		if s.test && slices.Contains(s.imports(t), "testing/synctest") {
			virtual[s.pkg] = true
		}
	}
	for _, s := range tr.files {
		if !s.test || virtual[s.pkg] {
			continue
		}
		ast.Inspect(s.syntax, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ForStmt, *ast.RangeStmt:
				return false
			case *ast.SelectorExpr:
				if isName(n.X, "time") && n.Sel.Name == "Sleep" {
					t.Errorf("%s: wait for the condition instead of sleeping", tr.at(n))
				}
			}
			return true
		})
	}
}

// What is left to do stands in the tracker, and no file tells of the machine or the tools it was written with. The words are
// put together from parts, so that this file is clean too.
func TestCleanFiles(t *testing.T) {
	forbidden := map[string]*regexp.Regexp{
		"unfinished work":              regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|HA` + `CK)\b`),
		"a path of a workplace":        regexp.MustCompile(`/wo` + `rk/|/tmp/hi` + `ma/|\.\./sha` + `red\b`),
		"a tool of a workplace":        regexp.MustCompile(`\bfa` + `rm-[a-z]+|\.libr` + `ary\b|\bissues (show|list|new)\b`),
		"the host of a registry":       regexp.MustCompile(`proxy\.go` + `lang|registry\.npm` + `js|deb\.deb` + `ian|pypi\.o` + `rg`),
		"a document that is elsewhere": regexp.MustCompile(`notes/(flo` + `ors|libr` + `aries|libp` + `2p|sty` + `le)\.md|bench/flo` + `ors|CON` + `TRACT\.md`),
	}
	walk(t, func(rel string, content []byte) {
		if path.Base(rel) == "go.sum" || strings.HasSuffix(rel, ".sum") || !utf8.Valid(content) ||
			strings.Contains(rel, "testdata/fuzz/") {
			return
		}
		for what, re := range forbidden {
			for _, at := range re.FindAllIndex(content, -1) {
				line := bytes.Count(content[:at[0]], []byte("\n")) + 1
				t.Errorf("%s:%d: %s (%s)", rel, line, what, content[at[0]:at[1]])
			}
		}
	})
}
