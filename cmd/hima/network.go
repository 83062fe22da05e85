package main

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hima/internal/control"
	"hima/internal/control/pb"
)

func (a *app) networkCommand() *cobra.Command {
	join := a.command(spec{
		use: "join LINK|MULTIADDR", id: "network.join", min: 1, max: 1,
		example: "  hima network join hima-net:…\n  hima network join /dns4/hima.example.org/tcp/7447/p2p/12D3Koo…",
		run:     func(ctx context.Context, args []string) error { return a.joinNetwork(ctx, args[0]) },
	})
	leave := a.command(spec{
		use: "leave NETWORK", id: "network.leave", min: 1, max: 1, example: "  hima network leave demo",
		run: func(ctx context.Context, args []string) error { return a.leaveNetwork(ctx, args[0]) },
	})
	status := a.command(spec{
		use: "status [NETWORK]", id: "network.status", max: 1, example: "  hima network status\n  hima network status demo",
		run: func(ctx context.Context, args []string) error { return a.networkStatus(ctx, strings.Join(args, "")) },
	})
	leave.ValidArgsFunction, status.ValidArgsFunction = a.completeNetwork, a.completeNetwork
	return a.group("network", "network",
		join,
		a.command(spec{use: "list", id: "network.list", aliases: []string{"ls"}, run: func(ctx context.Context, _ []string) error {
			return a.networkList(ctx)
		}}),
		leave, status,
	)
}

func (a *app) joinNetwork(ctx context.Context, link string) error {
	switch linkKind(link) {
	case inviteScheme:
		return usage("usage.invite_link").withHint("hint.invite_link")
	case groupScheme:
		return usage("usage.group_link").withHint("hint.group_apply")
	}
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.JoinNetwork(ctx, &pb.JoinNetworkRequest{Link: link})
	if err != nil {
		return err
	}
	v := joinedView{networkView: networkOf(resp.GetNetwork()), Added: resp.GetAdded()}
	if a.flags.json {
		return a.emit(v)
	}
	if a.flags.quiet {
		return nil
	}
	if v.Added {
		a.done("network.joined", "Network", a.bold(v.Name), "ID", shortNetwork(v.ID))
	} else {
		a.done("network.joined_before", "Network", a.bold(v.Name))
	}
	if s := a.nameLine(v.Username); s != "" {
		a.printf("%s\n", s)
	}
	a.hint(a.nameHint(v.Username))
	return nil
}

func (a *app) leaveNetwork(ctx context.Context, which string) error {
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	if _, err := node.LeaveNetwork(ctx, &pb.LeaveNetworkRequest{Network: which}); err != nil {
		return err
	}
	if a.flags.json {
		return a.emit(struct {
			Network string `json:"network"`
			Joined  bool   `json:"joined"`
		}{plain(which), false})
	}
	a.done("network.left", "Network", a.bold(plain(which)))
	return nil
}

// networks asks the node which networks are joined.
func (a *app) networks(ctx context.Context) ([]networkView, error) {
	node, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer node.Close()
	resp, err := node.ListNetworks(ctx, &pb.ListNetworksRequest{})
	if err != nil {
		return nil, err
	}
	return networksOf(resp.GetNetworks()), nil
}

func (a *app) networkList(ctx context.Context) error {
	all, err := a.networks(ctx)
	if err != nil {
		return err
	}
	t := a.newTable("column.network", "column.id", "column.state", "column.bootstraps", "column.peers", "column.username")
	for _, v := range all {
		if a.flags.json {
			if err := a.emit(v); err != nil {
				return err
			}
			continue
		}
		t.row(v.Name, shortNetwork(v.ID), a.onlineWord(v.Online), strconv.Itoa(v.connected())+"/"+strconv.Itoa(len(v.Bootstraps)),
			strconv.Itoa(int(v.DHTPeers)), a.shortName(v.Username))
	}
	if a.flags.json {
		return nil
	}
	if len(t.rows) == 0 {
		a.note("network.none")
		return nil
	}
	t.print(a.out)
	return nil
}

// networkStatus shows one network, or all for an empty name, with each of its bootstrap nodes.
func (a *app) networkStatus(ctx context.Context, which string) error {
	all, err := a.networks(ctx)
	if err != nil {
		return err
	}
	if which != "" {
		v, err := pickNetwork(all, which)
		if err != nil {
			return err
		}
		all = []networkView{v}
	}
	for i, v := range all {
		if a.flags.json {
			if err := a.emit(v); err != nil {
				return err
			}
			continue
		}
		if i > 0 {
			a.printf("\n")
		}
		a.showNetwork(v, time.Now())
	}
	if len(all) == 0 && !a.flags.json {
		a.note("network.none")
	}
	return nil
}

// pickNetwork finds the network that a name, an ID or the beginning of one means.
func pickNetwork(all []networkView, which string) (networkView, error) {
	var found []networkView
	for _, v := range all {
		if v.ID == which {
			return v, nil
		}
		if v.Name == which || strings.HasPrefix(v.ID, which) {
			found = append(found, v)
		}
	}
	switch len(found) {
	case 0:
		return networkView{}, fail(control.NotFound, "error.no_such_network", "Network", plain(which)).withHint("hint.networks")
	case 1:
		return found[0], nil
	}
	return networkView{}, fail(control.Ambiguous, "error.many_networks", "Network", plain(which)).withHint("hint.networks")
}

func (a *app) showNetwork(v networkView, now time.Time) {
	published := localStamp(v.Published, now)
	if published == "" {
		published = a.t("network.not_published")
	}
	a.fields(a.out,
		a.t("field.network"), a.bold(v.Name)+"  "+a.onlineWord(v.Online),
		a.t("field.id"), v.ID,
		a.t("field.joined"), localStamp(v.Joined, now),
		a.t("field.username"), a.nameStanding(v.Username),
		a.t("field.published"), published,
		a.t("field.dht"), a.tn("network.dht_peers", int(v.DHTPeers)),
		a.t("field.link"), v.Link,
	)
	if len(v.Bootstraps) > 0 {
		a.printf("\n")
		t := a.newTable("column.bootstrap", "column.state", "column.rtt", "column.serves", "column.address")
		for _, b := range v.Bootstraps {
			state := a.t("bootstrap.connected")
			switch {
			case b.Reserved:
				state = a.t("bootstrap.reserved")
			case !b.Connected && b.Error != "":
				state = a.t("bootstrap.away") + " (" + b.Error + ")"
			case !b.Connected:
				state = a.t("bootstrap.away")
			}
			rtt := ""
			if b.Connected {
				rtt = duration(time.Duration(b.RTTMicros) * time.Microsecond)
			}
			t.row(shortDevice(b.Device), state, rtt, strings.Join(b.Serves, ","), strings.Join(b.Addresses, " "))
		}
		t.print(a.out)
	}
	a.hint(a.nameHint(v.Username))
}

func (a *app) onlineWord(on bool) string {
	if on {
		return a.green(a.t("word.online"))
	}
	return a.yellow(a.t("word.offline"))
}

// States of the own username on a network.
const (
	nameNone = "none"
	nameLost = "lost"
)

// shortName is the username on a network for a cell of a table.
func (a *app) shortName(n networkNameView) string {
	if n.Username == "" || n.State == "" || n.State == nameNone {
		return "–"
	}
	return n.Username + " (" + a.word("name", n.State) + ")"
}

// nameStanding tells how the own username stands on a network.
func (a *app) nameStanding(n networkNameView) string {
	if n.Username == "" || n.State == "" || n.State == nameNone {
		return a.t("name.none")
	}
	s := a.word("name", n.State)
	switch {
	case n.State == nameLost && n.Holder != "":
		s = a.t("name.held_by", "State", s, "Account", shortAccount(n.Holder))
	case n.Since != "":
		s = a.t("name.since", "State", s, "Time", localStamp(n.Since, time.Now()))
	}
	return a.t("name.standing", "Username", n.Username, "Standing", s)
}

// nameLine is a sentence about the own username on a network; "" if there is nothing to tell.
func (a *app) nameLine(n networkNameView) string {
	if n.Username == "" || n.State == "" || n.State == nameNone {
		return ""
	}
	return a.t("name.line", "Network", n.Network, "Standing", a.nameStanding(n))
}

// nameHint is what to do about the own username on a network; "" if nothing.
func (a *app) nameHint(n networkNameView) string { return a.stateHint(n.State) }

func (a *app) stateHint(state string) string { return a.tOptional("hint." + eventName + "_" + state) }

// shortNetwork is the beginning of a network's ID, which commands take.
func shortNetwork(id string) string { return cut(id, 8) }

// shortDevice is the end of a device's ID: all begin alike.
func shortDevice(id string) string {
	const shown = 8
	if len(id) <= shown {
		return id
	}
	return "…" + id[len(id)-shown:]
}

func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "…"
}

// completeNetwork offers the networks that are joined.
func (a *app) completeNetwork(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(c, args, func(node *control.Client) (out []string, err error) {
		resp, err := node.ListNetworks(c.Context(), &pb.ListNetworksRequest{})
		for _, v := range networksOf(resp.GetNetworks()) {
			out = append(out, v.Name+"\t"+shortNetwork(v.ID))
		}
		return out, err
	})
}

// anyNetwork reports whether a network is joined, as far as the node says; it chooses between two hints.
func (a *app) anyNetwork(ctx context.Context, node *control.Client) bool {
	resp, err := node.ListNetworks(ctx, &pb.ListNetworksRequest{})
	return err == nil && len(resp.GetNetworks()) > 0
}

func (a *app) searchCommand() *cobra.Command {
	var groups bool
	c := a.command(spec{
		use: "search NAME [--groups]", id: "search", min: 1, max: 1, example: "  hima search alice\n  hima search --groups hikers",
		run: func(ctx context.Context, args []string) error {
			if groups {
				return a.searchGroups(ctx, args[0])
			}
			return a.search(ctx, args[0])
		},
	})
	c.Flags().BoolVar(&groups, "groups", false, "flag.search.groups")
	return c
}

func (a *app) search(ctx context.Context, who string) error {
	username, err := a.username(who)
	if err != nil {
		return err
	}
	node, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	resp, err := node.Search(ctx, &pb.SearchRequest{Name: username})
	if err != nil {
		return err
	}
	for i, r := range resp.GetResults() {
		v := searchOf(r, resp.GetDisagreement())
		if a.flags.json {
			if err := a.emit(v); err != nil {
				return err
			}
			continue
		}
		if i > 0 {
			a.printf("\n")
		}
		a.showResult(v)
	}
	if resp.GetDisagreement() {
		a.warn(a.t("search.disagreement"))
	}
	for _, n := range resp.GetUnreachable() {
		a.warn(a.t("search.unreachable", "Network", name(n)))
	}
	if len(resp.GetResults()) > 0 {
		return nil
	}
	return a.nobody(ctx, node, username, len(resp.GetUnreachable()) > 0)
}

// showResult shows one account that a name may mean, with its whole ID: that is what decides.
func (a *app) showResult(v searchView) {
	relation := a.word("relation", v.Relation)
	if v.Relation == "" || v.Relation == "none" {
		relation = ""
	}
	a.fields(a.out,
		a.t("field.username"), a.bold(v.Username),
		a.t("field.nickname"), v.Nickname,
		a.t("field.account"), v.Account,
		a.t("field.name_standing"), a.confirmation(v.Confirmed, v.Network, v.Since),
		a.t("field.found"), a.word("source", v.Source),
		a.t("field.relation"), relation,
	)
}

// confirmation says how much a name that leads to an account is worth.
func (a *app) confirmation(confirmed bool, network, since string) string {
	switch {
	case confirmed && since != "":
		return a.t("name.confirmed_since", "Network", network, "Time", localStamp(since, time.Now()))
	case confirmed:
		return a.t("name.confirmed_on", "Network", network)
	case network != "":
		return a.t("name.unconfirmed_on", "Network", network)
	}
	return a.t("name.unconfirmed")
}

// nobody is the error when a name leads to nobody; what to do next depends on who could be asked.
func (a *app) nobody(ctx context.Context, node *control.Client, who string, unreachable bool) error {
	f := fail(control.NotFound, "error.nobody", "Name", plain(who))
	switch {
	case unreachable:
		return f.withHint("hint.nobody_unreachable")
	case a.anyNetwork(ctx, node):
		return f.withHint("hint.nobody")
	}
	return f.withHint("hint.nobody_no_network")
}

// explainFind gives a look-up that found nobody its next step. An invite link or ID that does not read stays as it is.
func (a *app) explainFind(ctx context.Context, node *control.Client, who string, err error) error {
	var f *failure
	switch {
	case errors.Is(err, control.NotFound):
		return a.nobody(ctx, node, who, false)
	case errors.Is(err, control.Unavailable) && a.anyNetwork(ctx, node):
		f = fail(control.Unavailable, "error.networks_away", "Name", plain(who)).withHint("hint.nobody_unreachable")
		return f
	}
	return err
}
