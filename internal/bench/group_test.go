package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"hima/internal/feed"
	"hima/node"
	"hima/node/nodetest"
)

// oneWay is how far apart the members are.
const oneWay = 50 * time.Millisecond

// farClub makes members on a simulated network; their databases lie in memory or on the disk.
type farClub struct {
	t   *testing.T
	w   *nodetest.World
	reg *register
	all []*member
	at  []int // the nodes of all in w
}

// newFarClub makes n members on the nodes that add adds, with databases in dir, or in memory if it is empty.
func newFarClub(t *testing.T, w *nodetest.World, dir string, n int, add func(*nodetest.World) int) *farClub {
	f := &farClub{t: t, w: w, reg: newRegister()}
	f.w.DelayAll(oneWay)
	t.Cleanup(func() {
		for _, m := range f.all {
			if err := m.stop(); err != nil {
				t.Errorf("stopping %s: %v", m.name, err)
			}
			if m.db != nil {
				m.db.Close()
			}
		}
	})
	for i := range n {
		at := add(f.w)
		m, err := newMember(f.reg, dir, fmt.Sprint("far", i), nodetest.Key(at), f.w.Node(at))
		if err != nil {
			t.Fatal(err)
		}
		if len(f.w.Node(at).Bootstraps()) == 0 { // who has joined a network says itself where it is
			f.reg.mu.Lock()
			f.reg.addrs[m.key.ID()] = func() []string { return f.w.Addrs(at) }
			f.reg.mu.Unlock()
		}
		if err := m.open(); err != nil {
			t.Fatal(err)
		}
		m.run()
		f.all, f.at = append(f.all, m), append(f.at, at)
	}
	return f
}

func plain(w *nodetest.World) int { return w.AddPlain(128) }

// down stops a member as a machine that is switched off; up starts it again with the database it had.
func (f *farClub) down(i int) {
	f.w.Stop(f.at[i])
	// A part that had not begun when the machine went off says so.
	if err := f.all[i].stop(); err != nil && !errors.Is(err, node.ErrClosed) {
		f.t.Errorf("stopping %d: %v", i, err)
	}
}

func (f *farClub) up(i int) {
	f.all[i].node = f.w.Start(f.at[i])
	if err := f.all[i].open(); err != nil {
		f.t.Fatal(err)
	}
	f.all[i].run()
}

func sizeFromEnv(normal int) int {
	if n, err := strconv.Atoi(os.Getenv("HIMA_GROUP")); err == nil {
		return n
	}
	return normal
}

// arrivals notes who got which message when.
type arrivals struct {
	mu sync.Mutex
	at map[feed.EntryID]map[*member]time.Time
}

func (a *arrivals) has(m *member, e *feed.Entry) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.at[e.ID] == nil {
		a.at[e.ID] = map[*member]time.Time{}
	}
	if _, ok := a.at[e.ID][m]; !ok {
		a.at[e.ID][m] = time.Now()
	}
}

// TestGroupFar simulates a group on far links of which a tenth restarts: every message reaches every online member, nearly all
// of them in half a second, and who was away has everything soon after.
func TestGroupFar(t *testing.T) {
	n := sizeFromEnv(20)
	still := os.Getenv("HIMA_GROUP_STILL") != ""
	var out farTimes
	synctest.Test(t, func(t *testing.T) { out = simulateFar(t, n, !still) })
	if out.Missed > 0 || out.P95 > 500*time.Millisecond {
		t.Errorf("p95 %v, %d of %d pairs missed", out.P95, out.Missed, out.Pairs)
	}
	b, err := json.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("GROUP " + string(b))
}

func simulateFar(t *testing.T, n int, restarts bool) farTimes {
	f := newFarClub(t, nodetest.New(t, 0), "", n, plain)
	ctx := t.Context()
	c, err := found(ctx, f.all)
	if err != nil {
		t.Fatal(err)
	}
	notes := &arrivals{at: map[feed.EntryID]map[*member]time.Time{}}
	c.watch(notes.has)
	// Somebody speaks until all hear: links, keys and topics are there.
	for i := 0; ; i++ {
		msg, err := c.say(ctx, f.all[i%n], text(i))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		notes.mu.Lock()
		all := len(notes.at[msg.ID]) == n
		notes.mu.Unlock()
		if all && i > 10 {
			break
		}
		if i > 100 {
			t.Fatalf("after %d messages only %d of %d members hear", i, len(notes.at[msg.ID]), n)
		}
	}
	carried, used := f.carried(), cpu()
	away := map[int]bool{}
	var pairs samples
	out := farTimes{Members: n}
	r := rand.New(rand.NewPCG(1, uint64(n)))
	type said struct {
		id     feed.EntryID
		at     time.Time
		author int
	}
	var all []said
	online := make([]time.Time, n) // since when
	for round := range 12 {
		if restarts {
			for i := range away {
				f.up(i)
				online[i] = time.Now()
			}
			away = map[int]bool{}
			for len(away) < n/10 && round < 11 {
				if i := 1 + r.IntN(n-1); !away[i] {
					away[i] = true
					f.down(i)
				}
			}
		}
		time.Sleep(5 * time.Second)
		for range 5 {
			author := r.IntN(n)
			for away[author] {
				author = r.IntN(n)
			}
			at := time.Now()
			msg, err := c.say(ctx, f.all[author], text(round))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, said{msg.ID, at, author})
			time.Sleep(time.Duration(500+r.IntN(1000)) * time.Millisecond)
		}
		time.Sleep(30 * time.Second)
		notes.mu.Lock()
		for _, s := range all[len(all)-5:] {
			for i, m := range f.all {
				if i == s.author || away[i] || s.at.Sub(online[i]) < 5*time.Second {
					continue
				}
				out.Pairs++
				at, ok := notes.at[s.id][m]
				if !ok {
					out.Missed++
					continue
				}
				pairs = append(pairs, at.Sub(s.at))
			}
		}
		notes.mu.Unlock()
	}
	time.Sleep(time.Minute)
	notes.mu.Lock()
	for i, m := range f.all {
		has := 0
		for _, s := range all {
			if _, ok := notes.at[s.id][m]; ok {
				has++
			}
		}
		switch {
		case has < len(all):
			t.Errorf("member %d holds %d of %d messages", i, has, len(all))
		case !online[i].IsZero():
			out.Returned++
		}
		out.Links += float64(len(m.replica.Sessions())) / float64(n)
	}
	notes.mu.Unlock()
	out.P50, out.P95, out.Floor95 = pairs.at(.5), pairs.at(.95), 3*oneWay
	deliveries := float64(len(all) * (n - 1))
	out.Bytes = float64(f.carried()-carried) / 2 / deliveries // each packet is counted at both ends
	out.CPU = time.Duration(float64(cpu()-used) / deliveries)
	var mem runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&mem)
	out.Memory = float64(mem.HeapInuse+mem.StackInuse) / float64(n)
	return out
}

func (f *farClub) carried() (sum uint64) {
	for i := range f.w.Len() {
		sum += f.w.Carried(i)
	}
	return sum
}

// TestQuietGroups: whoever is in many groups that say nothing has few connections and sends next to nothing.
func TestQuietGroups(t *testing.T) {
	count := sizeFromEnv(10)
	const people, size = 30, 10
	out := quietTimes{Groups: count, People: people}
	synctest.Test(t, func(t *testing.T) {
		f := newFarClub(t, nodetest.New(t, 0), "", people, func(w *nodetest.World) int { return w.AddRemote(nodetest.Open) }) // idle connections are closed, as everywhere
		r := rand.New(rand.NewPCG(7, 7))
		for range count {
			members := []*member{f.all[0]}
			for _, i := range r.Perm(people - 1)[:size-1] {
				members = append(members, f.all[1+i])
			}
			// Another one founds each: the first member is no owner of a hundred groups.
			owner := r.IntN(size)
			members[0], members[owner] = members[owner], members[0]
			if _, err := found(context.Background(), members); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(20 * time.Minute)
		before := make([]uint64, people)
		for i := range people {
			before[i] = f.w.Carried(i)
		}
		const watch = 20 * time.Minute
		time.Sleep(watch)
		for i := range people {
			out.Bytes = max(out.Bytes, float64(f.w.Carried(i)-before[i])/watch.Seconds())
			out.Conns = max(out.Conns, len(f.w.Node(i).Peers()))
		}
		t.Logf("member of all: %d sessions, %d connections, %.0f bytes/s", len(f.all[0].replica.Sessions()), len(f.w.Node(0).Peers()), float64(f.w.Carried(0)-before[0])/watch.Seconds())
	})
	if out.Conns > 64 || out.Bytes > 1024 {
		t.Errorf("%d connections, %.0f bytes/s", out.Conns, out.Bytes)
	}
	b, err := json.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("QUIET " + string(b))
}
