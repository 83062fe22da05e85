package feed

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"

	"hima/identity"
)

// OrderKeyLen is the length of the byte form of an [OrderKey].
const OrderKeyLen = 8 + 32 + 32 + 1 + 8

// OrderKey is the place of an entry in its conversation: Lamport clock, then author, device, feed and sequence number.
type OrderKey struct {
	Clock   uint64
	Account identity.AccountID
	Device  identity.DeviceID
	Number  Number
	Seq     uint64
}

// Less tells whether a stands before b.
func Less(a, b OrderKey) bool { return a.Compare(b) < 0 }

// Compare returns -1, 0 or 1, like [cmp.Compare].
func (a OrderKey) Compare(b OrderKey) int {
	if c := cmp.Compare(a.Clock, b.Clock); c != 0 {
		return c
	}
	if c := bytes.Compare(a.Account[:], b.Account[:]); c != 0 {
		return c
	}
	if c := bytes.Compare(a.Device[:], b.Device[:]); c != 0 {
		return c
	}
	if c := cmp.Compare(a.Number, b.Number); c != 0 {
		return c
	}
	return cmp.Compare(a.Seq, b.Seq)
}

// Bytes returns the byte form. Byte forms sort as their keys do, so that a database keeps history in order.
func (a OrderKey) Bytes() [OrderKeyLen]byte {
	var b [OrderKeyLen]byte
	binary.BigEndian.PutUint64(b[:8], a.Clock)
	copy(b[8:40], a.Account[:])
	copy(b[40:72], a.Device[:])
	b[72] = byte(a.Number)
	binary.BigEndian.PutUint64(b[73:], a.Seq)
	return b
}

// AppendTo appends the byte form to b.
func (a OrderKey) AppendTo(b []byte) []byte {
	k := a.Bytes()
	return append(b, k[:]...)
}

// ParseOrderKey reads the byte form.
func ParseOrderKey(b []byte) (OrderKey, error) {
	var k OrderKey
	if len(b) != OrderKeyLen {
		return k, fmt.Errorf("parsing order key: %d bytes: %w", len(b), ErrMalformed)
	}
	k.Clock = binary.BigEndian.Uint64(b)
	copy(k.Account[:], b[8:])
	copy(k.Device[:], b[40:])
	k.Number = Number(b[72])
	k.Seq = binary.BigEndian.Uint64(b[73:])
	if !k.Number.Valid() {
		return OrderKey{}, fmt.Errorf("parsing order key: feed %d: %w", b[72], ErrMalformed)
	}
	return k, nil
}
