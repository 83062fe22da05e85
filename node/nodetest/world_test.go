package nodetest_test

import (
	"bytes"
	"context"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"hima/node"
	"hima/node/nodetest"
)

const echo = "/hima/test-echo/1"

func serveEcho(n *node.Node) {
	n.Handle(echo, func(s *node.Stream) {
		if _, err := io.Copy(s, s); err == nil {
			s.Close()
		}
	})
}

func say(ctx context.Context, a *node.Node, to *node.Node, text string) error {
	s, err := a.Open(ctx, to.ID(), echo)
	if err != nil {
		return err
	}
	defer s.Close()
	s.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := s.Write([]byte(text)); err != nil {
		return err
	}
	if err := s.CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(s)
	if err == nil && !bytes.Equal(got, []byte(text)) {
		return io.ErrShortBuffer
	}
	return err
}

// TestTenNodes is the example: ten nodes find each other, talk in a ring, one is cut off and comes back, an idle hour
// passes, and all of it takes about a second.
func TestTenNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 10
		w := nodetest.New(t, n)
		for i := range n {
			serveEcho(w.Node(i))
		}
		synctest.Wait() // for the discovery
		for i := range n {
			// What discovery told is enough to talk.
			if err := say(t.Context(), w.Node(i), w.Node((i+1)%n), "hello"); err != nil {
				t.Fatalf("%d to %d: %v", i, (i+1)%n, err)
			}
		}

		w.Isolate(3)
		if err := say(t.Context(), w.Node(3), w.Node(5), "anybody?"); err == nil {
			t.Fatal("an isolated node was heard")
		}
		time.Sleep(time.Minute)
		for i := range n {
			if i != 3 && w.Node(i).Connected(w.Node(3).ID()) {
				t.Errorf("node %d still thinks that it is connected to the isolated one", i)
			}
		}
		w.Rejoin(3)
		if err := say(t.Context(), w.Node(3), w.Node(5), "back"); err != nil {
			t.Fatalf("after the link was healed: %v", err)
		}

		w.Stop(5)
		time.Sleep(time.Hour)
		w.Start(5)
		serveEcho(w.Node(5))
		if err := say(t.Context(), w.Node(4), w.Node(5), "again"); err != nil {
			t.Fatalf("after a restart: %v", err)
		}
	})
}

// TestNewcomer shows events: a node that joins is found, connects, and leaves.
func TestNewcomer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := nodetest.New(t, 1)
		events, cancel := w.Node(0).Subscribe()
		defer cancel()
		i := w.Add()
		wait := func(ok func(node.Event) bool) {
			t.Helper()
			late := time.After(time.Minute)
			for {
				select {
				case e := <-events:
					if ok(e) {
						return
					}
				case <-late:
					t.Fatal("the event did not come")
				}
			}
		}
		wait(func(e node.Event) bool { f, ok := e.(node.Found); return ok && f.Device == nodetest.Key(i).ID() })
		w.Connect(0, i)
		wait(func(e node.Event) bool { u, ok := e.(node.PeerUp); return ok && u.Info.Outbound && u.Info.Direct })
		w.Stop(i)
		wait(func(e node.Event) bool { d, ok := e.(node.PeerDown); return ok && d.Device == nodetest.Key(i).ID() })
	})
}

func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := nodetest.New(t, 2)
		serveEcho(w.Node(1))
		w.DelayAll(40 * time.Millisecond)
		w.Delay(0, 1, 100*time.Millisecond)
		w.Connect(0, 1)
		start := time.Now()
		if err := say(t.Context(), w.Node(0), w.Node(1), "far"); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d < 400*time.Millisecond || d > 900*time.Millisecond {
			t.Errorf("two round trips of 200 ms took %v", d)
		}
	})
}

func TestLoopback(t *testing.T) {
	nodes := nodetest.Loopback(t, 2)
	serveEcho(nodes[1])
	nodetest.Connect(t, nodes[0], nodes[1])
	if err := say(t.Context(), nodes[0], nodes[1], "over TCP"); err != nil {
		t.Fatal(err)
	}
	if p := nodes[0].Peers(); len(p) != 1 || p[0].Transport != "tcp" || p[0].RTT <= 0 {
		t.Errorf("peers are %+v", p)
	}
}
