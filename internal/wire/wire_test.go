package wire_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"hima/internal/wire"
	"hima/internal/wire/pb"
)

func frame(t testing.TB, m proto.Message) []byte {
	b, err := wire.Append(nil, m)
	require.NoError(t, err)
	return b
}

func TestReadRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := &pb.Text{Text: rapid.String().Draw(t, "text"), ReplyTo: rapid.SliceOf(rapid.Byte()).Draw(t, "reply")}
		var stream bytes.Buffer
		require.NoError(t, wire.Write(&stream, 1<<20, in))
		require.Equal(t, wire.Size(in), stream.Len())
		require.NoError(t, wire.Write(&stream, 1<<20, &pb.Text{}))
		// The smallest buffer makes the path for frames that do not fit it.
		r := bufio.NewReaderSize(iotest.OneByteReader(&stream), 16)
		var out pb.Text
		require.NoError(t, wire.Read(r, 1<<20, &out))
		require.True(t, proto.Equal(in, &out))
		require.NoError(t, wire.Read(r, 1<<20, &out))
		require.True(t, proto.Equal(&pb.Text{}, &out), "Read replaces what the message held")
		require.Equal(t, io.EOF, wire.Read(r, 1<<20, &out))
	})
}

func TestReadCutAtEveryByte(t *testing.T) {
	for _, size := range []int{0, 10, 200, 9000} {
		whole := frame(t, &pb.Text{Text: strings.Repeat("a", size)})
		for cut := range len(whole) {
			var out pb.Text
			err := wire.Read(bufio.NewReader(bytes.NewReader(whole[:cut])), wire.MaxSyncFrame, &out)
			if cut == 0 {
				require.Equal(t, io.EOF, err)
				continue
			}
			require.ErrorIs(t, err, io.ErrUnexpectedEOF, "size %d cut %d", size, cut)
			require.NotErrorIs(t, err, io.EOF)
		}
	}
}

func TestReadRefusesOversize(t *testing.T) {
	const max = 1000
	exact := &pb.Text{Text: strings.Repeat("a", max-3)}
	require.Equal(t, max, proto.Size(exact))
	require.NoError(t, wire.Read(bufio.NewReader(bytes.NewReader(frame(t, exact))), max, &pb.Text{}))
	require.NoError(t, wire.Write(io.Discard, max, exact))

	over := &pb.Text{Text: exact.Text + "a"}
	require.ErrorIs(t, wire.Read(bufio.NewReader(bytes.NewReader(frame(t, over))), max, &pb.Text{}), wire.ErrTooLarge)
	var out bytes.Buffer
	require.ErrorIs(t, wire.Write(&out, max, over), wire.ErrTooLarge)
	require.Zero(t, out.Len())
}

func TestReadRefusesHugeLengthWithoutAllocating(t *testing.T) {
	for _, n := range []uint64{wire.MaxSyncFrame + 1, 1 << 31, 1 << 34, 1 << 62, 1<<64 - 1} {
		b := binary.AppendUvarint(nil, n)
		r := bufio.NewReader(bytes.NewReader(b))
		allocated := testing.AllocsPerRun(10, func() {
			r.Reset(bytes.NewReader(b))
			if err := wire.Read(r, wire.MaxSyncFrame, &pb.Text{}); !errors.Is(err, wire.ErrTooLarge) {
				t.Errorf("length %d: %v", n, err)
			}
		})
		require.Less(t, allocated, 20.0)
	}
}

func TestReadRefusesLongPrefix(t *testing.T) {
	for name, b := range map[string][]byte{
		"not minimal zero": {0x80, 0x00},
		"not minimal":      {0x83, 0x80, 0x00, 1, 2, 3},
	} {
		err := wire.Read(bufio.NewReader(bytes.NewReader(b)), 100, &pb.Text{})
		require.ErrorIs(t, err, wire.ErrMalformed, name)
	}
	// An endless prefix is given up after five bytes.
	err := wire.Read(bufio.NewReader(endless(0xff)), 100, &pb.Text{})
	require.ErrorIs(t, err, wire.ErrTooLarge)
}

type endless byte

func (e endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(e)
	}
	return len(p), nil
}

func TestReadRefusesGarbage(t *testing.T) {
	for _, body := range []string{"\xff\xff", "\x0a\x05ab", "\x0a\x02\xff\xfe"} {
		b := append([]byte{byte(len(body))}, body...)
		err := wire.Read(bufio.NewReader(bytes.NewReader(b)), 100, &pb.Text{})
		require.ErrorIs(t, err, wire.ErrMalformed, "%q", body)
	}
}

func TestReadDropsUnknownFields(t *testing.T) {
	b := frame(t, &pb.Invite{Username: "field 4 is unknown to Text"})
	var out pb.Text
	require.NoError(t, wire.Read(bufio.NewReader(bytes.NewReader(b)), 100, &out))
	require.Empty(t, out.ProtoReflect().GetUnknown())
}

func TestReadPassesOnOtherErrors(t *testing.T) {
	broken := errors.New("broken")
	for _, r := range []io.Reader{
		iotest.ErrReader(broken),
		io.MultiReader(bytes.NewReader([]byte{0x85}), iotest.ErrReader(broken)),
		io.MultiReader(bytes.NewReader([]byte{5, 1}), iotest.ErrReader(broken)),
	} {
		require.ErrorIs(t, wire.Read(bufio.NewReader(r), 100, &pb.Text{}), broken)
	}
}

func TestWritePassesOnErrors(t *testing.T) {
	require.ErrorIs(t, wire.Write(failing{}, 100, &pb.Text{Text: "a"}), io.ErrClosedPipe)
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func FuzzRead(f *testing.F) {
	f.Add([]byte{})
	f.Add(frame(f, &pb.Frame{Of: &pb.Frame_Ping{Ping: &pb.Ping{Nonce: 7}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		const max = 4096
		r := bufio.NewReaderSize(bytes.NewReader(b), 64)
		for {
			var m pb.Frame
			err := wire.Read(r, max, &m)
			if err != nil {
				if err == io.EOF && r.Buffered() != 0 {
					t.Fatal("end of stream reported with bytes left")
				}
				return
			}
			again, err := wire.Append(nil, &m)
			if err != nil {
				t.Fatal(err)
			}
			var m2 pb.Frame
			if err := wire.Read(bufio.NewReader(bytes.NewReader(again)), 2*max, &m2); err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(&m, &m2) {
				t.Fatal("second reading differs")
			}
		}
	})
}

func BenchmarkRead(b *testing.B) {
	one, err := wire.Append(nil, &pb.Frame{Of: &pb.Frame_Run{Run: &pb.RunFrame{Run: &pb.Run{
		Entries: []*pb.Entry{{Header: make([]byte, 250), Body: make([]byte, 64)}}, Signature: make([]byte, 64),
	}}}})
	require.NoError(b, err)
	src := bytes.NewReader(one)
	r := bufio.NewReader(src)
	for b.Loop() {
		src.Reset(one)
		r.Reset(src)
		if err := wire.Read(r, wire.MaxSyncFrame, &pb.Frame{}); err != nil {
			b.Fatal(err)
		}
	}
}
