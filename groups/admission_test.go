package groups

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"hima/groups/roster"
	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/storage"
)

// The table of steps, whole: whoever is not named in it may not.
func TestAdvance(t *testing.T) {
	allowed := map[[4]any]string{
		{anInvitation, Waiting, takeBack, inviter}: Withdrawn, {anInvitation, Waiting, agree, candidate}: Accepted,
		{anInvitation, Waiting, refuse, candidate}: Declined, {anInvitation, Waiting, lapse, clock}: Expired,
		{anApplication, Waiting, takeBack, candidate}: Withdrawn, {anApplication, Waiting, agree, decider}: Approved,
		{anApplication, Waiting, refuse, decider}: Rejected, {anApplication, Waiting, lapse, clock}: Expired,
		{anApplication, Waiting, enter, act}: Approved, {anApplication, Rejected, enter, act}: Approved,
		{anApplication, Withdrawn, enter, act}: Approved, {anApplication, Expired, enter, act}: Approved,
	}
	n := 0
	for _, what := range []thing{anInvitation, anApplication} {
		for _, from := range []string{"", Waiting, Accepted, Declined, Approved, Rejected, Withdrawn, Expired} {
			for do := ask; do <= enter; do++ {
				for by := inviter; by <= act; by++ {
					to, ok := advance(what, from, do, by)
					want, may := allowed[[4]any{what, from, do, by}]
					if do == ask {
						may = what == anInvitation && by == inviter || what == anApplication && by == candidate
						want = Waiting
					}
					require.Equal(t, may, ok, "%d %q %d %d", what, from, do, by)
					if ok {
						require.Equal(t, want, to)
						n++
					}
				}
			}
		}
	}
	require.Equal(t, 12+2*8, n)
}

func target(conv ID, asks ...*peer) Target {
	out := Target{Group: conv, Name: "tea", Join: "apply"}
	for _, p := range asks {
		out.Asks = append(out.Asks, Contact{Account: p.self.Account})
	}
	return out
}

func TestDecline(t *testing.T) {
	w := begin(t)
	ctx := context.Background()
	alice, bob := w.person("alice"), w.person("bob")
	conv := alice.create(Options{})
	state, err := alice.g.Invite(ctx, conv, bob.self.Account)
	require.NoError(t, err)
	require.Equal(t, Waiting, state)
	w.deliver()
	require.Equal(t, StateInvited, bob.info(conv).State)
	_, err = bob.g.Answer(ctx, conv, false)
	require.NoError(t, err)
	w.deliver()
	require.Equal(t, StateNone, bob.info(conv).State)
	require.Equal(t, 1, alice.heard(NewsInvitationDeclined))
	require.Equal(t, 1, alice.info(conv).Size)
	_, err = bob.g.Answer(ctx, conv, true)
	require.ErrorIs(t, err, ErrNotFound, "what was declined is not accepted later")
	// Taken back before it is answered.
	_, err = alice.g.Invite(ctx, conv, bob.self.Account)
	require.NoError(t, err)
	w.deliver()
	require.NoError(t, alice.g.Withdraw(ctx, conv, bob.self.Account))
	require.ErrorIs(t, alice.g.Withdraw(ctx, conv, bob.self.Account), ErrNotFound)
	w.deliver()
	_, err = bob.g.Answer(ctx, conv, true)
	require.ErrorIs(t, err, ErrNotFound)
	require.Equal(t, 1, bob.heard(NewsInvitationWithdrawn))
	// Answered when it is taken back: the answer comes to nothing.
	_, err = alice.g.Invite(ctx, conv, bob.self.Account)
	require.NoError(t, err)
	w.deliver()
	require.NoError(t, alice.g.Withdraw(ctx, conv, bob.self.Account))
	_, err = bob.g.Answer(ctx, conv, true)
	require.NoError(t, err)
	w.deliver()
	w.meet()
	require.Equal(t, 1, alice.info(conv).Size)
	require.NotEqual(t, StateMember, bob.info(conv).State)
}

func TestInvitationExpires(t *testing.T) {
	w := begin(t)
	ctx := context.Background()
	alice, bob := w.person("alice"), w.person("bob")
	conv := alice.create(Options{})
	_, err := alice.g.Invite(ctx, conv, bob.self.Account)
	require.NoError(t, err)
	w.deliver()
	w.now = w.now.Add(31 * 24 * time.Hour)
	_, err = bob.g.Answer(ctx, conv, true)
	require.ErrorIs(t, err, ErrExpired)
	alice.g.lookAfter(ctx)
	bob.g.lookAfter(ctx)
	require.Equal(t, 1, alice.heard(NewsInvitationExpired))
	require.Equal(t, 1, bob.heard(NewsInvitationExpired))
	require.Equal(t, StateNone, bob.info(conv).State)
}

func TestApplyApproveReject(t *testing.T) {
	w := begin(t)
	ctx := context.Background()
	alice, bob, carol, dave := w.person("alice"), w.person("bob"), w.person("carol"), w.person("dave")
	conv := alice.create(Options{Public: true}, bob)
	require.NoError(t, alice.g.Promote(ctx, conv, bob.self.Account))
	w.meet()
	for _, p := range []*peer{carol, dave} {
		in, err := p.g.Apply(ctx, target(conv, alice), "let me in")
		require.NoError(t, err)
		require.Equal(t, StateApplied, in.State)
	}
	w.deliver()
	require.Equal(t, 2, alice.info(conv).Applications)
	require.Equal(t, 2, bob.info(conv).Applications, "any admin decides")
	app, err := bob.g.Decide(ctx, conv, carol.self.Account, true, "")
	require.NoError(t, err)
	require.Equal(t, Approved, app.State)
	require.Equal(t, "let me in", app.Message)
	_, err = bob.g.Decide(ctx, conv, carol.self.Account, false, "")
	require.ErrorIs(t, err, ErrConflict)
	_, err = alice.g.Decide(ctx, conv, dave.self.Account, false, "not now")
	require.NoError(t, err)
	w.meet()
	// Carol was never online together with bob, who approved: alice told her.
	require.Equal(t, StateMember, carol.info(conv).State)
	own := []Application{}
	carol.view(func(tx *txn) (err error) { own, err = carol.g.Applications(tx, conv); return err })
	require.Len(t, own, 1)
	require.Equal(t, Approved, own[0].State)
	require.Equal(t, StateRejected, dave.info(conv).State)
	require.Equal(t, 1, dave.heard(NewsRejected))
	require.Equal(t, 1, alice.heard(NewsApproved))
	require.Equal(t, 0, alice.info(conv).Applications)
	apps := []Application{}
	dave.view(func(tx *txn) (err error) { apps, err = dave.g.Applications(tx, ID{}); return err })
	require.Len(t, apps, 1)
	require.Equal(t, "not now", apps[0].Reason)
	require.True(t, apps[0].Own)
	w.same(conv, alice, bob, carol)
	// Again, withdrawn.
	_, err = dave.g.Apply(ctx, target(conv, alice), "please")
	require.NoError(t, err)
	w.deliver()
	require.NoError(t, dave.g.WithdrawApplication(ctx, conv))
	w.deliver()
	_, err = alice.g.Decide(ctx, conv, dave.self.Account, true, "")
	require.ErrorIs(t, err, ErrConflict)
	require.ErrorIs(t, dave.g.WithdrawApplication(ctx, conv), ErrNotFound)
}

// The one who lets others in and the one who is let in are never there together: others carry the acts.
func TestNeverOnlineTogether(t *testing.T) {
	w := begin(t)
	ctx := context.Background()
	alice, bob, carol := w.person("alice"), w.person("bob"), w.person("carol")
	conv := alice.create(Options{Public: true}, bob)
	_, err := carol.g.Apply(ctx, target(conv, alice), "")
	require.NoError(t, err)
	w.deliver()
	_, err = alice.g.Decide(ctx, conv, carol.self.Account, true, "")
	require.NoError(t, err)
	alice.gives(bob)
	// Bob does not know carol as one he asked, but she knows alice only: what binds them is the group.
	carol.update(func(tx *txn) error { return carol.g.shareWith(tx, conv, []contactRow{{Account: bob.self.Account}}) })
	bob.gives(carol)
	require.Equal(t, StateMember, carol.info(conv).State)
	w.same(conv, alice, bob, carol)
}

func TestOpenGroup(t *testing.T) {
	w := begin(t)
	ctx := context.Background()
	alice, bob, carol := w.person("alice"), w.person("bob"), w.person("carol")
	conv := alice.create(Options{Public: true, Join: "open"}, bob)
	_, err := carol.g.Apply(ctx, target(conv, bob), "") // a member who is no admin
	require.NoError(t, err)
	w.deliver()
	w.meet()
	require.Equal(t, StateMember, carol.info(conv).State)
	w.same(conv, alice, bob, carol)
}

func TestLinks(t *testing.T) {
	w := begin(t)
	ctx := context.Background()
	alice, bob, carol, dave := w.person("alice"), w.person("bob"), w.person("carol"), w.person("dave")
	conv := alice.create(Options{}, dave)
	_, err := dave.g.NewLink(ctx, conv, 0, 0)
	require.ErrorIs(t, err, ErrNotAllowed)
	link, err := alice.g.NewLink(ctx, conv, time.Hour, 1)
	require.NoError(t, err)
	parsed, err := identity.ParseGroupLink(link.Text)
	require.NoError(t, err)
	require.Equal(t, identity.GroupID(conv), parsed.Group)
	to := Target{Group: conv, Name: parsed.Name, Token: parsed.Token[:], Asks: []Contact{parsed.Asks}}
	apply := func(p *peer) {
		t.Helper()
		_, err := p.g.Apply(ctx, to, "by link")
		require.NoError(t, err)
		w.deliver()
	}
	// over: whoever comes by a link that is over is told so, and nothing waits here.
	over := func(reason string) {
		t.Helper()
		content, err := proto.Marshal(&pb.GroupApplication{Group: conv[:], Consent: []byte("one"), Token: to.Token})
		require.NoError(t, err)
		alice.view(func(tx *txn) error {
			code, err := alice.g.Listens(tx, carol.self.Account, feed.KindGroupApplication, content)
			require.Equal(t, pb.Code_CODE_TAKEN, code, reason)
			return err
		})
		apply(carol)
		require.Equal(t, 1, alice.info(conv).Applications, reason)
		require.Equal(t, StateRejected, carol.info(conv).State)
		carol.view(func(tx *txn) error {
			list, err := carol.g.Applications(tx, conv)
			require.Len(t, list, 1)
			require.Equal(t, reason, list[0].Reason)
			return err
		})
	}
	used := func() int {
		t.Helper()
		var links []Link
		alice.view(func(tx *txn) (err error) { links, err = alice.g.Links(tx, conv); return err })
		for _, l := range links {
			if l.Token == identity.InviteToken(to.Token) {
				return l.Used
			}
		}
		return 0
	}
	apply(bob)
	require.Equal(t, 1, alice.info(conv).Applications)
	require.Equal(t, StateApplied, bob.info(conv).State, "a link lets nobody in")
	over(ReasonUsedUp)
	require.Equal(t, 1, used())
	require.NoError(t, bob.g.WithdrawApplication(ctx, conv))
	w.deliver()
	w.now = w.now.Add(time.Second)
	apply(bob)
	require.Equal(t, 1, alice.info(conv).Applications, "his use was counted already")
	require.Equal(t, 1, used())
	link, err = alice.g.NewLink(ctx, conv, time.Hour, 0)
	require.NoError(t, err)
	to.Token = link.Token[:]
	w.now = w.now.Add(2 * time.Hour)
	over(ReasonExpired)
	link, err = alice.g.NewLink(ctx, conv, 0, 1)
	require.NoError(t, err)
	to.Token = link.Token[:]
	require.NoError(t, bob.g.WithdrawApplication(ctx, conv))
	w.deliver()
	apply(bob)
	require.Equal(t, 1, used(), "who came by another link before uses up this one too")
	over(ReasonUsedUp)
	link, err = alice.g.NewLink(ctx, conv, 0, 0)
	require.NoError(t, err)
	to.Token = link.Token[:]
	_, err = alice.g.RevokeLink(ctx, conv, link.Token)
	require.NoError(t, err)
	_, err = alice.g.RevokeLink(ctx, conv, identity.NewInviteToken())
	require.ErrorIs(t, err, ErrNotFound)
	over(ReasonRevoked)
	_, err = alice.g.Decide(ctx, conv, bob.self.Account, true, "")
	require.NoError(t, err)
	w.meet()
	require.Equal(t, StateMember, bob.info(conv).State)
}

// What a stranger may begin with.
func TestListens(t *testing.T) {
	w := begin(t)
	ctx := context.Background()
	alice, bob := w.person("alice"), w.person("bob")
	closed := alice.create(Options{Name: "closed"})
	public := alice.create(Options{Name: "public", Public: true})
	link, err := alice.g.NewLink(ctx, closed, 0, 0)
	require.NoError(t, err)
	listens := func(conv ID, token []byte) (code pb.Code) {
		_, err := bob.g.Apply(ctx, Target{Group: conv, Token: token, Asks: []Contact{{Account: alice.self.Account}}}, "")
		require.NoError(t, err)
		l := w.mail[len(w.mail)-1]
		w.mail = nil
		alice.view(func(tx *txn) (err error) {
			code, err = alice.g.Listens(tx, bob.self.Account, l.kind, l.content)
			return err
		})
		return code
	}
	require.Equal(t, pb.Code_CODE_TAKEN, listens(public, nil))
	require.Equal(t, pb.Code_CODE_DENIED, listens(closed, nil))
	require.Equal(t, pb.Code_CODE_TAKEN, listens(closed, link.Token[:]))
	require.Equal(t, pb.Code_CODE_DENIED, listens(ID{9}, nil))
	for _, kind := range []feed.Kind{feed.KindGroupAnswer, feed.KindGroupApplication, feed.KindGroupVerdict} {
		alice.view(func(tx *txn) error {
			code, err := alice.g.Listens(tx, bob.self.Account, kind, []byte{0xff})
			require.Equal(t, pb.Code_CODE_DENIED, code)
			return err
		})
	}
}

// A consent lets in once: who went is not fetched back with what they signed long ago.
func TestOldConsentIsWorthNothing(t *testing.T) {
	w := begin(t)
	ctx := context.Background()
	alice, bob := w.person("alice"), w.person("bob")
	conv := alice.create(Options{})
	_, err := alice.g.Invite(ctx, conv, bob.self.Account)
	require.NoError(t, err)
	w.deliver()
	_, err = bob.g.Answer(ctx, conv, true)
	require.NoError(t, err)
	answer := w.mail[len(w.mail)-1]
	w.deliver()
	w.meet()
	require.NoError(t, bob.g.Leave(ctx, conv))
	w.meet()
	require.Equal(t, 1, alice.info(conv).Size)
	alice.hear(answer)
	require.Equal(t, 1, alice.info(conv).Size)
	var m pb.GroupAnswer
	require.NoError(t, unmarshal(answer.content, &m))
	c, err := identity.ParseConsent(m.Consent)
	require.NoError(t, err)
	require.ErrorIs(t, alice.db.Update(ctx, func(tx *txn) error { return alice.g.admit(tx, conv, c) }), ErrNotAllowed)
	w.now = w.now.Add(time.Second)
	// Let in anew by a new consent.
	alice.letsIn(conv, bob)
	w.meet()
	require.Equal(t, StateMember, bob.info(conv).State)
	w.same(conv, alice, bob)
}

// Another device of an account learns what the first one does.
func TestOwnDevices(t *testing.T) {
	w := begin(t)
	ctx := context.Background()
	alice, bob, bob2 := w.person("alice"), w.person("bob"), w.person("bob")
	conv := alice.create(Options{})
	alice.letsIn(conv, bob)
	require.Equal(t, StateJoining, bob2.info(conv).State)
	w.meet()
	require.Equal(t, StateMember, bob2.info(conv).State)
	bob2.says(conv, "from the second")
	w.meet()
	require.Equal(t, []string{"from the second"}, alice.texts(conv))
	// A group that one device made comes to the other one.
	own := bob.create(Options{Name: "mine"})
	bob.gives(bob2)
	require.Equal(t, roster.Owner, bob2.info(own).Role)
	// The device is lost.
	was := bob2.rosterView(conv)
	e, _ := was.Current()
	require.ErrorIs(t, bob.g.RevokeDevice(ctx, bob.self.Device), ErrInvalid)
	require.NoError(t, bob.g.RevokeDevice(ctx, bob2.self.Device))
	w.revoke(bob2)
	bob2.says(conv, "the thief")
	w.meet(alice, bob)
	bob2.gives(alice)
	require.Equal(t, []string{"from the second"}, alice.texts(conv))
	said := alice.says(conv, "after")
	require.NotEqual(t, e.ID, roster.ID(said.Epoch))
	w.meet()
	require.NotContains(t, bob2.keysHeld(conv), roster.ID(said.Epoch))
	require.Contains(t, bob.keysHeld(conv), roster.ID(said.Epoch))
}

// However often one account changes from one link to another and back, it uses up each of them once.
func TestAlternatingLinks(t *testing.T) {
	w := begin(t)
	ctx := context.Background()
	alice, bob, carol, dave := w.person("alice"), w.person("bob"), w.person("carol"), w.person("dave")
	conv := alice.create(Options{})
	tokens := make([]identity.InviteToken, 2)
	for i := range tokens {
		l, err := alice.g.NewLink(ctx, conv, 0, 2)
		require.NoError(t, err)
		tokens[i] = l.Token
	}
	apply := func(p *peer, token identity.InviteToken, want State) {
		t.Helper()
		w.now = w.now.Add(time.Second)
		_, err := p.g.Apply(ctx, Target{Group: conv, Name: "tea", Token: token[:], Asks: []Contact{{Account: alice.self.Account}}}, "")
		require.NoError(t, err)
		w.deliver()
		require.Equal(t, want, p.info(conv).State)
	}
	used := func(want ...int) {
		t.Helper()
		alice.view(func(tx *txn) error {
			links, err := alice.g.Links(tx, conv)
			for _, l := range links {
				require.Equal(t, want[slices.Index(tokens, l.Token)], l.Used)
			}
			return err
		})
	}
	for range 3 {
		apply(bob, tokens[0], StateApplied)
		apply(bob, tokens[1], StateApplied)
	}
	used(1, 1)
	apply(carol, tokens[0], StateApplied)
	apply(dave, tokens[0], StateRejected)
	apply(bob, tokens[1], StateApplied)
	apply(bob, tokens[0], StateApplied) // used up, but bob is one of those who did
	used(2, 1)
	_, err := alice.g.RevokeLink(ctx, conv, tokens[0])
	require.NoError(t, err)
	apply(bob, tokens[0], StateApplied) // what came by the other one waits
	require.NoError(t, bob.g.WithdrawApplication(ctx, conv))
	w.deliver()
	require.Equal(t, Withdrawn, alice.application(conv, bob.self.Account).State)
	apply(bob, tokens[0], StateRejected)
	alice.view(func(tx *txn) error {
		n := 0
		err := tx.Scan(storage.ScanOptions{Prefix: []byte(keyUsed), KeysOnly: true}, func([]byte, []byte) (bool, error) { n++; return true, nil })
		require.Equal(t, 1, n, "of a link that is gone nothing is kept")
		return err
	})
}

// Strangers do not use up what one admin may say to another: beyond a rate their applications wait with whoever was asked, and so does
// the news that one was taken back.
func TestHandingOnIsBounded(t *testing.T) {
	d := beginDeciders(t)
	dave := d.dave.self.Account
	n := 0
	for bob := d.bob.self.Account; d.alice.g.mayHandOn(bob, nil) || d.alice2.g.mayHandOn(bob, nil); n++ {
	}
	require.Less(t, n, 2*100, "whoever makes us start anew gains little")
	d.applies([]*peer{d.alice}, nil)
	d.deliver()
	require.Equal(t, Waiting, d.alice.application(d.conv, dave).State)
	require.Zero(t, d.bob.application(d.conv, dave))
	require.NoError(t, d.dave.g.WithdrawApplication(t.Context(), d.conv))
	d.mail = d.mail[:1]
	d.alice.hear(d.mail[0])
	require.Equal(t, Withdrawn, d.alice.application(d.conv, dave).State)
	require.Len(t, d.mail, 1, "bob knows nothing of it")
	// What is asked again is taken back everywhere if any of it was handed on.
	d.now = d.now.Add(5 * time.Minute)
	d.applies([]*peer{d.alice}, nil)
	d.applies([]*peer{d.alice}, nil)
	d.deliver()
	require.Equal(t, Waiting, d.bob.application(d.conv, dave).State)
	require.NoError(t, d.dave.g.WithdrawApplication(t.Context(), d.conv))
	d.deliver()
	require.Equal(t, Withdrawn, d.bob.application(d.conv, dave).State)
}

// What an applicant sends along besides is not handed on: other admins hear of one another within a quota.
func TestNothingBesidesIsHandedOn(t *testing.T) {
	d := beginDeciders(t)
	d.applies([]*peer{d.alice}, nil)
	l := d.mail[0]
	var m pb.GroupApplication
	require.NoError(t, proto.Unmarshal(l.content, &m))
	for range 900 {
		m.Owners = append(m.Owners, l.from[:])
	}
	var err error
	l.content, err = proto.Marshal(&m)
	require.NoError(t, err)
	d.mail = nil
	d.alice.hear(l)
	require.NotEmpty(t, d.mail)
	for _, l := range d.mail {
		require.Less(t, len(l.content), 1<<10)
	}
}

// Two admins of a group are fellows, and nobody else is.
func TestFellows(t *testing.T) {
	d := beginDeciders(t)
	fellow := func(p, o *peer) (is bool) {
		p.view(func(tx *txn) (err error) { is, err = p.g.Fellow(tx, o.self.Account); return err })
		return is
	}
	require.True(t, fellow(d.alice, d.bob))
	require.True(t, fellow(d.bob, d.alice))
	require.False(t, fellow(d.alice, d.carol))
	require.False(t, fellow(d.carol, d.alice))
	require.False(t, fellow(d.alice, d.dave))
	require.NoError(t, d.alice.g.Demote(t.Context(), d.conv, d.bob.self.Account))
	require.False(t, fellow(d.alice, d.bob))
	require.NoError(t, d.alice.g.Promote(t.Context(), d.conv, d.bob.self.Account))
	require.True(t, fellow(d.alice, d.bob))
	require.NoError(t, d.alice.g.Dissolve(t.Context(), d.conv))
	require.False(t, fellow(d.alice, d.bob))
}
