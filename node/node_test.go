package node_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"go.uber.org/goleak"

	"hima/node"
	"hima/node/nodetest"
)

const proto = "/hima/test/1"

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

func newNode(t *testing.T, c node.Config) *node.Node {
	t.Helper()
	if c.Key.ID().IsZero() {
		c.Key = nodetest.Key(0)
	}
	if c.Listen == nil && c.Port == 0 && !c.MDNS {
		c.Listen = []string{"/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"}
	}
	n, err := node.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

func TestConfigRefusals(t *testing.T) {
	for name, c := range map[string]node.Config{
		"no key":       {},
		"bad port":     {Key: nodetest.Key(0), Port: 70000},
		"bad listen":   {Key: nodetest.Key(0), Listen: []string{"127.0.0.1:80"}},
		"bad announce": {Key: nodetest.Key(0), Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Announce: []string{"here"}},
	} {
		if n, err := node.New(c); err == nil {
			n.Close()
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	_, err = node.New(node.Config{
		Key:    nodetest.Key(0),
		Listen: []string{"/ip4/127.0.0.1/tcp/" + port, "/ip4/127.0.0.1/udp/0/quic-v1"},
	})
	if !errors.Is(err, node.ErrPortInUse) {
		t.Fatalf("got %v", err)
	}
	// A second hima at the first one's port, too.
	a := newNode(t, node.Config{Listen: []string{"/ip4/127.0.0.1/tcp/0"}})
	_, err = node.New(node.Config{Key: nodetest.Key(1), Listen: []string{fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", a.Port())}})
	if !errors.Is(err, node.ErrPortInUse) {
		t.Fatalf("second node: got %v", err)
	}
}

func TestErrorsOfConnectAndOpen(t *testing.T) {
	a, b := newNode(t, node.Config{}), newNode(t, node.Config{Key: nodetest.Key(1)})
	ctx := t.Context()
	if err := a.Connect(ctx, a.ID(), nil); !errors.Is(err, node.ErrSelf) {
		t.Errorf("self: %v", err)
	}
	if err := a.Connect(ctx, nodetest.Key(2).ID(), nil); !errors.Is(err, node.ErrNoAddress) {
		t.Errorf("no address: %v", err)
	}
	if err := a.Connect(ctx, nodetest.Key(2).ID(), b.Addrs()); !errors.Is(err, node.ErrWrongDevice) {
		t.Errorf("wrong device: %v", err)
	}
	if err := a.Connect(ctx, nodetest.Key(3).ID(), []string{"/ip4/127.0.0.1/tcp/1"}); !errors.Is(err, node.ErrUnreachable) {
		t.Errorf("nobody there: %v", err)
	}
	a.Remember(b.ID(), b.Addrs())
	if _, err := a.Open(ctx, b.ID(), proto); !errors.Is(err, node.ErrNotSpoken) {
		t.Errorf("not spoken: %v", err)
	}
	if p := a.Peers(); len(p) != 1 || p[0].Transport != "tcp" {
		t.Errorf("TCP is not preferred: %+v", p)
	}
	a.Close()
	if err := a.Connect(ctx, b.ID(), nil); !errors.Is(err, node.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	if _, err := a.Open(ctx, b.ID(), proto); !errors.Is(err, node.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// A failed dial must not make the next one wait: libp2p would refuse to dial for five seconds.
func TestNoBackOff(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", l.Addr().(*net.TCPAddr).Port)
	l.Close()
	a := newNode(t, node.Config{})
	start := time.Now()
	for range 3 {
		if err := a.Connect(t.Context(), nodetest.Key(1).ID(), []string{addr}); !errors.Is(err, node.ErrUnreachable) {
			t.Fatalf("got %v", err)
		}
	}
	newNode(t, node.Config{Key: nodetest.Key(1), Listen: []string{addr}})
	if err := a.Connect(t.Context(), nodetest.Key(1).ID(), nil); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d > 4*time.Second {
		t.Errorf("took %v", d)
	}
}

func TestBothDialAtOnce(t *testing.T) {
	for range 5 {
		a, b := newNode(t, node.Config{}), newNode(t, node.Config{Key: nodetest.Key(1)})
		for _, n := range []*node.Node{a, b} {
			n.Handle(proto, func(s *node.Stream) { io.Copy(io.Discard, s) })
		}
		var wg sync.WaitGroup
		dial := func(x, y *node.Node) {
			defer wg.Done()
			x.Remember(y.ID(), y.Addrs())
			s, err := x.Open(t.Context(), y.ID(), proto)
			if err != nil {
				t.Error(err)
				return
			}
			s.Close()
		}
		wg.Add(2)
		go dial(a, b)
		go dial(b, a)
		wg.Wait()
		if len(a.Peers()) != 1 || len(b.Peers()) != 1 {
			t.Errorf("peers %v and %v", a.Peers(), b.Peers())
		}
		a.Close()
		b.Close()
	}
}

// Thousands of streams of a hostile peer: what runs stays within the limits, and another peer is served meanwhile.
func TestHostileStreams(t *testing.T) {
	limits := node.Limits{StreamsPerPeer: 16, HandlersPerPeer: 3}
	victim := newNode(t, node.Config{Limits: limits})
	evil := newNode(t, node.Config{Key: nodetest.Key(1), Limits: node.Limits{StreamsPerPeer: 5000, Streams: 20000, Memory: 1 << 30, MemoryPerPeer: 1 << 30}})
	good := newNode(t, node.Config{Key: nodetest.Key(2)})
	var running, most atomic.Int64
	victim.Handle(proto, func(s *node.Stream) {
		if r := running.Add(1); s.Remote() == evil.ID() {
			for {
				m := most.Load()
				if r <= m || most.CompareAndSwap(m, r) {
					break
				}
			}
		}
		defer running.Add(-1)
		io.Copy(s, s)
		s.Close()
	})
	evil.Remember(victim.ID(), victim.Addrs())
	good.Remember(victim.ID(), victim.Addrs())
	if err := evil.Connect(t.Context(), victim.ID(), nil); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var refused, opened atomic.Int64
	for range 40 {
		wg.Go(func() {
			for range 50 {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				s, err := evil.Open(ctx, victim.ID(), proto)
				cancel()
				if err != nil {
					refused.Add(1)
					continue
				}
				opened.Add(1)
				t.Cleanup(s.Reset)
			}
		})
	}
	s, err := good.Open(t.Context(), victim.ID(), proto)
	if err != nil {
		t.Fatalf("an honest peer is not served: %v", err)
	}
	s.Write([]byte("hello"))
	s.CloseWrite()
	if b, err := io.ReadAll(s); err != nil || string(b) != "hello" {
		t.Errorf("an honest peer heard %q, %v", b, err)
	}
	wg.Wait()
	t.Logf("opened %d, refused %d, most handlers at a time %d", opened.Load(), refused.Load(), most.Load())
	// +1: the honest peer's own handler counts in running.
	if most.Load() > int64(limits.HandlersPerPeer)+1 {
		t.Errorf("%d handlers ran for one peer", most.Load())
	}
}

// A peer that opens a stream and says nothing does not hold a handler for ever.
func TestSilentStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := nodetest.New(t, 2)
		ended := make(chan error, 2)
		w.Node(1).Handle(proto, func(s *node.Stream) {
			b := make([]byte, 8)
			for {
				if _, err := s.Read(b); err != nil {
					ended <- err
					return
				}
			}
		})
		w.Connect(0, 1)
		if _, err := w.Node(0).Open(t.Context(), w.Node(1).ID(), proto); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := <-ended; !isTimeout(err) {
			t.Errorf("ended with %v", err)
		}
		if d := time.Since(start); d < 15*time.Second || d > 25*time.Second {
			t.Errorf("ended after %v", d)
		}
		// One that said something may be silent as long as it likes.
		s, err := w.Node(0).Open(t.Context(), w.Node(1).ID(), proto)
		if err != nil {
			t.Fatal(err)
		}
		s.Write([]byte("x"))
		time.Sleep(10 * time.Minute)
		select {
		case err := <-ended:
			t.Errorf("a stream that spoke ended with %v", err)
		default:
		}
		s.Reset()
	})
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// After a silent cut the old connection looks alive. Disconnect, which a session calls when its pings get no answer, or
// a failing Open, clears it away, and the first try after the heal succeeds.
func TestSilentCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := nodetest.New(t, 2)
		w.Node(1).Handle(proto, func(s *node.Stream) { io.Copy(io.Discard, s) })
		w.Connect(0, 1)
		w.Cut(0, 1)
		if !w.Node(0).Connected(w.Node(1).ID()) {
			t.Fatal("the cut was noticed at once: the test shows nothing")
		}
		start := time.Now()
		if _, err := w.Node(0).Open(t.Context(), w.Node(1).ID(), proto); err == nil {
			t.Fatal("opened a stream over a cut link")
		}
		if d := time.Since(start); d > 20*time.Second {
			t.Errorf("took %v to find out", d)
		}
		w.Heal(0, 1)
		start = time.Now()
		s, err := w.Node(0).Open(t.Context(), w.Node(1).ID(), proto)
		if err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("after the heal it took %v", d)
		}
		s.Reset()
		w.Node(0).Disconnect(w.Node(1).ID())
		synctest.Wait()
		if w.Node(0).Connected(w.Node(1).ID()) {
			t.Error("still connected after Disconnect")
		}
	})
}

// Connect returns as soon as the device came from its side, even while its own dial still waits for dead addresses.
func TestConnectTakesInbound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := nodetest.New(t, 3)
		done := make(chan error)
		start := time.Now()
		go func() {
			w.Isolate(2) // node 0 knows only where node 2 was
			done <- w.Node(0).Connect(t.Context(), nodetest.Key(1).ID(), w.Addrs(2))
		}()
		time.Sleep(500 * time.Millisecond)
		w.Connect(1, 0)
		if err := <-done; err != nil {
			t.Error(err)
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("took %v", d)
		}
	})
}

func TestAgentIsLean(t *testing.T) {
	n := newNode(t, node.Config{Version: "1.2.3"})
	for _, a := range n.Addrs() {
		if !strings.HasPrefix(a, "/ip4/127.0.0.1/") {
			t.Errorf("unexpected address %s", a)
		}
	}
	if got := n.Agent(); got != "hima/1.2.3" {
		t.Errorf("agent %q", got)
	}
}

func TestRunEndsWithClose(t *testing.T) {
	n := newNode(t, node.Config{MDNS: true})
	ended := make(chan error, 1)
	go func() { ended <- n.Run(context.Background()) }()
	events, cancel := n.Subscribe()
	n.Close()
	if err := <-ended; err != nil {
		t.Errorf("run: %v", err)
	}
	for range events {
	}
	cancel()
	if e, _ := n.Subscribe(); e != nil {
		if _, ok := <-e; ok {
			t.Error("an event from a closed node")
		}
	}
}

// What changed after the sockets were opened and before Run looked is a change too: a cable is not plugged when it suits us.
func TestChangeBeforeRun(t *testing.T) {
	t.Parallel()
	var up atomic.Bool
	sim := &node.Simulation{
		Options: []libp2p.Option{libp2p.Transport(tcp.NewTCPTransport)},
		Interfaces: func() []netip.Prefix {
			if !up.Load() {
				return nil
			}
			return []netip.Prefix{netip.MustParsePrefix("127.0.0.1/8")}
		},
	}
	n := newNode(t, node.Config{Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Host: sim})
	events, cancel := n.Subscribe()
	defer cancel()
	up.Store(true)
	run(t, n)
	await(t, events, "the change", func(e node.Event) bool { _, ok := e.(node.NetworkChanged); return ok })
}
