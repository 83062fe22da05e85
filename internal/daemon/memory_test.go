package daemon

import (
	"math"
	"runtime"
	"runtime/debug"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRuntimeIsTuned(t *testing.T) {
	before, limit := runtime.GOMAXPROCS(2), debug.SetMemoryLimit(math.MaxInt64)
	defer func() {
		runtime.GOMAXPROCS(before)
		debug.SetMemoryLimit(limit)
	}()

	t.Setenv("GOMAXPROCS", "2")
	tuneRuntime(1 << 40)
	require.Equal(t, 2, runtime.GOMAXPROCS(0), "what the user has set stays")
	require.EqualValues(t, 1<<40, debug.SetMemoryLimit(-1))

	t.Setenv("GOMAXPROCS", "")
	tuneRuntime(1 << 41)
	require.Less(t, 2, runtime.GOMAXPROCS(0))
	require.EqualValues(t, 1<<41, debug.SetMemoryLimit(-1))
}
