package delivery

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/mailbox"
	"hima/internal/wire/pb"
	"hima/storage"
)

// defaultExpiry is taken as a mailbox's until it said how long it keeps an item.
const defaultExpiry = 30 * 24 * time.Hour

// box is a mailbox in use. mu of Mail guards its fields but ref.Device.
type box struct {
	ref      identity.MailboxRef
	source   string
	grant    []byte
	added    time.Time
	retired  time.Time // zero: it is named to others
	emptied  time.Time
	expiry   time.Duration
	workBits int
	requests bool // takes first requests

	inboxes map[identity.AccountID]*ownInbox // the zero account: for strangers

	state   string
	err     string
	lost    bool // told as lost
	failed  time.Time
	waiting map[identity.InboxID]bool
	bell    chan struct{} // one slot: look at waiting, or at what is to be opened
	resting bool          // it is watched, and nothing is known to wait
	saved   time.Time     // emptied, as on the disk
	reread  time.Time     // when items that were left were last looked at again
	later   bool          // some were left only because something else was to be done here first
	pausing bool          // the bell rings after a pause, to look whether that is done
	nudge   chan struct{} // one slot: try again at once
	gone    chan struct{} // closed when it is not used any more
}

// ownInbox is an inbox of this device at one mailbox.
type ownInbox struct {
	id     identity.InboxID
	secret identity.InboxSecret
	open   bool          // the mailbox said that it is there
	after  uint64        // cursor up to where it was looked at
	state  mailbox.State // as last seen
	left   [][32]byte    // items that did not open, in the order in which they came

	pausing bool // a pause goes by, because of an item that was too much
	anew    bool // it is over: all is to be looked at anew
}

func (b *box) key() []byte { return keyOf(keyBox, b.ref.Device[:]) }

func (b *box) value() ([]byte, error) {
	ref, err := proto.Marshal(b.ref.PB())
	if err != nil {
		return nil, fmt.Errorf("writing a mailbox: %w", err)
	}
	v := appendBytes([]byte{1}, ref)
	v = appendBytes(appendBytes(v, []byte(b.source)), b.grant)
	v = append(append(append(v, millis(b.added)...), millis(b.retired)...), millis(b.emptied)...)
	v = binary.BigEndian.AppendUint64(v, uint64(b.expiry.Milliseconds()))
	v = binary.BigEndian.AppendUint64(v, uint64(b.workBits))
	return append(v, boolByte(b.requests)), nil
}

func decodeBox(v []byte) (*box, error) {
	c := cutter{b: v}
	version := c.take(1)[0]
	var raw pb.MailboxRef
	if err := proto.Unmarshal(c.bytes(), &raw); err != nil {
		return nil, fmt.Errorf("reading a mailbox: %w", errMailStored)
	}
	ref, err := identity.MailboxRefFromPB(&raw)
	if err != nil || version != 1 {
		return nil, fmt.Errorf("reading a mailbox: %w", errMailStored)
	}
	b := newBox(ref)
	b.source = string(c.bytes())
	b.grant = c.bytes()
	b.added, b.retired, b.emptied = c.time(), c.time(), c.time()
	b.expiry = time.Duration(c.u64()) * time.Millisecond
	b.workBits = int(c.u64())
	b.requests = c.take(1)[0] == 1
	return b, c.err("a mailbox")
}

func newBox(ref identity.MailboxRef) *box {
	return &box{
		ref: ref, expiry: defaultExpiry, inboxes: map[identity.AccountID]*ownInbox{}, waiting: map[identity.InboxID]bool{},
		bell: make(chan struct{}, 1), nudge: make(chan struct{}, 1), gone: make(chan struct{}),
	}
}

func (b *box) ring() {
	select {
	case b.bell <- struct{}{}:
	default:
	}
}

func inboxKey(box identity.DeviceID, account identity.AccountID) []byte {
	return keyOf(keyInbox, box[:], account[:])
}

func (m *Mail) loadBoxes(tx *storage.Tx) error {
	err := tx.Scan(storage.ScanOptions{Prefix: []byte(keyBox)}, func(_, v []byte) (bool, error) {
		b, err := decodeBox(v)
		if err == nil {
			m.boxes[b.ref.Device] = b
		}
		return err == nil, err
	})
	if err != nil {
		return err
	}
	return tx.Scan(storage.ScanOptions{Prefix: []byte(keyInbox)}, func(k, v []byte) (bool, error) {
		c := cutter{b: k[len(keyInbox):]}
		dev, account := c.device(), c.account()
		secret, err := identity.InboxSecretFromBytes(v)
		if err != nil || c.bad {
			return false, fmt.Errorf("reading an inbox: %w", errMailStored)
		}
		if b := m.boxes[dev]; b != nil {
			// It was offered once: until its mailbox says otherwise it is there.
			b.inboxes[account] = &ownInbox{id: secret.ID(), secret: secret, open: true}
		}
		return true, nil
	})
}

// named lists the mailboxes that others are told of, in a fixed order: chosen ones before those of networks. Called with
// mu held.
func (m *Mail) named() []*box {
	var out []*box
	for _, b := range m.boxes {
		if b.retired.IsZero() {
			out = append(out, b)
		}
	}
	rank := func(b *box) int { return slices.Index([]string{SourceAdded, SourceContact, SourceNetwork}, b.source) }
	slices.SortFunc(out, func(a, b *box) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), a.added.Compare(b.added), slices.Compare(a.ref.Device[:], b.ref.Device[:]))
	})
	return out[:min(len(out), identity.MaxMailboxes)]
}

// longestExpiry is the longest time that a mailbox in use keeps an item. Called with mu held.
func (m *Mail) longestExpiry() time.Duration {
	longest := time.Duration(0)
	for _, b := range m.boxes {
		longest = max(longest, b.expiry)
	}
	if longest == 0 {
		longest = defaultExpiry
	}
	return longest
}

// emptiedSince says whether every mailbox in use was emptied after a time. Called with mu held.
func (m *Mail) emptiedSince(at time.Time) bool {
	for _, b := range m.boxes {
		if !b.emptied.After(at) {
			return false
		}
	}
	return true
}

func (m *Mail) saveBox(ctx context.Context, b *box) error {
	m.mu.Lock()
	v, err := b.value()
	m.mu.Unlock()
	if err != nil {
		return err
	}
	if err := m.cfg.DB.Update(ctx, func(tx *storage.Tx) error { return tx.Set(b.key(), v) }); err != nil {
		return fmt.Errorf("keeping a mailbox: %w", err)
	}
	return nil
}

// SetNetworkBoxes says which mailboxes the joined networks offer. Those of an earlier call that are not in it retire.
func (m *Mail) SetNetworkBoxes(ctx context.Context, refs []identity.MailboxRef) error {
	now := m.cfg.Now()
	var changed []*box
	m.mu.Lock()
	for _, ref := range refs {
		if ref.Device == m.self {
			continue
		}
		b := m.boxes[ref.Device]
		switch {
		case b == nil:
			b = newBox(ref)
			b.source, b.added = SourceNetwork, now
			m.boxes[ref.Device] = b
		case b.source == SourceNetwork && !b.retired.IsZero():
			b.retired, b.ref = time.Time{}, ref
		case !slices.Equal(b.ref.Addrs, ref.Addrs):
			b.ref = ref
		default:
			continue
		}
		changed = append(changed, b)
	}
	for dev, b := range m.boxes {
		named := slices.ContainsFunc(refs, func(r identity.MailboxRef) bool { return r.Device == dev })
		if b.source == SourceNetwork && b.retired.IsZero() && !named {
			b.retired = now
			changed = append(changed, b)
		}
	}
	m.mu.Unlock()
	for _, b := range changed {
		if err := m.saveBox(ctx, b); err != nil {
			return err
		}
	}
	if len(changed) > 0 {
		m.boxesChanged()
	}
	return nil
}

// SetRequests says whether strangers may leave first requests.
func (m *Mail) SetRequests(on bool) {
	m.mu.Lock()
	changed := m.requests != on
	m.requests = on
	m.mu.Unlock()
	if changed {
		m.boxesChanged()
	}
}

// Add begins to use a mailbox after asking it for its terms. grant is nil where it keeps mail for everybody.
func (m *Mail) Add(ctx context.Context, ref identity.MailboxRef, grant []byte, source string) (BoxStatus, error) {
	terms, err := m.cfg.Client.Terms(ctx, ref)
	if err != nil {
		return BoxStatus{}, err
	}
	if !terms.Open && len(grant) == 0 {
		return BoxStatus{}, mailbox.ErrDenied
	}
	m.mu.Lock()
	b := m.boxes[ref.Device]
	if b == nil || !b.retired.IsZero() || b.source == SourceNetwork {
		chosen := 0
		for _, o := range m.boxes {
			if o.retired.IsZero() && o.source != SourceNetwork && o.ref.Device != ref.Device {
				chosen++
			}
		}
		if chosen >= identity.MaxMailboxes {
			m.mu.Unlock()
			return BoxStatus{}, ErrTooManyBoxes
		}
	}
	if b == nil {
		b = newBox(ref)
		b.added = m.cfg.Now()
		m.boxes[ref.Device] = b
	}
	b.ref, b.source, b.grant, b.retired = ref, source, slices.Clone(grant), time.Time{}
	b.take(terms)
	m.mu.Unlock()
	if err := m.saveBox(ctx, b); err != nil {
		return BoxStatus{}, err
	}
	m.cfg.Hooks.MailboxEvent(ref.Device, "added")
	m.boxesChanged()
	return m.status(ref.Device), nil
}

// take notes the terms of a mailbox. Called with mu held.
func (b *box) take(t mailbox.Terms) {
	b.expiry, b.workBits, b.requests = t.Expiry, t.WorkBits, t.RequestItems > 0 && t.RequestBytes > 0
}

// Remove retires a mailbox: it is not named any more, and still emptied until nothing can come in.
func (m *Mail) Remove(ctx context.Context, dev identity.DeviceID) (BoxStatus, error) {
	m.mu.Lock()
	b := m.boxes[dev]
	if b == nil {
		m.mu.Unlock()
		return BoxStatus{}, ErrNoBox
	}
	if b.retired.IsZero() {
		b.retired = m.cfg.Now()
	}
	m.mu.Unlock()
	if err := m.saveBox(ctx, b); err != nil {
		return BoxStatus{}, err
	}
	m.boxesChanged()
	return m.status(dev), nil
}

// retire removes mailboxes that were retired long enough ago: what senders who did not hear of it left has ended there, or
// was fetched. One that does not answer any more is given up after twice that time.
func (m *Mail) retire(ctx context.Context) error {
	now := m.cfg.Now()
	var gone []*box
	m.mu.Lock()
	for _, b := range m.boxes {
		if b.retired.IsZero() {
			continue
		}
		over := b.retired.Add(b.expiry + m.cfg.Limits.Slack)
		if now.After(over) && (b.emptied.After(over) || now.After(over.Add(b.expiry))) {
			gone = append(gone, b)
		}
	}
	m.mu.Unlock()
	for _, b := range gone {
		for _, in := range m.inboxesOf(b) {
			closing, cancel := context.WithTimeout(ctx, callTimeout)
			if err := m.cfg.Client.CloseInbox(closing, b.ref, in.secret); err != nil && !errors.Is(err, mailbox.ErrNoInbox) {
				m.log.Debug("closing an inbox", "error", err)
			}
			cancel()
		}
		err := m.cfg.DB.Update(ctx, func(tx *storage.Tx) error {
			if err := tx.Delete(b.key()); err != nil {
				return err
			}
			var keys [][]byte
			err := tx.Scan(storage.ScanOptions{Prefix: keyOf(keyInbox, b.ref.Device[:]), KeysOnly: true}, func(k, _ []byte) (bool, error) {
				keys = append(keys, k)
				return true, nil
			})
			for _, k := range keys {
				if err := tx.Delete(k); err != nil {
					return err
				}
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("forgetting a mailbox: %w", err)
		}
		m.mu.Lock()
		delete(m.boxes, b.ref.Device)
		m.mu.Unlock()
		m.cfg.Hooks.MailboxEvent(b.ref.Device, "removed")
		m.boxesChanged()
	}
	return nil
}

func (m *Mail) inboxesOf(b *box) []*ownInbox {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*ownInbox
	for _, in := range b.inboxes {
		out = append(out, in)
	}
	return out
}

// wantInboxes makes sure that an account has an inbox at every mailbox that is named. They are durable when it returns, and
// opened by the collectors.
func (m *Mail) wantInboxes(ctx context.Context, account identity.AccountID) error {
	type want struct {
		b  *box
		in *ownInbox
	}
	var missing []want
	m.mu.Lock()
	for _, b := range m.named() {
		if b.inboxes[account] == nil && (!account.IsZero() || b.requests) {
			secret := identity.NewInboxSecret()
			missing = append(missing, want{b, &ownInbox{id: secret.ID(), secret: secret}})
		}
	}
	m.mu.Unlock()
	if len(missing) == 0 {
		return nil
	}
	err := m.cfg.DB.Update(ctx, func(tx *storage.Tx) error {
		for _, w := range missing {
			key := inboxKey(w.b.ref.Device, account)
			if v, err := get(tx, key); err != nil {
				return err
			} else if v != nil { // another call was first
				secret, err := identity.InboxSecretFromBytes(v)
				if err != nil {
					return fmt.Errorf("reading an inbox: %w", errMailStored)
				}
				w.in.secret, w.in.id = secret, secret.ID()
				continue
			}
			if err := tx.Set(key, w.in.secret.Bytes()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("making inboxes: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range missing {
		if w.b.inboxes[account] == nil {
			w.b.inboxes[account] = w.in
			w.b.ring()
		}
	}
	return nil
}

// boxesChanged lets everybody hear that other mailboxes, inboxes or keys count.
func (m *Mail) boxesChanged() {
	m.mu.Lock()
	m.dirty = true
	m.mu.Unlock()
	m.poke()
}

// deviceInfo is what the device record is to say. Called with mu held.
func (m *Mail) deviceInfo() DeviceInfo {
	var d DeviceInfo
	if n := len(m.prekeys); n > 0 {
		d.Prekey, d.PrekeyCreated = m.prekeys[n-1].public, m.prekeys[n-1].created
	}
	for _, b := range m.named() {
		d.Mailboxes = append(d.Mailboxes, b.ref)
		if in := b.inboxes[identity.AccountID{}]; m.requests && d.Request.IsZero() && b.requests && in != nil && in.open {
			d.Request = identity.RequestInbox{Mailbox: b.ref.Device, Inbox: in.id, WorkBits: b.workBits}
		}
	}
	return d
}

// sameInfo says whether contacts would be told the same.
func sameInfo(a, b DeviceInfo) bool {
	return a.Prekey == b.Prekey && slices.EqualFunc(a.Mailboxes, b.Mailboxes, func(x, y identity.MailboxRef) bool {
		return x.Device == y.Device && slices.Equal(x.Addrs, y.Addrs)
	})
}

// connectedLocked lists the devices with a session that were told something since the start. Called with mu held.
func (m *Mail) connectedLocked() (out []identity.DeviceID) {
	for dev := range m.sessions {
		if m.cfg.Feeds.Connected(dev) {
			out = append(out, dev)
		} else {
			delete(m.sessions, dev)
		}
	}
	return out
}

// Boxes lists the mailboxes in use.
func (m *Mail) Boxes() []BoxStatus {
	m.mu.Lock()
	var devices []identity.DeviceID
	for dev := range m.boxes {
		devices = append(devices, dev)
	}
	m.mu.Unlock()
	slices.SortFunc(devices, func(a, b identity.DeviceID) int { return slices.Compare(a[:], b[:]) })
	var out []BoxStatus
	for _, dev := range devices {
		if s := m.status(dev); !s.Device.IsZero() {
			out = append(out, s)
		}
	}
	return out
}

func (m *Mail) status(dev identity.DeviceID) BoxStatus {
	connected := m.cfg.Client.Connected(dev)
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.boxes[dev]
	if b == nil {
		return BoxStatus{}
	}
	s := BoxStatus{
		Device: dev, Addrs: slices.Clone(b.ref.Addrs), Source: b.source, State: b.state, Connected: connected, Inboxes: len(b.inboxes),
		Expiry: b.expiry, Emptied: b.emptied, Error: b.err,
	}
	if s.State == "" {
		s.State = BoxUnreachable
	}
	if !b.retired.IsZero() {
		s.State = BoxRetiring
	}
	for _, in := range b.inboxes {
		s.Waiting += in.state.Items
		s.Used += in.state.Bytes
		s.Quota += in.state.Quota
	}
	return s
}
