package replica

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"hima/internal/feed"
	"hima/internal/wire"
	"hima/internal/wire/pb"
	"hima/node"
	"hima/node/nodetest"
)

// A connection through a relay and a direct one beside it are played here by one connection whose first stream is given
// a rank that is worse than it is: what moves is the session, and it knows no more of a connection than its rank.

// recorder writes down which entries of which feed went onto the wire, and how often.
type recorder struct {
	mu    sync.Mutex
	times map[feed.FeedID]map[uint64]int
}

func record(sides ...*side) *recorder {
	rec := &recorder{times: map[feed.FeedID]map[uint64]int{}}
	for _, s := range sides {
		s.rep.wrote = func(_ Peer, id feed.FeedID, from, last uint64) {
			rec.mu.Lock()
			defer rec.mu.Unlock()
			if rec.times[id] == nil {
				rec.times[id] = map[uint64]int{}
			}
			for seq := from; seq <= last; seq++ {
				rec.times[id][seq]++
			}
		}
	}
	return rec
}

// repeated counts the entries that were written more than once.
func (r *recorder) repeated() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, seqs := range r.times {
		for _, times := range seqs {
			if times > 1 {
				n++
			}
		}
	}
	return n
}

// pairIn makes two friends in virtual time.
func pairIn(t *testing.T, change func(i int, c *Config)) (a, b *side, w *nodetest.World) {
	t.Helper()
	w = nodetest.New(t, 2)
	pa, pb := newPerson(t, 0), newPerson(t, 1)
	with := func(i int) func(*Config) {
		return func(c *Config) {
			if change != nil {
				change(i, c)
			}
		}
	}
	a = newSide(t, pa, w.Node(0), with(0), pb)
	b = newSide(t, pb, w.Node(1), with(1), pa)
	w.Node(0).Remember(pb.device(), w.Addrs(1))
	w.Node(1).Remember(pa.device(), w.Addrs(0))
	synctest.Wait() // until both take sessions
	return a, b, w
}

// session is the one of now.
func (s *side) session(o *side) *session { return s.rep.streams.get(o.device()) }

// worsen makes both ends of a session believe that it runs over a worse connection than it does, and the side that
// opened it move it.
func worsen(a, b *side, rank int) {
	for _, x := range []*session{a.session(b), b.session(a)} {
		x.worsen(rank)
	}
}

// worsen is as if the session had been opened over such a connection. A dial may look at it at the same time.
func (s *session) worsen(rank int) {
	s.r.moves.mu.Lock()
	defer s.r.moves.mu.Unlock()
	s.rank = rank
}

// betterConn tells a side that there is a direct connection.
func (s *side) betterConn(ctx context.Context, wg *sync.WaitGroup, o *side) {
	s.rep.moves.set(o.device(), 0)
	s.rep.considerMove(ctx, s.session(o), wg)
}

func TestSessionMovesUnderTraffic(t *testing.T) {
	for _, opener := range []int{0, 1} {
		t.Run(fmt.Sprint("opened by ", opener), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { moveUnderTraffic(t, opener, false) })
		})
	}
}

func TestBothMoveAtOnce(t *testing.T) {
	for _, opener := range []int{0, 1} {
		t.Run(fmt.Sprint("opened by ", opener), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { moveUnderTraffic(t, opener, true) })
		})
	}
}

// moveUnderTraffic lets two friends write all the time while their session moves again and again.
func moveUnderTraffic(t *testing.T, opener int, both bool) {
	a, b, _ := pairIn(t, nil)
	rec := record(a, b)
	sides := []*side{a, b}
	sides[opener].open(sides[1-opener])
	ctx, cancel := context.WithCancel(context.Background())
	var writers, movers sync.WaitGroup
	const n = 400
	for i, s := range sides {
		writers.Go(func() {
			for k := range n {
				s.say(sides[1-i].person, fmt.Sprint(k))
				time.Sleep(7 * time.Millisecond)
			}
		})
	}
	moved := 0
	for range 8 {
		time.Sleep(300 * time.Millisecond)
		before := [2]*session{a.session(b), b.session(a)}
		if before[0] == nil || before[1] == nil {
			t.Fatal("there is no session")
		}
		worsen(a, b, 2)
		if both {
			// As if each had opened it.
			for i, s := range sides {
				s.rep.moves.set(sides[1-i].device(), 0)
				if x := s.session(sides[1-i]); x.moving.CompareAndSwap(false, true) {
					movers.Go(func() { s.rep.move(ctx, x, &movers) })
				}
			}
		} else {
			s := sides[opener]
			if !s.session(sides[1-opener]).outbound {
				t.Fatal("the session was opened by the other side")
			}
			s.betterConn(ctx, &movers, sides[1-opener])
		}
		for range 200 {
			time.Sleep(10 * time.Millisecond)
			if x, y := a.session(b), b.session(a); x != nil && y != nil && x != before[0] && y != before[1] && x.rank == 0 && y.rank == 0 {
				moved++
				break
			}
		}
	}
	writers.Wait()
	want := make([]string, n)
	for i := range want {
		want[i] = fmt.Sprint(i)
	}
	for i, s := range sides {
		if got := s.waitTexts(t, n); !slices.Equal(got, want) {
			t.Errorf("%d holds %d entries, some lost, repeated or out of order", i, len(got))
		}
		s.waitAcked(t, s.chat(sides[1-i].person), n)
	}
	if moved != 8 {
		t.Errorf("moved %d times of 8", moved)
	}
	if n := rec.repeated(); n != 0 {
		t.Errorf("%d entries went over the wire more than once", n)
	}
	for i, s := range sides {
		s.note(func() {
			if s.up-s.down != 1 {
				t.Errorf("%d was told of %d sessions and %d ends", i, s.up, s.down)
			}
		})
	}
	a.stop()
	b.stop()
	cancel()
	movers.Wait()
}

func (s *side) note(g func()) { hooks{s.fakes}.note(g) }

// TestMoveInTheMiddleOfABacklog: a window of runs is under way on the old stream when the session moves.
func TestMoveInTheMiddleOfABacklog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, w := pairIn(t, nil)
		w.Delay(0, 1, 50*time.Millisecond)
		rec := record(a, b)
		const n = 4000
		a.say(b.person, numbered(n)...)
		b.say(a.person, numbered(n)...)
		a.open(b)
		a.waitTexts(t, 1)
		worsen(a, b, 2)
		ctx, cancel := context.WithCancel(context.Background())
		var movers sync.WaitGroup
		old := a.session(b)
		if a.fakes.count() >= n {
			t.Fatal("nothing is under way any more")
		}
		a.betterConn(ctx, &movers, b)
		for _, s := range []*side{a, b} {
			if got := s.waitTexts(t, n); !slices.Equal(got, numbered(n)) {
				t.Error("some were lost, repeated or out of order")
			}
		}
		if a.session(b) == old {
			t.Error("the session did not move")
		}
		if n := rec.repeated(); n != 0 {
			t.Errorf("%d entries went over the wire more than once", n)
		}
		a.stop()
		b.stop()
		cancel()
		movers.Wait()
	})
}

func (f *fakes) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.applied)
}

// TestMoveThatFailsHalfWay: whatever goes wrong before the other side has answered on the new stream, the old session
// goes on as if nothing had been. If it has, there is a session all the same.
func TestMoveThatFailsHalfWay(t *testing.T) {
	for _, point := range []string{"move-hello", "move-answer"} {
		t.Run(point, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				broken, tries := true, 0
				a, b, _ := pairIn(t, func(_ int, c *Config) {
					c.Fail = func(p string) error {
						mu.Lock()
						defer mu.Unlock()
						if p != point {
							return nil
						}
						tries++
						if broken {
							return errors.New("broken by the test")
						}
						return nil
					}
				})
				rec := record(a, b)
				a.open(b)
				a.say(b.person, "one")
				b.waitTexts(t, 1)
				old := a.session(b)
				worsen(a, b, 1)
				ctx, cancel := context.WithCancel(context.Background())
				var movers sync.WaitGroup
				a.betterConn(ctx, &movers, b)
				time.Sleep(30 * time.Second)
				mu.Lock()
				if tries < 3 || tries > 8 {
					t.Errorf("tried %d times in half a minute", tries)
				}
				mu.Unlock()
				// Where this side gives up, the other may have answered already and ended the old one: then both begin anew.
				x, y := a.session(b), b.session(a)
				if x == nil || y == nil || x.isEnding() || y.isEnding() || x != old && point == "move-answer" {
					t.Fatal("a move that failed ended the session")
				}
				a.say(b.person, "two")
				b.say(a.person, "three")
				b.waitTexts(t, 2)
				a.waitTexts(t, 1)
				mu.Lock()
				broken = false
				mu.Unlock()
				time.Sleep(2 * time.Minute)
				if s := a.session(b); s == old || s.rank != 0 {
					t.Error("the session never moved")
				}
				a.say(b.person, "four")
				if got := b.waitTexts(t, 3); !slices.Equal(got, []string{"one", "two", "four"}) {
					t.Errorf("got %q", got)
				}
				if n := rec.repeated(); n != 0 {
					t.Errorf("%d entries went over the wire more than once", n)
				}
				a.stop()
				b.stop()
				cancel()
				movers.Wait()
			})
		})
	}
}

// TestMoveAwayFromADeadConnection: the old stream never ends in good order, and is not waited for long.
func TestMoveAwayFromADeadConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, _ := pairIn(t, nil)
		a.open(b)
		a.say(b.person, "one")
		b.waitTexts(t, 1)
		old := a.session(b)
		worsen(a, b, 2)
		// The other end of the old stream hears nothing any more: what is written to it is lost.
		deaf := b.session(a)
		deaf.end(pb.Bye_REASON_UNSPECIFIED, errSilent)
		deaf.st.Reset()
		<-deaf.over
		var movers sync.WaitGroup
		ctx, cancel := context.WithCancel(context.Background())
		if s := a.session(b); s == old {
			a.betterConn(ctx, &movers, b)
		}
		a.say(b.person, "two")
		begun := time.Now()
		if a.session(b) == nil {
			a.open(b)
		}
		b.waitTexts(t, 2)
		if took := time.Since(begun); took > drainTimeout {
			t.Errorf("took %v", took)
		}
		a.stop()
		b.stop()
		cancel()
		movers.Wait()
	})
}

// TestMoveOfASessionThatIsNotThere: a stream that claims to move a session is judged like any other.
func TestMoveOfASessionThatIsNotThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, w := pairIn(t, nil)
		a.stop()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		st, err := w.Node(0).Open(ctx, b.device(), Protocol)
		if err != nil {
			t.Fatal(err)
		}
		defer st.Reset()
		hello := &pb.Hello{
			Versions: []uint32{1}, AccountRecord: a.record.Raw(), Certificate: a.cert.Raw(), TimeMs: time.Now().UnixMilli(), Moves: true,
		}
		if err := wire.Write(st, wire.MaxSyncFrame, &pb.Frame{Of: &pb.Frame_Hello{Hello: hello}}); err != nil {
			t.Fatal(err)
		}
		rd := bufio.NewReader(st)
		var frames []*pb.Frame
		for len(frames) < 2 {
			f := &pb.Frame{}
			if err := wire.Read(rd, wire.MaxSyncFrame, f); err != nil {
				t.Fatal(err)
			}
			frames = append(frames, f)
		}
		if frames[0].GetHello() == nil || frames[1].GetDigests() == nil {
			t.Errorf("answered with %v", frames)
		}
	})
}

func TestRanks(t *testing.T) {
	for i, c := range []node.ConnInfo{{Direct: true, Transport: "tcp"}, {Transport: "relay"}, {Transport: "relay", Limited: true}} {
		if rankOf(c) != i {
			t.Errorf("%+v has rank %d", c, rankOf(c))
		}
	}
}
