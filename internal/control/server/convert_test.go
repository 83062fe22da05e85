package server

import (
	"testing"

	"github.com/stretchr/testify/require"

	"hima/internal/messenger"
)

// A line that is no entry has no ID; zeros would look like one.
func TestLinesWithoutID(t *testing.T) {
	out := messageOf(messenger.Message{Kind: messenger.MessageDevicesChanged})
	require.Empty(t, out.Id)
	require.Empty(t, out.Device)
	out = messageOf(messenger.Message{ID: [32]byte{1}, Device: [32]byte{2}})
	require.Len(t, out.Id, 64)
	require.NotEmpty(t, out.Device)
}
