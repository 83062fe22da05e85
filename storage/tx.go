package storage

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"
)

// maxKey is the longest key in bytes; ours are far shorter, Badger's own bound is 65,000.
const maxKey = 1 << 10

// Tx is one function's view of the database: what is committed, what overlays before it in the same group wrote, and
// what it wrote itself. It must not be used after the function returned, nor by two goroutines at once.
type Tx struct {
	snapshot *snapshot
	own      *pending   // takes this overlay's writes and holds those before it; nil in View
	below    []*pending // older writes, newest first
	recent   *recent    // what Badger is known to say; nil in View
	overlay  uint64     // this overlay's number
	size     int        // bytes it wrote
	most     bounds     // of what it may write
	hooks    []func()
	failed   error // a write was refused; the overlay is discarded even if the function carries on
	ended    bool
}

// Get returns a copy of the key's value, or ErrNotFound.
func (tx *Tx) Get(key []byte) ([]byte, error) {
	if w, ok := tx.look(key); ok {
		if w.deleted {
			return nil, ErrNotFound
		}
		return bytes.Clone(w.value), nil
	}
	item, err := tx.snapshot.get().Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		tx.note(key, write{deleted: true})
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("reading a key: %w", err)
	}
	value, err := item.ValueCopy(nil)
	if err != nil {
		return nil, fmt.Errorf("reading a value: %w", err)
	}
	if tx.recent != nil && len(value) <= recentRow {
		tx.note(key, write{value: bytes.Clone(value)})
	}
	return value, nil
}

func (tx *Tx) note(key []byte, w write) {
	if tx.recent != nil {
		tx.recent.note(key, w)
	}
}

// Has says whether the key has a value.
func (tx *Tx) Has(key []byte) (bool, error) {
	if w, ok := tx.look(key); ok {
		return !w.deleted, nil
	}
	_, err := tx.snapshot.get().Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		tx.note(key, write{deleted: true})
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading a key: %w", err)
	}
	return true, nil
}

func (tx *Tx) look(key []byte) (write, bool) {
	if tx.own != nil {
		if w, ok := tx.own.writes[string(key)]; ok {
			return w, true
		}
	}
	for _, p := range tx.below {
		if w, ok := p.writes[string(key)]; ok {
			return w, true
		}
	}
	if tx.recent != nil {
		return tx.recent.get(key)
	}
	return write{}, false
}

// Set gives the key a value. Both slices are copied.
func (tx *Tx) Set(key, value []byte) error {
	// The empty value is a value: a nil one would be taken for absence by Badger's reader.
	return tx.put(key, write{value: append(make([]byte, 0, len(value)), value...)})
}

// Delete removes the key; removing what is not there is no error.
func (tx *Tx) Delete(key []byte) error {
	return tx.put(key, write{deleted: true})
}

func (tx *Tx) put(key []byte, w write) error {
	switch {
	case tx.own == nil || tx.ended:
		return ErrReadOnly
	case tx.failed != nil:
		return tx.failed
	case len(key) == 0 || len(key) > maxKey:
		return fmt.Errorf("writing a key of %d bytes: %w", len(key), ErrTooLarge)
	}
	w.overlay = tx.overlay
	tx.size += tx.own.set(string(key), w)
	if tx.size > tx.most.bytes || len(tx.own.undo) > tx.most.keys {
		tx.failed = ErrTooLarge
	}
	return tx.failed
}

// OnCommit asks for f to be run after the sync that made this overlay durable, in commit order. It is not run when the
// overlay is discarded. Inside View it is never run.
func (tx *Tx) OnCommit(f func()) {
	tx.hooks = append(tx.hooks, f)
}
