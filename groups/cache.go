package groups

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"hima/groups/roster"
	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/storage"
)

// The folded rosters in memory. A group has one graph, which the committer extends inside transactions, and beside it a
// snapshot of every state that some transaction may have to see: the last committed one first, then one per change that is
// not on disk yet. How many acts are kept is a row of the database and tells a transaction which of them is its own. A change
// that was discarded shows when the next one finds the row below the graph; then the graph is read again.

// snapshot is a state of a roster. It does not change.
type snapshot struct {
	version uint64
	view    roster.View
	cut     func() replica.Window // see cutWindow; worked out once

	left map[identity.AccountID]uint64 // who left, and the clock of that
}

// group is a group in memory.
type group struct {
	id ID

	mu      sync.Mutex
	roster  *roster.Roster                   // guarded by mu; the newest state
	places  map[roster.ID]place              // guarded by mu; of all acts in it, and of those that wait
	numbers map[number]roster.ID             // guarded by mu; the same the other way round; one of several where a feed forked
	last    map[identity.DeviceID]uint64     // guarded by mu; the highest number of a device's acts
	behind  map[identity.DeviceID]int        // guarded by mu; how many acts of a device's feed wait
	snaps   []*snapshot                      // guarded by mu; ascending, the first is committed
	used    uint64                           // guarded by cache.mu
	refused bool                             // guarded by mu; something was refused that may be taken later
	feeds   map[crowd]int                    // guarded by mu; how many feeds of whom there are at most; nil: not counted, see crowded
	paid    map[roster.ID]identity.AccountID // guarded by mu; the headers that are kept of branches, and whose acts wait for them
	forks   map[identity.DeviceID]uint64     // from which number on a control feed has two branches; a new group is loaded when that changes
}

// cache holds the groups that were used last.
type cache struct {
	mu     sync.Mutex
	groups map[ID]*group // guarded by mu
	clock  uint64        // guarded by mu
	max    int           // acts in all rosters together
}

// number names an act by the place of its entry.
type number struct {
	device identity.DeviceID
	seq    uint64
}

// put notes where the entry of an act is. Called with mu held, or before anybody else knows the group.
func (gr *group) put(id roster.ID, p place) {
	gr.places[id] = p
	gr.numbers[number{p.device, p.seq}] = id
	gr.last[p.device] = max(gr.last[p.device], p.seq)
}

// load reads a roster from the own disk.
func load(tx *storage.Tx, conv ID) (*group, error) {
	gr := &group{
		id: conv, roster: roster.New(roster.ID(conv)), places: map[roster.ID]place{}, numbers: map[number]roster.ID{},
		last:   map[identity.DeviceID]uint64{},
		behind: map[identity.DeviceID]int{}, forks: map[identity.DeviceID]uint64{}, paid: map[roster.ID]identity.AccountID{},
	}
	if err := errors.Join(loadForks(tx, gr), loadPaid(tx, gr)); err != nil {
		return nil, err
	}
	prefix := key(keyAct, conv[:])
	var late []roster.Act
	err := tx.Scan(storage.ScanOptions{Prefix: prefix}, func(k, b []byte) (bool, error) {
		a, p, err := readAct(b)
		if err != nil || len(k) != len(prefix)+8+32 {
			return false, fmt.Errorf("loading a roster: %w", errRow)
		}
		p.clock, a.ID = binary.BigEndian.Uint64(k[len(prefix):]), roster.ID(k[len(prefix)+8:])
		a.Forked = gr.forked(p)
		gr.put(a.ID, p)
		if gr.roster.Add(a) != nil {
			late = append(late, a) // written by somebody whose clocks run backwards; there is room when others are in
		}
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	for n := -1; len(late) > 0 && n != len(late); {
		n = len(late)
		late = slices.DeleteFunc(late, func(a roster.Act) bool { return gr.roster.Add(a) == nil })
	}
	gr.countWaiting()
	return gr, nil
}

func loadForks(tx *storage.Tx, gr *group) error {
	prefix := key(keyFork, gr.id[:])
	return tx.Scan(storage.ScanOptions{Prefix: prefix}, func(k, b []byte) (bool, error) {
		if len(k) != len(prefix)+32 || len(b) != 8 {
			return false, fmt.Errorf("loading forks: %w", errRow)
		}
		gr.forks[identity.DeviceID(k[len(prefix):])] = binary.BigEndian.Uint64(b)
		return true, nil
	})
}

// forked tells whether an act stands where its feed has two branches, or behind that.
func (gr *group) forked(p place) bool {
	at, ok := gr.forks[p.device]
	return ok && p.seq >= at
}

// countWaiting works out anew how many acts of which feed wait. Called with mu held, or before anybody else knows the group.
func (gr *group) countWaiting() {
	clear(gr.behind)
	if gr.roster.Waiting() == 0 {
		return
	}
	for id, p := range gr.places {
		if !gr.roster.Has(id) {
			gr.behind[p.device]++
		}
	}
}

// version returns how many acts of a group a transaction sees.
func version(tx *storage.Tx, conv ID) (uint64, error) {
	return readNumber(tx, key(keyCount, conv[:]))
}

// snap adds a snapshot of the present state. Called with mu held.
func (gr *group) snap(v uint64) *snapshot {
	s := &snapshot{version: v, view: gr.roster.View()}
	s.left = map[identity.AccountID]uint64{}
	for account := range s.view.Gone {
		for _, id := range s.view.Ends(account) {
			if a, ok := gr.roster.Act(id); !ok || a.Kind != roster.Leave {
				continue
			}
			if c, ok := s.left[account]; !ok || gr.places[id].clock < c {
				s.left[account] = gr.places[id].clock
			}
		}
	}
	s.cut = sync.OnceValue(func() replica.Window { return cutWindow(gr, s) })
	gr.snaps = append(gr.snaps, s)
	return s
}

// committed drops the snapshots that nobody asks for any more.
func (gr *group) committed(v uint64) {
	gr.mu.Lock()
	defer gr.mu.Unlock()
	for len(gr.snaps) > 1 && gr.snaps[1].version <= v {
		gr.snaps = slices.Delete(gr.snaps, 0, 1)
	}
}

// at returns the snapshot that a transaction sees that found v, nil if it has to be read. Called with mu held.
func (gr *group) at(v uint64) *snapshot {
	if len(gr.snaps) > 0 && v < gr.snaps[0].version {
		return gr.snaps[0] // an old reader: what is committed since is as good
	}
	for _, s := range gr.snaps {
		if s.version == v {
			return s
		}
	}
	return nil
}

// open returns a group and the state of it that a transaction sees. With write the graph is that state too.
func (g *Groups) open(tx *storage.Tx, conv ID, write bool) (*group, *snapshot, error) {
	v, err := version(tx, conv)
	if err != nil {
		return nil, nil, err
	}
	c := &g.cache
	c.mu.Lock()
	gr := c.groups[conv]
	if gr != nil {
		c.clock++
		gr.used = c.clock
	}
	c.mu.Unlock()
	if gr != nil {
		gr.mu.Lock()
		s := gr.at(v)
		fits := s != nil && (!write || gr.snaps[len(gr.snaps)-1].version == v)
		gr.mu.Unlock()
		if fits {
			return gr, s, nil
		}
	}
	fresh, err := load(tx, conv)
	if err != nil {
		return nil, nil, err
	}
	fresh.mu.Lock()
	s := fresh.snap(v)
	fresh.mu.Unlock()
	if write || gr == nil || gr.tip() < v {
		g.remember(fresh)
	} // else a reader beside changes that are not its own: used once
	return fresh, s, nil
}

// tip is the version of the newest state.
func (gr *group) tip() uint64 {
	gr.mu.Lock()
	defer gr.mu.Unlock()
	return gr.snaps[len(gr.snaps)-1].version
}

// remember puts a group into the cache, and others out of it that were not used for longest.
func (g *Groups) remember(gr *group) {
	c := &g.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clock++
	gr.used = c.clock
	c.groups[gr.id] = gr
	total := 0
	for _, x := range c.groups {
		total += x.size()
	}
	for total > c.max && len(c.groups) > 1 {
		var oldest *group
		for _, x := range c.groups {
			if x != gr && x.idle() && (oldest == nil || x.used < oldest.used) {
				oldest = x
			}
		}
		if oldest == nil {
			return
		}
		total -= oldest.size()
		delete(c.groups, oldest.id)
	}
}

func (gr *group) size() int {
	gr.mu.Lock()
	defer gr.mu.Unlock()
	return len(gr.places) + 16
}

// idle tells whether no change is under way.
func (gr *group) idle() bool {
	gr.mu.Lock()
	defer gr.mu.Unlock()
	return len(gr.snaps) < 2
}

// place returns where the entry of an act is.
func (gr *group) place(id roster.ID) (place, bool) {
	gr.mu.Lock()
	defer gr.mu.Unlock()
	p, ok := gr.places[id]
	return p, ok
}

// entry reads the entry of an act.
func (g *Groups) entry(tx *storage.Tx, conv ID, p place) (feed.Entry, error) {
	return g.parts.Feeds.Entry(tx, feed.FeedID{Conversation: conv, Number: feed.Control, Device: p.device}, p.seq)
}
