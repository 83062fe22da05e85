package messenger

import (
	"context"
	"errors"
	"slices"
	"time"

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
	shown := false
	if row.group() {
		var err error
		if shown, err = m.groupView(tx, row, &c); err != nil || !shown {
			return c, false, err
		}
	} else if row.peer == m.env.account {
		c.Kind, c.Name, c.Username, c.Relation = KindSelf, m.ownName(), m.settings.username(), RelationNone
	} else {
		contact, _, err := m.contacts.get(tx, row.peer)
		if err != nil {
			return c, false, err
		}
		c.Name, c.Username, c.Relation = contact.name(row.peer), contact.username(), contact.relation()
		c.Online = m.seen(row.peer, &contact)
	}
	if err := m.viewLast(tx, row, &c); err != nil {
		return c, false, err
	}
	pending, err := m.pendingIn(tx, row)
	if err != nil {
		return c, false, err
	}
	c.Pending = pending
	show := shown || c.Last != nil || c.Relation == RelationContact || c.Relation == RelationOneWay
	return c, show, nil
}

// groupView adds what a group is called and who is in it. One that this account was never in has no history to show.
func (m *Messenger) groupView(tx *storage.Tx, row *convRow, c *Conversation) (show bool, err error) {
	info, err := m.env.groups.Info(tx, row.id)
	if err != nil {
		return false, ignoreUnknown(err)
	}
	c.Kind, c.Relation, c.Name, c.Members, c.Role = KindGroup, RelationNone, shownGroupName(&info), info.Size, roleName(info.Role)
	return conversing(&info), nil
}

// viewLast adds the newest line.
func (m *Messenger) viewLast(tx *storage.Tx, row *convRow, c *Conversation) error {
	if row.last.Seq == 0 {
		return nil
	}
	e, err := m.env.feeds.Entry(tx, row.lastFeed(), row.last.Seq)
	if errors.Is(err, replica.ErrNoEntry) {
		return nil
	}
	if err != nil {
		return err
	}
	if row.group() {
		counts, err := m.counts(tx, &e)
		if err != nil {
			return err
		}
		if !counts {
			// A cut took it away, or its act is void: what is shown last stands somewhere before it.
			c.Last, err = m.newestLine(tx, row.id)
			return err
		}
	}
	c.Last, err = m.lastLine(tx, row, &e)
	return err
}

// newestLine reads the last line of history.
func (m *Messenger) newestLine(tx *storage.Tx, conv feed.ConversationID) (*Message, error) {
	merge, err := m.history.merge(tx, conv, nil, 1)
	if err != nil {
		return nil, err
	}
	lines, _, err := m.history.page(tx, merge, 1, time.Time{})
	if err != nil || len(lines) == 0 {
		return nil, err
	}
	list, err := m.render(tx, conv, lines)
	if err != nil {
		return nil, err
	}
	return &list[0], nil
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
	n, err := m.formerPending(tx, row.id)
	if err != nil {
		return 0, err
	}
	f, ok, err := m.feeds.get(tx, m.env.feeds.OwnFeed(row.id, feed.Chat))
	if err != nil || !ok {
		return n, err
	}
	return n + f.pending(), nil
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
		if keep = ok && (row.Blocked || row.Spoken || row.relation() != RelationNone); keep || err != nil {
			return err
		}
		shared, err := m.env.groups.Shared(tx, a)
		keep = len(shared) > 0
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
