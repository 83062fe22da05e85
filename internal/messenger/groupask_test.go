package messenger

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/groups"
	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// A name may be a person's or a group's; where it is both, neither is meant silently.
func TestNamesOfGroups(t *testing.T) {
	a, b := friends(t)
	one := groups.ID(sha256.Sum256([]byte("one")))
	two := groups.ID(sha256.Sum256([]byte("two")))
	past := groups.ID(sha256.Sum256([]byte("past")))
	a.in(one, "Hikers", 0, a)
	talk := func(name string) (feed.ConversationID, error) { return a.m.Conversation(t.Context(), name) }
	found := func(id feed.ConversationID, names ...string) {
		t.Helper()
		for _, name := range names {
			got, err := talk(name)
			require.NoError(t, err, name)
			require.Equal(t, id, got, name)
		}
	}
	news := func(id groups.ID) {
		require.NoError(t, a.db.Update(t.Context(), func(tx *storage.Tx) error {
			return a.m.GroupNews(tx, groups.News{Group: id, Kind: groups.NewsSet})
		}))
	}
	found(one, "Hikers", "group:hikers", " hikers ", one.String(), one.String()[:6], "group:"+one.String()[:6])
	direct := feed.DirectConversation(a.account, b.account)
	found(direct, "bob", "user:bob", b.id(), b.id()[:12])
	for _, name := range []string{"nobody", "group:nobody", "user:hikers"} {
		_, err := talk(name)
		require.ErrorIs(t, err, ErrNotFound, name)
	}
	for _, name := range []string{"", "  ", "group:", "hima1x"} {
		_, err := talk(name)
		require.ErrorIs(t, err, ErrInvalid, name)
		_, err = a.m.Find(t.Context(), name)
		require.Error(t, err, name)
	}
	// A group of the past gives way to a present one of the same name.
	a.in(past, "Hikers", 0, a).info.State = groups.StateLeft
	news(past)
	found(one, "Hikers")
	found(past, past.String())
	a.in(two, "hikers", 0, a)
	news(two)
	_, err := talk("Hikers")
	var refusal *Error
	require.ErrorIs(t, err, ErrAmbiguous)
	require.ErrorAs(t, err, &refusal)
	require.Len(t, refusal.Candidates, 2)
	require.Equal(t, SourceGroup, refusal.Candidates[0].Source)
	// A person and a group.
	a.groups.groups[two].info.Name = "BOB"
	news(two)
	_, err = talk("bob")
	require.ErrorIs(t, err, ErrAmbiguous)
	require.ErrorAs(t, err, &refusal)
	require.Len(t, refusal.Candidates, 2)
	found(two, "group:bob")
	found(direct, "user:bob")
	// A remark that looks like the beginning of a group's ID is a name, and a name beats an ID.
	_, err = a.m.Remark(t.Context(), "user:bob", one.String()[:5])
	require.NoError(t, err)
	found(direct, one.String()[:5])
	found(one, one.String()[:7])
	// One that we are only invited to has no conversation, and is no unknown name either.
	a.groups.groups[one].info.State = groups.StateInvited
	news(one)
	for _, name := range []string{one.String(), "group:" + one.String()} {
		_, err = talk(name)
		require.ErrorIs(t, err, ErrNotMember)
	}
}

// Whoever was in keeps what was said then, also while they are invited again, apply, or were turned down.
func TestFormerMembersKeepTheirHistory(t *testing.T) {
	id, people := crowd(t, "alice", "bob")
	alice := people[0]
	alice.tells("Hikers", "remember this")
	g := alice.groups.groups[id]
	g.info.Joined = time.Now()
	for _, state := range []groups.State{groups.StateInvited, groups.StateApplied, groups.StateJoining, groups.StateRejected, groups.StateLeft} {
		g.info.State = state
		require.NoError(t, alice.db.Update(t.Context(), func(tx *storage.Tx) error {
			return alice.m.GroupNews(tx, groups.News{Group: id, Kind: groups.NewsSet})
		}))
		list := alice.history("Hikers")
		require.Equal(t, "remember this", list[len(list)-1].Text, state)
		conv, err := alice.m.Conversations(t.Context())
		require.NoError(t, err)
		require.Len(t, conv, 1, state)
		require.Equal(t, id, conv[0].ID)
	}
}

func TestActOnMembers(t *testing.T) {
	id, people := crowd(t, "alice", "bob", "carol")
	a, b, c := people[0], people[1], people[2]
	g := a.groups.groups[id]
	g.members[1].Nickname, g.members[2].Nickname = "Cook", "cook"
	_, err := a.m.ActOnGroup(t.Context(), "Hikers", GroupRemove, "cook")
	require.ErrorIs(t, err, ErrAmbiguous)
	g.members[2].Nickname = "driver"
	for _, who := range []string{"COOK", b.id(), b.id()[:12]} {
		_, err = a.m.ActOnGroup(t.Context(), "Hikers", GroupRemove, who)
		require.NoError(t, err)
		require.Equal(t, "remove "+b.account.Short(), a.groups.acts[len(a.groups.acts)-1])
	}
	_, err = a.m.ActOnGroup(t.Context(), "Hikers", GroupRemove, newPerson(t, "dave").id())
	require.ErrorIs(t, err, ErrNotFound, "not a member")
	for is, want := range map[error]error{
		groups.ErrNotAllowed: ErrNotAllowed, groups.ErrLastOwner: ErrLastOwner, groups.ErrConflict: ErrConflict, groups.ErrExists: ErrExists,
		groups.ErrExpired: ErrExpired, groups.ErrFull: ErrFull, groups.ErrAlone: ErrConflict, groups.ErrInvalid: ErrInvalid,
	} {
		a.groups.fail = is
		_, err = a.m.ActOnGroup(t.Context(), "Hikers", GroupLeave, "")
		require.ErrorIs(t, err, want)
	}
	a.groups.fail = groups.ErrInvalid
	_, err = a.m.ActOnGroup(t.Context(), "Hikers", GroupRemove, b.id())
	require.NotContains(t, err.Error(), "themselves")
	_, err = a.m.ActOnGroup(t.Context(), "Hikers", GroupRemove, a.id())
	require.ErrorContains(t, err, "themselves", "which is why, where any other is just not allowed")
	a.groups.fail = nil
	view, members, err := a.m.GroupMembers(t.Context(), "Hikers")
	require.NoError(t, err)
	require.Equal(t, 3, view.Size)
	require.Equal(t, []string{"alice", "Cook", "driver"}, []string{members[0].Name, members[1].Name, members[2].Name})
	require.Equal(t, RelationSelf, members[0].Relation)
	_, err = a.m.DecideApplication(t.Context(), "Hikers", c.id(), false, "no")
	require.ErrorIs(t, err, ErrNotFound)
	a.groups.applies = []groups.Application{{Group: id, Account: c.account, State: groups.Waiting}}
	// By the name that they give on the LAN, or that a network knows.
	town := newNetwork("town")
	town.stamp("caroline", c.account)
	a.networks.add(town)
	a.people.nearby = []Person{{Account: c.account, Username: "carol"}}
	for _, who := range []string{"carol", "caroline"} {
		_, err = a.m.DecideApplication(t.Context(), "Hikers", who, true, "")
		require.NoError(t, err, who)
		require.Equal(t, "decide "+c.account.Short(), a.groups.acts[len(a.groups.acts)-1])
	}
	g.members[2].Nickname = ""
	apps, err := a.m.GroupApplications(t.Context(), "")
	require.NoError(t, err)
	require.Equal(t, "carol", apps[0].Name)
	g.members[2].Nickname = "driver"
	d, err := a.m.DecideApplication(t.Context(), "Hikers", c.id(), false, "no\u202e")
	require.NoError(t, err)
	require.Equal(t, []string{"no", "driver"}, []string{d.Reason, d.Name})
	a.groups.fail = groups.ErrConflict
	_, err = a.m.DecideApplication(t.Context(), "Hikers", c.id(), true, "")
	require.ErrorIs(t, err, ErrConflict)
	require.ErrorContains(t, err, "does not wait")
	a.groups.decidedBy = b.account
	_, err = a.m.DecideApplication(t.Context(), "Hikers", c.id(), true, "")
	require.ErrorIs(t, err, ErrConflict)
	require.ErrorContains(t, err, `"Cook" turned this application down`)
	var refused *Error
	require.ErrorAs(t, err, &refused)
	require.Contains(t, refused.Hint, "apply again")
	a.groups.decidedBy = a.account
	_, err = a.m.DecideApplication(t.Context(), "Hikers", c.id(), true, "")
	require.ErrorContains(t, err, "you turned this application down")
}

func TestInviteToGroup(t *testing.T) {
	id, people := crowd(t, "alice")
	a := people[0]
	known, nearby, blocked := newPerson(t, "bob"), newPerson(t, "carol"), newPerson(t, "dave")
	a.add(known)
	a.people.nearby = []Person{{Account: nearby.account, Username: "carol"}}
	require.NoError(t, a.db.Update(t.Context(), func(tx *storage.Tx) error {
		return a.m.writeState(tx, blocked.account, func(s *pb.ContactState) { s.Blocked = true })
	}))
	_, list, err := a.m.InviteToGroup(t.Context(), "Hikers", []string{known.id(), "carol", blocked.id(), "nobody", "self"}, false)
	require.NoError(t, err)
	var states []string
	for _, v := range list {
		states = append(states, v.State)
	}
	require.Equal(t, []string{"invited", "invited", "failed", "failed", "already_member"}, states)
	require.ErrorIs(t, list[2].Err, ErrDenied)
	require.ErrorIs(t, list[3].Err, ErrNotFound)
	require.Equal(t, "carol", list[1].Name, "as they were found")
	require.Equal(t, []string{"invite " + known.account.Short(), "invite " + nearby.account.Short()}, a.groups.acts)
	a.groups.invited = []groups.Invitation{{Group: id, From: a.account, To: nearby.account, Outgoing: true, Name: "Hik\u202eers", State: groups.Waiting}}
	all, err := a.m.GroupInvitations(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"Hikers", "alice", "carol"}, []string{all[0].Group.Name, all[0].FromName, all[0].ToName})
	_, err = a.m.AnswerGroupInvitation(t.Context(), "Hikers", true)
	require.ErrorIs(t, err, ErrNotFound, "only what came in can be answered")
	other := groups.ID{0xab, 0xcd}
	a.groups.invited = append(a.groups.invited,
		groups.Invitation{Group: other, From: known.account, To: a.account, Name: "Climbers", State: groups.Waiting},
		groups.Invitation{Group: other, From: nearby.account, To: a.account, Name: "Climbers", State: groups.Waiting},
		groups.Invitation{Group: groups.ID{1}, From: nearby.account, To: a.account, Name: "climbers", State: groups.Declined})
	for _, name := range []string{"climbers", "abcd"} {
		g, err := a.m.AnswerGroupInvitation(t.Context(), name, true)
		require.NoError(t, err)
		require.Equal(t, other, g.ID)
	}
}

// cardOf makes the card of a public group of somebody.
func (p *person) cardOf(name string) identity.GroupCard {
	p.t.Helper()
	var genesis feed.Entry
	require.NoError(p.t, p.db.Update(p.t.Context(), func(tx *storage.Tx) error {
		nonce := sha256.Sum256([]byte(name + p.name))
		out, err := p.m.AppendGroup(tx, replica.Draft{Number: feed.Control, Kind: feed.KindGroupCreate, Genesis: nonce[:], Time: p.clock})
		genesis = out[0]
		return err
	}))
	card, err := identity.NewGroupCard(p.key, identity.GroupCard{
		Genesis: genesis.RawHeader(), Certificate: p.cert, Name: name, Size: 12, Join: "apply", Time: p.clock, Expires: p.clock.Add(time.Hour),
		Admins: []identity.GroupContact{{Account: p.account, Devices: []identity.InviteDevice{{Device: p.device, Addrs: []string{"/ip4/127.0.0.1/tcp/1"}}}}},
	})
	require.NoError(p.t, err)
	return card
}

// Where two claim to own a group, the admins of both are asked, by name and by the ID that a search showed.
func TestApplyToDisputedGroup(t *testing.T) {
	a, b, c := newPerson(t, "alice"), newPerson(t, "bob"), newPerson(t, "carol")
	first := b.cardOf("Hikers")
	second := first
	first.Join, second.Account, second.Admins = "invite", c.account, nil
	for _, name := range []string{"carol", "dave", "bob", "eve", "frank"} {
		second.Admins = append(second.Admins, identity.GroupContact{Account: newPerson(t, name).account})
	}
	asks := []identity.AccountID{b.account, c.account}
	if bytes.Compare(c.account[:], b.account[:]) < 0 {
		asks = []identity.AccountID{c.account, b.account}
	}
	asks = append(asks, second.Admins[1].Account, second.Admins[3].Account)
	for _, found := range [][]FoundCard{{{Card: first}, {Card: second}}, {{Card: second}, {Card: first}}} {
		a.m.env.findGroups = func(context.Context, string) ([]FoundCard, []string, error) { return found, nil, nil }
		for _, by := range []string{"hikers", first.Group.String()} {
			_, err := a.m.ApplyToGroup(t.Context(), by, "")
			require.NoError(t, err)
			target := a.groups.targets[len(a.groups.targets)-1]
			require.Equal(t, "apply", target.Join)
			got := make([]identity.AccountID, 0, len(target.Asks))
			for _, x := range target.Asks {
				got = append(got, x.Account)
			}
			require.Equal(t, asks, got)
			require.ElementsMatch(t, []identity.AccountID{b.account, c.account}, target.Owners[b.account], "who stands in both cards")
			require.Equal(t, []identity.AccountID{c.account}, target.Owners[c.account])
		}
	}
	// Two roads to one card are no dispute.
	a.m.env.findGroups = func(context.Context, string) ([]FoundCard, []string, error) {
		return []FoundCard{{Card: second, Network: "one"}, {Card: second, Network: "two"}}, nil, nil
	}
	_, err := a.m.ApplyToGroup(t.Context(), "hikers", "")
	require.NoError(t, err)
	require.Nil(t, a.groups.targets[len(a.groups.targets)-1].Owners)
}

// Who cannot ask is told why, and not what members are told.
func TestApplyRefused(t *testing.T) {
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	card := b.cardOf("Hikers")
	a.m.env.findGroups = func(context.Context, string) ([]FoundCard, []string, error) {
		return []FoundCard{{Card: card}}, nil, nil
	}
	refused := func(is, want error, words string) {
		t.Helper()
		a.groups.fail = is
		_, err := a.m.ApplyToGroup(t.Context(), "Hikers", "")
		require.ErrorIs(t, err, want)
		require.ErrorContains(t, err, words)
	}
	refused(groups.ErrNotAllowed, ErrNotAllowed, "takes only those it invites")
	refused(groups.ErrExists, ErrExists, "you are in this group already")
	refused(groups.ErrInvalid, ErrInvalid, "not allowed")
	card.Admins = nil
	refused(groups.ErrInvalid, ErrNotFound, "nobody was found who decides there")
}

// What is not there is named, where the group is.
func TestNothingOfThatKindInTheGroup(t *testing.T) {
	_, people := crowd(t, "alice", "bob")
	a, b := people[0], people[1]
	a.groups.fail = groups.ErrNotFound
	_, err := a.m.RevokeGroupLink(t.Context(), "Hikers", strings.Repeat("ab", 16))
	require.ErrorContains(t, err, "has this token")
	_, err = a.m.WithdrawApplication(t.Context(), "Hikers")
	require.ErrorContains(t, err, "no application of yours")
	_, err = a.m.ActOnGroup(t.Context(), "Hikers", GroupRemove, b.id())
	require.ErrorContains(t, err, "nobody of this name")
	_, err = a.m.ActOnGroup(t.Context(), "Hikers", GroupLeave, "")
	require.ErrorContains(t, err, "no such group")
}

func TestSearchAndApply(t *testing.T) {
	a, b, c := newPerson(t, "alice"), newPerson(t, "bob"), newPerson(t, "carol")
	first, second := b.cardOf("Hikers"), c.cardOf("hikers")
	found := []FoundCard{{Card: first, Source: SourceNetwork, Network: "town\u202e", Disputed: true}, {Card: second, Source: SourceNearby}}
	var unreachable []string
	asked := 0
	a.m.env.findGroups = func(context.Context, string) ([]FoundCard, []string, error) {
		asked++
		return found, unreachable, nil
	}
	a.in(groups.ID{3}, "HIKERS", 0, a)
	_, err := a.m.Group(t.Context(), second.Group.String())
	require.ErrorIs(t, err, ErrNotFound, "not found yet")
	s, err := a.m.SearchGroups(t.Context(), "Hikers")
	require.NoError(t, err)
	require.Len(t, s.Groups, 3)
	shown, err := a.m.Group(t.Context(), second.Group.String()[:10])
	require.NoError(t, err)
	require.Equal(t, Group{
		ID: groups.ID(second.Group), Name: "hikers", Public: true, Join: "apply", State: "none", Size: 12, Owner: c.account,
	}, shown, "what a search found is shown before one asks to be let in")
	shown, err = a.m.Group(t.Context(), "group:hikers")
	require.NoError(t, err)
	require.Equal(t, groups.ID{3}, shown.ID, "an own group comes first")
	require.Equal(t, FoundGroup{
		ID: groups.ID(first.Group), Name: "Hikers", Size: 12, Join: "apply", Owner: b.account, Source: SourceNetwork, Network: "town",
		State: "none", Expires: first.Expires, Disputed: true,
	}, s.Groups[0])
	require.Equal(t, SourceMember, s.Groups[2].Source)
	_, err = a.m.SearchGroups(t.Context(), " ")
	require.ErrorIs(t, err, ErrInvalid)
	// By name it is ambiguous, by an ID that was shown nobody is asked again.
	_, err = a.m.ApplyToGroup(t.Context(), "hikers", "please")
	require.ErrorIs(t, err, ErrAmbiguous)
	before := asked
	g, err := a.m.ApplyToGroup(t.Context(), second.Group.String()[:10], "please")
	require.NoError(t, err)
	require.Equal(t, before, asked)
	require.Equal(t, "applied", g.State)
	shown, err = a.m.Group(t.Context(), second.Group.String())
	require.NoError(t, err)
	require.Equal(t, "applied", shown.State)
	require.Equal(t, c.account, shown.Owner, "as the card told")
	require.Equal(t, second.Admins, a.groups.targets[0].Asks)
	require.Equal(t, []string{"/ip4/127.0.0.1/tcp/1"}, a.people.hints[c.account], "whom to ask can be dialled")

	found, unreachable = nil, []string{"town"}
	_, err = a.m.ApplyToGroup(t.Context(), "Climbers", "")
	require.ErrorIs(t, err, ErrUnavailable)
	unreachable = nil
	_, err = a.m.ApplyToGroup(t.Context(), "Climbers", "")
	require.ErrorIs(t, err, ErrNotFound)

	link := identity.GroupLink{Group: identity.GroupID{7}, Name: "Swimmers", Token: identity.NewInviteToken(), Asks: first.Admins[0]}
	shown, err = a.m.Group(t.Context(), link.String())
	require.NoError(t, err)
	require.Equal(t, Group{ID: groups.ID{7}, Name: "Swimmers", State: "none"}, shown, "as far as the link tells")
	link = identity.GroupLink{Group: first.Group, Name: "Hikers", Token: identity.NewInviteToken(), Asks: first.Admins[0]}
	shown, err = a.m.Group(t.Context(), link.String())
	require.NoError(t, err)
	require.Equal(t, b.account, shown.Owner)
	_, err = a.m.ApplyToGroup(t.Context(), link.String(), "by link")
	require.NoError(t, err)
	target := a.groups.targets[len(a.groups.targets)-1]
	require.Equal(t, link.Token[:], target.Token)
	require.Equal(t, []groups.Contact{link.Asks}, target.Asks)
	_, err = a.m.ApplyToGroup(t.Context(), link.String()[:40], "")
	require.ErrorIs(t, err, ErrInvalid)
	got, err := a.m.Group(t.Context(), link.String())
	require.NoError(t, err)
	require.Equal(t, groups.ID(first.Group), got.ID)

	link.Expires = a.m.env.now().Add(time.Minute)
	_, err = a.m.ApplyToGroup(t.Context(), link.String(), "in time")
	require.NoError(t, err)
	link.Expires = a.m.env.now()
	asked = len(a.groups.targets)
	_, err = a.m.ApplyToGroup(t.Context(), link.String(), "too late")
	require.ErrorIs(t, err, ErrExpired)
	require.Len(t, a.groups.targets, asked, "nobody was asked")
}

// News become events of three types, stored with the change.
func TestGroupNews(t *testing.T) {
	id, people := crowd(t, "alice", "bob")
	a, b := people[0], people[1]
	tell := func(kind groups.NewsKind) {
		require.NoError(t, a.db.Update(t.Context(), func(tx *storage.Tx) error {
			return a.m.GroupNews(tx, groups.News{Group: id, Kind: kind, Account: b.account, Subject: a.account})
		}))
	}
	for _, kind := range []groups.NewsKind{
		groups.NewsAdmitted, groups.NewsEpoch, groups.NewsInvitation, groups.NewsInvitationDeclined, groups.NewsApplication,
		groups.NewsRejected, groups.NewsFlood, groups.NewsApplicationExpired,
	} {
		tell(kind)
	}
	var out []string
	for _, e := range a.events(0) {
		switch e.Type {
		case EventGroup, EventInvitation, EventApplication:
			require.Equal(t, id, *e.Conversation)
			require.Equal(t, b.account, *e.Account)
			require.Equal(t, "Hikers", e.Name)
			out = append(out, string(e.Type)+" "+e.Detail+" "+e.SubjectName)
		}
	}
	require.Equal(t, []string{
		"group admitted alice", "invitation incoming alice", "invitation declined alice", "application incoming alice",
		"application rejected alice", "group flood alice", "application expired alice",
	}, out)
	// An event of a group that is forgotten since, or was never in a table, still reads.
	id = groups.ID{5}
	tell(groups.NewsInvitationWithdrawn)
	events := a.events(0)
	require.Equal(t, "", events[len(events)-1].Name)
	// An error discards the change.
	broken := errors.New("broken")
	require.ErrorIs(t, a.db.Update(t.Context(), func(tx *storage.Tx) error {
		if err := a.m.GroupNews(tx, groups.News{Group: id, Kind: groups.NewsCreated}); err != nil {
			return err
		}
		return broken
	}), broken)
	require.Len(t, a.events(0), len(events))
}

func TestTypingInGroups(t *testing.T) {
	id, people := crowd(t, "alice", "bob")
	a, b := people[0], people[1]
	require.NoError(t, a.m.SetTyping(t.Context(), "Hikers", true))
	require.Equal(t, []bool{true}, a.feeds.typing)
	a.set(settingPresence, off)
	require.NoError(t, a.m.SetTyping(t.Context(), "Hikers", true))
	require.Len(t, a.feeds.typing, 1)
	require.True(t, a.m.typesInGroup(b.account, id))
	require.False(t, a.m.typesInGroup(newPerson(t, "mallory").account, id))
	require.False(t, a.m.typesInGroup(b.account, feed.DirectConversation(a.account, b.account)))
	a.groups.groups[id].members = a.groups.groups[id].members[1:]
	require.False(t, a.m.typesInGroup(b.account, id), "we are not in any more")
}
