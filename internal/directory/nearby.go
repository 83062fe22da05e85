package directory

import (
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"hima/identity"
	"hima/internal/text"
)

// Person is somebody on this LAN. Account and device are proven; the names are claims of that account, made safe to
// show, and never a registered name (R20): several people may claim one.
type Person struct {
	Account  identity.AccountID
	Device   identity.DeviceID
	Username string // canonical, or empty if the claim is no valid username
	Nickname string
	Address  string // multiaddr of the connection on which the person answered
	Seen     time.Time
}

// lan is who is there and who is to be asked. The lock guards all fields but queue and is never held while calling
// anything else.
type lan struct {
	mu     sync.Mutex
	people map[identity.DeviceID]Person    // at most maxNearby
	asked  map[identity.DeviceID]time.Time // until when a device is not asked again; at most 2*maxNearby
	heard  map[identity.DeviceID]time.Time // when a device last announced itself; at most 2*maxNearby
	queued map[identity.DeviceID]bool      // in queue or being asked
	queue  chan identity.DeviceID

	answers *rate.Limiter
	peers   map[identity.DeviceID]*rate.Limiter // at most maxNearby
}

func (l *lan) init() {
	l.people = map[identity.DeviceID]Person{}
	l.asked = map[identity.DeviceID]time.Time{}
	l.heard = map[identity.DeviceID]time.Time{}
	l.queued = map[identity.DeviceID]bool{}
	l.queue = make(chan identity.DeviceID, maxQueue)
	l.answers = rate.NewLimiter(answerRate, answerBurst)
	l.peers = map[identity.DeviceID]*rate.Limiter{}
}

// Nearby lists the people on this LAN, one entry an account (the device seen last), ordered by username, then ID.
func (d *Directory) Nearby() []Person {
	now := d.now()
	d.lan.mu.Lock()
	byAccount := map[identity.AccountID]Person{}
	for _, p := range d.lan.people {
		if have, ok := byAccount[p.Account]; !ok || p.Seen.After(have.Seen) {
			byAccount[p.Account] = p
		}
	}
	d.lan.mu.Unlock()
	var out []Person
	for _, p := range byAccount {
		if d.present(p, now) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b Person) int {
		if c := strings.Compare(a.Username, b.Username); c != 0 {
			return c
		}
		return strings.Compare(string(a.Account[:]), string(b.Account[:]))
	})
	return out
}

// Lookup returns the people nearby who claim a username, in any spelling that folds to it. More than one means that
// the name is ambiguous and the user has to say an ID (R20).
func (d *Directory) Lookup(username string) []Person {
	name, err := text.Username(username)
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(d.Nearby(), func(p Person) bool { return p.Username != name })
}

// present tells whether somebody counts as being there.
func (d *Directory) present(p Person, now time.Time) bool {
	return now.Sub(p.Seen) < unseenAfter || d.cfg.Node != nil && d.cfg.Node.Connected(p.Device)
}

// appear enters an answer and tells the hook about somebody new.
func (d *Directory) appear(p Person) {
	d.lan.mu.Lock()
	have, ok := d.lan.people[p.Device]
	if !ok && len(d.lan.people) >= maxNearby {
		d.lan.dropOldest()
	}
	d.lan.people[p.Device] = p
	d.lan.mu.Unlock()
	if (!ok || have.Account != p.Account) && d.cfg.OnNearby != nil {
		d.cfg.OnNearby(p)
	}
}

// makeRoom drops any one entry of a full map: what it is about is found out again.
func makeRoom[V any](m map[identity.DeviceID]V) {
	if len(m) < 2*maxNearby {
		return
	}
	for dev := range m {
		delete(m, dev)
		return
	}
}

// dropOldest makes room for one more. The caller holds the lock.
func (l *lan) dropOldest() {
	var oldest identity.DeviceID
	var at time.Time
	for dev, p := range l.people {
		if at.IsZero() || p.Seen.Before(at) {
			oldest, at = dev, p.Seen
		}
	}
	delete(l.people, oldest)
}

// gone takes somebody off the list.
func (d *Directory) gone(dev identity.DeviceID) {
	d.lan.mu.Lock()
	defer d.lan.mu.Unlock()
	delete(d.lan.people, dev)
}

// sweep takes those off the list who neither are connected nor announced themselves for a while, and forgets what
// limits were about.
func (d *Directory) sweep() {
	now := d.now()
	d.lan.mu.Lock()
	people := make([]Person, 0, len(d.lan.people))
	for _, p := range d.lan.people {
		people = append(people, p)
	}
	for dev, until := range d.lan.asked {
		if now.After(until) {
			delete(d.lan.asked, dev)
		}
	}
	for dev, at := range d.lan.heard {
		if now.Sub(at) >= unseenAfter {
			delete(d.lan.heard, dev)
		}
	}
	for dev, l := range d.lan.peers {
		if l.TokensAt(now) >= peerBurst {
			delete(d.lan.peers, dev)
		}
	}
	d.lan.mu.Unlock()
	for _, p := range people {
		if !d.present(p, now) {
			d.gone(p.Device)
		}
	}
}

// allowAnswer spends a token of the device and one of everybody.
func (l *lan) allowAnswer(dev identity.DeviceID, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.peers[dev]
	if p == nil {
		if len(l.peers) >= maxNearby {
			return false // a crowd of new devices: they wait until the sweep
		}
		p = rate.NewLimiter(peerRate, peerBurst)
		l.peers[dev] = p
	}
	return p.AllowN(now, 1) && l.answers.AllowN(now, 1)
}
