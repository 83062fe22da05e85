package replica

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/storage"
)

// A feed that forked (R3) leaves heads, digests and serving altogether on everybody who holds the proof, so that two
// devices that hold different branches are in sync again. Whoever still lists the feed is sent the proof.

// conflict handles a run that verified and contradicts what is held.
func (r *Replica) conflict(tx *storage.Tx, in arrived, id feed.FeedID, st feedState) (outcome, error) {
	first, last := in.run.First().Seq, in.run.Last().Seq
	if first > st.last {
		// The branches parted before this run. When heads are compared, the side that sees the difference sends the part
		// that overlaps.
		return outcome{behind: true}, nil
	}
	// The longer our run reaches back, the earlier the place where the branches parted is found.
	var proof feed.ForkProof
	var mine *feed.Run
	for _, from := range []uint64{max(first, st.first), min(last, st.last)} {
		var err error
		if mine, err = r.runCovering(tx, id, st, from); err != nil {
			return outcome{}, err
		}
		if mine == nil {
			continue
		}
		if proof, err = feed.NewForkProof(*mine, in.run); err == nil {
			break
		}
		mine = nil
	}
	if mine == nil {
		return outcome{}, nil // it proves nothing, or nothing is held to prove it with
	}
	if err := r.fork(tx, id, st, proof, partedAt(*mine, in.run)); err != nil {
		return outcome{}, err
	}
	return outcome{proof: &proof}, nil
}

// partedAt returns the first number at which two overlapping runs differ.
func partedAt(a, b feed.Run) uint64 {
	ea, eb := a.Entries(), b.Entries()
	from := max(ea[0].Seq, eb[0].Seq)
	for ea[0].Seq < from {
		ea = ea[1:]
	}
	for eb[0].Seq < from {
		eb = eb[1:]
	}
	for i := 0; i < len(ea) && i < len(eb); i++ {
		if ea[i].ID != eb[i].ID {
			return ea[i].Seq
		}
	}
	return from
}

// fork marks a feed as forked and keeps the proof.
func (r *Replica) fork(tx *storage.Tx, id feed.FeedID, st feedState, proof feed.ForkProof, at uint64) error {
	if st.forkAt != 0 && st.forkAt <= at {
		return nil
	}
	st.forkAt = at
	if err := saveFeed(tx, id, &st); err != nil {
		return err
	}
	raw, err := proto.Marshal(proof.PB())
	if err != nil {
		return fmt.Errorf("encoding fork proof: %w", err)
	}
	if err := tx.Set(localKey(keyProof, st.local, 0), raw); err != nil {
		return err
	}
	if err := r.cfg.Hooks.Forked(tx, Fork{Feed: id, At: at}); err != nil {
		return fmt.Errorf("telling of a fork: %w", err)
	}
	if id.Device == r.self {
		tx.OnCommit(func() { r.diverge(id) })
	}
	return nil
}

// takeProof stores a proof that a peer showed. Proofs of feeds that are not held are not kept: nothing is served of
// them, and a stranger could send any number.
func (r *Replica) takeProof(tx *storage.Tx, proof feed.ForkProof) error {
	id := proof.Feed()
	st, ok, err := loadFeed(tx, id)
	if err != nil || !ok || st.account != proof.Account() {
		return err
	}
	return r.fork(tx, id, st, proof, proof.Seq())
}

func loadProof(tx *storage.Tx, l localFeed) (*feed.ForkProof, error) {
	b, err := tx.Get(localKey(keyProof, l, 0))
	if errors.Is(err, storage.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var raw pb.ForkProof
	if err := proto.Unmarshal(b, &raw); err != nil {
		return nil, fmt.Errorf("reading fork proof: %w", err)
	}
	proof, err := feed.CheckForkProof(&raw)
	if err != nil {
		return nil, fmt.Errorf("reading fork proof: %w", err)
	}
	return &proof, nil
}

// runCovering makes a run of held entries that contains a number; nil if no signature at or after it is held.
func (r *Replica) runCovering(tx *storage.Tx, id feed.FeedID, st feedState, seq uint64) (*feed.Run, error) {
	entries, sig, err := r.readRun(tx, id, st, seq)
	if err != nil || len(entries) == 0 {
		return nil, err
	}
	run, err := feed.Assemble(entries, sig)
	if err != nil {
		return nil, err
	}
	return &run, nil
}

// diverge stops this device from writing under its key; the daemon gives it a new one.
func (r *Replica) diverge(id feed.FeedID) {
	if r.diverged.CompareAndSwap(false, true) {
		r.log.Error("own feed is longer or different elsewhere, nothing more is written under this key", "feed", id.Number.String())
		r.cfg.Hooks.OwnFeedDiverged(id)
	}
}

// Diverged says whether a peer proved that the own feed diverged (R3).
func (r *Replica) Diverged() bool { return r.diverged.Load() }
