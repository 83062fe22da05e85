package storage

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
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
