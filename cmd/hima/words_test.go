package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"hima/internal/control"
	"hima/internal/text"
)

// textID is what the ID of a text looks like in this package.
var textID = regexp.MustCompile(`^[a-z_]+(\.[a-z0-9_-]+)+$`)

// groups are the first words of the texts that belong to the command line.
func groups() []string {
	return []string{
		"bootstrap", "cancel", "chat", "check", "cli", "cmd", "column", "contact", "conversations", "demo", "device_state", "docs",
		"do", "doctor", "error", "event", "field", "flag", "group", "group_key", "group_state", "help", "hint", "history", "home", "invitation",
		"invite", "invited", "join", "kind", "login", "logout", "may_invite", "newcomers", "role", "why_group",
		"mailbox", "mailbox_source", "mailbox_state", "mark", "mark_read", "name", "nearby", "network", "node", "node_state", "password", "prompt", "register", "relation", "request", "road", "said", "search", "setting", "settings", "source",
		"state", "usage", "verified", "warning", "watch", "why", "word",
	}
}

// literals returns every string in the source of this package that looks like the ID of a text.
func literals(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	var out []string
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		require.NoError(t, err)
		ast.Inspect(f, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return true
			}
			s, err := strconv.Unquote(lit.Value)
			require.NoError(t, err)
			first, _, _ := strings.Cut(s, ".")
			if textID.MatchString(s) && slices.Contains(groups(), first) && !strings.HasSuffix(s, ".md") {
				out = append(out, s)
			}
			return true
		})
	}
	return out
}

// TestEveryTextExists: what a command says stands in the catalogue. IDs of commands ("contact.add") are the names of
// texts cmd.<id>.short.
func TestEveryTextExists(t *testing.T) {
	words := text.NewCatalogue(text.LangEnglish)
	found := literals(t)
	require.Greater(t, len(found), 200, "the search for texts finds them")
	for _, id := range found {
		if words.T(id, nil, 2) != id || words.T("cmd."+id+".short", nil) != "cmd."+id+".short" {
			continue
		}
		if strings.HasPrefix(id, "cmd.") && strings.HasSuffix(id, ".long") {
			continue // optional
		}
		t.Errorf("no text %q", id)
	}
	for _, c := range control.Codes() {
		id := "error." + string(c)
		require.NotEqual(t, id, words.T(id, nil))
	}
}

// TestWordsOfTheAPI: states, kinds and the like have words, and one that a newer node uses is shown as it is.
func TestWordsOfTheAPI(t *testing.T) {
	a := testApp(t)
	for group, all := range map[string][]string{
		"state":        {"pending", "sent", "delivered", "read", "not_taken", "cancelled", "unknown"},
		"relation":     {"none", "asked", "one-way", "contact", "request", "declined", "blocked", "temporary", "self"},
		"verified":     {"no", "confirmed", "rejected", "changed"},
		"request":      {"waiting", "accepted", "declined", "not_delivered"},
		"source":       {"invite", "nearby", "contact", "request", "id", "network", "member"},
		"why":          {"not_offered", "waiting_for_peer", "waiting_for_accept", "in_mailbox", "delivered", "read", "not_taken", "full", "denied", "unknown", "cancelled", "partly", "alone"},
		"device_state": {"delivered", "offered", "waiting", "not_owed"},
		"warning":      {"no_password", "no_multicast", "clock_skew", "restored_copy", "name_pending", "name_lost"},
		"node_state":   {"empty", "locked", "unlocked", "stopped"},
		"setting":      {"strangers", "read-receipts", "presence", "lan-visible"},
		"event": {
			"message", "state", "contact", "request", "devices", "typing", "presence", "settings", "profile", "read",
			"warning", "gap", "name", "network", "mailbox", "group", "invitation", "application",
		},
		"road":           {"direct", "relay", "mailbox"},
		"name":           {"none", "pending", "confirmed", "lost", "unconfirmed"},
		"mailbox_state":  {"ok", "unreachable", "full", "denied", "retiring"},
		"mailbox_source": {"network", "contact", "added"},
		"role":           {"owner", "admin", "member"},
		"group_state":    {"none", "invited", "applied", "joining", "member", "left", "removed", "rejected", "dissolved"},
		"group_key":      {"name", "description", "announcement", "public", "join", "invite", "history", "mute", "nickname", "mailbox"},
		"join":           {"invite", "apply", "open"},
		"may_invite":     {"admins", "members"},
		"newcomers":      {"none", "all"},
		"invited":        {"invited", "already_member", "already_invited", "approved", "withdrawn", "failed"},
		"invitation":     {"waiting", "accepted", "declined", "withdrawn", "expired"},
		"application":    {"waiting", "approved", "rejected", "withdrawn", "expired"},
	} {
		for _, w := range all {
			id := group + "." + strings.ReplaceAll(w, "-", "_")
			require.NotEmpty(t, a.tOptional(id), id)
		}
		require.Equal(t, "brand-new", a.word(group, "brand-new\n"))
		require.Empty(t, a.word(group, ""))
	}
}

// TestCommandsHaveWords: no command and no flag of the tree is left without help, in either language.
func TestCommandsHaveWords(t *testing.T) {
	for _, lang := range []string{text.LangEnglish, text.LangChinese} {
		a := testApp(t)
		a.flags.lang = lang
		a.root = a.rootCommand()
		a.flags.lang = lang
		a.localise()
		var b strings.Builder
		a.root.SetOut(&b)
		for _, c := range append(a.root.Commands(), a.root) {
			require.NoError(t, c.Help())
		}
		require.NotRegexp(t, `\b(cmd|flag)\.[a-z]+`, b.String())
	}
}

func testApp(t *testing.T) *app {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = null.Close() })
	return newApp(null, null, null, func(string) string { return "" })
}
