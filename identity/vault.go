package identity

import (
	"fmt"
	"log/slog"
	"slices"
	"time"
	"unicode/utf8"

	"hima/internal/wire/pb"
)

// vaultVersion is the version of the vault's content.
const vaultVersion = 1

// Vault is what a profile keeps sealed: its keys. Treat it as a value; changes make a new one.
type Vault struct {
	Account     AccountID
	AccountSeed Secret // absent on a linked device (R17)
	DeviceKey   DeviceKey
	DatabaseKey Secret
	Certificate Certificate // of DeviceKey
	Username    string
	Former      []DeviceID // keys this profile wrote under before, oldest first (R3)
	Created     time.Time
}

// NewVault makes a new account with its first device. The phrase restores the account; it is shown once and kept
// nowhere.
func NewVault(username string, now time.Time) (v Vault, phrase string, err error) {
	seed := randomSeed()
	v, err = vaultFromSeed(seed, username, now)
	return v, phraseOf(seed), err
}

// RestoreVault makes a new device of the account of a recovery phrase. Device key and database key are new: a restored
// account never continues an old feed (R3).
func RestoreVault(phrase, username string, now time.Time) (Vault, error) {
	seed, err := seedOfPhrase(phrase)
	if err != nil {
		return Vault{}, err
	}
	return vaultFromSeed(seed, username, now)
}

func vaultFromSeed(seed [32]byte, username string, now time.Time) (Vault, error) {
	account, device := AccountKeyFromSeed(seed), GenerateDeviceKey()
	v := Vault{
		Account:     account.ID(),
		AccountSeed: NewSecret(seed),
		DeviceKey:   device,
		DatabaseKey: NewSecret(randomSeed()),
		Certificate: NewCertificate(account, device.ID(), now),
		Username:    username,
		Created:     time.UnixMilli(toMillis(now)).UTC(),
	}
	return v, v.check()
}

// AccountKey returns the account key, if this device holds it.
func (v Vault) AccountKey() (AccountKey, bool) {
	if v.AccountSeed.IsZero() {
		return AccountKey{}, false
	}
	return AccountKeyFromSeed(v.AccountSeed.b()), true
}

// RotateDevice gives the profile a new device key and remembers the old public key (R3). The database key stays. It
// returns ErrNoAccountSeed on a device that cannot certify.
func (v Vault) RotateDevice(now time.Time) (Vault, error) {
	key, ok := v.AccountKey()
	if !ok {
		return Vault{}, fmt.Errorf("making a new device key: %w", ErrNoAccountSeed)
	}
	v.Former = append(slices.Clone(v.Former), v.DeviceKey.ID())
	if n := len(v.Former) - MaxFormer; n > 0 {
		v.Former = v.Former[n:]
	}
	v.DeviceKey = GenerateDeviceKey()
	v.Certificate = NewCertificate(key, v.DeviceKey.ID(), now)
	return v, nil
}

// check holds what is true of every vault.
func (v Vault) check() error {
	switch {
	case v.DeviceKey.IsZero() || v.DatabaseKey.IsZero():
		return fmt.Errorf("vault without keys: %w", ErrMalformed)
	case v.Certificate.Account != v.Account || v.Certificate.Device != v.DeviceKey.ID() || v.Certificate.IsZero():
		return fmt.Errorf("vault with a certificate for other keys: %w", ErrMalformed)
	case len(v.Username) > MaxUsernameBytes || !utf8.ValidString(v.Username):
		return fmt.Errorf("vault with a username of %d bytes: %w", len(v.Username), ErrMalformed)
	case len(v.Former) > MaxFormer:
		return fmt.Errorf("vault with %d former devices: %w", len(v.Former), ErrMalformed)
	}
	if key, ok := v.AccountKey(); ok && key.ID() != v.Account {
		return fmt.Errorf("vault with the seed of another account: %w", ErrMalformed)
	}
	return nil
}

func (v Vault) encode() ([]byte, error) {
	if err := v.check(); err != nil {
		return nil, fmt.Errorf("sealing: %w", err)
	}
	device := v.DeviceKey.Seed()
	m := &pb.Vault{
		Version:     vaultVersion,
		Account:     v.Account.Bytes(),
		AccountSeed: v.AccountSeed.Bytes(),
		DeviceSeed:  device[:],
		DatabaseKey: v.DatabaseKey.Bytes(),
		Certificate: v.Certificate.Raw(),
		Username:    v.Username,
		CreatedMs:   toMillis(v.Created),
	}
	for _, d := range v.Former {
		m.FormerDevices = append(m.FormerDevices, d.Bytes())
	}
	return encode(m), nil
}

func decodeVault(b []byte) (Vault, error) {
	var m pb.Vault
	if err := decode(b, &m); err != nil {
		return Vault{}, err
	}
	if m.Version > vaultVersion {
		return Vault{}, fmt.Errorf("version %d: %w", m.Version, ErrNewerVault)
	}
	if m.Version < 1 || len(m.DeviceSeed) != 32 || len(m.DatabaseKey) != 32 ||
		len(m.AccountSeed) != 32 && len(m.AccountSeed) != 0 || len(m.FormerDevices) > MaxFormer {
		return Vault{}, ErrMalformed
	}
	v := Vault{
		DeviceKey:   DeviceKeyFromSeed([32]byte(m.DeviceSeed)),
		DatabaseKey: NewSecret([32]byte(m.DatabaseKey)),
		Username:    m.Username,
	}
	var err error
	if v.Account, err = AccountIDFromBytes(m.Account); err != nil {
		return Vault{}, err
	}
	if len(m.AccountSeed) != 0 {
		v.AccountSeed = NewSecret([32]byte(m.AccountSeed))
	}
	if v.Certificate, err = ParseCertificate(m.Certificate); err != nil {
		return Vault{}, err
	}
	if v.Created, err = fromMillis(m.CreatedMs); err != nil {
		return Vault{}, err
	}
	for _, f := range m.FormerDevices {
		d, err := DeviceIDFromBytes(f)
		if err != nil {
			return Vault{}, err
		}
		v.Former = append(v.Former, d)
	}
	return v, v.check()
}

// String redacts.
func (Vault) String() string { return redacted }

// Format redacts under every verb.
func (Vault) Format(s fmt.State, _ rune) { fmt.Fprint(s, redacted) }

// LogValue redacts.
func (Vault) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON refuses: a vault leaves memory sealed or not at all.
func (Vault) MarshalJSON() ([]byte, error) {
	return nil, fmt.Errorf("encoding a vault: %w", ErrMalformed)
}
