package node

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"hima/identity"
)

const (
	// maxAddrs is how many direct addresses are kept and dialled of one device: libp2p dials eight at once, and a ninth,
	// stale one would make the others wait.
	maxAddrs = 8
	// maxRelayAddrs is how many addresses through relays are kept besides. Two of one relay lead the same way.
	maxRelayAddrs = 4
	// maxBook is how many devices the address book of a node holds. What must outlive that, or the process, is kept by
	// the directory.
	maxBook = 1024
)

// book remembers addresses of devices, the least recently touched device forgotten first.
//
// Addresses at which a device proved its key and addresses that were only heard of are kept apart: whoever shouts on
// the LAN under a stranger's device ID may add addresses that do not work, but cannot push out those that do.
type book struct {
	mu    sync.Mutex
	order []identity.DeviceID // oldest first
	pages map[identity.DeviceID]page
}

// page is what is known of one device, newest first.
type page struct {
	proven []ma.Multiaddr // at most maxAddrs/2 direct ones and maxRelayAddrs/2 through relays
	heard  []ma.Multiaddr // the same
}

func newBook() *book { return &book{pages: map[identity.DeviceID]page{}} }

// heard adds addresses that somebody told, and reports whether there was a new one among them.
func (b *book) heard(dev identity.DeviceID, addrs []ma.Multiaddr) bool {
	return b.add(dev, addrs, false)
}

// proven adds addresses that the authenticated device gave itself, or at which it answered.
func (b *book) proven(dev identity.DeviceID, addrs []ma.Multiaddr) { b.add(dev, addrs, true) }

func (b *book) add(dev identity.DeviceID, addrs []ma.Multiaddr, proven bool) (news bool) {
	addrs = dialable(addrs)
	if len(addrs) == 0 {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.pages[dev]
	for _, a := range addrs {
		news = news || !ma.Contains(p.heard, a) && !ma.Contains(p.proven, a)
	}
	if proven {
		p.proven = merge(addrs, p.proven)
	} else {
		p.heard = merge(addrs, p.heard)
	}
	b.pages[dev] = p
	if i := slices.Index(b.order, dev); i >= 0 {
		b.order = slices.Delete(b.order, i, i+1)
	}
	b.order = append(b.order, dev)
	if len(b.order) > maxBook {
		delete(b.pages, b.order[0])
		b.order = slices.Delete(b.order, 0, 1)
	}
	return news
}

func merge(newer, older []ma.Multiaddr) []ma.Multiaddr {
	return atMost(ma.Unique(slices.Concat(newer, older)), maxAddrs/2, maxRelayAddrs/2)
}

// atMost keeps the first direct addresses and the first through relays, the direct ones before the others.
func atMost(addrs []ma.Multiaddr, direct, relayed int) []ma.Multiaddr {
	var out, relays []ma.Multiaddr
	for _, a := range addrs {
		switch {
		case isRelay(a):
			if len(relays) < relayed {
				relays = append(relays, a)
			}
		case len(out) < direct:
			out = append(out, a)
		}
	}
	return append(out, relays...)
}

// get returns what to dial: newest first, what was heard last before what was proven earlier, for a device that moved
// announces its new address before it can prove it.
func (b *book) get(dev identity.DeviceID) []ma.Multiaddr {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.pages[dev]
	out := slices.Clone(p.heard)
	for _, a := range p.proven {
		if !slices.ContainsFunc(out, a.Equal) {
			out = append(out, a)
		}
	}
	return out
}

// dialable keeps the addresses that can be dialled from here: IP with TCP or QUIC, or such an address of a relay; no
// browser transport, no unspecified address, and those of the loopback only if there are no others (two nodes on a
// machine without network). The /p2p/ suffix is cut off. At most maxAddrs and maxRelayAddrs are kept.
func dialable(addrs []ma.Multiaddr) []ma.Multiaddr {
	var out, loop []ma.Multiaddr
	for _, a := range addrs {
		a = bare(a)
		if a == nil {
			continue
		}
		first := a
		if isRelay(a) {
			first = relayBase(a)
		}
		if transportOf(first) == "" || slices.ContainsFunc(out, a.Equal) {
			continue
		}
		ip, err := manet.ToIP(first)
		switch {
		case err != nil || ip.IsUnspecified() || ip.IsMulticast():
		case ip.IsLoopback():
			loop = append(loop, a)
		default:
			out = append(out, a)
		}
	}
	if len(out) == 0 {
		out = loop
	}
	return atMost(out, maxAddrs, maxRelayAddrs)
}

// isRelay reports whether an address leads through a relay.
func isRelay(a ma.Multiaddr) bool {
	for _, c := range a {
		if c.Protocol().Code == ma.P_CIRCUIT {
			return true
		}
	}
	return false
}

// relayBase is the relay's own address in an address through it, nil if it does not say which relay.
func relayBase(a ma.Multiaddr) ma.Multiaddr {
	base, rest := ma.SplitFunc(a, func(c ma.Component) bool { return c.Protocol().Code == ma.P_CIRCUIT })
	if len(rest) != 1 {
		return nil
	}
	base, id := peer.SplitAddr(base)
	if id == "" {
		return nil
	}
	return base
}

// relayOf is the relay that an address leads through.
func relayOf(a ma.Multiaddr) (identity.DeviceID, bool) {
	if !isRelay(a) {
		return identity.DeviceID{}, false // taking an address apart costs microseconds, and every dial asks for each
	}
	base, _ := ma.SplitFunc(a, func(c ma.Component) bool { return c.Protocol().Code == ma.P_CIRCUIT })
	_, id := peer.SplitAddr(base)
	dev, err := identity.DeviceIDFromPeer(id)
	return dev, err == nil
}

// withoutLoopback drops loopback addresses unless they are all there is.
func withoutLoopback(addrs []ma.Multiaddr) []ma.Multiaddr {
	out := make([]ma.Multiaddr, 0, len(addrs))
	for _, a := range addrs {
		if !manet.IsIPLoopback(a) {
			out = append(out, a)
		}
	}
	if len(out) == 0 {
		return slices.Clone(addrs)
	}
	return out
}

// bare cuts a final /p2p/… off.
func bare(a ma.Multiaddr) ma.Multiaddr {
	t, id := peer.SplitAddr(a)
	if id == "" {
		return a
	}
	return t
}

// transportOf names the transport of a dialable address, "" for any other.
func transportOf(a ma.Multiaddr) string {
	p := a.Protocols()
	switch {
	case len(p) == 2 && p[1].Code == ma.P_TCP:
		return "tcp"
	case len(p) == 3 && p[1].Code == ma.P_UDP && p[2].Code == ma.P_QUIC_V1:
		return "quic"
	}
	return ""
}

// parseKnown reads addresses that came from outside (an invite, a cache, a peer) and skips what it does not know.
func parseKnown(addrs []string) []ma.Multiaddr {
	var out []ma.Multiaddr
	for _, s := range addrs {
		if len(s) > 256 {
			continue
		}
		if a, err := ma.NewMultiaddr(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}

func addrStrings(addrs []ma.Multiaddr) []string {
	s := make([]string, len(addrs))
	for i, a := range addrs {
		s[i] = a.String()
	}
	return s
}

// machineInterfaces are the addresses of the machine's interfaces that are up and have a carrier.
func machineInterfaces() []netip.Prefix {
	ifs, err := net.Interfaces()
	if err != nil {
		return nil
	}
	var out []netip.Prefix
	for _, i := range ifs {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagRunning == 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				if p, err := netip.ParsePrefix(n.String()); err == nil {
					out = append(out, p)
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int { return strings.Compare(a.String(), b.String()) })
	return out
}

// expand puts the interfaces' addresses in place of unspecified listen addresses. libp2p has the same, with a cache of
// a minute, and so announces addresses that are gone.
func expand(listen []ma.Multiaddr, ifaces []netip.Prefix) []ma.Multiaddr {
	var out []ma.Multiaddr
	for _, l := range listen {
		if !manet.IsIPUnspecified(l) {
			out = append(out, l)
			continue
		}
		first, rest := ma.SplitFirst(l)
		for _, p := range ifaces {
			ip := p.Addr()
			// Link-local IPv6 addresses mean nothing without the interface's name, which is another one on every machine.
			if ip.Is4() != (first.Protocol().Code == ma.P_IP4) || ip.IsLinkLocalUnicast() && ip.Is6() {
				continue
			}
			proto := "/ip4/"
			if ip.Is6() {
				proto = "/ip6/"
			}
			if a, err := ma.NewMultiaddr(proto + ip.String()); err == nil {
				out = append(out, ma.Join(a, rest))
			}
		}
	}
	return withoutLoopback(ma.Unique(out))
}
