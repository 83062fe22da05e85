package replica

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"hima/internal/wire/pb"
	"hima/node/nodetest"
)

// boxes plays the part that knows where mail is taken.
type boxes struct {
	f       *fakes
	seq     uint64 // of the next offer; 0: nothing to say
	big     bool
	fail    error
	asked   int
	offered []uint64
}

func (b *boxes) Offer(context.Context, Peer) (*pb.MailOffer, error) {
	b.f.mu.Lock()
	defer b.f.mu.Unlock()
	b.asked++
	b.f.changed.Broadcast()
	if b.seq == 0 {
		return nil, nil
	}
	o := &pb.MailOffer{Seq: b.seq}
	if b.big {
		o.Prekey = make([]byte, 60<<10)
	}
	return o, nil
}

func (b *boxes) Offered(_ context.Context, _ Peer, o *pb.MailOffer) error {
	b.f.mu.Lock()
	defer b.f.mu.Unlock()
	b.offered = append(b.offered, o.Seq)
	b.f.changed.Broadcast()
	return b.fail
}

// pairWithSides makes two friends, each with a side.
func pairWithSides(t *testing.T) (a, b *side, sa, sb *boxes) {
	t.Helper()
	nodes := nodetest.Loopback(t, 2)
	pa, pb := newPerson(t, 0), newPerson(t, 1)
	sa, sb = &boxes{}, &boxes{}
	a = newSide(t, pa, nodes[0], func(c *Config) { sa.f = c.Records.(*fakes); c.Side = sa }, pb)
	b = newSide(t, pb, nodes[1], func(c *Config) { sb.f = c.Records.(*fakes); c.Side = sb }, pa)
	nodetest.Connect(t, nodes[0], nodes[1])
	return a, b, sa, sb
}

func TestSidesTellEachOther(t *testing.T) {
	a, b, sa, sb := pairWithSides(t)
	sa.seq = 7
	a.open(b)
	b.wait(t, "the offer", func() bool { return slices.Equal(sb.offered, []uint64{7}) })
	b.wait(t, "the question", func() bool { return sb.asked == 1 })
	hooks{sb.f}.note(func() { sb.seq = 9 })
	b.rep.PushOffer(a.device())
	a.wait(t, "the offer", func() bool { return slices.Equal(sa.offered, []uint64{9}) })
	// An offer that fits no frame is not sent, and ends nothing.
	hooks{sb.f}.note(func() { sb.big = true })
	b.rep.PushOffer(a.device())
	b.wait(t, "the question", func() bool { return sb.asked == 3 })
	hooks{sb.f}.note(func() { sb.big, sb.seq = false, 10 })
	b.rep.PushOffer(a.device())
	a.wait(t, "the offer", func() bool { return slices.Equal(sa.offered, []uint64{9, 10}) })
	a.rep.PushOffer(newPerson(t, 5).device()) // no session, nobody is asked
	if sa.asked != 1 {
		t.Errorf("asked %d times", sa.asked)
	}
}

func TestNothingForStrangers(t *testing.T) {
	a, b, sa, sb := pairWithSides(t)
	a.forget(b.person)
	b.forget(a.person)
	sa.seq = 1
	a.open(b)
	a.rep.PushOffer(b.device())
	s := a.rep.streams.get(b.device())
	s.push(&pb.Frame{Of: &pb.Frame_MailOffer{MailOffer: &pb.MailOffer{Seq: 2}}})
	if !s.alive(context.Background()) { // what was sent before was read
		t.Fatal("the session ended")
	}
	if sa.asked != 0 || len(sb.offered) != 0 {
		t.Errorf("asked %d times, told %v", sa.asked, sb.offered)
	}
}

func TestBadOffersEndTheSession(t *testing.T) {
	a, b, sa, sb := pairWithSides(t)
	sa.seq, sb.fail = 1, fmt.Errorf("reading: %w", ErrProtocol)
	a.open(b)
	a.wait(t, "the end", func() bool { return a.down == 1 })
}

func TestTooManyOffersEndTheSession(t *testing.T) {
	a, b, _, sb := pairWithSides(t)
	a.open(b)
	b.wait(t, "an open conversation", func() bool { return sb.asked == 1 })
	s := a.rep.streams.get(b.device())
	for range 3 * offerBurst {
		s.push(&pb.Frame{Of: &pb.Frame_MailOffer{MailOffer: &pb.MailOffer{Seq: 1}}})
	}
	a.wait(t, "the end", func() bool { return a.down == 1 })
	if n := len(sb.offered); n > offerBurst+1 {
		t.Errorf("%d offers were looked at", n)
	}
}
