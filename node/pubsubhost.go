package node

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"

	"hima/identity"
)

// gossipHost is the node's host as GossipSub sees it: a network in which there is nobody but the peers it may speak with,
// and in which a limited connection is as good as any. GossipSub has no such choice itself: it tells all of its
// subscriptions to every peer that speaks its protocol, and ignores peers behind relays with limits.
type gossipHost struct {
	host.Host
	n       *Node
	allowed func(identity.DeviceID) bool
	gone    func(peer.ID) // the stream of a peer has ended
	bus     event.Bus     // its own: GossipSub hears only of peers that greet told
	tell    event.Emitter

	mu      sync.Mutex
	closed  bool
	streams map[*gossipStream]struct{}
	ended   sync.WaitGroup // inbound handlers; Add under mu while not closed
}

func newGossipHost(n *Node, allowed func(identity.DeviceID) bool, gone func(peer.ID)) (*gossipHost, error) {
	h := &gossipHost{Host: n.host, n: n, allowed: allowed, gone: gone, bus: eventbus.NewBus(), streams: map[*gossipStream]struct{}{}}
	var err error
	if h.tell, err = h.bus.Emitter(new(event.EvtPeerProtocolsUpdated)); err != nil {
		return nil, fmt.Errorf("making pubsub's host: %w", err)
	}
	return h, nil
}

// EventBus implements host.Host.
func (h *gossipHost) EventBus() event.Bus { return h.bus }

// Network implements host.Host.
func (h *gossipHost) Network() network.Network { return gossipNetwork{h.Host.Network(), h} }

// Connect implements host.Host. GossipSub dials nobody: whom to be connected with is decided elsewhere.
func (h *gossipHost) Connect(context.Context, peer.AddrInfo) error {
	return errors.New("pubsub dials nobody")
}

// greet lets GossipSub open a stream to a connected device that it may speak with, if it has none.
func (h *gossipHost) greet(dev identity.DeviceID) {
	if h.allowed(dev) {
		_ = h.tell.Emit(event.EvtPeerProtocolsUpdated{Peer: dev.PeerID(), Added: []protocol.ID{GossipProtocol}})
	}
}

// gossipNetwork is the part of it that GossipSub asks about peers.
type gossipNetwork struct {
	network.Network
	h *gossipHost
}

// Connectedness implements network.Network.
func (w gossipNetwork) Connectedness(p peer.ID) network.Connectedness {
	dev, err := identity.DeviceIDFromPeer(p)
	if err != nil || !w.h.allowed(dev) {
		return network.NotConnected
	}
	c := w.Network.Connectedness(p)
	if c == network.Limited {
		return network.Connected
	}
	return c
}

// NewStream implements host.Host, over the best connection there is.
func (h *gossipHost) NewStream(ctx context.Context, p peer.ID, _ ...protocol.ID) (network.Stream, error) {
	dev, err := identity.DeviceIDFromPeer(p)
	if err != nil {
		return nil, err
	}
	if !h.allowed(dev) {
		return nil, ErrRefused
	}
	ctx, cancel := context.WithTimeout(network.WithAllowLimitedConn(ctx, "hima"), gossipOpen)
	defer cancel()
	c := best(h.n.links(dev)).conn
	if c == nil {
		return nil, ErrUnreachable
	}
	s, err := h.n.openOn(ctx, c, dev, GossipProtocol)
	if err != nil {
		return nil, err
	}
	g, ok := h.keep(s.s, dev)
	if !ok || !h.allowed(dev) { // asked again: it may have changed while drop did not know of this stream
		_ = s.s.Reset()
		return nil, ErrRefused
	}
	return g, nil
}

// SetStreamHandler implements host.Host.
func (h *gossipHost) SetStreamHandler(id protocol.ID, handle network.StreamHandler) {
	h.Host.SetStreamHandler(id, func(s network.Stream) {
		dev, err := identity.DeviceIDFromPeer(s.Conn().RemotePeer())
		if err != nil || !h.n.enter() {
			_ = s.Reset()
			return
		}
		defer h.n.handlers.Done()
		g, ok := h.keep(s, dev)
		if !ok {
			_ = s.Reset()
			return
		}
		if !h.enter() {
			_ = g.Reset()
			return
		}
		defer h.ended.Done()
		defer h.forget(g)
		if !h.allowed(dev) {
			_ = g.Reset()
			return
		}
		// Whoever speaks to us holds us for allowed, perhaps since just now: an earlier stream of ours may have failed.
		h.greet(dev)
		handle(g)
		h.gone(dev.PeerID())
	})
}

func (h *gossipHost) enter() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.ended.Add(1)
	return true
}

// gossipStream is a stream that can be ended from outside.
type gossipStream struct {
	network.Stream
	h   *gossipHost
	dev identity.DeviceID
}

// Close implements network.Stream.
func (s *gossipStream) Close() error {
	s.h.forget(s)
	return s.Stream.Close()
}

// Reset implements network.Stream.
func (s *gossipStream) Reset() error {
	s.h.forget(s)
	return s.Stream.Reset()
}

func (h *gossipHost) keep(s network.Stream, dev identity.DeviceID) (*gossipStream, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, false
	}
	g := &gossipStream{s, h, dev}
	h.streams[g] = struct{}{}
	return g, true
}

func (h *gossipHost) forget(s *gossipStream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.streams, s)
}

// drop resets the streams of devices.
func (h *gossipHost) drop(which func(identity.DeviceID) bool) {
	h.mu.Lock()
	var all []*gossipStream
	for s := range h.streams {
		all = append(all, s)
	}
	h.mu.Unlock()
	for _, s := range all { // which may lock what its owner likes
		if which(s.dev) {
			_ = s.Reset()
		}
	}
}

// close ends everything and waits for the inbound streams.
func (h *gossipHost) close() {
	h.Host.RemoveStreamHandler(GossipProtocol)
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.drop(func(identity.DeviceID) bool { return true })
	h.ended.Wait()
	_ = h.tell.Close()
}
