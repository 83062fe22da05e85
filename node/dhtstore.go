package node

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"

	"hima/storage"
)

const (
	// dhtRecords is how many records of others a user's node keeps for a network, and a server: 4 KiB each at most.
	dhtRecords       = 4096
	dhtServerRecords = 65536
)

var (
	// errDHTStore wraps every failure of the database under a DHT.
	errDHTStore = errors.New("record store failed")
	errDHTFull  = errors.New("record store is full of nearer records")
	errClosedDS = errors.New("record store is closed")
)

// dhtStore is a DHT's datastore on the cache path of the profile's database: records of others may be lost in a crash,
// for their owners publish them again. Without a database it keeps them in memory.
//
// It holds a bounded number of records. When it is full, the record farthest from this node gives way to a nearer one:
// that is whom the DHT would ask last.
type dhtStore struct {
	db     *storage.DB // nil: in memory
	prefix []byte
	self   [sha256.Size]byte
	max    int

	mu     sync.RWMutex // held for reading during calls, so that close waits for them
	closed bool

	indexMu sync.Mutex
	mem     map[string][]byte            // without a database
	far     map[string][sha256.Size]byte // distance of every key
}

var _ ds.Batching = (*dhtStore)(nil)

func newDHTStore(db *storage.DB, prefix string, self []byte, records int) (*dhtStore, error) {
	s := &dhtStore{
		db: db, prefix: []byte(prefix), self: sha256.Sum256(self), max: records,
		mem: map[string][]byte{}, far: map[string][sha256.Size]byte{},
	}
	if db == nil {
		return s, nil
	}
	err := db.View(func(tx *storage.Tx) error {
		return tx.Scan(storage.ScanOptions{Prefix: s.prefix, KeysOnly: true}, func(key, _ []byte) (bool, error) {
			k := string(key[len(s.prefix):])
			s.far[k] = s.distance(k)
			return true, nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDHTStore, err)
	}
	return s, nil
}

// distance is how far a record is from this node in the DHT's metric. The last part of a datastore key is the record's.
func (s *dhtStore) distance(key string) [sha256.Size]byte {
	raw := []byte(key)
	last := key[strings.LastIndexByte(key, '/')+1:]
	if d, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(last); err == nil {
		raw = d
	}
	d := sha256.Sum256(raw)
	for i := range d {
		d[i] ^= s.self[i]
	}
	return d
}

// enter holds off close until the returned function is called.
func (s *dhtStore) enter() (leave func(), err error) {
	s.mu.RLock()
	if s.closed {
		s.mu.RUnlock()
		return nil, errClosedDS
	}
	return s.mu.RUnlock, nil
}

func (s *dhtStore) at(key string) []byte { return append(slices.Clone(s.prefix), key...) }

// Get returns a value, or ds.ErrNotFound itself: the DHT compares.
func (s *dhtStore) Get(_ context.Context, k ds.Key) ([]byte, error) {
	leave, err := s.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	if s.db == nil {
		s.indexMu.Lock()
		defer s.indexMu.Unlock()
		if v, ok := s.mem[k.String()]; ok {
			return slices.Clone(v), nil
		}
		return nil, ds.ErrNotFound
	}
	var out []byte
	err = s.db.View(func(tx *storage.Tx) error {
		v, err := tx.Get(s.at(k.String()))
		out = v
		return err
	})
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return nil, ds.ErrNotFound
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errDHTStore, err)
	}
	return out, nil
}

// Has reports whether there is a value.
func (s *dhtStore) Has(_ context.Context, k ds.Key) (bool, error) {
	s.indexMu.Lock()
	defer s.indexMu.Unlock()
	_, ok := s.far[k.String()]
	return ok, nil
}

// size is how many values there are.
func (s *dhtStore) size() int {
	s.indexMu.Lock()
	defer s.indexMu.Unlock()
	return len(s.far)
}

// GetSize returns the length of a value.
func (s *dhtStore) GetSize(ctx context.Context, k ds.Key) (int, error) {
	v, err := s.Get(ctx, k)
	if err != nil {
		return -1, err
	}
	return len(v), nil
}

// Put stores a value, in the place of the farthest one if there are too many.
func (s *dhtStore) Put(_ context.Context, k ds.Key, v []byte) error {
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	key := k.String()
	s.indexMu.Lock()
	defer s.indexMu.Unlock()
	victim := ""
	if _, ok := s.far[key]; !ok {
		d := s.distance(key)
		if len(s.far) >= s.max {
			if victim = s.farthest(d); victim == "" {
				return errDHTFull
			}
		}
		s.far[key] = d
	}
	delete(s.far, victim)
	if s.db == nil {
		delete(s.mem, victim)
		s.mem[key] = slices.Clone(v)
		return nil
	}
	return s.write(func(tx *storage.Tx) error {
		if victim != "" {
			if err := tx.Delete(s.at(victim)); err != nil {
				return err
			}
		}
		return tx.Set(s.at(key), v)
	})
}

// farthest is the key that is farthest away, if it is farther than d.
func (s *dhtStore) farthest(d [sha256.Size]byte) string {
	out := ""
	for k, far := range s.far {
		if slices.Compare(far[:], d[:]) > 0 {
			out, d = k, far
		}
	}
	return out
}

// Delete removes a value.
func (s *dhtStore) Delete(_ context.Context, k ds.Key) error {
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	key := k.String()
	s.indexMu.Lock()
	defer s.indexMu.Unlock()
	delete(s.far, key)
	if s.db == nil {
		delete(s.mem, key)
		return nil
	}
	return s.write(func(tx *storage.Tx) error { return tx.Delete(s.at(key)) })
}

func (s *dhtStore) write(f func(*storage.Tx) error) error {
	if err := s.db.Cache(f); err != nil {
		return fmt.Errorf("%w: %w", errDHTStore, err)
	}
	return nil
}

// Query walks over the values below a prefix, a page at a time. It knows no other filters: the DHT uses none.
func (s *dhtStore) Query(ctx context.Context, q query.Query) (query.Results, error) {
	prefix := ds.NewKey(q.Prefix).String()
	if prefix != "/" {
		prefix += "/"
	}
	s.indexMu.Lock()
	var keys []string
	for k := range s.far {
		if strings.HasPrefix(k, prefix) {
			keys = append(keys, k)
		}
	}
	s.indexMu.Unlock()
	next := func() (query.Result, bool) {
		for len(keys) > 0 {
			k := keys[0]
			keys = keys[1:]
			v, err := s.Get(ctx, ds.RawKey(k))
			if errors.Is(err, ds.ErrNotFound) {
				continue
			}
			return query.Result{Entry: query.Entry{Key: k, Value: v, Size: len(v)}, Error: err}, true
		}
		return query.Result{}, false
	}
	return query.ResultsFromIterator(q, query.Iterator{Next: next}), nil
}

// Sync does nothing: what is here may be lost.
func (s *dhtStore) Sync(context.Context, ds.Key) error { return nil }

// Batch collects writes.
func (s *dhtStore) Batch(context.Context) (ds.Batch, error) { return ds.NewBasicBatch(s), nil }

// Close waits for calls under way and refuses those that come later. The database is not this store's to close.
func (s *dhtStore) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}
