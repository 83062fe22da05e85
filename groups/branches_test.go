package groups

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/groups/roster"
	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/storage"
)

// branched is a group in which bob and carol hold the two branches of a feed, and know of both.
func branched(t *testing.T) (conv ID, alice, bob, carol *peer, branch []feed.Entry) {
	w := begin(t)
	alice, bob, carol = w.person("alice"), w.person("bob"), w.person("carol")
	mallory := w.person("mallory")
	conv = alice.create(Options{}, bob, carol, mallory)
	m := mallory.goesBad(conv)
	left := m.next(m.common, roster.Act{Kind: roster.Nickname, Value: "left"}, bob, nil)
	left = m.next(left, roster.Act{Kind: roster.Nickname, Value: "left again"}, bob, nil)
	m.shows(left, bob)
	m.shows(m.next(m.common, roster.Act{Kind: roster.Nickname, Value: "right"}, carol, nil), carol)
	bob.showsForks(carol, conv)
	return conv, alice, bob, carol, left[len(m.common):]
}

func (p *peer) wants(from *peer, conv ID, of ...feed.Entry) {
	p.w.t.Helper()
	k := &pb.GroupKeys{Group: conv[:]}
	for _, e := range of {
		k.Wants = append(k.Wants, e.ID[:])
	}
	require.NoError(p.w.t, from.g.TookKeys(context.Background(), p.self, k))
}

// answers is how many proofs and headers somebody is told.
func (p *peer) answers(to *peer) (proofs, headers int, err error) {
	p.w.t.Helper()
	p.view(func(tx *storage.Tx) error {
		var told []*pb.GroupKeys
		told, err = p.g.BranchesFor(tx, to.self)
		for _, k := range told {
			proofs += len(k.Forks)
			for _, run := range k.Branches {
				headers += len(run.Entries)
			}
		}
		return nil
	})
	return proofs, headers, err
}

// What was asked for is answered once, whatever else is handed over meanwhile and whatever befalls other groups.
func TestAnswersAreNotLost(t *testing.T) {
	conv, alice, bob, _, branch := branched(t)
	other := alice.create(Options{Name: "other"}, bob)
	alice.wants(bob, conv, branch[1])
	bob.view(func(tx *storage.Tx) error {
		_, err := bob.g.KeysFor(tx, alice.self) // for a mail, which carries none of it
		return err
	})
	missing := roster.ID{7}
	bob.update(func(tx *storage.Tx) error { return tx.Set(key(keyBranch, other[:], missing[:]), make([]byte, 40)) })
	bob.g.forks.asked[asking{other, alice.self.Device}] = &asked{[]roster.ID{missing}}
	proofs, headers, err := bob.answers(alice)
	require.Error(t, err)
	require.Equal(t, []int{1, 2}, []int{proofs, headers})
	proofs, headers, _ = bob.answers(alice)
	require.Equal(t, []int{0, 0}, []int{proofs, headers})
}

// Whoever asks again while they are being answered, in a session after the one that gets the answer, is answered again.
func TestAsksAgainWhileAnswered(t *testing.T) {
	conv, alice, bob, _, branch := branched(t)
	alice.wants(bob, conv, branch[1])
	again := 0
	bob.g.now = func() time.Time {
		if again++; again == 1 { // it is asked when the answer is made
			alice.wants(bob, conv, branch[0], branch[1])
		}
		return bob.w.now
	}
	for range 2 {
		proofs, headers, err := bob.answers(alice)
		require.NoError(t, err)
		require.Equal(t, []int{1, 2}, []int{proofs, min(headers, 2)})
	}
	proofs, headers, err := bob.answers(alice)
	require.NoError(t, err)
	require.Equal(t, []int{0, 0}, []int{proofs, headers})
	require.Greater(t, again, 1)
}

// Two who show a proof each are two: one that shows less does not take the place of the other before its headers come.
func TestProofOfAnother(t *testing.T) {
	conv, alice, bob, carol, branch := branched(t)
	bob.forge(conv, roster.Act{Kind: roster.Nickname, Value: "x"}, []roster.ID{roster.ID(branch[1].ID)}, nil)
	id := branch[0].Feed()
	proof := bob.proofOf(id)
	bob.givesGroup(alice, conv)
	_, waiting := alice.folded(conv)
	require.Positive(t, waiting)
	take := func(from *peer, k *pb.GroupKeys) {
		k.Group = conv[:]
		require.NoError(t, alice.g.TookKeys(context.Background(), from.self, k))
	}
	later := proof.PB()
	later.BeforeA, later.BeforeB = nil, nil
	take(bob, &pb.GroupKeys{Forks: []*pb.ForkProof{proof.PB()}})
	require.Contains(t, alice.g.forks.proofs, showing{id, bob.self.Device})
	take(carol, &pb.GroupKeys{Forks: []*pb.ForkProof{later}})
	require.Len(t, alice.g.forks.proofs, 2)
	run := &pb.Run{Entries: []*pb.Entry{{Header: branch[1].RawHeader()}}}
	take(bob, &pb.GroupKeys{Branches: []*pb.Run{run}})
	_, waiting = alice.folded(conv)
	require.Zero(t, waiting)
}

// Whoever was removed has the acts up to there and what those name, and hears nothing of what came later.
func TestRemovedIsShownNoBranches(t *testing.T) {
	conv, alice, bob, carol, branch := branched(t)
	ctx := context.Background()
	bob.gives(alice)
	require.NoError(t, alice.g.Remove(ctx, conv, carol.self.Account))
	alice.gives(bob)
	carol.wants(bob, conv, branch[0])
	proofs, headers, err := bob.answers(carol)
	require.NoError(t, err)
	require.Equal(t, []int{0, 0}, []int{proofs, headers})
	alice.wants(bob, conv, branch[0])
	_, headers, err = bob.answers(alice)
	require.NoError(t, err)
	require.Equal(t, 1, headers)
}

// Whoever founded a group and writes its first entry twice takes the group along: nothing that they did counts, and so nobody is in
// whom they let in. It is the same for everybody, and nothing is said there any more.
func TestFounderForksFromTheBeginning(t *testing.T) {
	w := begin(t)
	alice, bob, carol := w.person("alice"), w.person("bob"), w.person("carol")
	conv := alice.create(Options{}, bob, carol)
	bob.says(conv, "before")
	w.meet()
	a := alice.goesBad(conv)
	require.Equal(t, uint64(1), a.common[0].Seq)
	a.shows(a.common, carol)
	again := a.next(nil, roster.Act{Kind: roster.Nickname, Value: "another beginning"}, bob, nil)
	run, err := feed.Assemble(again, feed.SignRun(a.key, again[0]))
	require.NoError(t, err)
	require.ErrorIs(t, bob.rep.Take(context.Background(), a.self, run.PB()), feed.ErrFork)
	for range 2 {
		bob.givesGroup(carol, conv)
		carol.givesGroup(bob, conv)
	}
	for _, p := range []*peer{bob, carol} {
		v := p.rosterView(conv)
		require.Empty(t, v.People, p.name)
		require.Equal(t, StateRemoved, p.info(conv).State, p.name)
		require.Positive(t, p.heard(NewsFork), p.name)
		_, err := p.text(conv, "after")
		require.ErrorIs(t, err, ErrNotMember, p.name)
	}
	w.same(conv, bob, carol)
}
