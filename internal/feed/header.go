package feed

import (
	"fmt"
	"math"

	"google.golang.org/protobuf/encoding/protowire"

	"hima/identity"
)

// Header is the signed part of an entry, decoded.
type Header struct {
	// Conversation is the hash of the header itself in a genesis header, where the encoded field is empty (R6).
	Conversation ConversationID
	Number       Number
	Account      identity.AccountID
	Device       identity.DeviceID
	Seq          uint64
	Prev         EntryID // zero at Seq 1
	Clock        uint64
	TimeMS       int64
	Kind         Kind
	BodyHash     [32]byte
	BodyLen      uint32
	Certificate  []byte    // exactly at Seq 1
	Parents      []EntryID // control feeds of groups
	Epoch        []byte    // groups
	Nonce        []byte    // exactly in a genesis header, 32 bytes
}

// The field numbers of the Header message. Numbers from fieldNew on belong to newer versions: such fields are kept,
// because the raw bytes are, and not looked at.
const (
	fieldConversation = 1
	fieldNumber       = 2
	fieldAccount      = 3
	fieldDevice       = 4
	fieldSeq          = 5
	fieldPrev         = 6
	fieldClock        = 7
	fieldTime         = 8
	fieldKind         = 9
	fieldBodyHash     = 10
	fieldBodyLen      = 11
	fieldCertificate  = 12
	fieldParents      = 13
	fieldEpoch        = 14
	fieldNonce        = 15
	fieldNew          = 16
)

// parse reads an encoded header. It is written by hand for two reasons: it allocates nothing in the usual case, and it
// takes one encoding only (ascending fields, none twice, shortest numbers, no explicit zeros), so that two
// implementations cannot read different things from the same signed bytes. What it accepts, protobuf reads alike.
func (h *Header) parse(b []byte) error {
	if len(b) > MaxHeader {
		return fmt.Errorf("reading header: %d bytes: %w", len(b), ErrTooLarge)
	}
	var last protowire.Number
	for len(b) > 0 {
		tag, n := uvarint(b)
		if n == 0 {
			return malformed("tag")
		}
		b = b[n:]
		num, typ := protowire.Number(tag>>3), protowire.Type(tag&7)
		if tag>>3 > uint64(protowire.MaxValidNumber) || num < 1 {
			return malformed("field number")
		}
		if num < last || num == last && num != fieldParents && num < fieldNew {
			return malformed("order of fields")
		}
		last = num
		var v uint64
		var s []byte
		switch typ {
		case protowire.VarintType:
			if v, n = uvarint(b); n == 0 {
				return malformed("number")
			}
		case protowire.BytesType:
			var l uint64
			if l, n = uvarint(b); n == 0 || l > uint64(len(b)-n) {
				return malformed("length")
			}
			s = b[n : n+int(l) : n+int(l)]
			n += int(l)
		case protowire.Fixed64Type, protowire.Fixed32Type:
			n = 8
			if typ == protowire.Fixed32Type {
				n = 4
			}
			if num < fieldNew || n > len(b) {
				return malformed("fixed number")
			}
		default:
			return malformed("wire type")
		}
		b = b[n:]
		if num >= fieldNew {
			continue
		}
		if err := h.field(num, typ, v, s); err != nil {
			return err
		}
	}
	return h.check()
}

// field takes over one known field.
func (h *Header) field(num protowire.Number, typ protowire.Type, v uint64, s []byte) error {
	switch num {
	case fieldNumber, fieldSeq, fieldClock, fieldTime, fieldKind, fieldBodyLen:
		if typ != protowire.VarintType || v == 0 {
			return malformed("number field")
		}
	default:
		if typ != protowire.BytesType || len(s) == 0 {
			return malformed("bytes field")
		}
	}
	ok := true
	switch num {
	case fieldConversation:
		ok = fill(h.Conversation[:], s) && !h.Conversation.IsZero()
	case fieldNumber:
		h.Number = Number(min(v, math.MaxUint32))
	case fieldAccount:
		ok = fill(h.Account[:], s)
	case fieldDevice:
		ok = fill(h.Device[:], s)
	case fieldSeq:
		h.Seq = v
	case fieldPrev:
		ok = fill(h.Prev[:], s) && !h.Prev.IsZero()
	case fieldClock:
		h.Clock = v
	case fieldTime:
		ok = v <= MaxTimeMS
		h.TimeMS = int64(v & math.MaxInt64)
	case fieldKind:
		ok = v <= math.MaxUint32
		h.Kind = Kind(v & math.MaxUint32)
	case fieldBodyHash:
		ok = fill(h.BodyHash[:], s)
		if h.BodyHash == ([32]byte{}) {
			ok = false
		}
	case fieldBodyLen:
		h.BodyLen = uint32(min(v, math.MaxUint32))
	case fieldCertificate:
		ok = len(s) <= MaxCertificate
		h.Certificate = s
	case fieldParents:
		var p EntryID
		ok = fill(p[:], s) && len(h.Parents) < MaxParents
		h.Parents = append(h.Parents, p)
	case fieldEpoch:
		ok = len(s) <= MaxEpoch
		h.Epoch = s
	case fieldNonce:
		ok = len(s) == 32
		h.Nonce = s
	}
	if !ok {
		return fmt.Errorf("reading header: field %d: %w", num, ErrMalformed)
	}
	return nil
}

// check judges the fields together: which must be there and which must not, and every bound that needs no predecessor.
func (h *Header) check() error {
	switch {
	case !h.Number.Valid():
		return malformed("feed number")
	case h.Account.IsZero() || h.Device.IsZero():
		return malformed("author")
	case h.Seq < 1 || h.Seq > MaxSeq:
		return malformed("sequence number")
	case (h.Seq == 1) != h.Prev.IsZero():
		return malformed("previous hash")
	case (h.Seq == 1) != (h.Certificate != nil):
		return malformed("presence of certificate")
	case h.Conversation.IsZero() != (h.Nonce != nil):
		return malformed("presence of nonce")
	case h.Conversation.IsZero() && (h.Number != Control || h.Seq != 1):
		return malformed("genesis")
	case h.Kind == 0:
		return malformed("kind")
	case h.BodyHash == [32]byte{} || !validBodyLen(h.BodyLen):
		return malformed("body hash or length")
	case len(h.Parents) > 0 && h.Number != Control:
		return malformed("parents in chat")
	}
	if h.Clock < h.Seq || h.Clock > maxClock(h.Seq) {
		return fmt.Errorf("reading header: clock %d at number %d: %w", h.Clock, h.Seq, ErrClock)
	}
	return nil
}

// maxClock is the highest clock that any chain of valid steps reaches at a number.
func maxClock(seq uint64) uint64 { return MaxFirstClock + (seq-1)*MaxClockStep }

// append encodes the header. The result is what deterministic protobuf encoding gives.
func (h *Header) append(b []byte) []byte {
	if h.Nonce == nil {
		b = appendBytes(b, fieldConversation, h.Conversation[:])
	}
	b = appendNumber(b, fieldNumber, uint64(h.Number))
	b = appendBytes(b, fieldAccount, h.Account[:])
	b = appendBytes(b, fieldDevice, h.Device[:])
	b = appendNumber(b, fieldSeq, h.Seq)
	if h.Seq != 1 {
		b = appendBytes(b, fieldPrev, h.Prev[:])
	}
	b = appendNumber(b, fieldClock, h.Clock)
	b = appendNumber(b, fieldTime, uint64(h.TimeMS))
	b = appendNumber(b, fieldKind, uint64(h.Kind))
	b = appendBytes(b, fieldBodyHash, h.BodyHash[:])
	b = appendNumber(b, fieldBodyLen, uint64(h.BodyLen))
	b = appendBytes(b, fieldCertificate, h.Certificate)
	for i := range h.Parents {
		b = appendBytes(b, fieldParents, h.Parents[i][:])
	}
	b = appendBytes(b, fieldEpoch, h.Epoch)
	return appendBytes(b, fieldNonce, h.Nonce)
}

func appendNumber(b []byte, num protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
}

func appendBytes(b []byte, num protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), v)
}

// uvarint reads a number in its shortest form; the length is 0 if there is none.
func uvarint(b []byte) (uint64, int) {
	if len(b) > 0 && b[0] < 0x80 {
		return uint64(b[0]), 1
	}
	v, n := protowire.ConsumeVarint(b)
	if n <= 0 || n != protowire.SizeVarint(v) {
		return 0, 0
	}
	return v, n
}

// fill copies src to dst if it has just that length.
func fill(dst, src []byte) bool { return len(src) == len(dst) && copy(dst, src) == len(dst) }

func malformed(what string) error {
	return fmt.Errorf("reading header: %s: %w", what, ErrMalformed)
}
