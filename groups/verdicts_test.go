package groups

import (
	"context"
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

// scatter delivers what was said in any order that can happen: what one device says in one conversation stays in order, and
// everything else arrives when it likes.
func (w *world) scatter(r *rand.Rand) {
	w.t.Helper()
	type road struct {
		by, to identity.DeviceID
		with   identity.AccountID
	}
	var order []road // as they came up, so that a seed gives one order
	roads := map[road][]letter{}
	for {
		for _, l := range w.mail {
			for _, p := range w.nodes {
				if p.self.Device == l.device || p.self.Account != l.to && p.self.Account != l.from {
					continue
				}
				at := road{l.device, p.self.Device, l.to}
				if len(roads[at]) == 0 {
					order = append(order, at)
				}
				roads[at] = append(roads[at], l)
			}
		}
		w.mail = nil
		if len(order) == 0 {
			return
		}
		i := r.IntN(len(order))
		at := order[i]
		l := roads[at][0]
		if roads[at] = roads[at][1:]; len(roads[at]) == 0 {
			order = append(order[:i], order[i+1:]...)
		}
		for _, p := range w.nodes {
			if p.self.Device == at.to {
				p.hear(l)
			}
		}
	}
}

// application is what somebody is shown of an account's application.
func (p *peer) application(conv ID, account identity.AccountID) (a Application) {
	p.w.t.Helper()
	p.view(func(tx *txn) error {
		list, err := p.g.Applications(tx, conv)
		for _, x := range list {
			if x.Account == account {
				a = x
			}
		}
		return err
	})
	return a
}

// deciders is a group with two admins, one of them with two devices, a member, and somebody with two devices who wants to come in.
type deciders struct {
	*world
	alice, alice2, bob, carol, dave, dave2 *peer
	conv                                   ID
}

func beginDeciders(t *testing.T) *deciders {
	w := begin(t)
	d := &deciders{
		world: w, alice: w.person("alice"), alice2: w.person("alice"), bob: w.person("bob"), carol: w.person("carol"),
		dave: w.person("dave"), dave2: w.person("dave"),
	}
	d.conv = d.alice.create(Options{Public: true}, d.bob, d.carol)
	require.NoError(t, d.alice.g.Promote(context.Background(), d.conv, d.bob.self.Account))
	w.meet(d.alice, d.alice2, d.bob, d.carol)
	return d
}

// applies lets dave ask, and only those hear of it who are named.
func (d *deciders) applies(asks, hear []*peer) {
	d.t.Helper()
	d.now = d.now.Add(time.Second)
	at := len(d.mail)
	_, err := d.dave.g.Apply(context.Background(), target(d.conv, asks...), "let me in")
	require.NoError(d.t, err)
	for _, l := range append([]letter{}, d.mail[at:]...) {
		for _, p := range hear {
			if p.self.Account == l.to {
				p.hear(l)
			}
		}
	}
}

func (d *deciders) decides(p *peer, approve bool, reason string) {
	d.t.Helper()
	_, err := p.g.Decide(context.Background(), d.conv, d.dave.self.Account, approve, reason)
	require.NoError(d.t, err, p.name)
}

// What one admin turned down is over for the others and for that one's other devices. Members hear nothing of it.
func TestRejectionReachesAdmins(t *testing.T) {
	d := beginDeciders(t)
	ctx := context.Background()
	dave := d.dave.self.Account
	d.applies([]*peer{d.alice}, nil)
	d.deliver()
	require.Equal(t, 1, d.bob.info(d.conv).Applications)
	acts := d.carol.rosterView(d.conv)
	d.decides(d.alice, false, "not now")
	for _, l := range d.mail {
		require.NotEqual(t, d.carol.self.Account, l.to)
	}
	d.deliver()
	d.meet(d.alice, d.bob, d.carol)
	after := d.carol.rosterView(d.conv)
	require.Equal(t, acts.Digest(), after.Digest())
	require.Zero(t, d.carol.application(d.conv, dave))
	for _, p := range []*peer{d.alice, d.alice2, d.bob} {
		a := p.application(d.conv, dave)
		require.Equal(t, Rejected, a.State, p.name)
		require.Equal(t, d.alice.self.Account, a.By, p.name)
		require.Equal(t, "not now", a.Reason, p.name)
		require.Zero(t, p.info(d.conv).Applications, p.name)
		a, err := p.g.Decide(ctx, d.conv, dave, true, "")
		require.ErrorIs(t, err, ErrConflict, "dave was told no")
		require.Equal(t, d.alice.self.Account, a.By, "whoever asks learns why")
	}
	require.Equal(t, 1, d.bob.heard(NewsRejected))
	require.Equal(t, d.alice.self.Account, d.dave.application(d.conv, dave).By)
	// They may ask again, and then anybody decides.
	d.applies([]*peer{d.alice}, nil)
	d.deliver()
	require.Equal(t, 1, d.bob.info(d.conv).Applications)
	d.decides(d.bob, true, "")
	d.meet()
	require.Equal(t, StateMember, d.dave.info(d.conv).State)
	require.Equal(t, StateMember, d.dave2.info(d.conv).State)
}

// An application handed on by an admin of whom there are too many to be told is told to that one too.
func TestRejectionReachesWhoeverHandedOn(t *testing.T) {
	w := begin(t)
	ctx := context.Background()
	alice, dave := w.person("alice"), w.person("dave")
	others := make([]*peer, maxToldOf+1)
	for i := range others {
		others[i] = w.person("admin " + string(rune('a'+i)))
	}
	conv := alice.create(Options{Public: true})
	for _, p := range others {
		alice.letsIn(conv, p)
		require.NoError(t, alice.g.Promote(ctx, conv, p.self.Account))
	}
	view := alice.rosterView(conv)
	weakest := view.People[len(view.People)-1]
	last := others[slices.IndexFunc(others, func(p *peer) bool { return p.self.Account == weakest.Account })]
	alice.gives(last)
	_, err := dave.g.Apply(ctx, target(conv, last), "")
	require.NoError(t, err)
	w.deliver()
	require.Equal(t, Waiting, alice.application(conv, dave.self.Account).State)
	_, err = alice.g.Decide(ctx, conv, dave.self.Account, false, "")
	require.NoError(t, err)
	w.deliver()
	require.Equal(t, Rejected, last.application(conv, dave.self.Account).State)
	require.Equal(t, StateRejected, dave.info(conv).State, "dave listens to nobody but whom he asked, who passes it on")
}

// Who asks again by a link that is over, and takes that back, wants nothing any more: what waited here from before is over as well.
func TestTakingBackTheLastTakesBackAll(t *testing.T) {
	d := beginDeciders(t)
	d.applies([]*peer{d.alice}, []*peer{d.alice, d.bob})
	first := d.alice.application(d.conv, d.dave.self.Account).Time
	at := first.Add(time.Minute).UnixMilli()
	require.NoError(t, d.alice.db.Update(t.Context(), func(tx *txn) error {
		return d.alice.g.unapplied(tx, d.conv, d.dave.self.Account, at)
	}))
	d.meet()
	require.Equal(t, Withdrawn, d.alice.application(d.conv, d.dave.self.Account).State)
	require.Equal(t, Withdrawn, d.bob.application(d.conv, d.dave.self.Account).State, "who was told of the first is told of its end")
}

// An application is named by its time. One that is made after the clock was put back is a newer one all the same.
func TestApplyingAfterTheClockWasPutBack(t *testing.T) {
	w := begin(t)
	alice, dave := w.person("alice"), w.person("dave")
	conv := alice.create(Options{Public: true})
	apply := func() time.Time {
		_, err := dave.g.Apply(t.Context(), target(conv, alice), "")
		require.NoError(t, err)
		w.deliver()
		return alice.application(conv, dave.self.Account).Time
	}
	now := dave.g.now
	dave.g.now = func() time.Time { return now().Add(20 * time.Hour) }
	first := apply()
	_, err := alice.g.Decide(t.Context(), conv, dave.self.Account, false, "")
	require.NoError(t, err)
	w.deliver()
	dave.g.now = now
	require.True(t, apply().After(first))
	require.Equal(t, Waiting, alice.application(conv, dave.self.Account).State)
}

// In whatever order it arrives: one admin turns somebody down whom another one, who has not heard of that, lets in. The act counts.
func TestApprovalBeatsRejection(t *testing.T) {
	for seed := range uint64(12) {
		d := beginDeciders(t)
		r := rand.New(rand.NewPCG(seed, 1))
		d.applies([]*peer{d.alice, d.bob}, []*peer{d.alice, d.bob})
		d.decides(d.alice, false, "no")
		d.decides(d.bob, true, "")
		if seed%2 == 0 {
			d.scatter(r)
			require.Equal(t, StateRejected, d.dave.info(d.conv).State, "as far as dave has heard")
		} else {
			d.meet(d.alice, d.alice2, d.bob, d.carol)
		}
		d.meet()
		d.scatter(r)
		d.meet()
		for _, p := range []*peer{d.alice, d.alice2, d.bob, d.dave, d.dave2} {
			if state := p.application(d.conv, d.dave.self.Account).State; state != "" || p != d.alice2 && p != d.dave2 { // which may hear of the act first
				require.Equal(t, Approved, state, "%s, seed %d", p.name, seed)
			}
			require.Equal(t, StateMember, p.info(d.conv).State, "%s, seed %d", p.name, seed)
		}
		d.same(d.conv, d.alice, d.alice2, d.bob, d.carol, d.dave, d.dave2)
		d.close()
	}
}

// Whatever arrives first, the last word on the newest application is the one that counts.
func TestEndsInAnyOrder(t *testing.T) {
	for seed := range uint64(24) {
		d := beginDeciders(t)
		r := rand.New(rand.NewPCG(seed, 2))
		asks := []*peer{d.alice, d.bob}
		state, theirs := Rejected, StateRejected
		switch seed % 3 {
		case 0: // told to one, who hands it on and turns it down
			d.applies(asks[:1], asks[:1])
			d.decides(d.alice, false, "no")
		case 1: // both turn it down, and dave asks again having heard of one
			d.applies(asks, asks)
			d.decides(d.alice, false, "no")
			d.decides(d.bob, false, "never")
			for _, l := range d.mail {
				if l.device == d.alice.self.Device && l.to == d.dave.self.Account {
					d.dave.hear(l)
				}
			}
			require.Equal(t, StateRejected, d.dave.info(d.conv).State)
			d.applies(asks, nil)
			state, theirs = Waiting, StateApplied
		case 2: // told to one, who hands it on, and taken back
			d.applies(asks[:1], asks[:1])
			require.NoError(t, d.dave.g.WithdrawApplication(context.Background(), d.conv))
			state, theirs = Withdrawn, StateNone
		}
		d.scatter(r)
		for _, p := range []*peer{d.alice, d.alice2, d.bob, d.dave, d.dave2} {
			require.Equal(t, state, p.application(d.conv, d.dave.self.Account).State, "%s, seed %d", p.name, seed)
		}
		for _, p := range []*peer{d.dave, d.dave2} {
			require.Equal(t, theirs, p.info(d.conv).State, "seed %d", seed)
		}
		d.close()
	}
}

// Of how an application ended only admins are believed, only admins learn, and nobody can shut somebody out for ever.
func TestVerdictsOfOthers(t *testing.T) {
	d := beginDeciders(t)
	dave, mallory := d.dave.self.Account, d.person("mallory")
	d.applies([]*peer{d.alice}, nil)
	d.deliver()
	say := func(from, to *peer, m *pb.GroupVerdict) pb.Code {
		t.Helper()
		m.Group = d.conv[:]
		content, err := proto.Marshal(m)
		require.NoError(t, err)
		var code pb.Code
		to.view(func(tx *txn) (err error) {
			code, err = to.g.Listens(tx, from.self.Account, feed.KindGroupVerdict, content)
			return err
		})
		to.hear(letter{from.self.Account, to.self.Account, from.self.Device, feed.KindGroupVerdict, content, d.now})
		return code
	}
	at := d.now.UnixMilli()
	require.Equal(t, pb.Code_CODE_TAKEN, say(d.carol, d.bob, &pb.GroupVerdict{Account: dave[:], ApplicationMs: at}), "who may be an admin soon")
	require.Equal(t, pb.Code_CODE_DENIED, say(mallory, d.bob, &pb.GroupVerdict{Account: dave[:], ApplicationMs: at, Withdrawn: true}))
	require.Equal(t, Waiting, d.bob.application(d.conv, dave).State)
	require.Equal(t, pb.Code_CODE_DENIED, say(d.carol, d.bob, &pb.GroupVerdict{Reason: "of nothing"}))
	require.Equal(t, pb.Code_CODE_TAKEN, say(d.alice, d.carol, &pb.GroupVerdict{Account: dave[:], ApplicationMs: at}), "likewise")
	require.Zero(t, d.carol.application(d.conv, dave), "a member is not told, not even by an admin")
	ahead := d.now.Add(365 * 24 * time.Hour).UnixMilli()
	require.Equal(t, pb.Code_CODE_TAKEN, say(d.alice, d.bob, &pb.GroupVerdict{Account: dave[:], ApplicationMs: ahead}))
	require.Equal(t, Waiting, d.bob.application(d.conv, dave).State)
	say(d.alice, d.bob, &pb.GroupVerdict{Account: d.carol.self.Account[:], ApplicationMs: at})
	require.Zero(t, d.bob.application(d.conv, d.carol.self.Account), "who is in is in")
	// A stranger's verdict on what was not asked of them is nothing, and of many few are kept.
	for i := range 2 * maxKeptOf {
		id := dave
		m := &pb.GroupVerdict{Account: id[:], ApplicationMs: at - int64(i)}
		m.Group = append([]byte{byte(i)}, d.conv[1:]...)
		content, err := proto.Marshal(m)
		require.NoError(t, err)
		d.dave2.hear(letter{mallory.self.Account, dave, mallory.self.Device, feed.KindGroupVerdict, content, d.now})
	}
	kept := 0
	d.dave2.view(func(tx *txn) error {
		return eachRow(tx, []byte(keyVerdict), func([]byte, verdictRow) (bool, error) { kept++; return true, nil })
	})
	require.LessOrEqual(t, kept, maxKeptOf)
	require.Equal(t, StateApplied, d.dave2.info(d.conv).State)
}
