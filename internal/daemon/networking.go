package daemon

import (
	"context"

	"hima/internal/control"
	"hima/internal/control/pb"
	"hima/internal/control/server"
)

// networking serves what concerns networks and mailboxes of an unlocked profile.
type networking struct{ u *unlocked }

var _ server.Network = networking{}

// Network implements server.Backend.
func (p *profile) Network() (server.Network, error) {
	if _, err := p.Messenger(); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current == nil {
		return nil, &control.Error{Code: control.Unavailable, Message: "the node is stopping", Hint: "try again in a moment"}
	}
	return networking{p.current}, nil
}

func errNoNetworks() error {
	return &control.Error{Code: control.Unavailable, Message: "this node has no networks yet"}
}

// JoinNetwork implements server.Network.
func (n networking) JoinNetwork(context.Context, *pb.JoinNetworkRequest) (*pb.JoinNetworkResponse, error) {
	return nil, errNoNetworks()
}

// LeaveNetwork implements server.Network.
func (n networking) LeaveNetwork(context.Context, *pb.LeaveNetworkRequest) (*pb.LeaveNetworkResponse, error) {
	return nil, errNoNetworks()
}

// ListNetworks implements server.Network.
func (n networking) ListNetworks(context.Context, *pb.ListNetworksRequest) (*pb.ListNetworksResponse, error) {
	return nil, errNoNetworks()
}

// Search implements server.Network.
func (n networking) Search(context.Context, *pb.SearchRequest) (*pb.SearchResponse, error) {
	return nil, errNoNetworks()
}

// Doctor implements server.Network.
func (n networking) Doctor(context.Context, *pb.DoctorRequest) (*pb.DoctorResponse, error) {
	return nil, errNoNetworks()
}

// ListMailboxes implements server.Network.
func (n networking) ListMailboxes(context.Context, *pb.ListMailboxesRequest) (*pb.ListMailboxesResponse, error) {
	return nil, errNoNetworks()
}

// AddMailbox implements server.Network.
func (n networking) AddMailbox(context.Context, *pb.AddMailboxRequest) (*pb.AddMailboxResponse, error) {
	return nil, errNoNetworks()
}

// RemoveMailbox implements server.Network.
func (n networking) RemoveMailbox(context.Context, *pb.RemoveMailboxRequest) (*pb.RemoveMailboxResponse, error) {
	return nil, errNoNetworks()
}

// OfferMailbox implements server.Network.
func (n networking) OfferMailbox(context.Context, *pb.OfferMailboxRequest) (*pb.OfferMailboxResponse, error) {
	return nil, errNoNetworks()
}
