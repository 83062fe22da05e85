package replica

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/identity"
	"hima/internal/feed"
)

func TestWorkIsDoneOnce(t *testing.T) {
	from, to := identity.AccountID{1}, identity.AccountID{2}
	var w works
	proof := w.of(from, to, feed.EntryID{3})
	require.True(t, feed.CheckWork(from, to, feed.EntryID{3}, proof, feed.WorkBits))
	start := time.Now()
	for range 10_000 {
		require.Equal(t, proof, w.of(from, to, feed.EntryID{3}))
	}
	require.Less(t, time.Since(start), 5*time.Second, "ten thousand times a million hashes")
	for i := range maxWorks + 3 {
		w.done[feed.EntryID{9, byte(i)}] = nil
	}
	other := w.of(from, to, feed.EntryID{4})
	require.True(t, feed.CheckWork(from, to, feed.EntryID{4}, other, feed.WorkBits))
	require.LessOrEqual(t, len(w.done), maxWorks)
}
