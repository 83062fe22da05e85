package replica

import (
	"errors"
	"fmt"

	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/storage"
)

// arrived is a run that is sound by itself and is about to be linked to what is held.
type arrived struct {
	peer    Peer
	run     feed.Run
	knock   *Knock
	backlog bool
	check   *checking // of the signature; nil: it is good

	by          *session // that brought it; nil: another road
	news        int      // of its conversation there, when it came
	certificate []byte   // of the author's device, not checked; nil: none came along

	atOnce *atOnce // what the same transaction replaced before; nil: nothing, and no other run comes in it
}

// checking is the check of a run's signature while the committer already prepares what follows from it.
type checking struct {
	done chan struct{} // closed when err is set
	err  error
}

// settle waits for the check. It must come before the end of the transaction, which an error undoes.
func (in *arrived) settle() error {
	if in.check == nil {
		return nil
	}
	<-in.check.done
	return in.check.err
}

// outcome is what to answer to a run. The zero outcome answers nothing.
type outcome struct {
	ack    *feed.Head      // held durably up to here
	code   pb.Code         // not taken from number from on, if not CODE_TAKEN and not 0
	from   uint64          //
	behind bool            // it lies below our floor, or its end contradicts ours: compare heads again
	proof  *feed.ForkProof // the feed forked
	clash  *feed.Run       // an earlier part of our branch, to find out where it parted
	alien  bool            // nothing is held of the feed
	own    bool            // it proves that the own feed diverged
	later  bool            // the same can be taken once what stands in its place was replaced
}

// apply links a run to its feed and stores what is new of it. It runs inside a transaction; an error means that the own
// database failed, never that the run was bad.
func (r *Replica) apply(tx *storage.Tx, in arrived) (outcome, error) {
	id := in.run.Feed()
	if id.Device == r.self {
		return r.applyOwn(tx, in, id)
	}
	st, known, err := loadFeed(tx, id)
	if err != nil {
		return outcome{}, err
	}
	if st.forkAt != 0 {
		common, out, err := r.forked(tx, in, id, st)
		if !common || err != nil {
			return out, err
		}
	}
	lower, err := r.lowers(tx, &in, id, &st)
	if err != nil {
		return outcome{}, err
	}
	if in.run.Last().Seq < st.first {
		return outcome{behind: true}, nil
	}
	first := in.run.First().Seq
	// In a group its acts say what of a revoked device's feeds counts (R25), so the gate judges.
	if rec, ok := r.cfg.Records.Record(in.run.Account()); ok && rec.Revokes(id.Device) && !r.cfg.Members.Lazy(tx, id.Conversation) {
		return outcome{code: pb.Code_CODE_DENIED, from: first, alien: !known}, nil
	}
	begins, err := r.begins(tx, &in, id, &st)
	if err != nil {
		return outcome{}, err
	}
	first = in.run.First().Seq
	fresh := in.run
	detached := first > st.last+1
	if detached || begins {
		// Nothing ties the device to the account yet, except a session with that very device or its account's record.
		if !r.authored(in, st, known) {
			return outcome{code: pb.Code_CODE_BAD, from: first, alien: !known}, nil
		}
	}
	if !detached {
		fresh, err = in.run.After(st.tip())
	}
	switch {
	case err == nil:
	case errors.Is(err, feed.ErrKnown):
		return r.knownAgain(tx, in, id, st)
	case errors.Is(err, feed.ErrFork):
		return r.conflict(tx, in, id, st)
	default:
		return outcome{code: pb.Code_CODE_BAD, from: first, alien: !known}, nil
	}
	if out, found, err := r.conflictAhead(tx, in, id, &st); found || err != nil {
		return out, err
	}
	if out, busy, err := r.replacing(tx, in.run); busy || err != nil {
		return out, err
	}
	if !detached {
		holes, err := r.hasHole(tx, in.peer, fresh)
		if err != nil {
			return outcome{}, err
		}
		detached = holes
	}
	out, err := r.store(tx, in, id, st, known, fresh, detached)
	if lower && out.ack != nil {
		tx.OnCommit(func() { r.changedHead(id) })
	}
	return out, err
}

// changedHead tells the sessions of a group that the head of a feed changed otherwise than by growing.
func (r *Replica) changedHead(id feed.FeedID) {
	for _, s := range r.streams.having(id.Conversation) {
		s.mu.Lock()
		c := s.convs[id.Conversation]
		c.change(id)
		s.enqueue(c)
		s.mu.Unlock()
	}
}

// authored says whether the account that a detached run names is that of its device.
func (r *Replica) authored(in arrived, st feedState, known bool) bool {
	account, device := in.run.Account(), in.run.Feed().Device
	if known {
		return st.account == account
	}
	if in.peer.Device == device {
		return in.peer.Account == account
	}
	if rec, ok := r.cfg.Records.Record(account); ok && rec.Lists(device) {
		return true
	}
	return certified(in.certificate, in.run)
}

// hasHole says whether a body is missing without excuse (R9). What the author's own device does not have nobody can
// have: it was erased before it was ever offered.
func (r *Replica) hasHole(tx *storage.Tx, peer Peer, run feed.Run) (bool, error) {
	if run.Feed().Device == peer.Device {
		return false, nil
	}
	for _, e := range run.Entries() {
		if e.HasBody() {
			continue
		}
		ok, err := r.cfg.Gate.Excused(tx, e)
		if err != nil {
			return false, err
		}
		if !ok {
			return true, nil
		}
	}
	return false, nil
}

// knownAgain answers a run of which everything is held.
func (r *Replica) knownAgain(tx *storage.Tx, in arrived, id feed.FeedID, st feedState) (outcome, error) {
	// The run may be another branch that is shorter than ours.
	last := in.run.Last()
	s, ok, err := loadStored(tx, st.local, last.Seq)
	if err != nil {
		return outcome{}, err
	}
	if ok {
		e, err := s.entry()
		if err != nil {
			return outcome{}, err
		}
		if e.ID != last.ID {
			return r.conflict(tx, in, id, st)
		}
	}
	h, ok, err := r.headFor(tx, id, st, nil)
	if !ok || err != nil {
		return outcome{}, err
	}
	return outcome{ack: &h}, nil
}

// store asks the gate and writes the entries of a run that is new.
func (r *Replica) store(tx *storage.Tx, in arrived, id feed.FeedID, st feedState, known bool, run feed.Run, detached bool) (outcome, error) {
	entries := run.Entries()
	take, code, err := r.cfg.Gate.Admit(tx, Incoming{Peer: in.peer, Run: run, Knock: in.knock, Detached: detached})
	if err != nil {
		return outcome{}, fmt.Errorf("asking the gate: %w", err)
	}
	if take < len(entries) {
		if code == pb.Code_CODE_TAKEN || code == pb.Code_CODE_UNSPECIFIED {
			code = pb.Code_CODE_FULL
		}
		return outcome{code: code, from: entries[0].Seq + uint64(max(take, 0)), alien: !known}, nil
	}
	if detached && int(st.ahead)+len(entries) > r.cfg.Limits.Detached {
		return outcome{}, nil // not kept, not acknowledged; it comes again once the gap is filled
	}
	if !known {
		begun := st
		if st, err = openFeed(tx, id, run.Account()); err != nil {
			return outcome{}, err
		}
		if begun.first > 1 {
			st.first, st.last, st.hash = begun.first, begun.last, begun.hash
			if err := r.keepCertificate(tx, in, st.local); err != nil {
				return outcome{}, err
			}
		}
	}
	fresh, err := r.write(tx, &st, run, detached)
	if err != nil {
		return outcome{}, err
	}
	if !detached {
		last := run.Last()
		st.last, st.hash, st.clock = last.Seq, last.ID, last.Clock
		if st.ahead > 0 {
			if err := r.attach(tx, id, &st); err != nil {
				return outcome{}, err
			}
		}
	}
	st.touched = r.cfg.Now().UnixMilli()
	if err := saveFeed(tx, id, &st); err != nil {
		return outcome{}, err
	}
	if err := r.seen(tx, id.Conversation, run.Last().Clock, st.touched); err != nil {
		return outcome{}, err
	}
	if len(fresh) > 0 {
		err := r.cfg.Hooks.Applied(tx, Applied{Peer: in.peer, Entries: fresh, Backlog: in.backlog, Detached: detached})
		if err != nil {
			return outcome{}, fmt.Errorf("telling of entries: %w", err)
		}
		tx.OnCommit(func() { r.stored(id.Conversation, fresh, in.peer) })
	}
	if detached {
		return outcome{}, nil
	}
	if w := (floorWish{id.Conversation, in.peer.Account}); in.peer.Device == id.Device && id.Number == feed.Chat && r.wished(w) {
		// It came in without heads before it: nothing was outstanding.
		if err := r.endWish(tx, w); err != nil {
			return outcome{}, err
		}
	}
	h := st.head(id)
	lazy := r.cfg.Members.Lazy(tx, id.Conversation)
	tx.OnCommit(func() {
		if lazy {
			r.spread(id, h, in.by)
		} else {
			r.streams.wake(id, h.Last)
		}
		r.receipts.changed(id.Conversation, lazy, st.account)
	})
	return outcome{ack: &h}, nil
}

// keepCertificate keeps what ties a feed that begins above 1 to its account, for those who begin it here.
func (r *Replica) keepCertificate(tx *storage.Tx, in arrived, l localFeed) error {
	raw := in.certificate
	if !certified(raw, in.run) {
		rec, _ := r.cfg.Records.Record(in.run.Account())
		for _, c := range rec.Devices {
			if c.Device == in.run.Feed().Device {
				raw = c.Raw()
			}
		}
	}
	if len(raw) == 0 {
		return nil // the session's own device; its account's record will tell others
	}
	return tx.Set(localKey(keyCertificate, l, 0), raw)
}

// stored tells whoever listens that entries are durable. It runs after the commit, in commit order.
func (r *Replica) stored(conv feed.ConversationID, entries []feed.Entry, from Peer) {
	if r.cfg.OnStored != nil {
		r.cfg.OnStored(conv, entries, from)
	}
}

// write stores the entries of a run and returns those that were not known before.
func (r *Replica) write(tx *storage.Tx, st *feedState, run feed.Run, detached bool) ([]feed.Entry, error) {
	entries := run.Entries()
	if st.ahead == 0 && !detached {
		return entries, saveEntries(tx, st.local, entries, run.Signature())
	}
	// What stands ahead of a gap is one row per entry, so that the rest of it can be filled in or dropped.
	var fresh []feed.Entry
	for i, e := range entries {
		var sig []byte
		if i == len(entries)-1 {
			sig = run.Signature()
		}
		old, ok, err := loadStored(tx, st.local, e.Seq)
		if err != nil {
			return nil, err
		}
		switch {
		case !ok:
			fresh = append(fresh, e)
			if detached {
				st.ahead++
			}
		case old.body == nil && e.HasBody():
			fresh = append(fresh, e)
		case old.body != nil && !e.HasBody():
			if e, err = e.WithBody(old.body); err != nil {
				continue // another branch; found out when the gap is filled
			}
		}
		if sig == nil {
			sig = old.signature
		}
		if ok && !detached && st.ahead > 0 {
			st.ahead--
		}
		switch {
		case !ok:
			err = tx.Set(entryKey(st.local, e.Seq), encodeEntry(e, sig))
		case len(sig) != len(old.signature) || e.HasBody() != (old.body != nil):
			err = replaceStored(tx, st.local, e.Seq, encodeEntry(e, sig))
		}
		if err != nil {
			return nil, err
		}
	}
	return fresh, nil
}

// attach moves the end of a feed over what stood ahead of the gap that was just filled, as far as bodies reach, to the
// last entry whose signature is held (R4, R9). Entries that turn out to be of another branch are dropped.
func (r *Replica) attach(tx *storage.Tx, id feed.FeedID, st *feedState) error {
	end, passed := *st, uint32(0)
	next := st.tip()
	contradicts := uint64(0)
	err := scanStored(tx, st.local, st.last+1, 0, func(seq uint64, s stored) (bool, error) {
		if seq != next.Seq+1 {
			return false, nil
		}
		e, err := s.entry()
		if err != nil {
			return false, err
		}
		if e.Prev != next.Hash || next.Clock != 0 && e.Clock <= next.Clock {
			contradicts = seq
			return false, nil
		}
		if !e.HasBody() {
			ok, err := r.cfg.Gate.Excused(tx, e)
			if !ok || err != nil {
				return false, err
			}
		}
		next = e.Tip()
		passed++
		if s.signature != nil {
			end.last, end.hash, end.clock = e.Seq, e.ID, e.Clock
			end.ahead = st.ahead - min(passed, st.ahead)
		}
		return true, nil
	})
	*st = end
	if err != nil || contradicts == 0 {
		return err
	}
	return r.dropAhead(tx, id, st, contradicts)
}

// dropAhead forgets what stands from a number on, up to which there is no gap any more: it was signed by the author, and so was
// what filled the gap, but the one does not follow the other. No two headers with one number are at hand, so nothing can be
// proved to others; the feed goes on with the branch that is whole. What lies between the end of the feed and that number
// belongs to it: under a former key it may be what nobody else has.
func (r *Replica) dropAhead(tx *storage.Tx, id feed.FeedID, st *feedState, from uint64) error {
	r.log.Warn("dropping entries that contradict their feed", "device", id.Device.Short(), "from", from)
	if err := r.tellDropped(tx, id, from); err != nil {
		return err
	}
	st.ahead = uint32(from - 1 - st.last)
	return deleteAbove(tx, st.local, from-1)
}

// tellDropped tells of entries that are about to be gone.
func (r *Replica) tellDropped(tx *storage.Tx, id feed.FeedID, from uint64) error {
	if r.cfg.OnDropped == nil {
		return nil
	}
	if err := r.cfg.OnDropped(tx, id, from); err != nil {
		return fmt.Errorf("telling of entries that are gone: %w", err)
	}
	return nil
}

// seen notes clock and time of what came in.
func (r *Replica) seen(tx *storage.Tx, conv feed.ConversationID, clock uint64, now int64) error {
	c, err := loadConv(tx, conv)
	if err != nil {
		return err
	}
	r.clocks.lift(conv, clock)
	c.clock, c.touched = max(c.clock, clock), now
	return saveConv(tx, conv, c)
}

// applyOwn looks at a run of this device's own feed that somebody else brings. Its signature is good, so it was written
// with our key: if we do not hold it, the database is older than the feed (R3).
func (r *Replica) applyOwn(tx *storage.Tx, in arrived, id feed.FeedID) (outcome, error) {
	st, _, err := loadFeed(tx, id)
	if err != nil {
		return outcome{}, err
	}
	last := in.run.Last()
	if last.Seq > st.last {
		return outcome{own: true}, nil
	}
	s, ok, err := loadStored(tx, st.local, last.Seq)
	if !ok || err != nil {
		return outcome{}, err
	}
	e, err := s.entry()
	if err != nil {
		return outcome{}, err
	}
	return outcome{own: e.ID != last.ID}, nil
}
