package messenger

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"hima/identity"
	"hima/internal/delivery"
	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/storage"
)

// A grant lets a contact keep mail at another contact's node. It is a control entry of their conversation, so that it
// is durable at the one before the other may use it. The node that gave it judges by its own list (Mail.SetGrant); the
// entry only tells of it.

// maxGrants bounds the nodes of one contact that are remembered.
const maxGrants = 16

// grantRow is what a contact's node offers. An empty grant was taken back; the row stays for its stamp.
type grantRow struct {
	Grant []byte   `json:"g,omitempty"`
	Quota uint64   `json:"q,omitempty"`
	Addrs []string `json:"a,omitempty"`
	Time  int64    `json:"t"`
	Stamp stamp    `json:"s"`
}

// givenRow is what this node offers to a contact.
type givenRow struct {
	Quota uint64 `json:"q,omitempty"`
	Ended bool   `json:"e,omitempty"` // the contact is none any more; the grant is to be taken back
}

// Grant is a contact's standing offer to keep our mail.
type Grant struct {
	Account identity.AccountID
	Name    string
	Device  identity.DeviceID
	Addrs   []string
	Grant   [16]byte
	Quota   uint64
	Time    time.Time // the author's clock
}

// MailboxOffer is our offer to keep a contact's mail.
type MailboxOffer struct {
	Account identity.AccountID
	Name    string
	Quota   uint64 // 0: taken back
}

// grants is the table of both.
type grants struct {
	env  *env
	turn chan struct{} // one slot: whoever gives or takes back holds it, so that a new grant is not taken for the old one
}

func newGrants(e *env) *grants { return &grants{env: e, turn: make(chan struct{}, 1)} }

func (g *grants) begin(ctx context.Context) error {
	select {
	case g.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g *grants) end() { <-g.turn }

func grantKey(a identity.AccountID, d identity.DeviceID) []byte {
	return slices.Concat([]byte(keyGrant), a[:], d[:])
}

func givenKey(a identity.AccountID) []byte { return append([]byte(keyGiven), a[:]...) }

func (g *grants) get(tx *storage.Tx, a identity.AccountID, d identity.DeviceID) (row grantRow, ok bool, err error) {
	b, ok, err := getRow(tx, grantKey(a, d))
	if err == nil && ok && json.Unmarshal(b, &row) != nil {
		err = fmt.Errorf("reading grant: %w", errRow)
	}
	return row, ok, err
}

// each calls f for every grant of others, the taken-back ones too.
func (g *grants) each(tx *storage.Tx, f func(identity.AccountID, identity.DeviceID, grantRow) error) error {
	return tx.Scan(storage.ScanOptions{Prefix: []byte(keyGrant)}, func(key, val []byte) (bool, error) {
		var a identity.AccountID
		var d identity.DeviceID
		var row grantRow
		rest := key[len(keyGrant):]
		if len(rest) != len(a)+len(d) || json.Unmarshal(val, &row) != nil {
			return false, fmt.Errorf("reading grant: %w", errRow)
		}
		copy(d[:], rest[copy(a[:], rest):])
		return true, f(a, d, row)
	})
}

func (g *grants) given(tx *storage.Tx, a identity.AccountID) (row givenRow, ok bool, err error) {
	b, ok, err := getRow(tx, givenKey(a))
	if err == nil && ok && json.Unmarshal(b, &row) != nil {
		err = fmt.Errorf("reading offer: %w", errRow)
	}
	return row, ok, err
}

func (g *grants) give(tx *storage.Tx, a identity.AccountID, row givenRow) error {
	b, err := json.Marshal(row)
	if err != nil {
		return fmt.Errorf("writing offer: %w", err)
	}
	return tx.Set(givenKey(a), b)
}

// foldGrant applies a MailboxGrant of a contact. It counts only for the node that wrote it: nobody can send our mail to a
// third one's node, and of somebody who is no contact it says nothing.
func (m *Messenger) foldGrant(tx *storage.Tx, e *feed.Entry, p *pb.MailboxGrant) error {
	if e.Account == m.env.account {
		return errIgnored
	}
	c, _, err := m.contacts.get(tx, e.Account)
	if err != nil {
		return err
	}
	if c.stranger() {
		c.Cost.Control++
		return m.contacts.put(tx, e.Account, c)
	}
	ref, err := identity.MailboxRefFromPB(&pb.MailboxRef{Device: p.GetDevice(), Addrs: p.GetAddrs()})
	if err != nil || ref.Device != e.Device || len(p.GetGrant()) != 0 && len(p.GetGrant()) != len(Grant{}.Grant) {
		return errIgnored
	}
	before, known, err := m.grants.get(tx, e.Account, e.Device)
	if err != nil {
		return err
	}
	if known && !before.Stamp.before(stampOf(e)) {
		return errIgnored
	}
	if !known {
		if n, err := m.grants.count(tx, e.Account); err != nil || n >= maxGrants {
			return errors.Join(err, errIgnored)
		}
	}
	row := grantRow{Grant: p.GetGrant(), Time: e.TimeMS, Stamp: stampOf(e)}
	if len(row.Grant) > 0 {
		row.Quota, row.Addrs = p.GetQuotaBytes(), ref.Addrs
	}
	b, err := json.Marshal(row)
	if err != nil {
		return fmt.Errorf("writing grant: %w", err)
	}
	if err := tx.Set(grantKey(e.Account, e.Device), b); err != nil {
		return err
	}
	tx.OnCommit(m.env.grantsChanged)
	detail := "offered"
	switch {
	case len(row.Grant) == 0 && len(before.Grant) == 0:
		return nil
	case len(row.Grant) == 0:
		detail = "withdrawn"
	case bytes.Equal(row.Grant, before.Grant) && row.Quota == before.Quota:
		return nil // only its addresses changed
	}
	rec := plain(EventMailbox, e.Account, e.Conversation, detail)
	rec.holder = e.Device
	return m.events.add(tx, rec)
}

func (g *grants) count(tx *storage.Tx, a identity.AccountID) (n int, err error) {
	o := storage.ScanOptions{Prefix: append([]byte(keyGrant), a[:]...), KeysOnly: true}
	err = tx.Scan(o, func(_, _ []byte) (bool, error) {
		n++
		return true, nil
	})
	return n, err
}

// Grants lists the contacts' nodes that may be used as mailboxes. What somebody offered who is no contact any more, or by a
// device that is none of theirs any more, is not among them.
func (m *Messenger) Grants(ctx context.Context) ([]Grant, error) {
	var out []Grant
	err := m.env.db.View(func(tx *storage.Tx) error {
		return m.grants.each(tx, func(a identity.AccountID, d identity.DeviceID, row grantRow) error {
			c, _, err := m.contacts.get(tx, a)
			if err != nil || len(row.Grant) == 0 || c.relation() != RelationContact {
				return err
			}
			if r, known := m.env.people.Record(a); known && !r.Lists(d) {
				return nil // a device that is gone keeps nothing
			}
			out = append(out, Grant{
				Account: a, Name: c.name(a), Device: d, Addrs: row.Addrs, Grant: [16]byte(row.Grant),
				Quota: row.Quota, Time: time.UnixMilli(row.Time),
			})
			return nil
		})
	})
	return out, err
}

// Grant returns the newest offer of one contact.
func (m *Messenger) Grant(ctx context.Context, who string) (Grant, error) {
	t, err := m.who.known(who)
	if err != nil {
		return Grant{}, err
	}
	list, err := m.Grants(ctx)
	if err != nil {
		return Grant{}, err
	}
	var newest Grant
	for _, g := range list {
		if g.Account == t.account && (newest.Account.IsZero() || g.Time.After(newest.Time)) {
			newest = g
		}
	}
	if newest.Account.IsZero() {
		return Grant{}, refuse(ErrNotFound, "this account offers to keep no mail for you", "they can with `hima mailbox offer`")
	}
	return newest, nil
}

// OfferMailbox offers a contact to keep their mail here, changes the quota, or with quota 0 takes the offer back.
func (m *Messenger) OfferMailbox(ctx context.Context, who string, quota uint64) (MailboxOffer, error) {
	t, err := m.who.known(who)
	if err != nil {
		return MailboxOffer{}, err
	}
	if err := m.grants.begin(ctx); err != nil {
		return MailboxOffer{}, err
	}
	defer m.grants.end()
	offer := MailboxOffer{Account: t.account, Quota: quota}
	var before givenRow
	given := false
	err = m.env.db.View(func(tx *storage.Tx) error {
		row, _, err := m.contacts.get(tx, t.account)
		if err != nil {
			return err
		}
		if before, given, err = m.grants.given(tx, t.account); err != nil {
			return err
		}
		offer.Name = row.name(t.account)
		if row.relation() != RelationContact && quota > 0 {
			return refuse(ErrNotContact, "mail is kept for contacts", "`hima contact add` first")
		}
		return m.writable(tx, feed.DirectConversation(m.env.account, t.account))
	})
	if err != nil || quota == 0 && !given {
		return offer, err
	}
	if quota > 0 {
		// Noted before the grant is made: one that is made and not noted would never be taken back.
		if err := m.env.update(ctx, func(tx *storage.Tx) error { return m.grants.give(tx, t.account, givenRow{Quota: quota}) }); err != nil {
			return MailboxOffer{}, err
		}
	}
	grant, err := m.env.mail.SetGrant(ctx, t.account, quota)
	if tooMuch, ok := errors.AsType[*delivery.QuotaError](err); ok {
		return MailboxOffer{}, errors.Join(refuse(ErrTooLarge, fmt.Sprintf("this node can keep at most %d MiB for others", tooMuch.Most>>20),
			"offer less with `--quota`"), m.env.update(ctx, func(tx *storage.Tx) error {
			if !given {
				return tx.Delete(givenKey(t.account))
			}
			return m.grants.give(tx, t.account, before)
		}))
	}
	if err != nil {
		return MailboxOffer{}, err
	}
	return offer, m.env.update(ctx, func(tx *storage.Tx) error { return m.tellGrant(tx, t.account, grant, quota) })
}

// tellGrant tells a contact what is offered.
func (m *Messenger) tellGrant(tx *storage.Tx, a identity.AccountID, grant [16]byte, quota uint64) error {
	row, _, err := m.contacts.get(tx, a)
	if err != nil {
		return err
	}
	p := &pb.MailboxGrant{Device: m.env.device.Bytes()}
	switch {
	case quota == 0:
		if err := tx.Delete(givenKey(a)); err != nil {
			return err
		}
	case row.relation() != RelationContact:
		return refuse(ErrConflict, "this account is no contact any more", "")
	default:
		ref := identity.MailboxRef{Device: m.env.device, Addrs: m.config.Addrs()}
		p.Grant, p.QuotaBytes, p.Addrs = grant[:], quota, ref.PB().GetAddrs()
	}
	if row.stranger() || row.Blocked {
		return nil // they are not told of anything any more
	}
	_, err = m.writeControl(tx, a, feed.KindMailboxGrant, p)
	return err
}

// endGrant notes that what an account was offered is to be taken back: it is no contact any more.
func (m *Messenger) endGrant(tx *storage.Tx, a identity.AccountID) error {
	row, ok, err := m.grants.given(tx, a)
	if err != nil || !ok || row.Ended {
		return err
	}
	tx.OnCommit(m.wake)
	row.Ended = true
	return m.grants.give(tx, a, row)
}

// takeBack ends the grants of those who are no contacts any more. It runs in the background, because the list of grants
// is another package's; a grant that was noted stays noted until it is gone.
func (m *Messenger) takeBack(ctx context.Context) error {
	if err := m.grants.begin(ctx); err != nil {
		return err
	}
	defer m.grants.end()
	var ended []identity.AccountID
	err := m.env.db.View(func(tx *storage.Tx) error {
		return tx.Scan(storage.ScanOptions{Prefix: []byte(keyGiven)}, func(key, val []byte) (bool, error) {
			var row givenRow
			a, err := identity.AccountIDFromBytes(key[len(keyGiven):])
			if err != nil || json.Unmarshal(val, &row) != nil {
				return false, fmt.Errorf("reading offer: %w", errRow)
			}
			if row.Ended {
				ended = append(ended, a)
			}
			return true, nil
		})
	})
	if err != nil {
		return err
	}
	for _, a := range ended {
		if _, err := m.env.mail.SetGrant(ctx, a, 0); err != nil {
			return fmt.Errorf("taking a grant back: %w", err)
		}
		err := m.env.update(ctx, func(tx *storage.Tx) error { return tx.Delete(givenKey(a)) })
		if err != nil {
			return err
		}
	}
	return nil
}
