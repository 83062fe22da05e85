package identity

import (
	"crypto/hpke"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"time"
)

// prekeyKEM is the hybrid of ML-KEM-768 and X25519 (HPKE KEM 0x647a): what is captured today stays closed as long as one
// of the two holds.
func prekeyKEM() hpke.KEM { return hpke.MLKEM768X25519() }

// Prekey is a public key to which mail is sealed. The zero value is no key.
type Prekey struct{ raw string }

// ParsePrekey reads the bytes of a public key.
func ParsePrekey(b []byte) (Prekey, error) {
	if len(b) != PrekeySize {
		return Prekey{}, fmt.Errorf("reading prekey: %d bytes: %w", len(b), ErrMalformed)
	}
	if _, err := prekeyKEM().NewPublicKey(b); err != nil {
		return Prekey{}, fmt.Errorf("reading prekey: %w: %w", ErrMalformed, err)
	}
	return Prekey{string(b)}, nil
}

// Bytes returns a copy of the key.
func (p Prekey) Bytes() []byte { return []byte(p.raw) }

// IsZero tells whether there is no key.
func (p Prekey) IsZero() bool { return p.raw == "" }

// PrekeySecret is the private half of a prekey: whoever has it opens what was sealed for it, which is why it is erased.
// The zero value is no key.
type PrekeySecret struct{ Secret }

// GeneratePrekey makes a new prekey.
func GeneratePrekey() PrekeySecret {
	k, err := prekeyKEM().GenerateKey()
	if err != nil {
		panic("identity: " + err.Error()) // only without a source of randomness, which crashes before
	}
	b, err := k.Bytes()
	if err != nil || len(b) != 32 {
		panic("identity: prekey without 32 bytes of seed")
	}
	return PrekeySecret{NewSecret([32]byte(b))}
}

// PrekeySecretFromBytes reads what Bytes returned.
func PrekeySecretFromBytes(b []byte) (PrekeySecret, error) {
	if len(b) != 32 {
		return PrekeySecret{}, fmt.Errorf("reading prekey secret: %d bytes: %w", len(b), ErrMalformed)
	}
	return PrekeySecret{NewSecret([32]byte(b))}, nil
}

func (s PrekeySecret) key() (hpke.PrivateKey, error) {
	k, err := prekeyKEM().NewPrivateKey(s.Bytes())
	if err != nil {
		return nil, fmt.Errorf("reading prekey secret: %w", ErrMalformed)
	}
	return k, nil
}

// Public returns the public half.
func (s PrekeySecret) Public() Prekey {
	k, err := s.key()
	if err != nil {
		return Prekey{}
	}
	return Prekey{string(k.PublicKey().Bytes())}
}

// Hint tells the recipient which of its prekeys a sealed item is for: the ID of a one-time prekey, or random bytes for a
// rotating one, so that an item tells nobody else whom it is for. Text form: 32 hexadecimal digits.
type Hint [16]byte

// NewHint makes a random hint.
func NewHint() (h Hint) {
	rand.Read(h[:])
	return h
}

// HintFromBytes reads the 16 bytes of a hint.
func HintFromBytes(b []byte) (Hint, error) {
	if len(b) != len(Hint{}) {
		return Hint{}, fmt.Errorf("reading hint: %d bytes: %w", len(b), ErrMalformed)
	}
	return Hint(b), nil
}

// String returns the text form.
func (h Hint) String() string { return hex.EncodeToString(h[:]) }

// Bytes returns a copy.
func (h Hint) Bytes() []byte { return append([]byte(nil), h[:]...) }

// OneTimePrekey is a prekey that is handed to exactly one device and opens one item (R24).
type OneTimePrekey struct {
	ID  Hint
	Key Prekey
}

// MayErasePrekey tells whether a rotating prekey may go (R24). replaced is when the published record first named another
// one; longest is the longest time for which any mailbox named meanwhile keeps an item; emptied holds, for each such
// mailbox, when it was last found empty (zero: never). Before both are over, an item that only this key opens may still
// lie somewhere.
func MayErasePrekey(replaced, now time.Time, longest time.Duration, emptied []time.Time) bool {
	if replaced.IsZero() || !now.After(replaced.Add(longest+PrekeySlack)) {
		return false
	}
	for _, at := range emptied {
		if !at.After(replaced) {
			return false
		}
	}
	return true
}
