package messenger

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

func TestHistoryPages(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	for i := range 60 {
		a.send(b, fmt.Sprintf("a%d", i))
		if i%3 == 0 {
			meet(t, a, b)
			b.send(a, fmt.Sprintf("b%d", i))
		}
	}
	meet(t, a, b)
	all := a.history(b.id())
	require.Len(t, all, 82)
	require.Equal(t, b.said(a)[2:], a.said(b)[2:])
	for _, limit := range []int{1, 7, 50} {
		var got []Message
		before := ""
		for {
			h, err := a.m.History(ctx, HistoryQuery{Who: "bob", Limit: limit, Before: before})
			require.NoError(t, err)
			got = append(append([]Message{}, h.Messages...), got...)
			if !h.More {
				break
			}
			require.Len(t, h.Messages, limit)
			before = h.Messages[0].ID.String()
		}
		require.Equal(t, all, got)
	}
	// An ID may be shortened; one of another conversation is not found here.
	h, err := a.m.History(ctx, HistoryQuery{Who: "bob", Limit: 1, Before: all[10].ID.String()[:13]})
	require.NoError(t, err)
	require.Equal(t, all[9].ID, h.Messages[0].ID)
	note, err := a.m.Send(ctx, SendInput{Who: "self", Text: "note"})
	require.NoError(t, err)
	_, err = a.m.History(ctx, HistoryQuery{Who: "bob", Before: note.ID.String()})
	require.ErrorIs(t, err, ErrNotFound)
	_, err = a.m.History(ctx, HistoryQuery{Who: "bob", Before: "zz"})
	require.ErrorIs(t, err, ErrInvalid)
	_, err = a.m.History(ctx, HistoryQuery{Who: "bob", Limit: maxPage + 1})
	require.ErrorIs(t, err, ErrInvalid)
}

func TestHistorySince(t *testing.T) {
	a, b := friends(t)
	for range 10 {
		a.clock = a.clock.Add(time.Hour)
		a.send(b, a.clock.Format(time.TimeOnly))
	}
	h, err := a.m.History(context.Background(), HistoryQuery{Who: "bob", Since: testStart.Add(7 * time.Hour)})
	require.NoError(t, err)
	var texts []string
	for _, m := range h.Messages {
		if m.Kind == MessageText {
			texts = append(texts, m.Text)
		}
	}
	require.Equal(t, []string{"12:06:07", "13:06:07", "14:06:07", "15:06:07"}, texts)
}

// What is said while apart and comes late is marked and counted as unread, wherever it stands.
func TestLateArrival(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	a.send(b, "early")
	for range 5 {
		b.send(a, "later by the clock")
	}
	_, err := b.m.MarkRead(ctx, "alice", "")
	require.NoError(t, err)
	meet(t, a, b)
	msgs := b.history("alice")
	require.Equal(t, "later by the clock", msgs[len(msgs)-1].Text)
	for _, msg := range msgs {
		require.Equal(t, msg.Text == "early", msg.Late)
		if msg.Late {
			require.Equal(t, StateNone, msg.State)
		}
	}
	list, err := b.m.Conversations(ctx)
	require.NoError(t, err)
	require.Equal(t, 1, list[0].Unread)
	for _, msg := range a.history("bob") {
		require.False(t, msg.Late && msg.Own)
	}
}

// R9: entries ahead of a gap are shown as standing after a hole, and the hole goes when it is filled.
func TestHole(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	for i := range 6 {
		a.send(b, fmt.Sprint(i))
	}
	id := a.feeds.OwnFeed(feed.DirectConversation(a.account, b.account), feed.Chat)
	entries := a.entries(id)
	bring := func(detached bool, es ...feed.Entry) {
		require.NoError(t, b.db.Update(ctx, func(tx *storage.Tx) error {
			for _, e := range es {
				if err := b.feeds.store(tx, e, !detached); err != nil {
					return err
				}
			}
			return b.m.Applied(tx, replica.Applied{Peer: a.peer(), Entries: es, Detached: detached})
		}))
	}
	bring(false, entries[0], entries[1])
	bring(true, entries[4], entries[5])
	msgs := b.history("alice")
	require.Equal(t, []MessageKind{"request", "accepted", "text", "text", "hole", "text", "text"}, kinds(msgs))
	require.Equal(t, 2, msgs[4].Hole)
	bring(false, entries[2], entries[3])
	require.Equal(t, []string{"alice: 0", "alice: 1", "alice: 2", "alice: 3", "alice: 4", "alice: 5"}, b.said(a)[2:])
	counts, err := b.m.Counts(ctx)
	require.NoError(t, err)
	require.Equal(t, 6, counts.Unread)
	require.True(t, b.history("alice")[4].Late)
}

func kinds(msgs []Message) (out []MessageKind) {
	for _, m := range msgs {
		out = append(out, m.Kind)
	}
	return out
}

func (p *person) entries(id feed.FeedID) (out []feed.Entry) {
	p.t.Helper()
	require.NoError(p.t, p.db.View(func(tx *storage.Tx) error {
		return p.feeds.Entries(tx, id, 1, 0, func(e feed.Entry) (bool, error) {
			out = append(out, e)
			return true, nil
		})
	}))
	return out
}

// write appends an entry of any kind, past all checks of the messenger.
func (p *person) write(conv feed.ConversationID, n feed.Number, k feed.Kind, content []byte) {
	p.t.Helper()
	require.NoError(p.t, p.db.Update(context.Background(), func(tx *storage.Tx) error {
		_, err := p.m.write(tx, replica.Draft{Conversation: conv, Number: n, Kind: k, Content: content})
		return err
	}))
}

// R10: unknown chat kinds are kept and shown; an unknown control kind makes the conversation read-only.
func TestUnknownKinds(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	conv := feed.DirectConversation(a.account, b.account)
	a.write(conv, feed.Chat, 77, []byte("?"))
	a.write(conv, feed.Chat, feed.KindText, []byte{0xff}) // does not decode
	meet(t, a, b)
	require.Equal(t, []string{"alice unsupported", "alice unsupported"}, b.said(a)[2:])
	b.send(a, "still fine")

	a.write(conv, feed.Control, 78, []byte("?"))
	meet(t, a, b)
	_, err := b.m.Send(ctx, SendInput{Who: "alice", Text: "no"})
	require.ErrorIs(t, err, ErrReadOnly)
	_, err = a.m.Send(ctx, SendInput{Who: "bob", Text: "no"})
	require.ErrorIs(t, err, ErrReadOnly)
	// Receiving and reading go on.
	require.Len(t, b.said(a), 6)
	_, err = b.m.MarkRead(ctx, "alice", "")
	require.NoError(t, err)
	// Own acts elsewhere are not touched, except in the conversation itself.
	_, err = b.m.Remark(ctx, "alice", "al")
	require.NoError(t, err)
	b.write(b.m.env.self, feed.Control, 79, []byte("?"))
	_, err = b.m.Remark(ctx, "alice", "al2")
	require.ErrorIs(t, err, ErrReadOnly)
}

func TestMarkReadUntil(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	var ids []string
	for i := range 5 {
		ids = append(ids, a.send(b, fmt.Sprint(i)).ID.String())
	}
	meet(t, a, b)
	n, err := b.m.MarkRead(ctx, "alice", ids[1])
	require.NoError(t, err)
	require.Equal(t, 2, n)
	n, err = b.m.MarkRead(ctx, "alice", ids[0])
	require.NoError(t, err)
	require.Zero(t, n)
	meet(t, a, b)
	require.Equal(t, []State{"read", "read", "delivered", "delivered", "delivered"}, a.states(b))
	n, err = b.m.MarkRead(ctx, "alice", "")
	require.NoError(t, err)
	require.Equal(t, 3, n)

	// Without read receipts nothing is said.
	b.set(settingReceipts, off)
	a.send(b, "secret reader")
	meet(t, a, b)
	_, err = b.m.MarkRead(ctx, "alice", "")
	require.NoError(t, err)
	meet(t, a, b)
	require.Equal(t, StateDelivered, a.states(b)[5])
}

func TestClockAhead(t *testing.T) {
	a, b := friends(t)
	a.clock = a.clock.Add(48 * time.Hour)
	a.send(b, "from the future")
	meet(t, a, b)
	msgs := b.history("alice")
	require.True(t, msgs[2].ClockAhead)
	require.False(t, msgs[1].ClockAhead)
}

// Names and texts of others never move a cursor, reverse what follows, or go on for ever.
func TestHostileWords(t *testing.T) {
	ctx := context.Background()
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	evil := "\x1b[2J\u202eevil\u200b\x07\r\nline" + strings.Repeat("x", 10_000)
	a.add(b)
	card := &pb.Card{Username: "Bob\u202e", Nickname: evil, ContactField: evil, Bio: evil}
	body, err := proto.Marshal(&pb.Request{Message: evil[:500], Card: card})
	require.NoError(t, err)
	a.write(feed.DirectConversation(a.account, b.account), feed.Control, feed.KindRequest, body)
	meet(t, a, b)
	clean := func(s string, lines bool) {
		t.Helper()
		for _, r := range s {
			require.False(t, r < 0x20 && !(lines && r == '\n') || r == 0x7f || r == 0x202e || r == 0x1b, "%q", s)
		}
		require.Less(t, len(s), 2000)
	}
	reqs, err := b.m.Requests(ctx)
	require.NoError(t, err)
	require.Empty(t, reqs[0].Username)
	clean(reqs[0].Nickname, false)
	clean(reqs[0].ContactField, false)
	clean(reqs[0].Message, true)
	_, err = b.m.Accept(ctx, a.id())
	require.NoError(t, err)
	meet(t, a, b)
	a.send(b, "\x1b]0;title\x07 hi\u202e")
	meet(t, a, b)
	for _, msg := range b.history(a.id()) {
		clean(msg.Text, true)
		clean(msg.AuthorName, false)
	}
	c, err := b.m.contact(a.account)
	require.NoError(t, err)
	clean(c.Bio, true)
	b.people.nearby = []Person{{Account: newPerson(t, "x").account, Username: "\u202eroot", Nickname: evil}}
	people, _, err := b.m.Nearby(ctx)
	require.NoError(t, err)
	require.Empty(t, people[0].Username)
	clean(people[0].Nickname, false)
}
