package replica

import (
	"context"
	"fmt"

	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/storage"
)

// readRun reads the longest run that begins at a number, is not above the end of the feed, and obeys the limits, with
// its signature. Runs of own feeds may end anywhere, their end is signed here; those of others only at an entry whose
// checked signature is held (R4). No entries: there is no such run.
func (r *Replica) readRun(tx *storage.Tx, id feed.FeedID, st feedState, from uint64) ([]feed.Entry, []byte, error) {
	if from < st.first || from > st.last {
		return nil, nil, nil
	}
	own := id.Device == r.self
	var entries []feed.Entry
	var signature []byte
	whole, size := 0, 0
	err := scanStored(tx, st.local, from, st.last, func(seq uint64, s stored) (bool, error) {
		if seq != from+uint64(len(entries)) {
			return false, nil // a hole in what should be contiguous: stop before it
		}
		e, err := s.entry()
		if err != nil {
			return false, err
		}
		size += e.WireSize()
		if len(entries) == feed.MaxRunEntries || size > feed.MaxWireRun-runOverhead {
			return false, nil
		}
		entries = append(entries, e)
		if own || s.signature != nil {
			whole, signature = len(entries), s.signature
		}
		return true, nil
	})
	if err != nil || whole == 0 {
		return nil, nil, err
	}
	entries = entries[:whole]
	if own {
		signature = feed.SignRun(r.cfg.Key, entries[whole-1])
	}
	return entries, signature, nil
}

// ReadRun returns the longest signed run that begins at a number, for other roads than a session. Of an own feed it is
// durable before it returns that the run was offered (R1). ErrNoEntry: there is none.
func (r *Replica) ReadRun(id feed.FeedID, from uint64) (*pb.Run, error) {
	if id.Device == r.self {
		if r.diverged.Load() {
			return nil, ErrDiverged
		}
		if err := r.reserveNow(id); err != nil {
			return nil, fmt.Errorf("reading a run: %w", err)
		}
	}
	var entries []feed.Entry
	var signature []byte
	err := r.view(func(tx *storage.Tx) error {
		st, ok, err := loadFeed(tx, id)
		if !ok || err != nil || st.forkAt != 0 {
			return err
		}
		entries, signature, err = r.readRun(tx, id, st, from)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading a run: %w", err)
	}
	if len(entries) == 0 {
		return nil, ErrNoEntry
	}
	return runPB(entries, signature), nil
}

// reserveNow makes it durable that an own feed is offered up to its end, unless it is (R1).
func (r *Replica) reserveNow(id feed.FeedID) error {
	done, err := r.reserved(id)
	if done || err != nil {
		return err
	}
	if err := r.fail("before-offered"); err != nil {
		return err
	}
	return r.cfg.DB.Update(context.Background(), func(tx *storage.Tx) error { return r.reserve(tx, id) })
}

func (r *Replica) reserved(id feed.FeedID) (done bool, err error) {
	err = r.view(func(tx *storage.Tx) error {
		st, ok, err := loadFeed(tx, id)
		done = !ok || st.offered >= st.last
		return err
	})
	return done, err
}

// runOverhead is what a run adds to its entries: the signature.
const runOverhead = 66

// reserve makes it durable that an own feed is offered up to a number (R1), if it is not yet. It must be called before
// the entries are read for sending: what is read afterwards can no longer be cancelled.
func (r *Replica) reserve(tx *storage.Tx, id feed.FeedID) error {
	st, ok, err := loadFeed(tx, id)
	if !ok || err != nil || st.offered >= st.last {
		return err
	}
	st.offered = st.last
	return saveFeed(tx, id, &st)
}

// serve writes one run of a conversation, if the window has room, and puts the conversation in line again if there is
// more. Control comes before chat: what a chat entry is allowed by may stand there.
func (w *writer) serve(c *convSync) error {
	s := w.s
	s.mu.Lock()
	f := s.pick(c)
	if f == nil {
		s.mu.Unlock()
		return nil
	}
	id, from, limit := f.id, f.sent+1, f.limit
	s.mu.Unlock()
	entries, signature, err := w.load(id, from, limit)
	if err != nil {
		return err
	}
	s.mu.Lock()
	if len(entries) == 0 {
		// Erased below a new floor, or no signature at hand: nothing of it can be served now.
		f.last = f.sent
		s.mu.Unlock()
		return nil
	}
	if f.sent+1 != from || !f.ready() || c.phase != phaseOpen {
		s.enqueue(c) // the ground moved meanwhile
		s.mu.Unlock()
		return nil
	}
	last := entries[len(entries)-1]
	run := sentRun{last: last.Seq, hash: last.ID}
	for _, e := range entries {
		run.bytes += e.WireSize()
	}
	f.sent = last.Seq
	f.out = append(f.out, run)
	s.inFlight += run.bytes
	if s.pick(c) != nil {
		s.enqueue(c)
	}
	s.mu.Unlock()
	if err := s.r.fail("offer"); err != nil {
		return err
	}
	if s.r.wrote != nil {
		s.r.wrote(s.peer, id, from, last.Seq)
	}
	return w.frame(&pb.Frame{Of: &pb.Frame_Run{Run: &pb.RunFrame{Run: runPB(entries, signature)}}})
}

// pick returns the feed of a conversation to serve next, nil if there is none or no room. Called with mu held.
func (s *session) pick(c *convSync) *outFeed {
	if c.phase != phaseOpen || s.inFlight >= s.window {
		return nil
	}
	var best *outFeed
	for _, f := range c.feeds {
		// Until the other side has shown that it takes the feed, one run at a time.
		if !f.ready() || !f.proven && len(f.out) > 0 {
			continue
		}
		if best == nil || f.id.Number < best.id.Number {
			best = f
		}
	}
	return best
}

// load brings the next run of a feed, from memory if it was just appended.
func (w *writer) load(id feed.FeedID, from, limit uint64) (entries []feed.Entry, signature []byte, err error) {
	r := w.s.r
	if id.Device == r.self {
		room := feed.MaxRunEntries
		if limit != 0 {
			room = int(min(uint64(room), limit-from+1))
		}
		if entries = r.tails.from(id, from, room); len(entries) > 0 {
			return entries, r.signing.sign(r.cfg.Key, entries[len(entries)-1]), nil
		}
		if err := w.reserve(id); err != nil {
			return nil, nil, err
		}
	}
	err = r.view(func(tx *storage.Tx) error {
		st, ok, err := loadFeed(tx, id)
		if !ok || err != nil || st.forkAt != 0 {
			return err
		}
		if limit != 0 && id.Device == r.self {
			st.last = min(st.last, limit)
		}
		entries, signature, err = r.readRun(tx, id, st, from)
		return err
	})
	return entries, signature, err
}

// reserve is reserveNow for a writer, which first sends what it has.
func (w *writer) reserve(id feed.FeedID) error {
	done, err := w.s.r.reserved(id)
	if done || err != nil {
		return err
	}
	if err := w.flush(); err != nil { // the other side need not wait for our disk
		return err
	}
	return w.s.r.reserveNow(id)
}

func runPB(entries []feed.Entry, signature []byte) *pb.Run {
	all := make([]pb.Entry, len(entries))
	run := &pb.Run{Entries: make([]*pb.Entry, len(entries)), Signature: signature}
	for i := range entries {
		all[i].Header, all[i].Body = entries[i].RawHeader(), entries[i].RawBody()
		run.Entries[i] = &all[i]
	}
	return run
}
