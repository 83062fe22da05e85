package identity

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"
	"unicode/utf8"

	"hima/internal/wire/pb"
)

// GroupID names a group: the hash of its genesis header, which is the ID of the group's conversation too. Text form: 64
// hexadecimal digits.
type GroupID [32]byte

// GroupIDFromBytes reads the 32 bytes of an ID.
func GroupIDFromBytes(b []byte) (GroupID, error) {
	if len(b) != len(GroupID{}) || GroupID(b).IsZero() {
		return GroupID{}, fmt.Errorf("reading group ID: %d bytes: %w", len(b), ErrMalformed)
	}
	return GroupID(b), nil
}

// String returns the text form.
func (g GroupID) String() string { return hex.EncodeToString(g[:]) }

// IsZero tells whether g is no group at all.
func (g GroupID) IsZero() bool { return g == GroupID{} }

// Bytes returns a copy.
func (g GroupID) Bytes() []byte { return append([]byte(nil), g[:]...) }

const groupNameDomain = "hima/group-name/1\x00"

// GroupNameKey is the key under which those who know a public group of a name say so in the DHT of a network. The name is
// folded as docs/spec/groups-discovery.md says.
func GroupNameKey(network NetworkID, folded string) [32]byte {
	b := make([]byte, 0, len(groupNameDomain)+len(network)+len(folded))
	b = append(b, groupNameDomain...)
	b = append(b, network[:]...)
	return sha256.Sum256(append(b, folded...))
}

// Consent is an account's checked statement that it wants to be in a group: its application, or its answer to an
// invitation. The act that admits holds it, so that nobody is made a member against their will (R27).
type Consent struct {
	Group       GroupID
	Account     AccountID
	Certificate Certificate // of the device that signed
	Applied     bool        // of its own accord, not to an invitation
	Message     string      // of an application
	Time        time.Time
	Expires     time.Time
	raw         string
}

// NewConsent signs a consent with a device's key. The account is that of the certificate. A message that is too long, or
// a time of expiry more than ConsentLifetime away, is malformed.
func NewConsent(key DeviceKey, c Consent) (Consent, error) {
	c, err := newConsent(key, c)
	if err != nil {
		return Consent{}, fmt.Errorf("making consent: %w", err)
	}
	return c, nil
}

func newConsent(key DeviceKey, c Consent) (Consent, error) {
	ms, expires := toMillis(c.Time), toMillis(c.Expires)
	c.Account, c.Time, c.Expires = c.Certificate.Account, time.UnixMilli(ms).UTC(), time.UnixMilli(expires).UTC()
	if err := c.check(); err != nil {
		return Consent{}, err
	}
	if err := signsFor(key, c.Certificate); err != nil {
		return Consent{}, err
	}
	payload := encode(&pb.Consent{
		Group: c.Group.Bytes(), Account: c.Account.Bytes(), Certificate: c.Certificate.Raw(), Applied: c.Applied,
		Message: c.Message, TimeMs: ms, ExpiresMs: expires,
	})
	c.raw = string(appendSigned(payload, key.Sign(DomainGroupConsent, payload)))
	return c, nil
}

// signsFor tells whether a key is that of the device certified.
func signsFor(key DeviceKey, c Certificate) error {
	if c.IsZero() || c.Device != key.ID() {
		return fmt.Errorf("certificate of another device: %w", ErrMalformed)
	}
	return nil
}

func (c *Consent) check() error {
	if c.Group.IsZero() {
		return fmt.Errorf("no group: %w", ErrMalformed)
	}
	if len(c.Message) > MaxConsentMessage || !utf8.ValidString(c.Message) {
		return fmt.Errorf("message of %d bytes: %w", len(c.Message), ErrMalformed)
	}
	return checkLife(c.Time, c.Expires, ConsentLifetime)
}

// checkLife bounds how long something counts after it was made.
func checkLife(made, expires time.Time, limit time.Duration) error {
	if expires.Before(made) || expires.Sub(made) > limit {
		return fmt.Errorf("expiry out of bounds: %w", ErrMalformed)
	}
	return nil
}

// validAt judges a time of signing and one of expiry by a clock; both clocks may be wrong by ClockSlack.
func validAt(now, made, expires time.Time) error {
	if now.After(expires.Add(ClockSlack)) {
		return ErrExpired
	}
	if made.After(now.Add(ClockSlack)) {
		return ErrFromFuture
	}
	return nil
}

// ParseConsent checks signed bytes: size, shape, bounds, the certificate and the signature of the device in it. Whether
// it is the group that was meant and whether its time is over is for the caller to ask.
func ParseConsent(raw []byte) (Consent, error) {
	c, err := parseConsent(raw)
	if err != nil {
		return Consent{}, fmt.Errorf("reading consent: %w", err)
	}
	return c, nil
}

func parseConsent(raw []byte) (Consent, error) {
	payload, sig, err := parseSigned(raw, MaxConsent)
	if err != nil {
		return Consent{}, err
	}
	var m pb.Consent
	if err := decode(payload, &m); err != nil {
		return Consent{}, err
	}
	c := Consent{Applied: m.Applied, Message: m.Message, raw: string(raw)}
	if c.Group, err = GroupIDFromBytes(m.Group); err != nil {
		return Consent{}, err
	}
	if c.Account, err = AccountIDFromBytes(m.Account); err != nil {
		return Consent{}, err
	}
	if c.Time, err = fromMillis(m.TimeMs); err != nil {
		return Consent{}, err
	}
	if c.Expires, err = fromMillis(m.ExpiresMs); err != nil {
		return Consent{}, err
	}
	if err := c.check(); err != nil {
		return Consent{}, err
	}
	c.Certificate, err = certifiedBy(m.Certificate, DomainGroupConsent, payload, sig)
	if err != nil {
		return Consent{}, err
	}
	if c.Certificate.Account != c.Account {
		return Consent{}, fmt.Errorf("certificate of another account: %w", ErrMalformed)
	}
	return c, nil
}

// certifiedBy reads a certificate and checks that its device signed the payload.
func certifiedBy(raw []byte, d Domain, payload, sig []byte) (Certificate, error) {
	c, err := ParseCertificate(raw)
	if err != nil {
		return Certificate{}, err
	}
	if !c.Device.Verify(d, payload, sig) {
		return Certificate{}, ErrBadSignature
	}
	return c, nil
}

// Validate returns ErrExpired or ErrFromFuture for a consent that does not count at a time.
func (c Consent) Validate(now time.Time) error { return validAt(now, c.Time, c.Expires) }

// Raw returns a copy of the signed bytes.
func (c Consent) Raw() []byte { return []byte(c.raw) }

// IsZero tells whether there is no consent.
func (c Consent) IsZero() bool { return c.raw == "" }

// TransferProof is an owner's checked statement that somebody else owns a group from now on. The act that transfers
// holds it, so that a card can show who owns the group without showing the group.
type TransferProof struct {
	Group       GroupID
	From, To    AccountID
	Certificate Certificate // of the device of From that signed
	Time        time.Time
	raw         string
}

// NewTransferProof signs a proof with a device's key. Who hands over is the account of the certificate.
func NewTransferProof(key DeviceKey, p TransferProof) (TransferProof, error) {
	ms := toMillis(p.Time)
	p.From, p.Time = p.Certificate.Account, time.UnixMilli(ms).UTC()
	err := p.check()
	if err == nil {
		err = signsFor(key, p.Certificate)
	}
	if err != nil {
		return TransferProof{}, fmt.Errorf("making transfer proof: %w", err)
	}
	payload := encode(&pb.TransferProof{Group: p.Group.Bytes(), Certificate: p.Certificate.Raw(), To: p.To.Bytes(), TimeMs: ms})
	p.raw = string(appendSigned(payload, key.Sign(DomainGroupTransfer, payload)))
	return p, nil
}

func (p *TransferProof) check() error {
	if p.Group.IsZero() || p.To.IsZero() || p.From == p.To {
		return fmt.Errorf("group or accounts: %w", ErrMalformed)
	}
	return nil
}

// ParseTransferProof checks signed bytes: size, shape, bounds, the certificate and the signature of the device in it.
// Whether the account owned the group is for the caller to ask.
func ParseTransferProof(raw []byte) (TransferProof, error) {
	p, err := parseTransferProof(raw)
	if err != nil {
		return TransferProof{}, fmt.Errorf("reading transfer proof: %w", err)
	}
	return p, nil
}

func parseTransferProof(raw []byte) (TransferProof, error) {
	payload, sig, err := parseSigned(raw, MaxTransferProof)
	if err != nil {
		return TransferProof{}, err
	}
	var m pb.TransferProof
	if err := decode(payload, &m); err != nil {
		return TransferProof{}, err
	}
	p := TransferProof{raw: string(raw)}
	if p.Group, err = GroupIDFromBytes(m.Group); err != nil {
		return TransferProof{}, err
	}
	if p.To, err = AccountIDFromBytes(m.To); err != nil {
		return TransferProof{}, err
	}
	if p.Time, err = fromMillis(m.TimeMs); err != nil {
		return TransferProof{}, err
	}
	if p.Certificate, err = certifiedBy(m.Certificate, DomainGroupTransfer, payload, sig); err != nil {
		return TransferProof{}, err
	}
	p.From = p.Certificate.Account
	return p, p.check()
}

// Raw returns a copy of the signed bytes.
func (p TransferProof) Raw() []byte { return []byte(p.raw) }

// IsZero tells whether there is no proof.
func (p TransferProof) IsZero() bool { return p.raw == "" }
