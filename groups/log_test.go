package groups

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/mailbox"
	"hima/internal/replica"
	"hima/internal/wire/pb"
)

// A message whose author is gone before anybody else was there reaches all from the group's log, and counts as sent as soon
// as the log has it.
func TestLogStandsInForItsAuthor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVillage(t, 5)
		box, _ := v.office(0, mailbox.ServerLimits{})
		alice, bob, carol := v.villager("alice", 1, box), v.villager("bob", 2, box), v.villager("carol", 3, box)
		conv := v.found(alice.up(), bob.up(), carol.up())
		bob.down()
		carol.down()
		begun := time.Now()
		e := alice.text(conv, "is anybody there")
		v.until("the log has it", time.Minute, func() bool { return alice.inLog(e) })
		if d := time.Since(begun); d < 2*time.Second || d > 5*time.Second {
			t.Errorf("left in the log after %v", d)
		}
		alice.mu.Lock()
		sent := false
		for _, h := range alice.held {
			sent = sent || h.Peer == (replica.Peer{}) && h.Feed == e.Feed() && h.From <= e.Seq && e.Seq <= h.Last
		}
		alice.mu.Unlock()
		require.True(t, sent, "nobody was told of the custody")
		alice.text(conv, "then I go") // and so fast that no pause is over
		alice.down()
		for _, p := range []*villager{carol, bob} {
			p.up()
			v.until(p.name+" reads the log", 30*time.Second, func() bool { return p.has(conv, "is anybody there") && p.has(conv, "then I go") })
			p.down()
		}
	})
}

// A member who was away gets everything from the log, also from several authors, and once.
func TestLogBringsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVillage(t, 6)
		one, _ := v.office(0, mailbox.ServerLimits{})
		two, _ := v.office(4, mailbox.ServerLimits{})
		boxes := []identity.MailboxRef{one, two}
		alice, bob, carol := v.villager("alice", 1, boxes...), v.villager("bob", 2, boxes...), v.villager("carol", 3, boxes...)
		conv := v.found(alice.up(), bob.up(), carol.up())
		carol.down()
		for i := range 30 {
			alice.text(conv, "from alice "+string(rune('a'+i)))
			last := bob.text(conv, "from bob "+string(rune('a'+i)))
			time.Sleep(time.Second)
			_ = last
		}
		last := [2]feed.Entry{alice.text(conv, "alice at last"), bob.text(conv, "bob at last")}
		v.until("the log has all that carol lacks", time.Minute, func() bool { return alice.inLog(last[0]) && bob.inLog(last[1]) })
		require.False(t, alice.mailedTo(carol, last[0]), "it went by mail too")
		alice.down()
		bob.down()
		carol.up()
		v.until("carol has everything", time.Minute, func() bool { return len(carol.texts(conv)) == 1+60+2 })
		carol.mu.Lock()
		for id, n := range carol.stored {
			if n != 1 {
				t.Errorf("entry %s was stored %d times", id.Short(), n)
			}
		}
		carol.mu.Unlock()
		carol.down()
		carol.up() // what was read is not read again, and would do nothing
		time.Sleep(time.Minute)
		require.Len(t, carol.texts(conv), 63)
	})
}

// busyFeeds takes nothing as long as what a former key wrote is being replaced.
type busyFeeds struct {
	Feeds
	busy *atomic.Bool
}

func (f busyFeeds) Take(ctx context.Context, from replica.Peer, raw *pb.Run) error {
	if f.busy.Load() {
		return fmt.Errorf("%w: being replaced", replica.ErrRefused)
	}
	return f.Feeds.Take(ctx, from, raw)
}

// What a log brought while something was being replaced is taken when that is done, also where it was done at the next start.
func TestLogIsReadAgainAfterReplacing(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			v := newVillage(t, 4)
			box, _ := v.office(0, mailbox.ServerLimits{})
			alice, bob := v.villager("alice", 1, box), v.villager("bob", 2, box)
			conv := v.found(alice.up(), bob.up())
			bob.down()
			alice.lost = true // it has but the log
			e := alice.text(conv, "one")
			v.until("the log has it", time.Minute, func() bool { return alice.inLog(e) })
			alice.down()
			var busy atomic.Bool
			busy.Store(true)
			bob.parts = func(p *Parts) { p.Feeds = busyFeeds{p.Feeds, &busy} }
			bob.up()
			time.Sleep(time.Minute)
			require.False(t, bob.has(conv, "one"))
			busy.Store(false)
			if restarted {
				bob.down()
				bob.parts = func(*Parts) { bob.g.Freed(conv) }
				bob.up()
			} else {
				bob.g.Freed(conv)
			}
			v.until("bob reads the log again", 20*time.Second, func() bool { return bob.has(conv, "one") })
		})
	}
}

// Nothing is left in the log while everybody is there.
func TestLogIsNotUsedAmongThoseWhoAreThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVillage(t, 4)
		box, server := v.office(0, mailbox.ServerLimits{})
		alice, bob, carol := v.villager("alice", 1, box), v.villager("bob", 2, box), v.villager("carol", 3, box)
		conv := v.found(alice.up(), bob.up(), carol.up())
		time.Sleep(time.Minute)
		before := server.Stats().Deposits
		for range 20 {
			alice.text(conv, "tick")
			time.Sleep(700 * time.Millisecond)
		}
		time.Sleep(2 * time.Minute)
		if n := server.Stats().Deposits - before; n != 0 {
			t.Errorf("%d items were left at the mailbox", n)
		}
	})
}

// What is left in the log after somebody was removed is nothing that a key of before opens, and nothing is left where it does.
func TestLogAfterARemoval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVillage(t, 6)
		box, _ := v.office(0, mailbox.ServerLimits{})
		alice, bob, eve := v.villager("alice", 1, box), v.villager("bob", 2, box), v.villager("eve", 3, box)
		conv := v.found(alice.up(), bob.up(), eve.up())
		bob.down()
		e := alice.text(conv, "eve may read this")
		v.until("the log has it", time.Minute, func() bool { return alice.inLog(e) })
		_, keys := eve.keysOf(conv)
		eve.down()
		require.NoError(t, alice.g.Remove(context.Background(), conv, eve.self.Account))
		e = alice.text(conv, "eve must not read this")
		v.until("the log has it", time.Minute, func() bool { return alice.inLog(e) })
		alice.down()

		spy, err := mailbox.NewClient(mailbox.ClientConfig{Node: v.node(4)})
		require.NoError(t, err)
		defer spy.Close()
		found := 0
		for id, key := range keys {
			items, _, err := spy.Fetch(t.Context(), box, key.logSecret(), 0, 0)
			if err != nil {
				require.ErrorIs(t, err, mailbox.ErrNoInbox)
			}
			for _, it := range items {
				_, run, err := newOpener(key, conv, id).open(it.Bytes)
				require.NoError(t, err)
				for _, raw := range run.Entries {
					found++
					require.NotContains(t, string(raw.Body), "must not")
				}
			}
		}
		require.Positive(t, found, "the test looks in the wrong place")
		// Bob, who was away, gets the new key by mail and then all of it.
		bob.up()
		v.until("bob has it all", time.Minute, func() bool { return bob.has(conv, "eve must not read this") })
		require.Equal(t, 2, bob.size(conv))
	})
}

func (p *villager) keysOf(conv ID) (current feed.EntryID, out map[feed.EntryID]EpochKey) {
	out = map[feed.EntryID]EpochKey{}
	p.v.t.Helper()
	require.NoError(p.v.t, p.db.View(func(tx *txn) error {
		c, all, _, err := p.g.logEpochs(tx, conv)
		current = c.ID
		for _, e := range all {
			out[e.ID] = e.Key
		}
		return err
	}))
	return current, out
}

// A log that is full, and a mailbox that is gone, leave the message pending at its author, who sends it to each by mail.
func TestFullLogFallsBackToMail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVillage(t, 5)
		box, _ := v.office(0, mailbox.ServerLimits{LogBytes: 10})
		alice, bob := v.villager("alice", 1, box), v.villager("bob", 2, box)
		conv := v.found(alice.up(), bob.up())
		bob.down()
		e := alice.text(conv, "by another road")
		v.until("it went by mail", 2*time.Minute, func() bool { return alice.mailedTo(bob, e) })
		require.False(t, alice.inLog(e))
		alice.down()
		bob.up()
		v.until("bob reads it", time.Minute, func() bool { return bob.has(conv, "by another road") })
	})
}

// With no mailbox at all the message waits at its author.
func TestLogWithoutMailbox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVillage(t, 4)
		alice, bob := v.villager("alice", 1), v.villager("bob", 2)
		conv := v.found(alice.up(), bob.up())
		bob.down()
		e := alice.text(conv, "later then")
		time.Sleep(3 * time.Minute)
		require.False(t, alice.inLog(e) || alice.mailedTo(bob, e))
		bob.up()
		v.w.Connect(1, 2)
		v.until("bob reads it", 10*time.Minute, func() bool { return bob.has(conv, "later then") })
	})
}

// Somebody applies, and is let in, without ever being there together with anybody of the group; what was said since is there.
func TestAdmissionWithoutMeeting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVillage(t, 6)
		box, _ := v.office(0, mailbox.ServerLimits{})
		alice, bob, dora := v.villager("alice", 1, box), v.villager("bob", 2, box), v.villager("dora", 3, box)
		conv := v.found(alice.up(), bob.up())
		require.NoError(t, alice.g.Set(context.Background(), conv, "join", "apply"))
		bob.text(conv, "before dora")
		v.until("alice has it", time.Minute, func() bool { return alice.has(conv, "before dora") })
		alice.down()
		bob.down()

		dora.up()
		_, err := dora.g.Apply(context.Background(), Target{Group: conv, Name: "tea", Join: "apply", Asks: []Contact{{
			Account: alice.self.Account, Devices: []identity.InviteDevice{{Device: alice.self.Device}},
		}}}, "please")
		require.NoError(t, err)
		require.Equal(t, StateApplied, dora.state(conv))
		time.Sleep(time.Minute)
		dora.down()

		alice.up()
		v.until("alice has the application", time.Minute, func() bool { return len(alice.applications(conv)) == 1 })
		_, err = alice.g.Decide(context.Background(), conv, dora.self.Account, true, "")
		require.NoError(t, err)
		time.Sleep(time.Minute)
		alice.text(conv, "welcome dora")
		time.Sleep(time.Minute)
		alice.down()

		dora.up()
		v.until("dora is in", time.Minute, func() bool { return dora.state(conv) == StateMember && dora.size(conv) == 3 })
		v.until("dora reads", time.Minute, func() bool { return dora.has(conv, "welcome dora") })
		require.False(t, dora.has(conv, "before dora"), "newcomers have no history here")
		dora.text(conv, "thank you")
		dora.down()

		bob.up()
		v.until("bob reads dora", time.Minute, func() bool { return bob.has(conv, "thank you") && bob.size(conv) == 3 })
	})
}

func (p *villager) applications(conv ID) (out []Application) {
	_ = p.db.View(func(tx *txn) (err error) { out, err = p.g.Applications(tx, conv); return err })
	return out
}
