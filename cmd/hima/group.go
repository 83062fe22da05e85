package main

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hima/internal/control/pb"
	"hima/internal/daemon"
	"hima/internal/text"
)

func (a *app) groupCommand() *cobra.Command {
	return a.group("group", "group",
		a.groupCreateCommand(),
		a.onGroup(spec{use: "list", id: "group.list", aliases: []string{"ls"}, run: func(ctx context.Context, _ []string) error {
			return a.groupList(ctx)
		}}, nil),
		a.onGroup(spec{
			use: "info GROUP|LINK", id: "group.info", min: 1, max: 1,
			run: func(ctx context.Context, args []string) error { return a.groupInfo(ctx, args[0]) },
		}, nil),
		a.onGroup(spec{
			use: "members GROUP", id: "group.members", min: 1, max: 1,
			run: func(ctx context.Context, args []string) error { return a.groupMembers(ctx, args[0]) },
		}, nil),
		a.groupInviteCommand(),
		a.answerCommand("accept", true), a.answerCommand("decline", false),
		a.onGroup(spec{use: "invitations", id: "group.invitations", run: func(ctx context.Context, _ []string) error {
			return a.groupInvitations(ctx)
		}}, nil),
		a.groupLinkCommand(),
		a.groupApplyCommand(),
		a.onGroup(spec{
			use: "applications [GROUP]", id: "group.applications", max: 1,
			run: func(ctx context.Context, args []string) error {
				return a.groupApplications(ctx, strings.Join(args, ""))
			},
		}, nil),
		a.onGroup(spec{
			use: "approve GROUP WHO", id: "group.approve", min: 2, max: 2, example: "  hima group approve hikers bob",
			run: func(ctx context.Context, args []string) error {
				return a.groupDecide(ctx, &pb.DecideApplicationRequest{Group: args[0], Who: args[1], Approve: true})
			},
		}, a.completeApplicants),
		a.groupRejectCommand(),
		a.groupActCommand("remove", pb.ActOnGroupRequest_ACT_REMOVE),
		a.groupActCommand("promote", pb.ActOnGroupRequest_ACT_PROMOTE),
		a.groupActCommand("demote", pb.ActOnGroupRequest_ACT_DEMOTE),
		a.groupActCommand("transfer", pb.ActOnGroupRequest_ACT_TRANSFER),
		a.groupActCommand("leave", pb.ActOnGroupRequest_ACT_LEAVE),
		a.groupActCommand("dissolve", pb.ActOnGroupRequest_ACT_DISSOLVE),
		a.groupSetCommand(),
	)
}

// How people may come into a group.
const (
	joinInvite = "invite"
	joinApply  = "apply"
	joinOpen   = "open"
)

// How much of what was said before a newcomer may read; a number is the third choice.
const (
	historyNone = "none"
	historyAll  = "all"
)

func (a *app) groupCreateCommand() *cobra.Command {
	req := &pb.CreateGroupRequest{}
	c := a.command(spec{
		use: "create NAME [--public] [--description TEXT] [--join HOW] [--history MUCH]", id: "group.create", min: 1, max: 1,
		example: "  hima group create hikers\n  hima group create 摄影 --public --description \"photos, no talk\" --join apply --history 100",
		run: func(ctx context.Context, args []string) error {
			req.Name = args[0]
			if req.GetJoin() != "" && !slices.Contains(joinChoices(), req.GetJoin()) {
				return usage("usage.group_choice", "Key", "--join", "Value", shortText(req.GetJoin()), "Choices", strings.Join(joinChoices(), ", "))
			}
			if req.GetHistory() != "" && !isHistory(req.GetHistory()) {
				return usage("usage.group_history", "Value", shortText(req.GetHistory()))
			}
			return a.groupCreate(ctx, req)
		},
	})
	c.Flags().BoolVar(&req.Public, "public", false, "flag.group.public")
	c.Flags().StringVar(&req.Description, "description", "", "flag.group.description")
	c.Flags().StringVar(&req.Join, "join", "", "flag.group.join")
	c.Flags().StringVar(&req.History, "history", "", "flag.group.history")
	_ = c.RegisterFlagCompletionFunc("join", cobra.FixedCompletions(joinChoices(), cobra.ShellCompDirectiveNoFileComp))
	_ = c.RegisterFlagCompletionFunc("history", cobra.FixedCompletions([]string{historyNone, historyAll}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func joinChoices() []string { return []string{joinInvite, joinApply, joinOpen} }

func isHistory(s string) bool {
	n, err := strconv.ParseUint(s, 10, 31)
	return s == historyNone || s == historyAll || err == nil && n > 0
}

// shortText is what somebody typed, as it is repeated in an error.
func shortText(s string) string { return text.OneLine(s, 40) }

func (a *app) groupCreate(ctx context.Context, req *pb.CreateGroupRequest) error {
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.CreateGroup(ctx, req)
	if err != nil {
		return err
	}
	v := groupOf(resp.GetGroup())
	if a.flags.json {
		return a.emit(v)
	}
	a.printf("%s\n", v.ID)
	a.done("group.created", "Name", a.bold(v.show()))
	if a.outTerminal {
		a.hint(a.t("hint.group_created"))
	}
	return nil
}

func (a *app) answerCommand(verb string, accept bool) *cobra.Command {
	c := a.command(spec{
		use: verb + " GROUP", id: "group." + verb, min: 1, max: 1,
		run: func(ctx context.Context, args []string) error {
			node, err := a.connect(ctx)
			if err != nil {
				return err
			}
			defer node.Close()
			resp, err := node.AnswerInvitation(ctx, &pb.AnswerInvitationRequest{Group: args[0], Accept: accept})
			if err != nil {
				return err
			}
			v := groupOf(resp.GetGroup())
			if a.flags.json {
				return a.emit(v)
			}
			if accept && v.State != groupMember {
				a.done("group.accepted", "Name", a.bold(v.show()))
				return nil
			}
			a.done("group.done."+verb, "Name", a.bold(v.show()))
			return nil
		},
	})
	c.ValidArgsFunction = a.completeInvitations
	return c
}

func (a *app) groupApplyCommand() *cobra.Command {
	req := &pb.ApplyToGroupRequest{}
	c := a.onGroup(spec{
		use: "apply GROUP|LINK [--message TEXT] [--withdraw]", id: "group.apply", min: 1, max: 1,
		example: "  hima group apply hikers --message \"I know the way\"\n  hima group apply hima-group:…\n  hima group apply hikers --withdraw",
		run: func(ctx context.Context, args []string) error {
			req.Group = args[0]
			if req.GetWithdraw() && req.GetMessage() != "" {
				return usage("usage.exclusive", "First", "--withdraw", "Second", "--message")
			}
			return a.groupApply(ctx, req)
		},
	}, nil)
	c.Flags().StringVarP(&req.Message, "message", "m", "", "flag.group.message")
	c.Flags().BoolVar(&req.Withdraw, "withdraw", false, "flag.group.withdraw_application")
	return c
}

// groupApply asks to be let in. Somebody new needs nothing but the link: like an invite link it makes the account first.
func (a *app) groupApply(ctx context.Context, req *pb.ApplyToGroupRequest) error {
	switch kind := linkKind(req.GetGroup()); {
	case kind == inviteScheme:
		return usage("usage.invite_link").withHint("hint.invite_link")
	case kind == networkScheme:
		return usage("usage.network_link").withHint("hint.network_link")
	case kind == groupScheme && !req.GetWithdraw():
		// An account for nothing would be all that somebody new has of a link that is over.
		err := daemon.CheckGroupLink(req.GetGroup())
		if err == nil {
			err = a.newcomer(ctx)
		}
		if err != nil {
			return err
		}
	}
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.ApplyToGroup(ctx, req)
	if err != nil {
		return err
	}
	v := groupOf(resp.GetGroup())
	switch {
	case a.flags.json:
		return a.emit(v)
	case req.GetWithdraw():
		a.done("group.application_withdrawn", "Name", a.bold(v.show()))
	case v.State == groupMember:
		a.done("group.done.accept", "Name", a.bold(v.show()))
	default:
		a.done("group.applied", "Name", a.bold(v.show()))
		if linkKind(req.GetGroup()) == groupScheme {
			a.hint(a.t("hint.applied_by_link"))
		}
	}
	return nil
}

func (a *app) groupRejectCommand() *cobra.Command {
	req := &pb.DecideApplicationRequest{}
	c := a.onGroup(spec{
		use: "reject GROUP WHO [--reason TEXT]", id: "group.reject", min: 2, max: 2, example: "  hima group reject hikers mallory --reason \"we are full\"",
		run: func(ctx context.Context, args []string) error {
			req.Group, req.Who = args[0], args[1]
			return a.groupDecide(ctx, req)
		},
	}, a.completeApplicants)
	c.Flags().StringVar(&req.Reason, "reason", "", "flag.group.reason")
	return c
}

func (a *app) groupDecide(ctx context.Context, req *pb.DecideApplicationRequest) error {
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.DecideApplication(ctx, req)
	if err != nil {
		return err
	}
	v := applicationOf(resp.GetApplication())
	if a.flags.json {
		return a.emit(v)
	}
	id := "group.rejected"
	if req.GetApprove() {
		id = "group.approved"
	}
	a.done(id, "Who", a.bold(firstOf(v.Name, shortAccount(v.Account))), "Name", a.bold(firstOf(v.GroupName, shortGroup(v.Group))))
	return nil
}

// groupActCommand makes the verbs that change who is in a group, and with which role. Two of them cannot be taken back and
// are asked for on a terminal.
func (a *app) groupActCommand(verb string, act pb.ActOnGroupRequest_Act) *cobra.Command {
	s := spec{use: verb + " GROUP", id: "group." + verb, min: 1, max: 1}
	var second completion
	if act != pb.ActOnGroupRequest_ACT_LEAVE && act != pb.ActOnGroupRequest_ACT_DISSOLVE {
		s.use, s.min, s.max, second = verb+" GROUP WHO", 2, 2, a.completeMembers
	}
	asks := act == pb.ActOnGroupRequest_ACT_TRANSFER || act == pb.ActOnGroupRequest_ACT_DISSOLVE
	var yes bool
	s.run = func(ctx context.Context, args []string) error {
		req := &pb.ActOnGroupRequest{Group: args[0], Act: act}
		if len(args) == 2 {
			req.Who = args[1]
		}
		if asks && !yes && a.inTerminal && !a.flags.json {
			t := a.openTerminal()
			defer t.Close()
			sure, err := a.confirm(ctx, t, a.t("group.sure."+verb, "Name", shortText(req.GetGroup()), "Who", shortText(req.GetWho())), false)
			if err != nil {
				return err
			}
			if !sure {
				a.note("group.unchanged")
				return &silent{exitFailed}
			}
		}
		return a.groupAct(ctx, verb, req)
	}
	if asks {
		s.use += " [--yes]"
	}
	c := a.onGroup(s, second)
	if asks {
		c.Flags().BoolVarP(&yes, "yes", "y", false, "flag.yes")
	}
	return c
}

func (a *app) groupAct(ctx context.Context, verb string, req *pb.ActOnGroupRequest) error {
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.ActOnGroup(ctx, req)
	if err != nil {
		return err
	}
	v := groupOf(resp.GetGroup())
	if a.flags.json {
		return a.emit(v)
	}
	a.done("group.done."+verb, "Name", a.bold(v.show()), "Who", a.bold(plain(req.GetWho())))
	return nil
}

// groupKey is something about a group that can be set, and what it may be; nil: any text.
type groupKey struct {
	name    string
	choices []string
}

func groupKeys() []groupKey {
	return []groupKey{
		{"name", nil},
		{"description", nil},
		{"announcement", nil},
		{"public", []string{"yes", "no"}},
		{"join", joinChoices()},
		{"invite", []string{"admins", "members"}},
		{"history", []string{historyNone, historyAll, "N"}},
		{"mute", []string{"yes", "no"}},
		{"nickname", nil},
		{"mailbox", []string{"own", "none"}},
	}
}

func (a *app) groupSetCommand() *cobra.Command {
	return a.onGroup(spec{
		use: "set GROUP KEY VALUE", id: "group.set", min: 3, max: 3,
		example: "  hima group set hikers announcement \"Saturday at nine\"\n  hima group set hikers invite members\n  hima group set hikers mute yes\n  hima group set hikers nickname 老王",
		run: func(ctx context.Context, args []string) error {
			value, err := groupValue(args[1], args[2])
			if err != nil {
				return err
			}
			return a.groupSet(ctx, &pb.SetGroupRequest{Group: args[0], Key: args[1], Value: value})
		},
	}, func(_ *cobra.Command, args []string) (out []string) {
		for _, k := range groupKeys() {
			switch {
			case len(args) == 1:
				out = append(out, k.name)
			case len(args) == 2 && k.name == args[1]:
				out = append(out, k.choices...)
			}
		}
		return out
	})
}

// deviceBegins is how the ID of each device begins. A mailbox may be named by its own, and addresses after it.
const deviceBegins = "12D3KooW"

// groupValue checks a value as far as that needs no node, and takes other words for yes and no.
func groupValue(key, value string) (string, error) {
	var names []string
	for _, k := range groupKeys() {
		names = append(names, k.name)
		if k.name != key {
			continue
		}
		switch {
		case k.choices == nil:
			return value, nil
		case key == "history":
			if !isHistory(value) {
				return "", usage("usage.group_history", "Value", shortText(value))
			}
			return value, nil
		case key == "mailbox" && (value == "" || value == "off" || strings.HasPrefix(value, deviceBegins)):
			return value, nil
		case slices.Contains(k.choices, "yes"):
			switch strings.ToLower(value) {
			case "true", "on", "1":
				value = "yes"
			case "false", "off", "0":
				value = "no"
			}
		}
		if !slices.Contains(k.choices, value) {
			return "", usage("usage.group_choice", "Key", key, "Value", shortText(value), "Choices", strings.Join(k.choices, ", "))
		}
		return value, nil
	}
	return "", usage("usage.group_key", "Key", shortText(key), "Keys", strings.Join(names, ", "))
}

func (a *app) groupSet(ctx context.Context, req *pb.SetGroupRequest) error {
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.SetGroup(ctx, req)
	if err != nil {
		return err
	}
	v := groupOf(resp.GetGroup())
	if a.flags.json {
		return a.emit(v)
	}
	id := "group.set_done"
	value := a.settingWord(req.GetKey(), req.GetValue())
	if value == "" {
		id = "group.cleared"
	}
	if req.GetKey() == "nickname" {
		id += "_nickname"
	}
	a.done(id, "Key", a.word("group_key", req.GetKey()), "Value", value, "Name", a.bold(v.show()))
	return nil
}

// linkBounds reads --expires and --uses. A link without the one works for ever, without the other for everybody; a 0 or an
// empty variable of a script must not make such a link.
func linkBounds(c *cobra.Command, expires string, uses int32) (time.Duration, error) {
	if c.Flags().Changed("uses") && uses <= 0 {
		return 0, usage("usage.positive", "Flag", "--uses").withHint("hint.group_link_bounds")
	}
	if !c.Flags().Changed("expires") {
		return 0, nil
	}
	d, err := parseLength("--expires", expires)
	if err == nil && d < time.Millisecond {
		err = usage("usage.positive", "Flag", "--expires").withHint("hint.group_link_bounds")
	}
	return d, err
}
