package daemon

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/identity"
	"hima/internal/directory"
	"hima/storage"
)

// TestOwnDevicesOfACopy: before the key of a copy is given up it is known which devices are one's own, so that what only they have is not taken
// for delivered (R14): those listed, those revoked, and the former keys of this one.
func TestOwnDevicesOfACopy(t *testing.T) {
	v, _, err := identity.NewVault("alice", time.Now())
	require.NoError(t, err)
	account, ok := v.AccountKey()
	require.True(t, ok)
	device := func(n byte) identity.DeviceID { return identity.DeviceKeyFromSeed([32]byte{n}).ID() }
	phone, lost, before := device(1), device(2), device(3)
	v.Former = []identity.DeviceID{before}
	db, err := storage.Open(storage.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	own, err := ownDevices(db, v)
	require.NoError(t, err)
	require.Equal(t, []identity.DeviceID{before}, own, "nothing else is known yet")

	record, err := identity.NewAccountRecord(account, identity.RecordConfig{
		Now: time.Now(), Devices: []identity.Certificate{v.Certificate, identity.NewCertificate(account, phone, time.Now())}, Revoked: []identity.DeviceID{lost},
	})
	require.NoError(t, err)
	d, err := directory.New(directory.Config{DB: db, Certificate: v.Certificate})
	require.NoError(t, err)
	_, err = d.Admit(t.Context(), record.Raw())
	require.NoError(t, err)
	own, err = ownDevices(db, v)
	require.NoError(t, err)
	require.ElementsMatch(t, []identity.DeviceID{before, v.DeviceKey.ID(), phone, lost}, own)
}
