package messenger

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"hima/groups"
	"hima/identity"
	"hima/internal/feed"
	"hima/storage"
)

// BenchmarkSend measures durable sends by many callers, without a network.
func BenchmarkSend(b *testing.B) {
	alice, bob := realFriends(b, b.TempDir(), "")
	bob.halt()
	ctx := context.Background()
	var n atomic.Int64
	b.SetParallelism(256)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			in := SendInput{Who: bob.p.id(), Text: fmt.Sprint("message number ", n.Add(1), " of some length, as people write")}
			if _, err := alice.m.Send(ctx, in); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}

// BenchmarkBoth measures sends by many callers to somebody who is connected, until all are acknowledged.
func BenchmarkBoth(b *testing.B) {
	alice, bob := realFriends(b, b.TempDir(), b.TempDir())
	ctx := context.Background()
	var n atomic.Int64
	b.SetParallelism(512)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			in := SendInput{Who: bob.p.id(), Text: fmt.Sprint("message number ", n.Add(1), " of some length, as people write")}
			if _, err := alice.m.Send(ctx, in); err != nil {
				b.Error(err)
				return
			}
		}
	})
	eventually(b, "all are acknowledged", func() bool {
		c, err := alice.m.Counts(ctx)
		return err == nil && c.Pending == 0
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}

// BenchmarkNewest50 measures a screenful of a long conversation.
func BenchmarkNewest50(b *testing.B) {
	for _, size := range []int{1000, 100_000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			alice, bob := realFriends(b, b.TempDir(), "")
			bob.halt()
			jobs := make(chan int)
			done := make(chan error, 256)
			for range cap(done) {
				go func() {
					var err error
					for i := range jobs {
						if _, e := alice.m.Send(context.Background(), SendInput{Who: bob.p.id(), Text: fmt.Sprint("message ", i)}); e != nil {
							err = e
						}
					}
					done <- err
				}()
			}
			for i := range size {
				jobs <- i
			}
			close(jobs)
			for range cap(done) {
				require.NoError(b, <-done)
			}
			for b.Loop() {
				h, err := alice.m.History(context.Background(), HistoryQuery{Who: bob.p.id()})
				require.NoError(b, err)
				require.Len(b, h.Messages, 50)
			}
		})
	}
}

// BenchmarkGroupPage reads a page of own messages in a group of 500, of which each member has another part.
func BenchmarkGroupPage(b *testing.B) {
	id, people := crowd(b, "alice", "bob")
	alice := people[0]
	group := alice.groups.groups[id]
	for range 498 {
		group.members = append(group.members, groups.Member{Account: identity.GenerateAccountKey().ID(), Role: groups.RoleMember})
	}
	for i := range 50 {
		alice.tells("Hikers", fmt.Sprint("message ", i))
	}
	require.NoError(b, alice.db.Update(context.Background(), func(tx *storage.Tx) error {
		for i, m := range group.members[2:] {
			row, _, err := alice.m.feeds.get(tx, alice.feeds.OwnFeed(id, feed.Chat))
			if err == nil {
				err = alice.m.reached(tx, &row, m.Account, 1, uint64(i%50+1), uint64(i%20))
			}
			if err != nil {
				return err
			}
		}
		return nil
	}))
	for b.Loop() {
		h, err := alice.m.History(context.Background(), HistoryQuery{Who: "Hikers", Limit: 50})
		require.NoError(b, err)
		require.Equal(b, 499, h.Messages[49].Members)
	}
}
