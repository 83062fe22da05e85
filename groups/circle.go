package groups

import (
	"fmt"
	"slices"

	"hima/identity"
	"hima/internal/feed"
	"hima/storage"
)

// bindRoads gives gossip and mesh the other parts, and lets them hear of changes. Called by Bind.
func (g *Groups) bindRoads() {
	s, m := g.gossip, g.mesh
	s.look, s.feeds, s.pub = g.circles, g.parts.Feeds, g.parts.PubSub
	if g.parts.Devices != nil {
		s.known = g.parts.Devices
	}
	m.feeds, m.locate, m.release = g.parts.Feeds, g.parts.Locate, g.parts.Release
	g.onChanged(s.touch)
}

// circles reads groups as gossip and mesh see them: of these those that we are in, or are said to be in; nil: all such.
func (g *Groups) circles(tx *storage.Tx, which []ID) (map[ID]circle, error) {
	live, err := g.live(tx)
	if err != nil {
		return nil, err
	}
	out := map[ID]circle{}
	for _, conv := range live {
		if which != nil && !slices.Contains(which, conv) {
			continue
		}
		c, err := g.circle(tx, conv)
		if err != nil {
			return nil, fmt.Errorf("reading group %s: %w", conv.Short(), err)
		}
		out[conv] = c
	}
	lost, err := g.lostGroups(tx)
	if err != nil {
		return nil, err
	}
	for conv, members := range lost { // nobody else would link with those who can bring it
		if which == nil || slices.Contains(which, conv) {
			out[conv] = circle{group: conv, members: members}
		}
	}
	return out, nil
}

func (g *Groups) circle(tx *storage.Tx, conv ID) (circle, error) {
	members, err := g.members(tx, conv)
	if err != nil {
		return circle{}, err
	}
	current, held, _, err := g.logEpochs(tx, conv)
	if err != nil {
		return circle{}, err
	}
	_, s, err := g.open(tx, conv, false)
	if err != nil {
		return circle{}, err
	}
	c := circle{
		group: conv, members: members, current: current.ID,
		revoked: func(a identity.AccountID, d identity.DeviceID) bool { _, out := s.view.Revokes(a, d); return out },
	}
	for _, e := range held {
		c.epochs = append(c.epochs, circleEpoch{id: feed.EntryID(e.ID), key: e.Key, made: e.Made})
	}
	return c, nil
}
