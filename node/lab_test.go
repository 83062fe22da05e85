package node_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"hima/identity"
	"hima/node"
	"hima/node/nodetest"
)

// insideLab is set in the test binary that is one node of the lab; its value is the node's order.
const insideLab = "HIMA_TEST_LAB_NODE"

// labOrder says what a node of the lab is; it tells the test what it sees, and does what it is told, a line each.
type labOrder struct {
	Index  int
	Server bool
	LAN    bool // with discovery
	Table  bool // with a DHT
	Boots  []node.Bootstrap
}

// labTask is a line to a node of the lab.
type labTask struct {
	Do     string // "say", "direct" or "look"
	Device identity.DeviceID
	Addrs  []string
}

// labReport is a node's answer, or its first line.
type labReport struct {
	Err       string
	Addrs     []string
	Took      time.Duration
	Transport string
	Reach     node.Reachability
	Boots     []node.BootstrapState
}

// TestLabNode is a node of the lab when it is run in one, and nothing otherwise.
func TestLabNode(t *testing.T) {
	order := os.Getenv(insideLab)
	if order == "" {
		t.Skip("runs inside the lab only")
	}
	var o labOrder
	if err := json.Unmarshal([]byte(order), &o); err != nil {
		t.Fatal(err)
	}
	c := node.Config{Key: nodetest.Key(o.Index), Port: 4001, Internet: !o.Server, MDNS: o.LAN}
	if o.Server {
		c.Server = &node.ServerConfig{Relay: true}
	}
	start := time.Now()
	n := newNode(t, c)
	n.SetBootstraps(o.Boots)
	serveEcho(n)
	if o.Table {
		table(t, n, node.DHTConfig{Server: true, Bootstraps: func() []node.Bootstrap { return o.Boots }})
	}
	run(t, n)
	out := json.NewEncoder(os.Stderr)
	for len(o.Boots) > 0 && !o.Server && !reserved(n) && time.Since(start) < 20*time.Second {
		time.Sleep(time.Millisecond) //nolint:forbidigo // real time, and what is measured
	}
	out.Encode(labReport{Addrs: n.Addrs(), Took: time.Since(start), Reach: n.Reachability(), Boots: n.Bootstraps()})
	in := json.NewDecoder(os.Stdin)
	for {
		var task labTask
		if in.Decode(&task) != nil {
			return
		}
		out.Encode(labDo(t, n, task))
	}
}

func labDo(t *testing.T, n *node.Node, task labTask) labReport {
	start := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r := labReport{}
	switch task.Do {
	case "say":
		n.Remember(task.Device, task.Addrs)
		s, err := n.Open(ctx, task.Device, proto)
		if err != nil {
			r.Err = err.Error()
			break
		}
		s.SetDeadline(time.Now().Add(10 * time.Second))
		b := make([]byte, 5)
		if _, err = s.Write([]byte("hello")); err == nil {
			_, err = bufio.NewReader(s).Read(b)
		}
		if err != nil {
			r.Err = err.Error()
		}
		r.Transport = s.Info().Transport
		s.Close()
	case "direct":
		for ctx.Err() == nil && r.Transport == "" {
			for _, p := range n.Peers() {
				if p.Device == task.Device && p.Transport != "relay" {
					r.Transport = p.Transport
				}
			}
			<-time.After(time.Millisecond)
		}
	}
	r.Took, r.Addrs, r.Reach, r.Boots = time.Since(start), n.Addrs(), n.Reachability(), n.Bootstraps()
	return r
}

// labPrefix keeps this lab apart from others on the machine.
const labPrefix = "hnode"

func netlab(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command("bash", append([]string{"../.ci/netlab.sh"}, args...)...)
	cmd.Env = append(os.Environ(), "NETLAB_PREFIX="+labPrefix)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState != nil && cmd.ProcessState.ExitCode() == 77 {
		t.Skipf("%s", out)
	}
	if err != nil {
		t.Fatalf("netlab %v: %v\n%s", args, err, out)
	}
}

// labNode is a node in a namespace of the lab.
type labNode struct {
	t     *testing.T
	host  string
	dev   identity.DeviceID
	in    *json.Encoder
	out   *json.Decoder
	first labReport
}

func startLabNode(t *testing.T, host string, o labOrder) *labNode {
	t.Helper()
	order, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("ip", "netns", "exec", labPrefix+"-"+host, os.Args[0], "-test.run=^TestLabNode$")
	cmd.Env = append(os.Environ(), insideLab+"="+string(order))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close() // its task loop ends, and the node with it
		late := time.AfterFunc(10*time.Second, func() { cmd.Process.Kill() })
		defer late.Stop()
		cmd.Wait()
	})
	l := &labNode{t: t, host: host, dev: nodetest.Key(o.Index).ID(), in: json.NewEncoder(stdin), out: json.NewDecoder(stderr)}
	l.first = l.report()
	return l
}

func (l *labNode) report() labReport {
	l.t.Helper()
	var r labReport
	if err := l.out.Decode(&r); err != nil {
		l.t.Fatalf("%s: %v", l.host, err)
	}
	return r
}

func (l *labNode) do(task string, to *labNode, addrs []string) labReport {
	l.t.Helper()
	if err := l.in.Encode(labTask{Do: task, Device: to.dev, Addrs: addrs}); err != nil {
		l.t.Fatalf("%s: %v", l.host, err)
	}
	return l.report()
}

// TestRealRouters does what TestPairs does with the kernel's own NAT, and prints the times.
func TestRealRouters(t *testing.T) {
	if os.Getenv("HIMA_NETLAB") == "" {
		t.Skip("needs root and network namespaces; .ci/run sets HIMA_NETLAB")
	}
	hosts := []struct{ host, kind string }{
		{"pub2", "public"}, {"nat1", "cone"}, {"nat2", "symmetric"}, {"nat3", "forward"}, {"nat4", "cone"}, {"nat5", "symmetric"},
	}
	netlab(t, "up", "-n", "5", "-m", "0", "-p", "2", "-t", "cone,symmetric,forward,cone,symmetric")
	t.Cleanup(func() { netlab(t, "down") })
	boot := startLabNode(t, "pub", labOrder{Index: 0, Server: true})
	boots := []node.Bootstrap{{Device: boot.dev, Addrs: boot.first.Addrs}}
	index := 1
	for i, a := range hosts {
		for j, b := range hosts {
			if i == j || j > i && (a.kind == b.kind) {
				continue
			}
			t.Run(fmt.Sprintf("%s(%s) to %s(%s)", a.host, a.kind, b.host, b.kind), func(t *testing.T) {
				x := startLabNode(t, a.host, labOrder{Index: index, Boots: boots})
				y := startLabNode(t, b.host, labOrder{Index: index + 1, Boots: boots})
				index += 2
				tryLabPair(t, x, y, a.kind, b.kind)
			})
		}
	}
}

func tryLabPair(t *testing.T, x, y *labNode, kx, ky string) {
	for _, l := range []*labNode{x, y} {
		if l.first.Took > time.Second || len(l.first.Reach.RelayAddrs) == 0 {
			t.Errorf("%s: a slot took %v: %+v", l.host, l.first.Took, l.first.Boots)
		}
	}
	said := x.do("say", y, y.first.Addrs)
	if said.Err != "" || said.Took > 2*time.Second {
		t.Errorf("a word took %v by %s: %s", said.Took, said.Transport, said.Err)
	}
	hard := func(k string) bool { return k == "cone" || k == "symmetric" }
	if hard(kx) && hard(ky) && (kx == "symmetric" || ky == "symmetric") {
		if said.Transport != "relay" {
			t.Errorf("talked by %s", said.Transport)
		}
		return
	}
	straight := x.do("direct", y, nil)
	if straight.Transport == "" || straight.Took > 3*time.Second {
		t.Errorf("direct after %v by %q", straight.Took, straight.Transport)
	}
	t.Logf("slots %v and %v, a word %v (%s), direct %v after it (%s)", x.first.Took.Round(time.Millisecond), y.first.Took.Round(time.Millisecond),
		said.Took.Round(time.Millisecond), said.Transport, straight.Took.Round(time.Millisecond), straight.Transport)
	if strings.Contains(straight.Transport, "relay") {
		t.Error("relayed")
	}
}

// wire reads what a host's interface carried, both directions.
func (l *labNode) wire() (n int) {
	l.t.Helper()
	for _, dir := range []string{"rx", "tx"} {
		out, err := exec.Command("ip", "netns", "exec", labPrefix+"-"+l.host, "cat", "/sys/class/net/eth0/statistics/"+dir+"_bytes").Output()
		var v int
		if _, e := fmt.Sscan(string(out), &v); err != nil || e != nil {
			l.t.Fatalf("%s: %v, %v", l.host, err, e)
		}
		n += v
	}
	return n
}

// What nodes cost that do nothing: a connected pair on a LAN, and a joined node with a table and three others in it.
func TestIdleTraffic(t *testing.T) {
	if os.Getenv("HIMA_NETLAB") == "" || os.Getenv("HIMA_LONG") == "" {
		t.Skip("takes ten minutes; needs root and network namespaces")
	}
	netlab(t, "up", "-n", "3", "-m", "2", "-p", "1", "-t", "cone,symmetric,cone")
	t.Cleanup(func() { netlab(t, "down") })
	one := startLabNode(t, "lan1", labOrder{Index: 1, LAN: true})
	two := startLabNode(t, "lan2", labOrder{Index: 2, LAN: true})
	if r := one.do("say", two, two.first.Addrs); r.Err != "" {
		t.Fatal(r.Err)
	}
	boot := startLabNode(t, "pub", labOrder{Index: 10, Server: true, Table: true})
	boots := []node.Bootstrap{{Device: boot.dev, Addrs: boot.first.Addrs}}
	far := startLabNode(t, "nat1", labOrder{Index: 11, Table: true, Boots: boots})
	startLabNode(t, "nat2", labOrder{Index: 12, Table: true, Boots: boots})
	startLabNode(t, "nat3", labOrder{Index: 13, Table: true, Boots: boots})
	<-time.After(90 * time.Second)
	a, b := one.wire(), far.wire()
	const span = 8 * time.Minute
	<-time.After(span)
	lan := float64(one.wire()-a) / span.Seconds()
	joined := float64(far.wire()-b) / span.Seconds()
	t.Logf("idle on a LAN: %.0f B/s; joined: %.0f B/s, %.1f MB in an hour", lan, joined, joined*3600/1e6)
	if lan > 200 {
		t.Errorf("an idle pair on a LAN carries %.0f B/s", lan)
	}
	if joined > 500 {
		t.Errorf("an idle joined node carries %.0f B/s", joined)
	}
}
