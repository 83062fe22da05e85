package node

import (
	"context"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/protocol/autonatv2"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

const (
	// probeSettle is how long views of our address may come in before the first probe.
	probeSettle = 100 * time.Millisecond
	// probePause is between two probes: the asking side of AutoNAT v2 bothers one server once in two minutes.
	probePause = 125 * time.Second
	// probeAgain is when an answer is asked for anew.
	probeAgain = time.Hour
	// probeTimeout bounds one: the server dials us with a timeout of ten seconds.
	probeTimeout = 20 * time.Second
	// maxProbed is how many addresses are probed.
	maxProbed = 6
)

// newProber makes the asking side of AutoNAT v2.
func (n *Node) newProber() (*autonatv2.AutoNAT, error) {
	nat, err := autonatv2.New(neverClosed{n.host})
	if err != nil {
		return nil, fmt.Errorf("making reachability probes: %w", err)
	}
	if err := nat.Start(n.host); err != nil {
		return nil, fmt.Errorf("starting reachability probes: %w", err)
	}
	n.host.RemoveStreamHandler(autonatv2.DialProtocol) // a user's node asks, and probes nobody
	return nat, nil
}

// runProbes finds out by AutoNAT v2 which of our public addresses work from outside, such as a port that the user told
// the router to forward, and has those told to others. It begins with what the router says it forwards; then comes the
// address that our UDP socket is seen at, for that is where a port forwarded by hand would be.
//
// libp2p's own use of AutoNAT v2 would never ask for that address: it takes four observers to believe in it.
func (n *Node) runProbes(ctx context.Context, nat *autonatv2.AutoNAT) {
	defer nat.Close()
	done := map[string]time.Time{}
	wait := time.NewTimer(probeAgain)
	defer wait.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.reach.observed:
			wait.Reset(probeSettle)
			continue
		case <-wait.C:
		}
		wait.Reset(n.probeNext(ctx, nat, done))
	}
}

// probeNext probes one address and returns when to probe the next.
func (n *Node) probeNext(ctx context.Context, nat *autonatv2.AutoNAT, done map[string]time.Time) time.Duration {
	candidates := n.candidates()
	n.reach.keepWorking(candidates)
	for _, a := range candidates {
		if time.Since(done[a.String()]) < probeAgain {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, probeTimeout)
		defer cancel()
		stop := context.AfterFunc(ctx, func() { n.resetStreams(autonatv2.DialProtocol) })
		defer stop()
		r, err := nat.GetReachability(ctx, []autonatv2.Request{{Addr: a}})
		if err == nil && !r.AllAddrsRefused {
			done[a.String()] = time.Now()
			n.log.Debug("probed from outside", "addr", a, "result", r.Reachability)
			n.reach.setWorking(a, r.Reachability == network.ReachabilityPublic)
			n.addrsChanged()
		}
		return probePause
	}
	clear(done) // nothing was due: all of it is older than an hour by the next time
	return probeAgain
}

// candidates are our public addresses, those that are most likely to work first.
func (n *Node) candidates() []ma.Multiaddr {
	out := append(n.mapped(), n.publicUDP()...)
	port := n.Port()
	for _, a := range n.publicUDP() {
		if ip, ok := addrIP(a); ok && port != 0 {
			kind := "ip4"
			if ip.Is6() {
				kind = "ip6"
			}
			if t, err := ma.NewMultiaddr(fmt.Sprintf("/%s/%s/tcp/%d", kind, ip, port)); err == nil {
				out = append(out, t)
			}
		}
	}
	out = ma.FilterAddrs(ma.Unique(out), manet.IsPublicAddr)
	return out[:min(len(out), maxProbed)]
}

// setWorking notes the result of a probe.
func (r *reach) setWorking(a ma.Multiaddr, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	kept := ma.FilterAddrs(r.verified, func(v ma.Multiaddr) bool { return !v.Equal(a) })
	if ok {
		kept = append(kept, a)
	}
	r.verified = kept
}

// keepWorking drops addresses that are no longer ours.
func (r *reach) keepWorking(now []ma.Multiaddr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.verified = ma.FilterAddrs(r.verified, func(v ma.Multiaddr) bool { return ma.Contains(now, v) })
}

// neverClosed is the host that AutoNAT's serving half, which we do not use, would close at its end.
type neverClosed struct{ host.Host }

func (neverClosed) Close() error { return nil }
