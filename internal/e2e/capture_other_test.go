//go:build !linux

package e2e

import "testing"

// record is there on Linux only, as the laboratory is.
func record(t *testing.T, _ string) func() string {
	t.Helper()
	t.Skip("packets are captured on Linux only")
	return nil
}
