//go:build !windows

package daemon

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"syscall"
)

// ErrRunning is returned by Run when another process holds the profile.
var ErrRunning = errors.New("the node of this profile is running already")

// syncDir makes renames in a folder durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("opening %s: %w", filepath.Base(dir), err)
	}
	defer func() { _ = d.Close() }()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) { // some file systems cannot sync folders
		return fmt.Errorf("syncing %s: %w", filepath.Base(dir), err)
	}
	return nil
}

// lockProfile takes the lock of a profile's folder, which goes with the process. It returns ErrRunning.
func lockProfile(dir string) (release func() error, err error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, ErrRunning
		}
		return nil, fmt.Errorf("locking the profile: %w", err)
	}
	return f.Close, nil
}

// spaceTaken is what a file takes of its disk.
func spaceTaken(info os.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Blocks) * 512 // the unit of st_blocks, whatever the file system's own is
	}
	return uint64(info.Size())
}

// freeSpace is how many bytes this user may still write where dir lies; the most there is if nobody can tell.
func freeSpace(dir string) uint64 {
	var s syscall.Statfs_t
	if syscall.Statfs(dir, &s) != nil {
		return math.MaxInt64
	}
	return uint64(s.Bavail) * uint64(s.Bsize) //nolint:unconvert // the types differ between systems
}
