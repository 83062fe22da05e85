package storage

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/dgraph-io/badger/v4"
)

// dropEmptyLogs removes log files without a single byte. Badger makes a log file and gives it its size and header in
// separate steps, also each time it opens, and refuses to open one that has none: a process killed between the two
// steps would otherwise never start again. Such a file never held anything.
func dropEmptyLogs(dir string) error {
	names, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("listing the database folder: %w", err)
	}
	for _, n := range names {
		if !strings.HasSuffix(n.Name(), ".vlog") && !strings.HasSuffix(n.Name(), ".mem") {
			continue
		}
		if info, err := n.Info(); err != nil || !info.Mode().IsRegular() || info.Size() != 0 {
			continue
		}
		if err := os.Remove(filepath.Join(dir, n.Name())); err != nil {
			return fmt.Errorf("removing an empty log: %w", err)
		}
	}
	return nil
}

// levelZeroTablesOf counts the tables that wait to be compacted, 0 if that cannot be told: opening then says why.
func levelZeroTablesOf(dir string) int {
	if dir == "" {
		return 0
	}
	file, err := os.Open(filepath.Join(dir, badger.ManifestFilename))
	if err != nil {
		return 0
	}
	defer file.Close()
	manifest, _, err := badger.ReplayManifestFile(file, 0, badger.DefaultOptions(dir).WithLogger(nil))
	if err != nil || len(manifest.Levels) == 0 {
		return 0
	}
	return len(manifest.Levels[0].Tables)
}

// patience is the number of tables in level 0 that sets off a compaction, when there are so many at the start. Each process
// leaves one when it closes, and if that was the one too many, the next would begin with seconds of work just when somebody
// waits for his first screen. So that it comes while something is written instead, or at every tenth start.
func patience(there int) int { return min(max(levelZeroTables, there+1), levelZeroLate) }
