package storage

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// A process that is killed while Badger makes a new log file leaves one without size, or one without header. Neither
// keeps the database from opening, nor loses what is in it.
func TestKilledWhileALogWasMade(t *testing.T) {
	for _, size := range []int64{0, 2 * memTableSize} {
		for _, kind := range []string{"%05d.mem", "%06d.vlog"} {
			t.Run(fmt.Sprint(kind, " of ", size), func(t *testing.T) {
				dir := t.TempDir()
				db := openAt(t, Config{Dir: dir})
				set(t, db, "k", "v")
				require.NoError(t, db.Close())
				for round := range 3 {
					old, err := filepath.Glob(filepath.Join(dir, "*"+filepath.Ext(kind)))
					require.NoError(t, err)
					next := 1
					if len(old) > 0 {
						_, err := fmt.Sscanf(filepath.Base(slices.Max(old)), kind, &next)
						require.NoError(t, err)
						next++
					}
					path := filepath.Join(dir, fmt.Sprintf(kind, next))
					require.NoError(t, os.WriteFile(path, nil, 0o600))
					require.NoError(t, os.Truncate(path, size))
					db = openAt(t, Config{Dir: dir})
					require.Equal(t, "v", get(t, db, "k"))
					set(t, db, fmt.Sprint("round ", round), "v")
					require.NoError(t, db.Close())
				}
				db = openAt(t, Config{Dir: dir})
				for round := range 3 {
					require.Equal(t, "v", get(t, db, fmt.Sprint("round ", round)))
				}
			})
		}
	}
}

// TestNoCompactionWaitsForAStart: tables that others left are compacted when more is written, up to a point.
func TestNoCompactionWaitsForAStart(t *testing.T) {
	dir := t.TempDir()
	require.Zero(t, levelZeroTablesOf(dir))
	for i := range 6 {
		db := openAt(t, Config{Dir: dir})
		levels := db.badger.Levels()
		require.Equal(t, levelZeroTablesOf(dir), levels[0].NumTables)
		require.Equal(t, i, levels[0].NumTables, "none was compacted")
		require.Less(t, levels[0].Score, 1.0, "none is going to be")
		set(t, db, fmt.Sprint("k", i), string(make([]byte, journalGroup)))
		require.NoError(t, db.Close())
	}
	require.Equal(t, levelZeroTables, patience(0))
	require.Equal(t, levelZeroLate, patience(levelZeroLate), "it is not put off for ever")
	require.Less(t, levelZeroLate, levelZeroStall)
}
