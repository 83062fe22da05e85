package main

import (
	"strings"
	"testing"

	"github.com/charmbracelet/x/ansi"
	"github.com/stretchr/testify/require"
)

// TestInviteCodeFits: a link with the addresses of a home and of a network with two bootstrap nodes, 640 characters, fits
// into a terminal of 80 columns and so into the picture of a phone. Small letters alone would not.
func TestInviteCodeFits(t *testing.T) {
	a := testApp(t)
	link := "hima:" + strings.Repeat("abcdefghijklmnopqrstuvwxyz234567", 20)
	columns := func(content string) int {
		picture, err := a.qr(content)
		require.NoError(t, err)
		first, _, _ := strings.Cut(picture, "\n")
		return ansi.StringWidth(first)
	}
	require.LessOrEqual(t, columns(strings.ToUpper(link)), 80)
	require.Greater(t, columns(link), 80)
}
