package main

import (
	"errors"
	"strings"

	"hima/internal/control"
	"hima/internal/daemon"
)

// Where nodes keep their things is the daemon's knowledge; these functions put its errors into words.

// profileInfo is a registered profile, as far as it is known without opening it.
type profileInfo struct {
	name        string
	hasPassword bool
}

func nodeHome(flag string) (string, error) { return daemon.Home(flag) }

func nodeSocket(home, profile string) (string, error) { return daemon.SocketPath(home, profile) }

func nodeLog(home, profile string) (string, error) { return daemon.LogPath(home, profile) }

// nodeRunning reports whether a node holds the profile, also one that does not answer yet or any more.
func nodeRunning(p place) (bool, error) { return daemon.Running(p.home, p.profile) }

func nodeProfiles(home string) ([]profileInfo, error) {
	all, err := daemon.Profiles(home)
	if err != nil {
		return nil, err
	}
	out := make([]profileInfo, 0, len(all))
	for _, p := range all {
		out = append(out, profileInfo{name: p.Name, hasPassword: p.HasPassword})
	}
	return out, nil
}

// defaultProfile is the profile for a command that names none.
func (a *app) defaultProfile(home string) (string, error) {
	p, err := daemon.DefaultProfile(home)
	switch {
	case errors.Is(err, daemon.ErrNoProfile):
		return "", fail(control.NoProfile, "error.no_profile").withHint("hint.no_profile")
	case errors.Is(err, daemon.ErrManyProfiles):
		all, listErr := nodeProfiles(home)
		if listErr != nil {
			return "", listErr
		}
		return "", usage("error.many_profiles", "Profiles", profileNames(all)).withHint("hint.many_profiles")
	}
	return p, err
}

// unknownProfile says that nobody is registered here under a name, and who is.
func (a *app) unknownProfile(profile string, known []profileInfo) error {
	if len(known) == 0 {
		return fail(control.NoProfile, "error.no_such_profile", "Profile", profile).withHint("hint.no_profile")
	}
	return fail(control.NoProfile, "error.no_such_profile_others", "Profile", profile, "Profiles", profileNames(known)).
		withHint("hint.no_profile")
}

func profileNames(all []profileInfo) string {
	names := make([]string, 0, len(all))
	for _, p := range all {
		names = append(names, p.name)
	}
	return strings.Join(names, ", ")
}

// configuredLanguage is the language of config.toml. A file that does not read is complained about by the node.
func (a *app) configuredLanguage() string {
	home, err := nodeHome(a.flags.home)
	if err != nil {
		return ""
	}
	s, err := daemon.LoadSettings(home)
	if err != nil {
		return ""
	}
	return s.Lang
}

// daemonError gives the errors of a node that does not start their code.
func daemonError(err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*control.Error](err); ok {
		return e // with its hint
	}
	code := control.CodeOf(err)
	switch {
	case errors.Is(err, daemon.ErrNoProfile):
		code = control.NoProfile
	case errors.Is(err, daemon.ErrRunning):
		code = control.Conflict
	case errors.Is(err, daemon.ErrBadConfig), errors.Is(err, daemon.ErrBadProfile):
		code = control.Invalid
	}
	return &control.Error{Code: code, Message: err.Error(), Cause: err}
}
