package delivery

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"hima/identity"
	"hima/internal/feed"
	"hima/storage"
)

// Key layout of mail, under "y/" like the attempts:
//
//	y/c/<device><conv><number><last><holder>  a mailbox's receipt for entries of an own feed, for a device
//	y/m/<device><conv><author><from>          from where up to where another author's control feed went to a device, and until when
//	y/b/<device>                              a mailbox in use
//	y/i/<mailbox><account>                    the own inbox of a contact there; the zero account: for strangers
//	y/p/<device>                              where a device takes its mail, and with which keys
//	y/n/<device>                              what a device was told of ours
//	y/k/r/<created>                           a rotating prekey
//	y/k/o/<hint>                              a one-time prekey
//	y/d/<hash>                                an item that was taken, until its time is over
//	y/g/<account>                             a grant to keep mail here
//	y/h/<grant>                               whose grant it is
const (
	keyCustody  = "y/c/"
	keyCarried  = "y/m/"
	keyBox      = "y/b/"
	keyInbox    = "y/i/"
	keyPeer     = "y/p/"
	keyTold     = "y/n/"
	keyRotating = "y/k/r/"
	keyOneTime  = "y/k/o/"
	keyTaken    = "y/d/"
	keyGrant    = "y/g/"
	keyGranted  = "y/h/"
)

var errMailStored = errors.New("stored mail record is damaged")

func keyOf(prefix string, parts ...[]byte) []byte {
	b := []byte(prefix)
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

func u64(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func millis(t time.Time) []byte {
	if t.IsZero() {
		return make([]byte, 8)
	}
	return binary.BigEndian.AppendUint64(nil, uint64(t.UnixMilli()))
}

// cutter reads stored values; what is short of a field makes it bad.
type cutter struct {
	b   []byte
	bad bool
}

func (c *cutter) take(n int) []byte {
	if c.bad || n < 0 || len(c.b) < n {
		c.bad = true
		return make([]byte, min(max(n, 0), 64))
	}
	out := c.b[:n]
	c.b = c.b[n:]
	return out
}

func (c *cutter) u64() uint64 { return binary.BigEndian.Uint64(c.take(8)) }

func (c *cutter) time() time.Time {
	ms := int64(c.u64())
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

func (c *cutter) device() (d identity.DeviceID) { copy(d[:], c.take(32)); return d }

func (c *cutter) account() (a identity.AccountID) { copy(a[:], c.take(32)); return a }

func (c *cutter) bytes() []byte {
	n, w := binary.Uvarint(c.b)
	if w <= 0 || n > uint64(len(c.b)-w) {
		c.bad = true
		return nil
	}
	c.b = c.b[w:]
	return c.take(int(n))
}

func (c *cutter) err(what string) error {
	if c.bad {
		return fmt.Errorf("reading %s: %w", what, errMailStored)
	}
	return nil
}

func appendBytes(b, p []byte) []byte { return append(binary.AppendUvarint(b, uint64(len(p))), p...) }

func feedBytes(id feed.FeedID) []byte {
	b := append([]byte(nil), id.Conversation[:]...)
	return append(b, byte(id.Number))
}

// get returns the value of a key, nil if there is none.
func get(tx *storage.Tx, key []byte) ([]byte, error) {
	b, err := tx.Get(key)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, nil
	}
	return b, err
}
