package replica

import (
	"context"
	"errors"
	"fmt"

	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/storage"
)

// Take applies a run that came over another road than a session: gossip, a mailbox. The zero Peer brings what nobody in
// particular vouches for. It returns after what it stored is durable. ErrRefused: the gate did not take it. An error of package feed: the bytes are worth nothing.
func (r *Replica) Take(ctx context.Context, from Peer, raw *pb.Run) error {
	if _, _, held, err := r.holds(raw); held || err != nil {
		return err
	}
	run, err := feed.CheckDetached(raw)
	if err != nil {
		return fmt.Errorf("checking a run: %w", err)
	}
	return r.take(ctx, arrived{peer: from, run: run, backlog: true, certificate: raw.GetCertificate()})
}

// SubmitRun is Take for a run that was checked already, its signature too, without waiting. Live says that it is part of
// the live stream, and not of catching up. Runs are applied in the order in which they were submitted. done hears in that
// order what Take would return, and must not block; it never runs on the caller's stack.
func (r *Replica) SubmitRun(from Peer, run feed.Run, live bool, done func(error)) {
	in := arrived{peer: from, run: run, backlog: !live}
	var out outcome
	r.cfg.DB.Submit(func(tx *storage.Tx) (err error) {
		out, err = r.apply(tx, in)
		return err
	}, func(err error) { done(r.taken(run, out, err)) })
}

// holds says whether all of a run is held already, without checking more of it than that takes: by how many roads an
// entry comes must not cost a signature each time.
func (r *Replica) holds(raw *pb.Run) (id feed.FeedID, h feed.Head, held bool, err error) {
	entries := raw.GetEntries()
	if len(entries) == 0 {
		return id, h, false, fmt.Errorf("checking a run: %w", feed.ErrMalformed)
	}
	last, err := feed.ParseStored(entries[len(entries)-1].GetHeader(), nil)
	if err != nil {
		return id, h, false, fmt.Errorf("checking a run: %w", err)
	}
	id = last.Feed()
	err = r.view(func(tx *storage.Tx) error {
		st, ok, err := loadFeed(tx, id)
		if !ok || err != nil || last.Seq > st.last || last.Seq < st.first || st.forkAt != 0 {
			return err
		}
		h = st.head(id)
		held, err = r.sameEntry(tx, id, last.Seq, last.ID)
		return err
	})
	return id, h, held, err
}

func (r *Replica) take(ctx context.Context, in arrived) error {
	var out outcome
	err := r.cfg.DB.Update(ctx, func(tx *storage.Tx) (err error) {
		out, err = r.apply(tx, in)
		return err
	})
	return r.taken(in.run, out, err)
}

// taken says what became of a run after its commit.
func (r *Replica) taken(run feed.Run, out outcome, err error) error {
	switch {
	case err != nil:
		return fmt.Errorf("storing a run: %w", err)
	case out.own:
		r.diverge(run.Feed())
		return ErrDiverged
	case out.code != 0:
		return fmt.Errorf("%w: %s", ErrRefused, out.code)
	case out.proof != nil:
		return errors.Join(ErrRefused, feed.ErrFork)
	}
	return nil
}
