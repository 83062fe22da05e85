package directory

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/wire/pb"
	"hima/storage"
)

// Keys of device records. The first are a cache and written unsynced; the own one is durable, so that its number never
// goes back (R18).
//
//	d/v/ device             when it was last found or shown (8 bytes, Unix milliseconds), the signed bytes
//	d/o/                    the signed bytes of the own record
func deviceRecordKey(dev identity.DeviceID) []byte { return append([]byte("d/v/"), dev[:]...) }

func ownRecordKey() []byte { return []byte("d/o/") }

// deviceRecords is what is known of others' device records. The lock guards the map and is not held while the database is
// asked.
type deviceRecords struct {
	db *storage.DB

	mu    sync.Mutex
	cache map[identity.DeviceID]identity.DeviceRecord // at most maxDeviceCache
	count int64                                       // on disk; steers eviction and need not be exact
}

func (r *deviceRecords) init(db *storage.DB) {
	r.db, r.cache = db, map[identity.DeviceID]identity.DeviceRecord{}
}

func (r *deviceRecords) cached(dev identity.DeviceID) (identity.DeviceRecord, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec, ok := r.cache[dev]
	return rec, ok
}

// enter keeps a record in memory unless a newer one is there.
func (r *deviceRecords) enter(rec identity.DeviceRecord) {
	r.mu.Lock()
	defer r.mu.Unlock()
	have, ok := r.cache[rec.Device]
	if ok && identity.CompareDeviceRecords(have, rec) >= 0 {
		return
	}
	if !ok && len(r.cache) >= maxDeviceCache {
		for dev := range r.cache { // any one: it is read again when it is asked for
			delete(r.cache, dev)
			break
		}
	}
	r.cache[rec.Device] = rec
}

// get returns the newest record of a device.
func (r *deviceRecords) get(dev identity.DeviceID) (identity.DeviceRecord, bool, error) {
	if rec, ok := r.cached(dev); ok {
		return rec, true, nil
	}
	var raw []byte
	err := r.db.View(func(tx *storage.Tx) (err error) {
		raw, err = tx.Get(deviceRecordKey(dev))
		return err
	})
	if errors.Is(err, storage.ErrNotFound) {
		return identity.DeviceRecord{}, false, nil
	}
	if err != nil || len(raw) < 8 {
		return identity.DeviceRecord{}, false, err
	}
	rec, err := identity.ParseDeviceRecord(raw[8:])
	if err != nil {
		return identity.DeviceRecord{}, false, fmt.Errorf("reading a stored device record: %w", err)
	}
	r.enter(rec)
	return rec, true, nil
}

// put keeps a record if it is the newest, and notes that it was found now in any case. It returns what counts.
func (r *deviceRecords) put(rec identity.DeviceRecord, now time.Time) (counts identity.DeviceRecord, added bool, err error) {
	have, ok, err := r.get(rec.Device)
	if err != nil {
		return identity.DeviceRecord{}, false, err
	}
	counts = rec
	if ok && identity.CompareDeviceRecords(have, rec) >= 0 {
		counts = have
	}
	b := binary.BigEndian.AppendUint64(nil, uint64(now.UnixMilli()))
	b = append(b, counts.Raw()...)
	if err := r.db.Cache(func(tx *storage.Tx) error { return tx.Set(deviceRecordKey(rec.Device), b) }); err != nil {
		return identity.DeviceRecord{}, false, fmt.Errorf("keeping a device record: %w", err)
	}
	r.enter(counts)
	if !ok {
		r.mu.Lock()
		r.count++
		r.mu.Unlock()
	}
	return counts, !ok, nil
}

// found returns when a record was last found; zero: never.
func (r *deviceRecords) found(dev identity.DeviceID) time.Time {
	var at time.Time
	_ = r.db.View(func(tx *storage.Tx) error {
		if b, err := tx.Get(deviceRecordKey(dev)); err == nil && len(b) >= 8 {
			at = time.UnixMilli(int64(binary.BigEndian.Uint64(b)))
		}
		return nil
	})
	return at
}

// load counts the records, and hands on the addresses in them.
func (r *deviceRecords) load(tx *storage.Tx, each func(identity.DeviceID, []string)) error {
	n := int64(0)
	err := tx.Scan(storage.ScanOptions{Prefix: []byte("d/v/")}, func(key, value []byte) (bool, error) {
		n++
		if len(value) > 8 {
			each(identity.DeviceID(key[4:]), recordAddrs(value[8:]))
		}
		return true, nil
	})
	r.count = n
	return err
}

// recordAddrs reads the addresses off a stored record, which was checked when it came in: four thousand signatures would
// make a slow start.
func recordAddrs(raw []byte) []string {
	var s pb.Signed
	var m pb.DeviceRecord
	if proto.Unmarshal(raw, &s) != nil || proto.Unmarshal(s.Payload, &m) != nil {
		return nil
	}
	return textAddrs(m.Addrs)
}

// crowded tells whether there are more records than there should be.
func (r *deviceRecords) crowded() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count > maxDeviceRecords
}

// evict drops the records that were found longest ago, an eighth of them at a time, but none of a device that is kept.
func (r *deviceRecords) evict(keep func(identity.DeviceID) bool) error {
	var victims []aged[identity.DeviceID]
	total := int64(0)
	err := r.db.Cache(func(tx *storage.Tx) error {
		err := tx.Scan(storage.ScanOptions{Prefix: []byte("d/v/")}, func(key, value []byte) (bool, error) {
			total++
			if dev := identity.DeviceID(key[4:]); len(value) >= 8 && !keep(dev) {
				victims = append(victims, aged[identity.DeviceID]{dev, int64(binary.BigEndian.Uint64(value))})
			}
			return true, nil
		})
		if err != nil {
			return err
		}
		slices.SortFunc(victims, oldestFirst)
		victims = victims[:min(len(victims), maxDeviceRecords/8)]
		for _, v := range victims {
			if err := tx.Delete(deviceRecordKey(v.id)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("shortening the device records: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count = total - int64(len(victims))
	for _, v := range victims {
		delete(r.cache, v.id)
	}
	return nil
}

// DeviceRecord returns the newest record seen of a device, also the own one, without asking anybody. It may have expired.
func (d *Directory) DeviceRecord(dev identity.DeviceID) (identity.DeviceRecord, bool) {
	if dev == d.cfg.Certificate.Device {
		rec := d.own.record()
		return rec, !rec.IsZero()
	}
	rec, ok, err := d.devs.get(dev)
	if err != nil && !errors.Is(err, storage.ErrClosed) {
		d.log.Error("reading a device record", "device", dev.Short(), "error", err)
	}
	return rec, ok
}

// AdmitDevice checks signed bytes of a device record and keeps them if they are the newest seen of that device. It returns
// the record that counts afterwards. ErrNotAdmitted.
func (d *Directory) AdmitDevice(ctx context.Context, raw []byte) (identity.DeviceRecord, error) {
	rec, err := identity.ParseDeviceRecord(raw)
	if err != nil {
		return identity.DeviceRecord{}, fmt.Errorf("%w: %w", ErrNotAdmitted, err)
	}
	now := d.now()
	if rec.Expired(now) {
		return identity.DeviceRecord{}, fmt.Errorf("%w: %w", ErrNotAdmitted, identity.ErrExpired)
	}
	if rec.Device == d.cfg.Certificate.Device {
		d.own.met(rec)
		return d.own.record(), nil
	}
	if r, ok := d.Record(rec.Certificate.Account); ok && r.Revokes(rec.Device) {
		return identity.DeviceRecord{}, fmt.Errorf("%w: device %s is revoked", ErrNotAdmitted, rec.Device.Short())
	}
	counts, added, err := d.devs.put(rec, now)
	if err != nil {
		return identity.DeviceRecord{}, err
	}
	d.Observe(counts.Certificate)
	d.remember(counts)
	if added && d.devs.crowded() {
		keep := func(dev identity.DeviceID) bool {
			a, ok := d.DeviceAccount(dev)
			return dev == rec.Device || ok && d.keep(a)
		}
		if err := d.devs.evict(keep); err != nil {
			return counts, err
		}
	}
	return counts, ctx.Err()
}

// remember hands the node the addresses of a record.
func (d *Directory) remember(rec identity.DeviceRecord) {
	if d.cfg.Node == nil {
		return
	}
	if len(rec.Addrs) > 0 {
		d.cfg.Node.Remember(rec.Device, rec.Addrs)
	}
	for _, m := range rec.Mailboxes {
		if len(m.Addrs) > 0 && m.Device != d.cfg.Certificate.Device {
			d.cfg.Node.Remember(m.Device, m.Addrs)
		}
	}
}
