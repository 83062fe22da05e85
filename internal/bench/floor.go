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

// serveFloor answers the floor protocol on a node.
func serveFloor(n *node.Node, f *floorDB) {
	n.Handle(floorProtocol, func(s *node.Stream) {
		b := make([]byte, 1+frameSize)
		for {
			if _, err := io.ReadFull(s, b); err != nil {
				return
			}
			var took time.Duration
			if b[0] == opCommit {
				var err error
				if took, err = f.commit(b[1:]); err != nil {
					return
				}
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

func (c *floorClient) ask(op byte) (trip, remote time.Duration, err error) {
	b := make([]byte, 1+frameSize)
	b[0] = op
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
	trip, _, err1 := c.ask(opEcho)
	here, err2 := c.local.commit(make([]byte, frameSize))
	_, there, err3 := c.ask(opCommit)
	return trip, here, there, errors.Join(err1, err2, err3)
}
