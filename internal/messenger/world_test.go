package messenger

import (
	"context"
	"crypto/sha256"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

const codeTaken = pb.Code_CODE_TAKEN

// person is one profile with one device.
type person struct {
	t               testing.TB
	name            string
	acct            identity.AccountKey
	key             identity.DeviceKey
	cert            identity.Certificate
	account         identity.AccountID
	device          identity.DeviceID
	former          []identity.DeviceID
	db              *storage.DB
	m               *Messenger
	feeds           *fakeFeeds
	people          *fakePeople
	networks        *fakeNetworks
	mail            *fakeMail
	groups          *fakeGroups
	policy, granted int // how often a change was told
	limits          Limits
	codes           []pb.Code // answers of the gate
	clock           time.Time
}

// fakePeople is a directory in memory.
type fakePeople struct {
	records map[identity.AccountID]identity.AccountRecord
	devices map[identity.AccountID][]identity.DeviceID
	nearby  []Person
	hints   map[identity.AccountID][]string
}

func (p *fakePeople) Record(a identity.AccountID) (identity.AccountRecord, bool) {
	r, ok := p.records[a]
	return r, ok
}
func (p *fakePeople) Devices(a identity.AccountID) []identity.DeviceID { return p.devices[a] }
func (p *fakePeople) LastSeen(identity.DeviceID) time.Time             { return time.Time{} }
func (p *fakePeople) Nearby() ([]Person, bool)                         { return p.nearby, true }
func (p *fakePeople) Hint(a identity.AccountID, _ identity.DeviceID, addrs []string) {
	p.hints[a] = append(p.hints[a], addrs...)
}

var testStart = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// newPerson makes a profile in memory whose keys follow from its name.
func newPerson(t testing.TB, name string) *person {
	return newDevice(t, name, name)
}

func newDevice(t testing.TB, account, device string) *person {
	t.Helper()
	p := &person{
		t: t, name: account, clock: testStart,
		acct: identity.AccountKeyFromSeed(sha256.Sum256([]byte("account " + account))),
		key:  identity.DeviceKeyFromSeed(sha256.Sum256([]byte("device " + device))),
	}
	p.account, p.device = p.acct.ID(), p.key.ID()
	p.cert = identity.NewCertificate(p.acct, p.device, testStart.Add(-time.Hour))
	p.people = &fakePeople{
		records: make(map[identity.AccountID]identity.AccountRecord),
		devices: make(map[identity.AccountID][]identity.DeviceID),
		hints:   make(map[identity.AccountID][]string),
	}
	p.networks, p.mail = newFakeNetworks(p.account), newFakeMail()
	p.groups = &fakeGroups{p: p, groups: make(map[feed.ConversationID]*fakeGroup), listens: pb.Code_CODE_DENIED}
	db, err := storage.Open(storage.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.db.Close()) })
	p.open(db)
	return p
}

// open builds everything over a database, as a start of the program does.
func (p *person) open(db *storage.DB) {
	p.db = db
	m, err := New(Config{
		DB: db, Account: p.account, Device: p.device, Former: p.former, Username: p.name, Limits: p.limits,
		Now: func() time.Time { return p.clock },
	})
	require.NoError(p.t, err)
	p.m = m
	p.feeds = &fakeFeeds{
		author: feed.NewAuthor(p.account, p.device, p.cert), account: p.account, key: p.key,
		online: make(map[identity.DeviceID]bool), presence: make(map[identity.AccountID]bool),
	}
	m.Bind(Parts{
		Feeds: p.feeds, People: p.people, Networks: p.networks, Mail: p.mail, Groups: p.groups,
		PolicyChanged: func() { p.policy++ }, GrantsChanged: func() { p.granted++ },
	})
}

func (p *person) peer() replica.Peer { return replica.Peer{Account: p.account, Device: p.device} }

func (p *person) id() string { return p.account.String() }

// meet carries everything both ways until nothing new can follow from it.
func meet(t testing.TB, a, b *person) {
	t.Helper()
	for range 3 {
		carry(t, a, b)
		carry(t, b, a)
	}
}

func (p *person) add(o *person, change ...func(*AddContact)) {
	p.t.Helper()
	in := AddContact{Who: o.id()}
	for _, c := range change {
		c(&in)
	}
	_, _, err := p.m.AddContact(context.Background(), in)
	require.NoError(p.t, err)
}

func (p *person) send(o *person, text string) Message {
	p.t.Helper()
	msg, err := p.m.Send(context.Background(), SendInput{Who: o.id(), Text: text})
	require.NoError(p.t, err)
	return msg
}

func (p *person) relation(o *person) Relation {
	p.t.Helper()
	c, err := p.m.contact(o.account)
	require.NoError(p.t, err)
	return c.Relation
}

func (p *person) history(who string) []Message {
	p.t.Helper()
	h, err := p.m.History(context.Background(), HistoryQuery{Who: who, Limit: maxPage})
	require.NoError(p.t, err)
	return h.Messages
}

// said lists the lines of a conversation as "name: text" or "name kind".
func (p *person) said(o *person) (out []string) {
	p.t.Helper()
	for _, msg := range p.history(o.id()) {
		if msg.Kind == MessageText {
			out = append(out, msg.AuthorName+": "+msg.Text)
		} else {
			out = append(out, msg.AuthorName+" "+string(msg.Kind))
		}
	}
	return out
}

// states lists the states of own messages.
func (p *person) states(o *person) (out []State) {
	p.t.Helper()
	for _, msg := range p.history(o.id()) {
		if msg.Own && (msg.Kind == MessageText || msg.Kind == MessageCancelled) {
			out = append(out, msg.State)
		}
	}
	return out
}

func (p *person) set(key, value string) {
	p.t.Helper()
	_, err := p.m.SetSetting(context.Background(), key, value)
	require.NoError(p.t, err)
}

// friends makes two people contacts of each other.
func friends(t testing.TB) (a, b *person) {
	t.Helper()
	a, b = newPerson(t, "alice"), newPerson(t, "bob")
	a.add(b)
	meet(t, a, b)
	_, err := b.m.Accept(context.Background(), a.id())
	require.NoError(t, err)
	meet(t, a, b)
	require.Equal(t, RelationContact, a.relation(b))
	require.Equal(t, RelationContact, b.relation(a))
	return a, b
}

// events reads the whole stored sequence.
func (p *person) events(since uint64) (out []Event) {
	p.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	err := p.m.Watch(ctx, WatchQuery{Since: since}, func(e Event) error {
		if e.Type == EventReady {
			cancel()
			return nil
		}
		out = append(out, e)
		return nil
	})
	require.ErrorIs(p.t, err, context.Canceled)
	return out
}
