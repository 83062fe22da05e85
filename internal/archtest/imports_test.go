package archtest

import (
	"go/ast"
	"slices"
	"strings"
	"testing"
)

// maxInternal is how many packages of our own one may import. The daemon, which wires the program together, is exempt.
const maxInternal = 8

// place is where a package stands. It may import packages of lower rows, and nothing else of the module.
type place struct {
	row  int
	also []string // packages of its own row that it may import too
	only []string // if not nil: the only packages of the module it may import
}

// places is the table of docs/architecture.md. A package named by another as prefix (a generated pb) belongs to it.
func places() map[string]place {
	return map[string]place{
		"internal/text":           {row: 0},
		"internal/wire":           {row: 0},
		"storage":                 {row: 0},
		"internal/control":        {row: 0},
		"identity":                {row: 1},
		"internal/feed":           {row: 1, also: []string{"identity"}},
		"node":                    {row: 2},
		"node/nodetest":           {row: 2, also: []string{"node"}},
		"groups/roster":           {row: 2},
		"internal/replica":        {row: 3},
		"internal/directory":      {row: 3},
		"internal/mailbox":        {row: 3},
		"internal/blobs":          {row: 3},
		"internal/delivery":       {row: 4},
		"groups":                  {row: 5, also: []string{"groups/roster"}},
		"internal/messenger":      {row: 6},
		"internal/control/server": {row: 7},
		"internal/tui":            {row: 7, only: []string{"internal/control", "internal/text"}},
		"internal/web":            {row: 7, only: []string{"internal/control", "internal/text"}},
		"internal/daemon":         {row: 8},
		"cmd/hima":                {row: 9, only: []string{"internal/daemon", "internal/control", "internal/text"}},

		// Made of tests only: they look at the program from outside and no package may import them.
		"internal/archtest": {row: 10},
		"internal/bench":    {row: 10},
		"internal/chaos":    {row: 10},
		"internal/e2e":      {row: 10},
		"internal/hostile":  {row: 10},
	}
}

// owners says which packages may import what comes from outside and must stay in one place. The longest prefix that fits an
// import decides.
func owners() map[string][]string {
	hosts := []string{"node", "node/nodetest", "internal/hostile", "internal/bench"}
	keys := append([]string{"identity", "internal/wire"}, hosts...)
	control := []string{
		"internal/control", "internal/control/server", "internal/daemon", "internal/tui", "internal/web", "cmd/hima",
		"internal/e2e", "internal/bench", "internal/chaos",
	}
	faces := []string{"cmd/hima", "internal/tui"}
	return map[string][]string{
		"github.com/dgraph-io/badger":             {"storage", "internal/bench"},
		"github.com/libp2p":                       hosts,
		"github.com/libp2p/go-libp2p/core/crypto": keys,
		"github.com/libp2p/go-libp2p/core/peer":   keys,
		"github.com/libp2p/go-libp2p/core/record": keys,
		"github.com/multiformats":                 append([]string{"internal/directory", "internal/daemon"}, keys...), // addresses are checked before they are kept
		"github.com/prometheus":                   {"internal/daemon"},
		"github.com/marcopolo/simnet":             {"node/nodetest", "internal/bench"},
		"connectrpc.com/connect":                  control,
		"net/http":                                control,
		"filippo.io/age":                          {"identity"},
		"github.com/zalando/go-keyring":           {"internal/daemon"},
		"github.com/spf13/cobra":                  {"cmd/hima"},
		"charm.land/lipgloss":                     faces,
		"charm.land/bubbletea":                    {"internal/tui"},
		"charm.land/bubbles":                      {"internal/tui"},
		"golang.org/x/term":                       faces,
		"rsc.io/qr":                               append([]string{"internal/web"}, faces...),
		"github.com/BurntSushi/toml":              {"internal/text", "internal/daemon", "cmd/hima"},
		"github.com/nicksnyder/go-i18n":           {"internal/text"},
	}
}

// pure packages know no network, no disk and no clock: their tests need no fakes.
func pure() []string { return []string{"internal/text", "identity", "internal/feed", "groups/roster"} }

// house gives the package of the table that pkg belongs to: itself, or the nearest one above it for generated code.
func house(table map[string]place, pkg string) (string, bool) {
	for p := pkg; p != ""; {
		if _, ok := table[p]; ok {
			return p, true
		}
		if p == pkg && !strings.Contains(pkg, "/pb") {
			return "", false // only generated packages live with another
		}
		i := strings.LastIndexByte(p, '/')
		if i < 0 {
			break
		}
		p = p[:i]
	}
	return "", false
}

func within(prefix, imp string) bool { return imp == prefix || strings.HasPrefix(imp, prefix+"/") }

// owner returns the longest prefix in m that fits imp.
func owner(m map[string][]string, imp string) (string, bool) {
	best := ""
	for prefix := range m {
		if within(prefix, imp) && len(prefix) > len(best) {
			best = prefix
		}
	}
	return best, best != ""
}

func TestImportsGoDown(t *testing.T) {
	table := places()
	for _, s := range load(t).files {
		from, ok := house(table, s.pkg)
		if !ok {
			t.Errorf("%s: package %q has no place in the table", s.path, s.pkg)
			continue
		}
		here := table[from]
		for _, imp := range s.imports(t) {
			if !within(module, imp) {
				continue
			}
			pkg := strings.TrimPrefix(imp, module+"/")
			to, ok := house(table, pkg)
			switch {
			case !ok:
				t.Errorf("%s imports %s, which has no place in the table", s.path, pkg)
			case to == from, slices.Contains(here.also, to):
			case s.test && to == "node/nodetest":
			case here.only != nil && !slices.Contains(here.only, to):
				t.Errorf("%s: %s may import only %v, not %s", s.path, from, here.only, pkg)
			case table[to].row >= here.row:
				t.Errorf("%s: %s (row %d) must not import %s (row %d)", s.path, from, here.row, pkg, table[to].row)
			}
		}
	}
}

func TestImportsFromOutsideHaveAnOwner(t *testing.T) {
	table, allowed := places(), owners()
	for _, s := range load(t).files {
		from, _ := house(table, s.pkg)
		for _, imp := range s.imports(t) {
			prefix, ok := owner(allowed, imp)
			if ok && !slices.Contains(allowed[prefix], from) {
				t.Errorf("%s imports %s, which is for %v", s.path, imp, allowed[prefix])
			}
		}
	}
}

// A package that needs many others is where a program grows its God object.
func TestFewImportsOfOurOwn(t *testing.T) {
	table, seen := places(), map[string]map[string]bool{}
	load(t).code(func(s source) {
		for _, imp := range s.imports(t) {
			if to, ok := house(table, strings.TrimPrefix(imp, module+"/")); ok && within(module, imp) && to != s.pkg {
				if seen[s.pkg] == nil {
					seen[s.pkg] = map[string]bool{}
				}
				seen[s.pkg][to] = true
			}
		}
	})
	for pkg, to := range seen {
		if len(to) > maxInternal && pkg != "internal/daemon" && table[pkg].row < 10 {
			t.Errorf("%s imports %d packages of our own, at most %d are allowed", pkg, len(to), maxInternal)
		}
	}
}

func TestPurePackages(t *testing.T) {
	tr := load(t)
	tr.code(func(s source) {
		if !slices.Contains(pure(), s.pkg) {
			return
		}
		for _, imp := range s.imports(t) {
			if slices.Contains([]string{"os", "os/exec", "net", "net/http", "io/fs", "path/filepath", "syscall"}, imp) {
				t.Errorf("%s imports %s: %s knows no network and no disk", s.path, imp, s.pkg)
			}
		}
		ast.Inspect(s.syntax, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok && isName(sel.X, "time") &&
				slices.Contains([]string{"Now", "Since", "Until", "Sleep", "After", "NewTimer", "NewTicker", "AfterFunc"}, sel.Sel.Name) {
				t.Errorf("%s: time.%s: %s knows no clock, take the time as an argument", tr.at(n), sel.Sel.Name, s.pkg)
			}
			return true
		})
	})
}

func isName(e ast.Expr, name string) bool {
	id, ok := e.(*ast.Ident)
	return ok && id.Name == name
}
