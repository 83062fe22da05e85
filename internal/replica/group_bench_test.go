package replica

import (
	"crypto/rand"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/node/nodetest"
	"hima/storage"
)

// missed is what several authors wrote while somebody was away: n entries in all, in runs as they came live.
func missed(tb testing.TB, conv feed.ConversationID, authors []person, n, perRun int) []*pb.Run {
	tb.Helper()
	var runs []*pb.Run
	for _, p := range authors {
		author := feed.NewAuthor(p.account(), p.device(), p.cert)
		var tip feed.Tip
		for left := n / len(authors); left > 0; left -= perRun {
			var entries []feed.Entry
			for range min(left, perRun) {
				e, err := author.Next(tip, conv, feed.Chat, feed.KindText, tip.Clock+1, begin.UnixMilli(), fmt.Appendf(nil, "%0100d", tip.Seq))
				if err != nil {
					tb.Fatal(err)
				}
				entries, tip = append(entries, e), e.Tip()
			}
			run, err := feed.Assemble(entries, feed.SignRun(p.deviceKey, entries[len(entries)-1]))
			if err != nil {
				tb.Fatal(err)
			}
			runs = append(runs, run.PB())
		}
	}
	return runs
}

// hold stores runs in a database without a session.
func (s *side) hold(runs []*pb.Run) {
	s.t.Helper()
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, raw := range runs {
		run, err := feed.CheckDetached(raw)
		if err != nil {
			s.t.Fatal(err)
		}
		wg.Add(1)
		s.db.Submit(func(tx *storage.Tx) error {
			_, err := s.rep.apply(tx, arrived{run: run})
			return err
		}, func(err error) {
			if err != nil {
				s.t.Error(err)
			}
			wg.Done()
		})
	}
}

// BenchmarkGroupCatchUp is a member who comes back after 20,000 messages of ten others and finds one or three helpers.
func BenchmarkGroupCatchUp(b *testing.B) {
	for _, helpers := range []int{1, 3} {
		b.Run(fmt.Sprintf("helpers=%d", helpers), func(b *testing.B) {
			const messages, authors = 20000, 10
			conv := feed.ConversationID{1}
			var people []person
			for i := range helpers + 1 + authors {
				people = append(people, newPerson(b, i))
			}
			runs := missed(b, conv, people[helpers+1:], messages, 5)
			for b.Loop() {
				b.StopTimer()
				nodes := nodetest.Loopback(b, helpers+1)
				var sides []*side
				var sent sync.Map
				for i := range helpers + 1 {
					db, err := storage.Open(storage.Config{Dir: b.TempDir(), Key: newKey(), Logger: quiet()})
					if err != nil {
						b.Fatal(err)
					}
					b.Cleanup(func() { db.Close() })
					f := newFakes(people[i])
					f.enter(conv, people...)
					s := newSideOn(b, people[i], nodes[i], db, f, nil)
					if i < helpers {
						s.hold(runs)
						nodetest.Connect(b, nodes[i], nodes[helpers])
					}
					s.rep.Record(func(_ Peer, id feed.FeedID, from, last uint64) {
						for seq := from; seq <= last; seq++ {
							n, _ := sent.LoadOrStore(fmt.Sprint(id, seq), new(int))
							*n.(*int)++ // of one session: no race that matters
						}
					})
					for _, p := range people {
						f.enter(conv, p)
					}
					sides = append(sides, s)
				}
				back := sides[helpers]
				b.StartTimer()
				begun := time.Now()
				for _, s := range sides[:helpers] {
					go func() { _ = back.tryOpen(s) }()
				}
				back.wait(b, "all of it", func() bool { return len(back.applied) >= messages })
				took := time.Since(begun)
				b.StopTimer()
				total := 0
				sent.Range(func(_, n any) bool { total += *n.(*int); return true })
				b.ReportMetric(took.Seconds(), "s")
				b.ReportMetric(float64(total)/messages, "sent/entry")
				for _, s := range sides {
					s.stop()
				}
				b.StartTimer()
			}
		})
	}
}

func newKey() []byte {
	key := make([]byte, 32)
	rand.Read(key)
	return key
}

// BenchmarkGroupOpen is a session between two members of a group of a thousand, of whom each has a control and a chat feed:
// until it is open, when both hold the same and when one lacks one entry.
func BenchmarkGroupOpen(b *testing.B) {
	const members = 1000
	conv := feed.ConversationID{1}
	var people []person
	for i := range members {
		people = append(people, newPerson(b, i))
	}
	chat, control := missed(b, conv, people[2:], members-2, 1), acts(b, conv, people[2:])
	for _, same := range []bool{true, false} {
		b.Run(fmt.Sprintf("same=%v", same), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				nodes := nodetest.Loopback(b, 2)
				var sides []*side
				for i := range 2 {
					f := newFakes(people[i])
					f.enter(conv, people...)
					db, err := storage.Open(storage.Config{Dir: b.TempDir(), Key: newKey(), Logger: quiet()})
					if err != nil {
						b.Fatal(err)
					}
					b.Cleanup(func() { db.Close() })
					s := newSideOn(b, people[i], nodes[i], db, f, nil)
					s.hold(control)
					if same || i == 0 {
						s.hold(chat)
					} else {
						s.hold(chat[1:])
					}
					sides = append(sides, s)
				}
				nodetest.Connect(b, nodes[0], nodes[1])
				var before runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				b.StartTimer()
				begun := time.Now()
				sides[0].open(sides[1])
				for !sides[0].rep.isOpenWith(sides[1].device(), conv) || !sides[1].rep.isOpenWith(sides[0].device(), conv) {
					time.Sleep(time.Millisecond)
				}
				took := time.Since(begun)
				b.StopTimer()
				var after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&after)
				b.ReportMetric(float64(took.Milliseconds()), "ms")
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/2/(1<<20), "MiB/session")
				for _, s := range sides {
					s.stop()
				}
				b.StartTimer()
			}
		})
	}
}

func (r *Replica) isOpenWith(device identity.DeviceID, conv feed.ConversationID) bool {
	s := r.streams.get(device)
	return s != nil && s.isOpen(conv)
}

// acts is one control entry of each.
func acts(tb testing.TB, conv feed.ConversationID, authors []person) []*pb.Run {
	tb.Helper()
	var runs []*pb.Run
	for _, p := range authors {
		e, err := feed.NewAuthor(p.account(), p.device(), p.cert).Next(feed.Tip{}, conv, feed.Control, feed.KindGroupSet, 1, begin.UnixMilli(), nil)
		if err != nil {
			tb.Fatal(err)
		}
		run, err := feed.Assemble([]feed.Entry{e}, feed.SignRun(p.deviceKey, e))
		if err != nil {
			tb.Fatal(err)
		}
		runs = append(runs, run.PB())
	}
	return runs
}
