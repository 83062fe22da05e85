package messenger

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"hima/internal/feed"
	"hima/storage"
)

// formerFeed is the chat of a person's former key with somebody.
func (p *person) formerFeed(o *person) feed.FeedID {
	return feed.FeedID{Conversation: feed.DirectConversation(p.account, o.account), Number: feed.Chat, Device: p.former[0]}
}

// unsettle lets a former feed end at a number: nobody knows what became of what stands behind it.
func (p *person) unsettle(id feed.FeedID, last uint64) {
	p.t.Helper()
	require.NoError(p.t, p.db.Update(context.Background(), func(tx *storage.Tx) error {
		e, err := p.feeds.Entry(tx, id, last)
		if err != nil {
			return err
		}
		if err := tx.Set(fakeKey("t", id), append(append(append([]byte(nil), e.ID[:]...), e.Account[:]...), be(e.Clock)...)); err != nil {
			return err
		}
		return tx.Set(fakeKey("l", id), be(last))
	}))
}

// TestUnknownMessagesAreListed: what may not have arrived is listed in its order, without what was sent again already, and without what somebody
// else brought, who has it.
func TestUnknownMessagesAreListed(t *testing.T) {
	ctx := t.Context()
	alice, bob, _ := renewed(t, []string{"one", "two", "three", "four"})
	id := alice.formerFeed(bob)
	unknown := func() (texts []string) {
		t.Helper()
		ids, more, err := alice.m.Unknown(ctx, bob.id())
		require.NoError(t, err)
		require.False(t, more)
		for _, m := range alice.history(bob.id()) {
			for _, id := range ids {
				if m.ID == id {
					texts = append(texts, m.Text)
					require.Equal(t, StateUnknown, m.State)
				}
			}
		}
		require.Len(t, texts, len(ids))
		return texts
	}
	require.Empty(t, unknown())
	alice.unsettle(id, 1)
	require.Equal(t, []string{"two", "three", "four"}, unknown())
	ids, _, err := alice.m.Unknown(ctx, bob.id())
	require.NoError(t, err)
	_, err = alice.m.Resend(ctx, ids[1].String())
	require.NoError(t, err)
	require.Equal(t, []string{"two", "four"}, unknown())
	_, err = alice.m.Resend(ctx, ids[1].String())
	require.ErrorIs(t, err, ErrExists)

	// Bob shows what the former key wrote elsewhere behind that.
	old := feed.NewAuthor(alice.account, id.Device, alice.cert)
	content, err := textContent("from the other copy")
	require.NoError(t, err)
	e, err := old.NextInGroup(feed.Tip{Account: alice.account, Seq: 9, Hash: feed.EntryID{1}, Clock: 99}, id.Conversation, feed.Chat, feed.KindText, 100, 1, content, feed.Group{})
	require.NoError(t, err)
	alice.ahead(bob, e)
	require.Equal(t, []string{"two", "four"}, unknown())
	_, err = alice.m.Resend(ctx, e.ID.String())
	require.ErrorIs(t, err, ErrInvalid, "bob has it")
	_, _, err = alice.m.Unknown(ctx, "nobody")
	require.Error(t, err)
}

// TestUnknownIsListedByThePage: of thousands of messages one answer lists a part.
func TestUnknownIsListedByThePage(t *testing.T) {
	texts := make([]string, unknownPage+2)
	for i := range texts {
		texts[i] = fmt.Sprint(i)
	}
	alice, bob, _ := renewed(t, texts)
	alice.unsettle(alice.formerFeed(bob), 1)
	ids, more, err := alice.m.Unknown(t.Context(), bob.id())
	require.NoError(t, err)
	require.True(t, more)
	require.Len(t, ids, unknownPage)
	_, err = alice.m.Resend(t.Context(), ids[0].String())
	require.NoError(t, err)
	rest, more, err := alice.m.Unknown(t.Context(), bob.id())
	require.NoError(t, err)
	require.False(t, more)
	require.Equal(t, ids[1:], rest[:unknownPage-1])
}
