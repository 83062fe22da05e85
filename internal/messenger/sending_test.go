package messenger

import (
	"context"
	"fmt"
	"strings"
	gosync "sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/internal/feed"
	"hima/storage"
)

func TestSendRefusals(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	for _, empty := range []string{"", " \n\t", "\u200b", "\x1b"} {
		_, err := a.m.Send(ctx, SendInput{Who: "bob", Text: empty})
		require.ErrorIs(t, err, ErrInvalid, "%q", empty)
	}
	_, err := a.m.Send(ctx, SendInput{Who: "bob", Text: "\xff"})
	require.ErrorIs(t, err, ErrInvalid)
	_, err = a.m.Send(ctx, SendInput{Who: "bob", Text: strings.Repeat("x", feed.MaxText+1)})
	require.ErrorIs(t, err, ErrTooLarge)
	_, err = a.m.Send(ctx, SendInput{Who: "nobody", Text: "x"})
	require.ErrorIs(t, err, ErrNotFound)
	longest := strings.Repeat("葵", feed.MaxText/3)
	a.send(b, longest)
	meet(t, a, b)
	require.Equal(t, "alice: "+longest, b.said(a)[2])
}

func TestIdempotency(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	in := SendInput{Who: "bob", Text: "once", IdempotencyKey: "k1"}
	first, err := a.m.Send(ctx, in)
	require.NoError(t, err)
	again, err := a.m.Send(ctx, in)
	require.NoError(t, err)
	require.Equal(t, first.ID, again.ID)
	self, err := a.m.Send(ctx, SendInput{Who: "self", Text: "once", IdempotencyKey: "k1"})
	require.NoError(t, err)
	require.NotEqual(t, first.ID, self.ID)
	// At the same time, too.
	var wg gosync.WaitGroup
	ids := make([]feed.EntryID, 20)
	for i := range ids {
		wg.Go(func() {
			msg, err := a.m.Send(ctx, SendInput{Who: "bob", Text: "twice", IdempotencyKey: "k2"})
			if err == nil {
				ids[i] = msg.ID
			}
		})
	}
	wg.Wait()
	for _, id := range ids {
		require.Equal(t, ids[0], id)
		require.False(t, id.IsZero())
	}
	require.Len(t, a.said(b), 4)
	// After a day the key is forgotten.
	a.clock = a.clock.Add(25 * time.Hour)
	require.NoError(t, a.db.Update(ctx, a.m.sender.forget))
	rows := 0
	require.NoError(t, a.db.View(func(tx *storage.Tx) error {
		return tx.Scan(storage.ScanOptions{Prefix: []byte(keyIdem)}, func(_, _ []byte) (bool, error) {
			rows++
			return true, nil
		})
	}))
	require.Zero(t, rows)
	later, err := a.m.Send(ctx, in)
	require.NoError(t, err)
	require.NotEqual(t, first.ID, later.ID)
}

// Many callers at once: everything is written once, numbered without gaps, in few batches.
func TestSendAtOnce(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	const n = 2000
	var wg gosync.WaitGroup
	for w := range 50 {
		wg.Go(func() {
			for i := range n / 50 {
				_, err := a.m.Send(ctx, SendInput{Who: "bob", Text: fmt.Sprint(w, i)})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	seen := make(map[string]bool)
	entries := a.entries(a.feeds.OwnFeed(feed.DirectConversation(a.account, b.account), feed.Chat))
	require.Len(t, entries, n)
	for i, e := range entries {
		require.Equal(t, uint64(i+1), e.Seq)
		_, text := says(&e)
		require.False(t, seen[text])
		seen[text] = true
	}
	counts, err := a.m.Counts(ctx)
	require.NoError(t, err)
	require.Equal(t, n, counts.Pending)
	meet(t, a, b)
	counts, err = a.m.Counts(ctx)
	require.NoError(t, err)
	require.Zero(t, counts.Pending)
	counts, err = b.m.Counts(ctx)
	require.NoError(t, err)
	require.Equal(t, n, counts.Unread)
}

// Many long texts at once fit the transactions of storage, too.
func TestLongTextsAtOnce(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	var wg gosync.WaitGroup
	for i := range 300 {
		wg.Go(func() {
			text := strings.Repeat("long ", 900+i%3*100)
			if _, err := a.m.Send(ctx, SendInput{Who: "bob", Text: text}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	counts, err := a.m.Counts(ctx)
	require.NoError(t, err)
	require.Equal(t, 300, counts.Pending)
	meet(t, a, b)
	require.Len(t, b.said(a), 302)
}

// R1: cancelling is allowed only while nobody was offered the message.
func TestCancel(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	a.send(b, "one")
	two := a.send(b, "two")
	a.send(b, "three")
	counts, err := a.m.Counts(ctx)
	require.NoError(t, err)
	require.Equal(t, 3, counts.Pending)
	require.NoError(t, a.m.Cancel(ctx, two.ID.String()))
	require.NoError(t, a.m.Cancel(ctx, two.ID.String()))
	require.Equal(t, []State{StatePending, StateCancelled, StatePending}, a.states(b))
	counts, err = a.m.Counts(ctx)
	require.NoError(t, err)
	require.Equal(t, 2, counts.Pending)
	meet(t, a, b)
	require.Equal(t, []State{StateDelivered, StateCancelled, StateDelivered}, a.states(b))
	require.Equal(t, []string{"alice: one", "alice: three"}, b.said(a)[2:])
	counts, err = b.m.Counts(ctx)
	require.NoError(t, err)
	require.Equal(t, 2, counts.Unread)

	four := a.send(b, "four")
	meet(t, a, b)
	require.ErrorIs(t, a.m.Cancel(ctx, four.ID.String()), ErrTooLate)
	require.ErrorIs(t, b.m.Cancel(ctx, four.ID.String()), ErrInvalid)
	require.ErrorIs(t, a.m.Cancel(ctx, strings.Repeat("0", 64)), ErrNotFound)
}

func TestSelf(t *testing.T) {
	ctx := context.Background()
	a := newPerson(t, "alice")
	msg, err := a.m.Send(ctx, SendInput{Who: "self", Text: "buy milk"})
	require.NoError(t, err)
	require.Equal(t, StateRead, msg.State)
	require.Equal(t, a.account, msg.Peer)
	h := a.history("self")
	require.Len(t, h, 1)
	list, err := a.m.Conversations(ctx)
	require.NoError(t, err)
	require.Equal(t, KindSelf, list[0].Kind)
	require.Zero(t, list[0].Pending)
	require.Equal(t, "buy milk", list[0].Last.Text)
}

func TestConversationsOrder(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	_, err := a.m.Send(ctx, SendInput{Who: "self", Text: "note"})
	require.NoError(t, err)
	a.clock = a.clock.Add(time.Minute)
	a.send(b, "newest")
	list, err := a.m.Conversations(ctx)
	require.NoError(t, err)
	require.Len(t, list, 2)
	require.Equal(t, "bob", list[0].Name)
	require.Equal(t, "newest", list[0].Last.Text)
	require.Equal(t, 1, list[0].Pending)
	a.clock = a.clock.Add(time.Minute)
	_, err = a.m.Send(ctx, SendInput{Who: "self", Text: "note"})
	require.NoError(t, err)
	list, err = a.m.Conversations(ctx)
	require.NoError(t, err)
	require.Equal(t, KindSelf, list[0].Kind)
}
