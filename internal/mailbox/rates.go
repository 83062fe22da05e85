package mailbox

import (
	"sync"
	"time"

	"hima/identity"
)

// rates bounds what one device may ask for. It is kept in memory alone, so that no disk says who was here; a bucket that
// is full again says nothing and is forgotten.
type rates struct {
	limits ServerLimits
	now    func() time.Time

	mu     sync.Mutex
	of     map[identity.DeviceID]*allowance // guarded by mu
	others *allowance                       // guarded by mu; shared by those for whom there is no place
}

// maxAllowances is for how many devices there are buckets of their own.
const maxAllowances = 8192

// allowance is what a device has left, as of a time.
type allowance struct {
	at       time.Time
	requests float64
	bytes    float64
	opens    float64
}

func newRates(l ServerLimits, now func() time.Time) *rates {
	r := &rates{limits: l, now: now, of: map[identity.DeviceID]*allowance{}}
	r.others = r.full(now())
	return r
}

func (r *rates) full(at time.Time) *allowance {
	return &allowance{at: at, requests: float64(r.limits.Burst), bytes: float64(r.limits.ByteBurst), opens: float64(r.limits.OpenBurst)}
}

// fill adds what time brought.
func (r *rates) fill(a *allowance, now time.Time) {
	passed := max(0, now.Sub(a.at).Seconds())
	a.at = now
	a.requests = min(a.requests+passed*r.limits.Rate, float64(r.limits.Burst))
	a.bytes = min(a.bytes+passed*r.limits.ByteRate, float64(r.limits.ByteBurst))
	a.opens = min(a.opens+passed*r.limits.OpenRate, float64(r.limits.OpenBurst))
}

// take takes one request, with so many bytes to be kept and so many inboxes to be made; false: too much.
func (r *rates) take(dev identity.DeviceID, bytes, opens int) bool {
	now := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.of[dev]
	if a == nil {
		if len(r.of) >= maxAllowances {
			r.forget(now)
		}
		if len(r.of) >= maxAllowances {
			a = r.others
		} else {
			a = r.full(now)
			r.of[dev] = a
		}
	}
	r.fill(a, now)
	if a.requests < 1 || a.bytes < float64(bytes) || a.opens < float64(opens) {
		return false
	}
	a.requests--
	a.bytes -= float64(bytes)
	a.opens -= float64(opens)
	return true
}

// forget drops full buckets. Called with mu held.
func (r *rates) forget(now time.Time) {
	l := r.limits
	for dev, a := range r.of {
		r.fill(a, now)
		if a.requests >= float64(l.Burst) && a.bytes >= float64(l.ByteBurst) && a.opens >= float64(l.OpenBurst) {
			delete(r.of, dev)
		}
	}
}
