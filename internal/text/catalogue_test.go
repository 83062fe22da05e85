package text

import (
	"io/fs"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/BurntSushi/toml"
	"github.com/stretchr/testify/require"
)

var placeholder = regexp.MustCompile(`{{[^}]*}}`)

// entries reads a catalogue as ID -> plural form -> text; a plain text has the form "other".
func entries(t *testing.T, lang string) map[string]map[string]string {
	t.Helper()
	b, err := catalogues.ReadFile("catalogue/" + lang + ".toml")
	require.NoError(t, err)
	var raw map[string]any
	require.NoError(t, toml.Unmarshal(b, &raw))
	out := map[string]map[string]string{}
	var walk func(prefix string, m map[string]any)
	walk = func(prefix string, m map[string]any) {
		for k, v := range m {
			id := prefix + k
			switch v := v.(type) {
			case string:
				out[id] = map[string]string{"other": v}
			case map[string]any:
				if _, ok := v["other"]; !ok {
					walk(id+".", v)
					continue
				}
				out[id] = map[string]string{}
				for form, s := range v {
					text, ok := s.(string)
					require.True(t, ok, "%s: %s.%s is not text", lang, id, form)
					out[id][form] = text
				}
			default:
				t.Fatalf("%s: %s is %T", lang, id, v)
			}
		}
	}
	walk("", raw)
	return out
}

func holes(s string) []string {
	found := placeholder.FindAllString(s, -1)
	slices.Sort(found)
	return slices.Compact(found)
}

func TestCataloguesAreEqual(t *testing.T) {
	files, err := fs.Glob(catalogues, "catalogue/*.toml")
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"catalogue/en.toml", "catalogue/zh-CN.toml"}, files)
	en, zh := entries(t, LangEnglish), entries(t, LangChinese)
	for id, forms := range en {
		require.Contains(t, zh, id, "missing in zh-CN")
		require.Equal(t, holes(forms["other"]), holes(zh[id]["other"]), "placeholders of %s", id)
		require.NotEmpty(t, strings.TrimSpace(zh[id]["other"]), id)
		for form, s := range forms {
			if form == "one" || form == "other" { // "one" may leave the number out
				require.Subset(t, append(holes(forms["other"]), "{{.Count}}"), holes(s), "%s.%s", id, form)
			}
		}
	}
	for id := range zh {
		require.Contains(t, en, id, "missing in en")
	}
}

// A catalogue must not hold what Message would take out, and Chinese sentences carry Chinese punctuation.
func TestCatalogueText(t *testing.T) {
	for _, lang := range []string{LangEnglish, LangChinese} {
		for id, forms := range entries(t, lang) {
			for _, s := range forms {
				require.Equal(t, Message(s), s, "%s: %s", lang, id)
				if lang == LangEnglish {
					continue
				}
				rs := []rune(s)
				for i := 1; i < len(rs); i++ {
					if strings.ContainsRune(",;:?!", rs[i]) && unicode.Is(unicode.Han, rs[i-1]) {
						t.Errorf("%s: ASCII %q after a Han character in %q", id, rs[i], s)
					}
				}
			}
		}
	}
}

// Every text renders: no template error, no placeholder left unfilled when all are given.
func TestEveryTextRenders(t *testing.T) {
	name := regexp.MustCompile(`\.(\w+)`)
	for _, lang := range []string{LangEnglish, LangChinese} {
		c := NewCatalogue(lang)
		for id, forms := range entries(t, lang) {
			data := map[string]any{}
			for _, hole := range holes(forms["other"]) {
				data[name.FindStringSubmatch(hole)[1]] = "X"
			}
			var got string
			if len(forms) > 1 {
				got = c.T(id, data, 2)
			} else {
				got = c.T(id, data)
			}
			require.NotEqual(t, id, got, lang)
			require.NotContains(t, got, "<no value>", "%s: %s", lang, id)
			require.NotContains(t, got, "{{", "%s: %s", lang, id)
		}
	}
}

func TestCatalogue(t *testing.T) {
	require.Equal(t, "no.such.id", NewCatalogue("en").T("no.such.id", nil))
	require.Equal(t, LangChinese, NewCatalogue("zh_CN.UTF-8").Lang())
	require.Equal(t, "用户名不能为空。", NewCatalogue("zh-CN").T("username.empty", nil))
}

func TestDetectLang(t *testing.T) {
	for _, c := range []struct{ flag, env, want string }{
		{"", "", "en"},
		{"", "C", "en"},
		{"", "C.UTF-8", "en"},
		{"", "POSIX", "en"},
		{"", "zh_CN.UTF-8", "zh-CN"},
		{"", "zh_TW", "zh-CN"},
		{"", "de_DE@euro", "en"},
		{"en", "zh_CN", "en"},
		{"zh-CN", "C", "zh-CN"},
		{"zh", "", "zh-CN"},
		{"???", "zh_CN", "en"},
	} {
		require.Equal(t, c.want, DetectLang(c.flag, c.env), "%v", c)
	}
}

func TestSpeaks(t *testing.T) {
	for _, s := range []string{"en", "zh", "zh-CN", "zh_CN", "zh_CN.UTF-8", "zh-Hans", "en-GB", "ZH"} {
		require.True(t, Speaks(s), s)
	}
	for _, s := range []string{"", "C", "de", "chinese", "???"} {
		require.False(t, Speaks(s), s)
	}
}

// The catalogue is read line by line, a parser of TOML reads it whole: both must find the same texts.
func TestCatalogueReadsEveryLine(t *testing.T) {
	for _, lang := range []string{LangEnglish, LangChinese} {
		c := NewCatalogue(lang)
		for id, forms := range entries(t, lang) {
			m, ok := c.message(id)
			require.True(t, ok, "%s: %s does not stand on a line of its own", lang, id)
			require.Equal(t, forms["other"], m.Other, "%s: %s", lang, id)
			require.Equal(t, forms["one"], m.One, "%s: %s", lang, id)
		}
	}
	en := NewCatalogue(LangEnglish)
	require.Equal(t, "1 unread message.", en.T("home.unread", nil, 1))
	require.Equal(t, "2 unread messages.", en.T("home.unread", nil, 2))
	require.Equal(t, "2 条未读消息。", NewCatalogue(LangChinese).T("home.unread", nil, 2))
}

func BenchmarkNewCatalogue(b *testing.B) {
	for b.Loop() {
		NewCatalogue(LangChinese).T("username.empty", nil)
	}
}
