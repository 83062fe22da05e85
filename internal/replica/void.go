package replica

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/storage"
)

// What others hold something else in the place of is void, and is said again under the new key (R3). It may be what was written in
// months, while a transaction takes about a megabyte. So a short tail is replaced at once, together with the run that shows what is
// there instead. Of a longer one it is noted from where on it is void, and it is said again and taken away in steps, each a
// transaction. Nothing that reaches so far is taken meanwhile. What contradicts it would make what is left of it something that does not
// follow, to be dropped unsaid; what stands behind it would be taken away with it; and what says the same would end the replacing half way.
//
// It is said again from its beginning, so that the order stays, and taken away from its end when all of it was said. Thus what is
// stored is the beginning of the tail at every moment, and the note says where to go on after a crash.

// keyVoid is where the note is kept: from where on a former feed is void, and what is to be said again next; 0: nothing any more.
const keyVoid = "r/y/"

const (
	// voidAtOnce and voidBytesAtOnce, with headers, are what one transaction replaces at once. A mail may show dozens of tails in one.
	voidAtOnce      = 64
	voidBytesAtOnce = 64 << 10
	// voidEntries, voidBytes and voidRows bound a step. Whoever says an entry again writes little more than the entry.
	voidEntries = 256
	voidBytes   = 384 << 10
	voidRows    = 256
)

type void struct{ from, next uint64 }

// atOnce is what a transaction replaced at once.
type atOnce struct{ entries, bytes int }

func voidKey(id feed.FeedID) []byte { return append([]byte(keyVoid), feedKey(id)[len(keyFeed):]...) }

func loadVoid(tx *storage.Tx, id feed.FeedID) (v void, ok bool, err error) {
	b, err := tx.Get(voidKey(id))
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return v, false, nil
	case err == nil && len(b) != 16:
		err = fmt.Errorf("reading what is void of a feed: %w", errStored)
	case err == nil:
		v = void{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}
	}
	return v, err == nil, err
}

func saveVoid(tx *storage.Tx, id feed.FeedID, v void) error {
	return tx.Set(voidKey(id), binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, v.from), v.next))
}

// contradicted is what becomes of a run that says something else under a former key than an unsettled entry does.
func (r *Replica) contradicted(tx *storage.Tx, in arrived, id feed.FeedID, st *feedState, e feed.Entry) (out outcome, found bool, err error) {
	// A session goes on from the end that our head tells, so there the branches part where they first differ. What comes by another
	// road may begin behind that place: what stands above would be said again before what stands below.
	if in.by == nil && e.Seq > st.last+1 {
		before, ok, err := loadStored(tx, st.local, e.Seq-1)
		if err != nil {
			return out, false, err
		}
		parts := false
		if ok {
			last, err := before.entry()
			if err != nil {
				return out, false, err
			}
			parts = last.ID == e.Prev
		}
		if !parts {
			out, busy, err := r.replacing(tx, in.run)
			if !busy && err == nil {
				// Nobody tells when it can be taken: not before somebody showed what lies below, who then shows this too.
				out = outcome{code: pb.Code_CODE_FULL, from: e.Seq}
			}
			return out, true, err
		}
	}
	// What is not done at once takes a moment. Whoever is refused comes again when heads are told anew.
	if in.atOnce == nil {
		in.atOnce = &atOnce{}
	}
	done, err := r.replaceUnsettled(tx, id, st, e.Seq, in.atOnce)
	return outcome{code: pb.Code_CODE_FULL, from: e.Seq, later: true}, !done, err
}

// replacing says that a run reaches into what is being replaced, and what to answer then.
func (r *Replica) replacing(tx *storage.Tx, run feed.Run) (out outcome, busy bool, err error) {
	id := run.Feed()
	if !r.former.keys[id.Device] {
		return out, false, nil
	}
	v, noted, err := loadVoid(tx, id)
	if !noted || err != nil || run.Last().Seq < v.from {
		return out, false, err
	}
	return outcome{code: pb.Code_CODE_FULL, from: max(run.First().Seq, v.from), later: true}, true, nil
}

// Replacing says whether something under a former key is being replaced: what Import leaves for later can be taken when it is not.
func (r *Replica) Replacing() (found bool, err error) {
	err = r.view(func(tx *storage.Tx) error {
		return tx.Scan(storage.ScanOptions{Prefix: []byte(keyVoid), KeysOnly: true, Limit: 1}, func(_, _ []byte) (bool, error) {
			found = true
			return false, nil
		})
	})
	if err != nil {
		return false, fmt.Errorf("looking for what is being replaced: %w", err)
	}
	return found, nil
}

// replaceUnsettled gives up the unsettled tail of a former feed from a number on: others hold something else there. It says
// whether that is done, so that what they hold can be stored. sum is what the transaction did at once before, and then with it.
func (r *Replica) replaceUnsettled(tx *storage.Tx, id feed.FeedID, st *feedState, from uint64, sum *atOnce) (done bool, err error) {
	v, noted, err := loadVoid(tx, id)
	if err != nil {
		return false, err
	}
	if !noted {
		all := *sum
		err := scanStored(tx, st.local, from, 0, func(_ uint64, s stored) (bool, error) {
			all.entries, all.bytes = all.entries+1, all.bytes+len(s.header)+len(s.body)
			return all.fits(), nil
		})
		if err != nil {
			return false, err
		}
		if all.fits() {
			*sum = all
			gone, _, err := voidPart(tx, st.local, void{from, from})
			if err == nil {
				err = r.replaced(tx, gone)
			}
			if err == nil {
				err = r.dropVoid(tx, id, st, from-1)
			}
			return true, err
		}
	}
	if noted && from >= v.from {
		return false, nil // under way, or waiting after a failure, which is not over because somebody shows it once more
	}
	tx.OnCommit(r.former.wakeVoid)
	return false, saveVoid(tx, id, void{from, from})
}

func (a atOnce) fits() bool { return a.entries <= voidAtOnce && a.bytes <= voidBytesAtOnce }

// voidPart reads what is to be said again next of a void tail, and says whether nothing is behind it. What does not follow came
// from others, of whose branch it is. They show it again.
func voidPart(tx *storage.Tx, l localFeed, v void) (gone []feed.Entry, end bool, err error) {
	var before feed.EntryID
	if v.next > v.from {
		s, ok, err := loadStored(tx, l, v.next-1)
		if err == nil && !ok {
			err = fmt.Errorf("saying again what is void from %d on: %w", v.from, errStored) // what is not said may not be taken away
		}
		if err != nil {
			return nil, false, err
		}
		e, err := s.entry()
		if err != nil {
			return nil, false, err
		}
		before = e.ID
	}
	size := 0
	end = true
	err = scanStored(tx, l, v.next, 0, func(seq uint64, s stored) (bool, error) {
		e, err := s.entry()
		if err != nil || seq > v.from && e.Prev != before {
			return false, err
		}
		if end = len(gone) < voidEntries && size < voidBytes; !end {
			return false, nil
		}
		gone, before, size = append(gone, e), e.ID, size+e.WireSize()
		return true, nil
	})
	return gone, end, err
}

func (r *Replica) replaced(tx *storage.Tx, gone []feed.Entry) error {
	if r.cfg.OnReplaced == nil || len(gone) == 0 {
		return nil
	}
	if err := r.cfg.OnReplaced(tx, gone); err != nil {
		return fmt.Errorf("telling of entries that were replaced: %w", err)
	}
	return nil
}

// dropVoid forgets what stands above a number of a former feed.
func (r *Replica) dropVoid(tx *storage.Tx, id feed.FeedID, st *feedState, above uint64) error {
	all := uint32(0)
	err := scanStored(tx, st.local, above+1, 0, func(uint64, stored) (bool, error) {
		all++
		return true, nil
	})
	if err == nil {
		err = r.tellDropped(tx, id, above+1)
	}
	if err == nil {
		err = deleteAbove(tx, st.local, above)
	}
	if err != nil {
		return err
	}
	st.ahead -= min(st.ahead, all)
	return saveFeed(tx, id, st)
}

// voidStep does the next step with a void tail and says whether there are more.
func (r *Replica) voidStep(tx *storage.Tx, id feed.FeedID) (more bool, err error) {
	v, noted, err := loadVoid(tx, id)
	if !noted || err != nil {
		return false, err
	}
	st, known, err := loadFeed(tx, id)
	if err != nil {
		return false, err
	}
	if !known || st.last >= v.from {
		return false, tx.Delete(voidKey(id)) // somebody had it after all
	}
	if v.next > 0 {
		gone, end, err := voidPart(tx, st.local, v)
		if err == nil {
			err = r.replaced(tx, gone)
		}
		if err != nil {
			return false, err
		}
		if v.next += uint64(len(gone)); end {
			v.next = 0
		}
		return true, saveVoid(tx, id, v)
	}
	above, rows := v.from-1, 0
	o := storage.ScanOptions{Prefix: localKey(keyEntry, st.local, 0), Reverse: true, KeysOnly: true, Limit: voidRows}
	err = tx.Scan(o, func(k, _ []byte) (bool, error) {
		seq := binary.BigEndian.Uint64(k[len(k)-8:])
		if seq < v.from {
			return false, nil
		}
		if rows++; rows == voidRows {
			above = seq // the lowest of this step stays for the next one
		}
		return true, nil
	})
	// Of a feed that forked both branches stay, to prove it with.
	if err == nil && st.forkAt == 0 {
		err = r.dropVoid(tx, id, &st, above)
	}
	if err != nil || above >= v.from && st.forkAt == 0 {
		return err == nil, err
	}
	return false, tx.Delete(voidKey(id))
}

// replaceVoid says again and takes away what was found to be void, and then lets others show what they hold in its place.
func (r *Replica) replaceVoid(ctx context.Context) error {
	var ids []feed.FeedID
	err := r.view(func(tx *storage.Tx) error {
		return tx.Scan(storage.ScanOptions{Prefix: []byte(keyVoid), KeysOnly: true}, func(k, _ []byte) (bool, error) {
			id, err := parseFeedKey(append([]byte(keyFeed), k[len(keyVoid):]...))
			ids = append(ids, id)
			return true, err
		})
	})
	for _, id := range ids {
		// What fails in one feed keeps no other from going on.
		if e := r.replaceFeed(ctx, id); e != nil {
			err = errors.Join(err, e)
			continue
		}
		r.Reannounce(id.Conversation)
		if r.cfg.AfterReplaced != nil {
			r.cfg.AfterReplaced(id.Conversation)
		}
	}
	if err != nil {
		return fmt.Errorf("replacing what a former key wrote: %w", err)
	}
	return nil
}

func (r *Replica) replaceFeed(ctx context.Context, id feed.FeedID) (err error) {
	for more := true; more && err == nil; {
		err = r.cfg.DB.Update(ctx, func(tx *storage.Tx) (err error) {
			more, err = r.voidStep(tx, id)
			return err
		})
	}
	return err
}

// voidRetry and voidRetryCap are the pauses after a step that failed, as on a full disk: nobody shows such a run again by himself.
const voidRetry, voidRetryCap = 15 * time.Second, time.Hour

// runVoid does so at the start, whenever more is found, and again after a failure, until ctx ends.
func (r *Replica) runVoid(ctx context.Context) {
	pause := voidRetry
	var again <-chan time.Time
	for {
		err := r.replaceVoid(ctx)
		switch {
		case err == nil:
			again, pause = nil, voidRetry
		case ctx.Err() == nil:
			r.log.Warn("working in the background", "error", err)
			if again == nil {
				again = time.After(pause)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-r.former.void: // more is found, which neither ends the pause of what failed nor makes it longer
		case <-again:
			again, pause = nil, min(2*pause, voidRetryCap)
		}
	}
}

func (f *former) wakeVoid() {
	select {
	case f.void <- struct{}{}:
	default:
	}
}
