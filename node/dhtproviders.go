package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"strings"
	"sync"

	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	"github.com/multiformats/go-base32"

	"hima/storage"
)

const (
	// dhtProviders is how many provider records of others a user's node keeps for a network, and a server: about 100 bytes
	// each. dhtProvidersEach is how many of one key: an answer with all of them has to fit a message.
	dhtProviders       = 4096
	dhtServerProviders = 65536
	dhtProvidersEach   = 32
	// dhtProvidersOf is for how many keys one provider is kept: as many as an honest node answers for.
	dhtProvidersOf = 256
)

// providerStore keeps who answers for which key, for kad-dht's provider manager, on the cache path of the profile's
// database: providers say so again every few hours. Without a database it keeps them in memory only.
//
// It is bounded twice. Of one key it keeps a sample by a secret order: whoever comes with a hundred devices to crowd
// somebody out of a key can neither aim at a place nor hold it by having come first, and the twenty nodes that keep a key
// draw twenty different samples. When it is full, the key farthest from this node gives way to a nearer one.
type providerStore struct {
	db     *storage.DB // nil: in memory
	prefix []byte
	self   [sha256.Size]byte
	secret [sha256.Size]byte
	max    int

	mu     sync.Mutex
	closed bool
	keys   map[string]map[string][]byte // key, provider: when it was said, as the manager writes it
	of     map[string]int               // how many keys a provider is kept for
	n      int
}

var _ ds.Batching = (*providerStore)(nil)

func newProviderStore(db *storage.DB, prefix string, self []byte, limit int) (*providerStore, error) {
	s := &providerStore{db: db, prefix: []byte(prefix), self: sha256.Sum256(self), max: limit, keys: map[string]map[string][]byte{}, of: map[string]int{}}
	rand.Read(s.secret[:])
	if db == nil {
		return s, nil
	}
	err := db.View(func(tx *storage.Tx) error {
		return tx.Scan(storage.ScanOptions{Prefix: s.prefix}, func(key, value []byte) (bool, error) {
			if k, p, ok := splitProvider(string(key[len(s.prefix):])); ok {
				s.set(k, p, value)
			}
			return true, nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDHTStore, err)
	}
	return s, nil
}

// splitProvider takes a datastore key apart: /providers/<key>/<provider>.
func splitProvider(key string) (k, p string, ok bool) {
	parts := strings.Split(key, "/")
	if len(parts) != 4 || parts[0] != "" || parts[1] != "providers" || parts[2] == "" || parts[3] == "" {
		return "", "", false
	}
	return parts[2], parts[3], true
}

func joinProvider(k, p string) string { return "/providers/" + k + "/" + p }

func (s *providerStore) set(k, p string, value []byte) {
	of := s.keys[k]
	if of == nil {
		of = map[string][]byte{}
		s.keys[k] = of
	}
	if _, ok := of[p]; !ok {
		s.n++
		s.of[p]++
	}
	of[p] = bytes.Clone(value)
}

func (s *providerStore) unset(k, p string) bool {
	of := s.keys[k]
	if _, ok := of[p]; !ok {
		return false
	}
	delete(of, p)
	s.n--
	if s.of[p]--; s.of[p] == 0 {
		delete(s.of, p)
	}
	if len(of) == 0 {
		delete(s.keys, k)
	}
	return true
}

// distance is how far a key is from this node in the DHT's metric.
func (s *providerStore) distance(k string) [sha256.Size]byte {
	raw := []byte(k)
	if b, err := base32.RawStdEncoding.DecodeString(k); err == nil {
		raw = b
	}
	d := sha256.Sum256(raw)
	for i := range d {
		d[i] ^= s.self[i]
	}
	return d
}

// place is where a provider stands in the secret order of a key; the lowest are kept.
func (s *providerStore) place(k, p string) [sha256.Size]byte {
	return sha256.Sum256(fmt.Appendf(nil, "%s%s/%s", s.secret[:], k, p))
}

// last is the provider of a key that goes first.
func (s *providerStore) last(k string) (p string, at [sha256.Size]byte) {
	for other := range s.keys[k] {
		if o := s.place(k, other); p == "" || bytes.Compare(o[:], at[:]) > 0 {
			p, at = other, o
		}
	}
	return p, at
}

// makeRoom says which record has to go for a new one: none, some, or ok is false: the new one itself.
func (s *providerStore) makeRoom(k, p string) (goneKey, gone string, ok bool) {
	of := s.keys[k]
	if _, have := of[p]; have {
		return "", "", true
	}
	if s.of[p] >= dhtProvidersOf {
		return "", "", false
	}
	if len(of) >= dhtProvidersEach {
		worst, at := s.last(k)
		mine := s.place(k, p)
		return k, worst, bytes.Compare(mine[:], at[:]) < 0
	}
	if s.n < s.max {
		return "", "", true
	}
	far, farthest := s.distance(k), ""
	for other := range s.keys {
		if d := s.distance(other); bytes.Compare(d[:], far[:]) > 0 {
			far, farthest = d, other
		}
	}
	if farthest == "" {
		return "", "", false
	}
	gone, _ = s.last(farthest)
	return farthest, gone, true
}

// Put notes that somebody answers for a key, unless others come first.
func (s *providerStore) Put(_ context.Context, key ds.Key, value []byte) error {
	k, p, ok := splitProvider(key.String())
	if !ok {
		return fmt.Errorf("provider key %q: %w", key, errDHTStore)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosedDS
	}
	goneKey, gone, ok := s.makeRoom(k, p)
	if !ok {
		return errDHTFull
	}
	if gone != "" {
		s.unset(goneKey, gone)
	}
	s.set(k, p, value)
	return s.write(func(tx *storage.Tx) error {
		if gone != "" {
			if err := tx.Delete(s.at(joinProvider(goneKey, gone))); err != nil {
				return err
			}
		}
		return tx.Set(s.at(key.String()), value)
	})
}

func (s *providerStore) at(key string) []byte { return append(bytes.Clone(s.prefix), key...) }

func (s *providerStore) write(f func(*storage.Tx) error) error {
	if s.db == nil {
		return nil
	}
	if err := s.db.Cache(f); err != nil {
		return fmt.Errorf("%w: %w", errDHTStore, err)
	}
	return nil
}

// Delete forgets a record.
func (s *providerStore) Delete(_ context.Context, key ds.Key) error { return s.forget(key.String()) }

func (s *providerStore) forget(key string) error {
	k, p, _ := splitProvider(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosedDS
	}
	if !s.unset(k, p) {
		return nil
	}
	return s.write(func(tx *storage.Tx) error { return tx.Delete(s.at(key)) })
}

// Get returns when it was said, or ds.ErrNotFound itself.
func (s *providerStore) Get(_ context.Context, key ds.Key) ([]byte, error) {
	k, p, _ := splitProvider(key.String())
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := s.keys[k][p]; ok {
		return bytes.Clone(v), nil
	}
	return nil, ds.ErrNotFound
}

// Has reports whether there is a record.
func (s *providerStore) Has(ctx context.Context, key ds.Key) (bool, error) {
	_, err := s.Get(ctx, key)
	return err == nil, nil
}

// GetSize returns the length of what is stored.
func (s *providerStore) GetSize(ctx context.Context, key ds.Key) (int, error) {
	v, err := s.Get(ctx, key)
	if err != nil {
		return -1, err
	}
	return len(v), nil
}

// Query lists the records of one key, or all. It knows no other filters: the manager uses none.
func (s *providerStore) Query(_ context.Context, q query.Query) (query.Results, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errClosedDS
	}
	var out []query.Entry
	list := func(k string) {
		for p, v := range s.keys[k] {
			out = append(out, query.Entry{Key: joinProvider(k, p), Value: bytes.Clone(v), Size: len(v)})
		}
	}
	if one := strings.TrimPrefix(ds.NewKey(q.Prefix).String(), "/providers"); one != "" {
		list(one[1:])
	} else {
		for k := range s.keys {
			list(k)
		}
	}
	return query.ResultsWithEntries(q, out), nil
}

// size is how many records there are.
func (s *providerStore) size() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

// Sync does nothing: what is here may be lost.
func (s *providerStore) Sync(context.Context, ds.Key) error { return nil }

// Batch collects writes.
func (s *providerStore) Batch(context.Context) (ds.Batch, error) { return ds.NewBasicBatch(s), nil }

// Close refuses calls that come later. The database is not this store's to close.
func (s *providerStore) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}

// noCache stands in for the provider manager's cache. With the real one a key that is asked for often holds everybody who
// ever said to answer for it, whatever the store keeps, and an answer grows until nobody reads it.
type noCache struct{}

func (noCache) Add(any, any) bool              { return false }
func (noCache) Get(any) (any, bool)            { return nil, false }
func (noCache) Contains(any) bool              { return false }
func (noCache) Peek(any) (any, bool)           { return nil, false }
func (noCache) Remove(any) bool                { return false }
func (noCache) RemoveOldest() (any, any, bool) { return nil, nil, false }
func (noCache) GetOldest() (any, any, bool)    { return nil, nil, false }
func (noCache) Keys() []any                    { return nil }
func (noCache) Len() int                       { return 0 }
func (noCache) Purge()                         {}
func (noCache) Resize(int) int                 { return 0 }
