package node_test

import (
	"context"
	"io"
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
	straight := within(t, 3*time.Second, "direct", func() bool { return direct(a, b) && direct(b, a) })
	t.Logf("slot %v, first word %v (%s), direct %v after it", slot, first, info.Transport, straight)
}
