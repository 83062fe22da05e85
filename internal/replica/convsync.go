package replica

import (
	"time"

	"hima/internal/feed"
	"hima/internal/wire/pb"
)

// phase is how far a conversation is in a session.
type phase int

const (
	phaseNew     phase = iota // to be evaluated
	phaseClosed               // not shared: nothing goes out, nothing comes in but a knock
	phaseAsked                // our heads are out
	phaseKnocked              // our knock is out
	phaseRefused              // the knock was refused; until the other side sends heads
	phaseOpen                 // heads were compared: the live road
)

// convSync is what a session knows of a conversation.
type convSync struct {
	id        feed.ConversationID
	phase     phase
	queued    bool
	listed    bool // the other side shares it
	sentHeads bool
	digest    *[32]byte                // of the other side, to be compared
	partial   []feed.Head              // pages of heads that came in so far
	theirs    []feed.Head              // heads to be compared
	compare   bool                     // theirs is set
	evaluate  bool                     // ask Members anew
	announce  bool                     // send our heads
	feeds     map[feed.FeedID]*outFeed // what goes out
	theirEnd  map[feed.FeedID]uint64   // ends the other side listed: what comes in up to them is backlog
	knocked   bool                     // a knock went out in this session
	needWork  bool                     // the invite token was not taken
	shortened bool                     // a shorter knock was tried
	receipt   bool                     // our receipt is to be sent
	line      line                     // of feeds, those that are to be served

	// Of groups.
	lazy       bool
	window     Window               // what the other side may have
	toldDigest bool                 // the other side was told that we share it
	tell       bool                 // changed heads are to be told
	changed    map[feed.FeedID]bool // heads that changed otherwise than by growing
	turnedAway bool                 // something was refused since heads were told
	news       int                  // counts what may change what is refused
	someTheirs []feed.Head          // changed heads of the other side, to be compared
}

// outFeed is the way of one feed to the other side.
type outFeed struct {
	id      feed.FeedID
	last    uint64 // ours
	sent    uint64
	acked   uint64
	hash    feed.EntryID // of last, if it is somebody else's feed in a group and grew in this session
	order   uint64       // those with the lowest go first
	limit   uint64       // 0: none; else the other side takes nothing above it now
	refused pb.Code      // not 0: the other side does not take this feed now
	hold    bool         // the other side has more of it, or another branch
	proven  bool         // the other side acknowledged some of it in this session
	inLine  bool
	begins  bool // the other side begins it above 1
	lowered bool // the other side was offered more than what its floor says, once
	lazy    bool // somebody else's in a group: only what is up to upTo may go
	upTo    uint64
	wait    time.Time // not zero: then upTo becomes waitFor
	waitFor uint64
	out     []sentRun
}

// sentRun is a run that waits for its acknowledgement.
type sentRun struct {
	last  uint64
	hash  feed.EntryID
	bytes int
}

// conv returns the state of a conversation, making it; nil if there are too many. Called with mu held.
func (s *session) conv(id feed.ConversationID) *convSync {
	c := s.convs[id]
	if c != nil {
		return c
	}
	limit := maxConvs
	if s.stranger {
		limit = maxConvsStranger
	}
	if len(s.convs) >= limit {
		return nil
	}
	c = &convSync{id: id}
	s.convs[id] = c
	return c
}

// enqueue puts a conversation in line for the writer. Called with mu held.
func (s *session) enqueue(c *convSync) {
	if !c.queued {
		c.queued = true
		s.queue = append(s.queue, c)
	}
	s.poke()
}

// outFeed returns the way of a feed, making it. Called with mu held.
func (c *convSync) outFeed(id feed.FeedID) *outFeed {
	f := c.feeds[id]
	if f == nil {
		f = &outFeed{id: id}
		if c.feeds == nil {
			c.feeds = map[feed.FeedID]*outFeed{}
		}
		c.feeds[id] = f
	}
	return f
}

// grew tells the session that a feed now ends at last.
func (s *session) grew(id feed.FeedID, last uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.convs[id.Conversation]
	if c == nil {
		// A conversation that began after the digests: the writer asks who may read it.
		if c = s.conv(id.Conversation); c == nil {
			return
		}
		c.evaluate = true
		s.enqueue(c)
		return
	}
	if c.phase == phaseNew || c.phase == phaseClosed {
		// Nothing was to be said before, or we did not share it: both may have changed with this entry.
		c.evaluate = true
		s.enqueue(c)
	}
	if c.phase != phaseOpen {
		return
	}
	f := c.outFeed(id)
	f.last = max(f.last, last)
	c.line.add(f)
	if f.ready() {
		s.enqueue(c)
	}
}

// change says that the head of a feed is to be told anew. Called with mu held.
func (c *convSync) change(id feed.FeedID) {
	if c.changed == nil {
		c.changed = map[feed.FeedID]bool{}
	}
	c.changed[id], c.tell = true, true
}

// grewOwn notes that a feed of this device in a group grew. Called with mu held.
func (s *session) grewOwn(c *convSync, id feed.FeedID, last uint64, hash feed.EntryID) {
	first, end := c.window.bounds(id)
	if last = min(last, end); last < first {
		return
	}
	f := c.outFeed(id)
	if f.sent < first-1 {
		f.sent, f.begins = first-1, true
	}
	f.last, f.hash = max(f.last, last), hash
	c.line.add(f)
	if f.inLine {
		s.enqueue(c)
	}
}

// ready says whether there is something to send that the other side takes.
func (f *outFeed) ready() bool {
	return f.refused == 0 && !f.hold && f.sent < f.last && (f.limit == 0 || f.sent < f.limit) && (!f.lazy || f.sent < f.upTo)
}

// reannounce makes the session look at a conversation anew.
func (s *session) reannounce(id feed.ConversationID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.conv(id)
	if c == nil {
		return
	}
	c.evaluate, c.announce = true, true
	if c.phase == phaseRefused || c.phase == phaseKnocked {
		c.phase = phaseNew
	}
	s.enqueue(c)
}

// reannounceGroup does so for a group. Its heads are many: who lacks some of what they say was told by acknowledgements,
// so only what was refused is asked for again.
func (s *session) reannounceGroup(id feed.ConversationID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.conv(id)
	if c == nil {
		return
	}
	c.evaluate = true
	c.news++
	s.retryLater(c)
	s.enqueue(c)
}
