package daemon

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRunning(t *testing.T) {
	home := t.TempDir()
	is := func() bool {
		t.Helper()
		running, err := Running(home, "alice")
		require.NoError(t, err)
		return running
	}
	require.False(t, is())
	dir, err := profileDir(home, "alice")
	require.NoError(t, err)
	require.NoDirExists(t, dir, "asking makes nothing")
	require.NoError(t, os.MkdirAll(dir, 0o700))
	require.False(t, is())
	require.NoFileExists(t, filepath.Join(dir, lockFile))

	release, err := lockProfile(dir)
	require.NoError(t, err)
	require.True(t, is())
	require.NoError(t, release())
	require.False(t, is())
	_, err = Running(home, "../alice")
	require.ErrorIs(t, err, ErrBadProfile)
}
