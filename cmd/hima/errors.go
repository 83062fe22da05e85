package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"hima/internal/control"
	"hima/internal/text"
)

// Exit codes. Scripts rely on them; docs/cli.md lists them.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2   // wrong use, or a name that means several people
	exitNotRunning  = 69  // EX_UNAVAILABLE: no node, and none was to be started
	exitNotYet      = 75  // EX_TEMPFAIL: --wait was not reached in time; the message still goes
	exitNotAllowed  = 77  // EX_NOPERM: locked, wrong password, or forbidden by the owner's rules
	exitInterrupted = 130 // 128 + SIGINT
)

// failure is an error that the command line finds itself. Its text stands in the catalogues.
type failure struct {
	code control.Code
	id   string // text
	data []any  // its placeholders
	hint string // text ID of what to do next; may be empty
	exit int    // 0: follows from code
}

func fail(code control.Code, id string, pairs ...any) *failure {
	return &failure{code: code, id: id, data: pairs}
}

// usage is a wrong use of a command.
func usage(id string, pairs ...any) *failure {
	return &failure{code: control.Invalid, id: id, data: pairs, exit: exitUsage}
}

// withHint names the next step.
func (f *failure) withHint(id string) *failure { f.hint = id; return f }

func (f *failure) Error() string { return string(f.code) + ": " + f.id }

func (f *failure) Is(target error) bool {
	c, ok := target.(control.Code)
	return ok && c == f.code
}

// cobraError is a refusal of the flag parser that flagFailure has no words for; its own are English only.
type cobraError struct{ err error }

func (e *cobraError) Error() string { return e.err.Error() }
func (e *cobraError) Unwrap() error { return e.err }

// flagFailure puts a refusal of the flag parser into the user's words.
func flagFailure(c *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	var missing *pflag.ValueRequiredError
	var wrong *pflag.InvalidValueError
	switch {
	case errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() != "":
		return usage("usage.unknown_flag", "Flag", "-"+text.OneLine(unknown.GetSpecifiedShortnames(), quoteCells)).withHint("hint.dashes")
	case errors.As(err, &unknown):
		typed := unknown.GetSpecifiedName()
		var known []string
		c.Flags().VisitAll(func(f *pflag.Flag) { known = append(known, f.Name) })
		if near := text.Nearest(typed, known); near != "" {
			return usage("usage.unknown_flag_suggestion", "Flag", "--"+text.OneLine(typed, quoteCells), "Suggestion", "--"+near).withHint("hint.help")
		}
		return usage("usage.unknown_flag", "Flag", "--"+text.OneLine(typed, quoteCells)).withHint("hint.help")
	case errors.As(err, &missing):
		return usage("usage.flag_value", "Flag", "--"+missing.GetFlag().Name).withHint("hint.help")
	case errors.As(err, &wrong):
		return usage("usage.env", "Variable", "--"+wrong.GetFlag().Name, "Value", text.OneLine(wrong.GetValue(), quoteCells)).withHint("hint.help")
	}
	return &cobraError{err}
}

// silent ends the program with a code after everything was said already.
type silent struct{ exit int }

func (s *silent) Error() string { return fmt.Sprintf("exit code %d", s.exit) }

// codeOf is control.CodeOf with the errors of this package.
func codeOf(err error) control.Code {
	if f, ok := errors.AsType[*failure](err); ok {
		return f.code
	}
	if _, ok := errors.AsType[*cobraError](err); ok {
		return control.Invalid
	}
	return control.CodeOf(err)
}

// exitCode maps every error to a code, in one place.
func exitCode(err error) int {
	if err == nil {
		return exitOK
	}
	if s, ok := errors.AsType[*silent](err); ok {
		return s.exit
	}
	if f, ok := errors.AsType[*failure](err); ok && f.exit != 0 {
		return f.exit
	}
	switch codeOf(err) {
	case control.Invalid, control.Ambiguous:
		return exitUsage
	case control.NotRunning:
		return exitNotRunning
	case control.Locked, control.WrongPassword, control.Denied, control.NotAllowed, control.Muted:
		return exitNotAllowed
	}
	if errors.Is(err, context.Canceled) {
		return exitInterrupted
	}
	return exitFailed
}

// errorView is an error as a line of JSON on stderr.
type errorView struct {
	Error      string          `json:"error"`
	Message    string          `json:"message"`
	Hint       string          `json:"hint,omitempty"`
	Candidates []candidateView `json:"candidates,omitempty"`
}

type candidateView struct {
	Account  string `json:"account"`
	Username string `json:"username"`
	Nickname string `json:"nickname"`
	Source   string `json:"source"`
	Group    string `json:"group,omitempty"` // a group: its ID; then nickname is its name
}

// report tells why a command failed.
func (a *app) report(err error) {
	if err == nil {
		return
	}
	if _, ok := errors.AsType[*silent](err); ok {
		return
	}
	v := a.describe(err)
	if a.flags.json {
		if b, err := json.Marshal(v); err == nil {
			_ = a.emitRaw(a.errOut, append(b, '\n'))
		}
		return
	}
	fmt.Fprintln(a.errOut, "hima: "+a.t("cli.error")+" "+v.Message)
	if len(v.Candidates) > 0 {
		t := a.newTable("column.id", "column.username", "column.nickname", "column.source")
		for _, c := range v.Candidates {
			t.row(firstOf(c.Account, c.Group), c.Username, c.Nickname, a.word("source", c.Source))
		}
		t.print(a.errOut)
	}
	a.hint(v.Hint)
}

// describe turns an error into words of the user's language.
func (a *app) describe(err error) errorView {
	v := errorView{Error: string(codeOf(err))}
	var f *failure
	var c *cobraError
	var e *control.Error
	switch {
	case errors.As(err, &f):
		v.Message = a.t(f.id, f.data...)
		v.Hint = a.tOptional(f.hint)
	case errors.As(err, &c):
		v.Message = a.t("error.usage", "Detail", text.OneLine(c.Error(), 200))
		v.Hint = a.t("hint.help")
	case errors.As(err, &e):
		v.Message = a.describeCode(e.Code, e.Message)
		v.Hint = a.tOptional("hint." + string(e.Code))
		if e.Hint != "" && !ownWords(e.Code) {
			v.Hint = text.OneLine(e.Hint, 200) // what to do in this very case
			if a.words().Lang() != text.LangEnglish {
				v.Hint = firstOf(a.translated("do", e.Hint), a.tOptional("hint."+string(e.Code)), v.Hint)
			}
		}
		for _, c := range e.Candidates {
			v.Candidates = append(v.Candidates, candidateView{
				Account: text.OneLine(c.Account, 80), Username: name(c.Username), Nickname: name(c.Nickname),
				Source: text.OneLine(c.Source, 20), Group: text.OneLine(c.Group, 80),
			})
		}
	default:
		v.Message = a.describeCode(control.CodeOf(err), err.Error())
	}
	return v
}

// nameTaken says who has a username, if that is why a registration or a change of the profile was refused: the node then
// names exactly one account.
func nameTaken(err error, username string) error {
	e, ok := errors.AsType[*control.Error](err)
	if !ok || e.Code != control.Exists || len(e.Candidates) != 1 {
		return err
	}
	return fail(control.Exists, "error.name_taken", "Username", name(username), "Account", shortAccount(plain(e.Candidates[0].Account))).
		withHint("hint.name_taken")
}

// ownWords: for these the program's own sentence says all, and the node cannot know by which command its caller logs in.
func ownWords(c control.Code) bool {
	return c == control.Locked || c == control.NoProfile || c == control.NotRunning || c == control.WrongPassword
}

// describeCode gives the node's own sentence in the user's language, and where there are no words for it what the code means,
// followed by that sentence.
func (a *app) describeCode(code control.Code, detail string) string {
	detail = text.OneLine(strings.TrimSpace(detail), 400)
	general := a.t("error." + string(code))
	switch {
	case detail == "" || detail == string(code) || ownWords(code):
		return general
	case a.words().Lang() == text.LangEnglish:
		return detail
	}
	if said := a.translated("said", detail); said != "" {
		return said
	}
	return a.t("error.with_detail", "General", general, "Detail", detail)
}

// tOptional is t for an ID that need not exist.
func (a *app) tOptional(id string) string {
	if id == "" {
		return ""
	}
	if s := a.t(id); s != id {
		return s
	}
	return ""
}

// word translates a word of the API (a state, a relation): the text "group.word", or the word itself if a newer node uses
// one that this program does not know.
func (a *app) word(group, w string) string {
	if w == "" {
		return ""
	}
	if s := a.tOptional(group + "." + strings.ReplaceAll(w, "-", "_")); s != "" {
		return s
	}
	return text.OneLine(w, 40)
}
