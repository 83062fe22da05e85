package groups

import (
	"context"
	"crypto/sha256"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/groups/roster"
	"hima/identity"
	"hima/storage"
)

// square is where the people of a world tell each other of groups, instead of a directory on a network.
type square struct {
	at    map[identity.DeviceID]*stall
	asked int
}

// stall is what one device tells there.
type stall struct {
	s       *square
	told    map[identity.GroupID]identity.GroupCard
	publish map[identity.GroupID]bool
	away    bool
	lie     []identity.GroupCard // told besides, whatever is asked
}

func (w *world) square() *square {
	s := &square{at: map[identity.DeviceID]*stall{}}
	for _, p := range w.nodes {
		st := &stall{s: s, told: map[identity.GroupID]identity.GroupCard{}, publish: map[identity.GroupID]bool{}}
		s.at[p.self.Device] = st
		p.g.parts.Directory = st
		p.g.board.ask = func(int, func(i, j int)) {}
	}
	return s
}

func (st *stall) PublishGroup(c identity.GroupCard) error {
	st.told[c.Group], st.publish[c.Group] = c, true
	return nil
}

func (st *stall) AnswerGroup(c identity.GroupCard) error {
	st.told[c.Group], st.publish[c.Group] = c, false
	return nil
}

func (st *stall) UnpublishGroup(g identity.GroupID) { delete(st.told, g); delete(st.publish, g) }

func (st *stall) AskGroup(_ context.Context, dev identity.DeviceID, name string) ([]identity.GroupCard, error) {
	st.s.asked++
	other := st.s.at[dev]
	if other == nil || other.away {
		return nil, context.DeadlineExceeded
	}
	return append(other.tells(name), other.lie...), nil
}

func (st *stall) tells(name string) (out []identity.GroupCard) {
	for _, c := range st.told {
		if strings.EqualFold(c.Name, name) {
			out = append(out, c)
		}
	}
	return out
}

// posts lets everybody look after what they tell.
func (w *world) posts(peers ...*peer) {
	for _, p := range peers {
		p.g.postAll(context.Background())
	}
}

func (p *peer) tells(conv ID) (identity.GroupCard, bool) {
	c, ok := p.g.parts.Directory.(*stall).told[identity.GroupID(conv)]
	return c, ok
}

func (p *peer) keepsCard(conv ID) (ok bool) {
	p.view(func(tx *storage.Tx) (err error) { ok, err = tx.Has(key(keyCard, conv[:])); return err })
	return ok
}

func (p *peer) sets(conv ID, name, value string) {
	p.w.t.Helper()
	require.NoError(p.w.t, p.g.Set(context.Background(), conv, name, value))
}

func TestPublicGroupIsTold(t *testing.T) {
	w := begin(t)
	alice, bob, carol, dave := w.person("alice"), w.person("bob"), w.person("carol"), w.person("dave")
	s := w.square()
	conv := alice.create(Options{Name: "Go Users", Description: strings.Repeat("葵", 500), Public: true}, bob, carol)
	require.NoError(t, alice.g.Promote(context.Background(), conv, bob.self.Account))
	w.meet()
	w.posts(alice, bob, carol, dave)

	card, ok := alice.tells(conv)
	require.True(t, ok)
	got, err := identity.ParseGroupCard(card.Raw())
	require.NoError(t, err, "what the feeds hold as genesis is what a card takes as one")
	require.Equal(t, identity.GroupID(conv), got.Group)
	require.Equal(t, alice.self.Account, got.Account)
	require.Equal(t, "Go Users", got.Name)
	require.Equal(t, "apply", got.Join)
	require.EqualValues(t, 3, got.Size)
	require.Len(t, got.Description, identity.MaxCardDescription-1, "cut between two characters")
	require.Equal(t, got.Time.Add(identity.GroupCardLifetime), got.Expires)
	var admins []identity.AccountID
	for _, a := range got.Admins {
		admins = append(admins, a.Account)
	}
	require.Equal(t, []identity.AccountID{alice.self.Account, bob.self.Account}, admins, "no plain member")

	for _, p := range []*peer{bob, carol} {
		c, ok := p.tells(conv)
		require.True(t, ok, p.name)
		require.Equal(t, card, c)
	}
	require.True(t, s.at[bob.self.Device].publish[card.Group], "an admin says so on networks")
	require.False(t, s.at[carol.self.Device].publish[card.Group], "a member answers only")
	_, ok = dave.tells(conv)
	require.False(t, ok)

	// The owner is gone for days: those who hold the card tell of it, also after a restart, until it expires.
	s.at[alice.self.Device].away = true
	w.now = w.now.Add(6 * 24 * time.Hour)
	carol.g.board = newNoticeboard()
	delete(s.at[carol.self.Device].told, card.Group)
	w.posts(bob, carol)
	c, ok := carol.tells(conv)
	require.True(t, ok)
	require.Equal(t, card, c)
	w.now = w.now.Add(2*24*time.Hour + time.Minute)
	w.posts(bob, carol)
	for _, p := range []*peer{bob, carol} {
		_, ok := p.tells(conv)
		require.False(t, ok, p.name)
	}
	s.at[alice.self.Device].away = false
	w.now = w.now.Add(2 * time.Hour)
	w.posts(alice, bob, carol)
	again, _ := alice.tells(conv)
	require.True(t, again.Supersedes(card))
	c, ok = carol.tells(conv)
	require.True(t, ok)
	require.Equal(t, again, c)
}

// Of a private group nothing is told, made or kept, from the moment on at which the roster says so.
func TestPrivateGroupIsNotTold(t *testing.T) {
	w := begin(t)
	alice, bob, carol := w.person("alice"), w.person("bob"), w.person("carol")
	s := w.square()
	conv := alice.create(Options{Name: "tea"}, bob, carol)
	require.NoError(t, alice.g.Promote(context.Background(), conv, bob.self.Account))
	w.meet()
	nobody := func(what string) {
		t.Helper()
		for _, p := range w.nodes {
			_, ok := p.tells(conv)
			require.False(t, ok, "%s: %s", what, p.name)
			require.False(t, p.keepsCard(conv), "%s: %s", what, p.name)
		}
	}
	w.posts(w.nodes...)
	nobody("private from the beginning")
	require.Zero(t, s.asked, "nobody is asked for it either")

	alice.sets(conv, roster.SettingPublic, "yes")
	w.meet()
	w.posts(w.nodes...)
	for _, p := range w.nodes {
		_, ok := p.tells(conv)
		require.True(t, ok, p.name)
	}
	old, _ := alice.tells(conv)
	// An admin ends it while the owner is away: whoever heard says nothing more, whatever card is offered.
	bob.sets(conv, roster.SettingPublic, "no")
	bob.gives(carol)
	s.at[alice.self.Device].lie = []identity.GroupCard{old}
	w.posts(bob, carol)
	for _, p := range []*peer{bob, carol} {
		_, ok := p.tells(conv)
		require.False(t, ok, p.name)
		require.False(t, p.keepsCard(conv), p.name)
	}
	w.meet()
	w.posts(w.nodes...)
	nobody("private again")
}

// Whoever is not in any more tells of nothing, and a group that ended is told of by nobody.
func TestWhoGoesTellsNothing(t *testing.T) {
	w := begin(t)
	alice, bob, carol := w.person("alice"), w.person("bob"), w.person("carol")
	w.square()
	conv := alice.create(Options{Name: "tea", Public: true}, bob, carol)
	w.posts(alice, bob, carol)
	ctx := context.Background()
	require.NoError(t, bob.g.Leave(ctx, conv))
	require.NoError(t, alice.g.Remove(ctx, conv, carol.self.Account))
	w.meet()
	w.posts(alice, bob, carol)
	for _, p := range []*peer{bob, carol} {
		_, ok := p.tells(conv)
		require.False(t, ok, p.name)
		require.False(t, p.keepsCard(conv), p.name)
	}
	_, ok := alice.tells(conv)
	require.True(t, ok)
	require.NoError(t, alice.g.Dissolve(ctx, conv))
	w.posts(alice)
	_, ok = alice.tells(conv)
	require.False(t, ok)
}

// A newer version may have made the group private: who cannot know tells nothing (R10).
func TestReadOnlyGroupIsNotTold(t *testing.T) {
	w := begin(t)
	alice := w.person("alice")
	w.square()
	conv := alice.create(Options{Name: "tea", Public: true})
	w.posts(alice)
	_, ok := alice.tells(conv)
	require.True(t, ok)
	alice.update(func(tx *storage.Tx) error {
		row, _, err := getRow[groupRow](tx, groupKey(conv))
		row.ReadOnly = true
		if err == nil {
			err = putRow(tx, groupKey(conv), row)
		}
		return err
	})
	w.posts(alice)
	_, ok = alice.tells(conv)
	require.False(t, ok)
}

func TestCardAfterTransfers(t *testing.T) {
	w := begin(t)
	alice, bob, carol := w.person("alice"), w.person("bob"), w.person("carol")
	s := w.square()
	conv := alice.create(Options{Name: "tea", Public: true}, bob, carol)
	w.posts(alice, bob, carol)
	old, _ := alice.tells(conv)
	ctx := context.Background()
	for _, step := range [][2]*peer{{alice, bob}, {bob, alice}, {alice, bob}, {bob, carol}} {
		require.NoError(t, step[0].g.Transfer(ctx, conv, step[1].self.Account))
		w.meet()
	}
	w.now = w.now.Add(3 * time.Hour)
	// The former owner shows the old card to whoever asks for the new one.
	s.at[alice.self.Device].lie = []identity.GroupCard{old}
	w.posts(carol, bob, alice)
	card, ok := carol.tells(conv)
	require.True(t, ok)
	require.Equal(t, carol.self.Account, card.Account)
	require.Len(t, card.Transfers, 2, "the shortest way from the founder")
	require.True(t, card.Supersedes(old))
	_, err := identity.ParseGroupCard(card.Raw())
	require.NoError(t, err)
	for _, p := range []*peer{alice, bob} {
		c, ok := p.tells(conv)
		require.True(t, ok, p.name)
		require.Equal(t, card, c, p.name)
		require.True(t, s.at[p.self.Device].publish[card.Group], p.name)
	}
	// A transfer that turned out void proves nothing.
	require.Empty(t, transferPath(alice.self.Account, bob.self.Account, nil))
}

func TestCardIsRenewed(t *testing.T) {
	w := begin(t)
	alice, bob, carol := w.person("alice"), w.person("bob"), w.person("carol")
	w.square()
	conv := alice.create(Options{Name: "tea", Public: true}, bob)
	card := func() identity.GroupCard {
		t.Helper()
		w.posts(alice)
		c, ok := alice.tells(conv)
		require.True(t, ok)
		return c
	}
	first := card()
	w.now = w.now.Add(time.Hour)
	require.Equal(t, first, card(), "nothing changed")
	alice.letsIn(conv, carol)
	require.Equal(t, first, card(), "a size alone can wait")
	w.now = w.now.Add(cardSize)
	second := card()
	require.EqualValues(t, 3, second.Size)
	alice.sets(conv, roster.SettingName, "coffee")
	third := card()
	require.Equal(t, "coffee", third.Name)
	alice.sets(conv, roster.SettingJoin, "open")
	require.Equal(t, "open", card().Join)
	w.meet()
	w.posts(bob)
	require.NoError(t, alice.g.Promote(context.Background(), conv, bob.self.Account))
	w.meet()
	w.posts(bob) // before the owner's device has signed a new one
	c, _ := bob.tells(conv)
	require.Len(t, c.Admins, 1)
	require.Len(t, card().Admins, 2)
	before := card()
	w.now = w.now.Add(2 * cardSoonAgain)
	w.posts(bob)
	c, _ = bob.tells(conv)
	require.Equal(t, before, c, "a card that is outdated by the roster is replaced soon")
	asked := alice.g.parts.Directory.(*stall).s.asked
	w.now = w.now.Add(time.Hour)
	w.posts(bob)
	require.Equal(t, asked, alice.g.parts.Directory.(*stall).s.asked, "one that is right is left for a day")
	w.now = w.now.Add(cardRenew)
	require.True(t, card().Supersedes(before))

	// After a restart the card of before is told, and not another signed.
	before = card()
	alice.g.board = newNoticeboard()
	delete(alice.g.parts.Directory.(*stall).told, before.Group)
	require.Equal(t, before, card())
}

// What others offer as the owner's card is believed only if the group says so too.
func TestForeignCards(t *testing.T) {
	w := begin(t)
	alice, bob, mallory := w.person("alice"), w.person("bob"), w.person("mallory")
	s := w.square()
	conv := alice.create(Options{Name: "tea", Public: true}, bob, mallory)
	other := mallory.create(Options{Name: "tea", Public: true})
	w.posts(mallory, alice)
	card, _ := alice.tells(conv)
	foreign, _ := mallory.tells(other)
	s.at[alice.self.Device].away = true

	// Made by the owner's key, but not what the group says: another name, or too early.
	forge := func(change func(*identity.GroupCard)) identity.GroupCard {
		c := card
		change(&c)
		c, err := identity.NewGroupCard(alice.key, c)
		require.NoError(t, err)
		return c
	}
	renamed := forge(func(c *identity.GroupCard) { c.Name = "Tea" })
	future := forge(func(c *identity.GroupCard) {
		c.Time, c.Expires = c.Time.AddDate(0, 0, 3), c.Expires.AddDate(0, 0, 3)
	})
	// Somebody to whom the owner gave a transfer that never was an act.
	proof, err := identity.NewTransferProof(alice.key, identity.TransferProof{
		Group: card.Group, To: mallory.self.Account, Certificate: w.certs[alice.self.Account][0], Time: w.now,
	})
	require.NoError(t, err)
	heir := card
	heir.Transfers, heir.Certificate = []identity.TransferProof{proof}, w.certs[mallory.self.Account][0]
	heir.Time = heir.Time.Add(time.Minute)
	heir, err = identity.NewGroupCard(mallory.key, heir)
	require.NoError(t, err)
	s.at[mallory.self.Device].lie = []identity.GroupCard{renamed, future, heir, foreign}
	w.posts(bob)
	_, ok := bob.tells(conv)
	require.False(t, ok)
	require.False(t, bob.keepsCard(conv))

	// Asked at most once in a while.
	n := s.asked
	w.posts(bob)
	require.Equal(t, n, s.asked)
	w.now = w.now.Add(2 * cardAgain)
	s.at[mallory.self.Device].lie = append(s.at[mallory.self.Device].lie, card)
	w.posts(bob)
	got, ok := bob.tells(conv)
	require.True(t, ok)
	require.Equal(t, card, got, "the real one, from whoever has it")

	// A card of a device that its owner revoked is told no more, and no other device's is there yet.
	w.person("alice")
	w.revoke(alice)
	w.posts(bob)
	_, ok = bob.tells(conv)
	require.False(t, ok)
}

func TestTransferPath(t *testing.T) {
	who := func(i byte) identity.AccountID { return sha256.Sum256([]byte{i}) }
	hop := func(a, b byte) identity.TransferProof { return identity.TransferProof{From: who(a), To: who(b)} }
	path := func(owner byte, proofs ...identity.TransferProof) (out []identity.AccountID) {
		for _, p := range transferPath(who(1), who(owner), proofs) {
			out = append(out, p.To)
		}
		return out
	}
	require.Empty(t, path(1, hop(1, 2), hop(2, 1)))
	require.Equal(t, []identity.AccountID{who(2)}, path(2, hop(1, 2)))
	require.Equal(t, []identity.AccountID{who(2), who(3)}, path(3, hop(1, 2), hop(2, 4), hop(4, 2), hop(2, 3)))
	require.Equal(t, []identity.AccountID{who(3)}, path(3, hop(1, 2), hop(2, 1), hop(1, 3), hop(2, 3)))
	require.Empty(t, path(3, hop(1, 2)))
	require.Empty(t, path(3, hop(2, 3)))
	require.Equal(t, "葵", cutText("葵花", 5))
	require.Equal(t, "葵花", cutText("葵花", 6))
}

// Every kind of row has keys of its own: one under the keys of another is read, and erased, as such.
func TestKeysAreApart(t *testing.T) {
	all := []string{
		keyGroup, keyCount, keyAct, keyMember, keyEpoch, keyFirst, keyOwn, keyKey, keyEarly, keyInvite, keyApply, keyLink, keyNick, keyCard, keyLog,
	}
	for i, a := range all {
		for _, b := range all[:i] {
			require.False(t, strings.HasPrefix(a, b) || strings.HasPrefix(b, a), "%s and %s", a, b)
		}
	}
}
