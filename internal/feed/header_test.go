package feed

import (
	"bytes"
	"crypto/sha256"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"hima/internal/wire/pb"
)

// requireSameAsProtobuf holds the hand-written parser against the generated one.
func requireSameAsProtobuf(t require.TestingT, raw []byte, h Header) {
	var p pb.Header
	require.NoError(t, proto.Unmarshal(raw, &p))
	if h.Nonce == nil {
		require.Equal(t, p.Conversation, h.Conversation[:])
	}
	require.Equal(t, p.Feed, uint32(h.Number))
	require.Equal(t, p.Account, h.Account[:])
	require.Equal(t, p.Device, h.Device[:])
	require.Equal(t, p.Seq, h.Seq)
	if h.Seq > 1 {
		require.Equal(t, p.Prev, h.Prev[:])
	} else {
		require.Empty(t, p.Prev)
	}
	require.Equal(t, p.Clock, h.Clock)
	require.Equal(t, p.TimeMs, h.TimeMS)
	require.Equal(t, p.Kind, uint32(h.Kind))
	require.Equal(t, p.BodyHash, h.BodyHash[:])
	require.Equal(t, p.BodyLen, h.BodyLen)
	require.Equal(t, p.Certificate, h.Certificate)
	require.Len(t, h.Parents, len(p.Parents))
	for i, id := range p.Parents {
		require.Equal(t, id, h.Parents[i][:])
	}
	require.Equal(t, p.Epoch, h.Epoch)
	require.Equal(t, p.Nonce, h.Nonce)
}

func drawBytes(t *rapid.T, n int, label string) []byte {
	b := rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, label)
	b[0] |= 1 // never all zero
	return b
}

// drawHeader returns a valid header.
func drawHeader(t *rapid.T) *pb.Header {
	seq := rapid.OneOf(rapid.Just(uint64(1)), rapid.Uint64Range(2, MaxSeq)).Draw(t, "seq")
	h := &pb.Header{
		Conversation: drawBytes(t, 32, "conversation"),
		Feed:         rapid.Uint32Range(1, 2).Draw(t, "feed"),
		Account:      drawBytes(t, 32, "account"),
		Device:       drawBytes(t, 32, "device"),
		Seq:          seq,
		Clock:        rapid.OneOf(rapid.Just(seq), rapid.Just(maxClock(seq)), rapid.Uint64Range(seq, maxClock(seq))).Draw(t, "clock"),
		TimeMs:       rapid.OneOf(rapid.Just(int64(0)), rapid.Int64Range(0, MaxTimeMS)).Draw(t, "time"),
		Kind:         rapid.Uint32Range(1, 1<<32-1).Draw(t, "kind"),
		BodyHash:     drawBytes(t, 32, "body hash"),
		BodyLen:      rapid.SampledFrom(bodySizes[:]).Draw(t, "body length"),
	}
	if seq == 1 {
		h.Certificate = drawBytes(t, rapid.IntRange(1, MaxCertificate).Draw(t, "certificate length"), "certificate")
	} else {
		h.Prev = drawBytes(t, 32, "prev")
	}
	if h.Feed == uint32(Control) {
		for range rapid.IntRange(0, MaxParents).Draw(t, "parents") {
			h.Parents = append(h.Parents, drawBytes(t, 32, "parent"))
		}
		if seq == 1 && rapid.Bool().Draw(t, "genesis") {
			h.Conversation, h.Nonce = nil, drawBytes(t, 32, "nonce")
		}
	}
	if rapid.Bool().Draw(t, "epoch") {
		h.Epoch = drawBytes(t, rapid.IntRange(1, MaxEpoch).Draw(t, "epoch length"), "epoch bytes")
	}
	return h
}

var deterministic = proto.MarshalOptions{Deterministic: true}

func TestParserReadsWhatProtobufWrites(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw, err := deterministic.Marshal(drawHeader(t))
		require.NoError(t, err)
		var h Header
		require.NoError(t, h.parse(raw))
		requireSameAsProtobuf(t, raw, h)
		require.Equal(t, raw, h.append(nil), "encoder differs from protobuf")
	})
}

// Whatever is changed in a valid header, the parser either refuses it or reads it like protobuf; and if it has no
// fields of newer versions there is no second encoding of it.
func TestParserNeverDisagreesWithProtobuf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw, err := deterministic.Marshal(drawHeader(t))
		require.NoError(t, err)
		at := rapid.IntRange(0, len(raw)-1).Draw(t, "at")
		switch rapid.IntRange(0, 3).Draw(t, "change") {
		case 0:
			raw[at] = rapid.Byte().Draw(t, "byte")
		case 1:
			raw = append(raw[:at:at], raw[at+1:]...)
		case 2:
			raw = append(raw[:at:at], append([]byte{rapid.Byte().Draw(t, "byte")}, raw[at:]...)...)
		case 3:
			raw = append(raw, rapid.SliceOfN(rapid.Byte(), 1, 20).Draw(t, "rest")...)
		}
		var h Header
		if h.parse(raw) == nil {
			requireSameAsProtobuf(t, raw, h)
			if again := h.append(nil); len(again) == len(raw) {
				require.Equal(t, raw, again)
			}
		}
	})
}

func TestFieldsOfNewerVersionsAreKept(t *testing.T) {
	e := newWriter("alice").write(t, Tip{}, 2)[1]
	raw := protowire.AppendTag(bytes.Clone(e.RawHeader()), 16, protowire.VarintType)
	raw = protowire.AppendVarint(raw, 0)
	raw = protowire.AppendTag(raw, 900, protowire.BytesType)
	raw = protowire.AppendBytes(raw, []byte("later"))
	raw = protowire.AppendTag(raw, 900, protowire.Fixed64Type)
	raw = protowire.AppendFixed64(raw, 7)
	got, err := ParseStored(raw, nil)
	require.NoError(t, err)
	require.Equal(t, e.Header, got.Header)
	require.Equal(t, raw, got.RawHeader())
	require.Equal(t, EntryID(sha256.Sum256(raw)), got.ID)
}

// headerCases are broken headers, each with one thing wrong. They are also in the vectors.
func headerCases(t testing.TB) map[string][]byte {
	w := newWriter("alice")
	entries := w.write(t, Tip{}, 2)
	first, second := entries[0], entries[1]
	change := func(e Entry, f func(*Header)) []byte { return rewrite(e, f).header }
	raw := second.RawHeader()
	return map[string][]byte{
		"empty":                          {},
		"not protobuf":                   []byte("hello, is this the right door?"),
		"truncated":                      raw[:len(raw)-1],
		"fields out of order":            append(bytes.Clone(raw[34:]), raw[:34]...),
		"field twice":                    append(bytes.Clone(raw[:34]), raw...),
		"long form of a number":          bytes.Replace(raw, []byte{0x10, 2, 0x1a}, []byte{0x10, 0x82, 0, 0x1a}, 1),
		"explicit zero":                  append(bytes.Clone(raw), protowire.AppendBytes(protowire.AppendTag(nil, 14, protowire.BytesType), nil)...),
		"wrong wire type":                bytes.Replace(raw, []byte{0x10, 2, 0x1a}, []byte{0x12, 1, 2, 0x1a}, 1),
		"group wire type":                append(bytes.Clone(raw), 0x83, 1, 0x84, 1),
		"field number zero":              append([]byte{0, 1}, raw...),
		"feed three":                     change(second, func(h *Header) { h.Number = 3 }),
		"no feed":                        change(second, func(h *Header) { h.Number = 0 }),
		"zero account":                   change(second, func(h *Header) { h.Account = [32]byte{} }),
		"zero conversation":              change(second, func(h *Header) { h.Conversation = ConversationID{} }),
		"number zero":                    change(second, func(h *Header) { h.Seq = 0 }),
		"number too high":                change(second, func(h *Header) { h.Seq, h.Clock = MaxSeq+1, MaxSeq+1 }),
		"second without previous":        append(bytes.Clone(raw[:106]), raw[140:]...),
		"second with certificate":        change(second, func(h *Header) { h.Certificate = first.Certificate }),
		"first without certificate":      change(first, func(h *Header) { h.Certificate = nil }),
		"certificate too long":           change(first, func(h *Header) { h.Certificate = make([]byte, MaxCertificate+1) }),
		"time too late":                  change(second, func(h *Header) { h.TimeMS = MaxTimeMS + 1 }),
		"time negative":                  change(second, func(h *Header) { h.TimeMS = -1 }),
		"kind zero":                      change(second, func(h *Header) { h.Kind = 0 }),
		"body length odd":                change(second, func(h *Header) { h.BodyLen = 65 }),
		"no body hash":                   change(second, func(h *Header) { h.BodyHash = [32]byte{} }),
		"parents in chat":                change(second, func(h *Header) { h.Parents = make([]EntryID, 1) }),
		"too many parents":               change(second, func(h *Header) { h.Number, h.Parents = Control, make([]EntryID, MaxParents+1) }),
		"epoch too long":                 change(second, func(h *Header) { h.Epoch = make([]byte, MaxEpoch+1) }),
		"nonce beside conversation":      append(bytes.Clone(raw), protowire.AppendBytes(protowire.AppendTag(nil, 15, protowire.BytesType), make([]byte, 32))...),
		"genesis in chat":                change(first, func(h *Header) { h.Nonce = make([]byte, 32) }),
		"genesis not first":              change(second, func(h *Header) { h.Number, h.Nonce = Control, make([]byte, 32) }),
		"nonce too short":                change(first, func(h *Header) { h.Number, h.Nonce = Control, make([]byte, 31) }),
		"neither conversation nor nonce": first.RawHeader()[34:],
	}
}

func TestHeadersRefused(t *testing.T) {
	for name, raw := range headerCases(t) {
		t.Run(name, func(t *testing.T) {
			_, err := ParseStored(raw, nil)
			require.ErrorIs(t, err, ErrMalformed)
		})
	}
	_, err := ParseStored(make([]byte, MaxHeader+1), nil)
	require.ErrorIs(t, err, ErrTooLarge)
}

func TestClockOfOneHeader(t *testing.T) {
	entries := newWriter("alice").write(t, Tip{}, 2)
	for _, c := range []struct {
		e     Entry
		clock uint64
		ok    bool
	}{
		{entries[0], 0, false},
		{entries[0], 1, true},
		{entries[0], 1 << 62, true},
		{entries[0], 1<<62 + 1, false},
		{entries[1], 1, false},
		{entries[1], 2, true},
		{entries[1], 1<<62 + 1<<32, true},
		{entries[1], 1<<62 + 1<<32 + 1, false},
		{entries[1], 1<<64 - 1, false},
	} {
		_, err := ParseStored(rewrite(c.e, func(h *Header) { h.Clock = c.clock }).header, nil)
		if c.ok {
			require.NoError(t, err, c.clock)
		} else {
			require.ErrorIs(t, err, ErrClock, c.clock)
		}
	}
}

func TestGenesisNamesItsConversation(t *testing.T) {
	e := newWriter("alice").write(t, Tip{}, 1)[0]
	raw := rewrite(e, func(h *Header) { h.Number, h.Nonce = Control, bytes.Repeat([]byte{7}, 32) }).header
	got, err := ParseStored(raw, nil)
	require.NoError(t, err)
	require.Equal(t, ConversationID(got.ID), got.Conversation)
	require.Equal(t, ConversationID(got.ID), got.Feed().Conversation)
}
