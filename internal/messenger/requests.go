package messenger

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/text"
	"hima/internal/wire/pb"
	"hima/storage"
)

// writeState writes what we decided about an account as an entry of the self conversation; the fold does the rest.
func (m *Messenger) writeState(tx *storage.Tx, a identity.AccountID, change func(*pb.ContactState)) error {
	if err := m.writable(tx, m.env.self); err != nil {
		return err
	}
	row, _, err := m.contacts.get(tx, a)
	if err != nil {
		return err
	}
	s := &pb.ContactState{
		Account: a.Bytes(), State: row.State, Blocked: row.Blocked, Remark: row.Remark,
		Verified: row.Verified, VerifiedBy: m.env.device.Bytes(), AddedMs: row.Added,
	}
	if s.State == pb.ContactState_STATE_UNSPECIFIED {
		s.State = pb.ContactState_STATE_NONE
	}
	if s.AddedMs == 0 {
		s.AddedMs = m.env.now().UnixMilli()
	}
	change(s)
	content, err := proto.Marshal(s)
	if err != nil {
		return fmt.Errorf("writing contact: %w", err)
	}
	_, err = m.write(tx, replica.Draft{
		Conversation: m.env.self, Number: feed.Control, Kind: feed.KindContactState, Content: content,
	})
	return err
}

// writable refuses a conversation in which a newer version acted (R10).
func (m *Messenger) writable(tx *storage.Tx, conv feed.ConversationID) error {
	row, _, err := m.convs.get(tx, conv)
	if err == nil && row.readOnly() {
		return refuse(ErrReadOnly, "a newer version of hima acted in this conversation", "update hima to write here again")
	}
	return err
}

// writeControl writes a control entry into the direct conversation with a.
func (m *Messenger) writeControl(tx *storage.Tx, a identity.AccountID, kind feed.Kind, content proto.Message) (feed.Entry, error) {
	conv := feed.DirectConversation(m.env.account, a)
	if _, err := m.convs.ensure(tx, conv, a); err != nil {
		return feed.Entry{}, err
	}
	if err := m.writable(tx, conv); err != nil {
		return feed.Entry{}, err
	}
	b, err := proto.Marshal(content)
	if err != nil {
		return feed.Entry{}, fmt.Errorf("writing control entry: %w", err)
	}
	entries, err := m.write(tx, replica.Draft{Conversation: conv, Number: feed.Control, Kind: kind, Content: b})
	if err != nil {
		return feed.Entry{}, err
	}
	return entries[0], nil
}

// foldContact applies a ContactState entry, ours or one of another own device.
func (m *Messenger) foldContact(tx *storage.Tx, e *feed.Entry, s *pb.ContactState) error {
	a, before, after, err := m.contacts.foldState(tx, e, s)
	if err != nil {
		return err
	}
	conv := feed.DirectConversation(m.env.account, a)
	if _, err := m.convs.ensure(tx, conv, a); err != nil {
		return err
	}
	accepted := before.stranger() && !after.stranger()
	unblocked := before.Blocked && !after.Blocked
	if accepted || unblocked {
		if err := m.floor(tx, a, unblocked); err != nil {
			return err
		}
	}
	if before.shared() != after.shared() || accepted || before.Blocked != after.Blocked {
		tx.OnCommit(func() { m.env.feeds.Reannounce(conv) })
	}
	if before.State != after.State || before.Blocked != after.Blocked {
		tx.OnCommit(func() { m.relationChanged(a) })
	}
	tx.OnCommit(m.wake)
	if after.relation() != RelationContact {
		if err := m.endGrant(tx, a); err != nil {
			return err
		}
	}
	if before.relation() == RelationContact || after.relation() == RelationContact {
		tx.OnCommit(m.env.grantsChanged)
	}
	if before.In.waiting() && !after.In.waiting() || before.Out.waiting() && !after.Out.waiting() {
		if err := m.tellRequest(tx, a, &after); err != nil {
			return err
		}
	}
	return m.tellContact(tx, a, after.relation())
}

func (m *Messenger) tellRequest(tx *storage.Tx, a identity.AccountID, row *contactRow) error {
	detail := ""
	switch {
	case row.In.waiting():
		detail = "incoming"
	case row.In != nil && (row.Out == nil || row.In.Time > row.Out.Time):
		detail = string(row.In.State)
	case row.Out != nil:
		detail = string(row.Out.State)
	}
	return m.events.add(tx, plain(EventRequest, a, feed.DirectConversation(m.env.account, a), detail))
}

// foldRequest applies a Request: ours, theirs, or theirs that crosses ours and thereby accepts it (R16).
func (m *Messenger) foldRequest(tx *storage.Tx, row *feedRow, e *feed.Entry, r *pb.Request) error {
	req := &requestRow{
		ID: e.ID, Message: text.Message(clip(r.GetMessage(), maxRequestText)), Time: e.TimeMS,
		State: RequestWaiting, Local: row.local, Seq: e.Seq,
	}
	if e.Account == m.env.account {
		return m.foldOwnRequest(tx, e, req)
	}
	c, _, err := m.contacts.get(tx, e.Account)
	if err != nil {
		return err
	}
	if c.State == pb.ContactState_STATE_CONTACT {
		// They removed us and ask again, or restored an old state: they are told once more that they are accepted.
		// One answer is enough for all requests that came together.
		if err := m.updateCard(tx, e, r.GetCard()); err != nil || e.Seq != row.last {
			return err
		}
		_, err := m.writeControl(tx, e.Account, feed.KindAccept, &pb.Accept{Card: m.settings.card(tx)})
		return ignoreReadOnly(err)
	}
	if c.In.waiting() {
		req.Invited = c.In.Invited
	}
	req.Invited = req.Invited || c.Invited
	c.In = req
	if c.stranger() {
		c.Cost.Control++
	}
	if c.CardStamp.before(stampOf(e)) {
		c.Card, c.CardStamp = readCard(r.GetCard()), stampOf(e)
	}
	if err := m.contacts.put(tx, e.Account, c); err != nil {
		return err
	}
	if c.State == pb.ContactState_STATE_ASKED && c.Out.waiting() && !c.Blocked {
		return m.befriend(tx, e, &c)
	}
	if err := m.tellRequest(tx, e.Account, &c); err != nil {
		return err
	}
	return m.tellContact(tx, e.Account, c.relation())
}

func (m *Messenger) foldOwnRequest(tx *storage.Tx, e *feed.Entry, req *requestRow) error {
	conv, ok, err := m.convs.get(tx, e.Conversation)
	if err != nil || !ok {
		return err
	}
	c, _, err := m.contacts.get(tx, conv.peer)
	if err != nil {
		return err
	}
	c.Out = req
	if err := m.contacts.put(tx, conv.peer, c); err != nil {
		return err
	}
	if err := m.ownAct(tx, e, pb.ContactState_STATE_ASKED); err != nil && !errors.Is(err, errIgnored) {
		return err
	}
	return m.tellRequest(tx, conv.peer, &c)
}

// ignoreReadOnly lets an automatic act be left out where R10 forbids acts; the entry that called for it stays stored.
func ignoreReadOnly(err error) error {
	if e, ok := err.(*Error); ok && e.Kind == ErrReadOnly {
		return nil
	}
	return err
}

// foldAccept makes a contact of somebody we asked or write to. From anybody else it says nothing: should we ask them
// again, they answer again.
func (m *Messenger) foldAccept(tx *storage.Tx, e *feed.Entry, a *pb.Accept) error {
	if e.Account == m.env.account {
		return m.ownAct(tx, e, pb.ContactState_STATE_CONTACT)
	}
	c, _, err := m.contacts.get(tx, e.Account)
	if err != nil {
		return err
	}
	if c.stranger() {
		c.Cost.Control++
	} else if c.CardStamp.before(stampOf(e)) {
		c.Card, c.CardStamp = readCard(a.GetCard()), stampOf(e)
	}
	if err := m.contacts.put(tx, e.Account, c); err != nil {
		return err
	}
	if c.Blocked || c.State != pb.ContactState_STATE_ASKED && c.State != pb.ContactState_STATE_ONE_WAY {
		return nil
	}
	oneWay := c.State == pb.ContactState_STATE_ONE_WAY
	if err := m.befriend(tx, e, &c); err != nil || !oneWay {
		return err
	}
	// Whoever began one-way has not shown a card yet.
	_, err = m.writeControl(tx, e.Account, feed.KindCardUpdate, &pb.CardUpdate{Card: m.settings.card(tx)})
	return ignoreReadOnly(err)
}

func (m *Messenger) foldDecline(tx *storage.Tx, e *feed.Entry) error {
	if e.Account == m.env.account {
		return m.ownAct(tx, e, pb.ContactState_STATE_DECLINED)
	}
	c, _, err := m.contacts.get(tx, e.Account)
	if err != nil {
		return err
	}
	if c.stranger() {
		c.Cost.Control++
	}
	declined := c.Out.waiting()
	if declined {
		out := *c.Out
		out.State = RequestDeclined
		c.Out = &out
	}
	if err := m.contacts.put(tx, e.Account, c); err != nil || !declined {
		return err
	}
	if err := m.tellRequest(tx, e.Account, &c); err != nil {
		return err
	}
	return m.tellContact(tx, e.Account, c.relation())
}

// foldCard takes a new card from those who were accepted; others have nothing to show here.
func (m *Messenger) foldCard(tx *storage.Tx, e *feed.Entry, p *pb.Card) error {
	if e.Account == m.env.account {
		return errIgnored
	}
	c, _, err := m.contacts.get(tx, e.Account)
	if err != nil {
		return err
	}
	if c.stranger() {
		c.Cost.Control++
		return m.contacts.put(tx, e.Account, c)
	}
	return m.updateCard(tx, e, p)
}

func (m *Messenger) updateCard(tx *storage.Tx, e *feed.Entry, p *pb.Card) error {
	c, _, err := m.contacts.get(tx, e.Account)
	if err != nil || !c.CardStamp.before(stampOf(e)) {
		return err
	}
	c.Card, c.CardStamp = readCard(p), stampOf(e)
	if err := m.contacts.put(tx, e.Account, c); err != nil {
		return err
	}
	return m.tellContact(tx, e.Account, c.relation())
}
