package identity_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"hima/identity"
)

func seed(b byte) (s [32]byte) {
	for i := range s {
		s[i] = b
	}
	return s
}

func genSeed(t *rapid.T, name string) [32]byte {
	return [32]byte(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, name))
}

func TestAccountIDText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := identity.AccountKeyFromSeed(genSeed(t, "seed")).ID()
		s := id.String()
		require.Len(t, s, 63)
		require.True(t, strings.HasPrefix(s, "hima1"))
		for _, text := range []string{s, strings.ToUpper(s)} {
			again, err := identity.ParseAccountID(text)
			require.NoError(t, err)
			require.Equal(t, id, again)
		}
		// Any one changed character is found.
		i := rapid.IntRange(0, len(s)-1).Draw(t, "at")
		c := rapid.SampledFrom([]byte("qpzry9x8gf2tvdw0s3jn54khce6mua7l1bio!")).Draw(t, "char")
		if c != s[i] {
			_, err := identity.ParseAccountID(s[:i] + string(c) + s[i+1:])
			require.ErrorIs(t, err, identity.ErrMalformed)
		}
	})
}

func TestParseAccountIDRefuses(t *testing.T) {
	good := identity.AccountKeyFromSeed(seed(1)).ID().String()
	mixed := strings.ToUpper(good[:20]) + good[20:]
	for _, s := range []string{
		"", "hima1", good[1:], good + "q", " " + good, good + "\n", mixed, strings.Replace(good, "hima1", "himb1", 1),
		strings.Repeat("q", 63), strings.Repeat("a", 1<<20), good[:62] + "é",
		identity.AccountID{}.String(), // zero is a point of small order
	} {
		_, err := identity.ParseAccountID(s)
		require.ErrorIs(t, err, identity.ErrMalformed, "%.80q", s)
	}
}

func TestDeviceIDIsPeerID(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := identity.DeviceKeyFromSeed(genSeed(t, "seed"))
		p, err := peer.IDFromPublicKey(key.Libp2p().GetPublic())
		require.NoError(t, err)
		require.Equal(t, p, key.ID().PeerID())
		require.Equal(t, p.String(), key.ID().String())
		d, err := identity.DeviceIDFromPeer(p)
		require.NoError(t, err)
		require.Equal(t, key.ID(), d)
		d, err = identity.ParseDeviceID(p.String())
		require.NoError(t, err)
		require.Equal(t, key.ID(), d)
	})
}

func TestParseDeviceIDRefuses(t *testing.T) {
	good := identity.DeviceKeyFromSeed(seed(1)).ID()
	_, rsa, err := crypto.GenerateKeyPair(crypto.RSA, 2048)
	require.NoError(t, err)
	rsaID, err := peer.IDFromPublicKey(rsa)
	require.NoError(t, err)
	_, secp, err := crypto.GenerateKeyPair(crypto.Secp256k1, 0)
	require.NoError(t, err)
	secpID, err := peer.IDFromPublicKey(secp)
	require.NoError(t, err)
	for _, s := range []string{
		"", "12D3KooW", good.String()[1:], good.String() + "1", " " + good.String(), rsaID.String(), secpID.String(),
		peer.ToCid(good.PeerID()).String(), // the same peer, another text
		identity.DeviceID{}.String(), strings.Repeat("1", 1<<20),
	} {
		_, err := identity.ParseDeviceID(s)
		require.ErrorIs(t, err, identity.ErrMalformed, "%.80q", s)
	}
}

func TestKeysThatAreNobodys(t *testing.T) {
	// Small order, with either sign, and encodings with y not below p.
	for _, hex := range []string{
		strings.Repeat("00", 32), "01" + strings.Repeat("00", 31), "01" + strings.Repeat("00", 30) + "80",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"ec" + strings.Repeat("ff", 30) + "7f", "ed" + strings.Repeat("ff", 30) + "7f", "ee" + strings.Repeat("ff", 30) + "ff",
		strings.Repeat("ff", 32),
	} {
		b := unhex(hex)
		_, err := identity.AccountIDFromBytes(b)
		require.ErrorIs(t, err, identity.ErrMalformed, hex)
		_, err = identity.DeviceIDFromBytes(b)
		require.ErrorIs(t, err, identity.ErrMalformed, hex)
		// The all-zero signature verifies under some of them for many messages; not here.
		sig := append(bytes.Clone(b), make([]byte, 32)...)
		require.False(t, identity.AccountID(b).Verify(identity.DomainEntry, []byte("anything"), sig))
	}
}

func TestSignatureIsForOneDomainKeyAndPayload(t *testing.T) {
	a, d := identity.AccountKeyFromSeed(seed(1)), identity.DeviceKeyFromSeed(seed(2))
	sig := a.Sign(identity.DomainCertificate, []byte("payload"))
	require.Len(t, sig, 64)
	require.True(t, a.ID().Verify(identity.DomainCertificate, []byte("payload"), sig))
	require.False(t, a.ID().Verify(identity.DomainEntry, []byte("payload"), sig))
	require.False(t, a.ID().Verify(identity.DomainCertificate, []byte("payloae"), sig))
	require.False(t, a.ID().Verify(identity.DomainCertificate, []byte("payload"), sig[:63]))
	require.False(t, a.ID().Verify(identity.DomainCertificate, []byte("payload"), nil))
	require.False(t, d.ID().Verify(identity.DomainCertificate, []byte("payload"), sig))
	sig = d.Sign("hima/x", []byte("y\x00z"))
	require.True(t, d.ID().Verify("hima/x", []byte("y\x00z"), sig))
	require.False(t, d.ID().Verify("hima/xy", []byte("\x00z"), sig), "the border between domain and payload counts")
	for i := range sig {
		bad := bytes.Clone(sig)
		bad[i] ^= 1
		require.False(t, d.ID().Verify("hima/x", []byte("y\x00z"), bad), "byte %d", i)
	}
}

func TestIDsAsJSON(t *testing.T) {
	type both struct {
		A identity.AccountID
		D identity.DeviceID
	}
	in := both{identity.AccountKeyFromSeed(seed(1)).ID(), identity.DeviceKeyFromSeed(seed(2)).ID()}
	b, err := json.Marshal(in)
	require.NoError(t, err)
	require.Contains(t, string(b), in.A.String())
	require.Contains(t, string(b), in.D.String())
	var out both
	require.NoError(t, json.Unmarshal(b, &out))
	require.Equal(t, in, out)
	require.Error(t, json.Unmarshal([]byte(`{"A":"hima1"}`), &out))
	require.Equal(t, in, out, "a refused text leaves the value alone")
}

func TestIDOrderAndShort(t *testing.T) {
	a, b := identity.AccountID{1}, identity.AccountID{2}
	require.True(t, a.Less(b))
	require.False(t, b.Less(a))
	require.False(t, a.Less(a))
	require.True(t, identity.DeviceID{0, 1}.Less(identity.DeviceID{1}))
	require.True(t, strings.HasPrefix(a.String(), strings.TrimSuffix(a.Short(), "…")))
	require.True(t, identity.AccountID{}.IsZero() && !a.IsZero())
	id := identity.DeviceKeyFromSeed(seed(2)).ID()
	require.True(t, strings.HasSuffix(id.String(), strings.TrimPrefix(id.Short(), "…")))
	c := id.Bytes()
	c[0]++
	require.NotEqual(t, c, id.Bytes())
}
