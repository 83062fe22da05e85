package messenger

import (
	"encoding/binary"
	"errors"
	"fmt"

	"hima/internal/feed"
	"hima/storage"
)

// The tables of this package. What follows the prefix is given behind it.
const (
	keyCounter  = "m/#"  // next local feed number
	keyConv     = "m/k/" // conversation 32: conversation row
	keyFeed     = "m/f/" // conversation 32, number 1, device 32: feed row
	keyFeedName = "m/g/" // local feed number 4: the part of keyFeed behind its prefix
	keyLocator  = "m/i/" // first bytes of an entry ID: where the entry is
	keyEvent    = "m/e/" // sequence 8: event record
	keyEventEnd = "m/E"  // next sequence 8, first sequence kept 8
	keyContact  = "m/c/" // account 32: contact row
	keySetting  = "m/s/" // key: setting row
	keyInvite   = "m/v/" // token 16: invite row
	keyIdem     = "m/q/" // hash 16 of an idempotency key: entry ID 32
	keyIdemEnd  = "m/o/" // expiry ms 8, hash 16
	keyRecalled = "m/x/" // entry ID 32: its author took it back
	keyQuota    = "m/Q"  // how many strangers cost something now
	keyRefused  = "m/R/" // account 32: a stranger whose texts were refused
	keyNote     = "m/n/" // conversation 32, time 8: a line of history that is no entry
)

// locatorBytes is how much of an entry ID is in the key of the locator table. Eighty bits: nobody makes an entry that
// hides another's, and a colliding pair of one author harms its author alone.
const locatorBytes = 10

// localFeed is a small number for a feed, so that the row kept per message is small.
type localFeed uint32

// locator says where an entry is and how it came.
type locator struct {
	feed     localFeed
	seq      uint64
	late     bool  // it stood before what was there already when it came
	bare     bool  // it came without a body
	received int64 // Unix ms; 0 for own entries, whose own time is meant
}

const (
	flagLate = 1 << iota
	flagBare
)

func (l locator) append(b []byte) []byte {
	var flags byte
	if l.late {
		flags |= flagLate
	}
	if l.bare {
		flags |= flagBare
	}
	b = append(b, flags)
	b = binary.AppendUvarint(b, uint64(l.feed))
	b = binary.AppendUvarint(b, l.seq)
	return binary.AppendUvarint(b, uint64(l.received))
}

func parseLocator(b []byte) (locator, error) {
	var flags [1]byte
	r := reader{b: b}
	r.fixed(flags[:])
	l := locator{
		feed: localFeed(r.uint()), seq: r.uint(), received: int64(r.uint()),
		late: flags[0]&flagLate != 0, bare: flags[0]&flagBare != 0,
	}
	return l, r.done()
}

// tables holds the numbering of feeds and the index of entry IDs: one small row per message, the only one that the
// messenger writes per message.
type tables struct{}

func feedSuffix(id feed.FeedID) []byte {
	b := make([]byte, 0, 65)
	b = append(b, id.Conversation[:]...)
	b = append(b, byte(id.Number))
	return append(b, id.Device[:]...)
}

func parseFeedSuffix(b []byte) (feed.FeedID, error) {
	var id feed.FeedID
	if len(b) != 65 {
		return id, errRow
	}
	copy(id.Conversation[:], b)
	id.Number = feed.Number(b[32])
	copy(id.Device[:], b[33:])
	return id, nil
}

func feedNameKey(n localFeed) []byte {
	return binary.BigEndian.AppendUint32([]byte(keyFeedName), uint32(n))
}

// number gives a feed its local number.
func (t *tables) number(tx *storage.Tx, id feed.FeedID) (localFeed, error) {
	n := localFeed(1)
	b, err := tx.Get([]byte(keyCounter))
	switch {
	case errors.Is(err, storage.ErrNotFound):
	case err != nil:
		return 0, fmt.Errorf("numbering feed: %w", err)
	case len(b) != 4:
		return 0, errRow
	default:
		n = localFeed(binary.BigEndian.Uint32(b))
	}
	if err := tx.Set([]byte(keyCounter), binary.BigEndian.AppendUint32(nil, uint32(n)+1)); err != nil {
		return 0, fmt.Errorf("numbering feed: %w", err)
	}
	return n, tx.Set(feedNameKey(n), feedSuffix(id))
}

// name gives the feed of a local number.
func (t *tables) name(tx *storage.Tx, n localFeed) (feed.FeedID, error) {
	b, err := tx.Get(feedNameKey(n))
	if err != nil {
		return feed.FeedID{}, fmt.Errorf("reading feed name: %w", err)
	}
	return parseFeedSuffix(b)
}

func locatorKey(id feed.EntryID) []byte {
	return append([]byte(keyLocator), id[:locatorBytes]...)
}

// note writes the locators of consecutive entries of one feed.
func (t *tables) note(tx *storage.Tx, entries []feed.Entry, l locator, lateBelow feed.OrderKey) error {
	key := make([]byte, 0, len(keyLocator)+locatorBytes)
	val := make([]byte, 0, 24)
	for i := range entries {
		e := &entries[i]
		l.seq = e.Seq
		l.late = l.received != 0 && feed.Less(e.Order(), lateBelow)
		l.bare = !e.HasBody()
		key = append(append(key[:0], keyLocator...), e.ID[:locatorBytes]...)
		val = l.append(val[:0])
		if err := tx.Set(key, val); err != nil {
			return fmt.Errorf("indexing entries: %w", err)
		}
	}
	return nil
}

// locate finds an entry by its ID. The caller compares the full ID with what it then reads.
func (t *tables) locate(tx *storage.Tx, id feed.EntryID) (locator, bool, error) {
	b, err := tx.Get(locatorKey(id))
	if errors.Is(err, storage.ErrNotFound) {
		return locator{}, false, nil
	}
	if err != nil {
		return locator{}, false, fmt.Errorf("locating entry: %w", err)
	}
	l, err := parseLocator(b)
	return l, err == nil, err
}

// getRow reads a key; absent is not an error.
func getRow(tx *storage.Tx, key []byte) ([]byte, bool, error) {
	b, err := tx.Get(key)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	return b, true, nil
}
