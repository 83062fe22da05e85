package mailbox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"hima/identity"
	"hima/internal/wire"
	"hima/internal/wire/pb"
	"hima/node"
)

// link is the client's stream to one mailbox. Many callers write requests, one goroutine reads the answers, which come in
// the order of the requests.
type link struct {
	c      *Client
	device identity.DeviceID
	slots  chan struct{} // of the window
	ready  chan struct{} // closed when the stream is open
	dead   chan struct{} // closed when it ended; err then says why
	err    error
	once   sync.Once

	write  sync.Mutex   // held while a request is written, so that requests go out in the order of their numbers
	stream *node.Stream // set before ready is closed

	mu    sync.Mutex
	next  uint64
	asked []*asked               // guarded by mu; in order, without an answer yet
	heard map[*listener]struct{} // guarded by mu
}

// asked is a request without an answer yet.
type asked struct {
	id    uint64
	reply chan *pb.MailboxReply // one slot
}

// listener hears the notices of a mailbox.
type listener struct {
	tell func(waiting, missing []identity.InboxID)
}

func newLink(c *Client, device identity.DeviceID) *link {
	return &link{
		c: c, device: device, heard: map[*listener]struct{}{}, slots: make(chan struct{}, c.cfg.Limits.Window), ready: make(chan struct{}), dead: make(chan struct{}),
	}
}

func (l *link) alive() bool {
	select {
	case <-l.dead:
		return false
	default:
		return true
	}
}

// start takes the open stream and reads it until it ends.
func (l *link) start(stream *node.Stream) {
	l.c.mu.Lock()
	if l.c.closed {
		l.c.mu.Unlock()
		stream.Reset()
		l.fail(ErrClosed)
		return
	}
	l.c.wg.Add(1)
	l.c.mu.Unlock()
	l.stream = stream
	close(l.ready)
	go func() {
		defer l.c.wg.Done()
		l.fail(l.read())
	}()
}

// fail ends the link; only the first reason counts.
func (l *link) fail(err error) {
	l.once.Do(func() {
		l.err = err
		close(l.dead)
		l.c.forget(l)
	})
	select {
	case <-l.ready:
		if errors.Is(l.err, errIdle) {
			_ = l.stream.Close()
		}
		l.stream.Reset()
	default:
	}
}

// errIdle ends a stream on which nothing was said for a while.
var errIdle = errors.New("stream closed after a while without use")

// listen lets somebody hear notices until the function that it returns is called. All hear all: who asked for what is for
// them to know.
func (l *link) listen(tell func(waiting, missing []identity.InboxID)) (stop func()) {
	h := &listener{tell}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heard[h] = struct{}{}
	l.patience()
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.heard, h)
		l.patience()
	}
}

// patience sets how long to wait for what is read next. Called with mu held.
func (l *link) patience() {
	limit := l.c.cfg.Limits
	until := time.Time{}
	switch {
	case len(l.asked) > 0:
		until = time.Now().Add(limit.Answer)
	case len(l.heard) == 0:
		until = time.Now().Add(limit.Idle)
	}
	if err := l.stream.SetReadDeadline(until); err != nil {
		l.c.log.Debug("setting a deadline", "error", err)
	}
}

// ask sends a request and waits for its answer; a code that is not OK is an error.
func (l *link) ask(ctx context.Context, m *pb.MailboxRequest) (*pb.MailboxReply, error) {
	select {
	case <-l.ready:
	case <-l.dead:
		return nil, l.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case l.slots <- struct{}{}:
	case <-l.dead:
		return nil, l.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	a := &asked{reply: make(chan *pb.MailboxReply, 1)}
	if err := l.send(a, m); err != nil {
		l.fail(err)
		return nil, err
	}
	select {
	case r := <-a.reply:
		return r, errorOf(r.Code)
	case <-l.dead:
		select {
		case r := <-a.reply: // both happened
			return r, errorOf(r.Code)
		default:
			return nil, l.err
		}
	case <-ctx.Done(): // the answer is read all the same, and thrown away
		return nil, ctx.Err()
	}
}

func (l *link) send(a *asked, m *pb.MailboxRequest) error {
	l.write.Lock()
	defer l.write.Unlock()
	l.mu.Lock()
	l.next++
	a.id = l.next
	l.asked = append(l.asked, a)
	if len(l.asked) == 1 {
		l.patience()
	}
	l.mu.Unlock()
	frame := &pb.MailboxRequest{Id: a.id, Of: m.Of} // m may be sent again on another stream
	if err := l.stream.SetWriteDeadline(time.Now().Add(l.c.cfg.Limits.Answer)); err != nil {
		return fmt.Errorf("asking a mailbox: %w", err)
	}
	if err := wire.Write(l.stream, wire.MaxMailboxFrame, frame); err != nil {
		return fmt.Errorf("asking a mailbox: %w", err)
	}
	return nil
}

// read takes answers and notices until the stream ends.
func (l *link) read() error {
	r := bufio.NewReaderSize(l.stream, 4<<10)
	for {
		m := &pb.MailboxReply{}
		if err := wire.Read(r, wire.MaxMailboxFrame, m); err != nil {
			if err == io.EOF {
				return fmt.Errorf("reading answers: %w", io.ErrUnexpectedEOF)
			}
			if l.idle(err) {
				return errIdle
			}
			return fmt.Errorf("reading answers: %w", err)
		}
		if m.Id == 0 {
			if err := l.notice(m); err != nil {
				return err
			}
			continue
		}
		l.mu.Lock()
		if len(l.asked) == 0 || l.asked[0].id != m.Id {
			l.mu.Unlock()
			return fmt.Errorf("answer %d out of order: %w", m.Id, ErrProtocol)
		}
		a := l.asked[0]
		l.asked[0] = nil
		l.asked = l.asked[1:]
		l.patience()
		l.mu.Unlock()
		a.reply <- m
		<-l.slots
	}
}

// idle says whether an error is only that nothing was to be read.
func (l *link) idle(err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	var timeout interface{ Timeout() bool }
	return errors.As(err, &timeout) && timeout.Timeout() && len(l.asked) == 0
}

func (l *link) notice(m *pb.MailboxReply) error {
	waiting, missing, err := lookOf(m)
	if err != nil {
		return err
	}
	l.mu.Lock()
	list := slices.Collect(maps.Keys(l.heard))
	l.mu.Unlock()
	for _, h := range list {
		h.tell(waiting, missing)
	}
	return nil
}
