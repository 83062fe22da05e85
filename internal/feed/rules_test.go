package feed

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protodelim"

	"hima/internal/wire/pb"
)

// holder is the least a device can be: the entries of one feed and the checked signatures among them.
type holder struct {
	entries    []Entry
	signatures map[uint64][]byte
}

func newHolder() *holder { return &holder{signatures: map[uint64][]byte{}} }

func (h *holder) tip() Tip {
	if len(h.entries) == 0 {
		return Tip{}
	}
	return h.entries[len(h.entries)-1].Tip()
}

// take checks and stores a run; a run that fails leaves nothing behind.
func (h *holder) take(raw *pb.Run) error {
	run, err := CheckRun(h.tip(), raw)
	if err != nil {
		return err
	}
	h.entries = append(h.entries, run.Entries()...)
	h.signatures[run.Last().Seq] = run.Signature()
	return nil
}

// serve returns the runs that bring somebody from a number on to where the holder is, each ending at a held signature.
func (h *holder) serve(t testing.TB, from uint64) []*pb.Run {
	var out []*pb.Run
	for from <= h.tip().Seq {
		n := Fit(h.entries[from-1:])
		end := from + uint64(n) - 1
		for h.signatures[end] == nil {
			end--
			require.GreaterOrEqual(t, end, from, "no signature within a wire run")
		}
		run, err := Assemble(h.entries[from-1:end], h.signatures[end])
		require.NoError(t, err)
		out = append(out, run.PB())
		from = end + 1
	}
	return out
}

// Rule C: a feed 1..100 whose author signs every fifth entry, and number 50 badly. Whatever reaches the second device
// first, a third device gets every (from, to) from it and all of it verifies.
func TestBadSignatureInTheMiddle(t *testing.T) {
	w := newWriter("alice")
	all := w.write(t, Tip{}, 100)
	bad := bytes.Repeat([]byte{9}, 64)
	raw := func(from, to int) *pb.Run {
		r := Run{entries: all[from-1 : to], signature: SignRun(w.key, all[to-1])}
		if to == 50 {
			r.signature = bad
		}
		return r.PB()
	}
	second := newHolder()
	for from := 1; from <= 45; from += 5 {
		require.NoError(t, second.take(raw(from, from+4)))
	}
	require.ErrorIs(t, second.take(raw(46, 50)), ErrBadSignature)
	require.Equal(t, uint64(45), second.tip().Seq, "a dropped run must leave nothing")
	require.ErrorIs(t, second.take(raw(51, 55)), ErrGap, "nothing beyond the bad signature is contiguous")
	require.NoError(t, second.take(raw(46, 55)), "the next signature vouches for 46 to 50 as well")
	for from := 56; from <= 96; from += 5 {
		require.NoError(t, second.take(raw(from, from+4)))
	}
	require.NotContains(t, second.signatures, uint64(50))

	for from := 1; from <= 100; from++ {
		for to := from; to <= 100; to++ {
			if second.signatures[uint64(to)] == nil {
				continue // the second device cannot end a run here, and does not try
			}
			part := &holder{entries: second.entries[:to], signatures: second.signatures}
			third := &holder{entries: all[: from-1 : from-1], signatures: map[uint64][]byte{}}
			for _, r := range part.serve(t, uint64(from)) {
				require.NoError(t, third.take(r), "from %d to %d", from, to)
			}
			require.Equal(t, uint64(to), third.tip().Seq)
		}
	}
}

// Rule C: the stream is cut at every byte. What was stored is always a verified run, and each retry makes progress.
func TestStreamCutAtEveryByte(t *testing.T) {
	const total, step = 8, 2
	w := newWriter("alice")
	all := w.write(t, Tip{}, total)
	source := newHolder()
	var stream bytes.Buffer
	for from := 0; from < total; from += step {
		raw := w.sign(t, all[from:from+step]).PB()
		require.NoError(t, source.take(raw))
		_, err := protodelim.MarshalTo(&stream, raw)
		require.NoError(t, err)
	}
	for cut := 0; cut <= stream.Len(); cut++ {
		sink := newHolder()
		receive(t, sink, stream.Bytes()[:cut])
		stored := sink.tip().Seq
		require.Zero(t, stored%step, "cut at %d: stored up to %d, where no run ends", cut, stored)
		if stored > 0 {
			require.Contains(t, sink.signatures, stored)
		}
		for _, raw := range source.serve(t, stored+1) {
			require.NoError(t, sink.take(raw), "cut at %d", cut)
		}
		require.Equal(t, uint64(total), sink.tip().Seq, "cut at %d: the retry from %d made no progress", cut, stored+1)
	}
}

// receive takes runs from a stream until it ends or breaks.
func receive(t testing.TB, h *holder, stream []byte) {
	t.Helper()
	r := bufio.NewReader(bytes.NewReader(stream))
	for {
		var run pb.Run
		err := protodelim.UnmarshalFrom(r, &run)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return
		}
		require.NoError(t, err)
		require.NoError(t, h.take(&run))
	}
}

// R7: a stranger's clock at the very top does not keep us from writing, and what we write is valid for everybody.
func TestHighClocksDoNotSilenceAnybody(t *testing.T) {
	w := newWriter("bob")
	tip := Tip{}
	for i := range 5 {
		clock := NextClock(tip, MaxFirstClock+uint64(i))
		e, err := w.Next(tip, testConversation, Chat, KindText, clock, 0, nil)
		require.NoError(t, err)
		tip = e.Tip()
	}
	low := w.write(t, Tip{}, 3)
	tip = low[2].Tip()
	for range 3 {
		e, err := w.Next(tip, testConversation, Chat, KindText, NextClock(tip, 1<<62), 0, nil)
		require.NoError(t, err)
		_, err = CheckRun(tip, w.sign(t, []Entry{e}).PB())
		require.NoError(t, err)
		require.Equal(t, tip.Clock+MaxClockStep, e.Clock)
		tip = e.Tip()
	}
	require.Equal(t, uint64(8), NextClock(Tip{Seq: 1, Clock: 3}, 7))
	require.Equal(t, uint64(4), NextClock(Tip{Seq: 1, Clock: 3}, 0))
	require.Equal(t, uint64(1), NextClock(Tip{}, 0))
	require.Equal(t, uint64(MaxFirstClock), NextClock(Tip{}, 1<<63))
	require.Equal(t, uint64(MaxFirstClock), NextClock(Tip{}, 1<<64-1))
}

func TestAuthorRefusesWhatOthersWould(t *testing.T) {
	w := newWriter("alice")
	tip := w.write(t, Tip{}, 1)[0].Tip()
	_, err := w.Next(tip, testConversation, Chat, KindText, tip.Clock, 0, nil)
	require.ErrorIs(t, err, ErrClock)
	_, err = w.Next(tip, testConversation, Chat, KindText, tip.Clock+MaxClockStep+1, 0, nil)
	require.ErrorIs(t, err, ErrClock)
	_, err = w.Next(tip, testConversation, 3, KindText, tip.Clock+1, 0, nil)
	require.ErrorIs(t, err, ErrMalformed)
	_, err = w.Next(tip, ConversationID{}, Chat, KindText, tip.Clock+1, 0, nil)
	require.ErrorIs(t, err, ErrMalformed)
	_, err = w.Next(tip, testConversation, Chat, KindText, tip.Clock+1, 0, make([]byte, MaxContent+1))
	require.ErrorIs(t, err, ErrTooLarge)
	_, err = newWriter("bob").Next(tip, testConversation, Chat, KindText, tip.Clock+1, 0, nil)
	require.ErrorIs(t, err, ErrCertificate)

	// A wrong clock of the author never stops it.
	for _, ms := range []int64{-1 << 63, -1, MaxTimeMS + 1, 1<<63 - 1} {
		e, err := w.Next(tip, testConversation, Chat, KindText, tip.Clock+1, ms, nil)
		require.NoError(t, err)
		_, err = ParseStored(e.RawHeader(), e.RawBody())
		require.NoError(t, err)
	}
}
