package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"

	"hima/identity"
)

// Times of the keeper.
const (
	// pingInterval and pingTimeout together say how soon a silent bootstrap node is given up: after 11 s at most.
	pingInterval = 5 * time.Second
	pingTimeout  = 6 * time.Second
	// suspectTimeout is for one that may be gone: the network changed, or a circuit through it fell silent.
	suspectTimeout = 2500 * time.Millisecond
	// keepRetry is the longest pause between two dials of a bootstrap node; the first are shorter. A node whose only way
	// to its friends is that machine may ask it every few seconds.
	keepRetry = 5 * time.Second
	// keepTimeout bounds one dial with all its addresses.
	keepTimeout = dialTimeout + tcpDelay
	// maxBootstraps is how many bootstrap nodes are kept at a time, over all networks.
	maxBootstraps = 32
	// bootstrapTag protects their connections in the connection manager.
	bootstrapTag = "hima-bootstrap"
)

// Bootstrap is a node that the user's networks name: a meeting point that relays, answers for the DHT, or both.
type Bootstrap struct {
	Device identity.DeviceID
	Addrs  []string
}

// BootstrapState is what the keeper knows of one bootstrap node.
type BootstrapState struct {
	Device    identity.DeviceID
	Addrs     []string
	Connected bool
	// RTT of the last ping that was answered; 0: none yet.
	RTT time.Duration
	// Reserved: this node has a slot at it and can be reached through it.
	Reserved bool
	// Since is when Connected became what it is.
	Since time.Time
	// Error says why the last dial or reservation failed; empty while all is well.
	Error string
	// Limits that its relay puts on each circuit. Zero: none, or no reservation yet.
	Limits RelayLimits
}

// RelayLimits are what a relay allows one circuit.
type RelayLimits struct {
	Duration time.Duration
	Data     uint64 // bytes in each direction
}

// IsZero reports whether there are none.
func (l RelayLimits) IsZero() bool { return l == RelayLimits{} }

// keeper holds connections to the bootstrap nodes.
type keeper struct {
	wake chan struct{} // one slot: the set changed

	mu     sync.Mutex
	boots  map[identity.DeviceID]*boot
	online bool
}

// boot is one bootstrap node. Its fields are under keeper.mu.
type boot struct {
	addrs  []ma.Multiaddr // without /p2p
	state  BootstrapState
	poke   chan struct{} // one slot: look at once
	hurry  chan struct{} // one slot: and do not wait long
	doubt  bool          // nothing was heard since somebody asked to hurry
	relays []ma.Multiaddr
}

func (k *keeper) init() {
	k.wake = make(chan struct{}, 1)
	k.boots = map[identity.DeviceID]*boot{}
}

// SetBootstraps replaces the bootstrap nodes. Run connects to them, keeps the connections, and has itself reached
// through them; those that are no longer named are let go. It may be called at any time, also before Run. Addresses
// may name hosts by DNS. At most 32 nodes are kept.
func (n *Node) SetBootstraps(set []Bootstrap) {
	k := &n.keeper
	k.mu.Lock()
	named := map[identity.DeviceID]bool{}
	for _, s := range set {
		addrs := bootstrapAddrs(s.Addrs)
		if s.Device == n.id || s.Device.IsZero() || len(addrs) == 0 || len(named) >= maxBootstraps && !named[s.Device] {
			continue
		}
		b := k.boots[s.Device]
		switch {
		case b == nil:
			b = &boot{poke: make(chan struct{}, 1), hurry: make(chan struct{}, 1), state: BootstrapState{Device: s.Device, Since: time.Now()}}
			k.boots[s.Device] = b
			b.addrs = addrs
		case named[s.Device]: // named twice: both lists hold
			b.addrs = ma.Unique(append(slices.Clone(b.addrs), addrs...))
		case !slices.EqualFunc(b.addrs, addrs, ma.Multiaddr.Equal):
			b.addrs = addrs
			poke(b.poke)
		}
		b.addrs = b.addrs[:min(len(b.addrs), maxAddrs)]
		b.state.Addrs = addrStrings(b.addrs)
		named[s.Device] = true
	}
	for dev := range k.boots {
		if !named[dev] {
			delete(k.boots, dev)
		}
	}
	k.mu.Unlock()
	poke(k.wake)
}

// Bootstraps lists the bootstrap nodes in the order of their IDs.
func (n *Node) Bootstraps() []BootstrapState {
	k := &n.keeper
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make([]BootstrapState, 0, len(k.boots))
	for _, b := range k.boots {
		s := b.state
		s.Addrs = slices.Clone(s.Addrs)
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b BootstrapState) int { return compareDevices(a.Device, b.Device) })
	return out
}

func compareDevices(a, b identity.DeviceID) int {
	switch {
	case a == b:
		return 0
	case a.Less(b):
		return -1
	}
	return 1
}

// poke fills a channel of one slot.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// pokeAll makes every bootstrap node be looked at now: the network changed.
func (k *keeper) pokeAll() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, b := range k.boots {
		poke(b.hurry)
		poke(b.poke)
	}
}

// suspect makes a bootstrap node be asked at once whether it is there: a circuit through it fell silent. Until its
// connection is closed libp2p would wait a minute for it, and all other relays with it.
func (k *keeper) suspect(dev identity.DeviceID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if b := k.boots[dev]; b != nil {
		b.doubt = true
		poke(b.hurry)
		poke(b.poke)
	}
}

// lost is told that a connection of a device ended.
func (k *keeper) lost(dev identity.DeviceID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if b := k.boots[dev]; b != nil {
		poke(b.poke)
	}
}

// withoutDead drops addresses through those of our relays that do not answer, if there are others. libp2p tries one relay
// of a peer at a time, and waits long for one that is gone.
func (k *keeper) withoutDead(addrs []ma.Multiaddr) []ma.Multiaddr {
	k.mu.Lock()
	defer k.mu.Unlock()
	alive := func(a ma.Multiaddr) bool {
		dev, ok := relayOf(a)
		b := k.boots[dev]
		return !ok || b == nil || b.state.Connected && !b.doubt
	}
	if !slices.ContainsFunc(addrs, func(a ma.Multiaddr) bool { return isRelay(a) && alive(a) }) {
		return addrs
	}
	return ma.FilterAddrs(addrs, alive)
}

// named reports whether a device is a bootstrap node.
func (k *keeper) named(dev identity.DeviceID) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.boots[dev] != nil
}

// at reports whether one of the addresses belongs to a bootstrap node.
func (k *keeper) at(addrs []ma.Multiaddr) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, b := range k.boots {
		for _, a := range addrs {
			if slices.ContainsFunc(b.addrs, a.Equal) {
				return true
			}
		}
	}
	return false
}

// keep runs one goroutine per bootstrap node until ctx ends.
func (n *Node) keep(ctx context.Context) {
	k := &n.keeper
	var wg sync.WaitGroup
	defer wg.Wait()
	running := map[*boot]context.CancelFunc{}
	defer func() {
		for _, stop := range running {
			stop()
		}
	}()
	for {
		k.mu.Lock()
		wanted := map[*boot]identity.DeviceID{}
		for dev, b := range k.boots {
			wanted[b] = dev
		}
		k.mu.Unlock()
		for b, stop := range running {
			if _, ok := wanted[b]; !ok {
				stop()
				delete(running, b)
			}
		}
		for b, dev := range wanted {
			if running[b] == nil {
				one, stop := context.WithCancel(ctx)
				running[b] = stop
				wg.Go(func() { n.keepOne(one, dev, b) })
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
		}
	}
}

// keepOne keeps one bootstrap node connected until ctx ends.
func (n *Node) keepOne(ctx context.Context, dev identity.DeviceID, b *boot) {
	defer n.letGo(dev, b)
	wait := keepRetry / 8
	for ctx.Err() == nil {
		conn, err := n.reachBootstrap(ctx, dev, b)
		if err == nil {
			wait = keepRetry / 8
			err = n.tend(ctx, dev, b, conn)
		}
		if ctx.Err() != nil {
			return
		}
		n.setDown(dev, b, err)
		// Jittered, so that not everybody returns to a restarted node in the same instant.
		t := time.NewTimer(wait/2 + rand.N(wait/2))
		select {
		case <-ctx.Done():
		case <-b.poke:
		case <-t.C:
		}
		t.Stop()
		wait = min(2*wait, keepRetry)
	}
}

// letGo forgets a bootstrap node that is no longer named. Its connection stays until it is idle: it may be a friend.
func (n *Node) letGo(dev identity.DeviceID, b *boot) {
	n.host.ConnManager().Unprotect(dev.PeerID(), bootstrapTag)
	n.setDown(dev, b, nil)
}

var errNoInterface = errors.New("no network interface is up")

// reachBootstrap returns a direct connection.
func (n *Node) reachBootstrap(ctx context.Context, dev identity.DeviceID, b *boot) (network.Conn, error) {
	if c := n.directConn(dev); c != nil {
		return c, nil
	}
	if len(n.ifaces()) == 0 {
		return nil, errNoInterface
	}
	n.keeper.mu.Lock()
	addrs := slices.Clone(b.addrs)
	n.keeper.mu.Unlock()
	p := dev.PeerID()
	n.host.Peerstore().AddAddrs(p, addrs, peerstore.TempAddrTTL)
	if s, ok := n.host.Network().(*swarm.Swarm); ok {
		s.Backoff().Clear(p)
	}
	ctx, cancel := context.WithTimeout(network.WithForceDirectDial(ctx, "hima"), keepTimeout)
	defer cancel()
	c, err := n.host.Network().DialPeer(ctx, p)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// directConn is the best connection of a device that leads through no relay, nil if there is none.
func (n *Node) directConn(dev identity.DeviceID) network.Conn {
	if l := best(n.links(dev)); l.conn != nil && l.info.Direct {
		return l.conn
	}
	return nil
}

// tend looks after a live connection and returns when it is dead.
func (n *Node) tend(ctx context.Context, dev identity.DeviceID, b *boot, conn network.Conn) error {
	n.host.ConnManager().Protect(dev.PeerID(), bootstrapTag)
	n.trustWithStreams(dev)
	var line pinger
	defer line.hangUp()
	var slot reservation
	for {
		rtt, err := line.ping(ctx, n, dev, conn, b.hurry)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			n.log.Debug("bootstrap node does not answer", "device", dev.Short(), "reason", err)
			for _, c := range n.conns(dev) {
				c.Close()
			}
			return err
		}
		n.setUp(dev, b, rtt)
		n.reserve(ctx, dev, b, conn, &slot)
		t := time.NewTimer(pingInterval)
		select {
		case <-ctx.Done():
		case <-b.poke:
		case <-t.C:
		}
		t.Stop()
		if conn.IsClosed() {
			if conn = n.directConn(dev); conn == nil {
				return errConnLost
			}
			line.hangUp()
		}
	}
}

var errConnLost = errors.New("connection was lost")

// setUp notes that a bootstrap node answered.
func (n *Node) setUp(dev identity.DeviceID, b *boot, rtt time.Duration) {
	k := &n.keeper
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.boots[dev] != b {
		return
	}
	b.state.RTT, b.doubt = rtt, false
	if b.state.Connected {
		return
	}
	b.state.Connected, b.state.Since, b.state.Error = true, time.Now(), ""
	n.hub.publish(BootstrapUp{dev})
	n.tellOnline()
}

// setDown notes that it does not answer, or that it is let go.
func (n *Node) setDown(dev identity.DeviceID, b *boot, err error) {
	k := &n.keeper
	k.mu.Lock()
	was := b.state.Connected
	b.state.Connected, b.state.Reserved, b.state.Limits = false, false, RelayLimits{}
	if err != nil {
		b.state.Error = shortError(err)
	}
	relayed := len(b.relays) > 0
	b.relays = nil
	if was {
		b.state.Since = time.Now()
		n.hub.publish(BootstrapDown{dev})
	}
	n.tellOnline()
	k.mu.Unlock()
	if relayed {
		n.addrsChanged()
	}
}

// tellOnline publishes whether somebody answers, if that changed. The caller holds keeper.mu.
func (n *Node) tellOnline() {
	online := false
	for _, b := range n.keeper.boots {
		online = online || b.state.Connected
	}
	if online != n.keeper.online {
		n.keeper.online = online
		n.log.Info("the Internet", "online", online)
		n.hub.publish(OnlineChanged{online})
	}
}

// shortError is the end of an error's story: libp2p lists every address it tried.
func shortError(err error) string {
	var dial *swarm.DialError
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return "no answer in time"
	case errors.As(err, &dial) && len(dial.DialErrors) > 0:
		err = dial.DialErrors[len(dial.DialErrors)-1].Cause
	}
	s := fmt.Sprint(err)
	return s[:min(len(s), 200)]
}

// bootstrapAddrs keeps the addresses that can lead to a bootstrap node: TCP or QUIC over an IP address or a DNS name.
func bootstrapAddrs(addrs []string) []ma.Multiaddr {
	var out []ma.Multiaddr
	for _, a := range parseKnown(addrs) {
		if _, id := peer.SplitAddr(a); id != "" {
			a = bare(a)
		}
		if a == nil || transportOf(a) == "" || slices.ContainsFunc(out, a.Equal) {
			continue
		}
		switch a[0].Protocol().Code {
		case ma.P_DNS, ma.P_DNS4, ma.P_DNS6, ma.P_IP4, ma.P_IP6:
			out = append(out, a)
		}
	}
	return out[:min(len(out), maxAddrs)]
}
