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
//
// A control feed of a group goes on as if it ended where the branches part: what is before counts for everybody, and
// somebody who comes later needs it. That everybody folds the same acts, everybody must find the same place. A proof
// shows it if the two runs that it was made of reach back so far; if they do not, both sides show each other earlier
// runs until one does. A place further down takes over and is told to all sessions, which costs one proof each.

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
	at, sure := partedAt(*mine, in.run), true
	if r.endsAtFork(tx, id) {
		short, err := r.shortProof(tx, st, *mine, in.run)
		if err != nil {
			return outcome{}, err
		}
		if short != nil {
			proof = *short
		}
		at, sure = proof.Parted()
	}
	if err := r.fork(tx, id, st, proof, at); err != nil {
		return outcome{}, err
	}
	out := outcome{proof: &proof}
	var err error
	if !sure {
		out.clash, err = r.runCovering(tx, id, st, max(st.first, at-min(at, maxLookBack)))
	}
	return out, err
}

// maxLookBack is how far back of a known difference both sides look for the place where two branches part.
const maxLookBack = 200

// endsAtFork says whether a feed that forked goes on with what both branches have in common.
func (r *Replica) endsAtFork(tx *storage.Tx, id feed.FeedID) bool {
	return id.Number == feed.Control && r.cfg.Members.Lazy(tx, id.Conversation)
}

// uptoFork returns the state of a feed as far as it takes part in sync; ok is false if it does not. The hash is not that
// of the new end.
func (r *Replica) uptoFork(tx *storage.Tx, id feed.FeedID, st feedState) (feedState, bool) {
	if st.forkAt == 0 {
		return st, true
	}
	st.last = min(st.last, st.forkAt-1)
	return st, st.last > 0 && r.endsAtFork(tx, id)
}

// forked looks at a run of a feed that forked. It says whether the run belongs to what the branches have in common; else
// the answer to it is the proof, which is a better one if the run shows that they part earlier.
func (r *Replica) forked(tx *storage.Tx, in arrived, id feed.FeedID, st feedState) (common bool, out outcome, err error) {
	proof, err := loadProof(tx, st.local)
	out.proof = proof
	if err != nil || !r.endsAtFork(tx, id) {
		return false, out, err
	}
	first, last := in.run.First().Seq, in.run.Last().Seq
	if last < st.forkAt {
		return true, out, nil
	}
	mine, err := r.runCovering(tx, id, st, max(first, st.first))
	if mine == nil || err != nil {
		return false, out, err
	}
	better, err := r.shortProof(tx, st, *mine, in.run)
	if better == nil || err != nil {
		return false, out, err
	}
	at, sure := better.Parted()
	if at > st.forkAt || at == st.forkAt && !sure {
		return false, out, nil
	}
	out.proof = better
	if !sure {
		if out.clash, err = r.runCovering(tx, id, st, max(st.first, at-min(at, maxLookBack))); err != nil {
			return false, out, err
		}
	}
	return false, out, r.fork(tx, id, st, *better, at)
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

// shortProof makes a proof of two runs that differ with as little as possible of the own branch, so that it has room for
// all from the place where they part; nil if they do not differ or no signature is at hand.
func (r *Replica) shortProof(tx *storage.Tx, st feedState, mine, theirs feed.Run) (*feed.ForkProof, error) {
	proof, err := feed.NewForkProof(mine, theirs)
	if err != nil {
		return nil, nil
	}
	short, err := r.runAhead(tx, st, partedAt(mine, theirs), 0)
	if short == nil || err != nil {
		return &proof, err
	}
	if better, err := feed.NewForkProof(*short, theirs); err == nil {
		proof = better
	}
	return &proof, nil
}

// fork marks a feed as forked and keeps the proof.
func (r *Replica) fork(tx *storage.Tx, id feed.FeedID, st feedState, proof feed.ForkProof, at uint64) error {
	lower := st.forkAt == 0 || at < st.forkAt
	_, sure := proof.Parted()
	if !lower && (at > st.forkAt || !sure || !r.endsAtFork(tx, id)) {
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
	if !lower {
		return nil // the same place, but now it is sure
	}
	if r.endsAtFork(tx, id) {
		tx.OnCommit(func() { r.changedHead(id) })
	} else {
		tx.OnCommit(func() { r.showFork(id, at, proof) })
	}
	if err := r.cfg.Hooks.Forked(tx, Fork{Feed: id, At: at}); err != nil {
		return fmt.Errorf("telling of a fork: %w", err)
	}
	if id.Device == r.self {
		tx.OnCommit(func() { r.diverge(id) })
	}
	return nil
}

// showFork sends a proof to all sessions that may have that part of the feed: heads are compared when a session begins, and those
// who hold one branch would not hear of it as long as it lasts.
func (r *Replica) showFork(id feed.FeedID, at uint64, proof feed.ForkProof) {
	for _, s := range r.streams.having(id.Conversation) {
		s.mu.Lock()
		if c := s.convs[id.Conversation]; c != nil && c.phase == phaseOpen {
			if first, last := c.window.bounds(id); first <= last && at <= last {
				s.pushLocked(&pb.Frame{Of: &pb.Frame_Fork{Fork: proof.PB()}})
			}
		}
		s.mu.Unlock()
		s.poke()
	}
}

// takeProof stores a proof that a peer showed. Proofs of feeds that are not held are not kept: nothing is served of
// them, and a stranger could send any number.
func (r *Replica) takeProof(tx *storage.Tx, proof feed.ForkProof) error {
	id := proof.Feed()
	st, ok, err := loadFeed(tx, id)
	if err != nil || !ok || st.account != proof.Account() {
		return err
	}
	at := proof.Seq()
	if r.endsAtFork(tx, id) {
		at, _ = proof.Parted()
	}
	return r.fork(tx, id, st, proof, at)
}

// Prove takes a proof that came over another road than a session. As in a session, one of a feed that is not held is not kept.
func (r *Replica) Prove(tx *storage.Tx, proof feed.ForkProof) error { return r.takeProof(tx, proof) }

// Proof returns the proof that a feed forked; nil if it did not, as far as is known.
func (r *Replica) Proof(tx *storage.Tx, id feed.FeedID) (*feed.ForkProof, error) {
	st, ok, err := loadFeed(tx, id)
	if !ok || err != nil || st.forkAt == 0 {
		return nil, err
	}
	return loadProof(tx, st.local)
}

// Branch returns what is held of a feed from one number to another where it has forked: headers alone, for those whose acts name
// one of them. They may be of several branches. Nothing else is served of a branch.
func (r *Replica) Branch(tx *storage.Tx, id feed.FeedID, from, last uint64) (out []feed.Entry, err error) {
	st, ok, err := loadFeed(tx, id)
	if err != nil || !ok || st.forkAt == 0 || from < st.forkAt {
		return nil, err
	}
	err = scanStored(tx, st.local, from, last, func(_ uint64, s stored) (bool, error) {
		e, err := s.entry()
		out = append(out, e.WithoutBody())
		return err == nil, err
	})
	return out, err
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

// runCovering makes a run of held entries that contains a number; nil if no signature at or after it is held. It looks for the
// place where two branches part, so it goes on behind a removal: what lies between there and the next signature would never be
// compared.
func (r *Replica) runCovering(tx *storage.Tx, id feed.FeedID, st feedState, seq uint64) (*feed.Run, error) {
	entries, sig, err := r.readWhole(tx, id, st, seq, func([]feed.Entry, *feed.Entry) bool { return false })
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
