package nodetest

import (
	"context"
	"testing"
	"time"

	"hima/identity"
	"hima/node"
)

// Loopback makes n nodes that listen on 127.0.0.1 with TCP and are not connected, with the keys of Key. They are closed
// when the test ends. Run is not called: it would only look for other nodes.
func Loopback(t testing.TB, n int) []*node.Node {
	t.Helper()
	nodes := make([]*node.Node, n)
	for i := range nodes {
		nodes[i] = LoopbackKey(t, Key(i))
	}
	return nodes
}

// LoopbackKey makes one such node with a key of the caller's.
func LoopbackKey(t testing.TB, key identity.DeviceKey) *node.Node {
	t.Helper()
	n, err := node.New(node.Config{Key: key, Listen: []string{"/ip4/127.0.0.1/tcp/0"}})
	if err != nil {
		t.Fatalf("making node: %v", err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// Connect lets a dial b.
func Connect(t testing.TB, a, b *node.Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := a.Connect(ctx, b.ID(), b.Addrs()); err != nil {
		t.Fatalf("connecting: %v", err)
	}
}
