package delivery

import (
	"context"
	"errors"
	"fmt"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/mailbox"
	"hima/internal/replica"
)

// LogItem is something that was left in a log.
type LogItem = mailbox.Item

// LogDeposit is an envelope for the log of a group's epoch.
type LogDeposit struct {
	At     []identity.MailboxRef // the group's mailboxes; one that takes it is enough
	Secret identity.InboxSecret  // of the log
	Item   []byte                // the envelope
	Holds  []replica.Span        // the own entries in it
}

// LeaveInLog leaves an envelope in a log, at all of the group's mailboxes. When it returns nil a receipt is durable, and the
// entries are in custody for everybody in the group: of such custody Held.Peer is zero. An error says that no mailbox has it.
func (m *Mail) LeaveInLog(ctx context.Context, d LogDeposit) error {
	err, kept := error(ErrNoBox), false
	results := make(chan error, len(d.At))
	for _, ref := range d.At {
		go func() { results <- m.leaveInLog(ctx, ref, d) }()
	}
	for range d.At { // each has its own deadline
		if e := <-results; e != nil {
			err = e
		} else {
			kept = true
		}
	}
	if kept {
		return nil
	}
	return fmt.Errorf("leaving an envelope: %w", err)
}

// leaveInLog leaves an envelope at one mailbox, which may have to be told first that there is such a log, and keeps the
// receipt.
func (m *Mail) leaveInLog(ctx context.Context, ref identity.MailboxRef, d LogDeposit) error {
	if m.lied(ref.Device) {
		return fmt.Errorf("a mailbox that lied: %w", mailbox.ErrBadReceipt)
	}
	calling, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	item := mailbox.Deposit{Inbox: d.Secret.ID(), Item: d.Item}
	receipt, err := m.cfg.Client.Deposit(calling, ref, item)
	if errors.Is(err, mailbox.ErrNoInbox) {
		if _, err = m.cfg.Client.OpenInbox(calling, ref, mailbox.InboxConfig{Secret: d.Secret, Kind: mailbox.Log, Grant: m.grantAt(ref.Device)}); err == nil {
			receipt, err = m.cfg.Client.Deposit(calling, ref, item)
		}
	}
	m.judge(ref.Device, err)
	if err != nil {
		return err
	}
	return m.keep(ctx, replica.Export{Spans: d.Holds}, ref.Device, m.promised(receipt))
}

func (m *Mail) lied(dev identity.DeviceID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.bad[dev].After(m.cfg.Now())
}

// grantAt is what this account shows a mailbox that keeps mail for chosen people; nil: nothing.
func (m *Mail) grantAt(dev identity.DeviceID) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b := m.boxes[dev]; b != nil {
		return b.grant
	}
	return nil
}

// ReadLog returns what lies in a log after a cursor, oldest first: at most max items, 0: as much as one answer holds.
func (m *Mail) ReadLog(ctx context.Context, at identity.MailboxRef, secret identity.InboxSecret, after uint64, max int) (items []LogItem, more bool, err error) {
	calling, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	items, more, err = m.cfg.Client.Fetch(calling, at, secret, after, max)
	if errors.Is(err, mailbox.ErrNoInbox) {
		return nil, false, nil // nobody left anything yet, or it ended
	}
	return items, more, err
}

// WatchLogs tells which logs at one mailbox have something, first of what is so now and then of what comes, until ctx or
// the stream ends; it always returns an error. tell must not block. Logs that nobody opened yet are watched too.
func (m *Mail) WatchLogs(ctx context.Context, at identity.MailboxRef, secrets []identity.InboxSecret, tell func([]identity.InboxID)) error {
	return m.cfg.Client.Watch(ctx, at, secrets, func(waiting, _ []identity.InboxID) { tell(waiting) })
}

// InLog is up to where, from one number of an own feed on, everything lies in logs whose receipts count; from-1: nothing.
func (m *Mail) InLog(id feed.FeedID, from uint64) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ledger.covered(identity.DeviceID{}, id, from, m.cfg.Now())
}
