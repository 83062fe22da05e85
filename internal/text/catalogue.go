package text

import (
	"embed"
	"slices"
	"strings"
	"sync"

	"github.com/BurntSushi/toml"
	"github.com/nicksnyder/go-i18n/v2/i18n"
	"golang.org/x/text/language"
)

// The languages hima speaks. English is the one every other falls back to.
const (
	LangEnglish = "en"
	LangChinese = "zh-CN"
)

//go:embed catalogue/*.toml
var catalogues embed.FS

// Catalogue is what hima says in one language. It is immutable to its users; make it once with NewCatalogue.
type Catalogue struct {
	lang      string
	sources   []string // whole files, the language's own first
	localizer *i18n.Localizer
	messages  sync.Map // ID -> *i18n.Message, those asked for so far
}

// NewCatalogue gives the catalogue of lang ("en", "zh-CN" or anything DetectLang gives). It parses nothing: every command
// of the client pays for what is done here, and most need a handful of the hundreds of texts.
func NewCatalogue(lang string) *Catalogue {
	lang = match(lang)
	c := &Catalogue{lang: lang}
	for _, name := range slices.Compact([]string{lang, LangEnglish}) {
		b, err := catalogues.ReadFile("catalogue/" + name + ".toml")
		if err == nil { // the files are part of the program
			c.sources = append(c.sources, "\n"+string(b))
		}
	}
	bundle := i18n.NewBundle(language.MustParse(lang)) // for its plural rules
	c.localizer = i18n.NewLocalizer(bundle, lang)
	return c
}

// message finds the text of an ID: the line of its key, parsed alone. The files keep one text a line for that.
func (c *Catalogue) message(id string) (*i18n.Message, bool) {
	if m, ok := c.messages.Load(id); ok {
		return m.(*i18n.Message), true
	}
	for _, source := range c.sources {
		_, line, found := strings.Cut(source, "\n\""+id+"\" = ")
		if !found {
			continue
		}
		line, _, _ = strings.Cut(line, "\n")
		var entry struct{ Text any }
		if _, err := toml.Decode("Text = "+line, &entry); err != nil {
			continue // a test parses every line: cannot reach a user
		}
		m := &i18n.Message{ID: id}
		switch v := entry.Text.(type) {
		case string:
			m.Other = v
		case map[string]any:
			m.One, _ = v["one"].(string)
			m.Other, _ = v["other"].(string)
		}
		c.messages.Store(id, m)
		return m, true
	}
	return nil, false
}

// Lang returns the language the catalogue speaks: LangEnglish or LangChinese.
func (c *Catalogue) Lang() string { return c.lang }

// T returns the text with the given ID, its {{.Placeholders}} filled from data. With a count the plural form that fits it
// is chosen and {{.Count}} is set. An unknown ID comes back as itself, so that a gap is seen rather than fatal.
func (c *Catalogue) T(id string, data map[string]any, count ...int) string {
	m, ok := c.message(id)
	if !ok {
		return id
	}
	if len(data) == 0 && len(count) == 0 && !strings.Contains(m.Other, "{{") {
		return m.Other
	}
	cfg := &i18n.LocalizeConfig{DefaultMessage: m}
	if len(count) > 0 && m.One != "" {
		cfg.PluralCount = count[0]
	}
	if len(count) > 0 {
		merged := make(map[string]any, len(data)+1)
		for k, v := range data {
			merged[k] = v
		}
		merged["Count"] = count[0]
		data = merged
	}
	if data != nil {
		cfg.TemplateData = data
	}
	s, err := c.localizer.Localize(cfg)
	if err != nil && s == "" {
		return id
	}
	return s
}

// DetectLang chooses the language: flag if it is given, else the value of LC_ALL, LC_MESSAGES or LANG. "C", "POSIX" and
// everything unknown mean English.
func DetectLang(flag, env string) string {
	if flag != "" {
		return match(flag)
	}
	return match(env)
}

// Speaks tells whether there is a catalogue for a language, however it is written: zh, zh-CN, zh_CN.UTF-8.
func Speaks(lang string) bool {
	base := baseOf(lang)
	return base == "en" || base == "zh"
}

func match(s string) string {
	if baseOf(s) == "zh" {
		return LangChinese // also traditional: nearer to its readers than English
	}
	return LangEnglish
}

// baseOf gives the language of a tag or locale without its region; "" if it is none.
func baseOf(s string) string {
	s, _, _ = strings.Cut(s, ".")
	s, _, _ = strings.Cut(s, "@")
	tag, err := language.Parse(strings.ReplaceAll(s, "_", "-"))
	if err != nil {
		return ""
	}
	base, _ := tag.Base()
	return base.String()
}
