package messenger

import (
	"context"
	"slices"
	"strings"
	"time"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/text"
	"hima/internal/wire/pb"
	"hima/storage"
)

// AddContact asks somebody, or begins to write to them one-way. Adding somebody who asked us accepts them. It returns
// the ID of what was written, the zero one if nothing was.
func (m *Messenger) AddContact(ctx context.Context, in AddContact) (Contact, feed.EntryID, error) {
	if err := checkRequestText(in.Message); err != nil {
		return Contact{}, feed.EntryID{}, err
	}
	remark, err := cleanRemark(in.Remark)
	if err != nil {
		return Contact{}, feed.EntryID{}, err
	}
	in.Remark = remark
	t, err := m.who.outward(ctx, in.Who)
	if err != nil {
		return Contact{}, feed.EntryID{}, err
	}
	switch {
	case t.account == m.env.account:
		return Contact{}, feed.EntryID{}, refuse(ErrInvalid, "this is your own account", "`self` is the conversation with yourself")
	case !in.Expect.IsZero() && in.Expect != t.account:
		return Contact{}, feed.EntryID{}, refuse(ErrConflict, "this name now means somebody else: "+t.account.String(), "look at the ID again")
	case t.disagreement && in.Expect.IsZero():
		return Contact{}, feed.EntryID{}, ambiguous(append(t.others, t))
	}
	if err := m.notBlocked(t.account); err != nil {
		return Contact{}, feed.EntryID{}, err
	}
	m.join(ctx, t.invite, in.Joined)
	for _, d := range t.invite.Devices {
		m.env.people.Hint(t.account, d.Device, d.Addrs)
	}
	var id feed.EntryID
	err = m.env.update(ctx, func(tx *storage.Tx) error {
		id, err = m.add(tx, t, in)
		// A knock that was refused before may pass now: with a token, or as a request.
		tx.OnCommit(func() { m.env.feeds.Reannounce(m.conversationID(t.account)) })
		return err
	})
	if err != nil {
		return Contact{}, feed.EntryID{}, err
	}
	m.env.networks.Fetch(t.account)
	c, err := m.contact(t.account)
	return c, id, err
}

// notBlocked refuses before anything is done for somebody blocked.
func (m *Messenger) notBlocked(a identity.AccountID) error {
	return m.env.db.View(func(tx *storage.Tx) error {
		row, _, err := m.contacts.get(tx, a)
		if err == nil && row.Blocked {
			err = refuse(ErrDenied, "you blocked this account", "`hima contact unblock` first")
		}
		return err
	})
}

func checkRequestText(s string) error {
	if len(s) > maxRequestText {
		return refuse(ErrTooLarge, "the text of a request is at most 1024 bytes long", "say the rest when it is accepted")
	}
	if text.Valid(s) != nil {
		return refuse(ErrInvalid, "the text is not valid UTF-8", "")
	}
	return nil
}

func (m *Messenger) add(tx *storage.Tx, t target, in AddContact) (feed.EntryID, error) {
	row, _, err := m.contacts.get(tx, t.account)
	if err != nil {
		return feed.EntryID{}, err
	}
	if t.username != "" && row.Hint != t.username || !t.invite.Token.IsZero() {
		if t.username != "" {
			row.Hint = t.username
		}
		if !t.invite.Token.IsZero() {
			row.Token = slices.Clone(t.invite.Token[:])
		}
		if err := m.contacts.put(tx, t.account, row); err != nil {
			return feed.EntryID{}, err
		}
	}
	remark := func(s *pb.ContactState) {
		if in.Remark != "" {
			s.Remark = in.Remark
		}
	}
	switch {
	case row.Blocked:
		return feed.EntryID{}, refuse(ErrDenied, "you blocked this account", "`hima contact unblock` first")
	case row.State == pb.ContactState_STATE_CONTACT:
		return feed.EntryID{}, refuse(ErrExists, "this account is a contact already", "")
	case !in.OneWay && (row.In.waiting() || row.Cost.Messages > 0):
		return m.accept(tx, t.account, remark)
	case in.OneWay:
		return m.addOneWay(tx, t.account, &row, in.Message, remark)
	case row.State == pb.ContactState_STATE_ASKED && row.Out.waiting():
		return feed.EntryID{}, refuse(ErrExists, "this account was asked already", "`hima contact requests` shows how far it got")
	}
	// Somebody we write to one-way stays reachable while they make up their mind.
	err = m.writeState(tx, t.account, func(s *pb.ContactState) {
		if s.State != pb.ContactState_STATE_ONE_WAY {
			s.State = pb.ContactState_STATE_ASKED
		}
		remark(s)
	})
	if err != nil {
		return feed.EntryID{}, err
	}
	e, err := m.writeControl(tx, t.account, feed.KindRequest, &pb.Request{Message: in.Message, Card: m.settings.card(tx)})
	return e.ID, err
}

func (m *Messenger) addOneWay(tx *storage.Tx, a identity.AccountID, row *contactRow, message string, remark func(*pb.ContactState)) (feed.EntryID, error) {
	if row.State != pb.ContactState_STATE_ONE_WAY {
		err := m.writeState(tx, a, func(s *pb.ContactState) {
			s.State = pb.ContactState_STATE_ONE_WAY
			remark(s)
		})
		if err != nil {
			return feed.EntryID{}, err
		}
	} else if message == "" {
		return feed.EntryID{}, refuse(ErrExists, "you write to this account already", "")
	}
	if message == "" {
		return feed.EntryID{}, nil
	}
	e, err := m.sender.writeText(tx, feed.DirectConversation(m.env.account, a), message)
	return e.ID, err
}

// accept makes a contact and says so, with our card.
func (m *Messenger) accept(tx *storage.Tx, a identity.AccountID, change func(*pb.ContactState)) (feed.EntryID, error) {
	err := m.writeState(tx, a, func(s *pb.ContactState) {
		s.State = pb.ContactState_STATE_CONTACT
		change(s)
	})
	if err != nil {
		return feed.EntryID{}, err
	}
	e, err := m.writeControl(tx, a, feed.KindAccept, &pb.Accept{Card: m.settings.card(tx)})
	return e.ID, err
}

// act resolves who among the known and runs f on their row.
func (m *Messenger) act(ctx context.Context, who string, f func(tx *storage.Tx, a identity.AccountID, row *contactRow) error) (Contact, error) {
	t, err := m.who.known(who)
	if err != nil {
		return Contact{}, err
	}
	if t.account == m.env.account {
		return Contact{}, refuse(ErrInvalid, "this is your own account", "")
	}
	err = m.env.update(ctx, func(tx *storage.Tx) error {
		row, _, err := m.contacts.get(tx, t.account)
		if err != nil {
			return err
		}
		return f(tx, t.account, &row)
	})
	if err != nil {
		return Contact{}, err
	}
	return m.contact(t.account)
}

func (m *Messenger) contact(a identity.AccountID) (c Contact, err error) {
	err = m.env.db.View(func(tx *storage.Tx) error {
		row, _, err := m.contacts.get(tx, a)
		c = m.contactView(a, &row)
		return err
	})
	return c, err
}

// Accept makes a contact of somebody who asked, or who writes one-way.
func (m *Messenger) Accept(ctx context.Context, who string) (Contact, error) {
	return m.act(ctx, who, func(tx *storage.Tx, a identity.AccountID, row *contactRow) error {
		switch {
		case row.Blocked:
			return refuse(ErrDenied, "you blocked this account", "`hima contact unblock` first")
		case row.State == pb.ContactState_STATE_CONTACT:
			return nil
		case !row.In.waiting() && row.Cost.Messages == 0 &&
			!(row.In != nil && row.State == pb.ContactState_STATE_DECLINED):
			return refuse(ErrNotFound, "there is no request of this account", "`hima contact requests` lists them")
		}
		_, err := m.accept(tx, a, func(*pb.ContactState) {})
		return err
	})
}

// Decline answers a request with no. The other side is told, and may ask again.
func (m *Messenger) Decline(ctx context.Context, who string) (Contact, error) {
	return m.act(ctx, who, func(tx *storage.Tx, a identity.AccountID, row *contactRow) error {
		switch {
		case row.State == pb.ContactState_STATE_CONTACT:
			return refuse(ErrConflict, "this account is a contact already", "`hima contact remove` ends it")
		case !row.In.waiting() && row.Cost.Messages == 0:
			return refuse(ErrNotFound, "there is no request of this account", "`hima contact requests` lists them")
		}
		err := m.writeState(tx, a, func(s *pb.ContactState) { s.State = pb.ContactState_STATE_DECLINED })
		if err != nil || row.Blocked {
			return err
		}
		_, err = m.writeControl(tx, a, feed.KindDecline, &pb.Decline{})
		return err
	})
}

// Block silences an account. It is not told; to it this node behaves as to a stranger who is not listened to (R16).
func (m *Messenger) Block(ctx context.Context, who string) (Contact, error) {
	return m.setBlocked(ctx, who, true)
}

// Unblock ends a block. What was written meanwhile stays unread for ever, and its author sees that (R16).
func (m *Messenger) Unblock(ctx context.Context, who string) (Contact, error) {
	return m.setBlocked(ctx, who, false)
}

func (m *Messenger) setBlocked(ctx context.Context, who string, blocked bool) (Contact, error) {
	return m.act(ctx, who, func(tx *storage.Tx, a identity.AccountID, row *contactRow) error {
		if row.Blocked == blocked {
			return nil
		}
		return m.writeState(tx, a, func(s *pb.ContactState) { s.Blocked = blocked })
	})
}

// Remove makes a stranger of a contact. History stays, the other side is not told.
func (m *Messenger) Remove(ctx context.Context, who string) (Contact, error) {
	return m.act(ctx, who, func(tx *storage.Tx, a identity.AccountID, row *contactRow) error {
		if row.State <= pb.ContactState_STATE_NONE && row.In == nil && row.Cost == (strangerCost{}) {
			return refuse(ErrNotContact, "this account is not a contact", "")
		}
		if err := m.withdraw(tx, row.Out); err != nil {
			return err
		}
		return m.writeState(tx, a, func(s *pb.ContactState) {
			s.State, s.Remark = pb.ContactState_STATE_NONE, ""
		})
	})
}

// withdraw takes an own request back that nobody was offered (R1), so that it does not go out with a later one.
func (m *Messenger) withdraw(tx *storage.Tx, r *requestRow) error {
	if !r.waiting() {
		return nil
	}
	f, err := m.feeds.local(tx, r.Local)
	if err != nil || f.id.Device != m.env.device || f.state(r.Seq) != StatePending {
		return err
	}
	offered, err := m.env.feeds.Offered(tx, f.id)
	if err != nil || offered >= r.Seq {
		return err
	}
	if err := m.env.feeds.Erase(tx, f.id, r.Seq); err != nil {
		return err
	}
	f.cancelled = append(f.cancelled, r.Seq)
	if err := m.feeds.put(tx, f); err != nil {
		return err
	}
	return m.tellState(tx, &f, r.Seq, r.Seq, StateCancelled)
}

// Remark gives an account the owner's own name for it; empty takes it away.
func (m *Messenger) Remark(ctx context.Context, who, remark string) (Contact, error) {
	clean, err := cleanRemark(remark)
	if err != nil {
		return Contact{}, err
	}
	return m.act(ctx, who, func(tx *storage.Tx, a identity.AccountID, row *contactRow) error {
		return m.writeState(tx, a, func(s *pb.ContactState) { s.Remark = clean })
	})
}

// cleanRemark neutralises a remark and refuses one that could never be typed for the person it names.
func cleanRemark(s string) (string, error) {
	if text.Valid(s) != nil {
		return "", refuse(ErrInvalid, "the remark is not valid UTF-8", "")
	}
	clean := strings.TrimSpace(text.OneLine(s, maxRemark))
	lower := strings.ToLower(clean)
	for _, taken := range []string{userPrefix, idPrefix, "hima:", "group:"} {
		if strings.HasPrefix(lower, taken) || lower == selfName {
			return "", refuse(ErrInvalid, "this remark would be taken for something else", "no remark is `self` or begins with "+taken)
		}
	}
	return clean, nil
}

// Verify gives the digits both sides compare and, unless it is only to show, records the owner's finding.
func (m *Messenger) Verify(ctx context.Context, who string, r VerifyResult) (Verification, error) {
	c, err := m.act(ctx, who, func(tx *storage.Tx, a identity.AccountID, row *contactRow) error {
		found := pb.ContactState_VERIFIED_CONFIRMED
		switch {
		case r == VerifyShow:
			return nil
		case r == VerifyReject:
			found = pb.ContactState_VERIFIED_REJECTED
		case row.verified() == VerifiedChanged:
			// Confirmed again: the present devices are the ones that count from here on.
			row.VerifiedDevices = m.env.people.Devices(a)
			if err := m.contacts.put(tx, a, *row); err != nil {
				return err
			}
		}
		return m.writeState(tx, a, func(s *pb.ContactState) { s.Verified = found })
	})
	if err != nil {
		return Verification{}, err
	}
	return Verification{
		Digits:  identity.SafetyDigits(m.env.account, c.Account),
		QR:      identity.SafetyQR(m.env.account, c.Account),
		Contact: c,
	}, nil
}

// Contacts lists everybody we have to do with, by name; all adds those removed, declined and blocked.
func (m *Messenger) Contacts(ctx context.Context, all bool) ([]Contact, error) {
	var out []Contact
	names := make(map[identity.AccountID]string)
	err := m.env.db.View(func(tx *storage.Tx) error {
		return m.contacts.each(tx, func(a identity.AccountID, row contactRow) error {
			if row.aside() {
				return nil
			}
			switch row.relation() {
			case RelationNone, RelationDeclined, RelationBlocked:
				if !all {
					return nil
				}
			}
			names[a] = strings.ToLower(row.name(a))
			out = append(out, m.contactView(a, &row))
			return nil
		})
	})
	slices.SortStableFunc(out, func(a, b Contact) int { return strings.Compare(names[a.Account], names[b.Account]) })
	return out, err
}

// Requests lists requests both ways, newest first.
func (m *Messenger) Requests(ctx context.Context) ([]Request, error) {
	var out []Request
	err := m.env.db.View(func(tx *storage.Tx) error {
		return m.contacts.each(tx, func(a identity.AccountID, row contactRow) error {
			if row.Blocked {
				return nil
			}
			if row.In != nil {
				out = append(out, requestView(a, &row, row.In, true))
			}
			if row.Out == nil {
				return nil
			}
			v := requestView(a, &row, row.Out, false)
			if v.State == RequestWaiting {
				f, err := m.feeds.local(tx, row.Out.Local)
				if err != nil {
					return err
				}
				if f.state(row.Out.Seq) == StatePending {
					v.State = RequestNotDelivered
				}
			}
			out = append(out, v)
			return nil
		})
	})
	slices.SortStableFunc(out, func(a, b Request) int { return b.Time.Compare(a.Time) })
	return out, err
}

func requestView(a identity.AccountID, row *contactRow, r *requestRow, incoming bool) Request {
	return Request{
		Account: a, Username: row.username(), Nickname: row.Card.Nickname, ContactField: row.Card.Field,
		Message: r.Message, Incoming: incoming, State: r.State, Time: time.UnixMilli(r.Time),
		Invited: r.Invited, ID: r.ID,
	}
}
