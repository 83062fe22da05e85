package storage

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSyncOfDataThatFailsIsAnError(t *testing.T) {
	t.Parallel()
	f, err := os.Create(filepath.Join(t.TempDir(), "journal"))
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("record"), 0)
	require.NoError(t, err)
	require.NoError(t, syncData(f))
	require.NoError(t, f.Close())
	require.Error(t, syncData(f))

	r, w, err := os.Pipe() // which no system can sync
	require.NoError(t, err)
	defer r.Close()
	require.Error(t, syncData(w))
	require.NoError(t, w.Close())
}
