package node_test

import (
	"context"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"hima/node"
	"hima/node/nodetest"
)

func serveEcho(n *node.Node) {
	n.Handle(proto, func(s *node.Stream) {
		if _, err := io.Copy(s, s); err == nil {
			s.Close()
		}
	})
}

// echo says something over a new stream and waits for the answer.
func echo(ctx context.Context, a *node.Node, b *node.Node) (node.ConnInfo, error) {
	s, err := a.Open(ctx, b.ID(), proto)
	if err != nil {
		return node.ConnInfo{}, err
	}
	defer s.Close()
	s.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := s.Write([]byte("hello")); err != nil {
		return node.ConnInfo{}, err
	}
	if err := s.CloseWrite(); err != nil {
		return node.ConnInfo{}, err
	}
	got, err := io.ReadAll(s)
	if err == nil && string(got) != "hello" {
		err = io.ErrUnexpectedEOF
	}
	return s.Info(), err
}

// within polls virtual time until ok, and returns how long it took.
func within(t *testing.T, limit time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > limit {
			t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(start)
}

func reserved(n *node.Node) bool {
	b := n.Bootstraps()
	return len(b) > 0 && b[0].Reserved
}

func direct(a, b *node.Node) bool {
	for _, p := range a.Peers() {
		if p.Device == b.ID() {
			return p.Transport != "relay"
		}
	}
	return false
}

// The times that users notice, for every pair of routers: a slot at the relay, a first word, a direct connection where
// one is possible.
func TestPairs(t *testing.T) {
	kinds := []nodetest.NAT{nodetest.Open, nodetest.Cone, nodetest.Symmetric, nodetest.Forwarded}
	for _, a := range kinds {
		for _, b := range kinds {
			t.Run(a.String()+" to "+b.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { tryPair(t, a, b) })
			})
		}
	}
}

func tryPair(t *testing.T, ka, kb nodetest.NAT) {
	w := nodetest.New(t, 0)
	w.DelayAll(25 * time.Millisecond)
	boot := w.AddBootstrap(node.RelayLimits{})
	ia, ib := w.AddRemote(ka), w.AddRemote(kb)
	a, b := w.Node(ia), w.Node(ib)
	serveEcho(b)
	w.Join(ia, boot)
	w.Join(ib, boot)
	slot := within(t, time.Second, "reservations", func() bool { return reserved(a) && reserved(b) })
	if !a.Reachability().Online {
		t.Error("with a slot, but not online")
	}
	start := time.Now()
	a.Remember(b.ID(), b.Addrs())
	info, err := echo(t.Context(), a, b)
	if err != nil {
		t.Fatal(err)
	}
	first := time.Since(start)
	if first > 2*time.Second {
		t.Errorf("the first word took %v", first)
	}
	blocked := ka == nodetest.Symmetric && kb == nodetest.Symmetric || ka == nodetest.Symmetric && kb == nodetest.Cone ||
		ka == nodetest.Cone && kb == nodetest.Symmetric
	if blocked {
		time.Sleep(time.Minute)
		if direct(a, b) {
			t.Error("a direct connection where there can be none")
		}
		if _, err := echo(t.Context(), a, b); err != nil {
			t.Error(err)
		}
		return
	}
	limit := 3 * time.Second
	if ka == nodetest.Forwarded && kb == nodetest.Symmetric {
		limit = 4 * time.Second // a simulated node does not learn that its port is open, so the third attempt does it
	}
	straight := within(t, limit, "direct", func() bool { return direct(a, b) && direct(b, a) })
	t.Logf("slot %v, first word %v (%s), direct %v after it", slot, first, info.Transport, straight)
}

// A relay that dies and returns: who lost it notices within 15 s, and all have a slot and a link within 15 s of its return.
func TestRelayRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := nodetest.New(t, 0)
		boot := w.AddBootstrap(node.RelayLimits{})
		ia, ib := w.AddRemote(nodetest.Symmetric), w.AddRemote(nodetest.Symmetric)
		a, b := w.Node(ia), w.Node(ib)
		serveEcho(b)
		w.Join(ia, boot)
		w.Join(ib, boot)
		within(t, time.Second, "reservations", func() bool { return reserved(a) && reserved(b) })
		a.Remember(b.ID(), b.Addrs())
		if _, err := echo(t.Context(), a, b); err != nil {
			t.Fatal(err)
		}
		if s := w.Node(boot).ServerStats(); s.Conns != 2 || s.Reservations != 2 || s.Circuits != 1 || s.RelayedBytes == 0 {
			t.Errorf("the relay counts %+v", s)
		}
		for _, way := range []struct {
			name    string
			away    time.Duration
			out, in func()
		}{
			{"stopped", 20 * time.Second, func() { w.Stop(boot) }, func() { w.Start(boot) }},
			{"silent", 140 * time.Second, func() { w.Isolate(boot) }, func() { w.Rejoin(boot) }},
		} {
			events, cancel := a.Subscribe()
			way.out()
			awaitFor(t, events, 15*time.Second, way.name+": offline", func(e node.Event) bool {
				o, ok := e.(node.OnlineChanged)
				return ok && !o.Online
			})
			if s := a.Bootstraps()[0]; s.Connected || s.Reserved || len(a.Reachability().RelayAddrs) != 0 {
				t.Errorf("%s: %+v", way.name, s)
			}
			time.Sleep(way.away)
			if s := a.Bootstraps()[0]; s.Error == "" {
				t.Errorf("%s: no reason is given", way.name)
			}
			way.in()
			start := time.Now()
			awaitFor(t, events, 15*time.Second, way.name+": online", func(e node.Event) bool {
				o, ok := e.(node.OnlineChanged)
				return ok && o.Online
			})
			within(t, 15*time.Second-time.Since(start), way.name+": slots", func() bool { return reserved(a) && reserved(b) })
			within(t, 15*time.Second-time.Since(start), way.name+": a word", func() bool {
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				_, err := echo(ctx, a, b)
				return err == nil
			})
			t.Logf("%s: all is well %v after the return", way.name, time.Since(start))
			cancel()
		}
	})
}

// awaitFor returns when an event comes that ok accepts.
func awaitFor(t *testing.T, events <-chan node.Event, limit time.Duration, what string, ok func(node.Event) bool) {
	t.Helper()
	late := time.After(limit)
	for {
		select {
		case e := <-events:
			if ok(e) {
				return
			}
		case <-late:
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// A foreign relay with libp2p's own limits: streams work, the connection says so, and when the relay cuts it after two
// minutes the next stream opens at once.
func TestLimitedRelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := nodetest.New(t, 0)
		limits := node.RelayLimits{Duration: 2 * time.Minute, Data: 128 << 10}
		boot := w.AddBootstrap(limits)
		ia, ib := w.AddRemote(nodetest.Symmetric), w.AddRemote(nodetest.Symmetric)
		a, b := w.Node(ia), w.Node(ib)
		serveEcho(b)
		w.Join(ia, boot)
		w.Join(ib, boot)
		within(t, time.Second, "reservations", func() bool { return reserved(a) && reserved(b) })
		if got := a.Bootstraps()[0].Limits; got != limits {
			t.Errorf("limits are %+v", got)
		}
		if !a.Reachability().LimitedRelays {
			t.Error("the relay's limits are not told")
		}
		a.Remember(b.ID(), b.Addrs())
		info, err := echo(t.Context(), a, b)
		if err != nil || !info.Limited || info.Direct {
			t.Fatalf("%+v, %v", info, err)
		}
		for _, p := range a.Peers() {
			if far := p.Device == b.ID(); p.Limited != far || p.Direct == far {
				t.Errorf("peer %+v", p)
			}
		}
		for range 60 { // an hour
			time.Sleep(time.Minute)
			start := time.Now()
			if _, err := echo(t.Context(), a, b); err != nil {
				t.Fatal(err)
			}
			if d := time.Since(start); d > 2*time.Second {
				t.Errorf("a word took %v", d)
			}
		}
	})
}

// A connection that was relayed before either end knew where it is seen becomes direct all the same.
func TestRelayedTooEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := nodetest.New(t, 0)
		boot := w.AddBootstrap(node.RelayLimits{})
		ia, ib := w.AddRemote(nodetest.Cone), w.AddRemote(nodetest.Cone)
		a, b := w.Node(ia), w.Node(ib)
		serveEcho(b)
		w.Join(ib, boot)
		within(t, time.Second, "a slot", func() bool { return reserved(b) })
		// a knows no bootstrap node: its first connection is the one through the relay.
		a.Remember(b.ID(), b.Addrs())
		if _, err := echo(t.Context(), a, b); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if direct(a, b) {
			t.Fatal("direct, though nobody believes where a is seen")
		}
		w.Join(ia, boot)
		within(t, 35*time.Second, "direct", func() bool { return direct(a, b) })
	})
}

// Two nodes on one LAN that find each other there leave the relay, and go on when the Internet is gone.
func TestLANFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := nodetest.New(t, 0)
		boot := w.AddBootstrap(node.RelayLimits{})
		ia := w.AddRemote(nodetest.Symmetric)
		ib := w.AddBeside(ia, false)
		a, b := w.Node(ia), w.Node(ib)
		serveEcho(b)
		w.Join(ia, boot)
		w.Join(ib, boot)
		within(t, time.Second, "reservations", func() bool { return reserved(a) && reserved(b) })
		// Only the addresses through the relay are known at first.
		a.Remember(b.ID(), b.Reachability().RelayAddrs)
		if info, err := echo(t.Context(), a, b); err != nil || info.Direct {
			t.Fatalf("%+v, %v", info, err)
		}
		a.Remember(b.ID(), w.Addrs(ib))
		if info, err := echo(t.Context(), a, b); err != nil {
			t.Fatalf("%+v, %v", info, err)
		}
		within(t, 3*time.Second, "direct", func() bool { return direct(a, b) })
		w.Cut(ia, boot)
		w.Cut(ib, boot)
		time.Sleep(5 * time.Minute)
		if info, err := echo(t.Context(), a, b); err != nil || !info.Direct {
			t.Errorf("%+v, %v", info, err)
		}
		if a.Reachability().Online {
			t.Error("still online")
		}
	})
}

// A family of twelve behind one router all get a slot.
func TestTwelveBehindOneRouter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := nodetest.New(t, 0)
		boot := w.AddBootstrap(node.RelayLimits{})
		first := w.AddRemote(nodetest.Cone)
		w.Join(first, boot)
		all := []int{first}
		for range 11 {
			i := w.AddBeside(first, false)
			w.Join(i, boot)
			all = append(all, i)
		}
		within(t, 2*time.Second, "twelve slots", func() bool {
			for _, i := range all {
				if !reserved(w.Node(i)) {
					return false
				}
			}
			return true
		})
	})
}

// Joining and leaving while running; two bootstrap nodes tell what kind of router there is.
func TestChangingBootstraps(t *testing.T) {
	for kind, want := range map[nodetest.NAT]string{
		nodetest.Open: node.NATNone, nodetest.Cone: node.NATCone, nodetest.Symmetric: node.NATSymmetric,
	} {
		t.Run(kind.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := nodetest.New(t, 0)
				one, two := w.AddBootstrap(node.RelayLimits{}), w.AddBootstrap(node.RelayLimits{})
				i := w.AddRemote(kind)
				a := w.Node(i)
				events, cancel := a.Subscribe()
				defer cancel()
				if r := a.Reachability(); r.Online || r.NAT != node.NATUnknown || len(a.Bootstraps()) != 0 {
					t.Errorf("before: %+v", r)
				}
				w.Join(i, one, two)
				awaitFor(t, events, time.Second, "addresses change", func(e node.Event) bool { _, ok := e.(node.AddrsChanged); return ok })
				within(t, time.Second, "two slots", func() bool {
					b := a.Bootstraps()
					return b[0].Reserved && b[1].Reserved
				})
				if got := a.Reachability().NAT; got != want {
					t.Errorf("NAT is %s", got)
				}
				if b := a.Bootstraps()[0]; b.RTT <= 0 || b.Error != "" {
					t.Errorf("%+v", b)
				}
				w.Join(i, two)
				awaitFor(t, events, time.Second, "one is let go", func(e node.Event) bool {
					d, ok := e.(node.BootstrapDown)
					return ok && d.Device == nodetest.Key(one).ID()
				})
				if r := a.Reachability(); !r.Online || len(r.RelayAddrs) != 1 {
					t.Errorf("with one left: %+v", r)
				}
				a.SetBootstraps(nil)
				awaitFor(t, events, time.Second, "offline", func(e node.Event) bool { o, ok := e.(node.OnlineChanged); return ok && !o.Online })
				if r := a.Reachability(); len(r.RelayAddrs) != 0 {
					t.Errorf("with none left: %+v", r)
				}
			})
		})
	}
}

// With two relays the loss of one is a matter of seconds, also for who is only reached through it.
func TestTwoRelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := nodetest.New(t, 0)
		one, two := w.AddBootstrap(node.RelayLimits{}), w.AddBootstrap(node.RelayLimits{})
		ia, ib := w.AddRemote(nodetest.Symmetric), w.AddRemote(nodetest.Symmetric)
		a, b := w.Node(ia), w.Node(ib)
		serveEcho(b)
		w.Join(ia, one, two)
		w.Join(ib, one, two)
		within(t, time.Second, "four slots", func() bool {
			return len(a.Reachability().RelayAddrs) == 2 && len(b.Reachability().RelayAddrs) == 2
		})
		a.Remember(b.ID(), b.Addrs())
		info, err := echo(t.Context(), a, b)
		if err != nil {
			t.Fatal(err)
		}
		lost := one
		if strings.HasPrefix(info.Addr, "/ip4/"+nodetest.IP(two).String()+"/") {
			lost = two
		}
		w.Isolate(lost)
		took := within(t, 15*time.Second, "a word through the other", func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), 6*time.Second)
			defer cancel()
			_, err := echo(ctx, a, b)
			return err == nil
		})
		t.Logf("through the other relay after %v", took)
		if !a.Reachability().Online {
			t.Error("offline, though one bootstrap node answers")
		}
	})
}

// A pair that can never be direct comes to rest: what it sends in an hour is signs of life.
func TestRelayedPairIsQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := nodetest.New(t, 0)
		boot := w.AddBootstrap(node.RelayLimits{})
		ia, ib := w.AddRemote(nodetest.Symmetric), w.AddRemote(nodetest.Cone)
		a, b := w.Node(ia), w.Node(ib)
		serveEcho(b)
		w.Join(ia, boot)
		w.Join(ib, boot)
		within(t, time.Second, "reservations", func() bool { return reserved(a) && reserved(b) })
		a.Remember(b.ID(), b.Addrs())
		s, err := a.Open(t.Context(), b.ID(), proto) // a session that lasts
		if err != nil {
			t.Fatal(err)
		}
		defer s.Reset()
		if _, err := s.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Minute)
		before := w.Carried(ia)
		time.Sleep(time.Hour)
		used := w.Carried(ia) - before
		t.Logf("an hour of a relayed pair: %.2f MB", float64(used)/1e6)
		if used > 1_000_000 {
			t.Error("that is too much")
		}
		if direct(a, b) {
			t.Error("direct?")
		}
	})
}
