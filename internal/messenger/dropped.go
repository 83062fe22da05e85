package messenger

import (
	"time"

	"hima/internal/feed"
	"hima/storage"
)

// Dropped hears from the replica that a feed is not held any more from a number on: what was replaced under a former key, or what
// somebody else said on a branch that led nowhere. Nothing is shown of it, not even that something is missing.
func (m *Messenger) Dropped(tx *storage.Tx, id feed.FeedID, from uint64) error {
	row, ok, err := m.feeds.get(tx, id)
	if err != nil || !ok || row.last < from {
		return err
	}
	conv, ok, err := m.convs.get(tx, id.Conversation)
	if err != nil || !ok {
		return err
	}
	row.many = conv.group()
	unread, err := m.unreadFrom(tx, &row, from)
	if err != nil {
		return err
	}
	if err := m.arrivals.drop(tx, row.local, from, row.last); err != nil {
		return err
	}
	row.retreat(from)
	if err := m.feeds.put(tx, row); err != nil {
		return err
	}
	conv.unread -= min(conv.unread, unread)
	if conv.last.Seq >= from && conv.lastFeed() == id {
		if conv.last, err = m.newestKey(tx, id.Conversation); err != nil {
			return err
		}
	}
	return m.convs.put(tx, conv)
}

// unreadFrom counts the unread lines of a feed from a number on, as they were counted when they came. Beyond scanCap it counts numbers.
func (m *Messenger) unreadFrom(tx *storage.Tx, row *feedRow, from uint64) (n uint64, err error) {
	if row.own(m.env.account) || row.id.Number != feed.Chat || row.last <= row.read {
		return 0, nil
	}
	if from = max(from, row.read+1); row.last-from >= scanCap {
		return row.last - from + 1, nil
	}
	var gone []feed.Entry
	err = m.env.feeds.Entries(tx, row.id, from, row.last, func(e feed.Entry) (bool, error) {
		gone = append(gone, e)
		return true, nil
	})
	if err != nil {
		return 0, err
	}
	counting := len(gone)
	if row.many {
		if counting, err = m.counting(tx, gone); err != nil {
			return 0, err
		}
	}
	for i := range gone[:counting] {
		if m.shown(&gone[i]) {
			n++
		}
	}
	return n, nil
}

// newestKey is where the newest message of a conversation stands; zero if there is none.
func (m *Messenger) newestKey(tx *storage.Tx, conv feed.ConversationID) (feed.OrderKey, error) {
	const lines = 8 // the newest ones may tell that something is missing
	merge, err := m.history.merge(tx, conv, nil, lines)
	if err != nil {
		return feed.OrderKey{}, err
	}
	page, _, err := m.history.page(tx, merge, lines, time.Time{})
	for i := range page {
		if page[i].entry.Seq > 0 {
			return page[i].key, err
		}
	}
	return feed.OrderKey{}, err
}
