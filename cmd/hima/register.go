package main

import (
	"context"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hima/internal/control"
	"hima/internal/control/pb"
	"hima/internal/text"
)

// registration is what a new profile needs.
type registration struct {
	username, nickname, contactField string
	password, phrase                 string
	network                          string // link; empty: none
	noPassword                       bool
}

// registerFlags are the flags of "hima register".
type registerFlags struct {
	username, nickname, contactField, qq string
	passwordFile, phraseFile, network    string
	noPassword, auto, phrase             bool
}

func (a *app) registerCommand() *cobra.Command {
	var f registerFlags
	var c *cobra.Command
	c = a.command(spec{
		use: "register [--username U] [--nickname N] [--contact-field QQ:12345] [--password-file F | --no-password] [--network LINK]",
		id:  "register",
		example: "  hima register --username alice\n" +
			"  hima register --username alice --nickname Alice --qq 12345 --password-file secret.txt\n" +
			"  hima register --username alice --network hima-net:…\n" +
			"  hima register --auto",
		run: func(ctx context.Context, _ []string) error {
			if f.network == "" && c.Flags().Changed("network") { // a variable that was not set, most likely
				return usage("usage.no_network")
			}
			return a.register(ctx, f)
		},
	})
	c.Flags().StringVar(&f.username, "username", "", "flag.register.username")
	c.Flags().StringVar(&f.nickname, "nickname", "", "flag.register.nickname")
	c.Flags().StringVar(&f.contactField, "contact-field", "", "flag.register.contact-field")
	c.Flags().StringVar(&f.qq, "qq", "", "flag.register.qq")
	c.Flags().StringVar(&f.passwordFile, "password-file", "", "flag.password-file")
	c.Flags().BoolVar(&f.noPassword, "no-password", false, "flag.no-password")
	c.Flags().BoolVar(&f.auto, "auto", false, "flag.register.auto")
	c.Flags().BoolVar(&f.phrase, "phrase", false, "flag.register.phrase")
	c.Flags().StringVar(&f.network, "network", "", "flag.register.network")
	c.Flags().StringVar(&f.phraseFile, "phrase-file", "", "flag.register.phrase-file")
	return c
}

func (a *app) register(ctx context.Context, f registerFlags) error {
	if f.qq != "" {
		if f.contactField != "" {
			return usage("usage.exclusive", "First", "--qq", "Second", "--contact-field")
		}
		field, err := qqField(f.qq)
		if err != nil {
			return err
		}
		f.contactField = field
	}
	if f.noPassword && f.passwordFile != "" {
		return usage("usage.exclusive", "First", "--no-password", "Second", "--password-file")
	}
	if f.username == "" && a.flags.profile != "" {
		f.username = a.flags.profile
	}
	r := registration{username: f.username, nickname: f.nickname, contactField: f.contactField, noPassword: f.noPassword, network: f.network}
	var err error
	if f.passwordFile != "" {
		if r.password, err = a.passwordFromFile(f.passwordFile); err != nil {
			return err
		}
		if r.password == "" { // an empty file asks for what --no-password asks for
			r.noPassword = true
		}
	}
	if f.phraseFile != "" {
		if r.phrase, err = a.phraseFromFile(f.phraseFile); err != nil {
			return err
		}
		if r.phrase == "" { // never make a new account for somebody who wants the old one back
			return usage("usage.no_phrase", "Path", f.phraseFile)
		}
	}
	switch {
	case f.auto:
		a.fillIn(&r)
	case a.inTerminal:
		t := a.openTerminal()
		defer t.Close()
		if err := a.askRegistration(ctx, t, &r, f.phrase && r.phrase == ""); err != nil {
			return err
		}
	case r.username == "":
		return usage("usage.register_username").withHint("hint.register_auto")
	case r.password == "" && !r.noPassword:
		return usage("usage.register_password").withHint("hint.register_password")
	case f.phrase && r.phrase == "":
		return usage("usage.register_phrase")
	}
	v, err := a.registerNow(ctx, r)
	if err != nil {
		return err
	}
	return a.showRegistration(v, r)
}

// fillIn chooses everything silently: the name of the system's user, no password.
func (a *app) fillIn(r *registration) {
	system, full := systemUser()
	if r.username == "" {
		r.username = system
		if _, err := text.Username(r.username); err != nil {
			r.username = "user" + strconv.FormatInt(time.Now().Unix()%1_000_000, 10)
		}
	}
	if r.nickname == "" {
		r.nickname = firstOf(text.Nickname(full), r.username)
	}
	if r.password == "" {
		r.noPassword = true
	}
}

func systemUser() (username, full string) {
	u, err := user.Current()
	if err != nil {
		return "", ""
	}
	username = u.Username
	if _, after, ok := strings.Cut(username, `\`); ok { // Windows: DOMAIN\user
		username = after
	}
	full, _, _ = strings.Cut(u.Name, ",")
	return username, full
}

// askRegistration asks for what is missing.
func (a *app) askRegistration(ctx context.Context, t *terminal, r *registration, wantPhrase bool) error {
	home, err := nodeHome(a.flags.home)
	if err != nil {
		return err
	}
	taken, err := nodeProfiles(home)
	if err != nil {
		return err
	}
	asked := r.username == ""
	for r.username == "" {
		suggestion, _ := systemUser()
		suggestion, err := text.Username(suggestion)
		if err != nil || has(taken, suggestion) {
			suggestion = ""
		}
		shown := ""
		if suggestion != "" {
			shown = " [" + suggestion + "]"
		}
		answer, err := t.line(ctx, a.t("prompt.username", "Default", shown)+" ")
		if err != nil {
			return err
		}
		r.username, err = a.username(firstOf(answer, suggestion))
		if err == nil && has(taken, r.username) {
			err = fail(control.Exists, "error.exists_here", "Profile", r.username)
		}
		if err != nil {
			a.sayError(t, err)
			r.username = ""
		}
	}
	if asked && r.nickname == "" {
		if r.nickname, err = t.line(ctx, a.t("prompt.nickname", "Default", r.username)+" "); err != nil {
			return err
		}
	}
	if asked && r.contactField == "" {
		if r.contactField, err = t.line(ctx, a.t("prompt.contact_field")+" "); err != nil {
			return err
		}
	}
	if wantPhrase {
		if r.phrase, err = t.line(ctx, a.t("prompt.phrase")+" "); err != nil {
			return err
		}
	}
	if r.password == "" && !r.noPassword {
		if r.password, err = a.newPassword(ctx, t); err != nil {
			return err
		}
		r.noPassword = r.password == ""
	}
	return nil
}

func has(all []profileInfo, profile string) bool {
	for _, p := range all {
		if p.name == profile {
			return true
		}
	}
	return false
}

// sayError shows an error inside a dialogue that goes on.
func (a *app) sayError(t *terminal, err error) {
	_, _ = t.out.Write([]byte(a.describe(err).Message + "\n"))
}

// phraseFromFile reads a recovery phrase written over any number of lines.
func (a *app) phraseFromFile(path string) (string, error) {
	b, err := a.readAll(path, maxAnswer)
	if err != nil {
		return "", err
	}
	return strings.Join(strings.Fields(b), " "), nil
}

// registerNow starts an empty node under the new name and lets it make the account.
func (a *app) registerNow(ctx context.Context, r registration) (registerView, error) {
	var none registerView
	username, err := a.username(r.username)
	if err != nil {
		return none, err
	}
	home, err := nodeHome(a.flags.home)
	if err != nil {
		return none, err
	}
	profiles, err := nodeProfiles(home)
	if err != nil {
		return none, err
	}
	if has(profiles, username) {
		return none, fail(control.Exists, "error.exists_here", "Profile", username).withHint("hint.exists_here")
	}
	p := place{home: home, profile: username}
	if p.socket, err = nodeSocket(home, username); err != nil {
		return none, err
	}
	if !answers(p.socket) {
		if a.flags.noStart {
			return none, fail(control.NotRunning, "error.not_running_named", "Profile", username).withHint("hint.no_start")
		}
		if err := a.start(ctx, p, true); err != nil {
			return none, err
		}
	}
	node := a.client(p)
	defer node.Close()
	resp, err := node.Register(ctx, &pb.RegisterRequest{
		Username: username, Nickname: r.nickname, ContactField: r.contactField, Password: r.password, NoPassword: r.noPassword,
		Phrase: r.phrase, Network: r.network,
	})
	if err != nil {
		a.stopEmpty(context.WithoutCancel(ctx), node, p)
		return none, nameTaken(err, username)
	}
	v := registerView{profileView: profileOf(resp.GetProfile()), Phrase: plain(resp.GetPhrase()), Warnings: plainAll(resp.GetWarnings())}
	if resp.GetNetwork() != nil {
		n := networkOf(resp.GetNetwork())
		v.Network = &n
	}
	if resp.GetInvite() != "" {
		v.Invite = text.OneLine(resp.GetInvite(), maxLinkCells)
	}
	return v, nil
}

// stopEmpty ends a node that was started for an account that was refused: it removes its empty folder when it ends. One
// that another command registered on meanwhile goes on.
func (a *app) stopEmpty(ctx context.Context, node *control.Client, p place) {
	status, err := node.Status(ctx, &pb.StatusRequest{})
	if err == nil && status.GetState() != stateEmpty {
		return
	}
	_ = a.stop(ctx, p, false) // the refusal is what to tell
}

func (a *app) showRegistration(v registerView, r registration) error {
	if a.flags.json {
		return a.emit(v)
	}
	if a.flags.quiet {
		return nil
	}
	a.printf("%s\n\n", a.t("register.welcome", "Username", a.bold(v.Username)))
	a.fields(a.out,
		a.t("field.account"), v.Account,
		a.t("field.device"), v.Device,
		a.t("field.nickname"), v.Nickname,
		a.t("field.contact_field"), v.ContactField,
		a.t("field.invite"), v.Invite,
	)
	for _, n := range v.Names {
		if s := a.nameLine(n); s != "" {
			a.printf("\n%s\n", s)
		}
	}
	if v.Phrase != "" {
		a.printf("\n%s\n\n%s\n", a.t("register.phrase"), a.bold(wrapPhrase(v.Phrase)))
	}
	if r.noPassword {
		a.warn(a.t("warning.no_password"))
	}
	for _, w := range v.Warnings {
		if w != "no_password" {
			a.warn(a.word("warning", w))
		}
	}
	if v.Network != nil {
		a.hint(a.t("hint.after_register_network"))
		return nil
	}
	a.hint(a.t("hint.after_register"))
	return nil
}

// wrapPhrase writes a recovery phrase in lines of six words, as people copy it to paper.
func wrapPhrase(phrase string) string {
	const perLine = 6
	words := strings.Fields(phrase)
	var b strings.Builder
	for i, w := range words {
		switch {
		case i == 0:
			b.WriteString("    ")
		case i%perLine == 0:
			b.WriteString("\n    ")
		default:
			b.WriteByte(' ')
		}
		b.WriteString(w)
	}
	return b.String()
}
