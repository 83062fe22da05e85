package identity

import "time"

// Bounds of the formats. A value beyond one is malformed for everybody.
const (
	// MaxCertificate bounds the bytes of a signed certificate; one is about 145.
	MaxCertificate = 256

	// MaxAccountRecord bounds the bytes of a signed account record; a full one is about 5 KiB.
	MaxAccountRecord = 8 << 10

	// MaxDevices is how many devices an account may have at once.
	MaxDevices = 16

	// MaxRevoked is how many revoked devices a record names; older ones may be dropped, they are not listed anyway.
	MaxRevoked = 64

	// MaxNames is how many name claims a record may carry.
	MaxNames = 8

	// MaxSeq bounds the sequence number of a record: it has to fit a signed 64-bit integer, with one number left
	// above it, so that an account can never be locked out of its own next record by arithmetic.
	MaxSeq = 1<<63 - 2

	// RecordLifetime is how long an account record counts after it was made.
	RecordLifetime = 365 * 24 * time.Hour

	// ClockSlack is allowed to clocks that are wrong when an expiry is judged.
	ClockSlack = 24 * time.Hour

	// MaxUsernameBytes bounds a username where identity carries one, whatever the rules for names are.
	MaxUsernameBytes = 128

	// MaxFormer is how many former device keys a vault remembers.
	MaxFormer = 64

	// MaxVault bounds a sealed vault file and a key file, in bytes.
	MaxVault = 64 << 10

	// MaxInviteDevices and MaxInviteAddrs bound an invite link: devices in it, and addresses of each.
	MaxInviteDevices = 4
	MaxInviteAddrs   = 8

	// MaxInviteAddrBytes bounds one address in its binary form; a relayed one has about 100.
	MaxInviteAddrBytes = 192

	// MaxInviteText bounds the text that is looked at when a link is parsed, white space included.
	MaxInviteText = 8 << 10

	// WorkFactor is the scrypt work factor (log2 N) under which a password seals a vault: about half a second and
	// 128 MiB of memory each time it is opened. MaxWorkFactor is the most that is accepted from a file.
	WorkFactor    = 17
	MaxWorkFactor = 20
)

// maxMillis is the last millisecond of the year 9999: times beyond it have no text form.
const maxMillis = 253402300799999
