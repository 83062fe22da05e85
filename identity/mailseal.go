package identity

import (
	"crypto/hpke"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// A sealed item is version, hint, encapsulated key and ciphertext. Version and hint are authenticated with the recipient's
// key, so that a mailbox cannot make a second item that opens out of one that it keeps.
const (
	mailVersion  = 1
	mailHead     = 1 + len(Hint{}) // version and hint
	mailEncSize  = 1120            // of MLKEM768X25519
	mailTag      = 16              // of ChaCha20-Poly1305
	mailSealInfo = "hima/mail/1"

	padLength = 4 // bytes of length in front of what is padded
)

// padSteps are the lengths to which plaintext is padded, its length in front included. An item then tells one of eight
// sizes and no more.
func padSteps() [8]int {
	return [8]int{512, 2 << 10, 4 << 10, 8 << 10, 16 << 10, 32 << 10, 48 << 10, 62 << 10}
}

// pad puts the length in front and zeros behind, up to the next step.
func pad(plain []byte) ([]byte, error) {
	for _, step := range padSteps() {
		if padLength+len(plain) <= step {
			b := make([]byte, step)
			binary.BigEndian.PutUint32(b, uint32(len(plain)))
			copy(b[padLength:], plain)
			return b, nil
		}
	}
	return nil, fmt.Errorf("%d bytes of plaintext: %w", len(plain), ErrMalformed)
}

// unpad reads what pad made and refuses every other length or filling.
func unpad(b []byte) ([]byte, error) {
	if len(b) < padLength {
		return nil, fmt.Errorf("padding: %w", ErrMalformed)
	}
	n := int64(binary.BigEndian.Uint32(b))
	rest := b[padLength:]
	if n > int64(len(rest)) {
		return nil, fmt.Errorf("padding: %w", ErrMalformed)
	}
	for _, c := range rest[n:] {
		if c != 0 {
			return nil, fmt.Errorf("padding: %w", ErrMalformed)
		}
	}
	for _, step := range padSteps() {
		if padLength+n <= int64(step) {
			if len(b) != step {
				break
			}
			return rest[:n], nil
		}
	}
	return nil, fmt.Errorf("padding: %w", ErrMalformed)
}

// mailAAD is what is authenticated beside the plaintext: version and hint as they stand in the item, and the recipient.
func mailAAD(item []byte, recipient DeviceID) []byte {
	return append(append(make([]byte, 0, mailHead+len(recipient)), item[:mailHead]...), recipient[:]...)
}

// SealMail seals plaintext for one device under one of its prekeys: HPKE base mode (RFC 9180), MLKEM768X25519 with
// HKDF-SHA256 and ChaCha20-Poly1305.
func SealMail(to Prekey, recipient DeviceID, hint Hint, plain []byte) ([]byte, error) {
	padded, err := pad(plain)
	if err != nil {
		return nil, fmt.Errorf("sealing mail: %w", err)
	}
	pub, err := prekeyKEM().NewPublicKey([]byte(to.raw))
	if err != nil {
		return nil, fmt.Errorf("sealing mail: no prekey: %w", ErrMalformed)
	}
	enc, s, err := hpke.NewSender(pub, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), []byte(mailSealInfo))
	if err != nil {
		return nil, fmt.Errorf("sealing mail: %w", err)
	}
	item := make([]byte, 0, mailHead+len(enc)+len(padded)+mailTag)
	item = append(append(append(item, mailVersion), hint[:]...), enc...)
	ct, err := s.Seal(mailAAD(item, recipient), padded)
	if err != nil {
		return nil, fmt.Errorf("sealing mail: %w", err)
	}
	return append(item, ct...), nil
}

// checkItem looks at the outside of an item.
func checkItem(item []byte) error {
	if len(item) < mailHead+mailEncSize+mailTag || len(item) > MaxMailItem {
		return fmt.Errorf("item of %d bytes: %w", len(item), ErrMalformed)
	}
	if item[0] != mailVersion {
		return fmt.Errorf("item of version %d: %w", item[0], ErrMalformed)
	}
	body := len(item) - mailHead - mailEncSize - mailTag
	for _, step := range padSteps() {
		if body == step {
			return nil
		}
	}
	return fmt.Errorf("item of %d bytes: %w", len(item), ErrMalformed)
}

// MailHint returns the hint of an item, after looking at its size and version.
func MailHint(item []byte) (Hint, error) {
	if err := checkItem(item); err != nil {
		return Hint{}, fmt.Errorf("reading mail: %w", err)
	}
	return Hint(item[1:mailHead]), nil
}

// OpenMail opens what SealMail made. It returns ErrNotSealedForKey when this key, or this recipient, is not the one it was
// sealed for, or when a byte of it was changed: nobody can tell these apart.
func OpenMail(item []byte, recipient DeviceID, key PrekeySecret) ([]byte, error) {
	if err := checkItem(item); err != nil {
		return nil, fmt.Errorf("opening mail: %w", err)
	}
	k, err := key.key()
	if err != nil {
		return nil, fmt.Errorf("opening mail: %w", err)
	}
	enc, ct := item[mailHead:mailHead+mailEncSize], item[mailHead+mailEncSize:]
	r, err := hpke.NewRecipient(enc, k, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), []byte(mailSealInfo))
	if err != nil {
		return nil, fmt.Errorf("opening mail: %w", ErrNotSealedForKey)
	}
	padded, err := r.Open(mailAAD(item, recipient), ct)
	if err != nil {
		return nil, fmt.Errorf("opening mail: %w", ErrNotSealedForKey)
	}
	plain, err := unpad(padded)
	if err != nil {
		return nil, fmt.Errorf("opening mail: %w", err)
	}
	return plain, nil
}

// ItemHash names a sealed item: mailboxes, receipts and the search for duplicates go by it.
func ItemHash(item []byte) [32]byte { return sha256.Sum256(item) }
