package delivery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// What groups add to mail: entries that can wait, the log beside the mailboxes of devices, control entries of others for
// newcomers, and keys.

const (
	// oneTimeOfComembers is how many one-time prekeys a device holds that shares only groups: there are many of them.
	oneTimeOfComembers = 2
	// grantPause is the shortest time between two mails with nothing but keys to one device. It doubles up to grantDoubled times
	// while a device's mailboxes take nothing, which may be for good and costs work each time; the first grantTries are not counted.
	grantPause               = 10 * time.Minute
	grantDoubled, grantTries = 5, 6
	// keysRoom bounds the keys in one mail.
	keysRoom = 4 << 10
	// maxCarried bounds what is noted of one device.
	maxCarried = 8192
)

// newcomer says that a device acknowledged nothing of this device in some group yet: perhaps it knows nothing of it at all.
// Called with mu of Mail held.
func (p *poster) newcomer() bool {
	return slices.ContainsFunc(p.debt, func(s replica.Span) bool { return s.Lazy && s.Feed.Number == feed.Control && s.From == 1 })
}

// covered is up to where a feed lies in mailboxes for a device: its own, and for the chat of a group its log. Called with mu
// held.
func (m *Mail) covered(dev identity.DeviceID, id feed.FeedID, from uint64, now time.Time) uint64 {
	end := m.ledger.covered(dev, id, from, now)
	if id.Number != feed.Chat {
		return end
	}
	// Each may begin where the other ends.
	for {
		next := m.ledger.covered(identity.DeviceID{}, id, end+1, now)
		if next = max(next, m.ledger.covered(dev, id, next+1, now)); next <= end {
			return end
		}
		end = next
	}
}

// due says when a device is to be posted to, zero: not before something changes, and whether only for the sake of groups.
// Called with mu held.
func (m *Mail) due(p *poster, now time.Time) (at time.Time, lazy bool) {
	if m.cfg.Feeds.Connected(p.peer.Device) {
		p.since, p.failed, p.tries, p.next = time.Time{}, false, 0, time.Time{}
		return time.Time{}, false
	}
	var direct, control, chat, key bool
	for _, s := range p.debt {
		switch {
		case m.covered(p.peer.Device, s.Feed, s.From, now) >= s.Last:
			key = key || s.Keyless
		case !s.Lazy:
			direct = true
		case s.Feed.Number == feed.Control:
			control = true
		default:
			chat = true
		}
	}
	if !direct && !control && !chat && !key {
		p.since = time.Time{}
	} else if p.since.IsZero() {
		p.since = now
	}
	l := m.cfg.Limits
	after := func(pause time.Duration, ready bool) {
		if ready {
			pause = 0
		}
		at = sooner(at, p.since.Add(pause))
	}
	if direct {
		after(l.Grace, p.failed)
	}
	if control {
		after(l.GroupGrace, p.failed)
	}
	if chat {
		after(l.GroupChat, m.leaving)
	}
	if key {
		after(max(l.GroupKeys, p.granting.Sub(p.since)), m.leaving && !p.granting.After(now))
	}
	lazy = !direct
	if !p.receipt.IsZero() {
		pause := l.Receipt
		if p.later {
			pause = l.GroupReceipt
		}
		at, lazy = sooner(at, p.receipt.Add(pause)), lazy && p.later
	}
	if !at.IsZero() && p.next.After(at) {
		at = p.next
	}
	return at, lazy
}

// granted notes what became of a mail in which there were to be all keys that a device may lack. What goes as mail besides does not
// wait for the next. Called with mu held.
func (p *poster) granted(err error, now time.Time) {
	switch beyond := p.tries - grantTries; {
	case err == nil:
		p.granting = now.Add(grantPause)
	case beyond >= 0 || errors.Is(err, errNoRoad):
		p.granting = now.Add(grantPause << min(max(beyond, 0), grantDoubled))
	}
}

// grants are the groups under whose keys something was written that a device may not be able to read. Called with mu held.
func (p *poster) grants() (out []feed.ConversationID) {
	for _, s := range p.debt {
		if s.Keyless {
			out = append(out, s.Feed.Conversation)
		}
	}
	return out
}

// keysOf are the keys that go with an export: as many as there is room for.
func keysOf(ex replica.Export) (keys []*pb.GroupKeys) {
	size := 0
	for _, k := range ex.Keys {
		if len(k.Keys) == 0 || len(keys) == identity.MaxMailGroups {
			continue
		}
		k := proto.CloneOf(k)
		k.Keys = k.Keys[:min(len(k.Keys), identity.MaxGroupKeys)]
		if size += proto.Size(k) + 4; size > keysRoom {
			break
		}
		keys = append(keys, k)
	}
	return keys
}

// ofGroups says whether a mail holds anything but what two accounts, or the devices of one, say to each other.
func (m *Mail) ofGroups(from identity.AccountID, mail identity.Mail) bool {
	if len(mail.Keys) > 0 {
		return true
	}
	return slices.ContainsFunc(mail.Runs, func(raw *pb.Run) bool {
		id, _, err := feed.Peek(raw)
		return err == nil && id.Conversation != feed.DirectConversation(m.cfg.Account, from) && id.Conversation != feed.SelfConversation(m.cfg.Account)
	})
}

// takeGroups takes the keys of a mail after its entries; later says that some entries stand upon what has not come: the mail
// is left where it lies and read again when there is more.
func (m *Mail) takeGroups(ctx context.Context, from replica.Peer, keys []*pb.GroupKeys, got replica.Imported) (later bool, err error) {
	if err := m.takeKeys(ctx, from, keys); err != nil {
		return false, err
	}
	if got.Entries > 0 {
		m.mu.Lock()
		m.again = true
		m.mu.Unlock()
	}
	return got.Refused == pb.Code_CODE_NOT_MEMBER, nil
}

// readAgain looks once more at items that were left, if something came since that they may stand upon, or what they had to wait
// for is done.
func (m *Mail) readAgain(b *box) {
	freed := m.freed(b)
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.cfg.Now()
	if !freed && (!m.again || now.Sub(b.reread) < rereadPause) {
		return
	}
	if freed {
		b.later = false
	} else {
		m.again = false
	}
	for _, in := range b.inboxes {
		if in.open && len(in.left) > 0 {
			in.after, b.reread = 0, now
			b.waiting[in.id] = true
		}
	}
	if len(b.waiting) > 0 {
		b.ring()
	}
}

// freed says whether items that were left for later can be taken now. If they cannot, it lets the bell ring after a pause: nobody
// tells when they can, as that may take from a moment to as long as the disk is full.
func (m *Mail) freed(b *box) bool {
	m.mu.Lock()
	later := b.later
	m.mu.Unlock()
	if !later {
		return false
	}
	busy, err := m.cfg.Feeds.Replacing()
	if err != nil {
		m.log.Warn("looking whether mail can be taken that was left", "error", err)
	}
	if err == nil && !busy {
		return true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !b.pausing {
		b.pausing = true
		time.AfterFunc(rereadPause, func() {
			m.mu.Lock()
			b.pausing = false
			m.mu.Unlock()
			b.ring()
		})
	}
	return false
}

// unleave forgets that an item was left.
func (m *Mail) unleave(in *ownInbox, hash [32]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	in.left = slices.DeleteFunc(in.left, func(h [32]byte) bool { return h == hash })
}

// rereadPause is the shortest time between two looks at what was left: whoever leaves much of it must not keep us busy.
const rereadPause = 10 * time.Second

// takeKeys hands what a mail brought to those who know its groups. A mail may be read twice, and so are its keys.
func (m *Mail) takeKeys(ctx context.Context, from replica.Peer, keys []*pb.GroupKeys) error {
	if m.cfg.Keys == nil {
		return nil
	}
	for _, k := range keys {
		err := m.cfg.Keys.TookKeys(ctx, from, &pb.GroupKeys{Group: k.GetGroup(), Keys: k.GetKeys()}) // a mail says nothing of branches
		if errors.Is(err, replica.ErrProtocol) {
			m.log.Debug("dropping keys of a group", "device", from.Device.Short(), "error", err)
			continue
		}
		if err != nil {
			return fmt.Errorf("taking keys of a group: %w", err)
		}
	}
	return nil
}

// carried are the control entries of others that went to a device and must still lie in its mailboxes, or were read. Of a feed there
// may be several pieces: what goes with a key begins above what the device holds, as far as that is known.
type carried map[feed.FeedID][]piece

type piece struct{ from, last uint64 }

// upto is up to where, from one number on, everything went.
func (c carried) upto(id feed.FeedID, from uint64) uint64 {
	end := from - 1
	for _, p := range c[id] { // in order of from
		if p.from <= end+1 {
			end = max(end, p.last)
		}
	}
	return end
}

func carriedKey(dev identity.DeviceID, s replica.Span) []byte {
	return keyOf(keyCarried, dev[:], s.Feed.Conversation[:], s.Feed.Device[:], u64(s.From))
}

// carry notes which control entries of others went to a device, so that they do not go again with the next mail.
func (m *Mail) carry(tx *storage.Tx, ex replica.Export, until time.Time) error {
	for _, s := range ex.Carried {
		if err := tx.Set(carriedKey(ex.Peer.Device, s), append(u64(s.Last), millis(until)...)); err != nil {
			return err
		}
	}
	return nil
}

// carried reads what is noted of a device.
func (m *Mail) carried(dev identity.DeviceID) (carried, error) {
	out := carried{}
	prefix := keyOf(keyCarried, dev[:])
	err := m.cfg.DB.View(func(tx *storage.Tx) error {
		return tx.Scan(storage.ScanOptions{Prefix: prefix, Limit: maxCarried}, func(k, v []byte) (bool, error) {
			c, d := cutter{b: k[len(prefix):]}, cutter{b: v}
			if len(c.b) == 64 {
				return true, nil // of an earlier build, which did not note where it begins
			}
			id := feed.FeedID{Number: feed.Control}
			copy(id.Conversation[:], c.take(32))
			id.Device = c.device()
			one := piece{from: c.u64(), last: d.u64()}
			if d.time().After(m.cfg.Now()) {
				out[id] = append(out[id], one)
			}
			if c.bad || d.bad {
				return false, fmt.Errorf("reading what was carried: %w", errMailStored)
			}
			return true, nil
		})
	})
	return out, err
}

// forgetCarried removes notes of what ended.
func (m *Mail) forgetCarried(ctx context.Context) error {
	return m.forgetOld(ctx, keyCarried, 8)
}

// shed closes the inboxes of accounts with which no group is shared any more, so that others find room.
func (m *Mail) shed(ctx context.Context) error {
	m.mu.Lock()
	var list []identity.AccountID
	for a := range m.side {
		list = append(list, a)
	}
	m.mu.Unlock()
	for _, a := range list {
		gone := !m.cfg.Accepted(a)
		if gone && m.cfg.Comember(a) {
			continue
		}
		if gone {
			if err := m.closeInboxes(ctx, a); err != nil {
				return err
			}
		}
		m.mu.Lock()
		delete(m.side, a)
		m.mu.Unlock()
	}
	return nil
}

// closeInboxes removes what an account had here. A mailbox that does not answer forgets the inbox when nobody renews it.
func (m *Mail) closeInboxes(ctx context.Context, account identity.AccountID) error {
	type closing struct {
		ref identity.MailboxRef
		in  *ownInbox
	}
	var list []closing
	m.mu.Lock()
	for _, b := range m.boxes {
		if in := b.inboxes[account]; in != nil {
			delete(b.inboxes, account)
			list = append(list, closing{b.ref, in})
		}
	}
	m.mu.Unlock()
	err := m.cfg.DB.Update(ctx, func(tx *storage.Tx) error {
		for _, c := range list {
			if err := tx.Delete(inboxKey(c.ref.Device, account)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("forgetting inboxes: %w", err)
	}
	for _, c := range list {
		calling, cancel := context.WithTimeout(ctx, callTimeout)
		if err := m.cfg.Client.CloseInbox(calling, c.ref, c.in.secret); err != nil {
			m.log.Debug("closing an inbox", "error", err)
		}
		cancel()
	}
	return nil
}

// comember says whether an account that is no contact has an inbox here, or may get one.
func (m *Mail) comember(account identity.AccountID) bool {
	if m.cfg.Comember == nil || !m.cfg.Comember(account) {
		return false
	}
	m.mu.Lock()
	counted := m.side != nil
	m.mu.Unlock()
	if !counted {
		m.countSide()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.side[account] {
		return true
	}
	if len(m.side) >= m.cfg.Limits.Comembers {
		return false
	}
	m.side[account] = true
	return true
}

// onlyComember says whether an account has its inbox for the sake of groups alone.
func (m *Mail) onlyComember(account identity.AccountID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.side[account]
}

// countSide finds the accounts that have an inbox and are no contacts.
func (m *Mail) countSide() {
	m.mu.Lock()
	accounts := map[identity.AccountID]bool{}
	for _, b := range m.boxes {
		for a := range b.inboxes {
			if !a.IsZero() && a != m.cfg.Account {
				accounts[a] = true
			}
		}
	}
	m.mu.Unlock()
	for a := range accounts {
		if m.cfg.Accepted(a) {
			delete(accounts, a)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.side = accounts
}
