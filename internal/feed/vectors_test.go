package feed

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/wire/pb"
)

var update = flag.Bool("update", false, "write docs/spec/vectors/feed.json anew")

var vectorFile = filepath.Join("..", "..", "docs", "spec", "vectors", "feed.json")

// hexBytes are bytes that stand as hexadecimal digits in the vectors.
type hexBytes []byte

func (h hexBytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h)), nil }

func (h *hexBytes) UnmarshalText(b []byte) (err error) {
	*h, err = hex.DecodeString(string(b))
	return err
}

// vectors is docs/spec/vectors/feed.json; docs/spec/feed.md explains it.
type vectors struct {
	Comment       string
	Conversations []vectorConversation
	Entries       []vectorEntry
	Headers       []vectorBytes
	Bodies        []vectorBody
	Runs          []vectorRun
	Heads         []vectorBytes
	Digests       []vectorDigest
	Forks         []vectorBytes
	Order         []hexBytes
	Work          []vectorWork
}

type vectorConversation struct {
	Accounts []hexBytes
	ID       hexBytes
}

type vectorEntry struct {
	Name         string
	AccountSeed  hexBytes
	DeviceSeed   hexBytes
	Certificate  hexBytes
	Conversation hexBytes
	Feed         uint32
	Seq          uint64
	Prev         hexBytes
	Clock        uint64
	TimeMS       int64
	Kind         uint32
	Salt         hexBytes
	Content      hexBytes
	Body         hexBytes
	Header       hexBytes
	ID           hexBytes
	Signature    hexBytes
}

// vectorBytes is something encoded, and the class of error it must be refused with; none if it is valid.
type vectorBytes struct {
	Name  string
	Bytes hexBytes
	Error string `json:",omitempty"`
}

type vectorBody struct {
	Name    string
	Body    hexBytes
	Content hexBytes `json:",omitempty"`
	Error   string   `json:",omitempty"`
}

type vectorTip struct {
	Account hexBytes `json:",omitempty"`
	Seq     uint64
	Hash    hexBytes `json:",omitempty"`
	Clock   uint64
}

type vectorRun struct {
	Name  string
	Tip   vectorTip
	Run   hexBytes
	New   int    `json:",omitempty"` // entries that are taken
	Error string `json:",omitempty"`
}

type vectorDigest struct {
	Heads  []hexBytes
	Digest hexBytes
}

type vectorWork struct {
	From, To, Entry, Work hexBytes
	Zeros                 int
	Good                  bool
}

func className(t testing.TB, err error) string {
	if err == nil {
		return ""
	}
	return requireOneClass(t, err)
}

func encode(t testing.TB, m proto.Message) hexBytes {
	b, err := deterministic.Marshal(m)
	require.NoError(t, err)
	return b
}

func vectorEntryOf(name string, w writer, e Entry) vectorEntry {
	content, _ := e.Content()
	acct, dev := w.acct.Seed(), w.key.Seed()
	v := vectorEntry{
		Name: name, AccountSeed: acct[:], DeviceSeed: dev[:], Conversation: e.Conversation[:], Feed: uint32(e.Number),
		Seq: e.Seq, Clock: e.Clock, TimeMS: e.TimeMS, Kind: uint32(e.Kind), Certificate: e.Certificate,
		Salt: e.body[:bodySalt], Content: content, Body: e.body, Header: e.header, ID: e.ID[:], Signature: SignRun(w.key, e),
	}
	if e.Seq > 1 {
		v.Prev = e.Prev[:]
	}
	return v
}

func makeVectors(t testing.TB) vectors {
	alice, bob := newWriter("alice"), newWriter("bob")
	v := vectors{Comment: "Made by go test ./internal/feed -update. Explained in docs/spec/feed.md."}
	direct, self := DirectConversation(alice.account, bob.account), SelfConversation(alice.account)
	v.Conversations = []vectorConversation{
		{Accounts: []hexBytes{alice.account[:], bob.account[:]}, ID: direct[:]},
		{Accounts: []hexBytes{alice.account[:]}, ID: self[:]},
	}
	first := alice.write(t, Tip{}, 2)
	v.Entries = append(v.Entries, vectorEntryOf("first text", alice, first[0]), vectorEntryOf("second text", alice, first[1]))
	request, err := bob.Next(Tip{}, direct, Control, KindRequest, 1, 0,
		encode(t, &pb.Request{Message: "你好", Card: &pb.Card{Username: "bob", Nickname: "小葵"}}))
	require.NoError(t, err)
	v.Entries = append(v.Entries, vectorEntryOf("request at time zero", bob, request))
	empty, err := alice.Next(first[1].Tip(), direct, Chat, KindRecall, MaxClockStep, 7, nil)
	require.NoError(t, err)
	v.Entries = append(v.Entries, vectorEntryOf("empty content", alice, empty))

	valid := map[string][]byte{"text": first[1].header, "with certificate": first[0].header}
	valid["genesis"] = rewrite(first[0], func(h *Header) { h.Number, h.Nonce = Control, bytes.Repeat([]byte{7}, 32) }).header
	valid["parents and epoch"] = rewrite(first[1], func(h *Header) {
		h.Number, h.Parents, h.Epoch = Control, []EntryID{{1}, {2}}, []byte{9}
	}).header
	valid["field of a newer version"] = append(bytes.Clone(first[1].header), 0x82, 1, 1, 'x')
	broken := headerCases(t)
	for _, set := range []map[string][]byte{valid, broken} {
		for _, name := range slices.Sorted(maps.Keys(set)) {
			_, err := ParseStored(set[name], nil)
			v.Headers = append(v.Headers, vectorBytes{Name: name, Bytes: set[name], Error: className(t, err)})
		}
	}
	v.addBodies(t)
	v.addRuns(t)
	v.addHeads(t)
	v.addRest(t, direct)
	return v
}

func (v *vectors) addBodies(t testing.TB) {
	for _, content := range []string{"", "yes", string(bytes.Repeat([]byte{'x'}, 47)), string(bytes.Repeat([]byte{'x'}, 48))} {
		body, err := PadBody(&noise{seed: "vector"}, []byte(content))
		require.NoError(t, err)
		v.Bodies = append(v.Bodies, vectorBody{Name: "valid", Body: body, Content: hexBytes(content)})
	}
	broken := bodyCases(t)
	for _, name := range slices.Sorted(maps.Keys(broken)) {
		if len(broken[name]) > MaxBody {
			continue // says nothing that its length does not say
		}
		_, err := unpadBody(broken[name])
		v.Bodies = append(v.Bodies, vectorBody{Name: name, Body: broken[name], Error: className(t, err)})
	}
}

func (v *vectors) addRuns(t testing.TB) {
	cases := runCases(t)
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		c := cases[name]
		tip := vectorTip{Seq: c.tip.Seq, Clock: c.tip.Clock}
		if c.tip.Seq > 0 {
			tip.Account, tip.Hash = c.tip.Account[:], c.tip.Hash[:]
		}
		v.Runs = append(v.Runs, vectorRun{Name: name, Tip: tip, Run: encode(t, c.run), New: c.entries, Error: className(t, c.err)})
	}
}

func (v *vectors) addHeads(t testing.TB) {
	good := newWriterHead()
	v.Heads = append(v.Heads, vectorBytes{Name: "valid", Bytes: encode(t, good)})
	broken := headCases()
	for _, name := range slices.Sorted(maps.Keys(broken)) {
		_, err := HeadFromPB(broken[name])
		v.Heads = append(v.Heads, vectorBytes{Name: name, Bytes: encode(t, broken[name]), Error: className(t, err)})
	}
	a, err := HeadFromPB(good)
	require.NoError(t, err)
	b := a
	b.Number, b.First, b.Last, b.Hash = Control, 1, 2, EntryID{9}
	nothing := Head{Number: Chat, Account: newWriter("bob").account, Device: newWriter("bob").device, First: 1}
	for _, set := range [][]Head{nil, {a}, {a, b, nothing}} {
		d := vectorDigest{Heads: []hexBytes{}}
		for _, h := range set {
			d.Heads = append(d.Heads, encode(t, h.PB()))
		}
		sum := Digest(set)
		d.Digest = sum[:]
		v.Digests = append(v.Digests, d)
	}
}

func (v *vectors) addRest(t testing.TB, direct ConversationID) {
	alice, bob := newWriter("alice"), newWriter("bob")
	forks := forkCases(t)
	for _, name := range slices.Sorted(maps.Keys(forks)) {
		if raw := encode(t, forks[name].proof); len(raw) < 16<<10 {
			v.Forks = append(v.Forks, vectorBytes{Name: name, Bytes: raw, Error: className(t, forks[name].err)})
		}
	}
	keys := []OrderKey{
		{Clock: 2, Account: alice.account, Device: alice.device, Number: Chat, Seq: 1},
		{Clock: 1, Account: alice.account, Device: alice.device, Number: Control, Seq: 1},
		{Clock: 1, Account: bob.account, Device: bob.device, Number: Chat, Seq: 1},
		{Clock: 1, Account: alice.account, Device: alice.device, Number: Chat, Seq: 1},
		{Clock: 256, Account: bob.account, Device: bob.device, Number: Chat, Seq: 256},
	}
	slices.SortFunc(keys, OrderKey.Compare)
	for _, k := range keys {
		v.Order = append(v.Order, k.AppendTo(nil))
	}
	entry := EntryID(direct)
	work := Work(alice.account, bob.account, entry, 12)
	v.Work = []vectorWork{
		{From: alice.account[:], To: bob.account[:], Entry: entry[:], Work: work, Zeros: 12, Good: true},
		{From: bob.account[:], To: alice.account[:], Entry: entry[:], Work: work, Zeros: 12},
		{From: alice.account[:], To: bob.account[:], Entry: entry[:], Work: work, Zeros: 40},
	}
}

func TestVectorsAreUpToDate(t *testing.T) {
	want, err := json.MarshalIndent(makeVectors(t), "", " ")
	require.NoError(t, err)
	want = append(want, '\n')
	if *update {
		require.NoError(t, os.WriteFile(vectorFile, want, 0o644))
	}
	got, err := os.ReadFile(vectorFile)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got), "the code no longer makes the bytes of %s", vectorFile)
}

// The vectors are read back as another implementation would read them: from the file alone.
func TestVectors(t *testing.T) {
	raw, err := os.ReadFile(vectorFile)
	require.NoError(t, err)
	var v vectors
	require.NoError(t, json.Unmarshal(raw, &v))
	require.NotEmpty(t, v.Runs)

	for _, c := range v.Entries {
		checkVectorEntry(t, c)
	}
	for _, c := range v.Headers {
		_, err := ParseStored(c.Bytes, nil)
		require.Equal(t, c.Error, className(t, err), c.Name)
	}
	for _, c := range v.Bodies {
		content, err := unpadBody(c.Body)
		require.Equal(t, c.Error, className(t, err), c.Name)
		require.True(t, bytes.Equal(c.Content, content), c.Name)
	}
	for _, c := range v.Runs {
		tip := Tip{Seq: c.Tip.Seq, Clock: c.Tip.Clock}
		copy(tip.Account[:], c.Tip.Account)
		copy(tip.Hash[:], c.Tip.Hash)
		var r pb.Run
		require.NoError(t, proto.Unmarshal(c.Run, &r))
		run, err := CheckRun(tip, &r)
		require.Equal(t, c.Error, className(t, err), c.Name)
		require.Equal(t, c.New, run.Len(), c.Name)
	}
	for _, c := range v.Heads {
		var h pb.Head
		require.NoError(t, proto.Unmarshal(c.Bytes, &h))
		_, err := HeadFromPB(&h)
		require.Equal(t, c.Error, className(t, err), c.Name)
	}
	for _, c := range v.Forks {
		var p pb.ForkProof
		require.NoError(t, proto.Unmarshal(c.Bytes, &p))
		_, err := CheckForkProof(&p)
		require.Equal(t, c.Error, className(t, err), c.Name)
	}
	require.True(t, slices.IsSortedFunc(v.Order, func(a, b hexBytes) int { return bytes.Compare(a, b) }))
	for _, c := range v.Work {
		good := CheckWork(identity.AccountID(c.From), identity.AccountID(c.To), EntryID(c.Entry), c.Work, c.Zeros)
		require.Equal(t, c.Good, good)
	}
}

func checkVectorEntry(t *testing.T, c vectorEntry) {
	e, err := ParseStored(c.Header, c.Body)
	require.NoError(t, err, c.Name)
	require.Equal(t, hexBytes(e.ID[:]), c.ID, c.Name)
	content, err := e.Content()
	require.NoError(t, err, c.Name)
	require.True(t, bytes.Equal(c.Content, content), c.Name)

	// Made anew from its parts it is the same to the last bit.
	acct := identity.AccountKeyFromSeed([32]byte(c.AccountSeed))
	key := identity.DeviceKeyFromSeed([32]byte(c.DeviceSeed))
	author := Author{account: acct.ID(), device: key.ID(), certificate: c.Certificate, rand: bytes.NewReader(c.Salt)}
	tip := Tip{Seq: c.Seq - 1}
	if tip.Seq > 0 {
		tip.Account, tip.Hash = acct.ID(), EntryID(c.Prev)
	}
	again, err := author.Next(tip, ConversationID(c.Conversation), Number(c.Feed), Kind(c.Kind), c.Clock, c.TimeMS, c.Content)
	require.NoError(t, err, c.Name)
	require.Equal(t, hexBytes(again.header), c.Header, c.Name)
	require.Equal(t, hexBytes(SignRun(key, again)), c.Signature, c.Name)
}
