package node

// Kinds of NAT, as far as others can see it.
const (
	NATUnknown   = "unknown"
	NATNone      = "none"
	NATCone      = "cone"
	NATSymmetric = "symmetric"
)

// Reachability is how others can reach this node.
type Reachability struct {
	// Online: some bootstrap node answers. False without bootstrap nodes.
	Online bool
	// Public: this node can be dialled from anywhere without a relay: it announces an address, or one of its own was
	// seen to work.
	Public bool
	// NAT is the kind of NAT before this node: NATNone, NATCone, NATSymmetric or NATUnknown.
	NAT string
	// RelayAddrs are the addresses through relays.
	RelayAddrs []string
	// Observed are the addresses under which others see this node.
	Observed []string
	// Mapped are addresses that the router forwards, by UPnP or NAT-PMP.
	Mapped []string
}

// Reachability tells how others can reach this node, as known now.
func (n *Node) Reachability() Reachability { return Reachability{NAT: NATUnknown} }
