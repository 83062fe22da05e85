package identity

import "errors"

var (
	// ErrMalformed is returned for bytes or text that are not what they should be: wrong length, wrong shape, wrong
	// checksum, a bound exceeded, a key that no honest program makes.
	ErrMalformed = errors.New("malformed")

	// ErrBadSignature is returned when a well-formed certificate or record is not signed by the account it names.
	ErrBadSignature = errors.New("bad signature")

	// ErrWrongPassword is returned by OpenVault when the password does not open the vault, and by OpenVaultKey when the
	// key file belongs to another vault.
	ErrWrongPassword = errors.New("wrong password")

	// ErrDamagedVault is returned when a vault or key file cannot be read whatever the password.
	ErrDamagedVault = errors.New("damaged vault")

	// ErrNewerVault is returned for a vault that a newer version of hima wrote.
	ErrNewerVault = errors.New("vault of a newer version")

	// ErrNoAccountSeed is returned when something needs the account key and this device has only a certificate (R17).
	ErrNoAccountSeed = errors.New("this device does not hold the account key")

	// ErrBadPhrase is returned for a recovery phrase that is not 24 known words with a right checksum.
	ErrBadPhrase = errors.New("not a recovery phrase")

	// ErrNotSealedForKey is returned when a sealed item or snapshot does not open: another key, another recipient, or
	// changed bytes.
	ErrNotSealedForKey = errors.New("not sealed for this key")

	// ErrExpired is returned by a validator for a record whose time is over, ErrFromFuture for one that was made more
	// than a day ahead of this clock.
	ErrExpired    = errors.New("expired")
	ErrFromFuture = errors.New("from the future")
)
