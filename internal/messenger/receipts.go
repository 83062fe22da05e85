package messenger

import (
	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/storage"
)

// Acked implements replica.Hooks: a device holds an own feed up to a number. Only devices of other accounts make a
// message sent (R14), and the first of them makes it delivered (R13).
func (m *Messenger) Acked(tx *storage.Tx, a replica.Ack) error {
	if a.Peer.Account == m.env.account {
		return nil
	}
	return m.delivered(tx, a.Feed, a.Peer.Account, a.From, a.Last)
}

func (m *Messenger) delivered(tx *storage.Tx, id feed.FeedID, account identity.AccountID, from, to uint64) error {
	row, ok, err := m.feeds.get(tx, id)
	if err != nil || !ok || !row.own(m.env.account) {
		return err
	}
	if group, err := m.isGroup(tx, id.Conversation); err != nil || group {
		if err != nil || id.Number != feed.Chat {
			return err // acts have no state of their own
		}
		return m.reached(tx, &row, account, from, to, 0)
	}
	old := row.delivered
	to = min(to, row.last)
	if !row.deliver(from, to) {
		return nil
	}
	if err := m.feeds.put(tx, row); err != nil || row.delivered == old {
		return err
	}
	return m.tellState(tx, &row, max(old+1, from), row.delivered, StateDelivered)
}

// tellState tells that own messages changed. The control feed of the self conversation and the like carries none.
func (m *Messenger) tellState(tx *storage.Tx, row *feedRow, from, to uint64, s State) error {
	if row.id.Conversation == m.env.self {
		return nil
	}
	return m.events.add(tx, stateRecord(row.local, from, to, s))
}

// Refused implements replica.Hooks: what why answers later. It is no event: the sender tries again by itself.
func (m *Messenger) Refused(tx *storage.Tx, r replica.Refusal) error {
	row, ok, err := m.feeds.get(tx, r.Feed)
	if err != nil || !ok || !row.own(m.env.account) || r.From <= row.delivered {
		return err
	}
	// In a group one member who does not take it, yet, says nothing about the others.
	if group, err := m.isGroup(tx, r.Feed.Conversation); err != nil || group {
		return err
	}
	if row.refused == r.Code && row.refusedAt == r.From {
		return nil
	}
	row.refused, row.refusedAt = r.Code, r.From
	return m.feeds.put(tx, row)
}

// NotTaken implements replica.Hooks (R16).
func (m *Messenger) NotTaken(tx *storage.Tx, n replica.NotTaken) error {
	row, ok, err := m.feeds.get(tx, n.Feed)
	if err != nil || !ok || !row.own(m.env.account) || n.Peer.Account == m.env.account {
		return err
	}
	// A newcomer to a group is owed nothing of before.
	if group, err := m.isGroup(tx, n.Feed.Conversation); err != nil || group {
		return err
	}
	to := min(n.To, row.last)
	if !row.skip(n.From, to) {
		return nil
	}
	if row.refusedAt > 0 && row.refusedAt <= to {
		row.refused, row.refusedAt = 0, 0
	}
	if err := m.feeds.put(tx, row); err != nil {
		return err
	}
	return m.tellState(tx, &row, max(n.From, row.delivered+1), to, StateNotTaken)
}

// Receipt implements replica.Hooks (R15).
func (m *Messenger) Receipt(tx *storage.Tx, r replica.Receipt) error {
	if r.Peer.Account == m.env.account {
		return nil
	}
	for _, item := range r.Items {
		if item.Feed.Conversation != r.Conversation {
			continue
		}
		if err := m.receiptItem(tx, r.Peer.Account, item); err != nil {
			return err
		}
	}
	return nil
}

func (m *Messenger) receiptItem(tx *storage.Tx, account identity.AccountID, item replica.ReceiptItem) error {
	row, ok, err := m.feeds.get(tx, item.Feed)
	if err != nil || !ok || !row.own(m.env.account) {
		return err
	}
	if group, err := m.isGroup(tx, item.Feed.Conversation); err != nil || group {
		if err != nil || item.Feed.Number != feed.Chat {
			return err
		}
		return m.reached(tx, &row, account, max(item.First, 1), item.Acked, item.Read)
	}
	// A claim beyond what we wrote is nonsense; one beyond what was acknowledged is kept to what was.
	// The head of a device that set a floor lies right below it at first: that acknowledges nothing (R16).
	if from := max(row.delivered+1, item.First); item.Acked >= from {
		if err := m.delivered(tx, item.Feed, account, from, item.Acked); err != nil {
			return err
		}
		if row, _, err = m.feeds.get(tx, item.Feed); err != nil {
			return err
		}
	}
	read := min(item.Read, row.delivered)
	if read <= row.peerRead {
		return nil
	}
	old := row.peerRead
	row.peerRead = read
	if err := m.feeds.put(tx, row); err != nil {
		return err
	}
	return m.tellState(tx, &row, old+1, read, StateRead)
}

// Forked implements replica.Hooks (R3): the chat of the feed ends before the fork.
func (m *Messenger) Forked(tx *storage.Tx, f replica.Fork) error {
	// Of a control feed it says which acts count no more, whatever is known of the feed here.
	if group, err := m.isGroup(tx, f.Feed.Conversation); err != nil || group && f.Feed.Number == feed.Control {
		if err != nil {
			return err
		}
		return m.env.groups.Forked(tx, f)
	}
	row, ok, err := m.feeds.get(tx, f.Feed)
	if err != nil || !ok {
		return err
	}
	if row.cut != 0 && row.cut <= f.At {
		return nil
	}
	row.cut = f.At
	if err := m.feeds.put(tx, row); err != nil {
		return err
	}
	w := plain(EventWarning, row.account, f.Feed.Conversation, "forked_feed")
	if err := m.events.add(tx, w); err != nil || !m.former(f.Feed) {
		return err
	}
	next, err := m.sayCut(tx, &row, 0)
	if next > 0 {
		tx.OnCommit(m.wakeCut)
	}
	return err
}

// OwnFeedDiverged implements replica.Hooks.
func (m *Messenger) OwnFeedDiverged(id feed.FeedID) {
	m.env.log.Warn("this device's feed is different elsewhere, the profile is a copy", "conversation", id.Conversation.Short())
	if m.config.Diverged != nil {
		m.config.Diverged(id)
	}
}
