package nodetest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/x/simlibp2p"
	"github.com/marcopolo/simnet"

	"hima/identity"
	"hima/node"
)

// Key is the device key of the i-th node, the same in every run.
func Key(i int) identity.DeviceKey {
	return identity.DeviceKeyFromSeed(sha256.Sum256(fmt.Appendf(nil, "nodetest device %d", i)))
}

// DefaultDelay is how long a packet travels one way unless Delay says otherwise: a LAN with a busy access point.
const DefaultDelay = 2 * time.Millisecond

// udpHeader is what UDP and IPv4 add to a packet.
const udpHeader = 28

// port is where every simulated node listens; they differ in their IP addresses.
const port = 8000

// World is a simulated network with its nodes.
type World struct {
	t   testing.TB
	net *simnet.Simnet

	mu     sync.Mutex
	nodes  []*member
	hosts  map[netip.Addr]int // the address of a machine -> its index
	lans   []*lan
	links  map[link]state
	normal time.Duration
}

type member struct {
	node *node.Node // nil while stopped
	stop func()
	ip   netip.Addr
	lan  *lan
	kind kind
	how  node.ServerConfig // of a bootstrap node
	// carried counts the bytes of its packets, both directions.
	carried uint64

	limits node.Limits
	// found is set while the node's discovery runs.
	found func(identity.DeviceID, []string)
}

// link is a pair of nodes, the smaller index first.
type link struct{ a, b int }

type state struct {
	cut   bool
	delay time.Duration // 0: normal
}

func pair(a, b int) link { return link{min(a, b), max(a, b)} }

// New makes n running nodes on a new network. Call it inside a synctest bubble.
func New(t testing.TB, n int) *World {
	t.Helper()
	w := &World{t: t, links: map[link]state{}, hosts: map[netip.Addr]int{}, normal: DefaultDelay}
	w.lans = []*lan{{nat: Open}}
	// The network tells of every packet it cannot deliver, which is what a cut link is.
	w.net = &simnet.Simnet{LatencyFunc: w.route, Logger: slog.New(slog.DiscardHandler)}
	w.net.Start()
	t.Cleanup(func() {
		for i := range w.nodes {
			w.Stop(i)
		}
		w.net.Close()
	})
	for range n {
		w.Add()
	}
	return w
}

// IP is the address of the i-th node: each in a /16 of its own, for limits count by network.
func IP(i int) netip.Addr { return netip.AddrFrom4([4]byte{11 + byte(i/250), byte(i % 250), 0, 1}) }

// route is asked by the simulated network for the delay of each packet. A packet over a cut link is sent to nowhere, and
// so is one that a router does not let through.
func (w *World) route(p *simnet.Packet) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	from, ok := w.hosts[addrOf(p.From)]
	to, there := w.pass(p)
	s := w.links[pair(from, to)]
	if ok {
		w.nodes[from].carried += size(p)
	}
	if ok && there && !s.cut {
		w.nodes[to].carried += size(p)
	} else {
		p.To = &net.UDPAddr{IP: net.IPv4(203, 0, 113, 1), Port: 9}
	}
	if s.delay > 0 {
		return s.delay
	}
	return w.normal
}

// size is how long a packet is on the wire. The simulated network does not show what is in it.
func size(p *simnet.Packet) uint64 {
	return uint64(reflect.ValueOf(p).Elem().FieldByName("buf").Len()) + udpHeader
}

// Add makes and starts one more node on the LAN of all and returns its index.
func (w *World) Add() int {
	w.t.Helper()
	return w.add(&member{kind: local, lan: w.lans[0]})
}

func (w *World) add(m *member) int {
	w.t.Helper()
	w.mu.Lock()
	i := len(w.nodes)
	if !m.ip.IsValid() {
		m.ip = IP(i)
	}
	w.nodes = append(w.nodes, m)
	w.hosts[m.ip] = i
	w.mu.Unlock()
	w.Start(i)
	return i
}

// Start starts a stopped node again, with the key and address it had.
func (w *World) Start(i int) *node.Node {
	w.t.Helper()
	w.mu.Lock()
	m := w.nodes[i]
	if m.node != nil {
		w.mu.Unlock()
		w.t.Fatalf("node %d runs already", i)
	}
	n, err := node.New(w.config(i, m))
	if err != nil {
		w.mu.Unlock()
		w.t.Fatalf("making node %d: %v", i, err)
	}
	m.node = n
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	m.stop = func() {
		cancel()
		<-done
		n.Close()
	}
	w.mu.Unlock()
	go func() {
		defer close(done)
		_ = n.Run(ctx)
	}()
	return n
}

// config is what the i-th node is made with.
func (w *World) config(i int, m *member) node.Config {
	speed := simnet.LinkSettings{BitsPerSecond: 100 * simlibp2p.OneMbps, FlowBucketCount: 8}
	bits := 16
	if m.ip.IsPrivate() {
		bits = 24
	}
	c := node.Config{
		Key:      Key(i),
		Listen:   []string{fmt.Sprintf("/ip4/%s/udp/%d/quic-v1", m.ip, port)},
		Internet: m.kind != plain,
		Limits:   m.limits,
		MDNS:     m.kind == local,
		Host: &node.Simulation{
			Options: []libp2p.Option{
				libp2p.Transport(quic.NewTransport),
				simlibp2p.QUICSimnet(w.net, simnet.NodeBiDiLinkSettings{Downlink: speed, Uplink: speed}),
			},
			Interfaces: func() []netip.Prefix { return []netip.Prefix{netip.PrefixFrom(m.ip, bits)} },
			Discover: func(ctx context.Context, _ identity.DeviceID, _ []string, found func(identity.DeviceID, []string)) error {
				w.discover(ctx, i, found)
				return nil
			},
		},
	}
	if m.kind == bootstrap {
		how := m.how
		c.Internet, c.Server = false, &how
	}
	return c
}

// Stop closes a node in good order. A stopped one stays stopped.
func (w *World) Stop(i int) {
	w.mu.Lock()
	m := w.nodes[i]
	stop := m.stop
	m.node, m.stop = nil, nil
	w.mu.Unlock()
	if stop != nil {
		stop()
	}
}

// Node is the i-th node, nil while it is stopped.
func (w *World) Node(i int) *node.Node {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.nodes[i].node
}

// Carried is how many bytes the i-th node has sent and received so far, headers of UDP and IPv4 included.
func (w *World) Carried(i int) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.nodes[i].carried
}

// Len is how many nodes there are.
func (w *World) Len() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.nodes)
}

// Addrs is where the i-th node can be dialled on its own network. What others need is told by its Node.
func (w *World) Addrs(i int) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return []string{fmt.Sprintf("/ip4/%s/udp/%d/quic-v1", w.nodes[i].ip, port)}
}

// Connect lets a dial b.
func (w *World) Connect(a, b int) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := w.Node(a).Connect(ctx, Key(b).ID(), w.Addrs(b)); err != nil {
		w.t.Fatalf("connecting %d to %d: %v", a, b, err)
	}
}

// Cut makes every packet between a and b vanish; neither end is told.
func (w *World) Cut(a, b int) { w.set(a, b, func(s *state) { s.cut = true }) }

// Heal undoes Cut, and the two find each other on the LAN anew.
func (w *World) Heal(a, b int) {
	w.set(a, b, func(s *state) { s.cut = false })
	w.announce(a, b)
	w.announce(b, a)
}

// Isolate cuts a node off from all others.
func (w *World) Isolate(i int) {
	for j := range w.Len() {
		if j != i {
			w.Cut(i, j)
		}
	}
}

// Rejoin undoes Isolate.
func (w *World) Rejoin(i int) {
	for j := range w.Len() {
		if j != i {
			w.Heal(i, j)
		}
	}
}

// Delay sets how long packets between a and b travel one way. 0: as all others.
func (w *World) Delay(a, b int, d time.Duration) { w.set(a, b, func(s *state) { s.delay = d }) }

// DelayAll sets how long packets travel one way where Delay said nothing.
func (w *World) DelayAll(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.normal = d
}

func (w *World) set(a, b int, f func(*state)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.links[pair(a, b)]
	f(&s)
	w.links[pair(a, b)] = s
}

// discover is mDNS on the simulated LAN: a newcomer is found by all and finds all.
func (w *World) discover(ctx context.Context, i int, found func(identity.DeviceID, []string)) {
	w.mu.Lock()
	w.nodes[i].found = found
	n := len(w.nodes)
	w.mu.Unlock()
	for j := range n {
		if j != i {
			w.announce(i, j)
			w.announce(j, i)
		}
	}
	<-ctx.Done()
	w.mu.Lock()
	w.nodes[i].found = nil
	w.mu.Unlock()
}

// announce lets `to` find `from` if both are on the LAN and the link is whole.
func (w *World) announce(from, to int) {
	w.mu.Lock()
	tell := w.nodes[to].found
	if w.nodes[from].found == nil || w.nodes[from].lan != w.nodes[to].lan || w.links[pair(from, to)].cut {
		tell = nil
	}
	w.mu.Unlock()
	if tell != nil {
		tell(Key(from).ID(), w.Addrs(from))
	}
}
