package daemon

import (
	"context"
	"slices"
	"sync"
	"time"

	"hima/identity"
)

// renewBefore is how long before its end the own account record is made anew, so that contacts who are seldom seen
// still hold a valid one.
const renewBefore = 180 * 24 * time.Hour

// missed are certificates of own devices that others showed and the own record lacks (R21).
type missed struct {
	mu    sync.Mutex
	certs []identity.Certificate // bounded by MaxDevices
}

func (m *missed) add(certs []identity.Certificate) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range certs {
		if len(m.certs) < identity.MaxDevices && !slices.ContainsFunc(m.certs, func(o identity.Certificate) bool { return o.Device == c.Device }) {
			m.certs = append(m.certs, c)
		}
	}
}

func (m *missed) list() []identity.Certificate {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.certs)
}

// onOwnRecord is told that somebody holds an older record of this account with devices that the present one lacks: this
// device was restored and did not know of them. They are listed again, so that contacts serve what they wrote (R21).
func (u *unlocked) onOwnRecord(r identity.AccountRecord) {
	u.missed.add(r.Devices)
	u.touch()
}

// publishSelf makes the account record that lists this device and all others known, if the newest one does not or ends
// soon. A linked device gets its record from the first one (R17).
func (u *unlocked) publishSelf(ctx context.Context, now time.Time) error {
	key, ok := u.accountKey()
	if !ok {
		return nil
	}
	record, _ := u.directory.Record(u.vault.Account)
	devices := slices.Clone(record.Devices)
	add := func(c identity.Certificate) {
		if !record.Revokes(c.Device) && !slices.ContainsFunc(devices, func(o identity.Certificate) bool { return o.Device == c.Device }) {
			devices = append(devices, c)
		}
	}
	add(u.vault.Certificate)
	// A full list gives up the oldest key that this profile itself no longer has.
	for i := 0; len(devices) > identity.MaxDevices && i < len(u.vault.Former); i++ {
		devices = slices.DeleteFunc(devices, func(c identity.Certificate) bool { return c.Device == u.vault.Former[i] })
	}
	for _, c := range u.missed.list() {
		if len(devices) < identity.MaxDevices {
			add(c)
		}
	}
	if !record.IsZero() && len(devices) == len(record.Devices) && record.Lists(u.node.ID()) && record.Expires.Sub(now) > renewBefore {
		return nil
	}
	// The directory remembers more revoked devices than a record may name; whoever saw the older ones remembers them too.
	revoked := record.Revoked[max(0, len(record.Revoked)-identity.MaxRevoked):]
	next, err := identity.NewAccountRecord(key, identity.RecordConfig{
		LastSeq: record.Seq, Now: now, Devices: devices, Revoked: revoked, Names: record.Names,
	})
	if err != nil {
		return err
	}
	return u.directory.SetOwn(ctx, next)
}

// accountKey is the key of the account, on a device that holds it.
func (u *unlocked) accountKey() (identity.AccountKey, bool) { return u.vault.AccountKey() }
