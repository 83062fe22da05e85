package node

import "hima/identity"

// Event is something that happened on the network: one of the types below.
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

// BootstrapUp says that a bootstrap node is connected.
type BootstrapUp struct{ Device identity.DeviceID }

// BootstrapDown says that a bootstrap node is not connected any more, or is none any more.
type BootstrapDown struct{ Device identity.DeviceID }

// AddrsChanged says that Addrs changed: a relay was won or lost, or the machine's network changed.
type AddrsChanged struct{}

// OnlineChanged says whether some bootstrap node answers.
type OnlineChanged struct{ Online bool }

func (PeerUp) event()           {}
func (PeerDown) event()         {}
func (Found) event()            {}
func (NetworkChanged) event()   {}
func (MulticastChanged) event() {}
func (BootstrapUp) event()      {}
func (BootstrapDown) event()    {}
func (AddrsChanged) event()     {}
func (OnlineChanged) event()    {}
