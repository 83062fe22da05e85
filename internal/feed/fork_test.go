package feed

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"hima/internal/wire/pb"
)

// forked returns two histories of one device that part after a number.
func forked(t testing.TB, after, a, b int) (w writer, left, right []Entry) {
	w = newWriter("alice")
	common := w.write(t, Tip{}, after)
	tip := Tip{}
	if after > 0 {
		tip = common[after-1].Tip()
	}
	left = append(common[:after:after], w.write(t, tip, a)...)
	right = append(common[:after:after], w.write(t, tip, b)...)
	return w, left, right
}

// Wherever two histories part and wherever their runs end, the runs that differ prove it, and the proof fits a frame.
func TestForkIsAlwaysProvable(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		after := rapid.IntRange(0, 5).Draw(rt, "after")
		a, b := rapid.IntRange(1, 60).Draw(rt, "a"), rapid.IntRange(1, 60).Draw(rt, "b")
		w, left, right := forked(t, after, a, b)
		from := rapid.IntRange(0, after).Draw(rt, "from")
		proof, err := NewForkProof(w.sign(t, left[from:]), w.sign(t, right[after:]))
		require.NoError(rt, err)
		checked, err := CheckForkProof(proof.PB())
		require.NoError(rt, err)
		require.Equal(rt, left[0].Feed(), checked.Feed())
		require.Equal(rt, uint64(after+min(a, b)), checked.Seq())
		x, y := checked.Entries()
		require.NotEqual(rt, x.ID, y.ID)
		require.False(rt, x.HasBody() || y.HasBody())
		require.LessOrEqual(rt, proto.Size(checked.PB()), MaxForkProof)
	})
}

func TestForkOfFullRunsFits(t *testing.T) {
	w, left, right := forked(t, 1, 1, 240)
	var bare []Entry
	for _, e := range right[1:] {
		bare = append(bare, e.WithoutBody())
	}
	n := Fit(bare)
	proof, err := NewForkProof(w.sign(t, left[1:]), w.sign(t, bare[:n]))
	require.NoError(t, err)
	_, err = CheckForkProof(proof.PB())
	require.NoError(t, err)
}

func TestNoProofWithoutFork(t *testing.T) {
	w, left, right := forked(t, 3, 2, 4)
	_, err := NewForkProof(w.sign(t, left[:3]), w.sign(t, right))
	require.ErrorIs(t, err, ErrKnown)
	_, err = NewForkProof(w.sign(t, left[:2]), w.sign(t, right[3:]))
	require.ErrorIs(t, err, ErrGap)
	bob := newWriter("bob")
	_, err = NewForkProof(w.sign(t, left), bob.sign(t, bob.write(t, Tip{}, 1)))
	require.ErrorIs(t, err, ErrMalformed)
	_, err = NewForkProof(Run{}, Run{})
	require.ErrorIs(t, err, ErrMalformed)
}

type forkCase struct {
	proof *pb.ForkProof
	err   error
}

// forkCases are also the vectors.
func forkCases(t testing.TB) map[string]forkCase {
	w, left, right := forked(t, 3, 1, 3)
	proof, err := NewForkProof(w.sign(t, left[3:]), w.sign(t, right[3:]))
	require.NoError(t, err)
	change := func(f func(*pb.ForkProof)) *pb.ForkProof {
		p := proto.CloneOf(proof.PB())
		f(p)
		return p
	}
	bob := newWriter("bob")
	foreign := bob.write(t, Tip{}, 4)[3]
	disowned := newDevice("bob", "alice")
	other := disowned.write(t, Tip{}, 4)[3]
	return map[string]forkCase{
		"with tail":      {proof.PB(), nil},
		"without tail":   {change(func(p *pb.ForkProof) { p.Tail, p.SignatureB = nil, SignRun(w.key, right[3]) }), nil},
		"empty":          {&pb.ForkProof{}, ErrMalformed},
		"twice the same": {change(func(p *pb.ForkProof) { p.HeaderB, p.SignatureB, p.Tail = p.HeaderA, p.SignatureA, nil }), ErrMalformed},
		"other number":   {change(func(p *pb.ForkProof) { p.HeaderB, p.Tail = p.Tail[0], p.Tail[1:] }), ErrMalformed},
		"other device": {change(func(p *pb.ForkProof) {
			p.HeaderB, p.SignatureB, p.Tail = foreign.header, SignRun(bob.key, foreign), nil
		}), ErrMalformed},
		"other account": {change(func(p *pb.ForkProof) {
			p.HeaderB, p.SignatureB, p.Tail = other.header, SignRun(disowned.key, other), nil
		}), ErrMalformed},
		"tail broken":          {change(func(p *pb.ForkProof) { p.Tail = p.Tail[1:] }), ErrBrokenChain},
		"tail cut":             {change(func(p *pb.ForkProof) { p.Tail = p.Tail[:1] }), ErrBadSignature},
		"first signature bad":  {change(func(p *pb.ForkProof) { p.SignatureA[3]++ }), ErrBadSignature},
		"second signature bad": {change(func(p *pb.ForkProof) { p.SignatureB[3]++ }), ErrBadSignature},
		"signed by another":    {change(func(p *pb.ForkProof) { p.SignatureA = SignRun(bob.key, left[3]) }), ErrBadSignature},
		"too large":            {change(func(p *pb.ForkProof) { p.Tail = append(p.Tail, make([]byte, MaxForkProof)) }), ErrTooLarge},
		"too many":             {change(func(p *pb.ForkProof) { p.Tail = make([][]byte, MaxRunEntries) }), ErrTooLarge},
	}
}

func TestCheckForkProof(t *testing.T) {
	for name, c := range forkCases(t) {
		t.Run(name, func(t *testing.T) {
			_, err := CheckForkProof(c.proof)
			if c.err == nil {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, c.err)
			requireOneClass(t, err)
		})
	}
	_, err := CheckForkProof(nil)
	require.ErrorIs(t, err, ErrMalformed)
}

// Where the branches of a control feed part is shown by every proof whose runs reach back so far.
func TestProofShowsWhereControlFeedParts(t *testing.T) {
	w := newWriter("alice")
	write := func(tip Tip, n int) (out []Entry) {
		for range n {
			e, err := w.Next(tip, testConversation, Control, KindGroupSet, tip.Clock+1, 0, nil)
			require.NoError(t, err)
			out, tip = append(out, e), e.Tip()
		}
		return out
	}
	for _, parted := range []int{0, 3} {
		common := write(Tip{}, parted)
		var tip Tip
		if parted > 0 {
			tip = common[parted-1].Tip()
		}
		left, right := append(slices.Clone(common), write(tip, 4)...), append(slices.Clone(common), write(tip, 9)...)
		for from := range 4 {
			proof, err := NewForkProof(w.sign(t, left[from:]), w.sign(t, right[1:]))
			require.NoError(t, err)
			checked, err := CheckForkProof(proof.PB())
			require.NoError(t, err)
			at, sure := checked.Parted()
			require.Equal(t, uint64(max(from, parted, 1)+1), at)
			require.Equal(t, at == uint64(parted+1), sure)

			bad := proof.PB()
			if parted > 0 && from == 0 {
				bad.BeforeA, bad.BeforeB = append([][]byte{common[parted-1].RawHeader()}, bad.BeforeA...), append([][]byte{common[parted-1].RawHeader()}, bad.BeforeB...)
				_, err = CheckForkProof(bad)
				require.ErrorIs(t, err, ErrMalformed, "it shows a fork where there is none")
			}
			if len(proof.PB().BeforeA) > 1 {
				bad = proof.PB()
				bad.BeforeA, bad.BeforeB = bad.BeforeA[:1], bad.BeforeB[:1]
				_, err = CheckForkProof(bad)
				require.ErrorIs(t, err, ErrBrokenChain)
			}
		}
	}
}
