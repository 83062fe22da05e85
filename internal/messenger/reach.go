package messenger

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"hima/identity"
	"hima/storage"
)

// In a group an own message has as many states as there are members. What is kept is one small row per member and own feed:
// up to where one of that member's devices has it, and up to where it was read. A message is counted when it is rendered,
// so an acknowledgement of a thousand messages stays one row.

// reach is how far one member has an own feed.
type reach struct{ acked, read uint64 }

// reaches is the table of them.
type reaches struct{}

func reachKey(local localFeed, a identity.AccountID) []byte {
	return append(binary.BigEndian.AppendUint32([]byte(keyReach), uint32(local)), a[:]...)
}

func parseReach(b []byte) (reach, error) {
	r := reader{b: b}
	out := reach{acked: r.uint(), read: r.uint()}
	if err := r.done(); err != nil {
		return reach{}, fmt.Errorf("reading how far a member has a feed: %w", err)
	}
	return out, nil
}

func (t *reaches) get(tx *storage.Tx, local localFeed, a identity.AccountID) (reach, error) {
	b, ok, err := getRow(tx, reachKey(local, a))
	if err != nil || !ok {
		return reach{}, err
	}
	return parseReach(b)
}

func (t *reaches) put(tx *storage.Tx, local localFeed, a identity.AccountID, r reach) error {
	return tx.Set(reachKey(local, a), binary.AppendUvarint(binary.AppendUvarint(nil, r.acked), r.read))
}

// of reads the rows of all members.
func (t *reaches) of(tx *storage.Tx, local localFeed) (map[identity.AccountID]reach, error) {
	out := make(map[identity.AccountID]reach)
	prefix := binary.BigEndian.AppendUint32([]byte(keyReach), uint32(local))
	err := tx.Scan(storage.ScanOptions{Prefix: prefix}, func(key, val []byte) (bool, error) {
		a, err := identity.AccountIDFromBytes(key[len(prefix):])
		if err != nil {
			return false, errRow
		}
		out[a], err = parseReach(val)
		return true, err
	})
	return out, err
}

// reached notes that a device of a member has from..to of an own feed of a group, and that the member has read up to read.
// The first member who has or reads a message changes its state, and the event of that is stored with it. How many others
// followed changes often, in a large group once per member and message: the events of that are told together, soon.
func (m *Messenger) reached(tx *storage.Tx, row *feedRow, a identity.AccountID, from, to, read uint64) error {
	to = min(to, row.last)
	old, err := m.reaches.get(tx, row.local, a)
	if err != nil {
		return err
	}
	next := reach{acked: max(old.acked, to)}
	next.read = max(old.read, min(read, next.acked))
	if next == old {
		return nil
	}
	if err := m.reaches.put(tx, row.local, a, next); err != nil {
		return err
	}
	delivered, peerRead := row.delivered, row.peerRead
	if from = max(from, old.acked+1); from <= next.acked {
		if from <= row.delivered+1 {
			row.deliver(from, next.acked)
		} else {
			// A newcomer begins above what was said before. That nobody has what lies below stays so.
			row.keep(from, next.acked)
		}
	}
	row.peerRead = max(row.peerRead, next.read)
	if err := m.feeds.put(tx, *row); err != nil {
		return err
	}
	if first := max(delivered+1, from); first <= next.acked {
		if err := m.tellState(tx, row, first, next.acked, StateDelivered); err != nil {
			return err
		}
	}
	if row.peerRead > peerRead {
		if err := m.tellState(tx, row, peerRead+1, row.peerRead, StateRead); err != nil {
			return err
		}
	}
	local := row.local
	tx.OnCommit(func() {
		m.counted.note(local, span{from, min(next.acked, delivered)}, StateDelivered)
		m.counted.note(local, span{old.read + 1, min(next.read, peerRead)}, StateRead)
	})
	return nil
}

// counted are own messages of groups of which more members have, or have read, what some already had. Losing them in a crash
// costs a watcher an event; the counts themselves are in the rows.
type counted struct {
	mu    sync.Mutex // owns dirty
	dirty map[localFeed]map[State]span
	woken chan struct{} // one slot
}

func newCounted() *counted {
	return &counted{dirty: make(map[localFeed]map[State]span), woken: make(chan struct{}, 1)}
}

func (c *counted) note(local localFeed, s span, state State) {
	if s.from > s.to {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	states := c.dirty[local]
	if states == nil {
		states = make(map[State]span)
		c.dirty[local] = states
	}
	if had, ok := states[state]; ok {
		s = span{min(s.from, had.from), max(s.to, had.to)}
	}
	states[state] = s
	select {
	case c.woken <- struct{}{}:
	default:
	}
}

func (c *counted) take() map[localFeed]map[State]span {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.dirty) == 0 {
		return nil
	}
	out := c.dirty
	c.dirty = make(map[localFeed]map[State]span)
	return out
}

// flushCounts tells of what was counted since the last time.
func (m *Messenger) flushCounts(ctx context.Context) error {
	dirty := m.counted.take()
	if dirty == nil {
		return nil
	}
	return m.env.update(ctx, func(tx *storage.Tx) error { return m.tellCounts(tx, dirty) })
}

// tellCounts stores the events of what was counted since the last time.
func (m *Messenger) tellCounts(tx *storage.Tx, dirty map[localFeed]map[State]span) error {
	for local, states := range dirty {
		row, err := m.feeds.local(tx, local)
		if err != nil {
			return err
		}
		for _, state := range []State{StateDelivered, StateRead} {
			s, ok := states[state]
			if !ok {
				continue
			}
			// Of a long span the newest messages are what anybody looks at.
			if s.to-s.from >= maxCounted {
				s.from = s.to - maxCounted + 1
			}
			if err := m.tellState(tx, &row, s.from, s.to, state); err != nil {
				return err
			}
		}
	}
	return nil
}

// maxCounted is of how many messages of one feed one round tells that more members have them.
const maxCounted = 4 * stateIDs

// audience counts who of those to whom an entry goes has it.
type audience struct {
	members   []identity.AccountID
	delivered int
	read      int

	local       localFeed
	acked, seen []uint64 // of the members, in ascending order, for that feed; nil: not yet
}

// count counts for one entry of a feed. How far the members are is put in order once per feed: a page of a large group looks
// at every member for every line otherwise.
func (a *audience) count(local localFeed, rows map[identity.AccountID]reach, seq uint64) {
	if a.acked == nil || a.local != local {
		a.local, a.acked, a.seen = local, make([]uint64, 0, len(a.members)), make([]uint64, 0, len(a.members))
		for _, member := range a.members {
			r := rows[member]
			a.acked, a.seen = append(a.acked, r.acked), append(a.seen, r.read)
		}
		slices.Sort(a.acked)
		slices.Sort(a.seen)
	}
	from := func(sorted []uint64) int {
		i, _ := slices.BinarySearch(sorted, seq)
		return len(sorted) - i
	}
	a.delivered, a.read = from(a.acked), from(a.seen)
}

// groupState is how far an own message to a group got. row says whether anybody at all ever held it, who may be gone since.
func (a *audience) state(row *feedRow, seq uint64) State {
	switch {
	case a.read > 0:
		return StateRead
	case a.delivered > 0:
		return StateDelivered
	}
	switch s := row.state(seq); s {
	case StateCancelled, StatePending, StateSent:
		return s
	}
	return StateSent
}
