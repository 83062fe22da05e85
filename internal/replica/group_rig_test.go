package replica_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// act is a toy of what the acts of a group say: who is in, from where on, and until when.
type act struct {
	Admit  []byte            `json:",omitempty"`
	First  map[string]uint64 `json:",omitempty"` // device: the first number of its chat that the admitted may have; others: 1
	Remove []byte            `json:",omitempty"`
}

// groupView is what one device knows of the group: a toy of package groups.
type groupView struct {
	d *device

	mu      sync.Mutex
	members map[identity.AccountID]*groupMember
	keys    []*pb.GroupKeys // what it hands over
	took    []*pb.GroupKeys
	lacking replica.Lacking // what Lacking answers
	mailed  []*pb.GroupKeys // what a mailbox took
	room    uint64          // chat above this number is not taken; 0: all is
}

type groupMember struct {
	asked   bool // somebody that a newcomer asks before it knows the roster
	removed bool
	first   map[identity.DeviceID]uint64
	control map[feed.FeedID]uint64 // ends of the control feeds when it was removed
}

// newGroup makes n devices that run; the first of them begins a group, and nobody else is in it.
func newGroup(t *testing.T, n int) *rig {
	t.Helper()
	return begun(newRig(t, n))
}

func begun(r *rig) *rig {
	for _, d := range r.devices {
		d.group = &groupView{d: d, members: map[identity.AccountID]*groupMember{}}
		d.start()
	}
	owner := r.devices[0]
	nonce := sha256.Sum256([]byte("nonce"))
	require.NoError(r.t, owner.db.Update(context.Background(), func(tx *storage.Tx) error {
		all, err := owner.rep.Append(tx, replica.Draft{Number: feed.Control, Kind: feed.KindGroupCreate, Genesis: nonce[:]})
		if err == nil {
			r.conv = all[0].Conversation
		}
		return err
	}))
	owner.group.members[owner.person.ID()] = &groupMember{}
	return r
}

// do writes an act.
func (d *device) do(a act) feed.Entry {
	d.rig.t.Helper()
	content, err := json.Marshal(a)
	require.NoError(d.rig.t, err)
	kind := feed.KindGroupAdmit
	if a.Remove != nil {
		kind = feed.KindGroupRemove
	}
	var all []feed.Entry
	require.NoError(d.rig.t, d.db.Update(context.Background(), func(tx *storage.Tx) (err error) {
		all, err = d.rep.Append(tx, replica.Draft{Conversation: d.rig.conv, Number: feed.Control, Kind: kind, Content: content})
		return err
	}))
	d.group.apply(all)
	return all[0]
}

// admit lets others in, with everything that was said, and tells them whom to ask.
func (d *device) admitAll(others ...*device) {
	for _, o := range others {
		d.admitFrom(o, nil)
	}
}

// admitFrom lets one in, who may have the chat of some devices only from a number on.
func (d *device) admitFrom(o *device, first map[*device]uint64) {
	a := act{Admit: o.person.ID().Bytes(), First: map[string]uint64{}}
	for f, n := range first {
		a.First[f.key.ID().String()] = n
	}
	o.group.ask(d)
	d.do(a)
}

func (d *device) control() feed.FeedID {
	return feed.FeedID{Conversation: d.rig.conv, Number: feed.Control, Device: d.key.ID()}
}

// ask makes somebody one whom a newcomer asks.
func (v *groupView) ask(o *device) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.members[o.person.ID()] == nil {
		v.members[o.person.ID()] = &groupMember{asked: true}
	}
	if v.members[v.d.person.ID()] == nil {
		v.members[v.d.person.ID()] = &groupMember{asked: true}
	}
}

// apply folds acts, in whatever order they come, and lets the replica look again.
func (v *groupView) apply(entries []feed.Entry) {
	changed := false
	for _, e := range entries {
		if e.Number != feed.Control || !e.HasBody() {
			continue
		}
		content, err := e.Content()
		var a act
		if err != nil || len(content) > 0 && json.Unmarshal(content, &a) != nil {
			panic("not an act")
		}
		v.mu.Lock()
		if e.Kind == feed.KindGroupCreate {
			v.members[e.Account] = &groupMember{}
		}
		if a.Admit != nil {
			m := &groupMember{first: map[identity.DeviceID]uint64{}}
			for id, n := range a.First {
				dev, err := identity.ParseDeviceID(id)
				if err != nil {
					panic(err)
				}
				m.first[dev] = n
			}
			v.members[identity.AccountID(a.Admit)] = m
		}
		v.mu.Unlock()
		if a.Remove != nil {
			v.remove(identity.AccountID(a.Remove), e)
		}
		changed = true
	}
	if changed {
		go v.d.rep.Reannounce(v.d.rig.conv)
	}
}

// remove cuts somebody off: the acts up to the removal are all that is still for it.
func (v *groupView) remove(who identity.AccountID, by feed.Entry) {
	go func() {
		ends := map[feed.FeedID]uint64{}
		_ = v.d.db.View(func(tx *storage.Tx) error {
			heads, err := v.d.rep.Heads(tx, v.d.rig.conv)
			for _, h := range heads {
				if h.Number == feed.Control {
					ends[feed.FeedID{Conversation: v.d.rig.conv, Number: h.Number, Device: h.Device}] = h.Last
				}
			}
			return err
		})
		ends[by.Feed()] = by.Seq
		v.mu.Lock()
		v.members[who] = &groupMember{removed: true, control: ends}
		v.mu.Unlock()
		v.d.rep.Reannounce(v.d.rig.conv)
	}()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.members[who] = &groupMember{removed: true, control: map[feed.FeedID]uint64{by.Feed(): by.Seq}}
}

func (v *groupView) shared(a identity.AccountID) []feed.ConversationID {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.members[v.d.person.ID()] == nil || v.members[a] == nil {
		return nil
	}
	return []feed.ConversationID{v.d.rig.conv}
}

func (v *groupView) readers() (out []identity.AccountID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for a := range v.members {
		if a != v.d.person.ID() {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, func(a, b identity.AccountID) int { return slices.Compare(a[:], b[:]) })
	return out
}

// window is everything for whoever may have everything. Where a newcomer begins, it cannot know.
func (v *groupView) window(a identity.AccountID) replica.Window {
	v.mu.Lock()
	defer v.mu.Unlock()
	m := v.members[a]
	own := a == v.d.person.ID()
	if m == nil || m.asked && !own {
		return func(feed.FeedID) (uint64, uint64) { return 1, 0 }
	}
	if m.asked || len(m.first) > 0 && own {
		return func(feed.FeedID) (uint64, uint64) { return 0, feed.MaxSeq }
	}
	if !m.removed && len(m.first) == 0 {
		return nil
	}
	return func(id feed.FeedID) (uint64, uint64) {
		switch {
		case m.removed && id.Number == feed.Control:
			return 1, m.control[id]
		case m.removed:
			return 1, 0
		case id.Number == feed.Chat:
			return max(m.first[id.Device], 1), feed.MaxSeq
		}
		return 1, feed.MaxSeq
	}
}

// admit takes what members write, and what is not older than what this member may have.
func (v *groupView) admit(in replica.Incoming) (int, pb.Code) {
	v.mu.Lock()
	defer v.mu.Unlock()
	e := in.Run.First()
	m := v.members[in.Run.Account()]
	switch {
	case e.Nonce != nil:
	case m == nil || m.asked || m.removed:
		return 0, pb.Code_CODE_NOT_MEMBER
	}
	if self := v.members[v.d.person.ID()]; self != nil && e.Number == feed.Chat && e.Seq < self.first[e.Device] {
		return 0, pb.Code_CODE_DENIED
	}
	if v.room > 0 && e.Number == feed.Chat && in.Run.Last().Seq > v.room {
		return int(max(v.room+1, e.Seq) - e.Seq), pb.Code_CODE_NOT_MEMBER
	}
	return in.Run.Len(), pb.Code_CODE_TAKEN
}

// has is up to where a device holds a feed, and from where on.
func (d *device) has(id feed.FeedID) (first, last uint64) {
	d.rig.t.Helper()
	h, entries := d.stored(id)
	if len(entries) > 0 && h.Last > 0 {
		for i, e := range entries {
			require.Equal(d.rig.t, entries[0].Seq+uint64(i), e.Seq, "a hole below the end")
		}
	}
	return h.First, h.Last
}

// complete waits until a device holds the chat of another up to a number.
func (r *rig) complete(d, author *device, last uint64) {
	r.t.Helper()
	r.await(fmt.Sprintf("%d has %d of %d", d.index, last, author.index), func() bool {
		_, have := d.has(author.feed())
		return have == last
	})
}

func (r *rig) open(pairs ...[2]int) {
	r.t.Helper()
	for _, p := range pairs {
		require.NoError(r.t, r.devices[p[0]].open(r.devices[p[1]]))
	}
}

// toyKeys hands over what the test says.
type toyKeys struct{ v *groupView }

func (d *device) keysOf() replica.Keys {
	if d.group == nil {
		return nil
	}
	return toyKeys{d.group}
}

func (k toyKeys) KeysFor(_ *storage.Tx, p replica.Peer) ([]*pb.GroupKeys, error) {
	k.v.mu.Lock()
	defer k.v.mu.Unlock()
	if m := k.v.members[p.Account]; m == nil || m.removed || m.asked {
		return nil, nil
	}
	return k.some(false), nil
}

func (k toyKeys) BranchesFor(_ *storage.Tx, p replica.Peer) ([]*pb.GroupKeys, error) {
	k.v.mu.Lock()
	defer k.v.mu.Unlock()
	if m := k.v.members[p.Account]; m == nil || m.removed || m.asked {
		return nil, nil
	}
	return k.some(true), nil
}

func (k toyKeys) Lacking(*storage.Tx, feed.ConversationID) (replica.Lacking, error) {
	k.v.mu.Lock()
	defer k.v.mu.Unlock()
	return k.v.lacking, nil
}

func (k toyKeys) MailedKeys(_ *storage.Tx, _ replica.Peer, keys []*pb.GroupKeys, _ time.Time) error {
	k.v.mu.Lock()
	defer k.v.mu.Unlock()
	k.v.mailed = append(k.v.mailed, keys...)
	return nil
}

func (k toyKeys) some(branches bool) []*pb.GroupKeys {
	return slices.DeleteFunc(slices.Clone(k.v.keys), func(k *pb.GroupKeys) bool { return len(k.Wants)+len(k.Forks)+len(k.Branches) > 0 != branches })
}

func (k toyKeys) TookKeys(_ context.Context, _ replica.Peer, got *pb.GroupKeys) error {
	k.v.mu.Lock()
	defer k.v.mu.Unlock()
	k.v.took = append(k.v.took, got)
	return nil
}
