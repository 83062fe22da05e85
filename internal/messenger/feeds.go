package messenger

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/storage"
)

// span is a range of sequence numbers, both ends in it.
type span struct{ from, to uint64 }

// feedRow is what the messenger knows of one feed beyond its entries: how far it goes, how far it was read, and for own
// feeds how far the other side has it. The state of every message follows from it, so a message has no row of its own
// to be rewritten when its state changes.
type feedRow struct {
	id        feed.FeedID
	local     localFeed
	account   identity.AccountID
	last      uint64   // highest number known, also ahead of a hole
	read      uint64   // others' feeds: the user has read up to here
	delivered uint64   // own feeds: some device of another account holds it up to here (R13, R14)
	peerRead  uint64   // own feeds: the other side has read up to here
	notTaken  []span   // own feeds: below a floor the other side set (R16)
	cancelled []uint64 // own feeds: withdrawn ones above delivered
	cut       uint64   // 0, or the number from which on a fork makes it void (R3)
	refused   pb.Code  // own feeds: why the other side last refused
	refusedAt uint64   // from this number on; 0: it did not
	kept      []span   // own feeds: what a mailbox once held, above delivered, in order and apart (R14)
	many      bool     // of a group; not stored
}

func (f *feedRow) own(account identity.AccountID) bool { return f.account == account }

// shownTo is the last number that may be shown.
func (f *feedRow) shownTo() uint64 {
	if f.cut > 0 && f.id.Number == feed.Chat {
		return min(f.last, f.cut-1)
	}
	return f.last
}

// state is how far an own message got.
func (f *feedRow) state(seq uint64) State {
	for _, s := range f.notTaken {
		if s.from <= seq && seq <= s.to {
			return StateNotTaken
		}
	}
	switch {
	case seq <= f.peerRead:
		return StateRead
	case seq <= f.delivered:
		return StateDelivered
	case slices.Contains(f.cancelled, seq):
		return StateCancelled
	case slices.ContainsFunc(f.kept, func(s span) bool { return s.from <= seq && seq <= s.to }):
		return StateSent
	}
	return StatePending
}

// pending counts own entries that nobody else ever held.
func (f *feedRow) pending() int {
	if f.last <= f.delivered {
		return 0
	}
	settled := slices.Concat(f.notTaken, f.kept)
	for _, n := range f.cancelled {
		settled = append(settled, span{n, n})
	}
	// What is settled in two ways counts once.
	slices.SortFunc(settled, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	n, next := int(f.last-f.delivered), f.delivered+1
	for _, s := range settled {
		if from := max(s.from, next); from <= s.to {
			n -= int(s.to - from + 1)
			next = s.to + 1
		}
	}
	return max(n, 0)
}

// keep notes that a mailbox holds from..to, and returns the parts of which that is news.
func (f *feedRow) keep(from, to uint64) (fresh []span) {
	from, to = max(from, f.delivered+1), min(to, f.last)
	if from > to {
		return nil
	}
	whole := span{from, to}
	var apart []span
	for _, s := range f.kept {
		switch {
		case s.to+1 < from || to+1 < s.from:
			apart = append(apart, s)
			continue
		case from < s.from:
			fresh = append(fresh, span{from, min(to, s.from-1)})
		}
		from = max(from, s.to+1)
		whole = span{min(whole.from, s.from), max(whole.to, s.to)}
	}
	if from <= to {
		fresh = append(fresh, span{from, to})
	}
	f.kept = append(apart, whole)
	slices.SortFunc(f.kept, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	return fresh
}

// deliver notes that another account's device holds from..to, and tells whether that is news.
func (f *feedRow) deliver(from, to uint64) bool {
	changed := false
	if f.refusedAt > 0 && to >= f.refusedAt {
		f.refusedAt, f.refused, changed = 0, 0, true
	}
	var kept []span
	for _, s := range f.notTaken {
		// Another device may well have taken what one device never will.
		if s.to < from || s.from > to {
			kept = append(kept, s)
			continue
		}
		changed = true
		if s.from < from {
			kept = append(kept, span{s.from, from - 1})
		}
		if s.to > to {
			kept = append(kept, span{to + 1, s.to})
		}
	}
	f.notTaken = kept
	if to <= f.delivered {
		return changed
	}
	f.delivered = to
	f.cancelled = slices.DeleteFunc(f.cancelled, func(n uint64) bool { return n <= to })
	f.kept = slices.DeleteFunc(f.kept, func(s span) bool { return s.to <= to })
	if len(f.kept) > 0 {
		f.kept[0].from = max(f.kept[0].from, to+1)
	}
	return true
}

// skip notes that from..to will not be taken.
func (f *feedRow) skip(from, to uint64) bool {
	from = max(from, f.delivered+1)
	if from > to {
		return false
	}
	for _, s := range f.notTaken {
		if s.from <= from && to <= s.to {
			return false
		}
	}
	f.notTaken = append(f.notTaken, span{from, to})
	return true
}

// retreat forgets entries from a number on: they stand nowhere any more, and others may come in their place.
func (f *feedRow) retreat(from uint64) {
	f.last, f.read = min(f.last, from-1), min(f.read, from-1)
	f.cancelled = slices.DeleteFunc(f.cancelled, func(n uint64) bool { return n >= from })
	for _, list := range []*[]span{&f.notTaken, &f.kept} {
		*list = slices.DeleteFunc(*list, func(s span) bool { return s.from >= from })
		for i := range *list {
			(*list)[i].to = min((*list)[i].to, from-1)
		}
	}
	if f.refusedAt >= from {
		f.refused, f.refusedAt = 0, 0
	}
}

func (f *feedRow) append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(f.local))
	b = append(b, f.account[:]...)
	for _, v := range []uint64{f.last, f.read, f.delivered, f.peerRead, f.cut, uint64(f.refused), f.refusedAt, uint64(len(f.notTaken))} {
		b = binary.AppendUvarint(b, v)
	}
	for _, s := range f.notTaken {
		b = binary.AppendUvarint(binary.AppendUvarint(b, s.from), s.to)
	}
	b = binary.AppendUvarint(b, uint64(len(f.cancelled)))
	for _, n := range f.cancelled {
		b = binary.AppendUvarint(b, n)
	}
	if len(f.kept) == 0 {
		return b // as rows were before there were mailboxes
	}
	b = binary.AppendUvarint(b, uint64(len(f.kept)))
	for _, s := range f.kept {
		b = binary.AppendUvarint(binary.AppendUvarint(b, s.from), s.to)
	}
	return b
}

func parseFeedRow(id feed.FeedID, b []byte) (feedRow, error) {
	f := feedRow{id: id}
	r := reader{b: b}
	f.local = localFeed(r.uint())
	r.fixed(f.account[:])
	f.last, f.read, f.delivered, f.peerRead, f.cut = r.uint(), r.uint(), r.uint(), r.uint(), r.uint()
	f.refused, f.refusedAt = pb.Code(r.uint()), r.uint()
	for n := r.uint(); n > 0 && !r.bad; n-- {
		f.notTaken = append(f.notTaken, span{r.uint(), r.uint()})
	}
	for n := r.uint(); n > 0 && !r.bad; n-- {
		f.cancelled = append(f.cancelled, r.uint())
	}
	if len(r.b) > 0 {
		for n := r.uint(); n > 0 && !r.bad; n-- {
			f.kept = append(f.kept, span{r.uint(), r.uint()})
		}
	}
	if err := r.done(); err != nil {
		return feedRow{}, fmt.Errorf("reading feed row: %w", err)
	}
	return f, nil
}

// feeds is the table of feed rows.
type feeds struct {
	env    *env
	tables *tables
}

func feedKey(id feed.FeedID) []byte { return append([]byte(keyFeed), feedSuffix(id)...) }

// get reads a row; ok is false if the feed was never heard of.
func (t *feeds) get(tx *storage.Tx, id feed.FeedID) (row feedRow, ok bool, err error) {
	b, ok, err := getRow(tx, feedKey(id))
	if err != nil || !ok {
		return feedRow{id: id}, false, err
	}
	row, err = parseFeedRow(id, b)
	return row, err == nil, err
}

// ensure reads a row and makes it if it is not there.
func (t *feeds) ensure(tx *storage.Tx, id feed.FeedID, account identity.AccountID) (feedRow, error) {
	row, ok, err := t.get(tx, id)
	if err != nil || ok {
		return row, err
	}
	row.account = account
	row.local, err = t.tables.number(tx, id)
	return row, err
}

func (t *feeds) put(tx *storage.Tx, row feedRow) error {
	return tx.Set(feedKey(row.id), row.append(nil))
}

// local reads the row of a local number.
func (t *feeds) local(tx *storage.Tx, n localFeed) (feedRow, error) {
	id, err := t.tables.name(tx, n)
	if err != nil {
		return feedRow{}, err
	}
	row, ok, err := t.get(tx, id)
	if err == nil && !ok {
		err = errRow
	}
	return row, err
}

// of lists all feeds of a conversation.
func (t *feeds) of(tx *storage.Tx, conv feed.ConversationID) ([]feedRow, error) {
	var rows []feedRow
	prefix := append([]byte(keyFeed), conv[:]...)
	err := tx.Scan(storage.ScanOptions{Prefix: prefix}, func(key, val []byte) (bool, error) {
		id, err := parseFeedSuffix(key[len(keyFeed):])
		if err != nil {
			return false, err
		}
		row, err := parseFeedRow(id, val)
		rows = append(rows, row)
		return true, err
	})
	return rows, err
}
