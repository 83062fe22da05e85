package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/identity"
)

// testFactor makes scrypt cheap: these tests are about files.
const testFactor = 4

func newVault(t *testing.T, name string) identity.Vault {
	t.Helper()
	v, _, err := identity.NewVault(name, time.Unix(1_700_000_000, 0))
	require.NoError(t, err)
	return v
}

func makeProfile(t *testing.T, home, name, password string) string {
	t.Helper()
	dir, err := profileDir(home, name)
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(dir, 0o700))
	require.NoError(t, writeVault(dir, newVault(t, name), identity.Password(password), testFactor))
	return dir
}

func TestProfileDirStaysInside(t *testing.T) {
	for _, bad := range []string{"", ".", "..", "../x", "a/b", `a\b`, "a\x00", "c:", strings.Repeat("a", 200)} {
		_, err := profileDir("/home", bad)
		require.ErrorIs(t, err, ErrBadProfile, "%q", bad)
	}
	dir, err := profileDir("/home", "小葵2")
	require.NoError(t, err)
	require.Equal(t, filepath.Join("/home", "profiles", "小葵2"), dir)
}

func TestDefaultProfile(t *testing.T) {
	home := t.TempDir()
	_, err := DefaultProfile(home)
	require.ErrorIs(t, err, ErrNoProfile)

	makeProfile(t, home, "alice", "")
	got, err := DefaultProfile(home)
	require.NoError(t, err)
	require.Equal(t, "alice", got)

	bob := makeProfile(t, home, "bob", "secret")
	_, err = DefaultProfile(home)
	require.ErrorIs(t, err, ErrManyProfiles)

	require.NoError(t, rememberProfile(home, "bob"))
	got, err = DefaultProfile(home)
	require.NoError(t, err)
	require.Equal(t, "bob", got)

	all, err := Profiles(home)
	require.NoError(t, err)
	require.Len(t, all, 2)
	require.False(t, all[0].HasPassword)
	require.True(t, all[0].LastLogin.IsZero())
	require.True(t, all[1].HasPassword)
	require.False(t, all[1].LastLogin.IsZero())

	require.NoError(t, os.RemoveAll(bob))
	got, err = DefaultProfile(home)
	require.NoError(t, err)
	require.Equal(t, "alice", got, "a profile that is gone is not the last one")
}

func TestSocketPathFits(t *testing.T) {
	short, err := SocketPath("/h", "alice")
	require.NoError(t, err)
	require.Equal(t, "/h/profiles/alice/socket", short)
	long := "/" + strings.Repeat("x", 200)
	a, err := SocketPath(long, "alice")
	require.NoError(t, err)
	b, err := SocketPath(long, "bob")
	require.NoError(t, err)
	require.LessOrEqual(t, len(a), maxSocketPath)
	require.NotEqual(t, a, b)
}

func TestVaultFile(t *testing.T) {
	home := t.TempDir()
	dir := makeProfile(t, home, "alice", "")
	s, err := readVault(dir)
	require.NoError(t, err)
	require.False(t, s.needsPassword())
	v, err := s.open("")
	require.NoError(t, err)
	_, err = s.open("x")
	require.ErrorIs(t, err, identity.ErrWrongPassword)
	for _, name := range []string{vaultFile, keyFile} {
		info, err := os.Stat(filepath.Join(dir, name))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), name)
	}

	require.NoError(t, writeVault(dir, v, "pw", testFactor))
	require.NoFileExists(t, filepath.Join(dir, keyFile))
	s, err = readVault(dir)
	require.NoError(t, err)
	require.True(t, s.needsPassword())
	again, err := s.open("pw")
	require.NoError(t, err)
	require.Equal(t, v.Account, again.Account)
	_, err = s.open("wrong")
	require.ErrorIs(t, err, identity.ErrWrongPassword)

	require.NoError(t, writeVault(dir, v, "", testFactor))
	s, err = readVault(dir)
	require.NoError(t, err)
	_, err = s.open("")
	require.NoError(t, err)

	left, err := filepath.Glob(filepath.Join(dir, "*.tmp*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

// A power cut between any two steps of replacing a keyed pair leaves a pair that opens.
func TestVaultPairSurvivesCut(t *testing.T) {
	old, next := newVault(t, "alice"), newVault(t, "alice2")
	for cut := range 4 {
		dir := t.TempDir()
		require.NoError(t, writeVault(dir, old, "", testFactor))
		sealed, key, err := identity.SealVaultKey(next)
		require.NoError(t, err)
		step := func(n int, f func() error) {
			if n < cut {
				require.NoError(t, f())
			}
		}
		path := func(name string) string { return filepath.Join(dir, name) }
		if cut > 0 {
			require.NoError(t, writeFileAtomic(path(vaultFile+".new"), sealed))
			require.NoError(t, writeFileAtomic(path(keyFile+".new"), key))
		}
		step(1, func() error { return writeFileAtomic(path(pairFile), nil) })
		step(2, func() error { return os.Rename(path(keyFile+".new"), path(keyFile)) })
		s, err := readVault(dir)
		require.NoError(t, err)
		v, err := s.open("")
		require.NoError(t, err, "cut after step %d", cut)
		want := "alice"
		if cut > 1 {
			want = "alice2"
		}
		require.Equal(t, want, v.Username)
		require.NoFileExists(t, path(pairFile))
	}
}

func TestLockProfile(t *testing.T) {
	dir := t.TempDir()
	release, err := lockProfile(dir)
	require.NoError(t, err)
	_, err = lockProfile(dir)
	require.ErrorIs(t, err, ErrRunning)
	require.NoError(t, release())
	release, err = lockProfile(dir)
	require.NoError(t, err)
	require.NoError(t, release())
}

func TestLogRotates(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := openLog(path)
	require.NoError(t, err)
	record := []byte(strings.Repeat("x", 1<<16) + "\n")
	for range 2 * maxLog / len(record) {
		_, err := l.Write(record)
		require.NoError(t, err)
	}
	require.NoError(t, l.Close())
	for _, p := range []string{path, path + ".1"} {
		info, err := os.Stat(p)
		require.NoError(t, err)
		require.LessOrEqual(t, info.Size(), int64(maxLog))
		require.Positive(t, info.Size())
	}
}

func TestPortIsKept(t *testing.T) {
	dir := t.TempDir()
	first, err := profilePort(dir)
	require.NoError(t, err)
	again, err := profilePort(dir)
	require.NoError(t, err)
	require.Equal(t, first, again)
}
