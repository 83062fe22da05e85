package messenger

import (
	"context"
	"errors"
	"fmt"
	"slices"

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
	if err != nil || !ok || seq <= head.Last {
		return false, err
	}
	// What came in was not written here: whoever brought it has it.
	a, known, err := m.arrivals.get(tx, row.local, seq)
	return !known || a.received == 0, err
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

// againEntries and againBytes bound how much one transaction reads to write it again. Of a thousand messages that waited it takes
// several, and the first of them goes with what else there is to write.
const (
	againEntries = 256
	againBytes   = 384 << 10
)

// Replaced hears from the replica that entries of one feed under a former key stand where others hold something else. They are
// written again under the present key: those others are shown nothing of them, whatever they are offered (R3).
func (m *Messenger) Replaced(tx *storage.Tx, gone []feed.Entry) error {
	if len(gone) == 0 {
		return nil
	}
	if _, ok, err := m.feeds.get(tx, gone[0].Feed()); err != nil || !ok {
		return err
	}
	return m.sayAgain(tx, gone)
}

// sayAgain writes what entries of one feed said, with their times, unless it did before. Texts that may not be written there any
// more go to the owner's notes.
func (m *Messenger) sayAgain(tx *storage.Tx, entries []feed.Entry) error {
	if len(entries) == 0 {
		return nil
	}
	conv := entries[0].Conversation
	group, err := m.isGroup(tx, conv)
	if err != nil {
		return err
	}
	template, refusal := replica.Draft{Conversation: conv}, m.writable(tx, conv)
	var drafts []replica.Draft
	var instead []feed.EntryID
	for i := range entries {
		e := &entries[i]
		again, err := tx.Has(againKey(e.ID))
		if err != nil {
			return err
		}
		if again || !e.HasBody() || e.Number == feed.Chat && e.Kind != feed.KindText || group && e.Number == feed.Control {
			continue
		}
		content, err := e.Content()
		if err != nil {
			continue // nobody could read it
		}
		if e.Number == feed.Control {
			if content, err = m.withCard(tx, e.Kind, content); err != nil {
				return err
			}
		}
		if group && refusal == nil && len(drafts) == 0 {
			template, err = m.env.groups.Draft(tx, conv, e.Kind, content)
			refusal = groupRefusal(err)
		}
		if refusal != nil {
			if _, refused := errors.AsType[*Error](refusal); !refused {
				return refusal
			}
			if err := m.keepAsNote(tx, e, content); err != nil {
				return err
			}
			continue
		}
		d := template
		d.Number, d.Kind, d.Content, d.Time = e.Number, e.Kind, content, e.Time()
		drafts, instead = append(drafts, d), append(instead, e.ID)
	}
	if len(drafts) == 0 {
		return nil
	}
	written, err := m.write(tx, drafts...)
	for i := range written {
		if err == nil {
			err = tx.Set(againKey(instead[i]), written[i].ID[:])
		}
	}
	return err
}

// withCard puts the present card into an act that shows one: said now, an older one would take the place of what was shown since.
func (m *Messenger) withCard(tx *storage.Tx, kind feed.Kind, content []byte) ([]byte, error) {
	var act proto.Message
	switch kind {
	case feed.KindRequest:
		r := &pb.Request{}
		if proto.Unmarshal(content, r) == nil {
			r.Card = m.settings.card(tx)
			act = r
		}
	case feed.KindAccept:
		act = &pb.Accept{Card: m.settings.card(tx)}
	case feed.KindCardUpdate:
		act = &pb.CardUpdate{Card: m.settings.card(tx)}
	}
	if act == nil {
		return content, nil
	}
	b, err := proto.Marshal(act)
	if err != nil {
		return nil, fmt.Errorf("writing a card again: %w", err)
	}
	return b, nil
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

// sayCut writes again what stands on a branch under a former key from a number on, as much as one transaction takes, and returns
// where to go on; 0: nowhere. Such a branch is shown to nobody. It is this profile's own.
func (m *Messenger) sayCut(tx *storage.Tx, row *feedRow, from uint64) (next uint64, err error) {
	if row.cut == 0 || row.id.Conversation == m.env.self {
		return 0, nil
	}
	if from = max(from, row.cut); from > row.last {
		return 0, nil
	}
	var part []feed.Entry
	size := 0
	err = m.env.feeds.Entries(tx, row.id, from, row.last, func(e feed.Entry) (bool, error) {
		if len(part) == againEntries || size >= againBytes {
			next = e.Seq
			return false, nil
		}
		part, size = append(part, e), size+e.WireSize()
		return true, nil
	})
	if err != nil {
		return 0, err
	}
	return next, m.sayAgain(tx, part)
}

// sayCuts does so with all branches under former keys.
func (m *Messenger) sayCuts(ctx context.Context) error {
	var cut []feedRow
	err := m.env.db.View(func(tx *storage.Tx) error {
		return m.convs.each(tx, func(c convRow) error {
			for d := range m.formers {
				for _, n := range []feed.Number{feed.Control, feed.Chat} {
					row, ok, err := m.feeds.get(tx, feed.FeedID{Conversation: c.id, Number: n, Device: d})
					if err != nil {
						return err
					}
					if ok && row.cut > 0 {
						cut = append(cut, row)
					}
				}
			}
			return nil
		})
	})
	for i := range cut {
		// What fails in one feed keeps no other from being said again.
		err = errors.Join(err, m.sayBranch(ctx, &cut[i]))
	}
	return err
}

func (m *Messenger) sayBranch(ctx context.Context, row *feedRow) (err error) {
	for next := row.cut; next > 0 && err == nil; {
		err = m.env.update(ctx, func(tx *storage.Tx) (err error) {
			next, err = m.sayCut(tx, row, next)
			return err
		})
	}
	return err
}

// askedAtOnce is how many contact requests one transaction repeats; each writes the entry and the rows of a contact.
const askedAtOnce = 64

// Recover is to be called after Bind: it does what is left to do of what stands under former keys. Contact requests are repeated,
// since a request opens a conversation, and only the device that wrote it can do that; asked twice is asked once.
func (m *Messenger) Recover(ctx context.Context) error {
	if len(m.formers) == 0 {
		return nil
	}
	var waiting []identity.AccountID
	err := m.env.db.View(func(tx *storage.Tx) error {
		return m.contacts.each(tx, func(a identity.AccountID, row contactRow) error {
			asks, err := m.asksAsFormer(tx, &row)
			if asks {
				waiting = append(waiting, a)
			}
			return err
		})
	})
	for part := range slices.Chunk(waiting, askedAtOnce) {
		if err != nil {
			return err
		}
		err = m.env.update(ctx, func(tx *storage.Tx) error { return m.askAgain(tx, part) })
	}
	if err != nil {
		return err
	}
	return m.sayCuts(ctx)
}

// asksAsFormer tells whether a request that nobody has stands under a former key.
func (m *Messenger) asksAsFormer(tx *storage.Tx, row *contactRow) (bool, error) {
	if row.State != pb.ContactState_STATE_ASKED || !row.Out.waiting() || row.Blocked {
		return false, nil
	}
	f, err := m.feeds.local(tx, row.Out.Local)
	return err == nil && m.former(f.id) && f.state(row.Out.Seq) == StatePending, err
}

func (m *Messenger) askAgain(tx *storage.Tx, waiting []identity.AccountID) error {
	for _, a := range waiting {
		row, _, err := m.contacts.get(tx, a)
		if err != nil {
			return err
		}
		if asks, err := m.asksAsFormer(tx, &row); err != nil || !asks {
			if err != nil {
				return err
			}
			continue
		}
		_, err = m.writeControl(tx, a, feed.KindRequest, &pb.Request{Message: row.Out.Message, Card: m.settings.card(tx)})
		if err = ignoreReadOnly(err); err != nil {
			return err
		}
	}
	return nil
}
