package identity_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/identity"
)

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

var day = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// TestSecretsDoNotPrint prints every secret in every way there is, also from inside somebody's struct with fields that
// fmt may not ask, and looks for its bytes.
func TestSecretsDoNotPrint(t *testing.T) {
	s := seed(0xc7)
	account, device := identity.AccountKeyFromSeed(s), identity.DeviceKeyFromSeed(s)
	v, _, err := identity.NewVault("alice", day)
	require.NoError(t, err)
	v.AccountSeed, v.DatabaseKey, v.DeviceKey = identity.NewSecret(s), identity.NewSecret(s), device
	inbox, err := identity.InboxSecretFromBytes(s[:])
	require.NoError(t, err)
	prekey, err := identity.PrekeySecretFromBytes(s[:])
	require.NoError(t, err)
	snapshot := identity.SnapshotKey{Secret: identity.NewSecret(s)}
	inside := struct {
		a  identity.AccountKey
		d  identity.DeviceKey
		s  identity.Secret
		v  identity.Vault
		pv *identity.Vault
		A  identity.AccountKey
		S  identity.Secret
		i  identity.InboxSecret
		P  identity.PrekeySecret
	}{account, device, identity.NewSecret(s), v, &v, account, identity.NewSecret(s), inbox, prekey}
	var log bytes.Buffer
	text := slog.New(slog.NewTextHandler(&log, nil))
	js := slog.New(slog.NewJSONHandler(&log, nil))
	for _, x := range []any{
		account, &account, device, &device, identity.NewSecret(s), v, &v, inside, &inside,
		inbox, &inbox, prekey, &prekey, snapshot, &snapshot,
		[]any{account, v},
		map[string]identity.DeviceKey{"k": device},
		identity.Password("c7c7c7c7"),
		[]identity.Password{"c7c7c7c7"},
	} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%b"} {
			fmt.Fprintf(&log, verb+"\n", x)
		}
		fmt.Fprintln(&log, x)
		text.Info("x", "x", x)
		js.Info("x", "x", x)
		b, _ := json.Marshal(x)
		log.Write(b)
	}
	out := strings.ToLower(log.String())
	for _, leak := range []string{"c7c7", "199 199", "199,199", "0xc7, 0xc7", "0xc7,0xc7", "307 307", "11000111 11000111", "x8fh", "\xc7\xc7"} {
		if i := strings.Index(out, leak); i >= 0 {
			t.Errorf("%q is in the output: …%q…", leak, out[max(0, i-60):i+20])
		}
	}
	require.Contains(t, out, "[secret]")
}

func TestPasswordIsNotEncoded(t *testing.T) {
	_, err := json.Marshal(identity.Password("x"))
	require.Error(t, err)
	_, err = json.Marshal(identity.Vault{})
	require.Error(t, err)
}

func TestZeroKeys(t *testing.T) {
	require.True(t, identity.AccountKey{}.IsZero())
	require.True(t, identity.DeviceKey{}.ID().IsZero())
	require.Equal(t, [32]byte{}, identity.DeviceKey{}.Seed())
	require.True(t, identity.Secret{}.IsZero())
	require.Nil(t, identity.Secret{}.Bytes())
	require.False(t, identity.GenerateAccountKey().IsZero())
	require.NotEqual(t, identity.GenerateDeviceKey().ID(), identity.GenerateDeviceKey().ID())
	s := identity.NewSecret(seed(3))
	s.Bytes()[0] = 9
	require.Equal(t, bytes.Repeat([]byte{3}, 32), s.Bytes())
}
