package storage

import (
	"bufio"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTablesAreReleased(t *testing.T) {
	for _, size := range []int{valueThreshold / 2, 2 * valueThreshold} { // in tables, in value logs
		t.Run(fmt.Sprint(size), func(t *testing.T) { testReleased(t, size) })
	}
}

func testReleased(t *testing.T, size int) {
	dir := t.TempDir()
	db, err := Open(Config{Dir: dir, Key: testKey()})
	require.NoError(t, err)
	for i := range 40 {
		require.NoError(t, db.Update(t.Context(), func(tx *Tx) error {
			for k := range 100 {
				if err := tx.Set(fmt.Appendf(nil, "k/%d/%d", i, k), make([]byte, size)); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	require.NoError(t, db.Close())
	db = openAt(t, Config{Dir: dir})
	read := func() (n int) {
		require.NoError(t, db.View(func(tx *Tx) error {
			return tx.Scan(ScanOptions{Prefix: []byte("k/")}, func(_, v []byte) (bool, error) {
				require.Len(t, v, size)
				n++
				return true, nil
			})
		}))
		return n
	}
	require.Equal(t, 4000, read())
	full := residentTables(t, dir)
	require.Greater(t, full, 4000*size>>11)
	require.NoError(t, releaseTables(dir))
	if left := residentTables(t, dir); left > full/2 {
		t.Skipf("this kernel keeps the pages: %d of %d kB", left, full)
	}
	require.Equal(t, 4000, read(), "everything reads as before")
	resident, err := mappedResident()
	require.NoError(t, err)
	require.NotZero(t, resident)
}

// What is asked for in a value log is read and not megabytes beside it, also in one that was begun later.
func TestValueLogsAreReadScattered(t *testing.T) {
	dir := t.TempDir()
	db := openAt(t, Config{Dir: dir})
	for begun := len(scattered(t, dir)); len(scattered(t, dir)) == begun; {
		require.NoError(t, db.Update(t.Context(), func(tx *Tx) error {
			return tx.Set(fmt.Appendf(nil, "k/%d", time.Now().UnixNano()), make([]byte, 256<<10))
		}))
	}
	require.Contains(t, slices.Collect(maps.Values(scattered(t, dir))), false, "the new one")
	db.adviseReading()
	for name, at := range scattered(t, dir) {
		require.True(t, at, name)
	}
}

// scattered says of each mapped value log in dir whether the kernel reads no more of it than what is asked for.
func scattered(t *testing.T, dir string) map[string]bool {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/smaps")
	require.NoError(t, err)
	out, name := map[string]bool{}, ""
	for line := range strings.Lines(string(raw)) {
		line = strings.TrimSpace(line)
		if at := strings.Index(line, dir); at >= 0 {
			name = line[at:]
		}
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok && strings.HasSuffix(name, ".vlog") {
			out[name] = slices.Contains(strings.Fields(flags), "rr")
			name = ""
		}
	}
	return out
}

// residentTables adds up the resident kilobytes of the tables and value logs in dir.
func residentTables(t *testing.T, dir string) (kb int) {
	t.Helper()
	f, err := os.Open("/proc/self/smaps")
	require.NoError(t, err)
	defer f.Close()
	in := false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		if strings.Contains(line, "-") && strings.Contains(line, " ") && !strings.Contains(line, ": ") {
			in = strings.Contains(line, dir) && (strings.HasSuffix(line, ".sst") || strings.HasSuffix(line, ".vlog"))
		}
		var n int
		if _, err := fmt.Sscanf(line, "Rss: %d kB", &n); err == nil && in {
			kb += n
		}
	}
	return kb
}
