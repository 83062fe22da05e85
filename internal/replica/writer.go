package replica

import (
	"bufio"
	"errors"
	"fmt"
	"sync"
	"time"

	"hima/internal/feed"
	"hima/internal/wire"
	"hima/internal/wire/pb"
	"hima/storage"
)

// writer is what the writer goroutine alone uses.
type writer struct {
	s   *session
	out *bufio.Writer
	buf []byte // of one frame
	wg  *sync.WaitGroup
	set time.Time // when the write deadline was last moved

	toldKeys map[feed.ConversationID][32]byte // hashes of the keys that were told
}

// write sends what the session has to say until it ends, and a goodbye at last. What takes long is done in wg.
func (s *session) write(wg *sync.WaitGroup) {
	w := &writer{s: s, out: bufio.NewWriterSize(s.st, writeBuffer), wg: wg}
	pages, err := s.digestPages()
	for _, f := range pages {
		if err == nil {
			err = w.frame(f)
		}
	}
	for err == nil {
		select {
		case <-s.done:
			w.goodbye()
			return
		default:
		}
		var idle bool
		if idle, err = w.step(); err != nil || !idle {
			continue
		}
		// Nothing is left to say: only now the buffer is worth a packet.
		if err = w.flush(); err != nil {
			break
		}
		select {
		case <-s.wake:
		case <-s.done:
		}
	}
	if err != nil {
		reason := pb.Bye_REASON_CLOSING
		if errors.Is(err, ErrNotAdmitted) {
			reason = pb.Bye_REASON_REVOKED
		}
		s.end(reason, fmt.Errorf("writing: %w", err))
		w.goodbye()
	}
}

// goodbye writes the reason of the end, unless the other side gave it or is silent.
func (w *writer) goodbye() {
	w.s.mu.Lock()
	reason := w.s.endReason
	w.s.mu.Unlock()
	if reason == pb.Bye_REASON_UNSPECIFIED {
		return
	}
	_ = w.s.st.SetWriteDeadline(time.Now().Add(byeTimeout))
	w.set = time.Now().Add(time.Hour) // not to be moved again
	if w.frame(&pb.Frame{Of: &pb.Frame_Bye{Bye: &pb.Bye{Reason: reason}}}) == nil {
		_ = w.flush()
	}
}

func (w *writer) frame(f *pb.Frame) error {
	b, err := wire.Append(w.buf[:0], f)
	if err != nil {
		return err
	}
	w.buf = b[:0]
	if len(b) > wire.MaxSyncFrame+4 {
		return fmt.Errorf("frame of %d bytes: %w", len(b), wire.ErrTooLarge)
	}
	if w.out.Buffered()+len(b) > w.out.Size() {
		w.deadline()
	}
	_, err = w.out.Write(b)
	return err
}

func (w *writer) flush() error {
	if w.out.Buffered() == 0 {
		return nil
	}
	w.deadline()
	return w.out.Flush()
}

// deadline moves the deadline of writes, at most once a second: it costs a timer each time.
func (w *writer) deadline() {
	if now := time.Now(); now.Sub(w.set) > time.Second {
		w.set = now
		_ = w.s.st.SetWriteDeadline(now.Add(writeTimeout))
	}
}

// step writes what is most urgent. It says that there was nothing to do.
func (w *writer) step() (idle bool, err error) {
	s := w.s
	w.offer()
	if err := w.keys(); err != nil {
		return false, err
	}
	s.mu.Lock()
	answers := s.answers
	s.answers = nil
	ack := s.takeAcks()
	var c *convSync
	if len(s.queue) > 0 {
		c = s.queue[0]
		s.queue = s.queue[1:]
		c.queued = false
	} else {
		s.queue = nil
	}
	s.mu.Unlock()
	if ack != nil {
		if err := s.r.fail("ack"); err != nil {
			return false, err
		}
		if err := w.frame(ack); err != nil {
			return false, err
		}
	}
	for _, f := range answers {
		if err := w.frame(f); err != nil {
			return false, err
		}
	}
	if c == nil {
		return ack == nil && len(answers) == 0, nil
	}
	if ack != nil || len(answers) > 0 {
		// Answers do not wait for the disk reads that follow.
		if err := w.flush(); err != nil {
			return false, err
		}
	}
	return false, w.conversation(c)
}

// takeAcks turns the waiting acknowledgements into one frame. Called with mu held.
func (s *session) takeAcks() *pb.Frame {
	if len(s.acks) == 0 {
		return nil
	}
	n := min(len(s.acks), maxAckItems)
	items := make([]*pb.AckItem, n)
	for i := range items {
		h, conv := s.acks[i], s.ackConvs[i]
		items[i] = &pb.AckItem{Conversation: conv[:], Feed: uint32(h.Number), Device: h.Device[:], Last: h.Last, Hash: h.Hash[:]}
	}
	s.acks, s.ackConvs = append(s.acks[:0], s.acks[n:]...), append(s.ackConvs[:0], s.ackConvs[n:]...)
	return &pb.Frame{Of: &pb.Frame_Ack{Ack: &pb.Ack{Items: items}}}
}

// conversation does what is to be done for one conversation: evaluate, announce, compare, then one run.
func (w *writer) conversation(c *convSync) error {
	s := w.s
	if err := s.stillListed(); err != nil {
		return err
	}
	s.mu.Lock()
	evaluate, announce, compare, receipt := c.evaluate, c.announce, c.compare, c.receipt
	c.evaluate, c.announce, c.compare, c.receipt = false, false, false, false
	s.mu.Unlock()
	if evaluate {
		again, err := w.evaluate(c)
		if err != nil {
			return err
		}
		announce = announce || again
	}
	s.mu.Lock()
	phase := c.phase
	s.mu.Unlock()
	if phase == phaseClosed || phase == phaseNew {
		return nil
	}
	if announce || compare && !c.sentHeads {
		if err := w.announce(c); err != nil {
			return err
		}
	}
	if compare {
		if err := w.compare(c); err != nil {
			return err
		}
	}
	if receipt {
		if err := w.receipt(c); err != nil {
			return err
		}
	}
	return w.serve(c)
}

// evaluate asks who shares the conversation and decides how to begin. It says whether our heads are to be sent.
func (w *writer) evaluate(c *convSync) (announce bool, err error) {
	s := w.s
	var heads []feed.Head
	var shared bool
	err = s.r.view(func(tx *storage.Tx) error {
		if shared, err = s.r.shares(tx, s.peer, c.id); err != nil || !shared {
			return err
		}
		heads, err = s.r.Heads(tx, c.id)
		return err
	})
	if err != nil {
		return false, err
	}
	own := s.peer.Account == s.r.cfg.Account
	s.mu.Lock()
	if !shared {
		c.phase, c.feeds = phaseClosed, nil
		s.mu.Unlock()
		s.r.streams.setLive(s, c.id, false)
		return false, nil
	}
	if c.phase == phaseClosed {
		c.phase = phaseNew
	}
	if c.phase != phaseNew {
		s.mu.Unlock()
		return false, nil
	}
	switch {
	case c.digest != nil && *c.digest == feed.Digest(heads) && !c.compare:
		c.digest = nil
		s.mu.Unlock()
		return false, w.equal(c, heads)
	case c.listed || own && s.theirDone:
		c.digest = nil
		c.phase = phaseAsked
		s.mu.Unlock()
		return true, nil
	case !s.theirDone:
		s.mu.Unlock()
		return false, nil // evaluated again after their last page
	}
	s.mu.Unlock()
	return false, w.knock(c)
}

// equal opens a conversation of which both sides hold the same.
func (w *writer) equal(c *convSync, heads []feed.Head) error {
	s := w.s
	for _, h := range heads {
		if h.Device == s.r.self {
			id := feed.FeedID{Conversation: c.id, Number: h.Number, Device: h.Device}
			s.submitSmall(func(tx *storage.Tx) error { return s.r.storeAck(tx, s.peer, id, h.Last) })
		}
	}
	s.mu.Lock()
	for _, h := range heads {
		f := c.outFeed(feed.FeedID{Conversation: c.id, Number: h.Number, Device: h.Device})
		f.sent, f.acked = max(f.sent, h.Last), max(f.acked, h.Last)
		f.last = max(f.last, h.Last)
		f.proven = true
	}
	s.mu.Unlock()
	return w.open(c)
}

// open makes a conversation the live road. What was appended between the look at the heads and now is found by a
// second look, after which every append wakes the session.
func (w *writer) open(c *convSync) error {
	s := w.s
	s.mu.Lock()
	first := c.phase != phaseOpen
	c.phase, c.knocked, c.shortened = phaseOpen, false, false
	if !s.opened {
		s.opened = true
		s.offerLocked()
		s.keysLocked()
	}
	c.receipt = c.receipt || first
	s.mu.Unlock()
	s.r.streams.setLive(s, c.id, true)
	return s.r.view(func(tx *storage.Tx) error {
		heads, err := s.r.Heads(tx, c.id)
		if err != nil {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, h := range heads {
			f := c.outFeed(feed.FeedID{Conversation: c.id, Number: h.Number, Device: h.Device})
			f.last = max(f.last, h.Last)
		}
		s.enqueue(c)
		return nil
	})
}

// announce sends our heads of a conversation.
func (w *writer) announce(c *convSync) error {
	var heads []feed.Head
	err := w.s.r.view(func(tx *storage.Tx) (err error) {
		heads, err = w.s.r.Heads(tx, c.id)
		return err
	})
	if err != nil {
		return err
	}
	for _, f := range headPages(c.id, heads) {
		if err := w.frame(f); err != nil {
			return err
		}
	}
	w.s.mu.Lock()
	c.sentHeads = true
	w.s.mu.Unlock()
	return nil
}

// compare works out from the other side's heads what it lacks.
func (w *writer) compare(c *convSync) error {
	s := w.s
	s.mu.Lock()
	theirs := c.theirs
	c.theirs = nil
	s.mu.Unlock()
	byFeed := make(map[feed.FeedID]feed.Head, len(theirs))
	for _, h := range theirs {
		byFeed[feed.FeedID{Conversation: c.id, Number: h.Number, Device: h.Device}] = h
	}
	var plans []plan
	var proofs []*pb.Frame
	err := s.r.view(func(tx *storage.Tx) error {
		return scanFeeds(tx, convFeedsPrefix(c.id), func(id feed.FeedID, st feedState) (bool, error) {
			h, listed := byFeed[id]
			if st.forkAt != 0 {
				if proof, err := loadProof(tx, st.local); err != nil {
					return false, err
				} else if listed && proof != nil {
					proofs = append(proofs, &pb.Frame{Of: &pb.Frame_Fork{Fork: proof.PB()}})
				}
				return true, nil
			}
			p, err := s.r.plan(tx, id, st, h)
			plans = append(plans, p)
			return true, err
		})
	})
	if err != nil {
		return err
	}
	for _, f := range proofs {
		if err := w.frame(f); err != nil {
			return err
		}
	}
	s.mu.Lock()
	for _, p := range plans {
		s.follow(c, p)
	}
	s.mu.Unlock()
	for _, p := range plans {
		if p.clash != nil {
			if err := w.frame(&pb.Frame{Of: &pb.Frame_Run{Run: &pb.RunFrame{Run: p.clash.PB()}}}); err != nil {
				return err
			}
		}
		if p.id.Device == s.r.self && !p.hold {
			s.submitSmall(func(tx *storage.Tx) error {
				if err := s.r.storeFloor(tx, s.peer, p.id, p.theirs.First); err != nil || p.theirs.Last == 0 {
					return err
				}
				return s.r.storeAck(tx, s.peer, p.id, p.theirs.Last)
			})
		}
	}
	return w.open(c)
}

// plan is what follows from the comparison of one feed.
type plan struct {
	id     feed.FeedID
	theirs feed.Head // First is at least 1
	last   uint64    // ours
	hold   bool      // nothing of the feed is sent: they hold more than its own device, or another branch
	clash  *feed.Run // shows them the other branch
}

func (r *Replica) plan(tx *storage.Tx, id feed.FeedID, st feedState, theirs feed.Head) (plan, error) {
	theirs.First = max(theirs.First, 1)
	p := plan{id: id, theirs: theirs, last: st.last}
	switch {
	case theirs.Last > st.last:
		p.hold = id.Device == r.self
		return p, nil
	case theirs.Last == 0 || theirs.Last < st.first-1:
		return p, nil
	}
	same, err := r.sameEntry(tx, id, theirs.Last, theirs.Hash)
	if same || err != nil {
		return p, err
	}
	p.hold = true
	p.clash, err = r.runCovering(tx, id, st, max(theirs.Last, st.first))
	return p, err
}

// follow puts a plan into effect. Called with mu held.
func (s *session) follow(c *convSync, p plan) {
	f := c.outFeed(p.id)
	f.last = max(f.last, p.last)
	f.hold = p.hold
	has := max(p.theirs.Last, p.theirs.First-1)
	if f.refused != 0 || f.limit != 0 || len(f.out) == 0 {
		// Nothing is under way, or it was not taken: what they say is the place to go on from.
		for _, run := range f.out {
			s.inFlight -= run.bytes
		}
		f.out, f.sent = nil, has
	}
	for len(f.out) > 0 && f.out[0].last <= has {
		// Settled without an acknowledgement: it lies below their floor.
		s.inFlight -= f.out[0].bytes
		f.out = f.out[1:]
	}
	f.refused, f.limit = 0, 0
	f.acked = max(f.acked, min(has, p.last))
	f.sent = max(f.sent, f.acked)
}
