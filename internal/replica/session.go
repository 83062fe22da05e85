package replica

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/node"
)

// Bounds of what one session keeps in memory.
const (
	readBuffer  = 64 << 10 // a whole frame, so that it is decoded in place
	writeBuffer = 64 << 10
	// maxConvs is how many conversations a session looks at; a stranger shares one.
	maxConvs         = 1 << 14
	maxConvsStranger = 16
	// maxPeerHeads is how many heads of one conversation the other side may list.
	// A group of a thousand members with several devices each fits. A stranger shares no group.
	maxPeerHeads         = 1 << 14
	maxPeerHeadsStranger = 1 << 10
	// maxSessionHeads is how many of them a session keeps that are not compared yet.
	maxSessionHeads = 1 << 16
	// maxRefusals is how many refused feeds a session remembers.
	maxRefusals = 1 << 12
	// maxAnswers is how many small frames may wait to be written. Whoever provokes more does not read.
	maxAnswers = 1 << 12
	// maxIncoming bounds the bytes of runs that are submitted and not committed; then reading pauses.
	maxIncoming = 4 << 20
	// stepRate and stepBurst are how many heads and receipts a second are taken, and how many at once, when a session
	// begins with many conversations.
	stepRate  = 100
	stepBurst = 4096
	// strangerFrames is how many frames a second a stranger may send with whom no conversation is open: hello, a knock,
	// pings. Each costs us little, but together they would be a core.
	strangerFrames = 20
	// limitedWindow is the window through a relay that cuts a circuit after some bytes, 128 KiB by default: whatever is
	// under way then is lost, and counts.
	limitedWindow = 16 << 10
	// writeTimeout ends the session with a device that does not read.
	writeTimeout = 30 * time.Second
)

// session is one admitted stream. Its reader goroutine checks what comes in and hands it to the committer; its writer
// goroutine computes and writes what goes out. They, the committer's callbacks and those who wake the session meet in
// the state under mu, which nobody holds while reading the database, writing to the stream or calling a hook.
type session struct {
	r        *Replica
	st       *node.Stream
	rd       *bufio.Reader
	peer     Peer
	cert     identity.Certificate
	record   identity.AccountRecord // as shown in the hello
	stranger bool                   // shared nothing when the session began
	outbound bool
	rank     int           // of its connection
	window   int           // bytes of runs that may be under way
	moving   atomic.Bool   // this side is moving it
	moved    bool          // the other side moves the session of the pair here
	early    *pb.Frame     // read before the session began
	seed     maphash.Seed  // for the order in which feeds are sent
	begun    time.Time     // steady clock
	frames   *rate.Limiter // all frames of a stranger with whom no conversation is open
	limiter  *rate.Limiter // what is refused, and what is not worth a commit
	offers   *rate.Limiter // what is for the Side
	keyRate  *rate.Limiter // what is for Keys
	refusals *rate.Limiter // runs that are refused in groups
	steps    *rate.Limiter // heads and receipts

	wake   chan struct{} // one slot, for the writer
	done   chan struct{} // closed by end
	gone   chan struct{} // closed when the session has left the register
	over   chan struct{} // closed when all that came in is durable
	left   chan struct{} // closed when the other side said that it moved
	lastIn atomic.Int64  // Unix nanoseconds of the last frame

	mu        sync.Mutex // guards what follows
	info      SessionInfo
	endReason pb.Bye_Reason
	endErr    error
	drainEnd  time.Time   // when what the other side still sends is given up; zero: it was not waited for
	told      bool        // SessionUp was called
	answers   []*pb.Frame // small frames to write, before everything else
	acks      []feed.Head // to acknowledge, at most one per feed
	ackConvs  []feed.ConversationID
	convs     map[feed.ConversationID]*convSync
	queue     []*convSync // conversations with something to do, each at most once
	theirDone bool        // the other side sent its last page of digests
	inFlight  int         // bytes of runs sent and not acknowledged
	incoming  int         // bytes of runs submitted and not committed
	opened    bool        // a conversation was open
	drained   chan struct{}
	later     later                          // what waits for more of its kind
	heads     int                            // of the other side, that are kept and not compared yet
	refusedAt map[feed.FeedID]uint64         // from where on what comes in was refused
	gotAcks   map[feed.FeedID]uint64         // acknowledgements to store
	storing   bool                           // a transaction that stores acknowledgements is under way
	handed    map[feed.ConversationID]handed // receipts that were written
	offerDue  bool                           // the Side is to be asked
	offering  bool                           // it is being asked
	keysDue   bool                           // Keys is to be asked
	pingNonce uint64
	pingAt    time.Time // zero: no ping is out
	pongs     []chan struct{}
	watch     *time.Timer
}

func (r *Replica) newSession(st *node.Stream, info node.ConnInfo, rd *bufio.Reader, outbound bool) *session {
	s := &session{
		r: r, st: st, rd: rd, outbound: outbound,
		begun:     time.Now(),
		seed:      maphash.MakeSeed(),
		frames:    rate.NewLimiter(strangerFrames, 4*strangerFrames),
		limiter:   rate.NewLimiter(rate.Limit(r.cfg.Limits.StrangerRate), 16),
		offers:    newOfferLimiter(),
		keyRate:   newKeysLimiter(),
		refusals:  rate.NewLimiter(stepRate, stepBurst),
		steps:     rate.NewLimiter(stepRate, stepBurst),
		wake:      make(chan struct{}, 1),
		done:      make(chan struct{}),
		gone:      make(chan struct{}),
		over:      make(chan struct{}),
		left:      make(chan struct{}),
		rank:      rankOf(info),
		window:    r.cfg.Limits.Window,
		convs:     map[feed.ConversationID]*convSync{},
		gotAcks:   map[feed.FeedID]uint64{},
		handed:    map[feed.ConversationID]handed{},
		refusedAt: map[feed.FeedID]uint64{},
		info:      SessionInfo{Addr: info.Addr, Transport: info.Transport, Outbound: outbound, Since: r.cfg.Now()},
	}
	if info.Limited {
		s.window = min(s.window, limitedWindow)
	}
	s.lastIn.Store(time.Now().UnixNano())
	return s
}

func (s *session) opener() identity.DeviceID {
	if s.outbound {
		return s.r.self
	}
	return s.peer.Device
}

func (s *session) describe() SessionInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.info
}

// run works until the session ends, and returns when its goroutines have ended.
func (s *session) run(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() {
		s.end(pb.Bye_REASON_CLOSING, ErrClosed)
		if s.draining() {
			s.st.Reset()
		}
	})
	defer stop()
	info := s.describe()
	s.r.log.Debug("session up", "device", s.peer.Device.Short(), "transport", info.Transport, "outbound", s.outbound)
	s.mu.Lock()
	told := s.told
	s.mu.Unlock()
	if !told {
		s.r.cfg.Hooks.SessionUp(info)
	}
	s.startWatch()
	var wg sync.WaitGroup
	wg.Go(func() {
		reason, err := s.read(ctx)
		s.end(reason, err)
	})
	s.write(ctx, &wg)
	s.mu.Lock()
	s.watch.Stop()
	if s.later.timer != nil {
		s.later.timer.Stop()
	}
	reason, err := s.endReason, s.endErr
	s.mu.Unlock()
	s.r.streams.remove(s)
	close(s.gone)
	// What was written, the bye at last, still arrives; the reader is let go.
	_ = s.st.CloseWrite()
	if reason == pb.Bye_REASON_MOVED {
		s.drainDeadline()
	} else {
		_ = s.st.SetReadDeadline(time.Now().Add(byeTimeout))
	}
	wg.Wait()
	if reason == pb.Bye_REASON_MOVED {
		_ = s.st.Close() // a reset would overtake what the other side still has to read
	} else {
		s.st.Reset()
	}
	s.noteHanded()
	s.waitIncoming()
	close(s.over)
	if len(s.r.streams.all()) == 0 {
		s.r.tails.clear()
	}
	s.r.log.Debug("session down", "device", s.peer.Device.Short(), "reason", reason.String(), "error", err)
	s.r.cfg.Hooks.SessionDown(s.describe())
}

// byeTimeout is how long the end of a session may take.
const byeTimeout = time.Second

// end asks the session to end; the first reason counts. It does not wait.
func (s *session) end(reason pb.Bye_Reason, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.done:
		return
	default:
	}
	s.endReason, s.endErr = reason, err
	close(s.done)
}

func (s *session) isEnding() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// waitIncoming waits until the committer is done with the session's runs.
func (s *session) waitIncoming() {
	for {
		s.mu.Lock()
		if s.incoming == 0 && !s.storing {
			s.mu.Unlock()
			return
		}
		if s.drained == nil {
			s.drained = make(chan struct{})
		}
		c := s.drained
		s.mu.Unlock()
		<-c
	}
}

// drain wakes who waits for incoming or storing to change. Called with mu held.
func (s *session) drain() {
	if s.drained != nil {
		close(s.drained)
		s.drained = nil
	}
}

// poke wakes the writer.
func (s *session) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// push queues a small frame.
func (s *session) push(f *pb.Frame) {
	s.mu.Lock()
	s.pushLocked(f)
	s.mu.Unlock()
	s.poke()
}

func (s *session) pushLocked(f *pb.Frame) {
	if len(s.answers) < maxAnswers {
		s.answers = append(s.answers, f)
	}
}

// Reannounce makes every session look at a conversation anew: who may read it, and what of it, is asked again, our heads
// are sent to whoever may, and what was refused is asked for. Call it after the commit of a change of what Members or
// Gate answer.
func (r *Replica) Reannounce(conv feed.ConversationID) {
	r.debts.mark(conv)
	lazy := r.lazy(conv)
	for _, s := range r.streams.all() {
		if lazy {
			s.reannounceGroup(conv)
		} else {
			s.reannounce(conv)
		}
	}
}

// SendTyping tells the other readers of a conversation who are connected that the user types, or stopped.
func (r *Replica) SendTyping(conv feed.ConversationID, on bool) {
	f := &pb.Frame{Of: &pb.Frame_Typing{Typing: &pb.Typing{Conversation: conv[:], On: on}}}
	for _, s := range r.streams.all() {
		if s.hears(conv) {
			s.push(f)
		}
	}
}

// hears says whether the other side may have what this device writes from now on.
func (s *session) hears(conv feed.ConversationID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.convs[conv]
	if c == nil || c.phase != phaseOpen {
		return false
	}
	_, last := c.window.bounds(s.r.OwnFeed(conv, feed.Chat))
	return last >= feed.MaxSeq
}

func (s *session) isOpen(conv feed.ConversationID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.convs[conv]
	return c != nil && c.phase == phaseOpen
}

// SendPresence tells the connected devices of an account whether the user is there.
func (r *Replica) SendPresence(account identity.AccountID, on bool) {
	f := &pb.Frame{Of: &pb.Frame_Presence{Presence: &pb.Presence{Online: on}}}
	for _, s := range r.streams.all() {
		if s.peer.Account == account {
			s.push(f)
		}
	}
}

// startWatch begins to look for silence. A ping goes out after a while without any frame, and the answer to it restarts the
// silence on both sides, so that one side pings.
func (s *session) startWatch() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watch = time.AfterFunc(s.r.cfg.Limits.Ping, s.look)
}

func (s *session) look() {
	select {
	case <-s.done:
		return
	default:
	}
	limits := s.r.cfg.Limits
	if err := s.stillListed(); err != nil {
		s.end(pb.Bye_REASON_REVOKED, err)
		return
	}
	last := time.Unix(0, s.lastIn.Load())
	silence, dead := time.Since(last), limits.Dead-limits.Ping
	s.mu.Lock()
	ping := s.pauseLocked()
	asked := !s.pingAt.IsZero() && last.Before(s.pingAt)
	next := ping - silence
	switch {
	case s.incoming > maxIncoming: // ours: reading waits for the committer
		next = ping
	case asked:
		next = dead - time.Since(s.pingAt)
	case silence >= ping:
		s.pingLocked()
		next = dead
	}
	if !asked || next > 0 {
		defer s.mu.Unlock()
		select {
		case <-s.done:
		default:
			s.watch.Reset(min(max(next, 10*time.Millisecond), ping)) // the clock may have been set back meanwhile
		}
		return
	}
	s.mu.Unlock()
	s.end(pb.Bye_REASON_UNSPECIFIED, errSilent)
	s.st.Reset()
	// The connection would look alive for minutes, and be used again.
	s.r.cfg.Node.Disconnect(s.peer.Device)
}

// pauseLocked returns how long the other side may be silent before it is asked. Where only groups are shared and nothing is
// under way nobody waits for this device in particular: in many quiet groups pings would be most of what a node sends.
func (s *session) pauseLocked() time.Duration {
	limits := s.r.cfg.Limits
	if s.inFlight > 0 || len(s.convs) == 0 {
		return limits.Ping
	}
	for _, c := range s.convs {
		if !c.lazy {
			return limits.Ping
		}
	}
	return limits.GroupPing
}

var errSilent = errors.New("the other side fell silent")

func (s *session) pingLocked() {
	s.pingNonce++
	s.pingAt = time.Now()
	s.pushLocked(&pb.Frame{Of: &pb.Frame_Ping{Ping: &pb.Ping{Nonce: s.pingNonce}}})
	s.poke()
}

// alive asks the other side whether it is there.
func (s *session) alive(ctx context.Context) bool {
	c := make(chan struct{})
	s.mu.Lock()
	s.pongs = append(s.pongs, c)
	s.pingLocked()
	s.mu.Unlock()
	t := time.NewTimer(probeTimeout)
	defer t.Stop()
	select {
	case <-c:
		return true
	case <-t.C:
	case <-s.done:
	case <-ctx.Done():
	}
	return false
}

func (s *session) ponged(p *pb.Pong) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.Nonce != s.pingNonce || s.pingAt.IsZero() {
		if p.Nonce > s.pingNonce {
			return fmt.Errorf("answer to a ping that was never sent: %w", ErrProtocol)
		}
		return nil
	}
	rtt := time.Since(s.pingAt)
	s.info.RTT, s.pingAt = rtt, time.Time{}
	for _, c := range s.pongs {
		close(c)
	}
	s.pongs = nil
	s.r.cfg.Node.ObserveRTT(s.peer.Device, rtt)
	return nil
}
