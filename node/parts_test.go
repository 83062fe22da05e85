package node

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	ma "github.com/multiformats/go-multiaddr"

	"hima/identity"
)

func addrs(s ...string) []ma.Multiaddr {
	out := make([]ma.Multiaddr, len(s))
	for i, a := range s {
		out[i] = ma.StringCast(a)
	}
	return out
}

func TestDialable(t *testing.T) {
	p2p := "/p2p/12D3KooWPWP1ZVUQUVcEMtUZGLuBgCUsqnFaXQUVzVDkGCGtuDxU"
	got := dialable(addrs(
		"/ip4/127.0.0.1/tcp/4001", "/ip6/::1/tcp/4001", "/ip4/0.0.0.0/tcp/4001", "/ip4/224.0.0.251/tcp/4001",
		"/ip4/10.0.0.1/tcp/4001"+p2p, "/ip4/10.0.0.1/tcp/4001", "/ip4/10.0.0.1/udp/4001/quic-v1",
		"/ip4/10.0.0.1/tcp/4001/ws", "/dns4/example.org/tcp/4001", "/ip4/10.0.0.1/tcp/4001"+p2p+"/p2p-circuit",
		"/ip4/10.0.0.1/tcp/4001/p2p-circuit", "/p2p-circuit", p2p+"/p2p-circuit"))
	want := addrs("/ip4/10.0.0.1/tcp/4001", "/ip4/10.0.0.1/udp/4001/quic-v1", "/ip4/10.0.0.1/tcp/4001"+p2p+"/p2p-circuit")
	if !slices.EqualFunc(got, want, func(a, b ma.Multiaddr) bool { return a.Equal(b) }) {
		t.Errorf("got %v", got)
	}
	only := dialable(addrs("/ip4/127.0.0.1/tcp/1", "/ip6/::1/tcp/1"))
	if len(only) != 2 {
		t.Errorf("loopback as all there is: %v", only)
	}
}

// Whoever announces a victim's device ID with false addresses must not push out the one that works.
func TestBookKeepsProvenAddresses(t *testing.T) {
	b, dev := newBook(), identity.DeviceID{1}
	b.proven(dev, addrs("/ip4/10.0.0.1/tcp/4001"))
	for i := range 50 {
		b.heard(dev, addrs("/ip4/10.0.1."+netip.AddrFrom4([4]byte{0, 0, 0, byte(i)}).String()[6:]+"/tcp/4001"))
	}
	got := addrStrings(b.get(dev))
	if !slices.Contains(got, "/ip4/10.0.0.1/tcp/4001") || len(got) > maxAddrs {
		t.Errorf("got %v", got)
	}
	for i := range maxBook + 10 {
		b.heard(identity.DeviceID{2, byte(i), byte(i >> 8)}, addrs("/ip4/10.0.0.2/tcp/1"))
	}
	if len(b.pages) > maxBook || len(b.order) > maxBook {
		t.Errorf("the book grew to %d", len(b.pages))
	}
}

func TestRankDials(t *testing.T) {
	r := rank(addrs("/ip4/8.8.8.8/udp/1/quic-v1", "/ip4/8.8.8.8/tcp/1", "/ip4/10.0.0.1/udp/1/quic-v1", "/ip4/10.0.0.1/tcp/1"), false, 0)
	var got []string
	for i, a := range r {
		got = append(got, a.Addr.String())
		if i > 0 && a.Delay <= r[i-1].Delay {
			t.Errorf("delays %v", r)
		}
	}
	want := []string{"/ip4/10.0.0.1/tcp/1", "/ip4/8.8.8.8/tcp/1", "/ip4/10.0.0.1/udp/1/quic-v1", "/ip4/8.8.8.8/udp/1/quic-v1"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	if only := rank(addrs("/ip4/10.0.0.1/udp/1/quic-v1"), false, 0); only[0].Delay != 0 {
		t.Errorf("QUIC alone waits %v", only[0].Delay)
	}
}

func TestExpand(t *testing.T) {
	listen := addrs("/ip4/0.0.0.0/tcp/1", "/ip6/::/tcp/1", "/ip4/10.9.9.9/tcp/2")
	ifaces := []netip.Prefix{
		netip.MustParsePrefix("127.0.0.1/8"), netip.MustParsePrefix("192.168.1.5/24"),
		netip.MustParsePrefix("fe80::1/64"), netip.MustParsePrefix("fd00::5/64"), netip.MustParsePrefix("::1/128"),
	}
	got := addrStrings(expand(listen, ifaces))
	want := []string{"/ip4/192.168.1.5/tcp/1", "/ip6/fd00::5/tcp/1", "/ip4/10.9.9.9/tcp/2"}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	if none := expand(addrs("/ip4/0.0.0.0/tcp/1"), nil); len(none) != 0 {
		t.Errorf("without interfaces: %v", none)
	}
}

// A subscriber that does not listen costs bounded memory, and what it hears in the end is the present state.
func TestSlowSubscriber(t *testing.T) {
	n := &Node{closing: make(chan struct{})}
	n.hub.subs = map[*subscriber]struct{}{}
	events, cancel := n.Subscribe()
	defer cancel()
	dev := func(i int) identity.DeviceID { return identity.DeviceID{byte(i), byte(i >> 8), 7} }
	n.hub.publish(NetworkChanged{}) // taken by the goroutine, which then waits for us
	for range 1000 {
		n.hub.publish(PeerUp{Device: dev(1)})
		n.hub.publish(PeerDown{Device: dev(1)})
		n.hub.publish(NetworkChanged{})
		n.hub.publish(MulticastChanged{OK: false})
	}
	n.hub.publish(PeerUp{Device: dev(1), Info: ConnInfo{Addr: "last"}})
	n.hub.publish(MulticastChanged{OK: true})
	for i := range 3 * maxPending {
		n.hub.publish(Found{Device: dev(i)})
	}
	var last Event
	count, found := 0, 0
	for {
		select {
		case e := <-events:
			count++
			switch e := e.(type) {
			case Found:
				found++
			case PeerUp, PeerDown:
				last = e
			case MulticastChanged:
				if !e.OK && count > 3 {
					t.Error("an old multicast state")
				}
			}
			continue
		case <-time.After(200 * time.Millisecond):
		}
		break
	}
	if up, ok := last.(PeerUp); !ok || up.Info.Addr != "last" {
		t.Errorf("the last state was %+v", last)
	}
	if found != maxPending || count > maxPending+8 {
		t.Errorf("%d events, of them %d found", count, found)
	}
}

func TestJumped(t *testing.T) {
	for _, c := range []struct {
		wall, steady time.Duration
		want         bool
	}{{time.Hour, time.Hour, false}, {time.Hour, watchInterval, true}, {-time.Hour, watchInterval, true}, {4 * time.Second, 3 * time.Second, false}} {
		if got := jumped(c.wall, c.steady); got != c.want {
			t.Errorf("wall %v, steady %v: %v", c.wall, c.steady, got)
		}
	}
}

func TestAnnouncementsAreBounded(t *testing.T) {
	n := &Node{id: identity.DeviceID{9}, book: newBook()}
	n.hub.subs = map[*subscriber]struct{}{}
	n.lan.init()
	txt := []string{"d=12D3KooWPWP1ZVUQUVcEMtUZGLuBgCUsqnFaXQUVzVDkGCGtuDxU"}
	for range 100 {
		txt = append(txt, "a=/ip4/10.0.0.1/tcp/1", "a=nonsense", "x")
	}
	n.foundOnLAN(txt)
	n.foundOnLAN([]string{"d=nobody", "a=/ip4/10.0.0.1/tcp/1"})
	n.foundOnLAN(nil)
	if len(n.book.pages) != 1 {
		t.Errorf("%d devices are known", len(n.book.pages))
	}
}
