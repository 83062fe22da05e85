package messenger

import (
	"context"
	"errors"

	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// A profile that was restored from a copy goes on under a new device key (R3). What it wrote under a former one is served by
// the replica where that could be signed in time, and then waits like any own message. Where it could not, it is unsettled:
// it may have arrived or not. If others turn out to hold something else in its place it never left, and is written again
// by itself; else nobody but the owner can decide whether it is to be said twice or perhaps not at all.

// former tells whether a feed was written by this profile under a key that it does not have any more.
func (m *Messenger) former(id feed.FeedID) bool { return m.formers[id.Device] }

// unsettled tells whether nobody knows what became of an own entry.
func (m *Messenger) unsettled(tx *storage.Tx, row *feedRow, seq uint64) (bool, error) {
	if !m.former(row.id) || row.id.Conversation == m.env.self || row.state(seq) != StatePending {
		return false, nil
	}
	head, ok, err := m.env.feeds.Head(tx, row.id)
	return ok && seq > head.Last, err
}

// formerPending counts own messages of a conversation under former keys that still go out by themselves.
func (m *Messenger) formerPending(tx *storage.Tx, conv feed.ConversationID) (n int, err error) {
	for d := range m.formers {
		row, ok, err := m.feeds.get(tx, feed.FeedID{Conversation: conv, Number: feed.Chat, Device: d})
		if err != nil {
			return 0, err
		}
		if !ok {
			continue
		}
		head, ok, err := m.env.feeds.Head(tx, row.id)
		if err != nil {
			return 0, err
		}
		if ok {
			row.last = min(row.shownTo(), head.Last)
			n += row.pending()
		}
	}
	return n, nil
}

// Replaced hears from the replica that entries under a former key stand where others hold something else. They are written
// again under the present key: those others are shown nothing of them, whatever they are offered (R3).
func (m *Messenger) Replaced(tx *storage.Tx, gone []feed.Entry) error {
	if len(gone) == 0 {
		return nil
	}
	id, from := gone[0].Feed(), gone[0].Seq
	row, ok, err := m.feeds.get(tx, id)
	if err != nil || !ok {
		return err
	}
	if err := m.arrivals.drop(tx, row.local, from, row.last); err != nil {
		return err
	}
	row.retreat(from)
	if err := m.feeds.put(tx, row); err != nil {
		return err
	}
	group, err := m.isGroup(tx, id.Conversation)
	if err != nil {
		return err
	}
	for i := range gone {
		if err := m.writeAgain(tx, &gone[i], group); err != nil {
			return err
		}
	}
	return nil
}

// writeAgain writes what an entry said, with its time. A text that may not be written there any more goes to the owner's notes.
func (m *Messenger) writeAgain(tx *storage.Tx, e *feed.Entry, group bool) error {
	again, err := tx.Has(againKey(e.ID))
	if err != nil || again || !e.HasBody() || e.Number == feed.Chat && e.Kind != feed.KindText || group && e.Number == feed.Control {
		return err
	}
	content, err := e.Content()
	if err != nil {
		return nil // nobody could read it
	}
	d := replica.Draft{Conversation: e.Conversation, Number: e.Number, Kind: e.Kind, Content: content}
	err = m.writable(tx, e.Conversation)
	if err == nil && group {
		d, err = m.env.groups.Draft(tx, e.Conversation, e.Kind, content)
		err = groupRefusal(err)
	}
	if _, refused := errors.AsType[*Error](err); refused {
		return m.keepAsNote(tx, e, content)
	}
	if err != nil {
		return err
	}
	d.Time = e.Time()
	written, err := m.write(tx, d)
	if err != nil {
		return err
	}
	return tx.Set(againKey(e.ID), written[0].ID[:])
}

// keepAsNote puts a text that can be said nowhere any more among the owner's notes, as it is shown nowhere else, and warns.
func (m *Messenger) keepAsNote(tx *storage.Tx, e *feed.Entry, content []byte) error {
	var said pb.Text
	if e.Number != feed.Chat || proto.Unmarshal(content, &said) != nil {
		return nil // an act, which is nothing without its conversation, or nothing that anybody could read
	}
	note, err := m.sender.writeText(tx, m.env.self, said.GetText())
	if _, refused := errors.AsType[*Error](err); refused {
		m.env.log.Warn("a message is kept nowhere", "conversation", e.Conversation.Short(), "error", err)
		return nil
	}
	if err != nil {
		return err
	}
	if err := m.events.add(tx, plain(EventWarning, identity.AccountID{}, e.Conversation, "kept_as_note")); err != nil {
		return err
	}
	return tx.Set(againKey(e.ID), note.ID[:])
}

func againKey(id feed.EntryID) []byte { return append([]byte(keyAgain), id[:]...) }

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
		unsettled, err := m.unsettled(tx, &row, e.Seq)
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
		if !unsettled || e.Number != feed.Chat || e.Kind != feed.KindText || !e.HasBody() {
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

// sentAgain follows a message to the one that was written in its place.
func (m *Messenger) sentAgain(tx *storage.Tx, e feed.Entry) (feed.Entry, error) {
	if len(m.formers) == 0 {
		return e, nil
	}
	b, ok, err := getRow(tx, againKey(e.ID))
	if err != nil || !ok || len(b) != len(e.ID) {
		return e, err
	}
	return m.history.find(tx, feed.EntryID(b).String())
}

// sayCut writes again what stands on a branch under a former key, which is shown to nobody. It is this profile's own branch.
func (m *Messenger) sayCut(tx *storage.Tx, row *feedRow) error {
	if row.cut == 0 || row.last < row.cut || row.id.Conversation == m.env.self {
		return nil
	}
	var cut []feed.Entry
	err := m.env.feeds.Entries(tx, row.id, row.cut, row.last, func(e feed.Entry) (bool, error) {
		cut = append(cut, e)
		return true, nil
	})
	if err != nil {
		return err
	}
	group, err := m.isGroup(tx, row.id.Conversation)
	for i := range cut {
		if err == nil {
			err = m.writeAgain(tx, &cut[i], group)
		}
	}
	return err
}

// Recover is to be called after Bind: it does what is left to do of what stands under former keys. Contact requests are repeated,
// since a request opens a conversation, and only the device that wrote it can do that; asked twice is asked once.
func (m *Messenger) Recover(ctx context.Context) error {
	if len(m.formers) == 0 {
		return nil
	}
	return m.env.update(ctx, func(tx *storage.Tx) error {
		waiting := map[identity.AccountID]string{}
		err := m.contacts.each(tx, func(a identity.AccountID, row contactRow) error {
			if row.State != pb.ContactState_STATE_ASKED || !row.Out.waiting() || row.Blocked {
				return nil
			}
			f, err := m.feeds.local(tx, row.Out.Local)
			if err == nil && m.former(f.id) && f.state(row.Out.Seq) == StatePending {
				waiting[a] = row.Out.Message
			}
			return err
		})
		for a, message := range waiting {
			if err == nil {
				_, err = m.writeControl(tx, a, feed.KindRequest, &pb.Request{Message: message, Card: m.settings.card(tx)})
			}
			err = ignoreReadOnly(err)
		}
		if err != nil {
			return err
		}
		var cut []feedRow
		err = m.convs.each(tx, func(c convRow) error {
			for d := range m.formers {
				row, ok, err := m.feeds.get(tx, feed.FeedID{Conversation: c.id, Number: feed.Chat, Device: d})
				if err != nil {
					return err
				}
				if ok && row.cut > 0 {
					cut = append(cut, row)
				}
			}
			return nil
		})
		for i := range cut {
			if err == nil {
				err = m.sayCut(tx, &cut[i])
			}
		}
		return err
	})
}
