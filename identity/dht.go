package identity

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"time"
)

// Namespaces of the DHT. A key is "/<namespace>/<base32>".
const (
	NamespaceAccount = "hima-id"
	NamespaceDevice  = "hima-dev"
	NamespaceName    = "hima-name"
)

// AccountRecordKey returns the DHT key of an account's record.
func AccountRecordKey(a AccountID) string { return dhtKey(NamespaceAccount, a) }

// DeviceRecordKey returns the DHT key of a device's record.
func DeviceRecordKey(d DeviceID) string { return dhtKey(NamespaceDevice, d) }

// NameKey returns the DHT key of a name on a network. It is a hash, so that a node that stores it does not learn names
// that it did not know; the record itself names them.
func NameKey(network NetworkID, name string) string {
	b := append([]byte("hima/name/1\x00"), network[:]...)
	return dhtKey(NamespaceName, sha256.Sum256(append(b, name...)))
}

func dhtKey(namespace string, b [32]byte) string {
	return "/" + namespace + "/" + linkEncoding().EncodeToString(b[:])
}

// Validator decides what a DHT node keeps; it has the shape that go-libp2p-record asks for. Validate takes the time into
// account, Select never does: it is a pure order on bytes, so that all nodes choose alike, and it returns the index of the
// first of equal values (R18).
type Validator interface {
	Validate(key string, value []byte) error
	Select(key string, values [][]byte) (int, error)
}

// Validators returns the validators of a network's DHT by namespace. keys are the network's bootstrap keys as they are
// known now; they may grow.
func Validators(network NetworkID, keys func() []DeviceID, now func() time.Time) map[string]Validator {
	return map[string]Validator{
		NamespaceAccount: validator[AccountRecord]{
			parse: ParseAccountRecord,
			check: func(key string, r AccountRecord) error {
				return checkRecord(key, AccountRecordKey(r.Account), r.Expires, RecordLifetime, now())
			},
			compare: CompareRecords,
		},
		NamespaceDevice: validator[DeviceRecord]{
			parse: ParseDeviceRecord,
			check: func(key string, r DeviceRecord) error {
				return checkRecord(key, DeviceRecordKey(r.Device), r.Expires, DeviceRecordLifetime, now())
			},
			compare: CompareDeviceRecords,
		},
		NamespaceName: validator[NameRecord]{
			parse:   ParseNameRecord,
			check:   func(key string, r NameRecord) error { return checkName(key, network, r, now()) },
			compare: func(a, b NameRecord) int { return CompareNames(b, a, keys()) },
		},
	}
}

// validator is the same for every kind of record. compare is above 0 when its first argument is the better one.
type validator[R any] struct {
	parse   func([]byte) (R, error)
	check   func(key string, r R) error
	compare func(a, b R) int
}

func (v validator[R]) Validate(key string, value []byte) error {
	r, err := v.parse(value)
	if err != nil {
		return err
	}
	return v.check(key, r)
}

func (v validator[R]) Select(key string, values [][]byte) (int, error) {
	best, at := *new(R), -1
	for i, b := range values {
		r, err := v.parse(b)
		if err != nil {
			continue // a value that nobody may keep loses to every other
		}
		if at < 0 || v.compare(r, best) > 0 {
			best, at = r, i
		}
	}
	if at < 0 {
		return 0, fmt.Errorf("no record for %s: %w", strings.TrimPrefix(key, "/"), ErrMalformed)
	}
	return at, nil
}

func checkRecord(key, want string, expires time.Time, lifetime time.Duration, now time.Time) error {
	if key != want {
		return fmt.Errorf("record under the key of another: %w", ErrMalformed)
	}
	if now.After(expires.Add(ClockSlack)) {
		return fmt.Errorf("record of %s: %w", expires.Format(time.DateOnly), ErrExpired)
	}
	// Made more than a day ahead of us: it would outlive all that its owner says under a right clock.
	if expires.After(now.Add(lifetime + ClockSlack)) {
		return fmt.Errorf("record until %s: %w", expires.Format(time.DateOnly), ErrFromFuture)
	}
	return nil
}

func checkName(key string, network NetworkID, r NameRecord, now time.Time) error {
	if r.Claim.Network != network || key != NameKey(network, r.Claim.Name) {
		return fmt.Errorf("name under the key of another: %w", ErrMalformed)
	}
	if r.Claim.Time.After(now.Add(ClockSlack)) || r.Stamp.Time.After(now.Add(ClockSlack)) {
		return fmt.Errorf("name: %w", ErrFromFuture)
	}
	return nil
}
