package storage

import (
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRaiseProcessors(t *testing.T) {
	own := runtime.GOMAXPROCS(0)
	defer func() { runtime.GOMAXPROCS(own) }()
	for _, c := range []struct {
		env         string
		chosen, now int
	}{{"", 2, minProcessors}, {"", 9, 9}, {"2", 2, 2}} {
		t.Setenv("GOMAXPROCS", c.env)
		runtime.GOMAXPROCS(c.chosen)
		require.Equal(t, c.chosen, RaiseProcessors())
		require.Equal(t, c.now, runtime.GOMAXPROCS(0), "%+v", c)
	}
}
