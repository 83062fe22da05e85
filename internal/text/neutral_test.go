package text

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/charmbracelet/x/ansi"
	"github.com/stretchr/testify/require"
)

const (
	family   = "👨\u200d👩\u200d👧\u200d👦"
	england  = "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"
	keycap1  = "1\ufe0f\u20e3"
	heart    = "❤\ufe0f"
	rainbow  = "🏳\ufe0f\u200d🌈"
	skinTone = "👍🏽"
	persian  = "می\u200cخواهم"
	hindi    = "क्\u200dष"
)

func TestKept(t *testing.T) {
	for _, s := range []string{
		"", "hello", "葵", "小葵 2", "café", "שלום", "مرحبا", "ไทยที่นี่", "한국어", "日本語テスト", family, england, keycap1, heart,
		rainbow, skinTone, persian, hindi, "葛\U000e0100", "🇩🇪", "a…b", "½ © ™",
	} {
		require.Equal(t, s, Nickname(s), "nickname %q", s)
		require.Equal(t, s, Message(s), "message %q", s)
	}
	for _, s := range []string{"a\nb\tc", "  indented", "two  blanks", "line\n\n\nline\n", "全角　空白"} {
		require.Equal(t, s, Message(s))
	}
}

func TestNickname(t *testing.T) {
	for in, want := range map[string]string{
		"\x1b[31mred\x1b[0m":            "[31mred[0m",
		"\x1b]0;title\x07x":             "]0;titlex",
		"\u009b2Jx":                     "2Jx",
		"a\x00b\x7fc":                   "abc",
		"a\r\nb\tc":                     "a b c",
		"a\u2028b\u2029c\u0085d":        "a b c d",
		"  a   b  ":                     "a b",
		"a\u00a0\u3000\u2003b":          "a b",
		"\u202eevil":                    "evil",
		"a\u2066b\u2069\u200e\u200f":    "ab",
		"\u061ca":                       "a",
		"a\u200bb\u200cc\u200dd\ufeffe": "abcde",
		"a\u00adb\u034fc":               "abc",
		"\u3164\u115f\u2800":            "",
		"\u0301a":                       "a",
		"a \u0301b":                     "a b",
		"e\u0301":                       "é",
		"\xffa\xc0":                     "\ufffda\ufffd",
		"\ue000\U000f0000":              "\ufffd\ufffd",
		"a\U000e0068\U000e0069b":        "ab",
		"🏴\U000e0067\U000e0062":         "🏴",
		"a\ufe0fb":                      "ab",
		"葛\U000e0100\U000e0101":         "葛\U000e0100",
		"👨\u200d":                       "👨",
		"\u200d👨":                       "👨",
		"👨\u200d\u200d👩":                "👨\u200d👩",
		"\ufff9a\ufffab\ufffb":          "ab",
	} {
		require.Equal(t, want, Nickname(in), "%q", in)
	}
}

func TestMessage(t *testing.T) {
	for in, want := range map[string]string{
		"a\r\nb\rc\u2028d":      "a\nb\nc\nd",
		"a\x1b[2J\x1b[Hb":       "a[2J[Hb",
		"a\bb\x07":              "ab",
		"a\vb\fc":               "a b c",
		"\u202ea\u2069":         "a",
		"x\n\u0301y":            "x\ny",
		"tab\tand\nline":        "tab\tand\nline",
		"e\u0301":               "e\u0301", // what was written stays as it was written
		"a\u200bb":              "ab",
		"\x1bPq#0\x1b\\":        "Pq#0\\",
		"\u009d52;c;aGk=\u009c": "52;c;aGk=",
	} {
		require.Equal(t, want, Message(in), "%q", in)
	}
}

func TestNicknameIsCut(t *testing.T) {
	for _, s := range []string{
		strings.Repeat("a", 10000), strings.Repeat("葵", 10000), strings.Repeat("e\u0301\u0323", 10000),
		strings.Repeat(family, 1000), strings.Repeat("👨\u200d", 10000), strings.Repeat("\u0600", 10000) + "a",
		strings.Repeat("क्\u200d", 10000), strings.Repeat("\u1100", 10000), strings.Repeat("\u200b", 10000) + "a",
		"a" + strings.Repeat("\u0301", 100000), strings.Repeat("a ", 10000), strings.Repeat(england, 1000),
	} {
		got := Nickname(s)
		require.LessOrEqual(t, ansi.StringWidth(got), MaxNicknameCells)
		require.LessOrEqual(t, len(got), MaxNicknameCells*bytesPerCell)
		require.Equal(t, got, Nickname(got), "%.40q", s)
	}
	require.Equal(t, strings.Repeat("葵", 31)+"…", Nickname(strings.Repeat("葵", 40)))
	require.Equal(t, strings.Repeat("a", 64), Nickname(strings.Repeat("a", 64)))
	require.Equal(t, "hello…", OneLine("hello world", 7))
	require.Equal(t, "…", OneLine("hello", 1))
	require.Empty(t, OneLine("hello", 0))
}

func TestMarksAreBounded(t *testing.T) {
	zalgo := "z" + strings.Repeat("\u0353", 500) + "a" + strings.Repeat("\u0489", 500)
	for _, out := range []string{Nickname(zalgo), Message(zalgo)} {
		run := 0
		for _, r := range out {
			if unicode.In(r, unicode.Mn, unicode.Me) {
				run++
				require.LessOrEqual(t, run, maxMarks)
			} else {
				run = 0
			}
		}
	}
}

func TestValid(t *testing.T) {
	require.NoError(t, Valid("葵\x1b anything its author likes"))
	require.NoError(t, Valid(strings.Repeat("a", MaxBytes)))
	require.ErrorIs(t, Valid(strings.Repeat("a", MaxBytes+1)), ErrBadText)
	require.ErrorIs(t, Valid("\xff"), ErrBadText)
}

// checkSafe is what no text of a peer may have once it was neutralised.
func checkSafe(t *testing.T, out string, lines bool) {
	t.Helper()
	if !utf8.ValidString(out) {
		t.Fatalf("not UTF-8: %q", out)
	}
	run := 0
	for _, r := range out {
		switch {
		case lines && (r == '\n' || r == '\t'):
		case unicode.Is(unicode.Cc, r):
			t.Fatalf("control character %U in %q", r, out)
		case unicode.Is(unicode.Bidi_Control, r):
			t.Fatalf("bidi control %U in %q", r, out)
		case r == '\u2028', r == '\u2029', r == '\u200b', r == '\ufeff', r == '\u00ad':
			t.Fatalf("hidden character %U in %q", r, out)
		}
		if unicode.In(r, unicode.Mn, unicode.Mc, unicode.Me) && !isSelector(r) {
			if run++; run > maxMarks+1 { // one selector may stand between
				t.Fatalf("too many marks in %q", out)
			}
		} else if r != zwj && r != zwnj {
			run = 0
		}
	}
	if ansi.Strip(out) != out {
		t.Fatalf("a terminal would act on %q", out)
	}
}

func addTextSeeds(f *testing.F) {
	for _, s := range []string{
		"", "hello", "葵\n小葵", family, england, keycap1, rainbow, persian, hindi, "\x1b[2J", "\u009b1m", "\u202e\u2066",
		"a\u0344\u0344\u0344\u0344", "\u0958\u0958", "\u1100\u1161\u11a8", "e\u0301\u0301\u0301\u0301\u0301", "\xff\xfe",
		"a\r\n\r b", "👨\u200d\u200d👩", "🏴\U000e0067", "\u0600\u0600a", strings.Repeat("👩\u200d", 40), "a\u200b\u0301",
	} {
		f.Add(s)
	}
}

func FuzzOneLine(f *testing.F) {
	addTextSeeds(f)
	f.Fuzz(func(t *testing.T, s string) {
		for _, cells := range []int{1, 7, MaxNicknameCells} {
			out := OneLine(s, cells)
			checkSafe(t, out, false)
			if w := ansi.StringWidth(out); w > cells {
				t.Fatalf("%d cells in %q, want at most %d", w, out, cells)
			}
			if again := OneLine(out, cells); again != out {
				t.Fatalf("not a fixed point: %q, then %q", out, again)
			}
		}
	})
}

func FuzzMessage(f *testing.F) {
	addTextSeeds(f)
	f.Fuzz(func(t *testing.T, s string) {
		out := Message(s)
		checkSafe(t, out, true)
		if again := Message(out); again != out {
			t.Fatalf("not a fixed point: %q, then %q", out, again)
		}
		if len(out) > 3*len(s) { // a broken byte becomes three
			t.Fatalf("%d bytes became %d", len(s), len(out))
		}
	})
}

func BenchmarkMessageASCII(b *testing.B) {
	for b.Loop() {
		Message("see you at the station at seven, platform 4")
	}
}

func BenchmarkMessageChinese(b *testing.B) {
	for b.Loop() {
		Message("七点在车站四号站台见")
	}
}
