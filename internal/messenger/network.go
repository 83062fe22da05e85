package messenger

import (
	"context"
	"fmt"
	"time"

	"hima/identity"
	"hima/internal/delivery"
	"hima/internal/feed"
)

// Networks is what the messenger needs of the joined networks. The daemon makes it from the directory.
type Networks interface {
	// SearchName asks the joined networks who has a username. It returns before ctx ends, with what it has.
	SearchName(ctx context.Context, name string) (NameSearch, error)
	// Join joins a network and claims the own username there, or learns more bootstrap nodes of a network that was
	// joined already; added tells which. It waits for nobody's answer.
	Join(ctx context.Context, link identity.NetworkLink) (added bool, err error)
	// Links lists the joined networks, those that answer first.
	Links() []identity.NetworkLink
	// NameStates says how the own username stands on each joined network.
	NameStates() []NameState
	// CheckName tells whether the own account could take a name: nil, *NameTaken, or why nobody can say now.
	CheckName(ctx context.Context, network identity.NetworkID, name string) error
	// ClaimName takes a name on a joined network: confirmed, or pending until the network can be asked. *NameTaken if
	// somebody has it; then nothing changed.
	ClaimName(ctx context.Context, network identity.NetworkID, name string) (NameState, error)
	// Fetch asks for the records of an account, in the background: it is about to be written to.
	Fetch(account identity.AccountID)
}

// FoundName is somebody who has, or claims, a username on a network.
type FoundName struct {
	Account     identity.AccountID
	Name        string
	Network     identity.NetworkID
	NetworkName string
	Confirmed   bool      // stamped by the network
	Since       time.Time // of the stamp, or of the claim
}

// NameSearch is what the networks say about a username.
type NameSearch struct {
	People       []FoundName // of each network the one who has it by the rules first (R19)
	Disagreement bool        // somebody who should know said otherwise
	Unreachable  []string    // names of networks that could not be asked
}

// The states of the own username on a network.
const (
	NameNone        = "none"
	NamePending     = "pending"     // claimed here, nobody who decides was reached yet
	NameConfirmed   = "confirmed"   // stamped
	NameUnconfirmed = "unconfirmed" // claimed on a network where nobody stamps
	NameLost        = "lost"        // somebody else has it
)

// NameState is how the own username stands on a network.
type NameState struct {
	Network     identity.NetworkID
	NetworkName string
	Name        string
	State       string
	Since       time.Time          // of the stamp, or of the claim
	Holder      identity.AccountID // state lost: who has it
}

// NameTaken is the answer of Networks where somebody else has a name.
type NameTaken struct {
	NetworkName string
	Name        string
	Holder      identity.AccountID
	Since       time.Time
}

// Error implements error.
func (e *NameTaken) Error() string {
	return fmt.Sprintf("on %s the name %s belongs to %s", e.NetworkName, e.Name, e.Holder.Short())
}

// Mail is what the messenger needs of the mailboxes. The daemon makes it from delivery.Mail and the vault.
type Mail interface {
	// Custody lists the mailboxes that hold, or held, an own entry for a device.
	Custody(device identity.DeviceID, id feed.FeedID, seq uint64) ([]delivery.Custody, error)
	// SetGrant lets an account keep mail here, up to a quota; 0 takes that back.
	SetGrant(ctx context.Context, account identity.AccountID, quota uint64) (grant [16]byte, err error)
	// PutSnapshot seals a snapshot and leaves it at the mailboxes (R21). ErrNoSeed: this device cannot.
	PutSnapshot(ctx context.Context, plain []byte) error
}

// noNetworks and noMail stand in for parts that a node does not have.
type noNetworks struct{}

func (noNetworks) SearchName(context.Context, string) (NameSearch, error) { return NameSearch{}, nil }

func (noNetworks) Join(context.Context, identity.NetworkLink) (bool, error) {
	return false, refuse(ErrUnavailable, "this node has no networks", "")
}
func (noNetworks) Links() []identity.NetworkLink                               { return nil }
func (noNetworks) NameStates() []NameState                                     { return nil }
func (noNetworks) CheckName(context.Context, identity.NetworkID, string) error { return nil }
func (noNetworks) Fetch(identity.AccountID)                                    {}
func (noNetworks) ClaimName(_ context.Context, network identity.NetworkID, name string) (NameState, error) {
	return NameState{Network: network, Name: name, State: NamePending}, nil
}

type noMail struct{}

func (noMail) Custody(identity.DeviceID, feed.FeedID, uint64) ([]delivery.Custody, error) {
	return nil, nil
}

func (noMail) SetGrant(context.Context, identity.AccountID, uint64) ([16]byte, error) {
	return [16]byte{}, refuse(ErrUnavailable, "this node keeps no mail", "")
}

func (noMail) PutSnapshot(context.Context, []byte) error { return ErrNoSeed }
