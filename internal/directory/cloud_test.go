package directory

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/identity"
	"hima/internal/wire/pb"
	"hima/node"
	"hima/storage"
)

// cloud is a network's table in memory: nodes that store what they judge good and forget it after two days, and some that
// lie.
type cloud struct {
	now        func() time.Time
	link       identity.NetworkLink
	validators map[string]identity.Validator

	mu    sync.Mutex
	nodes []*cloudNode
	puts  map[string]int // by key
	gets  map[string]int

	provided map[[32]byte][]identity.DeviceID
	provides int
}

type cloudNode struct {
	id    [32]byte
	dev   identity.DeviceID
	store map[string]cloudRecord
	down  bool
	// lie replaces what the node says and refuses all records; nil: it is honest.
	lie func(key string) []byte
}

type cloudRecord struct {
	raw []byte
	at  time.Time
}

const (
	cloudClosest = 20
	cloudAge     = 48 * time.Hour
)

func newCloud(link identity.NetworkLink, n int, now func() time.Time) *cloud {
	c := &cloud{now: now, link: link, puts: map[string]int{}, gets: map[string]int{}}
	c.validators = identity.Validators(link.ID(), func() []identity.DeviceID { return link.Keys() }, now)
	for i := range n {
		c.add(sha256.Sum256([]byte{byte(i), byte(i >> 8), 7}), device(5000+i))
	}
	return c
}

func (c *cloud) add(id [32]byte, dev identity.DeviceID) *cloudNode {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := &cloudNode{id: id, dev: dev, store: map[string]cloudRecord{}}
	c.nodes = append(c.nodes, n)
	return n
}

// near makes a node that stands nearer to a key than any other.
func (c *cloud) near(key string, i int) *cloudNode {
	id := sha256.Sum256([]byte(key))
	id[31] ^= byte(i + 1)
	return c.add(id, device(9000+i))
}

func (c *cloud) validator(key string) identity.Validator {
	space, _, _ := bytes.Cut([]byte(key[1:]), []byte("/"))
	return c.validators[string(space)]
}

// best returns the better of two records, which may be nil or bad.
func (c *cloud) best(key string, a, b []byte) []byte {
	v := c.validator(key)
	if b == nil || v.Validate(key, b) != nil {
		return a
	}
	if a == nil {
		return b
	}
	if i, err := v.Select(key, [][]byte{a, b}); err == nil && i == 1 {
		return b
	}
	return a
}

// closest are the nodes nearest to a key that are up.
func (c *cloud) closest(key string, but *cloudNode) []*cloudNode {
	target := sha256.Sum256([]byte(key))
	all := slices.DeleteFunc(slices.Clone(c.nodes), func(n *cloudNode) bool { return n.down || n == but })
	distance := func(n *cloudNode) (d [32]byte) {
		for i := range d {
			d[i] = n.id[i] ^ target[i]
		}
		return d
	}
	slices.SortFunc(all, func(a, b *cloudNode) int {
		x, y := distance(a), distance(b)
		return bytes.Compare(x[:], y[:])
	})
	return all[:min(len(all), cloudClosest)]
}

func (c *cloud) says(n *cloudNode, key string) []byte {
	if n.lie != nil {
		return n.lie(key)
	}
	if r, ok := n.store[key]; ok && c.now().Sub(r.at) < cloudAge {
		return r.raw
	}
	return nil
}

// cloudTable is one node's part of it.
type cloudTable struct {
	c    *cloud
	self *cloudNode
}

func (t *cloudTable) Run(ctx context.Context) error { <-ctx.Done(); return nil }
func (t *cloudTable) Close() error                  { return nil }

func (t *cloudTable) Peers() int {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	return len(t.c.closest("/x/", t.self))
}

func (t *cloudTable) Put(_ context.Context, key string, value []byte) error {
	c := t.c
	c.mu.Lock()
	defer c.mu.Unlock()
	c.puts[key]++
	if err := c.validator(key).Validate(key, value); err != nil {
		return node.ErrBadRecord
	}
	if have := c.says(t.self, key); have != nil && !bytes.Equal(c.best(key, have, value), value) {
		return node.ErrOldRecord
	}
	t.self.store[key] = cloudRecord{value, c.now()}
	peers := c.closest(key, t.self)
	if len(peers) == 0 {
		return node.ErrAlone
	}
	for _, n := range peers {
		if n.lie == nil && bytes.Equal(c.best(key, c.says(n, key), value), value) {
			n.store[key] = cloudRecord{value, c.now()}
		}
	}
	return nil
}

func (t *cloudTable) Get(_ context.Context, key string) ([]byte, error) {
	c := t.c
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gets[key]++
	best := c.says(t.self, key)
	for _, n := range c.closest(key, t.self) {
		best = c.best(key, best, c.says(n, key))
	}
	if best == nil {
		return nil, node.ErrNoRecord
	}
	return best, nil
}

func (t *cloudTable) Ask(_ context.Context, key string) ([]node.DHTAnswer, error) {
	c := t.c
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []node.DHTAnswer
	for _, n := range c.closest(key, t.self) {
		out = append(out, node.DHTAnswer{From: n.dev, Value: c.best(key, nil, c.says(n, key))})
	}
	if len(out) == 0 {
		return nil, node.ErrAlone
	}
	return out, nil
}

func (t *cloudTable) Provide(_ context.Context, key [32]byte) error {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	if len(t.c.closest("/x/", t.self)) == 0 {
		return node.ErrAlone
	}
	if t.c.provided == nil {
		t.c.provided = map[[32]byte][]identity.DeviceID{}
	}
	if t.c.provides++; !slices.Contains(t.c.provided[key], t.self.dev) {
		t.c.provided[key] = append(t.c.provided[key], t.self.dev)
	}
	return nil
}

func (t *cloudTable) Unprovide(key [32]byte) {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	t.c.provided[key] = slices.DeleteFunc(t.c.provided[key], func(d identity.DeviceID) bool { return d == t.self.dev })
}

func (t *cloudTable) Providers(_ context.Context, key [32]byte) (out []node.Provider, err error) {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	if len(t.c.closest("/x/", t.self)) == 0 {
		return nil, node.ErrAlone
	}
	for _, dev := range t.c.provided[key] {
		if dev != t.self.dev {
			out = append(out, node.Provider{Device: dev})
		}
	}
	return out, nil
}

func (t *cloudTable) FindPeer(context.Context, identity.DeviceID) ([]string, error) {
	return nil, node.ErrNoAddress
}

// boots answers for bootstrap nodes without a network.
type boots struct {
	mu    sync.Mutex
	regs  map[identity.DeviceID]*Register
	mute  map[identity.DeviceID]bool // those that answer for the network and know no names
	asked int
}

func (b *boots) get(dev identity.DeviceID) *Register {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked++
	return b.regs[dev]
}

func (b *boots) set(dev identity.DeviceID, r *Register) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.regs[dev] = r
}

func (b *boots) card(_ context.Context, dev identity.DeviceID, _ []string) (identity.NetworkCard, error) {
	r := b.get(dev)
	if r == nil {
		return identity.NetworkCard{}, node.ErrUnreachable
	}
	m, err := r.signedCard()
	if err != nil {
		return identity.NetworkCard{}, err
	}
	return decodeCard(m)
}

func (b *boots) name(ctx context.Context, dev identity.DeviceID, _ []string, q *pb.NameRequest) (nameAnswer, error) {
	r := b.get(dev)
	if r == nil {
		return nameAnswer{}, node.ErrUnreachable
	}
	if b.mute[dev] {
		return nameAnswer{}, node.ErrNotSpoken
	}
	return checkNameAnswer(r.answer(ctx, q))
}

// clock stands still unless it is told not to: a database in virtual time costs half a second for each hour.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// town is a network with bootstrap nodes and people, in memory and by its own clock. Bootstrap i has the device key of
// bootKey(i). People do what is due when time passes, see pass; those of run by the real or virtual clock instead.
type town struct {
	t     *testing.T
	clock *clock // nil: the real or virtual one
	now   func() time.Time
	all   []*person
	cloud *cloud
	boots *boots
	link  identity.NetworkLink
}

func bootKey(i int) identity.DeviceKey { return identity.DeviceKeyFromSeed(seed(1<<21 + i)) }

const testBits = 4

func newTown(t *testing.T, bootstraps, nodes int) *town {
	t.Helper()
	c := &clock{t: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	return newTownAt(t, bootstraps, nodes, c, c.now)
}

func newTownAt(t *testing.T, bootstraps, nodes int, c *clock, now func() time.Time) *town {
	t.Helper()
	link := identity.NetworkLink{Name: "town", Founder: bootKey(0).ID()}
	for i := range bootstraps {
		link.Bootstraps = append(link.Bootstraps, identity.InviteDevice{
			Device: bootKey(i).ID(), Addrs: []string{"/ip4/11.0.0.1/udp/1/quic-v1"},
		})
	}
	w := &town{t: t, clock: c, now: now, link: link, cloud: newCloud(link, nodes, now)}
	w.boots = &boots{regs: map[identity.DeviceID]*Register{}, mute: map[identity.DeviceID]bool{}}
	return w
}

// start starts bootstrap node i on a database.
func (w *town) start(i int, db *storage.DB, fresh bool) *Register {
	w.t.Helper()
	r, err := newRegister(RegisterConfig{
		DB: db, Key: bootKey(i), Link: func() identity.NetworkLink { return w.link }, Fresh: fresh,
		Serves: []string{ServeDHT, ServeNames}, Now: w.now,
	})
	require.NoError(w.t, err)
	r.asks, r.bits = w.boots, testBits
	w.boots.set(bootKey(i).ID(), r)
	return r
}

// person is somebody's directory in a town.
type person struct {
	*Directory
	i      int
	db     *storage.DB
	table  *cloudTable
	stop   func()
	mu     sync.Mutex
	names  []NameEvent
	shown  []identity.AccountRecord
	online []NetworkEvent
}

func (w *town) dir(n int, db *storage.DB, contacts ...int) *person {
	w.t.Helper()
	p := &person{i: n, db: db}
	d, err := New(Config{
		DB: db, Certificate: cert(n, n), Key: identity.DeviceKeyFromSeed(seed(1<<20 + n)),
		AccountKey: func() (identity.AccountKey, bool) { return accountKey(n), true },
		Keep: func(a identity.AccountID) bool {
			return slices.ContainsFunc(contacts, func(c int) bool { return account(c) == a })
		},
		Now:         w.now,
		OnName:      func(e NameEvent) { p.mu.Lock(); defer p.mu.Unlock(); p.names = append(p.names, e) },
		OnNetwork:   func(e NetworkEvent) { p.mu.Lock(); defer p.mu.Unlock(); p.online = append(p.online, e) },
		OnOwnRecord: func(r identity.AccountRecord) { p.mu.Lock(); defer p.mu.Unlock(); p.shown = append(p.shown, r) },
	})
	require.NoError(w.t, err)
	p.Directory = d
	d.asks, d.workBits, d.pace = w.boots, testBits, 0
	p.table = &cloudTable{w.cloud, w.cloud.add(sha256.Sum256([]byte{byte(n), 'p'}), device(n))}
	p.table.self.down = true
	d.openTable = func(*joined) (dht, error) { return p.table, nil }
	if _, ok := d.Record(d.self); !ok {
		r, err := identity.NewAccountRecord(accountKey(n), identity.RecordConfig{Now: w.now(), Devices: []identity.Certificate{cert(n, n)}})
		require.NoError(w.t, err)
		require.NoError(w.t, d.SetOwn(context.Background(), r))
	}
	return p
}

// run starts a person's directory; it is stopped at the end of the test at the latest.
func (w *town) run(p *person) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	w.cloud.mu.Lock()
	p.table.self.down = false
	w.cloud.mu.Unlock()
	go func() { done <- p.Run(ctx) }()
	p.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("running a directory: %v", err)
		}
		w.cloud.mu.Lock()
		p.table.self.down = true
		w.cloud.mu.Unlock()
	})
	w.t.Cleanup(p.stop)
}

// come makes a person who has joined the town and does what is due when time passes.
func (w *town) come(n int, contacts ...int) *person {
	w.t.Helper()
	p := w.join(w.dir(n, memDB(w.t), contacts...))
	w.step(p)
	return p
}

func (w *town) join(p *person) *person {
	w.t.Helper()
	_, added, err := p.JoinNetwork(context.Background(), w.link.String())
	require.NoError(w.t, err)
	require.True(w.t, added)
	return p
}

// step lets a person take part.
func (w *town) step(p *person) {
	w.setDown(p.table.self, false)
	for _, j := range p.nets.list() {
		j.setDHT(p.table)
	}
	w.all = append(w.all, p)
	p.stop = func() {
		w.all = slices.DeleteFunc(w.all, func(o *person) bool { return o == p })
		w.setDown(p.table.self, true)
		for _, j := range p.nets.list() {
			j.setDHT(nil)
		}
	}
}

func (w *town) setDown(n *cloudNode, down bool) {
	w.cloud.mu.Lock()
	defer w.cloud.mu.Unlock()
	n.down = down
}

// pass lets time pass and everybody do what is due, as the loops would.
func (w *town) pass(d time.Duration) {
	w.t.Helper()
	for d > 0 {
		step := min(d, tendEvery)
		w.clock.add(step)
		d -= step
		for _, p := range slices.Clone(w.all) {
			p.work(w.t)
		}
	}
}

func (p *person) work(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	require.NoError(t, p.renewDevice(ctx))
	for _, j := range p.nets.open() {
		table := j.dht()
		if table.Peers() > 0 {
			p.publishDue(ctx, j, table)
		}
		for _, dev := range j.due(p.now()) {
			j.greet[dev] = p.now().Add(p.Directory.greet(ctx, j, dev))
		}
		p.settleName(ctx, j)
		if table.Peers() > 0 {
			p.tend(ctx, j, table)
		}
	}
}

func (p *person) events() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for _, e := range p.names {
		out = append(out, e.State)
	}
	return out
}

// holders counts the nodes that hold exactly these bytes.
func (c *cloud) holders(key string, raw []byte) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, x := range c.nodes {
		if !x.down && bytes.Equal(c.says(x, key), raw) {
			n++
		}
	}
	return n
}

func (c *cloud) countPuts(key string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.puts[key]
}

// memDB is a database in memory that lives as long as the test; in a bubble it has to be opened inside.
func memDB(t testing.TB) *storage.DB {
	t.Helper()
	db, err := storage.Open(storage.Config{})
	require.NoError(t, err)
	t.Cleanup(func() {
		if err := db.Close(); err != nil && !errors.Is(err, storage.ErrClosed) {
			t.Error(err)
		}
	})
	return db
}

// firstOf is the first of the people found, or nobody.
func firstOf(people []FoundName) FoundName {
	if len(people) == 0 {
		return FoundName{}
	}
	return people[0]
}
