package directory

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"hima/identity"
	"hima/internal/wire/pb"
)

func claim(t testing.TB, p *person, w *town, name string) (NameState, error) {
	t.Helper()
	return p.ClaimName(context.Background(), w.link.ID(), name)
}

func search(t testing.TB, p *person, name string) SearchResult {
	t.Helper()
	res, err := p.SearchName(context.Background(), name)
	require.NoError(t, err)
	return res
}

func TestNameIsClaimedStampedAndFound(t *testing.T) {
	w := newTown(t, 1, 40)
	w.start(0, memDB(t), true)
	alice, bob := w.come(1), w.come(2)
	st, err := claim(t, alice, w, "alice")
	require.NoError(t, err)
	require.Equal(t, NameConfirmed, st.State)
	require.Equal(t, []string{NameConfirmed}, alice.events())

	// Somebody else is told who has it, and nothing changes for him.
	before := bob.Networks()[0].Username
	st, err = claim(t, bob, w, "alice")
	var taken *NameTakenError
	require.ErrorAs(t, err, &taken)
	require.ErrorIs(t, err, ErrNameTaken)
	require.Equal(t, account(1), taken.Holder)
	require.Equal(t, before, st)
	require.Equal(t, NameNone, st.State)
	require.ErrorIs(t, checkName(t.Context(), w.boots, w.link, "alice", account(2)), ErrNameTaken)
	require.NoError(t, checkName(t.Context(), w.boots, w.link, "alice", account(1)))
	require.NoError(t, checkName(t.Context(), w.boots, w.link, "carol", account(1)))

	w.pass(time.Minute)
	res := search(t, bob, "Alice")
	require.Equal(t, []FoundName{{account(1), "alice", w.link.ID(), "town", true, res.People[0].Since}}, res.People)
	require.False(t, res.Disagreement)
	require.Empty(t, res.Unreachable)
	require.Empty(t, search(t, bob, "nobody").People)

	// The record of the account names it, and is in the table; so is the stamp.
	r, err := bob.FetchAccount(t.Context(), account(1))
	require.NoError(t, err)
	require.Equal(t, []identity.RecordName{{Network: w.link.ID(), Name: "alice"}}, r.Names)
	require.False(t, alice.Networks()[0].Published.IsZero())

	// A claim once more is the same one; another name replaces it here, and the register keeps both.
	again, err := claim(t, alice, w, "alice")
	require.NoError(t, err)
	require.Equal(t, NameConfirmed, again.State)
	_, err = claim(t, alice, w, "alicia")
	require.NoError(t, err)
	_, err = claim(t, bob, w, "alice")
	require.ErrorIs(t, err, ErrNameTaken)

	_, err = alice.ClaimName(t.Context(), identity.NetworkID{1}, "alice")
	require.ErrorIs(t, err, ErrNetworkUnknown)
	_, err = claim(t, alice, w, "Alice")
	require.ErrorIs(t, err, ErrBadName)
	_, err = alice.SearchName(t.Context(), "no name at all")
	require.ErrorIs(t, err, ErrBadName)
}

func TestPendingNameIsCompletedLater(t *testing.T) {
	w := newTown(t, 1, 30)
	db := memDB(t)
	alice := w.dir(1, db)
	_, _, err := alice.JoinNetwork(t.Context(), w.link.String())
	require.NoError(t, err)
	w.step(alice)
	st, err := claim(t, alice, w, "alice")
	require.NoError(t, err)
	require.Equal(t, NamePending, st.State)
	w.pass(3 * time.Hour)
	require.Equal(t, NamePending, alice.Networks()[0].Username.State)

	// It survives a restart.
	alice.stop()
	alice = w.dir(1, db)
	require.Equal(t, NamePending, alice.Networks()[0].Username.State)
	w.step(alice)
	w.pass(time.Minute)

	// While nobody stamps, others see that it is only claimed.
	bob := w.come(2)
	res := search(t, bob, "alice")
	require.Equal(t, account(1), firstOf(res.People).Account)
	require.False(t, res.People[0].Confirmed)
	require.True(t, res.Disagreement, "the network has a register that could not be asked")
	require.Equal(t, []string{"town"}, res.Unreachable)

	w.start(0, memDB(t), true)
	w.pass(31 * time.Minute)
	require.Equal(t, NameConfirmed, alice.Networks()[0].Username.State)
	require.Equal(t, []string{NameConfirmed}, alice.events())
	require.True(t, firstOf(search(t, bob, "alice").People).Confirmed)
}

// A deadline ends the waiting, not the claim; who changes his mind has claimed nothing.
func TestImpatientClaimIsKept(t *testing.T) {
	w := newTown(t, 1, 10)
	alice := w.come(1)
	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	st, err := alice.ClaimName(ctx, w.link.ID(), "alice")
	require.NoError(t, err)
	require.Equal(t, NamePending, st.State)
	require.Equal(t, NamePending, alice.Networks()[0].Username.State)
	w.start(0, memDB(t), true)
	w.pass(time.Minute)
	require.Equal(t, NameConfirmed, alice.Networks()[0].Username.State)

	bob := w.come(2)
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	_, err = bob.ClaimName(ctx, w.link.ID(), "bob")
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, NameNone, bob.Networks()[0].Username.State)
}

// A caller whose deadline has passed does not say any more that everything ends.
func TestImpatientClaimEndsWithTheNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTownAt(t, 1, 0, nil, time.Now)
		alice := w.dir(1, memDB(t))
		_, _, err := alice.JoinNetwork(t.Context(), w.link.String())
		require.NoError(t, err)
		ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
		defer cancel()
		keep, done := alice.untilCancelled(ctx)
		defer done()
		synctest.Wait()
		require.NoError(t, keep.Err(), "no deadline")
		run, end := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- alice.Run(run) }()
		synctest.Wait()
		require.NoError(t, keep.Err())
		end()
		require.NoError(t, <-ran)
		synctest.Wait()
		require.Error(t, keep.Err())
	})
}

func TestBootstrapNodeThatAppearsEndsTheWait(t *testing.T) {
	w := newTown(t, 1, 30)
	alice := w.come(1)
	_, err := claim(t, alice, w, "alice")
	require.NoError(t, err)
	w.pass(5 * time.Hour) // the pause is at its longest
	w.start(0, memDB(t), true)
	alice.bootstrapUp(bootKey(0).ID())
	w.pass(2 * time.Second)
	require.Equal(t, NameConfirmed, alice.Networks()[0].Username.State)
}

func TestLostRaceIsAnEvent(t *testing.T) {
	w := newTown(t, 1, 30)
	alice, bob := w.come(1), w.come(2)
	_, err := claim(t, alice, w, "ann") // nobody answers
	require.NoError(t, err)
	w.start(0, memDB(t), true)
	_, err = claim(t, bob, w, "ann")
	require.NoError(t, err)
	w.pass(time.Hour)
	st := alice.Networks()[0].Username
	require.Equal(t, NameLost, st.State)
	require.Equal(t, account(2), st.Holder)
	require.Equal(t, []string{NamePending, NameLost}, alice.events())
	bare := identity.UnstampedName(mustName(t, alice, w).claim).Raw()
	require.LessOrEqual(t, w.cloud.holders(identity.NameKey(w.link.ID(), "ann"), bare), 1, "the loser's own node at most")
	// Another name can be picked.
	st, err = claim(t, alice, w, "anna")
	require.NoError(t, err)
	require.Equal(t, NameConfirmed, st.State)
}

func mustName(t *testing.T, p *person, w *town) ownName {
	t.Helper()
	o, ok := p.Directory.names.get(w.link.ID())
	require.True(t, ok)
	return o
}

func TestNetworkWithoutRegister(t *testing.T) {
	w := newTown(t, 1, 30)
	w.start(0, memDB(t), true)
	w.boots.mute[bootKey(0).ID()] = true
	alice, bob, carol := w.come(1), w.come(2), w.come(3)
	for _, p := range []*person{alice, bob} {
		st, err := claim(t, p, w, "ann")
		require.NoError(t, err)
		require.Equal(t, NameUnconfirmed, st.State)
	}
	w.pass(time.Minute)
	res := search(t, carol, "ann")
	require.NotEmpty(t, res.People)
	require.False(t, res.People[0].Confirmed)
	// The table keeps one of them. Who knows of the other sees both, and that none has more right.
	res = search(t, alice, "ann")
	if firstOf(search(t, carol, "ann").People).Account == account(1) {
		res = search(t, bob, "ann")
	}
	require.Len(t, res.People, 2)
	require.True(t, res.Disagreement)
	require.Equal(t, NameUnconfirmed, alice.Networks()[0].Username.State, "nobody loses to a bare claim")
}

func TestTwoBootstrapNodes(t *testing.T) {
	w := newTown(t, 2, 30)
	first, second := memDB(t), memDB(t)
	a, b := w.start(0, first, true), w.start(1, second, true)
	alice, bob := w.come(1), w.come(2)
	st, err := claim(t, alice, w, "ann")
	require.NoError(t, err)
	require.Equal(t, NameConfirmed, st.State)
	require.Equal(t, 1, a.Stats().Names)
	require.Equal(t, 1, b.Stats().Names, "the sister was told")
	// The founder is away: the sister knows all the same.
	w.boots.set(bootKey(0).ID(), nil)
	_, err = claim(t, bob, w, "ann")
	require.ErrorIs(t, err, ErrNameTaken)
	st, err = claim(t, bob, w, "bob")
	require.NoError(t, err)
	require.Equal(t, NameConfirmed, st.State)
	// The founder is back and heard nothing yet: before it stamps it asks the sister.
	w.boots.set(bootKey(0).ID(), a)
	_, err = claim(t, alice, w, "bob")
	require.ErrorIs(t, err, ErrNameTaken)
}

// Two registers that cannot hear each other stamp one name for two people. The earlier stamp has it, and the other one
// is told (R19).
func TestSplitRegistersAreSettledByTime(t *testing.T) {
	w := newTown(t, 2, 30)
	a, b := w.start(0, memDB(t), true), w.start(1, memDB(t), true)
	a.asks, b.asks = nil, nil
	alice, bob := w.come(1), w.come(2)
	w.boots.set(bootKey(0).ID(), nil)
	_, err := claim(t, alice, w, "ann")
	require.NoError(t, err)
	w.pass(time.Second)
	w.boots.set(bootKey(0).ID(), a)
	w.boots.set(bootKey(1).ID(), nil)
	st, err := claim(t, bob, w, "ann")
	require.NoError(t, err)
	require.Equal(t, NameConfirmed, st.State)
	w.boots.set(bootKey(1).ID(), b)
	w.pass(13 * time.Hour)
	require.Equal(t, NameLost, bob.Networks()[0].Username.State)
	require.Equal(t, account(1), bob.Networks()[0].Username.Holder)
	require.Equal(t, NameConfirmed, alice.Networks()[0].Username.State)
	r, ok := bob.Record(account(2))
	require.True(t, ok)
	require.Empty(t, r.Names, "the account's record names it no longer")
	// Both registers agree meanwhile, for the owner hands his stamp back to whoever lacks it.
	alice.bootstrapUp(bootKey(0).ID())
	w.pass(time.Minute)
	for _, r := range []*Register{a, b} {
		s, ok, err := r.get("ann")
		require.NoError(t, err)
		require.True(t, ok)
		require.Equal(t, account(1), s.Claim.Account)
	}
}

// TestE, first half: the owner is away for three days, and one contact keeps what there is to find.
func TestContactKeepsTheAbsentToBeFound(t *testing.T) {
	w := newTown(t, 1, 60)
	w.start(0, memDB(t), true)
	alice := w.come(1)
	carol := w.come(3, 1)
	_, err := claim(t, alice, w, "alice")
	require.NoError(t, err)
	alice.SetDevice(DeviceInfo{Mailboxes: []identity.MailboxRef{{Device: bootKey(0).ID()}}})
	carol.Hint(account(1), device(1), nil) // as an invite does: carol knows no more of her
	w.pass(time.Hour)                      // carol meets all of it
	alice.stop()
	stranger := w.come(4)
	w.boots.set(bootKey(0).ID(), nil) // nobody but the table
	// All who stored it at first are gone in the end, one after the other.
	for i := range 60 {
		w.pass(72 * time.Minute)
		w.cloud.mu.Lock()
		w.cloud.nodes[i].down = true
		w.cloud.mu.Unlock()
		w.cloud.add([32]byte{byte(i * 4), 9}, device(7000+i))
	}
	res := search(t, stranger, "alice")
	require.Equal(t, account(1), firstOf(res.People).Account)
	require.True(t, res.People[0].Confirmed)
	_, err = stranger.FetchAccount(t.Context(), account(1))
	require.NoError(t, err)
	rec, err := stranger.FetchDevice(t.Context(), device(1))
	require.NoError(t, err)
	require.Len(t, rec.Mailboxes, 1)

	// Without the contact it would be lost: that the test can fail.
	carol.stop()
	w.pass(49 * time.Hour)
	_, ok := stranger.Record(account(1))
	require.True(t, ok, "what was fetched is remembered")
	other := w.come(5)
	_, err = other.FetchDevice(t.Context(), device(1))
	require.ErrorIs(t, err, ErrNotFound)
}

// TestE, second half: twenty nodes stand nearest to the name and lie, and the register lost its disk. The owner still
// resolves, or the search says that something is wrong.
func TestGroundNodesAndAWipedRegister(t *testing.T) {
	for _, lie := range []string{"hide", "claim", "forge"} {
		t.Run(lie, func(t *testing.T) {
			w := newTown(t, 1, 60)
			w.start(0, memDB(t), true)
			alice := w.come(1)
			_, err := claim(t, alice, w, "alice")
			require.NoError(t, err)
			w.pass(time.Minute)
			key := identity.NameKey(w.link.ID(), "alice")
			mallory, err := identity.NewNameClaim(accountKey(66), w.link.ID(), "alice", w.now().Add(-time.Hour))
			require.NoError(t, err)
			forged, err := identity.NewNameStamp(bootKey(66), mallory, w.now().Add(-time.Hour))
			require.NoError(t, err)
			for i := range 20 {
				w.cloud.near(key, i).lie = func(k string) []byte {
					switch {
					case k != key || lie == "hide":
						return nil
					case lie == "claim":
						return identity.UnstampedName(mallory).Raw()
					}
					return identity.StampedName(forged).Raw()
				}
			}
			bob := w.come(2)
			check := func(when string) (resolved bool) {
				res, err := bob.SearchName(t.Context(), "alice")
				require.NoError(t, err)
				f := firstOf(res.People)
				require.False(t, f.Confirmed && f.Account != account(1), when)
				resolved = f.Confirmed && f.Account == account(1)
				if !resolved && len(res.People) > 0 {
					require.True(t, res.Disagreement, when)
				}
				if !resolved {
					require.Equal(t, []string{"town"}, res.Unreachable, when)
				}
				return resolved
			}
			require.True(t, check("with a whole register"))
			w.boots.set(bootKey(0).ID(), nil)
			check("without a register")
			reg := w.start(0, memDB(t), false)
			check("with an empty register")
			require.True(t, reg.Stats().Rebuilding)
			// The thief finds the register silent.
			thief := w.come(66)
			st, err := claim(t, thief, w, "alice")
			require.NoError(t, err)
			require.Equal(t, NamePending, st.State)
			// The owner meets it again and hands his stamp back.
			alice.bootstrapUp(bootKey(0).ID())
			w.pass(2 * time.Second)
			require.True(t, check("after the owner was there"))
			w.pass(25 * time.Hour)
			require.False(t, reg.Stats().Rebuilding)
			require.Equal(t, NameLost, thief.Networks()[0].Username.State)
			require.Equal(t, NameConfirmed, alice.Networks()[0].Username.State)
			require.True(t, check("after the silence"))
		})
	}
}

// A contact alone rebuilds a register, while the owner is away.
func TestContactRebuildsTheRegister(t *testing.T) {
	w := newTown(t, 1, 30)
	w.start(0, memDB(t), true)
	alice, carol := w.come(1), w.come(3, 1)
	_, err := claim(t, alice, w, "alice")
	require.NoError(t, err)
	carol.Hint(account(1), device(1), nil) // as from an invite: carol knows no more of her
	w.pass(time.Hour)
	alice.stop()
	reg := w.start(0, memDB(t), false)
	require.Zero(t, reg.Stats().Names)
	carol.bootstrapUp(bootKey(0).ID())
	w.pass(time.Minute)
	require.Equal(t, 1, reg.Stats().Names)
	s, ok, err := reg.get("alice")
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, account(1), s.Claim.Account)
}

// Of many who want one name at one moment exactly one gets it, and all others hear who.
func TestManyClaimOneName(t *testing.T) {
	w := newTown(t, 1, 5)
	w.start(0, memDB(t), true)
	var mu sync.Mutex
	var winners []identity.AccountID
	holders := map[identity.AccountID]bool{}
	var wg sync.WaitGroup
	for i := range 12 {
		p := w.come(10 + i)
		wg.Go(func() {
			st, err := claim(t, p, w, "ann")
			mu.Lock()
			defer mu.Unlock()
			var taken *NameTakenError
			switch {
			case err == nil && st.State == NameConfirmed:
				winners = append(winners, p.self)
			case errors.As(err, &taken):
				holders[taken.Holder] = true
			default:
				t.Errorf("%+v, %v", st, err)
			}
		})
	}
	wg.Wait()
	require.Len(t, winners, 1)
	require.Equal(t, map[identity.AccountID]bool{winners[0]: true}, holders)
}

func TestLinkedDeviceCannotClaim(t *testing.T) {
	w := newTown(t, 1, 5)
	p := w.dir(1, memDB(t))
	p.cfg.AccountKey = nil
	_, _, err := p.JoinNetwork(t.Context(), w.link.String())
	require.NoError(t, err)
	_, err = claim(t, p, w, "ann")
	require.ErrorIs(t, err, ErrNoAccountKey)
}

func TestLeavingForgetsTheName(t *testing.T) {
	w := newTown(t, 1, 20)
	w.start(0, memDB(t), true)
	alice := w.come(1)
	_, err := claim(t, alice, w, "alice")
	require.NoError(t, err)
	require.NoError(t, alice.LeaveNetwork(t.Context(), w.link.ID()))
	r, _ := alice.Record(account(1))
	require.Empty(t, r.Names)
	_, err = alice.SearchName(t.Context(), "alice")
	require.ErrorIs(t, err, ErrNoNetwork)
	_, err = alice.FetchAccount(t.Context(), account(2))
	require.ErrorIs(t, err, ErrNoNetwork)
	// Who comes back has it still.
	_, added, err := alice.JoinNetwork(t.Context(), w.link.String())
	require.NoError(t, err)
	require.True(t, added)
	require.Equal(t, NameNone, alice.Networks()[0].Username.State)
	st, err := claim(t, alice, w, "alice")
	require.NoError(t, err)
	require.Equal(t, NameConfirmed, st.State)
}

func TestJudgeClaim(t *testing.T) {
	net := identity.NewNetworkID("town", bootKey(0).ID())
	keys := []identity.DeviceID{bootKey(0).ID()}
	c, err := identity.NewNameClaim(accountKey(1), net, "ann", day)
	require.NoError(t, err)
	other, err := identity.NewNameClaim(accountKey(2), net, "ann", day)
	require.NoError(t, err)
	elsewhere, err := identity.NewNameClaim(accountKey(1), identity.NetworkID{9}, "ann", day)
	require.NoError(t, err)
	stamp := func(key int, c identity.NameClaim) identity.NameStamp {
		s, err := identity.NewNameStamp(bootKey(key), c, day)
		require.NoError(t, err)
		return s
	}
	for i, a := range []nameAnswer{
		{code: pb.NameAnswer_CODE_STAMPED},
		{code: pb.NameAnswer_CODE_STAMPED, stamp: stamp(9, c)},
		{code: pb.NameAnswer_CODE_TAKEN, stamp: stamp(9, other)},
		{code: pb.NameAnswer_CODE_STAMPED, stamp: stamp(0, elsewhere)},
		{code: pb.NameAnswer_CODE_BUSY},
		{code: pb.NameAnswer_CODE_BAD},
		{code: pb.NameAnswer_CODE_WORK},
		{code: 99},
		{},
		{code: pb.NameAnswer_CODE_FULL},
		{code: pb.NameAnswer_CODE_REBUILDING},
	} {
		s, err := judgeClaim(a, c, keys)
		require.Error(t, err, fmt.Sprint(i))
		require.NotErrorIs(t, err, ErrNameTaken, fmt.Sprint(i))
		require.True(t, s.IsZero())
	}
	for _, code := range []pb.NameAnswer_Code{pb.NameAnswer_CODE_STAMPED, pb.NameAnswer_CODE_TAKEN} {
		_, err = judgeClaim(nameAnswer{code: code, stamp: stamp(0, c)}, c, keys)
		require.NoError(t, err)
		_, err = judgeClaim(nameAnswer{code: code, stamp: stamp(0, other)}, c, keys)
		require.ErrorIs(t, err, ErrNameTaken)
	}
}
