package replica

import (
	"math/rand/v2"
	"time"

	"hima/internal/feed"
	"hima/internal/wire/pb"
)

// In a group everybody has sessions with a few others, and most entries come over gossip before they could come over
// a session. So entries of others are passed on only after a pause, unless the other side says meanwhile that it holds
// them; what came over any road is said to every session; and what was refused because something else had not arrived
// yet is asked for again. All of that waits a little for more of its kind, on one timer per session that runs only
// while something waits.

// later is what a session will do after a pause. Guarded by the session's mu.
type later struct {
	timer   *time.Timer // nil: none runs
	acks    map[feed.FeedID]feed.Head
	pushes  map[*outFeed]*convSync
	retries map[*convSync]bool
}

func (l *later) idle() bool { return len(l.acks) == 0 && len(l.pushes) == 0 && len(l.retries) == 0 }

// arm lets the timer run. Called with mu held.
func (s *session) arm() {
	if s.later.timer == nil {
		s.later.timer = time.AfterFunc(s.r.cfg.Limits.Batch, s.laterNow)
	}
}

// postpone lets the new entries of a feed wait for the pause. Each session draws its own, so that of several who would
// push one does and the others hear that it is there. Called with mu held.
func (s *session) postpone(c *convSync, f *outFeed) {
	if !f.wait.IsZero() || f.last <= max(f.sent, f.upTo) || f.refused != 0 || f.hold {
		return
	}
	pause := s.r.cfg.Limits.Lazy
	f.wait, f.waitFor = time.Now().Add(pause*3/4+rand.N(pause/2)), f.last
	if s.later.pushes == nil {
		s.later.pushes = map[*outFeed]*convSync{}
	}
	s.later.pushes[f] = c
	s.arm()
}

// settle ends the wait of a feed if the other side has what waits. What came later waits anew. Called with mu held.
func (s *session) settle(c *convSync, f *outFeed) {
	if !f.wait.IsZero() && f.sent >= f.waitFor {
		f.wait = time.Time{}
		delete(s.later.pushes, f)
		s.postpone(c, f)
	}
}

// acknowledgeLater says with the next batch that a feed is held up to a head. Called with mu held.
func (s *session) acknowledgeLater(id feed.FeedID, h feed.Head) {
	if s.later.acks == nil {
		s.later.acks = map[feed.FeedID]feed.Head{}
	}
	s.later.acks[id] = h
	s.arm()
}

// retryLater asks with the next batch for what was refused, if anything was. Called with mu held.
func (s *session) retryLater(c *convSync) {
	if !c.turnedAway {
		return
	}
	if s.later.retries == nil {
		s.later.retries = map[*convSync]bool{}
	}
	s.later.retries[c] = true
	s.arm()
}

// laterNow does what waited long enough.
func (s *session) laterNow() {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := &s.later
	l.timer = nil
	select {
	case <-s.done:
		return
	default:
	}
	for id, h := range l.acks {
		s.acknowledgeLocked(id.Conversation, h)
	}
	l.acks = nil
	for c := range l.retries {
		c.tell = true
		s.enqueue(c)
	}
	l.retries = nil
	now := time.Now()
	for f, c := range l.pushes {
		if f.wait.After(now) {
			continue
		}
		delete(l.pushes, f)
		f.wait, f.upTo = time.Time{}, max(f.upTo, f.waitFor)
		c.line.add(f)
		s.enqueue(c)
		s.postpone(c, f) // what came later
	}
	if len(l.pushes) > 0 {
		s.arm()
	}
	s.poke()
}

// spread tells the sessions of a group that a feed now ends at a head: those who lack it are sent it in time, all are
// told that it is held. from is the session that brought it, which is answered by itself.
func (r *Replica) spread(id feed.FeedID, h feed.Head, from *session) {
	for _, s := range r.streams.having(id.Conversation) {
		s.mu.Lock()
		if c := s.convs[id.Conversation]; c != nil && c.phase == phaseOpen {
			s.grewLazily(c, id, h)
			if _, last := c.window.bounds(id); s != from && last >= h.Last {
				s.acknowledgeLater(id, h)
			}
			if id.Number == feed.Control {
				c.news++
				s.retryLater(c) // what it admits may have been refused
			}
		}
		s.mu.Unlock()
	}
}

// grewLazily notes that a feed of somebody else grew. Called with mu held.
func (s *session) grewLazily(c *convSync, id feed.FeedID, h feed.Head) {
	first, last := c.window.bounds(id)
	if last = min(last, h.Last); last < first {
		return
	}
	f := c.outFeed(id)
	if start := max(first, h.First); f.sent < start-1 {
		f.sent, f.begins = start-1, true
	}
	f.last, f.hash = max(f.last, last), h.Hash
	if id.Device == s.peer.Device {
		f.sent = max(f.sent, f.last) // its own: what it has of it, its heads say
		return
	}
	if !f.lazy {
		f.lazy, f.upTo = true, f.sent
	}
	s.postpone(c, f)
}

// line is the feeds of a conversation of which something is to be sent.
type line []*outFeed

func (l *line) add(f *outFeed) {
	if !f.inLine && f.ready() {
		f.inLine = true
		*l = append(*l, f)
	}
}

// next returns the feed to serve first, nil if none may go now: control before chat, since what a chat entry is allowed
// by may stand there, and among them by order. Feeds that have nothing left leave the line.
func (l *line) next(lazy bool) *outFeed {
	var best *outFeed
	keep, held := (*l)[:0], false
	for _, f := range *l {
		if !f.ready() {
			f.inLine = false
			continue
		}
		keep = append(keep, f)
		// Until the other side has shown that it takes the feed, one run at a time.
		if !f.proven && len(f.out) > 0 {
			held = held || f.id.Number == feed.Control
			continue
		}
		if best == nil || f.id.Number < best.id.Number || f.id.Number == best.id.Number && f.order < best.order {
			best = f
		}
	}
	clear((*l)[len(keep):])
	*l = keep
	if lazy && held && best != nil && best.id.Number == feed.Chat {
		return nil // the control feeds of all authors come first
	}
	return best
}

// some tells the other side of a group which heads changed otherwise than by growing, and that what was refused is
// wanted again.
func (w *writer) some(c *convSync) error {
	s := w.s
	s.mu.Lock()
	ids := c.changed
	c.changed, c.turnedAway = nil, false
	for id := range s.refusedAt {
		if id.Conversation == c.id {
			delete(s.refusedAt, id)
		}
	}
	s.mu.Unlock()
	heads, err := s.r.someHeads(ids, c.window)
	if err != nil {
		return err
	}
	for _, f := range headPages(c.id, heads) {
		f.GetHeads().Partial = true
		if err := w.frame(f); err != nil {
			return err
		}
	}
	return nil
}

// takeSome takes a page of heads that changed: what was refused is sent again from where it was refused. Called with mu
// held.
func (s *session) takeSome(c *convSync, heads []feed.Head) {
	if c.phase != phaseOpen {
		return
	}
	for _, f := range c.feeds {
		if f.refused != 0 {
			s.forget(f)
		} else if f.limit == 0 {
			continue // all of it is taken; else what stands above was refused
		}
		f.refused, f.limit = 0, 0
		c.line.add(f)
	}
	c.someTheirs = append(c.someTheirs, heads...)
	s.enqueue(c)
}

// forget takes back what was sent and not acknowledged. Called with mu held.
func (s *session) forget(f *outFeed) {
	for _, run := range f.out {
		s.inFlight -= run.bytes
	}
	f.out, f.sent = nil, f.acked
}

// refusedFrame makes the frame of a refusal.
func refusedFrame(id feed.FeedID, from uint64, code pb.Code) *pb.Frame {
	return &pb.Frame{Of: &pb.Frame_Refuse{Refuse: &pb.Refuse{
		Conversation: id.Conversation[:], Feed: uint32(id.Number), Device: id.Device[:], From: from, Code: code,
	}}}
}
