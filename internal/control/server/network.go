package server

import (
	"context"

	"hima/internal/control/pb"
)

// Network is what the server needs of the networks and mailboxes of an unlocked node. The daemon implements it: these acts
// concern several packages below and none of them alone.
type Network interface {
	// JoinNetwork joins a network, or adds bootstrap nodes to one that was joined.
	JoinNetwork(ctx context.Context, in *pb.JoinNetworkRequest) (*pb.JoinNetworkResponse, error)
	// LeaveNetwork leaves a network; what was published there runs out by itself.
	LeaveNetwork(ctx context.Context, in *pb.LeaveNetworkRequest) (*pb.LeaveNetworkResponse, error)
	// ListNetworks lists the joined networks and how they are.
	ListNetworks(ctx context.Context, in *pb.ListNetworksRequest) (*pb.ListNetworksResponse, error)
	// Doctor looks at everything that can go wrong and says what to do.
	Doctor(ctx context.Context, in *pb.DoctorRequest) (*pb.DoctorResponse, error)
	// ListMailboxes lists the nodes that keep mail for this one, and for whom this one does.
	ListMailboxes(ctx context.Context, in *pb.ListMailboxesRequest) (*pb.ListMailboxesResponse, error)
	// AddMailbox lets another node keep mail for this one.
	AddMailbox(ctx context.Context, in *pb.AddMailboxRequest) (*pb.AddMailboxResponse, error)
	// RemoveMailbox retires a mailbox: nobody is told of it any more, and what is in it is still fetched.
	RemoveMailbox(ctx context.Context, in *pb.RemoveMailboxRequest) (*pb.RemoveMailboxResponse, error)
	// OfferMailbox offers a contact to keep mail, changes the quota, or takes the offer back.
	OfferMailbox(ctx context.Context, in *pb.OfferMailboxRequest) (*pb.OfferMailboxResponse, error)
}

func (h *handlers) JoinNetwork(ctx context.Context, in *pb.JoinNetworkRequest) (*pb.JoinNetworkResponse, error) {
	n, err := h.b.Network()
	if err != nil {
		return nil, err
	}
	return n.JoinNetwork(ctx, in)
}

func (h *handlers) LeaveNetwork(ctx context.Context, in *pb.LeaveNetworkRequest) (*pb.LeaveNetworkResponse, error) {
	n, err := h.b.Network()
	if err != nil {
		return nil, err
	}
	return n.LeaveNetwork(ctx, in)
}

func (h *handlers) ListNetworks(ctx context.Context, in *pb.ListNetworksRequest) (*pb.ListNetworksResponse, error) {
	n, err := h.b.Network()
	if err != nil {
		return nil, err
	}
	return n.ListNetworks(ctx, in)
}

func (h *handlers) Doctor(ctx context.Context, in *pb.DoctorRequest) (*pb.DoctorResponse, error) {
	n, err := h.b.Network()
	if err != nil {
		return nil, err
	}
	return n.Doctor(ctx, in)
}

func (h *handlers) ListMailboxes(ctx context.Context, in *pb.ListMailboxesRequest) (*pb.ListMailboxesResponse, error) {
	n, err := h.b.Network()
	if err != nil {
		return nil, err
	}
	return n.ListMailboxes(ctx, in)
}

func (h *handlers) AddMailbox(ctx context.Context, in *pb.AddMailboxRequest) (*pb.AddMailboxResponse, error) {
	n, err := h.b.Network()
	if err != nil {
		return nil, err
	}
	return n.AddMailbox(ctx, in)
}

func (h *handlers) RemoveMailbox(ctx context.Context, in *pb.RemoveMailboxRequest) (*pb.RemoveMailboxResponse, error) {
	n, err := h.b.Network()
	if err != nil {
		return nil, err
	}
	return n.RemoveMailbox(ctx, in)
}

func (h *handlers) OfferMailbox(ctx context.Context, in *pb.OfferMailboxRequest) (*pb.OfferMailboxResponse, error) {
	n, err := h.b.Network()
	if err != nil {
		return nil, err
	}
	return n.OfferMailbox(ctx, in)
}
