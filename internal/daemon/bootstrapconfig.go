package daemon

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	ma "github.com/multiformats/go-multiaddr"

	"hima/identity"
	"hima/internal/directory"
	"hima/internal/mailbox"
	"hima/node"
)

// BootstrapConfig says how to run a bootstrap node. Only Dir is required.
type BootstrapConfig struct {
	// Dir is the node's folder. The first start makes it, with everything in it.
	Dir string
	// Listen are multiaddrs to listen at; empty: all interfaces, TCP and QUIC, on the node's own port. A port 0 in one of
	// them means that port as well: it is chosen once and kept.
	Listen []string
	// Announce are multiaddrs to tell others besides those found, for a forwarded port or a DNS name. They go into the link
	// before all others.
	Announce []string
	// Network is the name of a new network, or the link of one that exists, which this node then serves as a further one.
	// Empty: the network of the last start, or at the first a new one called DefaultNetwork. A node serves one network for
	// ever: another name or link is refused.
	Network string
	// Serve lists what is done for others: dht, relay, mailbox, names. Empty: all of it.
	Serve []string
	// Fresh says that an empty register of names is right. Otherwise a register that is empty at a later start than the
	// first stamps nothing for a day, so that what it had comes back before (R19).
	Fresh bool
	// Metrics is an address for /metrics, /healthz and /readyz over HTTP; empty: none.
	Metrics string
	// Limits bound what is done for others; zero fields get the values of DefaultBootstrapLimits.
	Limits BootstrapLimits
	// MemoryLimit is a size for the Go heap, as 512MiB; empty: defaultBootstrapMemory. It counts with OwnProcess.
	MemoryLimit string
	// Logger is where to write; nil: nowhere.
	Logger *slog.Logger
	// OwnProcess says that this process is the node's alone.
	OwnProcess bool
	// Ready is called once, when the node serves; nil: nobody.
	Ready func(BootstrapInfo)
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// BootstrapLimits bound what a bootstrap node does for others.
type BootstrapLimits struct {
	Reservations      int // nodes that may be reached through this one
	ReservationsPerIP int
	Circuits          int // of one node
	Connections       int
	ConnectionsPerIP  int
	CircuitTime       time.Duration // how long a circuit may last; 0: no limit
	CircuitBytes      int64         // what it may carry each way; 0: no limit
	MailboxBytes      uint64        // of all items together
	MailboxItems      int
	InboxBytes        uint64 // of one inbox
	InboxItems        int
	MailboxExpiry     time.Duration // how long an item is kept
}

// DefaultBootstrapLimits returns the limits of a small machine that serves some thousand people.
func DefaultBootstrapLimits() BootstrapLimits {
	m := mailbox.DefaultServerLimits()
	return BootstrapLimits{
		Reservations: 1024, ReservationsPerIP: 64, Circuits: 64, Connections: 4096, ConnectionsPerIP: 256,
		MailboxBytes: m.TotalBytes, MailboxItems: m.TotalItems, InboxBytes: m.InboxBytes, InboxItems: m.InboxItems,
		MailboxExpiry: m.Expiry,
	}
}

// BootstrapInfo is what a bootstrap node says when it serves.
type BootstrapInfo struct {
	Link      string // to join the network by
	Addresses []string
	Device    string
	Network   string // name
	NetworkID string
	Serves    []string
	Metrics   string // address listened at; empty: none
}

// DefaultNetwork is what a new network is called if nobody says how.
const DefaultNetwork = "hima"

const (
	// defaultBootstrapMemory is the soft limit of a bootstrap node's heap: a hundred thousand items of mail are served within
	// it, in 82 MiB of resident memory. Thousands of connections at some ten kilobytes want more.
	defaultBootstrapMemory = 96 << 20
	// defaultBootstrapPort is tried first: a firewall is easier to open for a port that everybody knows.
	defaultBootstrapPort = 7447
)

// services are those that a bootstrap node can do, in the order in which they are told.
func services() []string {
	return []string{directory.ServeDHT, directory.ServeRelay, directory.ServeMailbox, directory.ServeNames}
}

// check fills defaults in and refuses what cannot work, with ErrBadConfig.
func (c BootstrapConfig) check() (BootstrapConfig, error) {
	if c.Dir == "" {
		return c, fmt.Errorf("no folder for the bootstrap node: %w", ErrBadConfig)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	var serve []string
	for _, s := range services() {
		if len(c.Serve) == 0 || slices.Contains(c.Serve, s) {
			serve = append(serve, s)
		}
	}
	for _, s := range c.Serve {
		if !slices.Contains(services(), s) {
			return c, fmt.Errorf("%q is none of the services %s: %w", s, strings.Join(services(), ", "), ErrBadConfig)
		}
	}
	c.Serve = serve
	c.Announce = slices.Clone(c.Announce)
	for i, a := range c.Announce { // the device is named beside its addresses, not in them
		c.Announce[i], _, _ = strings.Cut(a, "/p2p/")
	}
	if len(c.Network) > identity.MaxNetworkName && !isNetworkLink(c.Network) {
		return c, fmt.Errorf("the name of a network has at most %d bytes: %w", identity.MaxNetworkName, ErrBadConfig)
	}
	l, d := &c.Limits, DefaultBootstrapLimits()
	orDefault(&l.Reservations, d.Reservations)
	orDefault(&l.ReservationsPerIP, d.ReservationsPerIP)
	orDefault(&l.Circuits, d.Circuits)
	orDefault(&l.Connections, d.Connections)
	orDefault(&l.ConnectionsPerIP, d.ConnectionsPerIP)
	orDefault(&l.MailboxBytes, d.MailboxBytes)
	orDefault(&l.MailboxItems, d.MailboxItems)
	orDefault(&l.InboxBytes, d.InboxBytes)
	orDefault(&l.InboxItems, d.InboxItems)
	orDefault(&l.MailboxExpiry, d.MailboxExpiry)
	if l.CircuitTime < 0 || l.CircuitBytes < 0 {
		return c, fmt.Errorf("a limit below zero: %w", ErrBadConfig)
	}
	for _, n := range []int{l.Reservations, l.ReservationsPerIP, l.Circuits, l.Connections, l.ConnectionsPerIP, l.MailboxItems, l.InboxItems} {
		if n < 0 {
			return c, fmt.Errorf("a limit below zero: %w", ErrBadConfig)
		}
	}
	for _, a := range slices.Concat(c.Listen, c.Announce) {
		if _, err := ma.NewMultiaddr(a); err != nil {
			return c, fmt.Errorf("%q is not an address, as /ip4/0.0.0.0/tcp/%d: %w: %w", a, defaultBootstrapPort, ErrBadConfig, err)
		}
	}
	_, err := c.memory()
	return c, err
}

func orDefault[T int | uint64 | time.Duration](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

func (c BootstrapConfig) memory() (int64, error) {
	if c.MemoryLimit == "" {
		return defaultBootstrapMemory, nil
	}
	n, err := humanize.ParseBytes(c.MemoryLimit)
	if err != nil || n < leastMemory || n > 1<<40 {
		return 0, fmt.Errorf("memory-limit %q is not a size of at least %s: %w", c.MemoryLimit, humanize.IBytes(leastMemory), ErrBadConfig)
	}
	return int64(n), nil
}

func (c BootstrapConfig) serves(service string) bool { return slices.Contains(c.Serve, service) }

// server is what the node does for others.
func (c BootstrapConfig) server() *node.ServerConfig {
	l := c.Limits
	return &node.ServerConfig{
		Relay: c.serves(directory.ServeRelay), MaxReservations: l.Reservations, MaxCircuits: l.Circuits,
		ReservationsPerIP: l.ReservationsPerIP, Conns: l.Connections, ConnsPerIP: l.ConnectionsPerIP,
		CircuitLimits: node.RelayLimits{Duration: l.CircuitTime, Data: uint64(l.CircuitBytes)},
	}
}

// mailboxLimits are those of the configuration over those of a bootstrap node.
func (c BootstrapConfig) mailboxLimits() mailbox.ServerLimits {
	m := mailbox.DefaultServerLimits()
	m.TotalBytes, m.TotalItems = c.Limits.MailboxBytes, c.Limits.MailboxItems
	m.InboxBytes, m.InboxItems, m.Expiry = c.Limits.InboxBytes, c.Limits.InboxItems, c.Limits.MailboxExpiry
	return m
}

func isNetworkLink(s string) bool {
	_, err := identity.ParseNetworkLink(s)
	return err == nil || strings.HasPrefix(strings.ToLower(strings.TrimSpace(s)), "hima-net:")
}
