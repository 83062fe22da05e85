package daemon

import (
	"context"
	"sync"
	"time"

	"hima/identity"
)

// The record of an account whose devices cannot be reached, or of which nothing is known yet, is asked for after
// refetchFirst, and then at growing intervals.
const (
	refetchFirst = 3 * time.Second
	refetchLast  = 30 * time.Minute
)

// fetch asks for everything that leads to an account: its record, and those of its devices.
func (u *unlocked) fetch(ctx context.Context, account identity.AccountID) {
	if _, err := u.directory.FetchAccount(ctx, account); err != nil {
		u.log.Debug("asking for an account's record", "account", account.Short(), "err", err)
		if _, known := u.directory.Record(account); !known {
			u.refetched.again(account, u.now()) // nobody else would ask for whom nothing leads to
		}
	}
	for _, d := range u.directory.Devices(account) {
		before, _ := u.directory.DeviceRecord(d)
		rec, err := u.directory.FetchDevice(ctx, d)
		if err != nil {
			u.log.Debug("asking for a device's record", "device", d.Short(), "err", err)
		} else if rec.Seq > before.Seq { // otherwise nothing was learnt, and its next try is planned
			u.delivery.Retry(d)
		}
	}
	u.delivery.Refresh()
}

// onRecord is told of a newer record of an account, whatever brought it. What was written before its devices were known was
// owed to none of them.
func (u *unlocked) onRecord(r identity.AccountRecord) {
	if u.replica == nil {
		return // it is being opened, and works everything out then
	}
	if err := u.replica.DevicesChanged(r.Account); err != nil {
		u.log.Warn("working out what an account lacks", "account", r.Account.Short(), "err", err)
	}
	u.delivery.Refresh()
}

// locate says where a device is. One that nobody finds may have been replaced by another (R21), so that its account is
// asked for as well.
func (u *unlocked) locate(ctx context.Context, device identity.DeviceID) error {
	if account, ok := u.directory.DeviceAccount(device); ok && u.refetched.due(account, u.now()) {
		u.background(func(ctx context.Context) { u.fetch(ctx, account) })
	}
	return u.directory.Locate(ctx, device)
}

// runRefetches asks again for those accounts whose first look-up failed, until ctx ends.
func (u *unlocked) runRefetches(ctx context.Context) error {
	for {
		t := time.NewTimer(u.refetched.wait(u.now()))
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-u.refetched.changed:
			t.Stop()
		case <-t.C:
		}
		for _, a := range u.refetched.take(u.now()) {
			if !u.messenger.Keeps(a) {
				continue
			}
			if !u.background(func(ctx context.Context) { u.fetch(ctx, a) }) {
				u.refetched.again(a, u.now())
			}
		}
	}
}

// refetched says when accounts are asked for next.
type refetched struct {
	mu      sync.Mutex
	at      map[identity.AccountID]refetch // cleared when it is full
	changed chan struct{}                  // another one is wanted; 1 deep
}

type refetch struct {
	next   time.Time
	wait   time.Duration
	wanted bool // it is asked for when its time comes, although nobody misses a device of it
}

// maxRefetched bounds what is remembered; beyond it accounts are only asked for too often.
const maxRefetched = 4096

// due tells whether an account may be asked for now, and if so counts it as done.
func (r *refetched) due(a identity.AccountID, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if last, ok := r.at[a]; ok && now.Before(last.next) {
		return false
	}
	r.postpone(a, now, false)
	return true
}

// again wants an account to be asked for when its time comes.
func (r *refetched) again(a identity.AccountID, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.at[a].wanted {
		return
	}
	r.postpone(a, now, true)
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// postpone is called with the lock held.
func (r *refetched) postpone(a identity.AccountID, now time.Time, wanted bool) {
	last := r.at[a]
	if r.at == nil || len(r.at) >= maxRefetched {
		r.at = map[identity.AccountID]refetch{}
	}
	wait := min(max(3*last.wait, refetchFirst), refetchLast)
	if now.Sub(last.next) > refetchLast { // it was reached meanwhile
		wait = refetchFirst
	}
	r.at[a] = refetch{now.Add(wait), wait, wanted}
}

// wait is how long nobody wanted is due.
func (r *refetched) wait(now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	wait := refetchLast
	for _, at := range r.at {
		if at.wanted {
			wait = min(wait, at.next.Sub(now))
		}
	}
	return max(wait, 0)
}

// take lists those wanted whose time has come, once.
func (r *refetched) take(now time.Time) (due []identity.AccountID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for a, at := range r.at {
		if at.wanted && !now.Before(at.next) {
			at.wanted = false
			r.at[a] = at
			due = append(due, a)
		}
	}
	return due
}
