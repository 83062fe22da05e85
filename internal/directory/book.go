package directory

import (
	"encoding/binary"
	"errors"
	"slices"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/wire/pb"
	"hima/storage"
)

// Keys of the address book. The first two are a cache and written unsynced; hints come from an invite link, which the
// user may not have any more, and are durable.
//
//	d/p/ device             page: last seen (8 bytes, Unix milliseconds), length of the certificate (uvarint), certificate,
//	                        InviteDevice with the addresses
//	d/a/ account device     empty: a certificate for this device was seen
//	d/h/ account device     InviteDevice: an unproven claim where a device of the account may be
func pageKey(dev identity.DeviceID) []byte { return append([]byte("d/p/"), dev[:]...) }

func deviceKey(kind string, a identity.AccountID, dev identity.DeviceID) []byte {
	return append(append([]byte(kind), a[:]...), dev[:]...)
}

// page is what is remembered of one device.
type page struct {
	seen  int64 // Unix milliseconds
	cert  identity.Certificate
	addrs []string
}

// savedState is what was last written of a connected device.
type savedState struct {
	addrs []string
	at    time.Time
}

func (p page) encode() []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(p.seen))
	cert := p.cert.Raw()
	b = binary.AppendUvarint(b, uint64(len(cert)))
	b = append(b, cert...)
	return append(b, packAddrs(p.addrs)...)
}

func decodePage(b []byte) (page, bool) {
	seen, cert, addrs, ok := splitPage(b)
	if !ok {
		return page{}, false
	}
	c, err := identity.ParseCertificate(cert)
	if err != nil {
		return page{}, false
	}
	return page{seen: seen, cert: c, addrs: unpackAddrs(addrs)}, true
}

// splitPage takes a page apart without checking the certificate's signature.
func splitPage(b []byte) (seen int64, cert, addrs []byte, ok bool) {
	if len(b) < 9 {
		return 0, nil, nil, false
	}
	n, w := binary.Uvarint(b[8:])
	if w <= 0 || n > uint64(len(b)-8-w) {
		return 0, nil, nil, false
	}
	seen, b = int64(binary.BigEndian.Uint64(b)), b[8+w:]
	return seen, b[:n], b[n:], true
}

func readPage(tx *storage.Tx, dev identity.DeviceID) (page, bool) {
	b, err := tx.Get(pageKey(dev))
	if err != nil {
		return page{}, false
	}
	return decodePage(b)
}

// packAddrs writes addresses in their binary form; what does not parse or is too long is left out.
func packAddrs(addrs []string) []byte {
	m := &pb.InviteDevice{}
	for _, s := range addrs {
		if len(s) > maxAddrText || len(m.Addrs) == maxAddrs {
			continue
		}
		if a, err := ma.NewMultiaddr(s); err == nil && len(a) > 0 {
			m.Addrs = append(m.Addrs, a.Bytes())
		}
	}
	b, err := proto.Marshal(m)
	if err != nil {
		return nil // cannot happen: there are only byte fields
	}
	return b
}

func unpackAddrs(b []byte) []string {
	var m pb.InviteDevice
	if proto.Unmarshal(b, &m) != nil {
		return nil
	}
	var out []string
	for _, b := range m.Addrs[:min(len(m.Addrs), maxAddrs)] {
		if a, err := ma.NewMultiaddrBytes(b); err == nil {
			out = append(out, a.String())
		}
	}
	return out
}

// merge puts newer addresses before older ones, each once.
func merge(newer, older []string) []string {
	var out []string
	for _, a := range slices.Concat(newer, older) {
		if len(out) < maxAddrs && len(a) <= maxAddrText && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// Seen notes that a device was met: whose it is, and at which address. addr may be empty. Unsynced.
func (d *Directory) Seen(cert identity.Certificate, addr string, at time.Time) {
	if cert.IsZero() || cert.Device == d.cfg.Certificate.Device {
		return
	}
	var addrs []string
	switch {
	case d.cfg.Node != nil:
		// The address of a connection that came in ends in a port that nobody listens at; the node knows which ones the
		// device can be dialled at.
		addrs = d.cfg.Node.Known(cert.Device)
	case addr != "":
		addrs = []string{addr}
	}
	d.note(cert, addrs, at)
}

// Observe notes a certificate that was met without its device.
func (d *Directory) Observe(cert identity.Certificate) {
	if !cert.IsZero() && cert.Device != d.cfg.Certificate.Device {
		d.note(cert, nil, time.Time{})
	}
}

func (d *Directory) note(cert identity.Certificate, addrs []string, at time.Time) {
	added := false
	err := d.cfg.DB.Cache(func(tx *storage.Tx) error {
		p, ok := readPage(tx, cert.Device)
		if !ok || p.cert.Account != cert.Account && !at.IsZero() {
			// Two accounts may certify one device, by mistake or malice. The one that the device itself showed last
			// counts here; what it may do is decided by the account's record, not by this.
			added = !ok
			if ok {
				if err := tx.Delete(deviceKey("d/a/", p.cert.Account, cert.Device)); err != nil {
					return err
				}
			}
			if err := tx.Set(deviceKey("d/a/", cert.Account, cert.Device), nil); err != nil {
				return err
			}
			p.cert = cert
		}
		if !at.IsZero() {
			p.seen = max(p.seen, at.UnixMilli())
		}
		p.addrs = merge(addrs, p.addrs)
		return tx.Set(pageKey(cert.Device), p.encode())
	})
	if err != nil {
		d.log.Debug("noting a device", "device", cert.Device.Short(), "error", err)
		return
	}
	if added && d.counts.devices.Add(1) > maxBook {
		d.evictPages(cert.Device)
	}
}

// Hint notes where a device of an account may be, as an invite link says. It proves nothing and lasts.
func (d *Directory) Hint(a identity.AccountID, dev identity.DeviceID, addrs []string) {
	if a == d.self || dev == d.cfg.Certificate.Device {
		return
	}
	if d.cfg.Node != nil {
		d.cfg.Node.Remember(dev, addrs)
	}
	packed := packAddrs(addrs)
	d.cfg.DB.Submit(func(tx *storage.Tx) error {
		var have []identity.DeviceID
		prefix := deviceKey("d/h/", a, identity.DeviceID{})[:4+32]
		err := tx.Scan(storage.ScanOptions{Prefix: prefix, KeysOnly: true}, func(key, _ []byte) (bool, error) {
			have = append(have, identity.DeviceID(key[36:]))
			return true, nil
		})
		if err != nil {
			return err
		}
		if len(have) >= maxHints && !slices.Contains(have, dev) {
			if err := tx.Delete(deviceKey("d/h/", a, have[0])); err != nil {
				return err
			}
		}
		return tx.Set(deviceKey("d/h/", a, dev), packed)
	}, func(err error) {
		if err != nil {
			d.log.Warn("noting an address from an invite", "error", err)
		}
	})
}

// heard lists devices of an account for which a certificate or a hint was seen.
func heard(tx *storage.Tx, a identity.AccountID) ([]identity.DeviceID, error) {
	var devs []identity.DeviceID
	for _, kind := range []string{"d/a/", "d/h/"} {
		prefix := deviceKey(kind, a, identity.DeviceID{})[:4+32]
		opts := storage.ScanOptions{Prefix: prefix, KeysOnly: true, Limit: maxHints}
		err := tx.Scan(opts, func(key, _ []byte) (bool, error) {
			if dev := identity.DeviceID(key[36:]); !slices.Contains(devs, dev) {
				devs = append(devs, dev)
			}
			return true, nil
		})
		if err != nil {
			return nil, err
		}
	}
	return devs, nil
}

// Devices lists the devices of an account: those of its record, or, as long as there is none, those heard of. While the
// record has expired there are none: a device is owed nothing until it is seen again, which brings a new record (R13).
func (d *Directory) Devices(a identity.AccountID) []identity.DeviceID {
	if r, ok := d.Record(a); ok {
		if r.Expired(d.now()) {
			return nil
		}
		devs := make([]identity.DeviceID, len(r.Devices))
		for i, c := range r.Devices {
			devs[i] = c.Device
		}
		return devs
	}
	var devs []identity.DeviceID
	err := d.cfg.DB.View(func(tx *storage.Tx) (err error) {
		devs, err = heard(tx, a)
		return err
	})
	if err != nil {
		d.log.Error("listing devices", "account", a.Short(), "error", err)
	}
	return devs
}

// DeviceAccount returns the account that certified a device, as far as a certificate was seen. Whether the account
// still stands by it, Valid says.
func (d *Directory) DeviceAccount(dev identity.DeviceID) (identity.AccountID, bool) {
	p, ok := d.page(dev)
	return p.cert.Account, ok
}

// Addrs returns where a device was met or is said to be, newest first.
func (d *Directory) Addrs(dev identity.DeviceID) []string {
	p, _ := d.page(dev)
	return p.addrs
}

// LastSeen returns when a device was last met; zero: never.
func (d *Directory) LastSeen(dev identity.DeviceID) time.Time {
	if p, ok := d.page(dev); ok && p.seen > 0 {
		return time.UnixMilli(p.seen)
	}
	return time.Time{}
}

func (d *Directory) page(dev identity.DeviceID) (p page, ok bool) {
	err := d.cfg.DB.View(func(tx *storage.Tx) error {
		p, ok = readPage(tx, dev)
		return nil
	})
	if err != nil && !errors.Is(err, storage.ErrClosed) {
		d.log.Error("reading the address book", "error", err)
	}
	return p, ok
}

// loadBook counts the pages and hands the node what it may dial.
func (d *Directory) loadBook(tx *storage.Tx) error {
	n := int64(0)
	err := tx.Scan(storage.ScanOptions{Prefix: []byte("d/p/")}, func(key, value []byte) (bool, error) {
		n++
		if _, _, addrs, ok := splitPage(value); ok && d.cfg.Node != nil {
			d.cfg.Node.Remember(identity.DeviceID(key[4:]), unpackAddrs(addrs))
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	d.counts.devices.Store(n)
	if d.cfg.Node == nil {
		return nil
	}
	return tx.Scan(storage.ScanOptions{Prefix: []byte("d/h/")}, func(key, value []byte) (bool, error) {
		d.cfg.Node.Remember(identity.DeviceID(key[36:]), unpackAddrs(value))
		return true, nil
	})
}

// savePeers writes down the addresses of connected devices that changed. leaving: also when they were last seen.
func (d *Directory) savePeers(leaving bool) {
	now := d.now()
	for _, p := range d.cfg.Node.Peers() {
		d.savePeer(p.Device, now, leaving)
	}
}

func (d *Directory) savePeer(dev identity.DeviceID, now time.Time, leaving bool) {
	addrs := d.cfg.Node.Known(dev)
	d.savedMu.Lock()
	s, ok := d.saved[dev]
	due := leaving || !ok || now.Sub(s.at) >= seenStep || !slices.Equal(s.addrs, addrs)
	switch {
	case leaving:
		delete(d.saved, dev)
	case due:
		d.saved[dev] = savedState{addrs, now}
	}
	d.savedMu.Unlock()
	if !due {
		return
	}
	// Only devices with a page: without a certificate nobody asks for them.
	if p, ok := d.page(dev); ok {
		d.note(p.cert, addrs, now)
	}
}

// evictPages drops the devices met longest ago, an eighth of them at a time, but none of an account that is kept.
func (d *Directory) evictPages(spare identity.DeviceID) {
	dropped := int64(0)
	err := d.cfg.DB.Cache(func(tx *storage.Tx) error {
		var all []aged[identity.DeviceID]
		owners := map[identity.DeviceID]identity.AccountID{}
		err := tx.Scan(storage.ScanOptions{Prefix: []byte("d/a/"), KeysOnly: true}, func(key, _ []byte) (bool, error) {
			a, dev := identity.AccountID(key[4:36]), identity.DeviceID(key[36:])
			if dev == spare || d.keep(a) {
				return true, nil
			}
			b, err := tx.Get(pageKey(dev))
			if err != nil || len(b) < 8 {
				return true, nil
			}
			owners[dev] = a
			all = append(all, aged[identity.DeviceID]{dev, int64(binary.BigEndian.Uint64(b))})
			return true, nil
		})
		if err != nil {
			return err
		}
		slices.SortFunc(all, oldestFirst)
		for _, v := range all[:min(len(all), maxBook/8)] {
			if err := tx.Delete(pageKey(v.id)); err != nil {
				return err
			}
			if err := tx.Delete(deviceKey("d/a/", owners[v.id], v.id)); err != nil {
				return err
			}
			dropped++
		}
		return nil
	})
	if err != nil {
		d.log.Debug("shortening the address book", "error", err)
		return
	}
	d.counts.devices.Add(-dropped)
}
