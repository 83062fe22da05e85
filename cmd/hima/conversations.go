package main

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"
	"github.com/spf13/cobra"

	"hima/internal/control/pb"
	"hima/internal/text"
)

func (a *app) conversationsCommand() *cobra.Command {
	return a.command(spec{
		use: "conversations", id: "conversations", aliases: []string{"chats"},
		run: func(ctx context.Context, _ []string) error { return a.conversations(ctx) },
	})
}

func (a *app) conversations(ctx context.Context) error {
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.Conversations(ctx, &pb.ConversationsRequest{})
	if err != nil {
		return err
	}
	t := a.newTable("column.name", "column.unread", "column.time", "column.last")
	now := time.Now()
	return showList(a, t, "conversations.none", resp.GetConversations(), conversationOf, func(v conversationView) {
		t.row(a.conversationRow(v, now)...)
	})
}

func (a *app) conversationRow(v conversationView, now time.Time) []string {
	shown := v.Name
	switch {
	case v.Kind == "self":
		shown = a.t("conversations.self")
	case v.Kind == kindGroup && v.Role == "":
		shown += " " + a.dim(a.t("conversations.not_in"))
	case v.Kind == kindGroup:
		shown += " " + a.dim(a.t("conversations.members", "Count", v.Members))
	}
	if v.Online {
		shown += " " + a.green("●")
	}
	unread := ""
	if v.Unread > 0 {
		unread = a.yellow(strconv.Itoa(int(v.Unread)))
	}
	var when, last string
	if m := v.Last; m != nil {
		when = localTime(m.at, now)
		said, about := a.messageWords(*m)
		last = joined(a.dim(text.OneLine(about, maxIDCells)), text.OneLine(said, maxIDCells))
		if v.Kind == kindGroup && !m.Own {
			last = firstOf(m.AuthorName, shortAccount(m.Author)) + ": " + last
		}
		if m.Own && v.Kind != "self" {
			last += " " + a.dim("· "+a.messageState(*m))
		}
	}
	return []string{shown, unread, when, last}
}

// kindGroup is a conversation of many.
const kindGroup = "group"

func (a *app) historyCommand() *cobra.Command {
	var limit int
	var before, since string
	c := a.command(spec{
		use: "history WHO [--limit N] [--before ID] [--since TIME]", id: "history", min: 1, max: 1, who: true,
		example: "  hima history bob\n  hima history bob --limit 200 --since 3d\n  hima history self",
		run: func(ctx context.Context, args []string) error {
			req := &pb.HistoryRequest{Who: args[0], Limit: int32(limit), Before: before}
			if limit < 1 || limit > maxHistory {
				return usage("usage.limit", "Most", maxHistory)
			}
			if since != "" {
				t, err := parseSince(since, time.Now())
				if err != nil {
					return err
				}
				req.SinceMs = t.UnixMilli()
			}
			return a.history(ctx, req)
		},
	})
	c.Flags().IntVarP(&limit, "limit", "n", 50, "flag.history.limit")
	c.Flags().StringVar(&before, "before", "", "flag.history.before")
	c.Flags().StringVar(&since, "since", "", "flag.history.since")
	return c
}

// maxHistory is the largest page a node gives.
const maxHistory = 1000

func (a *app) history(ctx context.Context, req *pb.HistoryRequest) error {
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.History(ctx, req)
	if err != nil {
		return err
	}
	now := time.Now()
	for _, m := range resp.GetMessages() {
		v := messageOf(m)
		if a.flags.json {
			if err := a.emit(v); err != nil {
				return err
			}
			continue
		}
		a.printf("%s\n", a.historyEntry(v, now))
	}
	if a.flags.json {
		return nil
	}
	if len(resp.GetMessages()) == 0 {
		a.note("history.none")
	} else if resp.GetMore() {
		a.hint(a.t("hint.more_history", "ID", shortMessage(resp.GetMessages()[0].GetId())))
	}
	return nil
}

// historyEntry is one message over as many lines as it has, the lines after the first set in.
func (a *app) historyEntry(v messageView, now time.Time) string {
	when := v.at.Local().Format("2006-01-02 15:04")
	who := firstOf(v.AuthorName, shortAccount(v.Author))
	if v.Own {
		who = a.t("word.me")
	}
	head := a.dim(shortMessage(v.ID)+"  "+when) + "  " + a.who(who, v.Own) + "  "
	if v.Kind == "hole" {
		head = a.dim(strings.Repeat(" ", shortID)+"  "+when) + "  "
	}
	indent := strings.Repeat(" ", ansi.StringWidth(head))
	lines := strings.Split(a.messageLine(v), "\n")
	return head + strings.Join(lines, "\n"+indent) + a.marks(v)
}

func (a *app) who(s string, own bool) string {
	if own {
		return a.green(s)
	}
	return a.cyan(s)
}

// marks says what is worth knowing about a message besides its text.
func (a *app) marks(v messageView) string {
	var out []string
	if v.Own && v.State != "" && v.Kind != "cancelled" && v.Peer != v.Author { // notes to oneself go nowhere
		out = append(out, a.messageState(v))
	}
	if v.Backlog {
		out = append(out, a.t("mark.backlog"))
	}
	if v.Late {
		out = append(out, a.t("mark.late"))
	}
	if v.ClockAhead {
		out = append(out, a.t("mark.clock_ahead"))
	}
	if len(out) == 0 {
		return ""
	}
	return "  " + a.dim("· "+strings.Join(out, " · "))
}

// messageLine is what a message says, or what is to be said about it.
func (a *app) messageLine(v messageView) string {
	said, about := a.messageWords(v)
	return joined(a.dim(about), said)
}

// messageWords are what a message says, and our own words about it.
func (a *app) messageWords(v messageView) (said, about string) {
	switch v.Kind {
	case "text":
		return v.Text, ""
	case "hole":
		return "", a.tn("kind.hole", int(v.Hole))
	case "request":
		return v.Text, a.t("kind.request")
	}
	about = firstOf(a.groupLine(v), a.tOptional("kind."+strings.ReplaceAll(v.Kind, "-", "_")), a.t("kind.unsupported"))
	return "", about
}

// joined puts a space between two texts if both are there.
func joined(x, y string) string {
	if x == "" || y == "" {
		return x + y
	}
	return x + " " + y
}

func (a *app) markReadCommand() *cobra.Command {
	var until string
	c := a.command(spec{
		use: "mark-read WHO [--until ID]", id: "mark_read", min: 1, max: 1, who: true,
		run: func(ctx context.Context, args []string) error {
			node, err := a.connect(ctx)
			if err != nil {
				return err
			}
			defer node.Close()
			resp, err := node.MarkRead(ctx, &pb.MarkReadRequest{Who: args[0], Until: until})
			if err != nil {
				return err
			}
			if a.flags.json {
				return a.emit(struct {
					Marked int32 `json:"marked"`
				}{resp.GetMarked()})
			}
			if !a.flags.quiet {
				a.printf("%s\n", a.tn("mark_read.done", int(resp.GetMarked())))
			}
			return nil
		},
	})
	c.Flags().StringVar(&until, "until", "", "flag.mark-read.until")
	return c
}
