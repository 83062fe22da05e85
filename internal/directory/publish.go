package directory

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"hima/identity"
	"hima/node"
)

// item is something of our own that a network is to hold.
type item struct {
	key string
	raw []byte
	// meet is given what the network holds instead, when that is another record which is valid.
	meet func(ctx context.Context, raw []byte)
	// look first whether the network holds another, before that is overwritten: a device that was restored learns there
	// which devices it had (R21).
	look bool
	name bool
}

// itemState is how an item stands in one network.
type itemState struct {
	raw   []byte    // what was put
	seen  time.Time // when others were last seen to hold it; zero: never
	again bool      // and it was put a second time
	fails int
	next  time.Time
}

// errNotStored is the reason for another try: the put succeeded, and too few of the closest nodes hold the record.
var errNotStored = errors.New("too few of the closest nodes hold the record")

// ownItems are what this device publishes: its account's record, its own, and the name it goes by.
func (d *Directory) ownItems(j *joined) []item {
	now := d.now()
	var items []item
	if r, ok := d.Record(d.self); ok && !r.Expired(now) {
		items = append(items, item{key: identity.AccountRecordKey(d.self), raw: r.Raw(), look: true, meet: func(ctx context.Context, raw []byte) {
			if _, err := d.Admit(ctx, raw); err != nil {
				d.log.Debug("taking the own account record from a network", "error", err)
			}
		}})
	}
	if r := d.own.record(); !r.IsZero() && !r.Expired(now) {
		items = append(items, item{key: identity.DeviceRecordKey(r.Device), raw: r.Raw(), meet: func(_ context.Context, raw []byte) {
			if r, err := identity.ParseDeviceRecord(raw); err == nil {
				d.own.met(r)
			}
		}})
	}
	if r, ok := d.names.record(j.id); ok {
		items = append(items, item{key: identity.NameKey(j.id, r.Claim.Name), raw: r.Raw(), name: true, meet: func(ctx context.Context, raw []byte) {
			if r, err := identity.ParseNameRecord(raw); err == nil {
				d.rival(ctx, j, r)
			}
		}})
	}
	return items
}

// publishLoop puts the own records: when there are others in the table, whenever one changed, and every 12 hours.
func (d *Directory) publishLoop(ctx context.Context, j *joined, table dht) {
	for {
		wait := peerPoll
		if table.Peers() > 0 {
			wait = d.publishDue(ctx, j, table)
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-j.wake:
			t.Stop()
		case <-t.C:
		}
	}
}

// publishDue puts what is due and returns how long nothing will be.
func (d *Directory) publishDue(ctx context.Context, j *joined, table dht) time.Duration {
	items := d.ownItems(j)
	j.mu.Lock()
	for key := range j.items { // the name of before
		if !slices.ContainsFunc(items, func(it item) bool { return it.key == key }) {
			delete(j.items, key)
		}
	}
	j.mu.Unlock()
	wait := republish
	for _, it := range items {
		st := j.item(it.key)
		if !bytes.Equal(st.raw, it.raw) {
			st = itemState{raw: it.raw}
			j.setItem(it.key, st)
		}
		if !d.now().Before(st.next) {
			err := d.publish(ctx, table, it)
			if ctx.Err() != nil {
				return 0
			}
			st = settled(st, err, d.now())
			j.setItem(it.key, st)
			d.log.Debug("published", "network", j.id.Short(), "key", it.key, "error", err)
		}
		wait = min(wait, st.next.Sub(d.now()))
	}
	if d.newlyPublished(j, items) {
		d.tellNetwork(j, "published")
	}
	return max(wait, time.Second)
}

// published is since when at the latest others hold the own records as they are now: the earliest of the times when each
// was last seen stored, or zero while a newer one is to be made or one was not seen. A name is left out: it may be fought
// over, and its own state tells that.
func (d *Directory) published(j *joined) time.Time {
	if d.signs() && d.own.pending() {
		return time.Time{}
	}
	items := d.ownItems(j)
	j.mu.Lock()
	defer j.mu.Unlock()
	var at time.Time
	for _, it := range items {
		if it.name {
			continue
		}
		st := j.items[it.key]
		if st.seen.IsZero() || !bytes.Equal(st.raw, it.raw) {
			return time.Time{}
		}
		if at.IsZero() || st.seen.Before(at) {
			at = st.seen
		}
	}
	return at
}

// newlyPublished tells once, for each set of own items, that all of them were seen stored.
func (d *Directory) newlyPublished(j *joined, items []item) bool {
	if d.published(j).IsZero() {
		return false
	}
	hash := sha256.New()
	for _, it := range items {
		if it.name && !j.item(it.key).seen.IsZero() || !it.name {
			hash.Write(it.raw)
		}
	}
	now := [sha256.Size]byte(hash.Sum(nil))
	j.mu.Lock()
	defer j.mu.Unlock()
	news := j.told != now
	j.told = now
	return news
}

// settled says when an item is due next: after half a day, less what keeps all devices of an account from doing it at one
// time, or after a pause that doubles.
func settled(st itemState, err error, now time.Time) itemState {
	if err == nil {
		st.next = now.Add(republish - rand.N(republish/12))
		if !st.again {
			// In a young network, and with a young table, the nodes that seemed closest were not always.
			st.again, st.next = true, now.Add(putAgain/2+rand.N(putAgain))
		}
		st.fails, st.seen = 0, now
		return st
	}
	st.next = now.Add(min(publishPause<<min(st.fails, 16), publishPauseMax))
	st.fails++
	return st
}

func (j *joined) item(key string) itemState {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.items[key]
}

func (j *joined) setItem(key string, st itemState) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.items[key] = st
}

// publish puts one record and makes sure that others hold it: a put swallows their refusals.
func (d *Directory) publish(ctx context.Context, table dht, it item) error {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	if it.look {
		if raw, err := table.Get(ctx, it.key); err == nil && !bytes.Equal(raw, it.raw) {
			it.meet(ctx, raw)
		}
	}
	err := table.Put(ctx, it.key, it.raw)
	if errors.Is(err, node.ErrOldRecord) {
		if raw, e := table.Get(ctx, it.key); e == nil && !bytes.Equal(raw, it.raw) {
			it.meet(ctx, raw)
		}
	}
	if err != nil {
		return fmt.Errorf("putting a record: %w", err)
	}
	answers, err := table.Ask(ctx, it.key)
	if err != nil {
		return fmt.Errorf("verifying a put: %w", err)
	}
	held := 0
	for _, a := range answers {
		switch {
		case bytes.Equal(a.Value, it.raw):
			held++
		case a.Value != nil:
			it.meet(ctx, a.Value)
		}
	}
	// With a third of the closest nodes it outlives churn and finds its way past some that lie; one may be the liar itself.
	if held == 0 || held < len(answers)/3 {
		return fmt.Errorf("%w: %d of %d", errNotStored, held, len(answers))
	}
	return nil
}

// nudgeAll lets every network look at what is due.
func (d *Directory) nudgeAll() {
	for _, j := range d.nets.list() {
		j.nudge()
	}
}
