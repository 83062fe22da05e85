package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"hima/identity"
)

const (
	// punchTimeout bounds one attempt of both ends at once. It works within a round trip or two, or not at all; and only the
	// third attempt, in which the ends change roles, gets from a symmetric router to a forwarded port.
	punchTimeout = 1300 * time.Millisecond
	// directTimeout bounds dialling a relayed peer's own addresses.
	directTimeout = 2 * time.Second
	// dearFor is how long a peer counts as dear after the last stream of a hima protocol began.
	dearFor = 10 * time.Minute
	// punchFast tells an attempt that could not begin (the peer was not ready) from one that failed.
	punchFast = time.Second
	// relayIdle is how long a relayed connection without streams may stand beside a direct one.
	relayIdle = time.Minute
	// maxPunches is how many peers are tried at a time.
	maxPunches = 8
)

// punchSoon are the pauses after attempts that could not begin, punchLate after those that failed. A pair behind
// symmetric NATs so comes to rest: one attempt an hour.
func punchSoon() []time.Duration {
	return []time.Duration{500 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 5 * time.Second, 30 * time.Second}
}

func punchLate() []time.Duration {
	return []time.Duration{5 * time.Second, 30 * time.Second, 5 * time.Minute, time.Hour}
}

// puncher turns relayed connections into direct ones.
//
// libp2p's hole punching acts once, when a relayed connection comes in, and only if it knew a public address by then: a
// connection made in a node's first moments would stay relayed for ever. So its service is started here, as soon as
// somebody has told us our address, and asked again for whoever is still relayed. And it acts for everybody, also for a
// node that only asked a question of the DHT, where it costs more than it gains. So only who is dear gets addresses.
type puncher struct {
	wake chan struct{} // one slot: a relayed connection, or a new address

	mu    sync.Mutex
	svc   *holepunch.Service // nil until there is a public address
	tries map[identity.DeviceID]*try
	dear  map[identity.DeviceID]time.Time // who we talk with, since when
}

// try is what was attempted for one relayed peer.
type try struct {
	next       time.Time
	soon, late int // pauses used
	busy       bool
}

func (p *puncher) init() {
	p.wake = make(chan struct{}, 1)
	p.tries = map[identity.DeviceID]*try{}
	p.dear = map[identity.DeviceID]time.Time{}
}

// talks is told that a stream of a hima protocol begins.
func (p *puncher) talks(dev identity.DeviceID) {
	now := time.Now()
	p.mu.Lock()
	news := now.Sub(p.dear[dev]) > dearFor
	p.dear[dev] = now
	if news && len(p.dear) > maxBook {
		for other, at := range p.dear {
			if now.Sub(at) > dearFor {
				delete(p.dear, other)
			}
		}
	}
	p.mu.Unlock()
	if news {
		poke(p.wake)
	}
}

// isDear reports whether a direct connection is worth the effort.
func (n *Node) isDear(dev identity.DeviceID) bool {
	n.punch.mu.Lock()
	at, ok := n.punch.dear[dev]
	n.punch.mu.Unlock()
	if ok && time.Since(at) <= dearFor || n.host.ConnManager().IsProtected(dev.PeerID(), "hima") {
		return true
	}
	// A session may have begun long ago.
	for _, c := range n.conns(dev) {
		for _, s := range c.GetStreams() {
			if p := string(s.Protocol()); strings.HasPrefix(p, "/hima/") && !strings.HasSuffix(p, kadSuffix) {
				return true
			}
		}
	}
	return false
}

// dearOnly tells libp2p's service our addresses for those only with whom we talk; without any it gives up at once.
type dearOnly struct{ n *Node }

// FilterLocal is asked before our addresses are told.
func (d dearOnly) FilterLocal(p peer.ID, addrs []ma.Multiaddr) []ma.Multiaddr {
	if dev, err := identity.DeviceIDFromPeer(p); err == nil && d.n.isDear(dev) {
		return addrs
	}
	return nil
}

// FilterRemote is asked before the other end's addresses are dialled.
func (d dearOnly) FilterRemote(_ peer.ID, addrs []ma.Multiaddr) []ma.Multiaddr { return addrs }

// again forgets what failed: the network changed.
func (p *puncher) again() {
	p.mu.Lock()
	for _, t := range p.tries {
		if !t.busy {
			*t = try{}
		}
	}
	p.mu.Unlock()
	poke(p.wake)
}

// seen is told that a device was found on the LAN, or that a new address of it is known.
func (p *puncher) seen(dev identity.DeviceID) {
	p.mu.Lock()
	t := p.tries[dev]
	if t != nil && !t.busy {
		*t = try{}
	}
	p.mu.Unlock()
	if t != nil {
		poke(p.wake)
	}
}

// runPunch tends the relayed connections until ctx ends.
func (n *Node) runPunch(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer n.stopPunch()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.punch.wake:
		case <-timer.C:
		}
		if err := n.startPunch(); err != nil {
			return err
		}
		due, next := n.duePunches()
		for _, dev := range due {
			wg.Go(func() { n.straighten(ctx, dev) })
		}
		timer.Reset(next)
	}
}

// startPunch makes libp2p's service once there is an address that others can aim at.
func (n *Node) startPunch() error {
	n.punch.mu.Lock()
	defer n.punch.mu.Unlock()
	if n.punch.svc != nil || len(n.publicUDP()) == 0 {
		return nil
	}
	svc, err := holepunch.NewService(n.host, n.reach.ids, n.publicUDP, holepunch.DirectDialTimeout(punchTimeout),
		holepunch.WithAddrFilter(dearOnly{n}))
	if err != nil {
		return fmt.Errorf("starting hole punching: %w", err)
	}
	n.punch.svc = svc
	return nil
}

// stopPunch ends the service. It waits for attempts whose streams have a minute's deadline, so these are reset.
func (n *Node) stopPunch() {
	n.punch.mu.Lock()
	svc := n.punch.svc
	n.punch.svc = nil
	n.punch.mu.Unlock()
	if svc == nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		svc.Close()
	}()
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for {
		n.resetStreams(holepunch.Protocol)
		select {
		case <-done:
			return
		case <-t.C:
		}
	}
}

// resetStreams ends every stream of a protocol: libp2p's services read with deadlines only, not with a context.
func (n *Node) resetStreams(proto protocol.ID) {
	for _, c := range n.host.Network().Conns() {
		for _, s := range c.GetStreams() {
			if s.Protocol() == proto {
				_ = s.Reset()
			}
		}
	}
}

// duePunches lists the relayed peers whose time has come, and says when to look again.
func (n *Node) duePunches() (due []identity.DeviceID, wait time.Duration) {
	relayed, idle := n.relayedPeers()
	now := time.Now()
	wait = time.Hour
	if idle {
		wait = relayIdle / 2
	}
	p := &n.punch
	p.mu.Lock()
	defer p.mu.Unlock()
	for dev := range p.tries {
		if !relayed[dev] && !p.tries[dev].busy {
			delete(p.tries, dev)
		}
	}
	busy := 0
	for dev := range relayed {
		t := p.tries[dev]
		if t == nil {
			t = &try{}
			p.tries[dev] = t
		}
		if t.busy {
			busy++
		}
	}
	for dev := range relayed {
		t := p.tries[dev]
		switch d := t.next.Sub(now); {
		case t.busy:
		case d > 0:
			wait = min(wait, d)
		case busy < maxPunches:
			busy++
			t.busy = true
			due = append(due, dev)
		}
	}
	return due, max(wait, 10*time.Millisecond)
}

// relayedPeers are the dear ones without a direct connection. Relayed connections that stand idle beside a direct one are
// closed, and idle says that some are not old enough yet.
func (n *Node) relayedPeers() (relayed map[identity.DeviceID]bool, idle bool) {
	relayed = map[identity.DeviceID]bool{}
	var spare []network.Conn
	var far []identity.DeviceID
	n.peers.mu.Lock()
	for dev, p := range n.peers.peers {
		live := p.live()
		if l := best(live); l.conn != nil && !l.info.Direct {
			far = append(far, dev)
			continue
		}
		for _, l := range live {
			if !l.info.Direct {
				spare = append(spare, l.conn)
			}
		}
	}
	n.peers.mu.Unlock()
	for _, dev := range far {
		if n.isDear(dev) {
			relayed[dev] = true
		}
	}
	for _, c := range spare {
		if time.Since(c.Stat().Opened) > relayIdle && len(c.GetStreams()) == 0 {
			c.Close()
		} else {
			idle = true
		}
	}
	return relayed, idle
}

// straighten tries once to get a direct connection to a relayed peer.
func (n *Node) straighten(ctx context.Context, dev identity.DeviceID) {
	start := time.Now()
	n.awaitWord(ctx, dev)
	err := n.dialDirect(ctx, dev)
	if err != nil {
		err = n.punchHole(dev)
	}
	p := &n.punch
	p.mu.Lock()
	defer poke(p.wake)
	defer p.mu.Unlock()
	t := p.tries[dev]
	if t == nil {
		return
	}
	t.busy = false
	if err == nil {
		return
	}
	n.log.Debug("still relayed", "device", dev.Short(), "reason", err)
	soon, late := punchSoon(), punchLate()
	if time.Since(start) < punchFast && t.soon < len(soon) {
		t.next = time.Now().Add(soon[t.soon])
		t.soon++
		return
	}
	t.next = time.Now().Add(late[min(t.late, len(late)-1)])
	t.late++
}

// awaitWord waits until a peer has told its addresses: to one that has a public address no hole need be punched.
func (n *Node) awaitWord(ctx context.Context, dev identity.DeviceID) {
	ctx, cancel := context.WithTimeout(ctx, directTimeout)
	defer cancel()
	for _, c := range n.conns(dev) {
		n.identified(ctx, c)
	}
}

var (
	errNoDirect = errors.New("no address for a direct connection is known")
	errNoHole   = errors.New("the other end begins to punch")
)

// dialDirect dials the peer's own addresses: the public ones, and those that lie on a LAN of ours.
func (n *Node) dialDirect(ctx context.Context, dev identity.DeviceID) error {
	var near []ma.Multiaddr
	for _, a := range n.known(dev) {
		if n.nearOrPublic(a) {
			near = append(near, a)
		}
	}
	if len(near) == 0 {
		return errNoDirect
	}
	p := dev.PeerID()
	n.host.Peerstore().AddAddrs(p, near, peerstore.TempAddrTTL)
	if s, ok := n.host.Network().(*swarm.Swarm); ok {
		s.Backoff().Clear(p)
	}
	ctx, cancel := context.WithTimeout(network.WithForceDirectDial(ctx, "hima"), directTimeout)
	defer cancel()
	_, err := n.host.Network().DialPeer(ctx, p)
	return err
}

// nearOrPublic reports whether a direct address may be dialled with hope: it is public, or in the network of one of our
// interfaces.
func (n *Node) nearOrPublic(a ma.Multiaddr) bool {
	ip, ok := addrIP(a)
	return ok && !isRelay(a) && (manet.IsPublicAddr(a) || ip.IsLoopback() ||
		slices.ContainsFunc(n.ifaces(), func(p netip.Prefix) bool { return p.Contains(ip) }))
}

// punchHole asks libp2p's service for another attempt. The end that was called begins it, as its protocol wants.
func (n *Node) punchHole(dev identity.DeviceID) error {
	called := slices.ContainsFunc(n.links(dev), func(l link) bool { return !l.info.Direct && !l.info.Outbound })
	if !called {
		return errNoHole
	}
	n.punch.mu.Lock()
	svc := n.punch.svc
	n.punch.mu.Unlock()
	if svc == nil {
		return errNoDirect
	}
	return svc.DirectConnect(dev.PeerID())
}
