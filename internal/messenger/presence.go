package messenger

import (
	"context"
	"slices"
	"sync"

	"hima/groups"
	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// presence is who is online as far as they let us know. Nothing of it is stored. Only of contacts it is shown.
type presence struct {
	mu   sync.Mutex                                        // owns what follows
	seen map[identity.AccountID]map[identity.DeviceID]bool // devices with a session that say that they are online
	up   map[identity.DeviceID]int                         // sessions; for a moment a device has an old one and a new one
}

func newPresence() *presence {
	return &presence{seen: make(map[identity.AccountID]map[identity.DeviceID]bool), up: make(map[identity.DeviceID]int)}
}

// begin counts a session, and end tells whether it was the device's last.
func (p *presence) begin(device identity.DeviceID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.up[device]++
}

func (p *presence) end(device identity.DeviceID) (last bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.up[device]--; p.up[device] > 0 {
		return false
	}
	delete(p.up, device)
	return true
}

// set notes what a device says and tells whether the account's answer changed.
func (p *presence) set(who replica.Peer, online bool) (changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.any(who.Account)
	devices := p.seen[who.Account]
	switch {
	case online && devices == nil:
		p.seen[who.Account] = map[identity.DeviceID]bool{who.Device: true}
	case online:
		devices[who.Device] = true
	default:
		delete(devices, who.Device)
		if len(devices) == 0 {
			delete(p.seen, who.Account)
		}
	}
	return before != p.any(who.Account)
}

func (p *presence) any(a identity.AccountID) bool { return len(p.seen[a]) > 0 }

func (p *presence) online(a identity.AccountID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.any(a)
}

// seen tells whether an account is shown as online.
func (m *Messenger) seen(a identity.AccountID, row *contactRow) bool {
	return row.relation() == RelationContact && m.presence.online(a)
}

// befriended tells whether an account is a contact: presence and typing go to contacts and are believed of contacts.
func (m *Messenger) befriended(a identity.AccountID) bool {
	friend := false
	err := m.env.db.View(func(tx *storage.Tx) error {
		row, ok, err := m.contacts.get(tx, a)
		friend = ok && !row.Blocked && row.State == pb.ContactState_STATE_CONTACT
		return err
	})
	return err == nil && friend
}

// Presence implements replica.Hooks. What a device says is kept for as long as its session lasts, also if it is not a
// contact's: the word may overtake the acceptance that makes it one.
func (m *Messenger) Presence(from replica.Peer, online bool) {
	if from.Account != m.env.account && m.presence.set(from, online) && m.befriended(from.Account) {
		m.tellPresence(from.Account, online)
	}
}

func (m *Messenger) tellPresence(a identity.AccountID, online bool) {
	conv := feed.DirectConversation(m.env.account, a)
	m.events.tell(Event{Time: m.env.now(), Type: EventPresence, Conversation: &conv, Account: &a, On: online})
}

// Typing implements replica.Hooks.
func (m *Messenger) Typing(from replica.Peer, conv feed.ConversationID, on bool) {
	if m.typesInGroup(from.Account, conv) {
		m.events.tell(Event{Time: m.env.now(), Type: EventTyping, Conversation: &conv, Account: &from.Account, On: on})
		return
	}
	if conv != feed.DirectConversation(m.env.account, from.Account) || !m.befriended(from.Account) {
		return
	}
	m.events.tell(Event{Time: m.env.now(), Type: EventTyping, Conversation: &conv, Account: &from.Account, On: on})
}

// typesInGroup tells whether a conversation is a group that an account is in and may be seen typing in.
func (m *Messenger) typesInGroup(a identity.AccountID, conv feed.ConversationID) bool {
	shown := false
	err := m.env.db.View(func(tx *storage.Tx) error {
		group, err := m.isGroup(tx, conv)
		if err != nil || !group {
			return err
		}
		row, _, err := m.contacts.get(tx, a)
		if err != nil || row.Blocked {
			return err
		}
		list, err := m.env.groups.Members(tx, conv)
		in := func(a identity.AccountID) bool {
			return slices.ContainsFunc(list, func(o groups.Member) bool { return o.Account == a })
		}
		shown = a != m.env.account && in(a) && in(m.env.account)
		return err
	})
	return err == nil && shown
}

// SessionUp implements replica.Hooks.
func (m *Messenger) SessionUp(s replica.SessionInfo) {
	m.presence.begin(s.Device)
	m.checkDevices(s.Account)
	if s.Account == m.env.account || !m.befriended(s.Account) {
		return
	}
	// Also said when off: the session may follow another one, in which it was on.
	m.env.feeds.SendPresence(s.Account, m.settings.now(settingPresence) == on)
}

// SessionDown implements replica.Hooks. The end of a session that another one has replaced says nothing: what was heard
// in the new one stands.
func (m *Messenger) SessionDown(s replica.SessionInfo) {
	if m.presence.end(s.Device) {
		m.Presence(s.Peer, false)
	}
}

// announcePresence follows a change of the setting: contacts hear at once that we are, or no longer are, to be seen.
func (m *Messenger) announcePresence() {
	online := m.settings.now(settingPresence) == on
	for _, a := range m.PeerAccounts() {
		if m.befriended(a) {
			m.env.feeds.SendPresence(a, online)
		}
	}
}

// relationChanged runs after the commit of a change of what an account is to us.
func (m *Messenger) relationChanged(a identity.AccountID) {
	if !m.befriended(a) {
		return
	}
	// The session in which they were a stranger may be the only one before their devices change.
	m.checkDevices(a)
	m.env.befriended(a)
	if m.presence.online(a) {
		m.tellPresence(a, true)
	}
	if m.settings.now(settingPresence) == on {
		m.env.feeds.SendPresence(a, true)
	}
}

// SetTyping tells a contact, or those members of a group with whom there is a session, that the owner is typing. It is
// withheld from strangers, and without presence.
func (m *Messenger) SetTyping(ctx context.Context, who string, typing bool) error {
	t, err := m.who.talk(who)
	if err != nil {
		return err
	}
	if !t.group.IsZero() {
		if m.settings.now(settingPresence) != on {
			return nil
		}
		return m.env.db.View(func(tx *storage.Tx) error {
			info, err := m.env.groups.Info(tx, t.group)
			if err == nil && info.State == groups.StateMember {
				m.env.feeds.SendTyping(t.group, typing)
			}
			return groupRefusal(err)
		})
	}
	if t.account == m.env.account || m.settings.now(settingPresence) != on || !m.befriended(t.account) {
		return nil
	}
	m.env.feeds.SendTyping(feed.DirectConversation(m.env.account, t.account), typing)
	return nil
}

// checkDevices compares an account's record with the devices last told, and tells of a change: an event, and a line in
// the conversation. It runs outside of transactions and does its writing by itself.
func (m *Messenger) checkDevices(a identity.AccountID) {
	record, ok := m.env.people.Record(a)
	if !ok || a == m.env.account {
		return
	}
	var devices []identity.DeviceID
	for _, c := range record.Devices {
		devices = append(devices, c.Device)
	}
	m.env.db.Submit(func(tx *storage.Tx) error {
		row, known, err := m.contacts.get(tx, a)
		if err != nil || !known || row.aside() || sameDevices(row.Devices, devices) {
			return err
		}
		first := len(row.Devices) == 0
		row.Devices = devices
		if err := m.contacts.put(tx, a, row); err != nil || first {
			return err
		}
		conv := feed.DirectConversation(m.env.account, a)
		if err := m.noteDevices(tx, conv); err != nil {
			return err
		}
		tx.OnCommit(m.env.grantsChanged)
		return m.events.add(tx, plain(EventDevices, a, conv, string(row.verified())))
	}, func(err error) {
		if err != nil {
			m.env.log.Warn("noting a change of devices", "account", a.Short(), "error", err)
		}
	})
}

func sameDevices(a, b []identity.DeviceID) bool {
	if len(a) != len(b) {
		return false
	}
	for _, d := range a {
		if !slices.Contains(b, d) {
			return false
		}
	}
	return true
}
