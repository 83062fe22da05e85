package directory

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/identity"
)

func TestPublishedEveryTwelveHours(t *testing.T) {
	w := newTown(t, 1, 30)
	alice := w.come(1)
	keys := []string{identity.AccountRecordKey(account(1)), identity.DeviceRecordKey(device(1))}
	w.pass(time.Minute)
	for _, key := range keys {
		require.Equal(t, 1, w.cloud.countPuts(key))
		require.Equal(t, cloudClosest, w.cloud.holders(key, raw(t, alice, key))-1, "here and at the closest")
	}
	w.pass(10 * time.Hour)
	for _, key := range keys {
		require.Equal(t, 2, w.cloud.countPuts(key), "a new record is put once more, soon")
	}
	w.pass(62 * time.Hour)
	for _, key := range keys {
		n := w.cloud.countPuts(key)
		require.GreaterOrEqual(t, n, 7)
		require.LessOrEqual(t, n, 9)
		require.Equal(t, cloudClosest, w.cloud.holders(key, raw(t, alice, key))-1)
	}
}

func raw(t *testing.T, p *person, key string) []byte {
	t.Helper()
	for _, it := range p.ownItems(p.nets.list()[0]) {
		if it.key == key {
			return it.raw
		}
	}
	t.Fatal("no such item: " + key)
	return nil
}

// A put that returned nil and stored nothing is found out and made again.
func TestSwallowedPutIsRepeated(t *testing.T) {
	w := newTown(t, 1, 20)
	for _, n := range w.cloud.nodes {
		n.lie = func(string) []byte { return nil }
	}
	alice := w.come(1)
	key := identity.DeviceRecordKey(device(1))
	w.pass(10 * time.Minute)
	require.True(t, alice.Networks()[0].Published.IsZero())
	first := w.cloud.countPuts(key)
	require.Positive(t, first)
	w.pass(24 * time.Hour)
	n := w.cloud.countPuts(key)
	require.Greater(t, n, 20, "it goes on")
	require.Less(t, n, 24*3, "and costs no more than it must")
	for _, n := range w.cloud.nodes {
		n.lie = nil
	}
	w.pass(31 * time.Minute)
	require.False(t, alice.Networks()[0].Published.IsZero())
	require.Greater(t, w.cloud.holders(key, raw(t, alice, key)), 5)
}

// busyTable lets something happen while a record is put.
type busyTable struct {
	*cloudTable
	during func()
}

func (b busyTable) Put(ctx context.Context, key string, value []byte) error {
	b.during()
	return b.cloudTable.Put(ctx, key, value)
}

// Nothing counts as published that is about to be made anew, or was made anew while another record was put.
func TestNothingIsPublishedThatIsPending(t *testing.T) {
	w := newTown(t, 1, 30)
	alice := w.come(1)
	j := alice.nets.list()[0]
	published := func() bool { return !alice.Networks()[0].Published.IsZero() }
	require.False(t, published())
	w.pass(time.Minute)
	require.True(t, published())

	alice.SetDevice(DeviceInfo{Mailboxes: []identity.MailboxRef{{Device: bootKey(3).ID()}}})
	require.False(t, published(), "the record that says so is not made yet")
	own, _ := alice.Record(account(1))
	next, err := identity.NewAccountRecord(accountKey(1), identity.RecordConfig{LastSeq: own.Seq, Now: w.now(), Devices: own.Devices})
	require.NoError(t, err)
	require.NoError(t, alice.SetOwn(t.Context(), next))
	alice.publishDue(t.Context(), j, busyTable{alice.table, func() { require.NoError(t, alice.renewDevice(t.Context())) }})
	require.Equal(t, cloudClosest, w.cloud.holders(identity.AccountRecordKey(account(1)), next.Raw())-1)
	require.Zero(t, w.cloud.holders(identity.DeviceRecordKey(device(1)), alice.own.record().Raw()))
	require.False(t, published(), "it is made, and nobody holds it")
	alice.publishDue(t.Context(), j, alice.table)
	require.True(t, published())

	// What turns out to say the same is published without another put.
	told := len(alice.online)
	alice.SetDevice(DeviceInfo{Mailboxes: []identity.MailboxRef{{Device: bootKey(3).ID()}}})
	require.False(t, published())
	require.NoError(t, alice.renewDevice(t.Context()))
	require.True(t, published())
	alice.publishDue(t.Context(), j, alice.table)
	require.Len(t, alice.online, told, "and is no news")
}

// A device whose disk was set back makes its next record above what the world has (R18).
func TestOwnRecordIsMadeAboveWhatTheWorldHas(t *testing.T) {
	w := newTown(t, 1, 20)
	alice := w.come(1)
	alice.SetDevice(DeviceInfo{Mailboxes: []identity.MailboxRef{{Device: bootKey(3).ID()}}})
	w.pass(time.Minute)
	// The clock of that time ran ahead, too: only the number says which one is newer.
	later, err := identity.NewDeviceRecord(alice.cfg.Key, identity.DeviceRecordConfig{
		Certificate: alice.cfg.Certificate, LastSeq: alice.own.record().Seq + 1<<30, Now: w.now(),
	})
	require.NoError(t, err)
	key := identity.DeviceRecordKey(device(1))
	other := &cloudTable{w.cloud, w.cloud.add([32]byte{5}, device(2))}
	require.NoError(t, other.Put(t.Context(), key, later.Raw()))
	w.pass(13 * time.Hour)
	rec := alice.own.record()
	require.Greater(t, rec.Seq, later.Seq)
	require.Len(t, rec.Mailboxes, 1, "it says what we say")
	require.GreaterOrEqual(t, w.cloud.holders(key, rec.Raw()), cloudClosest)
	got, err := w.come(3).FetchDevice(t.Context(), device(1))
	require.NoError(t, err)
	require.Equal(t, rec.Raw(), got.Raw())
}

// What the own record said is kept over a restart until somebody says otherwise.
func TestOwnRecordSurvivesARestart(t *testing.T) {
	w := newTown(t, 1, 20)
	db := memDB(t)
	alice := w.join(w.dir(1, db))
	w.step(alice)
	key := identity.GeneratePrekey().Public()
	alice.SetDevice(DeviceInfo{Prekey: key, PrekeyCreated: w.now(), Mailboxes: []identity.MailboxRef{{Device: bootKey(0).ID()}}})
	w.pass(time.Minute)
	before := alice.own.record()
	require.Equal(t, key, before.Prekey)
	alice.stop()
	alice = w.dir(1, db)
	w.step(alice)
	w.pass(time.Hour)
	require.Equal(t, before.Raw(), alice.own.record().Raw(), "nothing changed: the same record is put again")
	// It is made anew long before it ends.
	w.clock.add(identity.DeviceRecordLifetime / 2)
	w.pass(time.Hour)
	require.Greater(t, alice.own.record().Seq, before.Seq)
	require.Equal(t, key, alice.own.record().Prekey)
	rec, ok := alice.DeviceRecord(device(1))
	require.True(t, ok)
	require.Equal(t, alice.own.record().Raw(), rec.Raw())
}

// A record of the own account that is older than ours and lists a device that ours does not know of is told (R21).
func TestOlderOwnRecordWithMissingDevices(t *testing.T) {
	w := newTown(t, 1, 20)
	alice := w.dir(1, memDB(t))
	older, err := identity.NewAccountRecord(accountKey(1), identity.RecordConfig{
		Now: w.now().Add(-time.Hour), Devices: []identity.Certificate{cert(1, 1), cert(1, 500)},
	})
	require.NoError(t, err)
	other := &cloudTable{w.cloud, w.cloud.add([32]byte{5}, device(2))}
	key := identity.AccountRecordKey(account(1))
	require.NoError(t, other.Put(t.Context(), key, older.Raw()))
	w.join(alice)
	w.step(alice)
	w.pass(time.Minute)
	require.NotEmpty(t, alice.shown)
	require.Equal(t, older.Raw(), alice.shown[0].Raw())
	// Who merges it is told no more, nor about a device that was revoked.
	told := len(alice.shown)
	ours, _ := alice.Record(account(1))
	merged, err := identity.NewAccountRecord(accountKey(1), identity.RecordConfig{
		LastSeq: ours.Seq, Now: w.now(), Devices: ours.Devices, Revoked: []identity.DeviceID{device(500)},
	})
	require.NoError(t, err)
	require.NoError(t, alice.SetOwn(t.Context(), merged))
	_, err = alice.Admit(t.Context(), older.Raw())
	require.NoError(t, err)
	require.Len(t, alice.shown, told)
	w.pass(13 * time.Hour)
	require.Len(t, alice.shown, told)
	require.GreaterOrEqual(t, w.cloud.holders(key, merged.Raw()), cloudClosest)
}

func TestPublicAddrs(t *testing.T) {
	relay := "/ip4/11.0.0.1/udp/1/quic-v1/p2p/" + bootKey(0).ID().String() + "/p2p-circuit"
	require.Equal(t, []string{relay, "/ip4/11.0.0.2/tcp/1"}, publicAddrs([]string{
		"/ip4/192.168.1.4/tcp/1", "/ip4/11.0.0.2/tcp/1", relay, "/ip4/127.0.0.1/tcp/1", "nonsense", "/ip6/fe80::1/tcp/1",
	}))
	var many []string
	for range 12 {
		many = append(many, relay)
	}
	got := publicAddrs(append(many, "/ip4/11.0.0.2/tcp/1", "/ip4/11.0.0.3/tcp/1"))
	require.Len(t, got, identity.MaxRecordAddrs)
	require.Equal(t, []string{"/ip4/11.0.0.2/tcp/1", "/ip4/11.0.0.3/tcp/1"}, got[6:])
}
