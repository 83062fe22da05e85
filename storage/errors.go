package storage

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/dgraph-io/badger/v4"
)

var (
	// ErrLocked is returned by Open when another process, or another DB of this one, has the folder open.
	ErrLocked = errors.New("database is in use by another process")
	// ErrWrongKey is returned by Open when the key is not the one the database was made with.
	ErrWrongKey = errors.New("database key does not fit")
	// ErrNewer is returned by Open when a newer version of the program wrote the database. Nothing was changed.
	ErrNewer = errors.New("database was written by a newer version")
	// ErrDamaged is returned by Open when files are missing or do not verify. Nothing was overwritten.
	ErrDamaged = errors.New("database is damaged")
	// ErrDiskFull is returned by Open and by writes when less space is left than a flush may need. Reading goes on.
	ErrDiskFull = errors.New("disk is full")
	// ErrNotFound is returned by Tx.Get for a key that has no value.
	ErrNotFound = errors.New("key not found")
	// ErrReadOnly is returned by Set and Delete inside View.
	ErrReadOnly = errors.New("transaction is read-only")
	// ErrTooLarge is returned when one function writes more than one Badger transaction can hold. None of it is kept.
	ErrTooLarge = errors.New("too many writes in one transaction")
	// ErrClosed is returned by every call after Close has begun.
	ErrClosed = errors.New("database is closed")
	// ErrFailed is returned by writes after a commit failed: what reached the disk is then unknown until the next Open.
	ErrFailed = errors.New("database stopped after a failed commit")
	// ErrPanic wraps a panic of a function given to Update, Submit or Cache. Its writes are discarded.
	ErrPanic = errors.New("panic in transaction")
)

// openError sorts Badger's opening errors into ours. Badger does not always wrap causes, so what carries no known
// cause counts as damage: a folder that cannot be opened and is not locked, full or forbidden cannot be read.
func openError(err error) error {
	switch {
	case errors.Is(err, badger.ErrEncryptionKeyMismatch):
		return ErrWrongKey
	case errors.Is(err, syscall.ENOSPC):
		return errors.Join(ErrDiskFull, err)
	case errors.Is(err, fs.ErrPermission):
		return err
	}
	return errors.Join(ErrDamaged, err)
}

// missing says whether a database folder has lost its manifest but still has tables or logs. Badger would take it for
// a new database and delete what it does not know.
func missing(dir string) bool {
	if _, err := os.Stat(dir + string(os.PathSeparator) + badger.ManifestFilename); err == nil {
		return false
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, n := range names {
		for _, end := range []string{".sst", ".mem", ".vlog"} {
			if strings.HasSuffix(n.Name(), end) {
				return true
			}
		}
		if n.Name() == badger.KeyRegistryFileName {
			return true
		}
	}
	return false
}
