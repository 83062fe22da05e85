package replica

import (
	"fmt"
	"time"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/storage"
)

// maxAckItems bounds one acknowledgement; a page of feeds is far below it.
const maxAckItems = 512

// handleAck notes what the other side holds durably, lets the window move, and stores acknowledgements of own feeds.
func (s *session) handleAck(ack *pb.Ack) error {
	if len(ack.GetItems()) > maxAckItems {
		return fmt.Errorf("acknowledgement of %d feeds: %w", len(ack.GetItems()), ErrProtocol)
	}
	for _, item := range ack.GetItems() {
		id, hash, err := ackFeed(item)
		if err != nil {
			return err
		}
		if err := s.acked(id, item.Last, hash); err != nil {
			return err
		}
	}
	return nil
}

func ackFeed(item *pb.AckItem) (id feed.FeedID, hash feed.EntryID, err error) {
	if len(item.GetConversation()) != 32 || len(item.GetDevice()) != 32 || len(item.GetHash()) != 32 ||
		!feed.Number(item.GetFeed()).Valid() {
		return id, hash, fmt.Errorf("reading an acknowledgement: %w", ErrProtocol)
	}
	copy(id.Conversation[:], item.Conversation)
	copy(id.Device[:], item.Device)
	copy(hash[:], item.Hash)
	id.Number = feed.Number(item.Feed)
	return id, hash, nil
}

func (s *session) acked(id feed.FeedID, last uint64, hash feed.EntryID) error {
	s.mu.Lock()
	c := s.convs[id.Conversation]
	if c == nil || c.feeds[id] == nil {
		early := c != nil && c.lazy && c.phase == phaseOpen
		s.mu.Unlock()
		if early {
			return nil // they hold a feed that has not come here yet
		}
		return s.tax()
	}
	f := c.feeds[id]
	if last <= f.acked {
		s.mu.Unlock()
		return nil
	}
	matched := false
	for len(f.out) > 0 && f.out[0].last <= last {
		matched = f.out[0].last == last && f.out[0].hash == hash
		s.inFlight -= f.out[0].bytes
		f.out = f.out[1:]
	}
	if len(f.out) == 0 {
		f.out = nil
	}
	from := f.acked + 1
	// More than was sent: the rest had come by another road, and what was sent filled the gap before it.
	f.acked, f.sent, f.proven, f.begins = last, max(f.sent, last), true, false
	s.settle(c, f)
	if c.lazy && id.Device != s.r.self {
		// What it got over another road. Another entry than ours is found out when one of the two is sent: heads are told
		// to hurry that.
		if !matched && last == f.last && f.hash != (feed.EntryID{}) && f.hash != hash {
			c.change(id)
			s.enqueue(c)
		}
		matched = true
	}
	if !matched {
		s.mu.Unlock()
		// Not the end of a run that is in flight: compare with what is held.
		if err := s.checkHash(id, last, hash); err != nil {
			return err
		}
		s.mu.Lock()
	}
	if s.r.owes(id) || c.lazy && id.Number == feed.Control {
		s.gotAcks[id] = max(s.gotAcks[id], last)
		s.storeAcks()
	}
	c.line.add(f)
	if len(c.line) > 0 || len(s.queue) > 0 {
		s.enqueue(c)
	}
	caught := f.acked >= f.last
	s.mu.Unlock()
	if id.Device == s.r.self {
		if caught && s.r.streams.allSent(id, last) {
			s.r.tails.trim(id, last)
		}
		if s.r.cfg.OnAck != nil {
			s.r.cfg.OnAck(Ack{Peer: s.peer, Feed: id, From: from, Last: last})
		}
	}
	return nil
}

// checkHash compares a hash that the other side names with the entry that is held.
func (s *session) checkHash(id feed.FeedID, seq uint64, hash feed.EntryID) error {
	same := false
	err := s.r.view(func(tx *storage.Tx) (err error) {
		if same, err = s.r.sameEntry(tx, id, seq, hash); same || err != nil || id.Device == s.r.self {
			return err
		}
		st, _, err := loadFeed(tx, id)
		same = seq > st.last // of somebody else's feed they may hold more than we do
		return err
	})
	if err == nil && !same {
		err = fmt.Errorf("acknowledgement of another entry: %w", ErrProtocol)
	}
	return err
}

// sameEntry says whether the entry with a number is the one with a hash. What is not held is not known to differ.
func (r *Replica) sameEntry(tx *storage.Tx, id feed.FeedID, seq uint64, hash feed.EntryID) (bool, error) {
	st, ok, err := loadFeed(tx, id)
	if !ok || err != nil {
		return false, err
	}
	if seq >= st.last {
		return seq == st.last && st.hash == hash, nil
	}
	s, ok, err := loadStored(tx, st.local, seq)
	if !ok || err != nil {
		return err == nil, err
	}
	e, err := s.entry()
	return e.ID == hash, err
}

// ackPause is how long acknowledgements wait for more of their kind before they are stored. They may: one that is lost
// is learnt again from the other side's heads. Stored at once, each would have its own sync, and the next message of a
// quick writer would wait for it. No user sees the pause.
const ackPause = 3 * time.Millisecond

// storeAcks stores acknowledgements after a pause, one transaction at a time; what comes meanwhile goes into the next.
// Called with mu held.
func (s *session) storeAcks() {
	if s.storing || len(s.gotAcks) == 0 {
		return
	}
	s.storing = true
	time.AfterFunc(ackPause, s.storeAcksNow)
}

func (s *session) storeAcksNow() {
	s.mu.Lock()
	batch := s.gotAcks
	s.gotAcks = map[feed.FeedID]uint64{}
	s.mu.Unlock()
	s.r.cfg.DB.Submit(func(tx *storage.Tx) error {
		for id, last := range batch {
			if err := s.r.storeAck(tx, s.peer, id, last); err != nil {
				return err
			}
		}
		return nil
	}, func(err error) {
		if err != nil {
			s.end(pb.Bye_REASON_CLOSING, fmt.Errorf("storing acknowledgements: %w", err))
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.storing = false
		if err == nil {
			s.storeAcks()
		}
		s.drain()
	})
}

// storeAck moves the acknowledged head of an own feed, or of one under a former key, and tells of it. It never moves back.
func (r *Replica) storeAck(tx *storage.Tx, peer Peer, id feed.FeedID, last uint64) error {
	st, ok, err := loadFeed(tx, id)
	if !ok || err != nil {
		return err
	}
	old, err := loadAcked(tx, st.local, peer.Device)
	if err != nil {
		return err
	}
	if last = min(last, st.last); last <= old {
		return nil
	}
	if err := saveAcked(tx, st.local, peer.Device, last); err != nil || !r.owes(id) {
		return err // of somebody else's control feed only Export wants to know
	}
	if err := r.cfg.Hooks.Acked(tx, Ack{Peer: peer, Feed: id, From: old + 1, Last: last}); err != nil {
		return fmt.Errorf("telling of an acknowledgement: %w", err)
	}
	tx.OnCommit(func() { r.debts.mark(id.Conversation) })
	return nil
}

// storeFloor notes that a device will never take what lies below its floor (R16).
func (r *Replica) storeFloor(tx *storage.Tx, peer Peer, id feed.FeedID, first uint64) error {
	st, ok, err := loadFeed(tx, id)
	if !ok || err != nil {
		return err
	}
	old, err := loadAcked(tx, st.local, peer.Device)
	if err != nil {
		return err
	}
	to := min(first-1, st.last)
	if to <= old {
		return nil
	}
	if err := saveAcked(tx, st.local, peer.Device, to); err != nil {
		return err
	}
	err = r.cfg.Hooks.NotTaken(tx, NotTaken{Peer: peer, Feed: id, From: old + 1, To: to})
	if err != nil {
		return fmt.Errorf("telling of what is not taken: %w", err)
	}
	tx.OnCommit(func() { r.debts.mark(id.Conversation) })
	return nil
}

// handleRefuse notes that the other side does not take entries from a number on.
func (s *session) handleRefuse(raw *pb.Refuse) error {
	var id feed.FeedID
	if len(raw.GetConversation()) != 32 || len(raw.GetDevice()) != 32 || !feed.Number(raw.GetFeed()).Valid() || raw.GetFrom() == 0 {
		return fmt.Errorf("reading a refusal: %w", ErrProtocol)
	}
	copy(id.Conversation[:], raw.Conversation)
	copy(id.Device[:], raw.Device)
	id.Number = feed.Number(raw.Feed)
	s.mu.Lock()
	c := s.convs[id.Conversation]
	if c == nil || c.feeds[id] == nil {
		s.mu.Unlock()
		return s.tax()
	}
	f := c.feeds[id]
	if f.refused != 0 || raw.From > f.sent || raw.From <= f.acked {
		s.mu.Unlock()
		return nil // an answer to what was in flight when the first refusal came
	}
	s.forget(f)
	if id.Device == s.r.self && raw.From-1 > f.acked && raw.From-1 != f.limit {
		// There is room for the first of them; own runs may end anywhere.
		f.limit = raw.From - 1
		c.line.add(f)
		s.enqueue(c)
	} else {
		f.refused = raw.Code
		if f.refused == 0 {
			f.refused = pb.Code_CODE_DENIED
		}
	}
	// In a group it says that its author is not known as a member there, yet.
	lazy := c.lazy
	closed := raw.Code == pb.Code_CODE_NOT_MEMBER && c.phase == phaseOpen && !lazy
	if closed {
		// They do not share it any more: begin again with a knock, once.
		c.listed, c.phase = false, phaseRefused
		if !c.knocked {
			c.phase, c.evaluate = phaseNew, true
		}
		s.enqueue(c)
	}
	s.poke()
	s.mu.Unlock()
	if closed {
		s.r.streams.setLive(s, c.id, false)
	}
	if lazy {
		return nil // it is sent again, and others have it too: nothing to tell the user
	}
	return s.tellRefusal(id, raw.From, raw.Code)
}

func (s *session) tellRefusal(id feed.FeedID, from uint64, code pb.Code) error {
	if id.Device != s.r.self {
		return nil
	}
	s.submitSmall(func(tx *storage.Tx) error {
		return s.r.cfg.Hooks.Refused(tx, Refusal{Peer: s.peer, Feed: id, From: from, Code: code})
	})
	return nil // at most one per run that went out
}

// submitSmall runs a small change in the committer; the session ends if it fails.
func (s *session) submitSmall(f func(*storage.Tx) error) {
	s.mu.Lock()
	s.incoming++
	s.mu.Unlock()
	s.r.cfg.DB.Submit(f, func(err error) {
		if err != nil {
			s.end(pb.Bye_REASON_CLOSING, fmt.Errorf("storing: %w", err))
		}
		s.mu.Lock()
		s.incoming--
		s.drain()
		s.mu.Unlock()
	})
}

func parseRecord(raw []byte) (identity.AccountRecord, error) {
	rec, err := identity.ParseAccountRecord(raw)
	if err != nil {
		return rec, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return rec, nil
}
