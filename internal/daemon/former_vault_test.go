package daemon

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestFormerKeyIsNotUsedAgain: a vault that is put back alone, say for its old password, holds a former key. What stood under it
// unsettled has lost its place, so that its numbers would be given a second time (R1).
func TestFormerKeyIsNotUsedAgain(t *testing.T) {
	alice, bob := newPerson(t, "alice"), newPerson(t, "bob")
	alice.register()
	bob.register()
	befriend(t, alice, bob)
	bob.halt()
	alice.send("bob", "one")
	former := alice.status().GetDevice()
	alice.halt()
	dir := filepath.Join(alice.home, profilesFolder, "alice")
	kept := map[string][]byte{}
	for _, name := range []string{vaultFile, keyFile} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if os.IsNotExist(err) {
			continue
		}
		require.NoError(t, err)
		kept[name] = b
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, divergedFile), nil, 0o600))
	alice.start()
	require.NotEqual(t, former, alice.status().GetDevice())
	_, states := alice.history("bob")
	require.Equal(t, "unknown", states["one"])
	alice.halt()
	for name, b := range kept {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), b, 0o600))
	}
	alice.start()
	require.NotEqual(t, former, alice.status().GetDevice(), "a former key is used again")
	require.True(t, alice.status().GetRestored())
	alice.send("bob", "two")
	texts, _ := alice.history("bob")
	require.Equal(t, []string{"one", "two"}, texts)
}
