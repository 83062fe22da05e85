package identity

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"hima/internal/wire/pb"
)

// InboxID names an inbox at a mailbox; knowing it is the right to deposit. Text form: 64 hexadecimal digits.
type InboxID [32]byte

// InboxIDFromBytes reads the 32 bytes of an ID.
func InboxIDFromBytes(b []byte) (InboxID, error) {
	if len(b) != len(InboxID{}) {
		return InboxID{}, fmt.Errorf("reading inbox ID: %d bytes: %w", len(b), ErrMalformed)
	}
	return InboxID(b), nil
}

// ParseInboxID reads the text form.
func ParseInboxID(s string) (InboxID, error) {
	b, err := hex.DecodeString(s)
	if err != nil {
		return InboxID{}, fmt.Errorf("reading inbox ID: %w", ErrMalformed)
	}
	return InboxIDFromBytes(b)
}

// String returns the text form.
func (i InboxID) String() string { return hex.EncodeToString(i[:]) }

// MarshalText implements encoding.TextMarshaler.
func (i InboxID) MarshalText() ([]byte, error) { return []byte(i.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (i *InboxID) UnmarshalText(b []byte) error {
	id, err := ParseInboxID(string(b))
	if err == nil {
		*i = id
	}
	return err
}

// IsZero tells whether i is no inbox at all.
func (i InboxID) IsZero() bool { return i == InboxID{} }

// Bytes returns a copy.
func (i InboxID) Bytes() []byte { return append([]byte(nil), i[:]...) }

// InboxSecret is the right to read an inbox, to empty it and to close it. The zero value is none.
type InboxSecret struct{ Secret }

// NewInboxSecret makes a random one.
func NewInboxSecret() InboxSecret { return InboxSecret{NewSecret(randomSeed())} }

// InboxSecretFromBytes reads what Bytes returned.
func InboxSecretFromBytes(b []byte) (InboxSecret, error) {
	if len(b) != 32 {
		return InboxSecret{}, fmt.Errorf("reading inbox secret: %d bytes: %w", len(b), ErrMalformed)
	}
	return InboxSecret{NewSecret([32]byte(b))}, nil
}

// ID returns the inbox that the secret opens.
func (s InboxSecret) ID() InboxID {
	return sha256.Sum256(append([]byte("hima/inbox/1\x00"), s.Bytes()...))
}

// Custody is a mailbox's checked receipt: it holds an item in an inbox until a time.
type Custody struct {
	Mailbox DeviceID // the signer
	Inbox   InboxID
	Item    [32]byte // ItemHash
	Size    int
	Until   time.Time
	Time    time.Time
	raw     string
}

// NewCustody signs a receipt with the mailbox's device key, which becomes its Mailbox.
func NewCustody(key DeviceKey, c Custody) (Custody, error) {
	until, now := toMillis(c.Until), toMillis(c.Time)
	if c.Size < 0 || c.Size > MaxMailItem {
		return Custody{}, fmt.Errorf("making custody receipt: %d bytes: %w", c.Size, ErrMalformed)
	}
	out := Custody{
		Mailbox: key.ID(), Inbox: c.Inbox, Item: c.Item, Size: c.Size,
		Until: time.UnixMilli(until).UTC(), Time: time.UnixMilli(now).UTC(),
	}
	payload := encode(&pb.Custody{
		Mailbox: out.Mailbox.Bytes(), Inbox: out.Inbox.Bytes(), Item: out.Item[:], Size: uint32(out.Size), UntilMs: until, TimeMs: now,
	})
	out.raw = string(appendSigned(payload, key.Sign(DomainCustody, payload)))
	return out, nil
}

// ParseCustody checks signed bytes: size, shape, bounds and the signature of the mailbox named in them. Whether it is the
// mailbox, the inbox and the item that were meant is for the caller to compare.
func ParseCustody(raw []byte) (Custody, error) {
	c, err := parseCustody(raw)
	if err != nil {
		return Custody{}, fmt.Errorf("reading custody receipt: %w", err)
	}
	return c, nil
}

func parseCustody(raw []byte) (Custody, error) {
	payload, sig, err := parseSigned(raw, MaxCustody)
	if err != nil {
		return Custody{}, err
	}
	var m pb.Custody
	if err := decode(payload, &m); err != nil {
		return Custody{}, err
	}
	c := Custody{Size: int(m.Size), raw: string(raw)}
	if len(m.Item) != len(c.Item) || m.Size > MaxMailItem {
		return Custody{}, fmt.Errorf("item: %w", ErrMalformed)
	}
	copy(c.Item[:], m.Item)
	if c.Mailbox, err = DeviceIDFromBytes(m.Mailbox); err != nil {
		return Custody{}, err
	}
	if c.Inbox, err = InboxIDFromBytes(m.Inbox); err != nil {
		return Custody{}, err
	}
	if c.Until, err = fromMillis(m.UntilMs); err != nil {
		return Custody{}, err
	}
	if c.Time, err = fromMillis(m.TimeMs); err != nil {
		return Custody{}, err
	}
	if !c.Mailbox.Verify(DomainCustody, payload, sig) {
		return Custody{}, ErrBadSignature
	}
	return c, nil
}

// Raw returns a copy of the signed bytes.
func (c Custody) Raw() []byte { return []byte(c.raw) }

// IsZero tells whether there is no receipt.
func (c Custody) IsZero() bool { return c.raw == "" }

// SnapshotKey seals the snapshot of an account's self conversation (R21). The zero value is no key.
type SnapshotKey struct{ Secret }

// SnapshotSecrets derives from an account key where the account's snapshot lies and under which key, so that the recovery
// phrase alone leads to both.
func SnapshotSecrets(key AccountKey) (InboxSecret, SnapshotKey) {
	seed := key.Seed()
	derive := func(info string) Secret {
		b, err := hkdf.Key(sha256.New, seed[:], nil, info, 32)
		if err != nil {
			panic("identity: " + err.Error()) // only for a length out of range
		}
		return NewSecret([32]byte(b))
	}
	return InboxSecret{derive("hima/snapshot-inbox/1")}, SnapshotKey{derive("hima/snapshot-key/1")}
}

const (
	snapshotVersion = 1
	snapshotAAD     = "hima/snapshot/1"
)

// SealSnapshot seals a snapshot, at most MaxMailPlain bytes of it: XChaCha20-Poly1305 with a random nonce.
func SealSnapshot(key SnapshotKey, plain []byte) ([]byte, error) {
	padded, err := pad(plain)
	if err != nil {
		return nil, fmt.Errorf("sealing snapshot: %w", err)
	}
	aead, err := chacha20poly1305.NewX(key.Bytes())
	if err != nil {
		return nil, fmt.Errorf("sealing snapshot: no key: %w", ErrMalformed)
	}
	b := make([]byte, 1+aead.NonceSize(), 1+aead.NonceSize()+len(padded)+aead.Overhead())
	b[0] = snapshotVersion
	rand.Read(b[1:])
	return aead.Seal(b, b[1:], padded, []byte(snapshotAAD)), nil
}

// OpenSnapshot opens what SealSnapshot made.
func OpenSnapshot(key SnapshotKey, sealed []byte) ([]byte, error) {
	aead, err := chacha20poly1305.NewX(key.Bytes())
	if err != nil {
		return nil, fmt.Errorf("opening snapshot: no key: %w", ErrMalformed)
	}
	n := 1 + aead.NonceSize()
	if len(sealed) < n || len(sealed) > MaxMailItem || sealed[0] != snapshotVersion {
		return nil, fmt.Errorf("opening snapshot: %d bytes: %w", len(sealed), ErrMalformed)
	}
	padded, err := aead.Open(nil, sealed[1:n], sealed[n:], []byte(snapshotAAD))
	if err != nil {
		return nil, fmt.Errorf("opening snapshot: %w", ErrNotSealedForKey)
	}
	plain, err := unpad(padded)
	if err != nil {
		return nil, fmt.Errorf("opening snapshot: %w", err)
	}
	return plain, nil
}
