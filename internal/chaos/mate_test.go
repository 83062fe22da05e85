package chaos

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"hima/identity"
	"hima/internal/delivery"
	"hima/internal/directory"
	"hima/internal/messenger"
	"hima/internal/replica"
	"hima/node"
	"hima/node/nodetest"
	"hima/storage"
)

// mate is a whole profile on the simulated network, wired as the daemon wires it, with a clock of its own.
type mate struct {
	t     *testing.T
	world *nodetest.World
	index int
	name  string
	acct  identity.AccountKey
	dir   string

	mu   sync.Mutex // guards skew
	skew time.Duration

	db        *storage.DB
	node      *node.Node
	directory *directory.Directory
	messenger *messenger.Messenger
	replica   *replica.Replica
	halt      func()
}

// newMates makes n running profiles on one simulated LAN, in whose order they are called a, b, c. Call it in a bubble.
func newMates(t *testing.T, n int) (*nodetest.World, []*mate) {
	t.Helper()
	w := nodetest.New(t, n)
	var all []*mate
	for i := range n {
		m := &mate{t: t, world: w, index: i, name: "mate" + string(rune('a'+i)), dir: filepath.Join(t.TempDir(), "db")}
		m.acct = identity.AccountKeyFromSeed(sha256.Sum256(fmt.Appendf(nil, "mate %d", i)))
		all = append(all, m)
		t.Cleanup(m.stop)
	}
	for _, m := range all {
		m.start()
	}
	return w, all
}

func (m *mate) now() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Now().Add(m.skew)
}

// shift sets how far the mate's clock is off.
func (m *mate) shift(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.skew = d
}

func (m *mate) start() {
	t := m.t
	t.Helper()
	key := nodetest.Key(m.index)
	cert := identity.NewCertificate(m.acct, key.ID(), m.now())
	disk := sha256.Sum256([]byte(m.name))
	var err error
	m.db, err = storage.Open(storage.Config{Dir: m.dir, Key: disk[:]})
	require.NoError(t, err)
	m.node = m.world.Node(m.index)
	m.messenger, err = messenger.New(messenger.Config{
		DB: m.db, Account: m.acct.ID(), Device: key.ID(), Username: m.name, Addrs: m.node.Addrs, Now: m.now,
	})
	require.NoError(t, err)
	m.directory, err = directory.New(directory.Config{
		DB: m.db, Node: m.node, Certificate: cert, Profile: m.messenger.LanProfile, Keep: m.messenger.Keeps, Now: m.now,
	})
	require.NoError(t, err)
	if _, ok := m.directory.Record(m.acct.ID()); !ok {
		rec, err := identity.NewAccountRecord(m.acct, identity.RecordConfig{Now: m.now(), Devices: []identity.Certificate{cert}})
		require.NoError(t, err)
		require.NoError(t, m.directory.SetOwn(t.Context(), rec))
	}
	m.replica, err = replica.New(replica.Config{
		DB: m.db, Node: m.node, Account: m.acct.ID(), Key: key, Certificate: cert,
		Records: m.directory, Members: m.messenger, Gate: m.messenger, Hooks: m.messenger, Now: m.now,
	})
	require.NoError(t, err)
	del, err := delivery.New(delivery.Config{
		DB: m.db, Self: key.ID(), Sessions: m.replica, Events: m.node.Subscribe, Contacts: m.contacts, Now: m.now,
	})
	require.NoError(t, err)
	m.messenger.Bind(messenger.Parts{Feeds: m.replica, Roads: del, People: surroundings{m}})
	ctx, cancel := context.WithCancel(context.Background())
	var g errgroup.Group
	for _, part := range []func(context.Context) error{m.directory.Run, m.replica.Run, m.messenger.Run, del.Run} {
		g.Go(func() error {
			if err := part(ctx); err != nil && !errors.Is(err, context.Canceled) {
				return err
			}
			return nil
		})
	}
	m.halt = func() {
		cancel()
		if err := g.Wait(); err != nil {
			t.Errorf("%s ended: %v", m.name, err)
		}
		if err := m.db.Close(); err != nil {
			t.Errorf("%s: closing the database: %v", m.name, err)
		}
	}
	synctest.Wait()
}

func (m *mate) stop() {
	if m.halt != nil {
		m.halt()
		m.halt = nil
	}
}

func (m *mate) contacts() (out []identity.DeviceID) {
	for _, a := range m.messenger.PeerAccounts() {
		out = append(out, m.directory.Devices(a)...)
	}
	return out
}

// surroundings is what the messenger sees of directory and node.
type surroundings struct{ m *mate }

func (s surroundings) Record(a identity.AccountID) (identity.AccountRecord, bool) {
	return s.m.directory.Record(a)
}

func (s surroundings) Devices(a identity.AccountID) []identity.DeviceID {
	return s.m.directory.Devices(a)
}

func (s surroundings) LastSeen(d identity.DeviceID) time.Time { return s.m.directory.LastSeen(d) }

func (s surroundings) Nearby() ([]messenger.Person, bool) {
	var out []messenger.Person
	for _, n := range s.m.directory.Nearby() {
		out = append(out, messenger.Person{
			Account: n.Account, Device: n.Device, Username: n.Username, Nickname: n.Nickname, Address: n.Address, Seen: n.Seen,
		})
	}
	return out, s.m.node.Multicast()
}

func (s surroundings) Hint(a identity.AccountID, d identity.DeviceID, addrs []string) {
	s.m.directory.Hint(a, d, addrs)
	s.m.node.Remember(d, addrs)
}

func (m *mate) id() string { return m.acct.ID().String() }

// send writes a text to another and returns its ID.
func (m *mate) send(to *mate, text string) string {
	m.t.Helper()
	msg, err := m.messenger.Send(m.t.Context(), messenger.SendInput{Who: to.id(), Text: text})
	require.NoError(m.t, err)
	return msg.ID.String()
}

// texts is the whole conversation with another, oldest first.
func (m *mate) texts(with *mate) (out []messenger.Message) {
	m.t.Helper()
	before := ""
	for {
		h, err := m.messenger.History(m.t.Context(), messenger.HistoryQuery{Who: with.id(), Limit: 1000, Before: before})
		require.NoError(m.t, err)
		var page []messenger.Message
		for _, x := range h.Messages {
			if x.Kind == "text" {
				page = append(page, x)
			}
		}
		out = append(page, out...)
		if !h.More {
			return out
		}
		before = h.Messages[0].ID.String()
	}
}

// within waits in virtual time.
func within(t *testing.T, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	begun := time.Now()
	for !cond() {
		if time.Since(begun) > limit {
			t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// meet makes two mates contacts who found each other on the LAN.
func meet(t *testing.T, a, b *mate) {
	t.Helper()
	within(t, time.Minute, "they see each other", func() bool {
		_, err := a.messenger.Find(t.Context(), b.name)
		return err == nil
	})
	_, _, err := a.messenger.AddContact(t.Context(), messenger.AddContact{Who: b.name, Expect: b.acct.ID()})
	require.NoError(t, err)
	within(t, time.Minute, "the request arrives", func() bool {
		_, err := b.messenger.Accept(t.Context(), a.id())
		return err == nil
	})
	within(t, time.Minute, "the answer arrives", func() bool {
		all, err := a.messenger.Contacts(t.Context(), false)
		return err == nil && len(all) == 1 && all[0].Relation == messenger.RelationContact
	})
}

// settled says that both show the same conversation of n texts and everything is delivered.
func settled(a, b *mate, n int) bool {
	x, y := a.texts(b), b.texts(a)
	if len(x) != n || len(y) != n {
		return false
	}
	for i := range x {
		if x[i].ID != y[i].ID || x[i].Text != y[i].Text {
			return false
		}
		if own := x[i]; own.Own && own.State != messenger.StateDelivered && own.State != messenger.StateRead {
			return false
		}
		if own := y[i]; own.Own && own.State != messenger.StateDelivered && own.State != messenger.StateRead {
			return false
		}
	}
	return true
}
