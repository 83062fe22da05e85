package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hima/internal/control"
	"hima/internal/control/pb"
	"hima/internal/text"
)

func (a *app) contactCommand() *cobra.Command {
	act := func(verb string, act pb.ActOnContactRequest_Act) *cobra.Command {
		return a.command(spec{
			use: verb + " WHO", id: "contact." + verb, min: 1, max: 1, who: true,
			run: func(ctx context.Context, args []string) error {
				return a.actOnContact(ctx, verb, &pb.ActOnContactRequest{Who: args[0], Act: act})
			},
		})
	}
	var all bool
	list := a.command(spec{
		use: "list [--all]", id: "contact.list", aliases: []string{"ls"},
		run: func(ctx context.Context, _ []string) error { return a.contacts(ctx, all) },
	})
	list.Flags().BoolVar(&all, "all", false, "flag.contact.all")
	return a.group("contact", "contact",
		a.contactAddCommand(),
		list,
		a.command(spec{use: "requests", id: "contact.requests", run: func(ctx context.Context, _ []string) error { return a.requests(ctx) }}),
		act("accept", pb.ActOnContactRequest_ACT_ACCEPT),
		act("decline", pb.ActOnContactRequest_ACT_DECLINE),
		act("block", pb.ActOnContactRequest_ACT_BLOCK),
		act("unblock", pb.ActOnContactRequest_ACT_UNBLOCK),
		act("remove", pb.ActOnContactRequest_ACT_REMOVE),
		a.command(spec{
			use: "remark WHO [REMARK]", id: "contact.remark", min: 1, max: 2, who: true,
			example: "  hima contact remark bob 老王\n  hima contact remark bob",
			run: func(ctx context.Context, args []string) error {
				req := &pb.ActOnContactRequest{Who: args[0], Act: pb.ActOnContactRequest_ACT_REMARK}
				if len(args) == 2 {
					req.Remark = args[1]
				}
				return a.actOnContact(ctx, "remark", req)
			},
		}),
		a.verifyCommand(),
	)
}

// addFlags are the flags of "hima contact add".
type addFlags struct {
	oneWay, yes     bool
	message, remark string
}

func (a *app) contactAddCommand() *cobra.Command {
	var f addFlags
	c := a.command(spec{
		use: "add WHO [--one-way] [--message TEXT] [--remark R]", id: "contact.add", min: 1, max: 1,
		example: "  hima contact add bob --message \"it's me\"\n  hima contact add hima:… --remark 老王 --yes\n  hima contact add bob --one-way --message hello",
		run:     func(ctx context.Context, args []string) error { return a.addContact(ctx, args[0], f) },
	})
	c.Flags().BoolVar(&f.oneWay, "one-way", false, "flag.contact.one-way")
	c.Flags().StringVarP(&f.message, "message", "m", "", "flag.contact.message")
	c.Flags().StringVar(&f.remark, "remark", "", "flag.contact.remark")
	c.Flags().BoolVarP(&f.yes, "yes", "y", false, "flag.yes")
	return c
}

// addContact looks outward, shows whom it found, and adds exactly that account.
func (a *app) addContact(ctx context.Context, who string, f addFlags) error {
	switch kind := linkKind(who); {
	case strings.TrimSpace(who) == "":
		return usage("usage.nobody")
	case kind == networkScheme:
		return usage("usage.network_link").withHint("hint.network_link")
	case kind == groupScheme:
		return usage("usage.group_link").withHint("hint.group_apply")
	case kind == inviteScheme:
		if err := a.newcomer(ctx); err != nil {
			return err
		}
	}
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.Find(ctx, &pb.FindRequest{Who: who})
	if err != nil {
		return a.explainFind(ctx, node, who, err)
	}
	if err := a.confirmFound(ctx, foundOf(resp), f.yes); err != nil {
		return err
	}
	added, err := node.AddContact(ctx, &pb.AddContactRequest{
		Who: who, OneWay: f.oneWay, Message: f.message, Remark: f.remark, ExpectAccount: resp.GetAccount(),
	})
	if err != nil {
		return err
	}
	v := addedView{
		contactView: contactOf(added.GetContact()), MessageID: plain(added.GetMessageId()), Joined: namesOf(added.GetJoined()),
	}
	if a.flags.json {
		return a.emit(v)
	}
	if a.flags.quiet {
		return nil
	}
	a.printf("%s\n", v.Account)
	for _, n := range v.Joined {
		a.done("contact.joined", "Network", a.bold(n))
	}
	switch v.Relation {
	case "contact":
		a.done("contact.is_contact", "Name", a.bold(v.show()))
	case "one-way":
		a.done("contact.added_one_way", "Name", a.bold(v.show()))
	default:
		a.done("contact.asked", "Name", a.bold(v.show()))
	}
	return nil
}

// What links begin with. That of a network is easily taken for an invite link.
const (
	inviteScheme  = "hima:"
	networkScheme = "hima-net:"
)

// confirmFound shows whom a look-up found and asks whether it is the one. A script is not asked, but where the network
// gave more than one answer it has to say --yes: names are a convenience, the ID decides.
func (a *app) confirmFound(ctx context.Context, found foundView, yes bool) error {
	if found.Disagreement {
		a.warn(a.t("search.disagreement"))
	}
	if yes {
		return nil
	}
	if !a.inTerminal || a.flags.json {
		if !found.Disagreement {
			return nil
		}
		f := &control.Error{Code: control.Ambiguous, Message: a.t("error.disagreement", "Name", found.Username)}
		for _, c := range append([]candidateView{{Account: found.Account, Username: found.Username, Nickname: found.Nickname, Source: found.Source}}, found.Others...) {
			f.Candidates = append(f.Candidates, control.Candidate(c))
		}
		return f
	}
	t := a.openTerminal()
	defer t.Close()
	how := a.word("source", found.Source)
	if found.Source == sourceNetwork {
		how = a.confirmation(found.Confirmed, found.Network, found.Since)
	}
	said := a.t("contact.found", "Name", a.bold(firstOf(found.Nickname, found.Username, a.t("contact.nameless"))),
		"Username", firstOf(found.Username, "–"), "Account", found.Account, "Source", how)
	for _, c := range found.Others {
		said += "\n  " + a.t("contact.other", "Account", c.Account, "Name", firstOf(c.Nickname, c.Username))
	}
	if len(found.Networks) > 0 {
		said += "\n  " + a.t("contact.would_join", "Networks", strings.Join(found.Networks, ", "))
	}
	_, _ = t.out.Write([]byte(said + "\n"))
	sure, err := a.confirm(ctx, t, a.t("contact.add_question"), !found.Disagreement)
	if err != nil {
		return err
	}
	if !sure {
		a.note("contact.not_added")
		return &silent{exitFailed}
	}
	return nil
}

// sourceNetwork: an account was found by its username on a network.
const sourceNetwork = "network"

func (a *app) contacts(ctx context.Context, all bool) error {
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.ListContacts(ctx, &pb.ListContactsRequest{All: all})
	if err != nil {
		return err
	}
	t := a.newTable("column.name", "column.username", "column.id", "column.relation", "column.verified", "column.last_seen")
	now := time.Now()
	return showList(a, t, "contact.none", resp.GetContacts(), contactOf, func(v contactView) {
		seen := localStamp(v.LastSeen, now)
		if v.Online {
			seen = a.green(a.t("word.online"))
		}
		relation := a.word("relation", v.Relation)
		if v.Blocked {
			relation = a.word("relation", "blocked")
		}
		t.row(v.show(), v.Username, shortAccount(v.Account), relation, a.word("verified", v.Verified), seen)
	})
}

func (a *app) requests(ctx context.Context) error {
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.ListRequests(ctx, &pb.ListRequestsRequest{})
	if err != nil {
		return err
	}
	t := a.newTable("column.direction", "column.name", "column.username", "column.id", "column.state", "column.time", "column.text")
	now := time.Now()
	return showList(a, t, "request.none", resp.GetRequests(), requestOf, func(v requestView) {
		direction := a.t("request.out")
		if v.Incoming {
			direction = a.t("request.in")
		}
		t.row(direction, firstOf(v.Nickname, v.Username, "–"), v.Username, shortAccount(v.Account), a.word("request", v.State),
			localStamp(v.Time, now), text.OneLine(v.Message, maxIDCells))
	})
}

func (a *app) actOnContact(ctx context.Context, verb string, req *pb.ActOnContactRequest) error {
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.ActOnContact(ctx, req)
	if err != nil {
		return err
	}
	v := contactOf(resp.GetContact())
	if a.flags.json {
		return a.emit(v)
	}
	if verb == "remark" && v.Remark == "" {
		verb = "unremark"
	}
	a.done("contact.done."+verb, "Name", a.bold(v.show()), "Remark", v.Remark)
	return nil
}

func (a *app) verifyCommand() *cobra.Command {
	var confirm, reject, noQR bool
	c := a.command(spec{
		use: "verify WHO [--confirm | --reject]", id: "contact.verify", min: 1, max: 1, who: true,
		run: func(ctx context.Context, args []string) error {
			req := &pb.VerifyContactRequest{Who: args[0]}
			switch {
			case confirm && reject:
				return usage("usage.exclusive", "First", "--confirm", "Second", "--reject")
			case confirm:
				req.Result = pb.VerifyContactRequest_RESULT_CONFIRM
			case reject:
				req.Result = pb.VerifyContactRequest_RESULT_REJECT
			}
			return a.verify(ctx, req, noQR)
		},
	})
	c.Flags().BoolVar(&confirm, "confirm", false, "flag.contact.confirm")
	c.Flags().BoolVar(&reject, "reject", false, "flag.contact.reject")
	c.Flags().BoolVar(&noQR, "no-qr", false, "flag.no-qr")
	return c
}

func (a *app) verify(ctx context.Context, req *pb.VerifyContactRequest, noQR bool) error {
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.VerifyContact(ctx, req)
	if err != nil {
		return err
	}
	v := verifyView{Digits: plain(resp.GetDigits()), QR: plain(resp.GetQr()), Contact: contactOf(resp.GetContact())}
	if a.flags.json {
		return a.emit(v)
	}
	switch req.GetResult() {
	case pb.VerifyContactRequest_RESULT_CONFIRM:
		a.done("contact.confirmed", "Name", a.bold(v.Contact.show()))
		return nil
	case pb.VerifyContactRequest_RESULT_REJECT:
		a.done("contact.rejected", "Name", a.bold(v.Contact.show()))
		return nil
	}
	return a.showDigits(v, noQR)
}

// showDigits prints the safety number in three rows of four groups, as it is read aloud, and the code to scan.
func (a *app) showDigits(v verifyView, noQR bool) error {
	const perRow = 4
	a.printf("%s\n\n", a.t("contact.verify_intro", "Name", a.bold(v.Contact.show()), "Account", v.Contact.Account))
	for i, group := range strings.Fields(v.Digits) {
		switch {
		case i == 0:
			a.printf("    ")
		case i%perRow == 0:
			a.printf("\n    ")
		default:
			a.printf("  ")
		}
		a.printf("%s", a.bold(group))
	}
	a.printf("\n")
	if !noQR && v.QR != "" && a.outTerminal {
		picture, err := a.qr(v.QR)
		if err != nil {
			a.warn(a.describe(err).Message)
		} else {
			a.printf("\n%s\n", picture)
		}
	}
	a.printf("\n%s\n", a.t("contact.verified_now", "Verified", a.word("verified", v.Contact.Verified)))
	a.hint(a.t("hint.verify"))
	return nil
}
