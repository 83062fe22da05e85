package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multistream"

	"hima/identity"
)

// Stream is one ordered, flow-controlled, authenticated and encrypted byte stream to a device. One goroutine may read
// while another writes.
//
// A stream that a peer opened is reset if nothing arrives in its first 20 seconds; a read deadline set by the handler
// replaces that. All else is the user's: a Write without a deadline waits for ever on a peer that does not read.
type Stream struct {
	s      network.Stream
	remote identity.DeviceID
	quiet  atomic.Bool // firstByteTimeout is running
	closed atomic.Bool // Close was called
}

// Read reads what the peer wrote; io.EOF after the peer's CloseWrite.
func (s *Stream) Read(p []byte) (int, error) {
	n, err := s.s.Read(p)
	if n > 0 && s.quiet.CompareAndSwap(true, false) {
		if e := s.s.SetReadDeadline(time.Time{}); e != nil && err == nil {
			err = e
		}
	}
	return n, err
}

// Write queues p; it returns before the peer has read it, but not before there is room for it.
func (s *Stream) Write(p []byte) (int, error) { return s.s.Write(p) }

// SetDeadline bounds reads and writes.
func (s *Stream) SetDeadline(t time.Time) error {
	s.quiet.Store(false)
	return s.s.SetDeadline(t)
}

// SetReadDeadline bounds reads.
func (s *Stream) SetReadDeadline(t time.Time) error {
	s.quiet.Store(false)
	return s.s.SetReadDeadline(t)
}

// SetWriteDeadline bounds writes.
func (s *Stream) SetWriteDeadline(t time.Time) error { return s.s.SetWriteDeadline(t) }

// CloseWrite tells the peer that nothing more comes; reading goes on.
func (s *Stream) CloseWrite() error { return s.s.CloseWrite() }

// Close ends the stream in good order: what was written still arrives.
func (s *Stream) Close() error {
	s.closed.Store(true)
	return s.s.Close()
}

// Reset ends the stream at once, on both sides; what is under way is lost.
func (s *Stream) Reset() { _ = s.s.Reset() }

// Remote is the device at the other end, proven by the transport.
func (s *Stream) Remote() identity.DeviceID { return s.remote }

// Info describes the connection the stream runs over.
func (s *Stream) Info() ConnInfo { return connInfo(s.s.Conn()) }

// Open opens a stream to a device and agrees on the protocol. It dials the known addresses if the device is not
// connected, and takes the best connection if it has several. A connection that does not answer any more is closed and
// the device dialled anew, once; one whose peer merely refuses the stream is left alone.
func (n *Node) Open(ctx context.Context, dev identity.DeviceID, proto string) (*Stream, error) {
	if dev == n.id {
		return nil, ErrSelf
	}
	ctx = network.WithAllowLimitedConn(ctx, "hima")
	n.punch.talks(dev)
	var err error
	for range 2 {
		if n.closed() {
			return nil, ErrClosed
		}
		c := best(n.links(dev)).conn
		if c == nil {
			if err = n.dial(ctx, dev); err != nil {
				return nil, err
			}
			if c = best(n.links(dev)).conn; c == nil {
				err = ErrUnreachable // closed again already
				continue
			}
		}
		var s *Stream
		if s, err = n.openOn(ctx, c, dev, proto); err == nil {
			return s, nil
		}
		switch {
		case ctx.Err() != nil:
			return nil, fmt.Errorf("opening stream: %w", ctx.Err())
		case errors.Is(err, context.DeadlineExceeded):
			n.log.Debug("closing a connection that does not answer", "device", dev.Short())
			if relay, ok := relayOf(c.RemoteMultiaddr()); ok {
				n.keeper.suspect(relay)
			}
			c.Close()
		case !c.IsClosed(): // the peer lives and does not want
			return nil, err
		}
	}
	if errors.Is(err, ErrUnreachable) {
		return nil, err
	}
	return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
}

// openOn opens a stream on one connection. libp2p's own NewStream chooses the connection by its number of streams and
// answers before the peer did; here the connection is ours to choose, and one round trip, paid once in the life of a
// session, shows that the peer is alive.
func (n *Node) openOn(ctx context.Context, c network.Conn, dev identity.DeviceID, proto string) (*Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, negotiateTimeout)
	defer cancel()
	s, err := c.NewStream(ctx)
	if err != nil {
		return nil, fmt.Errorf("opening stream: %w", err)
	}
	start := time.Now()
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	err = multistream.SelectProtoOrFail(protocol.ID(proto), s)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = s.Reset()
		var unknown multistream.ErrNotSupported[protocol.ID]
		if errors.As(err, &unknown) {
			return nil, fmt.Errorf("%w: %s", ErrNotSpoken, proto)
		}
		if ctx.Err() != nil {
			err = ctx.Err()
		} else if errors.Is(err, network.ErrReset) {
			return nil, fmt.Errorf("%w: %w", ErrRefused, err)
		}
		return nil, fmt.Errorf("asking for protocol: %w", err)
	}
	n.ObserveRTT(dev, time.Since(start))
	if err := s.SetProtocol(protocol.ID(proto)); err != nil {
		_ = s.Reset()
		return nil, fmt.Errorf("opening stream: %w", err)
	}
	return &Stream{s: s, remote: dev}, nil
}

// Handle answers streams of a protocol with h, one goroutine per stream. h owns its stream; one that h has not closed
// when it returns is reset. At most Limits.HandlersPerPeer of one device and Limits.Streams/4 of all run at a time; further
// streams are reset. h must return when its stream ends; Close waits for it.
func (n *Node) Handle(proto string, h func(*Stream)) {
	gate := &gate{perPeer: n.cfg.Limits.HandlersPerPeer, total: max(1, n.cfg.Limits.Streams/4), held: map[identity.DeviceID]int{}}
	n.host.SetStreamHandler(protocol.ID(proto), func(s network.Stream) {
		dev, err := identity.DeviceIDFromPeer(s.Conn().RemotePeer())
		if err != nil || !n.enter() {
			_ = s.Reset()
			return
		}
		defer n.handlers.Done()
		if !gate.enter(dev) {
			_ = s.ResetWithError(network.StreamResourceLimitExceeded)
			return
		}
		defer gate.leave(dev)
		n.punch.talks(dev)
		st := &Stream{s: s, remote: dev}
		st.quiet.Store(true)
		_ = s.SetReadDeadline(time.Now().Add(firstByteTimeout))
		defer func() {
			if !st.closed.Load() { // a reset after Close would throw away what is still under way
				_ = s.Reset()
			}
		}()
		h(st)
	})
}

// enter counts a handler unless the node is closing.
func (n *Node) enter() bool {
	n.handlerMu.Lock()
	defer n.handlerMu.Unlock()
	if n.isClosed {
		return false
	}
	n.handlers.Add(1)
	return true
}

// gate counts the running handlers of one protocol.
type gate struct {
	perPeer, total int

	mu   sync.Mutex
	all  int
	held map[identity.DeviceID]int
}

func (g *gate) enter(dev identity.DeviceID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.all >= g.total || g.held[dev] >= g.perPeer {
		return false
	}
	g.all++
	g.held[dev]++
	return true
}

func (g *gate) leave(dev identity.DeviceID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.all--
	if g.held[dev]--; g.held[dev] == 0 {
		delete(g.held, dev)
	}
}
