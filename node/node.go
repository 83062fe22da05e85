package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
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
	reach  reach
	punch  puncher
	relay  *relay.Relay // nil: relays for nobody
	meter  relayMeter
	ifaces func() []netip.Prefix
	before []netip.Prefix // what ifaces told when the sockets were opened; a change since then is a change to Run

	dhtMu    sync.Mutex
	dhts     []*DHT        // open ones; nil after Close
	dialling chan struct{} // a place for each dial of a DHT under way

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
	n := &Node{
		cfg: c, log: c.Logger, id: c.Key.ID(), book: newBook(), closing: make(chan struct{}), ifaces: machineInterfaces,
		dialling: make(chan struct{}, dhtDials),
	}
	n.hub.subs = map[*subscriber]struct{}{}
	n.peers.init()
	n.lan.init()
	n.keeper.init()
	n.reach.init()
	n.punch.init()
	if c.Host != nil && c.Host.Interfaces != nil {
		n.ifaces = c.Host.Interfaces
	}
	n.before = n.ifaces()
	h, err := n.listen(listen)
	if err != nil {
		return nil, err
	}
	n.host = h
	if err := n.equip(); err != nil {
		h.Close()
		return nil, err
	}
	h.Network().Notify(n.notifiee())
	return n, nil
}

// equip adds to the host what libp2p's own options would start at the wrong moment.
func (n *Node) equip() error {
	if err := n.reach.attach(n); err != nil {
		return fmt.Errorf("attaching to the host: %w", err)
	}
	if s := n.cfg.Server; s != nil && s.Relay {
		r, err := newRelay(n.host, *s, &n.meter)
		if err != nil {
			return err
		}
		n.relay = r
	}
	return nil
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
	h, err := n.newHost(at)
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	if !listensAt(h, at) {
		h.Close()
		return nil, fmt.Errorf("%w: some transport could not listen", ErrPortInUse)
	}
	return h, nil
}

// Run watches the machine's interfaces, announces the node on the LAN and looks for others there, keeps connections to the
// bootstrap nodes, and turns relayed connections into direct ones. It returns when ctx
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
	if n.cfg.Internet || n.cfg.Server != nil {
		if err := n.runInternet(ctx, g); err != nil {
			cancel()
			return errors.Join(err, g.Wait())
		}
	}
	if n.cfg.MDNS {
		g.Go(func() error { n.runLAN(ctx); return nil })
	}
	return g.Wait()
}

// runInternet starts what only nodes on the Internet need. Who listens begins before anybody connects.
func (n *Node) runInternet(ctx context.Context, g *errgroup.Group) error {
	views, err := n.host.EventBus().Subscribe(new(event.EvtPeerIdentificationCompleted))
	if err != nil {
		return fmt.Errorf("listening to identify: %w", err)
	}
	g.Go(func() error { n.observe(ctx, views); return nil })
	if n.cfg.Server == nil {
		if n.cfg.Host == nil && len(n.cfg.Announce) == 0 {
			nat, err := n.newProber()
			if err != nil {
				return err
			}
			g.Go(func() error { n.runProbes(ctx, nat); return nil })
		}
		g.Go(func() error { return n.runPunch(ctx) })
		g.Go(func() error { n.sweepIdle(ctx); return nil })
	}
	g.Go(func() error { n.keep(ctx); return nil })
	return nil
}

// Close ends every stream and connection, waits for running handlers, and frees the sockets. A handler must not call
// it. It may be called several times.
func (n *Node) Close() error {
	n.closeOnce.Do(func() {
		close(n.closing)
		n.handlerMu.Lock()
		n.isClosed = true
		n.handlerMu.Unlock()
		for _, d := range n.takeDHTs() {
			_ = d.Close()
		}
		if n.relay != nil {
			n.relay.Close()
		}
		n.closeErr = n.host.Close()
		n.reach.close()
		n.handlers.Wait()
		n.hub.close()
	})
	return n.closeErr
}

// addDHT notes a DHT for Close; false after it.
func (n *Node) addDHT(d *DHT) bool {
	n.dhtMu.Lock()
	defer n.dhtMu.Unlock()
	if n.closed() {
		return false
	}
	n.dhts = append(n.dhts, d)
	return true
}

func (n *Node) dropDHT(d *DHT) {
	n.dhtMu.Lock()
	defer n.dhtMu.Unlock()
	n.dhts = slices.DeleteFunc(n.dhts, func(o *DHT) bool { return o == d })
}

func (n *Node) openDHTs() []*DHT {
	n.dhtMu.Lock()
	defer n.dhtMu.Unlock()
	return slices.Clone(n.dhts)
}

func (n *Node) takeDHTs() []*DHT {
	n.dhtMu.Lock()
	defer n.dhtMu.Unlock()
	out := n.dhts
	n.dhts = nil
	return out
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

func (n *Node) addrs() []ma.Multiaddr { return ma.Unique(append(n.direct(), n.extraAddrs()...)) }

// direct are the addresses of the interfaces.
func (n *Node) direct() []ma.Multiaddr {
	listen := slices.DeleteFunc(n.host.Network().ListenAddresses(), isRelay)
	return expand(listen, n.ifaces())
}

// extraAddrs are those that lead here from elsewhere: announced, forwarded, seen to work, and through relays.
func (n *Node) extraAddrs() []ma.Multiaddr {
	relays, _ := n.keeper.relayed()
	return slices.Concat(n.announced(), n.reach.working(), relays)
}

// announced are the configured addresses. New has refused what cannot be read.
func (n *Node) announced() []ma.Multiaddr {
	a, _ := parseAddrs(n.cfg.Announce)
	return a
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
func (n *Node) Remember(dev identity.DeviceID, addrs []string) { n.heard(dev, parseKnown(addrs)) }

// heard keeps addresses. A relayed peer with a new one may be reached directly now.
func (n *Node) heard(dev identity.DeviceID, addrs []ma.Multiaddr) {
	if n.book.heard(dev, addrs) {
		n.punch.seen(dev)
	}
}

// Known are the addresses that Connect would dial.
func (n *Node) Known(dev identity.DeviceID) []string { return addrStrings(n.known(dev)) }

func (n *Node) known(dev identity.DeviceID) []ma.Multiaddr {
	if addrs := n.host.Peerstore().Addrs(dev.PeerID()); n.Connected(dev) {
		n.book.proven(dev, addrs)
	}
	return slices.DeleteFunc(n.book.get(dev), func(a ma.Multiaddr) bool {
		relay, ok := relayOf(a)
		return ok && (relay == n.id || relay == dev)
	})
}
