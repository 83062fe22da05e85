package e2e

import (
	"fmt"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// promised is how long after the network is whole again everything must be delivered, and how long a dead peer may go
// unnoticed.
const promised = 15 * time.Second

// within waits for ok and fails if it took longer than promised since from.
func (p person) within(from time.Time, what string, ok func() bool) {
	p.t.Helper()
	p.until(what, ok)
	took := time.Since(from)
	p.t.Logf("%s: %s after %v", p.name, what, took.Round(10*time.Millisecond))
	require.LessOrEqual(p.t, took, promised, "%s: %s", p.name, what)
}

// online tells whether the node has a live session with an account.
func (p person) online(who string) bool {
	for _, v := range p.list("contact", "list") {
		if v["username"] == who {
			return v["online"] == true
		}
	}
	return false
}

func (p person) delivered(who string, texts ...string) func() bool {
	return func() bool {
		_, states := p.texts(who)
		for _, s := range texts {
			if states[s] != "delivered" && states[s] != "read" {
				return false
			}
		}
		return true
	}
}

// Messages are queued on both sides of a dead line; when it lives again all are delivered within the promised time,
// whether the line was dead for a moment or until both had noticed.
func TestNetlabHealTimes(t *testing.T) {
	alice, bob := lan(t)
	meet(alice, bob)
	for round, long := range []bool{false, true} {
		require.True(t, alice.online("bob"))
		netlab(t, "cut", "lan2")
		cut := time.Now()
		var mine, theirs []string
		for i := range 10 {
			mine = append(mine, fmt.Sprintf("round %d from alice %d", round, i))
			theirs = append(theirs, fmt.Sprintf("round %d from bob %d", round, i))
			alice.must("send", "bob", mine[i])
			bob.must("send", "alice", theirs[i])
		}
		if long {
			alice.within(cut, "sees that bob is dead", func() bool { return !alice.online("bob") })
			bob.within(cut, "sees that alice is dead", func() bool { return !bob.online("alice") })
		}
		netlab(t, "heal", "lan2")
		healed := time.Now()
		alice.within(healed, "all delivered", alice.delivered("bob", mine...))
		bob.within(healed, "all delivered", bob.delivered("alice", theirs...))
	}
	a, _ := alice.texts("bob")
	b, _ := bob.texts("alice")
	require.Equal(t, a, b, "one order on both sides")
	require.Len(t, a, 42)
}

// A machine gets another address while messages wait; the two find each other again.
func TestNetlabAddressChanges(t *testing.T) {
	alice, bob := lan(t)
	meet(alice, bob)
	ns := labPrefix + "-lan2"
	out, err := exec.Command("ip", "-n", ns, "addr", "flush", "dev", "eth0").CombinedOutput()
	require.NoError(t, err, "%s", out)
	alice.must("send", "bob", "where are you")
	bob.must("send", "alice", "moving")
	out, err = exec.Command("ip", "-n", ns, "addr", "add", "10.78.0.99/24", "dev", "eth0").CombinedOutput()
	require.NoError(t, err, "%s", out)
	moved := time.Now()
	alice.within(moved, "delivered", alice.delivered("bob", "where are you"))
	bob.within(moved, "delivered", bob.delivered("alice", "moving"))
}
