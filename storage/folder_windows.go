package storage

import (
	"errors"
	"fmt"
	"math"
	"os"
	"syscall"
)

// errSharing is ERROR_SHARING_VIOLATION.
const errSharing = syscall.Errno(32)

// lockFolder opens the lock file so that nobody else can. The system closes it with the process.
func lockFolder(path string) (release func() error, err error) {
	name, err := syscall.UTF16PtrFromString(path)
	if err != nil {
		return nil, fmt.Errorf("opening the lock file: %w", err)
	}
	h, err := syscall.CreateFile(name, syscall.GENERIC_READ|syscall.GENERIC_WRITE, 0, nil, syscall.OPEN_ALWAYS, syscall.FILE_ATTRIBUTE_NORMAL, 0)
	if errors.Is(err, errSharing) {
		return nil, ErrLocked
	}
	if err != nil {
		return nil, fmt.Errorf("opening the lock file: %w", err)
	}
	return os.NewFile(uintptr(h), path).Close, nil
}

// syncFolder has nothing to do: the names of files are durable with the files.
func syncFolder(string) error { return nil }

// freeSpace is not asked for on Windows: the system answers writes to a full disk with errors.
func freeSpace(string) (uint64, error) { return math.MaxUint64, nil }
