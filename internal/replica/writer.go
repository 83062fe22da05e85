package replica

import (
	"bufio"
	"context"
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

	told map[told]saying // what was told of groups
}

// write sends what the session has to say until it ends, and a goodbye at last. What takes long is done in wg.
func (s *session) write(ctx context.Context, wg *sync.WaitGroup) {
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
		if idle, err = w.step(ctx); err != nil || !idle {
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
func (w *writer) step(ctx context.Context) (idle bool, err error) {
	s := w.s
	w.offer(ctx)
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
	return false, w.conversation(ctx, c)
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
func (w *writer) conversation(ctx context.Context, c *convSync) error {
	s := w.s
	if err := s.stillListed(); err != nil {
		return err
	}
	s.mu.Lock()
	evaluate, announce := c.evaluate, c.announce
	c.evaluate, c.announce = false, false
	s.mu.Unlock()
	if evaluate {
		again, err := w.evaluate(ctx, c)
		if err != nil {
			return err
		}
		announce = announce || again
	}
	s.mu.Lock()
	phase, compare, receipt, tell, some := c.phase, c.compare, c.receipt, c.tell, len(c.someTheirs) > 0
	if phase == phaseClosed || phase == phaseNew {
		// Heads that came in are kept: the conversation may be shared in a moment.
		s.mu.Unlock()
		return nil
	}
	c.compare, c.receipt, c.tell = false, false, false
	s.mu.Unlock()
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
	if some {
		if err := w.compareSome(c); err != nil {
			return err
		}
	}
	if tell && !announce {
		if err := w.some(c); err != nil {
			return err
		}
	}
	if receipt {
		if err := w.receipt(c); err != nil {
			return err
		}
	}
	return w.serve(ctx, c)
}

// evaluate asks who shares the conversation and decides how to begin. It says whether our heads are to be sent.
func (w *writer) evaluate(ctx context.Context, c *convSync) (announce bool, err error) {
	s := w.s
	var heads []feed.Head
	var shared bool
	var sc scope
	err = s.r.view(func(tx *storage.Tx) error {
		if shared, err = s.r.shares(tx, s.peer, c.id); err != nil || !shared {
			return err
		}
		if sc, err = s.r.scope(tx, c.id, s.peer.Account); err != nil {
			return err
		}
		heads, err = s.r.headsFor(tx, c.id, sc.window)
		return err
	})
	if err != nil {
		return false, err
	}
	own := s.peer.Account == s.r.cfg.Account
	s.mu.Lock()
	c.lazy, c.window = sc.lazy, sc.window
	if !shared {
		c.phase, c.feeds, c.line = phaseClosed, nil, nil
		s.mu.Unlock()
		s.r.streams.setLive(s, c.id, false)
		return false, nil
	}
	if c.phase == phaseClosed {
		c.phase = phaseNew
	}
	if c.phase == phaseOpen && c.lazy {
		s.refresh(c, heads)
	}
	if c.phase != phaseNew {
		s.mu.Unlock()
		return false, nil
	}
	digest := feed.Digest(heads)
	tell := c.lazy && !c.toldDigest
	c.toldDigest = true
	same := c.digest != nil && *c.digest == digest && !c.compare
	asked := !same && (c.listed || own && s.theirDone)
	if same || asked {
		c.digest = nil
	}
	if asked {
		c.phase = phaseAsked
	}
	done := s.theirDone
	s.mu.Unlock()
	if tell {
		// It came to be shared after our last page of digests.
		d := &pb.Digests{Digests: []*pb.Digest{{Conversation: c.id[:], Digest: digest[:]}}}
		if err := w.frame(&pb.Frame{Of: &pb.Frame_Digests{Digests: d}}); err != nil {
			return false, err
		}
	}
	switch {
	case same:
		return false, w.equal(c, heads)
	case asked:
		return true, nil
	case !done || sc.lazy:
		// Evaluated again after their last page. A group is not knocked at: the other side will say that it shares it.
		return false, nil
	}
	return false, w.knock(ctx, c)
}

// refresh takes over what more the other side may have of a group now. What it may not have any more is found out when
// it is about to go. Called with mu held.
func (s *session) refresh(c *convSync, heads []feed.Head) {
	for _, h := range heads {
		id := feed.FeedID{Conversation: c.id, Number: h.Number, Device: h.Device}
		switch {
		case id.Device == s.r.self:
			s.grewOwn(c, id, h.Last, h.Hash)
		case c.feeds[id] == nil || c.feeds[id].last < h.Last:
			s.grewLazily(c, id, h)
		}
	}
}

// equal opens a conversation of which both sides hold the same.
func (w *writer) equal(c *convSync, heads []feed.Head) error {
	s := w.s
	for _, h := range heads {
		id := feed.FeedID{Conversation: c.id, Number: h.Number, Device: h.Device}
		if s.r.owes(id) {
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
		heads, err := s.r.headsFor(tx, c.id, c.window)
		if err != nil {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, h := range heads {
			id := feed.FeedID{Conversation: c.id, Number: h.Number, Device: h.Device}
			if c.lazy && id.Device != s.r.self {
				s.grewLazily(c, id, h)
				continue
			}
			f := c.outFeed(id)
			f.last = max(f.last, h.Last)
			c.line.add(f)
		}
		s.enqueue(c)
		return nil
	})
}

// announce sends our heads of a conversation.
func (w *writer) announce(c *convSync) error {
	var heads []feed.Head
	err := w.s.r.view(func(tx *storage.Tx) (err error) {
		heads, err = w.s.r.headsFor(tx, c.id, c.window)
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
	c.sentHeads, c.changed, c.turnedAway = true, nil, false
	w.s.mu.Unlock()
	return nil
}
