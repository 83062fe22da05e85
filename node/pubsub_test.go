package node_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"hima/identity"
	"hima/node"
	"hima/node/nodetest"
)

// gossiper is a node that speaks pubsub in a test.
type gossiper struct {
	p   *node.PubSub
	end func()

	mu      sync.Mutex
	friends map[identity.DeviceID]bool // nil: everybody
	got     []string
	verdict node.Verdict
	forged  string // is rejected
}

// gossip lets a node speak pubsub with everybody, in virtual time or not, until the test ends.
func gossip(t *testing.T, n *node.Node, friends ...identity.DeviceID) *gossiper {
	t.Helper()
	g := &gossiper{}
	if friends != nil {
		g.friends = map[identity.DeviceID]bool{}
		for _, f := range friends {
			g.friends[f] = true
		}
	}
	p, err := n.NewPubSub(node.PubSubConfig{Allowed: func(d identity.DeviceID) bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.friends == nil || g.friends[d]
	}})
	if err != nil {
		t.Fatal(err)
	}
	g.p = p
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	g.end = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("running pubsub: %v", err)
		}
	})
	t.Cleanup(func() { g.end() })
	return g
}

func (g *gossiper) join(t *testing.T, topic string) *node.Topic {
	t.Helper()
	tp, err := g.p.Join(topic, func(_ identity.DeviceID, data []byte) node.Verdict {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.forged != "" && string(data) == g.forged {
			return node.Reject
		}
		g.got = append(g.got, string(data))
		return g.verdict
	})
	if err != nil {
		t.Fatal(err)
	}
	return tp
}

func (g *gossiper) befriend(devs ...identity.DeviceID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.friends = map[identity.DeviceID]bool{}
	for _, d := range devs {
		g.friends[d] = true
	}
}

func (g *gossiper) has(what string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range g.got {
		if s == what {
			return true
		}
	}
	return false
}

func TestGossipReachesAllOverOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 12
		w := nodetest.New(t, 0)
		var all []*gossiper
		var topics []*node.Topic
		for i := range n {
			w.AddPlain(64)
			all = append(all, gossip(t, w.Node(i)))
			topics = append(topics, all[i].join(t, "hima/g/test"))
		}
		for i := range n { // a ring with some chords: most are not connected with the author
			w.Connect(i, (i+1)%n)
			w.Connect(i, (i+3)%n)
		}
		within(t, 5*time.Second, "everybody has peers", func() bool {
			for _, tp := range topics {
				if tp.Peers() < 3 {
					return false
				}
			}
			return true
		})
		time.Sleep(2 * time.Second) // the mesh settles
		for k := range 20 {
			if err := topics[k%n].Publish(t.Context(), fmt.Appendf(nil, "message %d", k)); err != nil {
				t.Fatal(err)
			}
		}
		within(t, time.Second, "all have all", func() bool {
			for i, g := range all {
				for k := range 20 {
					if k%n != i && !g.has(fmt.Sprint("message ", k)) {
						return false
					}
				}
			}
			return true
		})
		topics[3].Leave()
		topics[3].Leave()
		if topics[3].Publish(t.Context(), []byte("late")) == nil {
			t.Error("published into a topic that was left")
		}
		if _, err := all[3].p.Join("hima/g/test", nil); err != nil {
			t.Errorf("joining again: %v", err)
		}
		if _, err := all[4].p.Join("hima/g/test", nil); !errors.Is(err, node.ErrJoined) {
			t.Errorf("joined twice: %v", err)
		}
		if err := topics[0].Publish(t.Context(), make([]byte, node.MaxGossip+1)); !errors.Is(err, node.ErrMessageTooLarge) {
			t.Errorf("published too much: %v", err)
		}
	})
}

// What a handler does not accept goes no further: c is connected with a only through b.
func TestGossipIsDroppedBeforeItIsPassedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := nodetest.New(t, 0)
		var all []*gossiper
		var topics []*node.Topic
		for i := range 3 {
			w.AddPlain(64)
			all = append(all, gossip(t, w.Node(i)))
			topics = append(topics, all[i].join(t, "t"))
		}
		w.Connect(0, 1)
		w.Connect(1, 2)
		within(t, 5*time.Second, "peers", func() bool { return topics[1].Peers() == 2 })
		time.Sleep(2 * time.Second)
		for i, verdict := range []node.Verdict{node.Accept, node.Ignore, node.Reject} {
			all[1].mu.Lock()
			all[1].verdict = verdict
			all[1].mu.Unlock()
			what := fmt.Sprint("m", i)
			if err := topics[0].Publish(t.Context(), []byte(what)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Second) // also for what is told of in heartbeats
			if !all[1].has(what) || all[2].has(what) != (verdict == node.Accept) {
				t.Errorf("verdict %d: b has it: %v, c has it: %v", verdict, all[1].has(what), all[2].has(what))
			}
		}
	})
}

// A peer that shares no group sees no topic (R32), whoever of the two dialled and whoever speaks first; it does once it is
// allowed, and no more when it is not any more.
func TestGossipIsSpokenOnlyWithTheAllowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := nodetest.New(t, 0)
		w.AddPlain(64) // 0: talks with 1 alone
		w.AddPlain(64) // 1
		w.AddPlain(64) // 2: talks with everybody
		a, b, c := w.Node(0), w.Node(1), w.Node(2)
		ga, gb, gc := gossip(t, a, b.ID()), gossip(t, b, a.ID()), gossip(t, c)
		ta, tb, tc := ga.join(t, "secret"), gb.join(t, "secret"), gc.join(t, "secret")
		w.Connect(0, 1)
		w.Connect(2, 0)
		w.Connect(1, 2)
		within(t, 5*time.Second, "a and b see each other", func() bool { return ta.Peers() == 1 && tb.Peers() == 1 })
		time.Sleep(time.Minute)
		if n := tc.Peers(); n != 0 {
			t.Fatalf("the outsider sees %d subscriptions", n)
		}
		// The outsider's own words are not heard either.
		if err := tc.Publish(t.Context(), []byte("intruder")); err != nil {
			t.Fatal(err)
		}
		if err := ta.Publish(t.Context(), []byte("inside")); err != nil {
			t.Fatal(err)
		}
		within(t, 5*time.Second, "b hears a", func() bool { return gb.has("inside") })
		time.Sleep(10 * time.Second)
		if ga.has("intruder") || gb.has("intruder") || gc.has("inside") {
			t.Fatal("gossip crossed the border")
		}

		ga.befriend(b.ID(), c.ID())
		ga.p.PeersChanged()
		within(t, 5*time.Second, "the newcomer sees a", func() bool { return tc.Peers() == 1 && ta.Peers() == 2 })
		time.Sleep(2 * time.Second)
		if err := tb.Publish(t.Context(), []byte("to all")); err != nil {
			t.Fatal(err)
		}
		within(t, 5*time.Second, "the newcomer hears b over a", func() bool { return gc.has("to all") })

		ga.befriend(b.ID())
		ga.p.PeersChanged()
		within(t, 5*time.Second, "the removed one is alone", func() bool { return tc.Peers() == 0 && ta.Peers() == 1 })
		if err := ta.Publish(t.Context(), []byte("after the removal")); err != nil {
			t.Fatal(err)
		}
		within(t, 5*time.Second, "b hears a", func() bool { return gb.has("after the removal") })
		time.Sleep(time.Minute)
		if gc.has("after the removal") {
			t.Fatal("the removed one heard what was said later")
		}
	})
}

// spy reads everything that a device says on pubsub streams.
func spy(n *node.Node) func() []byte {
	var mu sync.Mutex
	var heard bytes.Buffer
	n.Handle(node.GossipProtocol, func(s *node.Stream) {
		s.SetReadDeadline(time.Now().Add(time.Hour))
		b := make([]byte, 4096)
		for {
			k, err := s.Read(b)
			mu.Lock()
			heard.Write(b[:k])
			mu.Unlock()
			if err != nil {
				return
			}
		}
	})
	return func() []byte {
		mu.Lock()
		defer mu.Unlock()
		return bytes.Clone(heard.Bytes())
	}
}

// The same from outside, byte by byte: a stranger who speaks the protocol by hand, listens on it and opens streams gets
// nothing at all, while a member is told the topic.
func TestStrangersHearNoByteOfGossip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := nodetest.New(t, 0)
		for range 3 {
			w.AddPlain(64)
		}
		member := gossip(t, w.Node(0), w.Node(1).ID())
		tp := member.join(t, "hima/g/topic-name")
		friend, stranger := spy(w.Node(1)), spy(w.Node(2))
		w.Connect(0, 1)
		w.Connect(2, 0)
		within(t, 5*time.Second, "the friend is told", func() bool { return bytes.Contains(friend(), []byte("hima/g/topic-name")) })
		s, err := w.Node(2).Open(t.Context(), w.Node(0).ID(), node.GossipProtocol)
		if err == nil {
			s.SetDeadline(time.Now().Add(time.Minute))
			hello := []byte{0x0a, 0x05, 0x08, 0x01, 0x12, 0x01, 't'} // an RPC that subscribes to "t"
			s.Write(append(binary.AppendUvarint(nil, uint64(len(hello))), hello...))
			if b, _ := io.ReadAll(s); len(b) > 0 {
				t.Errorf("the stranger was answered %x", b)
			}
		}
		if err := tp.Publish(t.Context(), []byte("x")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		if b := stranger(); len(b) > 0 {
			t.Errorf("the stranger heard %x", b)
		}
		if tp.Peers() != 0 { // the friend subscribes to nothing
			t.Errorf("%d peers in the topic", tp.Peers())
		}
	})
}

// All members sit behind symmetric NATs and meet over a relay with libp2p's limits.
func TestGossipOverLimitedRelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := nodetest.New(t, 0)
		boot := w.AddBootstrap(node.RelayLimits{Duration: 2 * time.Minute, Data: 128 << 10})
		a, b := w.AddRemote(nodetest.Symmetric), w.AddRemote(nodetest.Symmetric)
		w.Join(a, boot)
		w.Join(b, boot)
		within(t, 10*time.Second, "reservations", func() bool { return reserved(w.Node(a)) && reserved(w.Node(b)) })
		ga, gb := gossip(t, w.Node(a)), gossip(t, w.Node(b))
		ta, tb := ga.join(t, "t"), gb.join(t, "t")
		connect := func() error { return w.Node(a).Connect(t.Context(), w.Node(b).ID(), w.Node(b).Addrs()) }
		if err := connect(); err != nil {
			t.Fatal(err)
		}
		within(t, 10*time.Second, "peers over the relay", func() bool { return ta.Peers() == 1 && tb.Peers() == 1 })
		for _, p := range w.Node(a).Peers() {
			if p.Device == w.Node(b).ID() && (p.Direct || !p.Limited) {
				t.Fatalf("the connection is not limited: %+v", p)
			}
		}
		time.Sleep(2 * time.Second)
		if err := ta.Publish(t.Context(), []byte("one")); err != nil {
			t.Fatal(err)
		}
		within(t, 5*time.Second, "the message", func() bool { return gb.has("one") })
		// The relay cuts the circuit after two minutes; whoever dials again finds gossip there again.
		time.Sleep(3 * time.Minute)
		if !w.Node(a).Connected(w.Node(b).ID()) {
			if err := connect(); err != nil {
				t.Fatal(err)
			}
		}
		within(t, 20*time.Second, "peers over a new circuit", func() bool { return ta.Peers() == 1 && tb.Peers() == 1 })
		time.Sleep(2 * time.Second)
		if err := tb.Publish(t.Context(), []byte("two")); err != nil {
			t.Fatal(err)
		}
		within(t, 5*time.Second, "the message", func() bool { return ga.has("two") })
	})
}

// Who passes on forged messages is not listened to for a while.
func TestGossipOfForgersIsNotHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := nodetest.New(t, 0)
		w.AddPlain(64)
		w.AddPlain(64)
		ga, gb := gossip(t, w.Node(0)), gossip(t, w.Node(1))
		gb.forged = "forged"
		ta, tb := ga.join(t, "t"), gb.join(t, "t")
		w.Connect(0, 1)
		within(t, 5*time.Second, "peers", func() bool { return ta.Peers() == 1 && tb.Peers() == 1 })
		time.Sleep(2 * time.Second)
		for i := range 8 { // the same words are seen once a minute
			_ = ta.Publish(t.Context(), []byte("forged"))
			_ = ta.Publish(t.Context(), fmt.Appendf(nil, "fine %d", i))
			time.Sleep(2 * time.Minute)
		}
		if !gb.has("fine 0") || gb.has("fine 7") || tb.Peers() != 0 {
			t.Errorf("heard the first: %v, the last: %v; %d peers", gb.has("fine 0"), gb.has("fine 7"), tb.Peers())
		}
		time.Sleep(15 * time.Minute)
		gb.p.PeersChanged()
		within(t, 5*time.Second, "heard again", func() bool { return tb.Peers() == 1 })
	})
}

// One who floods costs others what it may, and no more.
func TestGossipFloodIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := nodetest.New(t, 0)
		w.AddPlain(64)
		w.AddPlain(64)
		ga, gb := gossip(t, w.Node(0)), gossip(t, w.Node(1))
		ta, tb := ga.join(t, "t"), gb.join(t, "t")
		w.Connect(0, 1)
		within(t, 5*time.Second, "peers", func() bool { return ta.Peers() == 1 && tb.Peers() == 1 })
		time.Sleep(2 * time.Second)
		start := time.Now()
		for i := range 20_000 {
			if err := ta.Publish(t.Context(), fmt.Appendf(nil, "%d", i)); err != nil {
				t.Fatal(err)
			}
			if i%100 == 0 {
				time.Sleep(10 * time.Millisecond)
			}
		}
		took := time.Since(start)
		time.Sleep(10 * time.Second)
		gb.mu.Lock()
		n := len(gb.got)
		gb.mu.Unlock()
		if most := 1000 + int(500*(took.Seconds()+1)); n == 0 || n > most {
			t.Errorf("%d messages were looked at in %v, at most %d may be", n, took, most)
		}
		for i := range 1200 { // more topics than are noted
			if _, err := ga.p.Join(fmt.Sprint("topic ", i), func(identity.DeviceID, []byte) node.Verdict { return node.Ignore }); err != nil {
				if !errors.Is(err, node.ErrTooManyTopics) {
					t.Fatal(err)
				}
				time.Sleep(5 * time.Second) // what the library says again and again until its queue has room
				return
			}
		}
		t.Error("joined without end")
	})
}

// After Run no handler is called, nothing can be published, and joining fails; a bootstrap node makes none.
func TestPubSubEnds(t *testing.T) {
	nodes := nodetest.Loopback(t, 2)
	a, b := gossip(t, nodes[0]), gossip(t, nodes[1])
	ta, tb := a.join(t, "t"), b.join(t, "t")
	nodetest.Connect(t, nodes[0], nodes[1])
	until(t, func() bool { return ta.Peers() == 1 && tb.Peers() == 1 })
	until(t, func() bool { // a mesh needs a heartbeat; what is said before may be lost
		_ = ta.Publish(t.Context(), fmt.Appendf(nil, "%d", time.Now().UnixNano()))
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.got) > 0
	})
	b.end()
	if _, err := b.p.Join("u", nil); !errors.Is(err, node.ErrNotRunning) {
		t.Errorf("joined after the end: %v", err)
	}
	tb.Leave()
	if err := b.p.Run(t.Context()); err == nil {
		t.Error("ran twice")
	}
	boot := newNode(t, node.Config{Key: nodetest.Key(7), Server: &node.ServerConfig{}})
	if _, err := boot.NewPubSub(node.PubSubConfig{Allowed: func(identity.DeviceID) bool { return true }}); err == nil {
		t.Error("a bootstrap node speaks pubsub")
	}
}

// until polls real time.
func until(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not within 20 seconds")
		}
	}
}
