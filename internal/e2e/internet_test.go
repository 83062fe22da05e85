package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// bootstrap is a bootstrap node in the lab.
type bootstrap struct {
	t    *testing.T
	dir  string
	host string
	args []string
	link string
	cmd  *exec.Cmd
}

// internet builds a lab with a public host for the bootstrap node, as many routers as kinds are named, and what else the
// arguments of the script ask for.
func internet(t *testing.T, kinds string, args ...string) {
	t.Helper()
	if os.Getenv("HIMA_NETLAB") == "" {
		t.Skip("needs root and network namespaces; .ci/run sets HIMA_NETLAB")
	}
	binary(t)
	routers := 0
	if kinds != "" {
		routers = strings.Count(kinds, ",") + 1
		args = append(args, "-t", kinds)
	}
	netlab(t, append([]string{"up", "-m", "0", "-n", fmt.Sprint(routers)}, args...)...)
	t.Cleanup(func() { netlab(t, "down") })
}

// serve starts a bootstrap node on a host with the given public address.
func serve(t *testing.T, host, addr string, args ...string) *bootstrap {
	t.Helper()
	b := &bootstrap{t: t, dir: shortDir(t), host: host}
	b.args = append([]string{
		"--json", "bootstrap", "run", "--dir", b.dir, "--fresh",
		"--listen", "/ip4/" + addr + "/tcp/4001", "--listen", "/ip4/" + addr + "/udp/4001/quic-v1",
	}, args...)
	b.start()
	t.Cleanup(b.stop)
	return b
}

// start starts the node and waits for its link.
func (b *bootstrap) start() {
	b.t.Helper()
	all := append([]string{"netns", "exec", labPrefix + "-" + b.host, binary(b.t)}, b.args...)
	b.cmd = exec.Command("ip", all...)
	b.cmd.Env = environment()
	out, err := b.cmd.StdoutPipe()
	require.NoError(b.t, err)
	log, err := os.OpenFile(filepath.Join(b.dir, "stderr"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	require.NoError(b.t, err)
	defer log.Close()
	b.cmd.Stderr = log
	require.NoError(b.t, b.cmd.Start())
	var ready struct{ Link string }
	err = json.NewDecoder(out).Decode(&ready)
	text, _ := os.ReadFile(log.Name())
	require.NoError(b.t, err, "the bootstrap node did not say its link: %s", text)
	require.NotEmpty(b.t, ready.Link)
	b.link = ready.Link
	go func() { _, _ = io.Copy(io.Discard, out) }() // ends with the process
}

// stop ends the node as a service manager does; a second call does nothing.
func (b *bootstrap) stop() {
	if b.cmd == nil {
		return
	}
	_ = b.cmd.Process.Signal(syscall.SIGTERM)
	done := make(chan struct{})
	go func() { _ = b.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(time.Minute):
		_ = b.cmd.Process.Kill()
		<-done
		b.t.Error("the bootstrap node did not end when asked")
	}
	b.cmd = nil
}

// user registers somebody on a host of the lab and on the network.
func user(t *testing.T, name, host, link string, env ...string) person {
	t.Helper()
	p := person{t: t, name: name, home: shortDir(t), host: []string{"ip", "netns", "exec", labPrefix + "-" + host}, env: env}
	p.stopAtEnd()
	args := []string{"register", "--username", name, "--nickname", strings.ToUpper(name), "--no-password"}
	if link != "" {
		args = append(args, "--network", link)
	}
	p.must(args...)
	return p
}

// joined waits until the username is confirmed, a mailbox is there, and the network holds the own records.
func (p person) joined() {
	p.t.Helper()
	p.until("the username confirmed and the records published", func() bool {
		for _, n := range p.list("network", "list") {
			if u, ok := n["username"].(map[string]any); ok && u["state"] == "confirmed" && n["published"] != "" {
				boxes := p.list("mailbox", "list")
				return len(boxes) > 0 && boxes[0]["state"] == "ok"
			}
		}
		return false
	})
}

// findableWhileAway waits until the record that names the inbox for requests is published too. The mailbox opens the inbox
// within seconds after it was found, and from then on nothing counts as published that does not name it.
func (p person) findableWhileAway() {
	p.t.Helper()
	p.until("the record with the inbox", func() bool {
		n := p.one("network", "list")
		joined, err := time.Parse(time.RFC3339, n["joined"].(string))
		require.NoError(p.t, err)
		return n["published"] != "" && time.Since(joined) > 10*time.Second
	})
}

// befriend makes two people contacts who know nothing of each other but the username.
func befriend(a, b person) {
	a.t.Helper()
	a.must("contact", "add", b.name, "--yes", "--message", "found you by name")
	b.until("a request of "+a.name, func() bool {
		for _, r := range b.list("contact", "requests") {
			if r["username"] == a.name && r["incoming"] == true {
				return true
			}
		}
		return false
	})
	b.must("contact", "accept", a.name)
}

// road tells over what a person's node reaches an account now: relay, tcp, quic, or nothing.
func (p person) road(who string) string {
	account := ""
	for _, c := range p.list("contact", "list") {
		if c["username"] == who {
			account, _ = c["account"].(string)
		}
	}
	peers, _ := p.one("node", "status")["peers"].([]any)
	for _, v := range peers {
		if peer, ok := v.(map[string]any); ok && peer["account"] == account && account != "" {
			s, _ := peer["transport"].(string)
			return s
		}
	}
	return ""
}

func (p person) direct(who string) func() bool {
	return func() bool { r := p.road(who); return r == "tcp" || r == "quic" }
}

// Every kind of access meets every other one: all pairs chat, and those that can become direct do.
func TestNetlabMatrix(t *testing.T) {
	internet(t, "cone,cone,symmetric,symmetric,forward,forward", "-p", "3")
	b := serve(t, "pub", "192.0.0.130")
	forwarded := func(addr string) []string {
		return []string{"HIMA_PORT=4001", "HIMA_ANNOUNCE=/ip4/" + addr + "/tcp/4001,/ip4/" + addr + "/udp/4001/quic-v1"}
	}
	kinds := []struct {
		kind, host string
		env        []string
	}{
		{"cone", "nat1", nil},
		{"cone", "nat2", nil},
		{"symmetric", "nat3", nil},
		{"symmetric", "nat4", nil},
		{"forwarded", "nat5", forwarded("192.0.0.145")},
		{"forwarded", "nat6", forwarded("192.0.0.146")},
		{"public", "pub2", nil},
		{"public", "pub3", nil},
	}
	people := make([]person, len(kinds))
	for i, k := range kinds {
		people[i] = user(t, fmt.Sprintf("%s%d", k.kind, i%2+1), k.host, b.link, k.env...)
	}
	for _, p := range people {
		p.joined()
	}
	// A hole in one symmetric router alone cannot be guessed from outside (port-restricted cone), so those pairs stay relayed.
	relayed := map[string]bool{"cone symmetric": true, "symmetric symmetric": true}
	for i := 0; i < len(kinds); i += 2 {
		for j := i; j < len(kinds); j += 2 {
			one, other := people[i], people[j+1]
			pair := kinds[i].kind + " " + kinds[j+1].kind
			t.Run(strings.ReplaceAll(pair, " ", "-"), func(t *testing.T) {
				one.t, other.t = t, t
				befriend(one, other)
				begin := time.Now()
				one.must("send", other.name, "hello", "--wait", "delivered", "--timeout", "60s")
				other.must("send", one.name, "hello yourself", "--wait", "delivered", "--timeout", "60s")
				if relayed[pair] {
					require.Equal(t, "relay", one.road(other.name))
				} else {
					one.until("a direct connection", one.direct(other.name))
				}
				t.Logf("%s after %v", one.road(other.name), time.Since(begin).Round(10*time.Millisecond))
				one.must("send", other.name, "still there", "--wait", "delivered", "--timeout", "60s")
				mine, _ := one.texts(other.name)
				theirs, _ := other.texts(one.name)
				require.Equal(t, []string{"hello", "hello yourself", "still there"}, mine)
				require.Equal(t, mine, theirs)
			})
		}
	}
}

// Twelve people behind one router join, and each talks to the first; the relay dies and returns, and everybody is back.
func TestNetlabOneRouterAndRelayRestart(t *testing.T) {
	const all = 12
	internet(t, "symmetric,symmetric", "-s", fmt.Sprint(all))
	b := serve(t, "pub", "192.0.0.130")
	far := user(t, "far", "nat2", b.link)
	people := make([]person, all)
	for i := range people {
		host := fmt.Sprintf("in%d", i+1)
		if i == 0 {
			host = "nat1"
		}
		people[i] = user(t, fmt.Sprintf("one%d", i), host, b.link, "HIMA_MDNS=false")
	}
	far.joined()
	for _, p := range people {
		p.joined()
		befriend(p, far)
		p.must("send", "far", "from "+p.name, "--wait", "delivered", "--timeout", "60s")
	}
	b.stop()
	for _, p := range people[:3] {
		p.until("that the network is gone", func() bool { return p.one("network", "list")["online"] != true })
		p.must("send", "far", "while the relay is away")
	}
	b.start()
	back := time.Now()
	for _, p := range people {
		p.within(back, "back on the network", func() bool { return p.one("network", "list")["online"] == true })
	}
	for _, p := range people[:3] {
		p.within(back, "delivered", p.delivered("far", "while the relay is away"))
	}
}

// Two contacts of one home who share a network talk directly, and go on when the home is cut off; each notices within the
// promised time, and that the Internet is back as well.
func TestNetlabHomeCutOff(t *testing.T) {
	internet(t, "cone", "-s", "2")
	b := serve(t, "pub", "192.0.0.130")
	alice, bob := user(t, "alice", "nat1", b.link), user(t, "bob", "in2", b.link)
	alice.joined()
	bob.joined()
	befriend(alice, bob)
	alice.must("send", "bob", "first", "--wait", "delivered", "--timeout", "60s")
	alice.until("a direct connection", alice.direct("bob"))

	netlab(t, "cut", "rt1")
	cut := time.Now()
	online := func(p person, want bool) func() bool {
		return func() bool { return (p.one("network", "list")["online"] == true) == want }
	}
	alice.must("send", "bob", "cut off", "--wait", "delivered", "--timeout", "15s")
	alice.within(cut, "sees that the Internet is gone", online(alice, false))
	alice.must("send", "bob", "still here", "--wait", "delivered", "--timeout", "15s")
	netlab(t, "heal", "rt1")
	healed := time.Now()
	alice.within(healed, "sees that the Internet is back", online(alice, true))
	bob.within(healed, "sees that the Internet is back", online(bob, true))
	require.True(t, alice.direct("bob")(), "the connection inside the home stays")
}

// A relay with libp2p's default limits cuts a circuit after two minutes or 128 KiB: a chat of three minutes goes on over it.
func TestNetlabForeignRelay(t *testing.T) {
	internet(t, "symmetric,symmetric")
	b := serve(t, "pub", "192.0.0.130", "--circuit-time", "2m", "--circuit-bytes", "128KiB")
	alice, bob := user(t, "alice", "nat1", b.link), user(t, "bob", "nat2", b.link)
	alice.joined()
	bob.joined()
	befriend(alice, bob)
	begin, n := time.Now(), 0
	long := strings.Repeat("a line of some length to fill the circuit. ", 600) // 25.8 kB
	for time.Since(begin) < 3*time.Minute {
		text := fmt.Sprintf("%d %s", n, long)
		alice.must("send", "bob", text, "--wait", "delivered", "--timeout", "60s")
		bob.must("send", "alice", fmt.Sprintf("answer %d", n), "--wait", "delivered", "--timeout", "60s")
		require.Equal(t, "relay", alice.road("bob"))
		n++
	}
	mine, _ := alice.texts("bob")
	theirs, _ := bob.texts("alice")
	require.Equal(t, min(2*n, 1000), len(mine), "what history gives at once")
	require.True(t, slices.Equal(mine, theirs), "one order on both sides")
	t.Logf("%d messages each way over cut circuits", n)
}

// Two people who are never there at the same time: a first request, its answer and messages travel through the mailbox.
// What went over the bootstrap node's wire and what lies on its disk tells nothing.
func TestNetlabNeverTogether(t *testing.T) {
	internet(t, "cone,cone")
	b := serve(t, "pub", "192.0.0.130")
	alice, bob := user(t, "alicequillfeather", "nat1", b.link), user(t, "bobmarchbanks", "nat2", b.link)
	alice.joined()
	bob.joined()
	bob.findableWhileAway()
	capture := record(t, "pub")
	bob.must("node", "stop")
	alice.must("contact", "add", bob.name, "--yes", "--message", "secret sentence one")
	alice.until("the request in the mailbox", func() bool {
		for _, r := range alice.list("contact", "requests") {
			id, _ := r["message_id"].(string)
			return id != "" && alice.one("why", id)["summary"] == "in_mailbox"
		}
		return false
	})
	alice.must("node", "stop")

	bob.until("the request", func() bool { return len(bob.list("contact", "requests")) == 1 })
	bob.must("contact", "accept", alice.name)
	bob.must("send", alice.name, "secret sentence two", "--wait", "sent", "--timeout", "60s")
	bob.must("node", "stop")

	alice.until("the answer", func() bool { mine, _ := alice.texts(bob.name); return len(mine) == 1 })
	alice.must("send", bob.name, "secret sentence three", "--wait", "sent", "--timeout", "60s")
	alice.must("node", "stop")

	bob.until("the third", func() bool { mine, _ := bob.texts(alice.name); return len(mine) == 2 })
	bob.until("that alice has the second", bob.delivered(alice.name, "secret sentence two"))
	bob.must("node", "stop")

	ids := append(idsOf(t, alice), idsOf(t, bob)...)
	alice.must("node", "stop")
	bob.must("node", "stop")
	b.stop()
	packets := capture()
	for _, s := range append(ids, "secret sentence", alice.name, bob.name) {
		require.NotContains(t, packets, s, "on the wire")
		require.Empty(t, grep(t, b.dir, s), "on the disk of the bootstrap node")
	}
}

// The figures of docs/performance.md: how soon after the start a slot on the relay is held, the first message arrives, and
// the connection is direct.
func TestNetlabInternetTimes(t *testing.T) {
	internet(t, "cone,cone")
	b := serve(t, "pub", "192.0.0.130")
	alice, bob := user(t, "alice", "nat1", b.link), user(t, "bob", "nat2", b.link)
	alice.joined()
	bob.joined()
	befriend(alice, bob)
	alice.must("send", "bob", "warm", "--wait", "delivered", "--timeout", "60s")
	for round := range 3 {
		alice.must("node", "stop")
		bob.must("node", "stop")
		alice.must("send", "bob", fmt.Sprintf("round %d", round)) // starts alice's node
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		begin := time.Now()
		out, err := bob.command(ctx, "node", "start").CombinedOutput()
		cancel()
		require.NoError(t, err, "%s", out)
		bob.until("a slot on the relay", func() bool {
			for _, n := range bob.list("network", "list") {
				for _, v := range n["bootstraps"].([]any) {
					if v.(map[string]any)["reserved"] == true {
						return true
					}
				}
			}
			return false
		})
		reserved := time.Since(begin)
		alice.until("delivered", alice.delivered("bob", fmt.Sprintf("round %d", round)))
		first := time.Since(begin)
		alice.until("direct", alice.direct("bob"))
		t.Logf("round %d: reserved %v, first message %v, direct %v after the start of the second node", round,
			reserved.Round(time.Millisecond), first.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond))
	}
}
