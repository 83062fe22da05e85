package identity

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"hima/internal/wire/pb"
)

// Mail is the checked content of a sealed item: who sent it is proven, and that it is for this recipient. What it carries
// is checked by those who take it.
type Mail struct {
	Certificate   Certificate // of the sending device
	Recipient     DeviceID
	Time          time.Time
	AccountRecord AccountRecord // of the sender's account; zero: none
	Runs          []*pb.Run     // unchecked
	Receipts      [][]byte      // Signed receipts, unchecked
	Offer         *MailOffer    // nil: none
	Token         []byte        // an invite token, for a first request, or
	Work          []byte        // its proof of work
	Keys          MailKeys      // of groups that both are in (R29); unchecked but for their lengths
}

// MailKeys are keys of groups as they go over the wire. Nothing prints them.
type MailKeys []*pb.GroupKeys

// String redacts.
func (MailKeys) String() string { return redacted }

// Format redacts under every verb.
func (MailKeys) Format(s fmt.State, _ rune) { fmt.Fprint(s, redacted) }

// LogValue redacts.
func (MailKeys) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON redacts.
func (MailKeys) MarshalJSON() ([]byte, error) { return []byte(strconv.Quote(redacted)), nil }

// NewMail signs a mail with the sending device's key. The result is what SealMail seals; it returns ErrMalformed when it
// would not fit an item, so that a caller takes fewer runs and tries again.
func NewMail(key DeviceKey, m Mail) ([]byte, error) {
	if m.Certificate.IsZero() || m.Certificate.Device != key.ID() || m.Recipient.IsZero() {
		return nil, fmt.Errorf("making mail: certificate or recipient: %w", ErrMalformed)
	}
	out := &pb.Mail{
		Certificate: m.Certificate.Raw(), Recipient: m.Recipient.Bytes(), TimeMs: toMillis(m.Time),
		Runs: m.Runs, Receipts: m.Receipts, Token: m.Token, Work: m.Work, Keys: m.Keys,
	}
	if !m.AccountRecord.IsZero() {
		out.AccountRecord = m.AccountRecord.Raw()
	}
	if m.Offer != nil {
		out.Offer = m.Offer.PB()
	}
	if _, err := mailFromPB(out, m.Recipient); err != nil {
		return nil, fmt.Errorf("making mail: %w", err)
	}
	payload := encode(out)
	raw := appendSigned(payload, key.Sign(DomainMail, payload))
	if len(raw) > MaxMailPlain {
		return nil, fmt.Errorf("making mail: %d bytes: %w", len(raw), ErrMalformed)
	}
	return raw, nil
}

// ParseMail checks what OpenMail returned: size, shape, bounds, that it is meant for recipient, the sending device's
// certificate and its signature. Whether that device still counts is for the caller to ask of the account's record.
func ParseMail(raw []byte, recipient DeviceID) (Mail, error) {
	m, err := parseMail(raw, recipient)
	if err != nil {
		return Mail{}, fmt.Errorf("reading mail: %w", err)
	}
	return m, nil
}

func parseMail(raw []byte, recipient DeviceID) (Mail, error) {
	payload, sig, err := parseSigned(raw, MaxMailPlain)
	if err != nil {
		return Mail{}, err
	}
	var m pb.Mail
	if err := decode(payload, &m); err != nil {
		return Mail{}, err
	}
	out, err := mailFromPB(&m, recipient)
	if err != nil {
		return Mail{}, err
	}
	if !out.Certificate.Device.Verify(DomainMail, payload, sig) {
		return Mail{}, ErrBadSignature
	}
	return out, nil
}

func mailFromPB(m *pb.Mail, recipient DeviceID) (Mail, error) {
	if len(m.Runs) > MaxMailRuns || len(m.Receipts) > MaxMailReceipts || len(m.Token) > len(InviteToken{}) || len(m.Work) > workLen {
		return Mail{}, fmt.Errorf("%d runs, %d receipts: %w", len(m.Runs), len(m.Receipts), ErrMalformed)
	}
	for _, r := range m.Receipts {
		if len(r) > MaxMailReceipt {
			return Mail{}, fmt.Errorf("receipt of %d bytes: %w", len(r), ErrMalformed)
		}
	}
	if err := checkKeys(m.Keys); err != nil {
		return Mail{}, err
	}
	// An item sealed anew for somebody else would say that the sender wrote to them.
	if !bytes.Equal(m.Recipient, recipient[:]) {
		return Mail{}, fmt.Errorf("for another device: %w", ErrMalformed)
	}
	out := Mail{Recipient: recipient, Runs: m.Runs, Receipts: m.Receipts, Token: m.Token, Work: m.Work, Keys: m.Keys}
	var err error
	if out.Time, err = fromMillis(m.TimeMs); err != nil {
		return Mail{}, err
	}
	if out.Certificate, err = ParseCertificate(m.Certificate); err != nil {
		return Mail{}, err
	}
	if len(m.AccountRecord) > 0 {
		if out.AccountRecord, err = ParseAccountRecord(m.AccountRecord); err != nil {
			return Mail{}, err
		}
		if out.AccountRecord.Account != out.Certificate.Account {
			return Mail{}, fmt.Errorf("record of another account: %w", ErrMalformed)
		}
	}
	if m.Offer != nil {
		o, err := MailOfferFromPB(m.Offer)
		if err != nil {
			return Mail{}, err
		}
		// An item may lie at several mailboxes and be read twice; a one-time prekey is handed over once.
		if len(o.OneTime) > 0 {
			return Mail{}, fmt.Errorf("one-time prekeys by mail: %w", ErrMalformed)
		}
		out.Offer = &o
	}
	return out, nil
}

// checkKeys checks the shape of what a mail hands over of groups. Whether a key is that of its epoch is for those to see who
// know the group.
func checkKeys(list []*pb.GroupKeys) error {
	if len(list) > MaxMailGroups {
		return fmt.Errorf("keys of %d groups: %w", len(list), ErrMalformed)
	}
	for _, g := range list {
		if len(g.GetGroup()) != 32 || len(g.GetKeys()) == 0 || len(g.GetKeys()) > MaxGroupKeys {
			return fmt.Errorf("%d keys of a group: %w", len(g.GetKeys()), ErrMalformed)
		}
		for _, k := range g.GetKeys() {
			if len(k.GetEpoch()) != 32 || len(k.GetKey()) != 32 {
				return fmt.Errorf("key of an epoch: %w", ErrMalformed)
			}
		}
	}
	return nil
}

// MailOffer tells a contact's device where this device takes its mail, and under which keys. The highest Seq counts.
type MailOffer struct {
	Seq     uint64
	Inboxes []MailInbox // at most MaxMailboxes; none: no mail is taken
	Prekey  Prekey      // rotating; zero: none
	OneTime []OneTimePrekey
}

// MailInbox is an inbox at a mailbox. Knowing it is the right to deposit.
type MailInbox struct {
	Mailbox MailboxRef
	Inbox   InboxID
}

// PB returns the form in which an offer goes over the wire.
func (o MailOffer) PB() *pb.MailOffer {
	m := &pb.MailOffer{Seq: o.Seq, Prekey: o.Prekey.Bytes()}
	for _, i := range o.Inboxes {
		m.Inboxes = append(m.Inboxes, &pb.MailInbox{Mailbox: packMailbox(i.Mailbox), Inbox: i.Inbox.Bytes()})
	}
	for _, k := range o.OneTime {
		m.OneTime = append(m.OneTime, &pb.OneTimePrekey{Id: k.ID.Bytes(), Public: k.Key.Bytes()})
	}
	return m
}

// MailOfferFromPB checks an offer from the wire.
func MailOfferFromPB(m *pb.MailOffer) (MailOffer, error) {
	o, err := mailOfferFromPB(m)
	if err != nil {
		return MailOffer{}, fmt.Errorf("reading mail offer: %w", err)
	}
	return o, nil
}

func mailOfferFromPB(m *pb.MailOffer) (MailOffer, error) {
	o := MailOffer{Seq: m.GetSeq()}
	if o.Seq > MaxSeq || len(m.GetInboxes()) > MaxMailboxes || len(m.GetOneTime()) > MaxOneTime {
		return MailOffer{}, fmt.Errorf("number %d, %d inboxes, %d one-time prekeys: %w", o.Seq, len(m.GetInboxes()), len(m.GetOneTime()), ErrMalformed)
	}
	var err error
	for _, mi := range m.GetInboxes() {
		var i MailInbox
		if i.Mailbox, err = unpackMailbox(mi.GetMailbox()); err != nil {
			return MailOffer{}, err
		}
		if i.Inbox, err = InboxIDFromBytes(mi.GetInbox()); err != nil {
			return MailOffer{}, err
		}
		if slices.ContainsFunc(o.Inboxes, func(p MailInbox) bool { return p.Mailbox.Device == i.Mailbox.Device }) {
			return MailOffer{}, fmt.Errorf("mailbox named twice: %w", ErrMalformed)
		}
		o.Inboxes = append(o.Inboxes, i)
	}
	if len(m.GetPrekey()) > 0 {
		if o.Prekey, err = ParsePrekey(m.GetPrekey()); err != nil {
			return MailOffer{}, err
		}
	}
	for _, mk := range m.GetOneTime() {
		var k OneTimePrekey
		if k.ID, err = HintFromBytes(mk.GetId()); err != nil {
			return MailOffer{}, err
		}
		if k.Key, err = ParsePrekey(mk.GetPublic()); err != nil {
			return MailOffer{}, err
		}
		if slices.ContainsFunc(o.OneTime, func(p OneTimePrekey) bool { return p.ID == k.ID }) {
			return MailOffer{}, fmt.Errorf("one-time prekey handed over twice: %w", ErrMalformed)
		}
		o.OneTime = append(o.OneTime, k)
	}
	return o, nil
}
