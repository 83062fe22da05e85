package main

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hima/internal/control"
	"hima/internal/control/pb"
	"hima/internal/text"
)

// Types of events that this program acts on; every other one is only shown.
const (
	eventMessage = "message"
	eventState   = "state"
	eventTyping  = "typing"
	eventReady   = "ready"
	eventName    = "name"
	eventNetwork = "network"
	eventMailbox = "mailbox"

	eventGroup       = "group"
	eventInvitation  = "invitation"
	eventApplication = "application"
)

func (a *app) watchCommand() *cobra.Command {
	var o control.WatchOptions
	var until int
	var c *cobra.Command
	c = a.command(spec{
		use: "watch [--since N] [--conversation WHO]", id: "watch",
		example: "  hima watch\n  hima --json watch --since 1042\n  hima watch --conversation bob",
		run: func(ctx context.Context, _ []string) error {
			if until < 0 {
				return usage("usage.negative", "Flag", "--count")
			}
			// Without --since a watch begins now; --since 0 asks for everything that is kept.
			o.FromNow = !c.Flags().Changed("since")
			return a.watch(ctx, o, until)
		},
	})
	c.Flags().Uint64Var(&o.Since, "since", 0, "flag.watch.since")
	c.Flags().StringVar(&o.Conversation, "conversation", "", "flag.watch.conversation")
	c.Flags().IntVar(&until, "count", 0, "flag.watch.count")
	return c
}

func (a *app) watch(ctx context.Context, o control.WatchOptions, count int) error {
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	shown := 0
	enough := &silent{exitOK}
	return node.Watch(ctx, o, func(e *pb.Event) error {
		v := eventOf(e)
		if a.flags.json {
			if err := a.emit(v); err != nil {
				return err
			}
		} else if v.Type == eventReady {
			if a.outTerminal {
				a.note("watch.ready", "Seq", v.Seq)
			}
		} else {
			a.printf("%s\n", a.eventLine(v, time.Now()))
		}
		if v.Type != eventReady {
			shown++
		}
		if count > 0 && shown >= count {
			return enough
		}
		return nil
	})
}

// eventLine is an event on one line: number, time, kind, who, what.
func (a *app) eventLine(v eventView, now time.Time) string {
	seq := "–"
	if v.Seq > 0 {
		seq = strconv.FormatUint(v.Seq, 10)
	}
	what := v.Detail
	who := shortAccount(v.Account)
	if m := v.Message; m != nil {
		who = firstOf(m.AuthorName, shortAccount(m.Author))
		if m.Own {
			who = a.t("word.me")
		}
		switch v.Type {
		case eventState:
			what = shortMessage(m.ID) + " " + a.messageState(*m)
			if n := len(v.MessageIDs); n > 1 {
				what += " " + a.tn("watch.messages", n)
			}
		default:
			what = a.messageLine(*m)
			if m.Own && m.State != "" {
				what += " " + a.dim("· "+a.messageState(*m))
			}
		}
	}
	if s := firstOf(a.networkEvent(v), a.groupEvent(v)); s != "" {
		who, what = "", s
	}
	if v.Type == eventTyping || v.Type == "presence" {
		what = a.t("event." + v.Type + "." + onOff(v.On))
	}
	parts := []string{a.dim(seq), a.dim(localStamp(v.Time, now)), a.bold(a.word("event", v.Type))}
	if who != "" {
		parts = append(parts, a.cyan(who))
	}
	if what != "" {
		parts = append(parts, text.OneLine(what, maxIDCells))
	}
	return strings.Join(parts, "  ")
}

// networkEvent tells what happened to a network, to the own name on it, or to a mailbox, and what to do about it; "" for
// events of other types and for what a newer node tells.
func (a *app) networkEvent(v eventView) string {
	if v.Type != eventName && v.Type != eventNetwork && v.Type != eventMailbox {
		return ""
	}
	id := "event." + v.Type + "." + v.Detail
	said := a.t(id, "Name", firstOf(v.Name, shortDevice(v.Device), "–"), "Network", firstOf(v.Network, "–"),
		"Who", firstOf(v.Name, shortAccount(v.Account), "–"))
	if said == id {
		return ""
	}
	if v.Type == eventName {
		if do := a.stateHint(v.Detail); do != "" {
			said += " → " + do
		}
	}
	return said
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}
