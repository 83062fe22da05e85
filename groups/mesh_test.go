package groups

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"hima/identity"
	"hima/internal/replica"
	"hima/node"
)

// people is a network of sessions without anything in them: whom a mesh opens, and who is there.
type people struct {
	t      *testing.T
	mu     sync.Mutex
	off    map[int]bool
	side   func(i int) int // those of two sides do not reach each other; nil: all do
	links  map[[2]int]time.Time
	who    map[identity.DeviceID]int
	meshes []*mesh
	dials  int
	ended  int
	asked  []identity.DeviceID // of whom the network was asked where they are
}

func personAccount(i int) identity.AccountID { return testHash(fmt.Sprint("mesh account ", i)) }
func personDevice(i int) identity.DeviceID   { return testHash(fmt.Sprint("mesh device ", i)) }

// newPeople makes n people with one device each, in these groups, and runs their meshes until the test ends.
func newPeople(t *testing.T, n int, active time.Time, groups [][]int) *people {
	p := &people{t: t, off: map[int]bool{}, links: map[[2]int]time.Time{}, who: map[identity.DeviceID]int{}}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	for i := range n {
		p.who[personDevice(i)] = i
		log := slog.New(slog.DiscardHandler)
		g := newGossip(replica.Peer{Account: personAccount(i), Device: personDevice(i)}, nil, log, time.Now)
		for id, members := range groups {
			r := &room{active: active, devices: map[identity.DeviceID]identity.AccountID{}}
			in := false
			for _, m := range members {
				if m == i {
					in = true
					continue
				}
				r.circle.members = append(r.circle.members, personAccount(m))
				r.devices[personDevice(m)] = personAccount(m)
			}
			if in {
				g.rooms[ID(testHash(fmt.Sprint("mesh group ", id)))] = r
			}
		}
		m := newMesh(personDevice(i), log, time.Now, g)
		m.feeds, m.release = personFeeds{p, i}, func(d identity.DeviceID) { p.end(i, p.who[d]) }
		m.locate = func(_ context.Context, d identity.DeviceID) error {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.asked = append(p.asked, d)
			return errors.New("not found")
		}
		p.meshes = append(p.meshes, m)
	}
	for _, m := range p.meshes {
		wg.Go(func() { _ = m.run(ctx) })
	}
	return p
}

func pairOf(a, b int) [2]int { return [2]int{min(a, b), max(a, b)} }

func (p *people) end(a, b int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.links, pairOf(a, b))
	p.ended++
}

// set changes who reaches whom; sessions that cannot be any more end.
func (p *people) set(off map[int]bool, side func(int) int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.off, p.side = off, side
	for l := range p.links {
		if !p.reach(l[0], l[1]) {
			delete(p.links, l)
		}
	}
}

func (p *people) count(n *int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return *n
}

func (p *people) reach(a, b int) bool {
	return !p.off[a] && !p.off[b] && (p.side == nil || p.side(a) == p.side(b))
}

// personFeeds are the sessions of one of them.
type personFeeds struct {
	p *people
	i int
}

func (f personFeeds) Open(_ context.Context, d identity.DeviceID) error {
	time.Sleep(300 * time.Millisecond)
	f.p.mu.Lock()
	defer f.p.mu.Unlock()
	f.p.dials++
	j := f.p.who[d]
	if !f.p.reach(f.i, j) {
		return node.ErrUnreachable
	}
	if _, ok := f.p.links[pairOf(f.i, j)]; !ok {
		f.p.links[pairOf(f.i, j)] = time.Now()
	}
	return nil
}

func (f personFeeds) Sessions() []replica.SessionInfo {
	f.p.mu.Lock()
	defer f.p.mu.Unlock()
	var out []replica.SessionInfo
	for l, at := range f.p.links {
		for k, i := range l {
			if i == f.i {
				j := l[1-k]
				out = append(out, replica.SessionInfo{Peer: replica.Peer{Account: personAccount(j), Device: personDevice(j)}, Since: at})
			}
		}
	}
	return out
}

// degree is how many sessions one has, and parts how many parts a group's members fall into.
func (p *people) degree(i int) int { return len(personFeeds{p, i}.Sessions()) }

func (p *people) parts(members []int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	part := map[int]int{}
	for _, m := range members {
		part[m] = m
	}
	for range members {
		for l := range p.links {
			a, ok := part[l[0]]
			b, ok2 := part[l[1]]
			if ok && ok2 && a != b {
				part[l[0]], part[l[1]] = min(a, b), min(a, b)
			}
		}
	}
	seen := map[int]bool{}
	for _, v := range part {
		seen[v] = true
	}
	return len(seen)
}

func everybody(n int) (all []int) {
	for i := range n {
		all = append(all, i)
	}
	return all
}

func TestMeshOfOneGroup(t *testing.T) {
	for _, n := range []int{2, 3, 5, 30} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPeople(t, n, time.Now(), [][]int{everybody(n)})
				time.Sleep(time.Minute)
				most, sum := 0, 0
				for i := range n {
					d := p.degree(i)
					most, sum = max(most, d), sum+d
					require.GreaterOrEqual(t, d, min(meshLinks, n-1))
				}
				require.Equal(t, 1, p.parts(everybody(n)))
				require.LessOrEqual(t, most, 5*meshLinks)
				require.LessOrEqual(t, float64(sum)/float64(n), 2.5*meshLinks)
				t.Logf("%d members: %.1f sessions each, at most %d, %d dials", n, float64(sum)/float64(n), most, p.count(&p.dials))
				time.Sleep(30 * time.Minute) // what is probed is let go again
				sum = 0
				for i := range n {
					sum += p.degree(i)
				}
				require.LessOrEqual(t, float64(sum)/float64(n), 2.0*meshLinks)
				require.Equal(t, 1, p.parts(everybody(n)))
				t.Logf("after half an hour: %.1f sessions each, %d dials, %d ended", float64(sum)/float64(n), p.count(&p.dials), p.count(&p.ended))
			})
		})
	}
}

// A member of many groups over few people needs few links.
func TestMeshOfManyGroups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 2))
		var groups [][]int
		for range 100 {
			groups = append(groups, r.Perm(30)[:10])
		}
		p := newPeople(t, 30, time.Time{}, groups)
		time.Sleep(12 * time.Minute)
		sum := 0
		for i := range 30 {
			sum += p.degree(i)
		}
		for _, g := range groups {
			require.Equal(t, 1, p.parts(g))
		}
		t.Logf("30 people, 100 groups of 10: %.1f sessions each, %d dials", float64(sum)/30, p.count(&p.dials))
		require.Less(t, float64(sum)/30, 24.0)
	})
}

// The links of a quiet group make one graph, however often surplus ones are let go.
func TestMeshOfQuietGroups(t *testing.T) {
	for _, n := range []int{4, 6, 8, 12, 24} {
		synctest.Test(t, func(t *testing.T) {
			p := newPeople(t, n, time.Time{}, [][]int{everybody(n)})
			time.Sleep(20 * time.Minute)
			for range 10 {
				time.Sleep(7 * time.Minute)
				require.Equal(t, 1, p.parts(everybody(n)), "%d members", n)
			}
		})
	}
}

// Two halves that were parted for long, each with links enough, find each other again.
func TestMeshGrowsTogetherAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := everybody(24)
		p := newPeople(t, 24, time.Time{}, [][]int{all})
		p.set(nil, func(i int) int { return i % 2 })
		time.Sleep(30 * time.Minute)
		require.Equal(t, 2, p.parts(all))
		p.set(nil, nil)
		start := time.Now()
		for p.parts(all) != 1 {
			time.Sleep(time.Second)
			require.Less(t, time.Since(start), 20*time.Minute)
		}
		t.Logf("together after %v", time.Since(start))
	})
}

// Those who are away cost few attempts, and are linked again soon after they return.
func TestMeshPausesForThoseAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeople(t, 5, time.Now(), [][]int{everybody(5)})
		p.set(map[int]bool{1: true, 2: true, 3: true, 4: true}, nil)
		time.Sleep(time.Hour)
		p.mu.Lock()
		dials := p.dials
		p.dials = 0
		p.mu.Unlock()
		time.Sleep(10 * time.Hour)
		p.mu.Lock()
		later := p.dials
		p.mu.Unlock()
		t.Logf("%d dials in the first hour, %d in the next ten", dials, later)
		require.Less(t, later, 5*4*10*6) // each of five tries each of four, every quarter of an hour at most
		p.set(nil, nil)
		for _, m := range p.meshes {
			(&Groups{mesh: m}).Nudge()
		}
		time.Sleep(10 * time.Second)
		require.Equal(t, 4, p.degree(0))
	})
}

func TestMeshIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var groups [][]int // a member of 40 groups of three that have nobody else in common
		for i := range 40 {
			groups = append(groups, []int{0, 1 + 2*i, 2 + 2*i})
		}
		p := newPeople(t, 81, time.Time{}, groups)
		// The others only answer.
		for _, m := range p.meshes[1:] {
			m.mu.Lock()
			m.dials = meshDials
			m.probe = time.Now().Add(1000 * time.Hour)
			m.mu.Unlock()
		}
		time.Sleep(time.Hour)
		require.LessOrEqual(t, p.degree(0), meshTotal)
		require.GreaterOrEqual(t, p.degree(0), 40) // one in each at least
	})
}

// Where a device is not, is asked of the network, and not again for an hour.
func TestMeshAsksWhereSomebodyIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeople(t, 2, time.Time{}, [][]int{{0, 1}})
		p.set(map[int]bool{1: true}, nil)
		time.Sleep(3*time.Hour + time.Minute)
		p.mu.Lock()
		defer p.mu.Unlock()
		for i := range p.meshes {
			asked := 0
			for _, d := range p.asked {
				if d == personDevice(1-i) {
					asked++
				}
			}
			require.Greater(t, asked, 1)
			require.LessOrEqual(t, asked, 4)
		}
	})
}
