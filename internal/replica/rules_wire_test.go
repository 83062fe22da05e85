package replica_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"hima/internal/feed"
	"hima/internal/wire"
	"hima/storage"
)

// signedEnds reads at which numbers of a feed a checked signature is held, by asking for the runs that a device serves.
func servedRuns(t *testing.T, p *tap, of feed.FeedID, tip feed.Tip, to uint64) (ends []uint64) {
	t.Helper()
	for tip.Seq < to {
		raw := p.run(5 * time.Second)
		require.NotNil(t, raw, "nothing served after %d", tip.Seq)
		run, err := feed.CheckDetached(raw)
		require.NoError(t, err, "what the second device serves does not verify: it would be blamed")
		if run.Feed() != of {
			continue
		}
		run, err = run.After(tip)
		require.NoError(t, err, "after %d", tip.Seq)
		tip = run.Last().Tip()
		ends = append(ends, tip.Seq)
	}
	return ends
}

// Rule C (R4): a feed 1..100 whose author signs every fifth entry, number 50 badly. The second device drops that run
// and blames nobody; the next signature vouches for what it missed. Then a third device that holds any beginning of the
// feed fetches the rest from the second, to any end, and all of it verifies.
func TestBadSignatureIsDroppedAndBlamesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 3)
		a, b, carol := r.devices[0], r.devices[1], r.devices[2]
		b.start()
		e := a.compose(t, feed.Tip{}, 100)
		ctx := context.Background()
		fetch := func(from, to uint64) {
			t.Helper()
			var tip feed.Tip
			if from > 1 {
				tip = e[from-2].Tip()
			}
			p := carol.dial(t, b)
			if tip.Seq == 0 {
				require.NoError(t, p.begin())
			} else {
				require.NoError(t, p.begin(headOf(e[tip.Seq-1])))
			}
			for _, end := range servedRuns(t, p, a.feed(), tip, to) {
				require.NotEqual(t, uint64(50), end, "a run ends where only a bad signature was seen")
			}
			p.st.Reset()
			r.await("the session is over", func() bool { return !b.rep.Connected(carol.key.ID()) })
		}
		for end := 5; end <= 100; end += 5 {
			raw := a.sign(t, e[end-5:end])
			switch end {
			case 50:
				raw.Signature[7]++
				require.ErrorIs(t, b.rep.Take(ctx, carol.peer(), raw), feed.ErrBadSignature)
				head, _ := b.stored(a.feed())
				require.Equal(t, uint64(45), head.Last, "a dropped run left something behind")
				continue
			case 55:
				raw = a.sign(t, e[45:55])
			}
			require.NoError(t, b.rep.Take(ctx, carol.peer(), raw))
			fetch(uint64(1+(end*7)%end), uint64(end))
		}
		for from := uint64(1); from <= 100; from++ {
			fetch(from, 100)
		}
	})
}

// Rule C (R4): a session that brings a run with a bad signature ends; the author, whose name was on it, is listened to
// as before.
func TestBadSignatureEndsTheSessionOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 3)
		a, b, carol := r.devices[0], r.devices[1], r.devices[2]
		a.start()
		b.start()
		e := a.mustWrite(4)
		bad := a.sign(t, e)
		bad.Signature[7]++
		p := carol.dial(t, b)
		require.NoError(t, p.begin())
		require.NoError(t, p.send(runFrame(bad)))
		require.True(t, p.ended(10*time.Second), "the session goes on")
		head, _ := b.stored(a.feed())
		require.Zero(t, head.Last)
		require.NoError(t, a.open(b))
		r.await("the author gets through", func() bool { return a.ackedBy(b) == 4 })
	})
}

// Rule C (R4): the stream is cut at every byte. What is stored is always a verified run, and each retry makes progress.
// Without HIMA_LONG=1 only every thirteenth place is tried.
func TestStreamCutAnywhere(t *testing.T) {
	step := 13
	if os.Getenv("HIMA_LONG") == "1" {
		step = 1
	}
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2)
		a, b := r.devices[0], r.devices[1]
		b.start()
		const perRun, runs = 2, 3
		cut, round := 0, 0
		for done := false; !done; cut, round = cut+step, round+1 {
			// A conversation of its own for each place, so that one replica serves for all.
			r.conv[0], r.conv[1] = byte(round), byte(round>>8)
			e := a.compose(t, feed.Tip{}, perRun*runs)
			var stream bytes.Buffer
			frames := a.beginning()
			for i := 0; i < len(e); i += perRun {
				frames = append(frames, runFrame(a.sign(t, e[i:i+perRun])))
			}
			for _, f := range frames {
				require.NoError(t, wire.Write(&stream, wire.MaxSyncFrame, f))
			}
			done = cut >= stream.Len()
			p := a.dial(t, b)
			_, err := p.st.Write(stream.Bytes()[:min(cut, stream.Len())])
			require.NoError(t, err)
			// What was written is read before the stream ends; then it ends as a broken connection does.
			require.NoError(t, p.st.CloseWrite())
			require.True(t, p.ended(30*time.Second))
			p.st.Reset()
			r.await("the session is over", func() bool { return !b.rep.Connected(a.key.ID()) })

			stored := verified(t, b, a.feed())
			require.Zero(t, stored%perRun, "cut at %d: stored up to %d, where no run ends", cut, stored)
			rest := a.dial(t, b)
			require.NoError(t, rest.begin(headOf(e[len(e)-1])))
			for i := int(stored); i < len(e); i += perRun {
				require.NoError(t, rest.send(runFrame(a.sign(t, e[i:i+perRun]))))
			}
			r.await(fmt.Sprintf("the retry after the cut at %d makes progress", cut), func() bool {
				return verified(t, b, a.feed()) == uint64(len(e))
			})
			rest.st.Reset()
			r.await("the session is over", func() bool { return !b.rep.Connected(a.key.ID()) })
		}
	})
}

// verified returns the end of a feed as held, after checking the chain up to there.
func verified(t *testing.T, d *device, id feed.FeedID) uint64 {
	t.Helper()
	var last feed.Head
	var entries []feed.Entry
	require.NoError(t, d.db.View(func(tx *storage.Tx) (err error) {
		if last, _, err = d.rep.Head(tx, id); err != nil {
			return err
		}
		return d.rep.Entries(tx, id, 1, 0, func(e feed.Entry) (bool, error) {
			entries = append(entries, e)
			return true, nil
		})
	}))
	require.Len(t, entries, int(last.Last), "something is stored that no head speaks of")
	for i, e := range entries {
		require.True(t, e.HasBody())
		if i > 0 {
			require.Equal(t, entries[i-1].ID, e.Prev)
		}
	}
	return last.Last
}
