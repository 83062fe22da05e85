package identity

import (
	"bytes"
	"strings"
)

// PhraseOf makes phraseOf visible to the tests, which want phrases of chosen seeds.
func PhraseOf(seed [32]byte) string { return phraseOf(seed) }

// VaultForTest is a vault of fixed keys.
func VaultForTest(account, device, database [32]byte, c Certificate) Vault {
	return Vault{
		Account: c.Account, AccountSeed: NewSecret(account), DeviceKey: DeviceKeyFromSeed(device),
		DatabaseKey: NewSecret(database), Certificate: c, Username: "alice", Created: c.Created,
	}
}

// Encode returns the content of a vault as it is sealed.
func (v Vault) Encode() ([]byte, error) { return v.encode() }

// DecodeVault reads it back.
func DecodeVault(b []byte) (Vault, error) { return decodeVault(b) }

// InviteContent returns the version and message of a link.
func InviteContent(in Invite) []byte {
	b, err := linkEncoding().DecodeString(in.String()[len(inviteScheme):])
	if err != nil {
		panic(err)
	}
	return b[:len(b)-linkSum]
}

// InviteLink makes a link with a right checksum of any content.
func InviteLink(b []byte) string { return inviteKind().text(bytes.Clone(b)) }

// NetworkLinkText makes a network link with a right checksum of any content.
func NetworkLinkText(b []byte) string { return networkKind().text(bytes.Clone(b)) }

// GroupLinkText makes a group link with a right checksum of any content.
func GroupLinkText(b []byte) string { return groupKind().text(bytes.Clone(b)) }

// LinkContent returns the version and message of a link of any kind.
func LinkContent(s string) []byte {
	_, text, _ := strings.Cut(s, ":")
	b, err := linkEncoding().DecodeString(text)
	if err != nil {
		panic(err)
	}
	return b[:len(b)-linkSum]
}

// Pad and Unpad are what stands inside a seal.
func Pad(b []byte) []byte {
	out, err := pad(b)
	if err != nil {
		panic(err)
	}
	return out
}

func Unpad(b []byte) ([]byte, error) { return unpad(b) }

// SignedPayload returns what was signed.
func SignedPayload(raw []byte) []byte {
	payload, _, err := parseSigned(raw, len(raw))
	if err != nil {
		panic(err)
	}
	return payload
}

// SignedBy signs any payload.
func SignedBy(key DeviceKey, d Domain, payload []byte) []byte {
	return appendSigned(payload, key.Sign(d, payload))
}
