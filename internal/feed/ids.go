package feed

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"hima/identity"
)

// ConversationID names a conversation. Its text form is 64 hexadecimal digits.
type ConversationID [32]byte

// EntryID names an entry: the SHA-256 of its header. Its text form is 64 hexadecimal digits.
type EntryID [32]byte

// FeedID names the feed of one device in one conversation. The account follows from the certificate of the device.
type FeedID struct {
	Conversation ConversationID
	Number       Number
	Device       identity.DeviceID
}

const (
	domainDirect = "hima/direct/1\x00"
	domainSelf   = "hima/self/1\x00"
)

// DirectConversation returns the ID of the conversation of two accounts (R6), the same in either order.
func DirectConversation(a, b identity.AccountID) ConversationID {
	if string(a[:]) > string(b[:]) {
		a, b = b, a
	}
	buf := make([]byte, 0, len(domainDirect)+64)
	buf = append(buf, domainDirect...)
	buf = append(buf, a[:]...)
	buf = append(buf, b[:]...)
	return sha256.Sum256(buf)
}

// SelfConversation returns the ID of the conversation of an account with itself (R6).
func SelfConversation(a identity.AccountID) ConversationID {
	return sha256.Sum256(append([]byte(domainSelf), a[:]...))
}

// ParseConversationID reads the text form.
func ParseConversationID(s string) (ConversationID, error) {
	var id ConversationID
	return id, parseHex(id[:], s)
}

// String returns the text form.
func (id ConversationID) String() string { return hex.EncodeToString(id[:]) }

// Short returns the first eight digits, for logs.
func (id ConversationID) Short() string { return hex.EncodeToString(id[:4]) }

// IsZero tells whether the ID was never set.
func (id ConversationID) IsZero() bool { return id == ConversationID{} }

// MarshalText implements [encoding.TextMarshaler].
func (id ConversationID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (id *ConversationID) UnmarshalText(b []byte) error { return parseHex(id[:], string(b)) }

// ParseEntryID reads the text form.
func ParseEntryID(s string) (EntryID, error) {
	var id EntryID
	return id, parseHex(id[:], s)
}

// String returns the text form.
func (id EntryID) String() string { return hex.EncodeToString(id[:]) }

// Short returns the first eight digits, for logs.
func (id EntryID) Short() string { return hex.EncodeToString(id[:4]) }

// IsZero tells whether the ID was never set.
func (id EntryID) IsZero() bool { return id == EntryID{} }

// MarshalText implements [encoding.TextMarshaler].
func (id EntryID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (id *EntryID) UnmarshalText(b []byte) error { return parseHex(id[:], string(b)) }

// parseHex fills dst from s and leaves it as it was on an error.
func parseHex(dst []byte, s string) error {
	if len(s) != 2*len(dst) {
		return fmt.Errorf("parsing ID: %d digits instead of %d: %w", len(s), 2*len(dst), ErrMalformed)
	}
	b, err := hex.DecodeString(s)
	if err != nil {
		return fmt.Errorf("parsing ID: %w: %w", err, ErrMalformed)
	}
	copy(dst, b)
	return nil
}
