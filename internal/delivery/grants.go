package delivery

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"hima/identity"
	"hima/internal/mailbox"
	"hima/storage"
)

// QuotaError is what SetGrant returns when more is promised than this node can keep: a promise that it would break when it
// is too late for the one who relied on it.
type QuotaError struct {
	Quota uint64 // asked for
	Most  uint64 // that can be kept
}

// Error says both in bytes.
func (e *QuotaError) Error() string {
	return fmt.Sprintf("a quota of %d bytes is more than this node can keep for others, %d", e.Quota, e.Most)
}

// SetGrant offers to keep mail for an account, or changes how much; 0 takes the offer back. *QuotaError: nothing was changed.
func (m *Mail) SetGrant(ctx context.Context, account identity.AccountID, quota uint64) (grant [16]byte, err error) {
	if m.cfg.Keeps != nil && quota > 0 {
		if most := m.cfg.Keeps(); quota > most {
			return grant, &QuotaError{Quota: quota, Most: most}
		}
	}
	key := keyOf(keyGrant, account[:])
	err = m.cfg.DB.Update(ctx, func(tx *storage.Tx) error {
		v, err := get(tx, key)
		if err != nil {
			return err
		}
		known := v != nil
		if known {
			if grant, _, err = decodeGrant(v); err != nil {
				return err
			}
		}
		if quota == 0 {
			if !known {
				return nil
			}
			if err := tx.Delete(keyOf(keyGranted, grant[:])); err != nil {
				return err
			}
			return tx.Delete(key)
		}
		if !known {
			_, _ = rand.Read(grant[:])
			if err := tx.Set(keyOf(keyGranted, grant[:]), account[:]); err != nil {
				return err
			}
		}
		return tx.Set(key, append(grant[:], u64(quota)...))
	})
	if err != nil {
		return grant, fmt.Errorf("offering to keep mail: %w", err)
	}
	return grant, nil
}

func decodeGrant(v []byte) (grant [16]byte, quota uint64, err error) {
	c := cutter{b: v}
	copy(grant[:], c.take(16))
	quota = c.u64()
	return grant, quota, c.err("a grant")
}

// Grants lists for whom this node keeps mail.
func (m *Mail) Grants() (out []GrantStatus, err error) {
	err = m.cfg.DB.View(func(tx *storage.Tx) error {
		return tx.Scan(storage.ScanOptions{Prefix: []byte(keyGrant)}, func(k, v []byte) (bool, error) {
			c := cutter{b: k[len(keyGrant):]}
			g := GrantStatus{Account: c.account()}
			var err error
			if g.Grant, g.Quota, err = decodeGrant(v); err == nil {
				err = c.err("a grant")
			}
			out = append(out, g)
			return err == nil, err
		})
	})
	return out, err
}

// GrantQuota is mailbox.ServerConfig.Grant.
func (m *Mail) GrantQuota(tx *storage.Tx, grant []byte) (quota uint64, ok bool, err error) {
	account, err := get(tx, keyOf(keyGranted, grant))
	if account == nil || err != nil {
		return 0, false, err
	}
	v, err := get(tx, keyOf(keyGrant, account))
	if v == nil || err != nil {
		return 0, false, err
	}
	_, quota, err = decodeGrant(v)
	return quota, err == nil, err
}

// PutSnapshot leaves the sealed snapshot of the self conversation at the account's mailboxes (R21); one that takes it is
// enough.
func (m *Mail) PutSnapshot(ctx context.Context, sealed []byte) error {
	secret, ok := m.cfg.Snapshot()
	if !ok {
		return ErrNoSnapshot
	}
	err, kept := error(ErrNoBox), false
	for _, t := range m.slots() {
		calling, cancel := context.WithTimeout(ctx, callTimeout)
		_, e := m.cfg.Client.OpenInbox(calling, t.ref, mailbox.InboxConfig{Secret: secret, Kind: mailbox.Slot, Grant: t.grant})
		if e == nil {
			_, e = m.cfg.Client.Deposit(calling, t.ref, mailbox.Deposit{Inbox: secret.ID(), Item: sealed, Secret: secret})
		}
		cancel()
		if kept = kept || e == nil; e != nil {
			err = e
		}
	}
	if kept {
		return nil
	}
	return fmt.Errorf("leaving a snapshot: %w", err)
}

// FetchSnapshot returns what the account's mailboxes hold as snapshots.
func (m *Mail) FetchSnapshot(ctx context.Context) ([][]byte, error) {
	secret, ok := m.cfg.Snapshot()
	if !ok {
		return nil, ErrNoSnapshot
	}
	var out [][]byte
	var failed error
	for _, t := range m.slots() {
		calling, cancel := context.WithTimeout(ctx, callTimeout)
		items, _, err := m.cfg.Client.Fetch(calling, t.ref, secret, 0, 1)
		cancel()
		switch {
		case errors.Is(err, mailbox.ErrNoInbox):
		case err != nil:
			failed = err
		}
		for _, it := range items {
			out = append(out, it.Bytes)
		}
	}
	switch {
	case len(out) > 0:
		return out, nil
	case failed != nil:
		return nil, fmt.Errorf("asking for a snapshot: %w", failed)
	}
	return nil, ErrNoSnapshot
}

// slotAt is a mailbox that may hold a snapshot.
type slotAt struct {
	ref   identity.MailboxRef
	grant []byte
}

func (m *Mail) slots() []slotAt {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []slotAt
	for _, b := range m.named() {
		out = append(out, slotAt{b.ref, b.grant})
	}
	return out
}
