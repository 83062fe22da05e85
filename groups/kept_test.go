package groups

import (
	"context"
	"math/rand/v2"
	"strings"
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

// What an admin says who became one a moment ago counts, whether it arrives before the act that made them one or after it.
func TestVerdictBeforePromotion(t *testing.T) {
	for _, first := range []bool{true, false} {
		d := beginDeciders(t)
		dave := d.dave.self.Account
		d.applies([]*peer{d.bob}, []*peer{d.bob})
		d.deliver()
		require.Equal(t, Waiting, d.alice.application(d.conv, dave).State)
		// Carol is promoted, which bob hears late, and is told of the application.
		require.NoError(t, d.alice.g.Promote(t.Context(), d.conv, d.carol.self.Account))
		d.alice.gives(d.carol)
		d.carol.update(func(tx *txn) error {
			row, _, err := getRow[applicationRow](tx, applyKey(d.conv, dave))
			require.NoError(t, err)
			require.Empty(t, row.State)
			var app applicationRow
			d.bob.view(func(tx *txn) (err error) {
				app, _, err = getRow[applicationRow](tx, applyKey(d.conv, dave))
				return err
			})
			return putRow(tx, applyKey(d.conv, dave), app)
		})
		if !first {
			d.carol.gives(d.bob)
		}
		d.decides(d.carol, false, "not now")
		d.deliver()
		if first {
			require.Equal(t, Waiting, d.bob.application(d.conv, dave).State, "carol is nobody yet")
			d.carol.gives(d.bob)
		}
		a := d.bob.application(d.conv, dave)
		require.Equal(t, Rejected, a.State)
		require.Equal(t, d.carol.self.Account, a.By)
		require.Equal(t, 1, d.bob.heard(NewsRejected))
		d.deliver()
		require.Equal(t, StateRejected, d.dave.info(d.conv).State, "whom dave asked passes it on")
		d.bob.view(func(tx *txn) error {
			return eachRow(tx, []byte(keyVerdict), func([]byte, verdictRow) (bool, error) { t.Fatal("kept for nothing"); return false, nil })
		})
		d.close()
	}
}

// However much admins said, nothing of it keeps the act out upon which it is believed. It is judged when that is stored, some at a time.
func TestManyVerdictsBeforeOwnPromotion(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		w := begin(t)
		alice, bob := w.person("alice"), w.person("bob", Limits{Applications: 4})
		admins := []*peer{alice, w.person("admin a"), w.person("admin b")}
		conv := alice.create(Options{}, append([]*peer{bob}, admins[1:]...)...)
		for _, a := range admins[1:] {
			require.NoError(t, alice.g.Promote(t.Context(), conv, a.self.Account))
		}
		alice.gives(bob)
		v := verdictRow{Time: w.now.UnixMilli(), Decided: true, Reason: strings.Repeat("\x01", MaxReason)} // six bytes each on disk
		for n, a := range admins {
			bob.update(func(tx *txn) error {
				for i := range maxKeptOf {
					account := identity.AccountKeyFromSeed([32]byte{8, byte(i), byte(n)}).ID()
					if err := putRow(tx, verdictKey(a.self.Account, conv, account), v); err != nil {
						return err
					}
				}
				return nil
			})
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		run := func() { done <- bob.g.keep(ctx) }
		if !restarted {
			go run()
		}
		require.NoError(t, alice.g.Promote(t.Context(), conv, bob.self.Account))
		alice.givesGroup(bob, conv)
		view := bob.rosterView(conv)
		require.Equal(t, RoleAdmin, view.Role(bob.self.Account))
		if restarted {
			require.Equal(t, len(admins)*maxKeptOf, bob.kept())
			bob.g.ripe = false // as that is not on disk
			go run()
		}
		require.Eventually(t, func() bool { return bob.kept() == 0 }, time.Minute, 10*time.Millisecond)
		bob.view(func(tx *txn) error {
			list, err := bob.g.Applications(tx, conv)
			require.NotEmpty(t, list)
			require.Equal(t, Rejected, list[0].State)
			return err
		})
		stop()
		require.NoError(t, <-done)
	}
}

// Who has not heard yet of having become an admin hears afterwards what was said as to one.
func TestVerdictBeforeOwnPromotion(t *testing.T) {
	for seed := range uint64(8) {
		d := beginDeciders(t)
		r := rand.New(rand.NewPCG(seed, 6))
		dave := d.dave.self.Account
		d.applies([]*peer{d.alice}, []*peer{d.alice})
		require.NoError(t, d.alice.g.Promote(t.Context(), d.conv, d.carol.self.Account))
		d.decides(d.alice, false, "no")
		if seed%2 == 0 {
			d.scatter(r)
			require.Zero(t, d.carol.application(d.conv, dave), "a member is told nothing")
		}
		d.alice.gives(d.carol)
		d.scatter(r)
		require.Equal(t, Rejected, d.carol.application(d.conv, dave).State, "seed %d", seed)
		// And so what comes by another road does not wait there.
		content := d.said(d.dave, d.alice)
		d.carol.hear(letter{d.alice.self.Account, d.carol.self.Account, d.alice.self.Device, feed.KindGroupApplication, content, d.now})
		require.Zero(t, d.carol.info(d.conv).Applications)
		d.close()
	}
}

// said makes what an application of somebody's looks like, as it was said to somebody.
func (d *deciders) said(p, to *peer) []byte {
	d.t.Helper()
	at := to.application(d.conv, p.self.Account).Time
	c, err := p.g.consents(d.conv, true, "let me in", at)
	require.NoError(d.t, err)
	content, err := proto.Marshal(&pb.GroupApplication{Group: d.conv[:], Consent: c.Raw()})
	require.NoError(d.t, err)
	return content
}

// An approval is an act, and waits for what it stands upon like any other.
func TestApprovalBeforePromotion(t *testing.T) {
	d := beginDeciders(t)
	dave := d.dave.self.Account
	require.NoError(t, d.alice.g.Promote(t.Context(), d.conv, d.carol.self.Account))
	d.alice.gives(d.carol)
	d.applies([]*peer{d.carol, d.bob}, []*peer{d.carol, d.bob})
	d.decides(d.carol, true, "")
	id := d.carol.rep.OwnFeed(d.conv, feed.Control)
	var head feed.Head
	d.carol.view(func(tx *txn) (err error) { head, _, err = d.carol.rep.Head(tx, id); return err })
	d.carol.givesFeed(d.bob, id, head, nil)
	require.Equal(t, Waiting, d.bob.application(d.conv, dave).State)
	d.alice.gives(d.bob)
	require.Equal(t, Approved, d.bob.application(d.conv, dave).State)
}

// Kept or not, nobody is believed who never becomes an admin, and what was kept goes after a while.
func TestKeptVerdictsOfMembers(t *testing.T) {
	d := beginDeciders(t)
	dave := d.dave.self.Account
	d.applies([]*peer{d.bob}, []*peer{d.bob})
	at := d.now.UnixMilli()
	content, err := proto.Marshal(&pb.GroupVerdict{Group: d.conv[:], Account: dave[:], ApplicationMs: at})
	require.NoError(t, err)
	d.bob.hear(letter{d.carol.self.Account, d.bob.self.Account, d.carol.self.Device, feed.KindGroupVerdict, content, d.now})
	require.Equal(t, 1, d.bob.kept())
	require.NoError(t, d.alice.g.Set(t.Context(), d.conv, "description", "more"))
	d.meet(d.alice, d.bob, d.carol)
	require.Equal(t, Waiting, d.bob.application(d.conv, dave).State)
	d.now = d.now.Add(31 * 24 * time.Hour)
	d.bob.g.lookAfter(t.Context())
	require.Zero(t, d.bob.kept())
}

func (p *peer) kept() (n int) {
	p.view(func(tx *txn) error {
		return tx.Scan(storage.ScanOptions{Prefix: []byte(keyVerdict), KeysOnly: true}, func([]byte, []byte) (bool, error) { n++; return true, nil })
	})
	return n
}

// However much one account says, what others said stays, and the room for all is bounded.
func TestKeptVerdictsOfOneAccount(t *testing.T) {
	w := begin(t)
	dave, dave2 := w.person("dave"), w.person("dave")
	account := func(i int) identity.AccountID {
		return identity.AccountKeyFromSeed([32]byte{2, byte(i), byte(i >> 8)}).ID()
	}
	say := func(from identity.AccountID, n int, at int64) {
		content, err := proto.Marshal(&pb.GroupVerdict{Group: append([]byte{byte(n), byte(n >> 8)}, make([]byte, 30)...), Account: dave.self.Account[:], ApplicationMs: at})
		require.NoError(t, err)
		dave2.hear(letter{from, dave.self.Account, identity.DeviceID{1}, feed.KindGroupVerdict, content, w.now})
	}
	honest, hostile := account(0), account(1)
	// Dave applies to one that this device hears of late, and to which the answer comes first.
	_, err := dave.g.Apply(t.Context(), Target{Group: ID{1}, Asks: []Contact{{Account: honest}}}, "")
	require.NoError(t, err)
	told := w.mail[0]
	say(honest, 1, w.now.UnixMilli())
	for i := range 4 * maxKeptOf {
		w.now = w.now.Add(time.Second)
		say(hostile, i, w.now.Add(time.Hour).UnixMilli()) // as late as may be
	}
	require.Equal(t, 1+maxKeptOf, dave2.kept())
	dave2.hear(told)
	require.Equal(t, StateRejected, dave2.info(ID{1}).State)
	// Many of them together fill the room, and the one who has most gives way.
	say(honest, 2, w.now.UnixMilli())
	for i := range maxKept {
		say(account(2+i%32), i, w.now.UnixMilli())
	}
	require.Equal(t, maxKept, dave2.kept())
	dave2.view(func(tx *txn) error {
		ok, err := tx.Has(dave2.g.ownVerdictKey(honest, ID{2}, w.now.UnixMilli()))
		require.True(t, ok)
		return err
	})
}

// A device made from the phrase hears what was decided before it has a roster: of its own account, in the feeds that contacts kept, and
// of other admins. Nothing of that waits for a decision there.
func TestRestoredDeviceKnowsWhatWasDecided(t *testing.T) {
	d := beginDeciders(t)
	ctx := context.Background()
	carol := d.carol.self.Account
	require.NoError(t, d.carol.g.Leave(ctx, d.conv))
	d.meet()
	d.now = d.now.Add(time.Hour)
	_, err := d.carol.g.Apply(ctx, target(d.conv, d.bob), "")
	require.NoError(t, err)
	d.applies([]*peer{d.bob}, nil)
	var all []letter
	pass := func() {
		t.Helper()
		for len(d.mail) > 0 {
			l := d.mail[0]
			all, d.mail = append(all, l), d.mail[1:]
			for _, p := range d.nodes {
				if p.self.Device != l.device && (p.self.Account == l.to || p.self.Account == l.from) {
					p.hear(l)
				}
			}
		}
	}
	pass()
	require.Equal(t, 2, d.bob.info(d.conv).Applications)
	d.decides(d.bob, false, "bob says no")
	_, err = d.alice.g.Decide(ctx, d.conv, carol, false, "alice says no")
	require.NoError(t, err)
	pass()

	bob2 := d.bob.restored(d.bob.remembered())
	for _, l := range all {
		if l.from == bob2.self.Account || l.to == bob2.self.Account {
			bob2.hear(l)
		}
	}
	d.meet()
	require.Equal(t, StateMember, bob2.info(d.conv).State)
	require.Equal(t, roster.Admin, bob2.info(d.conv).Role)
	require.Zero(t, bob2.info(d.conv).Applications)
	for _, l := range all { // and if they come again, as from those who ask
		if l.to == bob2.self.Account {
			bob2.hear(l)
		}
	}
	require.Zero(t, bob2.info(d.conv).Applications)
	require.Equal(t, d.bob.self.Account, bob2.application(d.conv, d.dave.self.Account).By)
	require.Equal(t, d.alice.self.Account, bob2.application(d.conv, carol).By)
}
