package node

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"hima/identity"
)

// Kinds of NAT, as far as others can see it.
const (
	NATUnknown   = "unknown"
	NATNone      = "none"
	NATCone      = "cone"
	NATSymmetric = "symmetric"
)

// maxObservers is how many devices' views of this node are kept.
const maxObservers = 32

// Reachability is how others can reach this node.
type Reachability struct {
	// Online: some bootstrap node answers. False without bootstrap nodes.
	Online bool
	// Public: this node can be dialled from anywhere without a relay: it announces an address, or one of its own was
	// seen to work.
	Public bool
	// NAT is the kind of NAT before this node: NATNone, NATCone, NATSymmetric or NATUnknown. To tell cone from symmetric
	// takes two observers at different addresses.
	NAT string
	// RelayAddrs are the addresses through relays.
	RelayAddrs []string
	// LimitedRelays: every one of these relays limits its circuits.
	LimitedRelays bool
	// Observed are the addresses under which others see this node.
	Observed []string
	// Mapped are addresses that the router forwards, by UPnP or NAT-PMP.
	Mapped []string
}

// reach is what this node knows of how it is seen.
type reach struct {
	ids      identify.IDService
	refresh  event.Emitter // makes libp2p tell peers our addresses anew
	mode     event.Emitter // tells DHTs whether to serve
	observed chan struct{} // one slot: a new view

	mu       sync.Mutex
	views    map[identity.DeviceID]view
	verified []ma.Multiaddr // of our public addresses, those at which somebody reached us
	told     string         // Addrs when they were last told
	limited  bool           // as last told
}

// view is how one device sees this node.
type view struct {
	from netip.Addr   // where that device is
	addr ma.Multiaddr // where it sees us
	udp  bool
	at   time.Time
}

func (r *reach) init() {
	r.observed = make(chan struct{}, 1)
	r.views = map[identity.DeviceID]view{}
}

// attach takes what it needs from the host.
func (r *reach) attach(n *Node) error {
	h, ok := n.host.(interface{ IDService() identify.IDService })
	if !ok {
		return fmt.Errorf("host %T has no identify service", n.host)
	}
	r.ids = h.IDService()
	var err error
	if r.refresh, err = n.host.EventBus().Emitter(new(event.EvtAutoRelayAddrsUpdated)); err != nil {
		return err
	}
	r.mode, err = n.host.EventBus().Emitter(new(event.EvtLocalReachabilityChanged))
	return err
}

func (r *reach) close() {
	r.refresh.Close()
	r.mode.Close()
}

// identified waits until the peer at the other end has told what it speaks and how it sees us.
func (n *Node) identified(ctx context.Context, c network.Conn) bool {
	select {
	case <-n.reach.ids.IdentifyWait(c):
		return !c.IsClosed()
	case <-ctx.Done():
		return false
	}
}

// observe collects what peers say of our address until ctx ends.
func (n *Node) observe(ctx context.Context, sub event.Subscription) {
	defer sub.Close()
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-sub.Out():
			if !ok {
				return
			}
			if e, ok := e.(event.EvtPeerIdentificationCompleted); ok && e.Conn != nil && e.ObservedAddr != nil {
				n.observedBy(e.Conn, e.ObservedAddr)
			}
		}
	}
}

// observedBy notes how a peer sees us, if that can be of use to others: a public address of the socket we listen at.
func (n *Node) observedBy(c network.Conn, at ma.Multiaddr) {
	dev, err := identity.DeviceIDFromPeer(c.RemotePeer())
	if err != nil || isRelay(c.RemoteMultiaddr()) || isRelay(at) || !manet.IsPublicAddr(at) {
		return
	}
	from, ok := addrIP(c.RemoteMultiaddr())
	if !ok {
		return
	}
	v := view{from: from, addr: at, udp: transportOf(at) == "quic", at: time.Now()}
	if v.udp && !n.listensAtPort(c.LocalMultiaddr()) {
		return
	}
	r := &n.reach
	r.mu.Lock()
	if old, ok := r.views[dev]; ok && old.udp && !v.udp {
		r.mu.Unlock()
		return // where UDP comes from is worth more: holes are punched in it
	}
	if _, ok := r.views[dev]; !ok && len(r.views) >= maxObservers {
		r.dropOldest()
	}
	r.views[dev] = v
	r.mu.Unlock()
	n.log.Debug("seen from outside", "by", dev.Short(), "at", at)
	poke(r.observed)
	poke(n.punch.wake)
}

// dropOldest forgets the oldest view. The caller holds mu.
func (r *reach) dropOldest() {
	var oldest identity.DeviceID
	var at time.Time
	for dev, v := range r.views {
		if at.IsZero() || v.at.Before(at) {
			oldest, at = dev, v.at
		}
	}
	delete(r.views, oldest)
}

// unseen forgets the view of a device that is no longer connected.
func (r *reach) unseen(dev identity.DeviceID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.views, dev)
}

// moved forgets everything that was true of another network.
func (r *reach) moved() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.verified = nil
	r.views = map[identity.DeviceID]view{}
}

// working are the public addresses at which somebody reached us.
func (r *reach) working() []ma.Multiaddr {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.verified)
}

// listensAtPort reports whether a connection runs over the UDP socket that we listen at.
func (n *Node) listensAtPort(local ma.Multiaddr) bool {
	port, err := local.ValueForProtocol(ma.P_UDP)
	if err != nil {
		return false
	}
	for _, l := range n.host.Network().ListenAddresses() {
		if p, err := l.ValueForProtocol(ma.P_UDP); err == nil && p == port {
			return true
		}
	}
	return false
}

// publicUDP are the addresses to which others can aim when both ends punch: our own public ones, and where others see
// us. Anybody can claim to see us anywhere; so bootstrap nodes are believed alone, others only in pairs.
func (n *Node) publicUDP() []ma.Multiaddr {
	var out []ma.Multiaddr
	for _, a := range n.direct() {
		if transportOf(a) == "quic" && manet.IsPublicAddr(a) {
			out = append(out, a)
		}
	}
	r := &n.reach
	r.mu.Lock()
	views := maps.Clone(r.views)
	r.mu.Unlock()
	for dev, v := range views {
		if !v.udp || ma.Contains(out, v.addr) {
			continue
		}
		believed := n.keeper.named(dev)
		for other, w := range views {
			believed = believed || other != dev && w.from != v.from && w.addr.Equal(v.addr)
		}
		if believed {
			out = append(out, v.addr)
		}
	}
	return out
}

// Reachability tells how others can reach this node, as known now.
func (n *Node) Reachability() Reachability {
	relays, limited := n.keeper.relayed()
	out := Reachability{RelayAddrs: addrStrings(relays), LimitedRelays: limited, NAT: n.natType()}
	n.keeper.mu.Lock()
	out.Online = n.keeper.online
	n.keeper.mu.Unlock()
	out.Mapped = addrStrings(n.mapped())
	n.reach.mu.Lock()
	defer n.reach.mu.Unlock()
	out.Public = len(n.cfg.Announce) > 0 || len(n.reach.verified) > 0
	for _, v := range n.reach.views {
		if s := v.addr.String(); !slices.Contains(out.Observed, s) {
			out.Observed = append(out.Observed, s)
		}
	}
	slices.Sort(out.Observed)
	return out
}

// natType compares where others see our UDP socket. libp2p has the same as an event, after nine observations and a
// minute, which a small network never gives.
func (n *Node) natType() string {
	own := map[netip.Addr]bool{}
	for _, p := range n.ifaces() {
		own[p.Addr().Unmap()] = true
	}
	n.reach.mu.Lock()
	defer n.reach.mu.Unlock()
	at := map[string]map[netip.Addr]bool{} // seen address -> by whom
	observers := map[netip.Addr]bool{}
	for _, v := range n.reach.views {
		ip, ok := addrIP(v.addr)
		switch {
		case ok && own[ip]:
			return NATNone
		case !ok || !ip.Is4() || !v.udp: // there is no NAT worth the name with IPv6
			continue
		}
		s := v.addr.String()
		if at[s] == nil {
			at[s] = map[netip.Addr]bool{}
		}
		at[s][v.from] = true
		observers[v.from] = true
	}
	switch {
	case len(observers) < 2:
		return NATUnknown
	case len(at) > 1:
		return NATSymmetric
	}
	return NATCone
}

// mapped are the addresses that the router forwards to us: libp2p lists them among its own.
func (n *Node) mapped() []ma.Multiaddr {
	if n.cfg.Host != nil || !n.cfg.Internet {
		return nil
	}
	h, ok := n.host.(interface{ AllAddrs() []ma.Multiaddr })
	if !ok {
		return nil
	}
	own := map[netip.Addr]bool{}
	for _, p := range n.ifaces() {
		own[p.Addr().Unmap()] = true
	}
	announced := n.announced()
	var out []ma.Multiaddr
	for _, a := range h.AllAddrs() {
		ip, ok := addrIP(a)
		if ok && !own[ip] && transportOf(a) != "" && manet.IsPublicAddr(a) && !ma.Contains(announced, a) {
			out = append(out, a)
		}
	}
	return out
}

// addrsChanged tells the rest of the program, our peers and the DHTs, if our addresses changed.
func (n *Node) addrsChanged() {
	now := strings.Join(n.Addrs(), " ")
	_, limited := n.keeper.relayed()
	r := &n.reach
	r.mu.Lock()
	changed, mode := r.told != now, r.limited != limited
	r.told, r.limited = now, limited
	r.mu.Unlock()
	if n.closed() {
		return
	}
	if mode {
		// DHTs in automatic mode serve when "public" and only ask when "private". Nothing else here listens to it.
		state := network.ReachabilityPublic
		if limited {
			state = network.ReachabilityPrivate
		}
		_ = r.mode.Emit(event.EvtLocalReachabilityChanged{Reachability: state})
	}
	if changed {
		// Without addresses of its own: they come from the address factory. The event makes libp2p look at once.
		_ = r.refresh.Emit(event.EvtAutoRelayAddrsUpdated{})
		n.hub.publish(AddrsChanged{})
	}
}

// addrIP is the IP address that a multiaddr begins with.
func addrIP(a ma.Multiaddr) (netip.Addr, bool) {
	ip, err := manet.ToIP(a)
	if err != nil {
		return netip.Addr{}, false
	}
	out, ok := netip.AddrFromSlice(ip)
	return out.Unmap(), ok
}

func isIP(a ma.Multiaddr) bool {
	_, ok := addrIP(a)
	return ok
}
