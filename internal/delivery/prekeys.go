package delivery

import (
	"context"
	"fmt"
	"slices"
	"time"

	"hima/identity"
	"hima/internal/replica"
	"hima/storage"
)

// unpublished is how long after it was made a prekey counts as published when nobody said so: no device record of before
// lives longer.
const unpublished = identity.DeviceRecordLifetime

// rotating is a prekey of the device record. mu of Mail guards the list, newest last.
type rotating struct {
	secret    identity.PrekeySecret
	public    identity.Prekey
	created   time.Time
	published time.Time // zero: not yet known to be
}

func (r rotating) key() []byte { return keyOf(keyRotating, millis(r.created)) }

func (r rotating) value() []byte {
	b := append([]byte{1}, r.secret.Bytes()...)
	return append(b, millis(r.published)...)
}

func (m *Mail) loadPrekeys(tx *storage.Tx) error {
	return tx.Scan(storage.ScanOptions{Prefix: []byte(keyRotating)}, func(k, v []byte) (bool, error) {
		c, d := cutter{b: k[len(keyRotating):]}, cutter{b: v}
		r := rotating{created: c.time()}
		version := d.take(1)[0]
		secret, err := identity.PrekeySecretFromBytes(d.take(32))
		r.published = d.time()
		if err != nil || c.bad || d.bad || version != 1 {
			return false, fmt.Errorf("reading a prekey: %w", errMailStored)
		}
		r.secret, r.public = secret, secret.Public()
		m.prekeys = append(m.prekeys, r)
		return true, nil
	})
}

// rotate makes a prekey if there is none, or the newest is old; true: there is a new one.
func (m *Mail) rotate(ctx context.Context) (bool, error) {
	now := m.cfg.Now()
	m.mu.Lock()
	if n := len(m.prekeys); n > 0 && now.Sub(m.prekeys[n-1].created) < m.cfg.Limits.Rotation {
		m.mu.Unlock()
		return false, nil
	}
	m.mu.Unlock()
	secret := identity.GeneratePrekey()
	r := rotating{secret: secret, public: secret.Public(), created: now}
	if err := m.cfg.DB.Update(ctx, func(tx *storage.Tx) error { return tx.Set(r.key(), r.value()) }); err != nil {
		return false, fmt.Errorf("making a prekey: %w", err)
	}
	m.mu.Lock()
	m.prekeys = append(m.prekeys, r)
	m.mu.Unlock()
	return true, nil
}

// Published tells that the own device record which names this prekey is on the network since then (R24).
func (m *Mail) Published(ctx context.Context, prekey identity.Prekey, at time.Time) error {
	m.mu.Lock()
	i := slices.IndexFunc(m.prekeys, func(r rotating) bool { return r.public == prekey })
	if i < 0 || !m.prekeys[i].published.IsZero() {
		m.mu.Unlock()
		return nil
	}
	m.prekeys[i].published = at
	r := m.prekeys[i]
	m.mu.Unlock()
	err := m.cfg.DB.Update(ctx, func(tx *storage.Tx) error { return tx.Set(r.key(), r.value()) })
	if err != nil {
		return fmt.Errorf("noting what was published: %w", err)
	}
	return nil
}

// erasePrekeys erases replaced prekeys for which nothing can come in any more (R24): (a) a newer one is published for longer
// than any mailbox keeps an item, and some days more, and (b) every mailbox was emptied after what was sealed before must
// have ended there.
func (m *Mail) erasePrekeys(ctx context.Context) error {
	now := m.cfg.Now()
	m.mu.Lock()
	longest := m.longestExpiry()
	keep := len(m.prekeys)
	for i := len(m.prekeys) - 1; i > 0; i-- {
		r := m.prekeys[i]
		since := r.published
		if since.IsZero() {
			since = r.created.Add(unpublished)
		}
		if now.Sub(since) > longest+m.cfg.Limits.Slack && m.emptiedSince(since.Add(longest)) {
			keep = i
			break
		}
	}
	var gone []rotating
	if keep < len(m.prekeys) {
		gone = slices.Clone(m.prekeys[:keep])
	}
	m.mu.Unlock()
	if len(gone) == 0 {
		return m.eraseOneTime(ctx, longest)
	}
	err := m.cfg.DB.Update(ctx, func(tx *storage.Tx) error {
		for _, r := range gone {
			if err := tx.Delete(r.key()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("erasing prekeys: %w", err)
	}
	m.mu.Lock()
	m.prekeys = slices.DeleteFunc(m.prekeys, func(r rotating) bool {
		return slices.ContainsFunc(gone, func(g rotating) bool { return g.created.Equal(r.created) })
	})
	m.mu.Unlock()
	return m.eraseOneTime(ctx, longest)
}

// oneTime is a one-time prekey that was handed to a device.
type oneTime struct {
	id      identity.Hint
	secret  identity.PrekeySecret
	device  identity.DeviceID
	created time.Time
}

func oneTimeKey(id identity.Hint) []byte { return keyOf(keyOneTime, id[:]) }

func (o oneTime) value() []byte {
	b := append([]byte{1}, o.secret.Bytes()...)
	return append(append(b, o.device[:]...), millis(o.created)...)
}

func decodeOneTime(k, v []byte) (o oneTime, err error) {
	c, d := cutter{b: k[len(keyOneTime):]}, cutter{b: v}
	copy(o.id[:], c.take(16))
	version := d.take(1)[0]
	if o.secret, err = identity.PrekeySecretFromBytes(d.take(32)); err != nil {
		return o, fmt.Errorf("reading a one-time prekey: %w", errMailStored)
	}
	o.device, o.created = d.device(), d.time()
	if c.bad || d.bad || version != 1 {
		return o, fmt.Errorf("reading a one-time prekey: %w", errMailStored)
	}
	return o, nil
}

func loadOneTime(tx *storage.Tx, id identity.Hint) (o oneTime, ok bool, err error) {
	v, err := get(tx, oneTimeKey(id))
	if v == nil || err != nil {
		return o, false, err
	}
	o, err = decodeOneTime(oneTimeKey(id), v)
	return o, err == nil, err
}

// eraseOneTime erases one-time prekeys that no item can be sealed for any more: their holders use them for a while only.
func (m *Mail) eraseOneTime(ctx context.Context, longest time.Duration) error {
	old := m.cfg.Now().Add(-m.cfg.Limits.OneTimeOf - longest - m.cfg.Limits.Slack)
	var gone []oneTime
	err := m.cfg.DB.View(func(tx *storage.Tx) error {
		return tx.Scan(storage.ScanOptions{Prefix: []byte(keyOneTime)}, func(k, v []byte) (bool, error) {
			o, err := decodeOneTime(k, v)
			if err == nil && o.created.Before(old) {
				gone = append(gone, o)
			}
			return err == nil && len(gone) < 512, err
		})
	})
	if err != nil || len(gone) == 0 {
		return err
	}
	return m.cfg.DB.Update(ctx, func(tx *storage.Tx) error {
		for _, o := range gone {
			if err := m.spend(tx, o); err != nil {
				return err
			}
		}
		return nil
	})
}

// spend erases a one-time prekey; it makes room for another.
func (m *Mail) spend(tx *storage.Tx, o oneTime) error {
	if err := tx.Delete(oneTimeKey(o.id)); err != nil {
		return err
	}
	t, err := loadTold(tx, o.device)
	if err != nil {
		return err
	}
	t.hints = slices.DeleteFunc(t.hints, func(h identity.Hint) bool { return h == o.id })
	return saveTold(tx, o.device, t)
}

// handOver returns the one-time prekeys that a device may have, as many as it should: those it was handed and has not used,
// and new ones. They are durable when tx is.
func (m *Mail) handOver(tx *storage.Tx, p replica.Peer, t *told) (list []identity.OneTimePrekey, fresh bool, err error) {
	for _, id := range t.hints {
		o, ok, err := loadOneTime(tx, id)
		if err != nil {
			return nil, false, err
		}
		if ok {
			list = append(list, identity.OneTimePrekey{ID: id, Key: o.secret.Public()})
		}
	}
	want := m.cfg.Limits.OneTime
	if m.onlyComember(p.Account) {
		want = min(want, oneTimeOfComembers)
	}
	for len(list) < want {
		o := oneTime{id: identity.NewHint(), secret: identity.GeneratePrekey(), device: p.Device, created: m.cfg.Now()}
		if err := tx.Set(oneTimeKey(o.id), o.value()); err != nil {
			return nil, false, err
		}
		list = append(list, identity.OneTimePrekey{ID: o.id, Key: o.secret.Public()})
		fresh = true
	}
	t.hints = t.hints[:0]
	for _, o := range list {
		t.hints = append(t.hints, o.ID)
	}
	return list, fresh, nil
}
