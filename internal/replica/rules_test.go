package replica_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// The smallest thing that works, for all that follows to be worth anything.
func TestTwoDevicesTalk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2)
		a, b := r.devices[0], r.devices[1]
		a.start()
		b.start()
		a.mustWrite(3)
		require.NoError(t, a.open(b))
		b.mustWrite(2)
		r.await("both have all", func() bool { return a.ackedBy(b) == 3 && b.ackedBy(a) == 2 })
	})
}

// wireBook is the recorder of rule A: which header hashes were ever seen on the wire for a number.
type wireBook map[uint64]map[feed.EntryID]bool

func (w wireBook) note(t *testing.T, of feed.FeedID, raw *pb.Run) feed.Run {
	t.Helper()
	run, err := feed.CheckDetached(raw)
	require.NoError(t, err, "a run on the wire does not verify")
	if run.Feed() != of {
		return run
	}
	for _, e := range run.Entries() {
		if w[e.Seq] == nil {
			w[e.Seq] = map[feed.EntryID]bool{}
		}
		w[e.Seq][e.ID] = true
	}
	return run
}

// Rule A (R1, R3): the author crashes at every step between writing, offering, acknowledging and cancelling, restarts
// and writes on. A recorder on the wire sees at most one header for each number, everything it saw is still on the
// author's disk, and nothing that was cancelled was ever shown.
func TestNoNumberIsUsedTwice(t *testing.T) {
	for _, point := range []string{"before-commit", "after-commit", "before-offered", "offer", "ack"} {
		for nth := 1; nth <= 5; nth++ {
			t.Run(fmt.Sprintf("%s %d", point, nth), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { crashAndGoOn(t, point, nth) })
			})
		}
	}
}

func crashAndGoOn(t *testing.T, point string, nth int) {
	r := newRig(t, 2)
	a, b := r.devices[0], r.devices[1]
	book, bodies, cancelled := wireBook{}, map[uint64]bool{}, map[uint64]bool{}
	// watch records what comes for a while and acknowledges the first run, so that acknowledging is a step as well.
	var seen []feed.Entry
	watch := func(p *tap) {
		for raw := p.run(500 * time.Millisecond); raw != nil; raw = p.run(500 * time.Millisecond) {
			run := book.note(t, a.feed(), raw)
			if run.Feed() != a.feed() {
				continue // it brings back what the recorder wrote itself and says not to hold
			}
			for _, e := range run.Entries() {
				bodies[e.Seq] = bodies[e.Seq] || e.HasBody()
				seen = append(seen, e)
			}
			last := run.Last()
			_ = p.send(&pb.Frame{Of: &pb.Frame_Ack{Ack: &pb.Ack{Items: []*pb.AckItem{{
				Conversation: r.conv[:], Feed: uint32(feed.Chat), Device: last.Device[:], Last: last.Seq, Hash: last.ID[:],
			}}}}})
		}
	}
	// What was shown can no longer be cancelled, whether or not the author remembers showing it.
	late := func() {
		for seq := range book {
			ok, _ := a.cancel(seq) // fails where the crash comes now
			require.False(t, ok, "number %d was cancelled after it had been on the wire", seq)
		}
	}
	try := func() {
		// Some of it fails because the device is dead by then: that is the point.
		_, _ = a.write("one", "two")
		if ok, _ := a.cancel(2); ok {
			cancelled[2] = true
		}
		if a.isDead() {
			return
		}
		p := b.dial(t, a)
		_ = p.begin()
		_ = p.send(runFrame(b.sign(t, b.compose(t, feed.Tip{}, 1)))) // something to acknowledge
		watch(p)
		_, _ = a.write("three", "four") // over the live road
		if ok, _ := a.cancel(4); ok {
			cancelled[4] = true
		}
		watch(p)
		if !a.isDead() {
			late()
		}
		p.st.Reset()
	}
	a.start()
	left := nth
	a.crash(func(at string) bool {
		if at == point {
			left--
		}
		return left == 0
	})
	try()
	a.restart()
	late()
	_, before := a.stored(a.feed())
	byNumber := map[uint64]feed.Entry{}
	for _, e := range before {
		byNumber[e.Seq] = e
	}
	for _, e := range seen {
		require.Equal(t, e.ID, byNumber[e.Seq].ID, "number %d was on the wire and is not on disk", e.Seq)
	}
	_, err := a.write("five", "six")
	require.NoError(t, err)
	p := b.dial(t, a)
	require.NoError(t, p.begin())
	watch(p)
	late()
	for seq, ids := range book {
		require.Len(t, ids, 1, "number %d was on the wire with different headers", seq)
	}
	for seq := range cancelled {
		require.False(t, bodies[seq], "number %d was cancelled and shown all the same", seq)
	}
	head, _ := a.stored(a.feed())
	require.Len(t, book, int(head.Last), "not everything was offered after the restart")
}

// Rule A (R3): an old copy of the disk. What was written since is known to the other side, so the device stops
// writing under its key before anything new leaves it.
func TestOldCopyOfTheDiskIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2)
		a, b := r.devices[0], r.devices[1]
		a.start()
		b.start()
		a.mustWrite(2)
		a.stop()
		old := copyDir(t, a.dir)
		a.start()
		a.mustWrite(3)
		require.NoError(t, a.open(b))
		r.await("the other has all", func() bool { return a.ackedBy(b) == 5 })
		a.stop()
		a.dir = old
		a.start()
		require.NoError(t, a.open(b))
		r.await("the device notices", func() bool {
			a.mu.Lock()
			defer a.mu.Unlock()
			return a.diverged
		})
		_, err := a.write("under the old key")
		require.ErrorIs(t, err, replica.ErrDiverged)
		head, _ := b.stored(a.feed())
		require.Equal(t, uint64(5), head.Last)
	})
}

// Rule A (R3): the old copy has already written something else before the two meet. It is noticed, the other side
// keeps what it had, and the fork is known to both.
func TestForkedFeedStopsItsAuthor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2)
		a, b := r.devices[0], r.devices[1]
		a.start()
		b.start()
		a.mustWrite(2)
		a.stop()
		old := copyDir(t, a.dir)
		a.start()
		a.mustWrite(3)
		require.NoError(t, a.open(b))
		r.await("the other has all", func() bool { return a.ackedBy(b) == 5 })
		a.stop()
		a.dir = old
		a.start()
		a.mustWrite(4)
		_ = a.open(b) // the session may end at once
		r.await("the device notices", func() bool {
			a.mu.Lock()
			defer a.mu.Unlock()
			return a.diverged
		})
		_, err := a.write("under the old key")
		require.ErrorIs(t, err, replica.ErrDiverged)
		_, held := b.stored(a.feed())
		require.Equal(t, "2 of 0", textOf(t, held[4]), "the other branch replaced what was acknowledged")
	})
}

// Rule B (R9): 1 to 3 and 5 arrive by another road, 4 is lost, 6 comes without its body. The author sees 4 to 6 as
// undelivered, the hole is known, also when only the body is missing, and once they meet everything is delivered.
func TestHolesAreNotAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 3)
		a, carol, b := r.devices[0], r.devices[1], r.devices[2]
		a.start()
		b.start()
		e := a.mustWrite(6)
		ctx := context.Background()
		require.NoError(t, b.rep.Take(ctx, carol.peer(), a.sign(t, e[:3])))
		require.NoError(t, b.rep.Take(ctx, carol.peer(), a.sign(t, e[4:5])))
		bare := a.sign(t, []feed.Entry{e[5].WithoutBody()})
		require.NoError(t, b.rep.Take(ctx, carol.peer(), bare))
		head, _ := b.stored(a.feed())
		require.Equal(t, uint64(3), head.Last)
		require.NoError(t, b.db.View(func(tx *storage.Tx) error {
			holes, err := b.rep.Holes(tx, a.feed())
			require.Equal(t, []replica.Hole{{From: 4, To: 4}, {From: 6, To: 6}}, holes)
			return err
		}))

		a.crash(func(at string) bool { return at == "offer" }) // the author learns where the other stands and sends nothing
		_ = a.open(b)
		r.await("the author is gone", a.isDead)
		a.restart()
		require.LessOrEqual(t, a.ackedBy(b), uint64(3), "what stands after a hole counts as delivered")

		// The gap is filled by that road too: the end moves up to the missing body and not over it, also when the bare
		// header comes again.
		require.NoError(t, b.rep.Take(ctx, carol.peer(), a.sign(t, e[3:4])))
		require.NoError(t, b.rep.Take(ctx, carol.peer(), bare))
		head, _ = b.stored(a.feed())
		require.Equal(t, uint64(5), head.Last)

		require.NoError(t, a.open(b))
		r.await("all is delivered", func() bool { return a.ackedBy(b) == 6 })
		_, held := b.stored(a.feed())
		require.Len(t, held, 6)
		for i, h := range held {
			require.True(t, h.HasBody(), "number %d", i+1)
			require.Equal(t, e[i].ID, h.ID)
		}
		require.NoError(t, b.db.View(func(tx *storage.Tx) error {
			holes, err := b.rep.Holes(tx, a.feed())
			require.Empty(t, holes)
			return err
		}))
	})
}

// Rule B (R14): the receiver dies between the last byte and its commit. No acknowledgement was seen, and it has the
// entries after the next meeting, once.
func TestNoAcknowledgementBeforeTheCommit(t *testing.T) {
	for _, point := range []string{"before-commit", "after-commit", "before-ack", "ack"} {
		t.Run(point, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, 2)
				a, b := r.devices[0], r.devices[1]
				a.start()
				b.start()
				require.NoError(t, a.open(b))
				b.crash(func(at string) bool { return at == point })
				e := a.mustWrite(3)
				r.await("the receiver is gone", b.isDead)
				time.Sleep(time.Second)
				require.Zero(t, a.ackedBy(b), "acknowledged by one who crashed before it could")
				b.restart()
				if point == "before-commit" {
					head, _ := b.stored(a.feed())
					require.Zero(t, head.Last)
				}
				r.await("they meet", func() bool { return a.open(b) == nil })
				r.await("all is delivered", func() bool { return a.ackedBy(b) == 3 })
				_, held := b.stored(a.feed())
				require.Len(t, held, 3)
				require.Equal(t, e[2].ID, held[2].ID)
				told := map[uint64]int{}
				b.mu.Lock()
				defer b.mu.Unlock()
				for _, x := range b.applied {
					told[x.Seq]++
				}
				for seq, n := range told {
					require.Equal(t, 1, n, "number %d was told of more than once", seq)
				}
			})
		})
	}
}
