package daemon

import (
	"errors"
	"os"
	"path/filepath"
)

// Running reports whether a node holds the profile. It is true from before the socket is there until after it is gone,
// so whoever stopped a node waits for this before touching the profile's folder. Asking takes the lock for a moment: a
// node that starts just then may be refused with ErrRunning and is started again.
func Running(home, profile string) (bool, error) {
	dir, err := profileDir(home, profile)
	if err != nil {
		return false, err
	}
	if _, err := os.Stat(filepath.Join(dir, lockFile)); errors.Is(err, os.ErrNotExist) {
		return false, nil // and none is made: the folder may be about to go
	}
	release, err := lockProfile(dir)
	switch {
	case errors.Is(err, ErrRunning):
		return true, nil
	case errors.Is(err, os.ErrNotExist):
		return false, nil
	case err != nil:
		return false, err
	}
	return false, release()
}
