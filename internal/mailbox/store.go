package mailbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"hima/identity"
	"hima/storage"
)

// Key layout of the keeping side, everything under "b/". Inboxes have a local number of four bytes so that the keys of
// items stay short. Nothing here says who made an inbox, who left an item, or who fetched one; the grant of an inbox,
// where there is one, says for whom the node's owner keeps mail.
//
//	b/n                               next local number
//	b/i/<inbox>                       an inbox
//	b/l/<local>                       ID of the inbox with this number
//	b/m/<local><cursor>               an item: when it ends, then the sealed bytes
//	b/h/<local><hash>                 where the item with this hash is
//	b/x/<until><local><cursor>        hash of the item that ends then; not for slots
//	b/z/<local>                       an inbox that is gone, whose items are still to be removed
const (
	keyNext   = "b/n"
	keyInbox  = "b/i/"
	keyLocal  = "b/l/"
	keyItem   = "b/m/"
	keyHash   = "b/h/"
	keyExpiry = "b/x/"
	keyGone   = "b/z/"
)

// hashLen is how much of an item's hash stands in keys: enough that nobody finds two items that share it in one inbox.
const hashLen = 16

// errStored: what the own database holds is not what this package writes.
var errStored = errors.New("stored mailbox record is damaged")

type localInbox uint32

func inboxKey(id identity.InboxID) []byte { return append([]byte(keyInbox), id[:]...) }

func localKey(prefix string, l localInbox, extra int) []byte {
	b := make([]byte, 0, len(prefix)+4+extra)
	return binary.BigEndian.AppendUint32(append(b, prefix...), uint32(l))
}

func itemKey(l localInbox, cursor uint64) []byte {
	return binary.BigEndian.AppendUint64(localKey(keyItem, l, 8), cursor)
}

func hashKey(l localInbox, hash []byte) []byte {
	return append(localKey(keyHash, l, hashLen), hash[:hashLen]...)
}

func expiryKey(until int64, l localInbox, cursor uint64) []byte {
	b := binary.BigEndian.AppendUint64([]byte(keyExpiry), uint64(until))
	b = binary.BigEndian.AppendUint32(b, uint32(l))
	return binary.BigEndian.AppendUint64(b, cursor)
}

// inbox is what is kept of an inbox.
type inbox struct {
	local   localInbox
	kind    Kind
	quota   uint64
	used    uint64
	items   uint32
	next    uint64 // cursor of the next item, from 1
	touched int64  // Unix milliseconds of the last renewal, to the day
	grant   []byte
}

const (
	inboxVersion = 1
	inboxLen     = 1 + 4 + 1 + 8 + 8 + 4 + 8 + 8
	maxGrant     = 32
)

func (in *inbox) encode() []byte {
	b := make([]byte, 0, inboxLen+len(in.grant))
	b = append(b, inboxVersion)
	b = binary.BigEndian.AppendUint32(b, uint32(in.local))
	b = append(b, byte(in.kind))
	b = binary.BigEndian.AppendUint64(b, in.quota)
	b = binary.BigEndian.AppendUint64(b, in.used)
	b = binary.BigEndian.AppendUint32(b, in.items)
	b = binary.BigEndian.AppendUint64(b, in.next)
	b = binary.BigEndian.AppendUint64(b, uint64(in.touched))
	return append(b, in.grant...)
}

func (in *inbox) decode(b []byte) error {
	if len(b) < inboxLen || len(b) > inboxLen+maxGrant || b[0] != inboxVersion {
		return fmt.Errorf("reading inbox: %w", errStored)
	}
	in.local = localInbox(binary.BigEndian.Uint32(b[1:]))
	in.kind = Kind(b[5])
	in.quota = binary.BigEndian.Uint64(b[6:])
	in.used = binary.BigEndian.Uint64(b[14:])
	in.items = binary.BigEndian.Uint32(b[22:])
	in.next = binary.BigEndian.Uint64(b[26:])
	in.touched = int64(binary.BigEndian.Uint64(b[34:]))
	in.grant = b[inboxLen:]
	return nil
}

// idle says whether nobody renewed the inbox for so long that it goes.
func (in *inbox) idle(now time.Time, after time.Duration) bool {
	return now.UnixMilli()-in.touched > after.Milliseconds()
}

func loadInbox(tx *storage.Tx, id identity.InboxID) (in inbox, ok bool, err error) {
	b, err := tx.Get(inboxKey(id))
	if errors.Is(err, storage.ErrNotFound) {
		return in, false, nil
	}
	if err == nil {
		err = in.decode(b)
	}
	return in, err == nil, err
}

func saveInbox(tx *storage.Tx, id identity.InboxID, in *inbox) error {
	return tx.Set(inboxKey(id), in.encode())
}

// nextLocal takes a local number. They are never used again: items of an inbox that is gone may still be there.
func nextLocal(tx *storage.Tx) (localInbox, error) {
	next := uint32(1)
	b, err := tx.Get([]byte(keyNext))
	switch {
	case err == nil && len(b) == 4:
		next = binary.BigEndian.Uint32(b)
	case err == nil:
		return 0, fmt.Errorf("reading next inbox number: %w", errStored)
	case !errors.Is(err, storage.ErrNotFound):
		return 0, err
	}
	if next == 1<<32-1 {
		return 0, fmt.Errorf("taking an inbox number: %w", errStored)
	}
	return localInbox(next), tx.Set([]byte(keyNext), binary.BigEndian.AppendUint32(nil, next+1))
}

// place is what stands under the hash of an item.
type place struct {
	cursor uint64
	until  int64 // Unix milliseconds; 0: as long as the inbox
	size   uint32
}

const placeLen = 8 + 8 + 4

func (p place) encode() []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, placeLen), p.cursor)
	b = binary.BigEndian.AppendUint64(b, uint64(p.until))
	return binary.BigEndian.AppendUint32(b, p.size)
}

func loadPlace(tx *storage.Tx, l localInbox, hash []byte) (p place, ok bool, err error) {
	b, err := tx.Get(hashKey(l, hash))
	if errors.Is(err, storage.ErrNotFound) {
		return p, false, nil
	}
	if err != nil {
		return p, false, err
	}
	if p, err = decodePlace(b); err != nil {
		return p, false, err
	}
	return p, true, nil
}

func decodePlace(b []byte) (place, error) {
	if len(b) != placeLen {
		return place{}, fmt.Errorf("reading place of an item: %w", errStored)
	}
	return place{
		cursor: binary.BigEndian.Uint64(b), until: int64(binary.BigEndian.Uint64(b[8:])), size: binary.BigEndian.Uint32(b[16:]),
	}, nil
}

// putItem stores an item that is not there yet.
func putItem(tx *storage.Tx, in *inbox, hash, item []byte, until int64) (place, error) {
	p := place{cursor: in.next, until: until, size: uint32(len(item))}
	in.next++
	in.items++
	in.used += uint64(len(item))
	value := binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(item)), uint64(until))
	if err := tx.Set(itemKey(in.local, p.cursor), append(value, item...)); err != nil {
		return p, err
	}
	if until != 0 {
		if err := tx.Set(expiryKey(until, in.local, p.cursor), hash[:hashLen]); err != nil {
			return p, err
		}
	}
	return p, tx.Set(hashKey(in.local, hash), p.encode())
}

// deleteItem removes an item's keys and says what it freed; 0 if it was not there.
func deleteItem(tx *storage.Tx, l localInbox, hash []byte) (uint64, error) {
	p, ok, err := loadPlace(tx, l, hash)
	if !ok || err != nil {
		return 0, err
	}
	if err := tx.Delete(itemKey(l, p.cursor)); err != nil {
		return 0, err
	}
	if p.until != 0 {
		if err := tx.Delete(expiryKey(p.until, l, p.cursor)); err != nil {
			return 0, err
		}
	}
	return uint64(p.size), tx.Delete(hashKey(l, hash))
}

// free takes an item off the inbox's account.
func (in *inbox) free(size uint64) {
	in.used -= min(in.used, size)
	if in.items > 0 {
		in.items--
	}
}
