package main

import (
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"hima/identity"
	"hima/node"
	"hima/node/nodetest"
)

// TestGroupThroughLimitedRelays: everybody is behind a router that lets nobody through, and the only relays are strangers' with
// the limits that libp2p has by default. Each circuit ends after two minutes or 128 KiB, and nobody notices.
//
// HIMA_GROUP makes it a group of that size and an hour.
func TestGroupThroughLimitedRelays(t *testing.T) {
	length := 12 * time.Minute
	if os.Getenv("HIMA_GROUP") != "" {
		length = time.Hour
	}
	n := sizeFromEnv(6)
	synctest.Test(t, func(t *testing.T) { chatThroughLimitedRelays(t, n, length) })
}

func chatThroughLimitedRelays(t *testing.T, n int, length time.Duration) {
	w := nodetest.New(t, 0)
	limits := node.RelayLimits{Duration: 2 * time.Minute, Data: 128 << 10}
	relays := []int{w.AddBootstrap(limits), w.AddBootstrap(limits)}
	f := newFarClub(t, w, "", n, func(w *nodetest.World) int {
		i := w.AddRemote(nodetest.Symmetric)
		w.Join(i, relays...)
		return i
	})
	time.Sleep(5 * time.Second) // for slots at the relays
	c, err := found(t.Context(), f.all)
	if err != nil {
		t.Fatal(err)
	}
	a := newTallies(t, c, f.all)
	r := rand.New(rand.NewPCG(3, uint64(n)))
	used := newCircuits()
	for i, begun := 0, time.Now(); time.Since(begun) < length; i++ {
		s := text(i)
		if i%40 >= 34 {
			s += strings.Repeat("x", 24<<10) // so much that circuits end by what they carried
		}
		a.say(f.all[r.IntN(n)], s)
		for range r.IntN(8) {
			time.Sleep(3 * time.Second)
			used.look(t, f.all)
		}
	}
	time.Sleep(time.Minute)
	delays := a.once(a.said, f.all)
	t.Logf("%d messages in %v over %d circuits; p50 %v, p95 %v, p99 %v, at most %v", len(a.said), length, used.count(), delays.at(.5), delays.at(.95), delays.at(.99), delays.at(1))
	// Of several links at least one is there nearly always. All of them end together when they began together; then the next
	// look of the mesh, of anybody's, opens new ones: within 10 s, and 15 s later if the dial failed.
	if delays.at(.95) > time.Second || delays.at(1) > 30*time.Second {
		t.Errorf("p95 %v, at most %v", delays.at(.95), delays.at(1))
	}
	if least, want := used.least(n), 2*int(length/limits.Duration); least < want {
		t.Errorf("somebody had %d circuits in %v, not %d: the relays do not limit them", least, length, want)
	}
	if used.oldest > limits.Duration+time.Second {
		t.Errorf("a circuit lasted %v", used.oldest)
	}
	for _, m := range f.all {
		if got, want := a.roster(m), a.roster(f.all[0]); got != want {
			t.Errorf("%s has another roster:\n%s%s", m.name, got, want)
		}
		if got, want := a.words(m), a.words(f.all[0]); len(got) != len(a.said) || !slices.Equal(got, want) {
			t.Errorf("%s reads %d messages in an order of its own", m.name, len(got))
		}
	}
}

// circuits counts sessions through relays.
type circuits struct {
	seen   map[identity.DeviceID]map[circuit]bool
	oldest time.Duration
}

type circuit struct {
	to    identity.DeviceID
	since time.Time
}

func newCircuits() *circuits { return &circuits{seen: map[identity.DeviceID]map[circuit]bool{}} }

func (u *circuits) look(t *testing.T, who []*member) {
	for _, m := range who {
		for _, s := range m.replica.Sessions() {
			if s.Transport != "relay" {
				t.Fatalf("a session over %s where none is possible", s.Transport)
			}
			if u.seen[m.key.ID()] == nil {
				u.seen[m.key.ID()] = map[circuit]bool{}
			}
			u.seen[m.key.ID()][circuit{s.Device, s.Since}] = true
			u.oldest = max(u.oldest, time.Since(s.Since))
		}
	}
}

// least is how many the member with the fewest had.
func (u *circuits) least(members int) int {
	if len(u.seen) < members {
		return 0
	}
	least := 1 << 30
	for _, s := range u.seen {
		least = min(least, len(s))
	}
	return least
}

func (u *circuits) count() (n int) {
	for _, s := range u.seen {
		n += len(s)
	}
	return n / 2 // each is seen at both ends
}
