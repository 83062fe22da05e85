package replica

import (
	"hash/maphash"

	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/storage"
)

// compare works out from the other side's heads what it lacks.
func (w *writer) compare(c *convSync) error {
	s := w.s
	s.mu.Lock()
	theirs := c.theirs
	c.theirs = nil
	s.heads -= len(theirs)
	s.mu.Unlock()
	byFeed := make(map[feed.FeedID]feed.Head, len(theirs))
	for _, h := range theirs {
		byFeed[feed.FeedID{Conversation: c.id, Number: h.Number, Device: h.Device}] = h
	}
	var cmp comparison
	err := s.r.view(func(tx *storage.Tx) error {
		return scanFeeds(tx, convFeedsPrefix(c.id), func(id feed.FeedID, st feedState) (bool, error) {
			h, listed := byFeed[id]
			err := w.compareFeed(tx, c, &cmp, id, st, h, listed)
			return err == nil, err
		})
	})
	if err != nil {
		return err
	}
	for _, p := range cmp.plans {
		if p.last >= byFeed[p.id].Last {
			delete(byFeed, p.id)
		}
	}
	ends := make(map[feed.FeedID]uint64, len(byFeed))
	for id, h := range byFeed {
		ends[id] = h.Last
	}
	s.mu.Lock()
	c.theirEnd = ends
	s.mu.Unlock()
	if err := w.enact(c, cmp); err != nil {
		return err
	}
	return w.open(c)
}

// compareSome does so for the few heads of a group that the other side says have changed.
func (w *writer) compareSome(c *convSync) error {
	s := w.s
	s.mu.Lock()
	theirs := c.someTheirs
	c.someTheirs = nil
	s.heads -= len(theirs)
	s.mu.Unlock()
	var cmp comparison
	err := s.r.view(func(tx *storage.Tx) error {
		for _, h := range theirs {
			id := feed.FeedID{Conversation: c.id, Number: h.Number, Device: h.Device}
			st, ok, err := loadFeed(tx, id)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			if err := w.compareFeed(tx, c, &cmp, id, st, h, true); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return w.enact(c, cmp)
}

// someHeads reads heads of some feeds of a group.
func (r *Replica) someHeads(ids map[feed.FeedID]bool, window Window) (heads []feed.Head, err error) {
	err = r.view(func(tx *storage.Tx) error {
		for id := range ids {
			st, ok, err := loadFeed(tx, id)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			h, ok, err := r.headFor(tx, id, st, window)
			if err != nil {
				return err
			}
			if ok {
				heads = append(heads, h)
			}
		}
		return nil
	})
	return heads, err
}

// comparison is what follows from comparing heads.
type comparison struct {
	plans  []plan
	proofs []*pb.Frame
}

// compareFeed compares one feed.
func (w *writer) compareFeed(tx *storage.Tx, c *convSync, cmp *comparison, id feed.FeedID, st feedState, h feed.Head, listed bool) error {
	first, last, ok := c.window.clip(id, st)
	if c.window != nil && !ok {
		return nil // nothing of it is for the other side
	}
	if st.forkAt != 0 {
		common, sound := w.s.r.uptoFork(tx, id, st)
		proof, err := loadProof(tx, st.local)
		if err == nil && listed && proof != nil && (!sound || h.Last > common.last) {
			cmp.proofs = append(cmp.proofs, &pb.Frame{Of: &pb.Frame_Fork{Fork: proof.PB()}})
		}
		if err != nil || !sound {
			return err
		}
		if st, last = common, min(last, common.last); first > last {
			return nil
		}
	}
	p, err := w.s.r.plan(tx, id, st, h)
	if err != nil {
		return err
	}
	p.first, p.last = first, last
	if c.lazy {
		err = p.rank(tx, w.s, st)
	}
	cmp.plans = append(cmp.plans, p)
	return err
}

// enact puts what follows from a comparison into effect.
func (w *writer) enact(c *convSync, cmp comparison) error {
	s := w.s
	for _, f := range cmp.proofs {
		if err := w.frame(f); err != nil {
			return err
		}
	}
	s.mu.Lock()
	for _, p := range cmp.plans {
		s.follow(c, p)
	}
	if c.lazy {
		s.enqueue(c)
	}
	lazy := c.lazy
	s.mu.Unlock()
	for _, p := range cmp.plans {
		if p.clash != nil {
			if err := w.frame(runFrame(p.clash)); err != nil {
				return err
			}
		}
		// Of a former feed more than is held here proves nothing before it has come.
		if s.r.owes(p.id) && !p.hold && (p.id.Device == s.r.self || p.theirs.Last <= p.last) {
			s.submitSmall(func(tx *storage.Tx) error {
				if !lazy { // in a group a floor is where a newcomer begins: what lies below was never for it
					if err := s.r.storeFloor(tx, s.peer, p.id, p.theirs.First); err != nil {
						return err
					}
				}
				if p.theirs.Last == 0 {
					return nil
				}
				return s.r.storeAck(tx, s.peer, p.id, p.theirs.Last)
			})
		}
	}
	return nil
}

// plan is what follows from the comparison of one feed.
type plan struct {
	id          feed.FeedID
	theirs      feed.Head // First is at least 1
	first, last uint64    // ours, as far as the other side may have it
	order       uint64
	hold        bool      // nothing of the feed is sent: they hold more than its own device, or another branch
	clash       *feed.Run // shows them the other branch
}

func (r *Replica) plan(tx *storage.Tx, id feed.FeedID, st feedState, theirs feed.Head) (plan, error) {
	theirs.First = max(theirs.First, 1)
	p := plan{id: id, theirs: theirs}
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
	if id.Device == r.self && theirs.Last == st.last {
		// They see the difference too and show theirs, which is proof enough that this is a copy. A fork would take from
		// everybody what was said on either branch.
		return p, nil
	}
	p.clash, err = r.runCovering(tx, id, st, max(theirs.Last, st.first))
	return p, err
}

// rank says when a feed of a group is sent. Control feeds go as they were begun: whoever was admitted later began later,
// so that an admission arrives before what it admits. Chat feeds go in an order that is another one in every session:
// of several who bring somebody up to date each then begins somewhere else, and they hear from it what they can skip.
func (p *plan) rank(tx *storage.Tx, s *session, st feedState) error {
	if p.theirs.Last >= p.last {
		return nil
	}
	if p.id.Number == feed.Chat {
		p.order = maphash.Comparable(s.seed, p.id)
		return nil
	}
	first, ok, err := loadStored(tx, st.local, max(p.first, p.theirs.Last+1))
	if !ok || err != nil {
		return err
	}
	e, err := first.entry()
	p.order = e.Clock
	return err
}

// follow puts a plan into effect. Called with mu held.
func (s *session) follow(c *convSync, p plan) {
	f := c.outFeed(p.id)
	f.last = max(f.last, p.last)
	f.hold, f.order = p.hold, p.order
	has := max(p.theirs.Last, p.theirs.First-1, p.first-1)
	f.begins = p.theirs.Last == 0 && p.first > 1
	lower := false
	if c.lazy && p.theirs.Last > 0 && p.theirs.First > p.first && !f.lowered && s.peer.Account != s.r.cfg.Account {
		// It begins above what it may have: somebody told it so. It is offered the rest, once.
		lower, f.lowered = true, true
		has = p.first - 1
	}
	if lower || f.refused != 0 || f.limit != 0 || len(f.out) == 0 {
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
	if f.acked = max(f.acked, min(has, p.last)); c.lazy {
		f.acked = min(has, p.last) // a floor that fell took the end along
	}
	f.sent = max(f.sent, f.acked)
	if f.lazy = c.lazy && p.id.Device != s.r.self; f.lazy {
		f.upTo = f.last // what it lacks goes at once, what comes later waits
	}
	c.line.add(f)
}
