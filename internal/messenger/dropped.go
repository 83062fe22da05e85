package messenger

import (
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
	if err := m.arrivals.drop(tx, row.local, from); err != nil {
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

// unreadFrom counts the unread lines of a feed from a number on, as they were counted when they came.
func (m *Messenger) unreadFrom(tx *storage.Tx, row *feedRow, from uint64) (n uint64, err error) {
	if row.own(m.env.account) || row.id.Number != feed.Chat || row.last <= row.read {
		return 0, nil
	}
	const atOnce = 256 // not all of a long branch is to be in memory
	var some []feed.Entry
	count := func() error {
		counting := len(some)
		if row.many {
			var err error
			if counting, err = m.counting(tx, some); err != nil {
				return err
			}
		}
		for i := range some[:counting] {
			if m.shown(&some[i]) {
				n++
			}
		}
		some = some[:0]
		return nil
	}
	err = m.env.feeds.Entries(tx, row.id, max(from, row.read+1), row.last, func(e feed.Entry) (bool, error) {
		if some = append(some, e); len(some) < atOnce {
			return true, nil
		}
		return true, count()
	})
	if err == nil {
		err = count()
	}
	return n, err
}

// newestKey is where the newest message of a conversation stands that arrived; zero if there is none. What is being stored with what is
// dropped has not: it is told of later in the transaction.
func (m *Messenger) newestKey(tx *storage.Tx, conv feed.ConversationID) (feed.OrderKey, error) {
	const (
		lines = 8       // the newest ones may tell that something is missing
		most  = scanCap // and so may all of them, which nobody is to wait for
	)
	merge, err := m.history.merge(tx, conv, nil, lines)
	if err != nil {
		return feed.OrderKey{}, err
	}
	for range most {
		l, ok, err := merge.peek(tx)
		if err != nil || !ok {
			return feed.OrderKey{}, err
		}
		if l.entry.Seq > 0 {
			if _, arrived, err := m.arrivals.get(tx, l.row.local, l.entry.Seq); err != nil || arrived {
				return l.key, err
			}
		}
		merge.take()
	}
	return feed.OrderKey{}, nil
}
