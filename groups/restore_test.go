package groups

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"hima/groups/roster"
	"hima/identity"
)

// remembered is what somebody's snapshot says of groups.
func (p *peer) remembered() (out []Remembered) {
	p.w.t.Helper()
	p.view(func(tx *txn) (err error) { out, err = p.g.Remembered(tx); return err })
	return out
}

// restored is a new device of somebody, with nothing but what a snapshot says.
func (p *peer) restored(groups []Remembered) *peer {
	p.w.t.Helper()
	q := p.w.person(p.name)
	q.restore(groups)
	return q
}

func (p *peer) restore(groups []Remembered) (taken int) {
	p.w.t.Helper()
	p.update(func(tx *txn) error {
		taken = 0
		for _, r := range groups {
			ok, err := p.g.Restore(tx, r)
			if err != nil {
				return err
			}
			if ok {
				taken++
			}
		}
		return nil
	})
	return taken
}

func (p *peer) keyHashes(conv ID) map[roster.ID][32]byte {
	out := map[roster.ID][32]byte{}
	for id, k := range p.keysHeld(conv) {
		out[id] = k.Hash()
	}
	return out
}

// A device made from the phrase gets roster, keys and history from others in the group, never having met an own device.
func TestRestoredDeviceComesBackIn(t *testing.T) {
	w := begin(t)
	alice, bob, carol := w.person("alice"), w.person("bob"), w.person("carol")
	conv := alice.create(Options{History: "none"}, bob)
	alice.says(conv, "before carol")
	bob.says(conv, "from the old device")
	w.meet()
	before := alice.rosterView(conv)
	old, _ := before.Current()
	alice.letsIn(conv, carol)
	w.meet()
	alice.says(conv, "among three")
	w.meet()
	for _, p := range []*peer{alice, carol} {
		p.news = nil
	}

	bob2, carol2 := bob.restored(bob.remembered()), carol.restored(carol.remembered())
	require.Equal(t, StateJoining, bob2.info(conv).State)
	require.Equal(t, "tea", bob2.info(conv).Name)
	require.Equal(t, bob.remembered(), bob2.remembered(), "lost again at once, nothing is lost")
	bob2.view(func(tx *txn) error { // so that it dials them, whether they know of the new device or not
		seen, err := bob2.g.circles(tx, []ID{conv})
		require.Equal(t, []identity.AccountID{alice.self.Account, carol.self.Account}, seen[conv].members)
		return err
	})
	w.meet(alice, carol, bob2)
	require.Equal(t, StateMember, bob2.info(conv).State)
	w.same(conv, alice, carol, bob2)
	require.Equal(t, []string{"among three", "before carol", "from the old device"}, bob2.texts(conv))
	require.Equal(t, alice.keyHashes(conv), bob2.keyHashes(conv), "all epochs since bob came in")
	bob2.says(conv, "from the new device")
	w.meet(alice, carol, bob2)
	require.Contains(t, alice.texts(conv), "from the new device")
	require.Contains(t, carol.texts(conv), "from the new device")
	require.Zero(t, alice.heard(NewsAdmitted)+alice.heard(NewsNickname), "nobody came in")

	// Who was let in later gets what they might have had, and no more.
	w.meet(alice, bob2, carol2)
	require.Equal(t, []string{"among three", "from the new device"}, carol2.texts(conv))
	require.Equal(t, carol.keyHashes(conv), carol2.keyHashes(conv))
	require.NotContains(t, carol2.keysHeld(conv), old.ID)
}

// That the old device was revoked meanwhile takes away what it said, not what the new one says.
func TestRestoredDeviceInPlaceOfARevokedOne(t *testing.T) {
	w := begin(t)
	alice, bob, carol := w.person("alice"), w.person("bob"), w.person("carol")
	conv := alice.create(Options{}, bob, carol)
	alice.says(conv, "hello")
	bob.says(conv, "from the old device")
	w.meet()
	bob2 := bob.restored(bob.remembered())
	w.revoke(bob)
	w.meet(alice, carol, bob2)
	require.Equal(t, StateMember, bob2.info(conv).State)
	require.Equal(t, []string{"hello"}, bob2.texts(conv))
	require.Equal(t, alice.keyHashes(conv), bob2.keyHashes(conv))
	bob2.says(conv, "back")
	bob.says(conv, "the thief")
	w.meet(alice, carol, bob2)
	bob.gives(carol)
	require.Contains(t, carol.texts(conv), "back")
	require.NotContains(t, carol.texts(conv), "the thief")
}

// What a snapshot of long ago says of a group is worth what the acts are: it ends as it did for the account.
func TestRestoredFromAnOldSnapshot(t *testing.T) {
	ctx := context.Background()
	for name, c := range map[string]struct {
		since func(w *world, conv ID, alice, bob *peer)
		state State
		news  NewsKind
	}{
		"left": {func(w *world, conv ID, _, bob *peer) { require.NoError(w.t, bob.g.Leave(ctx, conv)) }, StateLeft, NewsLeft},
		"removed": {func(w *world, conv ID, alice, bob *peer) {
			require.NoError(w.t, alice.g.Remove(ctx, conv, bob.self.Account))
		}, StateRemoved, NewsRemoved},
		"dissolved": {func(w *world, conv ID, alice, _ *peer) { require.NoError(w.t, alice.g.Dissolve(ctx, conv)) }, StateDissolved, NewsDissolved},
		"let in anew": {func(w *world, conv ID, alice, bob *peer) {
			require.NoError(w.t, alice.g.Remove(ctx, conv, bob.self.Account))
			w.meet()
			w.now = w.now.Add(time.Hour)
			alice.letsIn(conv, bob)
		}, StateMember, NewsJoined},
	} {
		t.Run(name, func(t *testing.T) {
			w := begin(t)
			alice, bob, carol := w.person("alice"), w.person("bob"), w.person("carol")
			conv := alice.create(Options{}, bob, carol)
			alice.says(conv, "then")
			w.meet()
			snapshot := bob.remembered()
			c.since(w, conv, alice, bob)
			w.meet()
			bob2 := bob.restored(snapshot)
			w.meet(alice, carol, bob2)
			require.Equal(t, c.state, bob2.info(conv).State)
			require.Equal(t, 1, bob2.heard(c.news), "%v", bob2.news)
			if c.state == StateMember {
				bob2.says(conv, "now")
				w.meet(alice, carol, bob2)
				require.Contains(t, carol.texts(conv), "now")
				return
			}
			_, err := bob2.text(conv, "but")
			require.Error(t, err)
			require.Empty(t, bob2.remembered())
			require.Zero(t, bob2.restore(snapshot), "a second time")
			require.Equal(t, c.state, bob2.info(conv).State)
		})
	}
}

// Somebody who did not hear that the account was let in anew brings its removal first: that is not the end.
func TestRestoredByOneWhoIsBehind(t *testing.T) {
	w := begin(t)
	alice, bob, carol := w.person("alice"), w.person("bob"), w.person("carol")
	conv := alice.create(Options{}, bob, carol)
	snapshot := bob.remembered()
	require.NoError(t, alice.g.Remove(context.Background(), conv, bob.self.Account))
	w.meet()
	w.now = w.now.Add(time.Hour)
	alice.letsIn(conv, bob)
	alice.gives(bob)
	bob2 := bob.restored(snapshot)
	w.meet(carol, bob2)
	require.Equal(t, StateRemoved, bob2.info(conv).State)
	alice.gives(bob2)
	require.Equal(t, StateMember, bob2.info(conv).State)
	require.Equal(t, 1, bob2.heard(NewsJoined), "%v", bob2.news)
	bob2.says(conv, "now")
	w.meet(alice, carol, bob2)
	require.Contains(t, carol.texts(conv), "now")
}

// Nonsense, and what is known better here, changes nothing.
func TestRestoreLeavesOut(t *testing.T) {
	w := begin(t)
	alice, bob := w.person("alice"), w.person("bob")
	alone, conv := alice.create(Options{Name: "alone"}), alice.create(Options{}, bob)
	require.Len(t, alice.remembered(), 1, "a group of one is nowhere else")
	require.Zero(t, bob.restore([]Remembered{
		{Members: []identity.AccountID{alice.self.Account}},
		{Group: alone},
		{Group: alone, Members: []identity.AccountID{bob.self.Account, {}}},
		{Group: conv, Name: "coffee", Members: []identity.AccountID{alice.self.Account}},
	}))
	require.Equal(t, "tea", bob.info(conv).Name)
	require.Equal(t, StateMember, bob.info(conv).State)
	bob.view(func(tx *txn) error {
		is, err := bob.g.Is(tx, alone)
		require.False(t, is)
		return err
	})
	// Somebody who never was in gets nothing by saying so.
	mallory := w.person("mallory")
	require.Equal(t, 1, mallory.restore([]Remembered{{Group: conv, Members: []identity.AccountID{alice.self.Account}}}))
	w.meet(alice, mallory)
	require.Equal(t, StateJoining, mallory.info(conv).State)
	require.Empty(t, mallory.rosterView(conv).People)
}

// Members of whom no device is known are looked for, one of each group first.
func TestMembersAreSought(t *testing.T) {
	w := begin(t)
	p := w.person("alice")
	a, b, c, known := w.person("a").self.Account, identity.AccountID{1}, identity.AccountID{2}, w.person("known").self.Account
	var sought []identity.AccountID
	p.g.parts.Devices = func(x identity.AccountID) []identity.DeviceID {
		if x == known {
			return []identity.DeviceID{{1}}
		}
		return nil
	}
	p.g.parts.Seek = func(_ context.Context, x identity.AccountID) { sought = append(sought, x) }
	p.g.seekAll(t.Context(), map[ID][]identity.AccountID{{1}: {a, b}, {2}: {a, c}, {3}: {known}})
	require.Len(t, sought, 3)
	require.Equal(t, a, sought[0])
	require.ElementsMatch(t, []identity.AccountID{a, b, c}, sought)
}

// Over sessions, with all that goes on by itself.
func TestRestoredDeviceMeetsMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVillage(t, 4)
		alice, bob, carol := v.villager("alice", 0), v.villager("bob", 1), v.villager("carol", 2)
		conv := v.found(alice.up(), bob.up(), carol.up())
		bob.text(conv, "from the old device")
		v.until("carol reads", time.Minute, func() bool { return carol.has(conv, "from the old device") })
		var snapshot []Remembered
		require.NoError(t, bob.db.View(func(tx *txn) (err error) { snapshot, err = bob.g.Remembered(tx); return err }))
		bob.down()

		again := v.villager("bob", 3).up()
		require.NoError(t, again.db.Update(t.Context(), func(tx *txn) error {
			_, err := again.g.Restore(tx, snapshot[0])
			return err
		}))
		v.until("bob is in", 2*time.Minute, func() bool { return again.state(conv) == StateMember })
		v.until("bob reads", time.Minute, func() bool { return again.has(conv, "hello") })
		again.text(conv, "back")
		v.until("alice reads", time.Minute, func() bool { return alice.has(conv, "back") })
		again.down()
		alice.down()
		carol.down()
	})
}
