package delivery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"hima/identity"
	"hima/internal/mailbox"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

func takenKey(hash [32]byte) []byte { return keyOf(keyTaken, hash[:16]) }

// errLater: some of what an item brings can be taken only when something else was done here. It is left where it lies.
var errLater = errors.New("the item is to be taken later")

// take takes one item; true: it can be removed where it lies. An error is errLater, or one of the own database: the same item
// may be taken later.
func (m *Mail) take(ctx context.Context, it mailbox.Item, hash [32]byte, strangers bool) (done bool, err error) {
	known := false
	err = m.cfg.DB.View(func(tx *storage.Tx) (err error) {
		known, err = tx.Has(takenKey(hash))
		return err
	})
	if known || err != nil {
		return known, err
	}
	plain, used, err := m.open(it.Bytes)
	if err != nil {
		if errors.Is(err, identity.ErrNotSealedForKey) || errors.Is(err, identity.ErrMalformed) {
			m.log.Debug("leaving an item that does not open", "error", err)
			return false, nil
		}
		return false, err
	}
	mail, err := identity.ParseMail(plain, m.self)
	if err == nil && used != nil && used.device != mail.Certificate.Device {
		err = errors.New("a one-time prekey of another device")
	}
	if err != nil {
		m.log.Debug("dropping an item that says nothing", "error", err)
		return true, m.finish(ctx, it, hash, used)
	}
	return m.importMail(ctx, it, hash, strangers, mail, used)
}

// open opens an item with the one-time prekey that it names, or with one of the rotating ones.
func (m *Mail) open(item []byte) (plain []byte, used *oneTime, err error) {
	hint, err := identity.MailHint(item)
	if err != nil {
		return nil, nil, err
	}
	err = m.cfg.DB.View(func(tx *storage.Tx) error {
		o, ok, err := loadOneTime(tx, hint)
		if ok {
			used = &o
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	if used != nil {
		plain, err = identity.OpenMail(item, m.self, used.secret)
		return plain, used, err
	}
	m.mu.Lock()
	keys := slices.Clone(m.prekeys)
	m.mu.Unlock()
	err = identity.ErrNotSealedForKey
	for _, k := range slices.Backward(keys) {
		if plain, err = identity.OpenMail(item, m.self, k.secret); err == nil || !errors.Is(err, identity.ErrNotSealedForKey) {
			return plain, nil, err
		}
	}
	return nil, nil, err
}

// importMail stores what a mail says. The one-time prekey that opened it is erased in the same transaction (R24), except for
// what concerns groups: that may have to be read again, after other mails, and its keys are kept by somebody else.
func (m *Mail) importMail(ctx context.Context, it mailbox.Item, hash [32]byte, strangers bool, mail identity.Mail, used *oneTime) (bool, error) {
	from := replica.Peer{Account: mail.Certificate.Account, Device: mail.Certificate.Device}
	known := m.takesMailOf(from.Account)
	group := m.ofGroups(from.Account, mail)
	got, err := m.cfg.Feeds.Import(ctx, replica.Mailed{
		Peer: from, Record: mail.AccountRecord, Runs: mail.Runs, Receipts: mail.Receipts, Token: mail.Token, Work: mail.Work,
	}, func(tx *storage.Tx) error {
		if strangers && used == nil && !known {
			return nil // it may have to be judged again; nothing is stored twice
		}
		if known && mail.Offer != nil {
			if err := m.takeOffer(tx, from, *mail.Offer, false); err != nil {
				return err
			}
		}
		if group {
			return nil
		}
		return m.mark(tx, it, hash, used)
	})
	switch {
	case errors.Is(err, replica.ErrNotAdmitted), errors.Is(err, replica.ErrProtocol):
		m.log.Debug("dropping a mail", "device", from.Device.Short(), "error", err)
		return true, m.finish(ctx, it, hash, used)
	case errors.Is(err, replica.ErrDiverged):
		return true, nil
	case err != nil:
		return false, err
	case got.Later:
		return false, errLater
	}
	if group {
		later, err := m.takeGroups(ctx, from, mail.Keys, got)
		if later && known || err != nil {
			return false, err
		}
		if !strangers || used != nil || known {
			if err := m.finish(ctx, it, hash, used); err != nil {
				return false, err
			}
		}
	}
	m.log.Debug("took an item", "device", from.Device.Short(), "entries", got.Entries, "receipts", len(mail.Receipts), "refused", got.Refused)
	if got.Refused == pb.Code_CODE_FULL && strangers && !known {
		return false, nil
	}
	if mail.Offer != nil && !known && got.Refused == 0 { // whose first entry was taken may be answered there
		err := m.cfg.DB.Update(ctx, func(tx *storage.Tx) error { return m.takeOffer(tx, from, *mail.Offer, false) })
		if err != nil {
			return false, fmt.Errorf("keeping an offer: %w", err)
		}
	}
	m.poke()
	if used != nil {
		m.cfg.Feeds.PushOffer(from.Device)
	}
	return true, nil
}

// mark notes that an item was taken, so that its like from another mailbox is known, and erases the key that opened it.
func (m *Mail) mark(tx *storage.Tx, it mailbox.Item, hash [32]byte, used *oneTime) error {
	until := it.Until
	if longest := m.cfg.Now().Add(maxTaken); until.IsZero() || until.After(longest) {
		until = longest
	}
	if err := tx.Set(takenKey(hash), millis(until.Add(m.cfg.Limits.Slack))); err != nil {
		return err
	}
	if used == nil {
		return nil
	}
	return m.spend(tx, *used)
}

// maxTaken bounds how long an item is remembered, whatever its mailbox says.
const maxTaken = 90 * 24 * time.Hour

// finish marks an item of which nothing is stored.
func (m *Mail) finish(ctx context.Context, it mailbox.Item, hash [32]byte, used *oneTime) error {
	return m.cfg.DB.Update(ctx, func(tx *storage.Tx) error { return m.mark(tx, it, hash, used) })
}

// forgetTaken removes notes of items whose like cannot come any more.
func (m *Mail) forgetTaken(ctx context.Context) error { return m.forgetOld(ctx, keyTaken, 0) }

// forgetOld removes keys whose time, which stands at a place in their values, is over.
func (m *Mail) forgetOld(ctx context.Context, prefix string, at int) error {
	now := m.cfg.Now()
	var old [][]byte
	err := m.cfg.DB.View(func(tx *storage.Tx) error {
		return tx.Scan(storage.ScanOptions{Prefix: []byte(prefix)}, func(k, v []byte) (bool, error) {
			c := cutter{b: v}
			c.take(at)
			if until := c.time(); c.bad || until.Before(now) {
				old = append(old, k)
			}
			return len(old) < 1024, nil
		})
	})
	if err != nil || len(old) == 0 {
		return err
	}
	return m.cfg.DB.Update(ctx, func(tx *storage.Tx) error {
		for _, k := range old {
			if err := tx.Delete(k); err != nil {
				return err
			}
		}
		return nil
	})
}
