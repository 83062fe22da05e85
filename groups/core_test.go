package groups

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/groups/roster"
	"hima/internal/feed"
)

func TestCreateInviteTalk(t *testing.T) {
	w := begin(t)
	alice, bob, carol := w.person("alice"), w.person("bob"), w.person("carol")
	bob.nick = "Bobby"
	conv := alice.create(Options{Name: "tea", Description: "we drink"}, bob, carol)
	var nick string
	carol.view(func(tx *txn) (err error) { nick, err = carol.g.Nickname(tx, conv, bob.self.Account); return err })
	require.Equal(t, "Bobby", nick)
	w.same(conv, alice, bob, carol)
	in := bob.info(conv)
	require.Equal(t, "tea", in.Name)
	require.Equal(t, "we drink", in.Description)
	require.Equal(t, StateMember, in.State)
	require.Equal(t, roster.Member, in.Role)
	require.Equal(t, 3, in.Size)
	require.Equal(t, alice.self.Account, in.Owner)
	require.Equal(t, roster.Owner, alice.info(conv).Role)
	bob.says(conv, "hello")
	carol.says(conv, "hi")
	w.meet()
	for _, p := range w.nodes {
		require.Equal(t, []string{"hello", "hi"}, p.texts(conv), p.name)
	}
	require.Equal(t, 1, bob.heard(NewsInvitation))
	require.Equal(t, 1, bob.heard(NewsJoined))
	require.Equal(t, 1, alice.heard(NewsInvitationAccepted)-1)
	// Everybody has the key of what is written under now.
	v := alice.rosterView(conv)
	e, ok := v.Current()
	require.True(t, ok)
	for _, p := range w.nodes {
		require.Contains(t, p.keysHeld(conv), e.ID, p.name)
	}
}

func TestRemovalCarriesCutsAndEpoch(t *testing.T) {
	w := begin(t)
	alice, bob, carol := w.person("alice"), w.person("bob"), w.person("carol")
	conv := alice.create(Options{}, bob, carol)
	bob.says(conv, "before")
	w.meet()
	old := alice.rosterView(conv)
	was, _ := old.Current()
	ctx := context.Background()
	require.NoError(t, alice.g.Remove(ctx, conv, bob.self.Account))
	v := alice.rosterView(conv)
	is, ok := v.Current()
	require.True(t, ok)
	require.NotEqual(t, was.ID, is.ID)
	require.NotEmpty(t, v.Cuts(bob.self.Account))
	bob.says(conv, "not knowing yet")
	alice.says(conv, "he is out")
	w.meet()
	w.meet()
	w.same(conv, alice, carol)
	require.Equal(t, []string{"before", "he is out"}, alice.texts(conv))
	require.Equal(t, []string{"before", "he is out"}, carol.texts(conv))
	require.Equal(t, StateRemoved, bob.info(conv).State)
	require.Equal(t, 1, bob.heard(NewsRemoved))
	require.NotContains(t, bob.texts(conv), "he is out")
	require.NotContains(t, bob.keysHeld(conv), is.ID)
	require.Contains(t, carol.keysHeld(conv), is.ID)
	_, err := bob.text(conv, "still?")
	require.ErrorIs(t, err, ErrNotMember)
	// An invitation that comes to nothing makes no leaving of a removal.
	_, err = alice.g.Invite(context.Background(), conv, bob.self.Account)
	require.NoError(t, err)
	w.deliver()
	require.Equal(t, StateInvited, bob.info(conv).State)
	_, err = bob.g.Answer(context.Background(), conv, false)
	require.NoError(t, err)
	require.Equal(t, StateRemoved, bob.info(conv).State)
}

func TestLeaveNeedsANewKey(t *testing.T) {
	w := begin(t)
	alice, bob, carol := w.person("alice"), w.person("bob"), w.person("carol")
	conv := alice.create(Options{}, bob, carol)
	alice.says(conv, "one")
	w.meet()
	require.ErrorIs(t, alice.g.Leave(context.Background(), conv), ErrLastOwner)
	require.NoError(t, bob.g.Leave(context.Background(), conv))
	require.Equal(t, StateLeft, bob.info(conv).State)
	bob.gives(carol)
	v := carol.rosterView(conv)
	_, ok := v.Current()
	require.False(t, ok)
	e := carol.says(conv, "two") // no admin is there
	w.meet()
	w.same(conv, alice, carol)
	require.NotContains(t, bob.keysHeld(conv), roster.ID(e.Epoch))
	require.Contains(t, alice.keysHeld(conv), roster.ID(e.Epoch))
	require.Equal(t, []string{"one", "two"}, alice.texts(conv))
	require.Equal(t, []string{"one"}, bob.texts(conv))
}

func TestHistoryForNewcomers(t *testing.T) {
	for history, want := range map[string][]string{
		"none": {"after"}, "all": {"1", "2", "3", "after"}, "1": {"3", "after"}, "2": {"2", "3", "after"}, "200": {"1", "2", "3", "after"},
	} {
		t.Run(history, func(t *testing.T) {
			w := begin(t)
			alice, bob, carol := w.person("alice"), w.person("bob"), w.person("carol")
			conv := alice.create(Options{History: history}, bob)
			for i, s := range []string{"1", "2", "3"} {
				if i > 0 { // each under an epoch of its own
					alice.update(func(tx *txn) error { return alice.g.newEpoch(tx, conv) })
					w.meet(alice, bob)
				}
				[]*peer{alice, bob}[i%2].says(conv, s)
				w.meet(alice, bob)
			}
			alice.letsIn(conv, carol)
			w.meet()
			bob.says(conv, "after")
			w.meet()
			require.Equal(t, want, carol.texts(conv))
			require.Equal(t, []string{"1", "2", "3", "after"}, bob.texts(conv))
			for _, p := range []*peer{alice, bob} {
				// Backlog is what was said before she came in.
				_ = p
			}
			w.same(conv, alice, bob, carol)
			carol.says(conv, "mine")
			w.meet()
			require.Contains(t, alice.texts(conv), "mine")
		})
	}
}

func TestTime(t *testing.T) {
	require.Equal(t, 7*24*time.Hour, DefaultLimits().EpochAge)
}

// Who was in a private group, or asked there before, asks again by the group alone.
func TestApplyingToWhatIsKnown(t *testing.T) {
	w := begin(t)
	ctx := context.Background()
	alice, bob, carol := w.person("alice"), w.person("bob"), w.person("carol")
	conv := alice.create(Options{Join: "apply"}, bob, carol)
	require.NoError(t, bob.g.Leave(ctx, conv))
	w.meet()
	_, err := bob.g.Apply(ctx, Target{Group: conv, Name: "tea", Join: "apply"}, "again")
	require.NoError(t, err)
	for _, l := range w.mail {
		require.Equal(t, alice.self.Account, l.to, "who decides is asked")
	}
	w.deliver()
	require.Equal(t, 1, alice.info(conv).Applications)
	_, err = alice.g.Decide(ctx, conv, bob.self.Account, true, "")
	require.NoError(t, err)
	w.meet()
	require.Equal(t, StateMember, bob.info(conv).State)
	dave := w.person("dave")
	_, err = dave.g.Apply(ctx, Target{Group: conv, Name: "tea", Join: "apply"}, "")
	require.ErrorIs(t, err, ErrInvalid, "of whom nobody is known there")
}

// What somebody said before they went and came back is theirs, and no news to them.
func TestOwnWordsAreNoBacklog(t *testing.T) {
	w := begin(t)
	ctx := context.Background()
	alice, bob := w.person("alice"), w.person("bob")
	conv := alice.create(Options{History: "all"}, bob)
	bob.says(conv, "mine")
	alice.says(conv, "hers")
	w.meet()
	require.NoError(t, bob.g.Leave(ctx, conv))
	w.meet()
	w.now = w.now.Add(time.Hour)
	alice.letsIn(conv, bob)
	w.meet()
	require.Equal(t, StateMember, bob.info(conv).State)
	bob.view(func(tx *txn) error {
		for _, p := range []*peer{alice, bob} {
			id := p.rep.OwnFeed(conv, feed.Chat)
			err := bob.rep.Entries(tx, id, 1, 1, func(e feed.Entry) (bool, error) {
				back, err := bob.g.Backlog(tx, e.Header)
				require.Equal(t, p == alice, back, p.name)
				return true, err
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
}
