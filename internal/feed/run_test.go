package feed

import (
	"bytes"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"hima/internal/wire/pb"
)

// runCase is a run, the tip it is checked against, and what must come out.
type runCase struct {
	tip     Tip
	run     *pb.Run
	err     error
	entries int // new ones, if err is nil
}

// runCases are also the vectors of docs/spec/vectors/feed.json.
func runCases(t testing.TB) map[string]runCase {
	alice, eve := newWriter("alice"), newWriter("eve")
	e := alice.write(t, Tip{}, 12)
	at := func(n int) Tip { return e[n-1].Tip() }
	sub := func(from, to int) *pb.Run { return alice.sign(t, e[from-1:to]).PB() }
	change := func(r *pb.Run, f func(*pb.Run)) *pb.Run {
		r = proto.CloneOf(r)
		f(r)
		return r
	}
	// other is a second history of the same device from number 5 on.
	other := alice.write(t, at(4), 6)
	step := func(f func(*Header)) *pb.Run { return alice.rawRun(rewrite(e[4], f)) }
	inner := func(f func(*Header)) *pb.Run { return alice.rawRun(e[4], rewrite(e[5], f)) }
	unknownClock := at(4)
	unknownClock.Clock = 0
	laptop := newDevice("alice", "alice-laptop")
	return map[string]runCase{
		"from the beginning":          {Tip{}, sub(1, 12), nil, 12},
		"one entry":                   {Tip{}, sub(1, 1), nil, 1},
		"continued":                   {at(4), sub(5, 12), nil, 8},
		"overlapping":                 {at(6), sub(3, 12), nil, 6},
		"above a floor":               {unknownClock, sub(5, 6), nil, 2},
		"bodies erased":               {at(4), change(sub(5, 7), func(r *pb.Run) { r.Entries[1].Body = nil }), nil, 3},
		"highest step of clock":       {at(4), step(func(h *Header) { h.Clock = e[3].Clock + MaxClockStep }), nil, 1},
		"unknown kind":                {at(4), step(func(h *Header) { h.Kind = 4000 }), nil, 1},
		"second device":               {Tip{}, laptop.sign(t, laptop.write(t, Tip{}, 1)).PB(), nil, 1},
		"known":                       {at(12), sub(3, 12), ErrKnown, 0},
		"known and older":             {at(12), sub(3, 6), ErrKnown, 0},
		"gap":                         {at(4), sub(6, 12), ErrGap, 0},
		"gap at the beginning":        {Tip{}, sub(2, 12), ErrGap, 0},
		"fork at the tip":             {at(6), alice.sign(t, other).PB(), ErrFork, 0},
		"fork right after the tip":    {at(5), alice.sign(t, other[1:]).PB(), ErrFork, 0},
		"no entries":                  {Tip{}, &pb.Run{Signature: make([]byte, 64)}, ErrMalformed, 0},
		"no signature":                {Tip{}, change(sub(1, 2), func(r *pb.Run) { r.Signature = nil }), ErrMalformed, 0},
		"signature damaged":           {Tip{}, change(sub(1, 2), func(r *pb.Run) { r.Signature[5]++ }), ErrBadSignature, 0},
		"signature of another entry":  {Tip{}, change(sub(1, 2), func(r *pb.Run) { r.Signature = SignRun(alice.key, e[0]) }), ErrBadSignature, 0},
		"signature of another device": {Tip{}, change(sub(1, 2), func(r *pb.Run) { r.Signature = SignRun(eve.key, e[1]) }), ErrBadSignature, 0},
		"signature over a known run":  {at(2), change(sub(1, 2), func(r *pb.Run) { r.Signature[5]++ }), ErrBadSignature, 0},
		"forged fork":                 {at(6), change(alice.sign(t, other).PB(), func(r *pb.Run) { r.Signature[5]++ }), ErrBadSignature, 0},
		"header damaged":              {at(4), change(sub(5, 8), func(r *pb.Run) { r.Entries[1].Header[75]++ }), ErrBrokenChain, 0},
		"last header damaged":         {at(4), change(sub(5, 8), func(r *pb.Run) { r.Entries[3].Header[150]++ }), ErrBadSignature, 0},
		"entries swapped":             {at(4), change(sub(5, 8), func(r *pb.Run) { r.Entries[1], r.Entries[2] = r.Entries[2], r.Entries[1] }), ErrBrokenChain, 0},
		"entry left out":              {at(4), change(sub(5, 8), func(r *pb.Run) { r.Entries = append(r.Entries[:1], r.Entries[2:]...) }), ErrBrokenChain, 0},
		"entry twice":                 {at(4), change(sub(5, 8), func(r *pb.Run) { r.Entries[2] = r.Entries[1] }), ErrBrokenChain, 0},
		"previous hash wrong inside":  {at(4), inner(func(h *Header) { h.Prev[3]++ }), ErrBrokenChain, 0},
		"other conversation inside":   {at(4), inner(func(h *Header) { h.Conversation[0]++ }), ErrBrokenChain, 0},
		"other feed inside":           {at(4), inner(func(h *Header) { h.Number = Control }), ErrBrokenChain, 0},
		"other account inside":        {at(4), inner(func(h *Header) { h.Account = eve.account }), ErrCertificate, 0},
		"other account after the tip": {at(4), step(func(h *Header) { h.Account = eve.account }), ErrCertificate, 0},
		"body damaged":                {at(4), change(sub(5, 8), func(r *pb.Run) { r.Entries[1].Body[60]++ }), ErrBody, 0},
		"body of another length":      {at(4), change(sub(5, 8), func(r *pb.Run) { r.Entries[1].Body = make([]byte, 256) }), ErrBody, 0},
		"body of another entry":       {at(4), change(sub(5, 8), func(r *pb.Run) { r.Entries[1].Body = r.Entries[2].Body }), ErrBody, 0},
		"clock stands still":          {at(4), step(func(h *Header) { h.Clock = e[3].Clock }), ErrClock, 0},
		"clock jumps too far":         {at(4), step(func(h *Header) { h.Clock = e[3].Clock + MaxClockStep + 1 }), ErrClock, 0},
		"clock stands still inside":   {at(4), alice.rawRun(rewriteChain(e[4], e[5], 10)...), ErrClock, 0},
		"clock beyond all chains":     {at(4), step(func(h *Header) { h.Clock = 1<<63 + 1 }), ErrClock, 0},
		"certificate of another":      {Tip{}, alice.rawRun(rewrite(e[0], func(h *Header) { h.Certificate = eve.certificate })), ErrCertificate, 0},
		"certificate of other device": {Tip{}, alice.rawRun(rewrite(e[0], func(h *Header) { h.Certificate = laptop.certificate })), ErrCertificate, 0},
		"certificate damaged":         {Tip{}, alice.rawRun(rewrite(e[0], func(h *Header) { h.Certificate = damaged(h.Certificate) })), ErrCertificate, 0},
		"forged author":               {Tip{}, eve.rawRun(rewrite(e[0], func(h *Header) { h.Device = eve.device })), ErrCertificate, 0},
		"signed by the wrong key":     {Tip{}, eve.rawRun(e[0]), ErrBadSignature, 0},
	}
}

func damaged(b []byte) []byte {
	b = bytes.Clone(b)
	b[len(b)-1]++
	return b
}

// rewriteChain gives two entries the same clock and a whole chain.
func rewriteChain(a, b Entry, clock uint64) []Entry {
	a = rewrite(a, func(h *Header) { h.Clock = clock })
	b = rewrite(b, func(h *Header) { h.Clock, h.Prev = clock, a.ID })
	return []Entry{a, b}
}

func TestCheckRun(t *testing.T) {
	for name, c := range runCases(t) {
		t.Run(name, func(t *testing.T) {
			before := proto.CloneOf(c.run)
			run, err := CheckRun(c.tip, c.run)
			require.True(t, proto.Equal(before, c.run), "input was changed")
			if c.err != nil {
				require.ErrorIs(t, err, c.err)
				require.Zero(t, run)
				requireOneClass(t, err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.entries, run.Len())
			require.Equal(t, c.tip.Seq+1, run.First().Seq)
			require.Equal(t, run.Last(), run.Entries()[run.Len()-1])
			// What was let through goes through again, from its own encoding.
			again, err := CheckRun(c.tip, run.PB())
			require.NoError(t, err)
			require.Equal(t, run.Last().ID, again.Last().ID)
			require.Equal(t, proto.Size(run.PB()), run.WireSize())
		})
	}
}

// classes are the errors of which each failure wraps exactly one.
var classes = map[string]error{
	"malformed": ErrMalformed, "too large": ErrTooLarge, "bad signature": ErrBadSignature, "bad certificate": ErrCertificate,
	"broken chain": ErrBrokenChain, "clock": ErrClock, "body": ErrBody, "gap": ErrGap, "known": ErrKnown, "fork": ErrFork,
}

func requireOneClass(t require.TestingT, err error) string {
	var found string
	for name, class := range classes {
		if errors.Is(err, class) {
			require.Empty(t, found, "%v is of two classes", err)
			found = name
		}
	}
	require.NotEmpty(t, found, "%v is of no class", err)
	return found
}

func TestSizesOfRuns(t *testing.T) {
	w := newWriter("alice")
	var all []Entry
	tip := Tip{}
	for range 300 {
		e, err := w.Next(tip, testConversation, Chat, KindText, tip.Clock+1, 0, []byte("x"))
		require.NoError(t, err)
		all = append(all, e)
		tip = e.Tip()
	}
	n := Fit(all)
	require.Less(t, n, 256, "bytes bind before the count does")
	_, err := CheckRun(Tip{}, w.sign(t, all[:n]).PB())
	require.NoError(t, err)
	_, err = Assemble(all[:n+1], SignRun(w.key, all[n]))
	require.ErrorIs(t, err, ErrTooLarge)
	_, err = CheckRun(Tip{}, w.rawRun(all[:n+1]...))
	require.ErrorIs(t, err, ErrTooLarge)

	tooMany := make([]*pb.Entry, MaxRunEntries+1)
	for i := range tooMany {
		tooMany[i] = &pb.Entry{}
	}
	_, err = CheckDetached(&pb.Run{Entries: tooMany, Signature: make([]byte, 64)})
	require.ErrorIs(t, err, ErrTooLarge)
	require.Equal(t, MaxRunEntries, Fit(make([]Entry, 300)))

	// The largest body alone still makes a run.
	e, err := w.Next(Tip{}, testConversation, Chat, KindText, 1, 0, make([]byte, MaxContent))
	require.NoError(t, err)
	require.Equal(t, 1, Fit([]Entry{e}))
	_, err = CheckRun(Tip{}, w.sign(t, []Entry{e}).PB())
	require.NoError(t, err)
}

func TestNilsAreRefused(t *testing.T) {
	e := newWriter("alice").write(t, Tip{}, 1)[0]
	for _, raw := range []*pb.Run{nil, {}, {Entries: []*pb.Entry{nil}}, {Entries: []*pb.Entry{{Header: e.RawHeader()}, nil}}} {
		_, err := CheckRun(Tip{}, raw)
		require.ErrorIs(t, err, ErrMalformed)
		_, err = CheckDetached(raw)
		require.ErrorIs(t, err, ErrMalformed)
	}
	_, err := Assemble(nil, make([]byte, 64))
	require.ErrorIs(t, err, ErrMalformed)
}

func TestCheckDetached(t *testing.T) {
	w := newWriter("alice")
	e := w.write(t, Tip{}, 9)
	run, err := CheckDetached(w.sign(t, e[4:]).PB())
	require.NoError(t, err)
	require.Equal(t, uint64(5), run.First().Seq)
	_, err = run.After(Tip{})
	require.ErrorIs(t, err, ErrGap)
	_, err = run.After(e[2].Tip())
	require.ErrorIs(t, err, ErrGap)
	rest, err := run.After(e[5].Tip())
	require.NoError(t, err)
	require.Equal(t, uint64(7), rest.First().Seq)
	_, err = CheckDetached(w.rawRun(e[4], e[6]))
	require.ErrorIs(t, err, ErrBrokenChain)
}

// Any cut of any feed into runs is taken, whatever the order of arrival, and ends at the same tip.
func TestAnyCutOfAFeedIsTaken(t *testing.T) {
	w := newWriter("alice")
	e := w.write(t, Tip{}, 60)
	rapid.Check(t, func(t *rapid.T) {
		tip := Tip{}
		for steps := 0; tip.Seq < 60; steps++ {
			from := rapid.IntRange(1, int(tip.Seq)+1).Draw(t, "from")
			to := rapid.IntRange(from, min(from+20, 60)).Draw(t, "to")
			if steps > 200 {
				from, to = int(tip.Seq)+1, min(int(tip.Seq)+20, 60)
			}
			raw := Run{entries: e[from-1 : to], signature: SignRun(w.key, e[to-1])}.PB()
			run, err := CheckRun(tip, raw)
			if uint64(to) <= tip.Seq {
				require.ErrorIs(t, err, ErrKnown)
				continue
			}
			require.NoError(t, err)
			require.Equal(t, tip.Seq+1, run.First().Seq)
			tip = run.Last().Tip()
		}
		require.Equal(t, e[59].Tip(), tip)
	})
}

// Whatever bit is changed in an encoded run: what comes through is what the author wrote.
func TestAnyChangedBitIsNoticed(t *testing.T) {
	w := newWriter("alice")
	good := w.sign(t, w.write(t, Tip{}, 4))
	raw, err := proto.Marshal(good.PB())
	require.NoError(t, err)
	for at := range raw {
		bad := bytes.Clone(raw)
		bad[at] ^= 1 << (at % 8)
		var r pb.Run
		if proto.Unmarshal(bad, &r) != nil {
			continue
		}
		run, err := CheckRun(Tip{}, &r)
		if err != nil {
			continue
		}
		// A changed tag can turn a body into a field of a newer version. Nothing else is left unnoticed.
		require.Equal(t, 4, run.Len())
		for i, e := range run.Entries() {
			require.Equal(t, good.Entries()[i].ID, e.ID)
			require.True(t, !e.HasBody() || bytes.Equal(e.RawBody(), good.Entries()[i].RawBody()))
		}
	}
}

// Headers in a row are read without signature and bodies; what is no row of one feed is not.
func TestCheckHeaders(t *testing.T) {
	w := newWriter("alice")
	raw := w.sign(t, w.write(t, Tip{}, 3)).PB()
	bare := &pb.Run{}
	for _, e := range raw.Entries {
		bare.Entries = append(bare.Entries, &pb.Entry{Header: e.Header})
	}
	entries, err := CheckHeaders(bare)
	require.NoError(t, err)
	require.Len(t, entries, 3)
	require.False(t, entries[2].HasBody())
	_, err = CheckDetached(bare)
	require.ErrorIs(t, err, ErrMalformed)
	_, err = CheckHeaders(&pb.Run{Entries: []*pb.Entry{bare.Entries[0], bare.Entries[2]}})
	require.ErrorIs(t, err, ErrBrokenChain)
	for _, bad := range []*pb.Run{nil, {}, {Entries: []*pb.Entry{nil}}, {Entries: []*pb.Entry{{}}}, {Entries: make([]*pb.Entry, MaxRunEntries+1)}} {
		_, err = CheckHeaders(bad)
		require.Error(t, err)
	}
}
