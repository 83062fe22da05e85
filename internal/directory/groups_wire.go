package directory

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/text"
	"hima/internal/wire"
	"hima/internal/wire/pb"
	"hima/node"
)

// GroupProtocol is the stream protocol by which a node asks another which public groups of a name it knows.
const GroupProtocol = "/hima/group/1"

// groupVersion is the version of the question.
const groupVersion = 1

// groupAsker asks one device for cards: a stream of a node, or a fake in tests.
type groupAsker func(ctx context.Context, dev identity.DeviceID, addrs []string, folded string) (*pb.GroupCards, error)

func (s streams) groupCards(ctx context.Context, dev identity.DeviceID, addrs []string, folded string) (*pb.GroupCards, error) {
	var m pb.GroupCards
	err := s.roundTrip(ctx, dev, addrs, GroupProtocol, wire.MaxGroupFrame, &pb.GroupQuestion{Version: groupVersion, Name: folded}, &m)
	if err != nil {
		return nil, fmt.Errorf("asking for groups: %w", err)
	}
	return &m, nil
}

// answerGroups serves a question: the cards told of under the name. Of a name that nothing is told of the answer is empty,
// whatever groups this node is in.
func (d *Directory) answerGroups(s *node.Stream) {
	if !d.groups.allow(s.Remote(), d.now()) || !d.tellsGroups(s) {
		s.Reset()
		return
	}
	var q pb.GroupQuestion
	err := serveOne(s, wire.MaxGroupFrame, &q, func() proto.Message { return d.groupAnswer(&q) })
	if err != nil {
		d.log.Debug("answering about groups", "device", s.Remote().Short(), "error", err)
		s.Reset()
	}
}

// tellsGroups: who does not want to be seen on the LAN is not seen by his groups either, unless they are told of on a
// network, where everybody can ask.
func (d *Directory) tellsGroups(s *node.Stream) bool {
	if len(d.nets.list()) > 0 || !d.isNear(s.Remote(), s.Info().Addr) {
		return true
	}
	if d.cfg.Profile == nil {
		return false
	}
	_, _, visible := d.cfg.Profile()
	return visible
}

func (d *Directory) groupAnswer(q *pb.GroupQuestion) *pb.GroupCards {
	m := &pb.GroupCards{}
	// A name in another form than the folded one is nobody's; looking that up costs nothing.
	if q.Version < groupVersion || q.Name == "" || len(q.Name) > text.MaxFoldedName {
		return m
	}
	for _, c := range d.groups.named(q.Name, d.now()) {
		m.Cards = append(m.Cards, c.Raw())
		if len(m.Cards) > maxGroupCards || wire.Size(m) > wire.MaxGroupFrame {
			m.Cards = m.Cards[:len(m.Cards)-1]
			break
		}
	}
	return m
}

// allow spends a token of the device and one of everybody.
func (s *groupShares) allow(dev identity.DeviceID, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.peers[dev]
	if p == nil {
		if len(s.peers) >= maxGroupAskers {
			for other, l := range s.peers {
				if l.TokensAt(now) >= groupAskerBurst {
					delete(s.peers, other)
				}
			}
		}
		if len(s.peers) >= maxGroupAskers {
			return false // a crowd of new devices
		}
		p = rate.NewLimiter(groupAskerRate, groupAskerBurst)
		s.peers[dev] = p
	}
	return p.AllowN(now, 1) && s.answers.AllowN(now, 1)
}

// parseGroupCard checks a card, unless the very same bytes were checked before: the same card comes from everybody who
// tells of the group.
func (d *Directory) parseGroupCard(raw []byte) (identity.GroupCard, error) {
	hash := sha256.Sum256(raw)
	if c, ok := d.groups.checked(hash); ok {
		return c, nil
	}
	c, err := identity.ParseGroupCard(raw)
	if err == nil {
		d.groups.note(hash, c)
	}
	return c, err
}

// AskGroup asks one device, wherever it is known to be, for the cards of public groups of a name. ErrBadGroupName.
func (d *Directory) AskGroup(ctx context.Context, dev identity.DeviceID, name string) ([]identity.GroupCard, error) {
	folded := text.FoldName(name)
	if folded == "" {
		return nil, ErrBadGroupName
	}
	m, err := d.askGroups(ctx, dev, nil, folded)
	if err != nil {
		return nil, err
	}
	return d.checkGroupCards(m, folded), nil
}

// FindGroups looks for public groups of a name, in any spelling that folds to it: it asks those who say in the tables of
// the joined networks that they answer for it, and people nearby. What is expired, forged or of another name is dropped.
// unreachable are the names of networks where nobody could be asked. ErrBadGroupName; ErrNoNetwork: nobody at all could
// be asked.
func (d *Directory) FindGroups(ctx context.Context, name string) (found []FoundGroup, unreachable []string, err error) {
	folded := text.FoldName(name)
	if folded == "" {
		return nil, nil, ErrBadGroupName
	}
	ctx, cancel := context.WithTimeout(ctx, searchTimeout)
	defer cancel()
	s := &groupSearch{d: d, folded: folded, first: make(chan struct{})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.run(ctx)
	}()
	var late <-chan time.Time
	first := s.first
wait:
	for {
		select {
		case <-done:
			break wait
		case <-first:
			// Others who told of groups get a little longer, those who are gone no more than that.
			first, late = nil, time.After(groupPatience)
		case <-late:
			cancel()
			late = nil
		}
	}
	own := d.groups.named(folded, d.now())
	found = mergeGroups(s.heard, own)
	d.groups.hear(found)
	if !s.asked && len(found) == 0 {
		return nil, s.unreachable, ErrNoNetwork
	}
	return found, s.unreachable, nil
}

// groupSearch is one search under way.
type groupSearch struct {
	d      *Directory
	folded string
	first  chan struct{} // closed when the first good card came

	mu          sync.Mutex
	heard       []heardGroup
	asked       bool // somebody answered, or a table did
	unreachable []string
}

// run asks everybody and returns when all have answered, or ctx ended.
func (s *groupSearch) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.askAll(ctx, nil, s.nearby()) })
	for _, j := range s.d.nets.list() {
		wg.Go(func() {
			table := j.dht()
			if table == nil {
				s.missed(j)
				return
			}
			who, err := table.Providers(ctx, identity.GroupNameKey(j.id, s.folded))
			if err != nil {
				if ctx.Err() == nil && !errors.Is(err, node.ErrAlone) {
					s.d.log.Debug("looking for a group", "network", j.id.Short(), "error", err)
				}
				s.missed(j)
				return
			}
			s.mu.Lock()
			s.asked = true
			s.mu.Unlock()
			s.askAll(ctx, j, who[:min(len(who), maxGroupProviders)])
		})
	}
}

func (s *groupSearch) missed(j *joined) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unreachable = append(s.unreachable, j.name)
	slices.Sort(s.unreachable)
}

// nearby are the people on this LAN, as far as they are asked.
func (s *groupSearch) nearby() (out []node.Provider) {
	for _, p := range s.d.Nearby() {
		out = append(out, node.Provider{Device: p.Device})
	}
	rand.Shuffle(len(out), func(a, b int) { out[a], out[b] = out[b], out[a] })
	return out[:min(len(out), maxGroupNearby)]
}

// askAll asks devices, a few at a time.
func (s *groupSearch) askAll(ctx context.Context, j *joined, who []node.Provider) {
	turns := make(chan struct{}, groupAsks)
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, p := range who {
		select {
		case turns <- struct{}{}:
		case <-ctx.Done():
			return
		}
		wg.Go(func() {
			defer func() { <-turns }()
			s.ask(ctx, j, p)
		})
	}
}

func (s *groupSearch) ask(ctx context.Context, j *joined, p node.Provider) {
	d := s.d
	if j != nil && len(p.Addrs) == 0 && d.cfg.Node != nil && !d.cfg.Node.Connected(p.Device) && len(d.cfg.Node.Known(p.Device)) == 0 {
		if err := d.Locate(ctx, p.Device); err != nil {
			d.log.Debug("locating who tells of a group", "device", p.Device.Short(), "error", err)
			return
		}
	}
	m, err := d.askGroups(ctx, p.Device, p.Addrs, s.folded)
	if err != nil {
		d.log.Debug("asking about a group", "device", p.Device.Short(), "error", err)
		return
	}
	cards := d.checkGroupCards(m, s.folded)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = true
	if len(cards) > 0 && len(s.heard) == 0 {
		close(s.first)
	}
	for i, c := range cards {
		s.heard = append(s.heard, heardGroup{card: c, from: p.Device, rank: i, network: j})
	}
}
