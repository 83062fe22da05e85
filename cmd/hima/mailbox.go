package main

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"hima/internal/control"
	"hima/internal/control/pb"
	"hima/internal/text"
)

// defaultQuota is what a friend may leave at this node: a year of text between two people, and little beside a photograph
// album.
const defaultQuota = "16MiB"

func (a *app) mailboxCommand() *cobra.Command {
	add := a.command(spec{
		use: "add CONTACT|MULTIADDR", id: "mailbox.add", min: 1, max: 1, who: true,
		example: "  hima mailbox add bob\n  hima mailbox add /ip4/192.0.2.7/tcp/7447/p2p/12D3Koo…",
		run:     func(ctx context.Context, args []string) error { return a.addMailbox(ctx, args[0]) },
	})
	remove := a.command(spec{
		use: "remove MAILBOX", id: "mailbox.remove", min: 1, max: 1, example: "  hima mailbox remove bob",
		run: func(ctx context.Context, args []string) error { return a.removeMailbox(ctx, args[0]) },
	})
	status := a.command(spec{
		use: "status [MAILBOX]", id: "mailbox.status", max: 1, example: "  hima mailbox status",
		run: func(ctx context.Context, args []string) error { return a.mailboxStatus(ctx, strings.Join(args, "")) },
	})
	remove.ValidArgsFunction, status.ValidArgsFunction = a.completeMailbox, a.completeMailbox
	return a.group("mailbox", "mailbox",
		a.command(spec{use: "list", id: "mailbox.list", aliases: []string{"ls"}, run: func(ctx context.Context, _ []string) error {
			return a.mailboxes(ctx)
		}}),
		add, remove, status, a.offerCommand(),
	)
}

func (a *app) offerCommand() *cobra.Command {
	var quota string
	c := a.command(spec{
		use: "offer CONTACT [--quota SIZE]", id: "mailbox.offer", min: 1, max: 1, who: true,
		example: "  hima mailbox offer bob\n  hima mailbox offer bob --quota 64MiB\n  hima mailbox offer bob --quota 0",
		run: func(ctx context.Context, args []string) error {
			size, err := parseSize("--quota", quota)
			if err != nil {
				return err
			}
			return a.offerMailbox(ctx, args[0], size)
		},
	})
	c.Flags().StringVar(&quota, "quota", defaultQuota, "flag.mailbox.quota")
	return c
}

// parseSize understands 16MiB, 20 MB and 1000.
func parseSize(flag, s string) (uint64, error) {
	size, err := humanize.ParseBytes(s)
	if err != nil || size > 1<<50 {
		return 0, usage("usage.size", "Flag", flag, "Value", text.OneLine(s, 40))
	}
	return size, nil
}

func (a *app) listMailboxes(ctx context.Context) (*pb.ListMailboxesResponse, error) {
	node, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer node.Close()
	return node.ListMailboxes(ctx, &pb.ListMailboxesRequest{})
}

// mailboxes lists the nodes that keep mail for this one, and those this one keeps mail for.
func (a *app) mailboxes(ctx context.Context) error {
	resp, err := a.listMailboxes(ctx)
	if err != nil {
		return err
	}
	mine := a.newTable("column.mailbox", "column.id", "column.source", "column.state", "column.waiting", "column.used", "column.keeps")
	for _, m := range resp.GetMailboxes() {
		v := mailboxOf(m)
		if a.flags.json {
			if err := a.emit(v); err != nil {
				return err
			}
			continue
		}
		mine.row(firstOf(v.Name, "–"), shortDevice(v.Device), a.word("mailbox_source", v.Source), a.mailboxState(v),
			strconv.Itoa(int(v.Waiting)), usedOf(v.Used, v.Quota), keeps(v.ExpiryMS))
	}
	offers, err := a.offerTable(resp.GetOffers(), kindOffer)
	if err != nil {
		return err
	}
	received, err := a.offerTable(resp.GetReceived(), kindReceived)
	if err != nil || a.flags.json {
		return err
	}
	if len(mine.rows) == 0 {
		a.note("mailbox.none")
	} else {
		mine.print(a.out)
	}
	if len(offers.rows) > 0 {
		a.printf("\n%s\n", a.bold(a.t("mailbox.offers")))
		offers.print(a.out)
	}
	if len(received.rows) > 0 {
		a.printf("\n%s\n", a.bold(a.t("mailbox.received")))
		received.print(a.out)
		a.hint(a.t("hint.mailbox_received"))
	}
	return nil
}

func (a *app) offerTable(all []*pb.MailboxOffer, kind string) (*table, error) {
	t := a.newTable("column.name", "column.id", "column.items", "column.used")
	for _, o := range all {
		v := offerOf(o, kind)
		if a.flags.json {
			if err := a.emit(v); err != nil {
				return nil, err
			}
			continue
		}
		t.row(firstOf(v.Name, "–"), shortAccount(v.Account), strconv.Itoa(int(v.Items)), usedOf(v.Used, v.Quota))
	}
	return t, nil
}

// usedOf is how much of a quota is used.
func usedOf(used, quota uint64) string {
	if quota == 0 {
		return humanize.IBytes(used)
	}
	return humanize.IBytes(used) + " / " + humanize.IBytes(quota)
}

// keeps is how long a mailbox keeps an item.
func keeps(ms int64) string {
	if ms == 0 {
		return ""
	}
	return duration(time.Duration(ms) * time.Millisecond)
}

func (a *app) mailboxState(v mailboxView) string {
	s := a.word("mailbox_state", v.State)
	if v.State == "ok" {
		return a.green(s)
	}
	return a.yellow(s)
}

// mailboxStatus shows one mailbox, or all for an empty name, with everything that is known of it.
func (a *app) mailboxStatus(ctx context.Context, which string) error {
	resp, err := a.listMailboxes(ctx)
	if err != nil {
		return err
	}
	now := time.Now()
	shown := 0
	for _, m := range resp.GetMailboxes() {
		v := mailboxOf(m)
		if which != "" && v.Name != which && !strings.HasPrefix(v.Device, which) && !strings.HasSuffix(v.Device, strings.TrimPrefix(which, "…")) {
			continue
		}
		shown++
		if a.flags.json {
			if err := a.emit(v); err != nil {
				return err
			}
			continue
		}
		if shown > 1 {
			a.printf("\n")
		}
		a.showMailbox(v, now)
	}
	switch {
	case shown > 0 || a.flags.json && which == "":
	case which != "":
		return fail(control.NotFound, "error.no_such_mailbox", "Mailbox", plain(which)).withHint("hint.mailboxes")
	default:
		a.note("mailbox.none")
	}
	return nil
}

func (a *app) showMailbox(v mailboxView, now time.Time) {
	emptied := localStamp(v.Emptied, now)
	if emptied == "" {
		emptied = a.t("mailbox.never")
	}
	connection := a.t("word.no")
	if v.Connected {
		connection = a.t("word.yes")
	}
	a.fields(a.out,
		a.t("field.mailbox"), a.bold(firstOf(v.Name, shortDevice(v.Device)))+"  "+a.mailboxState(v),
		a.t("field.device"), v.Device,
		a.t("field.source"), a.word("mailbox_source", v.Source),
		a.t("field.connected"), connection,
		a.t("field.inboxes"), strconv.Itoa(int(v.Inboxes)),
		a.t("field.waiting"), strconv.Itoa(int(v.Waiting)),
		a.t("field.used"), usedOf(v.Used, v.Quota),
		a.t("field.keeps"), keeps(v.ExpiryMS),
		a.t("field.emptied"), emptied,
		a.t("field.addresses"), strings.Join(v.Addresses, " "),
		a.t("field.error"), v.Error,
	)
}

func (a *app) addMailbox(ctx context.Context, who string) error {
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.AddMailbox(ctx, &pb.AddMailboxRequest{Who: who})
	if err != nil {
		return err
	}
	v := mailboxOf(resp.GetMailbox())
	if a.flags.json {
		return a.emit(v)
	}
	a.done("mailbox.added", "Name", a.bold(firstOf(v.Name, shortDevice(v.Device))))
	return nil
}

func (a *app) removeMailbox(ctx context.Context, which string) error {
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.RemoveMailbox(ctx, &pb.RemoveMailboxRequest{Mailbox: which})
	if err != nil {
		return err
	}
	v := mailboxOf(resp.GetMailbox())
	if a.flags.json {
		return a.emit(v)
	}
	shown := a.bold(firstOf(v.Name, shortDevice(v.Device)))
	if v.State == "retiring" {
		a.done("mailbox.retiring", "Name", shown)
		return nil
	}
	a.done("mailbox.removed", "Name", shown)
	return nil
}

func (a *app) offerMailbox(ctx context.Context, who string, quota uint64) error {
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.OfferMailbox(ctx, &pb.OfferMailboxRequest{Who: who, QuotaBytes: quota})
	if err != nil {
		return err
	}
	v := offerOf(resp.GetOffer(), kindOffer)
	if a.flags.json {
		return a.emit(v)
	}
	shown := a.bold(firstOf(v.Name, shortAccount(v.Account)))
	if quota == 0 {
		a.done("mailbox.offer_taken_back", "Name", shown)
		return nil
	}
	a.done("mailbox.offered", "Name", shown, "Quota", humanize.IBytes(v.Quota))
	return nil
}

// completeMailbox offers the mailboxes of a node that runs.
func (a *app) completeMailbox(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(c, args, func(node *control.Client) (out []string, err error) {
		resp, err := node.ListMailboxes(c.Context(), &pb.ListMailboxesRequest{})
		for _, m := range resp.GetMailboxes() {
			v := mailboxOf(m)
			out = append(out, v.Device+"\t"+v.Name)
		}
		return out, err
	})
}
