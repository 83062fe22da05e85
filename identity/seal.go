package identity

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"
)

// A sealed vault is a binary age file (age-encryption.org/v1) with one recipient: scrypt for a password, or the hybrid
// post-quantum recipient of the key file. So a vault can be opened by the age tool as well.

// keyFileHead begins a key file; the identity follows on a line of its own.
const keyFileHead = "# hima key file. Whoever has it can open the vault beside it.\n"

// SealVault seals a vault under a password, which must not be empty; SealVaultKey is for people without one.
func SealVault(v Vault, p Password) ([]byte, error) { return SealVaultFactor(v, p, WorkFactor) }

// SealVaultFactor is SealVault with another scrypt work factor, 1 to MaxWorkFactor. Tests take a low one; the product
// takes WorkFactor.
func SealVaultFactor(v Vault, p Password, factor int) ([]byte, error) {
	if p == "" || factor < 1 || factor > MaxWorkFactor {
		return nil, fmt.Errorf("sealing: empty password or work factor %d: %w", factor, ErrMalformed)
	}
	r, err := age.NewScryptRecipient(string(p))
	if err != nil {
		return nil, fmt.Errorf("sealing: %w", err)
	}
	r.SetWorkFactor(factor)
	return seal(v, r)
}

// SealVaultKey seals a vault under a new key file. Both are written with mode 0600; together they are no secret from
// anybody who can read this user's files.
func SealVaultKey(v Vault) (vault, keyFile []byte, err error) {
	id, err := age.GenerateHybridIdentity()
	if err != nil {
		return nil, nil, fmt.Errorf("making a key file: %w", err)
	}
	vault, err = seal(v, id.Recipient())
	if err != nil {
		return nil, nil, err
	}
	return vault, []byte(keyFileHead + id.String() + "\n"), nil
}

func seal(v Vault, r age.Recipient) ([]byte, error) {
	plain, err := v.encode()
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w, err := age.Encrypt(&out, r)
	if err != nil {
		return nil, fmt.Errorf("sealing: %w", err)
	}
	if _, err := w.Write(plain); err != nil {
		return nil, fmt.Errorf("sealing: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("sealing: %w", err)
	}
	return out.Bytes(), nil
}

// VaultNeedsPassword tells how a sealed vault is opened: by a password, or by a key file.
func VaultNeedsPassword(b []byte) bool {
	_, rest, ok := bytes.Cut(b[:min(len(b), 128)], []byte("\n"))
	return ok && bytes.HasPrefix(rest, []byte("-> scrypt "))
}

// OpenVault opens what SealVault made. A wrong password takes as long as the right one. A vault without a password is
// ErrWrongPassword for every password.
func OpenVault(b []byte, p Password) (Vault, error) {
	if p == "" {
		return Vault{}, fmt.Errorf("opening vault: empty: %w", ErrWrongPassword)
	}
	id, err := age.NewScryptIdentity(string(p))
	if err != nil {
		return Vault{}, fmt.Errorf("opening vault: %w", err)
	}
	id.SetMaxWorkFactor(MaxWorkFactor)
	return open(b, id)
}

// OpenVaultKey opens what SealVaultKey made.
func OpenVaultKey(b, keyFile []byte) (Vault, error) {
	if len(keyFile) > MaxVault {
		return Vault{}, fmt.Errorf("reading key file: %d bytes: %w", len(keyFile), ErrDamagedVault)
	}
	for line := range strings.Lines(string(keyFile)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		id, err := age.ParseHybridIdentity(line)
		if err != nil {
			// The cause may quote the key.
			return Vault{}, fmt.Errorf("reading key file: no key in it: %w", ErrDamagedVault)
		}
		return open(b, id)
	}
	return Vault{}, fmt.Errorf("reading key file: empty: %w", ErrDamagedVault)
}

func open(b []byte, id age.Identity) (Vault, error) {
	if len(b) > MaxVault {
		return Vault{}, fmt.Errorf("opening vault: %d bytes: %w", len(b), ErrDamagedVault)
	}
	r, err := age.Decrypt(bytes.NewReader(b), id)
	if errors.Is(err, age.ErrIncorrectIdentity) {
		return Vault{}, fmt.Errorf("opening vault: %w", ErrWrongPassword)
	}
	if err != nil {
		return Vault{}, fmt.Errorf("opening vault: %w: %w", ErrDamagedVault, err)
	}
	plain, err := io.ReadAll(io.LimitReader(r, MaxVault))
	if err != nil {
		return Vault{}, fmt.Errorf("opening vault: %w: %w", ErrDamagedVault, err)
	}
	v, err := decodeVault(plain)
	if errors.Is(err, ErrNewerVault) {
		return Vault{}, fmt.Errorf("opening vault: %w", err)
	}
	if err != nil {
		return Vault{}, fmt.Errorf("opening vault: %w: %w", ErrDamagedVault, err)
	}
	return v, nil
}
