package messenger

import (
	"context"
	"errors"
	"slices"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// Conversations lists all conversations, newest first.
func (m *Messenger) Conversations(ctx context.Context) ([]Conversation, error) {
	type item struct {
		activity int64
		conv     Conversation
	}
	var items []item
	err := m.env.db.View(func(tx *storage.Tx) error {
		return m.convs.each(tx, func(row convRow) error {
			c, show, err := m.conversationView(tx, &row)
			if err == nil && show {
				items = append(items, item{row.activity, c})
			}
			return err
		})
	})
	slices.SortStableFunc(items, func(a, b item) int { return int(b.activity - a.activity) })
	out := make([]Conversation, len(items))
	for i := range items {
		out[i] = items[i].conv
	}
	return out, err
}

// conversationView makes one row of the list. Conversations in which nothing was said are not shown, unless they are
// with somebody who may be written to.
func (m *Messenger) conversationView(tx *storage.Tx, row *convRow) (Conversation, bool, error) {
	c := Conversation{ID: row.id, Kind: KindDirect, Peer: row.peer, Unread: int(row.unread)}
	if row.peer == m.env.account {
		c.Kind, c.Name, c.Username, c.Relation = KindSelf, m.ownName(), m.settings.username(), RelationNone
	} else {
		contact, _, err := m.contacts.get(tx, row.peer)
		if err != nil {
			return c, false, err
		}
		c.Name, c.Username, c.Relation = contact.name(row.peer), contact.username(), contact.relation()
		c.Online = m.seen(row.peer, &contact)
	}
	if row.last.Seq > 0 {
		e, err := m.env.feeds.Entry(tx, row.lastFeed(), row.last.Seq)
		if err != nil && !errors.Is(err, replica.ErrNoEntry) {
			return c, false, err
		}
		if err == nil {
			if c.Last, err = m.lastLine(tx, row, &e); err != nil {
				return c, false, err
			}
		}
	}
	pending, err := m.pendingIn(tx, row)
	if err != nil {
		return c, false, err
	}
	c.Pending = pending
	show := c.Last != nil || c.Relation == RelationContact || c.Relation == RelationOneWay
	return c, show, nil
}

// lastLine renders the newest line of a conversation.
func (m *Messenger) lastLine(tx *storage.Tx, row *convRow, e *feed.Entry) (*Message, error) {
	f, _, err := m.feeds.get(tx, row.lastFeed())
	if err != nil {
		return nil, err
	}
	r, err := m.renderer(tx, row.id)
	if err != nil {
		return nil, err
	}
	msg, err := r.message(e, &f)
	return &msg, err
}

// pendingIn counts own messages that nobody else holds yet. Notes to oneself wait for nobody.
func (m *Messenger) pendingIn(tx *storage.Tx, row *convRow) (int, error) {
	if row.peer == m.env.account {
		return 0, nil
	}
	f, ok, err := m.feeds.get(tx, m.env.feeds.OwnFeed(row.id, feed.Chat))
	if err != nil || !ok {
		return 0, err
	}
	return f.pending(), nil
}

// Counts adds up what a status line shows.
func (m *Messenger) Counts(ctx context.Context) (Counts, error) {
	var c Counts
	err := m.env.db.View(func(tx *storage.Tx) error {
		next, _, err := m.events.bounds(tx)
		if err != nil {
			return err
		}
		c.LastEvent = next - 1
		q, err := m.quotas.get(tx)
		if err != nil {
			return err
		}
		c.Requests = q.Waiting + q.Invited
		return m.convs.each(tx, func(row convRow) error {
			n, err := m.pendingIn(tx, &row)
			c.Pending += n
			c.Unread += int(row.unread)
			return err
		})
	})
	return c, err
}

// Keeps tells whether an account is one we have to do with, so that what is known of its devices is worth keeping.
func (m *Messenger) Keeps(a identity.AccountID) bool {
	if a == m.env.account {
		return true
	}
	keep := false
	err := m.env.db.View(func(tx *storage.Tx) error {
		row, ok, err := m.contacts.get(tx, a)
		keep = ok && (row.Blocked || row.relation() != RelationNone)
		return err
	})
	return err == nil && keep
}

// PeerAccounts lists the accounts that are worth a standing session: everybody we write to or who may write to us. The
// table is read again only after it changed.
func (m *Messenger) PeerAccounts() []identity.AccountID {
	return m.contacts.peers()
}

// peers is kept from call to call for one generation of the table.
func (c *contacts) peers() []identity.AccountID {
	generation := c.generation()
	c.mu.Lock()
	list, fresh := c.peerList, c.peerList != nil && c.peerGeneration == generation
	c.mu.Unlock()
	if fresh {
		return list
	}
	list = []identity.AccountID{}
	err := c.env.db.View(func(tx *storage.Tx) error {
		return c.each(tx, func(a identity.AccountID, row contactRow) error {
			if !row.Blocked && (!row.stranger() || row.Cost.Messages > 0 || row.State == pb.ContactState_STATE_DECLINED && row.In != nil) {
				list = append(list, a)
			}
			return nil
		})
	})
	if err != nil {
		c.env.log.Warn("listing peers", "error", err)
		return list
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.peerList, c.peerGeneration = list, generation
	return list
}
