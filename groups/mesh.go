package groups

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"hima/identity"
	"hima/internal/replica"
	"hima/node"
)

// Bounds and times of the mesh.
const (
	// meshLinks is how many members of an active group a node wants sessions with, meshQuiet of one in which nothing was
	// said for meshActive: links that others opened count too, so it is twice that in the middle. Surplus links are let go,
	// and of graphs in which each has just two links 13 of 300 fell apart in simulation; of those with three none did.
	meshLinks, meshQuiet = 4, 3
	meshActive           = 10 * time.Minute
	// meshTotal is how many devices of co-members a node is linked with before it opens no more by itself.
	meshTotal = 48
	// meshDials is how many are dialled at a time, meshTimeout how long each may take.
	meshDials, meshTimeout = 4, 20 * time.Second
	// meshTick is how often the mesh is looked at; what changed is looked at after meshSoon.
	meshTick, meshSoon = 10 * time.Second, 200 * time.Millisecond
	// meshProbe is how often one more member of some group is tried, so that two halves that each have links enough find
	// each other again; meshLent how long such a link lasts at least.
	meshProbe, meshLent = 10 * time.Minute, 5 * time.Minute
	// The pause after a dial that failed, doubled each time. A link that holds for meshProven begins anew.
	meshPause, meshPauseMax = 15 * time.Second, 15 * time.Minute
	meshProven              = time.Minute
	// meshLocate is how often the network is asked where one device is.
	meshLocate = time.Hour
)

// link is what the mesh remembers of a device.
type link struct {
	tries   int
	next    time.Time // not dialled before
	dialing bool
	opened  time.Time // the mesh opened the session that is there; zero: somebody else did
	located time.Time
}

// mesh keeps sessions with a few members of each group: what one says reaches all over them, whatever gossip does. A member
// of many groups has few links, for each serves all groups that both are in.
type mesh struct {
	self    identity.DeviceID
	log     *slog.Logger
	now     func() time.Time
	gossip  *gossip
	feeds   meshFeeds
	locate  func(context.Context, identity.DeviceID) error // nil: the network is not asked
	release func(identity.DeviceID)                        // nil: links stay
	wake    chan struct{}                                  // one slot

	mu    sync.Mutex // guards what follows
	links map[identity.DeviceID]*link
	dials int
	probe time.Time // the next one
}

// meshFeeds are the sessions; *replica.Replica is the real one.
type meshFeeds interface {
	Open(ctx context.Context, device identity.DeviceID) error
	Sessions() []replica.SessionInfo
}

// knot is a group in the eyes of the mesh.
type knot struct {
	members map[identity.AccountID][]identity.DeviceID // the others
	linked  int                                        // members with a session
	want    int
}

func newMesh(self identity.DeviceID, log *slog.Logger, now func() time.Time, g *gossip) *mesh {
	return &mesh{self: self, log: log, now: now, gossip: g, wake: make(chan struct{}, 1), links: map[identity.DeviceID]*link{}}
}

// Nudge forgets how often members were not reached: the network of this machine changed.
func (g *Groups) Nudge() {
	g.mesh.mu.Lock()
	for _, l := range g.mesh.links {
		l.tries, l.next = 0, time.Time{}
	}
	g.mesh.mu.Unlock()
	poke(g.mesh.wake)
}

// run keeps the links until ctx ends and its dials have ended.
func (m *mesh) run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	t := time.NewTimer(meshSoon + rand.N(time.Second)) // members who start together count each other's links
	defer t.Stop()
	for {
		pause := meshTick - rand.N(meshTick/4)
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			m.tend(ctx, &wg)
		case <-m.wake:
			pause = meshSoon // what changes comes in bursts
		case <-m.gossip.moved:
			pause = meshSoon
		}
		t.Reset(pause)
	}
}

// tend opens what is missing and releases what is too much.
func (m *mesh) tend(ctx context.Context, wg *sync.WaitGroup) {
	now := m.now()
	sessions := map[identity.DeviceID]replica.SessionInfo{}
	for _, s := range m.feeds.Sessions() {
		sessions[s.Device] = s
	}
	knots := m.knots(sessions, now)
	m.mu.Lock()
	m.notice(sessions, now)
	open, release := m.plan(knots, sessions, now)
	for _, d := range open {
		m.links[d].dialing = true
		m.dials++
	}
	m.mu.Unlock()
	for _, d := range open {
		wg.Go(func() { m.dial(ctx, d) })
	}
	for _, d := range release {
		m.release(d)
	}
}

// knots are the groups of now.
func (m *mesh) knots(sessions map[identity.DeviceID]replica.SessionInfo, now time.Time) []knot {
	here := map[identity.AccountID]bool{}
	for _, s := range sessions {
		here[s.Account] = true
	}
	m.gossip.mu.RLock()
	defer m.gossip.mu.RUnlock()
	var knots []knot
	for _, r := range m.gossip.rooms {
		k := knot{members: map[identity.AccountID][]identity.DeviceID{}, want: meshQuiet}
		if now.Sub(r.active) < meshActive {
			k.want = meshLinks
		}
		for _, a := range r.circle.members {
			k.members[a] = nil
			if here[a] {
				k.linked++
			}
		}
		for d, a := range r.devices {
			if _, member := k.members[a]; member {
				k.members[a] = append(k.members[a], d)
			}
		}
		k.want = min(k.want, len(k.members))
		knots = append(knots, k)
	}
	return knots
}

// notice brings the links up to date with the sessions there are. Called with mu held.
func (m *mesh) notice(sessions map[identity.DeviceID]replica.SessionInfo, now time.Time) {
	for d, l := range m.links {
		s, up := sessions[d]
		switch {
		case up && now.Sub(s.Since) >= meshProven:
			l.tries = 0
		case !up:
			l.opened = time.Time{}
		}
		if !up && !l.dialing && l.tries == 0 && now.After(l.next) && now.Sub(l.located) > meshLocate {
			delete(m.links, d) // nothing is remembered of it
		}
	}
}

// plan says whom to dial and whom to let go. Called with mu held.
func (m *mesh) plan(knots []knot, sessions map[identity.DeviceID]replica.SessionInfo, now time.Time) (open, release []identity.DeviceID) {
	total := 0
	co := map[identity.AccountID]int{} // in how many groups
	for _, k := range knots {
		for a := range k.members {
			co[a]++
		}
	}
	coming := map[identity.AccountID]bool{} // here, or being dialled
	for _, s := range sessions {
		if co[s.Account] > 0 {
			total++
			coming[s.Account] = true
		}
	}
	for _, k := range knots { // what is being dialled counts as if it were here
		for a, devices := range k.members {
			if slices.ContainsFunc(devices, func(d identity.DeviceID) bool { return m.links[d] != nil && m.links[d].dialing }) && !coming[a] {
				coming[a] = true
				total++
			}
		}
	}
	for range meshDials - m.dials {
		d, a, ok := m.next(knots, coming, now)
		if !ok || total >= meshTotal {
			break
		}
		coming[a] = true
		total++
		if m.links[d] == nil {
			m.links[d] = &link{}
		}
		open = append(open, d)
	}
	if len(open) == 0 && m.dials == 0 && now.After(m.probe) {
		m.probe = now.Add(meshProbe/2 + rand.N(meshProbe))
		if d, ok := m.anybody(knots, coming, now); ok && total < meshTotal {
			if m.links[d] == nil {
				m.links[d] = &link{}
			}
			open = append(open, d)
		}
	}
	if m.release != nil {
		release = m.surplus(knots, sessions, now)
	}
	return open, release
}

// next chooses among the members whose sessions would serve many of the groups that lack links the one nearest to this device
// by a hash: each device has an order of its own, so that the links of all make a random graph, and keeps it. Not simply the
// one who serves most: whoever is in all groups would be linked with by everybody.
func (m *mesh) next(knots []knot, coming map[identity.AccountID]bool, now time.Time) (identity.DeviceID, identity.AccountID, bool) {
	gain := map[identity.AccountID]int{}
	free := map[identity.DeviceID]identity.AccountID{} // who can be dialled
	most := 0
	for _, k := range knots {
		linked := 0
		for a := range k.members {
			if coming[a] {
				linked++
			}
		}
		if linked >= k.want {
			continue
		}
		for a, devices := range k.members {
			if coming[a] {
				continue
			}
			gain[a]++
			for _, d := range devices {
				if l := m.links[d]; d != m.self && (l == nil || !l.dialing && !now.Before(l.next)) {
					free[d] = a
					most = max(most, gain[a])
				}
			}
		}
	}
	var best identity.DeviceID
	for d, a := range free {
		if 4*gain[a] >= most && (best.IsZero() || order(m.self, d) < order(m.self, best)) {
			best = d
		}
	}
	return best, free[best], !best.IsZero()
}

// anybody chooses some member without a link, of any group.
func (m *mesh) anybody(knots []knot, coming map[identity.AccountID]bool, now time.Time) (identity.DeviceID, bool) {
	var all []identity.DeviceID
	for _, k := range knots {
		for a, devices := range k.members {
			if coming[a] {
				continue
			}
			for _, d := range devices {
				if l := m.links[d]; l == nil || !l.dialing && !now.Before(l.next) {
					all = append(all, d)
				}
			}
		}
	}
	if len(all) == 0 {
		return identity.DeviceID{}, false
	}
	return all[rand.N(len(all))], true
}

// surplus lists sessions that the mesh opened and that all groups they serve can spare, having more than they want: one
// in each look, the oldest first.
func (m *mesh) surplus(knots []knot, sessions map[identity.DeviceID]replica.SessionInfo, now time.Time) []identity.DeviceID {
	var spare []identity.DeviceID
	for d, l := range m.links {
		s, up := sessions[d]
		if !up || l.opened.IsZero() || now.Sub(l.opened) < meshLent {
			continue
		}
		if !slices.ContainsFunc(knots, func(k knot) bool {
			_, member := k.members[s.Account]
			return member && k.linked <= k.want
		}) {
			spare = append(spare, d)
		}
	}
	slices.SortFunc(spare, func(a, b identity.DeviceID) int { return m.links[a].opened.Compare(m.links[b].opened) })
	return spare[:min(1, len(spare))]
}

func order(self, d identity.DeviceID) uint64 {
	h := sha256.Sum256(slices.Concat(self[:], d[:]))
	return binary.BigEndian.Uint64(h[:])
}

// dial tries one device, once more if the network knows where it is now.
func (m *mesh) dial(ctx context.Context, d identity.DeviceID) {
	err := m.try(ctx, d)
	if err != nil && m.mayLocate(d, err) {
		where, cancel := context.WithTimeout(ctx, meshTimeout)
		if m.locate(where, d) == nil {
			err = m.try(ctx, d)
		}
		cancel()
	}
	now := m.now()
	m.mu.Lock()
	l := m.links[d]
	m.dials--
	l.dialing = false
	if err == nil {
		l.opened = now
	}
	// Also after a success: a session that ends at once is not opened again and again.
	pause := meshPauseMax
	if l.tries < 6 {
		pause = min(pause, meshPause<<l.tries)
	}
	l.tries++
	l.next = now.Add(pause - rand.N(pause/4))
	m.mu.Unlock()
	if err != nil && ctx.Err() == nil {
		m.log.Debug("linking with a member", "device", d.Short(), "error", err)
	}
	poke(m.wake)
}

func (m *mesh) try(ctx context.Context, d identity.DeviceID) error {
	ctx, cancel := context.WithTimeout(ctx, meshTimeout)
	defer cancel()
	return m.feeds.Open(ctx, d)
}

func (m *mesh) mayLocate(d identity.DeviceID, failed error) bool {
	if m.locate == nil || !errors.Is(failed, node.ErrNoAddress) && !errors.Is(failed, node.ErrUnreachable) && !errors.Is(failed, node.ErrWrongDevice) {
		return false
	}
	now := m.now()
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.links[d]
	if now.Sub(l.located) < meshLocate {
		return false
	}
	l.located = now
	return true
}
