package identity

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
)

// AccountID names a person: the Ed25519 public key of the account. Text form: bech32m, "hima1…", 63 characters.
type AccountID [32]byte

// DeviceID names a machine: the Ed25519 public key of the device, which is also its libp2p host key. Text form: the
// libp2p peer ID, "12D3Koo…".
type DeviceID [32]byte

// String returns the text form.
func (a AccountID) String() string { return bech32mEncode(accountPrefix, a) }

// Short returns the beginning of the text form, for people and logs: a valid prefix and an ellipsis.
func (a AccountID) Short() string { return a.String()[:len(accountPrefix)+1+8] + "…" }

// IsZero tells whether a is no account at all.
func (a AccountID) IsZero() bool { return a == AccountID{} }

// Bytes returns a copy of the key.
func (a AccountID) Bytes() []byte { return bytes.Clone(a[:]) }

// Less orders accounts by their bytes.
func (a AccountID) Less(b AccountID) bool { return bytes.Compare(a[:], b[:]) < 0 }

// MarshalText implements encoding.TextMarshaler.
func (a AccountID) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (a *AccountID) UnmarshalText(b []byte) error {
	id, err := ParseAccountID(string(b))
	if err == nil {
		*a = id
	}
	return err
}

// ParseAccountID reads the text form, in lower or upper case.
func ParseAccountID(s string) (AccountID, error) {
	key, err := bech32mDecode(accountPrefix, s)
	if err == nil {
		err = checkKey(key)
	}
	if err != nil {
		return AccountID{}, fmt.Errorf("reading account ID: %w", err)
	}
	return key, nil
}

// AccountIDFromBytes reads the 32 bytes of a key.
func AccountIDFromBytes(b []byte) (AccountID, error) {
	key, err := keyFromBytes(b)
	if err != nil {
		return AccountID{}, fmt.Errorf("reading account ID: %w", err)
	}
	return key, nil
}

// String returns the text form.
func (d DeviceID) String() string { return d.PeerID().String() }

// Short returns the end of the text form, for people and logs: all device IDs begin alike.
func (d DeviceID) Short() string {
	s := d.String()
	return "…" + s[len(s)-8:]
}

// IsZero tells whether d is no device at all.
func (d DeviceID) IsZero() bool { return d == DeviceID{} }

// Bytes returns a copy of the key.
func (d DeviceID) Bytes() []byte { return bytes.Clone(d[:]) }

// Less orders devices by their bytes.
func (d DeviceID) Less(b DeviceID) bool { return bytes.Compare(d[:], b[:]) < 0 }

// MarshalText implements encoding.TextMarshaler.
func (d DeviceID) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *DeviceID) UnmarshalText(b []byte) error {
	id, err := ParseDeviceID(string(b))
	if err == nil {
		*d = id
	}
	return err
}

// peerIDPrefix is what stands before an Ed25519 key in a peer ID: an identity multihash of 36 bytes, and in it the
// protobuf fields key type (1) and key (32 bytes).
const peerIDPrefix = "\x00\x24\x08\x01\x12\x20"

// PeerID returns the libp2p name of the device.
func (d DeviceID) PeerID() peer.ID { return peer.ID(peerIDPrefix + string(d[:])) }

// DeviceIDFromPeer returns the device of a peer ID, which must be one of an Ed25519 key.
func DeviceIDFromPeer(p peer.ID) (DeviceID, error) {
	if len(p) != len(peerIDPrefix)+32 || p[:len(peerIDPrefix)] != peerIDPrefix {
		return DeviceID{}, fmt.Errorf("reading device ID: not an Ed25519 peer ID: %w", ErrMalformed)
	}
	return DeviceIDFromBytes([]byte(p[len(peerIDPrefix):]))
}

// ParseDeviceID reads the text form.
func ParseDeviceID(s string) (DeviceID, error) {
	if len(s) > 64 {
		return DeviceID{}, fmt.Errorf("reading device ID: %d characters: %w", len(s), ErrMalformed)
	}
	p, err := peer.Decode(s)
	if err != nil {
		return DeviceID{}, fmt.Errorf("reading device ID: %w: %w", ErrMalformed, err)
	}
	// libp2p also reads CIDs; here a device has one text.
	if p.String() != s {
		return DeviceID{}, fmt.Errorf("reading device ID: not in base58: %w", ErrMalformed)
	}
	return DeviceIDFromPeer(p)
}

// DeviceIDFromBytes reads the 32 bytes of a key.
func DeviceIDFromBytes(b []byte) (DeviceID, error) {
	key, err := keyFromBytes(b)
	if err != nil {
		return DeviceID{}, fmt.Errorf("reading device ID: %w", err)
	}
	return key, nil
}

func keyFromBytes(b []byte) (key [32]byte, err error) {
	if len(b) != 32 {
		return key, fmt.Errorf("%d bytes: %w", len(b), ErrMalformed)
	}
	copy(key[:], b)
	return key, checkKey(key)
}

// smallOrder lists the canonical encodings, sign bit cleared, of the points of small order. Anybody can sign for them,
// so they are nobody's key; the zero ID is one of them.
func smallOrder() [5]string {
	return [5]string{
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0100000000000000000000000000000000000000000000000000000000000000",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	}
}

// checkKey refuses keys of small order and second encodings of a key (y not below 2^255-19). Whether the rest is a
// point at all is found out by the first signature, which cannot verify otherwise.
func checkKey(key [32]byte) error {
	key[31] &= 0x7f
	text := hex.EncodeToString(key[:])
	for _, s := range smallOrder() {
		if text == s {
			return fmt.Errorf("key of small order: %w", ErrMalformed)
		}
	}
	if key[31] != 0x7f || key[0] < 0xed {
		return nil
	}
	for _, c := range key[1:31] {
		if c != 0xff {
			return nil
		}
	}
	return fmt.Errorf("key not canonical: %w", ErrMalformed)
}

// Domain says what a signature is for, so that bytes signed for one purpose are worth nothing for another.
type Domain string

// The domains of hima. A new format gets a new one.
const (
	DomainCertificate   Domain = "hima/certificate/1"
	DomainAccountRecord Domain = "hima/account-record/1"
	DomainEntry         Domain = "hima/entry/1"
	DomainReceipt       Domain = "hima/receipt/1"
	DomainDeviceRecord  Domain = "hima/device-record/1"
	DomainNameClaim     Domain = "hima/name-claim/1"
	DomainNameStamp     Domain = "hima/name-stamp/1"
	DomainNetworkCard   Domain = "hima/network-card/1"
	DomainMail          Domain = "hima/mail/1"
	DomainCustody       Domain = "hima/custody/1"
	DomainGroupConsent  Domain = "hima/group-consent/1"
	DomainGroupTransfer Domain = "hima/group-transfer/1"
	DomainGroupCard     Domain = "hima/group-card/1"
)

// message is what is signed: the domain, a zero byte, the payload.
func (d Domain) message(payload []byte) []byte {
	m := make([]byte, 0, len(d)+1+len(payload))
	m = append(m, d...)
	m = append(m, 0)
	return append(m, payload...)
}

// Verify tells whether sig is a's signature over payload for purpose d.
func (a AccountID) Verify(d Domain, payload, sig []byte) bool { return verify(a, d, payload, sig) }

// Verify tells whether sig is the device's signature over payload for purpose d.
func (d DeviceID) Verify(dom Domain, payload, sig []byte) bool { return verify(d, dom, payload, sig) }

func verify(key [32]byte, d Domain, payload, sig []byte) bool {
	return len(sig) == ed25519.SignatureSize && checkKey(key) == nil &&
		ed25519.Verify(key[:], d.message(payload), sig)
}

// libp2pKey gives the host key form of a device key.
func libp2pKey(k ed25519.PrivateKey) crypto.PrivKey {
	// Cannot fail: the length is right by construction.
	p, err := crypto.UnmarshalEd25519PrivateKey(k)
	if err != nil {
		panic("identity: " + err.Error())
	}
	return p
}
