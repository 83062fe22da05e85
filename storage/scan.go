package storage

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/dgraph-io/badger/v4"
)

// ScanOptions says what Scan visits. The zero value visits every key in ascending order.
type ScanOptions struct {
	Prefix   []byte // only keys that begin so
	Start    []byte // ascending: first key at or after it; Reverse: first key at or before it. Empty: the end of the prefix
	Reverse  bool   // descending
	KeysOnly bool   // the value given is nil; spares reading it
	Limit    int    // at most so many, 0: no bound
}

// Scan calls f for each key in order until f says false, returns an error, or the options' bounds are reached. Key and
// value are copies and may be kept. Writes that f makes through the same Tx ahead of the place reached are seen.
func (tx *Tx) Scan(o ScanOptions, f func(key, value []byte) (more bool, err error)) error {
	s := tx.newScanner(o)
	defer s.close()
	for n := 0; o.Limit == 0 || n < o.Limit; {
		key, w, stored, ok := s.next()
		if !ok {
			return nil
		}
		if w.deleted {
			continue
		}
		value, err := s.value(w, stored)
		if err != nil {
			return err
		}
		n++
		more, err := f([]byte(key), value)
		if err != nil || !more {
			return err
		}
	}
	return nil
}

// scanner merges Badger's iterator with the writes that are not committed yet. The sets of writes are searched anew
// for every step, from the last key on, so that they may grow while the scan runs.
type scanner struct {
	options ScanOptions
	layers  []*pending // newest first, only those that hold anything
	stored  *badger.Iterator
	last    string // the key given last
	begun   bool
}

func (tx *Tx) newScanner(o ScanOptions) *scanner {
	s := &scanner{options: o}
	if tx.own != nil {
		s.layers = append(s.layers, tx.own)
	}
	for _, p := range tx.below {
		if len(p.writes) > 0 {
			s.layers = append(s.layers, p)
		}
	}
	// Values lie in the tree, so prefetching them would only start goroutines. A prefix lets Badger skip tables, but
	// in reverse it would stop before it starts.
	bo := badger.IteratorOptions{Reverse: o.Reverse}
	if !o.Reverse {
		bo.Prefix = o.Prefix
	}
	s.stored = tx.snapshot.get().NewIterator(bo)
	s.seekStored()
	return s
}

func (s *scanner) close() { s.stored.Close() }

// seekStored places Badger's iterator on the first key of the range.
func (s *scanner) seekStored() {
	o := s.options
	if !o.Reverse {
		from := o.Prefix
		if bytes.Compare(o.Start, from) > 0 {
			from = o.Start
		}
		s.stored.Seek(from)
		return
	}
	end := prefixEnd(o.Prefix)
	switch {
	case len(o.Start) > 0 && (end == nil || bytes.Compare(o.Start, end) < 0):
		s.stored.Seek(o.Start)
	case end == nil:
		s.stored.Rewind()
	default:
		s.stored.Seek(end)
		if s.stored.Valid() && bytes.Equal(s.stored.Item().Key(), end) {
			s.stored.Next()
		}
	}
}

// next returns the next key of the range with the newest write about it, or with stored set when Badger has it.
func (s *scanner) next() (key string, w write, stored, ok bool) {
	if s.begun && s.stored.Valid() && string(s.stored.Item().Key()) == s.last {
		s.stored.Next()
	}
	if s.stored.Valid() && bytes.HasPrefix(s.stored.Item().Key(), s.options.Prefix) {
		key, stored, ok = string(s.stored.Item().Key()), true, true
	}
	for _, p := range s.layers {
		k, has := s.nextIn(p)
		for has {
			if _, written := p.writes[k]; written {
				break
			}
			k, has = s.step(p, k) // its overlay was undone
		}
		if !has || (ok && !s.before(k, key) && !(stored && k == key)) {
			continue
		}
		key, w, stored, ok = k, p.writes[k], false, true
	}
	s.last, s.begun = key, true
	return key, w, stored, ok
}

func (s *scanner) before(a, b string) bool {
	if s.options.Reverse {
		return a > b
	}
	return a < b
}

// nextIn finds the next key of the range in one set of writes.
func (s *scanner) nextIn(p *pending) (string, bool) {
	o := s.options
	var key string
	var ok bool
	switch {
	case !o.Reverse && s.begun:
		key, ok = p.seek(s.last, true)
	case !o.Reverse:
		from := o.Prefix
		if bytes.Compare(o.Start, from) > 0 {
			from = o.Start
		}
		key, ok = p.seek(string(from), false)
	case s.begun:
		key, ok = p.seekBack(s.last, false)
	default:
		end := prefixEnd(o.Prefix)
		if len(o.Start) > 0 && (end == nil || bytes.Compare(o.Start, end) < 0) {
			// The smallest string above Start, so that Start itself counts.
			key, ok = p.seekBack(string(o.Start)+"\x00", false)
		} else {
			key, ok = p.seekBack(string(end), end == nil)
		}
	}
	return key, ok && strings.HasPrefix(key, string(o.Prefix))
}

// step goes on from a key of one set of writes.
func (s *scanner) step(p *pending, key string) (string, bool) {
	var ok bool
	if s.options.Reverse {
		key, ok = p.seekBack(key, false)
	} else {
		key, ok = p.seek(key, true)
	}
	return key, ok && strings.HasPrefix(key, string(s.options.Prefix))
}

func (s *scanner) value(w write, stored bool) ([]byte, error) {
	if s.options.KeysOnly {
		return nil, nil
	}
	if !stored {
		return bytes.Clone(w.value), nil
	}
	v, err := s.stored.Item().ValueCopy(nil)
	if err != nil {
		return nil, fmt.Errorf("reading a value: %w", err)
	}
	return v, nil
}

// prefixEnd returns the smallest key above all keys with the prefix, nil if there is none.
func prefixEnd(prefix []byte) []byte {
	end := bytes.Clone(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return nil
}
