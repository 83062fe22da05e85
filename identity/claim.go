package identity

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"hima/internal/wire/pb"
)

// NameClaim is an account's checked statement that it goes by a name on a network. What a name may look like is for the
// caller to check.
type NameClaim struct {
	Network NetworkID
	Name    string
	Account AccountID
	Time    time.Time
	raw     string
}

// NewNameClaim signs a claim.
func NewNameClaim(key AccountKey, network NetworkID, name string, now time.Time) (NameClaim, error) {
	ms := toMillis(now)
	c := NameClaim{Network: network, Name: name, Account: key.ID(), Time: time.UnixMilli(ms).UTC()}
	if err := checkClaimName(name); err != nil {
		return NameClaim{}, fmt.Errorf("making name claim: %w", err)
	}
	payload := encode(&pb.Claim{Network: network.Bytes(), Name: name, Account: c.Account.Bytes(), TimeMs: ms})
	c.raw = string(appendSigned(payload, key.Sign(DomainNameClaim, payload)))
	return c, nil
}

func checkClaimName(name string) error {
	if name == "" || len(name) > MaxClaimName || !utf8.ValidString(name) {
		return fmt.Errorf("name of %d bytes: %w", len(name), ErrMalformed)
	}
	return nil
}

// ParseNameClaim checks signed bytes: size, shape, bounds and the account's signature.
func ParseNameClaim(raw []byte) (NameClaim, error) {
	c, err := parseNameClaim(raw)
	if err != nil {
		return NameClaim{}, fmt.Errorf("reading name claim: %w", err)
	}
	return c, nil
}

func parseNameClaim(raw []byte) (NameClaim, error) {
	payload, sig, err := parseSigned(raw, MaxNameClaim)
	if err != nil {
		return NameClaim{}, err
	}
	var m pb.Claim
	if err := decode(payload, &m); err != nil {
		return NameClaim{}, err
	}
	c := NameClaim{Name: m.Name, raw: string(raw)}
	if c.Network, err = NetworkIDFromBytes(m.Network); err != nil {
		return NameClaim{}, err
	}
	if c.Account, err = AccountIDFromBytes(m.Account); err != nil {
		return NameClaim{}, err
	}
	if c.Time, err = fromMillis(m.TimeMs); err != nil {
		return NameClaim{}, err
	}
	if err := checkClaimName(c.Name); err != nil {
		return NameClaim{}, err
	}
	if !c.Account.Verify(DomainNameClaim, payload, sig) {
		return NameClaim{}, ErrBadSignature
	}
	return c, nil
}

// Raw returns a copy of the signed bytes.
func (c NameClaim) Raw() []byte { return []byte(c.raw) }

// Hash returns the hash of the signed bytes.
func (c NameClaim) Hash() [32]byte { return sha256.Sum256([]byte(c.raw)) }

// IsZero tells whether there is no claim.
func (c NameClaim) IsZero() bool { return c.raw == "" }

// NameStamp is a bootstrap node's checked statement that it entered a claim into its register, and when. Whether the key is
// one of the network's is for the caller to ask.
type NameStamp struct {
	Claim NameClaim
	Key   DeviceID
	Time  time.Time
	raw   string
}

// NewNameStamp stamps a claim.
func NewNameStamp(key DeviceKey, claim NameClaim, now time.Time) (NameStamp, error) {
	if claim.IsZero() {
		return NameStamp{}, fmt.Errorf("stamping no claim: %w", ErrMalformed)
	}
	ms := toMillis(now)
	s := NameStamp{Claim: claim, Key: key.ID(), Time: time.UnixMilli(ms).UTC()}
	payload := encode(&pb.Stamp{Claim: claim.Raw(), Key: s.Key.Bytes(), TimeMs: ms})
	s.raw = string(appendSigned(payload, key.Sign(DomainNameStamp, payload)))
	return s, nil
}

// ParseNameStamp checks signed bytes: size, shape, bounds, the signature of the stamping node and that of the account.
func ParseNameStamp(raw []byte) (NameStamp, error) {
	s, err := parseNameStamp(raw)
	if err != nil {
		return NameStamp{}, fmt.Errorf("reading name stamp: %w", err)
	}
	return s, nil
}

func parseNameStamp(raw []byte) (NameStamp, error) {
	payload, sig, err := parseSigned(raw, MaxNameStamp)
	if err != nil {
		return NameStamp{}, err
	}
	var m pb.Stamp
	if err := decode(payload, &m); err != nil {
		return NameStamp{}, err
	}
	s := NameStamp{raw: string(raw)}
	if s.Key, err = DeviceIDFromBytes(m.Key); err != nil {
		return NameStamp{}, err
	}
	if s.Time, err = fromMillis(m.TimeMs); err != nil {
		return NameStamp{}, err
	}
	if !s.Key.Verify(DomainNameStamp, payload, sig) {
		return NameStamp{}, ErrBadSignature
	}
	s.Claim, err = parseNameClaim(m.Claim)
	return s, err
}

// Raw returns a copy of the signed bytes.
func (s NameStamp) Raw() []byte { return []byte(s.raw) }

// IsZero tells whether there is no stamp.
func (s NameStamp) IsZero() bool { return s.raw == "" }

// NameRecord is what the DHT keeps of a name: a stamped claim, or one that nobody stamped.
type NameRecord struct {
	Claim NameClaim
	Stamp NameStamp // zero: unstamped
	raw   string
}

// StampedName makes the record of a stamp.
func StampedName(s NameStamp) NameRecord {
	return NameRecord{Claim: s.Claim, Stamp: s, raw: string(encode(&pb.NameRecord{Stamp: s.Raw()}))}
}

// UnstampedName makes the record of a claim that nobody stamped.
func UnstampedName(c NameClaim) NameRecord {
	return NameRecord{Claim: c, raw: string(encode(&pb.NameRecord{Claim: c.Raw()}))}
}

// ParseNameRecord checks the bytes of a record and every signature in it. A record has one encoding only.
func ParseNameRecord(raw []byte) (NameRecord, error) {
	r, err := parseNameRecord(raw)
	if err != nil {
		return NameRecord{}, fmt.Errorf("reading name record: %w", err)
	}
	return r, nil
}

func parseNameRecord(raw []byte) (NameRecord, error) {
	if len(raw) > MaxNameRecord {
		return NameRecord{}, fmt.Errorf("%d bytes: %w", len(raw), ErrMalformed)
	}
	var m pb.NameRecord
	if err := decode(raw, &m); err != nil {
		return NameRecord{}, err
	}
	var r NameRecord
	switch {
	case len(m.Stamp) > 0 && len(m.Claim) == 0:
		s, err := parseNameStamp(m.Stamp)
		if err != nil {
			return NameRecord{}, err
		}
		r = StampedName(s)
	case len(m.Claim) > 0 && len(m.Stamp) == 0:
		c, err := parseNameClaim(m.Claim)
		if err != nil {
			return NameRecord{}, err
		}
		r = UnstampedName(c)
	default:
		return NameRecord{}, fmt.Errorf("not exactly one of stamp and claim: %w", ErrMalformed)
	}
	// Two encodings of one record would be two values that nobody can tell apart by what they say.
	if !bytes.Equal(raw, []byte(r.raw)) {
		return NameRecord{}, fmt.Errorf("another encoding: %w", ErrMalformed)
	}
	return r, nil
}

// Raw returns a copy of the bytes.
func (r NameRecord) Raw() []byte { return []byte(r.raw) }

// IsZero tells whether there is no record.
func (r NameRecord) IsZero() bool { return r.raw == "" }

// Stamped tells whether one of keys stamped the claim. A stamp of any other key is worth nothing.
func (r NameRecord) Stamped(keys []DeviceID) bool {
	return !r.Stamp.IsZero() && slices.Contains(keys, r.Stamp.Key)
}

// CompareNames orders records of one name (R19): below 0 means that a wins. Stamped by one of keys goes before all else,
// then the earlier stamp, then the lower hash of the claim. The bytes decide between what is left, so that everybody
// keeps the same record; 0 means equal bytes. An unstamped claim's own time decides nothing: its author chooses it.
func CompareNames(a, b NameRecord, keys []DeviceID) int {
	sa, sb := a.Stamped(keys), b.Stamped(keys)
	if sa != sb {
		if sa {
			return -1
		}
		return 1
	}
	if sa {
		if c := a.Stamp.Time.Compare(b.Stamp.Time); c != 0 {
			return c
		}
	}
	ha, hb := a.Claim.Hash(), b.Claim.Hash()
	if c := bytes.Compare(ha[:], hb[:]); c != 0 {
		return c
	}
	return bytes.Compare([]byte(a.raw), []byte(b.raw))
}
