package replica_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"hima/internal/feed"
	"hima/internal/replica"
	"hima/storage"
)

// composeActs makes n acts of the device's control feed after a tip.
func (d *device) composeActs(t *testing.T, tip feed.Tip, n int) []feed.Entry {
	t.Helper()
	return d.composeKind(t, tip, n, feed.KindGroupSet)
}

func (d *device) composeKind(t *testing.T, tip feed.Tip, n int, kind feed.Kind) []feed.Entry {
	t.Helper()
	content, err := json.Marshal(act{})
	require.NoError(t, err)
	var out []feed.Entry
	for range n {
		e, err := d.author().Next(tip, d.rig.conv, feed.Control, kind, tip.Clock+1, time.Now().UnixMilli(), content)
		require.NoError(t, err)
		out = append(out, e)
		tip = e.Tip()
	}
	return out
}

// Two branches of a control feed end for everybody at the same number, whoever has which of them and in whatever runs they
// came, and somebody who comes later still gets what is before.
func TestGroupControlFeedForks(t *testing.T) {
	for _, c := range []struct{ left, right, per int }{{1, 1, 1}, {5, 3, 1}, {5, 7, 2}, {260, 300, 1}, {700, 1, 100}} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newGroup(t, 6)
				a, b, x, late, evil := r.devices[0], r.devices[1], r.devices[2], r.devices[3], r.devices[4]
				last := r.devices[5]
				a.admitAll(b, x, late, evil, last)
				r.open([2]int{0, 1}, [2]int{0, 2}, [2]int{0, 3})
				r.await("they are in", func() bool {
					return len(b.group.readers()) == 5 && len(x.group.readers()) == 5 && len(late.group.readers()) == 5
				})
				common := evil.composeActs(t, feed.Tip{}, 4)
				branch := func(to *device, n int) {
					entries := evil.composeActs(t, common[3].Tip(), n)
					for len(entries) > 0 {
						k := min(c.per, len(entries))
						require.NoError(t, to.rep.Take(t.Context(), replica.Peer{}, evil.sign(t, entries[:k])))
						entries = entries[k:]
					}
				}
				for _, d := range []*device{b, x, late} {
					for i := range common {
						require.NoError(t, d.rep.Take(t.Context(), replica.Peer{}, evil.sign(t, common[i:i+1])))
					}
				}
				branch(b, c.left)
				time.Sleep(time.Second / 10)
				r.open([2]int{1, 2})
				branch(x, c.right)
				at := func(d *device) uint64 {
					d.mu.Lock()
					defer d.mu.Unlock()
					if len(d.forks) == 0 {
						return 0
					}
					return d.forks[len(d.forks)-1].At
				}
				for _, d := range []*device{a, b, x, late} {
					r.await(fmt.Sprintf("%d knows where it forked", d.index), func() bool {
						_, n := d.has(evil.control())
						return at(d) == 5 || n <= 4
					})
				}
				last.group.ask(b)
				r.open([2]int{5, 1})
				r.await("the newcomer has the common part", func() bool { _, n := last.has(evil.control()); return n == 4 })
				time.Sleep(5 * time.Second)
				for _, d := range []*device{a, b, x, late} {
					_, n := d.has(evil.control())
					require.True(t, at(d) == 5 || n <= 4)
				}
				// Whoever holds a branch shows its headers to those who ask, and nothing else.
				require.NoError(t, b.db.View(func(tx *storage.Tx) error {
					proof, err := b.rep.Proof(tx, evil.control())
					require.NoError(t, err)
					require.NotNil(t, proof)
					branch, err := b.rep.Branch(tx, evil.control(), 4, 5)
					require.NoError(t, err)
					require.Empty(t, branch)
					branch, err = b.rep.Branch(tx, evil.control(), 5, 5)
					require.NoError(t, err)
					require.Len(t, branch, 1)
					require.Equal(t, uint64(5), branch[0].Seq)
					require.False(t, branch[0].HasBody())
					return nil
				}))
				// And nothing more of it is taken, also not in a session that begins.
				b.restart()
				r.open([2]int{1, 2})
				b.mustWrite(1)
				r.complete(x, b, 1)
			})
		})
	}
}

// Runs end after a removal, but the search for the place where two branches part goes on behind it: between a removal and the
// next signature nobody could look.
func TestGroupForkBehindRemoval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newGroup(t, 4)
		a, b, x, evil := r.devices[0], r.devices[1], r.devices[2], r.devices[3]
		a.admitAll(b, x, evil)
		r.open([2]int{0, 1}, [2]int{0, 2})
		r.await("they are in", func() bool { return len(b.group.readers()) == 3 && len(x.group.readers()) == 3 })
		common := evil.composeActs(t, feed.Tip{}, 19)
		common = append(common, evil.composeKind(t, common[18].Tip(), 1, feed.KindGroupRemove)...)
		common = append(common, evil.composeActs(t, common[19].Tip(), 29)...)
		for d, n := range map[*device]int{b: 51, x: 31} {
			rest := append(slices.Clone(common[20:]), evil.composeActs(t, common[48].Tip(), n)...)
			require.NoError(t, d.rep.Take(t.Context(), replica.Peer{}, evil.sign(t, common[:20])))
			require.NoError(t, d.rep.Take(t.Context(), replica.Peer{}, evil.sign(t, rest)))
			time.Sleep(time.Millisecond) // the branches differ by their time
		}
		r.open([2]int{1, 2})
		for _, d := range []*device{b, x} {
			r.await(fmt.Sprintf("%d knows where it forked", d.index), func() bool {
				d.mu.Lock()
				defer d.mu.Unlock()
				return len(d.forks) > 0 && d.forks[len(d.forks)-1].At == 50
			})
		}
	})
}
