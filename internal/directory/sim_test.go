package directory

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"hima/identity"
	"hima/node"
	"hima/node/nodetest"
)

// sim is a network of real nodes in virtual time: bootstrap nodes with registers, people with directories, and many who
// only stand in the table. Call it inside a bubble.
type sim struct {
	t      *testing.T
	w      *nodetest.World
	link   identity.NetworkLink
	boots  []int
	regs   []*Register
	tables []*standing // of the bootstrap nodes
	crowd  []*standing
	conns  int
	wg     sync.WaitGroup
	ctx    context.Context // of the bubble
}

// standing is a node that stands in the table and does nothing else.
type standing struct {
	i     int
	table *node.DHT
	stop  func()
}

func newSim(t *testing.T, bootstraps int, oneWay time.Duration) *sim {
	t.Helper()
	s := &sim{t: t, w: nodetest.New(t, 0), conns: 120}
	s.w.DelayAll(oneWay)
	ctx, cancel := context.WithCancel(t.Context())
	s.ctx = ctx
	t.Cleanup(func() { cancel(); s.wg.Wait() })
	for i := range bootstraps {
		b := s.w.AddBootstrap(node.RelayLimits{})
		s.boots = append(s.boots, b)
		if i == 0 {
			s.link = identity.NetworkLink{Name: "sim", Founder: nodetest.Key(b).ID()}
		}
		s.link.Bootstraps = append(s.link.Bootstraps, identity.InviteDevice{Device: nodetest.Key(b).ID(), Addrs: s.w.Addrs(b)})
	}
	for _, b := range s.boots {
		r, err := NewRegister(RegisterConfig{
			DB: memDB(t), Node: s.w.Node(b), Key: nodetest.Key(b), Link: func() identity.NetworkLink { return s.link },
			Serves: []string{ServeDHT, ServeRelay, ServeNames}, Fresh: true,
		})
		require.NoError(t, err)
		r.bits = testBits
		s.regs = append(s.regs, r)
		s.tables = append(s.tables, s.table(b, nil))
	}
	return s
}

// table makes node i stand in the table. A liar judges by its own rules.
func (s *sim) table(i int, liar map[string]identity.Validator) *standing {
	s.t.Helper()
	c := TableConfig(s.link.ID(), s.link.Keys, time.Now)
	c.Server = true
	c.Bootstraps = func() []node.Bootstrap { return []node.Bootstrap{s.w.Bootstrap(s.boots[i%len(s.boots)])} }
	if liar != nil {
		c.Validators = liar
	}
	d, err := s.w.Node(i).NewDHT(c)
	require.NoError(s.t, err)
	st := &standing{i: i, table: d}
	ctx, cancel := context.WithCancel(s.ctx)
	var wg sync.WaitGroup
	st.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		if err := d.Close(); err != nil {
			s.t.Errorf("closing a table: %v", err)
		}
	})
	s.t.Cleanup(st.stop)
	wg.Go(func() {
		if err := d.Run(ctx); err != nil {
			s.t.Errorf("running a table: %v", err)
		}
	})
	return st
}

// fill adds n nodes that join one after the other.
func (s *sim) fill(n int) {
	s.t.Helper()
	for range n {
		s.crowd = append(s.crowd, s.add(nil, nil))
		time.Sleep(100 * time.Millisecond)
	}
}

// add adds one node. A liar says lies before it meets anybody, so that they are what it holds.
func (s *sim) add(liar map[string]identity.Validator, lies map[string][]byte) *standing {
	s.t.Helper()
	i := s.w.AddPlain(s.conns)
	st := s.table(i, liar)
	for key, raw := range lies {
		if err := st.table.Put(s.ctx, key, raw); !errors.Is(err, node.ErrAlone) {
			s.t.Errorf("preparing a lie: %v", err)
		}
	}
	s.w.Connect(i, s.boots[i%len(s.boots)])
	return st
}

// person adds somebody with a directory who has joined.
func (s *sim) person() (*Directory, int) {
	s.t.Helper()
	i := s.w.AddRemote(nodetest.Open)
	key := accountKey(i)
	now := time.Now()
	c := identity.NewCertificate(key, nodetest.Key(i).ID(), now)
	d, err := New(Config{
		DB: memDB(s.t), Node: s.w.Node(i), Certificate: c, Key: nodetest.Key(i),
		AccountKey: func() (identity.AccountKey, bool) { return key, true },
	})
	require.NoError(s.t, err)
	d.workBits = testBits
	r, err := identity.NewAccountRecord(key, identity.RecordConfig{Now: now, Devices: []identity.Certificate{c}})
	require.NoError(s.t, err)
	require.NoError(s.t, d.SetOwn(s.ctx, r))
	_, _, err = d.JoinNetwork(s.ctx, s.link.String())
	require.NoError(s.t, err)
	ctx, cancel := context.WithCancel(s.ctx)
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	s.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Errorf("running a directory: %v", err)
		}
	})
	return d, i
}

// liar takes everything and prefers what it was given first.
type liar struct{}

func (liar) Validate(string, []byte) error { return nil }

func (liar) Select(_ string, values [][]byte) (int, error) { return len(values) - 1, nil }

func liarJudges() map[string]identity.Validator {
	return map[string]identity.Validator{
		identity.NamespaceAccount: liar{}, identity.NamespaceDevice: liar{}, identity.NamespaceName: liar{},
	}
}

// simSize is how many nodes the simulation has: 50 in each run of the tests, 200 in .ci/run, which sets HIMA_NODES, and
// 1,000 in .ci/long.
func simSize(t *testing.T) int {
	if n, err := strconv.Atoi(os.Getenv("HIMA_NODES")); err == nil {
		return n
	}
	if os.Getenv("HIMA_LONG") != "" {
		return 1000
	}
	if testing.Short() {
		t.Skip("many nodes")
	}
	return 50
}

// Names resolve to their registered owners and records to the newest, while a tenth of the nodes answers with old, forged
// and foreign records and three tenths have just been switched off.
func TestChurnAndHostileNodes(t *testing.T) {
	n := simSize(t)
	started := time.Now()
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 2, 50*time.Millisecond)
		s.fill(n * 9 / 10)

		const owners = 5
		var people []*Directory
		lies := make([]map[string][]byte, 3)
		for k := range lies {
			lies[k] = map[string][]byte{}
		}
		mallory, err := identity.NewNameClaim(accountKey(1<<19), s.link.ID(), "mallory", time.Now())
		require.NoError(t, err)
		for i := range owners {
			p, at := s.person()
			people = append(people, p)
			time.Sleep(2 * time.Second)
			name := fmt.Sprintf("owner%d", i)
			st, err := p.ClaimName(s.ctx, s.link.ID(), name)
			require.NoError(t, err)
			require.Equal(t, NameConfirmed, st.State)
			p.SetDevice(DeviceInfo{})
			_ = at
		}
		for _, p := range people {
			awaitPublished(t, p)
		}
		// What is true now is old later.
		for i, p := range people {
			name := fmt.Sprintf("owner%d", i)
			dev := p.cfg.Certificate.Device
			old, ok := p.Record(p.self)
			require.True(t, ok)
			claimed, err := identity.NewNameClaim(accountKey(1<<19), s.link.ID(), name, time.Now().Add(-time.Hour))
			require.NoError(t, err)
			stamped, err := identity.NewNameStamp(bootKey(7), claimed, time.Now().Add(-time.Hour))
			require.NoError(t, err)
			lies[0][identity.AccountRecordKey(p.self)] = old.Raw()
			lies[0][identity.DeviceRecordKey(dev)] = p.own.record().Raw()
			lies[0][identity.NameKey(s.link.ID(), name)] = identity.UnstampedName(claimed).Raw()
			forged := old.Raw()
			forged[len(forged)-1] ^= 1
			lies[1][identity.AccountRecordKey(p.self)] = forged
			lies[1][identity.DeviceRecordKey(dev)] = []byte("nothing of the kind")
			lies[1][identity.NameKey(s.link.ID(), name)] = identity.StampedName(stamped).Raw()
			other := people[(i+1)%owners]
			foreign, ok := other.Record(other.self)
			require.True(t, ok)
			lies[2][identity.AccountRecordKey(p.self)] = foreign.Raw()
			lies[2][identity.DeviceRecordKey(dev)] = other.own.record().Raw()
			lies[2][identity.NameKey(s.link.ID(), name)] = identity.UnstampedName(mallory).Raw()
		}
		for i := range n / 10 {
			s.add(liarJudges(), lies[i%3])
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(10 * time.Second)
		// The owners say something new, to honest nodes and to liars alike.
		for _, p := range people {
			p.SetDevice(DeviceInfo{Mailboxes: []identity.MailboxRef{{Device: nodetest.Key(s.boots[0]).ID()}}})
		}
		for _, p := range people {
			awaitPublished(t, p)
		}

		// Three tenths go without a word, as many come.
		for _, k := range rand.Perm(len(s.crowd))[:n*3/10] {
			s.w.Isolate(s.crowd[k].i)
		}
		s.fill(n * 3 / 10)

		var names, records samples
		for range 3 {
			q, _ := s.person()
			awaitTable(t, q)
			for i, p := range people {
				name := fmt.Sprintf("owner%d", i)
				start := time.Now()
				res, err := q.SearchName(s.ctx, name)
				names = append(names, time.Since(start))
				require.NoError(t, err)
				require.NotEmpty(t, res.People, name)
				require.Equal(t, p.self, res.People[0].Account, name)
				require.True(t, res.People[0].Confirmed, name)
				start = time.Now()
				rec, err := q.FetchDevice(s.ctx, p.cfg.Certificate.Device)
				records = append(records, time.Since(start))
				require.NoError(t, err, name)
				require.Equal(t, p.own.record().Raw(), rec.Raw(), "the newest record of %s", name)
				acc, err := q.FetchAccount(s.ctx, p.self)
				require.NoError(t, err, name)
				require.Equal(t, name, acc.Names[0].Name)
				// The table alone, without the registers, knows the owner too.
				heard := evidence{}
				for _, r := range q.askTable(s.ctx, q.nets.list()[0], name).records {
					heard.add(r)
				}
				who, _ := heard.judge(q.nets.list()[0], s.link.Keys())
				require.NotEmpty(t, who, name)
				require.Equal(t, p.self, who[0].Account, name)
			}
		}
		t.Logf("of %d nodes: search p50 %v p95 %v, record p50 %v p95 %v", n, names.at(0.5), names.at(0.95), records.at(0.5), records.at(0.95))
	})
	t.Logf("%d nodes took %v", n, time.Since(started))
}

// awaitPublished waits until the present own records were seen stored.
func awaitPublished(t *testing.T, p *Directory) {
	t.Helper()
	for range 600 {
		if !p.Networks()[0].Published.IsZero() {
			return
		}
		time.Sleep(time.Second)
	}
	t.Fatalf("nothing was published: %+v", p.Networks())
}

// awaitTable waits until somebody is in the table.
func awaitTable(t *testing.T, p *Directory) {
	t.Helper()
	for range 600 {
		if p.Networks()[0].DHTPeers > 0 {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal("nobody is in the table")
}
