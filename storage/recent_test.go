package storage

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// inCommitter reads a key as a function given to Update does; "-" when there is none.
func inCommitter(t *testing.T, db *DB, key string) (value string) {
	t.Helper()
	require.NoError(t, db.Update(t.Context(), func(tx *Tx) error {
		v, err := tx.Get([]byte(key))
		has, err2 := tx.Has([]byte(key))
		if has == errors.Is(err, ErrNotFound) {
			return fmt.Errorf("has %v, but %w", has, err)
		}
		if value = string(v); !has {
			value, err = "-", nil
		}
		return errors.Join(err, err2)
	}))
	return value
}

func TestCommitterRemembersWhatIsOnDisk(t *testing.T) {
	db := openAt(t, Config{Dir: t.TempDir()})
	own := errors.New("own")
	discard := func(f func(tx *Tx) error) {
		err := db.Update(t.Context(), func(tx *Tx) error { return errors.Join(f(tx), own) })
		require.ErrorIs(t, err, own)
	}
	require.Equal(t, "-", inCommitter(t, db, "k"))
	discard(func(tx *Tx) error { return tx.Set([]byte("k"), []byte("discarded")) })
	require.Equal(t, "-", inCommitter(t, db, "k"))
	set(t, db, "k", "1")
	require.Equal(t, "1", inCommitter(t, db, "k"))
	discard(func(tx *Tx) error { return tx.Delete([]byte("k")) })
	require.Equal(t, "1", inCommitter(t, db, "k"))
	large := string(make([]byte, recentRow+1))
	set(t, db, "k", large)
	require.Equal(t, large, inCommitter(t, db, "k"))
	set(t, db, "k", "2")
	require.NoError(t, db.Update(t.Context(), func(tx *Tx) error { return tx.Delete([]byte("k")) }))
	require.Equal(t, "-", inCommitter(t, db, "k"))
	// What the cache says comes before what the disk is known to say.
	require.NoError(t, db.Cache(func(tx *Tx) error { return tx.Set([]byte("n"), []byte("1")) }))
	require.Equal(t, "1", inCommitter(t, db, "n"))
	require.NoError(t, db.Cache(func(tx *Tx) error { return tx.Delete([]byte("n")) }))
	require.Equal(t, "-", inCommitter(t, db, "n"))
}

// TestCommitterForgets: what is remembered is bounded, also when nothing but absence is.
func TestCommitterForgets(t *testing.T) {
	db := openAt(t, Config{})
	for i := range 3 * recentRows {
		require.Equal(t, "-", inCommitter(t, db, fmt.Sprint("absent ", i)))
	}
	require.LessOrEqual(t, len(db.recent.rows), recentRows)
	value := string(make([]byte, recentRow))
	for i := range 2 * recentBytes / recentRow {
		key := fmt.Sprint("large ", i)
		set(t, db, key, value)
		require.Equal(t, value, inCommitter(t, db, key))
		require.LessOrEqual(t, db.recent.bytes, recentBytes+2*recentRow)
	}
}
