package feed

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"hima/identity"
)

func mustCertificate(t testing.TB, raw []byte) identity.Certificate {
	t.Helper()
	cert, err := identity.ParseCertificate(raw)
	require.NoError(t, err)
	return cert
}

func drawOrder(t *rapid.T, label string) OrderKey {
	// Small ranges, so that equal parts are common and every comparison gets its turn.
	small := rapid.Uint64Range(0, 3)
	k := OrderKey{
		Clock:  rapid.OneOf(small, rapid.Uint64()).Draw(t, label+" clock"),
		Number: rapid.SampledFrom([]Number{Control, Chat}).Draw(t, label+" number"),
		Seq:    rapid.OneOf(small, rapid.Uint64()).Draw(t, label+" seq"),
	}
	k.Account[rapid.IntRange(0, 31).Draw(t, label+" at")] = rapid.SampledFrom([]byte{0, 1, 200}).Draw(t, label+" account")
	k.Device[0] = rapid.SampledFrom([]byte{0, 1, 200}).Draw(t, label+" device")
	return k
}

func TestOrderOfBytesIsOrderOfKeys(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawOrder(t, "a"), drawOrder(t, "b")
		ab, bb := a.Bytes(), b.Bytes()
		require.Equal(t, bytes.Compare(ab[:], bb[:]), a.Compare(b))
		require.Equal(t, bytes.Compare(ab[:], bb[:]) < 0, Less(a, b))
		back, err := ParseOrderKey(a.AppendTo(nil))
		require.NoError(t, err)
		require.Equal(t, a, back)
	})
}

func TestParseOrderKeyRefuses(t *testing.T) {
	good := OrderKey{Clock: 1, Number: Chat, Seq: 1}.AppendTo(nil)
	for _, b := range [][]byte{nil, good[1:], append(good[:len(good):len(good)], 0)} {
		_, err := ParseOrderKey(b)
		require.ErrorIs(t, err, ErrMalformed)
	}
	good[72] = 3
	_, err := ParseOrderKey(good)
	require.ErrorIs(t, err, ErrMalformed)
}
