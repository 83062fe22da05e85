package directory

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"hima/identity"
	"hima/node"
	"hima/storage"
)

// What contacts do for each other: their records are looked up anew every few hours, so that the table is on nobody's way
// when it matters, and put anew every 12 hours, so that whoever is away stays to be found (R18, R19).

// Keys:
//
//	d/t/ network hash       when a record of somebody else was last looked up and last put (2 x 8 bytes, Unix milliseconds),
//	                        hash: the first 16 bytes of SHA-256 of its DHT key; unsynced
//	d/s/ network account    the stamp of a name of somebody who is kept; durable
func tendedPrefix(network identity.NetworkID) []byte { return append([]byte("d/t/"), network[:]...) }

func tendedKey(network identity.NetworkID, key string) []byte {
	h := sha256.Sum256([]byte(key))
	return append(tendedPrefix(network), h[:16]...)
}

func stampPrefix(network identity.NetworkID) []byte { return append([]byte("d/s/"), network[:]...) }

func stampKey(network identity.NetworkID, a identity.AccountID) []byte {
	return append(stampPrefix(network), a[:]...)
}

// tended says when a record was last looked up and put.
type tended struct{ fetched, put time.Time }

func (d *Directory) tended(j *joined, key string) (t tended) {
	_ = d.cfg.DB.View(func(tx *storage.Tx) error {
		if b, err := tx.Get(tendedKey(j.id, key)); err == nil && len(b) == 16 {
			t.fetched = time.UnixMilli(int64(binary.BigEndian.Uint64(b)))
			t.put = time.UnixMilli(int64(binary.BigEndian.Uint64(b[8:])))
		}
		return nil
	})
	return t
}

func (d *Directory) setTended(j *joined, key string, t tended) {
	b := binary.BigEndian.AppendUint64(nil, uint64(t.fetched.UnixMilli()))
	b = binary.BigEndian.AppendUint64(b, uint64(max(0, t.put.UnixMilli())))
	if err := d.cfg.DB.Cache(func(tx *storage.Tx) error { return tx.Set(tendedKey(j.id, key), b) }); err != nil {
		d.log.Debug("noting when a record was put", "error", err)
	}
}

// tendLoop walks through the contacts now and then.
func (d *Directory) tendLoop(ctx context.Context, j *joined, table dht) {
	wait := tendStart + rand.N(tendStart) // what the user waits for goes first
	for sleep(ctx, wait) {
		wait = tendEvery
		if table.Peers() > 0 {
			d.tend(ctx, j, table)
		}
	}
}

// tend looks after every contact whose turn it is, one record after the other.
func (d *Directory) tend(ctx context.Context, j *joined, table dht) {
	accounts, err := d.keptAccounts()
	if err != nil {
		d.log.Error("listing contacts", "error", err)
		return
	}
	for _, a := range accounts {
		if ctx.Err() != nil {
			return
		}
		r, known := d.Record(a)
		d.tendOne(ctx, j, table, tendable{
			key: identity.AccountRecordKey(a),
			raw: func() []byte {
				if r, ok := d.Record(a); ok && !r.Expired(d.now()) {
					return r.Raw()
				}
				return nil
			},
			take: func(raw []byte) error { _, err := d.Admit(ctx, raw); return err },
		})
		if !known {
			if r, known = d.Record(a); !known {
				continue
			}
		}
		for _, dev := range d.Devices(a) {
			d.tendOne(ctx, j, table, tendable{
				key: identity.DeviceRecordKey(dev),
				raw: func() []byte {
					if r, ok := d.DeviceRecord(dev); ok && !r.Expired(d.now()) {
						return r.Raw()
					}
					return nil
				},
				take: func(raw []byte) error { _, err := d.AdmitDevice(ctx, raw); return err },
			})
		}
		for _, n := range r.Names {
			if n.Network == j.id {
				d.tendName(ctx, j, table, a, n.Name)
			}
		}
	}
}

// tendable is a record of somebody else.
type tendable struct {
	key  string
	raw  func() []byte // the newest known; nil: none that is good
	take func([]byte) error
}

// tendOne looks a record up if it was not for six hours, and puts the newest if it was not for twelve.
func (d *Directory) tendOne(ctx context.Context, j *joined, table dht, r tendable) {
	t := d.tended(j, r.key)
	now := d.now()
	before := t
	if now.Sub(t.fetched) >= refetch {
		got, err := d.getOne(ctx, table, r)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			t.fetched = now
			if mine := r.raw(); mine != nil && string(mine) != string(got) {
				t.put = time.Time{} // the network has an older one, or one that was not admitted
			}
		case errors.Is(err, ErrNotFound):
			t.fetched = now
			t.put = time.Time{} // it is gone there: at once
		default:
			d.log.Debug("refreshing a record", "key", r.key, "error", err)
		}
	}
	if raw := r.raw(); raw != nil && now.Sub(t.put) >= republish {
		lost := t.put.IsZero()
		err := d.putOne(ctx, table, r.key, raw, lost)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			d.log.Debug("putting a contact's record", "key", r.key, "error", err)
		} else {
			t.put = now
		}
	}
	if t != before {
		d.setTended(j, r.key, t)
		sleep(ctx, d.pace)
	}
}

func (d *Directory) getOne(ctx context.Context, table dht, r tendable) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	raw, err := table.Get(ctx, r.key)
	if errors.Is(err, node.ErrNoRecord) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	if err := r.take(raw); err != nil {
		d.log.Debug("taking a record from the table", "key", r.key, "error", err)
	}
	return raw, nil
}

// putOne puts somebody else's record. Only one that was missing is looked for afterwards: the others were there before.
func (d *Directory) putOne(ctx context.Context, table dht, key string, raw []byte, verify bool) error {
	if verify {
		return d.publish(ctx, table, item{key: key, raw: raw, meet: func(context.Context, []byte) {}})
	}
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	if err := table.Put(ctx, key, raw); err != nil && !errors.Is(err, node.ErrOldRecord) {
		return fmt.Errorf("putting a record: %w", err)
	}
	return nil
}

// tendName keeps the stamp of a contact's name, and puts it.
func (d *Directory) tendName(ctx context.Context, j *joined, table dht, a identity.AccountID, name string) {
	d.tendOne(ctx, j, table, tendable{
		key: identity.NameKey(j.id, name),
		raw: func() []byte {
			if s, ok := d.stampOf(j, a); ok && s.Claim.Name == name {
				return identity.StampedName(s).Raw()
			}
			return nil
		},
		take: func(raw []byte) error {
			r, err := identity.ParseNameRecord(raw)
			if err != nil || r.Claim.Account != a || !r.Stamped(j.keys()) {
				return err
			}
			return d.keepStamp(ctx, j, r.Stamp)
		},
	})
}

// keepStamp keeps the stamp of somebody who matters, so that it can be put, and handed back to a register.
func (d *Directory) keepStamp(ctx context.Context, j *joined, s identity.NameStamp) error {
	if !d.keep(s.Claim.Account) || s.Claim.Account == d.self {
		return nil
	}
	if have, ok := d.stampOf(j, s.Claim.Account); ok && string(have.Raw()) == string(s.Raw()) {
		return nil
	}
	err := d.cfg.DB.Update(ctx, func(tx *storage.Tx) error {
		return tx.Set(stampKey(j.id, s.Claim.Account), s.Raw())
	})
	if err != nil {
		return fmt.Errorf("storing a contact's name: %w", err)
	}
	return nil
}

// stampOf returns the stamp that is kept of an account's name.
func (d *Directory) stampOf(j *joined, a identity.AccountID) (identity.NameStamp, bool) {
	var raw []byte
	err := d.cfg.DB.View(func(tx *storage.Tx) (err error) {
		raw, err = tx.Get(stampKey(j.id, a))
		return err
	})
	if err != nil {
		return identity.NameStamp{}, false
	}
	s, err := identity.ParseNameStamp(raw)
	return s, err == nil
}

// stamps lists the stamps that are kept of a network, or of one name there; those of accounts that are kept no longer are
// dropped.
func (d *Directory) stamps(ctx context.Context, j *joined, name string) []identity.NameStamp {
	var out []identity.NameStamp
	var stale [][]byte
	err := d.cfg.DB.View(func(tx *storage.Tx) error {
		opts := storage.ScanOptions{Prefix: stampPrefix(j.id), Limit: maxStamps}
		return tx.Scan(opts, func(key, value []byte) (bool, error) {
			if !bytes.Contains(value, []byte(name)) {
				return true, nil // two signatures each need not be checked for that
			}
			s, err := identity.ParseNameStamp(value)
			if err != nil || !d.keep(s.Claim.Account) {
				stale = append(stale, key)
				return true, nil
			}
			out = append(out, s)
			return true, nil
		})
	})
	if err == nil && len(stale) > 0 {
		err = d.cfg.DB.Update(ctx, func(tx *storage.Tx) error {
			for _, key := range stale {
				if err := tx.Delete(key); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err != nil {
		d.log.Debug("listing names of contacts", "error", err)
	}
	return out
}

// keptAccounts lists the accounts that matter to the user, the own one left out.
func (d *Directory) keptAccounts() ([]identity.AccountID, error) {
	var out []identity.AccountID
	err := d.cfg.DB.View(func(tx *storage.Tx) error {
		for _, prefix := range []string{"d/r/", "d/h/"} {
			opts := storage.ScanOptions{Prefix: []byte(prefix), KeysOnly: true}
			err := tx.Scan(opts, func(key, _ []byte) (bool, error) {
				a := identity.AccountID(key[4:36])
				if a != d.self && (len(out) == 0 || out[len(out)-1] != a) && d.keep(a) {
					out = append(out, a)
				}
				return len(out) < 2*maxTended, nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	slices.SortFunc(out, func(a, b identity.AccountID) int { return slices.Compare(a[:], b[:]) })
	out = slices.Compact(out)
	return out[:min(len(out), maxTended)], err
}
