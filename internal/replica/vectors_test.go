package replica

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire"
	"hima/internal/wire/pb"
	"hima/node"
)

var update = flag.Bool("update", false, "write docs/spec/vectors/sync.json anew")

var vectorFile = filepath.Join("..", "..", "docs", "spec", "vectors", "sync.json")

// frameVectors is docs/spec/vectors/sync.json; docs/spec/sync.md explains it.
type frameVectors struct {
	Comment  string
	Frames   []frameVector   // what a session may read, with its length prefix
	Refused  []refusedVector // what ends a session
	Receipts []receiptVector
}

type frameVector struct {
	Name    string
	Message json.RawMessage // as protobuf's JSON form; bytes are base64 there
	Bytes   string
}

type refusedVector struct {
	Name  string
	Bytes string
}

type receiptVector struct {
	Name       string
	DeviceSeed string
	Payload    string
	Signed     string
	Good       bool
}

// vectorPerson is a person whose records do not depend on the day.
func vectorPerson(t testing.TB, i int) person {
	t.Helper()
	p := newPerson(t, i)
	var err error
	p.record, err = identity.NewAccountRecord(p.accountKey, identity.RecordConfig{Now: begin, Devices: []identity.Certificate{p.cert}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// zeros stands in for the salt of bodies.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func vectorFrames(t testing.TB) (names []string, frames []*pb.Frame) {
	t.Helper()
	a, b := vectorPerson(t, 0), vectorPerson(t, 1)
	conv := feed.DirectConversation(a.account(), b.account())
	by := feed.NewAuthor(a.account(), a.device(), a.cert).WithRand(zeros{})
	first, err := by.Next(feed.Tip{}, conv, feed.Chat, feed.KindText, 1, begin.UnixMilli(), []byte("\n\x05hello"))
	if err != nil {
		t.Fatal(err)
	}
	second, err := by.Next(first.Tip(), conv, feed.Chat, feed.KindText, 2, begin.UnixMilli()+5, []byte("\n\x05again"))
	if err != nil {
		t.Fatal(err)
	}
	run := runPB([]feed.Entry{first, second}, feed.SignRun(a.deviceKey, second))
	head := feed.Head{Number: feed.Chat, Account: a.account(), Device: a.device(), First: 1, Last: 2, Hash: second.ID}
	digest := feed.Digest([]feed.Head{head})
	dev := a.device()
	add := func(name string, f *pb.Frame) { names, frames = append(names, name), append(frames, f) }
	add("hello", &pb.Frame{Of: &pb.Frame_Hello{Hello: &pb.Hello{
		Versions: []uint32{1}, AccountRecord: a.record.Raw(), Certificate: a.cert.Raw(), TimeMs: begin.UnixMilli(), Agent: "hima",
	}}})
	add("record", &pb.Frame{Of: &pb.Frame_Record{Record: &pb.Record{AccountRecord: b.record.Raw()}}})
	add("digests, only page", &pb.Frame{Of: &pb.Frame_Digests{Digests: &pb.Digests{
		Digests: []*pb.Digest{{Conversation: conv[:], Digest: digest[:]}}, Done: true,
	}}})
	add("no digests", &pb.Frame{Of: &pb.Frame_Digests{Digests: &pb.Digests{Done: true}}})
	add("heads", headPages(conv, []feed.Head{head})[0])
	add("no heads", headPages(conv, nil)[0])
	add("run of two entries", &pb.Frame{Of: &pb.Frame_Run{Run: &pb.RunFrame{Run: run}}})
	add("acknowledgement", &pb.Frame{Of: &pb.Frame_Ack{Ack: &pb.Ack{Items: []*pb.AckItem{
		{Conversation: conv[:], Feed: 2, Device: dev[:], Last: 2, Hash: second.ID[:]},
	}}}})
	add("refusal: full from 2 on", &pb.Frame{Of: &pb.Frame_Refuse{Refuse: &pb.Refuse{
		Conversation: conv[:], Feed: 2, Device: dev[:], From: 2, Code: pb.Code_CODE_FULL,
	}}})
	add("knock with an invite token", &pb.Frame{Of: &pb.Frame_Knock{Knock: &pb.Knock{
		Conversation: conv[:], Run: run, Token: []byte("0123456789abcdef"),
	}}})
	add("knock with proof of work", &pb.Frame{Of: &pb.Frame_Knock{Knock: &pb.Knock{
		Conversation: conv[:], Run: run, Work: feed.Work(a.account(), b.account(), first.ID, feed.WorkBits),
	}}})
	add("knock taken", &pb.Frame{Of: &pb.Frame_KnockAnswer{KnockAnswer: &pb.KnockAnswer{Conversation: conv[:], Code: pb.Code_CODE_TAKEN}}})
	add("receipt", &pb.Frame{Of: &pb.Frame_Receipt{Receipt: &pb.ReceiptFrame{Receipt: signReceipt(t, b, vectorReceipt(conv, b, head))}}})
	add("typing", &pb.Frame{Of: &pb.Frame_Typing{Typing: &pb.Typing{Conversation: conv[:], On: true}}})
	add("presence", &pb.Frame{Of: &pb.Frame_Presence{Presence: &pb.Presence{Online: true}}})
	add("ping", &pb.Frame{Of: &pb.Frame_Ping{Ping: &pb.Ping{Nonce: 1}}})
	add("pong", &pb.Frame{Of: &pb.Frame_Pong{Pong: &pb.Pong{Nonce: 1, TimeMs: begin.UnixMilli()}}})
	add("bye", &pb.Frame{Of: &pb.Frame_Bye{Bye: &pb.Bye{Reason: pb.Bye_REASON_CLOSING}}})
	add("bye: moved", &pb.Frame{Of: &pb.Frame_Bye{Bye: &pb.Bye{Reason: pb.Bye_REASON_MOVED}}})
	add("hello that moves the session", &pb.Frame{Of: &pb.Frame_Hello{Hello: &pb.Hello{
		Versions: []uint32{1}, AccountRecord: a.record.Raw(), Certificate: a.cert.Raw(), TimeMs: begin.UnixMilli(), Agent: "hima", Moves: true,
	}}})
	add("mail offer: none is taken", &pb.Frame{Of: &pb.Frame_MailOffer{MailOffer: &pb.MailOffer{Seq: 1}}})
	floor := vectorReceipt(conv, b, head)
	floor.Items[0].First = 2
	add("receipt with a floor", &pb.Frame{Of: &pb.Frame_Receipt{Receipt: &pb.ReceiptFrame{Receipt: signReceipt(t, b, floor)}}})
	add("what a group's acts wait for", &pb.Frame{Of: &pb.Frame_GroupKeys{GroupKeys: &pb.GroupKeys{Group: conv[:], Wants: [][]byte{first.ID[:]}}}})
	return names, frames
}

func vectorReceipt(conv feed.ConversationID, by person, h feed.Head) *pb.Receipt {
	dev, of := by.device(), h.Device
	return &pb.Receipt{Conversation: conv[:], Device: dev[:], Seq: 1, Items: []*pb.ReceiptItem{
		{Feed: uint32(h.Number), Device: of[:], Acked: h.Last, Read: 1, AckedHash: h.Hash[:]},
	}}
}

func signReceipt(t testing.TB, by person, r *pb.Receipt) []byte {
	t.Helper()
	payload, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(&pb.Signed{
		Payload: payload, Signature: by.deviceKey.Sign(identity.DomainReceipt, payload),
	})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// frameBytes frames a message; the order of fields is that of their numbers.
func frameBytes(t testing.TB, f *pb.Frame) []byte {
	t.Helper()
	b, err := wire.Append(nil, f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func makeVectors(t testing.TB) frameVectors {
	t.Helper()
	v := frameVectors{Comment: "Made by go test ./internal/replica -update. Explained in docs/spec/sync.md."}
	names, frames := vectorFrames(t)
	for i, f := range frames {
		text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		var plain bytes.Buffer // protojson puts spaces at random
		if err := json.Compact(&plain, text); err != nil {
			t.Fatal(err)
		}
		v.Frames = append(v.Frames, frameVector{Name: names[i], Message: plain.Bytes(), Bytes: hex.EncodeToString(frameBytes(t, f))})
	}
	a, b := vectorPerson(t, 0), vectorPerson(t, 1)
	run := proto.Clone(frames[6]).(*pb.Frame)
	run.GetRun().Run.Signature[0] ^= 1
	v.refuse(t, "run with a bad signature", run)
	run = proto.Clone(frames[6]).(*pb.Frame)
	run.GetRun().Run.Entries = nil
	v.refuse(t, "run without entries", run)
	v.refuse(t, "second hello", frames[0])
	v.refuse(t, "heads without a conversation", &pb.Frame{Of: &pb.Frame_Heads{Heads: &pb.Heads{Done: true}}})
	v.refuse(t, "want of a hash that is too short", &pb.Frame{Of: &pb.Frame_GroupKeys{GroupKeys: &pb.GroupKeys{Group: make([]byte, 32), Wants: [][]byte{make([]byte, 31)}}}})
	v.refuse(t, "pong that was not asked for", &pb.Frame{Of: &pb.Frame_Pong{Pong: &pb.Pong{Nonce: 99}}})
	v.refuse(t, "receipt signed by another device", &pb.Frame{Of: &pb.Frame_Receipt{Receipt: &pb.ReceiptFrame{
		Receipt: signReceipt(t, a, vectorReceipt(feed.ConversationID{1}, b, feed.Head{Number: feed.Chat, Device: a.device(), Last: 1})),
	}}})
	v.Refused = append(v.Refused,
		refusedVector{"frame of 48 KiB and one byte", hex.EncodeToString([]byte{0x81, 0x80, 0x03})},
		refusedVector{"length that is not minimal", "8100"},
	)
	conv := feed.DirectConversation(a.account(), b.account())
	good := vectorReceipt(conv, b, feed.Head{Number: feed.Chat, Device: a.device(), Last: 2})
	v.receipt(t, "good", b, good, true)
	bad := proto.Clone(good).(*pb.Receipt)
	bad.Seq = 0
	v.receipt(t, "no number", b, bad, false)
	bad = proto.Clone(good).(*pb.Receipt)
	bad.Items[0].Read = 3
	v.receipt(t, "read what is not held", b, bad, false)
	bad = proto.Clone(good).(*pb.Receipt)
	bad.Items[0].First = 3
	v.receipt(t, "all of it below the floor", b, bad, true)
	bad = proto.Clone(good).(*pb.Receipt)
	bad.Items[0].First = 4
	v.receipt(t, "floor above what is held", b, bad, false)
	bad = proto.Clone(good).(*pb.Receipt)
	bad.Items[0].Feed, bad.Items[0].First = uint32(feed.Control), 2
	v.receipt(t, "floor in a control feed", b, bad, false)
	return v
}

func (v *frameVectors) refuse(t testing.TB, name string, f *pb.Frame) {
	v.Refused = append(v.Refused, refusedVector{name, hex.EncodeToString(frameBytes(t, f))})
}

func (v *frameVectors) receipt(t testing.TB, name string, by person, r *pb.Receipt, good bool) {
	raw := signReceipt(t, by, r)
	var signed pb.Signed
	if err := proto.Unmarshal(raw, &signed); err != nil {
		t.Fatal(err)
	}
	seed := by.deviceKey.Seed()
	v.Receipts = append(v.Receipts, receiptVector{name, hex.EncodeToString(seed[:]), hex.EncodeToString(signed.Payload), hex.EncodeToString(raw), good})
}

func readVectors(t testing.TB) (v frameVectors) {
	t.Helper()
	raw, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestVectorsAreUpToDate(t *testing.T) {
	v := makeVectors(t)
	raw, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	raw = append(raw, '\n')
	if *update {
		if err := os.WriteFile(vectorFile, raw, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(vectorFile)
	if err != nil || !bytes.Equal(have, raw) {
		t.Errorf("docs/spec/vectors/sync.json is not what the code makes (%v)", err)
	}
}

func TestVectors(t *testing.T) {
	v := readVectors(t)
	for _, c := range v.Frames {
		raw, err := hex.DecodeString(c.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		var f, want pb.Frame
		if err := wire.Read(bufio.NewReader(bytes.NewReader(raw)), wire.MaxSyncFrame, &f); err != nil {
			t.Errorf("%s: %v", c.Name, err)
		}
		if err := protojson.Unmarshal(c.Message, &want); err != nil || !proto.Equal(&f, &want) {
			t.Errorf("%s reads as another message (%v)", c.Name, err)
		}
		if got := frameBytes(t, &want); !bytes.Equal(got, raw) {
			t.Errorf("%s is written as other bytes", c.Name)
		}
	}
	for _, c := range v.Refused {
		raw, err := hex.DecodeString(c.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		s := bareSession(t, nil)
		if reason, err := s.readFrom(raw); reason != pb.Bye_REASON_PROTOCOL || !errors.Is(err, ErrProtocol) {
			t.Errorf("%s ends the session with %v, %v", c.Name, reason, err)
		}
	}
	for _, c := range v.Receipts {
		raw, err := hex.DecodeString(c.Signed)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseReceipt(raw); (err == nil) != c.Good {
			t.Errorf("receipt %s: %v", c.Name, err)
		}
	}
	if !reflect.DeepEqual(v.Comment, makeVectors(t).Comment) || len(v.Frames) < 10 {
		t.Error("the file holds something else")
	}
}

// bareSession is a session without a stream: a, an old friend of b, is at the other end. Its side runs no node.
func bareSession(t testing.TB, side *side) *session {
	t.Helper()
	a := vectorPerson(t, 0)
	if side == nil {
		side = newSide(t, vectorPerson(t, 1), nil, nil, a)
	}
	s := side.rep.newSession(nil, node.ConnInfo{}, nil, false)
	s.peer, s.cert, s.record = a.peer(), a.cert, a.record
	return s
}

// readFrom reads frames from bytes until they end or the session does.
func (s *session) readFrom(raw []byte) (pb.Bye_Reason, error) {
	s.rd = bufio.NewReaderSize(bytes.NewReader(raw), readBuffer)
	reason, err := s.read(context.Background())
	s.waitIncoming()
	return reason, err
}
