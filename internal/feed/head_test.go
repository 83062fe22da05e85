package feed

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"hima/internal/wire/pb"
)

func drawHead(t *rapid.T) Head {
	h := Head{Number: rapid.SampledFrom([]Number{Control, Chat}).Draw(t, "feed"), Last: rapid.Uint64Range(0, MaxSeq).Draw(t, "last")}
	h.First = rapid.Uint64Range(1, h.Last+1).Draw(t, "first")
	h.Account = [32]byte(drawBytes(t, 32, "account"))
	h.Device = [32]byte(drawBytes(t, 32, "device"))
	if h.Last > 0 {
		h.Hash = EntryID(drawBytes(t, 32, "hash"))
	}
	return h
}

func TestHeadRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := drawHead(t)
		raw, err := proto.Marshal(h.PB())
		require.NoError(t, err)
		var p pb.Head
		require.NoError(t, proto.Unmarshal(raw, &p))
		got, err := HeadFromPB(&p)
		require.NoError(t, err)
		require.Equal(t, h, got)
	})
}

func TestDigestIgnoresOrderAndNothingElse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		heads := rapid.SliceOfN(rapid.Custom(drawHead), 1, 6).Draw(t, "heads")
		before := slices.Clone(heads)
		shuffled := rapid.Permutation(heads).Draw(t, "shuffled")
		require.Equal(t, Digest(heads), Digest(shuffled))
		require.Equal(t, before, heads, "argument was changed")

		other := slices.Clone(heads)
		h := &other[rapid.IntRange(0, len(other)-1).Draw(t, "at")]
		switch rapid.IntRange(0, 5).Draw(t, "change") {
		case 0:
			h.First++
		case 1:
			h.Last++
		case 2:
			h.Hash[7]++
		case 3:
			h.Account[7]++
		case 4:
			h.Device[7]++
		case 5:
			h.Number = 3 - h.Number
		}
		require.NotEqual(t, Digest(heads), Digest(other))
		require.NotEqual(t, Digest(heads), Digest(heads[1:]))
	})
}

// headCases are heads that must be refused.
func headCases() map[string]*pb.Head {
	good := newWriterHead()
	change := func(f func(*pb.Head)) *pb.Head {
		h := proto.CloneOf(good)
		f(h)
		return h
	}
	return map[string]*pb.Head{
		"empty":                {},
		"feed three":           change(func(h *pb.Head) { h.Feed = 3 }),
		"short account":        change(func(h *pb.Head) { h.Account = h.Account[1:] }),
		"no device":            change(func(h *pb.Head) { h.Device = nil }),
		"first zero":           change(func(h *pb.Head) { h.First = 0 }),
		"first beyond last":    change(func(h *pb.Head) { h.First = h.Last + 2 }),
		"last too high":        change(func(h *pb.Head) { h.Last = MaxSeq + 1 }),
		"last at the very top": change(func(h *pb.Head) { h.Last, h.First = 1<<64-1, 1 }),
		"no hash":              change(func(h *pb.Head) { h.Hash = nil }),
		"long hash":            change(func(h *pb.Head) { h.Hash = append(h.Hash, 0) }),
		"hash of nothing":      change(func(h *pb.Head) { h.First, h.Last = 1, 0 }),
	}
}

func newWriterHead() *pb.Head {
	w := newWriter("alice")
	return Head{Number: Chat, Account: w.account, Device: w.device, First: 3, Last: 9, Hash: EntryID{1, 2, 3}}.PB()
}

func TestHeadsRefused(t *testing.T) {
	_, err := HeadFromPB(newWriterHead())
	require.NoError(t, err)
	for name, h := range headCases() {
		t.Run(name, func(t *testing.T) {
			_, err := HeadFromPB(h)
			require.ErrorIs(t, err, ErrMalformed)
		})
	}
	_, err = HeadFromPB(nil)
	require.ErrorIs(t, err, ErrMalformed)
}
