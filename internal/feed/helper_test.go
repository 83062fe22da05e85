package feed

import (
	"crypto/sha256"
	"encoding/binary"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/wire/pb"
)

// noise is a reader of bytes that follow from a seed, so that vectors come out the same every time.
type noise struct {
	seed  string
	count uint64
	rest  []byte
}

func (r *noise) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		sum := sha256.Sum256(binary.BigEndian.AppendUint64([]byte(r.seed), r.count))
		r.count++
		r.rest = sum[:]
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

var _ io.Reader = (*noise)(nil)

// writer is one device that writes; everything about it follows from its name.
type writer struct {
	Author
	key  identity.DeviceKey
	acct identity.AccountKey
}

var testCreated = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func newWriter(name string) writer { return newDevice(name, name) }

// newDevice returns the writer of a named device of a named account.
func newDevice(account, device string) writer {
	acct := identity.AccountKeyFromSeed(sha256.Sum256([]byte("account " + account)))
	key := identity.DeviceKeyFromSeed(sha256.Sum256([]byte("device " + device)))
	cert := identity.NewCertificate(acct, key.ID(), testCreated)
	a := NewAuthor(acct.ID(), key.ID(), cert).WithRand(&noise{seed: "salt " + account + device})
	return writer{Author: a, key: key, acct: acct}
}

var testConversation = DirectConversation(newWriter("alice").account, newWriter("bob").account)

// write makes n short text entries after a tip.
func (w writer) write(t testing.TB, tip Tip, n int) []Entry {
	t.Helper()
	return w.writeLong(t, tip, n, 20)
}

// writeLong makes n text entries of a given length.
func (w writer) writeLong(t testing.TB, tip Tip, n, length int) []Entry {
	t.Helper()
	content, err := proto.Marshal(&pb.Text{Text: strings.Repeat("hima ", length/5)})
	require.NoError(t, err)
	out := make([]Entry, n)
	for i := range out {
		e, err := w.Next(tip, testConversation, Chat, KindText, tip.Clock+1, testCreated.UnixMilli()+int64(tip.Seq), content)
		require.NoError(t, err)
		out[i] = e
		tip = e.Tip()
	}
	return out
}

// sign makes a run of entries, signed at its end.
func (w writer) sign(t testing.TB, entries []Entry) Run {
	t.Helper()
	run, err := Assemble(entries, SignRun(w.key, entries[len(entries)-1]))
	require.NoError(t, err)
	return run
}

// rewrite encodes a header after a change, as an author who breaks the rules would.
func rewrite(e Entry, change func(*Header)) Entry {
	h := e.Header
	change(&h)
	out := Entry{Header: h, body: e.body, header: h.append(nil)}
	out.ID = sha256.Sum256(out.header)
	return out
}

// rawRun encodes entries that Assemble would refuse.
func (w writer) rawRun(entries ...Entry) *pb.Run {
	r := Run{entries: entries, signature: SignRun(w.key, entries[len(entries)-1])}
	return r.PB()
}
