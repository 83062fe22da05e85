package directory

import (
	"context"
	"errors"
	"time"

	"hima/identity"
	"hima/node"
)

var (
	// ErrBadLink is returned for text that is neither a network's link nor the multiaddr of a bootstrap node.
	ErrBadLink = errors.New("neither a link of a network nor the address of a bootstrap node")
	// ErrNetworkUnknown is returned for a network that was not joined.
	ErrNetworkUnknown = errors.New("network was not joined")
	// ErrUnreachable is returned when a bootstrap node had to answer and did not.
	ErrUnreachable = errors.New("no bootstrap node answered")
	// ErrTooManyNetworks is returned when as many networks are joined as may be.
	ErrTooManyNetworks = errors.New("too many networks are joined")
	// ErrNoNetwork is returned by look-ups when no network is joined, or none can be asked now.
	ErrNoNetwork = errors.New("no network can be asked")
)

// BootstrapState is a bootstrap node of a network.
type BootstrapState struct {
	node.BootstrapState
	// Serves is what it said it does, as far as it was asked: dht, relay, mailbox, names.
	Serves []string
	// Asked is when it last told; zero: never.
	Asked time.Time
}

// NetworkState is a network that was joined.
type NetworkState struct {
	ID         identity.NetworkID
	Name       string
	Link       identity.NetworkLink // as it can be handed on
	Bootstraps []BootstrapState
	Online     bool // some bootstrap node of it is connected
	DHTPeers   int  // nodes in the routing table
	Username   NameState
	Joined     time.Time
	Published  time.Time // when the own records were last seen stored by others; zero: not yet
}

// NetworkEvent says that something about a network changed.
type NetworkEvent struct {
	Network identity.NetworkID
	Name    string
	// What is "joined", "left", "online", "offline" or "published".
	What string
}

// JoinNetwork joins the network of a link that the user gave, or of the bootstrap node at a multiaddr, which must
// answer; a link needs no network. A second link of a network adds its bootstrap nodes to those known. Durable when it
// returns. added is false if the network had been joined before.
func (d *Directory) JoinNetwork(ctx context.Context, link string) (state NetworkState, added bool, err error) {
	return NetworkState{}, false, ErrBadLink
}

// MeetNetwork joins the network of a link that somebody else handed over, as in an invite. Of a network that is joined
// already it takes new addresses of known bootstrap nodes only: bootstrap nodes stamp names, so whom to believe there is
// for the user to say.
func (d *Directory) MeetNetwork(ctx context.Context, link identity.NetworkLink) (state NetworkState, added bool, err error) {
	return NetworkState{}, false, ErrBadLink
}

// LeaveNetwork forgets a network and the name on it.
func (d *Directory) LeaveNetwork(ctx context.Context, id identity.NetworkID) error {
	return ErrNetworkUnknown
}

// Networks lists the joined networks in the order of joining.
func (d *Directory) Networks() []NetworkState { return nil }
