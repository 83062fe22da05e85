package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

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
	return a.command(spec{use: "resend MESSAGE", id: "resend", min: 1, max: 1, run: func(ctx context.Context, args []string) error {
		node, err := a.connect(ctx)
		if err != nil {
			return err
		}
		defer node.Close()
		resp, err := node.Resend(ctx, &pb.ResendRequest{Message: args[0]})
		if err != nil {
			return err
		}
		return a.showSent(resp.GetMessage())
	}})
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
	if v.Message.Text != "" {
		const shown = 72 // cells: enough to recognise it
		a.printf("%s\n", a.dim("“"+text.OneLine(v.Message.Text, shown)+"”"))
	}
	summary := a.word("why", v.Summary)
	if v.Message.Members > 0 {
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
