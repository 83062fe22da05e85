package messenger

import (
	"context"
	"slices"

	"hima/internal/feed"
	"hima/internal/replica"
	"hima/storage"
)

// Resend writes an unsettled message again. The old one is not shown any more.
func (m *Messenger) Resend(ctx context.Context, message string) (out Message, err error) {
	err = m.env.update(ctx, func(tx *storage.Tx) error {
		e, err := m.history.find(tx, message)
		if err != nil {
			return err
		}
		row, _, err := m.feeds.get(tx, e.Feed())
		if err != nil {
			return err
		}
		again, err := tx.Has(againKey(e.ID))
		switch {
		case err != nil:
			return err
		case again:
			return refuse(ErrExists, "the message was sent again already", "`hima why` says how far a message got")
		}
		unsettled, err := m.unsettled(tx, &row, e.Seq)
		if err != nil {
			return err
		}
		if !unsettled || !resendable(&e) {
			return refuse(ErrInvalid, "only a message of which it is not known whether it arrived can be sent again", "`hima why` says how far a message got")
		}
		content, err := e.Content()
		if err != nil {
			return err
		}
		conv, _, err := m.convs.get(tx, e.Conversation)
		if err != nil {
			return err
		}
		job := &sendJob{account: conv.peer, conv: conv.id, content: content}
		d, err := m.sender.template(tx, job)
		if err != nil {
			return err
		}
		d.Content = content
		if err := m.sender.append(tx, []*sendJob{job}, []replica.Draft{d}); err != nil {
			return err
		}
		out = job.message
		return tx.Set(againKey(e.ID), out.ID[:])
	})
	return out, err
}

// resendable tells whether an entry is a text that is still there.
func resendable(e *feed.Entry) bool {
	return e.Number == feed.Chat && e.Kind == feed.KindText && e.HasBody()
}

// unknownPage is how many messages Unknown lists at most.
const unknownPage = 1000

// Unknown lists the own messages of a conversation of which it is not known whether they arrived, in the order in which they stand
// there: the first unknownPage; more says that there are others. Those that were sent again are not among them.
func (m *Messenger) Unknown(ctx context.Context, who string) (ids []feed.EntryID, more bool, err error) {
	conv, err := m.Conversation(ctx, who)
	if err != nil {
		return nil, false, err
	}
	var found []feed.Entry
	err = m.env.db.View(func(tx *storage.Tx) error {
		for d := range m.formers {
			list, err := m.unknownOf(tx, feed.FeedID{Conversation: conv, Number: feed.Chat, Device: d})
			if err != nil {
				return err
			}
			found = append(found, list...)
		}
		return nil
	})
	slices.SortFunc(found, func(a, b feed.Entry) int { return a.Order().Compare(b.Order()) })
	more = len(found) > unknownPage
	for i := range found[:min(len(found), unknownPage)] {
		ids = append(ids, found[i].ID)
	}
	return ids, more, err
}

// unknownOf lists them of one feed, at most one more than a page holds.
func (m *Messenger) unknownOf(tx *storage.Tx, id feed.FeedID) (found []feed.Entry, err error) {
	row, ok, err := m.feeds.get(tx, id)
	if err != nil || !ok || !m.former(id) {
		return nil, err
	}
	head, _, err := m.env.feeds.Head(tx, id)
	if err != nil || row.shownTo() <= head.Last {
		return nil, err
	}
	err = m.env.feeds.Entries(tx, id, head.Last+1, row.shownTo(), func(e feed.Entry) (bool, error) {
		unsettled, err := m.unsettled(tx, &row, e.Seq)
		if err != nil || !unsettled || !resendable(&e) {
			return err == nil, err
		}
		again, err := tx.Has(againKey(e.ID))
		if err == nil && !again {
			found = append(found, e.WithoutBody())
		}
		return len(found) <= unknownPage, err
	})
	return found, err
}
