package delivery

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"time"

	"hima/identity"
	"hima/internal/replica"
	"hima/node"
	"hima/storage"
)

// Sessions is what delivery needs of package replica.
type Sessions interface {
	// Open brings up a session with a device, or returns at once if there is one.
	Open(ctx context.Context, device identity.DeviceID) error
	Connected(device identity.DeviceID) bool
	// Owed lists the devices that lack entries of this device; OwedChanged ticks after it changed.
	Owed() ([]replica.Debt, error)
	OwedChanged() <-chan struct{}
}

// Config is what a Delivery needs. All fields without a stated zero value are required.
type Config struct {
	DB       *storage.DB
	Sessions Sessions
	Self     identity.DeviceID // zero: both sides of a new connection open a session at once, and one of the two is closed again
	// Events is node.Subscribe; nil: nothing is heard of the network.
	Events func() (<-chan node.Event, func())
	// Contacts lists devices that are worth a session even when nothing is owed to them; nil: none.
	Contacts func() []identity.DeviceID
	// OnFailed hears which device could not be reached; Mail.Failed acts upon it. It must not block; nil: nobody hears.
	OnFailed func(identity.DeviceID)
	// Locate asks the network where a device is, when no address is known or none answers; nil: nobody is asked. An error
	// says that nothing new was learnt. It may take as long as a dial.
	Locate func(ctx context.Context, device identity.DeviceID) error
	// Addr names where a device would be dialled, or is connected, for the log of attempts; nil: not said.
	Addr func(identity.DeviceID) string
	// Release ends a session that was only opened to settle what members of a group owe each other, unless somebody else
	// uses it; nil: sessions stay.
	Release func(identity.DeviceID)
	Logger  *slog.Logger     // nil: nothing is logged
	Now     func() time.Time // nil: time.Now
	Limits  Limits           // zero fields: the defaults
}

// Limits shapes the retry table. A zero field takes the value of DefaultLimits.
type Limits struct {
	Dials   int           // at the same time
	Latency time.Duration // expected time of the direct road; the first pause after a failure
	Cap     time.Duration // longest pause for a device that is owed something
	IdleCap time.Duration // longest pause for a device that is owed nothing
	Recent  time.Duration // how long ago a device may have been seen and still count as just lost
	NearCap time.Duration // longest pause for a device just lost, growing with the time since: most come back within minutes
	Timeout time.Duration // of one dial with its hello

	// Of devices that are owed entries of groups alone. Mostly others bring them: nobody is dialled at once, and devices of
	// big groups one after another.
	LazyAfter    time.Duration // how long others have before the first try
	LazySpread   time.Duration // between the first tries of two devices, on average
	LazyDials    int           // at the same time, beside those above
	LazySessions int           // that were opened so and have something to settle
}

// DefaultLimits returns the limits of a normal node.
func DefaultLimits() Limits {
	return Limits{
		Dials:   8,
		Latency: time.Second,
		Cap:     5 * time.Minute,
		IdleCap: 30 * time.Minute,
		Recent:  10 * time.Minute,
		NearCap: 5 * time.Second,
		Timeout: 15 * time.Second,

		LazyAfter:    5 * time.Second,
		LazySpread:   200 * time.Millisecond,
		LazyDials:    8,
		LazySessions: 24,
	}
}

// Road is a way to a device.
type Road string

// The roads.
const (
	RoadDirect  Road = "direct"  // a stream to the device itself
	RoadRelay   Road = "relay"   // a stream to the device, through a relay
	RoadMailbox Road = "mailbox" // an item in a mailbox, for a device that is away
)

// Attempt is one try to reach a device.
type Attempt struct {
	Time  time.Time
	Road  Road
	Addr  string
	Error string // empty: it worked
}

func (c Config) withDefaults() Config {
	d := DefaultLimits()
	c.Limits.Dials = cmp.Or(c.Limits.Dials, d.Dials)
	c.Limits.Latency = cmp.Or(c.Limits.Latency, d.Latency)
	c.Limits.Cap = cmp.Or(c.Limits.Cap, d.Cap)
	c.Limits.IdleCap = cmp.Or(c.Limits.IdleCap, d.IdleCap)
	c.Limits.Recent = cmp.Or(c.Limits.Recent, d.Recent)
	c.Limits.NearCap = cmp.Or(c.Limits.NearCap, d.NearCap)
	c.Limits.Timeout = cmp.Or(c.Limits.Timeout, d.Timeout)
	c.Limits.LazyAfter = cmp.Or(c.Limits.LazyAfter, d.LazyAfter)
	c.Limits.LazySpread = cmp.Or(c.Limits.LazySpread, d.LazySpread)
	c.Limits.LazyDials = cmp.Or(c.Limits.LazyDials, d.LazyDials)
	c.Limits.LazySessions = cmp.Or(c.Limits.LazySessions, d.LazySessions)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func (c Config) check() error {
	if c.DB == nil || c.Sessions == nil {
		return errors.New("delivery: database and sessions are required")
	}
	return nil
}
