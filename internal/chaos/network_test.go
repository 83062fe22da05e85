package chaos

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"hima/internal/messenger"
)

// The network goes away for seconds, a minute and half an hour; both write meanwhile. When it is back everything arrives by
// itself, in one order.
func TestNetworkAwayAndBack(t *testing.T) {
	for _, away := range []time.Duration{3 * time.Second, time.Minute, 30 * time.Minute} {
		t.Run(away.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, m := newMates(t, 2)
				a, b := m[0], m[1]
				meet(t, a, b)
				a.send(b, "before")
				within(t, 10*time.Second, "it is delivered", func() bool { return settled(a, b, 1) })
				w.Isolate(0)
				a.send(b, "a, cut off")
				b.send(a, "b, cut off")
				time.Sleep(away)
				for _, x := range a.texts(b) {
					if x.Text == "a, cut off" {
						require.Equal(t, messenger.StatePending, x.State)
					}
				}
				a.send(b, "a, just before the end")
				w.Rejoin(0)
				within(t, 15*time.Second, "everything is delivered after the network is back", func() bool { return settled(a, b, 4) })
				b.send(a, "after")
				within(t, 5*time.Second, "it is live again", func() bool { return settled(a, b, 5) })
			})
		})
	}
}

// One side sleeps: nothing of it runs, then it comes back with its clock where the world's is.
func TestOneSideStopsAndStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newMates(t, 2)
		a, b := m[0], m[1]
		meet(t, a, b)
		for round := range 4 {
			b.stop()
			w.Stop(1)
			a.send(b, fmt.Sprint("while away ", round))
			time.Sleep(time.Duration(round*round) * 10 * time.Minute)
			w.Start(1)
			b.start()
			b.send(a, fmt.Sprint("back ", round))
			within(t, 30*time.Second, "everything is delivered", func() bool { return settled(a, b, 2*round+2) })
		}
	})
}

// Clocks differ by hours, and jump by days while people talk. Order is the same on both sides, everything is delivered,
// and only what was more than a day ahead of its reader's clock is marked.
func TestClocksDifferAndJump(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, m := newMates(t, 2)
		a, b := m[0], m[1]
		a.shift(5 * time.Hour)
		b.shift(-7 * time.Hour)
		meet(t, a, b)
		n := 0
		say := func() {
			t.Helper()
			for range 3 {
				a.send(b, fmt.Sprint("a ", n))
				time.Sleep(100 * time.Millisecond)
				b.send(a, fmt.Sprint("b ", n))
				n += 2
				time.Sleep(100 * time.Millisecond)
			}
			within(t, 20*time.Second, "everything is delivered", func() bool { return settled(a, b, n) })
		}
		say()
		a.shift(-30 * 24 * time.Hour)
		say()
		b.shift(72 * time.Hour)
		say()
		b.shift(0)
		a.shift(0)
		say()
		for i, x := range a.texts(b) {
			// While a's clock was a month behind, and while b's was days ahead, b's words came from the future.
			ahead := !x.Own && i >= 6 && i < 18
			require.Equal(t, ahead, x.ClockAhead, "%d: %s", i, x.Text)
			// Each waited for the other's before: the conversation reads as it was held.
			require.Equal(t, fmt.Sprint([]string{"a ", "b "}[i%2], i/2*2), x.Text)
		}
	})
}

// Both open a connection at the same moment, again and again, over a slow link. One session remains and works.
func TestBothDialAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newMates(t, 2)
		a, b := m[0], m[1]
		meet(t, a, b)
		for round := range 12 {
			w.DelayAll(time.Duration(round*round) * 2 * time.Millisecond)
			w.Isolate(0)
			time.Sleep(40 * time.Second) // both notice
			require.Empty(t, a.replica.Sessions())
			w.Rejoin(0)
			var both sync.WaitGroup
			both.Go(func() { _ = a.replica.Open(t.Context(), b.node.ID()) }) // that it works is seen below
			both.Go(func() { _ = b.replica.Open(t.Context(), a.node.ID()) })
			a.send(b, fmt.Sprint("a ", round))
			b.send(a, fmt.Sprint("b ", round))
			both.Wait()
			within(t, 20*time.Second, "everything is delivered", func() bool { return settled(a, b, 2*round+2) })
			time.Sleep(5 * time.Second)
			require.Len(t, a.replica.Sessions(), 1)
			require.Len(t, b.replica.Sessions(), 1)
			require.Equal(t, a.replica.Sessions()[0].Outbound, !b.replica.Sessions()[0].Outbound, "they keep different sessions")
		}
	})
}

// Both send as fast as they can at the same time. Everything arrives once, in the same order on both sides.
func TestBothSendAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const each = 300
		_, m := newMates(t, 2)
		a, b := m[0], m[1]
		meet(t, a, b)
		var both sync.WaitGroup
		for _, p := range [][2]*mate{{a, b}, {b, a}} {
			for w := range 3 {
				both.Go(func() {
					for i := range each / 3 {
						p[0].send(p[1], fmt.Sprint(p[0].name, " ", w, " ", i))
						time.Sleep(time.Duration(w) * time.Millisecond)
					}
				})
			}
		}
		both.Wait()
		within(t, 30*time.Second, "everything is delivered", func() bool { return settled(a, b, 2*each) })
		seen := map[string]bool{}
		next := map[string]int{}
		for _, x := range a.texts(b) {
			require.False(t, seen[x.Text], "%s is there twice", x.Text)
			seen[x.Text] = true
			var name string
			var w, i int
			_, err := fmt.Sscan(x.Text, &name, &w, &i)
			require.NoError(t, err)
			key := fmt.Sprint(name, w)
			require.Equal(t, next[key], i, "one person's messages changed their order")
			next[key]++
		}
	})
}

// Both ask the other at the same time. Two requests that cross are an acceptance (R16).
func TestBothAskAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newMates(t, 2)
		a, b := m[0], m[1]
		within(t, time.Minute, "they see each other", func() bool {
			_, errA := a.messenger.Find(t.Context(), b.name)
			_, errB := b.messenger.Find(t.Context(), a.name)
			return errA == nil && errB == nil
		})
		w.Isolate(0)
		for _, p := range [][2]*mate{{a, b}, {b, a}} {
			_, _, err := p[0].messenger.AddContact(t.Context(), messenger.AddContact{Who: p[1].name, Message: "hello"})
			require.NoError(t, err)
		}
		time.Sleep(time.Minute)
		w.Rejoin(0)
		within(t, time.Minute, "both are contacts", func() bool {
			for _, p := range []*mate{a, b} {
				all, err := p.messenger.Contacts(t.Context(), false)
				if err != nil || len(all) != 1 || all[0].Relation != messenger.RelationContact {
					return false
				}
			}
			return true
		})
		a.send(b, "we both asked")
		b.send(a, "and so we both accepted")
		within(t, 10*time.Second, "they talk", func() bool { return settled(a, b, 2) })
	})
}
