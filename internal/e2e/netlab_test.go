package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// labPrefix keeps this lab apart from others on the machine.
const labPrefix = "he2e"

func netlab(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command("bash", append([]string{"../../.ci/netlab.sh"}, args...)...)
	cmd.Env = append(os.Environ(), "NETLAB_PREFIX="+labPrefix)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState != nil && cmd.ProcessState.ExitCode() == 77 {
		t.Skipf("%s", out)
	}
	require.NoError(t, err, "netlab %v: %s", args, out)
	return string(out)
}

// lan builds a LAN without any way out and two people on it, registered, neither knowing of the other.
func lan(t *testing.T) (alice, bob person) {
	t.Helper()
	if os.Getenv("HIMA_NETLAB") == "" {
		t.Skip("needs root and network namespaces; .ci/run sets HIMA_NETLAB")
	}
	binary(t)
	netlab(t, "up", "-n", "0", "-m", "2")
	t.Cleanup(func() { netlab(t, "down") })
	people := make([]person, 2)
	for i, name := range []string{"alice", "bob"} {
		host := fmt.Sprintf("%s-lan%d", labPrefix, i+1)
		people[i] = person{t: t, name: name, home: shortDir(t), host: []string{"ip", "netns", "exec", host}}
		people[i].stopAtEnd()
		people[i].must("register", "--username", name, "--nickname", strings.ToUpper(name), "--no-password")
	}
	return people[0], people[1]
}

// meet makes them contacts by what they see of each other on the LAN.
func meet(alice, bob person) {
	alice.t.Helper()
	nearby := func(p person, name string) func() bool {
		return func() bool {
			for _, v := range p.list("nearby") {
				if v["username"] == name {
					return true
				}
			}
			return false
		}
	}
	alice.until("bob nearby", nearby(alice, "bob"))
	bob.until("alice nearby", nearby(bob, "alice"))
	alice.must("contact", "add", "bob", "--yes", "--message", "hello from the same LAN")
	bob.until("a request", func() bool { return len(bob.list("contact", "requests")) == 1 })
	bob.must("contact", "accept", "alice")
	alice.must("send", "bob", "first", "--wait", "delivered", "--timeout", "60s")
	bob.must("send", "alice", "second", "--wait", "delivered", "--timeout", "60s")
}

func (p person) waitDelivered(who string, texts ...string) {
	p.t.Helper()
	p.until(fmt.Sprintf("%d messages delivered", len(texts)), func() bool {
		_, states := p.texts(who)
		for _, s := range texts {
			if states[s] != "delivered" && states[s] != "read" {
				return false
			}
		}
		return true
	})
}

// Two machines with nothing but hima find each other, become contacts and chat; the line is cut, the cable is pulled, and
// nothing is lost.
func TestNetlabTwoOnOneLAN(t *testing.T) {
	alice, bob := lan(t)
	meet(alice, bob)

	netlab(t, "cut", "lan2") // the line is dead and nobody says so
	r := alice.try("send", "bob", "into the dark", "--wait", "delivered", "--timeout", "3s")
	require.Equal(t, 75, r.code, "%v", r)
	bob.must("send", "alice", "also into the dark")
	netlab(t, "heal", "lan2")
	alice.waitDelivered("bob", "into the dark")
	bob.waitDelivered("alice", "also into the dark")

	link := func(state string) {
		out, err := exec.Command("ip", "-n", labPrefix+"-lan1", "link", "set", "eth0", state).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	link("down") // no network at all
	alice.must("send", "bob", "cable pulled")
	alice.must("node", "stop")
	alice.must("send", "bob", "started without a network")
	link("up")
	alice.waitDelivered("bob", "cable pulled", "started without a network")

	mine, _ := alice.texts("bob")
	theirs, _ := bob.texts("alice")
	require.Equal(t, mine, theirs, "one order on both sides")
	require.ElementsMatch(t, []string{"first", "second", "into the dark", "also into the dark", "cable pulled", "started without a network"}, mine)
}

// A node is killed while messages flow towards it, again and again: all arrive once and in order.
func TestNetlabKill(t *testing.T) {
	const rounds, each = 5, 20
	alice, bob := lan(t)
	meet(alice, bob)
	want := []string{"first", "second"}
	for round := range rounds {
		for i := range each {
			s := fmt.Sprintf("round %d message %d", round, i)
			want = append(want, s)
			alice.must("send", "bob", s)
			if i == each/2 {
				victim := bob
				if round%2 == 1 {
					victim = alice
				}
				pid := int(victim.one("node", "status")["pid"].(float64))
				require.Greater(t, pid, 1)
				process, err := os.FindProcess(pid)
				require.NoError(t, err)
				require.NoError(t, process.Kill())
				victim.must("node", "start")
			}
		}
	}
	alice.waitDelivered("bob", want[2:]...)
	mine, _ := alice.texts("bob")
	theirs, _ := bob.texts("alice")
	require.Equal(t, want, mine)
	require.Equal(t, want, theirs)
}
