package messenger

import (
	"slices"

	"hima/identity"
	"hima/internal/delivery"
	"hima/internal/feed"
	"hima/storage"
)

var _ delivery.MailHooks = (*Messenger)(nil)

// InCustody implements delivery.MailHooks: a mailbox signed for own entries that it keeps for a device of the other side, or
// in the log of a group for all members; then no device is named.
// That makes them sent (R14), once and for ever. What it keeps for own devices does not count.
func (m *Messenger) InCustody(tx *storage.Tx, h delivery.Held) error {
	if h.Peer.Account == m.env.account {
		return nil
	}
	group, err := m.isGroup(tx, h.Feed.Conversation)
	if err != nil || !group && h.Feed.Conversation != feed.DirectConversation(m.env.account, h.Peer.Account) {
		return err
	}
	row, ok, err := m.feeds.get(tx, h.Feed)
	if err != nil || !ok || !row.own(m.env.account) || group && h.Feed.Number != feed.Chat {
		return err
	}
	fresh := row.keep(h.From, h.Last)
	if len(fresh) == 0 {
		return nil
	}
	if err := m.feeds.put(tx, row); err != nil {
		return err
	}
	for _, s := range fresh {
		if err := m.tellState(tx, &row, s.from, s.to, StateSent); err != nil {
			return err
		}
	}
	return nil
}

// CustodyEnded implements delivery.MailHooks. What was once sent stays sent in history, and its road is why's to tell,
// which asks the mailboxes' receipts when it is asked; so there is nothing to note.
func (m *Messenger) CustodyEnded(*storage.Tx, delivery.Held) error { return nil }

// MailboxEvent implements delivery.MailHooks.
func (m *Messenger) MailboxEvent(device identity.DeviceID, detail string) {
	rec := plain(EventMailbox, identity.AccountID{}, feed.ConversationID{}, detail)
	rec.holder = device
	m.env.db.Submit(func(tx *storage.Tx) error { return m.events.add(tx, rec) }, func(err error) {
		if err != nil {
			m.env.log.Warn("noting what became of a mailbox", "error", err)
		}
	})
}

// whyCustody adds which mailboxes hold an entry for a device.
func (m *Messenger) whyCustody(tx *storage.Tx, w *WhyDevice, id feed.FeedID, seq uint64) (err error) {
	w.Custody, err = m.custody(tx, w.Device, id, seq)
	return err
}

// custody lists the mailboxes that hold an entry for a device, or in the log of a group for everybody: the zero device.
func (m *Messenger) custody(tx *storage.Tx, device identity.DeviceID, id feed.FeedID, seq uint64) ([]Custody, error) {
	list, err := m.env.mail.Custody(device, id, seq)
	if err != nil {
		return nil, err
	}
	var out []Custody
	for _, c := range list {
		name, err := m.holderName(tx, c.Holder)
		if err != nil {
			return nil, err
		}
		out = append(out, Custody{Mailbox: c.Holder, Name: name, Since: c.Since, Until: c.Until, Expired: c.Expired})
	}
	return out, nil
}

// inMailbox tells whether a mailbox holds the message now.
func (w *Why) inMailbox() bool {
	if slices.ContainsFunc(w.Custody, func(c Custody) bool { return !c.Expired }) {
		return true
	}
	return slices.ContainsFunc(w.Devices, func(d WhyDevice) bool {
		return slices.ContainsFunc(d.Custody, func(c Custody) bool { return !c.Expired })
	})
}

// holderName says what a node that keeps mail is called here: like the contact who offered it, or like the network that
// it serves. Of the other side's mailboxes mostly nothing is known.
func (m *Messenger) holderName(tx *storage.Tx, device identity.DeviceID) (name string, err error) {
	err = m.grants.each(tx, func(a identity.AccountID, d identity.DeviceID, _ grantRow) error {
		if d != device || name != "" {
			return nil
		}
		row, _, err := m.contacts.get(tx, a)
		name = row.name(a)
		return err
	})
	if err != nil || name != "" {
		return name, err
	}
	for _, l := range m.env.networks.Links() {
		if slices.Contains(l.Keys(), device) {
			return networkName(l.Name), nil
		}
	}
	return "", nil
}

// MailboxName says what a node that keeps mail is called here; empty: nothing is known of it.
func (m *Messenger) MailboxName(device identity.DeviceID) (name string, err error) {
	err = m.env.db.View(func(tx *storage.Tx) error {
		name, err = m.holderName(tx, device)
		return err
	})
	return name, err
}

// Accepted tells whether the owner chose to hear from an account: such a one gets an inbox of its own at our mailboxes.
// Those we asked or write to one-way are among them, or their answer could only come while we are there.
func (m *Messenger) Accepted(a identity.AccountID) bool {
	chosen := false
	err := m.env.db.View(func(tx *storage.Tx) error {
		row, ok, err := m.contacts.get(tx, a)
		chosen = ok && !row.Blocked && !row.stranger()
		return err
	})
	return err == nil && chosen
}

// RequestPolicy tells whether there is to be an inbox for first requests: not while strangers may not ask, unless one of
// them may hold an invite token (R16). Who really may is judged when a request is taken out.
func (m *Messenger) RequestPolicy() bool {
	return m.settings.strangers() != strangersDeny || m.invites.live() > 0
}
