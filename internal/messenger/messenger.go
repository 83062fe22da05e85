package messenger

import (
	"errors"
	"log/slog"
	"time"

	"hima/groups"
	"hima/identity"
	"hima/internal/feed"
	"hima/storage"
)

// Config is what a Messenger needs from the start. Fields without a stated zero value are required.
type Config struct {
	DB       *storage.DB
	Account  identity.AccountID
	Device   identity.DeviceID
	Former   []identity.DeviceID // keys under which this profile wrote before (R3)
	Username string              // of the vault, canonical
	Addrs    func() []string     // own multiaddrs for invite links; nil: none
	Diverged func(feed.FeedID)   // the own feed is different elsewhere (R3); nil: only logged
	Now      func() time.Time    // nil: time.Now
	Logger   *slog.Logger        // nil: nothing is logged
	Limits   Limits              // zero fields: the defaults
}

func (c Config) check() error {
	switch {
	case c.DB == nil:
		return errors.New("messenger: no database")
	case c.Account.IsZero() || c.Device.IsZero():
		return errors.New("messenger: account and device are required")
	}
	return nil
}

// Messenger is the application. Make it with New, hand it to the replica as Members, Gate and Hooks, give it its lower
// parts with Bind, then Run it.
type Messenger struct {
	env       *env
	config    Config
	tables    *tables
	arrivals  *arrivals
	events    *events
	feeds     *feeds
	convs     *conversations
	contacts  *contacts
	settings  *settings
	invites   *invites
	quotas    *quotas
	history   *history
	sender    *sender
	presence  *presence
	positions *positions
	who       *who
	grants    *grants
	restored  *restored
	formers   map[identity.DeviceID]bool // not changed after New
	reaches   *reaches
	counted   *counted
	found     *foundCards
	woken     chan struct{} // one slot: many changes are one upkeep
	cut       chan struct{} // one slot: a branch under a former key is to be said again
}

// New checks the configuration. It reads a handful of keys and starts nothing.
func New(c Config) (*Messenger, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	c.Limits = c.Limits.withDefaults()
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Addrs == nil {
		c.Addrs = func() []string { return nil }
	}
	e := &env{
		db: c.DB, account: c.Account, device: c.Device, self: feed.SelfConversation(c.Account),
		now: c.Now, log: c.Logger, roads: noRoads{}, people: noPeople{},
		networks: noNetworks{}, mail: noMail{}, groups: noGroups{}, findGroups: findNoGroups, policyChanged: func() {}, grantsChanged: func() {},
		befriended: func(identity.AccountID) {},
	}
	m := &Messenger{env: e, config: c}
	m.tables, m.arrivals = &tables{}, &arrivals{}
	m.events = newEvents(e, c.Limits)
	m.feeds = &feeds{env: e, tables: m.tables}
	m.convs = &conversations{env: e}
	m.quotas = &quotas{limits: c.Limits}
	m.contacts = newContacts(e, m.quotas)
	m.settings = newSettings(e, c.Username)
	m.invites = &invites{env: e}
	m.presence = newPresence()
	m.positions = &positions{dirty: make(map[feed.ConversationID]feed.OrderKey)}
	m.who = newWho(m)
	m.grants, m.restored = newGrants(e), &restored{}
	m.reaches, m.counted = &reaches{}, newCounted()
	m.found = &foundCards{cards: make(map[groups.ID]FoundCard)}
	m.woken, m.cut = make(chan struct{}, 1), make(chan struct{}, 1)
	m.history = &history{m: m, pages: make(map[string]place)}
	m.sender = newSender(m)
	m.formers = make(map[identity.DeviceID]bool)
	for _, d := range c.Former {
		m.formers[d] = d != c.Device
	}
	if err := c.DB.View(m.load); err != nil {
		return nil, err
	}
	return m, nil
}

// load fills the small caches.
func (m *Messenger) load(tx *storage.Tx) error {
	if err := m.settings.load(tx); err != nil {
		return err
	}
	if err := m.restored.load(tx); err != nil {
		return err
	}
	return m.invites.load(tx)
}

// Bind gives the messenger its lower parts; to be called once, before the replica runs and before any other method.
func (m *Messenger) Bind(p Parts) {
	m.env.feeds = p.Feeds
	if p.Roads != nil {
		m.env.roads = p.Roads
	}
	if p.People != nil {
		m.env.people = p.People
	}
	if p.Networks != nil {
		m.env.networks = p.Networks
	}
	if p.Mail != nil {
		m.env.mail = p.Mail
	}
	if p.Groups != nil {
		m.env.groups = p.Groups
	}
	if p.FindGroups != nil {
		m.env.findGroups = p.FindGroups
	}
	if p.PolicyChanged != nil {
		m.env.policyChanged = p.PolicyChanged
	}
	if p.GrantsChanged != nil {
		m.env.grantsChanged = p.GrantsChanged
	}
	if p.Befriended != nil {
		m.env.befriended = p.Befriended
	}
}
