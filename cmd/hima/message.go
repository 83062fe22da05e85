package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"hima/internal/control"
	"hima/internal/control/pb"
	"hima/internal/text"
)

func (a *app) cancelCommand() *cobra.Command {
	return a.command(spec{use: "cancel MESSAGE", id: "cancel", min: 1, max: 1, run: func(ctx context.Context, args []string) error {
		node, err := a.connect(ctx)
		if err != nil {
			return err
		}
		defer node.Close()
		if _, err := node.Cancel(ctx, &pb.CancelRequest{Message: args[0]}); err != nil {
			return err
		}
		if a.flags.json {
			return a.emit(struct {
				Message   string `json:"message"`
				Cancelled bool   `json:"cancelled"`
			}{plain(args[0]), true})
		}
		a.done("cancel.done")
		return nil
	}})
}

func (a *app) resendCommand() *cobra.Command {
	var all string
	const use = "resend MESSAGE… | --all WHO"
	c := a.command(spec{
		use: use, id: "resend", max: -1, example: "  hima resend 9f86d081 60303ae2\n  hima resend --all bob",
		run: func(ctx context.Context, args []string) error {
			switch {
			case all == "" && len(args) == 0:
				return usage("usage.missing", "Usage", "hima "+use).withHint("hint.help")
			case all != "" && len(args) > 0:
				return usage("usage.extra", "Argument", text.OneLine(args[0], 60), "Usage", "hima "+use).withHint("hint.help")
			}
			node, err := a.connect(ctx)
			if err != nil {
				return err
			}
			defer node.Close()
			if all != "" {
				return a.resendAll(ctx, node, all)
			}
			return a.resend(ctx, node, args)
		},
	})
	c.Flags().StringVar(&all, "all", "", "flag.resend.all")
	_ = c.RegisterFlagCompletionFunc("all", func(c *cobra.Command, _ []string, part string) ([]string, cobra.ShellCompDirective) {
		return a.completeWho(c, nil, part)
	})
	return c
}

// resendView is what became of one message of several.
type resendView struct {
	messageView
	Replaces string `json:"replaces"`
}

// notResentView is one that was not sent again.
type notResentView struct {
	Replaces string `json:"replaces"`
	State    string `json:"state"`
	Error    string `json:"error"` // code
	Message  string `json:"message"`
}

// resend sends messages again. One that is refused keeps no other from it, but the command then fails; of one alone there is
// nothing else to tell.
func (a *app) resend(ctx context.Context, node *control.Client, messages []string) error {
	var failed error
	for _, id := range messages {
		resp, err := node.Resend(ctx, &pb.ResendRequest{Message: id})
		switch {
		case err == nil:
			err = a.showResent(id, resp.GetMessage())
		case len(messages) > 1 && aboutOne(err):
			if failed == nil {
				failed = &silent{exitCode(err)}
			}
			err = a.showNotResent(id, err)
		}
		if err != nil {
			return err
		}
	}
	return failed
}

// aboutOne tells whether an error is about the message that was named, and not about the node.
func aboutOne(err error) bool {
	if _, ok := errors.AsType[*control.Error](err); !ok {
		return false
	}
	switch codeOf(err) {
	case control.Unavailable, control.NotRunning, control.Locked, control.DiskFull, control.Damaged, control.Internal:
		return false
	}
	return true
}

// resendAll sends again what of a conversation may not have arrived, oldest first. It ends with the first that is refused: what
// stands behind it would stand before it then. One that is not to be sent again any more is not refused.
func (a *app) resendAll(ctx context.Context, node *control.Client, who string) error {
	n := 0
	var refused error // why the message gone was, which is an error only if it is listed still
	for more, gone := true, ""; more; {
		list, err := node.ListUnknown(ctx, &pb.ListUnknownRequest{Who: who})
		if err != nil {
			return err
		}
		if refused != nil && slices.Contains(list.GetMessages(), gone) {
			return refused
		}
		refused = nil
		more = list.GetMore() && len(list.GetMessages()) > 0
		for _, id := range list.GetMessages() {
			resp, err := node.Resend(ctx, &pb.ResendRequest{Message: id})
			if errors.Is(err, control.Exists) {
				continue // another face was faster
			}
			if errors.Is(err, control.NotFound) || errors.Is(err, control.Invalid) {
				// It may have been settled or replaced since it was listed. Those behind it may have been too: list anew.
				refused, gone, more = err, id, true
				break
			}
			if err == nil {
				err = a.showResent(id, resp.GetMessage())
			}
			if err != nil {
				return err
			}
			n++
		}
	}
	if n == 0 {
		a.note("resend.none")
	}
	return nil
}

func (a *app) showResent(id string, m *pb.Message) error {
	if a.flags.json {
		return a.emit(resendView{messageOf(m), plain(id)})
	}
	return a.showSent(m)
}

func (a *app) showNotResent(id string, refusal error) error {
	why := a.describe(refusal)
	v := notResentView{Replaces: plain(id), State: "failed", Error: why.Error, Message: why.Message}
	if a.flags.json {
		return a.emit(v)
	}
	fmt.Fprintln(a.errOut, "hima: "+a.t("cli.error")+" "+a.t("resend.refused", "Message", text.OneLine(id, maxIDCells), "Why", v.Message))
	return nil
}

func (a *app) whyCommand() *cobra.Command {
	return a.command(spec{use: "why MESSAGE", id: "why", min: 1, max: 1, run: func(ctx context.Context, args []string) error {
		node, err := a.connect(ctx)
		if err != nil {
			return err
		}
		defer node.Close()
		resp, err := node.Why(ctx, &pb.WhyRequest{Message: args[0]})
		if err != nil {
			return err
		}
		v := whyOf(resp)
		if a.flags.json {
			return a.emit(v)
		}
		a.showWhy(v, time.Now())
		return nil
	}})
}

// showWhy tells what has happened to a message and what will happen next.
func (a *app) showWhy(v whyView, now time.Time) {
	a.printf("%s  %s\n", a.bold(v.Message.ID), a.messageState(v.Message))
	const shown = 72 // cells: enough to recognise it
	line := a.groupLine(v.Message)
	switch {
	case line != "":
		a.printf("%s\n", a.dim(text.OneLine(line, shown)))
	case v.Message.Text != "":
		a.printf("%s\n", a.dim("“"+text.OneLine(v.Message.Text, shown)+"”"))
	}
	summary := a.word("why", v.Summary)
	if v.Message.Members > 0 || line != "" && v.Message.Own {
		summary = firstOf(a.tOptional("why_group."+v.Summary), summary)
	}
	a.printf("%s\n", summary)
	if v.Former {
		a.printf("%s\n", a.t("why.former"))
	}
	for _, d := range v.Devices {
		a.printf("\n%s  %s  %s\n", a.cyan(firstOf(d.Name, shortAccount(d.Account))), a.dim(d.Device), a.word("device_state", d.State))
		connection := a.t("word.no")
		if d.Connected {
			connection = a.t("word.yes")
		}
		a.fields(a.out,
			"  "+a.t("field.delivered"), localStamp(d.Delivered, now),
			"  "+a.t("field.connected"), connection,
			"  "+a.t("field.last_seen"), localStamp(d.LastSeen, now),
			"  "+a.t("field.next_try"), nextTry(d.NextTry, now),
		)
		for _, c := range d.Custody {
			a.printf("    %s\n", a.custodyLine(c, now))
		}
		for _, at := range d.Attempts {
			result := at.Error
			if result == "" {
				result = a.t("why.worked")
			}
			a.printf("    %s  %s  %s  %s\n", a.dim(localStamp(at.Time, now)), a.word("road", at.Road), at.Address, result)
		}
	}
}

// custodyLine tells which mailbox has signed for a message, and until when.
func (a *app) custodyLine(c custodyView, now time.Time) string {
	id := "why.held"
	if c.Expired {
		id = "why.held_expired"
	}
	mailbox := a.cyan(shortDevice(c.Mailbox))
	if c.Name != "" {
		mailbox = a.cyan(c.Name) + " " + mailbox
	}
	return a.t(id, "Mailbox", mailbox, "Since", localStamp(c.Since, now), "Until", localStamp(c.Until, now))
}

// nextTry is a time in the near future, which people want to the second.
func nextTry(s string, now time.Time) string {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return s
	}
	if t.Before(now) {
		return t.Local().Format("15:04:05")
	}
	return t.Local().Format("15:04:05") + " (+" + duration(t.Sub(now)) + ")"
}
