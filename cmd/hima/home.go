package main

import (
	"context"
	"errors"
	"slices"

	"hima/internal/control"
	"hima/internal/control/pb"
)

// home is "hima" alone: on a terminal the way in, else the status of the node.
func (a *app) home(ctx context.Context) error {
	if !a.inTerminal || !a.outTerminal || a.flags.json {
		return a.nodeStatus(ctx)
	}
	p, err := a.where()
	if err == nil {
		return a.welcomeBack(ctx, p)
	}
	if codeOf(err) != control.NoProfile || a.flags.profile != "" {
		return err
	}
	return a.firstStart(ctx)
}

// firstStart asks what register needs and then shows the place.
func (a *app) firstStart(ctx context.Context) error {
	t := a.openTerminal()
	defer t.Close()
	_, _ = t.out.Write([]byte(a.t("home.first_start") + "\n\n"))
	r := registration{network: a.env("HIMA_NETWORK")} // the flag belongs to register
	if err := a.askRegistration(ctx, t, &r, false); err != nil {
		return err
	}
	v, err := a.registerNow(ctx, r)
	if err != nil {
		return err
	}
	if err := a.showRegistration(v, r); err != nil {
		return err
	}
	a.flags.profile = v.Username
	p, err := a.where()
	if err != nil {
		return err
	}
	a.printf("\n")
	return a.overview(ctx, p, v.Warnings)
}

// newcomer registers somebody who begins with an invite link, before anybody is registered here: on a terminal with the
// questions of a first start, elsewhere silently, as register --auto does.
func (a *app) newcomer(ctx context.Context) error {
	home, err := nodeHome(a.flags.home)
	if err != nil {
		return err
	}
	if all, err := nodeProfiles(home); err != nil || len(all) > 0 {
		return err
	}
	r := registration{username: a.flags.profile, network: a.env("HIMA_NETWORK")}
	if a.inTerminal {
		t := a.openTerminal()
		defer t.Close()
		_, _ = t.out.Write([]byte(a.t("home.first_start") + "\n\n"))
		if err := a.askRegistration(ctx, t, &r, false); err != nil {
			return err
		}
	} else {
		a.fillIn(&r)
	}
	v, err := a.registerNow(ctx, r)
	if err != nil {
		return err
	}
	a.flags.profile = v.Username
	return a.showRegistration(v, r)
}

// welcomeBack starts the node, asks for the password if it is locked, and shows what is new.
func (a *app) welcomeBack(ctx context.Context, p place) error {
	profiles, err := nodeProfiles(p.home)
	if err != nil {
		return err
	}
	if !has(profiles, p.profile) {
		return a.unknownProfile(p.profile, profiles)
	}
	if !answers(p.socket) {
		if a.flags.noStart {
			return a.nodeStatus(ctx)
		}
		if err := a.start(ctx, p, false); err != nil {
			return err
		}
	}
	node := a.client(p)
	status, err := node.Status(ctx, &pb.StatusRequest{})
	node.Close()
	if err != nil {
		return err
	}
	if status.GetState() == stateLocked {
		if err := a.login(ctx, ""); err != nil {
			return err
		}
	}
	return a.overview(ctx, p, nil)
}

// overview says who is nearby, what is unread, and what to type next. said are warnings that were given already; that
// the LAN cannot be seen is said with the list of people.
func (a *app) overview(ctx context.Context, p place, said []string) error {
	node := a.client(p)
	defer node.Close()
	status, err := node.Status(ctx, &pb.StatusRequest{})
	if err != nil {
		return err
	}
	s := statusOf(status)
	a.printf("%s\n", a.t("home.you_are", "Username", a.bold(s.Username), "Account", shortAccount(s.Account)))
	said = append(said, "no_multicast")
	for _, w := range s.Warnings {
		if slices.Contains(said, w) {
			continue
		}
		a.warn(a.word("warning", w))
	}
	a.printf("\n%s\n", a.bold(a.t("home.nearby")))
	if err := a.nearby(ctx, node); err != nil && !errors.Is(err, control.Unavailable) {
		return err
	}
	if s.Requests > 0 {
		a.printf("\n%s\n", a.bold(a.tn("home.requests", int(s.Requests))))
	}
	if s.Unread > 0 {
		a.printf("\n%s\n", a.bold(a.tn("home.unread", int(s.Unread))))
	}
	a.printf("\n%s\n", a.t("home.next"))
	next := [][2]string{{"hima invite --qr", "home.next_invite"}, {"hima contact add WHO", "home.next_add"}}
	if s.Requests > 0 {
		next = append(next, [2]string{"hima contact requests", "home.next_requests"})
	}
	next = append(next, [2]string{"hima chat WHO", "home.next_chat"}, [2]string{"hima conversations", "home.next_conversations"},
		[2]string{"hima help", "home.next_help"})
	var pairs []string
	for _, n := range next {
		pairs = append(pairs, "  "+n[0], a.t(n[1]))
	}
	a.fields(a.out, pairs...)
	return nil
}
