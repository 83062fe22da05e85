package node

import (
	"context"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"hima/identity"
)

const (
	// idleSweep is how often connections are looked through.
	idleSweep = 30 * time.Second
	// idleAfter is how long a connection without a stream is kept: a look-up comes seldom alone.
	idleAfter = 2 * time.Minute
	// idleKept is how many are kept longer. Each costs 30 bytes a second in signs of life; a DHT's table needs none.
	idleKept = 4
	// lookedAfter is how old a connection is that a look-up made and has done with: whoever dials for another reason opens
	// a stream at once.
	lookedAfter = time.Second
)

// makeRoom closes connections that earlier look-ups left, when all together are a third of what there may be. One look-up
// makes some forty; a node that may dial nobody any more takes whom it cannot reach for gone, strikes them off its table,
// and finds the wrong ones nearest to a key without noticing.
func (n *Node) makeRoom() {
	conns := n.host.Network().Conns()
	if len(conns) < n.cfg.Limits.Conns/3 {
		return
	}
	for _, d := range n.openDHTs() {
		d.sender.dropIdle(0)
	}
	now := time.Now()
	for _, c := range conns {
		st := c.Stat()
		if st.Direction == network.DirOutbound && now.Sub(st.Opened) > lookedAfter && !busy(c) && !n.wanted(c) {
			c.Close()
		}
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
