package replica

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"hima/identity"
	"hima/internal/feed"
	"hima/storage"
)

// A profile that was restored from a copy, or copied, goes on under a new device key (R3). What it had written under the
// former one and nobody acknowledged is the tail of a former feed. The former key may have gone on elsewhere, so nothing is
// appended to the feed any more. What becomes of its tail depends on whether this database wrote under the key after the copy.
//
// It did not, if the copy is noticed when it is opened: then the tail is the same everywhere, and one last signature with
// the former key, over entries that were there, lets it be served like a feed of any other own device. The entries arrive
// once, whoever brings them. It may have, if a peer had to show that the feed goes on differently: then a signature could make
// a fork of what others hold. Such a tail stands ahead of the end of the feed, unsettled, until others show what follows there.
//
// A signed tail is owed to others like an own feed: by sessions, by mail, and acknowledged by them.

// former are the feeds under former keys that have a tail to be served.
type former struct {
	keys  map[identity.DeviceID]bool
	tails map[feed.ConversationID][]feed.FeedID // control before chat
	owed  map[feed.FeedID]uint64                // where the tail begins
	void  chan struct{}                         // one slot: something is void
}

// keyTail is where it is kept that a former feed was looked at: where its tail begins, and where what can be served ends.
const keyTail = "r/x/"

func tailKey(id feed.FeedID) []byte { return append([]byte(keyTail), feedKey(id)[len(keyFeed):]...) }

// Seal signs what was written under a device key and acknowledged by nobody, so that it can be served when the key is gone.
// To be called before the key is replaced, and only if nothing was written under it since the copy was made. others are the
// account's other devices, of now and of before: what only they acknowledged nobody else has.
func Seal(ctx context.Context, db *storage.DB, account identity.AccountID, key identity.DeviceKey, others []identity.DeviceID) error {
	r := &Replica{cfg: Config{DB: db, Account: account, Key: key, Former: others}, self: key.ID()}
	var own []feed.FeedID
	err := db.View(func(tx *storage.Tx) error {
		return scanFeeds(tx, []byte(keyFeed), func(id feed.FeedID, st feedState) (bool, error) {
			if id.Device == r.self && st.forkAt == 0 {
				own = append(own, id)
			}
			return true, nil
		})
	})
	for _, id := range own {
		for more := err == nil; more; {
			err = db.Update(ctx, func(tx *storage.Tx) (err error) {
				more, err = r.sealSome(tx, id)
				return err
			})
			more = more && err == nil
		}
	}
	if err != nil {
		return fmt.Errorf("signing what a former key wrote: %w", err)
	}
	return nil
}

// sealedAtOnce is how many runs one transaction signs; each writes a row of a few kilobytes.
const sealedAtOnce = 32

// sealSome signs the next runs of a tail and says whether there are more. An entry without body ends it: only the author's
// own device may say that it has none (R9).
func (r *Replica) sealSome(tx *storage.Tx, id feed.FeedID) (more bool, err error) {
	st, _, err := loadFeed(tx, id)
	if err != nil {
		return false, err
	}
	acked, err := r.ackedMost(tx, id)
	if err != nil {
		return false, err
	}
	from, err := servedTo(tx, st, acked)
	for n := 0; err == nil && n < sealedAtOnce; n++ {
		from++
		entries, _, err := r.readRun(tx, id, st, from)
		if err != nil {
			return false, err
		}
		if i := slices.IndexFunc(entries, func(e feed.Entry) bool { return !e.HasBody() }); i >= 0 {
			entries = entries[:i]
		}
		if len(entries) == 0 {
			return false, nil
		}
		last := entries[len(entries)-1]
		if err := replaceStored(tx, st.local, last.Seq, encodeEntry(last, feed.SignRun(r.cfg.Key, last))); err != nil {
			return false, err
		}
		from = last.Seq
	}
	return err == nil, err
}

// ackedMost is up to where any device has acknowledged a feed. Own devices do not count where others are to have it (R14).
func (r *Replica) ackedMost(tx *storage.Tx, id feed.FeedID) (most uint64, err error) {
	own := slices.Clone(r.cfg.Former)
	if r.cfg.Records != nil {
		rec, _ := r.cfg.Records.Record(r.cfg.Account)
		own = slices.Concat(own, r.cfg.Records.Devices(r.cfg.Account), rec.Revoked)
	}
	if id.Conversation == feed.SelfConversation(r.cfg.Account) {
		own = nil
	}
	err = r.AckedBy(tx, id, func(device identity.DeviceID, last uint64) (bool, error) {
		if !slices.Contains(own, device) {
			most = max(most, last)
		}
		return true, nil
	})
	return most, err
}

// servedTo is the last number at or above acked up to which a feed can be served: a signature is held, and all bodies below it.
func servedTo(tx *storage.Tx, st feedState, acked uint64) (uint64, error) {
	end := acked
	err := scanStored(tx, st.local, acked+1, st.last, func(seq uint64, s stored) (bool, error) {
		if s.signature != nil {
			end = seq
		}
		return s.body != nil, nil
	})
	return end, err
}

// loadFormer looks at the feeds under former keys, the new ones among them for the first time.
func (r *Replica) loadFormer() error {
	f := &r.former
	f.void = make(chan struct{}, 1)
	f.keys, f.tails, f.owed = map[identity.DeviceID]bool{}, map[feed.ConversationID][]feed.FeedID{}, map[feed.FeedID]uint64{}
	for _, d := range r.cfg.Former {
		f.keys[d] = d != r.self
	}
	if len(f.keys) == 0 {
		return nil
	}
	var fresh []feed.FeedID
	err := r.view(func(tx *storage.Tx) error {
		return scanFeeds(tx, []byte(keyFeed), func(id feed.FeedID, st feedState) (bool, error) {
			if !f.keys[id.Device] || st.forkAt != 0 {
				return true, nil
			}
			b, err := tx.Get(tailKey(id))
			switch {
			case errors.Is(err, storage.ErrNotFound):
				fresh = append(fresh, id)
				return true, nil
			case err == nil && len(b) != 16:
				err = errStored
			}
			if err == nil {
				f.add(id, binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:]))
			}
			return err == nil, err
		})
	})
	for _, id := range fresh {
		if err != nil {
			break
		}
		var from, last uint64
		err = r.cfg.DB.Update(context.Background(), func(tx *storage.Tx) (err error) {
			from, last, err = r.settleFormer(tx, id)
			return err
		})
		f.add(id, from, last)
	}
	if err != nil {
		return fmt.Errorf("looking at what former keys wrote: %w", err)
	}
	return nil
}

func (f *former) add(id feed.FeedID, from, last uint64) {
	if from > last {
		return
	}
	f.owed[id] = from
	list := append(f.tails[id.Conversation], id)
	slices.SortFunc(list, func(a, b feed.FeedID) int { return int(a.Number) - int(b.Number) })
	f.tails[id.Conversation] = list
}

// settleFormer lets a former feed end where it can be served; what stands above is unsettled from now on. Not so in the self
// conversation, which has nobody else who could hold it, nor the acts of a group, which others follow upon.
func (r *Replica) settleFormer(tx *storage.Tx, id feed.FeedID) (from, last uint64, err error) {
	st, _, err := loadFeed(tx, id)
	if err != nil {
		return 0, 0, err
	}
	acked, err := r.ackedMost(tx, id)
	if err != nil {
		return 0, 0, err
	}
	if last, err = servedTo(tx, st, acked); err != nil {
		return 0, 0, err
	}
	act := id.Number == feed.Control && r.cfg.Members.Lazy(tx, id.Conversation)
	if last < st.last && last >= st.first-1 && !act && id.Conversation != feed.SelfConversation(r.cfg.Account) {
		// What is written next stands behind it all the same.
		if err := r.seen(tx, id.Conversation, st.clock, st.touched); err != nil {
			return 0, 0, err
		}
		end := feed.Tip{}
		if last > 0 {
			s, ok, err := loadStored(tx, st.local, last)
			if err != nil || !ok {
				return 0, 0, errors.Join(err, errStored)
			}
			e, err := s.entry()
			if err != nil {
				return 0, 0, err
			}
			end = e.Tip()
		}
		st.ahead += uint32(st.last - last)
		st.last, st.hash, st.clock = last, end.Hash, end.Clock
		if err := saveFeed(tx, id, &st); err != nil {
			return 0, 0, err
		}
	}
	b := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, acked+1), last)
	return acked + 1, last, tx.Set(tailKey(id), b)
}

// owes says whether a feed is one whose acknowledgements matter: of this device, or the tail of a former one.
func (r *Replica) owes(id feed.FeedID) bool {
	return id.Device == r.self || r.former.owed[id] > 0
}

// GivenUp says whether a database was written under another key after this one, so that what stood under this one was
// settled as of a former key: numbers below what it wrote are free again then, and must never be used (R1).
func GivenUp(db *storage.DB, device identity.DeviceID) (found bool, err error) {
	err = db.View(func(tx *storage.Tx) error {
		return tx.Scan(storage.ScanOptions{Prefix: []byte(keyTail)}, func(k, _ []byte) (bool, error) {
			found = bytes.HasSuffix(k, device[:])
			return !found, nil
		})
	})
	if err != nil {
		return false, fmt.Errorf("looking for what a key wrote: %w", err)
	}
	return found, nil
}
