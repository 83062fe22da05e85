package storage

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestCacheOfAFullDisk: what nobody can write for a while does not grow beyond what Badger takes at once, and nobody's function
// is lost because of it.
func TestCacheOfAFullDisk(t *testing.T) {
	db := openAt(t, Config{Dir: t.TempDir()})
	full := func(minFree uint64) {
		rested(db)
		db.config.MinFree, db.spaceAt = minFree, time.Time{}
	}
	full(1 << 62)
	for i := range 4 {
		err := db.Cache(func(tx *Tx) error { return tx.Set([]byte{byte('a' + i)}, make([]byte, maxGroupBytes/3)) })
		if err != nil {
			require.ErrorIs(t, err, ErrTooLarge)
		}
	}
	full(1)
	done := make(chan error, 1)
	db.SubmitHere(func(tx *Tx) error { return tx.Set([]byte("x"), []byte("1")) }, func(err error) { done <- err })
	select {
	case err := <-done:
		require.NoError(t, err)
	case <-time.After(5 * time.Second):
		t.Fatal("the function was lost")
	}
	require.Equal(t, "1", get(t, db, "x"))
	require.Len(t, get(t, db, "a"), maxGroupBytes/3)
}
