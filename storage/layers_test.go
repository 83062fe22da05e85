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
