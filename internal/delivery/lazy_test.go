package delivery

import (
	"testing"
	"testing/synctest"
	"time"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/node"
)

// lack makes devices lack something of a group.
func (f *fakeSessions) lack(devs ...identity.DeviceID) {
	f.mu.Lock()
	f.owed = nil
	for _, d := range devs {
		f.owed = append(f.owed, replica.Debt{Peer: replica.Peer{Device: d}, Entries: 1, Feeds: []replica.Span{
			{Feed: feed.FeedID{Number: feed.Chat}, From: 1, Last: 1, Lazy: true},
		}})
	}
	f.mu.Unlock()
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

func many(n int) (list []identity.DeviceID) {
	for i := range n {
		list = append(list, identity.DeviceID{200, byte(i), byte(i >> 8)})
	}
	return list
}

// What others in the group bring first costs its author no dial at all.
func TestGroupsAreNotDialledForAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		start(t, f, nil)
		synctest.Wait()
		f.lack(many(300)...)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if n := f.opened(); n != 0 {
			t.Fatalf("%d devices were dialled at once", n)
		}
		f.lack()
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if n := f.opened(); n != 0 {
			t.Errorf("%d devices were dialled that lacked nothing any more", n)
		}
	})
}

// Hundreds of members who are away are tried one after another, a few at a time, each seldom; whoever is owed something of
// his own is not kept waiting by them.
func TestBigGroupsAreSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.slow = 15 * time.Second
		d := start(t, f, nil)
		begun := time.Now()
		f.lack(many(300)...)
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if n := f.most(); n > DefaultLimits().LazyDials {
			t.Errorf("%d dials at the same time", n)
		}
		f.mu.Lock()
		f.owed = append(f.owed, replica.Debt{Peer: replica.Peer{Device: dev(1)}, Entries: 1})
		f.mu.Unlock()
		f.changed <- struct{}{}
		asked := time.Now()
		time.Sleep(time.Second)
		synctest.Wait()
		if f.count(dev(1)) == 0 || f.times(dev(1))[0].Sub(asked) > time.Second {
			t.Error("a message between two people waits for those of groups")
		}
		f.mu.Lock()
		f.slow = 0
		f.mu.Unlock()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		for _, dev := range many(300) {
			tries := f.times(dev)
			if len(tries) == 0 || len(tries) > 9 {
				t.Fatalf("a member was tried %d times in ten minutes", len(tries))
			}
			if tries[0].Sub(begun) < 4*time.Second {
				t.Fatalf("first try after %v", tries[0].Sub(begun))
			}
		}
		why, err := d.Why(many(1)[0])
		if err != nil || len(why) == 0 || why[0].Error == "" {
			t.Errorf("why says %v, %v", why, err)
		}
	})
}

// Sessions that only settle something are few, and end when it is settled; those of contacts stay.
func TestSettledSessionsAreReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		members := many(60)
		for _, dev := range members {
			f.up[dev] = true
		}
		released := map[identity.DeviceID]bool{}
		start(t, f, func(c *Config) {
			c.Contacts = func() []identity.DeviceID { return members[:2] }
			c.Release = func(dev identity.DeviceID) {
				f.set(f.connected, dev, false)
				f.mu.Lock()
				released[dev] = true
				f.mu.Unlock()
			}
		})
		synctest.Wait()
		f.lack(members...)
		time.Sleep(50 * time.Second)
		synctest.Wait()
		open := len(f.connected)
		if open > DefaultLimits().LazySessions+2 {
			t.Errorf("%d sessions to settle what a group owes", open)
		}
		f.lack(members[50:]...)
		time.Sleep(2 * time.Minute)
		f.lack()
		time.Sleep(time.Second)
		synctest.Wait()
		for i, dev := range members {
			if released[dev] == (i < 2) && f.count(dev) > 0 {
				t.Errorf("member %d: released %v", i, released[dev])
			}
			if f.Connected(dev) != (i < 2) {
				t.Errorf("member %d: connected %v", i, f.Connected(dev))
			}
		}
	})
}

// When the network changed, or one of many went, they are not all dialled at the same moment.
func TestGroupsAfterTheNetworkChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		events := make(chan node.Event, 1)
		start(t, f, func(c *Config) { c.Events = func() (<-chan node.Event, func()) { return events, func() {} } })
		f.lack(many(100)...)
		time.Sleep(time.Hour)
		synctest.Wait()
		before := f.opened()
		events <- node.NetworkChanged{}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n := f.opened() - before; n > 5 {
			t.Errorf("%d members were dialled as soon as the network had changed", n)
		}
		events <- node.PeerDown{Device: many(1)[0]}
		time.Sleep(time.Second)
		synctest.Wait()
		if n := f.opened() - before; n > 8 {
			t.Errorf("%d members were dialled", n)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if n := f.opened() - before; n < 100 {
			t.Errorf("only %d members were tried since", n)
		}
	})
}
