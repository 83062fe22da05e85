package delivery

import (
	"math/rand/v2"
	"time"

	"hima/identity"
)

// What is owed in a group to devices with which nothing else is to be settled: the group's other members mostly bring it
// before its author could, and in a big one there are hundreds of devices.

// lazyDials is what is under way for their sake. mu of Delivery guards it.
type lazyDials struct {
	under  int       // dials
	asking bool      // the network is asked where one of them is
	last   time.Time // the last turn that was given
}

// settleWithin is how long a session that was opened for a debt may take to settle it; after that it counts no more.
const settleWithin = time.Minute

// lazyQueue is how far ahead turns are given one after another; beyond that they fall anywhere.
const lazyQueue = 2 * time.Minute

// idle says that a device is dialled for the sake of groups alone.
func (r *row) idle() bool { return r.lazy && !r.owed && !r.wanted }

// rank orders who is dialled first.
func (r *row) rank() int {
	switch {
	case r.owed:
		return 0
	case r.wanted:
		return 1
	}
	return 2
}

// lazyTurn says when a device is first tried: not before others had the time to bring what it lacks, and some time after the
// one before. Called with mu held.
func (d *Delivery) lazyTurn() time.Time {
	l := d.cfg.Limits
	now := d.cfg.Now()
	at := now.Add(l.LazyAfter - d.someOf(l.LazyAfter/5))
	after := d.lazy.last.Add(d.someOf(2 * l.LazySpread))
	if after.Sub(now) > lazyQueue {
		return at.Add(d.someOf(lazyQueue))
	}
	if after.After(at) {
		at = after
	}
	d.lazy.last = at
	return at
}

func (d *Delivery) someOf(t time.Duration) time.Duration {
	return time.Duration(rand.Int64N(int64(max(t, 0)) + 1))
}

// lazyPause is the pause after a try in vain. Called with mu held.
func (d *Delivery) lazyPause(tries int) time.Duration {
	return d.jitter(min(d.cfg.Limits.LazyAfter<<min(tries, 10), d.cfg.Limits.IdleCap))
}

// lazyRoom says how many more may be dialled. Called with mu held.
func (d *Delivery) lazyRoom(now time.Time) int {
	open := d.lazy.under
	for device, r := range d.table {
		if !r.settles.IsZero() && now.Sub(r.settles) < settleWithin && d.cfg.Sessions.Connected(device) {
			open++
		}
	}
	return min(d.cfg.Limits.LazyDials-d.lazy.under, d.cfg.Limits.LazySessions-open)
}

// asked ends a question about where a device is.
func (d *Delivery) asked(idle bool) {
	if !idle {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lazy.asking = false
}

// settled lists devices whose sessions were opened to settle debts, when there are none left. Called with mu held.
func (d *Delivery) settled() (list []identity.DeviceID) {
	for device, r := range d.table {
		if r.settles.IsZero() || r.dialing || r.lazy {
			continue
		}
		if r.settles = (time.Time{}); !r.owed && !r.wanted && d.cfg.Release != nil {
			list = append(list, device)
		}
	}
	return list
}
