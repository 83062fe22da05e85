package delivery

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"hima/identity"
	"hima/internal/replica"
	"hima/node"
)

// Delivery is the retry table. Make it with New, let Run work.
type Delivery struct {
	cfg  Config
	log  *slog.Logger
	wake chan struct{} // one slot
	anew chan struct{} // one slot; Refresh was called

	mu    sync.Mutex
	table map[identity.DeviceID]*row // guarded by mu
	dials int                        // guarded by mu; under way
	lazy  lazyDials                  // guarded by mu
}

// row is one device. Rows of devices that are owed nothing and are not worth a session are removed, unless they were
// seen of late.
type row struct {
	owed    bool // entries of conversations with its account, or between own devices
	lazy    bool // entries of groups
	wanted  bool // a contact
	dialing bool
	settles time.Time // when a session was opened for lazy alone; zero: it was not
	tries   int       // failures since it was last seen
	next    time.Time // zero: as soon as there is room
	seen    time.Time // zero: never since the start
	located time.Time // when the network was last asked where it is
	limited bool      // its connection goes through a relay that will cut it
	lost    time.Time // when its last connection ended; zero: it has one, or never had
}

// refreshPause is the shortest time between two looks at who is owed something: under load it changes all the time.
const refreshPause = 200 * time.Millisecond

// recheck is the longest time between two looks, for what changes without a tick (records that expire).
const recheck = time.Minute

// politePause is how long the device with the higher ID leaves it to the other one to open a session on a connection
// that just came up.
const politePause = 400 * time.Millisecond

// locatePause is how long after the network was asked where a device is, it is not asked again. The answer does not
// change faster, and most failures are of devices that are away.
const locatePause = 15 * time.Second

// cutPause is politePause where a connection has to be made first, through a relay.
const cutPause = 1500 * time.Millisecond

// A session ends a moment after its last connection. For as long as mourning it is looked at every lookPause.
const (
	mourning  = 2 * time.Second
	lookPause = 20 * time.Millisecond
)

// New checks the configuration. It starts nothing.
func New(c Config) (*Delivery, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	c = c.withDefaults()
	return &Delivery{cfg: c, log: c.Logger, wake: make(chan struct{}, 1), anew: make(chan struct{}, 1), table: map[identity.DeviceID]*row{}}, nil
}

// Run dials who is owed something, and contacts, until ctx ends and all dials returned.
func (d *Delivery) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var events <-chan node.Event
	if d.cfg.Events != nil {
		c, stop := d.cfg.Events()
		defer stop()
		events = c
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	var refreshed time.Time
	stale := true
	for {
		now := d.cfg.Now()
		wait := recheck
		if stale {
			if since := now.Sub(refreshed); since < 0 || since >= refreshPause {
				d.refresh()
				refreshed, stale = now, false
			} else {
				wait = refreshPause - since
			}
		}
		if next := d.start(ctx, &wg, now); next > 0 {
			wait = min(wait, next)
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
			stale = stale || d.cfg.Now().Sub(refreshed) >= recheck
		case <-d.cfg.Sessions.OwedChanged():
			stale = true
		case <-d.anew:
			stale = true
		case <-d.wake:
		case e, ok := <-events:
			if !ok {
				events = nil
				continue
			}
			d.hear(e)
		}
	}
}

// hear takes an event of the network.
func (d *Delivery) hear(e node.Event) {
	switch e := e.(type) {
	case node.Found:
		d.Nudge(e.Device)
	case node.PeerUp:
		pause := time.Duration(0)
		if !d.cfg.Self.IsZero() && e.Device.Less(d.cfg.Self) {
			pause = politePause
		}
		d.mu.Lock()
		if r := d.table[e.Device]; r != nil {
			r.limited, r.lost = e.Info.Limited, time.Time{}
		}
		d.mu.Unlock()
		d.nudge(e.Device, pause, false)
	case node.PeerDown:
		d.nudge(e.Device, d.afterLoss(e.Device), true)
	case node.NetworkChanged:
		d.begin()
	case node.OnlineChanged:
		if e.Online {
			d.begin()
		}
	}
}

// Refresh looks anew at who is a contact: a record with other devices came in.
func (d *Delivery) Refresh() {
	select {
	case d.anew <- struct{}{}:
	default:
	}
}

// begin tries everybody anew: what failed so far says nothing about the network of now.
func (d *Delivery) begin() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range d.table {
		r.tries, r.next, r.located = 0, time.Time{}, time.Time{}
		if r.idle() {
			r.next = d.lazyTurn()
		}
	}
}

// afterLoss is the pause after a connection ended. A circuit through a limited relay is cut every few minutes while both
// ends live: its devices go on at once, one before the other.
func (d *Delivery) afterLoss(device identity.DeviceID) time.Duration {
	d.mu.Lock()
	r := d.table[device]
	cut := r != nil && r.limited
	if r != nil {
		r.limited, r.lost = false, d.cfg.Now()
	}
	d.mu.Unlock()
	switch {
	case !cut:
		return d.jitter(d.cfg.Limits.Latency / 4)
	case !d.cfg.Self.IsZero() && device.Less(d.cfg.Self):
		return cutPause
	}
	return 0
}

// Nudge tries a device at once that was seen, and begins its pauses anew. Devices that are neither owed anything nor
// contacts are not tried.
func (d *Delivery) Nudge(device identity.DeviceID) { d.nudge(device, 0, false) }

// Retry tries a device at once and begins its pauses anew, because something was learnt of where it may be. Unlike Nudge
// it does not count as seen: what others tell of a device is no sign of life, and one that was seen is looked for every
// few seconds.
func (d *Delivery) Retry(device identity.DeviceID) {
	d.mu.Lock()
	if r := d.table[device]; r != nil {
		r.tries, r.next = 0, time.Time{}
	}
	d.mu.Unlock()
	d.poke()
}

// poke makes Run look at the table.
func (d *Delivery) poke() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

func (d *Delivery) nudge(device identity.DeviceID, pause time.Duration, lost bool) {
	now := d.cfg.Now()
	d.mu.Lock()
	if r := d.table[device]; r != nil && r.idle() && lost {
		r.next = d.lazyTurn() // it went, and others are still there
	} else if r != nil {
		// A device that announces itself again and again is not tried more often than one that was just lost.
		if r.tries > 1 && now.Sub(r.seen) < d.cfg.Limits.Latency {
			d.mu.Unlock()
			return
		}
		r.tries, r.seen = 0, now
		r.next = now.Add(pause)
	}
	d.mu.Unlock()
	d.poke()
}

// refresh asks who is owed something and who is a contact.
func (d *Delivery) refresh() {
	owed, err := d.cfg.Sessions.Owed()
	if err != nil {
		d.log.Warn("asking who is owed something", "error", err)
		return
	}
	var contacts []identity.DeviceID
	if d.cfg.Contacts != nil {
		contacts = d.cfg.Contacts()
	}
	d.mu.Lock()
	before := make(map[identity.DeviceID]bool, len(d.table))
	lazy := make(map[identity.DeviceID]bool, len(d.table))
	for device, r := range d.table {
		before[device], lazy[device] = r.owed, r.lazy
		r.owed, r.lazy, r.wanted = false, false, false
	}
	for _, debt := range owed {
		r := d.row(debt.Device)
		r.lazy = slices.ContainsFunc(debt.Feeds, func(s replica.Span) bool { return s.Lazy })
		if r.owed = !r.lazy || !debt.Lazy(); r.owed && !before[debt.Device] {
			// Newly owed something: pauses that were right for an idle contact are not.
			r.tries, r.next = 0, time.Time{}
		}
	}
	for _, device := range contacts {
		d.row(device).wanted = true
	}
	for device, r := range d.table {
		if r.idle() && !lazy[device] && r.next.IsZero() {
			r.next = d.lazyTurn()
		}
	}
	settled := d.settled()
	for device, r := range d.table {
		if !r.owed && !r.lazy && !r.wanted && !r.dialing {
			delete(d.table, device)
		}
	}
	d.mu.Unlock()
	for _, device := range settled {
		d.cfg.Release(device)
	}
}

// row returns the row of a device, making it. Called with mu held.
func (d *Delivery) row(device identity.DeviceID) *row {
	r := d.table[device]
	if r == nil {
		r = &row{}
		d.table[device] = r
	}
	return r
}

// start dials what is due, those first that are owed something, and says how long nothing is due after that; 0: until
// something changes.
func (d *Delivery) start(ctx context.Context, wg *sync.WaitGroup, now time.Time) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	type due struct {
		device identity.DeviceID
		row    *row
	}
	var list []due
	var wait time.Duration
	for device, r := range d.table {
		if r.dialing {
			continue
		}
		if connected := d.cfg.Sessions.Connected(device); connected && !r.lost.IsZero() && now.Sub(r.lost) < mourning {
			wait = lookPause
			continue
		} else if connected {
			r.tries, r.seen = 0, now
			r.next = now.Add(d.cfg.Limits.NearCap) // for when the session ends without any event
		}
		if left := r.next.Sub(now); left <= 0 {
			list = append(list, due{device, r})
		} else if wait == 0 || left < wait {
			wait = left
		}
	}
	slices.SortFunc(list, func(a, b due) int {
		return cmp.Or(cmp.Compare(a.row.rank(), b.row.rank()), a.row.next.Compare(b.row.next))
	})
	room := 0
	if n := len(list); n > 0 && list[n-1].row.idle() {
		room = d.lazyRoom(now)
	}
	for _, x := range list {
		idle := x.row.idle()
		switch { // whoever returns wakes Run
		case !idle && d.dials >= d.cfg.Limits.Dials:
			continue
		case idle && room <= 0:
			wait = min(cmp.Or(wait, recheck), d.cfg.Limits.NearCap) // for sessions that settle nothing nobody wakes it
			continue
		case idle:
			room--
			d.lazy.under++
		default:
			d.dials++
		}
		x.row.dialing = true
		wg.Go(func() { d.dial(ctx, x.device, idle) })
	}
	return wait
}

// dial tries one device, a second time if the network knows where it is now, and plans the next try.
func (d *Delivery) dial(ctx context.Context, device identity.DeviceID, idle bool) {
	attempt, err := d.try(ctx, device)
	attempts := []Attempt{attempt}
	if err != nil && d.locate(ctx, device, err) {
		attempt, err = d.try(ctx, device)
		attempts = append(attempts, attempt)
	}
	now := d.cfg.Now()
	d.mu.Lock()
	if idle {
		d.lazy.under--
	} else {
		d.dials--
	}
	r := d.row(device)
	r.dialing = false
	if err == nil {
		r.tries, r.seen, r.next = 0, now, now.Add(d.cfg.Limits.NearCap)
		if idle {
			r.settles = now
		}
	} else {
		r.next = now.Add(d.pause(r, now))
		r.tries++
	}
	owed := r.owed || r.lazy
	d.mu.Unlock()
	d.poke()
	if err != nil && ctx.Err() == nil && d.cfg.OnFailed != nil {
		d.cfg.OnFailed(device)
	}
	// An idle contact's failures are nobody's question.
	if ctx.Err() == nil && (owed || err == nil) {
		for _, attempt := range attempts {
			if err := d.note(device, attempt); err != nil {
				d.log.Warn("noting an attempt", "error", err)
			}
		}
	}
}

// try makes one attempt.
func (d *Delivery) try(ctx context.Context, device identity.DeviceID) (Attempt, error) {
	attempt := Attempt{Time: d.cfg.Now()}
	if d.cfg.Addr != nil {
		attempt.Addr = d.cfg.Addr(device)
	}
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Limits.Timeout)
	defer cancel()
	err := d.cfg.Sessions.Open(ctx, device)
	if err != nil {
		attempt.Error = err.Error()
	} else if d.cfg.Addr != nil {
		attempt.Addr = d.cfg.Addr(device) // of several it is this one that answered
	}
	attempt.Road = roadOf(attempt.Addr)
	return attempt, err
}

// roadOf says what kind of road an address is.
func roadOf(addr string) Road {
	if strings.Contains(addr, "/p2p-circuit") {
		return RoadRelay
	}
	return RoadDirect
}

// locate asks the network where a device is, if that can help after such an error, and says that something was learnt.
func (d *Delivery) locate(ctx context.Context, device identity.DeviceID, failed error) bool {
	if d.cfg.Locate == nil || ctx.Err() != nil || !lost(failed) {
		return false
	}
	now := d.cfg.Now()
	d.mu.Lock()
	r := d.row(device)
	asked := !r.located.IsZero() && now.Sub(r.located) < locatePause
	idle := r.idle()
	if asked = asked || idle && d.lazy.asking; !asked {
		r.located = now
		d.lazy.asking = d.lazy.asking || idle
	}
	d.mu.Unlock()
	if asked {
		return false
	}
	defer d.asked(idle)
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Limits.Timeout)
	defer cancel()
	if err := d.cfg.Locate(ctx, device); err != nil {
		d.log.Debug("asking where a device is", "device", device.Short(), "error", err)
		return false
	}
	return true
}

// lost says whether an attempt failed because the device was not found where it was looked for.
func lost(err error) bool {
	return errors.Is(err, node.ErrNoAddress) || errors.Is(err, node.ErrUnreachable) || errors.Is(err, node.ErrWrongDevice) ||
		errors.Is(err, context.DeadlineExceeded)
}

// nearShare is the part of the time since a device was lost that a pause may last: who was cut off for two minutes is found
// within fifteen seconds.
const nearShare = 8

// pause is the rule of the table: the road's latency times 2^tries, jittered, capped. Called with mu held.
func (d *Delivery) pause(r *row, now time.Time) time.Duration {
	l := d.cfg.Limits
	limit := l.IdleCap
	if r.idle() {
		return d.lazyPause(r.tries)
	}
	switch {
	case !r.seen.IsZero() && now.Sub(r.seen) < l.Recent:
		limit = l.NearCap
		if !r.owed { // nothing waits for it, and dialling many who are away costs
			limit = max(limit, now.Sub(r.seen)/nearShare)
		}
	case r.owed:
		limit = l.Cap
	}
	pause := l.Latency
	for range r.tries {
		if pause *= 2; pause >= limit {
			break
		}
	}
	return d.jitter(min(pause, limit))
}

// jitter takes up to a quarter off, so that many who wait for one device do not come at the same moment. It never adds:
// the caps are promises.
func (d *Delivery) jitter(t time.Duration) time.Duration {
	return t - time.Duration(rand.Int64N(int64(t)/4+1))
}

// Next says when a device is tried next; zero: no try is planned, because it is connected, or neither owed anything nor
// a contact.
func (d *Delivery) Next(device identity.DeviceID) time.Time {
	if d.cfg.Sessions.Connected(device) {
		return time.Time{}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.table[device]
	switch {
	case r == nil:
		return time.Time{}
	case r.next.IsZero() || r.dialing:
		return d.cfg.Now()
	}
	return r.next
}
