package replica

import (
	"fmt"

	"hima/identity"
	"hima/internal/feed"
	"hima/storage"
)

// A newcomer of a group begins the chat feeds of the others where it was let in (R30), which only those know who hold
// what was before: it takes the first number that somebody shows as the floor. Somebody who lies, or who came late
// himself, shows too high a number. So the floor falls again when another one shows what lies below; what stands above
// counts as ahead of a gap until the gap is filled.

// begins says whether a run that stands ahead of what is held may begin its feed, and sets the feed up for that. What
// is set up is not stored yet.
func (r *Replica) begins(tx *storage.Tx, in *arrived, id feed.FeedID, st *feedState) (bool, error) {
	if id.Number != feed.Chat || st.last != 0 || in.run.First().Seq == 1 {
		return false, nil
	}
	first, ok, err := r.mayBegin(tx, id)
	if !ok || err != nil {
		return false, err
	}
	return r.beginAt(in, st, first), nil
}

// lowers says whether a run brings what lies below the floor of a feed that this device began as a newcomer.
func (r *Replica) lowers(tx *storage.Tx, in *arrived, id feed.FeedID, st *feedState) (bool, error) {
	if id.Number != feed.Chat || in.run.First().Seq >= st.first {
		return false, nil
	}
	first, ok, err := r.mayBegin(tx, id)
	if !ok || err != nil || max(first, in.run.First().Seq) >= st.first {
		return false, err
	}
	held := st.ahead + uint32(st.last+1-st.first)
	if !r.beginAt(in, st, first) {
		return false, nil
	}
	st.ahead = held
	return true, nil
}

// mayBegin returns from where on this device may take a feed that it may begin above 1; 0: not known.
func (r *Replica) mayBegin(tx *storage.Tx, id feed.FeedID) (first uint64, ok bool, err error) {
	if !r.cfg.Members.Lazy(tx, id.Conversation) {
		return 0, false, nil
	}
	w, err := r.cfg.Members.Window(tx, id.Conversation, r.cfg.Account)
	if w == nil || err != nil {
		return 0, false, err
	}
	first, last := w(id)
	return first, first != 1 && last > 0, nil
}

// beginAt makes a run the beginning of its feed; what of it lies below first is left away.
func (r *Replica) beginAt(in *arrived, st *feedState, first uint64) bool {
	run, ok := in.run.From(first)
	if !ok {
		return false
	}
	in.run = run
	e := run.First()
	if st.account.IsZero() {
		st.account = e.Account
	}
	st.first, st.last, st.hash, st.clock = e.Seq, e.Seq-1, e.Prev, 0
	return true
}

// certified says whether a certificate ties the device of a run to its account.
func certified(raw []byte, run feed.Run) bool {
	if len(raw) == 0 || len(raw) > feed.MaxCertificate {
		return false
	}
	cert, err := identity.ParseCertificate(raw)
	return err == nil && cert.Account == run.Account() && cert.Device == run.Feed().Device
}

// keyCertificate is where the certificate of a feed's device is kept, if the feed began above 1 here.
const keyCertificate = "r/k/"

// certificate returns the certificate of a feed's device; nil if it is not held.
func (r *Replica) certificate(tx *storage.Tx, id feed.FeedID) ([]byte, error) {
	st, ok, err := loadFeed(tx, id)
	if !ok || err != nil {
		return nil, err
	}
	if s, ok, err := loadStored(tx, st.local, 1); err != nil {
		return nil, err
	} else if ok {
		e, err := s.entry()
		return e.Certificate, err
	}
	key := localKey(keyCertificate, st.local, 0)
	if ok, err := tx.Has(key); !ok || err != nil {
		return nil, err
	}
	raw, err := tx.Get(key)
	if err != nil {
		return nil, fmt.Errorf("reading a certificate: %w", err)
	}
	return raw, nil
}
