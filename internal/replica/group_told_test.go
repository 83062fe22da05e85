package replica_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"hima/internal/feed"
	"hima/internal/replica"
	"hima/storage"
)

// Who was removed is told by others than who did it, also by those to whom the removal came together with what was done after it
// and is none of the removed one's business.
func TestGroupRemovedIsToldByOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newGroup(t, 4)
		a, b, c, x := r.devices[0], r.devices[1], r.devices[2], r.devices[3]
		a.admitAll(b, c, x)
		c.group.ask(b)
		x.group.ask(c)
		r.open([2]int{0, 1}, [2]int{1, 2}, [2]int{2, 3}) // a line
		a.mustWrite(1)
		r.complete(x, a, 1)
		for _, d := range []*device{b, c} {
			d.stop()
		}
		gone := a.do(act{Remove: x.person.ID().Bytes()})
		for range 3 {
			a.do(act{Admit: []byte("somebody else, whoever that be..")})
		}
		a.mustWrite(1)
		for _, d := range []*device{b, c} {
			d.start()
		}
		r.open([2]int{0, 1}, [2]int{1, 2}, [2]int{2, 3})
		r.await("c has all", func() bool { _, last := c.has(a.control()); return last == gone.Seq+3 })
		r.await("x is told", func() bool { _, last := x.has(a.control()); return last == gone.Seq })
		r.complete(c, a, 2)
		_, chat := x.has(a.feed())
		require.EqualValues(t, 1, chat)
	})
}

// What somebody was about to be sent when they might not have it any more, they are sent when they may have it after all: of two removals
// one may overrule the other.
func TestGroupWindowThatOpensAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newGroup(t, 3)
		a, b, x := r.devices[0], r.devices[1], r.devices[2]
		a.admitAll(b, x)
		x.group.ask(b)
		r.open([2]int{0, 1}, [2]int{1, 2})
		last := a.do(act{Admit: []byte("somebody, whoever that may be...")})
		r.await("x has all", func() bool { _, have := x.has(a.control()); return have == last.Seq })
		upTo := func(seq uint64) {
			b.group.mu.Lock()
			defer b.group.mu.Unlock()
			b.group.members[x.person.ID()] = &groupMember{removed: true, control: map[feed.FeedID]uint64{a.control(): seq}}
		}
		next := a.do(act{Admit: []byte("somebody else, whoever that be..")})
		r.await("b has the next", func() bool { _, have := b.has(a.control()); return have == next.Seq })
		upTo(last.Seq) // while b waits whether x gets it from others
		b.rep.Reannounce(r.conv)
		time.Sleep(5 * time.Second)
		_, have := x.has(a.control())
		require.Equal(t, last.Seq, have)
		upTo(next.Seq)
		b.rep.Reannounce(r.conv)
		r.await("x has the next", func() bool { _, have := x.has(a.control()); return have == next.Seq })
	})
}

// What was taken to a part only because of what had not arrived is sent on from there when the rest is asked for.
func TestGroupTakesTheRestLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newGroup(t, 2)
		a, b := r.devices[0], r.devices[1]
		a.admitAll(b)
		r.open([2]int{0, 1})
		a.mustWrite(1)
		r.complete(b, a, 1)
		room := func(n uint64) {
			b.group.mu.Lock()
			defer b.group.mu.Unlock()
			b.group.room = n
		}
		room(3)
		require.NoError(t, a.db.Update(t.Context(), func(tx *storage.Tx) error { // and so in one run
			more := replica.Draft{Conversation: r.conv, Number: feed.Chat, Kind: feed.KindText, Content: text("more")}
			_, err := a.rep.Append(tx, more, more, more, more)
			return err
		}))
		r.complete(b, a, 3)
		room(0)
		b.rep.Reannounce(r.conv)
		r.complete(b, a, 5)
	})
}

// While a group is busy its receipts wait for more of their kind, though not for long.
func TestReceiptsOfABusyGroupAreGathered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newGroup(t, 2)
		a, b := r.devices[0], r.devices[1]
		a.admitAll(b)
		r.open([2]int{0, 1})
		r.await("b is in", func() bool { return len(b.group.readers()) == 1 })
		time.Sleep(10 * time.Second)
		got := func() int {
			a.mu.Lock()
			defer a.mu.Unlock()
			return len(a.receipts)
		}
		before := got()
		for range 16 {
			a.mustWrite(1)
			time.Sleep(time.Second)
		}
		require.Equal(t, 1, got()-before, "in 16 seconds")
		time.Sleep(time.Second)
		require.Equal(t, 2, got()-before, "while somebody still wrote, or shortly after")
		a.mustWrite(1)
		time.Sleep(3 * time.Second)
		require.Equal(t, 3, got()-before, "of one that stands alone")
	})
}
