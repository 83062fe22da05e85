package text_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"hima/internal/text"
)

func TestFoldName(t *testing.T) {
	for in, want := range map[string]string{
		"Go Users":                  "go users",
		"  Go \t\n  USERS ":         "go users",
		"Ｇｏ　Ｕｓｅｒｓ":                  "go users",
		"go\u200b us\u202eers":      "go users",
		"葵的群":                       "葵的群",
		"Straße":                    "strasse",
		"ﬁne":                       "fine",
		"I\u0307stanbul":            "i\u0307stanbul",
		"e\u0301té":                 "été",
		"":                          "",
		" \u200b\u3164 ":            "",
		"\xff":                      "",
		strings.Repeat("a", 1025):   "",
		strings.Repeat("ﷺ", 40):     "",
		"Ünïcode":                   "ünïcode",
		"ΣΑΣ":                       "σασ",
		"σας":                       "σασ",
		"a\u0315\u0300\u05ae\u0300": text.FoldName("a\u05ae\u0300\u0300\u0315"),
	} {
		require.Equal(t, want, text.FoldName(in), "%q", in)
	}
}

func FuzzFoldName(f *testing.F) {
	for _, s := range []string{"Go  Users", "Ｇｏ", "ﷺ", "I\u0307", "\u0345a", "葵\ufe0f", "ẛ̣", "\u1e9e"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name := text.FoldName(s)
		if again := text.FoldName(name); again != name {
			t.Fatalf("folds %q to %q and that to %q", s, name, again)
		}
		if len(name) > text.MaxFoldedName || !utf8.ValidString(name) || strings.TrimSpace(name) != name || strings.Contains(name, "  ") {
			t.Fatalf("not a folded name: %q", name)
		}
	})
}
