package nodetest

import (
	"net"
	"net/netip"

	"github.com/marcopolo/simnet"

	"hima/node"
)

// NAT is what stands between a LAN and the rest of the world.
type NAT int

const (
	// Open: nothing. The node has a public address.
	Open NAT = iota
	// Cone shows a machine's socket at one outside port to everybody, and lets in only those it wrote to.
	Cone
	// Symmetric shows it at another outside port to each, and lets in only that one.
	Symmetric
	// Forwarded is Cone, and lets everybody in to the first machine behind it.
	Forwarded
)

func (n NAT) String() string { return [...]string{"open", "cone", "symmetric", "forwarded"}[n] }

// kind is how a node takes part.
type kind int

const (
	local     kind = iota // finds others on its LAN
	remote                // as on a LAN without multicast
	bootstrap             // serves
	plain                 // public, found by nobody, and needs no relay
)

// lan is one network behind one router. The first lan of a world is the Internet itself, where everybody has an address
// of his own and, if local, finds all others there.
type lan struct {
	nat    NAT
	public netip.Addr                         // the router's, unless Open
	size   int                                // machines so far
	out    map[flow]uint16                    // -> outside port; of a cone without far end
	in     map[uint16]netip.AddrPort          // outside port -> inside
	let    map[uint16]map[netip.AddrPort]bool // outside port -> who was written to
}

// flow is what a router tells apart.
type flow struct{ inside, far netip.AddrPort }

// AddBootstrap adds a bootstrap node with a public address. Its relay limits circuits if limits is not zero.
func (w *World) AddBootstrap(limits node.RelayLimits) int {
	w.t.Helper()
	return w.add(&member{kind: bootstrap, lan: w.lans[0], how: node.ServerConfig{Relay: true, CircuitLimits: limits}})
}

// AddPlain adds a node with a public address that keeps at most so many connections: one of the many in a simulation, whose
// cost is their connections.
func (w *World) AddPlain(conns int) int {
	w.t.Helper()
	return w.add(&member{kind: plain, lan: w.lans[0], limits: node.Limits{Conns: conns}})
}

// AddRemote adds a node on a network of its own, behind a router of the given kind; nobody finds it by discovery.
func (w *World) AddRemote(nat NAT) int {
	w.t.Helper()
	m := &member{kind: remote, lan: w.lans[0]}
	if nat != Open {
		m.lan = &lan{nat: nat, public: IP(w.Len()), out: map[flow]uint16{}, in: map[uint16]netip.AddrPort{}, let: map[uint16]map[netip.AddrPort]bool{}}
		w.mu.Lock()
		w.lans = append(w.lans, m.lan)
		w.mu.Unlock()
		w.inside(m)
	}
	return w.add(m)
}

// AddBeside adds a node on the network of node i, which AddRemote made. Multicast says whether it finds, and is found by,
// others there that were added so.
func (w *World) AddBeside(i int, multicast bool) int {
	w.t.Helper()
	w.mu.Lock()
	m := &member{kind: remote, lan: w.nodes[i].lan}
	w.mu.Unlock()
	if multicast {
		m.kind = local
	}
	if m.lan.nat != Open {
		w.inside(m)
	}
	return w.add(m)
}

// inside gives a machine an address on its LAN.
func (w *World) inside(m *member) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m.lan.size++
	n := 0
	for i, l := range w.lans {
		if l == m.lan {
			n = i
		}
	}
	m.ip = netip.AddrFrom4([4]byte{10, byte(n / 250), byte(n % 250), byte(m.lan.size)})
}

// Bootstrap is the i-th node as others name it.
func (w *World) Bootstrap(i int) node.Bootstrap {
	return node.Bootstrap{Device: Key(i).ID(), Addrs: w.Addrs(i)}
}

// Join tells node i its bootstrap nodes.
func (w *World) Join(i int, boots ...int) {
	w.t.Helper()
	var set []node.Bootstrap
	for _, b := range boots {
		set = append(set, w.Bootstrap(b))
	}
	w.Node(i).SetBootstraps(set)
}

func addrOf(a net.Addr) netip.Addr { return portOf(a).Addr() }

func portOf(a net.Addr) netip.AddrPort {
	p := a.(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

// udpAddr is in the long form, by which the simulated network knows its machines.
func udpAddr(p netip.AddrPort) *net.UDPAddr {
	ip := p.Addr().As16()
	return &net.UDPAddr{IP: ip[:], Port: int(p.Port())}
}

// pass takes a packet through the routers on its way, which rewrite its addresses, and says whose it is in the end.
func (w *World) pass(p *simnet.Packet) (to int, ok bool) {
	from, far := portOf(p.From), portOf(p.To)
	sender, ok := w.hosts[from.Addr()]
	if !ok {
		return 0, false
	}
	home := w.nodes[sender].lan
	if far.Addr().IsPrivate() {
		to, ok = w.hosts[far.Addr()]
		return to, ok && w.nodes[to].lan == home
	}
	if home.nat != Open {
		from = home.leave(from, far)
		p.From = udpAddr(from)
	}
	for _, l := range w.lans {
		if l.nat != Open && l.public == far.Addr() {
			inside, ok := l.enter(from, far.Port())
			if !ok || l == home { // no hairpin
				return 0, false
			}
			p.To = udpAddr(inside)
			return w.hosts[inside.Addr()], true
		}
	}
	to, ok = w.hosts[far.Addr()]
	return to, ok
}

// leave gives a packet its outside address.
func (l *lan) leave(inside, far netip.AddrPort) netip.AddrPort {
	f := flow{inside: inside}
	if l.nat == Symmetric {
		f.far = far
	}
	out, ok := l.out[f]
	if !ok {
		out = inside.Port()
		if l.nat == Symmetric {
			out = 20000
		}
		for ; l.in[out].IsValid(); out++ {
		}
		l.out[f] = out
		l.in[out] = inside
		l.let[out] = map[netip.AddrPort]bool{}
	}
	l.let[out][far] = true
	return netip.AddrPortFrom(l.public, out)
}

// enter says for whom a packet to an outside port is.
func (l *lan) enter(from netip.AddrPort, out uint16) (netip.AddrPort, bool) {
	inside, ok := l.in[out]
	if l.nat == Forwarded && out == port && !ok {
		return netip.AddrPort{}, false // nobody has used it yet, and the simulation knows no other owner
	}
	return inside, ok && (l.let[out][from] || l.nat == Forwarded && out == port)
}
