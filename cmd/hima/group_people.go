package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hima/internal/control"
	"hima/internal/control/pb"
	"hima/internal/text"
)

// groupScheme is what a link of a group begins with.
const groupScheme = "hima-group:"

// linkKind is what the link begins with that s is, or "".
func linkKind(s string) string {
	s = strings.ToLower(strings.TrimSpace(s))
	for _, scheme := range []string{networkScheme, groupScheme, inviteScheme} {
		if strings.HasPrefix(s, scheme) {
			return scheme
		}
	}
	return ""
}

func (a *app) groupInviteCommand() *cobra.Command {
	req := &pb.InviteToGroupRequest{}
	c := a.onGroup(spec{
		use: "invite GROUP WHO… [--withdraw]", id: "group.invite", min: 2, max: -1,
		example: "  hima group invite hikers bob carol\n  hima group invite hikers bob --withdraw",
		run: func(ctx context.Context, args []string) error {
			req.Group, req.Who = args[0], args[1:]
			return a.groupInvite(ctx, req)
		},
	}, a.completeContacts)
	c.Flags().BoolVar(&req.Withdraw, "withdraw", false, "flag.group.withdraw")
	return c
}

// groupInvite tells of each person what became of it. One who cannot be asked keeps nobody else from it, but the command
// then fails.
func (a *app) groupInvite(ctx context.Context, req *pb.InviteToGroupRequest) error {
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.InviteToGroup(ctx, req)
	if err != nil {
		return err
	}
	g := groupOf(resp.GetGroup())
	var failed error
	for _, i := range resp.GetInvited() {
		v := invitedView{
			Group: g.ID, Who: plain(i.GetWho()), Account: plain(i.GetAccount()), Name: name(i.GetName()), State: plain(i.GetState()),
			Error: plain(i.GetCode()),
		}
		if v.State == "failed" {
			refusal := &control.Error{Code: control.Code(v.Error), Message: i.GetError()}
			v.Message = a.describe(refusal).Message
			if failed == nil {
				failed = &silent{exitCode(refusal)}
			}
		}
		switch {
		case a.flags.json:
			if err := a.emit(v); err != nil {
				return err
			}
		case v.State == "failed":
			id := "group.not_invited"
			if req.GetWithdraw() {
				id = "group.not_withdrawn"
			}
			fmt.Fprintln(a.errOut, "hima: "+a.t("cli.error")+" "+a.t(id, "Who", firstOf(v.Who, `""`), "Why", v.Message))
		case !a.flags.quiet:
			a.printf("%s  %s\n", a.bold(firstOf(v.Name, v.Who, shortAccount(v.Account))), a.word("invited", v.State))
		}
	}
	return failed
}

func (a *app) groupInvitations(ctx context.Context) error {
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.ListInvitations(ctx, &pb.ListInvitationsRequest{})
	if err != nil {
		return err
	}
	t := a.newTable("column.direction", "column.group", "column.id", "column.who", "column.members", "column.state", "column.expires", "column.about")
	now := time.Now()
	waiting := false
	err = showList(a, t, "group.no_invitations", resp.GetInvitations(), invitationOf, func(v invitationView) {
		direction, who := a.t("request.in"), firstOf(v.FromName, shortAccount(v.From))
		if v.Outgoing {
			direction, who = a.t("request.out"), firstOf(v.ToName, shortAccount(v.To))
		}
		waiting = waiting || !v.Outgoing && v.State == "waiting"
		t.row(direction, v.Group.show(), shortGroup(v.Group.ID), who, count(v.Group.Size), a.word("invitation", v.State),
			localStamp(v.Expires, now), text.OneLine(v.Group.Description, maxIDCells))
	})
	if waiting {
		a.hint(a.t("hint.group_invitations"))
	}
	return err
}

// count leaves out what is not known.
func count(n int32) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(int(n))
}

func (a *app) groupLinkCommand() *cobra.Command {
	var expires string
	var uses int32
	var showQR bool
	var c *cobra.Command
	c = a.onGroup(spec{
		use: "link GROUP [--expires TIME] [--uses N] [--qr]", id: "group.link", min: 1, max: 1,
		example: "  hima group link hikers\n  hima group link hikers --expires 7d --uses 20\n  hima group link list hikers\n  hima group link revoke hima-group:…",
		run: func(ctx context.Context, args []string) error {
			d, err := linkBounds(c, expires, uses)
			if err != nil {
				return err
			}
			return a.groupLink(ctx, &pb.CreateGroupLinkRequest{Group: args[0], ExpiresInMs: d.Milliseconds(), Uses: uses}, showQR)
		},
	}, nil)
	c.Flags().StringVar(&expires, "expires", "", "flag.group.expires")
	c.Flags().Int32Var(&uses, "uses", 0, "flag.group.uses")
	c.Flags().BoolVar(&showQR, "qr", false, "flag.qr")
	c.AddCommand(
		a.onGroup(spec{
			use: "list GROUP", id: "group.link.list", aliases: []string{"ls"}, min: 1, max: 1,
			run: func(ctx context.Context, args []string) error { return a.groupLinks(ctx, args[0]) },
		}, nil),
		a.onGroup(spec{
			use: "revoke [GROUP] LINK|TOKEN", id: "group.link.revoke", min: 1, max: 2,
			example: "  hima group link revoke hima-group:…\n  hima group link revoke hikers 0123456789abcdef0123456789abcdef",
			run: func(ctx context.Context, args []string) error {
				req := &pb.RevokeGroupLinkRequest{Group: args[0], Token: args[len(args)-1]}
				if len(args) == 1 && linkKind(args[0]) != groupScheme {
					return usage("usage.missing", "Usage", "hima group link revoke GROUP TOKEN").withHint("hint.help")
				}
				return a.revokeGroupLink(ctx, req)
			},
		}, nil),
	)
	return c
}

func (a *app) groupLink(ctx context.Context, req *pb.CreateGroupLinkRequest, showQR bool) error {
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.CreateGroupLink(ctx, req)
	if err != nil {
		return err
	}
	v := groupLinkOf(resp.GetLink())
	if a.flags.json {
		return a.emit(v)
	}
	a.showLink(v.Link, showQR, "hint.group_link")
	return nil
}

func (a *app) groupLinks(ctx context.Context, group string) error {
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.ListGroupLinks(ctx, &pb.ListGroupLinksRequest{Group: group})
	if err != nil {
		return err
	}
	t := a.newTable("column.token", "column.created", "column.expires", "column.used", "column.state")
	now := time.Now()
	return showList(a, t, "group.no_links", resp.GetLinks(), groupLinkOf, func(v groupLinkView) {
		used := strconv.Itoa(int(v.Used))
		if v.Uses > 0 {
			used += " / " + strconv.Itoa(int(v.Uses))
		}
		t.row(v.Token, localStamp(v.Created, now), firstOf(localStamp(v.Expires, now), a.t("group.never")), used, a.linkState(v, now))
	})
}

// linkState tells whether somebody can still ask with a link.
func (a *app) linkState(v groupLinkView, now time.Time) string {
	end, err := time.Parse(time.RFC3339, v.Expires)
	switch {
	case v.Revoked:
		return a.t("invite.revoked")
	case err == nil && !end.After(now):
		return a.t("invitation.expired")
	case v.Uses > 0 && v.Used >= v.Uses:
		return a.t("group.link_used_up")
	}
	return a.t("invite.open")
}

func (a *app) revokeGroupLink(ctx context.Context, req *pb.RevokeGroupLinkRequest) error {
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.RevokeGroupLink(ctx, req)
	if err != nil {
		return err
	}
	if a.flags.json {
		return a.emit(groupLinkOf(resp.GetLink()))
	}
	a.done("invite.revoke_done")
	return nil
}

func (a *app) groupApplications(ctx context.Context, group string) error {
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.ListApplications(ctx, &pb.ListApplicationsRequest{Group: group})
	if err != nil {
		return err
	}
	t := a.newTable("column.direction", "column.group", "column.name", "column.id", "column.state", "column.time", "column.text")
	now := time.Now()
	waiting, open := false, false
	err = showList(a, t, "group.no_applications", resp.GetApplications(), applicationOf, func(v applicationView) {
		direction := a.t("request.in")
		if v.Own {
			direction = a.t("request.out")
		}
		waiting = waiting || !v.Own && v.State == "waiting"
		open = open || v.Own && v.State == "waiting" && len(v.Answers) > 0
		state := a.applicationState(v)
		t.row(direction, firstOf(v.GroupName, shortGroup(v.Group)), firstOf(v.Name, "–"), shortAccount(v.Account), state,
			localStamp(v.Time, now), text.OneLine(v.Message, maxIDCells))
	})
	if waiting {
		a.hint(a.t("hint.group_applications"))
	}
	if open {
		a.hint(a.t("hint.application_open"))
	}
	return err
}

// applicationState says what has become of an application: of an own one that several answered, what each of them said.
func (a *app) applicationState(v applicationView) string {
	state := a.word("application", v.State)
	because := func(reason string) string {
		if reason == "" {
			return ""
		}
		return " (" + shortText(firstOf(a.translated("reason", reason), reason)) + ")"
	}
	if len(v.Answers) > 1 || v.State == "waiting" {
		for _, no := range v.Answers {
			id := "application.answer"
			if !no.Decided {
				id = "application.answer_over"
			}
			state += "; " + a.t(id, "Name", firstOf(no.ByName, shortAccount(no.By))) + because(no.Reason)
		}
		return state
	}
	if v.State == "rejected" && v.By != "" {
		state = a.t("application.rejected_by", "Name", firstOf(v.ByName, shortAccount(v.By)))
	}
	return state + because(v.Reason)
}

// searchGroups looks for public groups of a name.
func (a *app) searchGroups(ctx context.Context, called string) error {
	if strings.TrimSpace(called) == "" {
		return usage("usage.group_name")
	}
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.SearchGroups(ctx, &pb.SearchGroupsRequest{Name: called})
	if err != nil {
		return err
	}
	disputed := false
	for i, g := range resp.GetGroups() {
		v := foundGroupOf(g)
		disputed = disputed || v.Disputed
		if a.flags.json {
			if err := a.emit(v); err != nil {
				return err
			}
			continue
		}
		if i > 0 {
			a.printf("\n")
		}
		a.showFoundGroup(v)
	}
	if disputed {
		a.warn(a.t("search.disputed"))
	}
	for _, n := range resp.GetUnreachable() {
		a.warn(a.t("search.unreachable", "Network", name(n)))
	}
	if len(resp.GetGroups()) > 0 {
		return nil
	}
	f := fail(control.NotFound, "error.no_public_group", "Name", shortText(called)).withHint("hint.no_public_group")
	if len(resp.GetUnreachable()) > 0 {
		return f.withHint("hint.nobody_unreachable")
	}
	if !a.anyNetwork(ctx, node) {
		return f.withHint("hint.no_public_group_no_network")
	}
	return f
}

// showFoundGroup shows a group as its card tells of it; the ID is what decides between two of one name.
func (a *app) showFoundGroup(v foundGroupView) {
	state := ""
	if v.State != "" && v.State != "none" {
		state = a.word("group_state", v.State)
	}
	owner := shortAccount(v.Owner)
	if v.OwnerName != "" {
		owner = v.OwnerName + "  " + owner
	}
	if v.Disputed {
		owner += "  " + a.yellow(a.t("group.disputed"))
	}
	source := a.word("source", v.Source)
	switch {
	case v.Network != "":
		source = a.t("group.found_on", "Network", v.Network)
	case v.Source == "nearby":
		source = a.t("group.found_nearby")
	case v.Source == "member":
		source = a.t("group.found_own")
	}
	a.fields(a.out,
		a.t("field.group"), a.bold(v.Name),
		a.t("field.id"), v.ID,
		a.t("field.about"), v.Description,
		a.t("field.owner"), owner,
		a.t("field.claimed_size"), count(v.Size),
		a.t("field.join"), a.word("join", v.Join),
		a.t("field.found"), source,
		a.t("field.state"), state,
	)
}

// completion gives the words that may follow a group.
type completion func(c *cobra.Command, args []string) []string

// onGroup makes a command whose first argument is a group. second completes the words after it; nil: none follow.
func (a *app) onGroup(s spec, second completion) *cobra.Command {
	c := a.command(s)
	c.ValidArgsFunction = func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if s.max == 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		if len(args) > 0 {
			if second == nil || s.max >= 0 && len(args) >= s.max {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return second(c, args), cobra.ShellCompDirectiveNoFileComp
		}
		return a.complete(c, args, func(node *control.Client) ([]string, error) { return groupWords(c.Context(), node) })
	}
	return c
}

// groupWords are the names of groups as commands take them.
func groupWords(ctx context.Context, node *control.Client) (out []string, err error) {
	resp, err := node.ListGroups(ctx, &pb.ListGroupsRequest{})
	for _, g := range resp.GetGroups() {
		out = append(out, groupWord(groupOf(g)))
	}
	return out, err
}

// groupWord is a group's name, or the beginning of its ID where a shell would take the name apart.
func groupWord(v groupView) string {
	word := v.Name
	if word == "" || strings.ContainsAny(word, " \t'\"\\$`") {
		word = v.ID[:min(len(v.ID), shortID)]
	}
	return word + "\t" + v.Name
}

// ask runs words with a node that runs already; completion starts none.
func (a *app) ask(c *cobra.Command, words func(*control.Client) ([]string, error)) []string {
	out, _ := a.complete(c, nil, words)
	return out
}

// completeMembers offers those who are in the group.
func (a *app) completeMembers(c *cobra.Command, args []string) []string {
	return a.ask(c, func(node *control.Client) (out []string, err error) {
		resp, err := node.ListMembers(c.Context(), &pb.ListMembersRequest{Group: args[0]})
		for _, m := range resp.GetMembers() {
			v := groupMemberOf(m)
			out = append(out, firstOf(v.Username, strings.TrimSuffix(shortAccount(v.Account), "…"))+"\t"+v.Name)
		}
		return out, err
	})
}

// completeApplicants offers those who wait for an answer.
func (a *app) completeApplicants(c *cobra.Command, args []string) []string {
	return a.ask(c, func(node *control.Client) (out []string, err error) {
		resp, err := node.ListApplications(c.Context(), &pb.ListApplicationsRequest{Group: args[0]})
		for _, i := range resp.GetApplications() {
			if v := applicationOf(i); !v.Own && v.State == "waiting" {
				out = append(out, strings.TrimSuffix(shortAccount(v.Account), "…")+"\t"+v.Name)
			}
		}
		return out, err
	})
}

// completeContacts offers whom one may ask.
func (a *app) completeContacts(c *cobra.Command, _ []string) []string {
	return a.ask(c, func(node *control.Client) ([]string, error) { return contactWords(c.Context(), node) })
}

// completeInvitations offers the groups that wait for an answer.
func (a *app) completeInvitations(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(c, args, func(node *control.Client) (out []string, err error) {
		resp, err := node.ListInvitations(c.Context(), &pb.ListInvitationsRequest{})
		for _, i := range resp.GetInvitations() {
			if v := invitationOf(i); !v.Outgoing && v.State == "waiting" {
				out = append(out, groupWord(v.Group))
			}
		}
		return out, err
	})
}
