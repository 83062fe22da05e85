package node

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	tls "github.com/libp2p/go-libp2p/p2p/security/tls"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/libp2p/go-libp2p/x/rate"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// newHost makes the libp2p host. Every choice that libp2p would make through a package variable is made here by a
// value, so that several nodes in one process cannot disturb each other.
func (n *Node) newHost(listen []ma.Multiaddr) (host.Host, error) {
	c := n.cfg
	rm, err := resourceManager(c.Limits)
	if err != nil {
		return nil, fmt.Errorf("making limits: %w", err)
	}
	cm, err := connmgr.NewConnManager(c.Limits.Conns/2, c.Limits.Conns*3/4, connmgr.WithGracePeriod(time.Minute))
	if err != nil {
		return nil, fmt.Errorf("making connection manager: %w", err)
	}
	opts := []libp2p.Option{
		libp2p.Identity(c.Key.Libp2p()),
		libp2p.ListenAddrs(listen...),
		libp2p.UserAgent(n.Agent()),
		libp2p.ProtocolVersion("hima/1"),
		libp2p.ResourceManager(rm),
		libp2p.ConnectionManager(cm),
		libp2p.AddrsFactory(func(own []ma.Multiaddr) []ma.Multiaddr {
			own = slices.DeleteFunc(slices.Clone(own), isRelay)
			return ma.Unique(append(withoutLoopback(own), n.extraAddrs()...))
		}),
		libp2p.SwarmOpts(swarm.WithDialRanker(n.rankDials)),
		libp2p.WithDialTimeout(dialTimeout),
		libp2p.DisableMetrics(),
		libp2p.Ping(c.Server != nil),
		// What libp2p would do with the addresses under which others see us needs four observers, or a patched package
		// variable; see reach. On a LAN it is all cost.
		libp2p.DisableIdentifyAddressDiscovery(),
		// Both detectors stop dialling a whole transport after failures, for minutes: right for a node with thousands of
		// peers, wrong for one whose three peers were all switched off overnight.
		libp2p.UDPBlackHoleSuccessCounter(nil),
		libp2p.IPv6BlackHoleSuccessCounter(nil),
		// Keeps AutoNAT v1 from asking around. It is not a claim: autorelay and the relay manager, which would act on it,
		// are not there; addresses come from extraAddrs; DHTs are told by addrsChanged.
		libp2p.ForceReachabilityPublic(),
	}
	opts = append(opts, roleOptions(c)...)
	if c.Host != nil {
		opts = append(opts, c.Host.Options...)
		return libp2p.New(opts...)
	}
	// TLS before Noise: bulk data moves at one and a half times the rate for the same CPU. No port reuse: two nodes that
	// dial each other at the same instant from their listening ports meet in a simultaneous open, where both ends think
	// they are the client and no handshake succeeds; and a second node could silently share the port of the first. So
	// holes are punched with QUIC only, which dials from the port it listens at anyway.
	mux := *yamux.DefaultTransport
	mux.MaxStreamWindowSize = 8 << 20
	opts = append(opts,
		libp2p.Security(tls.ID, tls.New),
		libp2p.Security(noise.ID, noise.New),
		libp2p.Muxer(yamux.ID, &mux),
		libp2p.Transport(tcp.NewTCPTransport, tcp.DisableReuseport(), tcp.WithConnectionTimeout(dialTimeout)),
		libp2p.Transport(quic.NewTransport),
	)
	return libp2p.New(opts...)
}

// roleOptions are those in which servers, users' nodes and nodes for the LAN alone differ. AutoNAT and port mapping open
// sockets of their own, which a simulated network cannot have.
func roleOptions(c Config) []libp2p.Option {
	switch {
	case c.Server != nil:
		opts := []libp2p.Option{libp2p.EnableRelay()}
		if c.Host == nil {
			opts = append(opts, libp2p.EnableAutoNATv2())
		}
		return opts
	case c.Internet:
		opts := []libp2p.Option{libp2p.EnableRelay()}
		if c.Host == nil && len(c.Announce) == 0 {
			opts = append(opts, libp2p.NATPortMap())
		}
		return opts
	}
	return []libp2p.Option{libp2p.DisableRelay()}
}

// resourceManager holds what hostile peers can make the node hold. libp2p's defaults are scaled for servers and, by
// AddProtocolLimit, write to maps shared by the process, so the table is written out.
func resourceManager(l Limits) (network.ResourceManager, error) {
	lim := func(v int) rcmgr.LimitVal { return rcmgr.LimitVal(v) }
	streams := func(in, out int) rcmgr.ResourceLimits {
		return rcmgr.ResourceLimits{
			Streams: lim(in + out), StreamsInbound: lim(in), StreamsOutbound: lim(out),
			Memory: rcmgr.LimitVal64(l.Memory),
		}
	}
	system := streams(l.Streams/2, l.Streams/2)
	system.Conns, system.ConnsInbound, system.ConnsOutbound = lim(l.Conns), lim(l.Conns*3/4), lim(l.Conns*3/4)
	system.FD = lim(l.Conns + 32)
	// Not yet authenticated connections, and streams that have not named their protocol. One peer may have 1/16 of the
	// latter at most, so that one alone cannot keep others from being heard.
	transient := streams(l.StreamsPerPeer*16, l.StreamsPerPeer*16)
	transient.Conns, transient.ConnsInbound, transient.ConnsOutbound = lim(64), lim(32), lim(48)
	transient.FD = lim(64)
	transient.Memory = rcmgr.LimitVal64(l.Memory / 2)
	peer := streams(l.StreamsPerPeer, l.StreamsPerPeer)
	peer.Conns, peer.ConnsInbound, peer.ConnsOutbound = lim(l.ConnsPerPeer), lim(l.ConnsPerPeer), lim(l.ConnsPerPeer)
	peer.FD = lim(l.ConnsPerPeer)
	peer.Memory = rcmgr.LimitVal64(l.MemoryPerPeer)
	conn := rcmgr.ResourceLimits{
		Streams: lim(2 * l.StreamsPerPeer), StreamsInbound: lim(l.StreamsPerPeer),
		StreamsOutbound: lim(l.StreamsPerPeer), Conns: 1, ConnsInbound: 1, ConnsOutbound: 1, FD: 1,
		Memory: rcmgr.LimitVal64(l.MemoryPerPeer),
	}
	stream := streams(1, 1)
	stream.Streams = 1
	limits := rcmgr.PartialLimitConfig{
		System: system, Transient: transient,
		AllowlistedSystem: rcmgr.ResourceLimits{Conns: rcmgr.BlockAllLimit}, AllowlistedTransient: rcmgr.ResourceLimits{Conns: rcmgr.BlockAllLimit},
		ServiceDefault: streams(l.Streams/2, l.Streams/2), ServicePeerDefault: streams(l.StreamsPerPeer, l.StreamsPerPeer),
		ProtocolDefault: streams(l.Streams/2, l.Streams/2), ProtocolPeerDefault: streams(l.StreamsPerPeer, l.StreamsPerPeer),
		PeerDefault: peer, Conn: conn, Stream: stream,
	}.Build(rcmgr.InfiniteLimits)
	loopback4, loopback6 := netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")
	return rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits),
		rcmgr.WithMetricsDisabled(),
		rcmgr.WithLimitPerSubnet(
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: l.ConnsPerIP}},
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 64, ConnCount: l.ConnsPerIP}}),
		// libp2p's default admits one connection in five seconds from one address: a node whose link flaps, or a family
		// behind one router, is then locked out.
		rcmgr.WithConnRateLimiters(&rate.Limiter{
			NetworkPrefixLimits: []rate.PrefixLimit{{Prefix: loopback4}, {Prefix: loopback6}},
			SubnetRateLimiter: rate.SubnetLimiter{
				IPv4SubnetLimits: []rate.SubnetLimit{{PrefixLength: 32, Limit: rate.Limit{RPS: 2, Burst: 2 * l.ConnsPerIP}}},
				IPv6SubnetLimits: []rate.SubnetLimit{{PrefixLength: 64, Limit: rate.Limit{RPS: 2, Burst: 2 * l.ConnsPerIP}}},
				GracePeriod:      time.Minute,
			},
		}),
	)
}

// Delays between dials of one device's addresses.
const (
	// dialStep parts addresses of the same kind: long enough that a LAN address answers before the next is tried, short
	// enough that a stale address first in the list is not felt.
	dialStep = 30 * time.Millisecond
	// quicDelay is how long TCP may take before QUIC is tried too. TCP carries bulk data at three times QUIC's rate for a
	// third of the CPU, and QUIC is there for networks that let only UDP through.
	quicDelay = 300 * time.Millisecond
	// tcpDelay is how long QUIC may take, where it is wanted, before TCP is tried too.
	tcpDelay = time.Second
	// relayDelay is how long direct addresses may take before the relays are tried beside them: an address on another LAN
	// answers nobody, and a first message should not wait for that.
	relayDelay = 350 * time.Millisecond
)

// rankDials puts TCP before QUIC, addresses of the LAN before others, and relays last. libp2p's own ranker prefers QUIC.
// To bootstrap nodes QUIC goes first: only they tell us how our UDP socket is seen from outside.
func (n *Node) rankDials(addrs []ma.Multiaddr) []network.AddrDelay {
	pause := time.Duration(0) // for relays: addresses on somebody else's LAN are not worth waiting for
	if slices.ContainsFunc(addrs, n.nearOrPublic) {
		pause = relayDelay
	}
	return rank(addrs, n.keeper.at(addrs), pause)
}

func rank(addrs []ma.Multiaddr, quicFirst bool, relayPause time.Duration) []network.AddrDelay {
	var tcps, quics, relays []ma.Multiaddr
	for _, private := range []bool{true, false} {
		for _, a := range addrs {
			if isRelay(a) {
				if private {
					relays = append(relays, a)
				}
				continue
			}
			if manet.IsPrivateAddr(a) != private {
				continue
			}
			if _, err := a.ValueForProtocol(ma.P_TCP); err == nil {
				tcps = append(tcps, a)
			} else {
				quics = append(quics, a)
			}
		}
	}
	var ranked []network.AddrDelay
	add := func(addrs []ma.Multiaddr, start time.Duration) {
		for i, a := range addrs {
			ranked = append(ranked, network.AddrDelay{Addr: a, Delay: start + time.Duration(i)*dialStep})
		}
	}
	first, second, pause := tcps, quics, quicDelay
	if quicFirst {
		first, second, pause = quics, tcps, tcpDelay
	}
	if len(first) == 0 {
		pause = 0
	}
	add(first, 0)
	add(second, pause)
	add(relays, relayPause)
	return ranked
}

// defaultListen is TCP and QUIC on every interface.
func defaultListen(port int) []ma.Multiaddr {
	p := strconv.Itoa(port)
	return []ma.Multiaddr{
		ma.StringCast("/ip4/0.0.0.0/tcp/" + p), ma.StringCast("/ip4/0.0.0.0/udp/" + p + "/quic-v1"),
		ma.StringCast("/ip6/::/tcp/" + p), ma.StringCast("/ip6/::/udp/" + p + "/quic-v1"),
	}
}

// freePort finds a port that is free for TCP and UDP. Another program may take it before the host does; New then
// tries again.
func freePort() (int, error) {
	l, err := net.Listen("tcp", ":0") //nolint:noctx // it does not block
	if err != nil {
		return 0, err
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	u, err := net.ListenUDP("udp", &net.UDPAddr{Port: port})
	if err != nil {
		return 0, err
	}
	u.Close()
	return port, nil
}

// probe binds the addresses for a moment to learn whether another program has them. libp2p's own error does not say
// why, and tells the standard error of it besides.
func probe(at []ma.Multiaddr) error {
	for _, a := range at {
		network, host, err := manet.DialArgs(a)
		if err != nil {
			continue // not one that can be bound; listening says so
		}
		var c io.Closer
		if strings.HasPrefix(network, "udp") {
			c, err = net.ListenPacket(network, host) //nolint:noctx // it does not block
		} else {
			c, err = net.Listen(network, host) //nolint:noctx // it does not block
		}
		if errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("%w: %s", ErrPortInUse, a)
		}
		if err == nil {
			c.Close()
		}
	}
	return nil
}

// listensAt reports whether the host listens at every transport that was asked for. libp2p is content if one of
// several listen addresses worked, and a node that silently lost its TCP port would be slow for ever.
func listensAt(h host.Host, want []ma.Multiaddr) bool {
	have := map[string]bool{}
	for _, a := range h.Network().ListenAddresses() {
		have[transportOf(a)] = true
	}
	for _, a := range want {
		if !have[transportOf(a)] {
			return false
		}
	}
	return true
}
