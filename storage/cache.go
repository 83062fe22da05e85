package storage

import "time"

// What the cache may hold before it is written without waiting for a durable write to ride on.
const (
	cacheKeys  = 512
	cacheBytes = 256 << 10
	// cacheDelay is how much of a cache a crash may lose. Long enough that an idle node does not wake the disk often.
	cacheDelay = 5 * time.Second
)

// Cache runs f on the cache: what it writes is seen by every transaction that begins later, and is written together
// with the next durable write, or after five seconds. A crash may lose it, so it is for what can be found out again.
// Keys written here should not be written by Update too: the two are not ordered against each other.
// ErrTooLarge: the disk was full for so long that no more can wait.
func (db *DB) Cache(f func(*Tx) error) error {
	db.cacheMu.Lock()
	defer db.cacheMu.Unlock()
	var next *pending
	err := db.View(func(view *Tx) error {
		next = &pending{}
		if cached := db.cached.Load(); cached != nil {
			next.merge(cached)
		}
		tx := &Tx{snapshot: view.snapshot, most: db.most, own: next, below: view.below, overlay: db.overlays.Add(1)}
		return run(f, tx)
	})
	if err != nil {
		return err
	}
	next.keep()
	if len(next.writes) == 0 {
		return nil
	}
	if next.bytes > db.most.bytes/2 || len(next.writes) > db.most.keys/2 {
		return ErrTooLarge // nothing was written for long; a group begins with what lies here
	}
	next.freeze()
	db.cached.Store(next)
	if len(next.writes) > cacheKeys || next.bytes > cacheBytes {
		db.flushCache()
	} else if db.cacheTimer == nil {
		db.cacheTimer = time.AfterFunc(cacheDelay, func() {
			db.cacheMu.Lock()
			defer db.cacheMu.Unlock()
			db.cacheTimer = nil
			if db.cached.Load() != nil {
				db.flushCache()
			}
		})
	}
	return nil
}

// flushCache makes a group of the cache alone, if no other is under way.
func (db *DB) flushCache() {
	db.Submit(func(*Tx) error { return nil }, nil)
}

// uncache drops from the cache what a group took to the disk, unless it was written anew meanwhile.
func (db *DB) uncache(taken *pending) {
	if taken == nil {
		return
	}
	db.cacheMu.Lock()
	defer db.cacheMu.Unlock()
	now := db.cached.Load()
	if now == taken {
		db.cached.Store(nil)
		return
	}
	rest := &pending{}
	for key, w := range now.writes {
		if taken.writes[key].overlay != w.overlay {
			rest.set(key, w)
		}
	}
	rest.keep()
	rest.freeze()
	db.cached.Store(rest)
}

// commitCached writes the cache when no committer is left to do it.
func (db *DB) commitCached() error {
	group := &pending{}
	group.merge(db.cached.Load())
	return db.commit(group)
}
