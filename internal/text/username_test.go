package text

import (
	"errors"
	"os"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"golang.org/x/text/secure/precis"
	"golang.org/x/text/unicode/bidi"
	"golang.org/x/text/unicode/norm"
)

func TestUsername(t *testing.T) {
	for in, want := range map[string]string{
		"葵":                     "葵",
		"小葵2":                   "小葵2",
		"Alice":                 "alice",
		"ALICE":                 "alice",
		"Ａｌｉｃｅ":                 "alice",
		"alice.w_x-2":           "alice.w_x-2",
		"張三さん":                  "張三さん",
		"葵aoi":                  "葵aoi",
		"김철수kim":                "김철수kim",
		"ラーメン":                  "ラーメン",
		"борис":                 "борис",
		"Ωmega"[:len("Ω")]:      "ω",
		"מרים":                  "מרים",
		"cafe\u0301":            "café",
		"nguyễn":                "nguyễn",
		"12345678901":           "12345678901",
		"2小":                    "2小",
		"007号":                  "007号",
		"root":                  "root",
		"deadbeef":              "deadbeef",
		strings.Repeat("x", 32): strings.Repeat("x", 32),
		strings.Repeat("葵", 21): strings.Repeat("葵", 21),
	} {
		got, err := Username(in)
		require.NoError(t, err, "%q", in)
		require.Equal(t, want, got, "%q", in)
		again, err := Username(got)
		require.NoError(t, err, "%q", got)
		require.Equal(t, got, again)
	}
}

func TestUsernameRefused(t *testing.T) {
	for in, want := range map[string]Reason{
		"":                                ReasonEmpty,
		strings.Repeat("x", 33):           ReasonTooLong,
		strings.Repeat("葵", 22):           ReasonTooLong,
		strings.Repeat("a", 100000):       ReasonTooLong,
		"a b":                             ReasonCharacter,
		"a/b":                             ReasonCharacter,
		"a\x00b":                          ReasonCharacter,
		"a\x1b[2Jb":                       ReasonCharacter,
		"a\nb":                            ReasonCharacter,
		"a\u202eb":                        ReasonCharacter,
		"a\u200bb":                        ReasonCharacter,
		"a\u200db":                        ReasonCharacter,
		"\xff\xfe":                        ReasonCharacter,
		"user:葵":                          ReasonCharacter,
		"hima:abc":                        ReasonCharacter,
		"a@b":                             ReasonCharacter,
		"😀":                               ReasonCharacter,
		"-rf":                             ReasonEdge,
		".":                               ReasonEdge,
		"..":                              ReasonEdge,
		"a..b":                            ReasonEdge,
		"a_":                              ReasonEdge,
		"аlice":                           ReasonMixed, // Cyrillic а
		"pаypal":                          ReasonMixed,
		"alicе":                           ReasonMixed,
		"aωb":                             ReasonMixed,
		"葵борис":                          ReasonMixed,
		"さ김":                              ReasonMixed,
		"ㄅさ":                              ReasonMixed,
		"aーb" + "ω":                       ReasonMixed,
		"борисーа":                         ReasonMixed,
		"1२":                              ReasonMixed,
		"i\u0307stanbul":                  ReasonMarks,
		"x\u0323\u0323":                   ReasonMarks,
		"x\u0323\u0331\u0300\u0302\u0308": ReasonMarks,
		"1٢":                              ReasonDirection,
		"אa":                              ReasonDirection,
		"hima1qqqsyq":                     ReasonLooksLike,
		"HIMA1QQQ":                        ReasonLooksLike,
		"12D3KooWabc":                     ReasonLooksLike,
		"0123456789abcdef0123":            ReasonLooksLike,
		"self":                            ReasonReserved,
		"SELF":                            ReasonReserved,
		"Ｓｅｌｆ":                            ReasonReserved,
		"con":                             ReasonReserved,
		"nul.txt":                         ReasonReserved,
		"COM1":                            ReasonReserved,
		"自己":                              ReasonReserved,
	} {
		got, err := Username(in)
		require.ErrorIs(t, err, ErrBadUsername, "%q gave %q", in, got)
		var bad *UsernameError
		require.True(t, errors.As(err, &bad))
		require.Equal(t, want, bad.Reason, "%q", in)
		require.Empty(t, got)
	}
}

// Every reason has a sentence of its own in each catalogue.
func TestReasonsHaveText(t *testing.T) {
	reasons := []Reason{
		ReasonEmpty, ReasonTooLong, ReasonCharacter, ReasonEdge, ReasonMixed, ReasonMarks,
		ReasonDirection, ReasonLooksLike, ReasonReserved,
	}
	for _, lang := range []string{LangEnglish, LangChinese} {
		c := NewCatalogue(lang)
		seen := map[string]bool{}
		for _, r := range reasons {
			id := "username." + string(r)
			s := c.T(id, nil)
			require.NotEqual(t, id, s)
			require.False(t, seen[s], "%s twice", id)
			seen[s] = true
		}
	}
	seen := map[string]bool{}
	for _, r := range reasons {
		require.False(t, seen[reasonText(r)], "%s", r)
		seen[reasonText(r)] = true
	}
}

// A new toolchain or x/text brings new tables: whoever raises them reads docs/spec/names.md and changes both.
func TestUnicodeVersion(t *testing.T) {
	require.Equal(t, UnicodeVersion, unicode.Version)
	require.Equal(t, UnicodeVersion, norm.Version)
	require.Equal(t, UnicodeVersion, precis.UnicodeVersion)
	require.Equal(t, UnicodeVersion, bidi.UnicodeVersion)
	spec, err := os.ReadFile("../../docs/spec/names.md")
	require.NoError(t, err)
	require.Contains(t, string(spec), "Unicode "+UnicodeVersion)
}

func FuzzUsername(f *testing.F) {
	for _, s := range []string{"葵", "小葵2", "Ａｌｉｃｅ", "аlice", "i\u0307", "ẞ", "ﬁ", "מרים1", "a..b", "ǅ", "Ꭰ", "ᾳ", "\u0345α", "ー"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, err := Username(s)
		if err != nil {
			if !errors.Is(err, ErrBadUsername) || name != "" {
				t.Fatalf("%q: %q, %v", s, name, err)
			}
			return
		}
		if again, err := Username(name); err != nil || again != name {
			t.Fatalf("%q is not canonical: %q, %v", name, again, err)
		}
		if len(name) > MaxUsernameBytes || utf8.RuneCountInString(name) > MaxUsernameRunes {
			t.Fatalf("%q is too long", name)
		}
		if Nickname(name) != name {
			t.Fatalf("%q is not safe to show: %q", name, Nickname(name))
		}
	})
}
