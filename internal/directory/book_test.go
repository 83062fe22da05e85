package directory

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/identity"
	"hima/storage"
)

func TestSeen(t *testing.T) {
	dir := t.TempDir()
	db := openDB(t, dir)
	d := newDirectory(t, db, nil)
	require.True(t, d.LastSeen(device(1)).IsZero())
	require.Empty(t, d.Addrs(device(1)))
	require.Empty(t, d.Devices(account(1)))
	_, ok := d.DeviceAccount(device(1))
	require.False(t, ok)

	d.Seen(cert(1, 1), "/ip4/10.0.0.1/tcp/1", day)
	d.Seen(cert(1, 1), "/ip4/10.0.0.2/tcp/1", day.Add(time.Hour))
	d.Seen(cert(1, 1), "/ip4/10.0.0.1/tcp/1", day.Add(-time.Hour)) // told late
	d.Seen(cert(1, 1), "nonsense", day)
	d.Seen(cert(1, 2), "", day)
	check := func(d *Directory) {
		require.True(t, d.LastSeen(device(1)).Equal(day.Add(time.Hour)))
		require.Equal(t, []string{"/ip4/10.0.0.1/tcp/1", "/ip4/10.0.0.2/tcp/1"}, d.Addrs(device(1)))
		require.ElementsMatch(t, []identity.DeviceID{device(1), device(2)}, d.Devices(account(1)))
		a, ok := d.DeviceAccount(device(2))
		require.True(t, ok)
		require.Equal(t, account(1), a)
	}
	check(d)
	require.NoError(t, db.Close())
	check(newDirectory(t, openDB(t, dir), nil))
}

func TestSeenIgnoresItselfAndNothing(t *testing.T) {
	d := newDirectory(t, openDB(t, ""), nil)
	d.Seen(cert(0, 0), "/ip4/10.0.0.1/tcp/1", day)
	d.Seen(identity.Certificate{}, "/ip4/10.0.0.1/tcp/1", day)
	d.Hint(account(0), device(1), nil)
	require.Zero(t, d.counts.devices.Load())
}

func TestARecordDecidesOverWhatWasHeard(t *testing.T) {
	d := newDirectory(t, openDB(t, ""), nil)
	d.Seen(cert(1, 1), "", day)
	d.Hint(account(1), device(2), []string{"/ip4/10.0.0.9/tcp/9"})
	waitWritten(t, d)
	require.ElementsMatch(t, []identity.DeviceID{device(1), device(2)}, d.Devices(account(1)))
	admit(t, d, record(t, 1, 1, 3))
	require.Equal(t, []identity.DeviceID{device(3)}, d.Devices(account(1)))
	require.False(t, d.Valid(account(1), device(1)))
}

// waitWritten waits for writes that were submitted before.
func waitWritten(t *testing.T, d *Directory) {
	t.Helper()
	require.NoError(t, d.cfg.DB.Update(t.Context(), func(*storage.Tx) error { return nil }))
}

// TestHintInsideATransaction: the messenger notes an invite's addresses in the transaction that makes the contact.
func TestHintInsideATransaction(t *testing.T) {
	d := newDirectory(t, openDB(t, ""), nil)
	require.NoError(t, d.cfg.DB.Update(t.Context(), func(tx *storage.Tx) error {
		d.Hint(account(1), device(1), []string{"/ip4/10.0.0.9/tcp/9"})
		d.Seen(cert(1, 2), "", day)
		return nil
	}))
	waitWritten(t, d)
	require.ElementsMatch(t, []identity.DeviceID{device(1), device(2)}, d.Devices(account(1)))
}

func TestHintsAreBounded(t *testing.T) {
	d := newDirectory(t, openDB(t, ""), nil)
	for i := range 3 * maxHints {
		d.Hint(account(1), device(i), []string{"/ip4/10.0.0.9/tcp/9"})
	}
	waitWritten(t, d)
	devs := d.Devices(account(1))
	require.Len(t, devs, maxHints)
	require.Contains(t, devs, device(3*maxHints-1))
}

// TestForeignCertificateDoesNotTakeADevice: another account may sign a certificate for anybody's device key. It takes
// that device's own word to change whose it is.
func TestForeignCertificateDoesNotTakeADevice(t *testing.T) {
	d := newDirectory(t, openDB(t, ""), nil)
	d.Seen(cert(1, 1), "", day)
	d.Observe(cert(2, 1))
	a, _ := d.DeviceAccount(device(1))
	require.Equal(t, account(1), a)
	d.Seen(cert(2, 1), "", day)
	a, _ = d.DeviceAccount(device(1))
	require.Equal(t, account(2), a)
	require.Empty(t, d.Devices(account(1)), "the old index is gone")
}

func TestAddressesAreBounded(t *testing.T) {
	d := newDirectory(t, openDB(t, ""), nil)
	for i := range 3 * maxAddrs {
		d.Seen(cert(1, 1), fmt.Sprintf("/ip4/10.0.0.%d/tcp/1", i), day)
	}
	d.Seen(cert(1, 1), "/dns4/"+string(make([]byte, maxAddrText))+"/tcp/1", day)
	addrs := d.Addrs(device(1))
	require.LessOrEqual(t, len(addrs), maxAddrs)
	require.Contains(t, addrs, fmt.Sprintf("/ip4/10.0.0.%d/tcp/1", 3*maxAddrs-1))
}

func TestBookIsBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("thousands of signatures")
	}
	contact := account(1)
	d := newDirectory(t, openDB(t, ""), func(c *Config) {
		c.Keep = func(a identity.AccountID) bool { return a == contact }
	})
	d.Seen(cert(1, 1), "/ip4/10.0.0.1/tcp/1", day.Add(-time.Hour))
	k := accountKey(2)
	for i := range maxBook + 300 {
		// One account with any number of devices is as good an attack as any number of accounts.
		d.Seen(identity.NewCertificate(k, device(10+i), day), "/ip4/10.0.0.2/tcp/1", day.Add(time.Duration(i)*time.Second))
	}
	n := 0
	require.NoError(t, d.cfg.DB.View(func(tx *storage.Tx) error {
		return tx.Scan(storage.ScanOptions{Prefix: []byte("d/p/"), KeysOnly: true}, func(_, _ []byte) (bool, error) {
			n++
			return true, nil
		})
	}))
	require.LessOrEqual(t, n, maxBook)
	require.NotEmpty(t, d.Addrs(device(1)), "a contact's addresses stay, however old")
	require.NotEmpty(t, d.Addrs(device(10+maxBook+299)))
	require.Empty(t, d.Addrs(device(10)), "the oldest went")
	require.Len(t, d.Devices(account(2)), maxHints)
}
