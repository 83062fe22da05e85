package storage

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Layers of the journal are put in order by whoever scans them first, and several may be that.
func TestManyScanFreshLayers(t *testing.T) {
	db := openAt(t, Config{Dir: t.TempDir()})
	for i := range 20 {
		require.NoError(t, db.Update(t.Context(), func(tx *Tx) error {
			for k := range 20 {
				if err := tx.Set(fmt.Appendf(nil, "k/%02d/%02d", k, i), []byte{byte(i)}); err != nil {
					return err
				}
			}
			return nil
		}))
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				var keys []string
				err := db.View(func(tx *Tx) error {
					return tx.Scan(ScanOptions{Prefix: []byte("k/")}, func(k, _ []byte) (bool, error) {
						keys = append(keys, string(k))
						return true, nil
					})
				})
				assert.NoError(t, err)
				assert.Len(t, keys, 20*(i+1))
				assert.True(t, slices.IsSorted(keys))
			})
		}
		wg.Wait()
	}
}

// Nothing is compacted in memory, and writing never waits for it.
func TestMemoryTakesManyTables(t *testing.T) {
	db := openAt(t, Config{MemTable: minMemTable})
	value := make([]byte, 256<<10)
	n := 2 * levelZeroStall * minMemTable / len(value)
	for i := range n {
		value[0] = byte(i)
		require.NoError(t, db.Update(t.Context(), func(tx *Tx) error {
			return tx.Set(fmt.Appendf(nil, "k/%d", i%100), value)
		}))
	}
	got := 0
	require.NoError(t, db.View(func(tx *Tx) error {
		return tx.Scan(ScanOptions{Prefix: []byte("k/")}, func(k, v []byte) (bool, error) {
			var key int
			_, err := fmt.Sscanf(string(k), "k/%d", &key)
			require.NoError(t, err)
			require.Equal(t, byte(key+(n-1-key)/100*100), v[0], "the newest")
			got++
			return true, nil
		})
	}))
	require.Equal(t, 100, got)
}
