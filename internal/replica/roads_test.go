package replica

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/storage"
)

// letter is a mail under way.
type letter struct {
	to   int
	mail Mailed
}

// TestAllRoadsLeadToTheSameStore: whatever came by session and whatever by mail, in whichever order, once, twice or not
// at all, in the end both hold the same, were told of each entry once, and know what the other holds.
func TestAllRoadsLeadToTheSameStore(t *testing.T) {
	walks := 12 // each takes a second on a slow machine
	if os.Getenv("HIMA_LONG") != "" {
		walks = 1000
	}
	rapid.Check(t, func(rt *rapid.T) {
		if walks--; walks < 0 {
			return
		}
		steps := rapid.SliceOfN(rapid.SampledFrom([]string{
			"say", "say", "say many", "say", "export", "export", "deliver", "deliver", "deliver again", "lose", "open", "close", "receipt", "move",
		}), 5, 40).Draw(rt, "steps")
		who := rapid.SliceOfN(rapid.IntRange(0, 1), len(steps), len(steps)).Draw(rt, "who")
		pick := rapid.SliceOfN(rapid.IntRange(0, 1000), len(steps), len(steps)).Draw(rt, "pick")
		synctest.Test(t, func(t *testing.T) { walk(t, steps, who, pick) })
	})
}

func walk(t *testing.T, steps []string, who, pick []int) {
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(steps, who, pick)
		}
	})
	a, b, _ := pairIn(t, nil)
	sides := []*side{a, b}
	said := [2][]string{}
	var post, old []letter
	for i, step := range steps {
		s, o := sides[who[i]], sides[1-who[i]]
		switch step {
		case "say", "say many":
			n := 1
			if step == "say many" {
				n = 300
			}
			for range n {
				said[who[i]] = append(said[who[i]], fmt.Sprint(len(said[who[i]])))
			}
			s.say(o.person, said[who[i]][len(said[who[i]])-n:]...)
		case "export":
			if len(said[who[i]]) == 0 {
				continue
			}
			e := s.export(o, ExportOptions{MaxBytes: 8<<10 + pick[i]*40, Skip: func(feed.FeedID, uint64) uint64 { return uint64(pick[i] % 3) }})
			post = append(post, letter{1 - who[i], s.mailed(e)})
		case "deliver", "deliver again", "lose":
			from := &post
			if step == "deliver again" {
				from = &old
			}
			if len(*from) == 0 {
				continue
			}
			k := pick[i] % len(*from)
			l := (*from)[k]
			*from = slices.Delete(*from, k, k+1)
			if step != "lose" {
				sides[l.to].receive(l.mail)
				old = append(old, l)
			}
		case "open":
			s.open(o)
		case "close":
			if x := s.session(o); x != nil {
				x.end(pb.Bye_REASON_CLOSING, nil)
				<-x.over
			}
		case "receipt":
			s.receipt(o.person)
		case "move":
			if x := s.session(o); x != nil && x.outbound {
				x.worsen(1)
				s.rep.moves.set(o.device(), 0)
				if _, err := s.rep.tryMoveNow(x); err != nil {
					t.Fatalf("moving: %v", err)
				}
			}
		}
		time.Sleep(time.Duration(pick[i]%50) * time.Millisecond)
	}
	a.open(b)
	time.Sleep(time.Second) // what was open may have been about to close
	a.open(b)
	for i, s := range sides {
		o := sides[1-i]
		if n := len(said[1-i]); n > 0 {
			if got := s.waitTexts(t, n); !sameTexts(got, said[1-i]) {
				t.Errorf("%d holds %d of %d, or some of them twice", i, len(got), n)
			}
			o.wait(t, "the last acknowledgement", func() bool { return true })
			for o.ackedBy(o.chat(s.person), s) < uint64(n) {
				time.Sleep(10 * time.Millisecond)
			}
		}
	}
	var heads [2][]feed.Head
	for i, s := range sides {
		if err := s.rep.view(func(tx *storage.Tx) (err error) {
			heads[i], err = s.rep.Heads(tx, a.conv(b.person))
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	if feed.Digest(heads[0]) != feed.Digest(heads[1]) {
		t.Errorf("they hold %v and %v", heads[0], heads[1])
	}
	a.stop()
	b.stop()
}

// sameTexts compares what was told with what was said. What came by mail ahead of a gap was told of before the gap was
// filled, so the order is that of coming in.
func sameTexts(got, want []string) bool {
	got, want = slices.Clone(got), slices.Clone(want)
	slices.Sort(got)
	slices.Sort(want)
	return slices.Equal(got, want)
}

// FuzzImport: bytes of a stranger's mail end in nothing worse than an error, and nothing is told of that was not signed.
func FuzzImport(f *testing.F) {
	a, b := friendsApart(f, nil)
	a.say(b.person, numbered(3)...)
	e := a.export(b, ExportOptions{})
	seed := func(m *pb.Mail) {
		raw, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	seed(&pb.Mail{Runs: e.Runs, Token: e.Token, Work: e.Work})
	b.receive(a.mailed(e))
	b.receipt(a.person)
	raw, _ := b.rep.OwnReceipt(a.conv(b.person))
	seed(&pb.Mail{Runs: e.Runs, Receipts: [][]byte{raw}})
	var held []feed.EntryID
	for _, x := range b.applied {
		held = append(held, x.ID)
	}
	b.admit = func(_ *storage.Tx, in Incoming) (int, pb.Code) {
		for _, x := range in.Run.Entries() {
			if !slices.Contains(held, x.ID) {
				f.Errorf("the gate was asked about an entry that was never signed")
			}
		}
		return in.Run.Len(), pb.Code_CODE_TAKEN
	}
	f.Fuzz(func(_ *testing.T, raw []byte) {
		var m pb.Mail
		if proto.Unmarshal(raw, &m) != nil {
			return
		}
		in := Mailed{Peer: a.peer(), Record: a.record, Runs: m.Runs, Receipts: m.Receipts, Token: m.Token, Work: m.Work}
		_, _ = b.rep.Import(context.Background(), in, nil)
	})
}

// tryMoveNow is a move without the loop around it.
func (r *Replica) tryMoveNow(old *session) (*session, error) {
	old.moving.Store(true)
	defer old.moving.Store(false)
	if !r.streams.enter() {
		return nil, ErrClosed
	}
	s, err := r.tryMove(context.Background(), old)
	if err != nil {
		r.streams.leave()
		return nil, err
	}
	go func() {
		defer r.streams.leave()
		s.run(context.Background())
	}()
	return s, nil
}
