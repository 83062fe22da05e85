package messenger

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"hima/internal/wire/pb"
	"hima/storage"
)

func TestRequestAccept(t *testing.T) {
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	ctx := context.Background()
	a.add(b, func(in *AddContact) { in.Message = "it is me"; in.Remark = "bobby" })
	require.Equal(t, RelationAsked, a.relation(b))
	_, err := a.m.Send(ctx, SendInput{Who: "bobby", Text: "hi"})
	require.ErrorIs(t, err, ErrWaitingForAccept)
	reqs, err := a.m.Requests(ctx)
	require.NoError(t, err)
	require.Equal(t, RequestNotDelivered, reqs[0].State)

	meet(t, a, b)
	require.Equal(t, RelationRequest, b.relation(a))
	reqs, err = b.m.Requests(ctx)
	require.NoError(t, err)
	require.Len(t, reqs, 1)
	require.Equal(t, "it is me", reqs[0].Message)
	require.Equal(t, "alice", reqs[0].Username)
	require.True(t, reqs[0].Incoming)
	reqs, err = a.m.Requests(ctx)
	require.NoError(t, err)
	require.Equal(t, RequestWaiting, reqs[0].State)
	_, err = b.m.Send(ctx, SendInput{Who: "alice", Text: "hi"})
	require.ErrorIs(t, err, ErrNotContact)

	_, err = b.m.Accept(ctx, "alice")
	require.NoError(t, err)
	meet(t, a, b)
	require.Equal(t, RelationContact, a.relation(b))
	a.send(b, "one")
	meet(t, a, b)
	b.send(a, "two")
	meet(t, a, b)
	require.Equal(t, []string{"alice request", "bob accepted", "alice: one", "bob: two"}, b.said(a)[:4])
	require.Equal(t, []string{"alice request", "bobby accepted"}, a.said(b)[:2])
	require.Equal(t, []State{StateDelivered}, a.states(b))
	counts, err := b.m.Counts(ctx)
	require.NoError(t, err)
	require.Zero(t, counts.Requests)
	require.Equal(t, 1, counts.Unread)
	_, _, err = a.m.AddContact(ctx, AddContact{Who: "bobby"})
	require.ErrorIs(t, err, ErrExists)
}

func TestDeclineAndAskAgain(t *testing.T) {
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	ctx := context.Background()
	a.add(b)
	meet(t, a, b)
	_, err := b.m.Decline(ctx, "alice")
	require.NoError(t, err)
	meet(t, a, b)
	require.Equal(t, RelationDeclined, a.relation(b))
	require.Equal(t, RelationDeclined, b.relation(a))
	_, err = a.m.Send(ctx, SendInput{Who: b.id(), Text: "hi"})
	require.ErrorIs(t, err, ErrNotContact)
	a.add(b)
	meet(t, a, b)
	require.Equal(t, RelationRequest, b.relation(a))
	_, err = b.m.Accept(ctx, a.id())
	require.NoError(t, err)
	meet(t, a, b)
	require.Equal(t, RelationContact, a.relation(b))
}

// R16: two requests that cross are an acceptance.
func TestCrossingRequests(t *testing.T) {
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	a.add(b)
	b.add(a)
	meet(t, a, b)
	require.Equal(t, RelationContact, a.relation(b))
	require.Equal(t, RelationContact, b.relation(a))
	a.send(b, "hello")
	meet(t, a, b)
	require.Equal(t, []State{StateDelivered}, a.states(b))
}

func TestOneWay(t *testing.T) {
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	ctx := context.Background()
	a.add(b, func(in *AddContact) { in.OneWay = true; in.Message = "hello" })
	a.send(b, "again")
	meet(t, a, b)
	require.Equal(t, RelationTemporary, b.relation(a))
	require.Equal(t, []State{StateDelivered, StateDelivered}, a.states(b))
	// Read, typing and presence are withheld from strangers.
	n, err := b.m.MarkRead(ctx, a.id(), "")
	require.NoError(t, err)
	require.Equal(t, 2, n)
	require.NoError(t, b.m.SetTyping(ctx, a.id(), true))
	meet(t, a, b)
	require.Equal(t, []State{StateDelivered, StateDelivered}, a.states(b))
	require.Empty(t, b.feeds.typing)
	b.send(a, "who is there?")
	meet(t, a, b)
	require.Contains(t, a.said(b), b.account.Short()+": who is there?")

	_, err = b.m.Accept(ctx, a.id())
	require.NoError(t, err)
	meet(t, a, b)
	require.Equal(t, RelationContact, a.relation(b))
	require.Equal(t, RelationContact, b.relation(a))
	// Cards came with the acceptance, both ways.
	c, err := b.m.contact(a.account)
	require.NoError(t, err)
	require.Equal(t, "alice", c.Username)
	require.Equal(t, []State{StateRead, StateRead}, a.states(b)[:2])
}

// A temporary chat may be declined: it ends, its place is free, and its author may still ask.
func TestDeclineTemporary(t *testing.T) {
	ctx := context.Background()
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	a.add(b, func(in *AddContact) { in.OneWay = true; in.Message = "hello" })
	meet(t, a, b)
	_, err := b.m.Decline(ctx, a.id())
	require.NoError(t, err)
	require.Equal(t, RelationDeclined, b.relation(a))
	_, err = b.m.Decline(ctx, a.id())
	require.ErrorIs(t, err, ErrNotFound)
	a.send(b, "again")
	meet(t, a, b)
	require.Equal(t, []State{StateDelivered, StatePending}, a.states(b))
	require.NoError(t, b.db.View(func(tx *storage.Tx) error {
		q, err := b.m.quotas.get(tx)
		require.Zero(t, q)
		return err
	}))
	a.add(b)
	meet(t, a, b)
	require.Equal(t, RelationRequest, b.relation(a))
	// One who is blocked takes nobody's place either.
	_, err = b.m.Block(ctx, a.id())
	require.NoError(t, err)
	counts, err := b.m.Counts(ctx)
	require.NoError(t, err)
	require.Zero(t, counts.Requests)
	_, err = b.m.Unblock(ctx, a.id())
	require.NoError(t, err)
	_, err = b.m.Accept(ctx, a.id())
	require.NoError(t, err)
	meet(t, a, b)
	require.Equal(t, []State{StateDelivered, StateNotTaken}, a.states(b))
	require.Equal(t, RelationContact, a.relation(b))
}

func TestOneWayQuota(t *testing.T) {
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	b.limits = Limits{TempMessages: 3}
	b.open(b.db)
	a.add(b, func(in *AddContact) { in.OneWay = true })
	for range 5 {
		a.send(b, "spam")
	}
	meet(t, a, b)
	require.Len(t, b.said(a), 3)
	require.Equal(t, pb.Code_CODE_FULL, b.codes[len(b.codes)-1])
	msgs := a.history(b.id())
	w, err := a.m.Why(context.Background(), msgs[4].ID.String())
	require.NoError(t, err)
	require.Equal(t, WhyFull, w.Summary)
	// On accept what was refused is not taken; what follows is.
	_, err = b.m.Accept(context.Background(), a.id())
	require.NoError(t, err)
	meet(t, a, b)
	a.send(b, "now")
	meet(t, a, b)
	require.Equal(t, []State{"delivered", "delivered", "delivered", "not_taken", "not_taken", "delivered"}, a.states(b))
	counts, err := a.m.Counts(context.Background())
	require.NoError(t, err)
	require.Zero(t, counts.Pending)
}

func TestTempChatCount(t *testing.T) {
	b := newPerson(t, "bob")
	b.limits = Limits{TempChats: 2, Requests: 1}
	b.open(b.db)
	for _, name := range []string{"s1", "s2", "s3"} {
		s := newPerson(t, name)
		s.add(b, func(in *AddContact) { in.OneWay = true; in.Message = "x" })
		meet(t, s, b)
	}
	require.Equal(t, pb.Code_CODE_FULL, b.codes[len(b.codes)-1])
	q1, q2 := newPerson(t, "q1"), newPerson(t, "q2")
	q1.add(b)
	q2.add(b)
	meet(t, q1, b)
	meet(t, q2, b)
	require.Equal(t, RelationRequest, b.relation(q1))
	require.Equal(t, RelationNone, b.relation(q2))
	// Deciding makes room.
	_, err := b.m.Decline(context.Background(), q1.id())
	require.NoError(t, err)
	meet(t, q2, b)
	require.Equal(t, RelationRequest, b.relation(q2))
}

func TestStrangerPolicies(t *testing.T) {
	ctx := context.Background()
	a, c, b := newPerson(t, "alice"), newPerson(t, "carol"), newPerson(t, "bob")
	b.set(settingStrangers, strangersRequest)
	a.add(b, func(in *AddContact) { in.OneWay = true; in.Message = "x" })
	c.add(b)
	meet(t, a, b)
	meet(t, c, b)
	require.Equal(t, RelationNone, b.relation(a))
	require.Equal(t, RelationRequest, b.relation(c))
	w, err := a.m.Why(ctx, a.history(b.id())[0].ID.String())
	require.NoError(t, err)
	require.Equal(t, WhyDenied, w.Summary)
	// A looser policy sets the floor: what was refused stays so, what follows is taken.
	b.set(settingStrangers, strangersAllow)
	meet(t, a, b)
	a.send(b, "y")
	meet(t, a, b)
	require.Equal(t, []State{StateNotTaken, StateDelivered}, a.states(b))
	require.Equal(t, RelationTemporary, b.relation(a))

	d := newPerson(t, "dave")
	b.set(settingStrangers, strangersDeny)
	d.add(b)
	meet(t, d, b)
	require.Equal(t, RelationNone, b.relation(d))
	require.Equal(t, pb.Code_CODE_DENIED, b.codes[len(b.codes)-1])
	_, err = b.m.SetSetting(ctx, settingStrangers, "maybe")
	require.ErrorIs(t, err, ErrInvalid)
	_, err = b.m.SetSetting(ctx, "colour", "red")
	require.ErrorIs(t, err, ErrNotFound)
}

// Whoever holds a live token passes any policy as a request; nothing is accepted by it.
func TestInvites(t *testing.T) {
	ctx := context.Background()
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	b.set(settingStrangers, strangersDeny)
	inv, err := b.m.CreateInvite(ctx)
	require.NoError(t, err)
	f, err := a.m.Find(ctx, inv.Link)
	require.NoError(t, err)
	require.Equal(t, b.account, f.Account)
	require.Equal(t, SourceInvite, f.Source)
	a.add(b, func(in *AddContact) { in.Who = inv.Link; in.Expect = b.account })
	meet(t, a, b)
	require.Equal(t, RelationRequest, b.relation(a))
	list, err := b.m.Invites(ctx)
	require.NoError(t, err)
	require.Equal(t, 1, list[0].Used)
	reqs, err := b.m.Requests(ctx)
	require.NoError(t, err)
	require.True(t, reqs[0].Invited)

	require.NoError(t, b.m.RevokeInvite(ctx, inv.Token.String()))
	c := newPerson(t, "carol")
	c.add(b, func(in *AddContact) { in.Who = inv.Link })
	meet(t, c, b)
	require.Equal(t, RelationNone, b.relation(c))
	require.ErrorIs(t, b.m.RevokeInvite(ctx, "00"), ErrInvalid)
	_, _, err = c.m.AddContact(ctx, AddContact{Who: inv.Link, Expect: a.account})
	require.ErrorIs(t, err, ErrConflict)
}

// R16: towards a blocked account a node behaves exactly as towards a stranger under deny.
func TestBlock(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	a.send(b, "before")
	meet(t, a, b)
	_, err := b.m.Block(ctx, "alice")
	require.NoError(t, err)
	require.Equal(t, RelationBlocked, b.relation(a))
	_, err = b.m.Send(ctx, SendInput{Who: a.id(), Text: "x"})
	require.ErrorIs(t, err, ErrDenied)
	lost := a.send(b, "while blocked")
	meet(t, a, b)
	blocked := b.codes[len(b.codes)-1]
	w, err := a.m.Why(ctx, lost.ID.String())
	require.NoError(t, err)

	s, d := newPerson(t, "stranger"), newPerson(t, "denier")
	d.set(settingStrangers, strangersDeny)
	s.add(d, func(in *AddContact) { in.OneWay = true; in.Message = "x" })
	meet(t, s, d)
	ws, err := s.m.Why(ctx, s.history(d.id())[0].ID.String())
	require.NoError(t, err)
	require.Equal(t, d.codes[len(d.codes)-1], blocked)
	require.Equal(t, ws.Summary, w.Summary)
	require.Equal(t, d.m.Listening(s.account), b.m.Listening(a.account))
	require.Equal(t, pb.Code_CODE_DENIED, b.m.Listening(a.account))

	_, err = b.m.Unblock(ctx, "alice")
	require.NoError(t, err)
	meet(t, a, b)
	a.send(b, "after")
	meet(t, a, b)
	require.Equal(t, []State{StateDelivered, StateNotTaken, StateDelivered}, a.states(b))
	require.Equal(t, []string{"alice request", "bob accepted", "alice: before", "alice: after"}, b.said(a))
}

func TestRemoveAndAddAgain(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	a.send(b, "hello")
	meet(t, a, b)
	_, err := b.m.Remove(ctx, "alice")
	require.NoError(t, err)
	require.Equal(t, RelationNone, b.relation(a))
	require.Len(t, b.said(a), 3)
	// The other side changes its card meanwhile; the request behind it must still come in.
	nick := "Alice A."
	_, err = a.m.SetProfile(ctx, ProfileChange{Nickname: &nick})
	require.NoError(t, err)
	b.add(a)
	meet(t, a, b)
	require.Equal(t, RelationContact, b.relation(a))
	c, err := b.m.contact(a.account)
	require.NoError(t, err)
	require.Equal(t, nick, c.Nickname)
}
