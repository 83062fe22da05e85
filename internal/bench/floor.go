package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"hima/identity"
	"hima/node"
)

// floorProtocol serves the floor of a run: one byte says what to do, frameSize bytes follow, eight come back.
const (
	floorProtocol = "/hima/bench-floor/1"
	frameSize     = 200
	opEcho        = 'e'
	opCommit      = 'c'
	opGroups      = 'g' // the frame begins with a number of messages
)

// A message of textSize bytes costs two rows: its entry, and its place in the history. floorGroup messages share a
// transaction, as many as the pipelined measurement puts into one on average.
const (
	entryRow   = 480
	historyRow = 110
	floorGroup = 512
)

// floorDB is Badger alone, with the options that storage uses, one synced transaction per value. It is what a durable
// message costs without hima.
type floorDB struct {
	db  *badger.DB
	seq uint64
}

func openFloor(dir string) (*floorDB, error) {
	db, err := openBadger(dir, make([]byte, 32))
	return &floorDB{db: db}, err
}

func openBadger(dir string, key []byte) (*badger.DB, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return badger.Open(badger.DefaultOptions(dir).WithLogger(nil).WithSyncWrites(true).
		WithEncryptionKey(key).WithIndexCacheSize(4 << 20).WithBlockCacheSize(4 << 20).
		WithMemTableSize(8 << 20).WithNumMemtables(2).WithValueLogFileSize(16 << 20).
		WithNumCompactors(2).WithNumLevelZeroTables(2).WithNumLevelZeroTablesStall(6).WithNumGoroutines(2).
		WithCompression(options.None).WithMetricsEnabled(false).WithDetectConflicts(false))
}

// commit makes one value durable and says how long it took.
func (f *floorDB) commit(value []byte) (time.Duration, error) {
	f.seq++
	key := binary.BigEndian.AppendUint64([]byte("floor/"), f.seq)
	start := time.Now()
	err := f.db.Update(func(tx *badger.Txn) error { return tx.Set(key, value) })
	return time.Since(start), err
}

// groups makes n messages durable, many in one transaction, and says how long it took.
func (f *floorDB) groups(n int) (time.Duration, error) {
	entry, place := make([]byte, entryRow), make([]byte, historyRow)
	start := time.Now()
	for n > 0 {
		err := f.db.Update(func(tx *badger.Txn) error {
			for range min(n, floorGroup) {
				f.seq++
				for prefix, value := range map[string][]byte{"entry/": entry, "place/": place} {
					if err := tx.Set(binary.BigEndian.AppendUint64([]byte(prefix), f.seq), value); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
		n -= floorGroup
	}
	return time.Since(start), nil
}

// serveFloor answers the floor protocol on a node.
func serveFloor(n *node.Node, f *floorDB) {
	n.Handle(floorProtocol, func(s *node.Stream) {
		b := make([]byte, 1+frameSize)
		for {
			if _, err := io.ReadFull(s, b); err != nil {
				return
			}
			var took time.Duration
			var err error
			switch b[0] {
			case opCommit:
				took, err = f.commit(b[1:])
			case opGroups:
				took, err = f.groups(int(binary.BigEndian.Uint32(b[1:])))
			}
			if err != nil {
				return
			}
			if _, err := s.Write(binary.BigEndian.AppendUint64(nil, uint64(took))); err != nil {
				return
			}
		}
	})
}

// floorClient asks the other process for floor operations.
type floorClient struct {
	s     *node.Stream
	local *floorDB
}

func dialFloor(ctx context.Context, n *node.Node, dev identity.DeviceID, local *floorDB) (*floorClient, error) {
	s, err := n.Open(ctx, dev, floorProtocol)
	if err != nil {
		return nil, fmt.Errorf("opening the floor stream: %w", err)
	}
	return &floorClient{s: s, local: local}, nil
}

func (c *floorClient) ask(op byte, n int) (trip, remote time.Duration, err error) {
	b := make([]byte, 1+frameSize)
	b[0] = op
	binary.BigEndian.PutUint32(b[1:], uint32(n))
	start := time.Now()
	if _, err = c.s.Write(b); err != nil {
		return 0, 0, err
	}
	if _, err = io.ReadFull(c.s, b[:8]); err != nil {
		return 0, 0, err
	}
	return time.Since(start), time.Duration(binary.BigEndian.Uint64(b[:8])), nil
}

// once measures the floor of one message: the network's round trip, and a synced commit in each process.
func (c *floorClient) once() (trip, here, there time.Duration, err error) {
	trip, _, err1 := c.ask(opEcho, 0)
	here, err2 := c.local.commit(make([]byte, frameSize))
	_, there, err3 := c.ask(opCommit, 0)
	return trip, here, there, errors.Join(err1, err2, err3)
}

// both measures how many messages a second Badger alone makes durable in both processes at once.
func (c *floorClient) both(n int) (perSecond float64, err error) {
	done := make(chan error, 1)
	start := time.Now()
	go func() {
		_, _, err := c.ask(opGroups, n)
		done <- err
	}()
	_, err = c.local.groups(n)
	if err = errors.Join(err, <-done); err != nil {
		return 0, err
	}
	return float64(n) / time.Since(start).Seconds(), nil
}
