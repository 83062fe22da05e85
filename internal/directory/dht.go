package directory

import (
	"context"
	"time"

	"hima/identity"
	"hima/node"
)

// dht is what this package asks of the table of one network: *node.DHT, or a fake in tests.
type dht interface {
	Run(ctx context.Context) error
	Put(ctx context.Context, key string, value []byte) error
	Get(ctx context.Context, key string) ([]byte, error)
	Ask(ctx context.Context, key string) ([]node.DHTAnswer, error)
	FindPeer(ctx context.Context, dev identity.DeviceID) ([]string, error)
	Provide(ctx context.Context, key [32]byte) error
	Unprovide(key [32]byte)
	Providers(ctx context.Context, key [32]byte) ([]node.Provider, error)
	Peers() int
	Close() error
}

// TableConfig is what every node of a network must agree on: the table's protocol, and which records are good. keys are
// the bootstrap nodes whose stamps count; it is called for every record that is judged.
func TableConfig(network identity.NetworkID, keys func() []identity.DeviceID, now func() time.Time) node.DHTConfig {
	return node.DHTConfig{Prefix: "/hima/" + network.String(), Validators: identity.Validators(network, keys, now)}
}
