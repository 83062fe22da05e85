package replica

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/node"
)

// streams is the register of sessions. A session is in byDevice from the end of its hello until it ends, and under
// byConv for each conversation that it has open.
type streams struct {
	dials   chan *dial
	stopped chan struct{} // closed when Run ended

	mu        sync.RWMutex // guards what follows
	state     runState
	active    sync.WaitGroup // handlers and dials; Add only while running and under mu
	byDevice  map[identity.DeviceID]*session
	byConv    map[feed.ConversationID]map[*session]bool
	dialing   map[identity.DeviceID]*dial
	greeting  map[identity.DeviceID]int // streams that came in and are in their hello
	greetings int                       // their sum
	strangers int
}

type runState int

const (
	notYet runState = iota
	running
	ended
)

// dial is one attempt to reach a device; whoever wants the same device meanwhile waits for it too.
type dial struct {
	device identity.DeviceID
	done   chan struct{} // closed when err is set
	err    error
}

// Bounds of streams that came in and are in their hello, of which nothing is known yet but the device: in all, and of one
// device, which may try anew before its first attempt is given up. One address has a few dozen connections at most, so
// nobody takes all places alone. Own dials do not count: delivery bounds them.
const (
	maxGreeting       = 128
	maxGreetingDevice = 2
)

// strangerGrace is how long a stranger may stay before another stranger may take its place. A knock takes less.
const strangerGrace = 5 * time.Second

func (t *streams) init() {
	t.dials = make(chan *dial)
	t.stopped = make(chan struct{})
	t.byDevice = map[identity.DeviceID]*session{}
	t.byConv = map[feed.ConversationID]map[*session]bool{}
	t.dialing = map[identity.DeviceID]*dial{}
	t.greeting = map[identity.DeviceID]int{}
}

func (t *streams) open() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state != notYet {
		return false
	}
	t.state = running
	return true
}

// close ends all sessions and waits for them.
func (t *streams) close() {
	t.mu.Lock()
	t.state = ended
	close(t.stopped)
	all := slices.Collect(maps.Values(t.byDevice))
	t.mu.Unlock()
	for _, s := range all {
		s.end(pb.Bye_REASON_CLOSING, ErrClosed)
	}
	t.active.Wait()
}

// enter counts a stream or a dial; leave ends that.
func (t *streams) enter() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state != running {
		return false
	}
	t.active.Add(1)
	return true
}

// greet counts a stream that came in and is in its hello; greeted ends that.
func (t *streams) greet(device identity.DeviceID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.greetings >= maxGreeting || t.greeting[device] >= maxGreetingDevice {
		return false
	}
	t.greetings++
	t.greeting[device]++
	return true
}

func (t *streams) greeted(device identity.DeviceID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.greetings--
	if t.greeting[device]--; t.greeting[device] == 0 {
		delete(t.greeting, device)
	}
}

func (t *streams) leave() { t.active.Done() }

func (t *streams) get(device identity.DeviceID) *session {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byDevice[device]
}

// all returns the sessions of now.
func (t *streams) all() []*session {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return slices.Collect(maps.Values(t.byDevice))
}

// add registers a session unless there is one with the device already, which is then returned.
func (t *streams) add(s *session, limits Limits) (other *session, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state != running {
		return nil, ErrClosed
	}
	if other := t.byDevice[s.peer.Device]; other != nil {
		return other, nil
	}
	if len(t.byDevice) >= limits.Sessions || s.stranger && t.strangers >= limits.StrangerSessions && !t.makeRoom(limits) {
		return nil, ErrBusy
	}
	if s.stranger {
		t.strangers++
	}
	t.byDevice[s.peer.Device] = s
	return nil, nil
}

// makeRoom ends the session of the stranger who is here longest, so that strangers who only sit there keep nobody out. The
// place is taken before it is free; at most twice as many are there for a moment. Called with mu held.
func (t *streams) makeRoom(limits Limits) bool {
	if t.strangers >= 2*limits.StrangerSessions {
		return false
	}
	var oldest *session
	for _, s := range t.byDevice {
		if s.stranger && !s.isEnding() && time.Since(s.begun) >= strangerGrace && (oldest == nil || s.begun.Before(oldest.begun)) {
			oldest = s
		}
	}
	if oldest == nil {
		return false
	}
	oldest.end(pb.Bye_REASON_BUSY, fmt.Errorf("making room for another stranger: %w", ErrBusy))
	return true
}

func (t *streams) remove(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byDevice[s.peer.Device] != s {
		return
	}
	delete(t.byDevice, s.peer.Device)
	if s.stranger {
		t.strangers--
	}
	for conv, set := range t.byConv {
		if delete(set, s); len(set) == 0 {
			delete(t.byConv, conv)
		}
	}
}

// setLive says whether a session has a conversation open, which is what Append asks.
func (t *streams) setLive(s *session, conv feed.ConversationID, on bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	set := t.byConv[conv]
	switch {
	case on && t.byDevice[s.peer.Device] != s:
	case on && set == nil:
		t.byConv[conv] = map[*session]bool{s: true}
	case on:
		set[s] = true
	case set != nil:
		if delete(set, s); len(set) == 0 {
			delete(t.byConv, conv)
		}
	}
}

func (t *streams) live(conv feed.ConversationID) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.byConv[conv]) > 0
}

// having returns the sessions that have a conversation open.
func (t *streams) having(conv feed.ConversationID) []*session {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return slices.Collect(maps.Keys(t.byConv[conv]))
}

// wake tells every session that a feed grew.
func (t *streams) wake(id feed.FeedID, last uint64) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, s := range t.byDevice {
		s.grew(id, last)
	}
}

// allSent says whether every session that has a conversation open was sent an own feed up to a number.
func (t *streams) allSent(id feed.FeedID, last uint64) bool {
	for _, s := range t.having(id.Conversation) {
		s.mu.Lock()
		f := s.convs[id.Conversation].feeds[id]
		sent := f == nil || f.sent >= last || !f.ready()
		s.mu.Unlock()
		if !sent {
			return false
		}
	}
	return true
}

// wakeGroup tells the sessions that have a group open that an own feed grew. Who it comes to be shared with later is
// told by Reannounce.
func (t *streams) wakeGroup(id feed.FeedID, last feed.Entry) {
	for _, s := range t.having(id.Conversation) {
		s.mu.Lock()
		if c := s.convs[id.Conversation]; c != nil && c.phase == phaseOpen {
			s.grewOwn(c, id, last.Seq, last.ID)
		}
		s.mu.Unlock()
	}
}

// Connected says whether there is a session with a device.
func (r *Replica) Connected(device identity.DeviceID) bool { return r.streams.get(device) != nil }

// Session describes the live session with a device, if there is one.
func (r *Replica) Session(device identity.DeviceID) (SessionInfo, bool) {
	if s := r.streams.get(device); s != nil {
		return s.describe(), true
	}
	return SessionInfo{}, false
}

// Release ends the session with a device if nothing is under way in it, for who opened it and needs it no more.
func (r *Replica) Release(device identity.DeviceID) {
	s := r.streams.get(device)
	if s == nil {
		return
	}
	s.mu.Lock()
	idle := s.inFlight == 0 && s.incoming == 0 && !s.storing && len(s.queue) == 0 && len(s.answers) == 0 && len(s.acks) == 0 && s.later.idle()
	s.mu.Unlock()
	if idle {
		s.end(pb.Bye_REASON_CLOSING, ErrClosed)
	}
}

// Sessions describes the live sessions, oldest first.
func (r *Replica) Sessions() []SessionInfo {
	var out []SessionInfo
	for _, s := range r.streams.all() {
		out = append(out, s.describe())
	}
	slices.SortFunc(out, func(a, b SessionInfo) int { return a.Since.Compare(b.Since) })
	return out
}

// Open brings up a session with a device, or returns at once if there is one. Its error is that of the attempt, which
// goes on when ctx ends first.
func (r *Replica) Open(ctx context.Context, device identity.DeviceID) error {
	t := &r.streams
	t.mu.Lock()
	if t.state != running {
		t.mu.Unlock()
		return ErrClosed
	}
	if t.byDevice[device] != nil {
		t.mu.Unlock()
		return nil
	}
	d := t.dialing[device]
	fresh := d == nil
	if fresh {
		d = &dial{device: device, done: make(chan struct{})}
		t.dialing[device] = d
	}
	t.mu.Unlock()
	if fresh {
		select {
		case t.dials <- d:
		case <-t.stopped:
			t.dialed(d, ErrClosed)
		}
	}
	select {
	case <-d.done:
		return d.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// dialed ends an attempt.
func (t *streams) dialed(d *dial, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.dialing[d.device] != d {
		return
	}
	delete(t.dialing, d.device)
	d.err = err
	close(d.done)
}

// dialTimeout bounds connecting and hello together.
const dialTimeout = 20 * time.Second

// dial opens a stream and runs the session on it. It returns when the session ended.
func (r *Replica) dial(ctx context.Context, d *dial, wg *sync.WaitGroup) {
	s, err := r.dialSession(ctx, d.device)
	r.streams.dialed(d, err)
	if s != nil {
		defer r.streams.leave()
		r.considerMove(ctx, s, wg) // a better connection may have come up during the hello
		s.run(ctx)
	}
}

func (r *Replica) dialSession(ctx context.Context, device identity.DeviceID) (*session, error) {
	if !r.streams.enter() {
		return nil, ErrBusy
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	st, err := r.cfg.Node.Open(ctx, device, Protocol)
	if err != nil {
		r.streams.leave()
		return nil, fmt.Errorf("opening a stream: %w", err)
	}
	s, err := r.greet(ctx, st, true)
	if err != nil {
		r.streams.leave()
		if errors.Is(err, errDuplicate) {
			return nil, nil
		}
		return nil, err
	}
	return s, nil
}

// accept answers a stream that the other side opened.
func (r *Replica) accept(ctx context.Context, st *node.Stream) {
	if !r.streams.enter() {
		st.Reset()
		return
	}
	defer r.streams.leave()
	if !r.streams.greet(st.Remote()) {
		st.Reset()
		return
	}
	s, err := r.greet(ctx, st, false)
	r.streams.greeted(st.Remote())
	if err != nil {
		r.log.Debug("refusing a session", "device", st.Remote().Short(), "error", err)
		return
	}
	s.run(ctx)
}
