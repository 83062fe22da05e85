package daemon

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"

	"golang.org/x/sys/windows"
)

// ErrRunning is returned by Run when another process holds the profile.
var ErrRunning = errors.New("the node of this profile is running already")

// syncDir does nothing: NTFS orders renames by its own journal and folders cannot be synced.
func syncDir(string) error { return nil }

// lockProfile takes the lock of a profile's folder, which goes with the process. It returns ErrRunning.
func lockProfile(dir string) (release func() error, err error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the lock: %w", err)
	}
	err = windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &windows.Overlapped{})
	if err != nil {
		_ = f.Close()
		if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
			return nil, ErrRunning
		}
		return nil, fmt.Errorf("locking the profile: %w", err)
	}
	return f.Close, nil
}

// spaceTaken is a file's length.
func spaceTaken(info os.FileInfo) uint64 { return uint64(info.Size()) }

// freeSpace is how many bytes this user may still write where dir lies; the most there is if nobody can tell.
func freeSpace(dir string) uint64 {
	path, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return math.MaxInt64
	}
	var free uint64
	if windows.GetDiskFreeSpaceEx(path, &free, nil, nil) != nil {
		return math.MaxInt64
	}
	return free
}
