package directory

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"hima/identity"
	"hima/internal/text"
	"hima/internal/wire/pb"
	"hima/node"
)

// Public groups are found by name: their owners and admins say in the table of each joined network that they answer for
// the name, and whoever asks them, or people nearby, gets cards (R34). See docs/spec/groups-discovery.md.

var (
	// ErrBadGroupName is returned for a name that cannot be searched: nothing of it is drawn, or it is too long.
	ErrBadGroupName = errors.New("not a name that groups can be searched by")
	// ErrTooManyGroups is returned when as many groups are told of as may be.
	ErrTooManyGroups = errors.New("too many groups are told of")
)

// Where a card was heard.
const (
	SourceNetwork = "network"
	SourceNearby  = "nearby"
	SourceOwn     = "own" // this node tells of it itself
)

// FoundGroup is a public group that somebody tells of. Name and description are as its owner wrote them: whoever shows
// them makes them safe first. The size is claimed.
type FoundGroup struct {
	Card        identity.GroupCard
	Source      string             // where it was heard first
	Network     identity.NetworkID // zero: not on a network
	NetworkName string
	Heard       int  // how many devices told of it
	Disputed    bool // several accounts show that they own the group; only its own acts decide which is right
}

// share is a card that this node tells of.
type share struct {
	card    identity.GroupCard
	folded  string
	provide bool // also said in the tables
}

// groupShares is what this node tells of public groups, and what it heard lately. The lock guards all and is never held
// while calling anything else.
type groupShares struct {
	mu      sync.Mutex
	m       map[identity.GroupID]share // at most maxShares
	changed chan struct{}              // closed and replaced when m changes

	heard map[identity.GroupID]identity.GroupCard // at most maxHeardGroups
	good  map[[32]byte]identity.GroupCard         // checked cards by the hash of their bytes; at most maxHeardGroups

	answers *rate.Limiter
	peers   map[identity.DeviceID]*rate.Limiter // at most maxGroupAskers
}

func (s *groupShares) init() {
	s.m, s.changed = map[identity.GroupID]share{}, make(chan struct{})
	s.heard, s.good = map[identity.GroupID]identity.GroupCard{}, map[[32]byte]identity.GroupCard{}
	s.answers = rate.NewLimiter(groupRate, groupBurst)
	s.peers = map[identity.DeviceID]*rate.Limiter{}
}

// tell is called with the lock held.
func (s *groupShares) tell() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *groupShares) put(sh share) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.m[sh.card.Group]; !ok && len(s.m) >= maxShares {
		return ErrTooManyGroups
	}
	s.m[sh.card.Group] = sh
	s.tell()
	return nil
}

func (s *groupShares) drop(g identity.GroupID) (share, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sh, ok := s.m[g]
	if ok {
		delete(s.m, g)
		s.tell()
	}
	return sh, ok
}

// all lists what is told of, and what is closed when that changes.
func (s *groupShares) all() ([]share, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]share, 0, len(s.m))
	for _, sh := range s.m {
		out = append(out, sh)
	}
	slices.SortFunc(out, func(a, b share) int { return bytes.Compare(a.card.Group[:], b.card.Group[:]) })
	return out, s.changed
}

// named are the good cards told of under a folded name.
func (s *groupShares) named(folded string, now time.Time) []identity.GroupCard {
	all, _ := s.all()
	var out []identity.GroupCard
	for _, sh := range all {
		if sh.folded == folded && sh.card.Validate(now) == nil {
			out = append(out, sh.card)
		}
	}
	return out
}

// checked returns the card of bytes that were checked before.
func (s *groupShares) checked(hash [32]byte) (identity.GroupCard, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.good[hash]
	return c, ok
}

// note remembers a checked card.
func (s *groupShares) note(hash [32]byte, c identity.GroupCard) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.good) >= maxHeardGroups {
		for h := range s.good { // any one: it is checked again
			delete(s.good, h)
			break
		}
	}
	s.good[hash] = c
}

// hear remembers what a search showed the user, who may name one of these groups next.
func (s *groupShares) hear(found []FoundGroup) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range found {
		have, ok := s.heard[f.Card.Group]
		if ok && have.Supersedes(f.Card) {
			continue
		}
		if !ok && len(s.heard) >= maxHeardGroups {
			for g := range s.heard { // any one: it can be searched again
				delete(s.heard, g)
				break
			}
		}
		s.heard[f.Card.Group] = f.Card
	}
}

// PublishGroup tells of a public group from now on, whoever asks, and says so in the table of every joined network: at
// once, and again every 12 hours. A card of the same group takes the place of the one before. It lasts until
// UnpublishGroup, at most until the card expires; nothing is kept over a restart. Any goroutine.
func (d *Directory) PublishGroup(card identity.GroupCard) error { return d.share(card, true) }

// AnswerGroup tells of a public group whoever asks this node, and says so nowhere: for members who are no admins.
func (d *Directory) AnswerGroup(card identity.GroupCard) error { return d.share(card, false) }

func (d *Directory) share(card identity.GroupCard, provide bool) error {
	folded := text.FoldName(card.Name)
	if card.IsZero() || folded == "" {
		return fmt.Errorf("telling of a group: %w", ErrBadGroupName)
	}
	if err := card.Validate(d.now()); err != nil {
		return fmt.Errorf("telling of a group: %w", err)
	}
	if err := d.groups.put(share{card, folded, provide}); err != nil {
		return fmt.Errorf("telling of a group: %w", err)
	}
	return nil
}

// UnpublishGroup tells of a group no more. Nodes of a table that were told believe for up to a day that this one answers;
// it does not.
func (d *Directory) UnpublishGroup(g identity.GroupID) {
	sh, ok := d.groups.drop(g)
	if !ok || !sh.provide {
		return
	}
	for _, j := range d.nets.list() {
		if table := j.dht(); table != nil && !d.provides(sh.folded) {
			table.Unprovide(identity.GroupNameKey(j.id, sh.folded))
		}
	}
}

// provides tells whether some group of a name is said in the tables.
func (d *Directory) provides(folded string) bool {
	all, _ := d.groups.all()
	return slices.ContainsFunc(all, func(sh share) bool { return sh.provide && sh.folded == folded })
}

// KnownGroup returns the newest card of a group that this node tells of or that a search showed lately.
func (d *Directory) KnownGroup(g identity.GroupID) (identity.GroupCard, bool) {
	d.groups.mu.Lock()
	defer d.groups.mu.Unlock()
	best := d.groups.heard[g]
	if sh, ok := d.groups.m[g]; ok && (best.IsZero() || sh.card.Supersedes(best)) {
		best = sh.card
	}
	if best.IsZero() || best.Validate(d.now()) != nil {
		return identity.GroupCard{}, false
	}
	return best, true
}

// provideLoop says in the table of a network which names this node answers for, until ctx ends.
func (d *Directory) provideLoop(ctx context.Context, j *joined, table dht) {
	type said struct {
		next  time.Time
		fails int
	}
	state := map[string]said{}
	for {
		all, changed := d.groups.all()
		now, wait := d.now(), republish
		want := map[string]bool{}
		for _, sh := range all {
			if sh.provide && sh.card.Validate(now) == nil {
				want[sh.folded] = true
			}
		}
		for name := range state {
			if !want[name] {
				delete(state, name)
				table.Unprovide(identity.GroupNameKey(j.id, name))
			}
		}
		for name := range want {
			if s := state[name]; !now.Before(s.next) {
				// With nobody in the table yet it is tried again when the first has come; looking is cheap.
				err := node.ErrAlone
				if table.Peers() > 0 {
					ask, cancel := context.WithTimeout(ctx, publishTimeout)
					err = table.Provide(ask, identity.GroupNameKey(j.id, name))
					cancel()
				}
				if ctx.Err() != nil {
					return
				}
				s.next, s.fails = now.Add(republish), 0
				if err != nil {
					s.fails = state[name].fails + 1
					s.next = now.Add(min(publishPause<<min(s.fails-1, 16), publishPauseMax))
					if errors.Is(err, node.ErrAlone) {
						s.next = now.Add(publishPause)
					}
					d.log.Debug("saying that a group is here", "network", j.id.Short(), "error", err)
				}
				state[name] = s
			}
			wait = min(wait, state[name].next.Sub(d.now()))
		}
		t := time.NewTimer(max(wait, time.Second))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-changed:
		case <-t.C:
		}
		t.Stop()
	}
}

// heardGroup is one card from one device.
type heardGroup struct {
	card    identity.GroupCard
	from    identity.DeviceID
	rank    int     // its place in the answer
	network *joined // nil: nearby
}

// mergeGroups makes one list of what many said: of each group the newest card, and of a group whose cards contradict each
// other one per owner, marked. First cards of everybody come before second ones when there are too many, so that whoever
// answers with many pushes nobody out. Those that most devices told of come first.
func mergeGroups(heard []heardGroup, own []identity.GroupCard) []FoundGroup {
	slices.SortStableFunc(heard, func(a, b heardGroup) int { return cmp.Compare(a.rank, b.rank) })
	type teller struct {
		group identity.GroupID
		from  identity.DeviceID
	}
	var out []FoundGroup
	told, heads := map[teller]bool{}, map[identity.GroupID]int{}
	add := func(f FoundGroup) {
		owners := 0
		for i := range out {
			o := &out[i]
			switch {
			case o.Card.Group != f.Card.Group:
			case o.Card.Supersedes(f.Card) || string(o.Card.Raw()) == string(f.Card.Raw()):
				return
			case f.Card.Supersedes(o.Card):
				o.Card = f.Card
				return
			default:
				owners++
			}
		}
		if len(out) < maxFoundGroups && owners < maxGroupOwners {
			out = append(out, f)
		}
	}
	for _, c := range own {
		add(FoundGroup{Card: c, Source: SourceOwn})
	}
	for _, h := range heard {
		if k := (teller{h.card.Group, h.from}); !told[k] {
			told[k] = true
			heads[h.card.Group]++
		}
		f := FoundGroup{Card: h.card, Source: SourceNearby}
		if h.network != nil {
			f.Source, f.Network, f.NetworkName = SourceNetwork, h.network.id, h.network.name
		}
		add(f)
	}
	for i := range out {
		out[i].Heard = heads[out[i].Card.Group]
		out[i].Disputed = slices.ContainsFunc(out, func(o FoundGroup) bool {
			return o.Card.Group == out[i].Card.Group && o.Card.Account != out[i].Card.Account
		})
	}
	slices.SortStableFunc(out, func(a, b FoundGroup) int {
		return cmp.Or(cmp.Compare(b.Heard, a.Heard), bytes.Compare(a.Card.Group[:], b.Card.Group[:]))
	})
	return out
}

// checkGroupCards turns an answer into good cards of a name: the others in it are dropped, whatever is wrong with them, and
// those beyond maxGroupCards are not looked at.
func (d *Directory) checkGroupCards(m *pb.GroupCards, folded string) []identity.GroupCard {
	var out []identity.GroupCard
	now := d.now()
	for _, raw := range m.Cards[:min(len(m.Cards), maxGroupCards)] {
		c, err := d.parseGroupCard(raw)
		if err != nil || c.Validate(now) != nil || text.FoldName(c.Name) != folded {
			continue
		}
		// Of an account known here, a device that it revoked signs nothing any more.
		if r, ok := d.Record(c.Account); ok && r.Revokes(c.Certificate.Device) {
			continue
		}
		if !slices.ContainsFunc(out, func(o identity.GroupCard) bool { return o.Group == c.Group }) {
			out = append(out, c)
		}
	}
	return out
}
