package groups

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
)

// Who applied by two links takes back by one command what both were asked for, wherever the two stand, and on all own devices.
func TestTakingBackEverything(t *testing.T) {
	for seed := range uint64(12) {
		d := beginDeciders(t)
		dave := d.dave.self.Account
		d.applies([]*peer{d.alice}, []*peer{d.alice})
		d.mail = nil // bob is not told by alice
		d.applies([]*peer{d.bob}, []*peer{d.bob})
		d.mail = nil
		require.Equal(t, Waiting, d.alice.application(d.conv, dave).State)
		require.Equal(t, Waiting, d.bob.application(d.conv, dave).State)
		require.NoError(t, d.dave.g.WithdrawApplication(t.Context(), d.conv))
		require.ElementsMatch(t, []identity.AccountID{d.alice.self.Account, d.bob.self.Account}, d.recipients(), "and does not count on them telling each other")
		d.scatter(rand.New(rand.NewPCG(seed, 3)))
		for _, p := range []*peer{d.alice, d.bob, d.dave, d.dave2} {
			require.Equal(t, Withdrawn, p.application(d.conv, dave).State, p.name)
		}
		require.Equal(t, StateNone, d.dave.info(d.conv).State)
		require.ErrorIs(t, d.dave.g.WithdrawApplication(t.Context(), d.conv), ErrNotFound)
		d.close()
	}
}

// recipients are those to whom something is on its way.
func (d *deciders) recipients() (out []identity.AccountID) {
	for _, l := range d.mail {
		out = append(out, l.to)
	}
	return out
}

// The other own device, which heard of both, takes back both too.
func TestTakingBackOnAnotherDevice(t *testing.T) {
	d := beginDeciders(t)
	dave := d.dave.self.Account
	d.applies([]*peer{d.alice}, []*peer{d.alice})
	d.dave2.hear(d.mail[0])
	d.mail = nil
	d.applies([]*peer{d.bob}, []*peer{d.bob})
	d.dave2.hear(d.mail[0])
	d.mail = nil
	require.NoError(t, d.dave2.g.WithdrawApplication(t.Context(), d.conv))
	require.ElementsMatch(t, []identity.AccountID{d.alice.self.Account, d.bob.self.Account}, d.recipients())
	d.deliver()
	for _, p := range []*peer{d.alice, d.bob, d.dave, d.dave2} {
		require.Equal(t, Withdrawn, p.application(d.conv, dave).State, p.name)
	}
}

// A link that is over says nothing of what was asked by another one, which goes on waiting and can be taken back.
func TestLinkOverWhileAnotherWaits(t *testing.T) {
	for seed := range uint64(12) {
		w := begin(t)
		alice, bob, dave, dave2 := w.person("alice"), w.person("bob"), w.person("dave"), w.person("dave")
		conv := alice.create(Options{}, bob)
		require.NoError(t, alice.g.Promote(t.Context(), conv, bob.self.Account))
		w.meet(alice, bob)
		apply := func(p *peer, revoke bool) {
			l, err := p.g.NewLink(t.Context(), conv, 0, 0)
			require.NoError(t, err)
			if revoke {
				_, err = p.g.RevokeLink(t.Context(), conv, l.Token)
				require.NoError(t, err)
			}
			w.now = w.now.Add(time.Second)
			to := Target{Group: conv, Name: "tea", Token: l.Token[:], Asks: []Contact{{Account: p.self.Account}}}
			_, err = dave.g.Apply(t.Context(), to, "")
			require.NoError(t, err)
		}
		apply(alice, false)
		apply(bob, true)
		w.scatter(rand.New(rand.NewPCG(seed, 4)))
		for _, p := range []*peer{dave, dave2} {
			require.Equal(t, StateApplied, p.info(conv).State, "seed %d", seed)
			a := p.application(conv, dave.self.Account)
			require.Equal(t, Waiting, a.State)
			require.Equal(t, []Answer{{By: bob.self.Account, Reason: ReasonRevoked}}, a.Answers)
		}
		require.NoError(t, dave.g.WithdrawApplication(t.Context(), conv))
		w.deliver()
		require.Equal(t, Withdrawn, alice.application(conv, dave.self.Account).State)
		require.Equal(t, StateNone, dave2.info(conv).State)
		w.close()
	}
}

// Who decides for whom: what one side says is none of the other's, and who is an admin for both speaks for both.
func TestWhoDecidesForWhom(t *testing.T) {
	account := func(i byte) identity.AccountID { return identity.AccountKeyFromSeed([32]byte{3, i}).ID() }
	q, r, p, x, y := account(1), account(2), account(3), account(4), account(5)
	owners := func(of ...identity.AccountID) []identity.AccountID { return of }
	row := groupRow{Applied: &applicationRow{Time: 10, State: Waiting}, Told: []toldRow{
		{q, 10, 100, owners(q)}, {r, 10, 100, owners(r)}, {p, 10, 100, owners(q, r)}, {x, 5, 90, nil}, {y, 10, 100, nil},
	}}
	for _, c := range []struct {
		name string
		said []answerRow
		open []identity.AccountID
	}{
		{"nobody", nil, owners(q, r, p, x, y)},
		{"one side", []answerRow{{By: q, Time: 10, Decided: true}}, owners(r, p, x, y)},
		{"both sides", []answerRow{{By: q, Time: 10, Decided: true}, {By: r, Time: 10, Decided: true}}, owners(x, y)},
		{"one for both sides", []answerRow{{By: p, Time: 10, Decided: true}}, owners(x, y)},
		{"one whose side is not known", []answerRow{{By: y, Time: 10, Decided: true}}, owners(q, r, p)},
		{"on the earlier one only", []answerRow{{By: x, Time: 5, Decided: true}}, owners(q, r, p, y)},
		{"a link that is over", []answerRow{{By: y, Time: 10}}, owners(q, r, p, x)},
		{"a link that was over before", []answerRow{{By: y, Time: 9}}, owners(q, r, p, x, y)},
		{"somebody not remembered any more", []answerRow{{By: account(6), Time: 10, Decided: true}}, owners(q, r, p)},
	} {
		row.Answers = c.said
		var open []identity.AccountID
		for _, t := range row.open(50) {
			open = append(open, t.Account)
		}
		require.Equal(t, c.open, open, c.name)
	}
	row.Answers = nil
	require.Len(t, row.open(95), 4, "time is over for the earlier one")
	require.Equal(t, int64(100), row.until(95))
}

// disputed makes dave ask alice and bob, who show both that the group is theirs and do not hear of each other.
func (d *deciders) disputed() {
	d.t.Helper()
	d.now = d.now.Add(time.Second)
	alice, bob := d.alice.self.Account, d.bob.self.Account
	to := target(d.conv, d.alice, d.bob)
	to.Owners = map[identity.AccountID][]identity.AccountID{alice: {alice}, bob: {bob}}
	at := len(d.mail)
	_, err := d.dave.g.Apply(d.world.t.(*testing.T).Context(), to, "let me in")
	require.NoError(d.t, err)
	for _, l := range append([]letter{}, d.mail[at:]...) {
		for _, p := range []*peer{d.alice, d.bob} {
			if p.self.Account == l.to {
				p.hear(l)
			}
		}
	}
}

// deaf drops what alice and bob say to each other: each takes the other for nobody.
func (d *deciders) deaf() {
	alice, bob := d.alice.self.Account, d.bob.self.Account
	keep := d.mail[:0]
	for _, l := range d.mail {
		if !(l.from == alice && l.to == bob || l.from == bob && l.to == alice) {
			keep = append(keep, l)
		}
	}
	d.mail = keep
}

// Of a group that two show to own, one side's no leaves the other side's word open, on all own devices and in any order.
func TestOneSideSaysNo(t *testing.T) {
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 5))
		d := beginDeciders(t)
		dave := d.dave.self.Account
		d.disputed()
		d.decides(d.alice, false, "not with us")
		d.deaf()
		d.scatter(r)
		for _, p := range []*peer{d.dave, d.dave2} {
			require.Equal(t, StateApplied, p.info(d.conv).State, "seed %d", seed)
			a := p.application(d.conv, dave)
			require.Equal(t, Waiting, a.State, "seed %d", seed)
			require.Equal(t, []Answer{{By: d.alice.self.Account, Reason: "not with us", Decided: true}}, a.Answers)
		}
		require.Equal(t, 1, d.dave.heard(NewsApplicationAnswered))
		require.Zero(t, d.dave.heard(NewsRejected))
		if seed%2 == 0 {
			// It can be taken back, and nobody who said no is told.
			require.NoError(t, d.dave.g.WithdrawApplication(t.Context(), d.conv))
			for _, l := range d.mail {
				require.NotEqual(t, d.alice.self.Account, l.to)
			}
			d.deaf()
			d.scatter(r)
			require.Equal(t, Withdrawn, d.bob.application(d.conv, dave).State)
			require.Equal(t, StateNone, d.dave2.info(d.conv).State)
		} else {
			// Or the other side says no as well, and that is that.
			d.decides(d.bob, false, "nor with us")
			d.deaf()
			d.scatter(r)
			for _, p := range []*peer{d.dave, d.dave2} {
				require.Equal(t, StateRejected, p.info(d.conv).State, "seed %d", seed)
				a := p.application(d.conv, dave)
				by, why := d.alice.self.Account, "not with us"
				if bob := d.bob.self.Account; bob.Less(by) {
					by, why = bob, "nor with us"
				}
				require.Equal(t, []any{Rejected, by, why, 2}, []any{a.State, a.By, a.Reason, len(a.Answers)})
			}
			require.Equal(t, 1, d.dave.heard(NewsRejected))
		}
		d.close()
	}
}

// The other side lets them in who was turned down by the first.
func TestOneSideSaysNoTheOtherYes(t *testing.T) {
	d := beginDeciders(t)
	d.disputed()
	d.decides(d.alice, false, "no")
	d.deaf()
	d.deliver()
	d.decides(d.bob, true, "")
	d.meet()
	require.Equal(t, StateMember, d.dave.info(d.conv).State)
	a := d.dave.application(d.conv, d.dave.self.Account)
	require.Equal(t, Approved, a.State)
	require.Empty(t, a.Answers)
}

// Nobody whom one side asks to say no for the other is believed, and a side that never answers does not keep an application waiting for ever.
func TestTheOtherSideNeverAnswers(t *testing.T) {
	d := beginDeciders(t)
	ctx := t.Context()
	d.disputed()
	d.decides(d.alice, false, "no")
	d.deaf()
	d.deliver()
	before := d.dave.application(d.conv, d.dave.self.Account)
	// Alice says so again, and of an application that was never made.
	for _, at := range []int64{before.Time.UnixMilli(), before.Time.UnixMilli() - 1, 0} {
		content, err := proto.Marshal(&pb.GroupVerdict{Group: d.conv[:], Account: d.dave.self.Account.Bytes(), ApplicationMs: at})
		require.NoError(t, err)
		d.dave.hear(letter{d.alice.self.Account, d.dave.self.Account, d.alice.self.Device, feed.KindGroupVerdict, content, d.now})
	}
	require.Equal(t, before, d.dave.application(d.conv, d.dave.self.Account))
	d.now = d.now.Add(31 * 24 * time.Hour)
	require.Equal(t, Expired, d.dave.application(d.conv, d.dave.self.Account).State)
	d.dave.g.lookAfter(ctx)
	require.Equal(t, StateNone, d.dave.info(d.conv).State)
	require.Equal(t, 1, d.dave.heard(NewsApplicationExpired))
}

// Whoever applies again and again is remembered within bounds, and whom there is no room for is told that it is over.
func TestApplyingToMany(t *testing.T) {
	w := begin(t)
	dave := w.person("dave")
	conv := ID{9}
	var all []identity.AccountID
	for i := range maxTold + 8 {
		w.now = w.now.Add(time.Second)
		a := identity.AccountKeyFromSeed([32]byte{1, byte(i)}).ID()
		all = append(all, a)
		_, err := dave.g.Apply(t.Context(), Target{Group: conv, Asks: []Contact{{Account: a}}}, "")
		require.NoError(t, err)
	}
	withdrawn := func() (out []identity.AccountID) {
		for _, l := range w.mail {
			var m pb.GroupApplication
			require.NoError(t, proto.Unmarshal(l.content, &m))
			if len(m.Consent) == 0 {
				out = append(out, l.to)
			}
		}
		return out
	}
	require.Equal(t, all[:8], withdrawn())
	w.mail = nil
	// The same one asked many times takes the room of a few.
	for range 3 * maxToldTo {
		w.now = w.now.Add(time.Second)
		_, err := dave.g.Apply(t.Context(), Target{Group: conv, Asks: []Contact{{Account: all[20]}}}, "")
		require.NoError(t, err)
	}
	require.Len(t, withdrawn(), maxToldTo-1)
	w.mail = nil
	require.NoError(t, dave.g.WithdrawApplication(t.Context(), conv))
	require.ElementsMatch(t, all[8+maxToldTo-1:], withdrawn())
}

// Both admins were asked, one said no and the other passed that on: it is one no, whichever comes first. Whom nobody heard it from, it
// is a no of whoever says so.
func TestNoThatIsPassedOnIsOne(t *testing.T) {
	for seed := range uint64(8) {
		d := beginDeciders(t)
		asks := []*peer{d.alice, d.bob}
		d.applies(asks, asks[:1])
		slices.Reverse(d.mail) // bob hears of it from alice first, so he does not hand it on to her
		d.deliver()
		d.decides(d.bob, false, "bobsays")
		d.scatter(rand.New(rand.NewPCG(seed, 7)))
		for _, p := range []*peer{d.dave, d.dave2} {
			a := p.application(d.conv, d.dave.self.Account)
			require.Equal(t, []Answer{{By: d.bob.self.Account, Reason: "bobsays", Decided: true}}, a.Answers, "%s, seed %d", p.name, seed)
			require.Equal(t, d.bob.self.Account, a.By)
			require.Equal(t, StateRejected, p.info(d.conv).State)
		}
		d.close()
	}
	d := beginDeciders(t)
	d.applies([]*peer{d.alice}, []*peer{d.alice})
	d.deliver() // alice hands it on to bob
	d.decides(d.alice, false, "one")
	content, err := proto.Marshal(&pb.GroupVerdict{
		Group: d.conv[:], Account: d.dave.self.Account.Bytes(), ApplicationMs: d.dave.application(d.conv, d.dave.self.Account).Time.UnixMilli(),
		By: d.carol.self.Account.Bytes(), Reason: "carol says",
	})
	require.NoError(t, err)
	d.dave.update(func(tx *txn) error {
		return d.dave.g.Said(tx, d.alice.self.Account, d.dave.self.Account, feed.KindGroupVerdict, content, d.now)
	})
	require.Equal(t, d.alice.self.Account, d.dave.application(d.conv, d.dave.self.Account).By, "nobody speaks for carol")
}

// Two links were over, and another own device hears both answers before it hears of what was asked, in either order.
func TestTwoAnswersBeforeBothApplications(t *testing.T) {
	for _, swapped := range []bool{false, true} {
		w := begin(t)
		alice, dave, dave2 := w.person("alice"), w.person("dave"), w.person("dave")
		conv := alice.create(Options{})
		for range 2 {
			l, err := alice.g.NewLink(t.Context(), conv, 0, 0)
			require.NoError(t, err)
			_, err = alice.g.RevokeLink(t.Context(), conv, l.Token)
			require.NoError(t, err)
			w.now = w.now.Add(time.Second)
			_, err = dave.g.Apply(t.Context(), Target{Group: conv, Name: "tea", Token: l.Token[:], Asks: []Contact{{Account: alice.self.Account}}}, "")
			require.NoError(t, err)
			alice.hear(w.mail[len(w.mail)-1])
			dave.hear(w.mail[len(w.mail)-1])
		}
		require.Len(t, w.mail, 4)
		dave2.hear(w.mail[1])
		dave2.hear(w.mail[3])
		first, second := w.mail[0], w.mail[2]
		if swapped { // as where one own device made each
			first, second = second, first
		}
		dave2.hear(first)
		dave2.hear(second)
		require.Equal(t, Rejected, dave.application(conv, dave.self.Account).State)
		require.Equal(t, Rejected, dave2.application(conv, dave.self.Account).State, "swapped %v", swapped)
	}
}

// One own device takes back what it asked and had not heard of what another asked, which was answered: both say the same of it.
func TestTakingBackTheEarlierOneOfTwo(t *testing.T) {
	w := begin(t)
	x, y := identity.AccountKeyFromSeed([32]byte{7, 1}).ID(), identity.AccountKeyFromSeed([32]byte{7, 2}).ID()
	dave, dave2 := w.person("dave"), w.person("dave")
	conv := ID{9}
	apply := func(p *peer, to identity.AccountID) letter {
		w.now = w.now.Add(time.Second)
		_, err := p.g.Apply(t.Context(), Target{Group: conv, Asks: []Contact{{Account: to}}}, "")
		require.NoError(t, err)
		return w.mail[len(w.mail)-1]
	}
	dave2.hear(apply(dave, x))
	second := apply(dave2, y)
	at := dave2.application(conv, dave.self.Account).Time.UnixMilli()
	content, err := proto.Marshal(&pb.GroupVerdict{Group: conv[:], ApplicationMs: at, Reason: ReasonExpired})
	require.NoError(t, err)
	no := letter{y, dave.self.Account, identity.DeviceID{1}, feed.KindGroupVerdict, content, w.now}
	dave2.hear(no)
	require.NoError(t, dave.g.WithdrawApplication(t.Context(), conv))
	dave2.hear(w.mail[len(w.mail)-1])
	dave.hear(second)
	dave.hear(no)
	for _, p := range []*peer{dave, dave2} {
		require.Equal(t, Rejected, p.application(conv, dave.self.Account).State)
		require.Equal(t, StateRejected, p.info(conv).State)
	}
}

// What an earlier build kept as turned down stays so, by whom it was and for their reason, whatever is heard of links afterwards.
func TestTurnedDownInAnEarlierBuild(t *testing.T) {
	w := begin(t)
	x, y := identity.AccountKeyFromSeed([32]byte{7, 1}).ID(), identity.AccountKeyFromSeed([32]byte{7, 2}).ID()
	dave := w.person("dave")
	conv, at := ID{9}, w.now.UnixMilli()
	dave.update(func(tx *txn) error {
		return putRow(tx, groupKey(conv), groupRow{State: StateRejected, Ours: true, Asks: []contactRow{{Account: x}, {Account: y}}, Applied: &applicationRow{
			Time: at, Expires: at + 1e9, State: Rejected, Reason: "no", By: x, To: []identity.AccountID{x, y},
		}})
	})
	content, err := proto.Marshal(&pb.GroupVerdict{Group: conv[:], ApplicationMs: at, Reason: ReasonExpired})
	require.NoError(t, err)
	dave.hear(letter{y, dave.self.Account, identity.DeviceID{1}, feed.KindGroupVerdict, content, w.now})
	a := dave.application(conv, dave.self.Account)
	require.Equal(t, []any{Rejected, "no", x, StateRejected}, []any{a.State, a.Reason, a.By, dave.info(conv).State})
}

// Whose no is shown does not depend on the order in which they came.
func TestWhoseNoIsShown(t *testing.T) {
	x, y := identity.AccountID{1}, identity.AccountID{2}
	for _, said := range [][]answerRow{
		{{By: x, Time: 5, Decided: true, Reason: "first"}, {By: y, Time: 5, Decided: true}, {By: y, Time: 4}},
		{{By: y, Time: 5, Decided: true, Reason: "first"}, {By: x, Time: 4, Decided: true}},
		{{By: x, Time: 5, Reason: "first"}, {By: y, Time: 5}, {By: x, Time: 4}},
	} {
		for _, back := range []bool{false, true} {
			if back {
				slices.Reverse(said)
			}
			row := groupRow{Applied: &applicationRow{Time: 5, State: Waiting}, Answers: said}
			row.settle(0)
			require.Equal(t, "first", row.Applied.Reason)
		}
	}
}
