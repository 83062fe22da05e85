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
	return entries, m.apply(tx, replica.Applied{Peer: m.ownPeer(), Entries: entries}, true)
}

// AppendGroup appends own acts of groups and indexes them like other entries. Package groups writes them and folds them
// itself; they are not passed back to it.
func (m *Messenger) AppendGroup(tx *storage.Tx, drafts ...replica.Draft) ([]feed.Entry, error) {
	entries, err := m.env.feeds.Append(tx, drafts...)
	if err != nil {
		return nil, err
	}
	for rest := entries; len(rest) > 0; {
		n := sameFeed(rest)
		if rest[0].Number != feed.Control {
			return nil, errors.New("appending to a group: only acts are written so")
		}
		// Made here, because nobody knows yet that a genesis begins a group.
		if _, err := m.convs.ensure(tx, rest[0].Conversation, identity.AccountID{}); err != nil {
			return nil, fmt.Errorf("appending to a group: %w", err)
		}
		if _, _, err := m.index(tx, rest[:n], m.ownPeer(), true); err != nil {
			return nil, fmt.Errorf("appending to a group: %w", err)
		}
		rest = rest[n:]
	}
	return entries, nil
}

func (m *Messenger) ownPeer() replica.Peer {
	return replica.Peer{Account: m.env.account, Device: m.env.device}
}

// Applied implements replica.Hooks.
func (m *Messenger) Applied(tx *storage.Tx, a replica.Applied) error {
	return m.apply(tx, a, false)
}

// apply indexes entries, counts them, tells of them and folds what they say. written says that they were just appended
// on this device.
func (m *Messenger) apply(tx *storage.Tx, a replica.Applied, written bool) error {
	for rest := a.Entries; len(rest) > 0; {
		n := sameFeed(rest)
		a.Entries, rest = rest[:n], rest[n:]
		if err := m.applyFeed(tx, a, written); err != nil {
			return fmt.Errorf("applying entries: %w", err)
		}
	}
	return nil
}

// sameFeed counts how many entries at the beginning are of one feed.
func sameFeed(entries []feed.Entry) int {
	n := 1
	for n < len(entries) && entries[n].Feed() == entries[0].Feed() {
		n++
	}
	return n
}

// applyFeed is apply for entries of one feed.
func (m *Messenger) applyFeed(tx *storage.Tx, a replica.Applied, written bool) error {
	row, fresh, err := m.index(tx, a.Entries, a.Peer, written)
	if err != nil {
		return err
	}
	if err := m.fold(tx, &row, fresh); err != nil || !row.many {
		return err
	}
	// Groups draws its conclusions last: what it writes because of these entries stands behind them.
	return m.env.groups.Applied(tx, a)
}

// index notes entries of one feed, counts them and tells of them. It returns those that are new. What it costs per entry is
// one small row; the rest is per call.
func (m *Messenger) index(tx *storage.Tx, entries []feed.Entry, from replica.Peer, written bool) (row feedRow, fresh []feed.Entry, err error) {
	id, author := entries[0].Feed(), entries[0].Account
	conv, err := m.conversationOf(tx, id.Conversation, author, from)
	if err != nil {
		return row, nil, err
	}
	if row, err = m.feeds.ensure(tx, id, author); err != nil {
		return row, nil, err
	}
	row.many = conv.group()
	now := m.env.now().UnixMilli()
	received := now
	if written {
		received = 0
	}
	if fresh, err = m.fresh(tx, &row, entries); err != nil {
		return row, nil, err
	}
	if err := m.arrivals.note(tx, row.local, fresh, received, conv.last); err != nil {
		return row, nil, err
	}
	own := row.own(m.env.account)
	if !own {
		if err := m.passBacklog(tx, &row, fresh); err != nil {
			return row, nil, err
		}
	}
	counting := len(fresh)
	if row.many && !own {
		if counting, err = m.counting(tx, fresh); err != nil {
			return row, nil, err
		}
	}
	for i := range fresh {
		e := &fresh[i]
		row.last = max(row.last, e.Seq)
		m.noteUnknown(&conv, &row, e)
		if err := m.noteBare(tx, e, from); err != nil {
			return row, nil, err
		}
		if !m.shown(e) || i >= counting {
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
	if err := m.broughtBack(tx, &row, fresh, from); err != nil {
		return row, nil, err
	}
	if err := m.feeds.put(tx, row); err != nil {
		return row, nil, err
	}
	if err := m.convs.put(tx, conv); err != nil {
		return row, nil, err
	}
	return row, fresh, m.events.add(tx, messageRecords(row.local, fresh, m.shown)...)
}

// counting is how many entries of one feed of a group that came just now are to be shown, from the first on: of what was said that
// which stands before the cut, of acts all.
func (m *Messenger) counting(tx *storage.Tx, fresh []feed.Entry) (int, error) {
	n := len(fresh)
	for ; n > 0 && fresh[n-1].Number == feed.Chat; n-- {
		if ok, err := m.counts(tx, &fresh[n-1]); err != nil || ok {
			return n, err
		}
	}
	return n, nil
}

// broughtBack notes that whoever brings what an old own device wrote to them holds it (R21).
func (m *Messenger) broughtBack(tx *storage.Tx, row *feedRow, fresh []feed.Entry, from replica.Peer) error {
	if !row.own(m.env.account) || from.Account == m.env.account || from.Account.IsZero() || len(fresh) == 0 {
		return nil
	}
	first, last := fresh[0].Seq, fresh[len(fresh)-1].Seq
	switch {
	case row.many && row.id.Number == feed.Chat:
		return m.reached(tx, row, from.Account, first, last, 0)
	case first <= row.delivered+1:
		row.deliver(first, last)
	}
	return nil
}

// passBacklog counts as read what was said in a group before this account was in: nobody expects it to have been read.
func (m *Messenger) passBacklog(tx *storage.Tx, row *feedRow, fresh []feed.Entry) error {
	if !row.many || row.id.Number != feed.Chat {
		return nil
	}
	for i := range fresh {
		// Within a feed nothing that was said earlier comes later, so the first that is not ends it.
		old, err := m.env.groups.Backlog(tx, fresh[i].Header)
		if err != nil || !old {
			return err
		}
		row.read = max(row.read, fresh[i].Seq)
	}
	return nil
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
	row, ok, err := m.convs.get(tx, id)
	if err != nil || ok {
		return row, err
	}
	peer := author
	switch {
	case id == m.env.self:
	case id != feed.DirectConversation(m.env.account, author):
		group, err := m.env.groups.Is(tx, id)
		if err != nil {
			return row, err
		}
		if group {
			return m.convs.ensure(tx, id, identity.AccountID{})
		}
	}
	if author == m.env.account {
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
	return e.Kind == feed.KindRequest || e.Kind == feed.KindAccept || e.Kind == feed.KindDecline || actLine(e.Kind) != ""
}

// fold applies what entries say. A body that does not decode says nothing.
func (m *Messenger) fold(tx *storage.Tx, row *feedRow, entries []feed.Entry) error {
	trusted := row.own(m.env.account)
	for i := range entries {
		e := &entries[i]
		if e.Number == feed.Chat && e.Kind == feed.KindText {
			if trusted || row.many {
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
	case e.Number == feed.Control && !row.many:
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
	case feed.KindGroupInvitation, feed.KindGroupAnswer, feed.KindGroupApplication, feed.KindGroupVerdict:
		return m.foldSaid(tx, e, content)
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
