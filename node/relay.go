package node

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/pb"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	ma "github.com/multiformats/go-multiaddr"

	"hima/identity"
)

const (
	// maxRelays is how many relays this node has itself reached through: one may fail, and more would only make its
	// records longer.
	maxRelays = 3
	// relayAddrsEach is how many addresses are told of each relay: one for each transport.
	relayAddrsEach = 2
	// reserveTimeout bounds asking for a slot.
	reserveTimeout = 5 * time.Second
	// reserveRetry is when a refused slot is asked for again.
	reserveRetry = 30 * time.Second
	// relayBuffer is how much one circuit copies at a time in each direction.
	relayBuffer = 16 << 10
)

// reservation is a slot at one relay, and when to ask again.
type reservation struct {
	next time.Time
	at   network.Conn // the relay forgets the slot with its last connection
}

// reserve asks a bootstrap node to relay for this node, if it offers that, and renews the slot in good time.
//
// libp2p's autorelay would do that too, but asks for candidates every 30 s at most, waits an hour after a refusal, and
// tells neither the reason nor the relay's limits.
func (n *Node) reserve(ctx context.Context, dev identity.DeviceID, b *boot, conn network.Conn, slot *reservation) {
	if !n.wantsRelays() || time.Now().Before(slot.next) && slot.at == conn {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, reserveTimeout)
	defer cancel()
	if !n.offersRelay(ctx, conn) {
		return // asked again with the next ping: what a peer offers may change
	}
	if !n.keeper.mayReserve(b) {
		return
	}
	r, err := client.Reserve(ctx, n.host, peer.AddrInfo{ID: dev.PeerID()})
	slot.at = conn
	if err != nil {
		slot.next = time.Now().Add(reserveRetry)
		n.log.Debug("no slot at a relay", "device", dev.Short(), "reason", err)
		n.setReserved(dev, b, nil, RelayLimits{}, reserveError(err))
		return
	}
	// Half of what is left, so that one lost answer does not cost the slot.
	slot.next = time.Now().Add(max(time.Until(r.Expiration)/2, time.Minute))
	n.setReserved(dev, b, n.relayAddrs(dev, b, conn), RelayLimits{Duration: r.LimitDuration, Data: r.LimitData}, "")
}

// wantsRelays: a server, and a node whose user announces addresses, is reached directly.
func (n *Node) wantsRelays() bool {
	return n.cfg.Internet && n.cfg.Server == nil && len(n.cfg.Announce) == 0
}

// offersRelay waits until the peer has told what it speaks.
func (n *Node) offersRelay(ctx context.Context, c network.Conn) bool {
	if !n.identified(ctx, c) {
		return false
	}
	protos, err := n.host.Peerstore().SupportsProtocols(c.RemotePeer(), proto.ProtoIDv2Hop)
	return err == nil && len(protos) > 0
}

// mayReserve keeps the number of relays small.
func (k *keeper) mayReserve(b *boot) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	others := 0
	for _, o := range k.boots {
		if o != b && o.state.Reserved {
			others++
		}
	}
	return others < maxRelays
}

// relayAddrs are the addresses at which this node is reached through a relay.
func (n *Node) relayAddrs(dev identity.DeviceID, b *boot, conn network.Conn) []ma.Multiaddr {
	n.keeper.mu.Lock()
	bases := append([]ma.Multiaddr{bare(conn.RemoteMultiaddr())}, b.addrs...)
	n.keeper.mu.Unlock()
	circuit := ma.StringCast("/p2p/" + dev.String() + "/p2p-circuit")
	var out []ma.Multiaddr
	have := map[string]bool{}
	for _, a := range bases {
		// A name is not passed on: others may not be able to resolve it, and the connection's address is there anyway.
		if t := transportOf(a); t != "" && !have[t] && isIP(a) && len(out) < relayAddrsEach {
			have[t] = true
			out = append(out, a.Encapsulate(circuit))
		}
	}
	return out
}

func (n *Node) setReserved(dev identity.DeviceID, b *boot, addrs []ma.Multiaddr, l RelayLimits, why string) {
	k := &n.keeper
	k.mu.Lock()
	if k.boots[dev] != b || !b.state.Connected {
		k.mu.Unlock()
		return
	}
	b.state.Reserved, b.state.Limits, b.state.Error = len(addrs) > 0, l, why
	b.relays = addrs
	k.mu.Unlock()
	n.addrsChanged()
}

// relayed are this node's addresses through relays, and whether every one of these relays limits its circuits.
func (k *keeper) relayed() (addrs []ma.Multiaddr, limited bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	limited = true
	var states []*boot
	for _, b := range k.boots {
		states = append(states, b)
	}
	slices.SortFunc(states, func(a, b *boot) int { return compareDevices(a.state.Device, b.state.Device) })
	for _, b := range states {
		if len(b.relays) > 0 {
			addrs = append(addrs, b.relays...)
			limited = limited && !b.state.Limits.IsZero()
		}
	}
	return addrs, limited && len(addrs) > 0
}

// reserveError says in a few words why there is no slot.
func reserveError(err error) string {
	var r client.ReservationError
	if errors.As(err, &r) {
		switch r.Status {
		case pb.Status_RESERVATION_REFUSED, pb.Status_RESOURCE_LIMIT_EXCEEDED:
			return "relay has no free slot"
		case pb.Status_PERMISSION_DENIED:
			return "relay does not serve this node"
		}
	}
	return "relay did not answer"
}

// trustWithStreams lets a bootstrap node have many streams to this node: every relayed peer is one of them.
func (n *Node) trustWithStreams(dev identity.DeviceID) {
	l := n.cfg.Limits
	limit := &rcmgr.BaseLimit{
		Streams: l.Streams / 2, StreamsInbound: l.Streams / 4, StreamsOutbound: l.Streams / 4,
		Conns: l.ConnsPerPeer, ConnsInbound: l.ConnsPerPeer, ConnsOutbound: l.ConnsPerPeer, FD: l.ConnsPerPeer,
		Memory: l.Memory / 2,
	}
	err := n.host.Network().ResourceManager().ViewPeer(dev.PeerID(), func(s network.PeerScope) error {
		if s, ok := s.(rcmgr.ResourceScopeLimiter); ok {
			s.SetLimit(limit)
		}
		return nil
	})
	if err != nil {
		n.log.Debug("raising the limits of a bootstrap node", "reason", err)
	}
}

// newRelay makes the serving side. libp2p's own relay manager would wait until AutoNAT has found that this node is
// public, and a lone bootstrap node has nobody to ask.
func newRelay(h host.Host, c ServerConfig, meter *relayMeter) (*relay.Relay, error) {
	res := relay.DefaultResources()
	res.MaxReservations = c.MaxReservations
	res.MaxCircuits = c.MaxCircuits
	res.MaxReservationsPerIP = c.ReservationsPerIP
	res.MaxReservationsPerASN = c.MaxReservations // no limit of its own: a country may have one provider
	res.BufferSize = relayBuffer
	limit := relay.WithInfiniteLimits()
	if l := c.CircuitLimits; !l.IsZero() {
		// libp2p knows either limit only together with the other.
		both := &relay.RelayLimit{Duration: l.Duration, Data: int64(min(l.Data, math.MaxInt64))}
		if both.Duration <= 0 {
			both.Duration = 24 * time.Hour
		}
		if both.Data <= 0 {
			both.Data = math.MaxInt64
		}
		limit = relay.WithLimit(both)
	}
	r, err := relay.New(h, relay.WithResources(res), limit, relay.WithMetricsTracer(meter))
	if err != nil {
		return nil, fmt.Errorf("making relay: %w", err)
	}
	return r, nil
}

// ServerStats are what a bootstrap node does for others.
type ServerStats struct {
	Conns        int    // open connections, of every kind
	Reservations int    // nodes that can be reached through this one
	Circuits     int    // open relayed connections
	RelayedBytes uint64 // carried since the start, both directions
	// Refused counts what was asked of the relay and not granted.
	Refused uint64
}

// ServerStats counts. All but Conns is zero on a user's node.
func (n *Node) ServerStats() ServerStats {
	m := &n.meter
	return ServerStats{
		Conns: len(n.host.Network().Conns()), Reservations: int(m.reservations.Load()), Circuits: int(m.circuits.Load()),
		RelayedBytes: m.bytes.Load(), Refused: m.refused.Load(),
	}
}

// relayMeter counts what the relay tells of itself.
type relayMeter struct {
	reservations, circuits atomic.Int64
	bytes, refused         atomic.Uint64
}

var _ relay.MetricsTracer = (*relayMeter)(nil)

// RelayStatus is of no interest: the relay is always on.
func (m *relayMeter) RelayStatus(bool) {}

// ConnectionOpened counts a circuit.
func (m *relayMeter) ConnectionOpened() { m.circuits.Add(1) }

// ConnectionClosed counts it off.
func (m *relayMeter) ConnectionClosed(time.Duration) { m.circuits.Add(-1) }

// ConnectionRequestHandled counts refusals.
func (m *relayMeter) ConnectionRequestHandled(s pb.Status) { m.answered(s) }

// ReservationAllowed counts a slot, unless it was one already.
func (m *relayMeter) ReservationAllowed(renewal bool) {
	if !renewal {
		m.reservations.Add(1)
	}
}

// ReservationClosed counts slots off.
func (m *relayMeter) ReservationClosed(count int) { m.reservations.Add(int64(-count)) }

// ReservationRequestHandled counts refusals.
func (m *relayMeter) ReservationRequestHandled(s pb.Status) { m.answered(s) }

// BytesTransferred counts bytes.
func (m *relayMeter) BytesTransferred(count int) { m.bytes.Add(uint64(max(count, 0))) }

func (m *relayMeter) answered(s pb.Status) {
	if s != pb.Status_OK {
		m.refused.Add(1)
	}
}
