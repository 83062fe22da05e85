package text

import (
	"embed"
	"strings"

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

// Catalogue is what hima says in one language. It is immutable; make it once with NewCatalogue.
type Catalogue struct {
	lang      string
	localizer *i18n.Localizer
}

// NewCatalogue loads the catalogue of lang ("en", "zh-CN" or anything DetectLang gives). Only the files needed are read,
// because every command of the client pays for it.
func NewCatalogue(lang string) *Catalogue {
	lang = match(lang)
	bundle := i18n.NewBundle(language.English)
	bundle.RegisterUnmarshalFunc("toml", toml.Unmarshal)
	load := func(name string) {
		path := "catalogue/" + name + ".toml"
		b, err := catalogues.ReadFile(path)
		if err == nil {
			// The files are part of the program and a test parses them: an error here cannot reach a user.
			_, _ = bundle.ParseMessageFileBytes(b, path)
		}
	}
	load(LangEnglish)
	if lang != LangEnglish {
		load(lang)
	}
	return &Catalogue{lang: lang, localizer: i18n.NewLocalizer(bundle, lang, LangEnglish)}
}

// Lang returns the language the catalogue speaks: LangEnglish or LangChinese.
func (c *Catalogue) Lang() string { return c.lang }

// T returns the text with the given ID, its {{.Placeholders}} filled from data. With a count the plural form that fits it
// is chosen and {{.Count}} is set. An unknown ID comes back as itself, so that a gap is seen rather than fatal.
func (c *Catalogue) T(id string, data map[string]any, count ...int) string {
	cfg := &i18n.LocalizeConfig{MessageID: id}
	if len(count) > 0 {
		cfg.PluralCount = count[0]
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

func match(s string) string {
	s, _, _ = strings.Cut(s, ".")
	s, _, _ = strings.Cut(s, "@")
	tag, err := language.Parse(strings.ReplaceAll(s, "_", "-"))
	if err != nil {
		return LangEnglish
	}
	if base, _ := tag.Base(); base.String() == "zh" {
		return LangChinese // also traditional: nearer to its readers than English
	}
	return LangEnglish
}
