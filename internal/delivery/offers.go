package delivery

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

const (
	// confirmAfter is how long a session must go on after an offer for the offer to count as arrived.
	confirmAfter = 30 * time.Second
	// repeatAfter is after how long an offer is made again that says nothing new.
	repeatAfter = 7 * 24 * time.Hour
)

// told is what a device was told of where this one takes its mail.
type told struct {
	seq       uint64
	digest    [32]byte // of what was told last over a session
	at        time.Time
	confirmed bool // it arrived
	mailed    [32]byte
	mailedAt  time.Time
	hints     []identity.Hint // one-time prekeys that it holds and has not used
}

func saveTold(tx *storage.Tx, dev identity.DeviceID, t told) error {
	b := binary.BigEndian.AppendUint64([]byte{1}, t.seq)
	b = append(append(b, t.digest[:]...), millis(t.at)...)
	b = append(append(append(b, boolByte(t.confirmed)), t.mailed[:]...), millis(t.mailedAt)...)
	for _, h := range t.hints {
		b = append(b, h[:]...)
	}
	return tx.Set(keyOf(keyTold, dev[:]), b)
}

func boolByte(b bool) byte {
	if b {
		return 1
	}
	return 0
}

func loadTold(tx *storage.Tx, dev identity.DeviceID) (t told, err error) {
	v, err := get(tx, keyOf(keyTold, dev[:]))
	if v == nil || err != nil {
		return t, err
	}
	c := cutter{b: v}
	version := c.take(1)[0]
	t.seq = c.u64()
	copy(t.digest[:], c.take(32))
	t.at = c.time()
	t.confirmed = c.take(1)[0] == 1
	copy(t.mailed[:], c.take(32))
	t.mailedAt = c.time()
	for len(c.b) > 0 && !c.bad {
		t.hints = append(t.hints, identity.Hint(c.take(16)))
	}
	if version != 1 {
		c.bad = true
	}
	return t, c.err("what a device was told")
}

// ownOffer makes the offer for an account without one-time prekeys; ok is false while there is nothing to offer.
func (m *Mail) ownOffer(account identity.AccountID) (o identity.MailOffer, digest [32]byte, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.prekeys) == 0 {
		return o, digest, false
	}
	o.Prekey = m.prekeys[len(m.prekeys)-1].public
	for _, b := range m.named() {
		if in := b.inboxes[account]; in != nil && in.open {
			o.Inboxes = append(o.Inboxes, identity.MailInbox{Mailbox: b.ref, Inbox: in.id})
		}
	}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(o.PB())
	if err != nil {
		return o, digest, false
	}
	return o, sha256.Sum256(raw), true
}

// takesMailOf says whether an account gets an inbox of its own.
func (m *Mail) takesMailOf(account identity.AccountID) bool {
	return account == m.cfg.Account || m.cfg.Accepted(account) || m.comember(account)
}

// Offer implements replica.Side: where this device takes its mail, and with which keys. What was told and arrived is not
// told again, unless it is some time ago.
func (m *Mail) Offer(ctx context.Context, p replica.Peer) (*pb.MailOffer, error) {
	if !m.takesMailOf(p.Account) {
		return nil, nil
	}
	if err := m.wantInboxes(ctx, p.Account); err != nil {
		return nil, err
	}
	m.mu.Lock()
	m.sessions[p.Device] = true
	m.mu.Unlock()
	o, digest, ok := m.ownOffer(p.Account)
	if !ok {
		return nil, nil
	}
	now := m.cfg.Now()
	quiet := false
	err := m.cfg.DB.Update(ctx, func(tx *storage.Tx) error {
		t, err := loadTold(tx, p.Device)
		if err != nil {
			return err
		}
		quiet = len(o.Inboxes) == 0 && t.seq == 0 // nothing to say, and nothing said that would have to be taken back
		if quiet {
			return nil
		}
		var fresh bool
		if len(o.Inboxes) > 0 {
			if o.OneTime, fresh, err = m.handOver(tx, p, &t); err != nil {
				return err
			}
		}
		if quiet = !fresh && t.confirmed && t.digest == digest && now.Sub(t.at) < repeatAfter; quiet {
			return nil
		}
		t.seq = max(t.seq+1, uint64(now.UnixMilli()))
		t.digest, t.at, t.confirmed = digest, now, false
		o.Seq = t.seq
		return saveTold(tx, p.Device, t)
	})
	if err != nil {
		return nil, fmt.Errorf("making an offer: %w", err)
	}
	if quiet {
		return nil, nil
	}
	m.mu.Lock()
	m.offering[p.Device] = now
	m.mu.Unlock()
	return o.PB(), nil
}

// mailedOffer is the offer that goes along with a mail, nil if the device knows it already.
func (m *Mail) mailedOffer(ctx context.Context, p replica.Peer, always bool) (*identity.MailOffer, error) {
	if !m.takesMailOf(p.Account) {
		return nil, nil
	}
	if err := m.wantInboxes(ctx, p.Account); err != nil {
		return nil, err
	}
	if always {
		m.awaitInbox(ctx, p.Account)
	}
	o, digest, ok := m.ownOffer(p.Account)
	if !ok || len(o.Inboxes) == 0 {
		return nil, nil
	}
	now := m.cfg.Now()
	known := false
	err := m.cfg.DB.Update(ctx, func(tx *storage.Tx) error {
		t, err := loadTold(tx, p.Device)
		if err != nil {
			return err
		}
		known = !always && (t.confirmed && t.digest == digest || t.mailed == digest && now.Sub(t.mailedAt) < repeatAfter)
		if known {
			return nil
		}
		t.seq = max(t.seq+1, uint64(now.UnixMilli()))
		t.mailed, t.mailedAt = digest, now
		o.Seq = t.seq
		return saveTold(tx, p.Device, t)
	})
	if err != nil || known {
		return nil, err
	}
	return &o, nil
}

// inboxPatience is how long a first mail waits for the inbox to which the answer is to go.
const inboxPatience = 3 * time.Second

// awaitInbox waits a moment until an account has an open inbox at some mailbox: a first request that says where its answer
// goes is worth it.
func (m *Mail) awaitInbox(ctx context.Context, account identity.AccountID) {
	t := time.NewTimer(inboxPatience)
	defer t.Stop()
	for {
		m.mu.Lock()
		news, boxes, open := m.news, m.named(), false
		for _, b := range boxes {
			in := b.inboxes[account]
			open = open || in != nil && in.open
		}
		m.mu.Unlock()
		if open || len(boxes) == 0 {
			return
		}
		select {
		case <-news:
		case <-t.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// confirm notes which offers arrived: those after which the session went on for a while.
func (m *Mail) confirm(ctx context.Context) error {
	now := m.cfg.Now()
	var arrived []identity.DeviceID
	m.mu.Lock()
	for dev, at := range m.offering {
		switch {
		case !m.cfg.Feeds.Connected(dev):
			delete(m.offering, dev)
		case now.Sub(at) >= confirmAfter:
			delete(m.offering, dev)
			arrived = append(arrived, dev)
		}
	}
	m.mu.Unlock()
	if len(arrived) == 0 {
		return nil
	}
	return m.cfg.DB.Update(ctx, func(tx *storage.Tx) error {
		for _, dev := range arrived {
			t, err := loadTold(tx, dev)
			if err != nil {
				return err
			}
			t.confirmed = true
			if err := saveTold(tx, dev, t); err != nil {
				return err
			}
		}
		return nil
	})
}

// peerOffer is where a device takes its mail, and with which keys.
type peerOffer struct {
	account identity.AccountID
	at      time.Time
	offer   identity.MailOffer // its one-time prekeys are below
	oneTime []heldPrekey
}

// heldPrekey is a one-time prekey of another device. A used one is remembered as long as its owner names it, so that it is
// not used twice.
type heldPrekey struct {
	id   identity.Hint
	key  identity.Prekey // zero: used
	came time.Time
}

func savePeer(tx *storage.Tx, dev identity.DeviceID, p peerOffer) error {
	o := p.offer
	o.OneTime = nil
	raw, err := proto.Marshal(o.PB())
	if err != nil {
		return fmt.Errorf("writing an offer: %w", err)
	}
	b := append([]byte{1}, p.account[:]...)
	b = appendBytes(append(b, millis(p.at)...), raw)
	for _, k := range p.oneTime {
		b = append(append(b, k.id[:]...), millis(k.came)...)
		var key []byte
		if !k.key.IsZero() {
			key = k.key.Bytes()
		}
		b = appendBytes(b, key)
	}
	return tx.Set(keyOf(keyPeer, dev[:]), b)
}

func loadPeer(tx *storage.Tx, dev identity.DeviceID) (p peerOffer, ok bool, err error) {
	v, err := get(tx, keyOf(keyPeer, dev[:]))
	if v == nil || err != nil {
		return p, false, err
	}
	c := cutter{b: v}
	version := c.take(1)[0]
	p.account, p.at = c.account(), c.time()
	var m pb.MailOffer
	if err := proto.Unmarshal(c.bytes(), &m); err != nil || c.bad || version != 1 {
		return p, false, fmt.Errorf("reading an offer: %w", errMailStored)
	}
	if p.offer, err = identity.MailOfferFromPB(&m); err != nil {
		return p, false, fmt.Errorf("reading an offer: %w: %w", errMailStored, err)
	}
	for len(c.b) > 0 && !c.bad {
		k := heldPrekey{id: identity.Hint(c.take(16)), came: c.time()}
		if raw := c.bytes(); len(raw) > 0 {
			if k.key, err = identity.ParsePrekey(raw); err != nil {
				return p, false, fmt.Errorf("reading an offer: %w: %w", errMailStored, err)
			}
		}
		p.oneTime = append(p.oneTime, k)
	}
	return p, !c.bad, c.err("an offer")
}

// Offered implements replica.Side.
func (m *Mail) Offered(ctx context.Context, p replica.Peer, raw *pb.MailOffer) error {
	o, err := identity.MailOfferFromPB(raw)
	if err != nil {
		return fmt.Errorf("%w: %w", replica.ErrProtocol, err)
	}
	if !m.takesMailOf(p.Account) {
		return nil
	}
	err = m.cfg.DB.Update(ctx, func(tx *storage.Tx) error { return m.takeOffer(tx, p, o, true) })
	if err != nil {
		return fmt.Errorf("keeping an offer: %w", err)
	}
	m.poke()
	return nil
}

// takeOffer keeps an offer if it is newer than what is known. One-time prekeys are taken from a session alone.
func (m *Mail) takeOffer(tx *storage.Tx, p replica.Peer, o identity.MailOffer, session bool) error {
	have, ok, err := loadPeer(tx, p.Device)
	if err != nil {
		return err
	}
	if ok && o.Seq <= have.offer.Seq {
		return nil
	}
	next := peerOffer{account: p.Account, at: m.cfg.Now(), offer: o, oneTime: have.oneTime}
	if session {
		next.oneTime = nil
		for _, k := range o.OneTime {
			held := heldPrekey{id: k.ID, key: k.Key, came: m.cfg.Now()}
			for _, old := range have.oneTime {
				if old.id == k.ID {
					held = old // perhaps used since it was first named
				}
			}
			next.oneTime = append(next.oneTime, held)
		}
	}
	tx.OnCommit(func() {
		m.mu.Lock()
		delete(m.stale, p.Device)
		m.mu.Unlock()
	})
	return savePeer(tx, p.Device, next)
}

// useOneTime takes a one-time prekey of a device for good; ok is false if there is none.
func (m *Mail) useOneTime(ctx context.Context, dev identity.DeviceID) (id identity.Hint, key identity.Prekey, ok bool, err error) {
	old := m.cfg.Now().Add(-m.cfg.Limits.OneTimeOf)
	err = m.cfg.DB.Update(ctx, func(tx *storage.Tx) error {
		p, known, err := loadPeer(tx, dev)
		if err != nil || !known {
			return err
		}
		for i, k := range p.oneTime {
			if k.key.IsZero() || k.came.Before(old) {
				continue
			}
			id, key, ok = k.id, k.key, true
			p.oneTime[i].key = identity.Prekey{}
			return savePeer(tx, dev, p)
		}
		return nil
	})
	if err != nil {
		return id, key, false, fmt.Errorf("taking a one-time prekey: %w", err)
	}
	return id, key, ok, nil
}
