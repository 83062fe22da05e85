package identity

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"hima/internal/wire/pb"
)

// DeviceRecord is a device's checked statement of how it is reached when nobody meets it. Whether its account still lists
// the device is for the caller to ask.
type DeviceRecord struct {
	Device        DeviceID
	Certificate   Certificate
	Seq           uint64
	Expires       time.Time
	Prekey        Prekey // rotating; zero: none
	PrekeyCreated time.Time
	Mailboxes     []MailboxRef // at most MaxMailboxes
	Addrs         []string     // multiaddrs, relayed ones before others
	Request       RequestInbox // zero: no first requests by mail
	raw           string
}

// MailboxRef is a node that keeps mail, and where it is.
type MailboxRef struct {
	Device DeviceID
	Addrs  []string // multiaddrs
}

// RequestInbox is where strangers may leave a first request, at the price of a proof of work.
type RequestInbox struct {
	Mailbox  DeviceID // one of the record's mailboxes
	Inbox    InboxID
	WorkBits int
}

// IsZero tells whether there is no request inbox.
func (r RequestInbox) IsZero() bool { return r == RequestInbox{} }

// DeviceRecordConfig is what a new record says.
type DeviceRecordConfig struct {
	Certificate   Certificate // of the signing device
	LastSeq       uint64      // highest sequence number known of this device, 0 if there was none
	Now           time.Time   // the record expires DeviceRecordLifetime after it
	Prekey        Prekey
	PrekeyCreated time.Time
	Mailboxes     []MailboxRef
	Addrs         []string // those beyond MaxRecordAddrs, and those that do not parse, are left out
	Request       RequestInbox
}

// NewDeviceRecord signs a record. Its number is max(last + 1, Unix milliseconds), like an account record's.
func NewDeviceRecord(key DeviceKey, c DeviceRecordConfig) (DeviceRecord, error) {
	r, err := newDeviceRecord(key, c)
	if err != nil {
		return DeviceRecord{}, fmt.Errorf("making device record: %w", err)
	}
	return r, nil
}

func newDeviceRecord(key DeviceKey, c DeviceRecordConfig) (DeviceRecord, error) {
	if c.LastSeq >= MaxSeq || c.Certificate.IsZero() {
		return DeviceRecord{}, fmt.Errorf("number %d, certificate missing: %t: %w", c.LastSeq, c.Certificate.IsZero(), ErrMalformed)
	}
	ms := toMillis(c.Now)
	m := &pb.DeviceRecord{
		Device: key.ID().Bytes(), Certificate: c.Certificate.Raw(), Seq: max(c.LastSeq+1, uint64(ms)),
		ExpiresMs: min(ms+DeviceRecordLifetime.Milliseconds(), maxMillis),
		Mailboxes: packMailboxes(c.Mailboxes), Addrs: packAddrs(c.Addrs, MaxRecordAddrs),
	}
	if !c.Prekey.IsZero() {
		m.Prekey = &pb.Prekey{Public: c.Prekey.Bytes(), CreatedMs: toMillis(c.PrekeyCreated)}
	}
	if !c.Request.IsZero() {
		if c.Request.WorkBits < 0 || c.Request.WorkBits > MaxWorkBits {
			return DeviceRecord{}, fmt.Errorf("%d bits of work: %w", c.Request.WorkBits, ErrMalformed)
		}
		m.Request = &pb.RequestInbox{Mailbox: c.Request.Mailbox.Bytes(), Inbox: c.Request.Inbox.Bytes(), WorkBits: uint32(c.Request.WorkBits)}
	}
	// Checked as a reader would, so that what is published is what can be read.
	r, err := deviceRecordFromPB(m)
	if err != nil {
		return DeviceRecord{}, err
	}
	payload := encode(m)
	r.raw = string(appendSigned(payload, key.Sign(DomainDeviceRecord, payload)))
	if len(r.raw) > MaxDeviceRecord {
		return DeviceRecord{}, fmt.Errorf("%d bytes: %w", len(r.raw), ErrMalformed)
	}
	return r, nil
}

// ParseDeviceRecord checks signed bytes: size, shape, bounds, the certificate and the device's signature. Whether the
// record has expired, or is the newest, is for the caller to ask.
func ParseDeviceRecord(raw []byte) (DeviceRecord, error) {
	r, err := parseDeviceRecord(raw)
	if err != nil {
		return DeviceRecord{}, fmt.Errorf("reading device record: %w", err)
	}
	return r, nil
}

func parseDeviceRecord(raw []byte) (DeviceRecord, error) {
	payload, sig, err := parseSigned(raw, MaxDeviceRecord)
	if err != nil {
		return DeviceRecord{}, err
	}
	var m pb.DeviceRecord
	if err := decode(payload, &m); err != nil {
		return DeviceRecord{}, err
	}
	// The signature first: it costs less than the certificate and the prekey in it.
	device, err := DeviceIDFromBytes(m.Device)
	if err != nil {
		return DeviceRecord{}, err
	}
	if !device.Verify(DomainDeviceRecord, payload, sig) {
		return DeviceRecord{}, ErrBadSignature
	}
	r, err := deviceRecordFromPB(&m)
	if err != nil {
		return DeviceRecord{}, err
	}
	r.raw = string(raw)
	return r, nil
}

func deviceRecordFromPB(m *pb.DeviceRecord) (DeviceRecord, error) {
	r := DeviceRecord{Seq: m.Seq}
	var err error
	if r.Device, err = DeviceIDFromBytes(m.Device); err != nil {
		return DeviceRecord{}, err
	}
	if r.Seq < 1 || r.Seq > MaxSeq {
		return DeviceRecord{}, fmt.Errorf("sequence number %d: %w", r.Seq, ErrMalformed)
	}
	if r.Expires, err = fromMillis(m.ExpiresMs); err != nil {
		return DeviceRecord{}, err
	}
	if r.Certificate, err = ParseCertificate(m.Certificate); err != nil {
		return DeviceRecord{}, err
	}
	if r.Certificate.Device != r.Device {
		return DeviceRecord{}, fmt.Errorf("certificate of another device: %w", ErrMalformed)
	}
	if m.Prekey != nil {
		if r.Prekey, err = ParsePrekey(m.Prekey.Public); err != nil {
			return DeviceRecord{}, err
		}
		if r.PrekeyCreated, err = fromMillis(m.Prekey.CreatedMs); err != nil {
			return DeviceRecord{}, err
		}
	}
	if r.Mailboxes, err = unpackMailboxes(m.Mailboxes); err != nil {
		return DeviceRecord{}, err
	}
	if r.Addrs, err = unpackAddrs(m.Addrs, MaxRecordAddrs); err != nil {
		return DeviceRecord{}, err
	}
	if m.Request != nil {
		r.Request, err = requestInboxFromPB(m.Request, r.Mailboxes)
	}
	return r, err
}

func requestInboxFromPB(m *pb.RequestInbox, boxes []MailboxRef) (RequestInbox, error) {
	var r RequestInbox
	var err error
	if r.Mailbox, err = DeviceIDFromBytes(m.Mailbox); err != nil {
		return RequestInbox{}, err
	}
	if r.Inbox, err = InboxIDFromBytes(m.Inbox); err != nil {
		return RequestInbox{}, err
	}
	if m.WorkBits > MaxWorkBits {
		return RequestInbox{}, fmt.Errorf("%d bits of work: %w", m.WorkBits, ErrMalformed)
	}
	r.WorkBits = int(m.WorkBits)
	if !slices.ContainsFunc(boxes, func(b MailboxRef) bool { return b.Device == r.Mailbox }) {
		return RequestInbox{}, fmt.Errorf("request inbox at a mailbox that is not named: %w", ErrMalformed)
	}
	return r, nil
}

func packMailbox(b MailboxRef) *pb.MailboxRef {
	return &pb.MailboxRef{Device: b.Device.Bytes(), Addrs: packAddrs(b.Addrs, MaxMailboxAddrs)}
}

func packMailboxes(boxes []MailboxRef) []*pb.MailboxRef {
	var out []*pb.MailboxRef
	for _, b := range boxes {
		out = append(out, packMailbox(b))
	}
	return out
}

func unpackMailbox(m *pb.MailboxRef) (MailboxRef, error) {
	var b MailboxRef
	var err error
	if b.Device, err = DeviceIDFromBytes(m.GetDevice()); err != nil {
		return MailboxRef{}, err
	}
	b.Addrs, err = unpackAddrs(m.GetAddrs(), MaxMailboxAddrs)
	return b, err
}

func unpackMailboxes(boxes []*pb.MailboxRef) ([]MailboxRef, error) {
	if len(boxes) > MaxMailboxes {
		return nil, fmt.Errorf("%d mailboxes: %w", len(boxes), ErrMalformed)
	}
	var out []MailboxRef
	for _, m := range boxes {
		b, err := unpackMailbox(m)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(out, func(o MailboxRef) bool { return o.Device == b.Device }) {
			return nil, fmt.Errorf("mailbox named twice: %w", ErrMalformed)
		}
		out = append(out, b)
	}
	return out, nil
}

// Raw returns a copy of the signed bytes.
func (r DeviceRecord) Raw() []byte { return []byte(r.raw) }

// IsZero tells whether there is no record.
func (r DeviceRecord) IsZero() bool { return r.raw == "" }

// Expired tells whether the record no longer counts at a time, with a day for wrong clocks.
func (r DeviceRecord) Expired(now time.Time) bool { return now.After(r.Expires.Add(ClockSlack)) }

// CompareDeviceRecords orders records of one device like CompareRecords those of an account: above 0 means that a is the
// newer one, 0 means equal bytes.
func CompareDeviceRecords(a, b DeviceRecord) int {
	if a.Seq != b.Seq {
		if a.Seq < b.Seq {
			return -1
		}
		return 1
	}
	return strings.Compare(a.raw, b.raw)
}
