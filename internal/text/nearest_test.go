package text

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNearest(t *testing.T) {
	known := []string{"join", "history", "uses", "q"}
	for typed, want := range map[string]string{
		"jion": "join", "HISTORY": "history", "histori": "history", "use": "uses", "password": "", "": "", "x": "", "joint": "join",
	} {
		require.Equal(t, want, Nearest(typed, known), typed)
	}
}
