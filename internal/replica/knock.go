package replica

import (
	"context"
	"fmt"

	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/storage"
)

// maxToken bounds what may stand in for proof of work.
const maxToken = 64

// knock begins a conversation that the other side does not share yet: the first run of an own feed that it lacks, with
// an invite token or proof of work.
func (w *writer) knock(ctx context.Context, c *convSync) error {
	s := w.s
	id, from, token, err := w.knockFeed(c)
	if err != nil || from == 0 {
		return err
	}
	if err := w.reserve(ctx, id); err != nil {
		return err
	}
	s.mu.Lock()
	f := c.outFeed(id)
	limit := f.limit
	useWork := c.needWork || len(token) == 0
	s.mu.Unlock()
	got, err := w.load(ctx, wanted{id: id, from: from, limit: limit})
	if err != nil || len(got.entries) == 0 {
		return err
	}
	entries := got.entries
	last := entries[len(entries)-1]
	s.mu.Lock()
	c.phase, c.knocked = phaseKnocked, true
	f.last, f.sent = max(f.last, last.Seq), last.Seq
	f.acked = max(f.acked, from-1)
	f.refused = 0
	s.mu.Unlock()
	k := &pb.Knock{Conversation: c.id[:], Run: runPB(entries, got.signature)}
	if !useWork {
		k.Token = token
		return w.frame(&pb.Frame{Of: &pb.Frame_Knock{Knock: k}})
	}
	// About a million hashes: not on this goroutine.
	w.wg.Go(func() {
		k.Work = s.r.works.of(s.r.cfg.Account, s.peer.Account, entries[0].ID)
		s.push(&pb.Frame{Of: &pb.Frame_Knock{Knock: k}})
	})
	return nil
}

// knockFeed finds the own feed to begin with, and where; from 0: nothing to say.
func (w *writer) knockFeed(c *convSync) (id feed.FeedID, from uint64, token []byte, err error) {
	r := w.s.r
	err = r.view(func(tx *storage.Tx) error {
		for _, n := range []feed.Number{feed.Control, feed.Chat} {
			own := r.OwnFeed(c.id, n)
			st, ok, err := loadFeed(tx, own)
			if err != nil {
				return err
			}
			if !ok || st.forkAt != 0 {
				continue
			}
			acked, err := loadAcked(tx, st.local, w.s.peer.Device)
			if err != nil {
				return err
			}
			if next := max(acked+1, st.first); next <= st.last {
				id, from = own, next
				break
			}
		}
		if from == 0 {
			return nil
		}
		if token, err = r.cfg.Members.KnockToken(tx, c.id); err != nil {
			return fmt.Errorf("asking for an invite token: %w", err)
		}
		return nil
	})
	return id, from, token, err
}

// handleKnock judges a stranger's first run: what is cheap first.
func (s *session) handleKnock(ctx context.Context, k *pb.Knock) error {
	if len(k.GetConversation()) != 32 || len(k.Token) > maxToken || len(k.Work) > maxToken {
		return fmt.Errorf("reading a knock: %w", ErrProtocol)
	}
	if err := s.tax(); err != nil {
		return err
	}
	conv := feed.ConversationID(k.Conversation)
	shared, err := s.shares(conv)
	if err != nil {
		return err
	}
	s.mu.Lock()
	if c := s.conv(conv); c != nil {
		c.listed = true // whoever knocks shares it
	}
	s.mu.Unlock()
	if !shared {
		if code := s.r.cfg.Gate.Listening(s.peer.Account); code != pb.Code_CODE_TAKEN {
			return s.answerKnock(conv, code)
		}
	}
	run, err := feed.CheckDetached(k.Run)
	if err != nil {
		return fmt.Errorf("checking a knock: %w: %w", ErrProtocol, err)
	}
	id := run.Feed()
	if id.Conversation != conv || id.Device != s.peer.Device || run.Account() != s.peer.Account {
		return fmt.Errorf("knock with the entries of another: %w", ErrProtocol)
	}
	if shared && s.r.wished(floorWish{conv, s.peer.Account}) {
		// It began before we shared the conversation: our heads and theirs decide what of it counts (R16).
		s.mu.Lock()
		if c := s.conv(conv); c != nil {
			c.evaluate, c.announce = true, true
			s.enqueue(c)
		}
		s.mu.Unlock()
		return s.answerKnock(conv, pb.Code_CODE_TAKEN)
	}
	in := arrived{peer: s.peer, run: run, knock: &Knock{
		Token: k.Token,
		Work:  feed.CheckWork(s.peer.Account, s.r.cfg.Account, run.First().ID, k.Work, feed.WorkBits),
	}}
	if !shared && len(k.Token) == 0 && !in.knock.Work {
		return s.answerKnock(conv, pb.Code_CODE_WORK)
	}
	var out outcome
	err = s.r.cfg.DB.Update(ctx, func(tx *storage.Tx) error {
		out, err = s.r.apply(tx, in)
		return err
	})
	if err == nil {
		err = s.r.fail("before-ack")
	}
	if err != nil {
		return fmt.Errorf("storing a knock: %w", err)
	}
	if out.code != 0 {
		if out.from > run.First().Seq {
			s.refuse(id, out.from, out.code)
		}
		return s.answerKnock(conv, out.code)
	}
	if s.stranger {
		// From now on its devices matter.
		if _, err := s.r.cfg.Records.Admit(ctx, s.record.Raw()); err != nil {
			return fmt.Errorf("keeping account record: %w", err)
		}
		s.r.cfg.Records.Seen(s.cert, s.describe().Addr, s.r.cfg.Now())
	}
	s.mu.Lock()
	if c := s.conv(conv); c != nil {
		f := c.outFeed(id)
		f.sent, f.last = max(f.sent, run.Last().Seq), max(f.last, run.Last().Seq)
		c.evaluate, c.announce = true, !c.sentHeads
		s.enqueue(c)
	}
	s.mu.Unlock()
	if err := s.answerKnock(conv, pb.Code_CODE_TAKEN); err != nil {
		return err
	}
	s.applied(in, out, nil)
	return nil
}

func (s *session) answerKnock(conv feed.ConversationID, code pb.Code) error {
	s.push(&pb.Frame{Of: &pb.Frame_KnockAnswer{KnockAnswer: &pb.KnockAnswer{Conversation: conv[:], Code: code}}})
	return nil
}

// handleKnockAnswer goes on after our knock.
func (s *session) handleKnockAnswer(a *pb.KnockAnswer) error {
	if len(a.GetConversation()) != 32 {
		return fmt.Errorf("reading the answer to a knock: %w", ErrProtocol)
	}
	conv := feed.ConversationID(a.Conversation)
	s.mu.Lock()
	c := s.convs[conv]
	if c == nil || c.phase != phaseKnocked {
		s.mu.Unlock()
		return s.tax()
	}
	if a.Code == pb.Code_CODE_TAKEN {
		c.listed, c.phase, c.announce = true, phaseAsked, true
		s.enqueue(c)
		s.mu.Unlock()
		return nil
	}
	var refused feed.FeedID
	var from uint64
	again := a.Code == pb.Code_CODE_WORK && !c.needWork
	for id, f := range c.feeds {
		if id.Device != s.r.self {
			continue
		}
		if f.limit != 0 && f.acked < f.limit && !c.shortened {
			c.shortened, again = true, true
		}
		if from == 0 {
			refused, from = id, f.acked+1
		}
		f.sent = f.acked
	}
	if again {
		c.needWork = c.needWork || a.Code == pb.Code_CODE_WORK
		c.phase, c.evaluate = phaseNew, true
		s.enqueue(c)
		s.mu.Unlock()
		return nil
	}
	c.phase = phaseRefused
	s.mu.Unlock()
	if from == 0 {
		return nil
	}
	return s.tellRefusal(refused, from, a.Code)
}
