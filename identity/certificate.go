package identity

import (
	"fmt"
	"time"

	"hima/internal/wire/pb"
)

// Certificate is an account's checked statement that a device is its own. It has no expiry: the account record says
// which devices count.
type Certificate struct {
	Account AccountID
	Device  DeviceID
	Created time.Time
	raw     string
}

// NewCertificate certifies a device.
func NewCertificate(key AccountKey, device DeviceID, now time.Time) Certificate {
	ms := toMillis(now)
	account := key.ID()
	payload := encode(&pb.Certificate{Account: account[:], Device: device[:], CreatedMs: ms})
	return Certificate{
		Account: account,
		Device:  device,
		Created: time.UnixMilli(ms).UTC(),
		raw:     string(appendSigned(payload, key.Sign(DomainCertificate, payload))),
	}
}

// ParseCertificate checks signed bytes: size, shape, keys, time and the account's signature.
func ParseCertificate(raw []byte) (Certificate, error) {
	payload, sig, err := parseSigned(raw, MaxCertificate)
	if err != nil {
		return Certificate{}, fmt.Errorf("reading certificate: %w", err)
	}
	var m pb.Certificate
	if err := decode(payload, &m); err != nil {
		return Certificate{}, fmt.Errorf("reading certificate: %w", err)
	}
	c := Certificate{raw: string(raw)}
	if c.Account, err = AccountIDFromBytes(m.Account); err != nil {
		return Certificate{}, fmt.Errorf("reading certificate: %w", err)
	}
	if c.Device, err = DeviceIDFromBytes(m.Device); err != nil {
		return Certificate{}, fmt.Errorf("reading certificate: %w", err)
	}
	if [32]byte(c.Account) == [32]byte(c.Device) {
		return Certificate{}, fmt.Errorf("reading certificate: one key for account and device: %w", ErrMalformed)
	}
	if c.Created, err = fromMillis(m.CreatedMs); err != nil {
		return Certificate{}, fmt.Errorf("reading certificate: %w", err)
	}
	if !c.Account.Verify(DomainCertificate, payload, sig) {
		return Certificate{}, fmt.Errorf("reading certificate: %w", ErrBadSignature)
	}
	return c, nil
}

// Raw returns a copy of the signed bytes.
func (c Certificate) Raw() []byte { return []byte(c.raw) }

// IsZero tells whether there is no certificate.
func (c Certificate) IsZero() bool { return c.raw == "" }
