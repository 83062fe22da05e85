package messenger

import (
	"strings"
	"testing"
	"time"

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

// fill says something long until it is refused, and gives how much came in.
func (p *person) fill(o *person) (n int) {
	p.t.Helper()
	for before := len(o.groups.said); ; n++ {
		p.speak(o, feed.KindGroupApplication, strings.Repeat("x", 3000))
		meet(p.t, p, o)
		if len(o.groups.said) == before+n {
			require.Equal(p.t, pb.Code_CODE_FULL, o.codes[len(o.codes)-1])
			return n
		}
		require.Less(p.t, n, 1000)
	}
}

// What a stranger may say about groups is counted apart: it is bounded, and a request still comes in behind it. What was refused comes in
// when time has made room.
func TestSaidQuota(t *testing.T) {
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	b.groups.listens = pb.Code_CODE_TAKEN
	n := a.fill(b)
	require.LessOrEqual(t, n*(4<<10), DefaultLimits().TempSaid)
	require.GreaterOrEqual(t, (n+1)*(5<<10), DefaultLimits().TempSaid)
	require.Contains(t, b.groups.later, feed.DirectConversation(a.account, b.account), "heads are told anew, and so it is sent again")
	// Starting anew gives nothing back.
	b.open(b.db)
	meet(t, a, b)
	require.Len(t, b.groups.said, n)
	b.clock = b.clock.Add(saidBack / 8)
	meet(t, a, b)
	require.Len(t, b.groups.said, n+1, "what was refused")
	more := a.fill(b)
	require.Positive(t, more)
	require.LessOrEqual(t, more, 1+n/8)
	// A co-member may say more; then the request behind it is taken as well.
	b.in(feed.ConversationID{7}, "Hikers", 0, a, b)
	a.add(b)
	meet(t, a, b)
	require.Len(t, b.groups.said, n+1+more+1)
	require.Equal(t, RelationRequest, b.relation(a))
	b.quietInvitations(t, a)
}

// Two admins of a group who are no contacts of each other hear each other as long as they live, however much there was to decide.
func TestAdminsHearEachOtherForYears(t *testing.T) {
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	b.groups.listens = pb.Code_CODE_TAKEN
	b.in(feed.ConversationID{7}, "Hikers", 0, a, b)
	b.groups.fellows = []identity.AccountID{a.account}
	said := 0
	for range 60 {
		for range 100 {
			a.speak(b, feed.KindGroupVerdict, strings.Repeat("x", 1000))
			said++
		}
		b.clock = b.clock.Add(24 * time.Hour)
		meet(t, a, b)
		require.Len(t, b.groups.said, said)
	}
	// Who is one no longer is heard more slowly.
	b.groups.fellows = nil
	many := a.fill(b)
	b.clock = b.clock.Add(24 * time.Hour)
	meet(t, a, b)
	rest := len(b.groups.said)
	require.Less(t, a.fill(b), many/8)
	require.Less(t, len(b.groups.said)-rest, many/8)
}

// What a quota gives back follows the clock, and only as far as it went on.
func TestSaidQuotaAndClocks(t *testing.T) {
	q := saidQuota{burst: 1600, back: 16 * time.Second}
	at := func(seconds float64) time.Time { return testStart.Add(time.Duration(seconds * float64(time.Second))) }
	var c strangerCost
	c.charge(q, 1600, at(0))
	require.False(t, c.fits(q, 1))
	c.drain(q, at(1))
	require.Equal(t, 1500, c.Said)
	// Put back: nothing comes back, and time counts from there.
	c.drain(q, at(-1000))
	require.Equal(t, 1500, c.Said)
	c.drain(q, at(-999))
	require.Equal(t, 1400, c.Said)
	// Put forward: all of it, once.
	c.drain(q, at(1e6))
	require.Zero(t, c.Said)
	c.charge(q, 1600, at(1e6))
	c.drain(q, at(0))
	require.Equal(t, 1600, c.Said)
	// In however small steps it is asked, as much comes back as in a large one, and no more.
	for i := range 8000 {
		c.drain(q, at(float64(i)/1000))
	}
	require.InDelta(t, 800, c.Said, 1)
	// One that is larger than everything is taken when nothing is used, and waited for.
	c = strangerCost{}
	require.True(t, c.fits(q, 5000))
	c.charge(q, 5000, at(0))
	c.drain(q, at(16))
	require.False(t, c.fits(q, 1))
	require.Equal(t, 3400, c.Said)
	// What an earlier build counted is forgotten.
	c = strangerCost{Said: 256}
	require.True(t, c.said())
	c.drain(q, at(0))
	require.Zero(t, c.Said)
}

// Somebody whose last word came under a clock that was far ahead is heard when it is put right, after as long as anybody else.
func TestSaidQuotaAfterTheClockWasAhead(t *testing.T) {
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	b.groups.listens = pb.Code_CODE_TAKEN
	b.clock = testStart.Add(10 * 365 * 24 * time.Hour)
	n := a.fill(b)
	b.clock = testStart
	meet(t, a, b)
	require.Len(t, b.groups.said, n)
	b.clock = b.clock.Add(saidBack / 8)
	meet(t, a, b)
	require.Len(t, b.groups.said, n+1)
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

// A conversation in which a newer version acted takes nothing, and package groups is told so in its own words.
func TestSaidWhereItIsReadOnly(t *testing.T) {
	a, b := friends(t)
	b.write(feed.DirectConversation(a.account, b.account), feed.Control, 78, []byte("?"))
	meet(t, a, b)
	err := a.db.Update(t.Context(), func(tx *storage.Tx) error { return a.m.Say(tx, b.account, feed.KindGroupInvitation, []byte("again")) })
	require.ErrorIs(t, err, groups.ErrReadOnly)
	require.ErrorIs(t, err, ErrReadOnly)
	require.Contains(t, groupRefusal(err).Error(), "in this conversation")
}
