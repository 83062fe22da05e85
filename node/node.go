package node

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/host"
	ma "github.com/multiformats/go-multiaddr"
	"golang.org/x/sync/errgroup"

	"hima/identity"
)

// Node is one device on the network.
type Node struct {
	cfg    Config
	log    *slog.Logger
	id     identity.DeviceID
	host   host.Host
	hub    hub
	book   *book
	peers  peerTable
	lan    lanState
	keeper keeper
	ifaces func() []netip.Prefix

	closing   chan struct{}
	closeOnce sync.Once
	closeErr  error
	handlers  sync.WaitGroup // running stream handlers
	handlerMu sync.Mutex     // orders handlers.Add before Close's Wait
	isClosed  bool           // under handlerMu
	multicast atomic.Bool
}

// New opens the listening sockets. It needs no network: a machine with nothing but a loopback interface, or without
// even that, gets a node that listens and waits. The caller must Close what New returned.
func New(c Config) (*Node, error) {
	c, listen, err := c.check()
	if err != nil {
		return nil, err
	}
	n := &Node{cfg: c, log: c.Logger, id: c.Key.ID(), book: newBook(), closing: make(chan struct{}), ifaces: machineInterfaces}
	n.hub.subs = map[*subscriber]struct{}{}
	n.peers.init()
	n.lan.init()
	if c.Host != nil && c.Host.Interfaces != nil {
		n.ifaces = c.Host.Interfaces
	}
	h, err := n.listen(listen)
	if err != nil {
		return nil, err
	}
	n.host = h
	h.Network().Notify(n.notifiee())
	return n, nil
}

// listen makes the host at the wanted addresses. Without any it takes the configured port or finds a free one.
func (n *Node) listen(at []ma.Multiaddr) (host.Host, error) {
	if len(at) > 0 {
		return n.listenAt(at)
	}
	if n.cfg.Port != 0 {
		return n.listenAt(defaultListen(n.cfg.Port))
	}
	var err error
	for range 8 { // another program can take the port between the look and the bind
		var port int
		if port, err = freePort(); err != nil {
			continue
		}
		var h host.Host
		if h, err = n.listenAt(defaultListen(port)); err == nil {
			return h, nil
		}
	}
	return nil, fmt.Errorf("finding a free port: %w", err)
}

func (n *Node) listenAt(at []ma.Multiaddr) (host.Host, error) {
	if n.cfg.Host == nil {
		if err := probe(at); err != nil {
			return nil, err
		}
	}
	h, err := newHost(n.cfg, n.Agent(), at)
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	if !listensAt(h, at) {
		h.Close()
		return nil, fmt.Errorf("%w: some transport could not listen", ErrPortInUse)
	}
	return h, nil
}

// Run watches the machine's interfaces, announces the node on the LAN and looks for others there. It returns when ctx
// ends or the node closes, after its goroutines ended. It is called once; without it a node can be dialled and dial.
func (n *Node) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		select {
		case <-n.closing:
			cancel()
		case <-ctx.Done():
		}
		return nil
	})
	g.Go(func() error { n.watch(ctx); return nil })
	if n.cfg.MDNS {
		g.Go(func() error { n.runLAN(ctx); return nil })
	}
	return g.Wait()
}

// Close ends every stream and connection, waits for running handlers, and frees the sockets. A handler must not call
// it. It may be called several times.
func (n *Node) Close() error {
	n.closeOnce.Do(func() {
		close(n.closing)
		n.handlerMu.Lock()
		n.isClosed = true
		n.handlerMu.Unlock()
		n.closeErr = n.host.Close()
		n.handlers.Wait()
		n.hub.close()
	})
	return n.closeErr
}

func (n *Node) closed() bool {
	select {
	case <-n.closing:
		return true
	default:
		return false
	}
}

// ID is this node's device.
func (n *Node) ID() identity.DeviceID { return n.id }

// Addrs are the addresses at which this node can be dialled now, loopback only if there is nothing else.
func (n *Node) Addrs() []string { return addrStrings(n.addrs()) }

func (n *Node) addrs() []ma.Multiaddr {
	announce, _ := parseAddrs(n.cfg.Announce) // New has parsed them before
	return append(expand(n.host.Network().ListenAddresses(), n.ifaces()), announce...)
}

// Port is the TCP port the node listens at, 0 if it listens at none.
func (n *Node) Port() int {
	for _, a := range n.host.Network().ListenAddresses() {
		if s, err := a.ValueForProtocol(ma.P_TCP); err == nil {
			if p, err := strconv.Atoi(s); err == nil {
				return p
			}
		}
	}
	return 0
}

// Agent is what identify tells peers about the program, and all it tells.
func (n *Node) Agent() string {
	if n.cfg.Version == "" {
		return "hima"
	}
	return "hima/" + n.cfg.Version
}

// Multicast reports whether nodes on the LAN can be found now. False without MDNS.
func (n *Node) Multicast() bool { return n.multicast.Load() }

// Remember keeps addresses of a device for Connect and Open, before those known. They may come from anywhere.
func (n *Node) Remember(dev identity.DeviceID, addrs []string) { n.book.heard(dev, parseKnown(addrs)) }

// Known are the addresses that Connect would dial.
func (n *Node) Known(dev identity.DeviceID) []string { return addrStrings(n.known(dev)) }

func (n *Node) known(dev identity.DeviceID) []ma.Multiaddr {
	if addrs := n.host.Peerstore().Addrs(dev.PeerID()); n.Connected(dev) {
		n.book.proven(dev, addrs)
	}
	return n.book.get(dev)
}
