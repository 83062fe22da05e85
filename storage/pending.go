package storage

import (
	"maps"
	"slices"
	"sync"
)

// chunkKeys bounds one chunk of a sorted index: inserting moves at most this many string headers (4 KiB).
const chunkKeys = 256

// write is the newest thing said about a key that Badger does not have yet.
type write struct {
	value   []byte
	deleted bool
	overlay uint64 // which overlay said it; never reused, so that equal numbers mean the same write
}

// pending is a set of writes. Get and set are map operations; the sorted index that scans need is built only when a
// scan asks for it and then kept up with, so that groups in which nobody scans do not pay for order.
// It is used by one goroutine at a time, except that a frozen one may be read by many.
type pending struct {
	writes  map[string]write
	bytes   int      // keys and values, with what Badger adds per entry
	indexed bool     // the index is wanted
	fresh   []string // keys in writes that are not in the index yet
	chunks  [][]string
	undo    []undo // what the running overlay replaced, in order

	frozen  bool
	ordered sync.Once // builds the index of a frozen one: most are joined to another one before anybody scans
}

// undo is what a key said before the running overlay wrote it for the first time.
type undo struct {
	key string
	old write
	had bool
}

// entryCost is what Badger counts per entry beside key and value: two bytes of meta and the key's version.
const entryCost = 12

func cost(key string, w write) int { return len(key) + len(w.value) + entryCost }

// set stores a write and returns by how much the overlay that made it grew.
func (p *pending) set(key string, w write) int {
	old, had := p.writes[key]
	if p.writes == nil {
		p.writes = make(map[string]write)
	}
	p.writes[key] = w
	grown := cost(key, w)
	if had {
		p.bytes -= cost(key, old)
		if old.overlay == w.overlay {
			p.bytes += grown
			return grown - cost(key, old)
		}
	} else if p.indexed {
		p.fresh = append(p.fresh, key)
	}
	p.bytes += grown
	p.undo = append(p.undo, undo{key, old, had})
	return grown
}

// keep makes the running overlay's writes part of the set.
func (p *pending) keep() { p.undo = p.undo[:0] }

// take undoes the running overlay and returns what it had written. Keys may stay in the index; readers of the index
// look them up.
func (p *pending) take() []undo {
	taken := make([]undo, 0, len(p.undo))
	for _, u := range p.undo {
		w := p.writes[u.key]
		taken = append(taken, undo{key: u.key, old: w})
		p.bytes -= cost(u.key, w)
		if u.had {
			p.writes[u.key] = u.old
			p.bytes += cost(u.key, u.old)
		} else {
			delete(p.writes, u.key)
		}
	}
	p.keep()
	return taken
}

// merge applies what another set says on top.
func (p *pending) merge(o *pending) {
	for key, w := range o.writes {
		p.set(key, w)
	}
	p.keep()
}

// freeze says that nothing is written any more, so that many may read.
func (p *pending) freeze() {
	p.undo, p.frozen = nil, true
}

// joined returns a frozen set that says what two frozen ones say, the upper one on top.
func joined(lower, upper *pending) *pending {
	both := &pending{writes: maps.Clone(lower.writes), bytes: lower.bytes + upper.bytes, frozen: true}
	if both.writes == nil {
		both.writes = make(map[string]write, len(upper.writes))
	}
	for key, w := range upper.writes {
		if old, had := both.writes[key]; had {
			both.bytes -= cost(key, old)
		}
		both.writes[key] = w
	}
	return both
}

// seek returns the first indexed key at or after from, or with after set strictly after it.
func (p *pending) seek(from string, after bool) (string, bool) {
	p.order()
	ci, ki := p.locate(from)
	if ci < len(p.chunks) && ki < len(p.chunks[ci]) && after && p.chunks[ci][ki] == from {
		ki++
	}
	if ci < len(p.chunks) && ki == len(p.chunks[ci]) {
		ci, ki = ci+1, 0
	}
	if ci >= len(p.chunks) {
		return "", false
	}
	return p.chunks[ci][ki], true
}

// seekBack returns the last indexed key before the given one; with none set, the very last.
func (p *pending) seekBack(before string, none bool) (string, bool) {
	p.order()
	ci, ki := len(p.chunks), 0
	if !none {
		ci, ki = p.locate(before)
	}
	if ki == 0 {
		ci--
		if ci < 0 {
			return "", false
		}
		ki = len(p.chunks[ci])
	}
	return p.chunks[ci][ki-1], true
}

// locate finds the place of the first key that is not below key; the place may be just behind the end of a chunk.
func (p *pending) locate(key string) (chunk, at int) {
	ci, found := slices.BinarySearchFunc(p.chunks, key, func(c []string, k string) int {
		return compare(c[len(c)-1], k)
	})
	if !found && ci == len(p.chunks) {
		return ci, 0
	}
	ki, _ := slices.BinarySearch(p.chunks[ci], key)
	return ci, ki
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// order makes the sorted index what is needed to search it.
func (p *pending) order() {
	if p.frozen {
		p.ordered.Do(p.index)
		return
	}
	p.index()
}

// index brings the sorted index up to date.
func (p *pending) index() {
	if p.indexed && len(p.fresh) == 0 {
		return
	}
	if !p.indexed {
		p.indexed = true
		p.fresh = make([]string, 0, len(p.writes))
		for key := range p.writes {
			p.fresh = append(p.fresh, key)
		}
		if len(p.fresh) > chunkKeys {
			slices.Sort(p.fresh)
			for c := range slices.Chunk(p.fresh, chunkKeys/2) {
				p.chunks = append(p.chunks, slices.Clone(c))
			}
			p.fresh = p.fresh[:0]
		}
	}
	for _, key := range p.fresh {
		p.insert(key)
	}
	p.fresh = p.fresh[:0]
}

func (p *pending) insert(key string) {
	// A key whose write was undone is still here when it is written again.
	if len(p.chunks) == 0 {
		p.chunks = append(p.chunks, []string{key})
		return
	}
	ci, ki := p.locate(key)
	if ci == len(p.chunks) {
		ci--
		ki = len(p.chunks[ci])
	} else if p.chunks[ci][ki] == key {
		return
	}
	c := slices.Insert(p.chunks[ci], ki, key)
	p.chunks[ci] = c
	if len(c) > chunkKeys {
		half := len(c) / 2
		upper := slices.Clone(c[half:])
		p.chunks[ci] = c[:half:half]
		p.chunks = slices.Insert(p.chunks, ci+1, upper)
	}
}
