package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"hima/identity"
)

// ConnInfo describes one connection.
type ConnInfo struct {
	Addr      string // the other end's multiaddr
	Transport string // "tcp", "quic" or "relay"
	Direct    bool   // not through a relay
	Limited   bool   // through a relay that limits time and bytes
	Outbound  bool   // this node dialled
}

// PeerInfo describes a connected device.
type PeerInfo struct {
	Device    identity.DeviceID
	Addr      string
	Transport string
	Direct    bool // not through a relay
	Limited   bool // through a relay that limits time and bytes
	Since     time.Time
	RTT       time.Duration // 0: not measured yet
}

// peerTable is who is connected. Its lock is never held while calling libp2p's network or a subscriber.
type peerTable struct {
	mu    sync.Mutex
	peers map[identity.DeviceID]*peerState
}

type peerState struct {
	conns   []link   // oldest first
	info    ConnInfo // of the best
	since   time.Time
	rtt     time.Duration
	waiting []chan struct{} // closed when the device dialled us, see dial
}

// link is a connection with its description, which is costly to make again and again: the addresses of a relayed one are
// put together from text.
type link struct {
	conn network.Conn
	info ConnInfo
}

func (l link) closed() bool { return l.conn.IsClosed() }

// live are the connections that are not closed: libp2p tells of a closed one some time after it is.
func (p *peerState) live() []link { return slices.DeleteFunc(slices.Clone(p.conns), link.closed) }

func (t *peerTable) init() { t.peers = map[identity.DeviceID]*peerState{} }

// notifiee keeps the table. libp2p calls it in order for one connection, and concurrently for several.
func (n *Node) notifiee() *network.NotifyBundle {
	return &network.NotifyBundle{
		ConnectedF:    func(_ network.Network, c network.Conn) { n.connected(c) },
		DisconnectedF: func(_ network.Network, c network.Conn) { n.disconnected(c) },
	}
}

func (n *Node) connected(c network.Conn) {
	dev, err := identity.DeviceIDFromPeer(c.RemotePeer())
	if err != nil {
		go c.Close() // not an Ed25519 key: no hima node. Closing here would wait for this very call.
		return
	}
	if c.Stat().Direction == network.DirOutbound {
		n.book.proven(dev, []ma.Multiaddr{c.RemoteMultiaddr()})
	}
	n.lan.here(dev)
	if isRelay(c.RemoteMultiaddr()) {
		defer poke(n.punch.wake)
	}
	t := &n.peers
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers[dev]
	if p == nil {
		p = &peerState{}
		t.peers[dev] = p
	}
	first := len(p.conns) == 0
	if first {
		p.since = time.Now()
	}
	p.conns = append(p.conns, link{c, connInfo(c)})
	// An own dial ends by itself; cancelling it now, as a waiter does, could close the connection it just made.
	if c.Stat().Direction == network.DirInbound {
		for _, w := range p.waiting {
			close(w)
		}
		p.waiting = nil
	}
	if info := best(p.conns).info; first || info != p.info {
		p.info = info
		// Published under the lock, so that ups and downs of a device cannot overtake each other.
		n.hub.publish(PeerUp{dev, info})
	}
}

func (n *Node) disconnected(c network.Conn) {
	dev, err := identity.DeviceIDFromPeer(c.RemotePeer())
	if err != nil {
		return
	}
	// Identify keeps what the device said of itself for some minutes; what the book keeps, stays.
	n.book.proven(dev, n.host.Peerstore().Addrs(c.RemotePeer()))
	t := &n.peers
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers[dev]
	if p == nil {
		return
	}
	i := slices.IndexFunc(p.conns, func(l link) bool { return l.conn == c })
	if i < 0 {
		return
	}
	p.conns = slices.Delete(p.conns, i, i+1)
	n.keeper.lost(dev)
	if len(p.conns) == 0 {
		n.reach.unseen(dev)
		if len(p.waiting) == 0 {
			delete(t.peers, dev)
		}
		n.lan.missing(dev)
		n.hub.publish(PeerDown{dev})
		return
	}
	if info := best(p.conns).info; info != p.info {
		p.info = info
		n.hub.publish(PeerUp{dev, info})
	}
}

// best chooses the connection for new streams: direct before relayed, TCP before QUIC (bulk data is three times as
// fast there), then the oldest, which is the choice that does not change when another of the same kind appears.
func best(links []link) link {
	if len(links) == 0 {
		return link{}
	}
	rank := func(l link) int {
		switch {
		case l.info.Limited:
			return 4
		case !l.info.Direct:
			return 3
		case l.info.Transport == "tcp":
			return 1
		}
		return 2
	}
	return slices.MinFunc(links, func(a, b link) int { return cmp.Compare(rank(a), rank(b)) })
}

func connInfo(c network.Conn) ConnInfo {
	a := c.RemoteMultiaddr()
	i := ConnInfo{Addr: a.String(), Transport: "relay", Limited: c.Stat().Limited, Outbound: c.Stat().Direction == network.DirOutbound}
	if t := transportOf(a); t != "" {
		i.Transport, i.Direct = t, true
	}
	return i
}

// Connected reports whether a device has a connection.
func (n *Node) Connected(dev identity.DeviceID) bool {
	n.peers.mu.Lock()
	defer n.peers.mu.Unlock()
	p := n.peers.peers[dev]
	return p != nil && len(p.live()) > 0
}

// Peers lists the connected devices in the order of their IDs.
func (n *Node) Peers() []PeerInfo {
	n.peers.mu.Lock()
	defer n.peers.mu.Unlock()
	var out []PeerInfo
	for dev, p := range n.peers.peers {
		if len(p.conns) > 0 {
			out = append(out, PeerInfo{
				Device: dev, Addr: p.info.Addr, Transport: p.info.Transport, Direct: p.info.Direct, Limited: p.info.Limited,
				Since: p.since, RTT: p.rtt,
			})
		}
	}
	slices.SortFunc(out, func(a, b PeerInfo) int {
		if a.Device.Less(b.Device) {
			return -1
		}
		return 1
	})
	return out
}

// ObserveRTT lets whoever measures round trips anyway (the pings of a session) tell what it saw.
func (n *Node) ObserveRTT(dev identity.DeviceID, rtt time.Duration) {
	n.peers.mu.Lock()
	defer n.peers.mu.Unlock()
	if p := n.peers.peers[dev]; p != nil && rtt > 0 {
		if p.rtt == 0 {
			p.rtt = rtt
		}
		p.rtt += (rtt - p.rtt) / 4 // smoothed as TCP does, quicker
	}
}

// Connect makes sure that a device is connected. It remembers addrs, which may be empty, and dials every address it
// knows of the device, best kind first, unless it is connected already. A device that connects to this node meanwhile
// counts. libp2p's own back-off after failed dials is cleared: when to try again is the caller's business alone.
func (n *Node) Connect(ctx context.Context, dev identity.DeviceID, addrs []string) error {
	if dev == n.id {
		return ErrSelf
	}
	n.heard(dev, parseKnown(addrs))
	if n.closed() {
		return ErrClosed
	}
	if n.Connected(dev) {
		return nil
	}
	return n.dial(ctx, dev)
}

func (n *Node) dial(ctx context.Context, dev identity.DeviceID) error {
	known := n.keeper.withoutDead(n.known(dev))
	if len(known) == 0 {
		return ErrNoAddress
	}
	up, forget := n.waitUp(dev)
	defer forget()
	p := dev.PeerID()
	// What identify left may be stale and takes the place of what is new: libp2p dials eight addresses at once.
	n.host.Peerstore().ClearAddrs(p)
	n.host.Peerstore().AddAddrs(p, known, peerstore.TempAddrTTL)
	if s, ok := n.host.Network().(*swarm.Swarm); ok {
		s.Backoff().Clear(p)
	}
	ctx, cancel := context.WithTimeout(network.WithAllowLimitedConn(ctx, "hima"), 2*dialTimeout)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := n.host.Network().DialPeer(ctx, p)
		done <- err
	}()
	var err error
	select {
	case err = <-done:
	case <-up:
		cancel()
		<-done
		return nil
	}
	var mismatch sec.ErrPeerIDMismatch
	switch {
	case err == nil, n.Connected(dev):
		return nil
	case n.closed(), errors.Is(err, swarm.ErrSwarmClosed):
		return ErrClosed
	case errors.As(err, &mismatch):
		return fmt.Errorf("%w: %w", ErrWrongDevice, err)
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("dialling: %w", err)
	}
	return fmt.Errorf("%w: %w", ErrUnreachable, err)
}

// waitUp returns a channel that is closed when the device has connected to this node.
func (n *Node) waitUp(dev identity.DeviceID) (<-chan struct{}, func()) {
	t := &n.peers
	t.mu.Lock()
	defer t.mu.Unlock()
	w := make(chan struct{})
	p := t.peers[dev]
	if p == nil {
		p = &peerState{}
		t.peers[dev] = p
	}
	if len(p.live()) > 0 {
		close(w)
		return w, func() {}
	}
	p.waiting = append(p.waiting, w)
	return w, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		p := t.peers[dev]
		if p == nil {
			return
		}
		p.waiting = slices.DeleteFunc(p.waiting, func(x chan struct{}) bool { return x == w })
		if len(p.waiting) == 0 && len(p.conns) == 0 {
			delete(t.peers, dev)
		}
	}
}

// Disconnect closes every connection of a device. A session that finds its peer dead must call it: the connection
// looks alive until TCP gives up, minutes later, and would be used again.
func (n *Node) Disconnect(dev identity.DeviceID) {
	for _, c := range n.conns(dev) {
		if relay, ok := relayOf(c.RemoteMultiaddr()); ok {
			n.keeper.suspect(relay)
		}
		c.Close()
	}
}

// Protect keeps the connections of a device from being closed when there are too many.
func (n *Node) Protect(dev identity.DeviceID, on bool) {
	if on {
		n.host.ConnManager().Protect(dev.PeerID(), "hima")
	} else {
		n.host.ConnManager().Unprotect(dev.PeerID(), "hima")
	}
}

func (n *Node) conns(dev identity.DeviceID) (out []network.Conn) {
	for _, l := range n.links(dev) {
		out = append(out, l.conn)
	}
	return out
}

func (n *Node) links(dev identity.DeviceID) []link {
	n.peers.mu.Lock()
	defer n.peers.mu.Unlock()
	if p := n.peers.peers[dev]; p != nil {
		return p.live()
	}
	return nil
}

// closeStranded closes connections that hang on an address this machine no longer has. TCP would keep them for
// minutes.
func (n *Node) closeStranded() {
	have := map[string]bool{}
	for _, p := range n.ifaces() {
		have[p.Addr().Unmap().String()] = true
	}
	for _, c := range n.host.Network().Conns() {
		ip, err := manet.ToIP(c.LocalMultiaddr())
		if err != nil || ip.IsUnspecified() || ip.IsLoopback() || have[ip.String()] {
			continue
		}
		n.log.Debug("closing a connection over an address that is gone", "addr", ip)
		c.Close()
	}
}
