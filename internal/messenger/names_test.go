package messenger

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"hima/identity"
)

// onNet puts people on one network, where everybody has their name.
func onNet(people ...*person) *fakeNetwork {
	n := newNetwork("home")
	for _, p := range people {
		p.networks.add(n)
		n.stamp(p.name, p.account)
		p.networks.states[n.link.ID()] = NameState{Network: n.link.ID(), NetworkName: "home", Name: p.name, State: NameConfirmed}
	}
	return n
}

func candidates(t *testing.T, err error) (out []string) {
	t.Helper()
	refusal, ok := errors.AsType[*Error](err)
	require.True(t, ok, "%v", err)
	for _, c := range refusal.Candidates {
		out = append(out, c.Account.String())
	}
	return out
}

func TestFindAndAddByNameOfANetwork(t *testing.T) {
	ctx := context.Background()
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	onNet(a, b)
	f, err := a.m.Find(ctx, "BOB")
	require.NoError(t, err)
	require.Equal(t, Found{
		Account: b.account, Username: "bob", Source: SourceNetwork, Relation: RelationNone, Confirmed: true, Network: "home", Since: testStart,
	}, f)
	c, _, err := a.m.AddContact(ctx, AddContact{Who: "user:bob", Expect: f.Account})
	require.NoError(t, err)
	require.Equal(t, b.account, c.Account)
	require.Equal(t, "bob", c.Username)
	require.Equal(t, []identity.AccountID{b.account}, a.networks.fetched, "where they are is asked for at once")
	f, err = a.m.Find(ctx, "bob")
	require.NoError(t, err)
	require.Equal(t, SourceContact, f.Source)
	require.True(t, f.Confirmed)
	_, err = a.m.Find(ctx, "nobody")
	require.ErrorIs(t, err, ErrNotFound)
}

// Whoever takes over a name that a contact had gets nothing that was meant for the contact.
func TestANameNeverRedirectsAContact(t *testing.T) {
	ctx := context.Background()
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	thief := newPerson(t, "mallory")
	n := onNet(a, b)
	_, _, err := a.m.AddContact(ctx, AddContact{Who: "bob", Expect: b.account})
	require.NoError(t, err)
	meet(t, a, b)
	_, err = b.m.Accept(ctx, a.id())
	require.NoError(t, err)
	meet(t, a, b)

	n.names["bob"] = nil
	n.stamp("bob", thief.account)
	msg, err := a.m.Send(ctx, SendInput{Who: "bob", Text: "secret"})
	require.NoError(t, err)
	require.Equal(t, b.account, msg.Peer, "the account is pinned, not the name")
	conv, err := a.m.Conversation(ctx, "bob")
	require.NoError(t, err)
	require.Equal(t, a.m.conversationID(b.account), conv)

	_, err = a.m.Find(ctx, "bob")
	require.ErrorIs(t, err, ErrAmbiguous)
	require.ElementsMatch(t, []string{b.id(), thief.id()}, candidates(t, err))
	_, _, err = a.m.AddContact(ctx, AddContact{Who: "bob"})
	require.ErrorIs(t, err, ErrAmbiguous)
	list, err := a.m.Contacts(ctx, true)
	require.NoError(t, err)
	require.Len(t, list, 1, "nothing was noted about the thief")
}

// The account that the user looked at and the one that is added are the same, or nothing happens.
func TestTheNameChangesHandsBetweenLookAndAdd(t *testing.T) {
	ctx := context.Background()
	a, b, thief := newPerson(t, "alice"), newPerson(t, "bob"), newPerson(t, "mallory")
	n := onNet(a, b)
	f, err := a.m.Find(ctx, "bob")
	require.NoError(t, err)
	n.names["bob"] = nil
	n.stamp("bob", thief.account)
	_, _, err = a.m.AddContact(ctx, AddContact{Who: "bob", Expect: f.Account})
	require.ErrorIs(t, err, ErrConflict)
	list, err := a.m.Contacts(ctx, true)
	require.NoError(t, err)
	require.Empty(t, list)
}

func TestDisagreementIsShown(t *testing.T) {
	ctx := context.Background()
	a, b, liar := newPerson(t, "alice"), newPerson(t, "bob"), newPerson(t, "mallory")
	n := onNet(a, b)
	n.claim("bob", liar.account)
	f, err := a.m.Find(ctx, "bob")
	require.NoError(t, err)
	require.Equal(t, b.account, f.Account, "a stamp goes before a claim")
	require.Empty(t, f.Others)

	n.split = true
	f, err = a.m.Find(ctx, "bob")
	require.NoError(t, err)
	require.True(t, f.Disagreement)
	require.Equal(t, b.account, f.Account)
	require.Len(t, f.Others, 1)
	require.Equal(t, liar.account, f.Others[0].Account)
	_, _, err = a.m.AddContact(ctx, AddContact{Who: "bob"})
	require.ErrorIs(t, err, ErrAmbiguous, "nobody decides silently")
	require.ElementsMatch(t, []string{b.id(), liar.id()}, candidates(t, err))
	_, _, err = a.m.AddContact(ctx, AddContact{Who: "bob", Expect: b.account})
	require.NoError(t, err, "the user looked at the ID")

	// Claims without a stamp: all of them, and none is chosen.
	c := newPerson(t, "carol")
	n.claim("dora", c.account)
	f, err = a.m.Find(ctx, "dora")
	require.NoError(t, err)
	require.False(t, f.Confirmed)
	n.claim("dora", liar.account)
	_, err = a.m.Find(ctx, "dora")
	require.ErrorIs(t, err, ErrAmbiguous)
	require.Len(t, candidates(t, err), 2)
}

func TestTwoNetworksAndTheLanMayNameDifferentPeople(t *testing.T) {
	ctx := context.Background()
	a, b, c := newPerson(t, "alice"), newPerson(t, "bob"), newPerson(t, "carol")
	one, two := newNetwork("one"), newNetwork("two")
	a.networks.add(one)
	a.networks.add(two)
	one.stamp("sam", b.account)
	two.stamp("sam", b.account)
	f, err := a.m.Find(ctx, "sam")
	require.NoError(t, err)
	require.Equal(t, b.account, f.Account)
	two.names["sam"] = nil
	two.stamp("sam", c.account)
	_, err = a.m.Find(ctx, "sam")
	require.ErrorIs(t, err, ErrAmbiguous)

	two.names["sam"] = nil
	a.people.nearby = []Person{{Account: c.account, Device: c.device, Username: "sam"}}
	_, err = a.m.Find(ctx, "sam")
	require.ErrorIs(t, err, ErrAmbiguous, "a LAN name and a stamped one are told apart by ID alone")

	// What cannot be asked is said, and does not stand in the way of what is known.
	a.people.nearby = nil
	one.down, two.down = true, true
	_, err = a.m.Find(ctx, "sam")
	require.ErrorIs(t, err, ErrUnavailable)
	require.Contains(t, err.Error(), "one, two")
	a.networks.hang = true
	_, err = a.m.Find(ctx, "sam")
	require.ErrorIs(t, err, ErrUnavailable)
	f, err = a.m.Find(ctx, b.id())
	require.NoError(t, err)
	require.Equal(t, SourceID, f.Source)
}

func TestSearchMergesAllPlaces(t *testing.T) {
	ctx := context.Background()
	a, b, c := newPerson(t, "alice"), newPerson(t, "bob"), newPerson(t, "carol")
	stranger := newPerson(t, "dave")
	n := onNet(a)
	a.add(b)
	_, err := a.m.Remark(ctx, b.id(), "sam")
	require.NoError(t, err)
	n.stamp("sam", c.account)
	n.claim("sam", stranger.account)
	a.people.nearby = []Person{
		{Account: stranger.account, Device: stranger.device, Username: "sam", Nickname: "Sam"},
		{Account: c.account, Device: c.device, Username: "sam"},
	}
	down := newNetwork("away")
	down.down = true
	a.networks.add(down)
	got, err := a.m.Search(ctx, "sam")
	require.NoError(t, err)
	require.Equal(t, []string{"away"}, got.Unreachable)
	require.Equal(t, []SearchResult{
		{Account: b.account, Source: SourceContact, Relation: RelationAsked},
		{Account: stranger.account, Username: "sam", Nickname: "Sam", Source: SourceNearby, Network: "home", Since: testStart, Relation: RelationNone},
		{Account: c.account, Username: "sam", Source: SourceNetwork, Network: "home", Confirmed: true, Since: testStart, Relation: RelationNone},
	}, got.Results)
	got, err = a.m.Search(ctx, "alice")
	require.NoError(t, err)
	require.Equal(t, RelationSelf, got.Results[0].Relation)
	require.True(t, got.Results[0].Confirmed)
	got, err = a.m.Search(ctx, "no such name!")
	require.NoError(t, err)
	require.Empty(t, got.Results)
	_, err = a.m.Search(ctx, " ")
	require.ErrorIs(t, err, ErrInvalid)
}

func TestTakenUsernameChangesNothing(t *testing.T) {
	ctx := context.Background()
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	one, two := newNetwork("one"), newNetwork("two")
	for _, n := range []*fakeNetwork{one, two} {
		a.networks.add(n)
	}
	name := "ally"
	two.stamp(name, b.account)
	_, err := a.m.SetProfile(ctx, ProfileChange{Username: &name})
	require.ErrorIs(t, err, ErrExists)
	require.Contains(t, err.Error(), b.account.Short())
	require.Equal(t, []string{b.id()}, candidates(t, err))
	require.Empty(t, one.names[name], "nothing was claimed anywhere")
	p, err := a.m.Profile(ctx)
	require.NoError(t, err)
	require.Equal(t, "alice", p.Username)

	// Somebody takes it between question and claim: what was had before is claimed again.
	had := "alice"
	_, err = a.m.SetProfile(ctx, ProfileChange{Username: &had})
	require.NoError(t, err)
	a.networks.late = two
	_, err = a.m.SetProfile(ctx, ProfileChange{Username: &name})
	require.ErrorIs(t, err, ErrExists)
	for _, s := range a.networks.NameStates() {
		require.Equal(t, "alice", s.Name)
		require.Equal(t, NameConfirmed, s.State)
	}
	p, err = a.m.Profile(ctx)
	require.NoError(t, err)
	require.Equal(t, "alice", p.Username)
	require.Equal(t, a.networks.NameStates(), p.Names)
}

func TestUsernameIsPendingWhileTheNetworkIsAway(t *testing.T) {
	ctx := context.Background()
	a := newPerson(t, "alice")
	n := onNet(a)
	n.down = true
	name := "ally"
	p, err := a.m.SetProfile(ctx, ProfileChange{Username: &name})
	require.NoError(t, err)
	require.Equal(t, "ally", p.Username)
	require.Equal(t, NamePending, p.Names[0].State)
	a.networks.seed = false
	other := "alba"
	_, err = a.m.SetProfile(ctx, ProfileChange{Username: &other})
	require.ErrorIs(t, err, ErrUnavailable, "R17: only a device with the seed signs for the account")
}

func TestANewcomerWithOnlyALink(t *testing.T) {
	ctx := context.Background()
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	n, other := onNet(a), newNetwork("other")
	a.networks.add(other)
	third := newNetwork("third")
	a.networks.add(third)
	inv, err := a.m.CreateInvite(ctx)
	require.NoError(t, err)
	in, err := identity.ParseInvite(inv.Link)
	require.NoError(t, err)
	require.Len(t, in.Networks, identity.MaxInviteNetworks)
	require.Equal(t, n.link.ID(), in.Networks[0].ID())
	require.Len(t, in.Networks[0].Bootstraps[0].Addrs, 2)

	b.networks.world[n.link.ID()], b.networks.world[other.link.ID()] = n, other
	f, err := b.m.Find(ctx, inv.Link)
	require.NoError(t, err)
	require.Equal(t, []string{"home", "other"}, f.Networks)
	require.Empty(t, b.networks.joined, "a look changes nothing")
	var joined []string
	note := func(network string) { joined = append(joined, network) }
	_, _, err = b.m.AddContact(ctx, AddContact{Who: inv.Link, Joined: note})
	require.NoError(t, err)
	require.Equal(t, []string{"home", "other"}, joined)
	require.Equal(t, []identity.AccountID{a.account}, b.networks.fetched)
	_, _, err = b.m.AddContact(ctx, AddContact{Who: inv.Link, Joined: note})
	require.ErrorIs(t, err, ErrExists)
	require.Len(t, joined, 2, "once")
}

// An invite link must not add bootstrap nodes, whose keys stamp names, to a network that was joined already, and none is
// joined for somebody blocked or for an account that was not the one confirmed.
func TestALinkMustNotMeddleWithJoinedNetworks(t *testing.T) {
	ctx := context.Background()
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	n := onNet(b)
	forged := n.link
	forged.Bootstraps = append(slices.Clone(forged.Bootstraps), identity.InviteDevice{Device: box("evil"), Addrs: []string{"/ip4/192.0.2.66/tcp/1"}})
	fresh := newNetwork("fresh")
	b.networks.world[fresh.link.ID()] = fresh
	link := identity.Invite{Account: a.account, Networks: []identity.NetworkLink{forged, fresh.link}}.String()
	_, _, err := b.m.AddContact(ctx, AddContact{Who: link, Expect: b.account})
	require.ErrorIs(t, err, ErrConflict)
	require.Len(t, b.networks.joined, 1)
	_, err = b.m.Block(ctx, a.id())
	require.Error(t, err)
	b.add(a)
	_, err = b.m.Block(ctx, a.id())
	require.NoError(t, err)
	_, _, err = b.m.AddContact(ctx, AddContact{Who: link})
	require.ErrorIs(t, err, ErrDenied)
	require.Len(t, b.networks.joined, 1)
	_, err = b.m.Unblock(ctx, a.id())
	require.NoError(t, err)
	_, err = b.m.Remove(ctx, a.id())
	require.NoError(t, err)
	_, _, err = b.m.AddContact(ctx, AddContact{Who: link})
	require.NoError(t, err)
	require.Len(t, b.networks.joined, 2)
	require.Equal(t, n.link, b.networks.joined[0].link)
}

// What a network is called comes with a link from others, and must not reach a terminal as it is.
func TestNetworkNamesAreNeutralised(t *testing.T) {
	ctx := context.Background()
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	n := newNetwork("ho\x1b[31mme\n")
	a.networks.world[n.link.ID()] = n
	n.stamp("bob", b.account)
	link := identity.Invite{Account: b.account, Networks: []identity.NetworkLink{n.link}}.String()
	var seen []string
	f, err := a.m.Find(ctx, link)
	require.NoError(t, err)
	seen = append(seen, f.Networks...)
	_, _, err = a.m.AddContact(ctx, AddContact{Who: link, Joined: func(s string) { seen = append(seen, s) }})
	require.NoError(t, err)
	f, err = a.m.Find(ctx, "bob")
	require.NoError(t, err)
	seen = append(seen, f.Network)
	name := "bob"
	_, err = a.m.SetProfile(ctx, ProfileChange{Username: &name})
	require.ErrorIs(t, err, ErrExists)
	seen = append(seen, err.Error())
	p, err := a.m.Profile(ctx)
	require.NoError(t, err)
	seen = append(seen, p.Names[0].NetworkName)
	held, err := a.m.MailboxName(n.link.Founder)
	require.NoError(t, err)
	seen = append(seen, held)
	require.NoError(t, a.m.NetworkChanged(ctx, n.link.Name, "online"))
	list := a.events(0)
	seen = append(seen, list[len(list)-1].Network)
	n.down = true
	_, err = a.m.Find(ctx, "nobody")
	require.ErrorIs(t, err, ErrUnavailable)
	seen = append(seen, err.Error())
	require.Len(t, seen, 8)
	for _, s := range seen {
		require.NotContains(t, s, "\x1b")
		require.NotContains(t, s, "\n")
		require.Contains(t, s, "ho")
	}
}
