package replica_test

import (
	"fmt"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
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

// sizeOr returns the bigger size if there is time for it.
func sizeOr(n, long int) int {
	if os.Getenv("HIMA_LONG") != "" {
		return long
	}
	return n
}

// Members who let in one another, one after the other, and somebody who learns all of it at once, in one session.
func TestGroupChainOfAdmissions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := sizeOr(12, 50)
		r := newGroup(t, n)
		for i, d := range r.devices[:n-1] {
			next := r.devices[i+1]
			d.admitAll(next)
			r.open([2]int{i + 1, i})
			r.await(fmt.Sprintf("%d is in", i+1), func() bool { return len(next.group.readers()) == i+1 })
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

		// What is wanted is told once as well, beside keys; branches are told as often as they are asked for.
		a.group.mu.Lock()
		a.group.keys = append(a.group.keys[1:], &pb.GroupKeys{Group: r.conv[:], Wants: [][]byte{make([]byte, 32)}}, &pb.GroupKeys{Group: r.conv[:], Branches: []*pb.Run{{}}})
		a.group.mu.Unlock()
		for n := 4; n <= 6; n++ {
			a.rep.PushKeys(r.conv)
			r.await("what was asked for", func() bool { return took(b) == n })
			time.Sleep(time.Second)
			require.Equal(t, n, took(b))
		}
		// Later what is wanted is told again: the answer may have got lost.
		time.Sleep(10 * time.Minute)
		a.rep.PushKeys(r.conv)
		r.await("what is still wanted", func() bool { return took(b) == 8 })
	})
}

// A helper that shows a floor above what a newcomer may have takes nothing from it: another one shows the rest.
func TestGroupHelperShowsTooHighAFloor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newGroup(t, 4)
		a, b, evil, n := r.devices[0], r.devices[1], r.devices[2], r.devices[3]
		a.admitAll(b, evil)
		r.open([2]int{0, 1}, [2]int{0, 2})
		a.mustWrite(1000)
		r.complete(b, a, 1000)
		r.complete(evil, a, 1000)
		a.admitFrom(n, map[*device]uint64{a: 301})
		r.await("the helpers know", func() bool {
			_, last := evil.has(a.control())
			_, also := b.has(a.control())
			return last == 4 && also == 4
		})
		a.stop()
		// The hostile one believes that the newcomer may have what came last alone.
		evil.group.mu.Lock()
		evil.group.members[n.person.ID()].first[a.key.ID()] = 900
		evil.group.mu.Unlock()
		n.group.ask(evil)
		r.open([2]int{3, 2})
		r.complete(n, a, 1000)
		first, _ := n.has(a.feed())
		require.Equal(t, uint64(900), first)
		r.open([2]int{3, 1})
		r.await("it has all it may", func() bool { first, last := n.has(a.feed()); return first == 301 && last == 1000 })
		seen := map[uint64]int{}
		n.mu.Lock()
		for _, e := range n.applied {
			if e.Feed() == a.feed() {
				seen[e.Seq]++
			}
		}
		n.mu.Unlock()
		require.Len(t, seen, 700)
		for seq, times := range seen {
			require.Equal(t, 1, times, "%d was told of again", seq)
		}
		// And it serves others in turn.
		b.mustWrite(1)
		r.complete(n, b, 1)
		r.complete(evil, b, 1)
	})
}

// A helper that brings more than a newcomer may have is not believed, and does not keep it from what it may.
func TestGroupHelperBringsTooMuch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newGroup(t, 4)
		a, b, evil, n := r.devices[0], r.devices[1], r.devices[2], r.devices[3]
		a.admitAll(b, evil)
		r.open([2]int{0, 1}, [2]int{0, 2})
		a.mustWrite(100)
		r.complete(b, a, 100)
		r.complete(evil, a, 100)
		a.admitFrom(n, map[*device]uint64{a: 51})
		r.await("the helpers know", func() bool {
			_, last := evil.has(a.control())
			_, also := b.has(a.control())
			return last == 4 && also == 4
		})
		a.stop()
		evil.group.mu.Lock()
		evil.group.members[n.person.ID()].first = nil
		evil.group.mu.Unlock()
		n.group.ask(evil)
		r.open([2]int{3, 2})
		r.await("it is in", func() bool { return len(n.group.readers()) == 3 })
		time.Sleep(5 * time.Second)
		_, last := n.has(a.feed())
		require.Zero(t, last, "it took what it may not have")
		r.open([2]int{3, 1})
		r.await("it has all it may", func() bool { first, last := n.has(a.feed()); return first == 51 && last == 100 })
	})
}

// Nobody makes up a member's device: a feed that begins above 1 needs the certificate of its account.
func TestGroupFeedAboveOneNeedsItsCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newGroup(t, 3)
		a, b, n := r.devices[0], r.devices[1], r.devices[2]
		a.admitAll(b)
		r.open([2]int{0, 1})
		a.admitFrom(n, map[*device]uint64{b: 5})
		n.group.ask(a)
		r.open([2]int{0, 2})
		r.await("it is in", func() bool { return len(n.group.readers()) == 2 })
		b.mustWrite(10)
		r.complete(a, b, 10)
		r.complete(n, b, 10)

		// A device that says it is b's.
		forger := &device{rig: r, index: 9, person: b.person, key: identity.GenerateDeviceKey(), cert: n.cert}
		entries := forger.compose(t, feed.Tip{Account: b.person.ID(), Seq: 7, Hash: feed.EntryID{1}, Clock: 50}, 2)
		run := forger.sign(t, entries)
		require.ErrorIs(t, n.rep.Take(t.Context(), a.peer(), run), replica.ErrRefused)
		run.Certificate = n.cert.Raw()
		require.ErrorIs(t, n.rep.Take(t.Context(), a.peer(), run), replica.ErrRefused)
		run.Certificate = b.cert.Raw()
		require.ErrorIs(t, n.rep.Take(t.Context(), a.peer(), run), replica.ErrRefused)
		_, last := n.has(forger.feed())
		require.Zero(t, last)

		// One that is, which nobody has a record of.
		second := &device{rig: r, index: 9, person: b.person, key: identity.GenerateDeviceKey()}
		second.cert = identity.NewCertificate(b.person, second.key.ID(), time.Now())
		run = second.sign(t, second.compose(t, feed.Tip{Account: b.person.ID(), Seq: 7, Hash: feed.EntryID{1}, Clock: 50}, 2))
		run.Certificate = second.cert.Raw()
		require.NoError(t, n.rep.Take(t.Context(), replica.Peer{}, run))
		first, last := n.has(second.feed())
		require.Equal(t, []uint64{8, 9}, []uint64{first, last})
	})
}

// What a receipt says of an author's feeds is for that author alone.
func TestGroupReceiptsGoToTheirAuthor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newGroup(t, 3)
		a, b, c := r.devices[0], r.devices[1], r.devices[2]
		a.admitAll(b, c)
		r.open([2]int{0, 1}, [2]int{0, 2})
		r.await("they are in", func() bool { return len(b.group.readers()) == 2 && len(c.group.readers()) == 2 })
		r.open([2]int{1, 2})
		for _, d := range r.devices {
			d.mustWrite(2)
		}
		for _, d := range r.devices {
			for _, o := range r.devices {
				r.complete(d, o, 2)
			}
		}
		time.Sleep(5 * time.Second)
		for _, d := range r.devices {
			from := map[identity.DeviceID]bool{}
			d.mu.Lock()
			for _, rec := range d.receipts {
				from[rec.Peer.Device] = true
				for _, i := range rec.Items {
					require.Equal(t, d.key.ID(), i.Feed.Device, "told of what others wrote")
				}
			}
			d.mu.Unlock()
			require.Len(t, from, 2)
		}
		due, err := a.rep.ReceiptsDue()
		require.NoError(t, err)
		require.Empty(t, due)
		c.stop()
		r.await("c is gone", func() bool { return !b.rep.Connected(c.key.ID()) })
		due, err = b.rep.LazyReceiptsDue()
		require.NoError(t, err)
		require.Empty(t, due, "it was handed over")
	})
}

// What is owed in a group is marked, and nothing is owed that may not be had.
func TestGroupDebts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newGroup(t, 4)
		a, b, n, x := r.devices[0], r.devices[1], r.devices[2], r.devices[3]
		a.admitAll(b, x)
		a.mustWrite(10)
		a.admitFrom(n, map[*device]uint64{a: 8})
		gone := a.do(act{Remove: x.person.ID().Bytes()})
		a.mustWrite(1)
		r.await("the ends are known", func() bool {
			_, last := a.group.window(x.person.ID())(a.control())
			return last == gone.Seq
		})
		want := map[identity.DeviceID][]replica.Span{
			b.key.ID(): {{Feed: a.control(), From: 1, Last: 5, Lazy: true}, {Feed: a.feed(), From: 1, Last: 11, Lazy: true}},
			n.key.ID(): {{Feed: a.control(), From: 1, Last: 5, Lazy: true}, {Feed: a.feed(), From: 8, Last: 11, Lazy: true}},
			x.key.ID(): {{Feed: a.control(), From: 1, Last: 5, Lazy: true}},
		}
		owed, err := a.rep.Owed()
		require.NoError(t, err)
		require.Len(t, owed, 3)
		for _, d := range owed {
			require.Equal(t, want[d.Device], d.Feeds)
			require.True(t, d.Lazy())
		}
	})
}

// A newcomer begins with one mail: the acts of all, and what the sender wrote.
func TestGroupBeginsFromMailAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newGroup(t, 4)
		a, b, c, n := r.devices[0], r.devices[1], r.devices[2], r.devices[3]
		a.admitAll(b)
		r.open([2]int{0, 1})
		b.admitAll(c)
		r.open([2]int{1, 2})
		r.await("c is in", func() bool { return len(c.group.readers()) == 2 })
		c.mustWrite(3)
		c.admitFrom(n, map[*device]uint64{c: 3})
		c.group.mu.Lock()
		c.group.keys = []*pb.GroupKeys{{Group: r.conv[:], Keys: []*pb.GroupKey{{Epoch: make([]byte, 32), Key: make([]byte, 32)}}}}
		c.group.mu.Unlock()
		out, err := c.rep.Export(t.Context(), n.key.ID(), replica.ExportOptions{Control: true})
		require.NoError(t, err)
		require.False(t, out.Knock)
		require.Len(t, out.Keys, 1)
		var spans []replica.Span
		for _, s := range out.Spans {
			require.True(t, s.Lazy)
			s.Lazy = false
			spans = append(spans, s)
		}
		require.Equal(t, []replica.Span{
			{Feed: a.control(), From: 1, Last: 2},
			{Feed: b.control(), From: 1, Last: 1},
			{Feed: c.control(), From: 1, Last: 1},
			{Feed: c.feed(), From: 3, Last: 3},
		}, spans)
		require.Len(t, out.Carried, 2)
		in := replica.Mailed{Peer: c.peer(), Runs: out.Runs}
		for range 3 { // a mail is taken in one go: what its own acts admit is judged before they count
			_, err = n.rep.Import(t.Context(), in, nil)
			require.NoError(t, err)
			synctest.Wait()
		}
		require.Len(t, n.group.readers(), 3)
		first, last := n.has(c.feed())
		require.Equal(t, []uint64{3, 3}, []uint64{first, last})

		plain, err := c.rep.Export(t.Context(), n.key.ID(), replica.ExportOptions{})
		require.NoError(t, err)
		require.Empty(t, plain.Carried)
		skip, err := c.rep.Export(t.Context(), n.key.ID(), replica.ExportOptions{Control: true, Skip: func(feed.FeedID, uint64) uint64 { return 1 }})
		require.NoError(t, err)
		require.Len(t, skip.Carried, 1)
	})
}

// Feeds that a member makes up, of devices that nobody knows, leave nothing behind, and end the session when they are many.
func TestGroupMadeUpFeeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newGroup(t, 2)
		a, evil := r.devices[0], r.devices[1]
		a.admitAll(evil)
		evil.stop()
		tap := evil.dial(t, a)
		require.NoError(t, tap.begin())
		stranger := &device{rig: r, index: 9}
		stranger.person = identity.AccountKeyFromSeed([32]byte{9})
		sent := 0
		for ; sent < 6000; sent++ {
			stranger.key = identity.GenerateDeviceKey()
			stranger.cert = identity.NewCertificate(stranger.person, stranger.key.ID(), time.Now())
			if tap.send(runFrame(stranger.sign(t, stranger.compose(t, feed.Tip{}, 1)))) != nil {
				break
			}
		}
		require.Greater(t, sent, 4000)
		require.True(t, tap.ended(10*time.Second), "it may go on for ever")
		require.NoError(t, a.db.View(func(tx *storage.Tx) error {
			heads, err := a.rep.Heads(tx, r.conv)
			require.Len(t, heads, 1)
			return err
		}))
	})
}

// Where only groups are shared a lost device is noticed late while nobody waits for it, and at once when somebody does; the
// silence costs few pings.
func TestGroupSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newGroup(t, 2)
		a, b := r.devices[0], r.devices[1]
		a.admitAll(b)
		r.open([2]int{0, 1})
		r.complete(b, a, 0)
		time.Sleep(time.Minute)
		before := r.world.Carried(0)
		time.Sleep(30 * time.Minute)
		require.Less(t, float64(r.world.Carried(0)-before)/(30*60), 25.0, "bytes a second")
		lost := func(most, least time.Duration) {
			r.world.Cut(0, 1)
			begun := time.Now()
			r.await("it is given up", func() bool { return !a.rep.Connected(b.key.ID()) })
			require.Less(t, time.Since(begun), most)
			require.Greater(t, time.Since(begun), least)
			r.world.Heal(0, 1)
		}
		lost(53*time.Second, 5*time.Second)
		time.Sleep(time.Minute)
		r.open([2]int{0, 1})
		time.Sleep(20 * time.Second)
		a.mustWrite(1)
		r.complete(b, a, 1)
		time.Sleep(10 * time.Second)
		r.world.Cut(0, 1)
		a.mustWrite(1)
		lost(14*time.Second, 5*time.Second)
	})
}
