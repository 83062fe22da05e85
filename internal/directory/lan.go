package directory

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"hima/identity"
	"hima/internal/text"
	"hima/internal/wire"
	"hima/internal/wire/pb"
	"hima/node"
)

// LanProtocol is the stream protocol by which a node asks one that it found on the LAN who it is.
const LanProtocol = "/hima/lan/1"

// lanVersion is the version of the question.
const lanVersion = 1

// maxAgent bounds the agent string of an answer.
const maxAgent = 64

// answer serves a question: the own profile to whoever asks on the LAN, if the user wants to be seen, else nothing.
func (d *Directory) answer(s *node.Stream) {
	now := d.now()
	if d.cfg.Profile == nil || !d.lan.allowAnswer(s.Remote(), now) || !d.isNear(s.Remote(), s.Info().Addr) {
		s.Reset()
		return
	}
	username, nickname, visible := d.cfg.Profile()
	if !visible {
		s.Reset()
		return
	}
	if err := d.serve(s, username, nickname); err != nil {
		d.log.Debug("answering on the LAN", "device", s.Remote().Short(), "error", err)
		s.Reset()
		return
	}
	s.Close()
}

func (d *Directory) serve(s *node.Stream, username, nickname string) error {
	// The wall clock, not Config.Now: the deadline is the network's.
	if err := s.SetDeadline(time.Now().Add(lanTimeout)); err != nil {
		return err
	}
	var q pb.LanQuestion
	if err := wire.Read(bufio.NewReaderSize(s, 64), wire.MaxLanFrame, &q); err != nil {
		return err
	}
	if q.Version < lanVersion {
		return fmt.Errorf("question of version %d: %w", q.Version, wire.ErrMalformed)
	}
	if err := wire.Write(s, wire.MaxLanFrame, &pb.LanProfile{
		Certificate: d.cfg.Certificate.Raw(), Username: username, Nickname: nickname, Agent: d.cfg.Agent,
	}); err != nil {
		return err
	}
	return s.CloseWrite()
}

// foundOnLAN asks a device that announced itself, or notes that it is still there.
func (d *Directory) foundOnLAN(dev identity.DeviceID) {
	now := d.now()
	d.lan.mu.Lock()
	makeRoom(d.lan.heard)
	d.lan.heard[dev] = now
	if p, ok := d.lan.people[dev]; ok && d.lan.asked[dev].After(now) {
		// An announcement is not authenticated: it keeps somebody on the list who answered lately, no longer.
		p.Seen = now
		d.lan.people[dev] = p
	}
	d.lan.mu.Unlock()
	d.enqueue(dev, false)
}

// metOnLAN asks a device that connected from an address of the LAN: mDNS may work in one direction only.
func (d *Directory) metOnLAN(dev identity.DeviceID, addr string) {
	if d.isNear(dev, addr) {
		d.enqueue(dev, false)
	}
}

// lostOnLAN asks somebody on the list anew whose connection ended: no answer, no entry.
func (d *Directory) lostOnLAN(dev identity.DeviceID) {
	d.lan.mu.Lock()
	_, ok := d.lan.people[dev]
	d.lan.mu.Unlock()
	if ok {
		d.enqueue(dev, true)
	}
}

// recheck asks everybody on the list anew: this may be another LAN now.
func (d *Directory) recheck() {
	d.lan.mu.Lock()
	devs := make([]identity.DeviceID, 0, len(d.lan.people))
	for dev := range d.lan.people {
		devs = append(devs, dev)
	}
	clear(d.lan.asked)
	d.lan.mu.Unlock()
	for _, dev := range devs {
		d.enqueue(dev, true)
	}
}

// enqueue lets a device be asked, unless it was lately (now: even then) or the queue is full; it is found again.
func (d *Directory) enqueue(dev identity.DeviceID, anew bool) {
	now := d.now()
	d.lan.mu.Lock()
	defer d.lan.mu.Unlock()
	if d.lan.queued[dev] || !anew && d.lan.asked[dev].After(now) {
		return
	}
	select {
	case d.lan.queue <- dev:
		d.lan.queued[dev] = true
	default:
	}
}

// askLoop asks one device after the other.
func (d *Directory) askLoop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case dev := <-d.lan.queue:
			p, err := d.ask(ctx, dev)
			if ctx.Err() != nil {
				return nil
			}
			d.settle(dev, err == nil)
			if err != nil {
				d.log.Debug("asking on the LAN", "device", dev.Short(), "error", err)
				d.gone(dev)
				continue
			}
			d.appear(p)
		}
	}
}

// settle notes when a device may be asked next.
func (d *Directory) settle(dev identity.DeviceID, ok bool) {
	wait := askPause
	if ok {
		wait = askAgain
	}
	now := d.now()
	d.lan.mu.Lock()
	defer d.lan.mu.Unlock()
	delete(d.lan.queued, dev)
	makeRoom(d.lan.asked)
	d.lan.asked[dev] = now.Add(wait)
}

// ask dials a device and asks who it is. What comes back is checked: the certificate must be for the very device that
// the transport authenticated, and the names are made safe to show.
func (d *Directory) ask(ctx context.Context, dev identity.DeviceID) (Person, error) {
	ctx, cancel := context.WithTimeout(ctx, lanTimeout)
	defer cancel()
	s, err := d.cfg.Node.Open(ctx, dev, LanProtocol)
	if err != nil {
		return Person{}, err
	}
	defer s.Reset()
	stop := context.AfterFunc(ctx, s.Reset)
	defer stop()
	if err := wire.Write(s, wire.MaxLanFrame, &pb.LanQuestion{Version: lanVersion}); err != nil {
		return Person{}, err
	}
	if err := s.CloseWrite(); err != nil {
		return Person{}, err
	}
	var m pb.LanProfile
	if err := wire.Read(bufio.NewReaderSize(s, 512), wire.MaxLanFrame, &m); err != nil {
		return Person{}, err
	}
	cert, p, err := checkProfile(&m, dev)
	if err != nil {
		return Person{}, err
	}
	if r, ok := d.Record(p.Account); ok && r.Revokes(dev) {
		return Person{}, fmt.Errorf("device %s is revoked: %w", dev.Short(), ErrNotAdmitted)
	}
	if p.Account == d.self {
		return Person{}, fmt.Errorf("device %s is one of our own: %w", dev.Short(), ErrNotAdmitted)
	}
	p.Address, p.Seen = s.Info().Addr, d.now()
	d.Seen(cert, p.Address, p.Seen)
	return p, nil
}

// checkProfile turns an answer of a device into what may be believed and shown of it.
func checkProfile(m *pb.LanProfile, dev identity.DeviceID) (identity.Certificate, Person, error) {
	cert, err := identity.ParseCertificate(m.Certificate)
	if err != nil {
		return cert, Person{}, err
	}
	if cert.Device != dev {
		return cert, Person{}, fmt.Errorf("certificate of another device: %w", identity.ErrBadSignature)
	}
	if len(m.Agent) > maxAgent {
		return cert, Person{}, fmt.Errorf("agent of %d bytes: %w", len(m.Agent), wire.ErrMalformed)
	}
	p := Person{Account: cert.Account, Device: dev, Nickname: text.Nickname(m.Nickname)}
	// A claim that is no username could not be registered either; it is not shown at all.
	if name, err := text.Username(m.Username); err == nil {
		p.Username = name
	}
	return cert, p, nil
}

// isNear tells whether a device is on this LAN: its address is one of the LAN, or multicast, which does not leave the
// LAN, brought its announcement lately.
func (d *Directory) isNear(dev identity.DeviceID, addr string) bool {
	if onLAN(addr, d.cfg.Node.Addrs()) {
		return true
	}
	now := d.now()
	d.lan.mu.Lock()
	defer d.lan.mu.Unlock()
	at, ok := d.lan.heard[dev]
	return ok && now.Sub(at) < unseenAfter
}

// onLAN tells whether the address of a connection is one of this LAN: private, link-local or loopback, or in the same
// /24 or /64 as an own address. LANs with public addresses exist.
func onLAN(addr string, own []string) bool {
	ip, ok := ipOf(addr)
	if !ok {
		return false
	}
	if ip.IsPrivate() || ip.IsLoopback() || ip.IsLinkLocalUnicast() {
		return true
	}
	bits := 64
	if ip.Is4() {
		bits = 24
	}
	net, err := ip.Prefix(bits)
	if err != nil {
		return false
	}
	for _, a := range own {
		if o, ok := ipOf(a); ok && net.Contains(o) {
			return true
		}
	}
	return false
}

// ipOf returns the IP address at the beginning of a multiaddr that is dialled directly.
func ipOf(addr string) (netip.Addr, bool) {
	parts := strings.Split(addr, "/")
	if len(parts) < 3 || parts[0] != "" || strings.Contains(addr, "/p2p-circuit") {
		return netip.Addr{}, false
	}
	ip, err := netip.ParseAddr(parts[2])
	if err != nil || parts[1] != "ip4" && parts[1] != "ip6" {
		return netip.Addr{}, false
	}
	return ip.Unmap().WithZone(""), true
}
