package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"hima/groups"
	"hima/identity"
	"hima/internal/feed"
	"hima/internal/messenger"
	"hima/internal/replica"
	"hima/node"
	"hima/storage"
)

// register is what the members of a benchmark know of each other's devices: all of it, from the first moment.
type register struct {
	mu      sync.RWMutex
	records map[identity.AccountID]identity.AccountRecord
	addrs   map[identity.DeviceID]func() []string
}

func newRegister() *register {
	return &register{records: map[identity.AccountID]identity.AccountRecord{}, addrs: map[identity.DeviceID]func() []string{}}
}

// Record implements replica.Records and messenger.People.
func (r *register) Record(a identity.AccountID) (identity.AccountRecord, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	rec, ok := r.records[a]
	return rec, ok
}

// Admit implements replica.Records: a benchmark's records never change.
func (r *register) Admit(_ context.Context, raw []byte) (identity.AccountRecord, error) {
	rec, err := identity.ParseAccountRecord(raw)
	if err != nil {
		return rec, err
	}
	if have, ok := r.Record(rec.Account); ok {
		return have, nil
	}
	return rec, nil
}

// Devices implements replica.Records and messenger.People.
func (r *register) Devices(a identity.AccountID) (out []identity.DeviceID) {
	rec, ok := r.Record(a)
	if !ok {
		return nil
	}
	for _, c := range rec.Devices {
		out = append(out, c.Device)
	}
	return out
}

// Seen implements replica.Records.
func (*register) Seen(identity.Certificate, string, time.Time) {}

// LastSeen, Nearby and Hint implement messenger.People.
func (*register) LastSeen(identity.DeviceID) time.Time                 { return time.Time{} }
func (*register) Nearby() ([]messenger.Person, bool)                   { return nil, false }
func (*register) Hint(identity.AccountID, identity.DeviceID, []string) {}

// member is one member of a group: the parts of a running node that a group needs, put together as the daemon does. Whom to
// dial is the mesh's business alone; the retry table is not there.
type member struct {
	name      string
	reg       *register
	account   identity.AccountID
	key       identity.DeviceKey
	cert      identity.Certificate
	dir       string // of the database; "" for one in memory
	node      *node.Node
	db        *storage.DB
	replica   *replica.Replica
	messenger *messenger.Messenger
	groups    *groups.Groups

	cancel context.CancelFunc
	group  *errgroup.Group
	stored atomic.Pointer[func(feed.ConversationID, []feed.Entry)]

	mu      sync.Mutex
	sayings []saying
}

// newMember makes one that does not run yet, and is known to all. It closes its node.
func newMember(reg *register, dir, name string, key identity.DeviceKey, n *node.Node) (*member, error) {
	acct := identity.AccountKeyFromSeed(sha256.Sum256([]byte("bench account " + name)))
	m := &member{name: name, reg: reg, account: acct.ID(), key: key, cert: identity.NewCertificate(acct, key.ID(), time.Now()), dir: dir, node: n}
	rec, err := identity.NewAccountRecord(acct, identity.RecordConfig{Now: time.Now(), Devices: []identity.Certificate{m.cert}})
	if err != nil {
		return nil, err
	}
	reg.mu.Lock()
	defer reg.mu.Unlock()
	reg.records[m.account], reg.addrs[key.ID()] = rec, func() []string { return m.node.Addrs() }
	return m, nil
}

// open makes the parts over the database and runs them.
func (m *member) open() (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, m.close())
		}
	}()
	config := storage.Config{MemTable: 6 << 20} // so that a thousand members fit one machine
	if m.dir != "" {
		config = storage.Config{Dir: filepath.Join(m.dir, m.name), Key: make([]byte, 32)}
	}
	if m.db == nil {
		if m.db, err = storage.Open(config); err != nil {
			return err
		}
	}
	m.messenger, err = messenger.New(messenger.Config{DB: m.db, Account: m.account, Device: m.key.ID(), Username: m.name})
	if err != nil {
		return err
	}
	m.groups, err = groups.New(groups.Config{DB: m.db, Account: m.account, Key: m.key, Certificate: m.cert, Records: m.reg.Record, News: m.messenger.GroupNews})
	if err != nil {
		return err
	}
	m.replica, err = replica.New(replica.Config{
		DB: m.db, Node: m.node, Account: m.account, Key: m.key, Certificate: m.cert,
		Records: m.reg, Members: m.messenger, Gate: m.messenger, Hooks: m.messenger, Keys: m.groups, OnStored: m.onStored,
	})
	if err != nil {
		return err
	}
	pub, err := m.node.NewPubSub(node.PubSubConfig{Allowed: m.groups.GossipAllowed})
	if err != nil {
		return err
	}
	m.messenger.Bind(messenger.Parts{Feeds: m.replica, People: m.reg, Groups: m.groups})
	m.groups.Bind(groups.Parts{
		Feeds: memberFeeds{m.replica, m.messenger}, PubSub: pub, Devices: m.reg.Devices, Locate: m.locate, Release: m.replica.Release,
		Say: m.say,
	})
	return nil
}

// saying is what one account says to another about a group. The benchmark itself carries it.
type saying struct {
	to      identity.AccountID
	kind    feed.Kind
	content []byte
}

func (m *member) say(_ *storage.Tx, to identity.AccountID, kind feed.Kind, content []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sayings = append(m.sayings, saying{to, kind, content})
	return nil
}

// deliver hands what was said to another over.
func (m *member) deliver(ctx context.Context, to *member) error {
	m.mu.Lock()
	all := m.sayings
	m.sayings = nil
	m.mu.Unlock()
	return to.db.Update(ctx, func(tx *storage.Tx) error {
		for _, s := range all {
			if s.to == to.account {
				if err := to.groups.Said(tx, m.account, to.account, s.kind, s.content, time.Now()); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// memberFeeds is the replica with the messenger's Append.
type memberFeeds struct {
	*replica.Replica
	m *messenger.Messenger
}

func (f memberFeeds) Append(tx *storage.Tx, drafts ...replica.Draft) ([]feed.Entry, error) {
	return f.m.AppendGroup(tx, drafts...)
}

// locate tells the node where a device is.
func (m *member) locate(_ context.Context, d identity.DeviceID) error {
	m.reg.mu.RLock()
	addrs := m.reg.addrs[d]
	m.reg.mu.RUnlock()
	if addrs == nil {
		return errors.New("nobody knows where that device is")
	}
	m.node.Remember(d, addrs())
	return nil
}

func (m *member) onStored(conv feed.ConversationID, entries []feed.Entry, from replica.Peer) {
	m.groups.OnStored(conv, entries, from)
	if f := m.stored.Load(); f != nil {
		(*f)(conv, entries)
	}
}

// run lets the parts work until stop.
func (m *member) run() {
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel = cancel
	m.group, ctx = errgroup.WithContext(ctx)
	for _, part := range []func(context.Context) error{m.db.RunMaintenance, m.replica.Run, m.messenger.Run, m.groups.Run} {
		m.group.Go(func() error {
			if err := part(ctx); !errors.Is(err, context.Canceled) {
				return err
			}
			return nil
		})
	}
}

// stop ends the parts, but for node and database.
func (m *member) stop() error {
	if m.cancel == nil {
		return nil
	}
	m.cancel()
	m.cancel = nil
	return m.group.Wait()
}

func (m *member) close() error {
	err := m.stop()
	if m.node != nil {
		err = errors.Join(err, m.node.Close())
	}
	if m.db != nil {
		err = errors.Join(err, m.db.Close())
	}
	return err
}

// club is a group and its members.
type club struct {
	id      groups.ID
	members []*member
}

// found lets the first member make an open group and lets all others in. Each other member agreed by itself; what is carried
// between two accounts, and the acts, are handed over here, for the benchmarks are not about that.
func found(ctx context.Context, members []*member) (*club, error) {
	owner := members[0]
	info, err := owner.groups.Create(ctx, groups.Options{Name: "bench", Join: "open", History: "all"})
	if err != nil {
		return nil, fmt.Errorf("creating the group: %w", err)
	}
	c := &club{id: info.ID, members: members}
	for _, m := range members[1:] {
		if err := c.letIn(ctx, m); err != nil {
			return nil, err
		}
	}
	return c, c.tell(ctx, members[1:])
}

// letIn lets one more into the group, who hears of it by no more than what tell or the network brings.
func (c *club) letIn(ctx context.Context, m *member) error {
	owner := c.members[0]
	asks := []groups.Contact{{Account: owner.account, Devices: []identity.InviteDevice{{Device: owner.key.ID()}}}}
	if _, err := m.groups.Apply(ctx, groups.Target{Group: c.id, Name: "bench", Asks: asks, Join: "open"}, ""); err != nil {
		return fmt.Errorf("applying: %w", err)
	}
	if err := m.deliver(ctx, owner); err != nil {
		return fmt.Errorf("handing over an application: %w", err)
	}
	_, err := owner.groups.Decide(ctx, c.id, m.account, true, "")
	if err != nil && !errors.Is(err, groups.ErrNotFound) && !errors.Is(err, groups.ErrExists) && !errors.Is(err, groups.ErrConflict) {
		return fmt.Errorf("approving: %w", err)
	}
	return nil
}

// tell brings the owner's acts to members.
func (c *club) tell(ctx context.Context, to []*member) error {
	owner := c.members[0]
	id := owner.replica.OwnFeed(c.id, feed.Control)
	for from := uint64(1); ; {
		run, err := owner.replica.ReadRun(id, from)
		if errors.Is(err, replica.ErrNoEntry) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, m := range to {
			if err := m.replica.Take(ctx, replica.Peer{Account: owner.account, Device: owner.key.ID()}, run); err != nil {
				return fmt.Errorf("bringing acts: %w", err)
			}
		}
		from += uint64(len(run.GetEntries()))
	}
}

// say sends a text from one member and returns when it is durable there.
func (c *club) say(ctx context.Context, m *member, text string) (messenger.Message, error) {
	return m.messenger.Send(ctx, messenger.SendInput{Who: "group:" + c.id.String(), Text: text})
}
