package node

import (
	"context"
	"errors"
	"slices"
	"time"

	cm "github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"

	"hima/identity"
)

const (
	// idleSweep is how often connections are looked through.
	idleSweep = 30 * time.Second
	// idleAfter is how long a connection without a stream is kept: a look-up comes seldom alone.
	idleAfter = 2 * time.Minute
	// idleKept is how many are kept longer. Each costs 30 bytes a second in signs of life; a DHT's table needs none.
	idleKept = 4
	// dhtDials is how many dials of DHTs may be under way: a look-up has up to twenty, and the limits of connections that
	// are being made have room for others beside them.
	dhtDials = 32
	// dialFresh is how long a new connection without a stream is left alone: whoever dialled opens one at once.
	dialFresh = time.Second
	// dialAgain is how long a dial waits that found no room, and dialRoom how long in all.
	dialAgain = 50 * time.Millisecond
	dialRoom  = 3 * time.Second
)

// dhtHost is the host as a DHT sees it.
//
// It keeps a DHT from protecting the connections of its table: a table outlives its connections, and forty idle ones are
// most of an idle node's traffic.
//
// It makes room before it dials. One look-up makes some forty connections, several may run at a time, and what they leave
// stays open for a while; a node at its limit may dial nobody any more. kad-dht would take those it cannot reach for gone,
// strike them off its table, and find the wrong ones nearest to a key without noticing; and libp2p would not dial them for
// seconds after, although there is room again.
type dhtHost struct {
	host.Host
	n *Node
}

func (dhtHost) ConnManager() cm.ConnManager { return &cm.NullConnMgr{} }

// Connect dials unless it is connected. That there was no room says nothing of the other end: it waits for some.
func (h dhtHost) Connect(ctx context.Context, info peer.AddrInfo) error {
	if c := h.Network().Connectedness(info.ID); c == network.Connected || c == network.Limited {
		return h.Host.Connect(ctx, info)
	}
	select {
	case h.n.dialling <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-h.n.dialling }()
	start := time.Now()
	for {
		h.n.makeRoom()
		err := h.Host.Connect(ctx, info)
		if !errors.Is(err, network.ErrResourceLimitExceeded) {
			return err
		}
		if s, ok := h.Network().(*swarm.Swarm); ok {
			s.Backoff().Clear(info.ID)
		}
		if time.Since(start) > dialRoom {
			return err
		}
		t := time.NewTimer(dialAgain)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
}

// makeRoom closes connections that look-ups made and have done with, those first that were used longest ago, until one more
// leaves half of what there may be to dials of others and to those who dial us.
func (n *Node) makeRoom() {
	conns := n.host.Network().Conns()
	out := 0
	for _, c := range conns {
		if c.Stat().Direction == network.DirOutbound {
			out++
		}
	}
	excess := max(out-n.cfg.Limits.Conns/2, len(conns)-n.cfg.Limits.Conns*7/8) + 1
	if excess <= 0 {
		return
	}
	unused := map[peer.ID]time.Time{}
	protos := map[protocol.ID]bool{}
	for _, d := range n.openDHTs() {
		d.sender.unused(unused)
		protos[d.proto] = true
	}
	type used struct {
		c    network.Conn
		last time.Time
	}
	var idle []used
	for _, c := range conns {
		last := unused[c.RemotePeer()]
		busy := slices.ContainsFunc(c.GetStreams(), func(s network.Stream) bool {
			// Whoever asks us over our connection asks again when it is gone.
			return !protos[s.Protocol()] || s.Stat().Direction == network.DirOutbound && last.IsZero()
		})
		fresh := len(c.GetStreams()) == 0 && time.Since(c.Stat().Opened) < dialFresh
		if c.Stat().Direction == network.DirOutbound && !busy && !fresh && !n.wanted(c) {
			idle = append(idle, used{c, last})
		}
	}
	slices.SortFunc(idle, func(a, b used) int { return a.last.Compare(b.last) })
	for _, u := range idle[:min(len(idle), excess)] {
		u.c.Close()
	}
}

// sweepIdle closes connections that nobody uses until ctx ends. libp2p's connection manager acts on numbers alone, and far
// above those of a person who has some friends online.
func (n *Node) sweepIdle(ctx context.Context) {
	used := map[network.Conn]time.Time{} // when each was last seen with a stream
	t := time.NewTicker(idleSweep)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		for _, c := range n.idle(used, time.Now()) {
			c.Close()
		}
	}
}

// idle lists what to close, and keeps used.
func (n *Node) idle(used map[network.Conn]time.Time, now time.Time) []network.Conn {
	var idle []network.Conn
	seen := map[network.Conn]bool{}
	for _, c := range n.host.Network().Conns() {
		seen[c] = true
		if _, ok := used[c]; !ok || busy(c) || n.wanted(c) {
			used[c] = now
		}
		if now.Sub(used[c]) >= idleAfter {
			idle = append(idle, c)
		}
	}
	for c := range used {
		if !seen[c] {
			delete(used, c)
		}
	}
	slices.SortFunc(idle, func(a, b network.Conn) int { return used[b].Compare(used[a]) })
	return idle[min(len(idle), idleKept):]
}

// busy: somebody uses the connection. Gossip alone is no reason to keep one: whom to be connected with for a group is
// decided by the sessions of its members.
func busy(c network.Conn) bool {
	return slices.ContainsFunc(c.GetStreams(), func(s network.Stream) bool { return s.Protocol() != GossipProtocol })
}

// wanted: the connection is kept for its own sake. Whoever is on our LAN stays connected: it costs nobody's money, and the
// LAN would be searched for who is missing.
func (n *Node) wanted(c network.Conn) bool {
	p := c.RemotePeer()
	dev, err := identity.DeviceIDFromPeer(p)
	return err == nil && (n.keeper.named(dev) || n.host.ConnManager().IsProtected(p, "hima") || n.lan.knows(dev))
}

// knows reports whether a device announced itself on the LAN lately.
func (l *lanState) knows(dev identity.DeviceID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, ok := l.seen[dev]
	return ok && time.Since(at) < announcedFor
}
