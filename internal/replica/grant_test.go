package replica_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// A member who is not known to hold the key under which this device writes is sent it with the chat, and alone where the chat lies
// somewhere already and this device is one that mails it; with it goes what others wrote that the key stands upon, no more.
func TestExportBringsKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newGroup(t, 3)
		a, b, c := r.devices[0], r.devices[1], r.devices[2]
		a.admitAll(b, c)
		r.open([2]int{0, 1})
		r.await("b is in", func() bool { return len(b.group.readers()) == 2 })
		a.do(act{}) // nothing stands upon that
		r.await("b has it", func() bool { _, last := b.has(a.control()); return last == 4 })
		b.mustWrite(3)
		acked := uint64(99)
		b.group.mu.Lock()
		b.group.keys = []*pb.GroupKeys{{Group: r.conv[:], Keys: []*pb.GroupKey{{Epoch: make([]byte, 32), Key: make([]byte, 32)}}}}
		b.group.lacking = replica.Lacking{
			Key: func(p replica.Peer, n uint64) (bool, error) { acked = n; return p == c.peer(), nil },
			Acts: func(replica.Peer, uint64) ([]replica.Span, error) {
				return []replica.Span{{Feed: a.control(), From: 2, Last: 3}}, nil
			},
		}
		b.group.mu.Unlock()
		export := func(o replica.ExportOptions) replica.Export {
			t.Helper()
			out, err := b.rep.Export(t.Context(), c.key.ID(), o)
			require.NoError(t, err)
			return out
		}
		keyless := func() bool {
			owed, err := b.rep.Owed()
			require.NoError(t, err)
			for _, d := range owed {
				if d.Device == c.key.ID() {
					return d.Feeds[0].Keyless
				}
			}
			return false
		}
		out := export(replica.ExportOptions{})
		require.Zero(t, acked)
		require.Len(t, out.Keys, 1)
		require.Equal(t, []replica.Span{{Feed: a.control(), From: 2, Last: 3, Lazy: true}}, out.Carried)
		require.Equal(t, []replica.Span{{Feed: a.control(), From: 2, Last: 3, Lazy: true}, {Feed: b.feed(), From: 1, Last: 3, Lazy: true}}, out.Spans)
		require.False(t, keyless(), "others mail it")

		log := func(id feed.FeedID, _ uint64) uint64 {
			if id == b.feed() {
				return 3
			}
			return 0
		}
		require.True(t, export(replica.ExportOptions{Skip: log}).Empty(), "nobody asked")
		granted := replica.ExportOptions{Skip: log, Grant: []feed.ConversationID{r.conv}}
		require.True(t, export(granted).Empty(), "others mail it")
		b.group.mu.Lock()
		b.group.lacking.Mails = true
		b.group.mu.Unlock()
		b.rep.PushKeys(r.conv) // they changed
		require.True(t, keyless())
		out = export(granted)
		require.Len(t, out.Keys, 1)
		require.Len(t, out.Spans, 1)
		granted.Skip = func(feed.FeedID, uint64) uint64 { return 3 }
		out = export(granted)
		require.Empty(t, out.Spans)
		require.Len(t, out.Keys, 1)
		require.False(t, out.Empty(), "keys alone are worth a mail")

		posted := func(e replica.Export) (mailed int) {
			require.NoError(t, b.db.Update(context.Background(), func(tx *storage.Tx) error {
				return b.rep.Posted(tx, e, time.Now().Add(time.Hour))
			}))
			b.group.mu.Lock()
			defer b.group.mu.Unlock()
			return len(b.group.mailed)
		}
		out.More = true // acts that they stand upon did not fit
		require.Zero(t, posted(out))
		out.More = false
		require.Equal(t, 1, posted(out))

		// A mailbox keeps it until then, and nothing happens when that ends.
		until := time.Now().Add(time.Minute)
		b.group.mu.Lock()
		b.group.lacking.Key = func(p replica.Peer, _ uint64) (bool, error) { return p == c.peer() && !until.After(time.Now()), nil }
		b.group.lacking.Until = func() time.Time { return until }
		b.group.mu.Unlock()
		b.rep.PushKeys(r.conv)
		require.False(t, keyless())
		time.Sleep(59 * time.Second)
		require.False(t, keyless())
		time.Sleep(2 * time.Second)
		require.True(t, keyless(), "nobody looked again")
		b.group.mu.Lock()
		b.group.lacking.Key = func(p replica.Peer, _ uint64) (bool, error) { return p == c.peer(), nil }
		b.group.mu.Unlock()

		out, err := b.rep.Export(t.Context(), a.key.ID(), granted)
		require.NoError(t, err)
		require.Empty(t, out.Keys, "who has the key")
	})
}
