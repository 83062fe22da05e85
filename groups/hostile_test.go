package groups

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/groups/roster"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// A member that writes nickname acts without end fills its own feed and nothing else: it is told of, and can be removed.
func TestActFlood(t *testing.T) {
	w := begin(t)
	ctx := context.Background()
	l := Limits{Acts: 120, MemberActs: 60, ActBurst: 40, ActRate: 0.001}
	alice, bob, mallory := w.person("alice", l), w.person("bob", l), w.person("mallory", l)
	conv := alice.create(Options{}, bob, mallory)
	mallory.g.cfg.Limits.MemberActs = 1 << 20
	for i := range 200 {
		require.NoError(t, mallory.g.Set(ctx, conv, SettingNickname, fmt.Sprint("m", i)))
		mallory.gives(alice)
	}
	w.meet()
	v := alice.rosterView(conv)
	require.Equal(t, 3, len(v.People))
	gr, _, err := open(alice, conv)
	require.NoError(t, err)
	require.LessOrEqual(t, gr.size(), 120)
	require.Equal(t, 1, alice.heard(NewsFlood))
	require.NoError(t, alice.g.Remove(ctx, conv, mallory.self.Account))
	require.NoError(t, alice.g.Set(ctx, conv, "name", "quiet"))
	alice.says(conv, "still here")
	w.meet()
	w.same(conv, alice, bob)
	require.Equal(t, []string{"still here"}, bob.texts(conv))
}

func open(p *peer, conv ID) (gr *group, s *snapshot, err error) {
	err = p.db.View(func(tx *storage.Tx) error {
		gr, s, err = p.g.open(tx, conv, false)
		return err
	})
	return gr, s, err
}

// Acts that name what does not exist wait, in bounded number, and change nothing of what is taken of others.
func TestActsWithoutAncestors(t *testing.T) {
	w := begin(t)
	alice, bob, mallory := w.person("alice"), w.person("bob"), w.person("mallory")
	conv := alice.create(Options{}, bob, mallory)
	for i := range 20 {
		mallory.forge(conv, roster.Act{Kind: roster.Nickname, Value: "x"}, []roster.ID{{1, byte(i)}}, nil)
	}
	w.meet()
	gr, _, err := open(alice, conv)
	require.NoError(t, err)
	require.Equal(t, 20, gr.roster.Waiting())
	require.NoError(t, alice.g.Remove(context.Background(), conv, bob.self.Account))
	// Bob goes on; what he does now goes nowhere although acts wait.
	for range 3 {
		bob.forge(conv, roster.Act{Kind: roster.Nickname, Value: "ghost"}, nil2(bob, conv), nil)
	}
	w.meet(alice, bob, mallory)
	e := alice.says(conv, "on we go")
	w.meet()
	require.Equal(t, []string{"on we go"}, mallory.texts(conv))
	require.NotContains(t, bob.keysHeld(conv), roster.ID(e.Epoch))
	w.same(conv, alice, mallory)
	v := alice.rosterView(conv)
	require.Equal(t, roster.None, v.Role(bob.self.Account))
}

func nil2(p *peer, conv ID) []roster.ID {
	gr, _, err := open(p, conv)
	require.NoError(p.w.t, err)
	gr.mu.Lock()
	defer gr.mu.Unlock()
	return gr.roster.Heads()
}

// Forged rights: a member's removals, roles and settings count for nothing anywhere.
func TestForgedActs(t *testing.T) {
	w := begin(t)
	alice, bob, mallory := w.person("alice"), w.person("bob"), w.person("mallory")
	conv := alice.create(Options{}, bob, mallory)
	alice.says(conv, "before")
	w.meet()
	heads := func() []roster.ID { return nil2(mallory, conv) }
	eve := w.person("eve")
	c, err := eve.g.consents(conv, false, "", eve.g.now())
	require.NoError(t, err)
	other, err := eve.g.consents(ID{5}, false, "", eve.g.now())
	require.NoError(t, err)
	for _, a := range []roster.Act{
		{Kind: roster.Remove, Account: bob.self.Account},
		{Kind: roster.SetRole, Account: mallory.self.Account, Role: roster.Admin},
		{Kind: roster.Set, Key: "name", Value: "mine"},
		{Kind: roster.Dissolve},
		{Kind: roster.NewEpoch, Generation: 1 << 60, KeyHash: [32]byte{1}},
	} {
		mallory.forge(conv, a, heads(), nil)
	}
	mallory.forge(conv, roster.Act{Kind: roster.Admit, Account: eve.self.Account}, heads(), c.Raw())
	mallory.forge(conv, roster.Act{Kind: roster.Admit, Account: eve.self.Account}, heads(), other.Raw())
	mallory.forge(conv, roster.Act{Kind: roster.Transfer, Account: mallory.self.Account}, heads(), []byte("no proof"))
	w.meet(alice, bob, mallory)
	w.same(conv, alice, bob, mallory)
	in := alice.info(conv)
	require.Equal(t, "tea", in.Name)
	require.Equal(t, 3, in.Size)
	require.Equal(t, StateMember, in.State)
	require.Equal(t, alice.self.Account, in.Owner)
	require.Positive(t, alice.heard(NewsVoid))
	e := alice.says(conv, "after")
	a, _ := alice.rosterView(conv), 0
	cur, ok := a.Current()
	require.True(t, ok)
	require.Equal(t, cur.ID, roster.ID(e.Epoch))
	require.Equal(t, uint64(1), cur.Generation)
}

// Chat under an epoch that is unknown, of another group, or not for its author is not taken.
func TestReplaysAndStrangeEpochs(t *testing.T) {
	w := begin(t)
	alice, bob := w.person("alice"), w.person("bob")
	one, two := alice.create(Options{Name: "one"}, bob), alice.create(Options{Name: "two"}, bob)
	said := alice.says(one, "in one")
	alice.says(two, "in two")
	w.meet()
	before := bob.texts(two)
	alice.update(func(tx *storage.Tx) error {
		_, err := alice.rep.Append(tx, replica.Draft{Conversation: two, Number: feed.Chat, Kind: feed.KindText, Content: []byte("x"), Epoch: said.Epoch})
		return err
	})
	alice.gives(bob)
	require.Equal(t, before, bob.texts(two))
	bob.update(func(tx *storage.Tx) error {
		_, err := bob.rep.Append(tx, replica.Draft{Conversation: two, Number: feed.Chat, Kind: feed.KindText, Content: []byte("y")})
		return err
	})
	bob.gives(alice)
	require.NotContains(t, alice.texts(two), "y")
	// Keys that are not the epoch's are not kept, early ones are bounded and unused.
	k := &pb.GroupKeys{Group: two[:], Keys: []*pb.GroupKey{{Epoch: said.Epoch, Key: make([]byte, 32)}}}
	n := len(bob.keysHeld(two))
	require.NoError(t, bob.g.TookKeys(context.Background(), alice.self, k))
	require.Len(t, bob.keysHeld(two), n)
	for i := range 200 {
		k.Keys[0].Epoch = append([]byte{byte(i)}, make([]byte, 31)...)
		require.NoError(t, bob.g.TookKeys(context.Background(), alice.self, k))
	}
	require.Len(t, bob.keysHeld(two), n)
	early := 0
	bob.view(func(tx *storage.Tx) error {
		return tx.Scan(storage.ScanOptions{Prefix: key(keyEarly, two[:])}, func(_, _ []byte) (bool, error) { early++; return true, nil })
	})
	require.LessOrEqual(t, early, 4*maxKeys)
	require.ErrorIs(t, bob.g.TookKeys(context.Background(), alice.self, &pb.GroupKeys{Group: []byte("short")}), replica.ErrProtocol)
}

// What strangers say never fills what is kept for others, and none of it changes a roster.
func TestStrangersAtTheDoor(t *testing.T) {
	w := begin(t)
	l := Limits{Applications: 5, Invitations: 32, Automatic: 3}
	alice := w.person("alice", l)
	public := alice.create(Options{Public: true})
	for i := range 40 {
		p := w.person(fmt.Sprint("stranger ", i))
		_, err := p.g.Apply(context.Background(), target(public, alice), "me")
		require.NoError(t, err)
		w.deliver()
	}
	require.Equal(t, 5, alice.info(public).Applications)
	require.Equal(t, 1, alice.info(public).Size)
	for i := range 40 { // one inviter into groups that do not exist
		m := &pb.GroupInvitation{Group: append([]byte{byte(i + 1)}, make([]byte, 31)...), Name: "x", ExpiresMs: w.now.UnixMilli() + 1e9}
		content, err := marshal(m)
		require.NoError(t, err)
		alice.update(func(tx *storage.Tx) error {
			return alice.g.Said(tx, w.nodes[1].self.Account, alice.self.Account, feed.KindGroupInvitation, content, w.now)
		})
	}
	var in []Invitation
	alice.view(func(tx *storage.Tx) (err error) { in, err = alice.g.Invitations(tx); return err })
	require.Len(t, in, 2)
	open := alice.create(Options{Name: "open", Join: "open", Public: true})
	for _, p := range w.nodes[1:10] {
		_, err := p.g.Apply(context.Background(), target(open, alice), "")
		require.NoError(t, err)
		w.deliver()
	}
	require.Equal(t, 4, alice.info(open).Size)
	require.Equal(t, 5, alice.info(open).Applications)
}

// An admin replaces an epoch whose key nobody hands over.
func TestKeylessEpoch(t *testing.T) {
	w := begin(t)
	ctx := context.Background()
	alice, bob, mallory := w.person("alice"), w.person("bob"), w.person("mallory")
	conv := alice.create(Options{}, bob, mallory)
	require.NoError(t, bob.g.Leave(ctx, conv))
	bob.gives(mallory)
	mallory.forge(conv, roster.Act{Kind: roster.NewEpoch, Generation: 1, KeyHash: [32]byte{1}}, nil2(mallory, conv), nil)
	w.meet()
	v := alice.rosterView(conv)
	e, ok := v.Current()
	require.True(t, ok)
	require.NotContains(t, alice.keysHeld(conv), e.ID)
	health := func() (all []Health) {
		alice.view(func(tx *txn) (err error) { all, err = alice.g.Health(tx); return err })
		return all
	}
	require.Equal(t, []Health{{Group: conv, Keyless: true}}, health())
	alice.g.lookAfter(ctx)
	w.now = w.now.Add(2 * keylessPause)
	alice.g.lookAfter(ctx)
	v = alice.rosterView(conv)
	next, ok := v.Current()
	require.True(t, ok)
	require.NotEqual(t, e.ID, next.ID)
	require.Contains(t, alice.keysHeld(conv), next.ID)
	require.Equal(t, []Health{{Group: conv}}, health())
}

// A change that was discarded leaves nothing behind in memory, and a group that was put out of memory comes back the same.
func TestDiscardedChange(t *testing.T) {
	w := begin(t)
	alice, bob := w.person("alice"), w.person("bob")
	conv := alice.create(Options{}, bob)
	v := alice.rosterView(conv)
	boom := fmt.Errorf("discarded")
	err := alice.db.Update(context.Background(), func(tx *storage.Tx) error {
		if err := alice.g.act(tx, conv, roster.Act{Kind: roster.Set, Key: "name", Value: "never"}, nil); err != nil {
			return err
		}
		in, err := alice.g.Info(tx, conv)
		require.NoError(t, err)
		require.Equal(t, "never", in.Name, "a transaction sees its own change")
		return boom
	})
	require.ErrorIs(t, err, boom)
	require.Equal(t, "tea", alice.info(conv).Name)
	require.NoError(t, alice.g.Set(context.Background(), conv, "description", "d"))
	require.Equal(t, "tea", alice.info(conv).Name)
	clear(alice.g.cache.groups)
	require.Equal(t, "d", alice.info(conv).Description)
	clear(alice.g.cache.groups)
	after := alice.rosterView(conv)
	require.NotEqual(t, v.Digest(), after.Digest())
	w.meet()
	w.same(conv, alice, bob)
}

// Of a feed with two branches nothing counts from there on.
func TestFork(t *testing.T) {
	w := begin(t)
	alice, bob := w.person("alice"), w.person("bob")
	conv := alice.create(Options{}, bob)
	ctx := context.Background()
	require.NoError(t, bob.g.Set(ctx, conv, SettingNickname, "one"))
	require.NoError(t, bob.g.Set(ctx, conv, SettingNickname, "two"))
	w.meet()
	fork := func(at uint64) {
		alice.update(func(tx *storage.Tx) error {
			return alice.g.Forked(tx, replica.Fork{Feed: feed.FeedID{Conversation: conv, Number: feed.Control, Device: bob.self.Device}, At: at})
		})
	}
	fork(2)
	v := alice.rosterView(conv)
	p, _ := person(&v, bob.self.Account)
	require.Equal(t, "one", p.Nickname)
	fork(1)
	fork(2)
	v = alice.rosterView(conv)
	p, _ = person(&v, bob.self.Account)
	require.Empty(t, p.Nickname)
	require.Equal(t, 2, alice.heard(NewsFork))
	require.NoError(t, alice.g.Remove(ctx, conv, bob.self.Account))
}

func TestUnknownControlKindIsReadOnly(t *testing.T) {
	w := begin(t)
	alice, bob := w.person("alice"), w.person("bob")
	conv := alice.create(Options{}, bob)
	alice.update(func(tx *storage.Tx) error {
		_, err := alice.rep.Append(tx, replica.Draft{Conversation: conv, Number: feed.Control, Kind: 99, Content: []byte("new")})
		return err
	})
	w.meet()
	require.True(t, bob.info(conv).ReadOnly)
	_, err := bob.text(conv, "x")
	require.ErrorIs(t, err, ErrReadOnly)
	require.ErrorIs(t, bob.g.Leave(context.Background(), conv), ErrReadOnly)
	require.Equal(t, 1, bob.heard(NewsReadOnly))
}

// TestAdminsMayActMore: the acts that say who is an admin come first, and count by what is known then.
func TestAdminsMayActMore(t *testing.T) {
	r := &rates{at: map[rateKey]*bucket{}}
	now, k := time.Now(), rateKey{control: true}
	take := func(n int, burst float64) bool { ok, _ := r.take(k, n, 0, burst, now); return ok }
	require.True(t, take(10, 10))
	require.False(t, take(1, 10))
	require.True(t, take(90, 100), "ten were taken of a hundred")
	require.False(t, take(1, 100))
	require.False(t, take(1, 10))
	require.False(t, take(1, 100), "to be made an admin again is worth nothing more")
}
