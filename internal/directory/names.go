package directory

import (
	"context"
	"errors"
	"fmt"
	"time"

	"hima/identity"
	"hima/node"
)

// States of the own name on a network.
const (
	NameNone        = "none"        // none is claimed
	NamePending     = "pending"     // claimed here; no register was reached yet
	NameConfirmed   = "confirmed"   // stamped by the network
	NameUnconfirmed = "unconfirmed" // claimed; the network has nobody who stamps
	NameLost        = "lost"        // somebody else has it
)

// NameState is how the own name stands on a network.
type NameState struct {
	Network identity.NetworkID
	Name    string
	State   string
	Since   time.Time          // when it was stamped; while it is not, when it was claimed
	Holder  identity.AccountID // who has it, if it is lost
}

// NameEvent says that the own name on a network changed its state.
type NameEvent struct {
	NameState
	NetworkName string
}

// ErrNameTaken is wrapped by every *NameTakenError.
var ErrNameTaken = errors.New("name is taken")

// ErrBadName is returned for a name that is no username in its canonical form.
var ErrBadName = errors.New("not a username in its canonical form")

// ErrNoAccountKey is returned by ClaimName on a device that cannot sign for its account (R17).
var ErrNoAccountKey = errors.New("this device cannot sign for its account")

// NameTakenError says who has a name, and since when.
type NameTakenError struct {
	Network identity.NetworkID
	Name    string
	Holder  identity.AccountID
	Since   time.Time
}

// Error implements error.
func (e *NameTakenError) Error() string {
	return fmt.Sprintf("%v: by %s since %s", ErrNameTaken, e.Holder.Short(), e.Since.UTC().Format(time.DateOnly))
}

// Unwrap makes errors.Is(err, ErrNameTaken) true.
func (e *NameTakenError) Unwrap() error { return ErrNameTaken }

// ClaimName takes a name on a joined network: stamped at once if a register answers (confirmed), else pending, which Run
// completes; a *NameTakenError if somebody has it, and then nothing changed. Claiming another name replaces the one
// before, which stays registered to this account.
func (d *Directory) ClaimName(ctx context.Context, network identity.NetworkID, name string) (NameState, error) {
	return NameState{}, ErrNetworkUnknown
}

// CheckName asks the registers of a network, which need not be joined, whether an account could take a name. self may
// be zero. nil: free, or self's own; *NameTakenError; ErrUnreachable: nobody can say now. It needs a node and nothing
// else, so that a name can be looked at before anything is made.
func CheckName(ctx context.Context, n *node.Node, link identity.NetworkLink, name string, self identity.AccountID) error {
	return ErrUnreachable
}

// FoundName is somebody who has or claims a name on a network.
type FoundName struct {
	Account     identity.AccountID
	Name        string
	Network     identity.NetworkID
	NetworkName string
	Confirmed   bool      // stamped by the network
	Since       time.Time // of the stamp, or of the claim
}

// SearchResult is what a search for a name brought: of each network the one who has the name first.
type SearchResult struct {
	People []FoundName
	// Disagreement: on some network several accounts were named with equal right, or those who should know contradict
	// each other. The first of the network is who wins by the rules (R19), and the user should look at the ID.
	Disagreement bool
	// Unreachable are the names of networks where nobody who decides could be asked.
	Unreachable []string
}

// SearchName looks for a username on every joined network.
func (d *Directory) SearchName(ctx context.Context, name string) (SearchResult, error) {
	return SearchResult{}, ErrNoNetwork
}
