package feed

import "hima/identity"

// The limits are part of the format: a value beyond one is invalid for everybody, so none may be changed without a new
// kind of entry. docs/spec/feed.md holds the same table.
const (
	// MaxHeader is the size of an encoded header in bytes. A header without certificate needs about 210, the certificate
	// of a first entry adds 150, and a control entry of a group may name up to MaxParents parents.
	MaxHeader = 2 << 10
	// MaxParents is how many control entries a header may name as parents.
	MaxParents = 32
	// MaxCertificate is the size of the certificate in a first entry, in bytes.
	MaxCertificate = identity.MaxCertificate
	// MaxEpoch is the size of the epoch field in bytes.
	MaxEpoch = 32

	// MaxBody is the largest padded body in bytes, so that one entry always fits one frame.
	MaxBody = 32 << 10
	// bodySalt is how many random bytes a body begins with (R8).
	bodySalt = 16
	// MaxContent is the largest content that fits a body: the salt and a three-byte length go off.
	MaxContent = MaxBody - bodySalt - 3
	// MaxText is the longest text of a text entry in bytes; longer text becomes an attachment. It leaves room for the
	// fields beside the text.
	MaxText = MaxContent - 109

	// MaxRunEntries is how many entries one run may hold (R4).
	MaxRunEntries = 256
	// MaxRunBytes is the encoded size of the largest run that any road carries (R4).
	MaxRunBytes = 64 << 10
	// MaxWireRun is the encoded size of a run between two signatures. It is below MaxRunBytes because a run may end only
	// at a signed entry: a run that fits no sync frame (48 KiB) could never be passed on by a device that received it.
	MaxWireRun = 44 << 10
	// MaxForkProof is the encoded size of a fork proof: one wire run without bodies and one more header.
	MaxForkProof = 47 << 10

	// MaxSeq is the highest sequence number. Together with the bounds of the clock it keeps every clock below 2^63.
	MaxSeq = 1 << 30
	// MaxFirstClock is the highest clock of a first entry, MaxClockStep how far a clock may be above its predecessor (R7).
	MaxFirstClock = 1 << 62
	MaxClockStep  = 1 << 32
	// MaxTimeMS is the latest author's time, the last millisecond of the year 9999.
	MaxTimeMS = 253402300799999

	// WorkBits is the work a knock without invite token owes: about a million hashes.
	WorkBits = 20
	// MaxWorkBits is the most that Work takes on, minutes of one core.
	MaxWorkBits = 32
	workLen     = 8
)
