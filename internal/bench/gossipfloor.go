package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pubsubpb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	lpeer "github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	tls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
)

// gossipFloor is plain GossipSub among so many hosts of one process on loopback: four links each, unsigned, IDs by hash, and
// nothing behind it. It is what a group costs without hima.
type gossipFloor struct {
	hosts  []host.Host
	topics []*pubsub.Topic
	end    context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	tracks map[uint32]*track
}

// track counts who has a message.
type track struct {
	start time.Time
	left  atomic.Int64
	done  chan time.Duration
}

func newTrack(n int) *track {
	t := &track{start: time.Now(), done: make(chan time.Duration, 1)}
	t.left.Store(int64(n))
	return t
}

func (t *track) has() {
	if t.left.Add(-1) == 0 {
		t.done <- time.Since(t.start)
	}
}

// openGossipFloor makes n hosts, each of which dials links others, and waits until their meshes have settled.
func openGossipFloor(ctx context.Context, n, links int) (*gossipFloor, error) {
	ctx, end := context.WithCancel(ctx)
	g := &gossipFloor{end: end, tracks: map[uint32]*track{}}
	for range n {
		if err := g.add(ctx); err != nil {
			return nil, errors.Join(err, g.close())
		}
	}
	for i, h := range g.hosts {
		for range min(links, n-1) {
			j := rand.N(n)
			if j == i {
				continue
			}
			if err := h.Connect(ctx, lpeer.AddrInfo{ID: g.hosts[j].ID(), Addrs: g.hosts[j].Addrs()}); err != nil {
				return nil, errors.Join(err, g.close())
			}
		}
	}
	select { // a few heartbeats
	case <-time.After(4 * time.Second):
	case <-ctx.Done():
	}
	return g, ctx.Err()
}

func (g *gossipFloor) add(ctx context.Context) error {
	h, err := libp2p.New(libp2p.NoTransports, libp2p.DisableRelay(), libp2p.DisableMetrics(), libp2p.DisableIdentifyAddressDiscovery(),
		libp2p.ResourceManager(&network.NullResourceManager{}), libp2p.Transport(tcp.NewTCPTransport, tcp.DisableReuseport()), libp2p.Security(tls.ID, tls.New),
		libp2p.Muxer(yamux.ID, yamux.DefaultTransport), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"))
	if err != nil {
		return err
	}
	g.hosts = append(g.hosts, h)
	p := pubsub.DefaultGossipSubParams()
	p.D, p.Dlo, p.Dhi, p.Dscore, p.Dlazy, p.Dout = 4, 3, 6, 4, 4, 1
	ps, err := pubsub.NewGossipSub(ctx, h, pubsub.WithGossipSubParams(p), pubsub.WithMessageSignaturePolicy(pubsub.StrictNoSign), pubsub.WithNoAuthor(),
		pubsub.WithMessageIdFn(func(m *pubsubpb.Message) string { s := sha256.Sum256(m.Data); return string(s[:16]) }),
		pubsub.WithPeerOutboundQueueSize(1024), pubsub.WithValidateQueueSize(1024))
	if err != nil {
		return err
	}
	topic, err := ps.Join("room")
	if err != nil {
		return err
	}
	g.topics = append(g.topics, topic)
	s, err := topic.Subscribe(pubsub.WithBufferSize(4096))
	if err != nil {
		return err
	}
	g.wg.Go(func() {
		for {
			m, err := s.Next(ctx)
			if err != nil {
				return
			}
			g.mu.Lock()
			t := g.tracks[binary.BigEndian.Uint32(m.Data)]
			g.mu.Unlock()
			if t != nil {
				t.has()
			}
		}
	})
	return nil
}

// send publishes a message and waits until all have it; after five seconds it counts as lost, with 0.
func (g *gossipFloor) send(ctx context.Context, i, size int) (time.Duration, error) {
	b := make([]byte, size)
	binary.BigEndian.PutUint32(b, uint32(i))
	t := newTrack(len(g.hosts))
	g.mu.Lock()
	g.tracks[uint32(i)] = t
	g.mu.Unlock()
	if err := g.topics[i%len(g.topics)].Publish(ctx, b); err != nil {
		return 0, err
	}
	select {
	case d := <-t.done:
		return d, nil
	case <-time.After(5 * time.Second):
		return 0, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (g *gossipFloor) close() error {
	g.end()
	g.wg.Wait()
	var errs []error
	for _, h := range g.hosts {
		errs = append(errs, h.Close())
	}
	return errors.Join(errs...)
}

// syncs says how many times a second the disk makes 4 KiB durable, one after another.
func syncs(dir string, n int) (float64, error) {
	f, err := os.Create(filepath.Join(dir, "syncs"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	b := make([]byte, 4<<10)
	start := time.Now()
	for range n {
		if _, err := f.Write(b); err != nil {
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
	}
	return float64(n) / time.Since(start).Seconds(), nil
}
