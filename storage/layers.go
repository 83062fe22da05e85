package storage

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"
)

// layers are the groups that are in the journal and not in Badger yet, newest first. A published one never changes, so
// that reading needs no lock. Neighbours of about one size are joined, so there are few of them and each write is copied a
// few times at most.
type layers []*pending

// with returns the layers with a group on top.
func (l layers) with(group *pending) layers {
	group.freeze()
	return append(layers{group}, l...)
}

// joined returns layers that say the same and are fewer; as many at the bottom as fixed says stay what they are.
func (l layers) joined(fixed int) layers {
	for len(l)-fixed > 1 && 2*len(l[0].writes) >= len(l[1].writes) {
		l = append(layers{joined(l[1], l[0])}, l[2:]...)
	}
	return l
}

// flat returns one set of writes that says what the layers say.
func (l layers) flat() *pending {
	all := &pending{}
	for i := len(l) - 1; i >= 0; i-- {
		all.merge(l[i])
	}
	return all
}

func (db *DB) published() layers {
	if l := db.layers.Load(); l != nil {
		return *l
	}
	return nil
}

func (db *DB) publish(l layers) { db.layers.Store(&l) }

// snapshot is a reading transaction of Badger that begins when it is first asked for: it wakes two of Badger's
// goroutines, and most small groups find what they read elsewhere.
type snapshot struct {
	db  *badger.DB
	txn *badger.Txn
}

func (s *snapshot) get() *badger.Txn {
	if s.txn == nil {
		s.txn = s.db.NewTransaction(false)
	}
	return s.txn
}

func (s *snapshot) discard() {
	if s.txn != nil {
		s.txn.Discard()
	}
}

// reader returns a view of what is on disk now. The three places that it looks at do not change together: what moves from
// the cache to the layers, and from there to Badger, is looked for where it came from first, and so seen twice and
// not never. But old layers must not lie on top of what was written to Badger after they had moved there, so if they
// changed while the snapshot was taken, it is taken again.
func (db *DB) reader() *Tx {
	for {
		cached, before := db.cached.Load(), db.layers.Load()
		s, ok := db.snapshotUnder(before)
		if !ok {
			continue
		}
		tx := &Tx{snapshot: s}
		if cached != nil {
			tx.below = append(tx.below, cached)
		}
		if before != nil {
			tx.below = append(tx.below, *before...)
		}
		return tx
	}
}

// snapshotUnder takes a snapshot of Badger that fits under layers; ok is false if they were replaced meanwhile.
func (db *DB) snapshotUnder(l *layers) (s *snapshot, ok bool) {
	s = &snapshot{db: db.badger}
	s.get()
	if db.layers.Load() != l {
		s.discard()
		return nil, false
	}
	return s, true
}

// openJournal takes up what a process that did not close left in the journal, and says whether Badger knows of one.
func (db *DB) openJournal() (known bool, err error) {
	if db.config.Dir == "" {
		return true, nil
	}
	var epoch uint64
	err = db.View(func(tx *Tx) error {
		raw, err := tx.Get([]byte(journalKey))
		switch {
		case errors.Is(err, ErrNotFound):
			return nil
		case err == nil && len(raw) != 8:
			return fmt.Errorf("epoch of the journal: %w", ErrDamaged)
		case err == nil:
			epoch, known = binary.BigEndian.Uint64(raw), true
		}
		return err
	})
	if err != nil {
		return known, err
	}
	left, err := db.journal.open(db.config.Dir, db.config.Key, epoch, known)
	if err != nil {
		return known, err
	}
	if len(left.writes) > 0 {
		db.log.Info("taking up the journal", "writes", len(left.writes))
		db.publish(layers(nil).with(left))
	}
	if !db.journal.single {
		return known, nil
	}
	// The next epoch may not be written over this one, as a file without halves would have it.
	if err := db.flush(); err != nil {
		return known, err
	}
	return known, db.journal.divide()
}

// claimJournal makes Badger know that there is a journal, after which the file must not be missing.
func (db *DB) claimJournal() error {
	claim := &pending{}
	claim.set(journalKey, write{value: binary.BigEndian.AppendUint64(nil, db.journal.epoch)})
	return db.commitBadger(claim)
}

// move is an epoch of the journal on its way to Badger. Until it is settled, everything in it reads the same in both places.
type move struct {
	layers int           // that it takes, the lowest
	done   chan struct{} // closed when err is set
	err    error
}

// fixed is how many of the lowest layers are being moved.
func (db *DB) fixed() int {
	if db.moving == nil {
		return 0
	}
	return db.moving.layers
}

// rotate begins the next epoch of the journal in the other half of its file, and moves this one to Badger while the committer
// goes on: whoever writes at that moment would wait for some milliseconds otherwise.
func (db *DB) rotate() error {
	if err := db.settle(true); err != nil {
		return err
	}
	if db.journal.taken {
		return db.flush()
	}
	m := &move{layers: len(db.published()), done: make(chan struct{})}
	all, next := db.published(), db.journal.epoch+1
	if err := db.journal.begin(next, db.journal.count); err != nil {
		return err
	}
	db.moving = m
	go func() {
		defer close(m.done)
		if m.err = db.take(all.flat(), next); m.err != nil {
			db.refuse(fmt.Errorf("emptying the journal: %w", m.err))
		}
	}()
	return nil
}

// settle ends a move that is done, and with wait one that is not. It reports its error.
func (db *DB) settle(wait bool) error {
	m := db.moving
	if m == nil {
		return nil
	}
	if !wait {
		select {
		case <-m.done:
		default:
			return nil
		}
	}
	<-m.done
	db.moving = nil
	if m.err != nil {
		return m.err
	}
	l := db.published()
	db.publish(l[:len(l)-m.layers])
	return nil
}

// flush moves all that is in the journal to Badger and returns when it is there.
func (db *DB) flush() error {
	if err := db.settle(true); err != nil {
		return err
	}
	all, next := db.published().flat(), db.journal.epoch+1
	if len(all.writes) == 0 {
		return nil
	}
	if err := db.take(all, next); err != nil {
		return err
	}
	db.publish(nil)
	return db.journal.begin(next, db.journal.count)
}

// take gives Badger what an epoch holds, and with it the number of the next one.
func (db *DB) take(all *pending, next uint64) error {
	if err := db.fail("before-flush"); err != nil {
		return err
	}
	if db.config.Dir != "" {
		all.set(journalKey, write{value: binary.BigEndian.AppendUint64(nil, next)})
	}
	if err := db.commitBadger(all); err != nil {
		return err
	}
	return db.fail("after-flush")
}

// leave ends the journal at a clean end. Whatever is given to Badger becomes a table when it closes, and a few tables of two
// rows each are enough to set off a compaction when somebody is waiting for his first screen; so a journal with room in it
// is left to the next process. The empty record behind the others shows damage in the last of them for what it is.
func (db *DB) leave() error {
	// The cache, which was written last, may have begun a move.
	if err := db.settle(true); err != nil {
		return err
	}
	switch {
	case len(db.published()) == 0:
		return nil
	case db.journal.crowded():
		return db.flush()
	}
	return db.journal.append(&pending{})
}
