package messenger

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"hima/internal/feed"
	"hima/storage"
)

// What is kept per message is how it came and the beginning of its ID, a dozen bytes. They lie in blocks of blockLen
// consecutive numbers of one feed, so that a run of messages costs a few writes in key order instead of one write at a
// random place per message. An ID is found by looking through the blocks: there is one for each 64 messages, and a
// million messages are looked through in some 20 ms, which only commands that a person types pay for.
const (
	blockLen    = 64
	idBytes     = 4 // of an entry ID; the full ID is compared with the entry that is then read
	arrivalSize = 1 + 1 + idBytes
)

// arrival is how one entry came.
type arrival struct {
	late     bool  // it stood before what was there already when it came
	bare     bool  // it came without a body
	received int64 // Unix ms; 0 for own entries, whose own time is meant
}

const (
	flagLate = 1 << iota
	flagBare
)

// blockItem is an arrival with its place in the block and the beginning of the entry's ID.
type blockItem struct {
	arrival
	index byte
	id    [idBytes]byte
}

func (it *blockItem) append(b []byte) []byte {
	var flags byte
	if it.late {
		flags |= flagLate
	}
	if it.bare {
		flags |= flagBare
	}
	b = append(b, it.index, flags)
	b = append(b, it.id[:]...)
	return binary.AppendUvarint(b, uint64(it.received))
}

// eachItem reads a block. Items stand in the order in which they came; of two with one index the later counts.
func eachItem(b []byte, f func(blockItem)) error {
	r := reader{b: b}
	for len(r.b) > 0 {
		var head [arrivalSize]byte
		r.fixed(head[:])
		it := blockItem{index: head[0], id: [idBytes]byte(head[2:])}
		it.late, it.bare = head[1]&flagLate != 0, head[1]&flagBare != 0
		it.received = int64(r.uint())
		if r.bad || it.index >= blockLen {
			return fmt.Errorf("reading arrivals: %w", errRow)
		}
		f(it)
	}
	return nil
}

// arrivals is the table of blocks.
type arrivals struct{}

func blockKey(local localFeed, seq uint64) []byte {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, len(keyBlock)+12), uint32(local))
	b = append([]byte(keyBlock), b...)
	return binary.BigEndian.AppendUint64(b, seq/blockLen)
}

// note writes how entries of one feed came. Those that stand before lateBelow are late, unless they are own ones, for
// which received is 0.
func (t *arrivals) note(tx *storage.Tx, local localFeed, entries []feed.Entry, received int64, lateBelow feed.OrderKey) error {
	for len(entries) > 0 {
		key := blockKey(local, entries[0].Seq)
		block, _, err := getRow(tx, key)
		if err != nil {
			return fmt.Errorf("noting arrivals: %w", err)
		}
		block = bytes.Clone(block)
		n := 0
		for n < len(entries) && entries[n].Seq/blockLen == entries[0].Seq/blockLen {
			e := &entries[n]
			it := blockItem{index: byte(e.Seq % blockLen), id: [idBytes]byte(e.ID[:idBytes])}
			it.received, it.bare = received, !e.HasBody()
			it.late = received != 0 && feed.Less(e.Order(), lateBelow)
			block = it.append(block)
			n++
		}
		if err := tx.Set(key, block); err != nil {
			return fmt.Errorf("noting arrivals: %w", err)
		}
		entries = entries[n:]
	}
	return nil
}

// block is one that was read.
type block struct {
	feed  localFeed
	base  uint64 // number of its first place
	items [blockLen]arrival
	has   uint64 // bit i: item i is there
}

// read reads the block that holds a number; one that was never written has nothing in it.
func (t *arrivals) read(tx *storage.Tx, local localFeed, seq uint64) (*block, error) {
	out := &block{feed: local, base: seq - seq%blockLen}
	raw, ok, err := getRow(tx, blockKey(local, seq))
	if err != nil || !ok {
		return out, err
	}
	return out, eachItem(raw, func(it blockItem) {
		out.items[it.index] = it.arrival
		out.has |= 1 << it.index
	})
}

func (b *block) covers(local localFeed, seq uint64) bool {
	return b != nil && b.feed == local && b.base == seq-seq%blockLen
}

// get reads how an entry came; ok is false if it was never told of.
func (t *arrivals) get(tx *storage.Tx, local localFeed, seq uint64) (a arrival, ok bool, err error) {
	b, err := t.read(tx, local, seq)
	return b.items[seq%blockLen], b.has&(1<<(seq%blockLen)) != 0, err
}

// drop forgets the arrivals of one feed from a number on. It looks at the blocks that are there: an author numbers as they like,
// and the last may stand a thousand million numbers behind the one before.
func (t *arrivals) drop(tx *storage.Tx, local localFeed, from uint64) error {
	first := blockKey(local, from)
	o := storage.ScanOptions{Prefix: first[:len(keyBlock)+4], Start: first}
	return tx.Scan(o, func(key, raw []byte) (bool, error) {
		var left []byte
		if bytes.Equal(key, first) {
			err := eachItem(raw, func(it blockItem) {
				if uint64(it.index) < from%blockLen {
					left = it.append(left)
				}
			})
			if err != nil {
				return false, err
			}
		}
		if len(left) == 0 {
			return true, tx.Delete(key)
		}
		return true, tx.Set(key, left)
	})
}

// place is where an entry may be.
type place struct {
	feed localFeed
	seq  uint64
}

// search calls f for entries whose ID begins like id, in hexadecimal digits and at least 2*idBytes of them, newest first
// within a feed; of one feed if local is not 0. Some may be others with the same four bytes. It looks at maxBlocks
// blocks, 0: all.
func (t *arrivals) search(tx *storage.Tx, local localFeed, id string, maxBlocks int, f func(place) (more bool, err error)) error {
	want, err := hex.DecodeString(id[:2*idBytes])
	if err != nil {
		return fmt.Errorf("searching message: %w", err)
	}
	o := storage.ScanOptions{Prefix: []byte(keyBlock), Reverse: true, Limit: maxBlocks}
	if local != 0 {
		o.Prefix = blockKey(local, 0)[:len(keyBlock)+4]
	}
	var found []place
	return tx.Scan(o, func(key, block []byte) (bool, error) {
		// Most blocks hold nothing of it; that is seen without taking them apart.
		if !bytes.Contains(block, want) {
			return true, nil
		}
		if len(key) != len(keyBlock)+12 {
			return false, errRow
		}
		found = found[:0]
		p := place{feed: localFeed(binary.BigEndian.Uint32(key[len(keyBlock):]))}
		base := binary.BigEndian.Uint64(key[len(keyBlock)+4:]) * blockLen
		err := eachItem(block, func(it blockItem) {
			if bytes.Equal(it.id[:], want) {
				p.seq = base + uint64(it.index)
				found = append(found, p)
			}
		})
		if err != nil {
			return false, err
		}
		for i, at := range found {
			if i > 0 && at == found[i-1] {
				continue
			}
			if more, err := f(at); err != nil || !more {
				return false, err
			}
		}
		return true, nil
	})
}
