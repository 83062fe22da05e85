package mailbox

import (
	"sync"
	"time"

	"hima/identity"
)

// shares bounds how much of a log one device fills, so that one member of a group cannot shut the others out. Like rates it
// is kept in memory alone: no disk says who wrote into which log. A restart begins it anew, and the log's own quota holds
// all the same. What a device may leave grows back over the time for which items are kept.
type shares struct {
	limits ServerLimits
	now    func() time.Time

	mu sync.Mutex
	of map[sharer]*share // guarded by mu
}

type sharer struct {
	log    localInbox
	device identity.DeviceID
}

// share is what a device may still leave in a log, as of a time.
type share struct {
	at    time.Time
	bytes float64
	items float64
}

// maxShares bounds for how many devices and logs a share is remembered.
const maxShares = 1 << 16

func newShares(l ServerLimits, now func() time.Time) *shares {
	return &shares{limits: l, now: now, of: map[sharer]*share{}}
}

// take takes room for one item; false: the device has had its share.
func (s *shares) take(log localInbox, dev identity.DeviceID, size int) bool {
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	key := sharer{log, dev}
	a := s.of[key]
	if a == nil {
		if len(s.of) >= maxShares {
			s.forget()
		}
		a = &share{at: now, bytes: float64(s.limits.LogDeviceBytes), items: float64(s.limits.LogDeviceItems)}
		s.of[key] = a
	}
	part := max(0, now.Sub(a.at).Seconds()) / s.limits.Expiry.Seconds()
	a.at = now
	a.bytes = min(a.bytes+part*float64(s.limits.LogDeviceBytes), float64(s.limits.LogDeviceBytes))
	a.items = min(a.items+part*float64(s.limits.LogDeviceItems), float64(s.limits.LogDeviceItems))
	if a.items < 1 || a.bytes < float64(size) {
		return false
	}
	a.items--
	a.bytes -= float64(size)
	return true
}

// giveBack undoes take for an item that was not kept.
func (s *shares) giveBack(log localInbox, dev identity.DeviceID, size int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.of[sharer{log, dev}]; a != nil {
		a.items++
		a.bytes += float64(size)
	}
}

// forget drops the oldest of a few. Called with mu held.
func (s *shares) forget() {
	const few = 16
	var oldest sharer
	var at time.Time
	n := 0
	for key, a := range s.of {
		if n == 0 || a.at.Before(at) {
			oldest, at = key, a.at
		}
		if n++; n == few {
			break
		}
	}
	delete(s.of, oldest)
}
