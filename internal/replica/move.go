package replica

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"hima/identity"
	"hima/internal/wire"
	"hima/internal/wire/pb"
	"hima/node"
)

// A session stays on the connection it was opened on. When a better one is there, a direct one beside a relayed one, the
// side that opened the session opens a stream on it and says in its hello that the session moves. Nothing happens to
// the old session before the other side has answered there, so a move that fails half way has cost nothing. Then both
// say on the old stream that it ends, read it to its end, and begin on the new one as in any session: what the heads
// say is held was held before they were computed, so nothing is lost and nothing is sent twice.

const (
	// moveTimeout bounds a move up to the other side's answer.
	moveTimeout = 10 * time.Second
	// movePause is the pause after a move that failed; it doubles up to movePauseMax.
	movePause    = time.Second
	movePauseMax = time.Minute
	// drainQuiet is how long the old stream may be silent before it is given up, drainTimeout how long it may take in all.
	drainQuiet   = 2 * time.Second
	drainTimeout = 10 * time.Second
)

var (
	errMoved    = errors.New("the session moved to a better connection")
	errNoBetter = errors.New("there is no better connection")
)

// rankOf orders connections by what they are worth to a session: direct, relayed, relayed with limits.
func rankOf(c node.ConnInfo) int {
	switch {
	case c.Limited:
		return 2
	case !c.Direct:
		return 1
	}
	return 0
}

// moves follows the network and moves the sessions that this side opened.
type moves struct {
	mu   sync.Mutex
	best map[identity.DeviceID]int // rank of the best connection of a device, as far as events told
}

func (m *moves) set(device identity.DeviceID, rank int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.best == nil {
		m.best = map[identity.DeviceID]int{}
	}
	m.best[device] = rank
}

func (m *moves) forget(device identity.DeviceID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.best, device)
}

// better says whether a device has a connection that is worth more than a session's.
func (m *moves) better(s *session) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	best, ok := m.best[s.peer.Device]
	return ok && best < s.rank
}

// runMoves listens until ctx ends. events was subscribed before the first session.
func (r *Replica) runMoves(ctx context.Context, events <-chan node.Event, wg *sync.WaitGroup) {
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-events:
			if !ok {
				return
			}
			switch e := e.(type) {
			case node.PeerUp:
				r.moves.set(e.Device, rankOf(e.Info))
				if s := r.streams.get(e.Device); s != nil {
					r.considerMove(ctx, s, wg)
				}
			case node.PeerDown:
				r.moves.forget(e.Device)
			}
		}
	}
}

// considerMove begins to move a session if this side opened it and a better connection is there.
func (r *Replica) considerMove(ctx context.Context, s *session, wg *sync.WaitGroup) {
	if s.outbound && r.moves.better(s) && s.moving.CompareAndSwap(false, true) {
		wg.Go(func() { r.move(ctx, s, wg) })
	}
}

// move tries until the session moved, ended, or has the best connection there is.
func (r *Replica) move(ctx context.Context, old *session, wg *sync.WaitGroup) {
	defer old.moving.Store(false)
	left := old.left
	for pause := movePause; r.moves.better(old); pause = min(max(2*pause, movePause), movePauseMax) {
		if !r.streams.enter() {
			return
		}
		s, err := r.tryMove(ctx, old)
		if err == nil {
			r.considerMove(ctx, s, wg) // a still better one may have come meanwhile
			s.run(ctx)
			r.streams.leave()
			return
		}
		r.streams.leave()
		r.log.Debug("moving a session", "device", old.peer.Device.Short(), "error", err)
		select {
		case <-time.After(pause):
		case <-left:
			left, pause = nil, 0 // the other side has moved already: once more, at once
		case <-old.gone:
			// Both ended, the old one because the other side believed in the new one: begin anew.
			if ctx.Err() == nil {
				_ = r.Open(ctx, old.peer.Device)
			}
			return
		case <-ctx.Done():
			return
		}
	}
}

// tryMove opens the new stream and, once the other side has answered on it, ends the old session. The session that it
// returns is registered in its place and to be run.
func (r *Replica) tryMove(ctx context.Context, old *session) (*session, error) {
	moveCtx, cancel := context.WithTimeout(ctx, moveTimeout)
	defer cancel()
	st, err := r.cfg.Node.Open(moveCtx, old.peer.Device, Protocol)
	if err != nil {
		return nil, fmt.Errorf("opening a stream: %w", err)
	}
	if rankOf(st.Info()) >= old.rank {
		st.Reset()
		return nil, errNoBetter
	}
	s, reason, err := r.hello(moveCtx, st, true, true)
	if err == nil {
		err = r.fail("move-hello")
	}
	if err == nil {
		reason, err = s.awaitAnswer(moveCtx)
	}
	if err == nil && !r.takeOver(old, s) {
		// The old one is gone, or another one took its place: judged like any second session.
		reason, err = r.register(moveCtx, s)
	}
	if err != nil {
		r.refuseStream(st, reason)
		return nil, err
	}
	<-old.over
	return s, nil
}

// awaitAnswer reads the first frame of the other side after the hello, which shows that it takes the move.
func (s *session) awaitAnswer(ctx context.Context) (pb.Bye_Reason, error) {
	stop := context.AfterFunc(ctx, s.st.Reset)
	defer stop()
	_ = s.st.SetReadDeadline(time.Now().Add(moveTimeout))
	f := &pb.Frame{}
	if err := wire.Read(s.rd, wire.MaxSyncFrame, f); err != nil {
		return 0, fmt.Errorf("waiting for an answer: %w", err)
	}
	if bye := f.GetBye(); bye != nil {
		return 0, byeError(bye.Reason)
	}
	s.early = f
	return 0, s.st.SetReadDeadline(time.Time{})
}

// takeOver puts a session in the place of an older one, whose end it begins; false if the older one is not there any
// more. Whoever watches sees one session that goes on.
func (r *Replica) takeOver(old, s *session) bool {
	if !r.streams.replace(old, s) {
		return false
	}
	s.mu.Lock()
	s.info.Since = old.describe().Since
	s.told = true
	info := s.info
	s.mu.Unlock()
	r.cfg.Hooks.SessionUp(info)
	old.end(pb.Bye_REASON_MOVED, errMoved)
	return true
}

// adopt answers a stream to which the other side moves the session. It says so on the stream before anything else.
func (r *Replica) adopt(ctx context.Context, old, s *session) (pb.Bye_Reason, error) {
	if err := r.fail("move-answer"); err != nil {
		return 0, err
	}
	_ = s.st.SetWriteDeadline(time.Now().Add(helloTimeout))
	ping := &pb.Frame{Of: &pb.Frame_Ping{Ping: &pb.Ping{}}}
	if err := wire.Write(s.st, wire.MaxSyncFrame, ping); err != nil {
		return 0, fmt.Errorf("answering a move: %w", err)
	}
	if !r.takeOver(old, s) {
		return r.register(ctx, s)
	}
	select {
	case <-old.over:
		return 0, nil
	case <-ctx.Done():
		r.streams.remove(s)
		r.cfg.Hooks.SessionDown(s.describe())
		return pb.Bye_REASON_CLOSING, ctx.Err()
	}
}

// replace makes s the session of its device in the place of old.
func (t *streams) replace(old, s *session) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state != running || t.byDevice[s.peer.Device] != old || old.isEnding() {
		return false
	}
	t.byDevice[s.peer.Device] = s
	if old.stranger {
		t.strangers--
	}
	if s.stranger {
		t.strangers++
	}
	for conv, set := range t.byConv {
		if delete(set, old); len(set) == 0 {
			delete(t.byConv, conv)
		}
	}
	return true
}

// draining says that the session ends because it moved: what the other side still sent is taken in.
func (s *session) draining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.endReason == pb.Bye_REASON_MOVED
}

// drainDeadline moves the deadline for the rest of the old stream.
func (s *session) drainDeadline() {
	now := time.Now()
	s.mu.Lock()
	if s.drainEnd.IsZero() {
		s.drainEnd = now.Add(drainTimeout)
	}
	end := s.drainEnd
	s.mu.Unlock()
	if quiet := now.Add(drainQuiet); quiet.Before(end) {
		end = quiet
	}
	_ = s.st.SetReadDeadline(end)
}

// awaitMove is what the reader does when the other side left for the new stream before this side has heard its answer
// there: it leaves the end of the session to the move.
func (s *session) awaitMove() {
	close(s.left)
	if !s.moving.Load() {
		return
	}
	t := time.NewTimer(moveTimeout)
	defer t.Stop()
	select {
	case <-s.done:
	case <-t.C:
	}
}
