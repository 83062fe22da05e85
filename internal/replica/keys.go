package replica

import (
	"encoding/binary"
	"errors"
	"fmt"

	"hima/identity"
	"hima/internal/feed"
	"hima/storage"
)

// Key layout, everything under "r/". Feeds have a local number of four bytes so that the keys of entries, of which
// there may be millions, stay short.
//
//	r/n                         next local feed number
//	r/f/<conv><feed><device>    state of a feed
//	r/c/<conv>                  state of a conversation
//	r/e/<local><seq>            an entry, with the signature if a run ended there, or a block of entries of which it is the last
//	r/a/<local><device>         up to where a device acknowledged a feed
//	r/t/<conv><device>[account] newest receipt of a device, in a group for an account
//	r/p/<local>                 fork proof
//	r/k/<local>                 certificate of the author's device, if the feed begins above 1 (R30)
//	r/x/<conv><feed><device>    of a feed under a former device key (R3): where its tail begins, and up to where it is served
//	r/y/<conv><feed><device>    of such a feed: from where on it is void, and what of that is to be said again next
//	r/z/<conv><account>         the floor of the account's chat feeds is to be set to what is shown next (R16)
const (
	keyNext    = "r/n"
	keyFeed    = "r/f/"
	keyConv    = "r/c/"
	keyEntry   = "r/e/"
	keyAcked   = "r/a/"
	keyReceipt = "r/t/"
	keyProof   = "r/p/"
	keyFloor   = "r/z/"
)

// localFeed is the number of a feed in this database; it means nothing elsewhere.
type localFeed uint32

func feedKey(id feed.FeedID) []byte {
	b := make([]byte, 0, len(keyFeed)+65)
	b = append(b, keyFeed...)
	b = append(b, id.Conversation[:]...)
	b = append(b, byte(id.Number))
	return append(b, id.Device[:]...)
}

// parseFeedKey is the reverse of feedKey.
func parseFeedKey(k []byte) (feed.FeedID, error) {
	var id feed.FeedID
	if len(k) != len(keyFeed)+65 {
		return id, fmt.Errorf("reading feed key of %d bytes: %w", len(k), errStored)
	}
	k = k[len(keyFeed):]
	copy(id.Conversation[:], k)
	id.Number = feed.Number(k[32])
	copy(id.Device[:], k[33:])
	return id, nil
}

func convFeedsPrefix(conv feed.ConversationID) []byte {
	return append([]byte(keyFeed), conv[:]...)
}

func convKey(conv feed.ConversationID) []byte {
	return append([]byte(keyConv), conv[:]...)
}

func localKey(prefix string, l localFeed, extra int) []byte {
	b := make([]byte, 0, len(prefix)+4+extra)
	b = append(b, prefix...)
	return binary.BigEndian.AppendUint32(b, uint32(l))
}

func entryKey(l localFeed, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(localKey(keyEntry, l, 8), seq)
}

func ackedKey(l localFeed, device identity.DeviceID) []byte {
	return append(localKey(keyAcked, l, 32), device[:]...)
}

func receiptKey(n receiptName) []byte {
	b := make([]byte, 0, len(keyReceipt)+96)
	b = append(b, keyReceipt...)
	b = append(b, n.conv[:]...)
	b = append(b, n.device[:]...)
	if n.to.IsZero() {
		return b
	}
	return append(b, n.to[:]...)
}

func floorKey(conv feed.ConversationID, account identity.AccountID) []byte {
	b := make([]byte, 0, len(keyFloor)+64)
	b = append(b, keyFloor...)
	b = append(b, conv[:]...)
	return append(b, account[:]...)
}

// errStored: what the own database holds is not what this package writes.
var errStored = errors.New("stored record is damaged")

// feedState is what is known of a feed. It is written once per run.
type feedState struct {
	local   localFeed
	account identity.AccountID
	first   uint64 // floor: nothing below is offered or asked for
	last    uint64 // end of the contiguous durable prefix with bodies; what is acknowledged
	hash    feed.EntryID
	clock   uint64 // of last; 0: not known, right above a floor
	offered uint64 // own feeds: highest number that any stream was offered (R1)
	forkAt  uint64 // 0: no fork; else entries from here on do not count
	touched int64  // Unix milliseconds of the last change
	ahead   uint32 // entries kept above last (R9)
}

const (
	stateVersion = 1
	stateLen     = 1 + 4 + 32 + 8 + 8 + 32 + 8 + 8 + 8 + 8 + 4
)

func (s *feedState) encode() []byte {
	b := make([]byte, 0, stateLen)
	b = append(b, stateVersion)
	b = binary.BigEndian.AppendUint32(b, uint32(s.local))
	b = append(b, s.account[:]...)
	b = binary.BigEndian.AppendUint64(b, s.first)
	b = binary.BigEndian.AppendUint64(b, s.last)
	b = append(b, s.hash[:]...)
	b = binary.BigEndian.AppendUint64(b, s.clock)
	b = binary.BigEndian.AppendUint64(b, s.offered)
	b = binary.BigEndian.AppendUint64(b, s.forkAt)
	b = binary.BigEndian.AppendUint64(b, uint64(s.touched))
	return binary.BigEndian.AppendUint32(b, s.ahead)
}

func (s *feedState) decode(b []byte) error {
	if len(b) != stateLen || b[0] != stateVersion {
		return fmt.Errorf("reading feed state: %w", errStored)
	}
	s.local = localFeed(binary.BigEndian.Uint32(b[1:]))
	copy(s.account[:], b[5:])
	b = b[37:]
	s.first = binary.BigEndian.Uint64(b)
	s.last = binary.BigEndian.Uint64(b[8:])
	copy(s.hash[:], b[16:])
	b = b[48:]
	s.clock = binary.BigEndian.Uint64(b)
	s.offered = binary.BigEndian.Uint64(b[8:])
	s.forkAt = binary.BigEndian.Uint64(b[16:])
	s.touched = int64(binary.BigEndian.Uint64(b[24:]))
	s.ahead = binary.BigEndian.Uint32(b[32:])
	return nil
}

func (s *feedState) tip() feed.Tip {
	if s.last == 0 {
		return feed.Tip{}
	}
	return feed.Tip{Account: s.account, Seq: s.last, Hash: s.hash, Clock: s.clock}
}

func (s *feedState) head(id feed.FeedID) feed.Head {
	return feed.Head{Number: id.Number, Account: s.account, Device: id.Device, First: s.first, Last: s.last, Hash: s.hash}
}

// loadFeed returns the state of a feed; ok is false if the feed is not known.
func loadFeed(tx *storage.Tx, id feed.FeedID) (s feedState, ok bool, err error) {
	b, err := tx.Get(feedKey(id))
	if errors.Is(err, storage.ErrNotFound) {
		return feedState{}, false, nil
	}
	if err == nil {
		err = s.decode(b)
	}
	return s, err == nil, err
}

// openFeed returns the state of a feed and begins one if there is none.
func openFeed(tx *storage.Tx, id feed.FeedID, account identity.AccountID) (feedState, error) {
	s, ok, err := loadFeed(tx, id)
	if ok || err != nil {
		return s, err
	}
	var next uint32 = 1
	b, err := tx.Get([]byte(keyNext))
	switch {
	case err == nil && len(b) == 4:
		next = binary.BigEndian.Uint32(b)
	case err == nil:
		return s, fmt.Errorf("reading next feed number: %w", errStored)
	case !errors.Is(err, storage.ErrNotFound):
		return s, err
	}
	if err := tx.Set([]byte(keyNext), binary.BigEndian.AppendUint32(nil, next+1)); err != nil {
		return s, err
	}
	return feedState{local: localFeed(next), account: account, first: 1}, nil
}

func saveFeed(tx *storage.Tx, id feed.FeedID, s *feedState) error {
	return tx.Set(feedKey(id), s.encode())
}

// convState is what is known of a conversation beyond its feeds: the highest clock that came in from others, and when.
// Own entries do not touch it; their clocks stand in the states of the two own feeds.
type convState struct {
	clock   uint64
	touched int64
}

func loadConv(tx *storage.Tx, conv feed.ConversationID) (s convState, err error) {
	b, err := tx.Get(convKey(conv))
	if errors.Is(err, storage.ErrNotFound) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	if len(b) != 16 {
		return s, fmt.Errorf("reading conversation state: %w", errStored)
	}
	return convState{clock: binary.BigEndian.Uint64(b), touched: int64(binary.BigEndian.Uint64(b[8:]))}, nil
}

func saveConv(tx *storage.Tx, conv feed.ConversationID, s convState) error {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 16), s.clock)
	return tx.Set(convKey(conv), binary.BigEndian.AppendUint64(b, uint64(s.touched)))
}

// A stored entry: a byte of flags, the signature if a run ended here, the length of the header, header, body.
const (
	flagSigned = 1
	flagBody   = 2
)

func encodeEntry(e feed.Entry, signature []byte) []byte {
	h, body := e.RawHeader(), e.RawBody()
	b := make([]byte, 1, 1+len(signature)+3+len(h)+len(body))
	if len(signature) > 0 {
		b[0] |= flagSigned
		b = append(b, signature...)
	}
	b = binary.AppendUvarint(b, uint64(len(h)))
	b = append(b, h...)
	if len(body) > 0 {
		b[0] |= flagBody
		b = append(b, body...)
	}
	return b
}

// stored is an entry as it lies in the database.
type stored struct {
	header, body []byte
	signature    []byte // nil: no run ended here
}

func decodeEntry(b []byte) (s stored, err error) {
	if len(b) < 1 {
		return s, fmt.Errorf("reading entry: %w", errStored)
	}
	flags := b[0]
	b = b[1:]
	if flags&flagSigned != 0 {
		if len(b) < 64 {
			return s, fmt.Errorf("reading entry: %w", errStored)
		}
		s.signature, b = b[:64:64], b[64:]
	}
	n, w := binary.Uvarint(b)
	if w <= 0 || n > uint64(len(b)-w) {
		return s, fmt.Errorf("reading entry: %w", errStored)
	}
	s.header, b = b[w:w+int(n):w+int(n)], b[w+int(n):]
	if flags&flagBody != 0 {
		s.body = b
	}
	return s, nil
}

func (s stored) entry() (feed.Entry, error) {
	e, err := feed.ParseStored(s.header, s.body)
	if err != nil {
		return feed.Entry{}, fmt.Errorf("reading stored entry: %w", err)
	}
	return e, nil
}

func loadStored(tx *storage.Tx, l localFeed, seq uint64) (s stored, ok bool, err error) {
	b, err := tx.Get(entryKey(l, seq))
	if errors.Is(err, storage.ErrNotFound) {
		return searchBlock(tx, l, seq)
	}
	if err != nil {
		return s, false, err
	}
	if isBlock(b) {
		return inBlock(b, seq, seq)
	}
	s, err = decodeEntry(b)
	return s, err == nil, err
}

func loadAcked(tx *storage.Tx, l localFeed, device identity.DeviceID) (uint64, error) {
	b, err := tx.Get(ackedKey(l, device))
	if errors.Is(err, storage.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if len(b) != 8 {
		return 0, fmt.Errorf("reading acknowledged head: %w", errStored)
	}
	return binary.BigEndian.Uint64(b), nil
}

func saveAcked(tx *storage.Tx, l localFeed, device identity.DeviceID, seq uint64) error {
	return tx.Set(ackedKey(l, device), binary.BigEndian.AppendUint64(nil, seq))
}
