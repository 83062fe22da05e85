package replica_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
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
