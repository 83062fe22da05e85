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
	return r.readWhole(tx, id, st, from, feed.Ends)
}

// readWhole is readRun with a rule of its own for where a run ends before the limits.
func (r *Replica) readWhole(tx *storage.Tx, id feed.FeedID, st feedState, from uint64, ends func(run []feed.Entry, next *feed.Entry) bool) ([]feed.Entry, []byte, error) {
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
		if len(entries) == feed.MaxRunEntries || size > feed.MaxWireRun-runOverhead || whole == len(entries) && ends(entries, &e) {
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
		if err := r.reserveNow(context.Background(), id); err != nil {
			return nil, fmt.Errorf("reading a run: %w", err)
		}
	}
	var entries []feed.Entry
	var signature []byte
	err := r.view(func(tx *storage.Tx) error {
		st, ok, err := loadFeed(tx, id)
		if !ok || err != nil {
			return err
		}
		if st, ok = r.uptoFork(tx, id, st); !ok {
			return nil
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
func (r *Replica) reserveNow(ctx context.Context, id feed.FeedID) error {
	done, err := r.reserved(id)
	if done || err != nil {
		return err
	}
	if err := r.fail("before-offered"); err != nil {
		return err
	}
	return r.cfg.DB.Update(ctx, func(tx *storage.Tx) error { return r.reserve(tx, id) })
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
// more.
func (w *writer) serve(ctx context.Context, c *convSync) error {
	s := w.s
	s.mu.Lock()
	f := s.pick(c)
	if f == nil {
		s.mu.Unlock()
		return nil
	}
	want := wanted{id: f.id, from: f.sent + 1, limit: f.limit, lazy: c.lazy, begins: f.begins}
	if f.lazy {
		want.limit = f.upTo
	}
	last := f.last
	s.mu.Unlock()
	got, err := w.load(ctx, want)
	if err != nil {
		return err
	}
	s.mu.Lock()
	if len(got.entries) == 0 {
		// Erased below a new floor, no signature at hand, or not for the other side: nothing of it can be served now.
		if f.last == last {
			// And is postponed anew when it can be: that the wait for it is over must not be remembered.
			f.last, f.upTo = f.sent, min(f.upTo, f.sent)
		}
		if s.pick(c) != nil {
			s.enqueue(c)
		}
		s.mu.Unlock()
		return nil
	}
	if f.sent+1 != want.from || !f.ready() || c.phase != phaseOpen {
		s.enqueue(c) // the ground moved meanwhile
		s.mu.Unlock()
		return nil
	}
	end := got.entries[len(got.entries)-1]
	run := sentRun{last: end.Seq, hash: end.ID}
	for _, e := range got.entries {
		run.bytes += e.WireSize()
	}
	f.sent = end.Seq
	f.out = append(f.out, run)
	if s.inFlight == 0 && s.watch != nil {
		s.watch.Reset(s.r.cfg.Limits.Ping) // from here on the answer is waited for
	}
	s.inFlight += run.bytes
	if s.pick(c) != nil {
		s.enqueue(c)
	}
	s.mu.Unlock()
	if err := s.r.fail("offer"); err != nil {
		return err
	}
	if s.r.wrote != nil {
		s.r.wrote(s.peer, want.id, want.from, end.Seq)
	}
	out := runPB(got.entries, got.signature)
	out.Certificate = got.certificate
	return w.frame(&pb.Frame{Of: &pb.Frame_Run{Run: &pb.RunFrame{Run: out}}})
}

// pick returns the feed of a conversation to serve next, nil if there is none or no room. Called with mu held.
func (s *session) pick(c *convSync) *outFeed {
	if c.phase != phaseOpen || s.inFlight >= s.window {
		return nil
	}
	return c.line.next(c.lazy)
}

// wanted names the next run of a feed for the other side.
type wanted struct {
	id          feed.FeedID
	from, limit uint64 // limit 0: none
	lazy        bool   // the other side may not have all of it
	begins      bool   // the other side begins the feed with it, above 1
}

// readied is a run that may go out; without entries there is none.
type readied struct {
	entries     []feed.Entry
	signature   []byte
	certificate []byte // nil unless the other side needs it
}

// load brings the next run of a feed, from memory if it was just appended.
func (w *writer) load(ctx context.Context, want wanted) (got readied, err error) {
	r, id, end := w.s.r, want.id, uint64(feed.MaxSeq)
	if want.lazy {
		// Asked for each run: who is removed gets nothing from that moment on, whatever was planned before.
		err := r.view(func(tx *storage.Tx) error {
			sc, err := r.scope(tx, id.Conversation, w.s.peer.Account)
			if err != nil {
				return err
			}
			var first uint64
			if first, end = sc.window.bounds(id); want.from < first {
				end = 0
			}
			if want.begins && want.from > 1 {
				got.certificate, err = r.certificate(tx, id)
			}
			return err
		})
		if err != nil || want.from > end {
			return readied{}, err
		}
	}
	if want.limit != 0 {
		end = min(end, want.limit)
	}
	if id.Device == r.self {
		room := int(min(feed.MaxRunEntries, end-want.from+1))
		if got.entries = r.tails.from(id, want.from, room); len(got.entries) > 0 {
			got.signature = r.signing.sign(r.cfg.Key, got.entries[len(got.entries)-1])
			return got, nil
		}
		if err := w.reserve(ctx, id); err != nil {
			return readied{}, err
		}
	}
	err = r.view(func(tx *storage.Tx) error {
		st, ok, err := loadFeed(tx, id)
		if !ok || err != nil {
			return err
		}
		if st, ok = r.uptoFork(tx, id, st); !ok {
			return nil
		}
		st.last = min(st.last, end)
		got.entries, got.signature, err = r.readRun(tx, id, st, want.from)
		return err
	})
	return got, err
}

// reserve is reserveNow for a writer, which first sends what it has.
func (w *writer) reserve(ctx context.Context, id feed.FeedID) error {
	done, err := w.s.r.reserved(id)
	if done || err != nil {
		return err
	}
	if err := w.flush(); err != nil { // the other side need not wait for our disk
		return err
	}
	return w.s.r.reserveNow(ctx, id)
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
