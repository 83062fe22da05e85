package messenger

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// request makes somebody ask under a name of their choice.
func (p *person) request(t *testing.T, o *person, name string) {
	t.Helper()
	b, err := proto.Marshal(&pb.Request{Message: "hello", Card: &pb.Card{Username: name, Nickname: name}})
	require.NoError(t, err)
	p.write(feed.DirectConversation(p.account, o.account), feed.Control, feed.KindRequest, b)
}

// A stranger who takes the name of a contact gets nothing that is meant for the contact, and cannot make the name
// useless either: whom the owner chose comes before who only turned up. Outward it is ambiguous as ever (R20).
func TestStrangerUnderAContactsName(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	var liars []*person
	for i := range 3 {
		mallory := newPerson(t, fmt.Sprint("mallory", i))
		liars = append(liars, mallory)
		mallory.add(a)
		mallory.request(t, a, "bob")
		meet(t, mallory, a)
		require.Equal(t, RelationRequest, a.relation(mallory))
	}
	msg, err := a.m.Send(ctx, SendInput{Who: "bob", Text: "for the real one"})
	require.NoError(t, err)
	require.Equal(t, b.account, msg.Peer)
	_, _ = a.m.Accept(ctx, "bob") // says nothing to the contact, and accepts no stranger
	for _, mallory := range liars {
		require.Equal(t, RelationRequest, a.relation(mallory))
	}
	_, err = a.m.Find(ctx, "bob")
	require.ErrorIs(t, err, ErrAmbiguous)
	// Two who were chosen stay ambiguous.
	c := newPerson(t, "carol")
	a.add(c)
	meet(t, a, c)
	_, err = a.m.Remark(ctx, c.id(), "bob")
	require.NoError(t, err)
	_, err = a.m.Send(ctx, SendInput{Who: "bob", Text: "for whom?"})
	require.ErrorIs(t, err, ErrAmbiguous)
}

// Who bears a name on the LAN changes from minute to minute: an answer from there is not remembered.
func TestNameOnTheLANIsAskedAnew(t *testing.T) {
	ctx := context.Background()
	a, x, y := newPerson(t, "alice"), newPerson(t, "x"), newPerson(t, "y")
	for _, o := range []*person{x, y} {
		_, _, err := o.m.AddContact(ctx, AddContact{Who: a.id(), OneWay: true})
		require.NoError(t, err)
		o.send(a, "hello")
		meet(t, o, a)
	}
	a.people.nearby = []Person{{Account: x.account, Device: x.device, Username: "dave"}}
	msg, err := a.m.Send(ctx, SendInput{Who: "dave", Text: "one"})
	require.NoError(t, err)
	require.Equal(t, x.account, msg.Peer)
	a.people.nearby = append(a.people.nearby, Person{Account: y.account, Device: y.device, Username: "dave"})
	_, err = a.m.Send(ctx, SendInput{Who: "dave", Text: "two"})
	require.ErrorIs(t, err, ErrAmbiguous)
}

// A contact who asks again and again is answered once per run, and once is enough.
func TestRequestsWithoutEndFromAContact(t *testing.T) {
	a, b := friends(t)
	conv := feed.DirectConversation(a.account, b.account)
	accepts := func() (n int) {
		for _, e := range a.entries(a.feeds.OwnFeed(conv, feed.Control)) {
			if e.Kind == feed.KindAccept {
				n++
			}
		}
		return n
	}
	before := accepts()
	for range 100 {
		b.request(t, a, "bob")
	}
	meet(t, a, b)
	require.Equal(t, before+1, accepts())
	require.Equal(t, RelationContact, a.relation(b))
}

// A contact signs an entry with the highest number there is, and one with the highest clock. History is shown at once,
// and what we say afterwards can be seen and is delivered.
func TestAbsurdNumbersFromAContact(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	conv := feed.DirectConversation(a.account, b.account)
	id := b.feeds.OwnFeed(conv, feed.Chat)
	content, err := proto.Marshal(&pb.Text{Text: "from the end of time"})
	require.NoError(t, err)
	tip := feed.Tip{Seq: feed.MaxSeq - 1, Clock: feed.MaxFirstClock, Account: b.account, Hash: feed.EntryID{1}}
	e, err := b.feeds.author.Next(tip, conv, feed.Chat, feed.KindText, tip.Clock+1, feed.MaxTimeMS, content)
	require.NoError(t, err)
	require.NoError(t, a.db.Update(ctx, func(tx *storage.Tx) error {
		if err := a.feeds.store(tx, e, false); err != nil {
			return err
		}
		return a.m.Applied(tx, replica.Applied{Peer: b.peer(), Entries: []feed.Entry{e}, Detached: true})
	}))
	require.Equal(t, id, e.Feed())
	start := time.Now()
	msgs := a.history(b.id())
	require.Less(t, time.Since(start), 5*time.Second)
	last := msgs[len(msgs)-1]
	require.True(t, last.ClockAhead)
	require.Equal(t, feed.MaxSeq-1, msgs[len(msgs)-2].Hole)
	a.send(b, "still here")
	found := false
	for _, m := range a.history(b.id()) {
		found = found || m.Text == "still here"
	}
	require.True(t, found)
	list, err := a.m.Conversations(ctx)
	require.NoError(t, err)
	require.NotEmpty(t, list)
	meet(t, a, b)
	require.Equal(t, "alice: still here", b.said(a)[len(b.said(a))-1])
}

// Strangers by the hundred: what is kept of them all stays within the limits, and a friend notices nothing.
func TestStrangersByTheHundred(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	l := DefaultLimits()
	count := func() (n int) {
		require.NoError(t, a.db.View(func(tx *storage.Tx) error {
			return tx.Scan(storage.ScanOptions{Prefix: []byte(keyContact), KeysOnly: true}, func(_, _ []byte) (bool, error) {
				n++
				return true, nil
			})
		}))
		return n
	}
	for i := range l.TempChats + 30 {
		s := newPerson(t, fmt.Sprint("stranger", i))
		_, _, err := s.m.AddContact(ctx, AddContact{Who: a.id(), OneWay: true})
		require.NoError(t, err)
		for range 3 {
			s.send(a, "buy")
		}
		meet(t, s, a)
		require.NoError(t, s.db.View(func(*storage.Tx) error { return nil }))
	}
	require.LessOrEqual(t, count(), l.TempChats+1)
	b.send(a, "hello")
	meet(t, a, b)
	require.Equal(t, "bob: hello", a.said(b)[len(a.said(b))-1])
}
