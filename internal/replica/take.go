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
	run, err := feed.CheckDetached(raw)
	if err != nil {
		return fmt.Errorf("checking a run: %w", err)
	}
	var out outcome
	err = r.cfg.DB.Update(ctx, func(tx *storage.Tx) error {
		out, err = r.apply(tx, arrived{peer: from, run: run, backlog: true})
		return err
	})
	if err != nil {
		return fmt.Errorf("storing a run: %w", err)
	}
	switch {
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
