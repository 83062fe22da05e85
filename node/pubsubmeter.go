package node

import (
	"sync"
	"time"

	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"

	"hima/identity"
)

// gossipMeters holds what each peer costs: how much it sends, how many topics it names, how often it was caught. A peer that
// is gone is forgotten, but for its strikes.
type gossipMeters struct {
	all *rate.Limiter

	mu     sync.Mutex
	peers  map[peer.ID]*gossipMeter
	caught map[identity.DeviceID]gossipStrike
}

type gossipMeter struct {
	rate   *rate.Limiter
	topics map[string]struct{}
}

type gossipStrike struct {
	n     int
	last  time.Time
	until time.Time // not listened to
}

func newGossipMeters() *gossipMeters {
	return &gossipMeters{
		all:   rate.NewLimiter(gossipRate, 2*gossipRate),
		peers: map[peer.ID]*gossipMeter{}, caught: map[identity.DeviceID]gossipStrike{},
	}
}

func (m *gossipMeters) of(p peer.ID) *gossipMeter {
	g := m.peers[p]
	if g == nil {
		g = &gossipMeter{rate: rate.NewLimiter(gossipPeerRate, 2*gossipPeerRate), topics: map[string]struct{}{}}
		m.peers[p] = g
	}
	return g
}

// take says how many of n messages of a peer may be looked at.
func (m *gossipMeters) take(p peer.ID, n int, now time.Time) int {
	if n == 0 {
		return 0
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	g := m.of(p)
	for i := range n {
		if !g.rate.AllowN(now, 1) || !m.all.AllowN(now, 1) {
			return i
		}
	}
	return n
}

// strike notes a forged message and says whether the peer is not listened to from now on.
func (m *gossipMeters) strike(dev identity.DeviceID, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for d, s := range m.caught { // few ever; those of long ago go
		if now.Sub(s.last) > gossipBan && now.After(s.until) {
			delete(m.caught, d)
		}
	}
	s := m.caught[dev]
	s.n, s.last = s.n+1, now
	banned := s.n >= gossipStrikes
	if banned {
		s.n, s.until = 0, now.Add(gossipBan)
	}
	m.caught[dev] = s
	return banned
}

func (m *gossipMeters) banned(dev identity.DeviceID, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return now.Before(m.caught[dev].until)
}

// CanSubscribe implements pubsub.SubscriptionFilter.
func (m *gossipMeters) CanSubscribe(string) bool { return true }

// FilterIncomingSubscriptions implements pubsub.SubscriptionFilter: the first so many topics of a peer are noted. They
// cannot be restricted to those joined here, for the peer will not tell of them again when they are.
func (m *gossipMeters) FilterIncomingSubscriptions(p peer.ID, subs []*pb.RPC_SubOpts) ([]*pb.RPC_SubOpts, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	topics := m.of(p).topics
	out := subs[:0]
	for _, s := range subs {
		id := s.GetTopicid()
		if _, known := topics[id]; s.GetSubscribe() {
			if !known && len(topics) >= gossipPeerTopics || len(id) > maxTopicName {
				continue
			}
			topics[id] = struct{}{}
		} else {
			delete(topics, id)
		}
		out = append(out, s)
	}
	return out, nil
}

// maxTopicName bounds the name of a topic that is noted.
const maxTopicName = 128

// forget is called when the peer's stream has ended, with which GossipSub forgets its subscriptions.
func (m *gossipMeters) forget(p peer.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.peers, p)
}
