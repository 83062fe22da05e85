package messenger

import "time"

// Limits bounds what strangers may cost and what is kept of the past. A zero field takes the value of DefaultLimits.
type Limits struct {
	TempChats    int    // temporary chats at once
	TempMessages int    // texts kept of one stranger
	TempBytes    int    // bytes of bodies kept of one stranger
	Requests     int    // undecided requests at once; as many again for those who come with a token
	TempControl  int    // control entries kept of one stranger, besides those about groups
	TempSaid     int    // bytes of these taken of one stranger at once; what was used comes back in time, see saidquota.go
	Events       uint64 // events kept for watchers to resume from
	Invites      int    // live invite tokens
}

// DefaultLimits returns the limits of a normal profile. A stranger's texts cost at most 256 KiB, those of all of them together 16 MiB.
func DefaultLimits() Limits {
	return Limits{
		TempChats:    64,
		TempMessages: 100,
		TempBytes:    256 << 10,
		Requests:     256,
		TempControl:  16,
		TempSaid:     64 << 10,
		Events:       200_000,
		Invites:      64,
	}
}

func (l Limits) withDefaults() Limits {
	d := DefaultLimits()
	l.TempChats = orInt(l.TempChats, d.TempChats)
	l.TempMessages = orInt(l.TempMessages, d.TempMessages)
	l.TempBytes = orInt(l.TempBytes, d.TempBytes)
	l.Requests = orInt(l.Requests, d.Requests)
	l.TempControl = orInt(l.TempControl, d.TempControl)
	l.TempSaid = orInt(l.TempSaid, d.TempSaid)
	l.Invites = orInt(l.Invites, d.Invites)
	if l.Events == 0 {
		l.Events = d.Events
	}
	return l
}

func orInt(v, d int) int {
	if v == 0 {
		return d
	}
	return v
}

const (
	// maxRequestText is the longest text of a request in bytes; it is a line or two beside a name.
	maxRequestText = 1 << 10
	// maxRemark and maxField are in terminal cells, maxBio in bytes.
	maxRemark = 64
	maxField  = 128
	maxBio    = 1 << 10
	// defaultPage and maxPage are how many lines of history one call gives.
	defaultPage = 50
	maxPage     = 1000
	// stateIDs is how many message IDs one state event names.
	stateIDs = 256
	// idempotencyLife is how long an idempotency key is remembered.
	idempotencyLife = 24 * time.Hour
	// minPrefix is the shortest beginning of an ID that is taken for one, in characters after "hima1", or hex digits.
	minPrefix = 4
	// maxRefused is how many strangers are remembered whose texts were refused, so that a change of policy can set
	// their floors (R16).
	maxRefused = 256
	// comemberFactor is how many times more than other strangers a co-member may say about groups, at once and in the long run.
	comemberFactor = 16
	// maxUnknown is how many unknown control entries are remembered one by one per conversation (R10).
	maxUnknown = 64
	// scanCap bounds walks that count lines one by one.
	scanCap = 5000
)
