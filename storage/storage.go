package storage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

// Sizes of the lean configuration; DESIGN.md says what they cost.
const (
	memTableSize = 8 << 20
	valueLogSize = 16 << 20
	// valueThreshold is from where on a value goes to the value log and is not copied from table to table any more.
	valueThreshold = 5 << 10
	blockCacheSize = 4 << 20
	// Without an index cache Badger panics at the first flush of an encrypted database.
	indexCacheSize = 4 << 20
	// Few tables in level 0 cost no less memory and compact more: with 2 and 6 a message costs a sixth more CPU.
	levelZeroTables = 5
	levelZeroStall  = 15
	// levelZeroLate is how many there may be at a start before the compaction begins at once; see patience.
	levelZeroLate = 10

	// Badger takes 15 % of a memtable in one transaction, counted in bytes and in entries of about 96 bytes each. This is
	// what it takes with the size above.
	maxGroupBytes = memTableSize * 14 / 100
	maxGroupKeys  = 12_000
	// maxGroupFuncs bounds how long the first of a group waits for the last.
	maxGroupFuncs = 1024

	// minMemTable is of what Badger takes two epochs of the journal at once, as a process that did not close may leave them.
	minMemTable = 6 << 20

	// defaultMinFree is what flushing both memtables and compacting one level may need, with a margin. Badger writes
	// through memory maps of sparse files, where a full disk is a signal that kills the process and not an error, so
	// it must never come to that.
	defaultMinFree = 96 << 20
	// spaceEvery bounds how often free space is asked for.
	spaceEvery = 200 * time.Millisecond

	// gcEvery is how often the value log is looked at. Hardly anything there ever changes.
	gcEvery = 10 * time.Minute

	// releaseEvery is how often resident pages are looked at; it costs microseconds.
	releaseEvery = 30 * time.Second
	// releaseAbove is how much of mapped files may stay resident, the program's own code included, before the pages of
	// tables and value logs are given back. A compaction walks through all of them, and an idle node would hold them for ever after.
	releaseAbove = 44 << 20
)

// Config says what to open.
type Config struct {
	Dir        string                   // folder, made if missing; empty: in memory
	Key        []byte                   // 32 bytes; nil only in memory
	Logger     *slog.Logger             // nil: nothing is logged
	Migrations []Migration              // ascending versions
	MemTable   int64                    // bytes of each of two memtables, of which one function may write a seventh; 0: 8 MiB, at least 6
	MinFree    uint64                   // bytes of disk below which writes are refused; 0: 96 MiB
	Fail       func(point string) error // tests: called at "before-" and "after-" "commit" and "flush"; an error acts like a crash there
}

// bounds are what one transaction of Badger takes.
type bounds struct{ bytes, keys int }

func (c Config) check() error {
	if c.Dir != "" && len(c.Key) != 32 {
		return fmt.Errorf("checking the configuration: key of %d bytes", len(c.Key))
	}
	if c.MemTable != 0 && c.MemTable < minMemTable {
		return fmt.Errorf("checking the configuration: memtables of %d bytes", c.MemTable)
	}
	last := baseVersion
	for _, m := range c.Migrations {
		if m.Version <= last || m.Apply == nil {
			return fmt.Errorf("checking the configuration: migration %d %q out of order", m.Version, m.Name)
		}
		last = m.Version
	}
	return nil
}

// DB is an open database.
type DB struct {
	badger  *badger.DB
	config  Config
	log     *slog.Logger
	release func() error // lets go of the folder
	most    bounds       // of a group

	mu      sync.Mutex    // guards the fields below
	idle    *sync.Cond    // signalled when running or readers change
	wake    chan struct{} // one slot; filled by whoever ends resting
	queue   []*item
	running bool // a committer is at work
	resting bool // or waits for work, on wake
	closing bool
	closed  bool
	readers int
	failed  error

	cacheMu    sync.Mutex // serialises Cache
	cached     atomic.Pointer[pending]
	cacheTimer *time.Timer // guarded by cacheMu

	overlays atomic.Uint64
	unsynced atomic.Bool // Badger could not sync and only logged it
	layers   atomic.Pointer[layers]

	// The committer's own; handed from one committer to the next under mu.
	carry     *carried
	journal   journal
	moving    *move // nil: none
	recent    recent
	spaceAt   time.Time
	spaceFull bool

	stats stats
}

// Open opens or makes the database, and brings its schema up to date.
func Open(config Config) (*DB, error) {
	if err := config.check(); err != nil {
		return nil, err
	}
	db := &DB{config: config, log: config.Logger, release: func() error { return nil }}
	db.idle = sync.NewCond(&db.mu)
	db.wake = make(chan struct{}, 1)
	if db.log == nil {
		db.log = slog.New(slog.DiscardHandler)
	}
	if db.config.MemTable == 0 {
		db.config.MemTable = memTableSize
	}
	share := float64(db.config.MemTable) / memTableSize
	db.most = bounds{bytes: int(share * maxGroupBytes), keys: int(share * maxGroupKeys)}
	if db.config.MinFree == 0 {
		db.config.MinFree = defaultMinFree
	}
	if config.Dir != "" {
		if err := db.claim(); err != nil {
			return nil, err
		}
	}
	if err := db.open(); err != nil {
		return nil, errors.Join(err, db.release())
	}
	if err := db.prepare(); err != nil {
		// What the journal holds stays there: nothing is changed in a database that was not opened.
		db.mu.Lock()
		db.failed = errors.Join(ErrFailed, err)
		db.mu.Unlock()
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// prepare takes up the journal and brings the schema up to date.
func (db *DB) prepare() error {
	known, err := db.openJournal()
	if err == nil {
		err = db.migrate()
	}
	if err == nil && !known {
		err = db.claimJournal()
	}
	return err
}

// claim makes the folder and takes the lock on it, before Badger touches anything.
func (db *DB) claim() error {
	dir := db.config.Dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the database folder: %w", err)
	}
	release, err := lockFolder(filepath.Join(dir, "hima.lock"))
	if err != nil {
		return err
	}
	db.release = release
	if missing(dir) {
		return errors.Join(fmt.Errorf("opening the database: manifest is missing: %w", ErrDamaged), release())
	}
	if db.diskFull() {
		return errors.Join(ErrDiskFull, release())
	}
	if err := dropEmptyLogs(dir); err != nil {
		return errors.Join(err, release())
	}
	return nil
}

// open starts Badger. It panics on some kinds of damage instead of saying so.
func (db *DB) open() (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("opening the database: %v: %w", p, ErrDamaged)
		}
	}()
	o := badger.DefaultOptions(db.config.Dir).
		WithLogger(badgerLog{db.log, &db.unsynced}).
		WithInMemory(db.config.Dir == "").
		WithBypassLockGuard(true).
		WithSyncWrites(db.config.Dir != "").
		WithMemTableSize(db.config.MemTable).
		WithNumMemtables(2).
		WithValueLogFileSize(valueLogSize).
		WithVerifyValueChecksum(true).
		WithBlockCacheSize(blockCacheSize).
		WithIndexCacheSize(indexCacheSize).
		WithNumCompactors(2).
		WithNumLevelZeroTables(patience(levelZeroTablesOf(db.config.Dir))).
		WithNumLevelZeroTablesStall(levelZeroStall).
		WithNumGoroutines(2).
		WithCompression(options.None).
		WithMetricsEnabled(false).
		WithDetectConflicts(false).
		WithValueThreshold(min(1<<20, int64(db.most.bytes))) // in memory there is no value log
	if db.config.Dir != "" {
		o = o.WithEncryptionKey(db.config.Key).WithValueThreshold(valueThreshold)
	} else {
		// What lies in memory lives as long as a test. Compactors look around forty times a second, which is a quarter of the
		// processor that a simulation of many members takes.
		o = o.WithNumCompactors(0).WithNumLevelZeroTablesStall(math.MaxInt32)
	}
	b, err := badger.Open(o)
	if err != nil {
		return fmt.Errorf("opening the database: %w", openError(err))
	}
	db.badger = b
	db.adviseReading()
	return nil
}

// adviseReading says how value logs are read, those too that were begun since it was last called. Nothing depends on it but time.
func (db *DB) adviseReading() {
	if db.config.Dir == "" {
		return
	}
	if err := readScattered(db.config.Dir); err != nil {
		db.log.Debug("saying how value logs are read", "error", err)
	}
}

// Close waits for running reads and for all writes submitted so far, and closes the files. Calls after it get
// ErrClosed.
func (db *DB) Close() error {
	db.mu.Lock()
	if db.closing {
		db.mu.Unlock()
		return nil
	}
	db.closing = true
	for db.running || db.readers > 0 {
		db.idle.Wait()
	}
	if db.resting {
		db.resting = false
		db.wake <- struct{}{}
	}
	db.mu.Unlock()

	if err := db.settle(true); err != nil {
		db.log.Warn("emptying the journal", "error", err)
	}
	// Cached writes nothing carried to disk yet.
	db.cacheMu.Lock()
	if db.cacheTimer != nil {
		db.cacheTimer.Stop()
	}
	db.cacheMu.Unlock()
	if db.cached.Load() != nil && db.broken() == nil && !db.diskFull() {
		if err := db.commitCached(); err != nil {
			db.log.Warn("writing the cache", "error", err)
		}
	}
	if db.broken() == nil && !db.diskFull() {
		if err := db.leave(); err != nil {
			db.log.Warn("leaving the journal", "error", err)
		}
	}
	db.mu.Lock()
	db.closed = true
	db.mu.Unlock()
	var err error
	if cerr := db.badger.Close(); cerr != nil {
		err = fmt.Errorf("closing the database: %w", cerr)
	}
	return errors.Join(err, db.journal.close(), db.release())
}

// View runs f on a snapshot. Nested calls are allowed.
func (db *DB) View(f func(*Tx) error) error {
	db.mu.Lock()
	if db.closing {
		db.mu.Unlock()
		return ErrClosed
	}
	db.readers++
	db.mu.Unlock()
	defer func() {
		db.mu.Lock()
		db.readers--
		if db.readers == 0 {
			db.idle.Broadcast()
		}
		db.mu.Unlock()
	}()
	tx := db.reader()
	defer tx.snapshot.discard()
	return f(tx)
}

// RunMaintenance collects garbage of the value log, gives back the pages of tables that nobody reads any more, and says how
// new value logs are read, on timers, until ctx ends.
func (db *DB) RunMaintenance(ctx context.Context) error {
	if db.config.Dir == "" {
		<-ctx.Done()
		return nil
	}
	collect, release := time.NewTicker(gcEvery), time.NewTicker(releaseEvery)
	defer collect.Stop()
	defer release.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-release.C:
			db.adviseReading()
			db.releaseIdle()
		case <-collect.C:
			for db.collect() && ctx.Err() == nil {
			}
		}
	}
}

// releaseIdle gives back the pages of tables if there are many. What is in use is read again at the next access.
func (db *DB) releaseIdle() {
	resident, err := mappedResident()
	if err == nil && resident > releaseAbove {
		err = releaseTables(db.config.Dir)
	}
	if err != nil {
		db.log.Debug("giving back the pages of tables", "error", err)
	}
}

// collect rewrites one value log file if half of it is garbage, and says whether it did.
func (db *DB) collect() bool {
	db.mu.Lock()
	if db.closing {
		db.mu.Unlock()
		return false
	}
	db.readers++ // keeps Close waiting
	db.mu.Unlock()
	err := db.badger.RunValueLogGC(0.5)
	db.mu.Lock()
	db.readers--
	db.idle.Broadcast()
	db.mu.Unlock()
	if err != nil && !errors.Is(err, badger.ErrNoRewrite) && !errors.Is(err, badger.ErrRejected) {
		db.log.Warn("collecting the value log", "error", err)
	}
	return err == nil
}

// broken returns why writes are refused, or nil.
func (db *DB) broken() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.failed
}

// diskFull asks the file system, at most every spaceEvery. It is called by the committer, and by Open and Close when
// there is none.
func (db *DB) diskFull() bool {
	if db.config.Dir == "" {
		return false
	}
	if now := time.Now(); now.Sub(db.spaceAt) >= spaceEvery || now.Before(db.spaceAt) {
		free, err := freeSpace(db.config.Dir)
		full := err == nil && free < db.config.MinFree
		if full && !db.spaceFull {
			db.log.Error("disk is full, writes are refused", "free", free, "needed", db.config.MinFree)
		}
		db.spaceAt, db.spaceFull = now, full
	}
	return db.spaceFull
}
