package storage

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	journalName = "journal"
	// journalSize is how long an epoch is. The file has room for two and never changes its length, so that a sync has nothing
	// to write but data.
	journalSize = 256 << 10
	journalFile = 2 * journalSize
	// journalGroup is how large a group may be that goes there. Larger ones would fill it too fast to be worth it.
	journalGroup = 16 << 10
	// journalKeys bounds what is looked through beside Badger, and what one of its transactions takes over.
	journalKeys = 4096
	// journalKey holds the number of the epoch whose records are not in Badger yet.
	journalKey = "s/journal"
	// recordHead is the length of a record, in front of it.
	recordHead = 4
	// epochHead begins what the first record of an epoch holds: how many records the epoch before it had.
	epochHead = 4
)

// journal makes small groups durable by one write and one sync of one file, which takes about half as long as a
// transaction of Badger. What is in it lies in layers in memory as well, where everybody reads it. An epoch has one half of
// the file; when it is full, the next one begins in the other half, and meanwhile this one moves to Badger.
type journal struct {
	file   *os.File // nil in memory
	key    []byte   // of the database
	epoch  uint64
	before uint32      // records of the epoch before this one
	aead   cipher.AEAD // of the epoch
	count  uint32      // records of the epoch
	at     int64       // where in its half the next one goes
	keys   int         // that they hold, at most

	// taken says that the other half holds an epoch too that was not moved, after a process that did not close.
	taken bool
	// single says that the file is of a version that had no halves. It is read only.
	single bool
}

// open reads what a process that did not close left behind. An epoch that Badger knows of must have its file.
func (j *journal) open(dir string, key []byte, epoch uint64, known bool) (*pending, error) {
	j.key = key
	path := filepath.Join(dir, journalName)
	flags := os.O_RDWR
	if !known {
		flags |= os.O_CREATE
	}
	file, err := os.OpenFile(path, flags, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("opening the journal: %w: %w", ErrDamaged, err)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the journal: %w", err)
	}
	left, err := j.load(file, epoch)
	if err == nil {
		// What is read may be in the memory of the system only. From here on it counts as written.
		if err = file.Sync(); err == nil {
			err = syncFolder(dir)
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("reading the journal: %w", err), file.Close())
	}
	j.file = file
	return left, nil
}

// load reads the records of the epoch and of the one that may have begun while it moved to Badger, and brings the file
// to its length.
func (j *journal) load(file *os.File, epoch uint64) (*pending, error) {
	raw, err := io.ReadAll(io.LimitReader(file, journalFile))
	if err != nil {
		return nil, err
	}
	left := &pending{}
	if err := j.begin(epoch, 0); err != nil {
		return nil, err
	}
	if j.single = len(raw) == journalSize; j.single {
		return left, j.records(raw, left)
	}
	if err := lengthen(file, len(raw)); err != nil {
		return nil, err
	}
	raw = append(raw, make([]byte, journalFile-len(raw))...)
	if err := j.records(j.half(raw), left); err != nil {
		return nil, err
	}
	first := *j
	if err := j.begin(epoch+1, first.count); err != nil {
		return nil, err
	}
	if err := j.records(j.half(raw), left); err != nil {
		return nil, err
	}
	switch {
	case j.count == 0:
		*j = first
	case j.before != first.count:
		// What another epoch follows was whole once, and somebody was told of all of it.
		return nil, fmt.Errorf("%d of %d records of the journal: %w", first.count, j.before, ErrDamaged)
	default:
		j.taken = true
	}
	return left, nil
}

// lengthen brings a file to the length of a journal.
func lengthen(file *os.File, length int) error {
	if short := journalFile - length; short > 0 {
		_, err := file.WriteAt(make([]byte, short), int64(length))
		return err
	}
	return nil
}

// divide makes a file that had no halves, and holds nothing any more that is not in Badger, into one with halves.
func (j *journal) divide() error {
	if err := j.begin(j.epoch, 0); err != nil {
		return err
	}
	if err := lengthen(j.file, journalSize); err != nil {
		return fmt.Errorf("lengthening the journal: %w", err)
	}
	if err := j.file.Sync(); err != nil {
		return fmt.Errorf("syncing the journal: %w", err)
	}
	j.single = false
	return nil
}

// records reads the records of an epoch up to the first that is not whole.
func (j *journal) records(raw []byte, left *pending) error {
	for {
		rest := raw[j.at:]
		if len(rest) < recordHead {
			return nil
		}
		size := int64(binary.BigEndian.Uint32(rest))
		if size > int64(len(rest)-recordHead) {
			return nil
		}
		plain, err := j.aead.Open(nil, nil, rest[recordHead:recordHead+size], place(j.count))
		if err != nil && j.reads(rest[recordHead+size:], j.count+1) {
			// Another one was written after it, so it was whole once and somebody was told of it.
			return fmt.Errorf("record %d of the journal: %w", j.count, ErrDamaged)
		}
		if err != nil {
			return nil // it was being written when the process ended: nobody was told of it
		}
		if plain, err = j.headless(plain); err != nil {
			return err
		}
		n := 0
		for len(plain) > 0 {
			var key string
			var w write
			if key, w, plain, err = parseWrite(plain); err != nil {
				return err
			}
			left.set(key, w)
			n++
		}
		left.keep()
		j.wrote(recordHead+size, n)
	}
}

// headless takes off what only the first record of an epoch says.
func (j *journal) headless(plain []byte) ([]byte, error) {
	if j.count > 0 || j.single {
		return plain, nil
	}
	if len(plain) < epochHead {
		return nil, fmt.Errorf("first record of the journal: %w", ErrDamaged)
	}
	j.before = binary.BigEndian.Uint32(plain)
	return plain[epochHead:], nil
}

// half is where in the file the epoch lies.
func (j *journal) half(raw []byte) []byte { return raw[j.base():][:journalSize] }

func (j *journal) base() int64 { return int64(j.epoch%2) * journalSize }

// begin starts an epoch. Each has its own key, so that what is left of the one before does not read as a record.
func (j *journal) begin(epoch uint64, before uint32) error {
	j.epoch, j.before, j.count, j.at, j.keys, j.taken = epoch, before, 0, 0, 0, false
	if j.key == nil {
		return nil // in memory
	}
	key, err := hkdf.Key(sha256.New, j.key, nil, fmt.Sprintf("hima storage journal %d", epoch), 32)
	if err != nil {
		return fmt.Errorf("deriving the journal's key: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err == nil {
		j.aead, err = cipher.NewGCMWithRandomNonce(block)
	}
	if err != nil {
		return fmt.Errorf("deriving the journal's key: %w", err)
	}
	return nil
}

// reads says whether b begins with a whole record of this epoch that has a place.
func (j *journal) reads(b []byte, count uint32) bool {
	if len(b) < recordHead {
		return false
	}
	size := int64(binary.BigEndian.Uint32(b))
	if size > int64(len(b)-recordHead) {
		return false
	}
	_, err := j.aead.Open(nil, nil, b[recordHead:recordHead+size], place(count))
	return err == nil
}

// place is what a record is bound to.
func place(count uint32) []byte { return binary.BigEndian.AppendUint32(nil, count) }

func (j *journal) wrote(bytes int64, keys int) {
	j.at += bytes
	j.keys += keys
	j.count++
}

// takes says whether a group is small enough, and fits says whether there is room for it now.
func (j *journal) takes(group *pending) bool {
	return group.bytes <= journalGroup && len(group.writes) <= journalKeys
}

func (j *journal) fits(group *pending) bool {
	// What pending counts per write is more than what a record has beside key and value.
	return j.at+recordHead+epochHead+int64(group.bytes)+64 <= journalSize && j.keys+len(group.writes) <= journalKeys
}

// crowded says that the next process would soon have to empty it.
func (j *journal) crowded() bool { return j.taken || j.at > journalSize/2 || j.keys > journalKeys/2 }

// append makes a group durable.
func (j *journal) append(group *pending) error {
	plain := make([]byte, 0, epochHead+group.bytes)
	if j.count == 0 {
		plain = binary.BigEndian.AppendUint32(plain, j.before)
	}
	for key, w := range group.writes {
		plain = appendWrite(plain, key, w)
	}
	if j.file == nil {
		j.wrote(int64(len(plain)), len(group.writes))
		return nil
	}
	record := make([]byte, recordHead, recordHead+len(plain)+j.aead.Overhead())
	record = j.aead.Seal(record, nil, plain, place(j.count))
	binary.BigEndian.PutUint32(record, uint32(len(record)-recordHead))
	if _, err := j.file.WriteAt(record, j.base()+j.at); err != nil {
		return fmt.Errorf("writing the journal: %w", err)
	}
	if err := syncData(j.file); err != nil {
		return fmt.Errorf("syncing the journal: %w", err)
	}
	j.wrote(int64(len(record)), len(group.writes))
	return nil
}

func (j *journal) close() error {
	if j.file == nil {
		return nil
	}
	return j.file.Close()
}

// A write in a record: whether it deletes, the length of the key, the key, and if it does not delete, the same of the value.

func appendWrite(b []byte, key string, w write) []byte {
	b = append(b, 0)
	if w.deleted {
		b[len(b)-1] = 1
	}
	b = append(binary.AppendUvarint(b, uint64(len(key))), key...)
	if w.deleted {
		return b
	}
	return append(binary.AppendUvarint(b, uint64(len(w.value))), w.value...)
}

func parseWrite(b []byte) (key string, w write, rest []byte, err error) {
	w.deleted = b[0] == 1
	raw, rest, ok := cutCounted(b[1:])
	if ok && !w.deleted {
		w.value, rest, ok = cutCounted(rest)
		w.value = append(make([]byte, 0, len(w.value)), w.value...)
	}
	if !ok || len(raw) == 0 {
		return "", write{}, nil, fmt.Errorf("a record of the journal: %w", ErrDamaged)
	}
	return string(raw), w, rest, nil
}

// cutCounted takes what follows its length off b.
func cutCounted(b []byte) (head, rest []byte, ok bool) {
	n, w := binary.Uvarint(b)
	if w <= 0 || n > uint64(len(b)-w) {
		return nil, nil, false
	}
	return bytes.Clone(b[w : w+int(n)]), b[w+int(n):], true
}
