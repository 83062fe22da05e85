package identity_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"hima/identity"
	"hima/internal/wire/pb"
)

// quick is a scrypt work factor for tests: a millisecond instead of half a second.
const quick = 4

func newVault(t require.TestingT) (identity.Vault, string) {
	v, phrase, err := identity.NewVault("alice", day)
	require.NoError(t, err)
	return v, phrase
}

// same compares vaults by content; secrets have no other comparison.
func same(t require.TestingT, want, got identity.Vault) {
	require.Equal(t, want.Account, got.Account)
	require.Equal(t, want.AccountSeed.Bytes(), got.AccountSeed.Bytes())
	require.Equal(t, want.DeviceKey.Seed(), got.DeviceKey.Seed())
	require.Equal(t, want.DatabaseKey.Bytes(), got.DatabaseKey.Bytes())
	require.Equal(t, want.Certificate, got.Certificate)
	require.Equal(t, want.Username, got.Username)
	require.Equal(t, want.Former, got.Former)
	require.True(t, want.Created.Equal(got.Created))
}

func TestVaultWithPassword(t *testing.T) {
	v, _ := newVault(t)
	sealed, err := identity.SealVaultFactor(v, "correct horse 马", quick)
	require.NoError(t, err)
	require.True(t, identity.VaultNeedsPassword(sealed))
	got, err := identity.OpenVault(sealed, "correct horse 马")
	require.NoError(t, err)
	same(t, v, got)
	for _, wrong := range []identity.Password{"", "correct horse", "correct horse 马 ", "CORRECT HORSE 马"} {
		_, err := identity.OpenVault(sealed, wrong)
		require.ErrorIs(t, err, identity.ErrWrongPassword)
	}
	_, err = identity.SealVault(v, "")
	require.ErrorIs(t, err, identity.ErrMalformed)
	_, err = identity.SealVaultFactor(v, "x", identity.MaxWorkFactor+1)
	require.ErrorIs(t, err, identity.ErrMalformed)
}

func TestVaultWithKeyFile(t *testing.T) {
	v, _ := newVault(t)
	sealed, keyFile, err := identity.SealVaultKey(v)
	require.NoError(t, err)
	require.False(t, identity.VaultNeedsPassword(sealed))
	got, err := identity.OpenVaultKey(sealed, keyFile)
	require.NoError(t, err)
	same(t, v, got)
	_, err = identity.OpenVault(sealed, "any")
	require.ErrorIs(t, err, identity.ErrWrongPassword)
	_, other, err := identity.SealVaultKey(v)
	require.NoError(t, err)
	_, err = identity.OpenVaultKey(sealed, other)
	require.ErrorIs(t, err, identity.ErrWrongPassword)
	withPassword, err := identity.SealVaultFactor(v, "x", quick)
	require.NoError(t, err)
	_, err = identity.OpenVaultKey(withPassword, keyFile)
	require.ErrorIs(t, err, identity.ErrWrongPassword)
	for _, bad := range []string{"", "# only a comment\n", "AGE-SECRET-KEY-PQ-1BROKEN", string(keyFile[:len(keyFile)-3]), strings.Repeat("a", 1<<20)} {
		_, err = identity.OpenVaultKey(sealed, []byte(bad))
		require.ErrorIs(t, err, identity.ErrDamagedVault)
		require.NotContains(t, err.Error(), "AGE-SECRET-KEY")
	}
	// Line ends as an editor on another system leaves them.
	_, err = identity.OpenVaultKey(sealed, bytes.ReplaceAll(keyFile, []byte("\n"), []byte("\r\n")))
	require.NoError(t, err)
}

// TestVaultTampered changes and cuts every byte: no change may pass, whatever it is called.
func TestVaultTampered(t *testing.T) {
	v, _ := newVault(t)
	sealed, keyFile, err := identity.SealVaultKey(v)
	require.NoError(t, err)
	withPassword, err := identity.SealVaultFactor(v, "x", 1)
	require.NoError(t, err)
	open := map[*[]byte]func([]byte) (identity.Vault, error){
		&sealed:       func(b []byte) (identity.Vault, error) { return identity.OpenVaultKey(b, keyFile) },
		&withPassword: func(b []byte) (identity.Vault, error) { return identity.OpenVault(b, "x") },
	}
	for whole, open := range open {
		for i := range *whole {
			bad := bytes.Clone(*whole)
			bad[i] ^= 1
			for _, b := range [][]byte{bad, (*whole)[:i]} {
				_, err := open(b)
				require.Error(t, err, "byte %d", i)
				require.True(t, errors.Is(err, identity.ErrDamagedVault) || errors.Is(err, identity.ErrWrongPassword), "byte %d: %v", i, err)
			}
		}
		_, err = open(append(bytes.Clone(*whole), 0))
		require.ErrorIs(t, err, identity.ErrDamagedVault)
		_, err = open(make([]byte, identity.MaxVault+1))
		require.ErrorIs(t, err, identity.ErrDamagedVault)
		_, err = open(nil)
		require.ErrorIs(t, err, identity.ErrDamagedVault)
	}
}

// sealRaw seals any content under a new key file, as a broken or newer program would.
func sealRaw(t *testing.T, m *pb.Vault) (vault, keyFile []byte) {
	id, err := age.GenerateHybridIdentity()
	require.NoError(t, err)
	var out bytes.Buffer
	w, err := age.Encrypt(&out, id.Recipient())
	require.NoError(t, err)
	b, err := proto.Marshal(m)
	require.NoError(t, err)
	_, err = w.Write(b)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return out.Bytes(), []byte(id.String())
}

func TestVaultContentIsChecked(t *testing.T) {
	s, db := seed(2), seed(9)
	good := func() *pb.Vault {
		return &pb.Vault{
			Version: 1, Account: key(1).ID().Bytes(), DeviceSeed: s[:], DatabaseKey: db[:],
			Certificate: cert(1, 2).Raw(), Username: "a", CreatedMs: 1,
		}
	}
	v, k := sealRaw(t, good())
	got, err := identity.OpenVaultKey(v, k)
	require.NoError(t, err)
	require.True(t, got.AccountSeed.IsZero(), "a linked device has no seed")
	_, err = got.RotateDevice(day)
	require.ErrorIs(t, err, identity.ErrNoAccountSeed)
	_, ok := got.AccountKey()
	require.False(t, ok)

	for name, change := range map[string]func(m *pb.Vault){
		"no version":        func(m *pb.Vault) { m.Version = 0 },
		"no device key":     func(m *pb.Vault) { m.DeviceSeed = nil },
		"short device key":  func(m *pb.Vault) { m.DeviceSeed = s[:31] },
		"no database key":   func(m *pb.Vault) { m.DatabaseKey = nil },
		"another's seed":    func(m *pb.Vault) { m.AccountSeed = s[:] },
		"short seed":        func(m *pb.Vault) { m.AccountSeed = s[:5] },
		"no account":        func(m *pb.Vault) { m.Account = nil },
		"other account":     func(m *pb.Vault) { m.Account = key(3).ID().Bytes() },
		"other device":      func(m *pb.Vault) { m.Certificate = cert(1, 3).Raw() },
		"other's cert":      func(m *pb.Vault) { m.Certificate = cert(3, 2).Raw() },
		"no certificate":    func(m *pb.Vault) { m.Certificate = nil },
		"long username":     func(m *pb.Vault) { m.Username = strings.Repeat("a", 129) },
		"bad time":          func(m *pb.Vault) { m.CreatedMs = -1 },
		"bad former device": func(m *pb.Vault) { m.FormerDevices = [][]byte{{1}} },
		"too many former": func(m *pb.Vault) {
			for range identity.MaxFormer + 1 {
				m.FormerDevices = append(m.FormerDevices, device(7).Bytes())
			}
		},
	} {
		m := good()
		change(m)
		v, k := sealRaw(t, m)
		_, err := identity.OpenVaultKey(v, k)
		require.ErrorIs(t, err, identity.ErrDamagedVault, name)
	}
	m := good()
	m.Version = 2
	v, k = sealRaw(t, m)
	_, err = identity.OpenVaultKey(v, k)
	require.ErrorIs(t, err, identity.ErrNewerVault)
}

func TestVaultRefusesBadUsername(t *testing.T) {
	for _, name := range []string{strings.Repeat("a", 129), "\xff"} {
		_, _, err := identity.NewVault(name, day)
		require.ErrorIs(t, err, identity.ErrMalformed)
	}
	_, err := identity.SealVaultFactor(identity.Vault{}, "x", quick)
	require.ErrorIs(t, err, identity.ErrMalformed)
}

func TestRestoreIsANewDevice(t *testing.T) {
	v, phrase := newVault(t)
	require.Len(t, strings.Fields(phrase), 24)
	r, err := identity.RestoreVault("  "+strings.ToUpper(strings.ReplaceAll(phrase, " ", "\n\t"))+"\n", "alice2", day)
	require.NoError(t, err)
	require.Equal(t, v.Account, r.Account)
	require.Equal(t, v.AccountSeed.Bytes(), r.AccountSeed.Bytes())
	require.NotEqual(t, v.DeviceKey.ID(), r.DeviceKey.ID())
	require.NotEqual(t, v.DatabaseKey.Bytes(), r.DatabaseKey.Bytes())
	require.Equal(t, r.DeviceKey.ID(), r.Certificate.Device)
	require.Empty(t, r.Former)
}

func TestBadPhrases(t *testing.T) {
	_, phrase := newVault(t)
	words := strings.Fields(phrase)
	swapped := append([]string{words[1], words[0]}, words[2:]...)
	for name, p := range map[string]string{
		"empty": "", "short": strings.Join(words[:23], " "), "long": phrase + " abandon", "unknown word": "hima " + strings.Join(words[1:], " "),
		"12 words": strings.Repeat("abandon ", 11) + "about", "huge": strings.Repeat("abandon ", 1<<16),
	} {
		_, err := identity.RestoreVault(p, "a", day)
		require.ErrorIs(t, err, identity.ErrBadPhrase, name)
		require.NotContains(t, err.Error(), words[2], name)
	}
	if words[0] != words[1] {
		// One order in 256 passes the checksum by accident, and is another account then.
		if v, err := identity.RestoreVault(strings.Join(swapped, " "), "a", day); err == nil {
			w, err := identity.RestoreVault(phrase, "a", day)
			require.NoError(t, err)
			require.NotEqual(t, w.Account, v.Account)
		}
	}
}

func TestPhraseCarriesEverySeed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := genSeed(t, "seed")
		for i := range rapid.IntRange(0, 8).Draw(t, "zeroes in front") {
			s[i] = 0
		}
		v, err := identity.RestoreVault(identity.PhraseOf(s), "a", day)
		require.NoError(t, err)
		require.Equal(t, s[:], v.AccountSeed.Bytes())
	})
}

func TestRotateDevice(t *testing.T) {
	v, _ := newVault(t)
	first := v.DeviceKey.ID()
	r, err := v.RotateDevice(day.Add(time.Hour))
	require.NoError(t, err)
	require.Equal(t, first, v.DeviceKey.ID(), "the old value stays")
	require.Empty(t, v.Former)
	require.NotEqual(t, first, r.DeviceKey.ID())
	require.Equal(t, []identity.DeviceID{first}, r.Former)
	require.Equal(t, r.DeviceKey.ID(), r.Certificate.Device)
	require.Equal(t, v.DatabaseKey.Bytes(), r.DatabaseKey.Bytes())
	require.Equal(t, v.Account, r.Account)
	for range identity.MaxFormer + 3 {
		r, err = r.RotateDevice(day)
		require.NoError(t, err)
	}
	require.Len(t, r.Former, identity.MaxFormer)
	sealed, keyFile, err := identity.SealVaultKey(r)
	require.NoError(t, err)
	got, err := identity.OpenVaultKey(sealed, keyFile)
	require.NoError(t, err)
	same(t, r, got)
}

func TestVaultHidesWhatItHolds(t *testing.T) {
	v, _ := newVault(t)
	sealed, _, err := identity.SealVaultKey(v)
	require.NoError(t, err)
	for _, secret := range [][]byte{v.AccountSeed.Bytes(), v.DatabaseKey.Bytes(), v.Account.Bytes(), []byte(v.Username)} {
		require.False(t, bytes.Contains(sealed, secret), hex.EncodeToString(secret))
	}
}

func BenchmarkOpenVault(b *testing.B) {
	v, _ := newVault(b)
	sealed, err := identity.SealVault(v, "x")
	require.NoError(b, err)
	for b.Loop() {
		if _, err := identity.OpenVault(sealed, "x"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpenVaultKey(b *testing.B) {
	v, _ := newVault(b)
	sealed, keyFile, err := identity.SealVaultKey(v)
	require.NoError(b, err)
	for b.Loop() {
		if _, err := identity.OpenVaultKey(sealed, keyFile); err != nil {
			b.Fatal(err)
		}
	}
}
