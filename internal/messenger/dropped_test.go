package messenger

import (
	"context"
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
