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
	keyBlock    = "m/i/" // local feed number 4, sequence / 64 8: arrival block
	keyEvent    = "m/e/" // sequence 8: event record
	keyEventEnd = "m/E"  // next sequence 8, first sequence kept 8
	keyContact  = "m/c/" // account 32: contact row
	keySetting  = "m/s/" // key: setting row
	keyInvite   = "m/v/" // token 16: invite row
	keyIdem     = "m/q/" // hash 16 of an idempotency key: expiry ms 8, local feed number 4, sequence 8
	keyIdemEnd  = "m/o/" // expiry ms 8, hash 16
	keyRecalled = "m/x/" // entry ID 32: its author took it back
	keyQuota    = "m/Q"  // how many strangers cost something now
	keyRefused  = "m/R/" // account 32: a stranger whose texts were refused
	keyGrant    = "m/G/" // account 32, device 32: what a contact's node offers
	keyGiven    = "m/H/" // account 32: what this node offers
	keySnapshot = "m/S"  // hash 32 of the snapshot that was left at the mailboxes last
	keyRestored = "m/D"  // this device was made from the recovery phrase: contacts are rebuilt from what others hold
	keyReach    = "m/A/" // local feed number 4, account 32: how far a member of a group has an own feed
	keyAgain    = "m/a/" // entry ID 32 of an own message under a former key: ID 32 of the one that was written in its place
	keyNote     = "m/n/" // conversation 32, time 8: a line of history that is no entry
)

// localFeed is a small number for a feed, so that the row kept per message is small.
type localFeed uint32

// tables numbers the feeds.
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
