package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// writeUnsynced makes msync of the newest value log fail, writes, and says whether the write was refused as it must be.
// A hole in the mapping does that; it is never filled again, so this is the whole life of a process.
func writeUnsynced(dir string) int {
	db, err := Open(Config{Dir: dir, Key: testKey()})
	if err == nil {
		err = db.Update(context.Background(), func(tx *Tx) error { return tx.Set([]byte("k"), []byte("small")) })
	}
	if err == nil {
		err = punch(dir)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	small := db.Update(context.Background(), func(tx *Tx) error { return tx.Set([]byte("k"), make([]byte, 2*journalGroup)) })
	later := db.Update(context.Background(), func(tx *Tx) error { return tx.Set([]byte("k"), nil) })
	if !errors.Is(small, ErrFailed) || !errors.Is(later, ErrFailed) {
		fmt.Println("written:", small, later)
		return 1
	}
	return 0
}

// punch unmaps the last page of the newest value log, which nobody has written to yet.
func punch(dir string) error {
	logs, err := filepath.Glob(filepath.Join(dir, "*.vlog"))
	if err != nil || len(logs) == 0 {
		return fmt.Errorf("no value log: %w", err)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	for line := range bytes.Lines(maps) {
		if !strings.HasSuffix(strings.TrimSpace(string(line)), logs[len(logs)-1]) {
			continue
		}
		bounds, _, _ := strings.Cut(string(line), " ")
		_, to, _ := strings.Cut(bounds, "-")
		end, err := strconv.ParseUint(to, 16, 64)
		if err != nil {
			return err
		}
		page := uintptr(os.Getpagesize())
		if _, _, errno := syscall.Syscall(syscall.SYS_MUNMAP, uintptr(end)-page, page, 0); errno != 0 {
			return errno
		}
		return nil
	}
	return errors.New("the newest value log is not mapped")
}

// TestValueLogThatIsNotSynced: Badger logs that the value log could not be synced and says that it committed.
func TestValueLogThatIsNotSynced(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), punchDir+"="+dir)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}
