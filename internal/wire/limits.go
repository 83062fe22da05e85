package wire

// Limits of every frame, in bytes of the message without its length prefix. They are part of the formats: a larger
// frame is a broken peer, and is refused before anything is allocated for it.
const (
	// MaxSyncFrame bounds a frame of /hima/sync/1. A foreign relay cuts a circuit after 128 KiB; with 48 KiB frames at
	// least two arrive whole on any circuit, so that a sync makes progress (R12).
	MaxSyncFrame = 48 << 10

	// MaxHeadsPage bounds one page of heads or digests inside a sync frame, so that work on the first page starts
	// while the others are still under way (R12).
	MaxHeadsPage = 8 << 10

	// MaxLanFrame bounds question and answer of /hima/lan/1: a certificate, two names and an agent string.
	MaxLanFrame = 4 << 10

	// MaxNetworkFrame bounds question and answer of /hima/network/1: a signed card.
	MaxNetworkFrame = 5 << 10

	// MaxNamesFrame bounds question and answer of /hima/names/1: sixteen stamps that are handed back.
	MaxNamesFrame = 16 << 10

	// MaxGroupFrame bounds question and answer of /hima/group/1: eight usual cards, or four of the largest.
	MaxGroupFrame = 48 << 10

	// MaxMailboxFrame bounds a frame of /hima/mailbox/1: one item of 64 KiB and what stands around it.
	MaxMailboxFrame = 66 << 10
)
