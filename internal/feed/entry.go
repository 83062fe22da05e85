package feed

import (
	"crypto/sha256"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"hima/identity"
)

// Entry is a checked entry: its header obeys the format, its ID is the hash of the header, and its body, if there is
// one, is the one the header names. Only this package makes entries; the zero Entry is none.
type Entry struct {
	Header
	ID EntryID

	header []byte
	body   []byte // nil if it is not held
}

// parse reads a header, and checks the body against it if there is one.
func (e *Entry) parse(header, body []byte) error {
	if err := e.Header.parse(header); err != nil {
		return err
	}
	e.header = header
	e.ID = sha256.Sum256(header)
	if e.Nonce != nil {
		e.Conversation = ConversationID(e.ID)
	}
	if len(body) == 0 {
		return nil
	}
	if err := e.Header.checkBody(body); err != nil {
		return err
	}
	e.body = body
	return nil
}

func (h *Header) checkBody(body []byte) error {
	if uint64(len(body)) != uint64(h.BodyLen) || sha256.Sum256(body) != h.BodyHash {
		return fmt.Errorf("checking body of number %d: %w", h.Seq, ErrBody)
	}
	return nil
}

// ParseStored makes an entry from bytes of the own disk, where only checked ones are written. It checks the shape of
// the header, but neither signature nor hash of the body.
func ParseStored(header, body []byte) (Entry, error) {
	var e Entry
	if err := e.parse(header, nil); err != nil {
		return Entry{}, err
	}
	if len(body) > 0 {
		if uint64(len(body)) != uint64(e.BodyLen) {
			return Entry{}, fmt.Errorf("reading stored body of number %d: %w", e.Seq, ErrBody)
		}
		e.body = body
	}
	return e, nil
}

// RawHeader returns the encoded header. It must not be changed.
func (e Entry) RawHeader() []byte { return e.header }

// RawBody returns the padded body, nil if it is not held. It must not be changed.
func (e Entry) RawBody() []byte { return e.body }

// HasBody tells whether the body is held.
func (e Entry) HasBody() bool { return e.body != nil }

// Content returns what the body holds without salt and padding. It aliases the body. A body that is padded wrongly gives
// ErrMalformed: such an entry stands in its feed like any other (somebody who lacks the body could not tell), but says nothing.
func (e Entry) Content() ([]byte, error) {
	if e.body == nil {
		return nil, fmt.Errorf("reading body of number %d: not held: %w", e.Seq, ErrBody)
	}
	return unpadBody(e.body)
}

// WithBody returns the entry with a body that arrived later; ErrBody if it is not the right one.
func (e Entry) WithBody(body []byte) (Entry, error) {
	if err := e.Header.checkBody(body); err != nil {
		return Entry{}, err
	}
	e.body = body
	return e, nil
}

// WithoutBody returns the entry as it is after its body was erased.
func (e Entry) WithoutBody() Entry {
	e.body = nil
	return e
}

// Feed returns the feed that the entry is in.
func (e Entry) Feed() FeedID {
	return FeedID{Conversation: e.Conversation, Number: e.Number, Device: e.Device}
}

// Tip returns the end of a feed whose last entry this is.
func (e Entry) Tip() Tip {
	return Tip{Account: e.Account, Seq: e.Seq, Hash: e.ID, Clock: e.Clock}
}

// Order returns the place of the entry in its conversation.
func (e Entry) Order() OrderKey {
	return OrderKey{Clock: e.Clock, Account: e.Account, Device: e.Device, Number: e.Number, Seq: e.Seq}
}

// Time returns the author's time. It is for display only: nothing is ordered or judged by it.
func (e Entry) Time() time.Time { return time.UnixMilli(e.TimeMS) }

// Ahead tells whether the author's clock was more than 24 hours ahead of now, so that its time is shown as doubtful (R7).
func (e Entry) Ahead(now time.Time) bool { return e.TimeMS > now.Add(24*time.Hour).UnixMilli() }

// WireSize returns what the entry adds to the encoded size of a run.
func (e Entry) WireSize() int { return entrySize(len(e.header), len(e.body)) }

func entrySize(header, body int) int {
	n := 1 + protowire.SizeBytes(header)
	if body > 0 {
		n += 1 + protowire.SizeBytes(body)
	}
	return 1 + protowire.SizeBytes(n)
}

// signatureSize is what the signature adds to the encoded size of a run.
const signatureSize = 2 + 64

// Fit returns how many of the entries, from the first on, make up a run: within the limits, and not beyond where Ends says so.
func Fit(entries []Entry) int {
	n := room(entries)
	for i := 1; i < n; i++ {
		if Ends(entries[:i], &entries[i]) {
			return i
		}
	}
	return n
}

// room is how many of the entries a run has room for.
func room(entries []Entry) int {
	size := signatureSize
	for i := range entries {
		size += entries[i].WireSize()
		if i == MaxRunEntries || size > MaxWireRun {
			return i
		}
	}
	return len(entries)
}

// Ends says whether a run ends before an entry that would fit: after the removal of somebody from a group, or after the epoch made
// with it. Whoever was removed may have what leads up to there and nothing more, and only the author can sign in the middle of
// a run: others could never tell them.
func Ends(run []Entry, next *Entry) bool {
	n := len(run)
	if n == 0 || next.Number != Control {
		return false
	}
	switch run[n-1].Kind {
	case KindGroupRemove:
		return next.Kind != KindGroupEpoch
	case KindGroupEpoch:
		return n > 1 && run[n-2].Kind == KindGroupRemove
	}
	return false
}

// Tip is the end of a feed as far as it is known. The zero Tip is a feed of which nothing is known.
type Tip struct {
	// Account is the author. It is needed as soon as Seq is not zero: each header repeats the account, and a device
	// must not change it in mid-feed.
	Account identity.AccountID
	Seq     uint64
	Hash    EntryID
	// Clock is the clock of the last entry, 0 if it is not known, which is so right above a floor (R2).
	Clock uint64
}

// NextClock returns the clock for the next own entry: one above the highest seen in the conversation, but not beyond
// what R7 allows after the tip. Without that cap a stranger's high clock would make the own next entry invalid.
func NextClock(tip Tip, seen uint64) uint64 {
	limit := uint64(MaxFirstClock)
	if tip.Seq > 0 {
		limit = tip.Clock + MaxClockStep
	}
	next := limit
	if seen < limit {
		next = seen + 1
	}
	return max(next, tip.Clock+1)
}
