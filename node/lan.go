package node

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/zeroconf/v2"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/time/rate"

	"hima/identity"
)

// mDNS. A node registers a service under a random name with its device and addresses as text records, and browses for
// others. docs/spec/sync.md has the records.
const (
	lanService = "_hima._udp"
	lanDomain  = "local"
	// lanTTL is how long, in seconds, an announcement is believed. Queries go out once a minute, so a device that is there
	// is found again every two minutes at least.
	lanTTL = 100
	// lanRetry is how long to wait when no interface can do multicast. A changed interface ends the wait.
	lanRetry = 15 * time.Second
	// lanSearch is how often the LAN is asked at first while a device that was seen on it is missing, ever less often until
	// searchFor has passed: a cable that was pulled at the switch looks to both ends like a peer that fell silent, and the
	// first question after it is back finds it.
	lanSearch = 5 * time.Second
	searchFor = 10 * time.Minute
	// lanRound is how long one browse lasts at most; the library keeps what it saw in memory until then.
	lanRound = time.Hour
	// lanRate and lanBurst bound announcements taken from the LAN per second, whoever shouts.
	lanRate  = 20
	lanBurst = 200
)

// lanState is what the LAN loop and the connection table tell each other.
type lanState struct {
	wake chan struct{} // one slot: the network changed

	mu   sync.Mutex
	seen map[identity.DeviceID]time.Time // found on the LAN; at most maxBook
	lost map[identity.DeviceID]time.Time // of these, who was connected and is missing, since when
	miss chan struct{}                   // one slot: lost grew
}

func (l *lanState) init() {
	l.wake = make(chan struct{}, 1)
	l.miss = make(chan struct{}, 1)
	l.seen = map[identity.DeviceID]time.Time{}
	l.lost = map[identity.DeviceID]time.Time{}
}

func (l *lanState) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// missing notes that the last connection of a device ended.
func (l *lanState) missing(dev identity.DeviceID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.seen[dev]; !ok {
		return
	}
	l.lost[dev] = time.Now()
	select {
	case l.miss <- struct{}{}:
	default:
	}
}

// found notes an announcement.
func (l *lanState) found(dev identity.DeviceID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.lost, dev)
	if len(l.seen) >= maxBook {
		for d := range l.seen { // any: a LAN of more than a thousand nodes is not searched by name
			delete(l.seen, d)
			break
		}
	}
	l.seen[dev] = time.Now()
}

// here notes that a device is connected.
func (l *lanState) here(dev identity.DeviceID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.lost, dev)
}

// round is how long to browse before asking again.
func (l *lanState) round() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	round := lanRound
	for dev, since := range l.lost {
		gone := time.Since(since)
		if gone > searchFor {
			delete(l.lost, dev)
			continue
		}
		round = min(round, max(lanSearch, gone/6))
	}
	return round
}

// runLAN announces and browses until ctx ends, anew whenever the network changed: the library advertises for ever what
// it was given at the start.
func (n *Node) runLAN(ctx context.Context) {
	if n.cfg.Host != nil {
		n.simulateLAN(ctx)
		return
	}
	for ctx.Err() == nil {
		err := n.lanCycle(ctx)
		if err == nil {
			continue
		}
		if n.setMulticast(false) {
			n.log.Info("nobody can be found on the LAN", "reason", err)
		} else {
			n.log.Debug("nobody can be found on the LAN", "reason", err)
		}
		select {
		case <-ctx.Done():
		case <-n.lan.wake:
		case <-time.After(lanRetry):
		}
	}
}

// setMulticast keeps the state and reports whether it changed.
func (n *Node) setMulticast(ok bool) bool {
	if n.multicast.Swap(ok) == ok {
		return false
	}
	n.hub.publish(MulticastChanged{ok})
	return true
}

var errNoMulticast = errors.New("no network interface can do multicast")

// lanCycle announces the present addresses and browses until the network changes or ctx ends.
func (n *Node) lanCycle(ctx context.Context) error {
	ifs, v4 := multicastInterfaces()
	if len(ifs) == 0 {
		return errNoMulticast
	}
	addrs := dialable(n.addrs())
	var txt []string
	for _, a := range addrs {
		txt = append(txt, "a="+a.String())
	}
	txt = append(txt, "d="+n.id.String())
	name := strings.ToLower(rand.Text()[:12]) // says nothing about who it is, and differs after every change
	ips := firstIPs(addrs)
	if len(ips) == 0 {
		return errNoMulticast
	}
	srv, err := zeroconf.RegisterProxy(name, lanService, lanDomain, max(n.Port(), 1), name, ips, txt, ifs, zeroconf.TTL(lanTTL))
	if err != nil {
		return err
	}
	defer srv.Shutdown()
	traffic := zeroconf.IPv4
	if !v4 {
		traffic = zeroconf.IPv6
	}
	limit := rate.NewLimiter(lanRate, lanBurst)
	n.setMulticast(true)
	for {
		changed, err := n.browse(ctx, n.lan.round(), limit, zeroconf.SelectIfaces(ifs), zeroconf.SelectIPTraffic(traffic))
		if changed || err != nil || ctx.Err() != nil {
			return err
		}
	}
}

// browse asks the LAN once at its start and ever less often afterwards, listens for announcements, and ends after
// round, when somebody is newly missed, or (changed) when the network changed.
func (n *Node) browse(ctx context.Context, round time.Duration, limit *rate.Limiter, opts ...zeroconf.ClientOption) (changed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, round)
	defer cancel()
	entries := make(chan *zeroconf.ServiceEntry, 64)
	done := make(chan error, 1)
	go func() { done <- zeroconf.Browse(ctx, lanService, lanDomain, entries, opts...) }()
	for {
		select {
		case e, ok := <-entries:
			if !ok { // Browse closes it at the end of ctx
				return changed, ignoreTimeout(<-done)
			}
			if limit.Allow() {
				n.foundOnLAN(e.Text)
			}
		case err := <-done:
			return changed, ignoreTimeout(err)
		case <-n.lan.wake:
			changed = true
			cancel()
		case <-n.lan.miss:
			cancel()
		}
	}
}

func ignoreTimeout(err error) error {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// foundOnLAN reads an announcement. Nothing in it is believed but that these addresses may be worth dialling.
func (n *Node) foundOnLAN(txt []string) {
	var dev identity.DeviceID
	var addrs []string
	for _, t := range txt[:min(len(txt), 2*maxAddrs+1)] {
		if d, ok := strings.CutPrefix(t, "d="); ok {
			id, err := identity.ParseDeviceID(d)
			if err != nil {
				return
			}
			dev = id
		} else if a, ok := strings.CutPrefix(t, "a="); ok {
			addrs = append(addrs, a)
		}
	}
	if !dev.IsZero() {
		n.found(dev, addrs)
	}
}

func (n *Node) found(dev identity.DeviceID, addrs []string) {
	good := dialable(parseKnown(addrs))
	if dev == n.id || len(good) == 0 {
		return
	}
	n.book.heard(dev, good)
	n.lan.found(dev)
	n.punch.seen(dev)
	n.hub.publish(Found{dev, addrStrings(good)})
}

// simulateLAN runs the simulation's discovery in place of mDNS.
func (n *Node) simulateLAN(ctx context.Context) {
	if n.cfg.Host.Discover == nil {
		return
	}
	n.setMulticast(true)
	if err := n.cfg.Host.Discover(ctx, n.id, n.Addrs(), n.found); err != nil && ctx.Err() == nil {
		n.log.Debug("simulated discovery ended", "reason", err)
	}
	n.setMulticast(false)
}

// multicastInterfaces are those that are up and can do multicast, and whether one of them has an IPv4 address. The
// library would be content with none of a kind, but writes to the standard logger then.
func multicastInterfaces() (ifs []net.Interface, v4 bool) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, false
	}
	for _, i := range all {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagMulticast == 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil || len(addrs) == 0 {
			continue
		}
		ifs = append(ifs, i)
		for _, a := range addrs {
			if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil {
				v4 = true
			}
		}
	}
	return ifs, v4
}

// firstIPs are one IPv4 and one IPv6 address. The addresses that count are in the text records; DNS wants these.
func firstIPs(addrs []ma.Multiaddr) []string {
	var v4, v6 string
	for _, a := range addrs {
		ip, err := manet.ToIP(a)
		switch {
		case err != nil:
		case ip.To4() != nil && v4 == "":
			v4 = ip.String()
		case ip.To4() == nil && v6 == "":
			v6 = ip.String()
		}
	}
	var out []string
	for _, s := range []string{v4, v6} {
		if s != "" {
			out = append(out, s)
		}
	}
	return out
}
