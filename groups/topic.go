package groups

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"strings"

	"hima/identity"
)

// EpochKey is the secret of an epoch: all keys and names that its members alone can compute come from it. The zero value is
// no key.
type EpochKey struct{ identity.Secret }

// NewEpochKey makes a random one.
func NewEpochKey() EpochKey {
	var b [32]byte
	rand.Read(b[:])
	return EpochKey{identity.NewSecret(b)}
}

// EpochKeyFromBytes reads the 32 bytes of a key.
func EpochKeyFromBytes(b []byte) (EpochKey, error) {
	if len(b) != 32 {
		return EpochKey{}, fmt.Errorf("reading epoch key: %d bytes: %w", len(b), ErrEnvelope)
	}
	return EpochKey{identity.NewSecret([32]byte(b))}, nil
}

// Hash is what the act of an epoch says of its key.
func (k EpochKey) Hash() [32]byte {
	return sha256.Sum256(append([]byte("hima/group-key/1\x00"), k.Bytes()...))
}

// The labels of what is derived from an epoch key. labelPayload is followed by the author's device.
const (
	labelAuthor  = "author"
	labelPayload = "payload"
	labelTopic   = "topic"
	labelLog     = "log"
)

// derive gives the secret of a label: HKDF-SHA256 of the epoch key, without salt.
func (k EpochKey) derive(label string, more ...byte) [32]byte {
	info := append([]byte("hima/group-derive/1\x00"+label+"\x00"), more...)
	b, err := hkdf.Key(sha256.New, k.Bytes(), nil, string(info), 32)
	if err != nil {
		panic("groups: " + err.Error()) // only for a length out of range
	}
	return [32]byte(b)
}

// topic is the name of the epoch's topic. Who does not hold the key can link it to nothing.
func (k EpochKey) topic() string {
	t := k.derive(labelTopic)
	return "hima/g/" + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(t[:]))
}

// logSecret opens the epoch's log at a mailbox.
func (k EpochKey) logSecret() identity.InboxSecret {
	return identity.InboxSecret{Secret: identity.NewSecret(k.derive(labelLog))}
}
