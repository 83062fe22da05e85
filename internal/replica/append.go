package replica

import (
	"fmt"
	"sync"

	"hima/identity"
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
		for n < len(drafts) && drafts[n].Genesis == nil && drafts[n].Conversation == drafts[0].Conversation && drafts[n].Number == drafts[0].Number {
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
	if drafts[0].Genesis != nil {
		return r.appendGenesis(tx, drafts[0], entries)
	}
	id := r.OwnFeed(drafts[0].Conversation, drafts[0].Number)
	st, err := openFeed(tx, id, r.cfg.Account)
	if err != nil {
		return nil, err
	}
	if st.forkAt != 0 {
		return nil, ErrDiverged
	}
	seen, ok := r.clocks.get(id.Conversation)
	if !ok {
		if seen, err = r.Clock(tx, id.Conversation); err != nil {
			return nil, err
		}
	}
	begin := len(entries)
	now := r.cfg.Now()
	for _, d := range drafts {
		at := d.Time
		if at.IsZero() {
			at = now
		}
		tip := st.tip()
		e, err := r.author.NextInGroup(tip, id.Conversation, id.Number, d.Kind, feed.NextClock(tip, seen), at.UnixMilli(), d.Content, feed.Group{Parents: d.Parents, Epoch: d.Epoch})
		if err != nil {
			return nil, fmt.Errorf("appending to own feed: %w", err)
		}
		st.last, st.hash, st.clock = e.Seq, e.ID, e.Clock
		seen = max(seen, e.Clock)
		entries = append(entries, e)
	}
	if err := saveEntries(tx, st.local, entries[begin:], nil); err != nil {
		return nil, err
	}
	// With a reader at the other end of a session the entries go out right after the commit: the mark that they were
	// offered is then part of this commit instead of one more before the first byte.
	offered := r.streams.live(id.Conversation)
	if offered {
		st.offered = st.last
	}
	r.clocks.raise(id.Conversation, seen)
	st.touched = now.UnixMilli()
	if err := saveFeed(tx, id, &st); err != nil {
		return nil, err
	}
	fresh := entries[begin:len(entries):len(entries)]
	if offered {
		r.signing.begin(r.cfg.Key, fresh[len(fresh)-1])
	}
	lazy := r.cfg.Members.Lazy(tx, id.Conversation)
	tx.OnCommit(func() { r.appended(id, fresh, offered, lazy) })
	return entries, nil
}

// appendGenesis begins a conversation that is named by its first entry (R6).
func (r *Replica) appendGenesis(tx *storage.Tx, d Draft, entries []feed.Entry) ([]feed.Entry, error) {
	now := r.cfg.Now()
	at := d.Time
	if at.IsZero() {
		at = now
	}
	e, err := r.author.NextInGroup(feed.Tip{}, d.Conversation, d.Number, d.Kind, 1, at.UnixMilli(), d.Content, feed.Group{Nonce: d.Genesis})
	if err != nil {
		return nil, fmt.Errorf("beginning a conversation: %w", err)
	}
	st, err := openFeed(tx, e.Feed(), r.cfg.Account)
	if err != nil {
		return nil, err
	}
	st.last, st.hash, st.clock, st.touched = e.Seq, e.ID, e.Clock, now.UnixMilli()
	if err := saveEntries(tx, st.local, []feed.Entry{e}, nil); err != nil {
		return nil, err
	}
	if err := saveFeed(tx, e.Feed(), &st); err != nil {
		return nil, err
	}
	r.clocks.raise(e.Conversation, e.Clock)
	tx.OnCommit(func() { r.appended(e.Feed(), []feed.Entry{e}, false, true) })
	return append(entries, e), nil
}

// appended runs after the commit, in commit order.
func (r *Replica) appended(id feed.FeedID, entries []feed.Entry, offered, lazy bool) {
	r.stored(id.Conversation, entries, Peer{Account: r.cfg.Account, Device: r.self})
	if offered {
		r.tails.add(id, entries)
	}
	r.debts.mark(id.Conversation)
	last := entries[len(entries)-1]
	if lazy {
		r.streams.wakeGroup(id, last)
		return
	}
	r.streams.wake(id, last.Seq)
}

// presigned is the signature of the entry that was appended last, made while the transaction is synced, because a
// writer will ask for it right afterwards. It vouches for what may still be discarded, so it leaves this place only for
// an entry that is durable.
type presigned struct {
	mu   sync.Mutex
	last *signing // guarded by mu
}

type signing struct {
	id        feed.EntryID
	done      chan struct{} // closed when signature is set
	signature []byte
}

func (p *presigned) begin(key identity.DeviceKey, e feed.Entry) {
	s := &signing{id: e.ID, done: make(chan struct{})}
	p.mu.Lock()
	p.last = s
	p.mu.Unlock()
	go func() {
		defer close(s.done)
		s.signature = feed.SignRun(key, e)
	}()
}

// sign returns the signature of a run that ends with e.
func (p *presigned) sign(key identity.DeviceKey, e feed.Entry) []byte {
	p.mu.Lock()
	s := p.last
	p.mu.Unlock()
	if s == nil || s.id != e.ID {
		return feed.SignRun(key, e)
	}
	<-s.done
	return s.signature
}

// clocks remembers the highest clock seen in conversations that are being written to, so that an append does not look
// it up in three places. What it remembers may come from a transaction that was discarded: a clock that is too high by
// a few is as good as any (R7), one that is too low would put the entry in the wrong place.
type clocks struct {
	mu   sync.Mutex
	seen map[feed.ConversationID]uint64
}

// maxClocks bounds the memory; beyond it the cache begins anew.
const maxClocks = 1 << 12

func (c *clocks) get(conv feed.ConversationID) (uint64, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	clock, ok := c.seen[conv]
	return clock, ok
}

// raise remembers a clock of which the conversation's earlier ones are known to be lower or known here.
func (c *clocks) raise(conv feed.ConversationID, clock uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.seen == nil || len(c.seen) >= maxClocks && c.seen[conv] == 0 {
		c.seen = make(map[feed.ConversationID]uint64)
	}
	c.seen[conv] = max(c.seen[conv], clock)
}

// lift raises a clock that is remembered, and nothing else: of a conversation that is not here only a part may be
// known to the caller.
func (c *clocks) lift(conv feed.ConversationID, clock uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old, ok := c.seen[conv]; ok && clock > old {
		c.seen[conv] = clock
	}
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
	maxTails     = 16
	maxTailBytes = 2 << 20 // a window
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

// clear forgets everything, when nobody is left to send to.
func (t *tails) clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.feeds = nil
}

func (t *tails) drop(id feed.FeedID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.feeds, id)
}
