package messenger

import (
	"testing"

	"github.com/stretchr/testify/require"

	"hima/groups"
	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/storage"
)

// speak says something about a group to somebody.
func (p *person) speak(o *person, kind feed.Kind, words string) {
	p.t.Helper()
	require.NoError(p.t, p.db.Update(p.t.Context(), func(tx *storage.Tx) error {
		return p.m.Say(tx, o.account, kind, []byte(words))
	}))
}

// quiet requires that a person has no contact, no request and no chat.
func (p *person) quiet() {
	p.t.Helper()
	contacts, err := p.m.Contacts(p.t.Context(), true)
	require.NoError(p.t, err)
	require.Empty(p.t, contacts)
	requests, err := p.m.Requests(p.t.Context())
	require.NoError(p.t, err)
	require.Empty(p.t, requests)
	list, err := p.m.Conversations(p.t.Context())
	require.NoError(p.t, err)
	require.Empty(p.t, list)
	for _, e := range p.events(0) {
		require.NotContains(p.t, []EventType{EventMessage, EventContact, EventRequest, EventDevices}, e.Type)
	}
}

// What is said about groups reaches strangers, and makes neither contact nor request nor chat of anybody.
func TestSaidToStrangers(t *testing.T) {
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	a.speak(b, feed.KindGroupInvitation, "come")
	meet(t, a, b)
	require.Equal(t, []saying{{a.account, b.account, feed.KindGroupInvitation, "come"}}, b.groups.said)
	require.Empty(t, a.groups.said, "who says it knows it")
	a.quiet()
	b.quiet()
	// The answer is heard whatever the policy, if package groups waits for it.
	a.set(settingStrangers, strangersDeny)
	a.groups.listens = pb.Code_CODE_TAKEN
	b.speak(a, feed.KindGroupAnswer, "yes")
	meet(t, a, b)
	require.Equal(t, []saying{{b.account, a.account, feed.KindGroupAnswer, "yes"}}, a.groups.said)
	// They write to nobody by it, and may still ask like anybody else.
	_, err := b.m.Send(t.Context(), SendInput{Who: a.id(), Text: "hi"})
	require.ErrorIs(t, err, ErrNotContact)
	a.set(settingStrangers, strangersRequest)
	b.add(a)
	meet(t, a, b)
	require.Equal(t, RelationRequest, a.relation(b))
	require.True(t, b.m.Comember(a.account))
	require.True(t, b.m.Keeps(a.account))
}

// An invitation follows the policy for strangers, an application is for package groups to judge.
func TestSaidUnderPolicy(t *testing.T) {
	t.Run("deny", func(t *testing.T) {
		a, b := newPerson(t, "alice"), newPerson(t, "bob")
		b.set(settingStrangers, strangersDeny)
		b.in(feed.ConversationID{7}, "Hikers", 0, b)
		a.speak(b, feed.KindGroupInvitation, "come")
		meet(t, a, b)
		require.Empty(t, b.groups.said)
		require.Equal(t, pb.Code_CODE_DENIED, b.codes[len(b.codes)-1])
		// A looser policy lets it in later.
		b.set(settingStrangers, strangersRequest)
		meet(t, a, b)
		require.Len(t, b.groups.said, 1)
	})
	t.Run("application", func(t *testing.T) {
		a, b := newPerson(t, "alice"), newPerson(t, "bob")
		b.set(settingStrangers, strangersDeny)
		a.speak(b, feed.KindGroupApplication, "let me in")
		meet(t, a, b)
		require.Empty(t, b.groups.said, "not even read: in no group")
		b.in(feed.ConversationID{7}, "Hikers", 0, b)
		meet(t, a, b)
		require.Empty(t, b.groups.said, "not welcome")
		b.groups.listens = pb.Code_CODE_FULL
		meet(t, a, b)
		require.Equal(t, pb.Code_CODE_FULL, b.codes[len(b.codes)-1])
		b.groups.listens = pb.Code_CODE_TAKEN
		meet(t, a, b)
		require.Len(t, b.groups.said, 1)
	})
	t.Run("blocked", func(t *testing.T) {
		a, b := newPerson(t, "alice"), newPerson(t, "bob")
		require.NoError(t, b.db.Update(t.Context(), func(tx *storage.Tx) error {
			return b.m.writeState(tx, a.account, func(s *pb.ContactState) { s.Blocked = true })
		}))
		b.in(feed.ConversationID{7}, "Hikers", 0, a, b)
		b.groups.listens = pb.Code_CODE_TAKEN
		a.speak(b, feed.KindGroupApplication, "let me in")
		a.speak(b, feed.KindGroupInvitation, "come")
		meet(t, a, b)
		require.Empty(t, b.groups.said)
		require.NotContains(t, b.codes, codeTaken)
	})
}

// What a stranger may say about groups is counted apart: it is bounded, and a request still comes in behind it.
func TestSaidQuota(t *testing.T) {
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	b.groups.listens = pb.Code_CODE_TAKEN
	limit := DefaultLimits().TempControl
	for range limit {
		a.speak(b, feed.KindGroupApplication, "again")
		meet(t, a, b)
	}
	require.Len(t, b.groups.said, limit)
	a.speak(b, feed.KindGroupApplication, "and again")
	meet(t, a, b)
	require.Len(t, b.groups.said, limit)
	require.Equal(t, pb.Code_CODE_FULL, b.codes[len(b.codes)-1])
	// A co-member may say more; then the request behind it is taken as well.
	b.in(feed.ConversationID{7}, "Hikers", 0, a, b)
	a.add(b)
	meet(t, a, b)
	require.Len(t, b.groups.said, limit+1)
	require.Equal(t, RelationRequest, b.relation(a))
	b.quietInvitations(t, a)
}

// quietInvitations fills the invitations of strangers; then no further stranger may invite.
func (p *person) quietInvitations(t *testing.T, known *person) {
	t.Helper()
	for i := range DefaultLimits().Requests {
		from := identity.AccountID{1, byte(i), byte(i >> 8)}
		p.groups.invited = append(p.groups.invited, groups.Invitation{From: from, State: groups.Waiting})
	}
	c := newPerson(t, "carol")
	c.speak(p, feed.KindGroupInvitation, "come")
	meet(t, c, p)
	require.Equal(t, pb.Code_CODE_FULL, p.codes[len(p.codes)-1])
	p.groups.invited[0].State = groups.Declined
	meet(t, c, p)
	require.Equal(t, saying{c.account, p.account, feed.KindGroupInvitation, "come"}, p.groups.said[len(p.groups.said)-1])
}

// An application that is over by now does not stand in the way of what was said behind it: a control feed has no floor.
func TestSaidBefore(t *testing.T) {
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	a.speak(b, feed.KindGroupApplication, "let me in")
	meet(t, a, b)
	require.Empty(t, b.groups.said)
	a.add(b)
	meet(t, a, b)
	require.Equal(t, RelationRequest, b.relation(a))
	require.Len(t, b.groups.said, 1, "package groups decides that it says nothing any more")
}

// Contacts say what they like, and other own devices hear what was said on both sides.
func TestSaidToOwnDevices(t *testing.T) {
	a, b := friends(t)
	a.speak(b, feed.KindGroupInvitation, "come")
	meet(t, a, b)
	b.speak(a, feed.KindGroupAnswer, "no")
	meet(t, a, b)
	require.Len(t, a.groups.said, 1)
	two := newDevice(t, "alice", "alice two")
	bringSelf(t, a, two)
	conv := feed.DirectConversation(a.account, b.account)
	bring(t, a, two, a.feeds.OwnFeed(conv, feed.Control), a.key)
	bring(t, a, two, b.feeds.OwnFeed(conv, feed.Control), b.key)
	require.Equal(t, []saying{
		{a.account, b.account, feed.KindGroupInvitation, "come"}, {b.account, a.account, feed.KindGroupAnswer, "no"},
	}, two.groups.said)
	require.ErrorIs(t, a.db.Update(t.Context(), func(tx *storage.Tx) error {
		return a.m.Say(tx, b.account, feed.KindRequest, nil)
	}), ErrInvalid)
	require.ErrorIs(t, a.db.Update(t.Context(), func(tx *storage.Tx) error {
		return a.m.Say(tx, a.account, feed.KindGroupAnswer, nil)
	}), ErrInvalid)
}
