package node_test

import (
	"context"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"hima/identity"
	"hima/node"
	"hima/node/nodetest"
)

// insideNetns is set in the test binary that runs in a network namespace of its own.
const insideNetns = "HIMA_TEST_INSIDE_NETNS"

// inNetns runs the calling test again in a new network namespace after the shell command setup, and reports whether
// this is that run. It skips where namespaces are not permitted.
func inNetns(t *testing.T, setup string) bool {
	t.Helper()
	if os.Getenv(insideNetns) != "" {
		return true
	}
	args := []string{"-n"}
	if os.Geteuid() != 0 {
		args = []string{"-r", "-n"}
	}
	if out, err := exec.Command("unshare", append(args, "true")...).CombinedOutput(); err != nil {
		t.Skipf("no network namespace can be made here: %v %s", err, out)
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skipf("needs iproute2: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	args = append(args, "sh", "-ec", setup+"\n"+`exec "$0" "$@"`, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=50s")
	cmd := exec.CommandContext(ctx, "unshare", args...)
	cmd.Env = append(os.Environ(), insideNetns+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Fatalf("inside the namespace: %v\n%s", err, out)
	}
	return false
}

func run(t *testing.T, n *node.Node) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := n.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
}

// await returns the first event that f accepts.
func await(t *testing.T, events <-chan node.Event, what string, f func(node.Event) bool) {
	t.Helper()
	late := time.After(30 * time.Second)
	for {
		select {
		case e := <-events:
			if f(e) {
				return
			}
		case <-late:
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

func isFound(dev identity.DeviceID) func(node.Event) bool {
	return func(e node.Event) bool { f, ok := e.(node.Found); return ok && f.Device == dev }
}

// Two nodes with nothing but mDNS find each other, connect, and one that comes back is found again.
func TestMDNS(t *testing.T) {
	if !inNetns(t, "ip link set lo up; ip link set lo multicast on") {
		return
	}
	a := newNode(t, node.Config{MDNS: true, Port: 4101})
	b := newNode(t, node.Config{Key: nodetest.Key(1), MDNS: true})
	ea, cancelA := a.Subscribe()
	defer cancelA()
	eb, cancelB := b.Subscribe()
	defer cancelB()
	run(t, a)
	run(t, b)
	start := time.Now()
	await(t, ea, "a finds b", isFound(b.ID()))
	await(t, eb, "b finds a", isFound(a.ID()))
	t.Logf("found after %v", time.Since(start))
	if !a.Multicast() || !b.Multicast() {
		t.Error("multicast is not reported")
	}
	b.Handle(proto, func(s *node.Stream) { io.Copy(s, s); s.Close() })
	s, err := a.Open(t.Context(), b.ID(), proto)
	if err != nil {
		t.Fatalf("what was announced cannot be dialled: %v (known %v)", err, a.Known(b.ID()))
	}
	if i := s.Info(); i.Transport != "tcp" || !i.Direct || !i.Outbound {
		t.Errorf("connection is %+v", i)
	}
	s.Reset()
	b.Close()
	await(t, ea, "a sees b go", func(e node.Event) bool { _, ok := e.(node.PeerDown); return ok })
	b = newNode(t, node.Config{Key: nodetest.Key(1), MDNS: true})
	run(t, b)
	await(t, ea, "a finds b again", isFound(b.ID()))
}

// A node starts on a machine without any interface that is up, notices when one appears, and is found then.
func TestNoInterface(t *testing.T) {
	if !inNetns(t, "ip link set lo multicast on") {
		return
	}
	a := newNode(t, node.Config{MDNS: true, Port: 4101})
	b := newNode(t, node.Config{Key: nodetest.Key(1), MDNS: true})
	events, cancel := a.Subscribe()
	defer cancel()
	run(t, a)
	run(t, b)
	if got := a.Addrs(); len(got) != 0 {
		t.Errorf("addresses without an interface: %v", got)
	}
	if a.Multicast() {
		t.Error("multicast without an interface")
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	start := time.Now()
	var changed, multicast, found bool
	defer func() {
		if t.Failed() {
			t.Logf("changed %t, multicast %t, found %t", changed, multicast, found)
		}
	}()
	await(t, events, "change, multicast, found", func(e node.Event) bool {
		switch e := e.(type) {
		case node.NetworkChanged:
			changed = true
		case node.MulticastChanged:
			multicast = e.OK
		case node.Found:
			found = found || e.Device == b.ID()
		}
		return changed && multicast && found
	})
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("took %v", d)
	}
}

// When an address goes away, connections over it are closed and the new address is announced.
func TestAddressChanges(t *testing.T) {
	if !inNetns(t, "ip link set lo up; ip link set lo multicast on; ip addr add 10.77.0.1/24 dev lo") {
		return
	}
	a := newNode(t, node.Config{MDNS: true, Port: 4101})
	b := newNode(t, node.Config{Key: nodetest.Key(1), MDNS: true, Port: 4102})
	b.Handle(proto, func(s *node.Stream) { io.Copy(s, s); s.Close() })
	events, cancel := a.Subscribe()
	defer cancel()
	run(t, a)
	run(t, b)
	await(t, events, "a finds b", isFound(b.ID()))
	if err := a.Connect(t.Context(), b.ID(), nil); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("sh", "-ec", "ip addr del 10.77.0.1/24 dev lo; ip addr add 10.77.0.9/24 dev lo").CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	await(t, events, "the stranded connection is closed", func(e node.Event) bool { _, ok := e.(node.PeerDown); return ok })
	await(t, events, "the new address is announced", func(e node.Event) bool {
		f, ok := e.(node.Found)
		return ok && strings.Contains(strings.Join(f.Addrs, " "), "/10.77.0.9/")
	})
	s, err := a.Open(t.Context(), b.ID(), proto)
	if err != nil {
		t.Fatal(err)
	}
	s.Reset()
}
