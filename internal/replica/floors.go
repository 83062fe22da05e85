package replica

import (
	"encoding/binary"
	"errors"

	"hima/identity"
	"hima/internal/feed"
	"hima/storage"
)

// floorWish names an account whose chat feeds in a conversation get a new floor (R16).
type floorWish struct {
	conv    feed.ConversationID
	account identity.AccountID
}

// FloorToShown sets the floor of an account's chat feeds in a conversation to their present heads (R16): call it when
// what was refused from now on is taken. What the present heads are only the account's devices know, so a wish is
// stored, and fulfilled when one of them next shows its heads; a run that comes in unrefused before that means that
// nothing was outstanding, and ends the wish. Call Reannounce after the commit, to be shown the heads now if the device
// is connected.
func (r *Replica) FloorToShown(tx *storage.Tx, conv feed.ConversationID, account identity.AccountID) error {
	// When it was wished matters to mail, which shows no heads (see importer.cut).
	since := binary.BigEndian.AppendUint64(nil, uint64(r.cfg.Now().UnixMilli()))
	if err := tx.Set(floorKey(conv, account), since); err != nil {
		return err
	}
	w := floorWish{conv, account}
	tx.OnCommit(func() { r.setWish(w, true) })
	return nil
}

func (r *Replica) setWish(w floorWish, on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if on {
		r.wishes[w] = true
	} else {
		delete(r.wishes, w)
	}
}

func (r *Replica) wished(w floorWish) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.wishes[w]
}

// loadWish returns when a floor was wished for, in Unix milliseconds; before mail there was no time in it.
func loadWish(tx *storage.Tx, w floorWish) (since int64, ok bool, err error) {
	b, err := tx.Get(floorKey(w.conv, w.account))
	if errors.Is(err, storage.ErrNotFound) {
		return 0, false, nil
	}
	if err == nil && len(b) == 8 {
		since = int64(binary.BigEndian.Uint64(b))
	}
	return since, err == nil, err
}

func (r *Replica) endWish(tx *storage.Tx, w floorWish) error {
	if err := tx.Delete(floorKey(w.conv, w.account)); err != nil {
		return err
	}
	tx.OnCommit(func() { r.setWish(w, false) })
	return nil
}

// loadWishes reads the wishes back at the start.
func (r *Replica) loadWishes(tx *storage.Tx) error {
	return tx.Scan(storage.ScanOptions{Prefix: []byte(keyFloor), KeysOnly: true}, func(k, _ []byte) (bool, error) {
		var w floorWish
		if len(k) == len(keyFloor)+64 {
			copy(w.conv[:], k[len(keyFloor):])
			copy(w.account[:], k[len(keyFloor)+32:])
			r.wishes[w] = true
		}
		return true, nil
	})
}

// raiseFloors fulfils a wish with the heads that a device showed of its own chat feed. It trusts them: whoever lies
// about its own feed only cuts itself off.
func (r *Replica) raiseFloors(tx *storage.Tx, conv feed.ConversationID, peer Peer, heads []feed.Head) error {
	wish := floorWish{conv, peer.Account}
	if there, err := tx.Has(floorKey(wish.conv, wish.account)); err != nil || !there {
		return err // fulfilled by heads that came right before these
	}
	for _, h := range heads {
		if h.Number != feed.Chat || h.Device != peer.Device || h.Account != peer.Account || h.Last == 0 {
			continue
		}
		id := feed.FeedID{Conversation: conv, Number: h.Number, Device: h.Device}
		if err := r.raiseFloor(tx, id, h, 0); err != nil {
			return err
		}
	}
	return r.endWish(tx, wish)
}

// raiseFloor makes a feed begin right above a head that was shown, if that is above what is held. The clock of the head
// is 0 if it is not known.
func (r *Replica) raiseFloor(tx *storage.Tx, id feed.FeedID, h feed.Head, clock uint64) error {
	st, err := openFeed(tx, id, h.Account)
	if err != nil || h.Last <= st.last || st.forkAt != 0 || st.account != h.Account {
		return err
	}
	if st.ahead > 0 {
		if err := r.dropAhead(tx, id, &st, st.last+1); err != nil {
			return err
		}
	}
	st.first, st.last, st.hash, st.clock = h.Last+1, h.Last, h.Hash, clock
	st.touched = r.cfg.Now().UnixMilli()
	if err := saveFeed(tx, id, &st); err != nil {
		return err
	}
	tx.OnCommit(func() { r.receipts.changed(id.Conversation, false, h.Account) })
	return nil
}
