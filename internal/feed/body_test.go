package feed

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"hima/internal/wire/pb"
)

func TestBodyRoundTrip(t *testing.T) {
	sizes := rapid.OneOf(
		rapid.IntRange(0, MaxContent),
		rapid.SampledFrom([]int{0, 1, 47, 48, 237, 238, 239, 1006, 1007, 4078, 4079, MaxContent}))
	rapid.Check(t, func(t *rapid.T) {
		content := bytes.Repeat([]byte{rapid.Byte().Draw(t, "fill")}, sizes.Draw(t, "size"))
		body, err := PadBody(&noise{seed: "x"}, content)
		require.NoError(t, err)
		require.True(t, validBodyLen(uint32(len(body))))
		got, err := unpadBody(body)
		require.NoError(t, err)
		require.True(t, bytes.Equal(content, got))
		for _, smaller := range bodySizes {
			if int(smaller) < len(body) {
				require.Greater(t, bodySalt+len(content)+1, int(smaller)-2, "body larger than it need be")
			}
		}
	})
}

func TestBodyIsSalted(t *testing.T) {
	salt := &noise{seed: "salt"}
	a, err := PadBody(salt, []byte("yes"))
	require.NoError(t, err)
	b, err := PadBody(salt, []byte("yes"))
	require.NoError(t, err)
	require.Len(t, a, 64)
	require.NotEqual(t, a[:16], b[:16])
	require.Equal(t, a[16:], b[16:])
}

func TestBodyTooLarge(t *testing.T) {
	_, err := PadBody(&noise{}, make([]byte, MaxContent+1))
	require.ErrorIs(t, err, ErrTooLarge)
}

func TestLongestTextFits(t *testing.T) {
	content, err := proto.Marshal(&pb.Text{Text: strings.Repeat("葵", MaxText/3), ReplyTo: make([]byte, 32)})
	require.NoError(t, err)
	_, err = PadBody(&noise{}, content)
	require.NoError(t, err)
}

func TestPaddingNeedsSalt(t *testing.T) {
	broken := errors.New("no randomness")
	_, err := PadBody(readerFunc(func([]byte) (int, error) { return 0, broken }), []byte("x"))
	require.ErrorIs(t, err, broken)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// bodyCases are bodies that are padded wrongly.
func bodyCases(t testing.TB) map[string][]byte {
	good, err := PadBody(&noise{seed: "b"}, []byte("hello"))
	require.NoError(t, err)
	change := func(f func([]byte)) []byte {
		b := bytes.Clone(good)
		f(b)
		return b
	}
	return map[string][]byte{
		"length beyond the end":   change(func(b []byte) { b[16] = 48 }),
		"no length":               change(func(b []byte) { copy(b[16:], bytes.Repeat([]byte{0xff}, 11)) }),
		"long form of length":     change(func(b []byte) { b[16], b[17] = 0x85, 0 }),
		"padding not zero":        change(func(b []byte) { b[63] = 1 }),
		"size that is not one":    good[:63],
		"size larger than any":    make([]byte, MaxBody+1),
		"nothing but half a salt": good[:8],
	}
}

func TestBodiesRefused(t *testing.T) {
	for name, b := range bodyCases(t) {
		t.Run(name, func(t *testing.T) {
			_, err := unpadBody(b)
			require.ErrorIs(t, err, ErrMalformed)
		})
	}
}

func TestBodyOfEntry(t *testing.T) {
	e := newWriter("alice").write(t, Tip{}, 1)[0]
	content, err := e.Content()
	require.NoError(t, err)
	var text pb.Text
	require.NoError(t, proto.Unmarshal(content, &text))
	require.Equal(t, "hima hima hima hima ", text.Text)

	bare := e.WithoutBody()
	require.False(t, bare.HasBody())
	require.True(t, e.HasBody(), "erasing a copy must not change the original")
	_, err = bare.Content()
	require.ErrorIs(t, err, ErrBody)

	full, err := bare.WithBody(e.RawBody())
	require.NoError(t, err)
	require.Equal(t, e, full)
	other := bytes.Clone(e.RawBody())
	other[0]++
	_, err = bare.WithBody(other)
	require.ErrorIs(t, err, ErrBody)
	_, err = ParseStored(e.RawHeader(), make([]byte, 256))
	require.ErrorIs(t, err, ErrBody)
}
