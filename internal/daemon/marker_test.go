package daemon

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func markedProfile(t *testing.T, token []byte) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "alice")
	require.NoError(t, os.MkdirAll(filepath.Join(dir, databaseFolder), 0o700))
	require.NoError(t, writeMarker(dir, token))
	return dir
}

func TestMarkerStays(t *testing.T) {
	token := newToken()
	dir := markedProfile(t, token)
	m, fresh, same, err := readMarker(dir)
	require.NoError(t, err)
	require.False(t, fresh)
	require.True(t, same)
	require.True(t, m.accepts(token))
	require.False(t, m.accepts(newToken()))
	require.False(t, m.accepts(nil))

	next := newToken()
	require.NoError(t, writeMarker(dir, token, next))
	require.NoError(t, writeMarker(dir, next))
	m, _, same, err = readMarker(dir)
	require.NoError(t, err)
	require.True(t, same, "rewriting keeps the file")
	require.False(t, m.accepts(token))
	require.True(t, m.accepts(next))

	moved := filepath.Join(filepath.Dir(dir), "renamed")
	require.NoError(t, os.Rename(dir, moved))
	_, _, same, err = readMarker(moved)
	require.NoError(t, err)
	require.True(t, same, "renaming the folder makes no copy")
}

func TestMarkerTellsCopies(t *testing.T) {
	if ino, _, err := fileBirth(t.TempDir()); err != nil || ino == 0 {
		t.Skip("this system does not tell files apart")
	}
	dir := markedProfile(t, newToken())
	copied := filepath.Join(t.TempDir(), "copy")
	require.NoError(t, os.CopyFS(copied, os.DirFS(dir)))
	_, fresh, same, err := readMarker(copied)
	require.NoError(t, err)
	require.False(t, fresh)
	require.False(t, same)

	// The database alone put back from a backup.
	db := filepath.Join(dir, databaseFolder)
	require.NoError(t, os.Rename(db, db+".old"))
	require.NoError(t, os.MkdirAll(db, 0o700))
	_, _, same, err = readMarker(dir)
	require.NoError(t, err)
	require.False(t, same)
}

func TestMarkerMissingOrBroken(t *testing.T) {
	dir := t.TempDir()
	_, fresh, _, err := readMarker(dir)
	require.NoError(t, err)
	require.True(t, fresh, "nothing there yet")

	require.NoError(t, os.MkdirAll(filepath.Join(dir, databaseFolder), 0o700))
	_, fresh, same, err := readMarker(dir)
	require.NoError(t, err)
	require.False(t, fresh, "a database without its marker was restored")
	require.False(t, same)

	require.NoError(t, os.WriteFile(filepath.Join(dir, markerFile), []byte("{"), 0o600))
	_, fresh, same, err = readMarker(dir)
	require.NoError(t, err)
	require.False(t, fresh)
	require.False(t, same)
}
