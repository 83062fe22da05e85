package directory

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"hima/identity"
	"hima/node"
)

// deviceRecord makes a record of device d of account a.
func deviceRecord(t testing.TB, a, d int, now time.Time, last uint64, addrs ...string) identity.DeviceRecord {
	t.Helper()
	r, err := identity.NewDeviceRecord(identity.DeviceKeyFromSeed(seed(1<<20+d)), identity.DeviceRecordConfig{
		Certificate: cert(a, d), LastSeq: last, Now: now, Addrs: addrs,
	})
	require.NoError(t, err)
	return r
}

func TestNewestDeviceRecordCounts(t *testing.T) {
	now := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	dir := t.TempDir()
	db := openDB(t, dir)
	at := func(c *Config) { c.Now = func() time.Time { return now } }
	d := newDirectory(t, db, at)
	_, ok := d.DeviceRecord(device(1))
	require.False(t, ok)
	older, newer := deviceRecord(t, 1, 1, now, 0), deviceRecord(t, 1, 1, now.Add(time.Second), 0)
	for _, r := range []identity.DeviceRecord{older, newer, older} {
		_, err := d.AdmitDevice(t.Context(), r.Raw())
		require.NoError(t, err)
	}
	got, ok := d.DeviceRecord(device(1))
	require.True(t, ok)
	require.Equal(t, newer.Raw(), got.Raw())
	a, ok := d.DeviceAccount(device(1))
	require.True(t, ok)
	require.Equal(t, account(1), a)
	require.NoError(t, db.Close())

	// It is there after a restart without asking anybody.
	d = newDirectory(t, openDB(t, dir), at)
	got, ok = d.DeviceRecord(device(1))
	require.True(t, ok)
	require.Equal(t, newer.Raw(), got.Raw())
	counts, err := d.AdmitDevice(t.Context(), older.Raw())
	require.NoError(t, err)
	require.Equal(t, newer.Raw(), counts.Raw())
}

func TestAdmitDeviceRefuses(t *testing.T) {
	now := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	d := newDirectory(t, openDB(t, ""), func(c *Config) { c.Now = func() time.Time { return now } })
	good := deviceRecord(t, 1, 1, now, 0).Raw()
	bad := append([]byte{}, good...)
	bad[len(bad)-1] ^= 1
	expired := deviceRecord(t, 1, 1, now.Add(-identity.DeviceRecordLifetime-25*time.Hour), 0)
	for _, b := range [][]byte{nil, []byte("x"), bad, make([]byte, 1<<20), expired.Raw()} {
		_, err := d.AdmitDevice(t.Context(), b)
		require.ErrorIs(t, err, ErrNotAdmitted)
	}
	// The account does not stand by it any more.
	admit(t, d, record(t, 1, uint64(now.UnixMilli()), 2, -1))
	_, err := d.AdmitDevice(t.Context(), good)
	require.ErrorIs(t, err, ErrNotAdmitted)
	_, ok := d.DeviceRecord(device(1))
	require.False(t, ok)
}

func TestDeviceRecordsAreBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("thousands of signatures")
	}
	now := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	d := newDirectory(t, openDB(t, ""), func(c *Config) {
		c.Now = func() time.Time { return now }
		c.Keep = func(a identity.AccountID) bool { return a == account(1) }
	})
	_, err := d.AdmitDevice(t.Context(), deviceRecord(t, 1, 1, now, 0).Raw())
	require.NoError(t, err)
	d.devs.count = maxDeviceRecords - 100 // as if so many were there
	for i := range 150 {
		now = now.Add(time.Second)
		_, err := d.AdmitDevice(t.Context(), deviceRecord(t, 100+i, 100+i, now, 0).Raw())
		require.NoError(t, err)
	}
	require.Less(t, d.devs.count, int64(maxDeviceRecords))
	_, ok := d.DeviceRecord(device(1))
	require.True(t, ok, "a contact's stays")
	_, ok = d.DeviceRecord(device(100 + 149))
	require.True(t, ok, "and the newest")
	_, ok = d.DeviceRecord(device(100))
	require.False(t, ok)
}

// gateTable lets look-ups wait for the test.
type gateTable struct {
	*cloudTable
	gets  atomic.Int32
	find  atomic.Int32
	gate  chan struct{}
	addrs []string
}

func (g *gateTable) Get(ctx context.Context, key string) ([]byte, error) {
	g.gets.Add(1)
	select {
	case <-g.gate:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return g.cloudTable.Get(ctx, key)
}

func (g *gateTable) FindPeer(context.Context, identity.DeviceID) ([]string, error) {
	g.find.Add(1)
	if g.addrs == nil {
		return nil, node.ErrNoAddress
	}
	return g.addrs, nil
}

func TestQuestionsAboutOneDeviceAreOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTownAt(t, 1, 20, nil, time.Now)
		p := w.join(w.dir(1, memDB(t)))
		w.step(p)
		g := &gateTable{cloudTable: p.table, gate: make(chan struct{})}
		p.nets.list()[0].setDHT(g)
		rec := deviceRecord(t, 2, 2, time.Now(), 0)
		other := &cloudTable{w.cloud, w.cloud.add([32]byte{5}, device(2))}
		require.NoError(t, other.Put(t.Context(), identity.DeviceRecordKey(device(2)), rec.Raw()))
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				got, err := p.FetchDevice(context.Background(), device(2))
				if err != nil || got.Seq != rec.Seq {
					t.Errorf("%v, %v", got.Seq, err)
				}
			})
		}
		impatient, cancel := context.WithCancel(context.Background())
		wg.Go(func() {
			if _, err := p.FetchDevice(impatient, device(2)); !errors.Is(err, context.Canceled) {
				t.Errorf("who left got %v", err)
			}
		})
		synctest.Wait()
		cancel()
		synctest.Wait()
		close(g.gate)
		wg.Wait()
		require.EqualValues(t, 1, g.gets.Load())

		// When all have left the question is cut off, and whoever comes next asks anew.
		g.gate = make(chan struct{})
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := p.FetchDevice(ctx, device(3))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		close(g.gate)
		_, err = p.FetchDevice(context.Background(), device(3))
		require.ErrorIs(t, err, ErrNotFound)
		require.EqualValues(t, 3, g.gets.Load())
		require.Empty(t, p.flights.m)
	})
}

func TestNewestOfTwoNetworks(t *testing.T) {
	w, v := newTown(t, 1, 10), newTown(t, 1, 10)
	v.link.Name = "elsewhere"
	p := w.come(1)
	_, _, err := p.JoinNetwork(t.Context(), v.link.String())
	require.NoError(t, err)
	_, err = p.FetchDevice(t.Context(), device(2))
	require.ErrorIs(t, err, ErrNotFound)
	p.nets.list()[1].setDHT(&cloudTable{v.cloud, v.cloud.add([32]byte{5}, device(1))})
	older, newer := deviceRecord(t, 2, 2, w.now(), 0), deviceRecord(t, 2, 2, w.now().Add(time.Hour), 0)
	for c, r := range map[*cloud]identity.DeviceRecord{w.cloud: older, v.cloud: newer} {
		other := &cloudTable{c, c.add([32]byte{6}, device(2))}
		require.NoError(t, other.Put(t.Context(), identity.DeviceRecordKey(device(2)), r.Raw()))
	}
	got, err := p.FetchDevice(t.Context(), device(2))
	require.NoError(t, err)
	require.Equal(t, newer.Raw(), got.Raw())
	// One network that does not answer holds up nobody for long.
	slow := &gateTable{cloudTable: p.table, gate: make(chan struct{})}
	p.nets.list()[0].setDHT(slow)
	start := time.Now()
	_, err = p.FetchDevice(t.Context(), device(2))
	require.NoError(t, err)
	require.Less(t, time.Since(start), lookupTimeout/2)
	require.Zero(t, len(p.flights.m))
}

func TestLocateAsksOnlyNowAndThen(t *testing.T) {
	w := newTown(t, 1, 20)
	p := w.come(1)
	g := &gateTable{cloudTable: p.table, gate: make(chan struct{})}
	close(g.gate)
	p.nets.list()[0].setDHT(g)
	for range 5 {
		require.ErrorIs(t, p.Locate(t.Context(), device(2)), ErrNotFound)
	}
	require.EqualValues(t, 1, g.gets.Load())
	// Pauses double; a network that comes back ends them.
	for range 24 {
		w.clock.add(time.Hour / 4)
		require.ErrorIs(t, p.Locate(t.Context(), device(2)), ErrNotFound)
		require.ErrorIs(t, p.Locate(t.Context(), device(2)), ErrNotFound)
	}
	require.EqualValues(t, 25, g.gets.Load())
	p.bootstrapUp(bootKey(0).ID())
	require.ErrorIs(t, p.Locate(t.Context(), device(2)), ErrNotFound)
	require.EqualValues(t, 26, g.gets.Load())

	// Its record appears; without one the table itself may know.
	rec := deviceRecord(t, 2, 2, w.now(), 0, "/ip4/11.0.0.5/tcp/5")
	other := &cloudTable{w.cloud, w.cloud.add([32]byte{5}, device(2))}
	require.NoError(t, other.Put(t.Context(), identity.DeviceRecordKey(device(2)), rec.Raw()))
	w.clock.add(time.Hour)
	require.NoError(t, p.Locate(t.Context(), device(2)))
	require.NoError(t, p.Locate(t.Context(), device(2)))
	g.addrs = []string{"/ip4/11.0.0.6/tcp/6"}
	require.NoError(t, p.Locate(t.Context(), device(3)))
	for i := range maxLocations + 50 {
		p.places.note(device(5000+i), nil, w.now())
	}
	require.LessOrEqual(t, len(p.places.m), maxLocations)
}

// Contacts' records are looked up anew in the background, so that the table is on nobody's way when it matters.
func TestContactsAreRefreshed(t *testing.T) {
	w := newTown(t, 1, 30)
	w.start(0, memDB(t), true)
	alice := w.come(1)
	carol := w.come(3, 1)
	carol.Hint(account(1), device(1), nil)
	w.pass(time.Hour)
	before, ok := carol.DeviceRecord(device(1))
	require.True(t, ok)
	alice.SetDevice(DeviceInfo{Mailboxes: []identity.MailboxRef{{Device: bootKey(0).ID()}}})
	w.pass(time.Minute)
	gets := func() int {
		w.cloud.mu.Lock()
		defer w.cloud.mu.Unlock()
		return w.cloud.gets[identity.DeviceRecordKey(device(1))]
	}
	asked := gets()
	w.pass(refetch)
	after, ok := carol.DeviceRecord(device(1))
	require.True(t, ok)
	require.Greater(t, after.Seq, before.Seq)
	require.LessOrEqual(t, gets()-asked, 2, "not more often than it must")
	// A contact's record that is gone from the table is put back.
	w.cloud.mu.Lock()
	for _, n := range w.cloud.nodes {
		if n != carol.table.self {
			clear(n.store)
		}
	}
	w.cloud.mu.Unlock()
	clear(carol.table.self.store)
	alice.stop()
	w.pass(refetch + time.Hour)
	require.Greater(t, w.cloud.holders(identity.DeviceRecordKey(device(1)), after.Raw()), cloudClosest/2)
	require.False(t, carol.devs.found(device(1)).IsZero())
}
