package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/libp2p/go-libp2p"
	ma "github.com/multiformats/go-multiaddr"

	"hima/identity"
)

// Errors that callers may test for.
var (
	// ErrClosed is returned by every call after Close.
	ErrClosed = errors.New("node is closed")
	// ErrPortInUse is returned by New when the wanted port belongs to another program, or to another hima.
	ErrPortInUse = errors.New("port is in use")
	// ErrNoAddress is returned by Connect and Open when no address of the device is known.
	ErrNoAddress = errors.New("no address of this device is known")
	// ErrUnreachable is returned by Connect and Open when no known address of the device answered.
	ErrUnreachable = errors.New("device did not answer at any known address")
	// ErrWrongDevice is returned by Connect when an address answered with the key of another device.
	ErrWrongDevice = errors.New("another device answered at this address")
	// ErrNotSpoken is returned by Open when the device does not speak the protocol.
	ErrNotSpoken = errors.New("device does not speak this protocol")
	// ErrRefused is returned by Open when the device has too many streams of this node already.
	ErrRefused = errors.New("device refused the stream")
	// ErrSelf is returned by Connect and Open when the device is this node.
	ErrSelf = errors.New("device is this node")
)

// Config says how a node is made. Only Key is required.
type Config struct {
	Key identity.DeviceKey

	// Listen are the multiaddrs to listen at. Empty: TCP and QUIC on every interface at Port.
	Listen []string
	// Announce are addresses that are told to others beside those found on the interfaces, e.g. a forwarded port.
	Announce []string
	// Port is for TCP and UDP alike. 0: a free one, which Port() then tells, so that it can be kept.
	Port int

	// Internet makes the node ready for the Internet: it can be reached through relays, punches holes, and asks the
	// router to forward its port. It stays quiet until SetBootstraps names somebody. False: a node for the LAN alone.
	Internet bool
	// Server makes the node a meeting point for others, which must be reachable from anywhere. Nil: a user's node.
	Server *ServerConfig

	// MDNS makes the node announce itself on the LAN and look for others. False: neither.
	MDNS bool

	// Version is told to peers as the agent "hima/<version>". Empty: "hima".
	Version string

	// Logger is where the node writes; nil: nowhere.
	Logger *slog.Logger

	// Limits; every zero field gets its default.
	Limits Limits

	// Host puts the node on a simulated network. Nil outside of tests. See package nodetest.
	Host *Simulation
}

// ServerConfig says what a bootstrap node does for others. Zero fields get their defaults.
type ServerConfig struct {
	// Relay lets nodes behind NAT be reached through this one.
	Relay bool
	// MaxReservations is how many nodes may be reached through this one at a time. Default 1024.
	MaxReservations int
	// MaxCircuits is how many circuits one node may have. Default 64.
	MaxCircuits int
	// ReservationsPerIP bounds the reservations from one IPv4 address or IPv6 /56. Default 64: many homes share one.
	ReservationsPerIP int
	// Conns bounds the connections. Default 4096.
	Conns int
	// ConnsPerIP bounds those from one IPv4 address or IPv6 /64. Default 256.
	ConnsPerIP int
	// CircuitLimits bound what each circuit may last, and carry in each direction. Zero: no limits, which is what hima
	// wants; libp2p's relays have two minutes and 128 KiB.
	CircuitLimits RelayLimits
}

// Simulation replaces what a node has from its machine, so that many nodes can run in one process in virtual time.
type Simulation struct {
	// Options are the transports and whatever else the simulated host needs; Listen must be set.
	Options []libp2p.Option
	// Interfaces replaces the addresses of the machine's interfaces.
	Interfaces func() []netip.Prefix
	// Discover replaces mDNS: it announces addrs and calls found for others until ctx ends.
	Discover func(ctx context.Context, self identity.DeviceID, addrs []string, found func(identity.DeviceID, []string)) error
}

// Limits bound what all peers together, and one peer alone, can make this node hold. Beyond them a connection or a
// stream is refused, which the peer sees as a reset, and which costs this node no memory.
type Limits struct {
	// Conns is how many connections there may be. Default 192. Above 3/4 of it idle ones are closed.
	Conns int
	// ConnsPerPeer bounds the connections of one device. Default 8: two ends that dial each other at the same moment
	// over IPv4, IPv6 and QUIC make up to six.
	ConnsPerPeer int
	// ConnsPerIP bounds the connections from one IPv4 address or IPv6 /64. Default 96: a family behind one router, and
	// everybody who comes through one relay counts at the relay's address.
	ConnsPerIP int
	// Streams bounds the streams of all peers. Default 2048.
	Streams int
	// StreamsPerPeer bounds the inbound streams of one device over all protocols. Default 32.
	StreamsPerPeer int
	// HandlersPerPeer bounds the running handlers of one device per protocol. Default 4.
	HandlersPerPeer int
	// Memory bounds the bytes that streams may buffer in the multiplexers. Default 64 MiB.
	Memory int64
	// MemoryPerPeer is the share of one device. Default 16 MiB: enough for one full window of bulk data.
	MemoryPerPeer int64
}

// withDefaults fills in what is zero. A server has its own defaults: each circuit is two streams, and all circuits of
// one node come over its one connection.
func (l Limits) withDefaults(server *ServerConfig) Limits {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	memory := int64(64 << 20)
	if s := server; s != nil {
		def(&l.Conns, s.Conns)
		def(&l.ConnsPerIP, s.ConnsPerIP)
		def(&l.Streams, 8*l.Conns)
		def(&l.StreamsPerPeer, 2*s.MaxCircuits+64)
		memory = 512 << 20
	}
	def(&l.Conns, 192)
	def(&l.ConnsPerPeer, 8)
	def(&l.ConnsPerIP, 96)
	def(&l.Streams, 2048)
	def(&l.StreamsPerPeer, 32)
	def(&l.HandlersPerPeer, 4)
	if l.Memory <= 0 {
		l.Memory = memory
	}
	if l.MemoryPerPeer <= 0 {
		l.MemoryPerPeer = 16 << 20
	}
	return l
}

func (s ServerConfig) withDefaults() *ServerConfig {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&s.MaxReservations, 1024)
	def(&s.MaxCircuits, 64)
	def(&s.ReservationsPerIP, 64)
	def(&s.Conns, 4096)
	def(&s.ConnsPerIP, 256)
	return &s
}

// Times of the node. Each says why it is what it is.
const (
	// dialTimeout bounds one dial of one address. A LAN answers in milliseconds, a far peer within two round trips; what
	// needs longer is gone, and the caller's retry table takes over.
	dialTimeout = 5 * time.Second
	// negotiateTimeout bounds asking for a protocol on a new stream. When it passes on a connection that looked alive,
	// that connection is dead (its peer was cut off silently) and is closed.
	negotiateTimeout = 5 * time.Second
	// firstByteTimeout bounds how long a peer may keep an inbound stream open without having sent anything.
	firstByteTimeout = 20 * time.Second
	// watchInterval is how often the interfaces are looked at: one system call, so that a plugged cable or a resumed
	// machine is noticed while its user is still looking.
	watchInterval = 3 * time.Second
	// sleepJump is how far wall clock and steady clock must part between two looks to mean that the machine slept.
	sleepJump = 10 * time.Second
)

// check fills defaults in and refuses what cannot work.
func (c Config) check() (Config, []ma.Multiaddr, error) {
	if c.Key.ID().IsZero() {
		return c, nil, errors.New("node config has no device key")
	}
	if c.Port < 0 || c.Port > 65535 {
		return c, nil, fmt.Errorf("port %d is out of range", c.Port)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Server != nil {
		c.Server = c.Server.withDefaults()
	}
	c.Limits = c.Limits.withDefaults(c.Server)
	listen, err := parseAddrs(c.Listen)
	if err != nil {
		return c, nil, fmt.Errorf("reading listen addresses: %w", err)
	}
	if _, err := parseAddrs(c.Announce); err != nil {
		return c, nil, fmt.Errorf("reading announced addresses: %w", err)
	}
	if c.Host != nil && len(listen) == 0 {
		return c, nil, errors.New("a simulated node needs listen addresses")
	}
	return c, listen, nil
}

func parseAddrs(s []string) ([]ma.Multiaddr, error) {
	addrs := make([]ma.Multiaddr, 0, len(s))
	for _, a := range s {
		m, err := ma.NewMultiaddr(a)
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, m)
	}
	return addrs, nil
}
