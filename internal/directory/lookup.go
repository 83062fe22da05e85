package directory

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"hima/identity"
	"hima/node"
)

// ErrNotFound is returned when the networks were asked and nobody had it.
var ErrNotFound = errors.New("no such record was found")

// flights makes one question of what several callers ask at a time.
type flights struct {
	mu sync.Mutex
	m  map[string]*flight
}

type flight struct {
	waiting int // under the lock of flights
	cancel  context.CancelFunc
	done    chan struct{}
	err     error // after done
}

func (f *flights) init() { f.m = map[string]*flight{} }

// do runs ask, or waits for the one that runs under this key. It is cut off when nobody waits any more; the last to leave
// waits for its end, so that nothing goes on behind the callers' backs.
func (f *flights) do(ctx context.Context, key string, ask func(context.Context) error) error {
	f.mu.Lock()
	fl := f.m[key]
	if fl == nil {
		run, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookupTimeout)
		fl = &flight{cancel: cancel, done: make(chan struct{})}
		f.m[key] = fl
		go func() {
			defer close(fl.done)
			defer cancel()
			fl.err = ask(run)
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.m[key] == fl {
				delete(f.m, key)
			}
		}()
	}
	fl.waiting++
	f.mu.Unlock()
	select {
	case <-fl.done:
		return fl.err
	case <-ctx.Done():
	}
	f.mu.Lock()
	fl.waiting--
	last := fl.waiting == 0
	if last && f.m[key] == fl {
		delete(f.m, key) // whoever comes now asks anew
	}
	f.mu.Unlock()
	if last {
		fl.cancel()
		<-fl.done
	}
	return ctx.Err()
}

// found is what one network said.
type found struct {
	raw []byte
	err error
}

// getAll asks every network for a key and hands each record that comes to take. It returns when all have answered, or a
// little after the first had something: what comes later is newer only if the networks disagree, and the next refresh sees
// it. ErrNotFound if nobody had anything, ErrNoNetwork if nobody could be asked.
func (d *Directory) getAll(ctx context.Context, key string, take func(raw []byte) error) error {
	open := d.nets.open()
	if len(open) == 0 {
		return ErrNoNetwork
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan found, len(open))
	var wg sync.WaitGroup
	defer wg.Wait() // after cancel
	defer cancel()
	for _, j := range open {
		wg.Go(func() {
			table := j.dht()
			if table == nil {
				answers <- found{err: ErrNoNetwork}
				return
			}
			raw, err := table.Get(ctx, key)
			answers <- found{raw, err}
		})
	}
	var late <-chan time.Time
	err, taken := ErrNoNetwork, false
	for range open {
		select {
		case a := <-answers:
			switch {
			case a.err == nil:
				if e := take(a.raw); e != nil {
					err = e
				} else {
					taken = true
				}
			case errors.Is(a.err, node.ErrNoRecord):
				err = ErrNotFound
			case errors.Is(a.err, node.ErrAlone), errors.Is(a.err, ErrNoNetwork):
			case errors.Is(err, ErrNoNetwork):
				err = fmt.Errorf("%w: %w", ErrNoNetwork, a.err)
			}
		case <-late:
			return nil
		}
		if taken && late == nil {
			late = time.After(otherNetworks)
		}
	}
	if taken {
		return nil
	}
	return err
}

// FetchDevice asks the joined networks for the record of a device and keeps what is newest. Questions of several callers
// about one device are one. ErrNotFound, ErrNoNetwork.
func (d *Directory) FetchDevice(ctx context.Context, dev identity.DeviceID) (identity.DeviceRecord, error) {
	key := identity.DeviceRecordKey(dev)
	err := d.flights.do(ctx, key, func(ctx context.Context) error {
		return d.getAll(ctx, key, func(raw []byte) error {
			_, err := d.AdmitDevice(ctx, raw)
			return err
		})
	})
	if err != nil {
		return identity.DeviceRecord{}, fmt.Errorf("fetching the record of device %s: %w", dev.Short(), err)
	}
	rec, ok := d.DeviceRecord(dev)
	if !ok {
		return identity.DeviceRecord{}, fmt.Errorf("fetching the record of device %s: %w", dev.Short(), ErrNotFound)
	}
	return rec, nil
}

// FetchAccount does the same for the record of an account.
func (d *Directory) FetchAccount(ctx context.Context, a identity.AccountID) (identity.AccountRecord, error) {
	key := identity.AccountRecordKey(a)
	err := d.flights.do(ctx, key, func(ctx context.Context) error {
		return d.getAll(ctx, key, func(raw []byte) error {
			_, err := d.Admit(ctx, raw)
			return err
		})
	})
	if err != nil {
		return identity.AccountRecord{}, fmt.Errorf("fetching the record of account %s: %w", a.Short(), err)
	}
	rec, ok := d.Record(a)
	if !ok {
		return identity.AccountRecord{}, fmt.Errorf("fetching the record of account %s: %w", a.Short(), ErrNotFound)
	}
	return rec, nil
}

// locations remembers when devices were last looked for, so that a table of retries above cannot make a flood below.
type locations struct {
	mu sync.Mutex
	m  map[identity.DeviceID]location // at most maxLocations
}

type location struct {
	next  time.Time
	err   error // of the last try
	fails int
}

func (l *locations) init() { l.m = map[identity.DeviceID]location{} }

// due tells whether a device may be looked for, or how the last try went.
func (l *locations) due(dev identity.DeviceID, now time.Time) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, ok := l.m[dev]
	return !ok || !now.Before(at.next), at.err
}

func (l *locations) note(dev identity.DeviceID, err error, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, ok := l.m[dev]
	if !ok && len(l.m) >= maxLocations {
		for other := range l.m { // any one: it is looked for a little early
			delete(l.m, other)
			break
		}
	}
	at.err = err
	if err == nil {
		at.fails = 0
	}
	at.next = now.Add(min(locatePause<<min(at.fails, 16), locatePauseMax))
	if err != nil {
		at.fails++
	}
	l.m[dev] = at
}

// forget lets everything be looked for again: the network came back.
func (l *locations) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.m)
}

// Locate finds out where a device can be dialled and tells the node: its record and, of nodes that stand in a table, what
// the table knows. It asks at most once in a while per device and returns the last result in between. ErrNotFound,
// ErrNoNetwork.
func (d *Directory) Locate(ctx context.Context, dev identity.DeviceID) error {
	if ok, err := d.places.due(dev, d.now()); !ok {
		return err
	}
	err := d.flights.do(ctx, "locate/"+string(dev[:]), func(ctx context.Context) error {
		err := d.locate(ctx, dev)
		d.places.note(dev, err, d.now())
		return err
	})
	if err != nil {
		return fmt.Errorf("locating device %s: %w", dev.Short(), err)
	}
	return nil
}

func (d *Directory) locate(ctx context.Context, dev identity.DeviceID) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan error, 2)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		rec, err := d.FetchDevice(ctx, dev)
		if err == nil && len(rec.Addrs) == 0 {
			err = ErrNotFound
		}
		results <- err
	})
	wg.Go(func() { results <- d.findPeer(ctx, dev) })
	first := <-results
	if first == nil {
		return nil
	}
	second := <-results
	if second == nil || errors.Is(first, ErrNoNetwork) {
		return second
	}
	return first
}

// findPeer asks the tables where a device is that stands in them.
func (d *Directory) findPeer(ctx context.Context, dev identity.DeviceID) error {
	err := ErrNoNetwork
	for _, j := range d.nets.open() {
		table := j.dht()
		if table == nil {
			continue
		}
		addrs, e := table.FindPeer(ctx, dev)
		if e == nil && len(addrs) > 0 {
			if d.cfg.Node != nil {
				d.cfg.Node.Remember(dev, addrs)
			}
			return nil
		}
		err = ErrNotFound
	}
	return err
}
