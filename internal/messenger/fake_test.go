package messenger

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/storage"
)

// fakeFeeds is a replica without sessions: a feed store on a few keys, and marks of what was called.
type fakeFeeds struct {
	author  feed.Author
	account identity.AccountID
	key     identity.DeviceKey

	online     map[identity.DeviceID]bool
	typing     []bool
	presence   map[identity.AccountID]bool
	reannounce int
	receipts   int
}

func fakeKey(kind string, id feed.FeedID, more ...byte) []byte {
	return append(append([]byte("r/"+kind+"/"), feedSuffix(id)...), more...)
}

func be(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func fakeUint(tx *storage.Tx, key []byte) uint64 {
	b, err := tx.Get(key)
	if err != nil || len(b) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

func (f *fakeFeeds) tip(tx *storage.Tx, id feed.FeedID) (feed.Tip, uint64) {
	last := fakeUint(tx, fakeKey("l", id))
	first := max(fakeUint(tx, fakeKey("w", id)), 1)
	if last == 0 {
		return feed.Tip{}, first
	}
	b, err := tx.Get(fakeKey("t", id))
	if err != nil {
		return feed.Tip{}, first
	}
	t := feed.Tip{Seq: last, Clock: binary.BigEndian.Uint64(b[64:])}
	copy(t.Hash[:], b)
	copy(t.Account[:], b[32:])
	return t, first
}

func (f *fakeFeeds) store(tx *storage.Tx, e feed.Entry, contiguous bool) error {
	b := binary.AppendUvarint(nil, uint64(len(e.RawHeader())))
	b = append(append(b, e.RawHeader()...), e.RawBody()...)
	if err := tx.Set(fakeKey("e", e.Feed(), be(e.Seq)...), b); err != nil {
		return err
	}
	clock := append([]byte("r/c/"), e.Conversation[:]...)
	if err := tx.Set(clock, be(max(fakeUint(tx, clock), e.Clock))); err != nil {
		return err
	}
	if !contiguous {
		return nil
	}
	if err := tx.Set(fakeKey("t", e.Feed()), append(append(bytes.Clone(e.ID[:]), e.Account[:]...), be(e.Clock)...)); err != nil {
		return err
	}
	return tx.Set(fakeKey("l", e.Feed()), be(e.Seq))
}

func (f *fakeFeeds) Append(tx *storage.Tx, drafts ...replica.Draft) ([]feed.Entry, error) {
	var out []feed.Entry
	for _, d := range drafts {
		tip, _ := f.tip(tx, f.OwnFeed(d.Conversation, d.Number))
		seen := fakeUint(tx, append([]byte("r/c/"), d.Conversation[:]...))
		at := d.Time.UnixMilli()
		if d.Time.IsZero() {
			at = 1_800_000_000_000
		}
		g := feed.Group{Parents: d.Parents, Epoch: d.Epoch, Nonce: d.Genesis}
		e, err := f.author.NextInGroup(tip, d.Conversation, d.Number, d.Kind, feed.NextClock(tip, seen), at, d.Content, g)
		if err != nil {
			return nil, err
		}
		if err := f.store(tx, e, true); err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

func (f *fakeFeeds) Entry(tx *storage.Tx, id feed.FeedID, seq uint64) (feed.Entry, error) {
	b, err := tx.Get(fakeKey("e", id, be(seq)...))
	if errors.Is(err, storage.ErrNotFound) {
		return feed.Entry{}, replica.ErrNoEntry
	}
	if err != nil {
		return feed.Entry{}, err
	}
	n, w := binary.Uvarint(b)
	return feed.ParseStored(b[w:w+int(n)], b[w+int(n):])
}

func (f *fakeFeeds) Entries(tx *storage.Tx, id feed.FeedID, from, to uint64, each func(feed.Entry) (bool, error)) error {
	o := storage.ScanOptions{Prefix: fakeKey("e", id), Start: fakeKey("e", id, be(from)...)}
	return tx.Scan(o, func(key, _ []byte) (bool, error) {
		seq := binary.BigEndian.Uint64(key[len(key)-8:])
		if to != 0 && seq > to {
			return false, nil
		}
		e, err := f.Entry(tx, id, seq)
		if err != nil {
			return false, err
		}
		return each(e)
	})
}

func (f *fakeFeeds) Erase(tx *storage.Tx, id feed.FeedID, seq uint64) error {
	e, err := f.Entry(tx, id, seq)
	if err != nil {
		return err
	}
	return tx.Set(fakeKey("e", id, be(seq)...), append(binary.AppendUvarint(nil, uint64(len(e.RawHeader()))), e.RawHeader()...))
}

func (f *fakeFeeds) Head(tx *storage.Tx, id feed.FeedID) (feed.Head, bool, error) {
	t, first := f.tip(tx, id)
	return feed.Head{Number: id.Number, Device: id.Device, Account: t.Account, First: first, Last: t.Seq, Hash: t.Hash}, t.Seq > 0, nil
}

func (f *fakeFeeds) FeedEnds(tx *storage.Tx, conv feed.ConversationID, each func(feed.FeedID, replica.End) error) error {
	prefix := append([]byte("r/l/"), conv[:]...)
	return tx.Scan(storage.ScanOptions{Prefix: prefix, KeysOnly: true}, func(key, _ []byte) (bool, error) {
		id, err := parseFeedSuffix(key[len("r/l/"):])
		if err != nil {
			return false, err
		}
		t, first := f.tip(tx, id)
		end := replica.End{First: first, Last: t.Seq, Clock: t.Clock}
		if end.Last < end.First {
			end.Clock = 0
		}
		return true, each(id, end)
	})
}

func (f *fakeFeeds) Acked(tx *storage.Tx, id feed.FeedID, d identity.DeviceID) (uint64, error) {
	return fakeUint(tx, fakeKey("a", id, d[:]...)), nil
}

func (f *fakeFeeds) Offered(tx *storage.Tx, id feed.FeedID) (uint64, error) {
	return fakeUint(tx, fakeKey("o", id)), nil
}

func (f *fakeFeeds) Holes(tx *storage.Tx, id feed.FeedID) (holes []replica.Hole, err error) {
	t, first := f.tip(tx, id)
	next := max(t.Seq+1, first)
	err = f.Entries(tx, id, next, 0, func(e feed.Entry) (bool, error) {
		if e.Seq > next {
			holes = append(holes, replica.Hole{From: next, To: e.Seq - 1})
		}
		next = e.Seq + 1
		return true, nil
	})
	return holes, err
}

func (f *fakeFeeds) FloorToShown(tx *storage.Tx, conv feed.ConversationID, a identity.AccountID) error {
	return tx.Set(append(append([]byte("r/f/"), conv[:]...), a[:]...), nil)
}

func (f *fakeFeeds) OwnFeed(conv feed.ConversationID, n feed.Number) feed.FeedID {
	return feed.FeedID{Conversation: conv, Number: n, Device: f.key.ID()}
}

func (f *fakeFeeds) Connected(d identity.DeviceID) bool         { return f.online[d] }
func (f *fakeFeeds) SendTyping(_ feed.ConversationID, on bool)  { f.typing = append(f.typing, on) }
func (f *fakeFeeds) SendPresence(a identity.AccountID, on bool) { f.presence[a] = on }
func (f *fakeFeeds) PushReceipt(feed.ConversationID)            { f.receipts++ }
func (f *fakeFeeds) Reannounce(feed.ConversationID)             { f.reannounce++ }

// carry brings what b lacks of a's own feeds in their common conversation to b, as the sync protocol would: floors,
// knocks, refusals, acknowledgements and receipts. Nothing is sent both ways; call it twice for that.
func carry(t testing.TB, a, b *person) {
	t.Helper()
	ctx := context.Background()
	var shared []feed.ConversationID
	require.NoError(t, a.db.View(func(tx *storage.Tx) (err error) {
		shared, err = a.m.Shared(tx, b.account)
		return err
	}))
	for _, conv := range shared {
		for _, n := range []feed.Number{feed.Control, feed.Chat} {
			for a.carryRun(ctx, t, b, a.feeds.OwnFeed(conv, n)) {
			}
		}
		carryReceipt(t, b, a, conv)
	}
}

// carryReceipt tells a what b holds and has read of its chat: the head counts what lies below a floor.
func carryReceipt(t testing.TB, b, a *person, conv feed.ConversationID) {
	id := a.feeds.OwnFeed(conv, feed.Chat)
	item := replica.ReceiptItem{Feed: id}
	require.NoError(t, b.db.View(func(tx *storage.Tx) (err error) {
		tip, first := b.feeds.tip(tx, id)
		item.Acked, item.First = tip.Seq, first
		item.Read, err = b.m.Read(tx, id)
		return err
	}))
	if item.Acked == 0 {
		return
	}
	require.NoError(t, a.db.Update(context.Background(), func(tx *storage.Tx) error {
		return a.m.Receipt(tx, replica.Receipt{
			Peer: b.peer(), Conversation: conv, Items: []replica.ReceiptItem{item},
		})
	}))
}

// carryRun brings one run; false when there is nothing more to bring, or it was refused.
func (a *person) carryRun(ctx context.Context, t testing.TB, b *person, id feed.FeedID) bool {
	var entries []feed.Entry
	var prev feed.Tip
	var aLast uint64
	require.NoError(t, a.db.View(func(tx *storage.Tx) error {
		tip, _ := a.feeds.tip(tx, id)
		aLast = tip.Seq
		return nil
	}))
	if aLast == 0 {
		return false
	}
	floored := a.carryFloor(ctx, t, b, id, aLast)
	require.NoError(t, b.db.View(func(tx *storage.Tx) error {
		prev, _ = b.feeds.tip(tx, id)
		return nil
	}))
	require.NoError(t, a.db.Update(ctx, func(tx *storage.Tx) error {
		entries = nil
		size := 0
		if err := a.feeds.Entries(tx, id, prev.Seq+1, 0, func(e feed.Entry) (bool, error) {
			entries = append(entries, e)
			size += e.WireSize()
			return len(entries) < feed.MaxRunEntries && size < feed.MaxRunBytes, nil
		}); err != nil || len(entries) == 0 {
			return err
		}
		entries = entries[:feed.Fit(entries)]
		return tx.Set(fakeKey("o", id), be(entries[len(entries)-1].Seq))
	}))
	if len(entries) == 0 {
		return false
	}
	take, taken := len(entries), uint64(0)
	for take > 0 && taken == 0 {
		take, taken = a.offer(ctx, t, b, prev, entries[:take], floored)
	}
	if taken == 0 {
		return false
	}
	require.NoError(t, a.db.Update(ctx, func(tx *storage.Tx) error {
		if err := tx.Set(fakeKey("a", id, b.device[:]...), be(taken)); err != nil {
			return err
		}
		return a.m.Acked(tx, replica.Ack{Peer: b.peer(), Feed: id, From: entries[0].Seq, Last: taken})
	}))
	return true
}

// offer shows a run to b. It returns how many of it may come in, and the last number if all of it did.
func (a *person) offer(ctx context.Context, t testing.TB, b *person, prev feed.Tip, entries []feed.Entry, _ bool) (take int, taken uint64) {
	sig := feed.SignRun(a.key, entries[len(entries)-1])
	run, err := feed.Assemble(entries, sig)
	require.NoError(t, err)
	run, err = feed.CheckRun(prev, run.PB())
	require.NoError(t, err)
	in := replica.Incoming{Peer: a.peer(), Run: run}
	require.NoError(t, b.db.Update(ctx, func(tx *storage.Tx) error {
		shared, err := b.m.Shared(tx, a.account)
		if err != nil {
			return err
		}
		if len(shared) == 0 {
			token, err := a.token(b)
			if err != nil {
				return err
			}
			in.Knock = &replica.Knock{Token: token, Work: true}
		}
		code := b.m.Listening(a.account)
		if code == codeTaken || in.Knock == nil {
			take, code, err = b.m.Admit(tx, in)
		}
		if err != nil {
			return err
		}
		b.codes = append(b.codes, code)
		if take < len(entries) {
			return a.m.env.db.Update(ctx, func(atx *storage.Tx) error {
				return a.m.Refused(atx, replica.Refusal{Peer: b.peer(), Feed: run.Feed(), From: entries[take].Seq, Code: code})
			})
		}
		for _, e := range run.Entries() {
			if err := b.feeds.store(tx, e, true); err != nil {
				return err
			}
		}
		taken = run.Last().Seq
		return b.m.Applied(tx, replica.Applied{Peer: a.peer(), Entries: run.Entries()})
	}))
	return take, taken
}

func (a *person) token(b *person) (token []byte, err error) {
	err = a.db.View(func(tx *storage.Tx) error {
		token, err = a.m.KnockToken(tx, feed.DirectConversation(a.account, b.account))
		return err
	})
	return token, err
}

// carryFloor lets b set the floor that was asked for to a's present head, and a see it (R16).
func (a *person) carryFloor(ctx context.Context, t testing.TB, b *person, id feed.FeedID, head uint64) bool {
	if id.Number != feed.Chat {
		return false
	}
	mark := append(append([]byte("r/f/"), id.Conversation[:]...), a.account[:]...)
	var from uint64
	require.NoError(t, b.db.Update(ctx, func(tx *storage.Tx) error {
		from = 0
		if had, err := tx.Has(mark); err != nil || !had {
			return err
		}
		if err := tx.Delete(mark); err != nil {
			return err
		}
		tip, _ := b.feeds.tip(tx, id)
		if tip.Seq >= head {
			return nil
		}
		from = tip.Seq + 1
		var e feed.Entry
		if err := a.db.View(func(atx *storage.Tx) (err error) {
			e, err = a.feeds.Entry(atx, id, head)
			return err
		}); err != nil {
			return err
		}
		if err := tx.Set(fakeKey("w", id), be(head+1)); err != nil {
			return err
		}
		if err := tx.Set(fakeKey("t", id), append(append(bytes.Clone(e.ID[:]), e.Account[:]...), be(e.Clock)...)); err != nil {
			return err
		}
		return tx.Set(fakeKey("l", id), be(head))
	}))
	if from == 0 {
		return false
	}
	require.NoError(t, a.db.Update(ctx, func(tx *storage.Tx) error {
		return a.m.NotTaken(tx, replica.NotTaken{Peer: b.peer(), Feed: id, From: from, To: head})
	}))
	return true
}
