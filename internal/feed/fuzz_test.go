package feed

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"hima/internal/wire/pb"
)

func FuzzHeader(f *testing.F) {
	for _, raw := range headerCases(f) {
		f.Add(raw)
	}
	for _, e := range newWriter("alice").write(f, Tip{}, 2) {
		f.Add(e.RawHeader())
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := ParseStored(raw, nil)
		if err != nil {
			requireOneClass(t, err)
			return
		}
		h := e.Header
		requireSameAsProtobuf(t, raw, h)
		if again := h.append(nil); len(again) == len(raw) {
			require.Equal(t, raw, again, "two encodings of one header")
		}
	})
}

func FuzzBody(f *testing.F) {
	for _, raw := range bodyCases(f) {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		content, err := unpadBody(raw)
		if err != nil {
			requireOneClass(t, err)
			return
		}
		again, err := PadBody(bytes.NewReader(raw), content)
		require.NoError(t, err)
		if len(again) == len(raw) { // an author may pad more than need be
			require.Equal(t, raw, again)
		}
	})
}

func FuzzRun(f *testing.F) {
	for _, c := range runCases(f) {
		raw, err := proto.Marshal(c.run)
		require.NoError(f, err)
		f.Add(raw, c.tip.Seq)
	}
	entries := newWriter("alice").write(f, Tip{}, 12)
	f.Fuzz(func(t *testing.T, raw []byte, seq uint64) {
		var r pb.Run
		if proto.Unmarshal(raw, &r) != nil {
			return
		}
		tip := Tip{}
		if seq = seq % 13; seq > 0 {
			tip = entries[seq-1].Tip()
		}
		for _, check := range []func() (Run, error){
			func() (Run, error) { return CheckRun(tip, &r) },
			func() (Run, error) { return CheckDetached(&r) },
		} {
			run, err := check()
			if err != nil {
				requireOneClass(t, err)
				continue
			}
			for i, e := range run.Entries() {
				require.Equal(t, run.Feed(), e.Feed())
				require.Equal(t, run.First().Seq+uint64(i), e.Seq)
			}
			_, err = CheckDetached(run.PB())
			require.NoError(t, err)
		}
	})
}

func FuzzHead(f *testing.F) {
	for _, h := range headCases() {
		raw, err := proto.Marshal(h)
		require.NoError(f, err)
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var p pb.Head
		if proto.Unmarshal(raw, &p) != nil {
			return
		}
		h, err := HeadFromPB(&p)
		if err != nil {
			requireOneClass(t, err)
			return
		}
		again, err := HeadFromPB(h.PB())
		require.NoError(t, err)
		require.Equal(t, h, again)
	})
}

func FuzzForkProof(f *testing.F) {
	for _, c := range forkCases(f) {
		raw, err := proto.Marshal(c.proof)
		require.NoError(f, err)
		if len(raw) < 8<<10 {
			f.Add(raw)
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var p pb.ForkProof
		if proto.Unmarshal(raw, &p) != nil {
			return
		}
		proof, err := CheckForkProof(&p)
		if err != nil {
			requireOneClass(t, err)
			return
		}
		a, b := proof.Entries()
		require.NotEqual(t, a.ID, b.ID)
		require.Equal(t, a.Feed(), b.Feed())
		require.Equal(t, a.Seq, b.Seq)
	})
}

func FuzzOrderKey(f *testing.F) {
	f.Add(OrderKey{Clock: 1, Number: Chat, Seq: 2}.AppendTo(nil))
	f.Add([]byte("short"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		k, err := ParseOrderKey(raw)
		if err != nil {
			requireOneClass(t, err)
			return
		}
		require.Equal(t, raw, k.AppendTo(nil))
	})
}
