package groups

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"testing"
	"testing/cryptotest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"hima/groups/roster"
	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// quarrel is a group whose members act, talk, leave, throw each other out and lose devices in partitions that change, while
// whoever is out keeps every key they ever got and asks everybody for more.
type quarrel struct {
	*world
	t     *rapid.T
	conv  ID
	keys  map[identity.AccountID]map[roster.ID]bool
	said  []utterance
	wrong map[identity.DeviceID]bool // devices that were revoked
}

// utterance is something written, and who its author knew to be out.
type utterance struct {
	epoch   roster.ID
	text    string
	gone    map[identity.AccountID][]roster.ID // by which acts
	revoked []identity.DeviceID
}

func (q *quarrel) speak(p *peer, i int) {
	v := p.rosterView(q.conv)
	e, err := p.text(q.conv, fmt.Sprintf("%s %03d", p.name, i))
	if err != nil {
		require.True(q.t, errors.Is(err, ErrNotMember) || errors.Is(err, ErrDissolved) || errors.Is(err, ErrNotFound), "%v", err)
		return
	}
	u := utterance{epoch: roster.ID(e.Epoch), text: fmt.Sprintf("%s %03d", p.name, i), revoked: v.Revoked, gone: maps.Clone(v.Gone)}
	q.said = append(q.said, u)
}

// act lets somebody do something, allowed or not.
func (q *quarrel) act(p, other *peer) {
	ctx := context.Background()
	var err error
	switch rapid.IntRange(0, 9).Draw(q.t, "act") {
	case 0, 1, 2:
		err = p.g.Remove(ctx, q.conv, other.self.Account)
	case 3:
		err = p.g.Leave(ctx, q.conv)
	case 4:
		err = p.g.Promote(ctx, q.conv, other.self.Account)
	case 5:
		err = p.g.Demote(ctx, q.conv, other.self.Account)
	case 6:
		err = p.g.Set(ctx, q.conv, SettingNickname, other.name)
	case 7:
		err = p.g.Transfer(ctx, q.conv, other.self.Account)
	case 8:
		if _, err = p.g.Invite(ctx, q.conv, other.self.Account); err == nil {
			q.deliver()
			_, err = other.g.Answer(ctx, q.conv, true)
			q.deliver()
		}
	case 9:
		for _, x := range q.nodes {
			if x.self.Account == p.self.Account && x != p && !q.wrong[p.self.Device] && !q.wrong[x.self.Device] {
				if err = p.g.RevokeDevice(ctx, x.self.Device); err == nil {
					q.revoke(x)
					q.wrong[x.self.Device] = true
				}
			}
		}
	}
	for _, ok := range []error{nil, ErrNotMember, ErrNotAllowed, ErrNotFound, ErrExists, ErrInvalid, ErrLastOwner, ErrDissolved, ErrConflict} {
		if errors.Is(err, ok) {
			return
		}
	}
	require.NoError(q.t, err)
}

// pry asks everybody for keys, for every account and with every device, also revoked ones.
func (q *quarrel) pry() {
	for _, asks := range q.nodes {
		have := q.keys[asks.self.Account]
		if have == nil {
			have = map[roster.ID]bool{}
			q.keys[asks.self.Account] = have
		}
		if q.wrong[asks.self.Device] {
			continue // what a revoked device gets is not what its account gets
		}
		for id := range asks.keysHeld(q.conv) {
			have[id] = true
		}
		for _, p := range q.nodes {
			if p == asks {
				continue
			}
			var keys []*pb.GroupKeys
			p.view(func(tx *storage.Tx) (err error) { keys, err = p.g.KeysFor(tx, asks.self); return err })
			for _, k := range keys {
				for _, one := range k.Keys {
					have[roster.ID(one.Epoch)] = true
				}
			}
		}
	}
}

// sameAgain makes the random numbers of a run, of which the IDs of acts and so their order are made, those of its seed.
func sameAgain(outer *testing.T, t *rapid.T) {
	cryptotest.SetGlobalRandom(outer, rapid.Uint64().Draw(t, "random"))
}

func TestPartitionsAgreeAndKeysStay(outer *testing.T) {
	runs, most := 0, 14
	if os.Getenv("HIMA_LONG") != "" {
		most = 1 << 20
	}
	rapid.Check(outer, func(t *rapid.T) {
		if runs++; runs > most {
			return
		}
		sameAgain(outer, t)
		q := &quarrel{world: newWorld(t), t: t, keys: map[identity.AccountID]map[roster.ID]bool{}, wrong: map[identity.DeviceID]bool{}}
		defer q.close()
		alice, bob, carol, dave := q.person("alice"), q.person("bob"), q.person("carol"), q.person("dave")
		in, err := alice.g.Create(context.Background(), Options{Name: "quarrel", History: "all"})
		require.NoError(t, err)
		q.conv = in.ID
		for _, p := range []*peer{bob, carol} {
			alice.letsIn(q.conv, p)
		}
		bob2 := q.person("bob")
		bob.gives(bob2)
		q.meet()
		require.NoError(t, alice.g.Promote(context.Background(), q.conv, bob.self.Account))
		if rapid.Bool().Draw(t, "two admins") {
			require.NoError(t, alice.g.Promote(context.Background(), q.conv, carol.self.Account))
		}
		alice.letsIn(q.conv, dave)
		q.meet()
		for i := range rapid.IntRange(5, 30).Draw(t, "steps") {
			q.now = q.now.Add(time.Second)
			p := q.nodes[rapid.IntRange(0, len(q.nodes)-1).Draw(t, "who")]
			other := q.nodes[rapid.IntRange(0, len(q.nodes)-1).Draw(t, "other")]
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0:
				if p != other {
					p.gives(other)
				}
			case 1:
				q.act(p, other)
			default:
				if q.wrong[p.self.Device] {
					_, _ = p.text(q.conv, fmt.Sprintf("thief %03d", i)) // who may not know yet that they are out
					break
				}
				q.speak(p, i)
			}
			q.pry()
		}
		q.agree(t)
	})
	require.Positive(outer, runs)
}

// agree lets all meet and looks at what came of it.
func (q *quarrel) agree(t *rapid.T) {
	q.meet()
	q.meet()
	q.pry()
	var members []*peer
	for _, p := range q.nodes {
		v := p.rosterView(q.conv)
		if v.Role(p.self.Account) != roster.None && !q.wrong[p.self.Device] {
			members = append(members, p)
		}
	}
	if len(members) == 0 {
		return // whoever the group was handed to left at the same time, and the others went too
	}
	for _, p := range members[1:] {
		a, b := members[0].rosterView(q.conv), p.rosterView(q.conv)
		if a.Digest() != b.Digest() {
			t.Fatalf("two rosters: %s%s", members[0].dump(q.conv), p.dump(q.conv))
		}
	}
	v := members[0].rosterView(q.conv)
	for _, p := range members[1:] {
		require.Equal(t, members[0].texts(q.conv), p.texts(q.conv), "%s and %s", members[0].name, p.name)
	}
	for _, u := range q.said {
		for account, by := range u.gone {
			stands := func(id roster.ID) bool { return v.Void[id] == "" }
			if v.Role(account) != roster.None || !slices.ContainsFunc(by, stands) {
				continue // what put them out does not count, so that they may have come back, if only for a while
			}
			require.False(t, q.keys[account][u.epoch], "%q can be read by who was out", u.text)
		}
		for _, p := range q.nodes {
			if slices.Contains(u.revoked, p.self.Device) {
				require.NotContains(t, p.keysHeld(q.conv), u.epoch, "%q can be read by a lost device", u.text)
			}
		}
	}
	for _, p := range q.nodes {
		if v.Role(p.self.Account) == roster.None {
			continue
		}
		require.Equal(t, v.Dissolved, p.info(q.conv).State == StateDissolved, p.name)
	}
}

// Dave was removed by bob, and holds that carol removed bob, which would overrule it. That bob, elsewhere, removed carol, who is
// his junior, overrules that in turn: dave hears of it.
func TestRemovedHearsWhyItCounts(t *testing.T) {
	w := begin(t)
	ctx := context.Background()
	alice, bob, carol, dave := w.person("alice"), w.person("bob"), w.person("carol"), w.person("dave")
	bob2 := w.person("bob")
	conv := alice.create(Options{}, bob, carol, dave)
	bob.gives(bob2)
	for _, p := range []*peer{bob, carol} {
		require.NoError(t, alice.g.Promote(ctx, conv, p.self.Account))
		w.meet()
	}
	require.NoError(t, bob.g.Remove(ctx, conv, dave.self.Account))
	require.NoError(t, carol.g.Remove(ctx, conv, bob.self.Account))
	require.NoError(t, bob2.g.Remove(ctx, conv, carol.self.Account))
	carol.gives(dave)
	bob.gives(alice)
	bob2.gives(alice)
	w.meet(alice, dave)
	w.meet(alice, dave)
	v := alice.rosterView(conv)
	require.Equal(t, roster.None, v.Role(dave.self.Account))
	require.Equal(t, StateRemoved, dave.info(conv).State)
}

// What somebody said who left, and whose device was lost later, is everybody's who did not hear it before as well.
func TestLostDeviceOfSomebodyWhoLeft(t *testing.T) {
	w := begin(t)
	alice, bob, carol := w.person("alice"), w.person("bob"), w.person("carol")
	bob2 := w.person("bob")
	conv := alice.create(Options{History: "all"}, bob, carol)
	bob.gives(bob2)
	w.meet()
	bob.says(conv, "before")
	bob.gives(carol)
	bob.gives(bob2)
	require.NoError(t, bob2.g.Leave(context.Background(), conv))
	w.revoke(bob)
	w.meet(alice, carol, bob2)
	w.meet(alice, carol, bob2)
	require.Contains(t, carol.texts(conv), "before")
	require.Equal(t, carol.texts(conv), alice.texts(conv))
}

// Two halves of a group are apart for a day, add and remove people and talk; then they meet.
func TestTwoHalves(t *testing.T) {
	w := begin(t)
	ctx := context.Background()
	var all []*peer
	for _, name := range []string{"alice", "bob", "carol", "dave", "erin", "frank"} {
		all = append(all, w.person(name))
	}
	alice, bob, carol, dave, erin, frank := all[0], all[1], all[2], all[3], all[4], all[5]
	conv := alice.create(Options{History: "all"}, bob, carol, dave)
	require.NoError(t, alice.g.Promote(ctx, conv, carol.self.Account))
	w.meet()
	left, right := []*peer{alice, bob, erin}, []*peer{carol, dave, frank}
	alice.letsIn(conv, erin)
	carol.letsIn(conv, frank)
	w.meet(left...)
	w.meet(right...)
	for _, p := range all {
		p.says(conv, "hello from "+p.name)
		w.meet(left...)
		w.meet(right...)
	}
	require.NoError(t, alice.g.Remove(ctx, conv, dave.self.Account))
	require.NoError(t, carol.g.Remove(ctx, conv, bob.self.Account))
	w.now = w.now.Add(24 * time.Hour)
	alice.says(conv, "left again")
	carol.says(conv, "right again")
	w.meet()
	w.meet()
	members := []*peer{alice, carol, erin, frank}
	w.same(conv, members...)
	require.Equal(t, 4, alice.info(conv).Size)
	for _, p := range members {
		require.Equal(t, members[0].texts(conv), p.texts(conv), p.name)
		require.Contains(t, p.texts(conv), "left again")
		require.Contains(t, p.texts(conv), "right again")
	}
	require.Equal(t, StateRemoved, bob.info(conv).State)
	require.Equal(t, StateRemoved, dave.info(conv).State)
	e := erin.says(conv, "together")
	w.meet()
	for _, p := range members {
		require.Contains(t, p.keysHeld(conv), roster.ID(e.Epoch), p.name)
	}
	require.NotContains(t, bob.keysHeld(conv), roster.ID(e.Epoch))
	require.NotContains(t, dave.keysHeld(conv), roster.ID(e.Epoch))
}

// forge writes an act that an honest device would not write.
func (p *peer) forge(conv ID, a roster.Act, parents []roster.ID, proof []byte) feed.Entry {
	p.w.t.Helper()
	kind, content, err := encodeAct(a, proof)
	require.NoError(p.w.t, err)
	d := replica.Draft{Conversation: conv, Number: feed.Control, Kind: kind, Content: content}
	for _, id := range parents {
		d.Parents = append(d.Parents, feed.EntryID(id))
	}
	var out feed.Entry
	p.update(func(tx *storage.Tx) error {
		e, err := p.rep.Append(tx, d)
		if err == nil {
			out = e[0]
			err = p.g.fold(tx, conv, e)
		}
		return err
	})
	return out
}
