package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"hima/identity"
)

// sealedVault is the vault as it lies in the profile's folder.
type sealedVault struct {
	vault []byte
	key   []byte // nil: under a password
}

// readVault reads the sealed vault. It returns ErrNoProfile if there is none.
func readVault(dir string) (sealedVault, error) {
	var s sealedVault
	err := repairPair(dir)
	if err != nil {
		return s, err
	}
	if s.vault, err = readSmall(filepath.Join(dir, vaultFile)); errors.Is(err, fs.ErrNotExist) {
		return s, ErrNoProfile
	} else if err != nil {
		return s, fmt.Errorf("reading the vault: %w", err)
	}
	if s.needsPassword() {
		return s, nil
	}
	if s.key, err = readSmall(filepath.Join(dir, keyFile)); err != nil {
		return s, fmt.Errorf("reading the key file: %w: %w", identity.ErrDamagedVault, err)
	}
	return s, nil
}

func (s sealedVault) needsPassword() bool { return identity.VaultNeedsPassword(s.vault) }

// open unseals with the password, or with the key file if the vault has one. For a vault with a key file only the empty
// password is right.
func (s sealedVault) open(p identity.Password) (identity.Vault, error) {
	if s.needsPassword() {
		return identity.OpenVault(s.vault, p)
	}
	if p != "" {
		return identity.Vault{}, fmt.Errorf("opening a vault that has no password: %w", identity.ErrWrongPassword)
	}
	return identity.OpenVaultKey(s.vault, s.key)
}

// writeVault seals and writes the vault so that at every moment, a power cut included, the folder holds one that opens:
// the key file is written before the vault that needs it and removed after the one that did. The work factor is 0 for
// that of the product.
func writeVault(dir string, v identity.Vault, p identity.Password, factor int) error {
	if factor == 0 {
		factor = identity.WorkFactor
	}
	if p != "" {
		sealed, err := identity.SealVaultFactor(v, p, factor)
		if err != nil {
			return err
		}
		if err := writeFileAtomic(filepath.Join(dir, vaultFile), sealed); err != nil {
			return fmt.Errorf("writing the vault: %w", err)
		}
		if err := os.Remove(filepath.Join(dir, keyFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing the old key file: %w", err)
		}
		return syncDir(dir)
	}
	sealed, key, err := identity.SealVaultKey(v)
	if err != nil {
		return err
	}
	return writeKeyed(dir, sealed, key)
}

// writeKeyed replaces vault and key file together. Two files cannot be renamed as one, so the new pair is first written
// whole under other names, and repairPair finishes what a power cut left between the two renames.
func writeKeyed(dir string, sealed, key []byte) error {
	for name, b := range map[string][]byte{vaultFile + ".new": sealed, keyFile + ".new": key} {
		if err := writeFileAtomic(filepath.Join(dir, name), b); err != nil {
			return fmt.Errorf("writing the vault: %w", err)
		}
	}
	// From here on the new pair is complete; its presence under both names is the decision.
	if err := writeFileAtomic(filepath.Join(dir, pairFile), nil); err != nil {
		return fmt.Errorf("writing the vault: %w", err)
	}
	return repairPair(dir)
}

// pairFile says that vault.age.new and vault.key.new are a whole pair that replaces the old one.
const pairFile = "vault.pair"

// repairPair finishes an interrupted writeKeyed. It does nothing where there is none.
func repairPair(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, pairFile)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, name := range []string{keyFile, vaultFile} {
		path := filepath.Join(dir, name)
		if err := os.Rename(path+".new", path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("finishing the vault: %w", err)
		}
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(dir, pairFile)); err != nil {
		return fmt.Errorf("finishing the vault: %w", err)
	}
	return syncDir(dir)
}

// readSmall reads a file no larger than a vault may be.
func readSmall(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > identity.MaxVault {
		return nil, fmt.Errorf("%s has %d bytes: %w", filepath.Base(path), info.Size(), identity.ErrDamagedVault)
	}
	return os.ReadFile(path)
}

// writeFileAtomic replaces a file by one of mode 0600 that is on disk when it returns, or leaves the old one.
func writeFileAtomic(path string, b []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".tmp*") // CreateTemp makes 0600
	if err != nil {
		return fmt.Errorf("creating %s: %w", filepath.Base(path), err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // the first error is the one to report
		}
	}()
	if _, err := f.Write(b); err != nil {
		_ = f.Close()
		return fmt.Errorf("writing %s: %w", filepath.Base(path), err)
	}
	if err := f.Sync(); err != nil {
		_ = f.Close()
		return fmt.Errorf("syncing %s: %w", filepath.Base(path), err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("closing %s: %w", filepath.Base(path), err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("replacing %s: %w", filepath.Base(path), err)
	}
	return syncDir(dir)
}
