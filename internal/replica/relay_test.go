package replica_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"hima/internal/feed"
	"hima/internal/replica"
	"hima/node"
	"hima/node/nodetest"
)

// apart is two devices behind routers, who reach each other through a relay, and who open a session whenever they have
// none.
type apart struct {
	*rig
	a, b *device
	wire *wireRecorder
}

// wireRecorder counts how often each entry went onto the wire.
type wireRecorder struct {
	mu    sync.Mutex
	times map[feed.FeedID]map[uint64]int
}

func (w *wireRecorder) wrote(_ replica.Peer, id feed.FeedID, from, last uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.times[id] == nil {
		w.times[id] = map[uint64]int{}
	}
	for seq := from; seq <= last; seq++ {
		w.times[id][seq]++
	}
}

// sums returns how many entries went out, and how many more times than once.
func (w *wireRecorder) sums() (entries, repeats int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, seqs := range w.times {
		for _, n := range seqs {
			entries++
			repeats += n - 1
		}
	}
	return entries, repeats
}

// newApart makes and starts them, with a reservation each and addresses exchanged. Call it inside a bubble.
func newApart(t *testing.T, nat nodetest.NAT, limits node.RelayLimits) *apart {
	t.Helper()
	w := nodetest.New(t, 0)
	w.DelayAll(25 * time.Millisecond)
	boot := w.AddBootstrap(limits)
	x, y := w.AddRemote(nat), w.AddRemote(nat)
	w.Join(x, boot)
	w.Join(y, boot)
	p := &apart{rig: newRigOn(t, w, x, y), wire: &wireRecorder{times: map[feed.FeedID]map[uint64]int{}}}
	p.a, p.b = p.devices[0], p.devices[1]
	for _, i := range []int{x, y} {
		p.await("a reservation", func() bool {
			b := w.Node(i).Bootstraps()
			return len(b) > 0 && b[0].Reserved
		})
	}
	w.Node(x).Remember(nodetest.Key(y).ID(), w.Node(y).Addrs())
	w.Node(y).Remember(nodetest.Key(x).ID(), w.Node(x).Addrs())
	for _, d := range p.devices {
		d.start()
		d.rep.Record(p.wire.wrote)
	}
	for _, d := range p.devices {
		p.keepOpen(d)
	}
	return p
}

// keepOpen stands in for package delivery until the test ends. Of the two the one with the smaller ID goes first.
func (p *apart) keepOpen(d *device) {
	other := p.a
	if d == p.a {
		other = p.b
	}
	pause := 20 * time.Millisecond
	if other.key.ID().Less(d.key.ID()) {
		pause = time.Second
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return
			}
			_ = d.rep.Open(ctx, other.key.ID()) // tried again
		}
	}()
	p.t.Cleanup(func() { cancel(); <-done })
}

// chat lets both write for some time and returns how many each wrote. Long texts are as long as a text may be.
func (p *apart) chat(length, pause time.Duration, long int) int {
	n := 0
	for begun := time.Now(); time.Since(begun) < length; n++ {
		for _, d := range p.devices {
			s := fmt.Sprintf("%d of %d ", n, d.index)
			if long > 0 && n%long == 0 {
				s += strings.Repeat("x", feed.MaxText-len(s))
			}
			_, err := d.write(s)
			require.NoError(p.t, err)
		}
		time.Sleep(pause/2 + rand.N(pause))
	}
	return n
}

// arrived waits until both hold what the other wrote, in order and once.
func (p *apart) arrived(n int) {
	p.t.Helper()
	for i, d := range p.devices {
		other := p.devices[1-i]
		p.await("all have arrived", func() bool { return other.ackedBy(d) == uint64(n) })
		_, entries := d.stored(other.feed())
		require.Len(p.t, entries, n)
		d.mu.Lock()
		require.Len(p.t, d.applied, n, "an entry was told of twice")
		for k, e := range d.applied {
			require.True(p.t, strings.HasPrefix(textOf(p.t, e), fmt.Sprintf("%d of %d ", k, other.index)))
		}
		d.mu.Unlock()
	}
}

// road is how the session of a device goes.
func (p *apart) road(d *device) string {
	for _, s := range d.rep.Sessions() {
		return s.Transport
	}
	return "none"
}

// TestRelayedSessionBecomesDirect: two who begin through a relay, and write all the time, end up on a direct connection.
// Nothing is lost on the way, and nothing goes over the wire twice.
func TestRelayedSessionBecomesDirect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newApart(t, nodetest.Cone, node.RelayLimits{})
		begun := time.Now()
		seen := map[string]bool{}
		stop := make(chan struct{})
		var watcher sync.WaitGroup
		quit := sync.OnceFunc(func() { close(stop); watcher.Wait() })
		t.Cleanup(quit)
		watcher.Go(func() {
			for {
				seen[p.road(p.a)] = true
				select {
				case <-stop:
					return
				case <-time.After(5 * time.Millisecond):
				}
			}
		})
		n := p.chat(5*time.Second, 20*time.Millisecond, 0)
		p.arrived(n)
		quit()
		require.True(t, seen["relay"], "there was no relayed session: %v", seen)
		for _, d := range p.devices {
			require.Equal(t, "quic", p.road(d))
		}
		_, repeats := p.wire.sums()
		require.Zero(t, repeats, "entries that went over the wire more than once")
		t.Logf("%d messages each in %v", n, time.Since(begun))
	})
}

// TestChatThroughALimitedRelay: a foreign relay with the limits that libp2p has by default cuts every circuit after two
// minutes or 128 KiB. A chat goes on for hours, with texts of 32 KiB in between, and nobody waits for long.
func TestChatThroughALimitedRelay(t *testing.T) {
	length := 20 * time.Minute
	if os.Getenv("HIMA_LONG") != "" {
		length = 4 * time.Hour
	}
	synctest.Test(t, func(t *testing.T) {
		p := newApart(t, nodetest.Symmetric, node.RelayLimits{Duration: 2 * time.Minute, Data: 128 << 10})
		var mu sync.Mutex
		var down, longest time.Duration
		var cuts int
		stop := make(chan struct{})
		var watcher sync.WaitGroup
		quit := sync.OnceFunc(func() { close(stop); watcher.Wait() })
		t.Cleanup(quit)
		watcher.Go(func() {
			up := false
			since := time.Now()
			for {
				now := p.road(p.a) != "none"
				mu.Lock()
				if now != up {
					if now {
						longest = max(longest, time.Since(since))
						down += time.Since(since)
					} else {
						cuts++
					}
					up, since = now, time.Now()
				}
				mu.Unlock()
				select {
				case <-stop:
					return
				case <-time.After(10 * time.Millisecond):
				}
			}
		})
		n := p.chat(length, 4*time.Second, 40)
		p.arrived(n)
		quit()
		entries, repeats := p.wire.sums()
		t.Logf("%d messages each in %v, %d cuts, without a session for %v in all and %v at most; %d of %d entries were sent again",
			n, length, cuts, down, longest, repeats, entries)
		require.Greater(t, cuts, int(length/(3*time.Minute)), "the relay did not cut circuits")
		require.Less(t, longest, 5*time.Second)
		require.Less(t, repeats, entries/10)
	})
}

// TestBacklogThroughALimitedRelay: far more than a circuit carries. Each circuit makes progress.
func TestBacklogThroughALimitedRelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newApart(t, nodetest.Symmetric, node.RelayLimits{Duration: 2 * time.Minute, Data: 128 << 10})
		const n = 60
		begun := time.Now()
		for k := range n {
			for _, d := range p.devices {
				s := fmt.Sprintf("%d of %d ", k, d.index)
				_, err := d.write(s + strings.Repeat("x", feed.MaxText-len(s)))
				require.NoError(t, err)
			}
		}
		p.arrived(n)
		entries, repeats := p.wire.sums()
		t.Logf("%d texts of 32 KiB each way in %v; %d of %d were sent again", n, time.Since(begun), repeats, entries)
	})
}
