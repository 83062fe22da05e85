package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	kad "github.com/libp2p/go-libp2p-kad-dht"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
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

// tellers is what the context of a search for providers carries: how many nodes named whom. kad-dht would hand on whatever
// comes first, and one liar with a long list would be all that is heard.
type tellers struct {
	mu   sync.Mutex
	told map[peer.ID]int
	info map[peer.ID]peer.AddrInfo
	news chan struct{} // somebody was named; 1 deep
}

type tellersKey struct{}

// heard takes what one node says, as much as an honest one would say.
func (w *tellers) heard(m *pb.Message) {
	all := pb.PBPeersToPeerInfos(m.GetProviderPeers())
	w.mu.Lock()
	defer w.mu.Unlock()
	here := map[peer.ID]bool{}
	for _, p := range all[:min(len(all), dhtProvidersEach)] {
		if here[p.ID] {
			continue
		}
		here[p.ID] = true
		w.told[p.ID]++
		if have := w.info[p.ID]; len(have.Addrs) == 0 {
			w.info[p.ID] = *p
		}
	}
	if len(here) > 0 {
		select {
		case w.news <- struct{}{}:
		default:
		}
	}
}

// best lists who was named, those first whom most nodes named, and of equals any first.
func (w *tellers) best(self identity.DeviceID) []Provider {
	w.mu.Lock()
	defer w.mu.Unlock()
	var ids []peer.ID
	for id := range w.told {
		ids = append(ids, id)
	}
	rand.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	slices.SortStableFunc(ids, func(a, b peer.ID) int { return w.told[b] - w.told[a] })
	var out []Provider
	for _, id := range ids {
		dev, err := identity.DeviceIDFromPeer(id)
		if err == nil && dev != self && len(out) < maxProviders {
			out = append(out, Provider{dev, addrStrings(dialable(fewAddrs(w.info[id].Addrs)))})
		}
	}
	return out
}

// Providers looks for devices that said that they answer for a key, at most maxProviders: those first that most nodes
// know. It returns what was found when ctx ends, and once it has found one it does not wait for dead nodes for long.
// ErrAlone: there is nobody to ask.
func (d *DHT) Providers(ctx context.Context, key [32]byte) ([]Provider, error) {
	if d.isClosed() {
		return nil, ErrClosed
	}
	if d.Peers() == 0 {
		return nil, ErrAlone
	}
	w := &tellers{told: map[peer.ID]int{}, info: map[peer.ID]peer.AddrInfo{}, news: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.WithValue(dhtContext(ctx), tellersKey{}, w))
	defer cancel()
	start := time.Now()
	found := d.kad.FindProvidersAsync(ctx, providerKey(key), 0)
	defer func() {
		cancel()
		for range found { // it is closed when nothing runs any more
		}
	}()
	var own []peer.AddrInfo // of this node's store: kad-dht asks nobody for them
	var patience <-chan time.Time
	for over := false; !over; {
		select {
		case info, ok := <-found:
			if over = !ok; ok && len(own) < dhtProvidersEach {
				own = append(own, info)
			}
		case <-w.news:
			if patience == nil {
				t := time.NewTimer(max(dhtPatience, dhtPatienceTimes*time.Since(start)))
				defer t.Stop()
				patience = t.C
			}
		case <-patience:
			over = true
		case <-ctx.Done():
			over = true
		}
	}
	w.own(own)
	out := w.best(d.n.id)
	return out, ctxErr(ctx, len(out))
}

// own adds whom this node itself knows. What others named came by the same channel and is not counted twice.
func (w *tellers) own(all []peer.AddrInfo) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range all {
		if w.told[p.ID] == 0 {
			w.told[p.ID], w.info[p.ID] = 1, p
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
