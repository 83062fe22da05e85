package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"hima/internal/control"
	"hima/internal/control/pb"
)

// stopPatience bounds the wait for a node that was told to stop: it finishes writes and closes its database.
const stopPatience = 20 * time.Second

func (a *app) loginCommand() *cobra.Command {
	var passwordFile string
	c := a.command(spec{
		use: "login [USERNAME]", id: "login", max: 1,
		example: "  hima login\n  hima login alice --password-file secret.txt",
		run: func(ctx context.Context, args []string) error {
			if len(args) == 1 {
				a.flags.profile = args[0]
			}
			return a.login(ctx, passwordFile)
		},
	})
	c.Flags().StringVar(&passwordFile, "password-file", "", "flag.password-file")
	c.ValidArgsFunction = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		home, err := nodeHome(a.flags.home)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		all, _ := nodeProfiles(home)
		var out []string
		for _, p := range all {
			out = append(out, p.name)
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
	return c
}

func (a *app) login(ctx context.Context, passwordFile string) error {
	p, known, err := a.registered()
	if err != nil {
		return err
	}
	var password string
	switch {
	case passwordFile != "":
		if password, err = a.passwordFromFile(passwordFile); err != nil {
			return err
		}
	case known.hasPassword && !a.inTerminal:
		return usage("usage.login_password").withHint("hint.login_password")
	case known.hasPassword:
		t := a.openTerminal()
		defer t.Close()
		if password, err = t.secret(ctx, a.t("prompt.password", "Profile", p.profile)+" "); err != nil {
			return err
		}
	}
	profile, err := a.unlock(ctx, p, password)
	if err != nil {
		return err
	}
	if a.flags.json {
		return a.emit(profile)
	}
	a.done("login.done", "Username", a.bold(profile.Username), "Account", shortAccount(profile.Account))
	return nil
}

// registered finds the profile and refuses a name that nobody has here.
func (a *app) registered() (place, profileInfo, error) {
	p, err := a.where()
	if err != nil {
		return p, profileInfo{}, err
	}
	all, err := nodeProfiles(p.home)
	if err != nil {
		return p, profileInfo{}, err
	}
	for _, known := range all {
		if known.name == p.profile {
			return p, known, nil
		}
	}
	return p, profileInfo{}, a.unknownProfile(p.profile, all)
}

// unlock starts the node if need be and opens it.
func (a *app) unlock(ctx context.Context, p place, password string) (profileView, error) {
	if !answers(p.socket) {
		if a.flags.noStart {
			return profileView{}, fail(control.NotRunning, "error.not_running_named", "Profile", p.profile).withHint("hint.no_start")
		}
		if err := a.start(ctx, p, false); err != nil {
			return profileView{}, err
		}
	}
	node := a.client(p)
	defer node.Close()
	resp, err := node.Login(ctx, &pb.LoginRequest{Password: password})
	if err != nil {
		return profileView{}, err
	}
	return profileOf(resp.GetProfile()), nil
}

func (a *app) logoutCommand() *cobra.Command {
	return a.command(spec{use: "logout", id: "logout", run: func(ctx context.Context, _ []string) error {
		p, known, err := a.registered()
		if err != nil {
			return err
		}
		if !answers(p.socket) {
			if known.hasPassword {
				a.done("logout.was_stopped", "Profile", p.profile)
				return a.stopped(p)
			}
			// Without a password the next start would unlock by itself; only the node can leave word that it must not.
			if a.flags.noStart {
				return fail(control.NotRunning, "error.not_running_named", "Profile", p.profile).withHint("hint.no_start")
			}
			if err := a.start(ctx, p, false); err != nil {
				return err
			}
		}
		if err := a.stop(ctx, p, true); err != nil {
			return err
		}
		a.done("logout.done", "Profile", a.bold(p.profile))
		return a.stopped(p)
	}})
}

// stopped is the JSON answer of everything that ends a node.
func (a *app) stopped(p place) error {
	if !a.flags.json {
		return nil
	}
	return a.emit(struct {
		Profile string `json:"profile"`
		Running bool   `json:"running"`
	}{Profile: p.profile})
}

// stop ends the node and waits until its database is closed and its folder free.
func (a *app) stop(ctx context.Context, p place, logout bool) error {
	node := a.client(p)
	defer node.Close()
	if _, err := node.Stop(ctx, &pb.StopRequest{Logout: logout}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, stopPatience)
	defer cancel()
	for {
		if running, err := nodeRunning(p); err != nil || !running {
			return err
		}
		select {
		case <-ctx.Done():
			return fail(control.Unavailable, "error.stop_slow").withHint("hint.logs")
		case <-time.After(probePause):
		}
	}
}

func (a *app) passwordCommand() *cobra.Command {
	var passwordFile, newFile string
	var noPassword bool
	change := a.command(spec{
		use: "change [--password-file OLD] [--new-password-file NEW | --no-password]", id: "password.change",
		run: func(ctx context.Context, _ []string) error {
			return a.changePassword(ctx, passwordFile, newFile, noPassword)
		},
	})
	change.Flags().StringVar(&passwordFile, "password-file", "", "flag.old-password-file")
	change.Flags().StringVar(&newFile, "new-password-file", "", "flag.new-password-file")
	change.Flags().BoolVar(&noPassword, "no-password", false, "flag.no-password")
	return a.group("password", "password", change)
}

func (a *app) changePassword(ctx context.Context, oldFile, newFile string, noPassword bool) error {
	if noPassword && newFile != "" {
		return usage("usage.exclusive", "First", "--no-password", "Second", "--new-password-file")
	}
	p, known, err := a.registered()
	if err != nil {
		return err
	}
	if !a.inTerminal && (known.hasPassword && oldFile == "" || newFile == "" && !noPassword) {
		return usage("usage.change_password").withHint("hint.change_password")
	}
	req := &pb.ChangePasswordRequest{NoPassword: noPassword}
	t := a.openTerminal()
	defer t.Close()
	switch {
	case oldFile != "":
		req.OldPassword, err = a.passwordFromFile(oldFile)
	case known.hasPassword:
		req.OldPassword, err = t.secret(ctx, a.t("prompt.password", "Profile", p.profile)+" ")
	}
	if err != nil {
		return err
	}
	switch {
	case newFile != "":
		req.NewPassword, err = a.passwordFromFile(newFile)
	case !noPassword:
		req.NewPassword, err = a.newPassword(ctx, t)
	}
	if err != nil {
		return err
	}
	req.NoPassword = req.NewPassword == ""
	node, err := a.connectTo(ctx, p)
	if err != nil {
		return err
	}
	defer node.Close()
	if _, err := node.ChangePassword(ctx, req); err != nil {
		return err
	}
	if a.flags.json {
		return a.emit(struct {
			Profile     string `json:"profile"`
			HasPassword bool   `json:"has_password"`
		}{p.profile, !req.NoPassword})
	}
	a.done("password.done")
	if req.NoPassword {
		a.warn(a.t("warning.no_password"))
	}
	return nil
}
