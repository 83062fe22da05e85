package node

import "hima/identity"

// Event is something that happened on the network: PeerUp, PeerDown, Found, NetworkChanged or MulticastChanged.
type Event interface{ event() }

// PeerUp says that a device has a connection now and had none before, or that its best connection changed (a direct
// one beside a relayed one, TCP beside QUIC). Info is the best connection at the time the event was taken.
type PeerUp struct {
	Device identity.DeviceID
	Info   ConnInfo
}

// PeerDown says that the last connection to a device ended.
type PeerDown struct{ Device identity.DeviceID }

// Found says that a device announced itself on the LAN, with the addresses it announced. It is repeated whenever the
// device announces itself anew. Whoever is announced is not authenticated before a connection to it succeeded.
type Found struct {
	Device identity.DeviceID
	Addrs  []string
}

// NetworkChanged says that the addresses of this machine's interfaces changed, or that the machine slept.
type NetworkChanged struct{}

// MulticastChanged says whether nodes on the LAN can be found now.
type MulticastChanged struct{ OK bool }

func (PeerUp) event()           {}
func (PeerDown) event()         {}
func (Found) event()            {}
func (NetworkChanged) event()   {}
func (MulticastChanged) event() {}
