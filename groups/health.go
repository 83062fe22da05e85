package groups

import (
	"fmt"
	"slices"
	"time"

	"hima/identity"
	"hima/storage"
)

// healthTries is how often each device of the others must have been dialled in vain before they count as out of reach: with
// the pauses of the mesh that is about two minutes. One who just went to sleep is no trouble.
const healthTries = 4

// healthWait is how long others of whom no device is known are waited for likewise.
const healthWait = 2 * time.Minute

// Health is how well a group that this account is in works here.
type Health struct {
	Group ID
	// Unreached: there are others, none of them is linked with this device, and each was sought in vain for a while.
	Unreached bool
	// Keyless: there is an epoch to write under, and its key is not here.
	Keyless bool
	// Log is why the group's log could not be used lately, at none of its mailboxes; nil: it could, or there is none.
	Log error
}

// Health says how well each group works that this account is in.
func (g *Groups) Health(tx *storage.Tx) ([]Health, error) {
	live, err := g.live(tx)
	if err != nil {
		return nil, err
	}
	linked := map[identity.AccountID]bool{}
	for _, s := range g.parts.Feeds.Sessions() {
		linked[s.Account] = true
	}
	out := make([]Health, 0, len(live))
	for _, conv := range live {
		c, err := g.circle(tx, conv)
		if err != nil {
			return nil, fmt.Errorf("reading group %s: %w", conv.Short(), err)
		}
		_, s, err := g.open(tx, conv, false)
		if err != nil {
			return nil, fmt.Errorf("reading group %s: %w", conv.Short(), err)
		}
		h := Health{Group: conv, Log: g.logbook.trouble(conv)}
		if e, ok := s.view.Current(); ok {
			held, err := tx.Has(key(keyKey, conv[:], e.ID[:]))
			if err != nil {
				return nil, fmt.Errorf("reading group %s: %w", conv.Short(), err)
			}
			h.Keyless = !held
		}
		h.Unreached = len(c.members) > 0 && !slices.ContainsFunc(c.members, func(a identity.AccountID) bool { return linked[a] }) &&
			g.mesh.inVain(conv)
		out = append(out, h)
	}
	return out, nil
}

// inVain tells whether every known device of the others in a group was dialled in vain for a while, or none is known after one.
func (m *mesh) inVain(conv ID) bool {
	m.gossip.mu.RLock()
	var devices []identity.DeviceID
	var since time.Time
	r := m.gossip.rooms[conv]
	if r != nil {
		since = r.since
		for d, a := range r.devices {
			if slices.Contains(r.circle.members, a) {
				devices = append(devices, d)
			}
		}
	}
	m.gossip.mu.RUnlock()
	if r == nil || len(devices) == 0 && m.now().Sub(since) < healthWait {
		return false // not looked at yet, or for too short
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return !slices.ContainsFunc(devices, func(d identity.DeviceID) bool { l := m.links[d]; return l == nil || l.tries < healthTries })
}

// trouble is why the log of a group could not be used lately.
func (b *logbook) trouble(conv ID) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	g := b.groups[conv]
	if len(g.boxes) == 0 {
		return nil
	}
	if o := b.own[conv]; o != nil && o.failed != nil {
		return o.failed
	}
	var failed error
	for _, ref := range g.boxes {
		x := b.boxes[ref.Device]
		if x == nil || x.failed == nil {
			return nil
		}
		failed = x.failed
	}
	return failed
}
