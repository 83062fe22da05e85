package control

import (
	"context"
	"time"

	"hima/internal/control/pb"
)

const (
	// defaultPatience is how long Watch waits for a node that went away: a restart takes a second, an upgrade a few.
	defaultPatience = 30 * time.Second
	// retryFirst and retryMost bound the pause between two attempts.
	retryFirst = 20 * time.Millisecond
	retryMost  = time.Second
	// readyEvent ends the backlog; it carries the last stored number and is not an event of its own.
	readyEvent = "ready"
	// gapEvent says that the events asked for are gone; its number is where the kept ones begin.
	gapEvent = "gap"
)

// WatchOptions says where a watch begins.
type WatchOptions struct {
	// Since is the number of the last event already seen; 0: from the first one that is kept.
	Since uint64
	// FromNow leaves out everything stored so far.
	FromNow bool
	// Conversation limits the watch to one; empty: all.
	Conversation string
	// Patience is how long a node that went away is waited for; 0: 30 s, negative: not at all.
	Patience time.Duration
}

// Watch calls each with every event, oldest first, from one goroutine, until ctx ends, each returns an error (which is
// returned), or the node refuses. When the node goes away and comes back, the watch goes on after the last event that was
// handed to each: nothing is lost and nothing repeated. Events without number (typing, presence) are not made up for.
func (c *Client) Watch(ctx context.Context, o WatchOptions, each func(*pb.Event) error) error {
	w := watch{client: c, last: o.Since, fromNow: o.FromNow, conversation: o.Conversation, each: each}
	patience := o.Patience
	if patience == 0 {
		patience = defaultPatience
	}
	var (
		pause     = retryFirst
		lostSince = time.Now()
		ever      bool // at least one event came
	)
	for {
		progress, err := w.once(ctx)
		if w.stopped || ctx.Err() != nil {
			return err
		}
		ever = ever || progress
		if code := CodeOf(err); err != nil && code != NotRunning && code != Unavailable || err != nil && !ever {
			return err
		}
		now := time.Now()
		if progress {
			pause, lostSince = retryFirst, now
		}
		if now.Sub(lostSince) >= patience {
			if err == nil {
				err = &Error{Code: Unavailable, Message: "the node ended the stream of events"}
			}
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(pause*2, retryMost)
	}
}

// watch is the state of one Watch call; it belongs to the goroutine of that call.
type watch struct {
	client       *Client
	conversation string
	last         uint64
	fromNow      bool
	stopped      bool // each returned an error
	each         func(*pb.Event) error
}

// once reads one stream to its end. progress says whether anything came.
func (w *watch) once(ctx context.Context) (progress bool, err error) {
	stream, err := w.client.HimaClient.Watch(ctx, &pb.WatchRequest{
		Since: w.last, Conversation: w.conversation, FromNow: w.fromNow,
	})
	if err != nil {
		return false, FromConnect(ctx, err)
	}
	defer func() { _ = stream.Close() }() // repeats the error that ended it, or tells that we left early
	for stream.Receive() {
		ev := stream.Msg().GetEvent()
		if ev == nil {
			continue
		}
		progress = true
		if !w.accept(ev) {
			continue
		}
		if err := w.each(ev); err != nil {
			w.stopped = true
			return true, err
		}
	}
	return progress, FromConnect(ctx, stream.Err())
}

// accept moves the cursor and says whether ev is new.
func (w *watch) accept(ev *pb.Event) bool {
	switch {
	case ev.GetType() == readyEvent:
		w.last = max(w.last, ev.GetSeq())
		w.fromNow = false
	case ev.GetType() == gapEvent:
		// What stood here was trimmed, or the database is an older copy: go on from where the node says it can.
		w.last = ev.GetSeq()
		w.fromNow = false
	case ev.GetSeq() == 0:
	case ev.GetSeq() <= w.last:
		return false // a node must not repeat; a face must not show it twice if one does
	default:
		w.last = ev.GetSeq()
		w.fromNow = false
	}
	return true
}
