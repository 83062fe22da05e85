package directory

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"hima/identity"
	"hima/storage"
)

// Keys of the records, written durably:
//
//	d/r/ account            the signed bytes of the newest record
//	d/x/ account            device keys ever seen revoked, 32 bytes each, oldest first
func recordKey(a identity.AccountID) []byte  { return append([]byte("d/r/"), a[:]...) }
func revokedKey(a identity.AccountID) []byte { return append([]byte("d/x/"), a[:]...) }

// ErrNotAdmitted is returned by Admit for bytes that are no valid record; it wraps the reason.
var ErrNotAdmitted = errors.New("account record not admitted")

// recordCache holds checked records in memory. Its lock guards all fields and is never held while the database is
// asked.
type recordCache struct {
	mu      sync.RWMutex
	records map[identity.AccountID]identity.AccountRecord
	// changes counts commits, so that a record read before one does not enter the cache after it.
	changes uint64
}

func (c *recordCache) init() { c.records = map[identity.AccountID]identity.AccountRecord{} }

func (c *recordCache) get(a identity.AccountID) (r identity.AccountRecord, ok bool, changes uint64) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	r, ok = c.records[a]
	return r, ok, c.changes
}

// put enters what was just committed.
func (c *recordCache) put(r identity.AccountRecord) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changes++
	c.enter(r)
}

// loaded enters what was read from disk, if nothing was committed since.
func (c *recordCache) loaded(r identity.AccountRecord, changes uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.changes == changes {
		c.enter(r)
	}
}

func (c *recordCache) enter(r identity.AccountRecord) {
	if _, ok := c.records[r.Account]; !ok && len(c.records) >= maxCache {
		for a := range c.records { // any one: it is read again when it is asked for
			delete(c.records, a)
			break
		}
	}
	c.records[r.Account] = r
}

func (c *recordCache) drop(a identity.AccountID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changes++
	delete(c.records, a)
}

// SetOwn stores this account's own record, which must be at least as new as what others may know.
func (d *Directory) SetOwn(ctx context.Context, r identity.AccountRecord) error {
	if r.Account != d.self {
		return fmt.Errorf("storing own record: of another account: %w", identity.ErrMalformed)
	}
	_, err := d.Admit(ctx, r.Raw())
	return err
}

// Admit checks signed bytes and keeps the record if it is newer than any seen of that account before (R11). It returns
// the record that counts afterwards, durable; an older one is not an error. In the returned record devices that were ever
// revoked are gone from Devices and stand in Revoked, even where the signed bytes list them again.
func (d *Directory) Admit(ctx context.Context, raw []byte) (identity.AccountRecord, error) {
	next, err := identity.ParseAccountRecord(raw)
	if err != nil {
		return identity.AccountRecord{}, fmt.Errorf("%w: %w", ErrNotAdmitted, err)
	}
	if have, ok := d.Record(next.Account); ok && !identity.Supersedes(have, next) {
		d.missed(have, next)
		return have, nil
	}
	counts := next
	newer, stranger := false, false
	err = d.cfg.DB.Update(ctx, func(tx *storage.Tx) error {
		have, known, err := d.read(tx, next.Account)
		if err != nil {
			return err
		}
		if known && !identity.Supersedes(have, next) {
			counts = have
			return nil
		}
		gone := have.Revoked
		for _, r := range next.Revoked {
			if !slices.Contains(gone, r) {
				gone = append(slices.Clip(gone), r)
			}
		}
		counts = effective(next, gone)
		if err := tx.Set(recordKey(next.Account), next.Raw()); err != nil {
			return err
		}
		if len(gone) > 0 {
			if err := tx.Set(revokedKey(next.Account), packDevices(gone)); err != nil {
				return err
			}
		}
		newer, stranger = true, !known && !d.keep(next.Account)
		r := counts
		tx.OnCommit(func() {
			d.records.put(r)
			if !known {
				d.counts.records.Add(1)
			}
			if r.Account == d.self {
				d.nudgeAll()
			}
		})
		return nil
	})
	if err != nil {
		return identity.AccountRecord{}, fmt.Errorf("storing account record: %w", err)
	}
	if newer && d.cfg.OnRecord != nil {
		d.cfg.OnRecord(counts)
	}
	if stranger && d.counts.records.Load() > maxStrangers {
		if err := d.evictRecords(ctx, next.Account); err != nil {
			return counts, err
		}
	}
	return counts, nil
}

// missed reports a record of the own account that is older than what counts and lists devices that are missing there and
// were never revoked: this device was restored without knowing of them (R21).
func (d *Directory) missed(have, shown identity.AccountRecord) {
	if shown.Account != d.self || d.cfg.OnOwnRecord == nil {
		return
	}
	for _, c := range shown.Devices {
		if !have.Lists(c.Device) && !have.Revokes(c.Device) {
			d.cfg.OnOwnRecord(shown)
			return
		}
	}
}

// effective is a record as it counts: what was ever revoked stays revoked (R11).
func effective(r identity.AccountRecord, gone []identity.DeviceID) identity.AccountRecord {
	if len(gone) > maxRevoked {
		gone = gone[len(gone)-maxRevoked:]
	}
	r.Revoked = slices.Clone(gone)
	r.Devices = slices.DeleteFunc(slices.Clone(r.Devices), func(c identity.Certificate) bool {
		return slices.Contains(r.Revoked, c.Device)
	})
	return r
}

// read reads the record that counts from disk.
func (d *Directory) read(tx *storage.Tx, a identity.AccountID) (identity.AccountRecord, bool, error) {
	raw, err := tx.Get(recordKey(a))
	if errors.Is(err, storage.ErrNotFound) {
		return identity.AccountRecord{}, false, nil
	}
	if err != nil {
		return identity.AccountRecord{}, false, err
	}
	r, err := identity.ParseAccountRecord(raw)
	if err != nil {
		return identity.AccountRecord{}, false, fmt.Errorf("reading stored record of %s: %w", a.Short(), err)
	}
	packed, err := tx.Get(revokedKey(a))
	if errors.Is(err, storage.ErrNotFound) {
		return r, true, nil
	}
	if err != nil {
		return identity.AccountRecord{}, false, err
	}
	return effective(r, unpackDevices(packed)), true, nil
}

// Record returns the newest record ever seen of an account, also the own one.
func (d *Directory) Record(a identity.AccountID) (identity.AccountRecord, bool) {
	r, ok, changes := d.records.get(a)
	if ok {
		return r, true
	}
	err := d.cfg.DB.View(func(tx *storage.Tx) (err error) {
		r, ok, err = d.read(tx, a)
		return err
	})
	if err != nil {
		d.log.Error("reading an account record", "account", a.Short(), "error", err)
		return identity.AccountRecord{}, false
	}
	if ok {
		d.records.loaded(r, changes)
	}
	return r, ok
}

// Valid tells whether a device counts as one of an account: listed in its newest record and never revoked.
func (d *Directory) Valid(a identity.AccountID, dev identity.DeviceID) bool {
	r, ok := d.Record(a)
	return ok && r.Lists(dev)
}

// evictRecords drops the strangers' records that were heard of longest ago, an eighth of them at a time.
func (d *Directory) evictRecords(ctx context.Context, spare identity.AccountID) error {
	return d.cfg.DB.Update(ctx, func(tx *storage.Tx) error {
		var all []aged[identity.AccountID]
		err := tx.Scan(storage.ScanOptions{Prefix: []byte("d/r/"), KeysOnly: true}, func(key, _ []byte) (bool, error) {
			a := identity.AccountID(key[4:])
			if a != spare && !d.keep(a) {
				all = append(all, aged[identity.AccountID]{id: a})
			}
			return true, nil
		})
		if err != nil {
			return err
		}
		if len(all) < maxStrangers {
			// The count began with all records; from here on it is that of strangers.
			tx.OnCommit(func() { d.counts.records.Store(int64(len(all))) })
			return nil
		}
		for i := range all {
			devs, err := heard(tx, all[i].id)
			if err != nil {
				return err
			}
			for _, dev := range devs {
				if p, ok := readPage(tx, dev); ok && p.seen > all[i].at {
					all[i].at = p.seen
				}
			}
		}
		slices.SortFunc(all, oldestFirst)
		victims := all[:len(all)-maxStrangers*7/8]
		for _, v := range victims {
			if err := tx.Delete(recordKey(v.id)); err != nil {
				return err
			}
			if err := tx.Delete(revokedKey(v.id)); err != nil {
				return err
			}
		}
		tx.OnCommit(func() {
			for _, v := range victims {
				d.records.drop(v.id)
			}
			d.counts.records.Add(-int64(len(victims)))
		})
		return nil
	})
}

// aged is something with the Unix milliseconds of when it was last heard of.
type aged[T any] struct {
	id T
	at int64
}

func oldestFirst[T any](a, b aged[T]) int {
	switch {
	case a.at < b.at:
		return -1
	case a.at > b.at:
		return 1
	}
	return 0
}

func packDevices(devs []identity.DeviceID) []byte {
	devs = devs[max(0, len(devs)-maxRevoked):]
	b := make([]byte, 0, 32*len(devs))
	for _, dev := range devs {
		b = append(b, dev[:]...)
	}
	return b
}

func unpackDevices(b []byte) []identity.DeviceID {
	var devs []identity.DeviceID
	for c := range slices.Chunk(b, 32) {
		if len(c) == 32 {
			devs = append(devs, identity.DeviceID(c))
		}
	}
	return devs
}
