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

	// MaxInviteNetworks is how many networks an invite link may name.
	MaxInviteNetworks = 2

	// MaxInviteText bounds the text that is looked at when a link of any kind is parsed, white space included. A link full
	// to the bounds has about 32 KiB; a usual one has a few hundred bytes.
	MaxInviteText = 64 << 10

	// MaxNetworkName bounds the name of a network, in bytes: its length has to fit one byte in the network's ID.
	MaxNetworkName = 64

	// MaxBootstraps is how many bootstrap nodes a network link may name. Their keys stamp names.
	MaxBootstraps = 4

	// MaxNetworkCard bounds the bytes of a signed network card; a full one is about 2 KiB.
	MaxNetworkCard = 4 << 10

	// MaxServes bounds the services that a network card lists, and MaxServiceName each of them.
	MaxServes      = 8
	MaxServiceName = 16

	// MaxAgent bounds the agent string of a network card.
	MaxAgent = 64

	// MaxClaimName bounds the username in a name claim, in bytes.
	MaxClaimName = 64

	// MaxNameClaim, MaxNameStamp and MaxNameRecord bound the signed bytes of a claim (about 250), of a stamp of one
	// (about 370) and what the DHT keeps of a name (a few more).
	MaxNameClaim  = 512
	MaxNameStamp  = 768
	MaxNameRecord = 1 << 10

	// MaxDeviceRecord bounds the bytes of a signed device record; a full one is about 6 KiB.
	MaxDeviceRecord = 8 << 10

	// DeviceRecordLifetime is how long a device record counts after it was made.
	DeviceRecordLifetime = 90 * 24 * time.Hour

	// MaxMailboxes is how many mailboxes a device may name; MaxMailboxAddrs and MaxRecordAddrs bound the addresses of
	// each, and of the device itself.
	MaxMailboxes    = 4
	MaxMailboxAddrs = 4
	MaxRecordAddrs  = 8

	// PrekeySize is the length of a public prekey, MLKEM768X25519.
	PrekeySize = 1216

	// PrekeySlack is how much longer than the longest item a replaced prekey is kept (R24).
	PrekeySlack = 7 * 24 * time.Hour

	// MaxOneTime is how many one-time prekeys one offer may hand over.
	MaxOneTime = 16

	// MaxMailItem bounds a sealed item. The largest that SealMail makes is a little smaller.
	MaxMailItem = 64 << 10

	// MaxMailPlain bounds what is sealed into one item: the largest step of padding without the length in front.
	MaxMailPlain = 62<<10 - padLength

	// MaxMailRuns and MaxMailReceipts bound the parts of a mail; their bytes are bounded by the item's.
	MaxMailRuns     = 256
	MaxMailReceipts = 64

	// MaxMailGroups and MaxGroupKeys bound the groups and the keys of one group in a mail.
	MaxMailGroups = 64
	MaxGroupKeys  = 16

	// MaxMailReceipt bounds one receipt inside a mail.
	MaxMailReceipt = 16 << 10

	// MaxCustody bounds the bytes of a signed mailbox receipt; one is about 190.
	MaxCustody = 256

	// MaxConsent bounds the bytes of a signed consent (about 370 without its message), MaxConsentMessage the sentence in it,
	// ConsentLifetime how long it counts after it was made.
	MaxConsent        = 2 << 10
	MaxConsentMessage = 1 << 10
	ConsentLifetime   = 30 * 24 * time.Hour

	// MaxTransferProof bounds the bytes of a signed transfer proof; one is about 330.
	MaxTransferProof = 512

	// MaxGroupName bounds the name of a group, in bytes, as the setting in its roster does.
	MaxGroupName = 256

	// MaxGroupContacts is how many people a card or an invitation names as those to ask.
	MaxGroupContacts = 4

	// MaxGroupCard bounds the bytes of a signed group card: 16 transfers are 5 KiB, four people with two devices of four
	// usual addresses each 2 KiB. GroupCardLifetime is how long one may count after it was made.
	MaxGroupCard       = 12 << 10
	MaxCardDescription = 1 << 10
	MaxTransfers       = 16
	GroupCardLifetime  = 7 * 24 * time.Hour

	// MaxGenesis bounds a genesis header in a card, as package feed bounds headers.
	MaxGenesis = 2 << 10

	// MaxWorkBits is the most work that is ever asked for or done: 2^28 hashes are about a minute on one core.
	MaxWorkBits = 28

	// WorkFactor is the scrypt work factor (log2 N) under which a password seals a vault: about half a second and
	// 128 MiB of memory each time it is opened. MaxWorkFactor is the most that is accepted from a file.
	WorkFactor    = 17
	MaxWorkFactor = 20
)

// maxMillis is the last millisecond of the year 9999: times beyond it have no text form.
const maxMillis = 253402300799999
