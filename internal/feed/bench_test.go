package feed

import (
	"testing"

	"github.com/stretchr/testify/require"

	"hima/internal/wire/pb"
)

// BenchmarkCheckRun checks chained runs of 200-byte texts; one operation is one entry.
func BenchmarkCheckRun(b *testing.B) {
	w := newWriter("alice")
	all := w.writeLong(b, Tip{}, 10000, 200)
	var raws []*pb.Run
	var tips []Tip
	tip := Tip{}
	for rest := all; len(rest) > 0; {
		n := Fit(rest)
		raws = append(raws, w.sign(b, rest[:n]).PB())
		tips = append(tips, tip)
		tip = rest[n-1].Tip()
		rest = rest[n:]
	}
	b.ReportAllocs()
	b.ResetTimer()
	for done, i := 0, 0; done < b.N; i = (i + 1) % len(raws) {
		run, err := CheckRun(tips[i], raws[i])
		require.NoError(b, err)
		done += run.Len()
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}

func BenchmarkParseStored(b *testing.B) {
	e := newWriter("alice").writeLong(b, Tip{}, 2, 200)[1]
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseStored(e.RawHeader(), e.RawBody()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkNext(b *testing.B) {
	w := newWriter("alice")
	w.Author = NewAuthor(w.account, w.device, mustCertificate(b, w.certificate))
	tip := w.write(b, Tip{}, 1)[0].Tip()
	content := make([]byte, 204)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		e, err := w.Next(tip, testConversation, Chat, KindText, tip.Clock+1, 1, content)
		if err != nil {
			b.Fatal(err)
		}
		tip = e.Tip()
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}
