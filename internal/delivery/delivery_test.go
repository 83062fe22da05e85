package delivery

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"hima/identity"
	"hima/internal/replica"
	"hima/node"
	"hima/storage"
)

// fakeSessions fails to reach everybody who is not up.
type fakeSessions struct {
	mu        sync.Mutex
	up        map[identity.DeviceID]bool
	connected map[identity.DeviceID]bool
	owed      []replica.Debt
	changed   chan struct{}
	tries     map[identity.DeviceID][]time.Time
	order     []identity.DeviceID
	slow      time.Duration // of each attempt
	err       error         // of an attempt that fails; nil: any
	busy, max int
}

func newFake() *fakeSessions {
	return &fakeSessions{
		up: map[identity.DeviceID]bool{}, connected: map[identity.DeviceID]bool{},
		changed: make(chan struct{}, 1), tries: map[identity.DeviceID][]time.Time{},
	}
}

func (f *fakeSessions) Open(ctx context.Context, dev identity.DeviceID) error {
	f.mu.Lock()
	f.tries[dev] = append(f.tries[dev], time.Now())
	f.order = append(f.order, dev)
	f.busy++
	f.max = max(f.max, f.busy)
	slow := f.slow
	f.mu.Unlock()
	select {
	case <-time.After(slow):
	case <-ctx.Done():
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.busy--
	if !f.up[dev] {
		if f.err != nil {
			return f.err
		}
		return errors.New("nobody there")
	}
	f.connected[dev] = true
	return nil
}

func (f *fakeSessions) Connected(dev identity.DeviceID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.connected[dev]
}

func (f *fakeSessions) Owed() ([]replica.Debt, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.owed, nil
}

func (f *fakeSessions) OwedChanged() <-chan struct{} { return f.changed }

func (f *fakeSessions) owe(devs ...identity.DeviceID) {
	f.mu.Lock()
	f.owed = nil
	for _, d := range devs {
		f.owed = append(f.owed, replica.Debt{Peer: replica.Peer{Device: d}, Entries: 1})
	}
	f.mu.Unlock()
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

func (f *fakeSessions) count(dev identity.DeviceID) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.tries[dev])
}

// opened counts all attempts.
func (f *fakeSessions) opened() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.order)
}

// most is how many attempts there were at the same time.
func (f *fakeSessions) most() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.max
}

// times are those of the attempts to open a session with a device.
func (f *fakeSessions) times(dev identity.DeviceID) []time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.tries[dev])
}

func (f *fakeSessions) set(m map[identity.DeviceID]bool, dev identity.DeviceID, on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m[dev] = on
}

func dev(i byte) identity.DeviceID { return identity.DeviceID{i} }

// start runs a Delivery inside a bubble.
func start(t *testing.T, f *fakeSessions, change func(*Config)) *Delivery {
	t.Helper()
	db, err := storage.Open(storage.Config{})
	if err != nil {
		t.Fatal(err)
	}
	c := Config{DB: db, Sessions: f}
	if change != nil {
		change(&c)
	}
	d, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- d.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		db.Close()
	})
	return d
}

func TestPausesDoubleUpToTheCap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.owe(dev(1))
		d := start(t, f, nil)
		time.Sleep(time.Hour)
		synctest.Wait()
		tries := f.times(dev(1))
		l := DefaultLimits()
		want := l.Latency
		for i := 1; i < len(tries); i++ {
			got := tries[i].Sub(tries[i-1])
			if got > want || got < want*3/4 {
				t.Errorf("pause %d is %v, want up to a quarter less than %v", i, got, want)
			}
			want = min(want*2, l.Cap)
		}
		if len(tries) < 18 || len(tries) > 26 {
			t.Errorf("%d tries in an hour", len(tries))
		}
		if next := d.Next(dev(1)); !next.After(time.Now()) || next.After(time.Now().Add(l.Cap)) {
			t.Errorf("next try at %v, now is %v", next, time.Now())
		}
		why, err := d.Why(dev(1))
		// All failed in the same way: the newest stands for them.
		if err != nil || len(why) != 1 || why[0].Error == "" || time.Since(why[0].Time) > l.Cap {
			t.Errorf("attempts %v, %v", why, err)
		}
	})
}

func TestSeenResetsThePauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.owe(dev(1))
		events := make(chan node.Event, 1)
		start(t, f, func(c *Config) { c.Events = func() (<-chan node.Event, func()) { return events, func() {} } })
		time.Sleep(time.Hour)
		synctest.Wait()
		before := f.count(dev(1))
		f.set(f.up, dev(1), true)
		events <- node.Found{Device: dev(1)}
		synctest.Wait()
		if f.count(dev(1)) != before+1 || !f.Connected(dev(1)) {
			t.Fatal("a device that was found was not tried at once")
		}
		// Lost again: it is looked for every few seconds, without any event.
		f.set(f.up, dev(1), false)
		f.set(f.connected, dev(1), false)
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if n := f.count(dev(1)) - before; n < 55 {
			t.Errorf("%d tries in the minutes after it was lost", n)
		}
		before = f.count(dev(1))
		time.Sleep(time.Hour)
		if n := f.count(dev(1)) - before; n > 100 {
			t.Errorf("%d tries in the hour after", n)
		}
	})
}

// A contact that is owed nothing is looked for less and less often: after two minutes still every fifteen seconds.
func TestLostContactIsLookedForLessAndLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.set(f.up, dev(1), true)
		start(t, f, func(c *Config) { c.Contacts = func() []identity.DeviceID { return []identity.DeviceID{dev(1)} } })
		time.Sleep(time.Minute)
		synctest.Wait()
		if !f.Connected(dev(1)) {
			t.Fatal("it was not reached")
		}
		f.set(f.up, dev(1), false)
		f.set(f.connected, dev(1), false)
		tries := func(d time.Duration) int {
			before := f.count(dev(1))
			time.Sleep(d)
			synctest.Wait()
			return f.count(dev(1)) - before
		}
		if n := tries(2 * time.Minute); n < 12 || n > 45 {
			t.Errorf("%d tries in the first two minutes", n)
		}
		if n := tries(3 * time.Minute); n < 5 || n > 15 {
			t.Errorf("%d tries in the next three minutes", n)
		}
	})
}

// That something was learnt of a device is a reason to try it, and no sign of life: it is looked for no more often after.
func TestRetryIsNoSignOfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		d := start(t, f, func(c *Config) { c.Contacts = func() []identity.DeviceID { return []identity.DeviceID{dev(1)} } })
		time.Sleep(time.Hour)
		synctest.Wait()
		before := f.count(dev(1))
		d.Retry(dev(1))
		synctest.Wait()
		if n := f.count(dev(1)) - before; n != 1 {
			t.Fatalf("%d tries at once", n)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if n := f.count(dev(1)) - before; n < 8 || n > 13 { // doubling from a second, up to a quarter less
			t.Errorf("%d tries within ten minutes", n)
		}
		d.Retry(dev(2)) // nobody wants it
		time.Sleep(time.Second)
		if f.count(dev(2)) != 0 {
			t.Error("a stranger was tried")
		}
	})
}

func TestOwedComeFirstAndDialsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.slow = time.Second
		var contacts []identity.DeviceID
		for i := byte(100); i < 120; i++ {
			contacts = append(contacts, dev(i))
		}
		f.owe(dev(1), dev(2), dev(3))
		start(t, f, func(c *Config) {
			c.Contacts = func() []identity.DeviceID { return contacts }
			c.Limits.Dials = 3
		})
		time.Sleep(10*time.Second - 1)
		synctest.Wait()
		first := map[identity.DeviceID]bool{}
		for _, d := range f.order[:3] {
			first[d] = true
		}
		if !reflect.DeepEqual(first, map[identity.DeviceID]bool{dev(1): true, dev(2): true, dev(3): true}) {
			t.Errorf("first tried %v", f.order[:3])
		}
		if n := f.most(); n != 3 {
			t.Errorf("%d dials at the same time", n)
		}
	})
}

func TestNobodyIsDialledWithoutReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		d := start(t, f, nil)
		d.Nudge(dev(7))
		time.Sleep(time.Minute)
		f.owe(dev(1))
		f.set(f.up, dev(1), true)
		time.Sleep(time.Second)
		synctest.Wait()
		if f.count(dev(7)) != 0 || f.count(dev(1)) != 1 {
			t.Errorf("tries: %v", f.tries)
		}
		if !d.Next(dev(1)).IsZero() || !d.Next(dev(7)).IsZero() {
			t.Error("a try is planned for who needs none")
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if f.count(dev(1)) != 1 {
			t.Error("a connected device was dialled")
		}
	})
}

func TestAttemptsSurviveEncoding(t *testing.T) {
	list := []Attempt{
		{Time: time.UnixMilli(5), Road: RoadDirect, Addr: "/ip4/127.0.0.1/tcp/1", Error: "no"},
		{Time: time.UnixMilli(3), Road: RoadDirect},
	}
	raw := encodeAttempts(list)
	got, err := decodeAttempts(raw)
	if err != nil || !reflect.DeepEqual(got, list) {
		t.Fatalf("got %v, %v", got, err)
	}
	for i := range raw {
		if got, err := decodeAttempts(raw[:i]); err == nil && reflect.DeepEqual(got, list) {
			t.Errorf("%d of %d bytes read as the whole", i, len(raw))
		}
	}
}
