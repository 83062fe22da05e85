package messenger

import (
	"encoding/binary"
	"fmt"

	"hima/identity"
	"hima/internal/feed"
	"hima/storage"
)

// unknownEntry is a control entry of a kind this version does not know (R10).
type unknownEntry struct {
	feed localFeed
	seq  uint64
	kind feed.Kind
}

// convRow is what is kept of a conversation beyond its feeds.
type convRow struct {
	id       feed.ConversationID
	peer     identity.AccountID // own account: self; zero: a group
	unread   uint64
	activity int64         // Unix ms of the newest change that is shown
	last     feed.OrderKey // newest line that is shown; zero Seq: none
	unknown  []unknownEntry
	overflow bool // more unknown entries than the list holds
}

// group tells whether many take part.
func (c *convRow) group() bool { return c.peer.IsZero() }

// readOnly tells whether a control entry stands here that this version does not know; after an upgrade it may.
func (c *convRow) readOnly() bool {
	if c.overflow {
		return true
	}
	for _, u := range c.unknown {
		if !feed.Known(feed.Control, u.kind) {
			return true
		}
	}
	return false
}

func (c *convRow) lastFeed() feed.FeedID {
	return feed.FeedID{Conversation: c.id, Number: c.last.Number, Device: c.last.Device}
}

func (c *convRow) append(b []byte) []byte {
	b = append(b, c.peer[:]...)
	b = binary.AppendUvarint(b, c.unread)
	b = binary.AppendUvarint(b, uint64(c.activity))
	b = c.last.AppendTo(b)
	var over uint64
	if c.overflow {
		over = 1
	}
	b = binary.AppendUvarint(b, over)
	b = binary.AppendUvarint(b, uint64(len(c.unknown)))
	for _, u := range c.unknown {
		b = binary.AppendUvarint(b, uint64(u.feed))
		b = binary.AppendUvarint(b, u.seq)
		b = binary.AppendUvarint(b, uint64(u.kind))
	}
	return b
}

func parseConvRow(id feed.ConversationID, b []byte) (convRow, error) {
	c := convRow{id: id}
	r := reader{b: b}
	r.fixed(c.peer[:])
	c.unread, c.activity = r.uint(), int64(r.uint())
	var key [feed.OrderKeyLen]byte
	r.fixed(key[:])
	c.overflow = r.uint() != 0
	for n := r.uint(); n > 0 && !r.bad; n-- {
		c.unknown = append(c.unknown, unknownEntry{localFeed(r.uint()), r.uint(), feed.Kind(r.uint())})
	}
	if err := r.done(); err != nil {
		return convRow{}, fmt.Errorf("reading conversation row: %w", err)
	}
	if key != ([feed.OrderKeyLen]byte{}) {
		var err error
		if c.last, err = feed.ParseOrderKey(key[:]); err != nil {
			return convRow{}, fmt.Errorf("reading conversation row: %w: %w", errRow, err)
		}
	}
	return c, nil
}

// conversations is the table of conversation rows.
type conversations struct{ env *env }

func convKey(id feed.ConversationID) []byte { return append([]byte(keyConv), id[:]...) }

func (t *conversations) get(tx *storage.Tx, id feed.ConversationID) (convRow, bool, error) {
	b, ok, err := getRow(tx, convKey(id))
	if err != nil || !ok {
		return convRow{id: id}, false, err
	}
	row, err := parseConvRow(id, b)
	return row, err == nil, err
}

// ensure reads the row of the conversation with a peer, with oneself, or of a group, and makes it if it is not there.
func (t *conversations) ensure(tx *storage.Tx, id feed.ConversationID, peer identity.AccountID) (convRow, error) {
	row, ok, err := t.get(tx, id)
	if err != nil || ok {
		return row, err
	}
	row.peer, row.activity = peer, t.env.now().UnixMilli()
	return row, t.put(tx, row)
}

func (t *conversations) put(tx *storage.Tx, row convRow) error {
	return tx.Set(convKey(row.id), row.append(nil))
}

func (t *conversations) each(tx *storage.Tx, f func(convRow) error) error {
	return tx.Scan(storage.ScanOptions{Prefix: []byte(keyConv)}, func(key, val []byte) (bool, error) {
		var id feed.ConversationID
		if copy(id[:], key[len(keyConv):]) != len(id) {
			return false, errRow
		}
		row, err := parseConvRow(id, val)
		if err != nil {
			return false, err
		}
		return true, f(row)
	})
}
