// Package identity is who somebody is, as keys and signed bytes.
//
// A person is an account key, a machine is a device key; the account key certifies device keys, and an account record
// says which devices count now. The package makes and checks certificates, account records, invite links, the vault
// that keeps a profile's keys, the recovery phrase, and the digits by which two people compare keys.
//
// Start with [NewVault] for a new person, [OpenVault] or [OpenVaultKey] for a known one, and the Parse functions for
// bytes from elsewhere. Certificate, AccountRecord and Invite values come only from those functions, already checked:
// size, shape and signature. Nothing here looks at a clock (times are arguments), a disk or a network, and nothing knows
// what a username may look like.
//
// Secret types (AccountKey, DeviceKey, Secret, Password, Vault) redact themselves when printed or logged and have no
// text or JSON form. All values are immutable; all functions may be called from any goroutine.
//
// Specification: docs/spec/identity.md, vectors docs/spec/vectors/identity.json.
package identity
