package messenger

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// write appends own entries and applies them as entries of others are applied.
func (m *Messenger) write(tx *storage.Tx, drafts ...replica.Draft) ([]feed.Entry, error) {
	entries, err := m.env.feeds.Append(tx, drafts...)
	if err != nil {
		return nil, err
	}
	return entries, m.apply(tx, entries, replica.Peer{Account: m.env.account, Device: m.env.device}, true)
}

// Applied implements replica.Hooks.
func (m *Messenger) Applied(tx *storage.Tx, a replica.Applied) error {
	return m.apply(tx, a.Entries, a.Peer, false)
}

// apply indexes entries, counts them, tells of them and folds what they say. written says that they were just appended
// on this device.
func (m *Messenger) apply(tx *storage.Tx, entries []feed.Entry, from replica.Peer, written bool) error {
	for len(entries) > 0 {
		n := 1
		for n < len(entries) && entries[n].Feed() == entries[0].Feed() {
			n++
		}
		if err := m.applyFeed(tx, entries[:n], from, written); err != nil {
			return fmt.Errorf("applying entries: %w", err)
		}
		entries = entries[n:]
	}
	return nil
}

// applyFeed is apply for entries of one feed. What it costs per entry is one small row; the rest is per call.
func (m *Messenger) applyFeed(tx *storage.Tx, entries []feed.Entry, from replica.Peer, written bool) error {
	id, author := entries[0].Feed(), entries[0].Account
	conv, err := m.conversationOf(tx, id.Conversation, author, from)
	if err != nil {
		return err
	}
	row, err := m.feeds.ensure(tx, id, author)
	if err != nil {
		return err
	}
	now := m.env.now().UnixMilli()
	received := now
	if written {
		received = 0
	}
	fresh, err := m.fresh(tx, &row, entries)
	if err != nil {
		return err
	}
	if err := m.arrivals.note(tx, row.local, fresh, received, conv.last); err != nil {
		return err
	}
	own := row.own(m.env.account)
	for i := range fresh {
		e := &fresh[i]
		row.last = max(row.last, e.Seq)
		m.noteUnknown(&conv, &row, e)
		if err := m.noteBare(tx, e, from); err != nil {
			return err
		}
		if !m.shown(e) {
			continue
		}
		if k := e.Order(); feed.Less(conv.last, k) {
			conv.last = k
		}
		conv.activity = now
		if !own && e.Number == feed.Chat && e.Seq > row.read {
			conv.unread++
		}
	}
	if own && from.Account != m.env.account && len(fresh) > 0 && fresh[0].Seq <= row.delivered+1 {
		// Whoever brings what an old own device wrote to them holds it (R21).
		row.deliver(fresh[0].Seq, fresh[len(fresh)-1].Seq)
	}
	if err := m.feeds.put(tx, row); err != nil {
		return err
	}
	if err := m.convs.put(tx, conv); err != nil {
		return err
	}
	if err := m.events.add(tx, messageRecords(row.local, fresh, m.shown)...); err != nil {
		return err
	}
	return m.fold(tx, &row, fresh)
}

// fresh leaves out entries that were told of before; one is told of again when its body came later than its header.
func (m *Messenger) fresh(tx *storage.Tx, row *feedRow, entries []feed.Entry) ([]feed.Entry, error) {
	if entries[0].Seq > row.last {
		return entries, nil
	}
	var out []feed.Entry
	for _, e := range entries {
		a, ok, err := m.arrivals.get(tx, row.local, e.Seq)
		if err != nil {
			return nil, err
		}
		if !ok || a.bare && e.HasBody() {
			out = append(out, e)
		}
	}
	return out, nil
}

// conversationOf reads the row of the conversation that an entry of author stands in, and makes it on first contact.
func (m *Messenger) conversationOf(tx *storage.Tx, id feed.ConversationID, author identity.AccountID, from replica.Peer) (convRow, error) {
	peer := author
	if author == m.env.account {
		row, ok, err := m.convs.get(tx, id)
		if err != nil || ok {
			return row, err
		}
		switch {
		case id == m.env.self:
		case id == feed.DirectConversation(m.env.account, from.Account):
			// The other side brings what an old own device wrote to them (R21).
			peer = from.Account
			if c, known, err := m.contacts.get(tx, peer); err != nil || !known {
				if err = errors.Join(err, m.contacts.put(tx, peer, c)); err != nil {
					return convRow{}, err
				}
			}
		default:
			return convRow{}, errors.New("entry of a conversation with nobody known")
		}
	}
	return m.convs.ensure(tx, id, peer)
}

// noteUnknown makes the conversation read-only if e is a control entry of a newer version (R10).
func (m *Messenger) noteUnknown(conv *convRow, row *feedRow, e *feed.Entry) {
	if e.Number != feed.Control || feed.Known(e.Number, e.Kind) {
		return
	}
	if len(conv.unknown) >= maxUnknown {
		conv.overflow = true
		return
	}
	conv.unknown = append(conv.unknown, unknownEntry{row.local, e.Seq, e.Kind})
}

// noteBare remembers that an author's own device brought an entry without its body: it was taken back.
func (m *Messenger) noteBare(tx *storage.Tx, e *feed.Entry, from replica.Peer) error {
	if e.HasBody() || from.Account != e.Account {
		return nil
	}
	return tx.Set(recalledKey(e.ID), nil)
}

func recalledKey(id feed.EntryID) []byte { return append([]byte(keyRecalled), id[:]...) }

// shown tells whether an entry is a line of history. What came without a body was taken back before anybody read it.
func (m *Messenger) shown(e *feed.Entry) bool {
	if !e.HasBody() {
		return false
	}
	switch {
	case !feed.Known(e.Number, e.Kind):
		return true
	case e.Number == feed.Chat:
		return e.Kind == feed.KindText
	case e.Conversation == m.env.self:
		return false
	}
	return e.Kind == feed.KindRequest || e.Kind == feed.KindAccept || e.Kind == feed.KindDecline
}

// fold applies what entries say. A body that does not decode says nothing.
func (m *Messenger) fold(tx *storage.Tx, row *feedRow, entries []feed.Entry) error {
	trusted := row.own(m.env.account)
	for i := range entries {
		e := &entries[i]
		if e.Number == feed.Chat && e.Kind == feed.KindText {
			if trusted {
				continue
			}
			stranger, err := m.countStranger(tx, e)
			if err != nil {
				return err
			}
			trusted = !stranger
			continue
		}
		content, err := e.Content()
		if err != nil {
			continue
		}
		err = m.foldEntry(tx, row, e, content)
		if err != nil && !errors.Is(err, errIgnored) {
			return err
		}
	}
	return nil
}

func (m *Messenger) foldEntry(tx *storage.Tx, row *feedRow, e *feed.Entry, content []byte) error {
	self := e.Conversation == m.env.self
	switch {
	case self && e.Number == feed.Control && e.Kind == feed.KindContactState:
		return decoded(content, &pb.ContactState{}, func(s *pb.ContactState) error { return m.foldContact(tx, e, s) })
	case self && e.Number == feed.Control && e.Kind == feed.KindSetting:
		return decoded(content, &pb.Setting{}, func(s *pb.Setting) error {
			before := m.settings.at(tx, s.GetKey())
			changed, err := m.settings.fold(tx, e, s)
			if err != nil || !changed {
				return err
			}
			return m.settingChanged(tx, s.GetKey(), before)
		})
	case self && e.Number == feed.Control && e.Kind == feed.KindInviteState:
		return decoded(content, &pb.InviteState{}, func(s *pb.InviteState) error { return m.invites.fold(tx, e, s) })
	case self && e.Number == feed.Chat && e.Kind == feed.KindReadPosition:
		return decoded(content, &pb.ReadPosition{}, func(p *pb.ReadPosition) error { return m.foldRead(tx, e, p) })
	case self:
		return errIgnored
	case e.Number == feed.Chat && e.Kind == feed.KindRecall:
		return decoded(content, &pb.Recall{}, func(r *pb.Recall) error { return m.foldRecall(tx, row, r) })
	case e.Number == feed.Control:
		return m.foldDirect(tx, row, e, content)
	}
	return errIgnored
}

// decoded reads content as p and hands it on; what does not read says nothing.
func decoded[P proto.Message](content []byte, p P, f func(P) error) error {
	if err := proto.Unmarshal(content, p); err != nil {
		return errIgnored
	}
	return f(p)
}

// foldDirect applies a control entry of a direct conversation.
func (m *Messenger) foldDirect(tx *storage.Tx, row *feedRow, e *feed.Entry, content []byte) error {
	switch e.Kind {
	case feed.KindRequest:
		return decoded(content, &pb.Request{}, func(r *pb.Request) error { return m.foldRequest(tx, row, e, r) })
	case feed.KindAccept:
		return decoded(content, &pb.Accept{}, func(a *pb.Accept) error { return m.foldAccept(tx, e, a) })
	case feed.KindDecline:
		return m.foldDecline(tx, e)
	case feed.KindCardUpdate:
		return decoded(content, &pb.CardUpdate{}, func(c *pb.CardUpdate) error { return m.foldCard(tx, e, c.GetCard()) })
	case feed.KindMailboxGrant:
		return decoded(content, &pb.MailboxGrant{}, func(g *pb.MailboxGrant) error { return m.foldGrant(tx, e, g) })
	}
	return errIgnored
}

// recallBlocks is how far back a recall is followed, in blocks: about 16,000 messages of its author. A flood of recalls
// of what never was must not keep the committer busy.
const recallBlocks = 256

// foldRecall erases what its author took back.
func (m *Messenger) foldRecall(tx *storage.Tx, row *feedRow, r *pb.Recall) error {
	var id feed.EntryID
	if len(r.GetEntry()) != len(id) {
		return errIgnored
	}
	copy(id[:], r.GetEntry())
	return m.arrivals.search(tx, row.local, id.String(), recallBlocks, func(p place) (bool, error) {
		e, err := m.env.feeds.Entry(tx, row.id, p.seq)
		if err != nil || e.ID != id {
			return true, nil
		}
		if err := tx.Set(recalledKey(id), nil); err != nil {
			return false, err
		}
		return false, m.env.feeds.Erase(tx, row.id, p.seq)
	})
}

// countStranger notes what a text of somebody not accepted costs, and tells when a temporary chat begins.
func (m *Messenger) countStranger(tx *storage.Tx, e *feed.Entry) (stranger bool, err error) {
	row, _, err := m.contacts.get(tx, e.Account)
	if err != nil || !row.stranger() {
		return false, err
	}
	before := row.relation()
	row.Cost.Messages++
	row.Cost.Bytes += int(e.BodyLen)
	if err := m.contacts.put(tx, e.Account, row); err != nil || row.relation() == before {
		return true, err
	}
	return true, m.tellContact(tx, e.Account, row.relation())
}

func (m *Messenger) tellContact(tx *storage.Tx, a identity.AccountID, r Relation) error {
	return m.events.add(tx, plain(EventContact, a, feed.DirectConversation(m.env.account, a), string(r)))
}
