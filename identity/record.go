package identity

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"hima/internal/wire/pb"
)

// AccountRecord is an account's checked statement of which devices it has now.
type AccountRecord struct {
	Account AccountID
	Seq     uint64
	Devices []Certificate
	Revoked []DeviceID
	Expires time.Time
	Names   []RecordName
	raw     string
}

// RecordName is a username that an account goes by on a network. The record says so; who holds the name is decided by
// claims and stamps.
type RecordName struct {
	Network NetworkID
	Name    string
}

// RecordConfig is what a new record says.
type RecordConfig struct {
	LastSeq uint64        // highest sequence number known of this account, 0 if there was none
	Now     time.Time     // the record expires RecordLifetime after it
	Devices []Certificate // 1 to MaxDevices, of this account, each device once
	Revoked []DeviceID    // at most MaxRevoked, none of them in Devices
	Names   []RecordName  // at most MaxNames, one per network
}

// NewAccountRecord signs a record. Its number is max(last + 1, Unix milliseconds), so that a device that knows no
// earlier record still makes a higher one.
func NewAccountRecord(key AccountKey, c RecordConfig) (AccountRecord, error) {
	if c.LastSeq >= MaxSeq {
		return AccountRecord{}, fmt.Errorf("making account record after number %d: %w", c.LastSeq, ErrMalformed)
	}
	ms := toMillis(c.Now)
	r := AccountRecord{
		Account: key.ID(),
		Seq:     max(c.LastSeq+1, uint64(ms)),
		Devices: slices.Clone(c.Devices),
		Revoked: slices.Clone(c.Revoked),
		Expires: time.UnixMilli(min(ms+RecordLifetime.Milliseconds(), maxMillis)).UTC(),
		Names:   slices.Clone(c.Names),
	}
	if err := r.check(); err != nil {
		return AccountRecord{}, fmt.Errorf("making account record: %w", err)
	}
	m := &pb.AccountRecord{Account: r.Account.Bytes(), Seq: r.Seq, ExpiresMs: r.Expires.UnixMilli()}
	for _, d := range r.Devices {
		m.Devices = append(m.Devices, d.Raw())
	}
	for _, d := range r.Revoked {
		m.Revoked = append(m.Revoked, d.Bytes())
	}
	for _, n := range r.Names {
		m.Names = append(m.Names, &pb.NameClaim{Network: n.Network.Bytes(), Name: n.Name})
	}
	payload := encode(m)
	r.raw = string(appendSigned(payload, key.Sign(DomainAccountRecord, payload)))
	return r, nil
}

// check holds the rules that concern the record as a whole.
func (r AccountRecord) check() error {
	if r.Seq < 1 || r.Seq > MaxSeq {
		return fmt.Errorf("sequence number %d: %w", r.Seq, ErrMalformed)
	}
	if len(r.Devices) < 1 || len(r.Devices) > MaxDevices {
		return fmt.Errorf("%d devices: %w", len(r.Devices), ErrMalformed)
	}
	if len(r.Revoked) > MaxRevoked {
		return fmt.Errorf("%d revoked devices: %w", len(r.Revoked), ErrMalformed)
	}
	seen := make(map[DeviceID]bool, len(r.Devices)+len(r.Revoked))
	for _, d := range r.Devices {
		if d.Account != r.Account {
			return fmt.Errorf("device of another account: %w", ErrMalformed)
		}
		if seen[d.Device] {
			return fmt.Errorf("device listed twice: %w", ErrMalformed)
		}
		seen[d.Device] = true
	}
	for _, d := range r.Revoked {
		if seen[d] {
			return fmt.Errorf("revoked device listed or revoked twice: %w", ErrMalformed)
		}
		seen[d] = true
	}
	return checkNames(r.Names)
}

// checkNames bounds the names: one per network, whatever the rules for names are.
func checkNames(names []RecordName) error {
	if len(names) > MaxNames {
		return fmt.Errorf("%d names: %w", len(names), ErrMalformed)
	}
	for i, n := range names {
		if n.Name == "" || len(n.Name) > MaxUsernameBytes || !utf8.ValidString(n.Name) {
			return fmt.Errorf("name of %d bytes: %w", len(n.Name), ErrMalformed)
		}
		if slices.ContainsFunc(names[:i], func(o RecordName) bool { return o.Network == n.Network }) {
			return fmt.Errorf("two names on one network: %w", ErrMalformed)
		}
	}
	return nil
}

// ParseAccountRecord checks signed bytes: size, shape, bounds, the account's signature and every certificate in it.
// Whether the record has expired, or is the newest, is for the caller to ask.
func ParseAccountRecord(raw []byte) (AccountRecord, error) {
	r, err := parseAccountRecord(raw)
	if err != nil {
		return AccountRecord{}, fmt.Errorf("reading account record: %w", err)
	}
	return r, nil
}

func parseAccountRecord(raw []byte) (AccountRecord, error) {
	payload, sig, err := parseSigned(raw, MaxAccountRecord)
	if err != nil {
		return AccountRecord{}, err
	}
	var m pb.AccountRecord
	if err := decode(payload, &m); err != nil {
		return AccountRecord{}, err
	}
	// Counts first: each certificate costs a signature check.
	if len(m.Devices) > MaxDevices || len(m.Revoked) > MaxRevoked || len(m.Names) > MaxNames {
		return AccountRecord{}, fmt.Errorf("%d devices, %d revoked: %w", len(m.Devices), len(m.Revoked), ErrMalformed)
	}
	r := AccountRecord{Seq: m.Seq, raw: string(raw)}
	if r.Account, err = AccountIDFromBytes(m.Account); err != nil {
		return AccountRecord{}, err
	}
	if r.Expires, err = fromMillis(m.ExpiresMs); err != nil {
		return AccountRecord{}, err
	}
	if !r.Account.Verify(DomainAccountRecord, payload, sig) {
		return AccountRecord{}, ErrBadSignature
	}
	for _, b := range m.Devices {
		c, err := ParseCertificate(b)
		if err != nil {
			return AccountRecord{}, err
		}
		r.Devices = append(r.Devices, c)
	}
	for _, b := range m.Revoked {
		d, err := DeviceIDFromBytes(b)
		if err != nil {
			return AccountRecord{}, err
		}
		r.Revoked = append(r.Revoked, d)
	}
	for _, n := range m.Names {
		network, err := NetworkIDFromBytes(n.GetNetwork())
		if err != nil {
			return AccountRecord{}, err
		}
		r.Names = append(r.Names, RecordName{Network: network, Name: n.GetName()})
	}
	return r, r.check()
}

// Name returns the username that the record gives for a network, or "".
func (r AccountRecord) Name(network NetworkID) string {
	for _, n := range r.Names {
		if n.Network == network {
			return n.Name
		}
	}
	return ""
}

// Raw returns a copy of the signed bytes.
func (r AccountRecord) Raw() []byte { return []byte(r.raw) }

// IsZero tells whether there is no record.
func (r AccountRecord) IsZero() bool { return r.raw == "" }

// Lists tells whether the record vouches for a device: listed and not revoked.
func (r AccountRecord) Lists(d DeviceID) bool {
	_, ok := r.Certificate(d)
	return ok
}

// Certificate returns the certificate of a listed device.
func (r AccountRecord) Certificate(d DeviceID) (Certificate, bool) {
	if r.Revokes(d) {
		return Certificate{}, false
	}
	for _, c := range r.Devices {
		if c.Device == d {
			return c, true
		}
	}
	return Certificate{}, false
}

// Revokes tells whether the record names a device as revoked.
func (r AccountRecord) Revokes(d DeviceID) bool { return slices.Contains(r.Revoked, d) }

// Expired tells whether the record no longer counts at a time, with a day for wrong clocks.
func (r AccountRecord) Expired(now time.Time) bool { return now.After(r.Expires.Add(ClockSlack)) }

// CompareRecords orders records of one account: the higher sequence number is the newer one; between equal numbers the
// order of the bytes decides, so that everybody keeps the same one. 0 means equal bytes (R11, R18).
func CompareRecords(a, b AccountRecord) int {
	if a.Seq != b.Seq {
		if a.Seq < b.Seq {
			return -1
		}
		return 1
	}
	return strings.Compare(a.raw, b.raw)
}

// Supersedes tells whether next may replace have: same account (or have is zero) and newer.
func Supersedes(have, next AccountRecord) bool {
	if next.IsZero() {
		return false
	}
	return have.IsZero() || have.Account == next.Account && CompareRecords(have, next) < 0
}
