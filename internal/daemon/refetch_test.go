package daemon

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/identity"
)

// An account of which nothing was found is asked for again in seconds, then ever more seldom; each time has to be wanted.
func TestRefetchesComePromptlyAtFirst(t *testing.T) {
	r := refetched{changed: make(chan struct{}, 1)}
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	a, b := identity.AccountID{1}, identity.AccountID{2}
	require.Equal(t, refetchLast, r.wait(now), "nobody is wanted")
	var waits []time.Duration
	for range 9 {
		r.again(a, now)
		r.again(a, now) // twice is once
		require.Len(t, r.changed, 1)
		<-r.changed
		wait := r.wait(now)
		waits = append(waits, wait)
		require.Empty(t, r.take(now))
		now = now.Add(wait)
		require.Zero(t, r.wait(now))
		require.Equal(t, []identity.AccountID{a}, r.take(now))
		require.Empty(t, r.take(now), "once")
	}
	require.Equal(t, []time.Duration{refetchFirst, 3 * refetchFirst, 9 * refetchFirst}, waits[:3])
	require.Equal(t, refetchLast, waits[8])

	// Who is only missed is asked for when somebody misses him, not by himself.
	require.True(t, r.due(b, now))
	require.False(t, r.due(b, now))
	require.Empty(t, r.take(now.Add(time.Hour)))
	require.True(t, r.due(b, now.Add(refetchFirst)))
}
