package storage

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"
)

// States of an item: a waiting Update may still be withdrawn by its context, a running one may not.
const (
	itemQueued int32 = iota
	itemRunning
	itemWithdrawn
)

// item is one function waiting for the committer.
type item struct {
	f     func(*Tx) error
	done  func(error)
	state atomic.Int32
	tx    *Tx
	err   error
}

// carried is an overlay that has run but did not fit into its group. Its writes open the next one. The function is not
// run again, because it may have had effects of its own.
type carried struct {
	item   *item
	writes []undo
}

// Update runs f on an overlay and returns when what it wrote is on disk, or with the error because of which nothing of
// it is. When ctx ends before f began, f never runs. Many callers at once share one sync.
func (db *DB) Update(ctx context.Context, f func(*Tx) error) error {
	result := make(chan error, 1)
	it := &item{f: f, done: func(err error) { result <- err }}
	if err := db.enqueue(it); err != nil {
		return err
	}
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
	}
	if it.state.CompareAndSwap(itemQueued, itemWithdrawn) {
		return ctx.Err()
	}
	return <-result
}

// Submit is Update without waiting. Functions run in the order in which they were submitted, and done, which may be
// nil, is called in that order after the sync, or with the error. It never runs on the caller's stack, also not when the
// database is closed or has failed: whoever submits may hold locks that done takes.
func (db *DB) Submit(f func(*Tx) error, done func(error)) {
	if done == nil {
		done = func(error) {}
	}
	if err := db.enqueue(&item{f: f, done: done}); err != nil {
		go done(err)
	}
}

// SubmitHere is Submit for who holds no lock that done takes: if nothing is under way, f is committed and done is called on
// the caller's stack, before it returns. A lone write is spared the way to another goroutine and back.
func (db *DB) SubmitHere(f func(*Tx) error, done func(error)) {
	if !db.stepIn() {
		db.Submit(f, done)
		return
	}
	if done == nil {
		done = func(error) {}
	}
	returned := false
	defer func() {
		if !returned {
			db.abandon()
		}
	}()
	db.commitGroup(&item{f: f, done: done})
	db.stepOut()
	returned = true
}

// stepIn makes the caller the committer if there is nothing to do for one.
func (db *DB) stepIn() bool {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.running || db.closing || db.failed != nil {
		return false
	}
	db.running = true
	return true
}

// stepOut leaves what came meanwhile to a committer of its own.
func (db *DB) stepOut() {
	db.mu.Lock()
	defer db.mu.Unlock()
	if len(db.queue) > 0 || db.carry != nil {
		db.start()
		return
	}
	db.running = false
	db.idle.Broadcast()
}

// start lets a committer begin. Called with mu held.
func (db *DB) start() {
	db.running = true
	if !db.resting {
		go db.commitLoop()
		return
	}
	db.resting = false
	db.wake <- struct{}{}
}

func (db *DB) enqueue(it *item) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closing {
		return ErrClosed
	}
	if db.failed != nil {
		return db.failed
	}
	db.queue = append(db.queue, it)
	if !db.running {
		db.start()
	}
	return nil
}

// restTime is how long a committer that has nothing to do stays. A fresh goroutine would have to grow its stack anew for
// each message of a conversation, which is a few percent of what a message takes.
const restTime = time.Second

// rest waits for something to commit and tells whether there is; false: for too long, or the database closes.
func (db *DB) rest() bool {
	t := time.NewTimer(restTime)
	defer t.Stop()
	woken := false
	select {
	case <-db.wake:
		woken = true
	case <-t.C:
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	if !woken {
		select {
		case <-db.wake: // it came while the time ran out
			woken = true
		default:
		}
	}
	if !woken {
		db.resting = false // somebody else may be at work
		return false
	}
	return db.running
}

// commitLoop is the committer. It lives while there is something to commit, and a little longer.
func (db *DB) commitLoop() {
	returned := false
	defer func() {
		if !returned {
			// A function ended the goroutine (testing.T.FailNow does). Nothing of its group is committed.
			db.abandon()
		}
	}()
	for {
		db.mu.Lock()
		if len(db.queue) == 0 && db.carry == nil {
			db.running = false
			db.queue = nil
			db.resting = !db.closing
			resting := db.resting
			db.idle.Broadcast()
			db.mu.Unlock()
			if resting && db.rest() {
				continue
			}
			returned = true
			return
		}
		db.mu.Unlock()
		db.commitGroup(nil)
	}
}

// abandon refuses all that waits, so that nobody hangs.
func (db *DB) abandon() {
	db.mu.Lock()
	db.failed = fmt.Errorf("a function left the committer: %w", ErrFailed)
	queue := db.queue
	db.queue, db.running, db.carry = nil, false, nil
	db.idle.Broadcast()
	db.mu.Unlock()
	for _, it := range queue {
		it.done(db.failed)
	}
}

// pop takes the next function that was not withdrawn.
func (db *DB) pop() *item {
	db.mu.Lock()
	defer db.mu.Unlock()
	for len(db.queue) > 0 {
		it := db.queue[0]
		db.queue[0] = nil
		db.queue = db.queue[1:]
		if it.state.CompareAndSwap(itemQueued, itemRunning) {
			return it
		}
	}
	return nil
}

// commitGroup runs waiting functions until there are none or the group is full, commits, and calls back. With only, the
// group is that one.
func (db *DB) commitGroup(only *item) {
	group := &pending{}
	base := db.cached.Load()
	if base != nil {
		group.merge(base)
	}
	var items []*item
	defer func() {
		// Only a function that ended the goroutine leaves items behind here.
		for _, it := range items {
			it.done(ErrFailed)
		}
	}()
	if c := db.carry; c != nil {
		db.carry = nil
		for _, u := range c.writes {
			group.set(u.key, u.old)
		}
		group.keep()
		items = append(items, c.item)
	}
	refused := db.broken()
	if refused == nil && db.diskFull() {
		refused = ErrDiskFull
	}
	snapshot, below := &snapshot{db: db.badger}, db.published()
	defer snapshot.discard()
	most := maxGroupFuncs
	if only != nil {
		most = 1
	}
	for len(items) == 0 || len(items) < most && group.bytes < db.most.bytes && len(group.writes) < db.most.keys {
		it := only
		if only == nil {
			it = db.pop()
		}
		if it == nil {
			break
		}
		items = append(items, it)
		if refused != nil {
			it.err = refused
			continue
		}
		it.tx = &Tx{snapshot: snapshot, own: group, below: below, recent: &db.recent, most: db.most, overlay: db.overlays.Add(1)}
		it.err = run(it.f, it.tx)
		switch {
		case it.err != nil:
			group.take()
		case group.bytes > db.most.bytes || len(group.writes) > db.most.keys:
			db.carry = &carried{item: it, writes: group.take()}
			items = items[:len(items)-1]
		default:
			group.keep()
		}
		if db.carry != nil {
			break
		}
	}
	err := refused
	if err == nil {
		err = db.commit(group)
	}
	if err == nil {
		db.recent.committed(group)
		db.uncache(base)
	}
	finished := items
	items = nil
	for _, it := range finished {
		db.finish(it, err)
	}
	// Whoever waits was told first, and goes first on this processor, for which nobody has to wake another: joining may copy a
	// thousand rows.
	runtime.Gosched()
	before := db.published()
	if l := before.joined(db.fixed()); len(l) < len(before) {
		db.publish(l)
	}
}

// run calls f, turning a panic into an error, and ends the Tx.
func run(f func(*Tx) error, tx *Tx) (err error) {
	defer func() {
		tx.ended = true
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v\n%s", ErrPanic, p, debug.Stack())
		}
	}()
	if err := f(tx); err != nil {
		return err
	}
	return tx.failed
}

// finish calls back for one item.
func (db *DB) finish(it *item, commitErr error) {
	if it.err == nil {
		it.err = commitErr
	}
	if it.err == nil && it.tx != nil {
		for _, hook := range it.tx.hooks {
			hook()
		}
	}
	it.done(it.err)
}

// commit makes a group durable. When that fails nobody knows what the disk holds, so
// nothing more is written until the database is opened anew.
func (db *DB) commit(group *pending) error {
	if len(group.writes) == 0 {
		return nil
	}
	begun := time.Now()
	err := db.write(group)
	if err != nil {
		return db.refuse(err)
	}
	db.stats.note(len(group.writes), time.Since(begun))
	return nil
}

// refuse makes the database refuse everything from here on, and returns the error that it does so with.
func (db *DB) refuse(err error) error {
	err = errors.Join(ErrFailed, err)
	db.log.Error("committing", "error", err)
	db.mu.Lock()
	defer db.mu.Unlock()
	db.failed = err
	return err
}

// write puts a group into the journal if it is small, and else into Badger, on top of what the journal holds.
func (db *DB) write(group *pending) error {
	if err := db.settle(false); err != nil {
		return err
	}
	small := db.journal.takes(group)
	var err error
	switch {
	case !small:
		err = db.flush()
	case !db.journal.fits(group):
		err = db.rotate()
	}
	if err != nil {
		return err
	}
	if err := db.fail("before-commit"); err != nil {
		return err
	}
	if small {
		if err := db.journal.append(group); err != nil {
			return err
		}
	} else if err := db.commitBadger(group); err != nil {
		return err
	}
	if err := db.fail("after-commit"); err != nil {
		return err
	}
	if small {
		db.publish(db.published().with(group))
	}
	return nil
}

// commitBadger writes as one transaction of Badger, and syncs it.
func (db *DB) commitBadger(group *pending) error {
	txn := db.badger.NewTransaction(true)
	defer txn.Discard()
	for key, w := range group.writes {
		var err error
		if w.deleted {
			err = txn.Delete([]byte(key))
		} else {
			err = txn.Set([]byte(key), w.value)
		}
		if err != nil {
			return fmt.Errorf("filling a transaction: %w", err)
		}
	}
	if err := txn.Commit(); err != nil {
		return fmt.Errorf("committing: %w", err)
	}
	if db.unsynced.Load() {
		return errors.New("committing: the value log was not synced")
	}
	return nil
}

func (db *DB) fail(point string) error {
	if db.config.Fail == nil {
		return nil
	}
	if err := db.config.Fail(point); err != nil {
		return fmt.Errorf("failing at %s: %w", point, err)
	}
	return nil
}
