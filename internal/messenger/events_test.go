package messenger

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/storage"
)

func TestEventsTellEverythingOnce(t *testing.T) {
	a, b := friends(t)
	before := a.events(0)
	require.NotEmpty(t, before)
	for i, e := range before {
		require.Equal(t, uint64(i+1), e.Seq)
	}
	since := before[len(before)-1].Seq
	for i := range 700 {
		a.send(b, fmt.Sprint(i))
	}
	meet(t, a, b)
	_, err := b.m.MarkRead(context.Background(), "alice", "")
	require.NoError(t, err)
	meet(t, a, b)
	all := a.events(since)
	messages, delivered, read := 0, 0, 0
	for _, e := range all {
		switch e.Type {
		case EventMessage:
			require.Equal(t, fmt.Sprint(messages), e.Message.Text)
			require.True(t, e.Message.Own)
			messages++
		case EventState:
			require.LessOrEqual(t, len(e.MessageIDs), stateIDs)
			require.Equal(t, e.MessageIDs[len(e.MessageIDs)-1], e.Message.ID)
			switch State(e.Detail) {
			case StateDelivered:
				delivered += len(e.MessageIDs)
			case StateRead:
				read += len(e.MessageIDs)
			}
		}
	}
	require.Equal(t, []int{700, 700, 700}, []int{messages, delivered, read})
	// Resuming anywhere gives exactly the rest.
	for _, at := range []int{0, 1, 255, 256, 257, 600, len(all) - 2} {
		rest := a.events(all[at].Seq)
		require.Equal(t, all[at+1:], rest)
	}
	// The other side was told of 700 messages, too.
	got := 0
	for _, e := range b.events(0) {
		if e.Type == EventMessage && e.Message.Kind == MessageText {
			got++
		}
	}
	require.Equal(t, 700, got)
}

func TestWatchLive(t *testing.T) {
	a, b := friends(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	got := make(chan Event, 100)
	done := make(chan error, 1)
	go func() {
		done <- b.m.Watch(ctx, WatchQuery{FromNow: true, Conversation: "alice"}, func(e Event) error {
			got <- e
			return nil
		})
	}()
	require.Equal(t, EventReady, (<-got).Type)
	_, err := b.m.Send(ctx, SendInput{Who: "self", Text: "elsewhere"})
	require.NoError(t, err)
	a.send(b, "hello")
	meet(t, a, b)
	e := <-got
	require.Equal(t, EventMessage, e.Type)
	require.Equal(t, "hello", e.Message.Text)
	conv := feed.DirectConversation(a.account, b.account)
	b.m.Typing(a.peer(), conv, true)
	e = <-got
	require.Equal(t, EventTyping, e.Type)
	require.True(t, e.On)
	require.Zero(t, e.Seq)
	b.m.Presence(a.peer(), true)
	require.Equal(t, EventPresence, (<-got).Type)
	b.m.SessionDown(replica.SessionInfo{Peer: a.peer()})
	e = <-got
	require.Equal(t, EventPresence, e.Type)
	require.False(t, e.On)
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)

	errStop := errors.New("stop")
	require.ErrorIs(t, b.m.Watch(context.Background(), WatchQuery{}, func(Event) error { return errStop }), errStop)
}

func TestEventsAreTrimmed(t *testing.T) {
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	a.limits = Limits{Events: 100}
	a.open(a.db)
	a.add(b, func(in *AddContact) { in.OneWay = true })
	for i := range 300 {
		a.send(b, fmt.Sprint(i))
	}
	rows := 0
	require.NoError(t, a.db.View(func(tx *storage.Tx) error {
		return tx.Scan(storage.ScanOptions{Prefix: []byte(keyEvent)}, func(_, _ []byte) (bool, error) {
			rows++
			return true, nil
		})
	}))
	require.LessOrEqual(t, rows, 101)
	list := a.events(0)
	require.NotEqual(t, EventGap, list[0].Type, "whoever asks for all that is kept misses nothing")
	require.Equal(t, "299", list[len(list)-1].Message.Text)
	list = a.events(5)
	require.Equal(t, EventGap, list[0].Type)
	require.Equal(t, list[0].Seq+1, list[1].Seq)
	// A number from the future is of another database.
	require.Equal(t, EventGap, a.events(1_000_000)[0].Type)
}

// An event is stored with the change it tells of, or neither is.
func TestEventAndChangeAreOne(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	before := a.events(0)
	boom := errors.New("boom")
	err := a.db.Update(ctx, func(tx *storage.Tx) error {
		if _, err := a.m.sender.writeText(tx, feed.DirectConversation(a.account, b.account), "x"); err != nil {
			return err
		}
		return boom
	})
	require.ErrorIs(t, err, boom)
	require.Equal(t, before, a.events(0))
	require.Len(t, a.said(b), 2)
}

// After a restart everything is as it was.
func TestRestart(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	key := make([]byte, 32)
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	require.NoError(t, a.db.Close())
	db, err := storage.Open(storage.Config{Dir: dir, Key: key})
	require.NoError(t, err)
	a.open(db)
	a.add(b, func(in *AddContact) { in.Remark = "bobby"; in.Message = "hi" })
	meet(t, a, b)
	_, err = b.m.Accept(ctx, a.id())
	require.NoError(t, err)
	meet(t, a, b)
	a.send(b, "kept")
	b.send(a, "too")
	meet(t, a, b)
	a.send(b, "pending")
	a.set(settingStrangers, strangersDeny)
	inv, err := a.m.CreateInvite(ctx)
	require.NoError(t, err)
	nick := "Al"
	_, err = a.m.SetProfile(ctx, ProfileChange{Nickname: &nick})
	require.NoError(t, err)
	type everything struct {
		h    []Message
		e    []Event
		c    []Contact
		l    []Conversation
		n    Counts
		s    []Setting
		p    Profile
		i    []Invite
		peer []identity.AccountID
	}
	look := func() (x everything) {
		var err [6]error
		x.h, x.e, x.peer = a.history("bobby"), a.events(0), a.m.PeerAccounts()
		x.c, err[0] = a.m.Contacts(ctx, true)
		x.l, err[1] = a.m.Conversations(ctx)
		x.n, err[2] = a.m.Counts(ctx)
		x.s, err[3] = a.m.Settings(ctx)
		x.p, err[4] = a.m.Profile(ctx)
		x.i, err[5] = a.m.Invites(ctx)
		for _, e := range err {
			require.NoError(t, e)
		}
		return x
	}
	before := look()
	require.NoError(t, db.Close())
	db, err = storage.Open(storage.Config{Dir: dir, Key: key})
	require.NoError(t, err)
	a.open(db)
	require.Equal(t, before, look())
	require.Equal(t, inv.Token, before.i[0].Token)
	require.EqualValues(t, 1, a.m.invites.live())
	meet(t, a, b)
	require.Equal(t, StateDelivered, a.states(b)[1])
	c, err := b.m.contact(a.account)
	require.NoError(t, err)
	require.Equal(t, nick, c.Nickname)
}
