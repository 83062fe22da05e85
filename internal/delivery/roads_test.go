package delivery

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"hima/identity"
	"hima/node"
)

const relayed = "/ip4/192.0.2.1/udp/1/quic-v1/p2p/12D3KooWRelay/p2p-circuit"

// TestNetworkIsAskedWhereADeviceIs: after a failed dial, and once in a while only.
func TestNetworkIsAskedWhereADeviceIs(t *testing.T) {
	for _, failed := range []error{node.ErrNoAddress, node.ErrUnreachable, node.ErrWrongDevice, context.DeadlineExceeded} {
		t.Run(failed.Error(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				f.err = fmt.Errorf("opening: %w", failed)
				f.owe(dev(1))
				addr := "/ip4/192.0.2.9/tcp/1"
				asked := 0
				d := start(t, f, func(c *Config) {
					c.Addr = func(identity.DeviceID) string { return addr }
					c.Locate = func(_ context.Context, device identity.DeviceID) error {
						if asked++; asked == 1 {
							return errors.New("nobody knows")
						}
						addr = relayed
						f.set(f.up, device, true)
						return nil
					}
				})
				time.Sleep(locatePause - time.Second)
				synctest.Wait()
				if asked != 1 || f.count(dev(1)) < 3 {
					t.Fatalf("asked %d times, tried %d times", asked, f.count(dev(1)))
				}
				time.Sleep(2 * locatePause)
				synctest.Wait()
				if asked != 2 || !f.Connected(dev(1)) {
					t.Fatalf("asked %d times, connected: %v", asked, f.Connected(dev(1)))
				}
				why, err := d.Why(dev(1))
				if err != nil || len(why) < 2 || why[0].Road != RoadRelay || why[0].Addr != relayed || why[0].Error != "" {
					t.Fatalf("attempts %v, %v", why, err)
				}
				// The attempt that failed stands right before the one that the answer made possible.
				if why[1].Road != RoadDirect || why[1].Error == "" || !why[1].Time.Equal(why[0].Time) {
					t.Errorf("attempts %v", why)
				}
			})
		})
	}
}

func TestNobodyIsAskedWithoutNeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.owe(dev(1))
		f.err = node.ErrRefused // it is there, and does not want
		start(t, f, func(c *Config) {
			c.Locate = func(context.Context, identity.DeviceID) error { t.Error("asked"); return nil }
		})
		time.Sleep(time.Hour)
	})
}

// TestOnlineAgain: what failed while this node was off line does not make it wait once it is on line.
func TestOnlineAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.err = node.ErrUnreachable
		f.owe(dev(1))
		events := make(chan node.Event, 1)
		asked := 0
		start(t, f, func(c *Config) {
			c.Events = func() (<-chan node.Event, func()) { return events, func() {} }
			c.Locate = func(context.Context, identity.DeviceID) error { asked++; return errors.New("nobody knows") }
		})
		time.Sleep(time.Hour)
		synctest.Wait()
		tries, questions := f.count(dev(1)), asked
		events <- node.OnlineChanged{Online: false}
		synctest.Wait()
		if f.count(dev(1)) != tries {
			t.Error("tried because the network is gone")
		}
		events <- node.OnlineChanged{Online: true}
		synctest.Wait()
		if f.count(dev(1)) != tries+1 || asked != questions+1 {
			t.Errorf("%d tries and %d questions when the network was back", f.count(dev(1))-tries, asked-questions)
		}
	})
}

// TestCutCircuits: a relay that limits circuits cuts them; the devices go on at once, the one that is to wait a moment
// later, and any number of times.
func TestCutCircuits(t *testing.T) {
	for self, within := range map[identity.DeviceID]time.Duration{{}: 0, dev(0): 0, dev(2): cutPause} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake()
			f.owe(dev(1))
			events := make(chan node.Event, 1)
			start(t, f, func(c *Config) {
				c.Self = self
				c.Events = func() (<-chan node.Event, func()) { return events, func() {} }
			})
			f.set(f.up, dev(1), true)
			time.Sleep(10 * time.Second)
			for range 30 {
				events <- node.PeerUp{Device: dev(1), Info: node.ConnInfo{Transport: "relay", Limited: true}}
				time.Sleep(2 * time.Minute)
				begun := time.Now()
				tries := f.count(dev(1))
				events <- node.PeerDown{Device: dev(1)}
				time.Sleep(3 * lookPause) // the session ends a little later than its connection
				f.set(f.connected, dev(1), false)
				time.Sleep(max(lookPause, within-3*lookPause))
				synctest.Wait()
				if f.count(dev(1)) != tries+1 {
					t.Fatalf("self %v: %d tries within %v of a cut", self, f.count(dev(1))-tries, time.Since(begun))
				}
			}
		})
	}
}
