package main

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hima/internal/control"
	"hima/internal/control/pb"
)

func (a *app) inviteCommand() *cobra.Command {
	var showQR bool
	c := a.command(spec{
		use: "invite [--qr]", id: "invite", example: "  hima invite\n  hima invite --qr",
		run: func(ctx context.Context, _ []string) error { return a.invite(ctx, showQR) },
	})
	c.Flags().BoolVar(&showQR, "qr", false, "flag.qr")
	c.AddCommand(
		a.command(spec{use: "list", id: "invite.list", run: func(ctx context.Context, _ []string) error { return a.invites(ctx) }}),
		a.command(spec{use: "revoke TOKEN", id: "invite.revoke", min: 1, max: 1, run: func(ctx context.Context, args []string) error {
			return a.revokeInvite(ctx, args[0])
		}}),
	)
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usage("usage.unknown_command", "Command", plain(args[0]), "Parent", c.CommandPath()).withHint("hint.help")
		}
		return nil
	}
	return c
}

func (a *app) invite(ctx context.Context, showQR bool) error {
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.CreateInvite(ctx, &pb.CreateInviteRequest{})
	if err != nil {
		return err
	}
	v := inviteOf(resp.GetInvite())
	if a.flags.json {
		return a.emit(v)
	}
	a.showLink(v.Link, showQR, "hint.invite")
	return nil
}

// showLink prints a link that is made to be handed on, as a picture too if asked, and says on a terminal what it is for.
func (a *app) showLink(link string, showQR bool, hint string) {
	if showQR {
		// Capitals are one code of a denser kind, and a link may be written in either.
		if picture, err := a.qr(strings.ToUpper(link)); err != nil {
			a.warn(a.describe(err).Message) // the link itself can still be sent
		} else {
			a.printf("%s\n", picture)
		}
	}
	a.printf("%s\n", link)
	if a.outTerminal {
		a.hint(a.t(hint))
	}
}

func (a *app) invites(ctx context.Context) error {
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.ListInvites(ctx, &pb.ListInvitesRequest{})
	if err != nil {
		return err
	}
	t := a.newTable("column.token", "column.created", "column.used", "column.state")
	now := time.Now()
	return showList(a, t, "invite.none", resp.GetInvites(), inviteOf, func(v inviteView) {
		state := a.t("invite.open")
		if v.Revoked {
			state = a.t("invite.revoked")
		}
		t.row(v.Token, localStamp(v.Created, now), strconv.Itoa(int(v.Used)), state)
	})
}

func (a *app) revokeInvite(ctx context.Context, token string) error {
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	if _, err := node.RevokeInvite(ctx, &pb.RevokeInviteRequest{Token: token}); err != nil {
		return err
	}
	if a.flags.json {
		return a.emit(struct {
			Token   string `json:"token"`
			Revoked bool   `json:"revoked"`
		}{plain(token), true})
	}
	a.done("invite.revoke_done")
	return nil
}

func (a *app) nearbyCommand() *cobra.Command {
	return a.command(spec{use: "nearby", id: "nearby", run: func(ctx context.Context, _ []string) error {
		node, err := a.connect(ctx)
		if err != nil {
			return err
		}
		defer node.Close()
		return a.nearby(ctx, node)
	}})
}

// nearby lists the people on this LAN.
func (a *app) nearby(ctx context.Context, node *control.Client) error {
	resp, err := node.Nearby(ctx, &pb.NearbyRequest{})
	if err != nil {
		return err
	}
	t := a.newTable("column.nickname", "column.username", "column.id", "column.relation", "column.address")
	for _, p := range resp.GetPeople() {
		v := nearbyOf(p)
		if a.flags.json {
			if err := a.emit(v); err != nil {
				return err
			}
			continue
		}
		t.row(v.Nickname, a.t("nearby.not_confirmed", "Username", v.Username), shortAccount(v.Account), a.word("relation", v.Relation), v.Address)
	}
	if !resp.GetMulticast() {
		a.warn(a.t("warning.no_multicast"))
	}
	if a.flags.json {
		return nil
	}
	if len(t.rows) == 0 {
		if resp.GetMulticast() { // else it is not known, and was said
			a.note("nearby.none")
		}
		return nil
	}
	t.print(a.out)
	return nil
}
