package replica

import (
	"hima/internal/feed"
	"hima/storage"
)

// conflictAhead finds out whether a run contradicts entries that stand ahead of a gap. Both were signed by the author,
// so two with one number are a fork (R3), and not a correction of what was already shown.
func (r *Replica) conflictAhead(tx *storage.Tx, in arrived, id feed.FeedID, st *feedState) (out outcome, found bool, err error) {
	if st.ahead == 0 {
		return outcome{}, false, nil
	}
	for _, e := range in.run.Entries() {
		if e.Seq <= st.last {
			continue
		}
		s, ok, err := loadStored(tx, st.local, e.Seq)
		if err != nil {
			return outcome{}, false, err
		}
		if !ok {
			continue
		}
		mine, err := s.entry()
		if err != nil {
			return outcome{}, false, err
		}
		if mine.ID == e.ID {
			continue
		}
		run, err := r.runAhead(tx, *st, e.Seq, e.Seq)
		if err == nil && run == nil && r.former.keys[id.Device] {
			return r.contradicted(tx, in, id, st, e)
		}
		if run == nil || err != nil {
			return outcome{}, false, err
		}
		proof, err := feed.NewForkProof(*run, in.run)
		if err != nil {
			return outcome{}, false, nil // the one that is not at hand would prove it
		}
		if err := r.fork(tx, id, *st, proof, e.Seq); err != nil {
			return outcome{}, false, err
		}
		return outcome{proof: &proof}, true, nil
	}
	return outcome{}, false, nil
}

// runAhead makes a run of entries that may stand ahead of a gap, from a number to the first signature at or after another; nil if
// they are none.
func (r *Replica) runAhead(tx *storage.Tx, st feedState, from, through uint64) (*feed.Run, error) {
	var entries []feed.Entry
	var signature []byte
	err := scanStored(tx, st.local, from, 0, func(seq uint64, s stored) (bool, error) {
		if seq != from+uint64(len(entries)) || len(entries) == feed.MaxRunEntries {
			return false, nil
		}
		e, err := s.entry()
		if err != nil {
			return false, err
		}
		entries, signature = append(entries, e), s.signature
		return signature == nil || seq < through, nil
	})
	if err != nil || signature == nil {
		return nil, err
	}
	run, err := feed.Assemble(entries, signature)
	if err != nil {
		return nil, nil // of several branches: no run
	}
	return &run, nil
}
