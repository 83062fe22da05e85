package replica

import (
	"context"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/storage"
)

// Mailed is what came over another road than a session. Who it is from was proven by a signature over all of it.
type Mailed struct {
	Peer     Peer
	Record   identity.AccountRecord // of Peer.Account, as it came along; needed of an account nothing is known of; zero: none
	Runs     []*pb.Run              // not checked
	Receipts [][]byte               // not checked
	Token    []byte                 // of a knock
	Work     []byte                 // of a knock
}

// Imported says what became of it.
type Imported struct {
	Entries       int     // that were not held before
	Refused       pb.Code // not 0: some were not taken, and this is why
	Conversations []feed.ConversationID
}

// Import takes what a device sent by mail exactly as a session with that device would have taken it: in one transaction,
// in which also runs last, whether or not everything was taken. What is held already is no error.
//
// ErrNotAdmitted: the device is not listed in the newest record of its account; nothing was stored and also did not
// run. ErrProtocol: a run or a receipt does not verify; the same. ErrDiverged: it proves that the own feed diverged (R3);
// also ran. Any other error is one of the own database, and the same mail may succeed later.
func (r *Replica) Import(ctx context.Context, in Mailed, also func(*storage.Tx) error) (Imported, error) {
	return Imported{}, ErrNotAdmitted
}
