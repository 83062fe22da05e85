package control

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"hima/internal/control/pb"
)

func event(seq uint64) *pb.Event { return &pb.Event{Seq: seq, Type: "message"} }

// TestWatchResumes cuts the stream after every event, once by ending it and once by restarting the node.
func TestWatchResumes(t *testing.T) {
	const total = 9
	socket := socketIn(t)
	var asked []*pb.WatchRequest
	f := &fake{}
	f.watch = func(ctx context.Context, r *pb.WatchRequest, send func(*pb.Event) error) error {
		asked = append(asked, r)
		if r.GetSince() >= total {
			if err := send(&pb.Event{Type: "ready", Seq: total}); err != nil {
				return err
			}
			<-ctx.Done()
			return ctx.Err()
		}
		if err := send(event(r.GetSince())); err != nil && r.GetSince() > 0 {
			return err // a node that repeats must not make the face repeat
		}
		return send(event(r.GetSince() + 1))
	}
	stop := serve(t, socket, f)
	c := Dial(socket)
	defer c.Close()

	var got []uint64
	errReady := errors.New("ready")
	restarted := make(chan struct{})
	err := c.Watch(t.Context(), WatchOptions{Since: 3, FromNow: true}, func(e *pb.Event) error {
		if e.GetType() == "ready" {
			return errReady
		}
		got = append(got, e.GetSeq())
		if e.GetSeq() == 6 {
			go func() { // the node goes away and comes back
				defer close(restarted)
				stop()
				serve(t, socket, f)
			}()
		}
		return nil
	})
	<-restarted
	require.ErrorIs(t, err, errReady, "the error of each comes back as it is")
	require.Equal(t, []uint64{4, 5, 6, 7, 8, 9}, got)
	require.True(t, asked[0].GetFromNow())
	require.False(t, asked[1].GetFromNow(), "from now is asked for once; after that the cursor counts")
}

func TestWatchStopsAtARefusal(t *testing.T) {
	socket := socketIn(t)
	f := &fake{}
	f.watch = func(_ context.Context, r *pb.WatchRequest, send func(*pb.Event) error) error {
		if r.GetSince() == 0 {
			return send(event(1))
		}
		return &Error{Code: Locked, Message: "the node is locked"}
	}
	serve(t, socket, f)
	c := Dial(socket)
	defer c.Close()
	err := c.Watch(t.Context(), WatchOptions{}, func(*pb.Event) error { return nil })
	require.ErrorIs(t, err, Locked)
}

func TestWatchLosesPatience(t *testing.T) {
	socket := socketIn(t)
	f := &fake{}
	f.watch = func(_ context.Context, _ *pb.WatchRequest, send func(*pb.Event) error) error {
		return send(event(1))
	}
	serve(t, socket, f)
	c := Dial(socket)
	defer c.Close()
	n := 0
	err := c.Watch(t.Context(), WatchOptions{Patience: -1}, func(*pb.Event) error { n++; return nil })
	require.ErrorIs(t, err, Unavailable)
	require.Equal(t, 1, n)
}

func TestWatchEndsWithItsContext(t *testing.T) {
	socket := socketIn(t)
	f := &fake{}
	f.watch = func(ctx context.Context, _ *pb.WatchRequest, send func(*pb.Event) error) error {
		if err := send(&pb.Event{Type: "ready"}); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	}
	serve(t, socket, f)
	c := Dial(socket)
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	err := c.Watch(ctx, WatchOptions{}, func(*pb.Event) error { cancel(); return nil })
	require.ErrorIs(t, err, context.Canceled)
}

// TestWatchGoesOnAfterAGap: the node's database is an older copy than the one the watcher saw.
func TestWatchGoesOnAfterAGap(t *testing.T) {
	socket := socketIn(t)
	f := &fake{}
	f.watch = func(ctx context.Context, r *pb.WatchRequest, send func(*pb.Event) error) error {
		for _, e := range []*pb.Event{{Type: "gap", Seq: 3}, event(4), event(5)} {
			if err := send(e); err != nil {
				return err
			}
		}
		<-ctx.Done()
		return ctx.Err()
	}
	serve(t, socket, f)
	c := Dial(socket)
	defer c.Close()
	var got []uint64
	errEnough := errors.New("enough")
	err := c.Watch(t.Context(), WatchOptions{Since: 100}, func(e *pb.Event) error {
		got = append(got, e.GetSeq())
		if len(got) == 3 {
			return errEnough
		}
		return nil
	})
	require.ErrorIs(t, err, errEnough)
	require.Equal(t, []uint64{3, 4, 5}, got)
}
