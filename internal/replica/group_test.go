package replica_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"hima/internal/feed"
	"hima/internal/wire/pb"
)

// What one says reaches another over a third alone, as its author signed it.
func TestGroupRelaysThroughOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newGroup(t, 3)
		a, b, c := r.devices[0], r.devices[1], r.devices[2]
		a.admitAll(b, c)
		c.group.ask(b)
		r.open([2]int{0, 1}, [2]int{1, 2})
		a.mustWrite(3)
		r.complete(b, a, 3)
		r.complete(c, a, 3)
		require.False(t, a.rep.Connected(c.key.ID()), "the author had a session with everybody")
		begun := time.Now()
		a.mustWrite(1)
		r.complete(c, a, 4)
		require.Less(t, time.Since(begun), 1500*time.Millisecond)
		require.Greater(t, time.Since(begun), 400*time.Millisecond, "it was passed on at once")
		c.mustWrite(2)
		r.complete(a, c, 2)
	})
}

// Whoever has it already is not sent it again, over whatever road it came.
func TestGroupPushesOnlyWhatIsMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newGroup(t, 4)
		a := r.devices[0]
		a.admitAll(r.devices[1:]...)
		wire := &wireRecorder{times: map[feed.FeedID]map[uint64]int{}}
		r.open([2]int{0, 1}, [2]int{0, 2}, [2]int{0, 3})
		for _, d := range r.devices[1:] {
			r.complete(d, a, 0)
		}
		r.open([2]int{1, 2}, [2]int{2, 3}, [2]int{1, 3})
		for _, d := range r.devices {
			d.mustWrite(1)
		}
		for _, d := range r.devices {
			for _, o := range r.devices {
				r.complete(d, o, 1)
			}
		}
		time.Sleep(3 * time.Second) // nothing is under way
		for _, d := range r.devices {
			d.rep.Record(wire.wrote)
		}
		for range 20 {
			for _, d := range r.devices {
				d.mustWrite(1)
			}
			time.Sleep(100 * time.Millisecond)
		}
		for _, d := range r.devices {
			for _, o := range r.devices {
				r.complete(d, o, 21)
			}
		}
		time.Sleep(3 * time.Second)
		entries, repeats := wire.sums()
		require.Equal(t, 80, entries)
		require.Equal(t, 160, repeats, "more went out than once to each of three")
	})
}

// A newcomer gets what its window says, signed by its authors, from whomever; what comes later from everybody.
func TestGroupNewcomer(t *testing.T) {
	for name, first := range map[string]uint64{"all": 1, "some": 31, "none": 41} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newGroup(t, 4)
				a, b, c, n := r.devices[0], r.devices[1], r.devices[2], r.devices[3]
				a.admitAll(b, c)
				r.open([2]int{0, 1}, [2]int{0, 2})
				a.mustWrite(40)
				b.mustWrite(40)
				r.complete(c, a, 40)
				r.complete(c, b, 40)
				r.complete(a, b, 40)
				a.admitFrom(n, map[*device]uint64{a: first, b: first})
				r.await("everybody knows", func() bool { _, last := c.has(a.control()); return last == 4 })
				a.stop() // the author and the admitter are gone: another member serves
				n.group.ask(c)
				r.open([2]int{3, 2}, [2]int{1, 2})
				if first <= 40 {
					r.complete(n, a, 40)
					r.complete(n, b, 40)
				} else {
					r.await("the roster", func() bool { _, last := n.has(a.control()); return last == 4 })
				}
				b.mustWrite(2)
				r.complete(n, b, 42)
				got, _ := n.has(b.feed())
				require.Equal(t, first, got, "it holds what it may, and nothing else")
				r.open([2]int{3, 1}) // what n holds and what b may show it is the same
				b.mustWrite(1)
				r.complete(n, b, 43)
				n.mustWrite(1)
				r.complete(c, n, 1)
			})
		})
	}
}

// Who is removed gets the acts up to its removal, and nothing that comes later, of nobody who heard of it.
func TestGroupRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newGroup(t, 3)
		a, b, x := r.devices[0], r.devices[1], r.devices[2]
		a.admitAll(b, x)
		x.group.ask(b)
		r.open([2]int{0, 1}, [2]int{0, 2}, [2]int{1, 2})
		a.mustWrite(1)
		r.complete(b, a, 1)
		r.complete(x, a, 1)
		gone := a.do(act{Remove: x.person.ID().Bytes()})
		a.mustWrite(1)
		a.do(act{Admit: []byte("somebody else, whoever that be..")})
		r.await("b knows", func() bool { _, last := b.has(a.control()); return last == gone.Seq+1 })
		b.mustWrite(1)
		r.complete(a, b, 1)
		r.await("it is told", func() bool { _, last := x.has(a.control()); return last == gone.Seq })
		for range 2 {
			time.Sleep(5 * time.Second)
			_, acts := x.has(a.control())
			_, chat := x.has(a.feed())
			_, theirs := x.has(b.feed())
			require.Equal(t, []uint64{gone.Seq, 1, 0}, []uint64{acts, chat, theirs})
			// And in a session that begins anew.
			x.restart()
			r.open([2]int{2, 0}, [2]int{2, 1})
		}
		require.Empty(t, a.refused)
		x.mustWrite(1)
		time.Sleep(3 * time.Second)
		_, taken := b.has(x.feed())
		require.Zero(t, taken, "what the removed wrote was taken")
	})
}

// A chat entry that comes before what admits its author is refused, and taken soon after that has come.
func TestGroupTakesWhatWasRefusedEarlier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newGroup(t, 4)
		a, b, c, d := r.devices[0], r.devices[1], r.devices[2], r.devices[3]
		a.admitAll(b, c)
		c.group.ask(b)
		r.open([2]int{0, 1}, [2]int{0, 2})
		r.await("they are in", func() bool { return len(b.group.readers()) == 2 && len(c.group.readers()) == 2 })
		require.NoError(t, c.open(b))
		// a admits d; b hears of it and of what d says, c is cut off from a and hears what d says first.
		r.world.Cut(0, 2)
		r.world.Cut(1, 2)
		c.restart()
		a.admitAll(d)
		r.open([2]int{0, 3})
		r.await("d is in", func() bool { return len(d.group.readers()) == 3 })
		d.mustWrite(5)
		r.complete(b, d, 5)
		run, err := d.rep.ReadRun(d.feed(), 1)
		require.NoError(t, err)
		require.Error(t, c.rep.Take(t.Context(), d.peer(), run), "its author is not known")
		require.NoError(t, c.rep.Take(t.Context(), a.peer(), must(a.rep.ReadRun(a.control(), 1))))
		require.NoError(t, c.rep.Take(t.Context(), d.peer(), run))
		r.complete(c, d, 5)
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Members who let in one another, one after the other, and somebody who learns all of it at once, in one session.
func TestGroupChainOfAdmissions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 50
		r := newGroup(t, n)
		for i, d := range r.devices[:n-1] {
			next := r.devices[i+1]
			d.admitAll(next)
			r.open([2]int{i + 1, i})
			r.await("it is in", func() bool { return len(next.group.readers()) == i+1 })
			next.mustWrite(1)
		}
		last := r.devices[n-1]
		for _, d := range r.devices[1:] {
			r.complete(last, d, 1)
		}
		// What the first says goes all the way, and back.
		r.devices[0].mustWrite(1)
		begun := time.Now()
		r.complete(last, r.devices[0], 1)
		t.Logf("through %d members: %s", n, time.Since(begun))
		fresh := r.devices[1]
		fresh.stop()
	})
}

// In a session that lives, a group opens when both have come to share it, whoever comes first.
func TestGroupBeginsInALiveSession(t *testing.T) {
	for name, early := range map[string]bool{"admitter first": true, "newcomer first": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newGroup(t, 2)
				a, b := r.devices[0], r.devices[1]
				r.open([2]int{0, 1})
				time.Sleep(time.Second)
				a.mustWrite(1)
				admit := func() { a.do(act{Admit: b.person.ID().Bytes()}) }
				ask := func() { b.group.ask(a); b.rep.Reannounce(r.conv) }
				if early {
					admit()
					time.Sleep(time.Second)
					ask()
				} else {
					ask()
					time.Sleep(time.Second)
					admit()
				}
				r.complete(b, a, 1)
				b.mustWrite(1)
				r.complete(a, b, 1)
			})
		})
	}
}

// Keys go to members, once each, and to nobody else.
func TestGroupKeysAreHandedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newGroup(t, 3)
		a, b, x := r.devices[0], r.devices[1], r.devices[2]
		a.admitAll(b)
		x.group.ask(a)
		key := &pb.GroupKeys{Group: r.conv[:], Keys: []*pb.GroupKey{{Epoch: make([]byte, 32), Key: make([]byte, 32)}}}
		a.group.mu.Lock()
		a.group.keys = []*pb.GroupKeys{key}
		a.group.mu.Unlock()
		r.open([2]int{0, 1}, [2]int{0, 2})
		took := func(d *device) int {
			d.group.mu.Lock()
			defer d.group.mu.Unlock()
			return len(d.group.took)
		}
		r.await("it has the key", func() bool { return took(b) == 1 })
		a.rep.PushKeys(r.conv)
		time.Sleep(time.Second)
		require.Equal(t, 1, took(b), "what was told is told again")
		a.group.mu.Lock()
		a.group.keys = append(a.group.keys, &pb.GroupKeys{Group: r.conv[:], Keys: []*pb.GroupKey{{Epoch: key.Keys[0].Key, Key: make([]byte, 32)}, key.Keys[0]}})
		a.group.mu.Unlock()
		a.rep.PushKeys(r.conv)
		r.await("it has the next", func() bool { return took(b) == 2 })
		require.Zero(t, took(x), "somebody who is not in got keys")
	})
}
