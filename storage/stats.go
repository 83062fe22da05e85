package storage

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"
)

// Stats is what a status line and the benchmarks want to know.
type Stats struct {
	Commits    uint64        // synced transactions
	Writes     uint64        // keys written by them
	CommitTime time.Duration // spent in them altogether
	Bytes      uint64        // files, as the database counts them; refreshed once a minute
}

type stats struct {
	commits, writes atomic.Uint64
	nanos           atomic.Int64
}

func (s *stats) note(writes int, took time.Duration) {
	s.commits.Add(1)
	s.writes.Add(uint64(writes))
	s.nanos.Add(int64(took))
}

// Stats returns the counters since Open.
func (db *DB) Stats() Stats {
	s := Stats{
		Commits:    db.stats.commits.Load(),
		Writes:     db.stats.writes.Load(),
		CommitTime: time.Duration(db.stats.nanos.Load()),
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	if !db.closed {
		tables, values := db.badger.Size()
		s.Bytes = uint64(tables + values)
	}
	return s
}

// badgerLog sends Badger's messages to ours. What it calls information is of interest to developers only.
type badgerLog struct {
	log      *slog.Logger
	unsynced *atomic.Bool
}

// Errorf also keeps in mind that something was not synced: of the value log Badger tells nobody else, and goes on.
func (l badgerLog) Errorf(f string, a ...any) {
	if strings.Contains(f, "sync") {
		l.unsynced.Store(true)
	}
	l.log.Error("badger: " + line(f, a))
}

func (l badgerLog) Warningf(f string, a ...any) { l.log.Warn("badger: " + line(f, a)) }
func (l badgerLog) Infof(f string, a ...any)    { l.debug(f, a) }
func (l badgerLog) Debugf(f string, a ...any)   { l.debug(f, a) }

func (l badgerLog) debug(f string, a []any) {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.log.Debug("badger: " + line(f, a))
	}
}

func line(f string, a []any) string { return strings.TrimSpace(fmt.Sprintf(f, a...)) }
