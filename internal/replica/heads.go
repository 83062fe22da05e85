package replica

import (
	"cmp"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"hima/internal/feed"
	"hima/internal/wire"
	"hima/internal/wire/pb"
	"hima/storage"
)

// handleDigests takes a page of digests: conversations that the other side shares.
func (s *session) handleDigests(page *pb.Digests) error {
	if proto.Size(page) > wire.MaxHeadsPage {
		return fmt.Errorf("page of digests too large: %w", ErrProtocol)
	}
	s.mu.Lock()
	again := s.theirDone
	s.mu.Unlock()
	if again && !s.pace() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.theirDone && page.GetDone() {
		return fmt.Errorf("a second last page of digests: %w", ErrProtocol)
	}
	for _, d := range page.GetDigests() {
		if len(d.GetConversation()) != 32 || len(d.GetDigest()) != 32 {
			return fmt.Errorf("reading digests: %w", ErrProtocol)
		}
		c := s.conv(feed.ConversationID(d.Conversation))
		if c == nil {
			return fmt.Errorf("more conversations than a session may have: %w", ErrProtocol)
		}
		digest := [32]byte(d.Digest)
		c.listed, c.digest = true, &digest
		if c.phase == phaseNew || c.phase == phaseClosed {
			c.evaluate = true
			s.enqueue(c)
		}
	}
	if page.GetDone() {
		s.theirDone = true
		for _, c := range s.convs {
			if c.phase == phaseNew {
				c.evaluate = true
				s.enqueue(c)
			}
		}
	}
	return nil
}

// handleHeads takes a page of heads; the last page is handed to the writer for comparison.
func (s *session) handleHeads(page *pb.Heads) error {
	if len(page.GetConversation()) != 32 || proto.Size(page) > wire.MaxHeadsPage {
		return fmt.Errorf("reading heads: %w", ErrProtocol)
	}
	conv := feed.ConversationID(page.Conversation)
	var heads []feed.Head
	for _, raw := range page.Heads {
		h, err := feed.HeadFromPB(raw)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		heads = append(heads, h)
	}
	if !s.pace() {
		return nil
	}
	s.mu.Lock()
	c := s.conv(conv)
	if c == nil {
		s.mu.Unlock()
		return s.tax()
	}
	limit := maxPeerHeads
	if s.stranger && !s.opened {
		limit = maxPeerHeadsStranger
	}
	s.heads += len(heads)
	if len(c.partial)+len(c.someTheirs)+len(heads) > limit || s.heads > maxSessionHeads {
		s.mu.Unlock()
		return fmt.Errorf("more heads than a conversation may have: %w", ErrProtocol)
	}
	if page.Partial {
		if c.phase == phaseOpen {
			s.takeSome(c, heads)
		} else {
			s.heads -= len(heads)
		}
		s.mu.Unlock()
		return nil
	}
	c.partial = append(c.partial, heads...)
	if !page.Done {
		s.mu.Unlock()
		return nil
	}
	s.heads -= len(c.theirs)
	all := c.partial
	c.partial = nil
	c.listed, c.theirs, c.compare = true, all, true
	c.theirEnd = make(map[feed.FeedID]uint64, len(all))
	for _, h := range all {
		c.theirEnd[feed.FeedID{Conversation: conv, Number: h.Number, Device: h.Device}] = h.Last
	}
	refused := c.phase == phaseRefused || c.phase == phaseKnocked
	for _, f := range c.feeds {
		refused = refused || f.refused != 0
	}
	if refused {
		// What they refused they may take now; they may want to know where our feeds stand first (R16).
		c.announce = true
	}
	if c.phase != phaseOpen && c.phase != phaseAsked {
		c.evaluate = true
	}
	s.enqueue(c)
	s.mu.Unlock()
	if s.r.wished(floorWish{conv, s.peer.Account}) {
		s.submitSmall(func(tx *storage.Tx) error { return s.r.raiseFloors(tx, conv, s.peer, all) })
		s.announceAfterCommit(c)
	}
	return nil
}

// announceAfterCommit sends our heads again once what was submitted so far is committed.
func (s *session) announceAfterCommit(c *convSync) {
	s.r.cfg.DB.Submit(func(*storage.Tx) error { return nil }, func(error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		c.announce = true
		s.enqueue(c)
	})
}

// digestPages makes the pages of digests of everything shared with the other side, most recently active first (R12).
func (s *session) digestPages() ([]*pb.Frame, error) {
	type item struct {
		id      feed.ConversationID
		touched int64
		digest  [32]byte
	}
	var items []item
	err := s.r.view(func(tx *storage.Tx) error {
		shared, err := s.r.cfg.Members.Shared(tx, s.peer.Account)
		if err != nil {
			return fmt.Errorf("asking who shares what: %w", err)
		}
		if len(shared) > maxConvs {
			shared = shared[:maxConvs]
		}
		for _, id := range shared {
			sc, err := s.r.scope(tx, id, s.peer.Account)
			if err != nil {
				return err
			}
			heads, err := s.r.headsFor(tx, id, sc.window)
			if err != nil {
				return err
			}
			at, err := s.r.touched(tx, id)
			if err != nil {
				return err
			}
			items = append(items, item{id: id, touched: at, digest: feed.Digest(heads)})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(items, func(a, b item) int { return cmp.Compare(b.touched, a.touched) })
	var frames []*pb.Frame
	page := &pb.Digests{}
	for i := range items {
		page.Digests = append(page.Digests, &pb.Digest{Conversation: items[i].id[:], Digest: items[i].digest[:]})
		if len(page.Digests) == digestsPerPage && i < len(items)-1 {
			frames = append(frames, &pb.Frame{Of: &pb.Frame_Digests{Digests: page}})
			page = &pb.Digests{}
		}
	}
	page.Done = true
	frames = append(frames, &pb.Frame{Of: &pb.Frame_Digests{Digests: page}})
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range items {
		c := s.conv(items[i].id)
		if c == nil {
			continue
		}
		c.toldDigest = true
		if s.theirDone {
			c.evaluate = true
			s.enqueue(c)
		}
	}
	return frames, nil
}

// A digest takes 72 bytes of a page, a head at most 130.
const (
	digestsPerPage = (wire.MaxHeadsPage - 16) / 72
	headsPerPage   = (wire.MaxHeadsPage - 64) / 134
)

// headPages makes the pages of heads of one conversation.
func headPages(conv feed.ConversationID, heads []feed.Head) []*pb.Frame {
	var frames []*pb.Frame
	for {
		n := min(len(heads), headsPerPage)
		page := &pb.Heads{Conversation: conv[:], Done: n == len(heads)}
		for _, h := range heads[:n] {
			page.Heads = append(page.Heads, h.PB())
		}
		frames = append(frames, &pb.Frame{Of: &pb.Frame_Heads{Heads: page}})
		if heads = heads[n:]; len(heads) == 0 {
			return frames
		}
	}
}
