package directory

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"hima/identity"
	"hima/node"
	"hima/storage"
)

var (
	// ErrBadLink is returned for text that is neither a network's link nor the multiaddr of a bootstrap node.
	ErrBadLink = errors.New("neither a link of a network nor the address of a bootstrap node")
	// ErrNetworkUnknown is returned for a network that was not joined.
	ErrNetworkUnknown = errors.New("network was not joined")
	// ErrUnreachable is returned when a bootstrap node had to answer and did not.
	ErrUnreachable = errors.New("no bootstrap node answered")
	// ErrTooManyNetworks is returned when as many networks are joined as may be.
	ErrTooManyNetworks = errors.New("too many networks are joined")
	// ErrNoNetwork is returned by look-ups when no network is joined, or none can be asked now.
	ErrNoNetwork = errors.New("no network can be asked")
)

// BootstrapState is a bootstrap node of a network.
type BootstrapState struct {
	node.BootstrapState
	// Serves is what it said it does, as far as it was asked: dht, relay, mailbox, names.
	Serves []string
	// Asked is when it last told; zero: never.
	Asked time.Time
	// Skew is how far its clock was ahead of ours when it was last asked since the start; zero: not asked.
	Skew time.Duration
}

// NetworkState is a network that was joined.
type NetworkState struct {
	ID         identity.NetworkID
	Name       string
	Link       identity.NetworkLink // as it can be handed on
	Bootstraps []BootstrapState
	Online     bool // some bootstrap node of it is connected
	DHTPeers   int  // nodes in the routing table
	Username   NameState
	Joined     time.Time
	// Published is when the own records, as they are now, were last seen stored by others, each of them; zero: not yet, or
	// one is about to be made anew.
	Published time.Time
}

// NetworkEvent says that something about a network changed.
type NetworkEvent struct {
	Network identity.NetworkID
	Name    string
	// What is "joined", "left", "online", "offline", "asked" (a bootstrap node said what it serves, and that is news) or
	// "published" (all own records were seen stored, the first time or after one changed).
	What string
}

// Keys of joined networks, written durably:
//
//	d/n/ network            savedNetwork as JSON
func networkKey(id identity.NetworkID) []byte { return append([]byte("d/n/"), id[:]...) }

// savedNetwork is what is kept of a network. It is our own and only we write it.
type savedNetwork struct {
	Name       string            `json:"name"`
	Founder    identity.DeviceID `json:"founder"`
	Joined     time.Time         `json:"joined"`
	Bootstraps []savedBootstrap  `json:"bootstraps"`
}

type savedBootstrap struct {
	Device identity.DeviceID `json:"device"`
	Addrs  []string          `json:"addrs"`
	Serves []string          `json:"serves,omitempty"`
	Asked  time.Time         `json:"asked,omitzero"`
}

func (s *savedNetwork) find(dev identity.DeviceID) *savedBootstrap {
	for i := range s.Bootstraps {
		if s.Bootstraps[i].Device == dev {
			return &s.Bootstraps[i]
		}
	}
	return nil
}

// clone makes a copy whose bootstrap list can be changed; the lists inside are replaced, never changed.
func (s savedNetwork) clone() savedNetwork {
	s.Bootstraps = slices.Clone(s.Bootstraps)
	return s
}

// merge takes what a link adds. New bootstrap nodes only if the link is trusted: their keys stamp names.
func (s *savedNetwork) merge(link identity.NetworkLink, trusted bool) (changed bool) {
	for _, b := range link.Bootstraps {
		have := s.find(b.Device)
		if have == nil {
			if !trusted || len(s.Bootstraps) >= maxBootstraps {
				continue
			}
			s.Bootstraps = append(s.Bootstraps, savedBootstrap{Device: b.Device})
			have, changed = &s.Bootstraps[len(s.Bootstraps)-1], true
		}
		// Those that the user gave come first; those of a stranger's link only fill what room is left.
		addrs := merge(b.Addrs, have.Addrs)
		if !trusted {
			addrs = merge(have.Addrs, b.Addrs)
		}
		if !slices.Equal(addrs, have.Addrs) {
			have.Addrs, changed = addrs, true
		}
	}
	return changed
}

// link is what can be handed on: at most as many bootstrap nodes as fit, those that answered last first.
func (s savedNetwork) link() identity.NetworkLink {
	l := identity.NetworkLink{Name: s.Name, Founder: s.Founder}
	all := slices.Clone(s.Bootstraps)
	slices.SortStableFunc(all, func(a, b savedBootstrap) int { return b.Asked.Compare(a.Asked) })
	for _, b := range all[:min(len(all), identity.MaxBootstraps)] {
		l.Bootstraps = append(l.Bootstraps, identity.InviteDevice{Device: b.Device, Addrs: slices.Clone(b.Addrs)})
	}
	return l
}

// keys stamp names on the network.
func (s savedNetwork) keys() []identity.DeviceID {
	keys := []identity.DeviceID{s.Founder}
	for _, b := range s.Bootstraps {
		if b.Device != s.Founder {
			keys = append(keys, b.Device)
		}
	}
	return keys
}

// joined is one network. The lock guards what follows it and is never held while calling anything else.
type joined struct {
	id   identity.NetworkID
	name string

	mu     sync.Mutex
	saved  savedNetwork
	table  dht                             // nil: not open
	online bool                            // as was told
	items  map[string]itemState            // what was published, see publishLoop
	told   [sha256.Size]byte               // the own items that were last told to be published
	greet  map[identity.DeviceID]time.Time // when bootstrap nodes are asked what they serve
	skew   map[identity.DeviceID]time.Duration

	wake, attend chan struct{} // something may be due for publishLoop, attendLoop; 1 deep
}

func newJoined(s savedNetwork) *joined {
	return &joined{
		id: identity.NewNetworkID(s.Name, s.Founder), name: s.Name, saved: s,
		items: map[string]itemState{}, greet: map[identity.DeviceID]time.Time{}, skew: map[identity.DeviceID]time.Duration{},
		wake: make(chan struct{}, 1), attend: make(chan struct{}, 1),
	}
}

func (j *joined) state() savedNetwork {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.saved
}

func (j *joined) keys() []identity.DeviceID { return j.state().keys() }

func (j *joined) dht() dht {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.table
}

func (j *joined) setDHT(t dht) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.table = t
}

// nudge lets the publisher look again.
func (j *joined) nudge() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// registers are the bootstrap nodes to be asked for names, the founder first, who is thus the one that decides as long
// as it answers. Those that said that they know no names are left out; those that never said anything are not.
func (j *joined) registers() []savedBootstrap {
	s := j.state()
	out := slices.DeleteFunc(slices.Clone(s.Bootstraps), func(b savedBootstrap) bool {
		return !b.Asked.IsZero() && !slices.Contains(b.Serves, ServeNames)
	})
	slices.SortStableFunc(out, func(a, b savedBootstrap) int {
		switch {
		case a.Device == s.Founder:
			return -1
		case b.Device == s.Founder:
			return 1
		}
		return 0
	})
	return out
}

// networks are those that were joined. The lock guards all; writers of the disk hold writing, so that what is in memory
// and what is on disk change in one order.
type networks struct {
	db      *storage.DB
	writing sync.Mutex

	mu      sync.Mutex
	all     []*joined // in the order of joining
	changed chan struct{}
}

func (n *networks) init(db *storage.DB) {
	n.db, n.changed = db, make(chan struct{}, 1)
}

func (n *networks) load(tx *storage.Tx) error {
	err := tx.Scan(storage.ScanOptions{Prefix: []byte("d/n/")}, func(key, value []byte) (bool, error) {
		var s savedNetwork
		if err := json.Unmarshal(value, &s); err != nil {
			return false, fmt.Errorf("reading a joined network: %w", err)
		}
		n.all = append(n.all, newJoined(s))
		return true, nil
	})
	slices.SortStableFunc(n.all, func(a, b *joined) int { return a.saved.Joined.Compare(b.saved.Joined) })
	return err
}

func (n *networks) list() []*joined {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.all)
}

func (n *networks) get(id identity.NetworkID) *joined {
	for _, j := range n.list() {
		if j.id == id {
			return j
		}
	}
	return nil
}

// open lists the networks whose tables can be asked.
func (n *networks) open() []*joined {
	return slices.DeleteFunc(n.list(), func(j *joined) bool { return j.dht() == nil })
}

func (n *networks) nudge() {
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// join adds a network or merges into one that is there. Durable when it returns.
func (n *networks) join(ctx context.Context, link identity.NetworkLink, trusted bool, now time.Time) (*joined, bool, error) {
	n.writing.Lock()
	defer n.writing.Unlock()
	if j := n.get(link.ID()); j != nil {
		s := j.state().clone()
		if !s.merge(link, trusted) {
			return j, false, nil
		}
		return j, false, n.save(ctx, j, s)
	}
	if len(n.list()) >= maxNetworks {
		return nil, false, ErrTooManyNetworks
	}
	s := savedNetwork{Name: link.Name, Founder: link.Founder, Joined: now.UTC()}
	s.merge(link, true)
	j := newJoined(s)
	if err := n.save(ctx, j, s); err != nil {
		return nil, false, err
	}
	n.mu.Lock()
	n.all = append(n.all, j)
	n.mu.Unlock()
	n.nudge()
	return j, true, nil
}

// update changes what is kept of a network, if it is still joined.
func (n *networks) update(ctx context.Context, j *joined, change func(*savedNetwork)) error {
	n.writing.Lock()
	defer n.writing.Unlock()
	if n.get(j.id) != j {
		return ErrNetworkUnknown
	}
	s := j.state().clone()
	change(&s)
	return n.save(ctx, j, s)
}

func (n *networks) save(ctx context.Context, j *joined, s savedNetwork) error {
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("writing a joined network: %w", err)
	}
	if err := n.db.Update(ctx, func(tx *storage.Tx) error { return tx.Set(networkKey(j.id), b) }); err != nil {
		return fmt.Errorf("storing a joined network: %w", err)
	}
	j.mu.Lock()
	j.saved = s
	j.mu.Unlock()
	n.nudge()
	j.nudge()
	return nil
}

// leave forgets a network with all that hangs on it.
func (n *networks) leave(ctx context.Context, id identity.NetworkID) (*joined, error) {
	n.writing.Lock()
	defer n.writing.Unlock()
	j := n.get(id)
	if j == nil {
		return nil, ErrNetworkUnknown
	}
	err := n.db.Update(ctx, func(tx *storage.Tx) error {
		for _, key := range [][]byte{networkKey(id), ownNameKey(id)} {
			if err := tx.Delete(key); err != nil {
				return err
			}
		}
		return deletePrefix(tx, stampPrefix(id))
	})
	if err != nil {
		return nil, fmt.Errorf("leaving a network: %w", err)
	}
	n.mu.Lock()
	n.all = slices.DeleteFunc(n.all, func(o *joined) bool { return o == j })
	n.mu.Unlock()
	n.nudge()
	return j, nil
}

func deletePrefix(tx *storage.Tx, prefix []byte) error {
	return tx.Scan(storage.ScanOptions{Prefix: prefix, KeysOnly: true}, func(key, _ []byte) (bool, error) {
		return true, tx.Delete(key)
	})
}

// JoinNetwork joins the network of a link that the user gave, or of the bootstrap node at a multiaddr, which must
// answer; a link needs no network. A second link of a network adds its bootstrap nodes to those known. Durable when it
// returns. added is false if the network had been joined before.
func (d *Directory) JoinNetwork(ctx context.Context, link string) (state NetworkState, added bool, err error) {
	l, err := readLink(ctx, d.asks, link)
	if err != nil {
		return NetworkState{}, false, err
	}
	return d.join(ctx, l, true)
}

// MeetNetwork joins the network of a link that somebody else handed over, as in an invite. Of a network that is joined
// already it takes new addresses of known bootstrap nodes only: bootstrap nodes stamp names, so whom to believe there is
// for the user to say.
func (d *Directory) MeetNetwork(ctx context.Context, link identity.NetworkLink) (state NetworkState, added bool, err error) {
	if link.String() == "" {
		return NetworkState{}, false, ErrBadLink
	}
	return d.join(ctx, link, false)
}

func (d *Directory) join(ctx context.Context, l identity.NetworkLink, trusted bool) (NetworkState, bool, error) {
	j, added, err := d.nets.join(ctx, l, trusted, d.now())
	if err != nil {
		return NetworkState{}, false, err
	}
	if added {
		d.log.Info("joined a network", "network", j.id.Short(), "name", j.name)
		d.tellNetwork(j, "joined")
	}
	return d.networkState(j), added, nil
}

// ReadLink turns what a user gave into a link: a link itself, or the multiaddr of a bootstrap node, which is asked. It
// needs a node and nothing else.
func ReadLink(ctx context.Context, n *node.Node, s string) (identity.NetworkLink, error) {
	return readLink(ctx, streams{n}, s)
}

func readLink(ctx context.Context, ask asker, s string) (identity.NetworkLink, error) {
	s = strings.TrimSpace(s)
	if !strings.HasPrefix(s, "/") {
		l, err := identity.ParseNetworkLink(s)
		if err != nil {
			return identity.NetworkLink{}, fmt.Errorf("%w: %w", ErrBadLink, err)
		}
		return l, nil
	}
	dev, addr, err := splitAddr(s)
	if err != nil {
		return identity.NetworkLink{}, err
	}
	c, err := ask.card(ctx, dev, []string{addr})
	if err != nil {
		return identity.NetworkLink{}, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	l := c.Link()
	l.Bootstraps[0].Addrs = merge([]string{addr}, l.Bootstraps[0].Addrs)
	return l, nil
}

// LeaveNetwork forgets a network and the name on it.
func (d *Directory) LeaveNetwork(ctx context.Context, id identity.NetworkID) error {
	j, err := d.nets.leave(ctx, id)
	if err != nil {
		return err
	}
	d.forgetNetwork(id)
	d.log.Info("left a network", "network", id.Short(), "name", j.name)
	d.tellNetwork(j, "left")
	return d.renewOwn(ctx)
}

// Networks lists the joined networks in the order of joining.
func (d *Directory) Networks() []NetworkState {
	var out []NetworkState
	for _, j := range d.nets.list() {
		out = append(out, d.networkState(j))
	}
	return out
}

func (d *Directory) networkState(j *joined) NetworkState {
	s := j.state()
	st := NetworkState{ID: j.id, Name: j.name, Link: s.link(), Joined: s.Joined, Username: d.names.state(j.id)}
	var live []node.BootstrapState
	if d.cfg.Node != nil {
		live = d.cfg.Node.Bootstraps()
	}
	for _, b := range s.Bootstraps {
		out := BootstrapState{Serves: b.Serves, Asked: b.Asked}
		out.Device, out.Addrs = b.Device, b.Addrs
		if i := slices.IndexFunc(live, func(l node.BootstrapState) bool { return l.Device == b.Device }); i >= 0 {
			out.BootstrapState = live[i]
		}
		j.mu.Lock()
		out.Skew = j.skew[b.Device]
		j.mu.Unlock()
		st.Online = st.Online || out.Connected
		st.Bootstraps = append(st.Bootstraps, out)
	}
	st.Published = d.published(j)
	if table := j.dht(); table != nil {
		st.DHTPeers = table.Peers()
	}
	return st
}

func (d *Directory) tellNetwork(j *joined, what string) {
	if d.cfg.OnNetwork != nil {
		d.cfg.OnNetwork(NetworkEvent{Network: j.id, Name: j.name, What: what})
	}
}
