package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"hima/internal/control"
	"hima/internal/text"
)

// app is one run of the program.
type app struct {
	in     *os.File
	out    io.Writer
	errOut io.Writer
	env    func(string) string

	// Facts about the streams, found once at the start.
	inTerminal  bool // a person can be asked
	outTerminal bool // a person reads the results
	color       bool

	flags globals
	root  *cobra.Command

	catalogueOnce sync.Once
	catalogueText *text.Catalogue // nil until the first word is needed: "send" in a script needs none
}

// globals are the flags that every command has.
type globals struct {
	home, profile, lang string
	json, quiet         bool
	noStart             bool
}

func newApp(in, out, errOut *os.File, env func(string) string) *app {
	a := &app{in: in, out: out, errOut: errOut, env: env}
	a.inTerminal = term.IsTerminal(int(in.Fd()))
	a.outTerminal = term.IsTerminal(int(out.Fd()))
	a.color = a.outTerminal && env("NO_COLOR") == "" && env("TERM") != "dumb"
	return a
}

// run executes one command line and returns the exit code.
func (a *app) run(ctx context.Context, args []string) int {
	a.root = a.rootCommand()
	a.root.SetArgs(args)
	a.root.SetIn(a.in)
	a.root.SetOut(a.out)
	a.root.SetErr(a.errOut)
	if len(args) > 0 && (args[0] == cobra.ShellCompRequestCmd || args[0] == "completion") {
		a.localise() // descriptions are part of what completion prints
	}
	err := checkArguments(args)
	if err == nil {
		err = a.root.ExecuteContext(ctx)
	}
	if err != nil && ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return exitInterrupted
	}
	a.report(err)
	return exitCode(err)
}

// checkArguments refuses bytes that are no text: no request could carry them.
func checkArguments(args []string) error {
	for _, s := range args {
		if !utf8.ValidString(s) {
			return usage("usage.utf8", "Text", text.OneLine(strings.ToValidUTF8(s, "\uFFFD"), quoteCells))
		}
	}
	return nil
}

// words returns the catalogue, loading it when it is first needed.
func (a *app) words() *text.Catalogue {
	a.catalogueOnce.Do(func() { a.catalogueText = text.NewCatalogue(a.language()) })
	return a.catalogueText
}

// language follows --lang, then config.toml, then the locale variables in the order of POSIX.
func (a *app) language() string {
	lang := a.flags.lang
	if lang == "" {
		lang = a.env("HIMA_LANG")
	}
	if lang == "" {
		lang = a.configuredLanguage()
	}
	for _, name := range []string{"LC_ALL", "LC_MESSAGES", "LANG"} {
		if v := a.env(name); v != "" {
			return text.DetectLang(lang, v)
		}
	}
	return text.DetectLang(lang, "")
}

// t returns the text id with the placeholders given as name, value, name, value.
func (a *app) t(id string, pairs ...any) string { return a.words().T(id, placeholders(pairs)) }

// tn is t for a text that has plural forms.
func (a *app) tn(id string, n int, pairs ...any) string {
	return a.words().T(id, placeholders(pairs), n)
}

func placeholders(pairs []any) map[string]any {
	if len(pairs) == 0 {
		return nil
	}
	data := make(map[string]any, len(pairs)/2)
	for i := 0; i+1 < len(pairs); i += 2 {
		data[pairs[i].(string)] = pairs[i+1]
	}
	return data
}

// emit prints one result as a line of JSON; "v" comes first and is the version of the line's shape.
func (a *app) emit(v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("encoding result: %w", err)
	}
	return a.emitRaw(a.out, b.Bytes())
}

// emitRaw puts the version into an encoded object and writes it in one piece, so that lines never mix.
func (a *app) emitRaw(w io.Writer, object []byte) error {
	line := make([]byte, 0, len(object)+8)
	line = append(line, `{"v":1`...)
	if rest := object[1:]; rest[0] != '}' {
		line = append(line, ',')
	}
	line = append(line, object[1:]...)
	_, err := w.Write(line)
	return err
}

// printf writes a result for people.
func (a *app) printf(format string, args ...any) { fmt.Fprintf(a.out, format, args...) }

// done confirms an act for people; --quiet leaves it out.
func (a *app) done(id string, pairs ...any) {
	if !a.flags.quiet && !a.flags.json {
		fmt.Fprintln(a.out, a.t(id, pairs...))
	}
}

// note tells people about the course of things on stderr.
func (a *app) note(id string, pairs ...any) {
	if !a.flags.quiet && !a.flags.json {
		fmt.Fprintln(a.errOut, a.t(id, pairs...))
	}
}

// warn tells people what they should know although the command goes on. With --json it is an object, as an error is.
func (a *app) warn(message string) {
	switch {
	case a.flags.quiet:
	case a.flags.json:
		object, err := json.Marshal(struct {
			Warning string `json:"warning"`
		}{message})
		if err == nil {
			_ = a.emitRaw(a.errOut, append(object, '\n'))
		}
	default:
		fmt.Fprintln(a.errOut, "hima: "+a.t("cli.warning")+" "+message)
	}
}

func (a *app) hint(message string) {
	if !a.flags.quiet && !a.flags.json && message != "" {
		fmt.Fprintln(a.errOut, "hima: "+a.t("cli.hint")+" "+message)
	}
}

// Styles. Each gives the text back unchanged when colours are off.
func (a *app) bold(s string) string   { return a.sgr("1", s) }
func (a *app) dim(s string) string    { return a.sgr("2", s) }
func (a *app) green(s string) string  { return a.sgr("32", s) }
func (a *app) yellow(s string) string { return a.sgr("33", s) }
func (a *app) cyan(s string) string   { return a.sgr("36", s) }

func (a *app) sgr(code, s string) string {
	if !a.color || s == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// width is the number of columns of the terminal; 0 if results do not go to one.
func (a *app) width() int {
	f, ok := a.out.(*os.File)
	if !ok || !a.outTerminal {
		return 0
	}
	w, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return w
}

// mismatch is called once when the node is another version than this program.
func (a *app) mismatch(node string) {
	a.warn(a.t("cli.version_mismatch", "Client", control.Release, "Node", text.OneLine(node, 40)))
}
