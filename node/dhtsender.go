package node

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"google.golang.org/protobuf/proto"
)

const (
	// dhtAnswer bounds one question to one node, over a slow relay too.
	dhtAnswer = 6 * time.Second
	// maxDHTMessage bounds an answer: a record and twenty nodes with eight addresses each.
	maxDHTMessage = 64 << 10
	// dhtLineIdle is how long a stream to a node stands idle. kad-dht's answering end waits a minute.
	dhtLineIdle = 40 * time.Second
)

var errDHTMessage = errors.New("message of a DHT node is too long")

// dhtSender asks other DHT nodes. It does what kad-dht's own sender does, and besides it lets the one who began a
// look-up see each node's answer: kad-dht would only tell the best.
type dhtSender struct {
	host   host.Host
	protos []protocol.ID

	mu    sync.Mutex
	lines map[peer.ID]*dhtLine
}

// dhtLine is one stream to one node; questions take turns on it.
type dhtLine struct {
	turn chan struct{} // one slot
	s    network.Stream
	r    *bufio.Reader
	last time.Time // when it was used
}

// witness is what the context of a look-up carries to see the answers.
type witness struct {
	mu      sync.Mutex
	key     string
	answers map[peer.ID][]byte // nil: has none
	news    chan struct{}      // somebody answered; 1 deep
}

func newWitness(key string) *witness {
	return &witness{key: key, answers: map[peer.ID][]byte{}, news: make(chan struct{}, 1)}
}

type witnessKey struct{}

func (w *witness) saw(p peer.ID, m *pb.Message) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var value []byte
	if r := m.GetRecord(); r != nil && string(r.GetKey()) == w.key {
		value = r.GetValue()
	}
	w.answers[p] = value
	select {
	case w.news <- struct{}{}:
	default:
	}
}

// holders is how many nodes showed exactly this.
func (w *witness) holders(value []byte) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, v := range w.answers {
		if bytes.Equal(v, value) {
			n++
		}
	}
	return n
}

func newDHTSender(h host.Host, protos []protocol.ID) *dhtSender {
	return &dhtSender{host: h, protos: protos, lines: map[peer.ID]*dhtLine{}}
}

// SendRequest asks and waits for the answer.
func (d *dhtSender) SendRequest(ctx context.Context, p peer.ID, m *pb.Message) (*pb.Message, error) {
	start := time.Now()
	answer, err := d.exchange(ctx, p, m, true)
	if err != nil {
		return nil, err
	}
	d.host.Peerstore().RecordLatency(p, time.Since(start))
	if w, ok := ctx.Value(witnessKey{}).(*witness); ok && m.GetType() == pb.Message_GET_VALUE {
		w.saw(p, answer)
	}
	if w, ok := ctx.Value(tellersKey{}).(*tellers); ok && m.GetType() == pb.Message_GET_PROVIDERS {
		w.heard(answer)
	}
	return answer, nil
}

// SendMessage tells without waiting.
func (d *dhtSender) SendMessage(ctx context.Context, p peer.ID, m *pb.Message) error {
	_, err := d.exchange(ctx, p, m, false)
	return err
}

// OnDisconnect forgets the stream to a node.
func (d *dhtSender) OnDisconnect(_ context.Context, p peer.ID) {
	d.mu.Lock()
	l := d.lines[p]
	delete(d.lines, p)
	d.mu.Unlock()
	if l == nil {
		return
	}
	go func() {
		l.turn <- struct{}{}
		l.drop()
		<-l.turn
	}()
}

// dropIdle ends streams that nobody used for a while, before the other ends do and so that their connections count as
// idle.
func (d *dhtSender) dropIdle(after time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for p, l := range d.lines {
		select {
		case l.turn <- struct{}{}:
			if time.Since(l.last) >= after {
				l.drop()
				delete(d.lines, p)
			}
			<-l.turn
		default: // in use
		}
	}
}

// unused notes for each node with a stream that nobody uses now when it was last used.
func (d *dhtSender) unused(last map[peer.ID]time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for p, l := range d.lines {
		select {
		case l.turn <- struct{}{}:
			if l.s != nil {
				last[p] = l.last
			}
			<-l.turn
		default: // in use
		}
	}
}

// close ends every stream.
func (d *dhtSender) close() {
	d.mu.Lock()
	lines := d.lines
	d.lines = map[peer.ID]*dhtLine{}
	d.mu.Unlock()
	for _, l := range lines {
		l.turn <- struct{}{}
		l.drop()
		<-l.turn
	}
}

func (l *dhtLine) drop() {
	if l.s != nil {
		_ = l.s.Reset()
		l.s, l.r = nil, nil
	}
}

func (d *dhtSender) exchange(ctx context.Context, p peer.ID, m *pb.Message, wait bool) (*pb.Message, error) {
	ctx, cancel := context.WithTimeout(network.WithAllowLimitedConn(ctx, "hima"), dhtAnswer)
	defer cancel()
	d.mu.Lock()
	l := d.lines[p]
	if l == nil {
		l = &dhtLine{turn: make(chan struct{}, 1)}
		d.lines[p] = l
	}
	d.mu.Unlock()
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() {
		l.last = time.Now()
		<-l.turn
	}()
	for {
		old := l.s != nil
		answer, err := d.ask(ctx, p, l, m, wait)
		if err == nil {
			return answer, nil
		}
		l.drop()
		// The other end closes a stream that stood idle for a minute. That says nothing of the node: ask anew.
		if !old || ctx.Err() != nil {
			return nil, err
		}
	}
}

// ask uses the stream there is, or opens one. The caller has the turn.
func (d *dhtSender) ask(ctx context.Context, p peer.ID, l *dhtLine, m *pb.Message, wait bool) (*pb.Message, error) {
	if l.s == nil {
		if err := d.host.Connect(ctx, peer.AddrInfo{ID: p}); err != nil {
			return nil, fmt.Errorf("connecting: %w", err)
		}
		s, err := d.host.NewStream(ctx, p, d.protos...)
		if err != nil {
			return nil, fmt.Errorf("opening stream: %w", err)
		}
		l.s, l.r = s, bufio.NewReader(s)
	}
	s := l.s
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	defer stop()
	body, err := proto.Marshal(m)
	if err != nil {
		return nil, err
	}
	if _, err := s.Write(append(binary.AppendUvarint(nil, uint64(len(body))), body...)); err != nil {
		return nil, fmt.Errorf("asking: %w", err)
	}
	if !wait {
		return nil, nil
	}
	n, err := binary.ReadUvarint(l.r)
	if err != nil {
		return nil, fmt.Errorf("waiting for an answer: %w", err)
	}
	if n > maxDHTMessage {
		return nil, errDHTMessage
	}
	buf := make([]byte, n)
	if _, err := io.ReadFull(l.r, buf); err != nil {
		return nil, fmt.Errorf("reading an answer: %w", err)
	}
	answer := new(pb.Message)
	if err := proto.Unmarshal(buf, answer); err != nil {
		return nil, fmt.Errorf("decoding an answer: %w", err)
	}
	return answer, nil
}
