package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"hima/identity"
)

// idsOf gives account and device of somebody as they would stand in plain bytes: as keys and as text.
func idsOf(t *testing.T, p person) []string {
	t.Helper()
	who := p.one("whoami")
	account, err := identity.ParseAccountID(who["account"].(string))
	require.NoError(t, err)
	device, err := identity.ParseDeviceID(who["device"].(string))
	require.NoError(t, err)
	return []string{account.String(), string(account.Bytes()), device.String(), string(device.Bytes())}
}

// grep lists the files below dir that hold s.
func grep(t *testing.T, dir, s string) (found []string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(b), s) {
			found = append(found, path)
		}
		return err
	}))
	return found
}
