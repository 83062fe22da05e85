package node

import (
	"slices"
	"sync"

	"hima/identity"
)

// maxPending is how many Found events a subscriber may lag behind; older ones are dropped, for their devices will be
// announced again. Other events are bounded by coalescing, see Subscribe.
const maxPending = 256

// hub hands events to subscribers without ever waiting for one.
type hub struct {
	mu     sync.Mutex
	subs   map[*subscriber]struct{}
	closed bool
}

// subscriber is one queue and the goroutine that empties it into the channel.
type subscriber struct {
	mu      sync.Mutex
	pending []Event
	wake    chan struct{} // one slot
	done    chan struct{}
	stop    sync.Once
	out     chan Event
	ended   chan struct{}
}

// Subscribe returns a channel of events and a function that ends it. The channel is closed after cancel, or when the
// node closes.
//
// The network never waits for a subscriber. What a subscriber has not taken yet is kept and coalesced: of one device
// at most one PeerDown and one PeerUp wait, in this order, of the same kind only the newest; of one bootstrap node the
// newest BootstrapUp or BootstrapDown; NetworkChanged, MulticastChanged, AddrsChanged and OnlineChanged wait once; of
// Found the newest 256 devices. So a PeerUp may come for a device that the subscriber
// knew as up, and after the last event taken the subscriber's picture is always the present one.
func (n *Node) Subscribe() (<-chan Event, func()) {
	s := &subscriber{wake: make(chan struct{}, 1), done: make(chan struct{}), out: make(chan Event), ended: make(chan struct{})}
	n.hub.mu.Lock()
	closed := n.hub.closed
	if !closed {
		n.hub.subs[s] = struct{}{}
	}
	n.hub.mu.Unlock()
	if closed {
		close(s.out)
		return s.out, func() {}
	}
	go s.run()
	return s.out, func() {
		n.hub.mu.Lock()
		delete(n.hub.subs, s)
		n.hub.mu.Unlock()
		s.cancel()
	}
}

func (s *subscriber) cancel() {
	s.stop.Do(func() { close(s.done) })
	<-s.ended
}

func (s *subscriber) run() {
	defer close(s.ended)
	defer close(s.out)
	for {
		s.mu.Lock()
		var next Event
		if len(s.pending) > 0 {
			next = s.pending[0]
			s.pending = slices.Delete(s.pending, 0, 1)
		}
		s.mu.Unlock()
		if next == nil {
			select {
			case <-s.wake:
				continue
			case <-s.done:
				return
			}
		}
		select {
		case s.out <- next:
		case <-s.done:
			return
		}
	}
}

// push queues e and drops what it makes meaningless.
func (s *subscriber) push(e Event) {
	s.mu.Lock()
	s.pending = slices.DeleteFunc(s.pending, func(old Event) bool { return supersedes(e, old) })
	if _, ok := e.(Found); ok {
		found := 0
		for _, p := range s.pending {
			if _, ok := p.(Found); ok {
				found++
			}
		}
		if found >= maxPending {
			i := slices.IndexFunc(s.pending, func(p Event) bool { _, ok := p.(Found); return ok })
			s.pending = slices.Delete(s.pending, i, i+1)
		}
	}
	s.pending = append(s.pending, e)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// supersedes says whether old need not be told any more when e is.
func supersedes(e, old Event) bool {
	device := func(e Event) (identity.DeviceID, string) {
		switch e := e.(type) {
		case PeerUp:
			return e.Device, "up"
		case PeerDown:
			return e.Device, "down"
		case Found:
			return e.Device, "found"
		case NetworkChanged:
			return identity.DeviceID{}, "network"
		case MulticastChanged:
			return identity.DeviceID{}, "multicast"
		case BootstrapUp, BootstrapDown:
			return bootstrapOf(e), "bootstrap"
		case AddrsChanged:
			return identity.DeviceID{}, "addrs"
		case OnlineChanged:
			return identity.DeviceID{}, "online"
		}
		return identity.DeviceID{}, ""
	}
	d, k := device(e)
	od, ok := device(old)
	if d != od {
		return false
	}
	return k == ok || k == "down" && ok == "up"
}

// bootstrapOf is the device of a BootstrapUp or BootstrapDown, of which one supersedes the other.
func bootstrapOf(e Event) identity.DeviceID {
	if up, ok := e.(BootstrapUp); ok {
		return up.Device
	}
	return e.(BootstrapDown).Device
}

func (h *hub) publish(e Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subs {
		s.push(e)
	}
}

// close ends every subscription.
func (h *hub) close() {
	h.mu.Lock()
	subs := h.subs
	h.subs, h.closed = nil, true
	h.mu.Unlock()
	for s := range subs {
		s.cancel()
	}
}
