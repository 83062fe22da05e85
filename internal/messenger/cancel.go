package messenger

import (
	"context"
	"slices"
	"time"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/storage"
)

// Cancel withdraws an own message that nobody was offered (R1). Its number stays used and its header goes out without
// a body, so that nobody's copy of the feed has a hole.
func (m *Messenger) Cancel(ctx context.Context, message string) error {
	return m.env.update(ctx, func(tx *storage.Tx) error {
		e, err := m.history.find(tx, message)
		if err != nil {
			return err
		}
		row, ok, err := m.feeds.get(tx, e.Feed())
		if err != nil {
			return err
		}
		switch {
		case !ok || e.Device != m.env.device:
			return refuse(ErrInvalid, "only messages written on this device can be cancelled", "")
		case e.Number != feed.Chat || e.Kind != feed.KindText:
			return refuse(ErrInvalid, "only texts can be cancelled", "")
		case !e.HasBody():
			return nil
		}
		offered, err := m.env.feeds.Offered(tx, row.id)
		if err != nil {
			return err
		}
		if s := row.state(e.Seq); offered >= e.Seq || s != StatePending && s != StateCancelled {
			return refuse(ErrTooLate, "the message was offered to somebody already", "")
		}
		if err := m.env.feeds.Erase(tx, row.id, e.Seq); err != nil {
			return err
		}
		row.cancelled = append(row.cancelled, e.Seq)
		if err := m.feeds.put(tx, row); err != nil {
			return err
		}
		return m.tellState(tx, &row, e.Seq, e.Seq, StateCancelled)
	})
}

// Why tells what happened to an own message so far: which devices have it, what was tried, when it is tried next. It
// never says that somebody blocked us, because nobody can know.
func (m *Messenger) Why(ctx context.Context, message string) (Why, error) {
	var w Why
	err := m.env.db.View(func(tx *storage.Tx) error {
		e, err := m.history.find(tx, message)
		if err == nil {
			e, err = m.sentAgain(tx, e)
		}
		if err != nil {
			return err
		}
		row, _, err := m.feeds.get(tx, e.Feed())
		if err != nil {
			return err
		}
		w.Former = m.former(row.id)
		r, err := m.renderer(tx, e.Conversation)
		if err != nil {
			return err
		}
		if w.Message, err = r.message(&e, &row); err != nil {
			return err
		}
		if r.conv.peer == m.env.account || !w.Message.Own {
			w.Summary = WhyDelivered
			return nil
		}
		switch w.Message.State {
		case StateUnknown:
			w.Summary = WhyUnknown
			return nil
		case StateCancelled:
			w.Summary = WhyCancelled
			return nil
		}
		readers := []identity.AccountID{r.conv.peer}
		if r.conv.group() {
			if readers, err = m.env.groups.Audience(tx, e.Conversation, e.Header); err != nil {
				return err
			}
			if w.Custody, err = m.custody(tx, identity.DeviceID{}, row.id, e.Seq); err != nil {
				return err
			}
		}
		for _, a := range readers {
			for _, d := range m.env.people.Devices(a) {
				wd, err := m.whyDevice(tx, &row, e.Seq, r, a, d)
				if err != nil {
					return err
				}
				w.Devices = append(w.Devices, wd)
			}
		}
		offered, err := m.env.feeds.Offered(tx, row.id)
		if err != nil {
			return err
		}
		if r.conv.group() {
			w.Summary = groupSummary(&w, len(readers), offered < e.Seq && !w.Former)
			return nil
		}
		w.Summary, err = m.summary(tx, &row, &e, r.conv.peer, offered, w.inMailbox())
		return err
	})
	return w, err
}

// groupSummary is the code for what each of so many members is to have. Acts have no state, for nobody reads or withdraws them:
// what counts is which members have a device that holds them.
func groupSummary(w *Why, readers int, untouched bool) WhySummary {
	msg := &w.Message
	act := msg.State == ""
	members, have := msg.Members, msg.DeliveredTo
	if act {
		holders := map[identity.AccountID]bool{}
		for _, d := range w.Devices {
			if d.State == DeviceDelivered {
				holders[d.Account] = true
			}
		}
		members, have = readers, len(holders)
	}
	switch {
	case members > 0 && msg.ReadBy == members:
		return WhyRead
	case members > 0 && have == members:
		return WhyDelivered
	case w.inMailbox():
		return WhyInMailbox
	case have > 0:
		return WhyPartly
	case members == 0:
		return WhyAlone
	case untouched && !act:
		return WhyNotOffered
	}
	return WhyWaitingForPeer
}

func (m *Messenger) whyDevice(tx *storage.Tx, row *feedRow, seq uint64, r *renderer, a identity.AccountID, d identity.DeviceID) (WhyDevice, error) {
	name, err := r.names.of(a)
	if err != nil {
		return WhyDevice{}, err
	}
	w := WhyDevice{
		Account: a, Device: d, Name: name, State: DeviceWaiting, Connected: m.env.feeds.Connected(d),
		LastSeen: m.env.people.LastSeen(d), NextTry: m.env.roads.Next(d),
	}
	acked, err := m.env.feeds.Acked(tx, row.id, d)
	if err != nil {
		return w, err
	}
	taken := !slices.ContainsFunc(row.notTaken, func(s span) bool { return s.from <= seq && seq <= s.to })
	switch {
	case !taken:
		w.State = DeviceNotOwed
	case acked >= seq:
		w.State = DeviceDelivered
	case w.Connected:
		w.State = DeviceOffered
	}
	if w.State != DeviceWaiting && w.State != DeviceOffered {
		w.NextTry = time.Time{}
	} else if err := m.whyCustody(tx, &w, row.id, seq); err != nil {
		return w, err
	}
	attempts, err := m.env.roads.Why(d)
	if err != nil {
		return w, err
	}
	for _, a := range attempts {
		w.Attempts = append(w.Attempts, Attempt{Time: a.Time, Road: string(a.Road), Address: a.Addr, Error: a.Error})
	}
	return w, nil
}

func (m *Messenger) summary(tx *storage.Tx, row *feedRow, e *feed.Entry, peer identity.AccountID, offered uint64, inMailbox bool) (WhySummary, error) {
	switch s := row.state(e.Seq); {
	case s == StateRead:
		return WhyRead, nil
	case s == StateDelivered:
		return WhyDelivered, nil
	case s == StateNotTaken:
		return WhyNotTaken, nil
	case inMailbox:
		return WhyInMailbox, nil
	}
	// What a mailbox held and holds no longer is offered again, like what was never sent (R14).
	if row.refusedAt > 0 && row.refusedAt <= e.Seq {
		switch row.refused {
		case pb.Code_CODE_FULL:
			return WhyFull, nil
		case pb.Code_CODE_DENIED, pb.Code_CODE_NOT_MEMBER, pb.Code_CODE_UNSUPPORTED:
			return WhyDenied, nil
		}
	}
	c, _, err := m.contacts.get(tx, peer)
	switch {
	case err != nil:
		return "", err
	case c.relation() == RelationAsked && e.Kind != feed.KindRequest:
		return WhyWaitingForAccept, nil
	case offered < e.Seq && !m.former(row.id):
		return WhyNotOffered, nil
	}
	return WhyWaitingForPeer, nil
}
