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

	// maxNetworks is how many networks may be joined, and maxBootstraps how many bootstrap nodes are known of each.
	maxNetworks   = 8
	maxBootstraps = 8
	// maxDeviceRecords is how many device records of others are kept on disk, at most 8 KiB each and mostly 2; beyond it
	// those of strangers that were found longest ago go. maxDeviceCache is how many are held in memory.
	maxDeviceRecords = 4096
	maxDeviceCache   = 512
	// maxLocations is how many devices are remembered as having been looked for.
	maxLocations = 1024
	// maxTended is how many accounts that matter are looked after, and maxStamps how many of their names on one network.
	maxTended = 2048
	maxStamps = 2048
	// maxClaimants is how many people one search lists of one network: unstamped claims cost nothing.
	maxClaimants = 8
	// maxReturn is how many stamps one frame hands back.
	maxReturn = 16
	// maxGiveBack is how many stamps are handed back to one register at a time.
	maxGiveBack = 20 * maxReturn

	// askTimeout bounds a question to a bootstrap node, dialling included, on both sides.
	askTimeout = 8 * time.Second
	// claimTimeout bounds claiming a name while the user waits; what is not done then is pending.
	claimTimeout = 12 * time.Second
	// handOnTimeout bounds telling the sisters of the register that stamped.
	handOnTimeout = 2 * time.Second
	// searchTimeout bounds a search; among a thousand nodes one takes about a second, ten when many have just died.
	searchTimeout = 15 * time.Second
	// lookupTimeout bounds one look-up.
	lookupTimeout = 20 * time.Second
	// otherNetworks and otherAnswers are how long others may take once somebody answered who is enough.
	otherNetworks = time.Second
	otherAnswers  = 2 * time.Second

	// republish is how often records are put: tables forget after two days, and clocks and machines are as they are.
	republish = 12 * time.Hour
	// publishTimeout bounds one put and its check. After a failure the next try comes after publishPause, doubled each
	// time up to publishPauseMax.
	publishTimeout = time.Minute
	publishPause   = 5 * time.Second
	// putAgain is the middle of when a new record is put a second time.
	putAgain        = 4 * time.Minute
	publishPauseMax = 30 * time.Minute
	// peerPoll is how often an empty table is looked at: nobody tells when the first peer has come.
	peerPoll = time.Second
	// devicePause is how long the device record waits for more to change.
	devicePause = 3 * time.Second
	// openPause is how long a table that could not be opened is left alone.
	openPause = 30 * time.Second

	// refetch is how old a contact's record may be before it is looked up anew.
	refetch = 6 * time.Hour
	// tendEvery is how often contacts are walked through, tendStart half the time until the first walk at most, tendPace
	// the pause between two records.
	tendEvery = 10 * time.Minute
	tendStart = 30 * time.Second
	tendPace  = 200 * time.Millisecond
	// locatePause is how long a device is not looked for again, doubled after each failure up to locatePauseMax.
	locatePause    = 15 * time.Second
	locatePauseMax = 10 * time.Minute

	// namePause is how long a claim waits that no register answered, doubled each time up to namePauseMax; a bootstrap
	// node that appears ends the wait.
	namePause    = 10 * time.Second
	namePauseMax = 30 * time.Minute
	// greetAgain is how long a bootstrap node is left alone that did not say what it serves.
	greetAgain = time.Minute

	// registerSilence is how long a register that began empty stamps nothing (R19).
	registerSilence = 24 * time.Hour
	// maxNamesEach is how many names one account may have on a network, maxRegistered how many a register holds, at most
	// 900 bytes each.
	maxNamesEach  = 8
	maxRegistered = 1 << 20
	// registerRate and registerBurst bound the questions of everybody together per second, askerRate and askerBurst those of
	// one device; maxAskers is how many devices are counted at a time.
	registerRate  = 200
	registerBurst = 1000
	askerRate     = 0.5
	askerBurst    = 40
	maxAskers     = 8192
	// sisterTimeout bounds asking other registers before a claim is stamped.
	sisterTimeout = 2 * time.Second

	// maxShares is how many public groups this node tells of, maxGroupCards how many one answer holds, maxHeardGroups how
	// many cards of others are remembered, at most 12 KiB each and mostly 1.
	maxShares      = 256
	maxGroupCards  = 8
	maxHeardGroups = 256
	// groupRate and groupBurst bound answers about groups to everybody together per second, groupAskerRate and
	// groupAskerBurst those to one device; maxGroupAskers is how many devices are counted at a time.
	groupRate       = 50
	groupBurst      = 200
	groupAskerRate  = 0.2
	groupAskerBurst = 20
	maxGroupAskers  = 2048
	// A search asks at most maxGroupProviders devices of each network and maxGroupNearby nearby, groupAsks at a time, and
	// goes on for groupPatience after the first card came. It shows at most maxFoundGroups, and of one group at most
	// maxGroupOwners that contradict each other.
	maxGroupProviders = 48
	maxGroupNearby    = 64
	groupAsks         = 8
	groupPatience     = 3 * time.Second
	maxFoundGroups    = 128
	maxGroupOwners    = 4

	// claimBits is the work over a name claim: a third of a second on one core, once in the life of a name.
	claimBits = 20
)
