package archtest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every link from one document of the project to another leads somewhere.
func TestDocumentLinks(t *testing.T) {
	top := root(t)
	link := regexp.MustCompile(`\]\(([^)#\s]+)(?:#[^)]*)?\)`)
	walk(t, func(rel string, content []byte) {
		if !strings.HasSuffix(rel, ".md") {
			return
		}
		for _, m := range link.FindAllSubmatch(content, -1) {
			to := string(m[1])
			if strings.Contains(to, "://") || strings.HasPrefix(to, "mailto:") {
				continue
			}
			if _, err := os.Stat(filepath.Join(top, filepath.Dir(rel), to)); err != nil {
				t.Errorf("%s links to %s, which is not there", rel, to)
			}
		}
	})
}

// A rule that a comment names by number is written down.
func TestRulesAreWritten(t *testing.T) {
	rules, err := os.ReadFile(filepath.Join(root(t), "docs", "rules.md"))
	if err != nil {
		t.Fatal(err)
	}
	defined := map[string]bool{}
	for _, m := range regexp.MustCompile(`\*\*(R[0-9]+)\b`).FindAllSubmatch(rules, -1) {
		defined[string(m[1])] = true
	}
	named := regexp.MustCompile(`\bR[1-9][0-9]?\b`)
	for _, s := range load(t).files {
		for _, group := range s.syntax.Comments {
			for _, r := range named.FindAllString(group.Text(), -1) {
				if !defined[r] {
					t.Errorf("%s names rule %s, which docs/rules.md does not have", s.path, r)
				}
			}
		}
	}
}
