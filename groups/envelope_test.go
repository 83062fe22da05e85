package groups

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
)

var updateEnvelope = flag.Bool("update-envelopes", false, "write docs/spec/vectors/envelope.json anew")

// envelopeVectors is docs/spec/vectors/envelope.json.
type envelopeVectors struct {
	Comment string `json:"comment"`
	// Derived is what comes from the keys of two epochs.
	Derived []derivedVector  `json:"derived"`
	Good    []envelopeVector `json:"good"`
	// Bad does not open, or holds what must not be taken.
	Bad []envelopeVector `json:"bad"`
}

type derivedVector struct {
	Key     string `json:"key"`
	Hash    string `json:"hash"`
	Topic   string `json:"topic"`
	Log     string `json:"log_secret"`
	Inbox   string `json:"log_inbox"`
	Author  string `json:"author_key"`
	Device  string `json:"device"`
	Payload string `json:"payload_key"` // of this device
}

type envelopeVector struct {
	What     string `json:"what"`
	Key      string `json:"key"`
	Group    string `json:"group"`
	Epoch    string `json:"epoch"`
	Author   string `json:"author,omitempty"`
	Run      string `json:"run,omitempty"`
	Envelope string `json:"envelope"`
	Verdict  string `json:"verdict"` // ok, closed (it does not open), content (a member wrote nonsense), signature
}

// envelopeWriter is a device whose everything follows from its name.
type envelopeWriter struct {
	feed.Author
	key identity.DeviceKey
}

func newEnvelopeWriter(name string) envelopeWriter { return newDeviceWriter(name, name) }

// newDeviceWriter is one that is a device of an account of another name.
func newDeviceWriter(account, name string) envelopeWriter {
	acct := identity.AccountKeyFromSeed(sha256.Sum256([]byte("account " + account)))
	key := identity.DeviceKeyFromSeed(sha256.Sum256([]byte("device " + name)))
	cert := identity.NewCertificate(acct, key.ID(), time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	salt := bytes.NewReader(bytes.Repeat([]byte(name+" salt "), 4096))
	return envelopeWriter{feed.NewAuthor(acct.ID(), key.ID(), cert).WithRand(salt), key}
}

// run writes n chat entries under an epoch.
func (w envelopeWriter) run(t testing.TB, group feed.ConversationID, epoch feed.EntryID, n int) feed.Run {
	t.Helper()
	return w.runAfter(t, feed.Tip{}, group, epoch, n)
}

func (w envelopeWriter) runAfter(t testing.TB, tip feed.Tip, group feed.ConversationID, epoch feed.EntryID, n int) feed.Run {
	t.Helper()
	var all []feed.Entry
	for i := range n {
		content, err := proto.Marshal(&pb.Text{Text: fmt.Sprint("number ", i)})
		require.NoError(t, err)
		e, err := w.NextInGroup(tip, group, feed.Chat, feed.KindText, tip.Clock+1, 1767323045000, content, feed.Group{Epoch: epoch[:]})
		require.NoError(t, err)
		all, tip = append(all, e), e.Tip()
	}
	run, err := feed.Assemble(all, feed.SignRun(w.key, all[n-1]))
	require.NoError(t, err)
	return run
}

func testKey(t testing.TB, name string) EpochKey {
	t.Helper()
	sum := sha256.Sum256([]byte("epoch key " + name))
	k, err := EpochKeyFromBytes(sum[:])
	require.NoError(t, err)
	return k
}

func testHash(name string) [32]byte { return sha256.Sum256([]byte(name)) }

// makeEnvelopeVectors makes them all; they follow from nothing but names.
func makeEnvelopeVectors(t testing.TB) envelopeVectors {
	v := envelopeVectors{Comment: "Made by go test ./groups -run Envelope -update-envelopes. Explained in docs/spec/envelope.md. Bytes are hexadecimal."}
	alice, bob := newEnvelopeWriter("alice"), newEnvelopeWriter("bob")
	one, two := testKey(t, "one"), testKey(t, "two")
	group, other := feed.ConversationID(testHash("group")), feed.ConversationID(testHash("other group"))
	epoch, later := feed.EntryID(testHash("epoch")), feed.EntryID(testHash("later epoch"))
	nonce := func(s string) [nonceSize]byte { h := testHash("nonce " + s); return [nonceSize]byte(h[:]) }
	for _, k := range []EpochKey{one, two} {
		hash, author, payload := k.Hash(), k.derive(labelAuthor), k.derive(labelPayload, bytesOf(alice.key.ID())...)
		v.Derived = append(v.Derived, derivedVector{
			Key: hex.EncodeToString(k.Bytes()), Hash: hex.EncodeToString(hash[:]), Topic: k.topic(),
			Log: hex.EncodeToString(k.logSecret().Bytes()), Inbox: k.logSecret().ID().String(),
			Author: hex.EncodeToString(author[:]), Device: hex.EncodeToString(bytesOf(alice.key.ID())), Payload: hex.EncodeToString(payload[:]),
		})
	}
	seal := func(what string, k EpochKey, author identity.DeviceID, raw *pb.Run) []byte {
		b, err := sealWith(nonce(what), k, group, epoch, author, raw)
		require.NoError(t, err)
		return b
	}
	vector := func(what string, k EpochKey, g feed.ConversationID, e feed.EntryID, b []byte, verdict string) envelopeVector {
		return envelopeVector{What: what, Key: hex.EncodeToString(k.Bytes()), Group: g.String(), Epoch: e.String(), Envelope: hex.EncodeToString(b), Verdict: verdict}
	}
	for _, n := range []int{1, 3} {
		run := alice.run(t, group, epoch, n)
		what := fmt.Sprintf("a run of %d", n)
		g := vector(what, one, group, epoch, seal(what, one, alice.key.ID(), run.PB()), "ok")
		plain, err := proto.MarshalOptions{Deterministic: true}.Marshal(run.PB())
		require.NoError(t, err)
		g.Run, g.Author = hex.EncodeToString(plain), hex.EncodeToString(bytesOf(alice.key.ID()))
		v.Good = append(v.Good, g)
	}
	run := alice.run(t, group, epoch, 1)
	good := seal("good", one, alice.key.ID(), run.PB())
	bad := func(what string, b []byte, verdict string) {
		v.Bad = append(v.Bad, vector(what, one, group, epoch, b, verdict))
	}
	v.Bad = append(v.Bad,
		vector("key of another epoch", two, group, epoch, good, "closed"),
		vector("replayed into another group", one, other, epoch, good, "closed"),
		vector("replayed into another epoch", one, group, later, good, "closed"))
	for at, what := range map[int]string{0: "another version", 5: "nonce changed", 30: "author changed", len(good) - 1: "run changed"} {
		b := bytes.Clone(good)
		b[at] ^= 1
		bad(what, b, "closed")
	}
	bad("cut", good[:len(good)-1], "closed")
	bad("empty", nil, "closed")
	// Bob's box before alice's run: he cannot speak in her name, and she is not named as speaking in his.
	forged := bytes.Clone(seal("good", one, bob.key.ID(), run.PB()))
	copy(forged[envelopeHead:], good[envelopeHead:])
	bad("author and run of two envelopes", forged, "closed")
	bad("run of another device", seal("device", one, bob.key.ID(), run.PB()), "content")
	bad("run of another conversation", seal("conversation", one, alice.key.ID(), alice.run(t, other, epoch, 1).PB()), "content")
	bad("no run", seal("none", one, alice.key.ID(), &pb.Run{}), "content")
	falsely := run.PB()
	falsely.Signature = bytes.Repeat([]byte{7}, 64)
	bad("false signature", seal("signature", one, alice.key.ID(), falsely), "signature")
	unsigned := run.PB()
	unsigned.Entries[0].Body = nil // as if it had been recalled: no fault
	v.Good = append(v.Good, vector("without a body", one, group, epoch, seal("erased", one, alice.key.ID(), unsigned), "ok"))
	return v
}

func bytesOf(d identity.DeviceID) []byte { return d.Bytes() }

const envelopeFile = "../docs/spec/vectors/envelope.json"

func TestEnvelopeVectors(t *testing.T) {
	want := makeEnvelopeVectors(t)
	slices.SortFunc(want.Bad, func(a, b envelopeVector) int { return cmp.Compare(a.What, b.What) }) // some came out of a map
	if *updateEnvelope {
		b, err := json.MarshalIndent(want, "", "  ")
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.FromSlash(envelopeFile), append(b, '\n'), 0o644))
	}
	b, err := os.ReadFile(filepath.FromSlash(envelopeFile))
	require.NoError(t, err)
	var v envelopeVectors
	require.NoError(t, json.Unmarshal(b, &v))
	require.Equal(t, want, v, "the vectors in the file are not those of the code")
	for _, x := range append(v.Good, v.Bad...) {
		require.Equal(t, x.Verdict, verdictOf(t, x), x.What)
	}
}

func verdictOf(t *testing.T, x envelopeVector) string {
	t.Helper()
	raw, err := hex.DecodeString(x.Key)
	require.NoError(t, err)
	key, err := EpochKeyFromBytes(raw)
	require.NoError(t, err)
	group, err := feed.ParseConversationID(x.Group)
	require.NoError(t, err)
	epoch, err := feed.ParseEntryID(x.Epoch)
	require.NoError(t, err)
	b, err := hex.DecodeString(x.Envelope)
	require.NoError(t, err)
	author, run, err := newOpener(key, group, epoch).open(b)
	switch {
	case errors.Is(err, ErrEnvelope):
		return "closed"
	case errors.Is(err, ErrContent):
		return "content"
	}
	require.NoError(t, err)
	if x.Author != "" {
		require.Equal(t, x.Author, hex.EncodeToString(bytesOf(author)))
	}
	if _, err := feed.CheckDetached(run); err != nil {
		require.ErrorIs(t, err, feed.ErrBadSignature)
		return "signature"
	}
	return "ok"
}

// Two envelopes of one run have nothing in common, and show neither author nor group.
func TestEnvelopesHideTheirAuthor(t *testing.T) {
	alice, key := newEnvelopeWriter("alice"), testKey(t, "one")
	group, epoch := feed.ConversationID(testHash("group")), feed.EntryID(testHash("epoch"))
	run := alice.run(t, group, epoch, 2)
	a, err := sealEnvelope(key, group, epoch, alice.key.ID(), run.PB())
	require.NoError(t, err)
	b, err := sealEnvelope(key, group, epoch, alice.key.ID(), run.PB())
	require.NoError(t, err)
	require.Len(t, b, len(a))
	common := 0
	for i := range a[1:] {
		if a[1+i] == b[1+i] {
			common++
		}
	}
	require.Less(t, common, len(a)/32)
	for _, secret := range [][]byte{bytesOf(alice.key.ID()), group[:], epoch[:], run.First().Account.Bytes()} {
		require.NotContains(t, string(a), string(secret))
	}
	require.Len(t, a, envelopeOverhead+proto.Size(run.PB()))
	_, err = sealEnvelope(EpochKey{}, group, epoch, alice.key.ID(), run.PB())
	require.ErrorIs(t, err, ErrEnvelope)
	_, _, err = newOpener(EpochKey{}, group, epoch).open(a)
	require.ErrorIs(t, err, ErrEnvelope)
	big := &pb.Run{Signature: make([]byte, feed.MaxWireRun)}
	_, err = sealEnvelope(key, group, epoch, alice.key.ID(), big)
	require.ErrorIs(t, err, feed.ErrTooLarge)
}

// A kept key opens what its author sealed, and nothing that somebody else put behind the author's name.
func TestOpenersKeepKeysApart(t *testing.T) {
	alice, bob, key := newEnvelopeWriter("alice"), newEnvelopeWriter("bob"), testKey(t, "one")
	group, epoch := feed.ConversationID(testHash("group")), feed.EntryID(testHash("epoch"))
	nonce := [nonceSize]byte{1}
	a, err := sealWith(nonce, key, group, epoch, alice.key.ID(), alice.run(t, group, epoch, 1).PB())
	require.NoError(t, err)
	b, err := sealWith(nonce, key, group, epoch, bob.key.ID(), bob.run(t, group, epoch, 1).PB())
	require.NoError(t, err)
	mixed := append(bytes.Clone(a[:envelopeHead]), b[envelopeHead:]...)
	o := newOpener(key, group, epoch)
	for range 2 {
		for who, sealed := range map[identity.DeviceID][]byte{alice.key.ID(): a, bob.key.ID(): b} {
			author, _, err := o.open(sealed)
			require.NoError(t, err)
			require.Equal(t, who, author)
		}
		_, _, err = o.open(mixed)
		require.ErrorIs(t, err, ErrEnvelope)
	}
	require.Len(t, o.payload, 2)
	for i := range maxOpenerKeys {
		o.keep(identity.DeviceID{byte(i), byte(i >> 8)}, nil)
	}
	require.LessOrEqual(t, len(o.payload), maxOpenerKeys)
}

func TestFitsEpoch(t *testing.T) {
	alice := newEnvelopeWriter("alice")
	group, epoch, later := feed.ConversationID(testHash("group")), feed.EntryID(testHash("epoch")), feed.EntryID(testHash("later"))
	run := alice.run(t, group, epoch, 2)
	require.True(t, fitsEpoch(run, epoch))
	require.False(t, fitsEpoch(run, later))
	mixed := append(slices.Clone(run.Entries()), alice.runAfter(t, run.Last().Tip(), group, later, 1).Entries()...)
	both, err := feed.Assemble(mixed, feed.SignRun(alice.key, mixed[2]))
	require.NoError(t, err)
	require.False(t, fitsEpoch(both, epoch))
	require.False(t, fitsEpoch(both, later))
}

func TestEpochKeyShowsNothing(t *testing.T) {
	key := testKey(t, "one")
	secret := hex.EncodeToString(key.Bytes())
	for _, s := range []string{fmt.Sprint(key), fmt.Sprintf("%+v %#v %x %s", key, key, key, key), key.String()} {
		require.NotContains(t, strings.ToLower(s), secret[:16])
	}
	b, err := json.Marshal(map[string]any{"key": key})
	require.True(t, err != nil || string(b) == `{"key":{}}`, "a key has no JSON form, but %s", b)
	_, err = EpochKeyFromBytes(make([]byte, 31))
	require.ErrorIs(t, err, ErrEnvelope)
	require.NotEqual(t, NewEpochKey().Bytes(), NewEpochKey().Bytes())
}

// What opens is sealed again into bytes that open to the same; nothing else than the two errors comes out.
func FuzzOpenEnvelope(f *testing.F) {
	v := makeEnvelopeVectors(f)
	for _, x := range append(v.Good, v.Bad...) {
		b, _ := hex.DecodeString(x.Envelope)
		f.Add(b, false)
		if x.Run != "" {
			plain, _ := hex.DecodeString(x.Run)
			f.Add(plain, true)
		}
	}
	key := testKey(f, "one")
	group, epoch := feed.ConversationID(testHash("group")), feed.EntryID(testHash("epoch"))
	author := newEnvelopeWriter("alice").key.ID()
	f.Fuzz(func(t *testing.T, b []byte, inside bool) {
		if inside { // the bytes are what a hostile member seals
			nonce, data := [nonceSize]byte{1}, envelopeData(group, epoch)
			e := append([]byte{envelopeVersion}, nonce[:]...)
			e = box(key.derive(labelAuthor)).Seal(e, nonce[:], author[:], data)
			b = box(key.derive(labelPayload, author[:]...)).Seal(e, nonce[:], b, data)
		}
		from, run, err := newOpener(key, group, epoch).open(b)
		if err != nil {
			if !errors.Is(err, ErrEnvelope) && !errors.Is(err, ErrContent) {
				t.Fatalf("neither of the errors: %v", err)
			}
			return
		}
		id, _, err := feed.Peek(run)
		if err != nil || id.Conversation != group || id.Device != from {
			t.Fatalf("opened to a run of %v: %v", id, err)
		}
		again, err := sealEnvelope(key, group, epoch, from, run)
		if err != nil {
			t.Fatal(err)
		}
		if _, same, err := newOpener(key, group, epoch).open(again); err != nil || !proto.Equal(same, run) {
			t.Fatalf("sealed again it opens to something else: %v", err)
		}
		_, _ = feed.CheckDetached(run)
	})
}
