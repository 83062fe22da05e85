package directory

import "time"

// What others may make this node keep. One table, so that the cost of a stranger can be read off.
const (
	// maxStrangers is how many records of accounts are kept that Config.Keep does not want. Beyond it the one heard of
	// longest ago goes: whoever makes accounts by the thousand pushes out strangers like himself, never a contact.
	maxStrangers = 1024
	// maxBook is how many devices the address book remembers in all; the same rule.
	maxBook = 4096
	// maxAddrs is how many addresses are kept of one device, newest first.
	maxAddrs = 8
	// maxAddrText bounds one address in its text form.
	maxAddrText = 256
	// maxHints is how many devices of one account are kept that were only heard of.
	maxHints = 16
	// maxRevoked is how many revoked devices of one account are remembered beyond those its record names.
	maxRevoked = 256
	// maxCache is how many records are held in memory, at most 8 KiB each.
	maxCache = 1024

	// maxNearby is how many devices on the LAN are listed.
	maxNearby = 512
	// maxQueue is how many devices may wait to be asked who they are.
	maxQueue = 256
	// lanWorkers is how many are asked at a time.
	lanWorkers = 4
	// lanTimeout bounds one question, dialling included; an answer takes milliseconds.
	lanTimeout = 10 * time.Second
	// askAgain is how old a profile may be before a device that is found again is asked again.
	askAgain = 5 * time.Minute
	// askPause is how long a device that did not answer is left alone.
	askPause = 15 * time.Second
	// unseenAfter is how long somebody is listed who neither is connected nor announces himself. Announcements come every
	// two minutes.
	unseenAfter = 5 * time.Minute
	// tick is how often addresses of connected devices are looked at, and the list is swept.
	tick = 30 * time.Second
	// seenStep is how often the time a connected device was last seen is written down.
	seenStep = 10 * time.Minute

	// answerRate and answerBurst bound answers per second to everybody together, peerRate and peerBurst to one device.
	answerRate  = 20
	answerBurst = 100
	peerRate    = 0.2
	peerBurst   = 5
)
