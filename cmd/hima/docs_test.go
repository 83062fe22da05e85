package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestDocsAreCurrent: docs/cli.md and the man pages are what this program writes. "go generate ./cmd/hima" renews them.
func TestDocsAreCurrent(t *testing.T) {
	dir := t.TempDir()
	a := testApp(t)
	a.root = a.rootCommand()
	require.NoError(t, a.writeDocs(dir))
	var fresh []string
	require.NoError(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		fresh = append(fresh, rel)
		want, err := os.ReadFile(path)
		require.NoError(t, err)
		got, err := os.ReadFile(filepath.Join("../../docs", rel))
		require.NoError(t, err, "run: go generate ./cmd/hima")
		require.Equal(t, string(want), string(got), "%s is not current; run: go generate ./cmd/hima", rel)
		return nil
	}))
	committed, err := filepath.Glob("../../docs/man/hima*.1")
	require.NoError(t, err)
	pages := 0
	for _, path := range fresh {
		if filepath.Ext(path) == ".1" {
			pages++
		}
	}
	require.Len(t, committed, pages, "a page of a command that is gone")
}
