package replica

import (
	"context"

	"hima/identity"
	"hima/internal/wire/pb"
)

// Side has something to say to the devices of accepted contacts beside the entries: where it takes its mail. Its methods
// may take their time, but must return when ctx ends or the node closes.
type Side interface {
	// Offer returns what a device is to be told, nil for nothing. It is asked once in each session that has a
	// conversation open, and again after PushOffer. Whether the peer is an accepted contact is the Side's to know.
	Offer(p Peer) (*pb.MailOffer, error)
	// Offered takes what a device tells. An error that is ErrProtocol ends the session.
	Offered(ctx context.Context, p Peer, o *pb.MailOffer) error
}

// PushOffer asks the Side anew what a device is to be told, if there is a session with it.
func (r *Replica) PushOffer(device identity.DeviceID) {}
