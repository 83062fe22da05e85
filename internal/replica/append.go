package replica

import (
	"fmt"
	"sync"

	"hima/internal/feed"
	"hima/storage"
)

// Append writes entries to this device's own feeds: it allots number and clock and stores them. They count, and are
// offered, only once the transaction is durable (R1); then sessions are woken by themselves. The entries are unsigned
// on disk: the end of a run is signed when the run is offered.
func (r *Replica) Append(tx *storage.Tx, drafts ...Draft) ([]feed.Entry, error) {
	if r.diverged.Load() {
		return nil, ErrDiverged
	}
	entries := make([]feed.Entry, 0, len(drafts))
	for len(drafts) > 0 {
		// Neighbours of one feed share the reading and writing of its state.
		n := 1
		for n < len(drafts) && drafts[n].Conversation == drafts[0].Conversation && drafts[n].Number == drafts[0].Number {
			n++
		}
		var err error
		if entries, err = r.appendFeed(tx, drafts[:n], entries); err != nil {
			return nil, err
		}
		drafts = drafts[n:]
	}
	return entries, nil
}

func (r *Replica) appendFeed(tx *storage.Tx, drafts []Draft, entries []feed.Entry) ([]feed.Entry, error) {
	id := r.OwnFeed(drafts[0].Conversation, drafts[0].Number)
	st, err := openFeed(tx, id, r.cfg.Account)
	if err != nil {
		return nil, err
	}
	if st.forkAt != 0 {
		return nil, ErrDiverged
	}
	seen, err := r.Clock(tx, id.Conversation)
	if err != nil {
		return nil, err
	}
	begin := len(entries)
	now := r.cfg.Now()
	for _, d := range drafts {
		at := d.Time
		if at.IsZero() {
			at = now
		}
		tip := st.tip()
		e, err := r.author.Next(tip, id.Conversation, id.Number, d.Kind, feed.NextClock(tip, seen), at.UnixMilli(), d.Content)
		if err != nil {
			return nil, fmt.Errorf("appending to own feed: %w", err)
		}
		if err := tx.Set(entryKey(st.local, e.Seq), encodeEntry(e, nil)); err != nil {
			return nil, err
		}
		st.last, st.hash, st.clock = e.Seq, e.ID, e.Clock
		seen = max(seen, e.Clock)
		entries = append(entries, e)
	}
	// With a reader at the other end of a session the entries go out right after the commit: the mark that they were
	// offered is then part of this commit instead of one more before the first byte.
	offered := r.streams.live(id.Conversation)
	if offered {
		st.offered = st.last
	}
	st.touched = now.UnixMilli()
	if err := saveFeed(tx, id, &st); err != nil {
		return nil, err
	}
	fresh := entries[begin:len(entries):len(entries)]
	tx.OnCommit(func() { r.appended(id, fresh, offered) })
	return entries, nil
}

// appended runs after the commit, in commit order.
func (r *Replica) appended(id feed.FeedID, entries []feed.Entry, offered bool) {
	if offered {
		r.tails.add(id, entries)
	}
	r.debts.mark(id.Conversation)
	r.streams.wake(id, entries[len(entries)-1].Seq)
}

// tails keeps the newest entries of own feeds that are being sent, so that the live road does not read them back from
// disk. Only entries that were marked as offered in their own commit are here: nothing in it can have been cancelled.
type tails struct {
	mu    sync.Mutex
	feeds map[feed.FeedID]*tail // guarded by mu
}

type tail struct {
	entries []feed.Entry // consecutive
	bytes   int
}

// Bounds of the memory that tails take: feeds times bytes, about 32 MiB under full load, nothing when idle.
const (
	maxTails     = 32
	maxTailBytes = 1 << 20
)

func (t *tails) add(id feed.FeedID, entries []feed.Entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.feeds[id]
	if l == nil || len(l.entries) > 0 && l.entries[len(l.entries)-1].Seq+1 != entries[0].Seq {
		if t.feeds == nil || len(t.feeds) >= maxTails {
			t.feeds = make(map[feed.FeedID]*tail)
		}
		l = &tail{}
		t.feeds[id] = l
	}
	for _, e := range entries {
		l.entries = append(l.entries, e)
		l.bytes += e.WireSize()
	}
	if l.bytes > maxTailBytes {
		// A session that is so far behind reads from disk. Half is dropped at once, so that copying stays rare.
		half := len(l.entries) / 2
		rest := append(make([]feed.Entry, 0, len(l.entries)), l.entries[half:]...)
		l.entries, l.bytes = rest, 0
		for _, e := range rest {
			l.bytes += e.WireSize()
		}
	}
}

// from returns the entries from a number on that fit one run, nil if the tail does not reach back so far.
func (t *tails) from(id feed.FeedID, seq uint64, limit int) []feed.Entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.feeds[id]
	if l == nil || len(l.entries) == 0 || seq < l.entries[0].Seq {
		return nil
	}
	i := seq - l.entries[0].Seq
	if i >= uint64(len(l.entries)) {
		return nil
	}
	rest := l.entries[i:]
	if len(rest) > limit {
		rest = rest[:limit]
	}
	return append([]feed.Entry(nil), rest[:feed.Fit(rest)]...)
}

// trim forgets what every session has sent.
func (t *tails) trim(id feed.FeedID, upTo uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.feeds[id]
	if l == nil || len(l.entries) == 0 || upTo < l.entries[len(l.entries)-1].Seq {
		return
	}
	delete(t.feeds, id)
}

func (t *tails) drop(id feed.FeedID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.feeds, id)
}
