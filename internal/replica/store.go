package replica

import (
	"encoding/binary"
	"fmt"
	"math"

	"hima/identity"
	"hima/internal/feed"
	"hima/storage"
)

// OwnFeed names a feed of this device.
func (r *Replica) OwnFeed(conv feed.ConversationID, n feed.Number) feed.FeedID {
	return feed.FeedID{Conversation: conv, Number: n, Device: r.self}
}

// Entry returns one entry, also one that stands ahead of a gap; ErrNoEntry if it is not held.
func (r *Replica) Entry(tx *storage.Tx, id feed.FeedID, seq uint64) (feed.Entry, error) {
	st, ok, err := loadFeed(tx, id)
	if err != nil {
		return feed.Entry{}, err
	}
	if !ok {
		return feed.Entry{}, ErrNoEntry
	}
	s, ok, err := loadStored(tx, st.local, seq)
	if err != nil {
		return feed.Entry{}, err
	}
	if !ok {
		return feed.Entry{}, ErrNoEntry
	}
	return s.entry()
}

// Entries calls f for the entries that are held from one number to another, in order; to 0 means no upper bound.
func (r *Replica) Entries(tx *storage.Tx, id feed.FeedID, from, to uint64, f func(feed.Entry) (more bool, err error)) error {
	st, ok, err := loadFeed(tx, id)
	if !ok || err != nil {
		return err
	}
	return scanStored(tx, st.local, from, to, func(_ uint64, s stored) (bool, error) {
		e, err := s.entry()
		if err != nil {
			return false, err
		}
		return f(e)
	})
}

// scanStored calls f for the stored entries of a range in order. What f is given stays valid.
func scanStored(tx *storage.Tx, l localFeed, from, to uint64, f func(seq uint64, s stored) (bool, error)) error {
	if to == 0 {
		to = math.MaxUint64
	}
	opts := storage.ScanOptions{Prefix: localKey(keyEntry, l, 0), Start: entryKey(l, from)}
	return tx.Scan(opts, func(k, v []byte) (bool, error) {
		seq := binary.BigEndian.Uint64(k[len(k)-8:])
		if isBlock(v) {
			return eachInBlock(v, seq, from, to, f)
		}
		if seq > to {
			return false, nil
		}
		s, err := decodeEntry(v)
		if err != nil {
			return false, err
		}
		return f(seq, s)
	})
}

// Erase removes the body of an entry and keeps its header and signature, so that the chain still verifies. Erasing
// what has no body, or is not held, is no error.
func (r *Replica) Erase(tx *storage.Tx, id feed.FeedID, seq uint64) error {
	st, ok, err := loadFeed(tx, id)
	if !ok || err != nil {
		return err
	}
	s, ok, err := loadStored(tx, st.local, seq)
	if !ok || err != nil || s.body == nil {
		return err
	}
	e, err := s.entry()
	if err != nil {
		return err
	}
	if err := replaceStored(tx, st.local, seq, encodeEntry(e.WithoutBody(), s.signature)); err != nil {
		return err
	}
	tx.OnCommit(func() { r.tails.drop(id) })
	return nil
}

// Head returns what is held of a feed; ok is false if the feed is not known.
func (r *Replica) Head(tx *storage.Tx, id feed.FeedID) (h feed.Head, ok bool, err error) {
	st, ok, err := loadFeed(tx, id)
	if !ok || err != nil {
		return h, false, err
	}
	return st.head(id), true, nil
}

// Heads returns the heads of a conversation that take part in sync. A feed that forked does not (R3).
func (r *Replica) Heads(tx *storage.Tx, conv feed.ConversationID) ([]feed.Head, error) {
	var heads []feed.Head
	err := scanFeeds(tx, convFeedsPrefix(conv), func(id feed.FeedID, st feedState) (bool, error) {
		// A feed of which nothing contiguous is held says nothing: everybody who lacks it holds the same of it.
		h, ok, err := r.headFor(tx, id, st, nil)
		if ok && err == nil {
			heads = append(heads, h)
		}
		return true, err
	})
	return heads, err
}

// Ends returns the heads of all feeds of a conversation of which something is held: of one that forked, what its branches have in
// common (R3).
func (r *Replica) Ends(tx *storage.Tx, conv feed.ConversationID) ([]feed.Head, error) {
	var heads []feed.Head
	err := scanFeeds(tx, convFeedsPrefix(conv), func(id feed.FeedID, st feedState) (bool, error) {
		h := st.head(id)
		if st.forkAt == 0 || st.last < st.forkAt {
			heads = append(heads, h)
			return true, nil
		}
		s, ok, err := loadStored(tx, st.local, st.forkAt-1)
		if !ok || err != nil {
			return true, err
		}
		e, err := s.entry()
		h.Last, h.Hash = e.Seq, e.ID
		heads = append(heads, h)
		return true, err
	})
	return heads, err
}

// End is where a feed ends here.
type End struct {
	First uint64 // what is missing below is not missed
	Last  uint64
	Clock uint64 // of Last; 0: not known, or more is held than a chain from First to Last without a gap
}

// FeedEnds calls f for all feeds of a conversation that are known.
func (r *Replica) FeedEnds(tx *storage.Tx, conv feed.ConversationID, f func(feed.FeedID, End) error) error {
	return scanFeeds(tx, convFeedsPrefix(conv), func(id feed.FeedID, st feedState) (bool, error) {
		end := End{First: st.first, Last: st.last, Clock: st.clock}
		if st.ahead > 0 || st.forkAt != 0 || st.last < st.first {
			end.Clock = 0
		}
		return true, f(id, end)
	})
}

func scanFeeds(tx *storage.Tx, prefix []byte, f func(feed.FeedID, feedState) (bool, error)) error {
	return tx.Scan(storage.ScanOptions{Prefix: prefix}, func(k, v []byte) (bool, error) {
		id, err := parseFeedKey(k)
		if err != nil {
			return false, err
		}
		var st feedState
		if err := st.decode(v); err != nil {
			return false, err
		}
		return f(id, st)
	})
}

// Clock returns the highest Lamport clock seen in a conversation, 0 if nothing was said.
func (r *Replica) Clock(tx *storage.Tx, conv feed.ConversationID) (uint64, error) {
	c, err := loadConv(tx, conv)
	if err != nil {
		return 0, err
	}
	clock := c.clock
	begun := false
	for _, n := range []feed.Number{feed.Control, feed.Chat} {
		st, ok, err := loadFeed(tx, r.OwnFeed(conv, n))
		if err != nil {
			return 0, err
		}
		clock, begun = max(clock, st.clock), begun || ok
	}
	if begun {
		return clock, nil
	}
	// The first entry under a new device key stands after what this profile wrote under its former ones, which never
	// came in from others.
	err = scanFeeds(tx, convFeedsPrefix(conv), func(_ feed.FeedID, st feedState) (bool, error) {
		clock = max(clock, st.clock)
		return true, nil
	})
	return clock, err
}

// touched returns when a conversation last changed, for the order of pages (R12).
func (r *Replica) touched(tx *storage.Tx, conv feed.ConversationID) (int64, error) {
	c, err := loadConv(tx, conv)
	if err != nil {
		return 0, err
	}
	at := c.touched
	for _, n := range []feed.Number{feed.Control, feed.Chat} {
		st, _, err := loadFeed(tx, r.OwnFeed(conv, n))
		if err != nil {
			return 0, err
		}
		at = max(at, st.touched)
	}
	return at, nil
}

// Acked returns up to which number a device has acknowledged a feed, or said that it will never take it (R16).
func (r *Replica) Acked(tx *storage.Tx, id feed.FeedID, device identity.DeviceID) (uint64, error) {
	st, ok, err := loadFeed(tx, id)
	if !ok || err != nil {
		return 0, err
	}
	return loadAcked(tx, st.local, device)
}

// AckedBy calls f for every device that acknowledged something of a feed.
func (r *Replica) AckedBy(tx *storage.Tx, id feed.FeedID, f func(device identity.DeviceID, last uint64) (more bool, err error)) error {
	st, ok, err := loadFeed(tx, id)
	if !ok || err != nil {
		return err
	}
	prefix := localKey(keyAcked, st.local, 0)
	return tx.Scan(storage.ScanOptions{Prefix: prefix}, func(k, v []byte) (bool, error) {
		var device identity.DeviceID
		if len(k) != len(prefix)+len(device) || len(v) != 8 {
			return false, fmt.Errorf("reading acknowledged head: %w", errStored)
		}
		copy(device[:], k[len(prefix):])
		return f(device, binary.BigEndian.Uint64(v))
	})
}

// Offered returns the highest number of an own feed that any stream was ever offered (R1). Only what lies above it may
// be cancelled.
func (r *Replica) Offered(tx *storage.Tx, id feed.FeedID) (uint64, error) {
	st, _, err := loadFeed(tx, id)
	return st.offered, err
}

// Hole is a range of numbers that are missing below entries that are held.
type Hole struct{ From, To uint64 }

// Holes lists what is missing of a feed below its highest entry: no header, or a header whose body should be there.
func (r *Replica) Holes(tx *storage.Tx, id feed.FeedID) ([]Hole, error) {
	st, ok, err := loadFeed(tx, id)
	if !ok || err != nil || st.ahead == 0 || st.forkAt != 0 {
		return nil, err
	}
	var holes []Hole
	next := st.last + 1
	err = scanStored(tx, st.local, next, 0, func(seq uint64, s stored) (bool, error) {
		missing := seq
		if s.body == nil {
			e, err := s.entry()
			if err != nil {
				return false, err
			}
			excused, err := r.cfg.Gate.Excused(tx, e)
			if err != nil {
				return false, err
			}
			if !excused {
				missing = seq + 1
			}
		}
		if missing > next {
			if n := len(holes); n > 0 && holes[n-1].To+1 == next {
				holes[n-1].To = missing - 1
			} else {
				holes = append(holes, Hole{From: next, To: missing - 1})
			}
		}
		next = seq + 1
		return true, nil
	})
	return holes, err
}

// SetFloor says that nothing of a feed below first is offered or asked for any more. A control feed has no floor (R5),
// and a floor never falls. Bodies stay until they are erased.
func (r *Replica) SetFloor(tx *storage.Tx, id feed.FeedID, first uint64) error {
	st, ok, err := loadFeed(tx, id)
	if !ok || err != nil || first <= st.first {
		return err
	}
	if id.Number != feed.Chat || first > st.last+1 {
		return fmt.Errorf("setting floor %d of a %s feed that ends at %d: %w", first, id.Number, st.last, ErrNoEntry)
	}
	st.first = first
	return saveFeed(tx, id, &st)
}
