package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ipfs/go-cid"
	kad "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p-kad-dht/records"
	kb "github.com/libp2p/go-libp2p-kbucket"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-base32"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"hima/identity"
)

const (
	// dhtProviderAge is how long a provider counts after it said so. Whoever goes on providing says so twice as often.
	dhtProviderAge = 24 * time.Hour
	// dhtProviderAddrs is how long nodes remember addresses of providers: long enough to answer a question that follows at
	// once. Who finds a provider without addresses looks for it, and nobody can fill a memory with addresses.
	dhtProviderAddrs = 2 * time.Minute
	// dhtAddrs and dhtAddrBytes bound addresses of a node that are taken from others and told to others.
	dhtAddrs     = 8
	dhtAddrBytes = 160
	// maxProviders is how many providers one search returns.
	maxProviders = 64
)

// Provider is a device that said that it answers for a key.
type Provider struct {
	Device identity.DeviceID
	Addrs  []string // may be none
}

// providing are the options of a DHT that concern providers.
func (d *DHT) providing() []kad.Option {
	return []kad.Option{
		kad.ProviderDatastore(d.providers),
		kad.ProviderManagerOpts(records.ProvideValidity(d.cfg.ProviderAge), records.ProviderAddrTTL(dhtProviderAddrs), records.Cache(noCache{})),
		kad.AddressFilter(fewAddrs),
	}
}

// fewAddrs keeps the addresses of a node that serve strangers best, so that answers with many nodes fit a message.
func fewAddrs(addrs []ma.Multiaddr) []ma.Multiaddr {
	out := slices.DeleteFunc(slices.Clone(addrs), func(a ma.Multiaddr) bool { return len(a) == 0 || len(a.Bytes()) > dhtAddrBytes })
	if len(out) <= dhtAddrs {
		return out
	}
	near := func(a ma.Multiaddr) int {
		if manet.IsPublicAddr(a) {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(out, func(a, b ma.Multiaddr) int { return near(a) - near(b) })
	return out[:dhtAddrs]
}

// providerKey makes a key what kad-dht asks for: the SHA-256 of something.
func providerKey(key [32]byte) cid.Cid {
	return cid.NewCidV1(cid.Raw, append([]byte{0x12, 32}, key[:]...))
}

// Provide tells the nodes closest to a key that this one answers for it. They believe so for a day. ErrAlone: there is
// nobody to be told, and it should be said again when somebody has come.
func (d *DHT) Provide(ctx context.Context, key [32]byte) error {
	if d.isClosed() {
		return ErrClosed
	}
	err := d.kad.Provide(dhtContext(ctx), providerKey(key), true)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, kb.ErrLookupFailure):
		return ErrAlone
	case d.isClosed():
		return ErrClosed
	}
	return fmt.Errorf("providing: %w", err)
}

// Unprovide ends that this node says that it answers for a key. Others that were told forget it within a day; nobody
// should say anything who is asked until then.
func (d *DHT) Unprovide(key [32]byte) {
	text := base32.RawStdEncoding.EncodeToString
	if err := d.providers.forget(joinProvider(text(providerKey(key).Hash()), text([]byte(d.n.id.PeerID())))); err != nil {
		d.n.log.Debug("forgetting to provide", "reason", err)
	}
}

// Providers looks for devices that said that they answer for a key, at most maxProviders, in no order. It returns what was
// found when ctx ends, and once it has found one it does not wait for dead nodes for long. ErrAlone: there is nobody to
// ask.
func (d *DHT) Providers(ctx context.Context, key [32]byte) ([]Provider, error) {
	if d.isClosed() {
		return nil, ErrClosed
	}
	if d.Peers() == 0 {
		return nil, ErrAlone
	}
	ctx, cancel := context.WithCancel(dhtContext(ctx))
	defer cancel()
	start := time.Now()
	found := d.kad.FindProvidersAsync(ctx, providerKey(key), 0)
	defer func() {
		cancel()
		for range found { // it is closed when nothing runs any more
		}
	}()
	var out []Provider
	var patience <-chan time.Time
	for {
		select {
		case info, ok := <-found:
			if !ok {
				return out, ctxErr(ctx, len(out))
			}
			out = addProvider(out, info, d.n.id)
			if len(out) >= maxProviders {
				return out, nil
			}
			if patience == nil && len(out) > 0 {
				t := time.NewTimer(max(dhtPatience, dhtPatienceTimes*time.Since(start)))
				defer t.Stop()
				patience = t.C
			}
		case <-patience:
			return out, nil
		case <-ctx.Done():
			return out, ctxErr(ctx, len(out))
		}
	}
}

// ctxErr is an error only if nothing was found.
func ctxErr(ctx context.Context, found int) error {
	if err := ctx.Err(); err != nil && found == 0 {
		return fmt.Errorf("looking for providers: %w", err)
	}
	return nil
}

func addProvider(out []Provider, info peer.AddrInfo, self identity.DeviceID) []Provider {
	dev, err := identity.DeviceIDFromPeer(info.ID)
	if err != nil || dev == self {
		return out
	}
	p := Provider{dev, addrStrings(dialable(fewAddrs(info.Addrs)))}
	i := slices.IndexFunc(out, func(o Provider) bool { return o.Device == dev })
	if i < 0 {
		return append(out, p)
	}
	if len(out[i].Addrs) == 0 {
		out[i] = p
	}
	return out
}
