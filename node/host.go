package node

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
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
func newHost(c Config, agent string, listen []ma.Multiaddr) (host.Host, error) {
	announce, err := parseAddrs(c.Announce)
	if err != nil {
		return nil, fmt.Errorf("reading announced addresses: %w", err)
	}
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
		libp2p.UserAgent(agent),
		libp2p.ProtocolVersion("hima/1"),
		libp2p.ResourceManager(rm),
		libp2p.ConnectionManager(cm),
		libp2p.AddrsFactory(func(own []ma.Multiaddr) []ma.Multiaddr {
			return append(withoutLoopback(own), announce...)
		}),
		libp2p.SwarmOpts(swarm.WithDialRanker(rankDials)),
		libp2p.WithDialTimeout(dialTimeout),
		libp2p.DisableRelay(),
		libp2p.DisableMetrics(),
		libp2p.Ping(false),
		// On a LAN nobody needs to be told which address of his we see; the observers' bookkeeping is all cost.
		libp2p.DisableIdentifyAddressDiscovery(),
		// Both detectors stop dialling a whole transport after failures, for minutes: right for a node with thousands of
		// peers, wrong for one whose three peers were all switched off overnight.
		libp2p.UDPBlackHoleSuccessCounter(nil),
		libp2p.IPv6BlackHoleSuccessCounter(nil),
	}
	if c.Host != nil {
		opts = append(opts, c.Host.Options...)
		return libp2p.New(opts...)
	}
	// TLS before Noise: bulk data moves at one and a half times the rate for the same CPU. No port reuse: two nodes that
	// dial each other at the same instant from their listening ports meet in a simultaneous open, where both ends think
	// they are the client and no handshake succeeds; and a second node could silently share the port of the first.
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
)

// rankDials puts TCP before QUIC and addresses of the LAN before others. libp2p's own ranker prefers QUIC.
func rankDials(addrs []ma.Multiaddr) []network.AddrDelay {
	var ranked []network.AddrDelay
	var tcps, quics int
	add := func(private bool) {
		for _, a := range addrs {
			if manet.IsPrivateAddr(a) != private {
				continue
			}
			if _, err := a.ValueForProtocol(ma.P_TCP); err == nil {
				ranked = append(ranked, network.AddrDelay{Addr: a, Delay: time.Duration(tcps) * dialStep})
				tcps++
			}
		}
	}
	add(true)
	add(false)
	start := quicDelay
	if tcps == 0 {
		start = 0
	}
	for _, private := range []bool{true, false} {
		for _, a := range addrs {
			if _, err := a.ValueForProtocol(ma.P_TCP); err != nil && manet.IsPrivateAddr(a) == private {
				ranked = append(ranked, network.AddrDelay{Addr: a, Delay: start + time.Duration(quics)*dialStep})
				quics++
			}
		}
	}
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
