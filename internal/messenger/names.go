package messenger

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/text"
	"hima/storage"
)

// namesTimeout bounds what a user waits for networks that do not answer.
const namesTimeout = 15 * time.Second

// onNetworks asks the joined networks for a username. Failing networks are part of the answer: what is known here must
// be found without them.
func (m *Messenger) onNetworks(ctx context.Context, name string) (NameSearch, error) {
	links := m.env.networks.Links()
	if name == "" || len(links) == 0 {
		return NameSearch{}, nil
	}
	bounded, cancel := context.WithTimeout(ctx, namesTimeout)
	defer cancel()
	found, err := m.env.networks.SearchName(bounded, name)
	if ctx.Err() != nil {
		return NameSearch{}, ctx.Err()
	}
	if err != nil {
		m.env.log.Info("looking a name up on the networks", "error", err)
		found = NameSearch{}
		for _, l := range links {
			found.Unreachable = append(found.Unreachable, l.Name)
		}
	}
	for i := range found.Unreachable {
		found.Unreachable[i] = networkName(found.Unreachable[i])
	}
	for i := range found.People {
		found.People[i].NetworkName = networkName(found.People[i].NetworkName)
	}
	found.People = slices.DeleteFunc(found.People, func(p FoundName) bool { return p.Name != name || p.Account.IsZero() })
	return found, nil
}

// networkName neutralises what a network is called: its link comes from others.
func networkName(s string) string { return text.OneLine(s, maxField) }

// nameStates is how the own username stands on the networks.
func (m *Messenger) nameStates() []NameState {
	list := m.env.networks.NameStates()
	for i := range list {
		list[i].NetworkName = networkName(list[i].NetworkName)
	}
	return list
}

// bearers picks whom the networks mean by a name: of each network the one with the stamp, or everybody who claims it
// where nobody has one (R19). others are those passed over.
func bearers(people []FoundName) (best, others []FoundName) {
	stamped := make(map[identity.NetworkID]bool)
	for _, p := range people {
		if stamped[p.Network] {
			others = append(others, p)
			continue
		}
		stamped[p.Network] = p.Confirmed
		best = append(best, p)
	}
	return best, others
}

// addFound adds people of networks to those found otherwise. One account is one person, however often it was found.
func addFound(found []target, people []FoundName) []target {
	for _, p := range people {
		i := slices.IndexFunc(found, func(t target) bool { return t.account == p.Account })
		if i < 0 {
			i = len(found)
			found = append(found, target{account: p.Account, username: p.Name, source: SourceNetwork})
		}
		t := &found[i]
		if t.username == "" || t.source == SourceNearby {
			t.username = p.Name
		}
		if t.source == SourceNearby && p.Confirmed {
			t.source = SourceNetwork // a name on the LAN is nobody's proof, a stamp is
		}
		// A stamp says more than a claim, also when another network was asked first.
		if t.network == "" || p.Confirmed && !t.confirmed {
			t.network, t.confirmed, t.since = p.NetworkName, p.Confirmed, p.Since
		}
	}
	return found
}

// Search lists everybody who fits a name: on the networks, among those known, and on this LAN. It changes nothing.
func (m *Messenger) Search(ctx context.Context, name string) (SearchResults, error) {
	var out SearchResults
	if strings.TrimSpace(name) == "" {
		return out, refuse(ErrInvalid, "there is no name to look for", "")
	}
	q := newMatcher(name)
	var found []target
	if q.account(m.env.account) || q.name(m.settings.username()) {
		found = append(found, target{account: m.env.account, username: m.settings.username(), source: SourceContact})
	}
	known, err := m.who.acquainted(&q)
	if err != nil {
		return out, err
	}
	found = append(found, known...)
	for _, t := range m.who.nearby(&q) {
		if !slices.ContainsFunc(found, func(f target) bool { return f.account == t.account }) {
			found = append(found, t)
		}
	}
	ns, err := m.onNetworks(ctx, q.username)
	if err != nil {
		return out, err
	}
	found = addFound(found, ns.People)
	out.Disagreement, out.Unreachable = ns.Disagreement, ns.Unreachable
	err = m.env.db.View(func(tx *storage.Tx) error {
		for _, t := range found {
			r := SearchResult{
				Account: t.account, Username: t.username, Nickname: t.nickname, Confirmed: t.confirmed, Since: t.since,
				Source: t.source, Network: t.network, Relation: RelationSelf,
			}
			if t.account != m.env.account {
				row, _, err := m.contacts.get(tx, t.account)
				if err != nil {
					return err
				}
				r.Relation = row.relation()
			}
			out.Results = append(out.Results, r)
		}
		return nil
	})
	return out, err
}

// claim takes a username on every joined network, before anything here says that we bear it. It is taken on all of them,
// or a refusal says who has it and nothing changed; a network that cannot be asked now is asked later. undo gives back
// what was had before.
func (m *Messenger) claim(ctx context.Context, name string) (undo func(), err error) {
	var had []NameState
	undo = func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), namesTimeout)
		defer cancel()
		for _, s := range had {
			if s.Name == "" {
				continue
			}
			if _, err := m.env.networks.ClaimName(ctx, s.Network, s.Name); err != nil {
				m.env.log.Warn("claiming the old name again", "network", s.NetworkName, "error", err)
			}
		}
	}
	bounded, cancel := context.WithTimeout(ctx, namesTimeout)
	defer cancel()
	wanted := slices.DeleteFunc(m.nameStates(), func(s NameState) bool {
		return s.Name == name && s.State != NameLost && s.State != NameNone
	})
	for _, s := range wanted {
		// Whoever cannot be asked says nothing against it.
		if err := m.env.networks.CheckName(bounded, s.Network, name); isTaken(err) {
			return undo, nameRefused(err)
		}
	}
	for _, s := range wanted {
		if _, err := m.env.networks.ClaimName(bounded, s.Network, name); err != nil {
			undo()
			return undo, nameRefused(err)
		}
		had = append(had, s)
	}
	return undo, ctx.Err()
}

func isTaken(err error) bool {
	_, taken := errors.AsType[*NameTaken](err)
	return taken
}

// nameRefused makes a refusal of what a network said to a claim.
func nameRefused(err error) error {
	if errors.Is(err, ErrNoSeed) {
		return refuse(ErrUnavailable, "this device cannot sign for the account", "change the username on the account's first device")
	}
	taken, ok := errors.AsType[*NameTaken](err)
	if !ok {
		return err
	}
	shown := *taken
	shown.NetworkName = networkName(shown.NetworkName)
	refusal := refuse(ErrExists, shown.Error(), "choose another username; nothing was changed")
	refusal.Candidates = []Candidate{{Account: taken.Holder, Username: taken.Name, Source: SourceNetwork}}
	return refusal
}

// NameChanged stores that the own username on a network changed its state.
func (m *Messenger) NameChanged(ctx context.Context, s NameState) error {
	rec := plain(EventName, s.Holder, feed.ConversationID{}, s.State)
	rec.network, rec.name = networkName(s.NetworkName), s.Name
	return m.env.update(ctx, func(tx *storage.Tx) error { return m.events.add(tx, rec) })
}

// NetworkChanged stores what became of a network: joined, left, online or offline.
func (m *Messenger) NetworkChanged(ctx context.Context, network, detail string) error {
	rec := plain(EventNetwork, identity.AccountID{}, feed.ConversationID{}, detail)
	rec.network = networkName(network)
	m.wake() // the snapshot names the networks
	return m.env.update(ctx, func(tx *storage.Tx) error { return m.events.add(tx, rec) })
}

// join joins the networks that an invite link names, so that a newcomer who has nothing else can find the inviter. A
// network that was joined already is left as it is: who wrote the link must not add keys that stamp names there.
func (m *Messenger) join(ctx context.Context, in identity.Invite, joined func(string)) {
	for _, l := range m.unjoined(in) {
		added, err := m.env.networks.Join(ctx, l)
		switch {
		case err != nil:
			// Addresses and the LAN may still do.
			m.env.log.Warn("joining the network of an invite link", "network", l.Name, "error", err)
		case added && joined != nil:
			joined(networkName(l.Name))
		}
	}
}

func (m *Messenger) unjoined(in identity.Invite) []identity.NetworkLink {
	have := m.env.networks.Links()
	return slices.DeleteFunc(slices.Clone(in.Networks), func(l identity.NetworkLink) bool {
		return slices.ContainsFunc(have, func(h identity.NetworkLink) bool { return h.ID() == l.ID() })
	})
}

// inviteNetworks are the networks that an own invite link names. Of each bootstrap node two addresses go in: the link is
// to fit into a QR code.
func (m *Messenger) inviteNetworks() []identity.NetworkLink {
	links := m.env.networks.Links()
	var out []identity.NetworkLink
	for _, l := range links[:min(len(links), identity.MaxInviteNetworks)] {
		short := identity.NetworkLink{Name: l.Name, Founder: l.Founder}
		for _, b := range l.Bootstraps {
			short.Bootstraps = append(short.Bootstraps, identity.InviteDevice{Device: b.Device, Addrs: b.Addrs[:min(len(b.Addrs), 2)]})
		}
		out = append(out, short)
	}
	return out
}
