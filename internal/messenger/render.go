package messenger

import (
	"time"

	"google.golang.org/protobuf/proto"

	"hima/groups"
	"hima/identity"
	"hima/internal/feed"
	"hima/internal/text"
	"hima/internal/wire/pb"
	"hima/storage"
)

// renderer makes messages of the entries of one conversation within one transaction.
type renderer struct {
	m     *Messenger
	tx    *storage.Tx
	conv  convRow
	names *names
	near  map[localFeed]*block // the block last read of each feed; neighbours lie in it
	many  many                 // of a group
}

func (m *Messenger) renderer(tx *storage.Tx, conv feed.ConversationID) (*renderer, error) {
	row, _, err := m.convs.get(tx, conv)
	if err != nil {
		return nil, err
	}
	r := &renderer{m: m, tx: tx, conv: row, names: m.names(tx, groups.ID{}), near: make(map[localFeed]*block)}
	if row.group() {
		r.names = m.names(tx, conv)
		r.many = many{reach: make(map[localFeed]map[identity.AccountID]reach), audiences: make(map[string]*audience)}
	}
	return r, nil
}

func (r *renderer) line(l *line) (Message, error) {
	switch {
	case l.note != 0:
		name, err := r.names.of(r.conv.peer)
		return Message{
			Conversation: r.conv.id, Peer: r.conv.peer, Author: r.conv.peer, AuthorName: name,
			Clock: l.key.Clock, Kind: MessageDevicesChanged, Time: time.UnixMilli(l.note), Received: time.UnixMilli(l.note),
		}, err
	case l.hole > 0 && l.entry.Seq == 0:
		name, err := r.names.of(l.row.account)
		return Message{
			Conversation: r.conv.id, Peer: r.conv.peer, Author: l.row.account, AuthorName: name,
			Device: l.row.id.Device, Number: l.row.id.Number, Seq: l.key.Seq, Clock: l.key.Clock,
			Kind: MessageHole, Hole: l.hole, Own: l.row.own(r.m.env.account),
		}, err
	}
	msg, err := r.message(&l.entry, l.row)
	if l.hole > 0 {
		msg.Kind, msg.Hole = MessageHole, l.hole
	}
	return msg, err
}

// message makes a message of an entry that is held.
func (r *renderer) message(e *feed.Entry, row *feedRow) (Message, error) {
	b := r.near[row.local]
	if !b.covers(row.local, e.Seq) {
		var err error
		if b, err = r.m.arrivals.read(r.tx, row.local, e.Seq); err != nil {
			return Message{}, err
		}
		r.near[row.local] = b
	}
	return r.rendered(e, row, b.items[e.Seq%blockLen])
}

// rendered is message with the arrival at hand.
func (r *renderer) rendered(e *feed.Entry, row *feedRow, how arrival) (Message, error) {
	name, err := r.names.of(e.Account)
	if err != nil {
		return Message{}, err
	}
	msg := Message{
		ID: e.ID, Conversation: r.conv.id, Peer: r.conv.peer, Author: e.Account, AuthorName: name,
		Device: e.Device, Number: e.Number, Seq: e.Seq, Clock: e.Clock, Time: e.Time(),
		Own: row.own(r.m.env.account), Late: how.late, Received: time.UnixMilli(how.received),
	}
	if how.received == 0 {
		msg.Received = msg.Time
	} else {
		msg.ClockAhead = e.Ahead(msg.Received)
	}
	msg.Kind, msg.Text = says(e)
	switch {
	case msg.Own && msg.Kind == MessageCancelled:
		msg.State = StateCancelled
	case msg.Own && r.conv.peer == r.m.env.account:
		// A note to oneself goes to nobody else; it has arrived when it is stored.
		msg.State = StateRead
	case msg.Own:
		msg.State = row.state(e.Seq)
	case e.Seq <= row.read:
		msg.State = StateRead
	}
	if r.conv.group() {
		if err := r.groupMessage(&msg, e, row); err != nil {
			return msg, err
		}
	}
	if msg.State == StatePending {
		unsettled, err := r.m.unsettled(r.tx, row, e.Seq)
		if unsettled {
			msg.State = StateUnknown
		}
		return msg, err
	}
	return msg, nil
}

// says reads what an entry says, neutralised. What does not decode is shown as not supported.
func says(e *feed.Entry) (MessageKind, string) {
	if !e.HasBody() {
		return MessageCancelled, ""
	}
	if !feed.Known(e.Number, e.Kind) {
		return MessageUnsupported, ""
	}
	content, err := e.Content()
	if err != nil {
		return MessageUnsupported, ""
	}
	switch {
	case e.Number == feed.Chat && e.Kind == feed.KindText:
		var t pb.Text
		if proto.Unmarshal(content, &t) != nil {
			return MessageUnsupported, ""
		}
		return MessageText, text.Message(t.GetText())
	case e.Number == feed.Control && e.Kind == feed.KindRequest:
		var q pb.Request
		if proto.Unmarshal(content, &q) != nil {
			return MessageUnsupported, ""
		}
		return MessageRequest, text.Message(clip(q.GetMessage(), maxRequestText))
	case e.Number == feed.Control && e.Kind == feed.KindAccept:
		return MessageAccepted, ""
	case e.Number == feed.Control && e.Kind == feed.KindDecline:
		return MessageDeclined, ""
	}
	return MessageUnsupported, ""
}
