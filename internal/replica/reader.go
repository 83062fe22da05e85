package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"hima/internal/feed"
	"hima/internal/wire"
	"hima/internal/wire/pb"
	"hima/storage"
)

// read takes frames in until the stream or the session ends. It says with which reason the session ends.
func (s *session) read(ctx context.Context) (pb.Bye_Reason, error) {
	for {
		f, err := s.next()
		if err != nil {
			if errors.Is(err, wire.ErrTooLarge) || errors.Is(err, wire.ErrMalformed) {
				return pb.Bye_REASON_PROTOCOL, fmt.Errorf("%w: %w", ErrProtocol, err)
			}
			if errors.Is(err, io.EOF) {
				err = ErrClosed
			}
			return pb.Bye_REASON_UNSPECIFIED, err
		}
		s.lastIn.Store(time.Now().UnixNano())
		select {
		case <-s.done:
			if !s.draining() {
				return pb.Bye_REASON_UNSPECIFIED, nil
			}
			s.drainDeadline()
		default:
		}
		if err = s.flood(); err == nil {
			err = s.handle(ctx, f)
		}
		if err != nil {
			switch {
			case errors.Is(err, errByeReceived):
				if f.GetBye().GetReason() == pb.Bye_REASON_MOVED {
					s.awaitMove()
				}
				return pb.Bye_REASON_UNSPECIFIED, err
			case errors.Is(err, ErrProtocol):
				return pb.Bye_REASON_PROTOCOL, err
			case errors.Is(err, ErrBusy):
				return pb.Bye_REASON_BUSY, err
			case errors.Is(err, ErrNotAdmitted):
				return pb.Bye_REASON_REVOKED, err
			}
			return pb.Bye_REASON_CLOSING, err
		}
	}
}

// next returns the next frame; the first may have been read before the session began.
func (s *session) next() (*pb.Frame, error) {
	if f := s.early; f != nil {
		s.early = nil
		return f, nil
	}
	f := &pb.Frame{}
	return f, wire.Read(s.rd, wire.MaxSyncFrame, f)
}

var errByeReceived = errors.New("the other side said goodbye")

// handle takes one frame. An error ends the session.
func (s *session) handle(ctx context.Context, f *pb.Frame) error {
	switch of := f.Of.(type) {
	case *pb.Frame_Run:
		return s.handleRun(of.Run.GetRun())
	case *pb.Frame_Ack:
		return s.handleAck(of.Ack)
	case *pb.Frame_Digests:
		return s.handleDigests(of.Digests)
	case *pb.Frame_Heads:
		return s.handleHeads(of.Heads)
	case *pb.Frame_Refuse:
		return s.handleRefuse(of.Refuse)
	case *pb.Frame_Knock:
		return s.handleKnock(ctx, of.Knock)
	case *pb.Frame_KnockAnswer:
		return s.handleKnockAnswer(of.KnockAnswer)
	case *pb.Frame_Record:
		return s.handleRecord(ctx, of.Record)
	case *pb.Frame_Receipt:
		return s.handleReceipt(of.Receipt)
	case *pb.Frame_Fork:
		return s.handleFork(ctx, of.Fork)
	case *pb.Frame_MailOffer:
		return s.handleOffer(ctx, of.MailOffer)
	case *pb.Frame_GroupKeys:
		return s.handleKeys(ctx, of.GroupKeys)
	case *pb.Frame_Typing, *pb.Frame_Presence:
		s.handleUnstored(f)
		return nil
	case *pb.Frame_Ping:
		s.push(&pb.Frame{Of: &pb.Frame_Pong{Pong: &pb.Pong{Nonce: of.Ping.GetNonce(), TimeMs: s.r.cfg.Now().UnixMilli()}}})
		return nil
	case *pb.Frame_Pong:
		return s.ponged(of.Pong)
	case *pb.Frame_Bye:
		return fmt.Errorf("%w: %w", errByeReceived, byeError(of.Bye.GetReason()))
	case *pb.Frame_Hello:
		return fmt.Errorf("second hello: %w", ErrProtocol)
	}
	// A frame of a newer version: this one does not know it, and the other side knows that.
	return s.tax()
}

// tax bounds what is cheap to send and useless: a stranger's refused runs, unknown frames, frames about conversations
// that are not shared. A session that goes on with it ends.
func (s *session) tax() error {
	if !s.limiter.Allow() {
		return fmt.Errorf("too many useless frames: %w", ErrBusy)
	}
	return nil
}

// pace slows down who sends more heads and receipts than a pair with many conversations has reason to: each costs us a
// comparison or a commit. Nobody is sent away, reading waits. It says no when the session ends meanwhile.
func (s *session) pace() bool {
	wait := s.steps.Reserve().Delay()
	if wait == 0 {
		return true
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		s.lastIn.Store(time.Now().UnixNano()) // the silence was ours
		return true
	case <-s.done:
		return s.draining()
	}
}

// flood bounds all frames of a stranger with whom no conversation is open.
func (s *session) flood() error {
	if s.befriended() || s.frames.Allow() {
		return nil
	}
	return fmt.Errorf("too many frames of a stranger: %w", ErrBusy)
}

// befriended tells whether something is shared with the other side, since before the session or since a knock in it.
func (s *session) befriended() bool {
	if !s.stranger {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opened
}

// handleRun checks a run by itself and hands it to the committer, which links it to its feed.
func (s *session) handleRun(raw *pb.Run) error {
	if s.dropping(raw) {
		return nil
	}
	if err := s.stillListed(); err != nil {
		return err
	}
	if s.heldAlready(raw) {
		return nil
	}
	run, err := feed.CheckUnsigned(raw)
	// The session's own device could have signed whatever it sends, so what it sends may be worked on while the
	// signature is checked. Others it could slander.
	later := err == nil && run.Feed().Device == s.peer.Device
	if err == nil && !later {
		err = run.Verify()
	}
	if err != nil {
		// The bytes are worth nothing, whoever the author is: this device should not have passed them on (R4).
		return fmt.Errorf("checking a run: %w: %w", ErrProtocol, err)
	}
	id, last := run.Feed(), run.Last().Seq
	size := run.WireSize()
	s.mu.Lock()
	c := s.convs[id.Conversation]
	if c == nil || c.phase == phaseNew || c.phase == phaseClosed || c.phase == phaseKnocked {
		s.mu.Unlock()
		open, err := s.shares(id.Conversation)
		if err != nil {
			return err
		}
		if !open {
			s.refuse(id, run.First().Seq, pb.Code_CODE_NOT_MEMBER)
			return s.tax()
		}
		s.mu.Lock()
		if c = s.conv(id.Conversation); c == nil {
			s.mu.Unlock()
			return s.tax()
		}
	}
	backlog := last <= c.theirEnd[id]
	f := c.outFeed(id)
	f.sent, f.last = max(f.sent, last), max(f.last, last)
	s.settle(c, f)
	news := c.news
	s.mu.Unlock()
	in := arrived{peer: s.peer, run: run, backlog: backlog, by: s, news: news, certificate: raw.GetCertificate()}
	if later {
		in.check = &checking{done: make(chan struct{})}
	}
	s.submit(in, size)
	if later {
		if err := run.Verify(); err != nil {
			in.check.err = fmt.Errorf("checking a run: %w: %w", ErrProtocol, err)
		}
		close(in.check.done)
		if in.check.err != nil {
			return in.check.err
		}
	}
	return s.breathe()
}

// dropping says whether a run follows one that was refused: it was under way when the refusal went out, and is neither
// looked at nor answered.
func (s *session) dropping(raw *pb.Run) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.refusedAt) == 0 {
		return false
	}
	id, first, err := feed.Peek(raw)
	if err != nil {
		return false
	}
	at, ok := s.refusedAt[id]
	if ok && first <= at {
		delete(s.refusedAt, id)
	}
	return ok && first > at
}

// heldAlready answers a run of a group that somebody else brought meanwhile. Several bring the same to whoever was away.
func (s *session) heldAlready(raw *pb.Run) bool {
	id, first, err := feed.Peek(raw)
	if err != nil {
		return false
	}
	s.mu.Lock()
	c := s.convs[id.Conversation]
	maybe := c != nil && c.lazy && c.phase == phaseOpen && c.feeds[id] != nil && first <= c.feeds[id].last
	s.mu.Unlock()
	if !maybe {
		return false
	}
	id, h, held, err := s.r.holds(raw)
	if !held || err != nil {
		return false
	}
	s.mu.Lock()
	f := c.outFeed(id)
	f.sent, f.last = max(f.sent, first+uint64(len(raw.Entries))-1), max(f.last, h.Last)
	s.settle(c, f)
	s.mu.Unlock()
	s.acknowledge(id.Conversation, h)
	return true
}

// stillListed asks whether the account still stands by the other side's device. A newer record may have come by any road
// since the hello (R11). Of a stranger there is none but the one it showed.
func (s *session) stillListed() error {
	rec, ok := s.r.cfg.Records.Record(s.peer.Account)
	if ok && !rec.Lists(s.peer.Device) {
		return fmt.Errorf("device was revoked: %w", ErrNotAdmitted)
	}
	return nil
}

// shares asks Members whether a conversation is shared with the other side.
func (s *session) shares(conv feed.ConversationID) (ok bool, err error) {
	err = s.r.view(func(tx *storage.Tx) error {
		ok, err = s.r.shares(tx, s.peer, conv)
		return err
	})
	return ok, err
}

func (r *Replica) shares(tx *storage.Tx, peer Peer, conv feed.ConversationID) (bool, error) {
	if peer.Account == r.cfg.Account {
		return true, nil
	}
	shared, err := r.cfg.Members.Shared(tx, peer.Account)
	if err != nil {
		return false, fmt.Errorf("asking who shares what: %w", err)
	}
	for _, id := range shared {
		if id == conv {
			return true, nil
		}
	}
	return false, nil
}

// submit hands a checked run to the committer.
func (s *session) submit(in arrived, size int) {
	s.mu.Lock()
	s.incoming += size
	s.mu.Unlock()
	var out outcome
	s.r.cfg.DB.Submit(func(tx *storage.Tx) (err error) {
		if out, err = s.r.apply(tx, in); err == nil {
			err = in.settle()
		}
		return err
	}, func(err error) {
		if err == nil {
			err = s.r.fail("before-ack")
		}
		s.applied(in, out, err)
		s.mu.Lock()
		s.incoming -= size
		s.drain()
		s.mu.Unlock()
	})
}

// breathe pauses reading while too much waits for the committer.
func (s *session) breathe() error {
	for {
		s.mu.Lock()
		if s.incoming <= maxIncoming {
			s.mu.Unlock()
			return nil
		}
		if s.drained == nil {
			s.drained = make(chan struct{})
		}
		c := s.drained
		s.mu.Unlock()
		select {
		case <-c:
			s.lastIn.Store(time.Now().UnixNano()) // the silence is ours
		case <-s.done:
			return nil
		}
	}
}

// applied answers a run after its commit. It runs on the committer's goroutine.
func (s *session) applied(in arrived, out outcome, err error) {
	if errors.Is(err, ErrProtocol) {
		return // the signature is bad, with which the reader ends the session
	}
	if err != nil {
		s.end(pb.Bye_REASON_CLOSING, fmt.Errorf("storing a run: %w", err))
		return
	}
	id := in.run.Feed()
	switch {
	case out.own:
		s.r.diverge(id)
	case out.proof != nil:
		s.push(&pb.Frame{Of: &pb.Frame_Fork{Fork: out.proof.PB()}})
		if out.clash != nil {
			s.push(runFrame(out.clash))
		}
	case out.behind:
		s.mu.Lock()
		if c := s.conv(id.Conversation); c != nil && c.lazy {
			c.change(id)
			s.enqueue(c)
		} else if c != nil {
			c.announce = true
			s.enqueue(c)
		}
		s.mu.Unlock()
	case out.code != 0:
		s.refuse(id, out.from, out.code)
		if out.alien {
			s.drop(id)
		}
		s.retryMissed(id.Conversation, in.news)
		if s.taxRefused(id.Conversation) != nil {
			s.end(pb.Bye_REASON_BUSY, fmt.Errorf("too many refused runs: %w", ErrBusy))
		}
	case out.ack != nil:
		s.acknowledge(id.Conversation, *out.ack)
	}
}

// acknowledge queues an acknowledgement; what waits for the same feed is replaced.
func (s *session) acknowledge(conv feed.ConversationID, h feed.Head) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := feed.FeedID{Conversation: conv, Number: h.Number, Device: h.Device}
	if was, ok := s.later.acks[id]; ok && was.Last <= h.Last {
		delete(s.later.acks, id)
	}
	s.acknowledgeLocked(conv, h)
}

func (s *session) acknowledgeLocked(conv feed.ConversationID, h feed.Head) {
	for i := range s.acks {
		if s.acks[i].Device == h.Device && s.acks[i].Number == h.Number && s.ackConvs[i] == conv {
			s.acks[i] = h
			s.poke()
			return
		}
	}
	s.acks = append(s.acks, h)
	s.ackConvs = append(s.ackConvs, conv)
	s.poke()
}

func (s *session) refuse(id feed.FeedID, from uint64, code pb.Code) {
	s.mu.Lock()
	limit := maxRefusals
	if s.stranger && !s.opened {
		limit = maxConvsStranger
	}
	if len(s.refusedAt) >= limit {
		clear(s.refusedAt)
	}
	s.refusedAt[id] = from
	if c := s.convs[id.Conversation]; c != nil {
		c.turnedAway = true
	}
	s.mu.Unlock()
	s.push(refusedFrame(id, from, code))
}

// drop forgets the way of a feed of which nothing is held: anybody can make up any number of them.
func (s *session) drop(id feed.FeedID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.convs[id.Conversation]
	if c == nil {
		return
	}
	if f := c.feeds[id]; f != nil && !f.inLine && f.wait.IsZero() && len(f.out) == 0 {
		delete(c.feeds, id)
	}
}

// retryMissed asks again for what was refused in a group if something came between that might have let it in: both may
// have been judged in one go.
func (s *session) retryMissed(conv feed.ConversationID, news int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.convs[conv]; c != nil && c.lazy && c.news != news {
		s.retryLater(c)
	}
}

// taxRefused bounds refused runs. In a group a run is refused because what admits its author is on its way over another
// road, which may happen with every feed at once.
func (s *session) taxRefused(conv feed.ConversationID) error {
	s.mu.Lock()
	c := s.convs[conv]
	lazy := c != nil && c.lazy
	s.mu.Unlock()
	if !lazy {
		return s.tax()
	}
	if !s.refusals.Allow() {
		return fmt.Errorf("too many refused runs: %w", ErrBusy)
	}
	return nil
}

// handleRecord keeps a newer account record, also of the own account (R11).
func (s *session) handleRecord(ctx context.Context, rec *pb.Record) error {
	parsed, err := parseRecord(rec.GetAccountRecord())
	if err != nil {
		return err
	}
	// Each newer one costs a commit, and an account can make them without end.
	if err := s.tax(); err != nil {
		return err
	}
	if parsed.Account != s.r.cfg.Account && parsed.Account != s.peer.Account {
		return nil
	}
	if _, ok := s.r.cfg.Records.Record(parsed.Account); !ok {
		return nil
	}
	now, err := s.r.cfg.Records.Admit(ctx, rec.GetAccountRecord())
	if err != nil {
		return fmt.Errorf("keeping account record: %w", err)
	}
	if parsed.Account == s.peer.Account && !now.Lists(s.peer.Device) {
		return fmt.Errorf("device was revoked: %w", ErrNotAdmitted)
	}
	return nil
}

// handleFork takes a fork proof in.
func (s *session) handleFork(ctx context.Context, raw *pb.ForkProof) error {
	proof, err := feed.CheckForkProof(raw)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	open, err := s.shares(proof.Feed().Conversation)
	if err != nil {
		return err
	}
	if !open {
		return s.tax()
	}
	if err := s.tax(); err != nil {
		return err
	}
	s.mu.Lock()
	if c := s.convs[proof.Feed().Conversation]; c != nil && c.feeds[proof.Feed()] != nil {
		s.forget(c.feeds[proof.Feed()]) // it is not acknowledged any more
	}
	s.mu.Unlock()
	return s.r.cfg.DB.Update(ctx, func(tx *storage.Tx) error { return s.r.takeProof(tx, proof) })
}

func runFrame(run *feed.Run) *pb.Frame {
	return &pb.Frame{Of: &pb.Frame_Run{Run: &pb.RunFrame{Run: run.PB()}}}
}

// handleUnstored passes on what is never stored, from conversations that are open.
func (s *session) handleUnstored(f *pb.Frame) {
	if !s.limiter.Allow() {
		return
	}
	if p := f.GetPresence(); p != nil {
		if s.befriended() {
			s.r.cfg.Hooks.Presence(s.peer, p.Online)
		}
		return
	}
	t := f.GetTyping()
	var conv feed.ConversationID
	if len(t.GetConversation()) != len(conv) {
		return
	}
	copy(conv[:], t.Conversation)
	if s.isOpen(conv) {
		s.r.cfg.Hooks.Typing(s.peer, conv, t.On)
	}
}
