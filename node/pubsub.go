package node

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"hima/identity"
)

// GossipProtocol is GossipSub with this node's choice of what it speaks: no peer exchange, no extensions, no authors. A
// name of its own keeps generic pubsub nodes, which sign and name authors, from ever being peers.
const GossipProtocol = "/hima/gossip/1"

// Errors of pubsub.
var (
	// ErrJoined is returned by Join when the topic is joined already.
	ErrJoined = errors.New("topic is joined already")
	// ErrTooManyTopics is returned by Join.
	ErrTooManyTopics = errors.New("too many topics")
	// ErrNotRunning is returned by Publish before Run and after it.
	ErrNotRunning = errors.New("pubsub is not running")
	// ErrMessageTooLarge is returned by Publish.
	ErrMessageTooLarge = errors.New("message too large for pubsub")
)

// Bounds of what peers can make pubsub keep and do. What exceeds them is dropped: gossip may lose anything.
const (
	// MaxGossip is how long a message may be: an envelope with a whole run of 44 KiB.
	MaxGossip = 48 << 10
	// gossipFrame bounds one frame between two peers, which may hold several messages.
	gossipFrame = 128 << 10
	// gossipTopics is how many topics a node joins: two of each of 500 groups.
	gossipTopics = 1024
	// gossipPeerTopics is how many subscriptions of one peer are noted.
	gossipPeerTopics = 1024
	// gossipQueue is how many frames wait for one peer, gossipChecks how many messages wait to be looked at.
	gossipQueue, gossipChecks = 128, 256
	// gossipSeen is how long a message is known as seen. With gossipRate it bounds that memory: 120,000 times 16 bytes
	// and what a map needs.
	gossipSeen = time.Minute
	// gossipRate is how many messages a second are looked at, of all peers; gossipPeerRate of one. A burst may be twice that.
	gossipRate, gossipPeerRate = 2000, 500
	// gossipStrikes is how many messages may be rejected before a peer is not listened to for gossipBan: one is proof, but
	// a proof by our own code, which may be older than the peer's.
	gossipStrikes, gossipBan = 4, 10 * time.Minute
	// gossipOpen bounds opening a stream to a peer.
	gossipOpen = 10 * time.Second
)

// Verdict is what a handler says of a message.
type Verdict int

const (
	// Accept: the message is passed on to other peers.
	Accept Verdict = iota
	// Ignore: it is not passed on, and nobody is blamed: unknown, late, or not worth it.
	Ignore
	// Reject: it is not passed on, and the peer who passed it on is to blame, for it must have seen that it is forged.
	Reject
)

// PubSubConfig says how a PubSub is made.
type PubSubConfig struct {
	// Allowed says with whom pubsub is spoken (R32). All subscriptions are told to everybody with whom it is spoken. It is
	// called often and from many goroutines, and must not call back.
	Allowed func(identity.DeviceID) bool
	// Logger; nil: nowhere.
	Logger *slog.Logger
}

// PubSub is GossipSub on a node, spoken only with chosen peers. Messages carry neither author nor signature; who handles
// them knows what they must hold.
type PubSub struct {
	n       *Node
	cfg     PubSubConfig
	log     *slog.Logger
	host    *gossipHost
	meters  *gossipMeters
	changed chan struct{} // one slot

	mu      sync.Mutex
	running *pubsub.PubSub // nil: not now
	over    bool           // Run has ended
	topics  map[string]*Topic
	inside  sync.WaitGroup // handlers at work; Add under mu while running is set
}

// NewPubSub makes one, which is silent until Run.
func (n *Node) NewPubSub(c PubSubConfig) (*PubSub, error) {
	if c.Allowed == nil {
		return nil, errors.New("pubsub config does not say who is allowed")
	}
	if n.cfg.Server != nil {
		return nil, errors.New("a bootstrap node speaks no pubsub")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	p := &PubSub{n: n, cfg: c, log: c.Logger, changed: make(chan struct{}, 1), topics: map[string]*Topic{}, meters: newGossipMeters()}
	host, err := newGossipHost(n, p.allowed, p.meters.forget)
	if err != nil {
		return nil, err
	}
	p.host = host
	return p, nil
}

func (p *PubSub) allowed(dev identity.DeviceID) bool {
	return dev != p.n.id && !p.meters.banned(dev, time.Now()) && p.cfg.Allowed(dev)
}

// Run speaks with peers until ctx ends. When it returns no handler is at work and none begins. It is called once.
func (p *PubSub) Run(ctx context.Context) error {
	events, stop := p.n.Subscribe()
	defer stop()
	told, err := p.n.host.EventBus().Subscribe(new(event.EvtPeerProtocolsUpdated))
	if err != nil {
		return fmt.Errorf("listening to identify: %w", err)
	}
	defer told.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer p.finish(cancel)
	if err := p.start(ctx); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.changed:
			p.review()
		case e, ok := <-events:
			if !ok {
				return nil // the node closed
			}
			if up, ok := e.(PeerUp); ok {
				p.host.greet(up.Device)
			}
		case e := <-told.Out():
			if e, ok := e.(event.EvtPeerProtocolsUpdated); ok && speaksGossip(e.Added) {
				if dev, err := identity.DeviceIDFromPeer(e.Peer); err == nil {
					p.host.greet(dev)
				}
			}
		}
	}
}

func speaksGossip(protos []protocol.ID) bool {
	for _, id := range protos {
		if id == GossipProtocol {
			return true
		}
	}
	return false
}

// start makes GossipSub, which begins to speak, and joins what was joined before.
func (p *PubSub) start(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running != nil || p.over {
		return errors.New("pubsub runs, or has run")
	}
	if p.n.closed() {
		return ErrClosed
	}
	gs, err := pubsub.NewGossipSub(ctx, p.host, p.options()...)
	if err != nil {
		return fmt.Errorf("starting pubsub: %w", err)
	}
	p.running = gs
	for _, t := range p.topics {
		if err := t.join(gs); err != nil {
			return err
		}
	}
	return nil
}

// finish ends the streams and waits for handlers. GossipSub's own goroutines end with the context.
func (p *PubSub) finish(cancel context.CancelFunc) {
	p.mu.Lock()
	p.running, p.over = nil, true
	p.mu.Unlock()
	cancel()
	p.host.close()
	p.inside.Wait()
}

// options: four links per topic and no flooding cost a quarter of the CPU and a third of the bytes of libp2p's defaults.
func (p *PubSub) options() []pubsub.Option {
	params := pubsub.DefaultGossipSubParams()
	params.D, params.Dlo, params.Dhi, params.Dscore, params.Dlazy, params.Dout = 4, 3, 6, 4, 4, 1
	// Below this size the notice costs more than the copy that it saves.
	params.IDontWantMessageThreshold = 8 << 10
	return []pubsub.Option{
		pubsub.WithGossipSubParams(params),
		pubsub.WithGossipSubProtocols([]protocol.ID{GossipProtocol}, func(f pubsub.GossipSubFeature, id protocol.ID) bool {
			return id == GossipProtocol && (f == pubsub.GossipSubFeatureMesh || f == pubsub.GossipSubFeatureIdontwant)
		}),
		pubsub.WithMessageSignaturePolicy(pubsub.StrictNoSign),
		pubsub.WithNoAuthor(),
		pubsub.WithMessageIdFn(messageID),
		pubsub.WithMaxMessageSize(gossipFrame),
		pubsub.WithSeenMessagesTTL(gossipSeen),
		pubsub.WithPeerOutboundQueueSize(gossipQueue),
		pubsub.WithValidateQueueSize(gossipChecks),
		// One after another: messages of one author stay in order.
		pubsub.WithValidateWorkers(1),
		pubsub.WithAppSpecificRpcInspector(p.inspect),
		pubsub.WithSubscriptionFilter(p.meters),
		pubsub.WithLogger(slog.New(slog.DiscardHandler)), // it would write the names of topics
		pubsub.WithRPCLogger(slog.New(slog.DiscardHandler)),
	}
}

// messageID is a hash of topic and content. The topic is in it, or a member of two groups could make the messages of one
// count as seen by sending them to the other first.
func messageID(m *pb.Message) string {
	h := sha256.New()
	h.Write([]byte(m.GetTopic()))
	h.Write([]byte{0})
	h.Write(m.GetData())
	return string(h.Sum(nil)[:16])
}

// inspect drops what is too much before anything is kept of it.
func (p *PubSub) inspect(from peer.ID, rpc *pubsub.RPC) error {
	rpc.Publish = rpc.Publish[:p.meters.take(from, len(rpc.Publish), time.Now())]
	return nil
}

// PeersChanged says that Allowed may answer differently now.
func (p *PubSub) PeersChanged() { poke(p.changed) }

// review ends what is not allowed any more and begins with who is allowed now.
func (p *PubSub) review() {
	p.host.drop(func(dev identity.DeviceID) bool { return !p.allowed(dev) })
	for _, i := range p.n.Peers() {
		p.host.greet(i.Device)
	}
}

// Topic is one joined topic.
type Topic struct {
	p      *PubSub
	name   string
	handle func(from identity.DeviceID, data []byte) Verdict

	mu    sync.Mutex // held while joining and leaving, never while handling
	topic *pubsub.Topic
	relay pubsub.RelayCancelFunc
	left  bool
}

// Join takes part in a topic: handle judges each message that comes in, before it is passed on and before the next is
// looked at, so it must be quick and must not wait. data must not be kept. It may be called before Run.
func (p *PubSub) Join(topic string, handle func(from identity.DeviceID, data []byte) Verdict) (*Topic, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.over:
		return nil, ErrNotRunning
	case p.topics[topic] != nil:
		return nil, ErrJoined
	case len(p.topics) >= gossipTopics:
		return nil, ErrTooManyTopics
	}
	t := &Topic{p: p, name: topic, handle: handle}
	if p.running != nil {
		if err := t.join(p.running); err != nil {
			return nil, err
		}
	}
	p.topics[topic] = t
	return t, nil
}

// join subscribes. A relay is a subscription without a queue: all is done in the validator.
func (t *Topic) join(gs *pubsub.PubSub) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := gs.RegisterTopicValidator(t.name, t.validate, pubsub.WithValidatorInline(true))
	if err == nil {
		if t.topic, err = gs.Join(t.name); err == nil {
			t.relay, err = t.topic.Relay()
		}
	}
	if err != nil {
		return fmt.Errorf("joining a topic: %w", err)
	}
	return nil
}

// validate is called by GossipSub, one message after another, and by Publish for own ones.
func (t *Topic) validate(_ context.Context, src peer.ID, m *pubsub.Message) pubsub.ValidationResult {
	if src == t.p.host.ID() {
		return pubsub.ValidationAccept
	}
	dev, err := identity.DeviceIDFromPeer(src)
	if err != nil || len(m.Data) > MaxGossip || !t.p.enter() {
		return pubsub.ValidationIgnore
	}
	defer t.p.inside.Done()
	switch t.handle(dev, m.Data) {
	case Accept:
		return pubsub.ValidationAccept
	case Reject:
		if t.p.meters.strike(dev, time.Now()) {
			t.p.log.Warn("not listening to a peer that passes on forged messages", "device", dev.Short())
			t.p.PeersChanged()
		}
		return pubsub.ValidationReject
	}
	return pubsub.ValidationIgnore
}

// enter counts a handler unless Run has ended.
func (p *PubSub) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running == nil {
		return false
	}
	p.inside.Add(1)
	return true
}

// Name is the topic's name.
func (t *Topic) Name() string { return t.name }

// Publish hands a message to the peers of the topic. Nil does not mean that there are any. ctx bounds nothing but the
// wait for GossipSub's loop.
func (t *Topic) Publish(ctx context.Context, data []byte) error {
	if len(data) > MaxGossip {
		return fmt.Errorf("publishing %d bytes: %w", len(data), ErrMessageTooLarge)
	}
	t.mu.Lock()
	topic := t.topic
	t.mu.Unlock()
	if topic == nil {
		return ErrNotRunning
	}
	if err := topic.Publish(ctx, data); err != nil {
		return fmt.Errorf("publishing: %w", err)
	}
	return nil
}

// Peers is how many connected peers are in the topic.
func (t *Topic) Peers() int {
	t.mu.Lock()
	topic := t.topic
	t.mu.Unlock()
	if topic == nil {
		return 0
	}
	return len(topic.ListPeers())
}

// Leave ends the part in a topic. It may be called several times.
func (t *Topic) Leave() {
	t.p.mu.Lock()
	if t.p.topics[t.name] == t {
		delete(t.p.topics, t.name)
	}
	gs := t.p.running
	t.p.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.left || t.topic == nil {
		return
	}
	t.left = true
	t.relay()
	if gs != nil {
		_ = gs.UnregisterTopicValidator(t.name)
	}
	_ = t.topic.Close()
	t.topic = nil
}
