package messenger

import (
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"time"

	"hima/identity"
	"hima/internal/delivery"
	"hima/internal/feed"
)

// fakeNetwork is a network with its register, shared by the people of a test.
type fakeNetwork struct {
	link  identity.NetworkLink
	names map[string][]FoundName // who has a name first, then others who claim it
	down  bool                   // nobody who decides answers
	split bool                   // those who answer contradict each other
}

func newNetwork(name string) *fakeNetwork {
	d := identity.DeviceKeyFromSeed(sha256.Sum256([]byte("bootstrap " + name))).ID()
	return &fakeNetwork{
		names: make(map[string][]FoundName),
		link: identity.NetworkLink{Name: name, Founder: d, Bootstraps: []identity.InviteDevice{
			{Device: d, Addrs: []string{"/ip4/192.0.2.1/tcp/4001", "/ip4/192.0.2.1/udp/4001/quic-v1", "/ip6/2001:db8::1/tcp/4001"}},
		}},
	}
}

// stamp gives a name to an account; claim adds somebody who says so without a stamp.
func (n *fakeNetwork) stamp(name string, a identity.AccountID) {
	n.names[name] = append([]FoundName{n.found(name, a, true)}, n.names[name]...)
}

func (n *fakeNetwork) claim(name string, a identity.AccountID) {
	n.names[name] = append(n.names[name], n.found(name, a, false))
}

func (n *fakeNetwork) found(name string, a identity.AccountID, confirmed bool) FoundName {
	return FoundName{Account: a, Name: name, Network: n.link.ID(), NetworkName: n.link.Name, Confirmed: confirmed, Since: testStart}
}

// fakeNetworks is one person's view.
type fakeNetworks struct {
	self    identity.AccountID
	world   map[identity.NetworkID]*fakeNetwork // all that could be joined
	joined  []*fakeNetwork
	states  map[identity.NetworkID]NameState
	fetched []identity.AccountID
	late    *fakeNetwork // where somebody takes the name between question and claim
	seed    bool         // this device may sign claims
	hang    bool         // nobody answers before the time is over
}

func newFakeNetworks(self identity.AccountID) *fakeNetworks {
	return &fakeNetworks{
		self: self, world: make(map[identity.NetworkID]*fakeNetwork), seed: true,
		states: make(map[identity.NetworkID]NameState),
	}
}

func (f *fakeNetworks) add(n *fakeNetwork) {
	f.joined = append(f.joined, n)
	f.world[n.link.ID()] = n
	f.states[n.link.ID()] = NameState{Network: n.link.ID(), NetworkName: n.link.Name, State: NameNone}
}

func (f *fakeNetworks) SearchName(ctx context.Context, name string) (NameSearch, error) {
	if f.hang {
		return NameSearch{}, errors.New("no answer")
	}
	var out NameSearch
	for _, n := range f.joined {
		if n.down {
			out.Unreachable = append(out.Unreachable, n.link.Name)
			continue
		}
		out.People = append(out.People, n.names[name]...)
		out.Disagreement = out.Disagreement || n.split
	}
	return out, nil
}

func (f *fakeNetworks) Join(_ context.Context, link identity.NetworkLink) (bool, error) {
	n := f.world[link.ID()]
	if n == nil {
		return false, errors.New("no such network")
	}
	if slices.Contains(f.joined, n) {
		return false, nil
	}
	f.add(n)
	return true, nil
}

func (f *fakeNetworks) Links() (out []identity.NetworkLink) {
	for _, n := range f.joined {
		out = append(out, n.link)
	}
	return out
}

func (f *fakeNetworks) NameStates() (out []NameState) {
	for _, n := range f.joined {
		out = append(out, f.states[n.link.ID()])
	}
	return out
}

func (f *fakeNetworks) taken(n *fakeNetwork, name string) error {
	for _, p := range n.names[name] {
		if p.Confirmed && p.Account != f.self {
			return &NameTaken{NetworkName: n.link.Name, Name: name, Holder: p.Account, Since: p.Since}
		}
	}
	return nil
}

func (f *fakeNetworks) CheckName(_ context.Context, id identity.NetworkID, name string) error {
	if n := f.world[id]; n.down {
		return errors.New("nobody can say now")
	} else if n != f.late {
		return f.taken(n, name)
	}
	return nil
}

func (f *fakeNetworks) ClaimName(_ context.Context, id identity.NetworkID, name string) (NameState, error) {
	n := f.world[id]
	s := NameState{Network: id, NetworkName: n.link.Name, Name: name, State: NamePending}
	if !f.seed {
		return NameState{}, ErrNoSeed
	}
	if !n.down {
		if err := f.taken(n, name); err != nil {
			return NameState{}, err
		}
		n.stamp(name, f.self)
		s.State, s.Since = NameConfirmed, testStart
	}
	f.states[id] = s
	return s, nil
}

func (f *fakeNetworks) Fetch(a identity.AccountID) { f.fetched = append(f.fetched, a) }

// fakeMail keeps what the messenger hands to the mailboxes.
type fakeMail struct {
	custody   map[identity.DeviceID][]delivery.Custody
	grants    map[identity.AccountID]uint64
	snapshots [][]byte
	err       error
}

func newFakeMail() *fakeMail {
	return &fakeMail{custody: make(map[identity.DeviceID][]delivery.Custody), grants: make(map[identity.AccountID]uint64)}
}

func (f *fakeMail) Custody(d identity.DeviceID, _ feed.FeedID, _ uint64) ([]delivery.Custody, error) {
	return f.custody[d], nil
}

func (f *fakeMail) SetGrant(_ context.Context, a identity.AccountID, quota uint64) (grant [16]byte, err error) {
	if f.err != nil {
		return grant, f.err
	}
	if quota == 0 {
		delete(f.grants, a)
		return grant, nil
	}
	f.grants[a] = quota
	copy(grant[:], a[:])
	return grant, nil
}

func (f *fakeMail) PutSnapshot(_ context.Context, plain []byte) error {
	if f.err == nil {
		f.snapshots = append(f.snapshots, plain)
	}
	return f.err
}

// box is a node that keeps mail.
func box(name string) identity.DeviceID {
	return identity.DeviceKeyFromSeed(sha256.Sum256([]byte("box " + name))).ID()
}

// held says what a mailbox signed for.
func (p *person) held(o *person, from, last uint64) delivery.Held {
	return delivery.Held{
		Peer: o.peer(), Feed: p.feeds.OwnFeed(feed.DirectConversation(p.account, o.account), feed.Chat),
		From: from, Last: last, Holder: box("one"), Until: p.clock.Add(30 * 24 * time.Hour),
	}
}
