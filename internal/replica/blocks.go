package replica

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"hima/internal/feed"
	"hima/storage"
)

// Neighbours that are written together share a row, a block: what the database does per key, from its log to the last
// compaction, costs more than what it does per byte of a message. A block stands at the number of its last entry, so
// that a search forward finds the block that an entry is in. A byte of flags, how many, and each with its length.
//
// A block is written once. Only the erasing of a body writes it again.

// flagBlock tells a block from an entry.
const flagBlock = 4

// maxBlock is up to how many bytes entries share a row: reading one of them reads them all.
const maxBlock = 8 << 10

func isBlock(b []byte) bool { return len(b) > 0 && b[0] == flagBlock }

// saveEntries stores neighbours of one feed; the signature is that of the last of them.
func saveEntries(tx *storage.Tx, l localFeed, entries []feed.Entry, signature []byte) error {
	var block [][]byte
	size := 0
	for i, e := range entries {
		var sig []byte
		if i == len(entries)-1 {
			sig = signature
		}
		raw := encodeEntry(e, sig)
		if len(block) > 0 && size+len(raw) > maxBlock {
			if err := tx.Set(entryKey(l, e.Seq-1), encodeBlock(block)); err != nil {
				return err
			}
			block, size = block[:0], 0
		}
		block, size = append(block, raw), size+len(raw)
	}
	if len(block) == 0 {
		return nil
	}
	return tx.Set(entryKey(l, entries[len(entries)-1].Seq), encodeBlock(block))
}

// encodeBlock makes a row of encoded entries; one alone stays as it is.
func encodeBlock(entries [][]byte) []byte {
	if len(entries) == 1 {
		return entries[0]
	}
	size := 1 + binary.MaxVarintLen64
	for _, raw := range entries {
		size += 3 + len(raw)
	}
	b := binary.AppendUvarint(append(make([]byte, 0, size), flagBlock), uint64(len(entries)))
	for _, raw := range entries {
		b = append(binary.AppendUvarint(b, uint64(len(raw))), raw...)
	}
	return b
}

// splitBlock is the reverse of encodeBlock, for blocks.
func splitBlock(b []byte) ([][]byte, error) {
	n, w := binary.Uvarint(b[1:])
	if w <= 0 || n < 2 || n > uint64(len(b)) {
		return nil, fmt.Errorf("reading a block: %w", errStored)
	}
	b = b[1+w:]
	entries := make([][]byte, n)
	for i := range entries {
		size, w := binary.Uvarint(b)
		if w <= 0 || size > uint64(len(b)-w) {
			return nil, fmt.Errorf("reading a block: %w", errStored)
		}
		end := w + int(size)
		entries[i], b = b[w:end:end], b[end:]
	}
	return entries, nil
}

// inBlock takes one entry out of a block that ends with the number last; ok is false if it stands before the block.
func inBlock(b []byte, last, seq uint64) (s stored, ok bool, err error) {
	entries, err := splitBlock(b)
	if err != nil || last-seq >= uint64(len(entries)) {
		return s, false, err
	}
	s, err = decodeEntry(entries[uint64(len(entries))-1-(last-seq)])
	return s, err == nil, err
}

// eachInBlock calls f for those entries of a block that lie in a range.
func eachInBlock(b []byte, last, from, to uint64, f func(seq uint64, s stored) (bool, error)) (bool, error) {
	entries, err := splitBlock(b)
	if err != nil {
		return false, err
	}
	seq := last - uint64(len(entries))
	for _, raw := range entries {
		if seq++; seq < from {
			continue
		}
		if seq > to {
			return false, nil
		}
		s, err := decodeEntry(raw)
		if err != nil {
			return false, err
		}
		if more, err := f(seq, s); err != nil || !more {
			return false, err
		}
	}
	return true, nil
}

// findBlock returns the block that an entry is in.
func findBlock(tx *storage.Tx, l localFeed, seq uint64) (block []byte, last uint64, err error) {
	o := storage.ScanOptions{Prefix: localKey(keyEntry, l, 0), Start: entryKey(l, seq), Limit: 1}
	err = tx.Scan(o, func(k, v []byte) (bool, error) {
		if isBlock(v) {
			block, last = v, binary.BigEndian.Uint64(k[len(k)-8:])
		}
		return false, nil
	})
	return block, last, err
}

// searchBlock looks for an entry that has no row of its own.
func searchBlock(tx *storage.Tx, l localFeed, seq uint64) (s stored, ok bool, err error) {
	b, last, err := findBlock(tx, l, seq)
	if b == nil || err != nil {
		return s, false, err
	}
	return inBlock(b, last, seq)
}

// deleteAbove forgets what is stored above a number. A block that reaches over it is written anew.
func deleteAbove(tx *storage.Tx, l localFeed, seq uint64) error {
	type row struct {
		key, value []byte
		last       uint64
	}
	var rows []row
	o := storage.ScanOptions{Prefix: localKey(keyEntry, l, 0), Start: entryKey(l, seq+1)}
	err := tx.Scan(o, func(k, v []byte) (bool, error) {
		rows = append(rows, row{slices.Clone(k), slices.Clone(v), binary.BigEndian.Uint64(k[len(k)-8:])})
		return true, nil
	})
	for i := range rows {
		if err != nil {
			return err
		}
		err = tx.Delete(rows[i].key)
		if err != nil || i > 0 || !isBlock(rows[i].value) {
			continue
		}
		var entries [][]byte
		if entries, err = splitBlock(rows[i].value); err != nil {
			return err
		}
		if above := rows[i].last - seq; above < uint64(len(entries)) {
			err = tx.Set(entryKey(l, seq), encodeBlock(entries[:uint64(len(entries))-above]))
		}
	}
	return err
}

// replaceStored writes an entry that is held anew, in its row or its block.
func replaceStored(tx *storage.Tx, l localFeed, seq uint64, raw []byte) error {
	b, err := tx.Get(entryKey(l, seq))
	last := seq
	if errors.Is(err, storage.ErrNotFound) {
		b, last, err = findBlock(tx, l, seq)
	}
	if err != nil {
		return err
	}
	if !isBlock(b) {
		return tx.Set(entryKey(l, seq), raw)
	}
	entries, err := splitBlock(b)
	if err != nil {
		return err
	}
	if last-seq >= uint64(len(entries)) {
		return fmt.Errorf("writing entry %d anew: %w", seq, errStored)
	}
	entries[uint64(len(entries))-1-(last-seq)] = raw
	return tx.Set(entryKey(l, last), encodeBlock(entries))
}
