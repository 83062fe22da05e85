package identity

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
)

// Signed bytes (message Signed) have one encoding only: field 1 with the payload, field 2 with 64 bytes of signature,
// nothing else. So bytes that differ anywhere do not pass, and two copies of a record can be compared as bytes.

const sigTail = 2 + 64 // tag, length and bytes of the signature

func appendSigned(payload, sig []byte) []byte {
	b := make([]byte, 0, 1+binary.MaxVarintLen32+len(payload)+sigTail)
	b = append(b, 1<<3|2)
	b = binary.AppendUvarint(b, uint64(len(payload)))
	b = append(b, payload...)
	b = append(b, 2<<3|2, 64)
	return append(b, sig...)
}

func parseSigned(raw []byte, max int) (payload, sig []byte, err error) {
	if len(raw) > max {
		return nil, nil, fmt.Errorf("%d bytes, limit %d: %w", len(raw), max, ErrMalformed)
	}
	if len(raw) < sigTail+2 {
		return nil, nil, fmt.Errorf("%d bytes: %w", len(raw), ErrMalformed)
	}
	n, w := binary.Uvarint(raw[1:])
	if w <= 0 || n != uint64(len(raw)-1-w-sigTail) {
		return nil, nil, fmt.Errorf("signed envelope: %w", ErrMalformed)
	}
	payload, sig = raw[1+w:len(raw)-sigTail], raw[len(raw)-64:]
	if !bytes.Equal(appendSigned(payload, sig), raw) {
		return nil, nil, fmt.Errorf("signed envelope: %w", ErrMalformed)
	}
	return payload, sig, nil
}

// encode marshals a payload that is about to be signed. Its bytes are kept from then on and never made again.
func encode(m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		// Only invalid UTF-8 in a string field does this, and every caller checked its strings.
		panic("identity: encoding: " + err.Error())
	}
	return b
}

func decode(b []byte, m proto.Message) error {
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, m); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return nil
}

// fromMillis turns Unix milliseconds of the years 1970 to 9999 into a time.
func fromMillis(ms int64) (time.Time, error) {
	if ms < 0 || ms > maxMillis {
		return time.Time{}, fmt.Errorf("time out of range: %w", ErrMalformed)
	}
	return time.UnixMilli(ms).UTC(), nil
}

// toMillis is the reverse; a clock that stands outside the years 1970 to 9999 is moved to the nearer end.
func toMillis(t time.Time) int64 {
	return min(max(t.UnixMilli(), 0), maxMillis)
}
