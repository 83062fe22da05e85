package replica

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"hima/internal/feed"
	"hima/node/nodetest"
	"hima/storage"
)

// benchPair makes two friends with databases on disk, on loopback TCP, both in this process.
func benchPair(b *testing.B, onAck func(Ack)) (x, y *side) {
	b.Helper()
	nodes := nodetest.Loopback(b, 2)
	px, py := newPerson(b, 0), newPerson(b, 1)
	open := func() *storage.DB {
		key := make([]byte, 32)
		rand.Read(key)
		db, err := storage.Open(storage.Config{Dir: b.TempDir(), Key: key, Logger: quiet()})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { db.Close() })
		return db
	}
	x = newSideOn(b, px, nodes[0], open(), newFakes(px, py), func(c *Config) { c.OnAck = onAck })
	y = newSideOn(b, py, nodes[1], open(), newFakes(py, px), nil)
	nodetest.Connect(b, nodes[0], nodes[1])
	return x, y
}

// BenchmarkLatency is one message at a time: durable here, sent, durable there, acknowledged.
func BenchmarkLatency(b *testing.B) {
	acked := make(chan uint64, 1<<16)
	x, y := benchPair(b, func(a Ack) { acked <- a.Last })
	x.open(y)
	x.say(y.person, "first")
	<-acked
	text := fmt.Sprintf("%0100d", 1)
	var all, floor []time.Duration
	value := make([]byte, 350)
	for i := 0; b.Loop(); i++ {
		// The floor of the same moment: one commit on each side, without a network.
		begun := time.Now()
		for _, s := range []*side{x, y} {
			s.change(func(tx *storage.Tx) error { return tx.Set(fmt.Appendf(nil, "bench/%d", i), value) })
		}
		floor = append(floor, time.Since(begun))
		begun = time.Now()
		e := x.say(y.person, text)[0]
		for <-acked < e.Seq {
		}
		all = append(all, time.Since(begun))
	}
	slices.Sort(all)
	slices.Sort(floor)
	b.ReportMetric(float64(floor[len(floor)/2].Microseconds()), "two-commits-p50-us")
	b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-us")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-us")
}

// BenchmarkPipelined is 512 writers who each wait for their own commit, everything acknowledged at the end.
func BenchmarkPipelined(b *testing.B) {
	acked := make(chan uint64, 1<<20)
	x, y := benchPair(b, func(a Ack) { acked <- a.Last })
	x.open(y)
	x.say(y.person, "first")
	<-acked
	text := []byte(fmt.Sprintf("%0100d", 1))
	conv := feed.DirectConversation(x.account(), y.account())
	b.ResetTimer()
	var wg sync.WaitGroup
	work := make(chan bool)
	for range 512 {
		wg.Go(func() {
			for range work {
				err := x.db.Update(context.Background(), func(tx *storage.Tx) error {
					_, err := x.rep.Append(tx, Draft{Conversation: conv, Number: feed.Chat, Kind: feed.KindText, Content: text})
					return err
				})
				if err != nil {
					b.Error(err)
				}
			}
		})
	}
	for range b.N {
		work <- true
	}
	close(work)
	wg.Wait()
	for <-acked < uint64(b.N+1) {
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}

// BenchmarkCatchUp is a backlog that is read from disk and sent to somebody who comes back.
func BenchmarkCatchUp(b *testing.B) {
	acked := make(chan uint64, 1<<20)
	x, y := benchPair(b, func(a Ack) { acked <- a.Last })
	text := fmt.Sprintf("%0100d", 1)
	for left := b.N; left > 0; left -= 500 {
		texts := make([]string, min(left, 500))
		for i := range texts {
			texts[i] = text
		}
		x.say(y.person, texts...)
	}
	b.ResetTimer()
	y.open(x)
	for <-acked < uint64(b.N) {
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}
