package messenger

import (
	"context"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"hima/internal/feed"
	"hima/internal/replica"
	"hima/storage"
)

// ahead lets p hear of entries of o that stand behind a gap, by their places in what o wrote since.
func (p *person) ahead(o *person, entries ...feed.Entry) {
	p.t.Helper()
	require.NoError(p.t, p.db.Update(context.Background(), func(tx *storage.Tx) error {
		for _, e := range entries {
			if err := p.feeds.store(tx, e, false); err != nil {
				return err
			}
		}
		return p.m.Applied(tx, replica.Applied{Peer: o.peer(), Entries: entries, Detached: true})
	}))
}

// drop lets p lose what it holds of the chat of o from a number on, as the replica tells of it.
func (p *person) drop(id feed.FeedID, from uint64) {
	p.t.Helper()
	require.NoError(p.t, p.db.Update(context.Background(), func(tx *storage.Tx) error {
		if err := p.m.Dropped(tx, id, from); err != nil {
			return err
		}
		var gone []uint64
		err := p.feeds.Entries(tx, id, from, 0, func(e feed.Entry) (bool, error) {
			gone = append(gone, e.Seq)
			return true, nil
		})
		for _, seq := range gone {
			if err == nil {
				err = tx.Delete(fakeKey("e", id, be(seq)...))
			}
		}
		return err
	}))
}

// TestDroppedEntriesAreNotMissed: of what a branch announced that led nowhere nothing is shown, neither as missing nor as unread nor as the
// newest line, and what comes in its place is new.
func TestDroppedEntriesAreNotMissed(t *testing.T) {
	alice, bob := friends(t)
	alice.send(bob, "one")
	meet(t, alice, bob)
	id := alice.feeds.OwnFeed(feed.DirectConversation(alice.account, bob.account), feed.Chat)
	bob.send(alice, "two")
	var later []feed.Entry
	for _, text := range []string{"gone", "also gone", "and this"} {
		msg := alice.send(bob, text)
		require.NoError(t, alice.db.View(func(tx *storage.Tx) error {
			e, err := alice.feeds.Entry(tx, id, msg.Seq)
			later = append(later, e)
			return err
		}))
	}
	before := bob.said(alice)
	bob.ahead(alice, later[1:]...)
	require.Contains(t, bob.said(alice), "alice hole")
	conv := func() Conversation {
		t.Helper()
		list, err := bob.m.Conversations(t.Context())
		require.NoError(t, err)
		return list[0]
	}
	require.Equal(t, "and this", conv().Last.Text)
	require.Equal(t, 3, conv().Unread)
	_, err := bob.m.MarkRead(t.Context(), alice.id(), "")
	require.NoError(t, err)
	require.Zero(t, conv().Unread)
	bob.drop(id, later[0].Seq)
	require.Equal(t, before, bob.said(alice))
	require.Equal(t, "two", conv().Last.Text)

	// What comes there now was not read.
	bob.ahead(alice, later[1])
	require.Equal(t, 1, conv().Unread)
	bob.ahead(alice, later[2])
	require.Equal(t, 2, conv().Unread)
	bob.drop(id, later[2].Seq)
	require.Equal(t, 1, conv().Unread)
	bob.drop(id, later[2].Seq)
	require.Equal(t, 1, conv().Unread, "told of twice")
	require.Equal(t, "also gone", conv().Last.Text)
	bob.drop(feed.FeedID{Conversation: id.Conversation, Number: feed.Chat}, 1) // of which nothing is known
}

// behind makes a chat entry of p with a number that leaves a gap to what p wrote before.
func (p *person) behind(o *person, seq, clock uint64, text string) feed.Entry {
	p.t.Helper()
	content, err := textContent(text)
	require.NoError(p.t, err)
	tip := feed.Tip{Account: p.account, Seq: seq - 1, Hash: feed.EntryID{1}, Clock: clock - 1}
	conv := feed.DirectConversation(p.account, o.account)
	e, err := p.feeds.author.NextInGroup(tip, conv, feed.Chat, feed.KindText, clock, 1, content, feed.Group{})
	require.NoError(p.t, err)
	return e
}

// TestDroppedFarAhead: an author numbers as they like, and what they announced with the highest number there is goes as quickly as any
// other. What is unread stays so.
func TestDroppedFarAhead(t *testing.T) {
	alice, bob := friends(t)
	for _, text := range []string{"one", "two", "three"} {
		alice.send(bob, text)
	}
	meet(t, alice, bob)
	id := alice.feeds.OwnFeed(feed.DirectConversation(alice.account, bob.account), feed.Chat)
	unread := func() int {
		t.Helper()
		list, err := bob.m.Conversations(t.Context())
		require.NoError(t, err)
		return list[0].Unread
	}
	require.Equal(t, 3, unread())
	bob.ahead(alice, alice.behind(bob, 70, 100, "near"))
	bob.ahead(alice, alice.behind(bob, feed.MaxSeq, feed.MaxSeq+200, "far"))
	require.Equal(t, 5, unread())
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	bob.drop(id, 4)
	runtime.ReadMemStats(&after)
	require.Less(t, after.Mallocs-before.Mallocs, uint64(100_000), "numbers are not counted through")
	require.Equal(t, 3, unread())
	require.NotContains(t, bob.said(alice), "alice hole")
	for _, seq := range []uint64{70, feed.MaxSeq} {
		require.NoError(t, bob.db.View(func(tx *storage.Tx) error {
			row, _, err := bob.m.feeds.get(tx, id)
			if err != nil {
				return err
			}
			_, arrived, err := bob.m.arrivals.get(tx, row.local, seq)
			require.False(t, arrived)
			return err
		}))
	}
}

// TestWhatFillsAGapIsNotLate: what is dropped when something fills the gap before it is told of before that has arrived, which is no
// reason to take any of it for late.
func TestWhatFillsAGapIsNotLate(t *testing.T) {
	alice, bob := friends(t)
	alice.send(bob, "one")
	meet(t, alice, bob)
	bob.ahead(alice, alice.behind(bob, 5, 50, "gone"))
	id := alice.feeds.OwnFeed(feed.DirectConversation(alice.account, bob.account), feed.Chat)
	var fill []feed.Entry
	for _, text := range []string{"two", "three", "four"} {
		msg := alice.send(bob, text)
		require.NoError(t, alice.db.View(func(tx *storage.Tx) error {
			e, err := alice.feeds.Entry(tx, id, msg.Seq)
			fill = append(fill, e)
			return err
		}))
	}
	require.NoError(t, bob.db.Update(t.Context(), func(tx *storage.Tx) error {
		for _, e := range fill {
			if err := bob.feeds.store(tx, e, true); err != nil {
				return err
			}
		}
		if err := bob.m.Dropped(tx, id, 5); err != nil {
			return err
		}
		if err := tx.Delete(fakeKey("e", id, be(5)...)); err != nil {
			return err
		}
		return bob.m.Applied(tx, replica.Applied{Peer: alice.peer(), Entries: fill})
	}))
	h, err := bob.m.History(t.Context(), HistoryQuery{Who: alice.id()})
	require.NoError(t, err)
	require.Equal(t, "four", h.Messages[len(h.Messages)-1].Text)
	for _, msg := range h.Messages {
		require.False(t, msg.Late, msg.Text)
	}
}
