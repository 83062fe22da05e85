package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"log/slog"

	"github.com/libp2p/go-libp2p/core/crypto"
)

// redacted is what every secret shows of itself.
const redacted = "[secret]"

// AccountKey is the private key of an account. The zero value is no key.
type AccountKey struct{ secretKey }

// DeviceKey is the private key of a device. The zero value is no key.
type DeviceKey struct{ secretKey }

// secretKey holds an Ed25519 private key, seed and public key. Nil: no key. It sits behind a function because fmt does not
// ask the methods of unexported fields in other people's structs, and follows pointers there under some verbs; a function
// shows an address and no more, cannot be compared, and no encoder takes it.
type secretKey struct{ key func() ed25519.PrivateKey }

// GenerateAccountKey makes a new account.
func GenerateAccountKey() AccountKey { return AccountKeyFromSeed(randomSeed()) }

// GenerateDeviceKey makes a new device.
func GenerateDeviceKey() DeviceKey { return DeviceKeyFromSeed(randomSeed()) }

// AccountKeyFromSeed returns the key of a seed (RFC 8032, section 5.1.5).
func AccountKeyFromSeed(seed [32]byte) AccountKey { return AccountKey{keyFromSeed(seed)} }

// DeviceKeyFromSeed returns the key of a seed (RFC 8032, section 5.1.5).
func DeviceKeyFromSeed(seed [32]byte) DeviceKey { return DeviceKey{keyFromSeed(seed)} }

func randomSeed() (seed [32]byte) {
	rand.Read(seed[:]) // never returns an error, crashes the program instead
	return seed
}

func keyFromSeed(seed [32]byte) secretKey {
	key := ed25519.NewKeyFromSeed(seed[:])
	return secretKey{func() ed25519.PrivateKey { return key }}
}

// ID returns the public key.
func (k AccountKey) ID() AccountID { return k.public() }

// ID returns the public key.
func (k DeviceKey) ID() DeviceID { return k.public() }

// Libp2p returns the key in the form in which a libp2p host takes it.
func (k DeviceKey) Libp2p() crypto.PrivKey { return libp2pKey(k.key()) }

func (k secretKey) public() (id [32]byte) {
	if k.key != nil {
		copy(id[:], k.key()[32:])
	}
	return id
}

// IsZero tells whether there is no key.
func (k secretKey) IsZero() bool { return k.key == nil }

// Seed returns the secret seed. It is for sealing and for tests.
func (k secretKey) Seed() (seed [32]byte) {
	if k.key != nil {
		copy(seed[:], k.key()[:32])
	}
	return seed
}

// Sign returns the 64-byte signature over payload for purpose d.
func (k secretKey) Sign(d Domain, payload []byte) []byte {
	return ed25519.Sign(k.key(), d.message(payload))
}

// String redacts.
func (secretKey) String() string { return redacted }

// Format redacts under every verb.
func (secretKey) Format(s fmt.State, _ rune) { fmt.Fprint(s, redacted) }

// LogValue redacts.
func (secretKey) LogValue() slog.Value { return slog.StringValue(redacted) }

// Secret is 32 secret bytes. The zero value means that there is none.
type Secret struct{ b func() [32]byte } // a function for the same reason as in secretKey

// NewSecret takes 32 bytes.
func NewSecret(b [32]byte) Secret { return Secret{func() [32]byte { return b }} }

// IsZero tells whether there is no secret.
func (s Secret) IsZero() bool { return s.b == nil }

// Bytes returns a copy of the 32 bytes, or nil.
func (s Secret) Bytes() []byte {
	if s.b == nil {
		return nil
	}
	b := s.b()
	return b[:]
}

// String redacts.
func (Secret) String() string { return redacted }

// Format redacts under every verb.
func (Secret) Format(s fmt.State, _ rune) { fmt.Fprint(s, redacted) }

// LogValue redacts.
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// Password is what a person types to open a vault. Any text, compared byte by byte; callers normalise if they wish.
type Password string

// String redacts.
func (Password) String() string { return redacted }

// Format redacts under every verb.
func (Password) Format(s fmt.State, _ rune) { fmt.Fprint(s, redacted) }

// LogValue redacts.
func (Password) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText refuses: a password has no business in an encoder.
func (Password) MarshalText() ([]byte, error) {
	return nil, fmt.Errorf("encoding a password: %w", ErrMalformed)
}
