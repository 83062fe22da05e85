package groups

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"hima/groups/roster"
	"hima/internal/feed"
	"hima/internal/mailbox"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// keyedFor is how many mails with keys mailboxes took from p for somebody.
func (p *villager) keyedFor(o *villager) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.keyed[o.self.Device]
}

// holdsCurrent tells whether p holds the key of the epoch that it would write under.
func (p *villager) holdsCurrent(conv ID, people int) bool {
	current, _ := p.keysOf(conv)
	return current != (feed.EntryID{}) && p.size(conv) == people
}

// Who made the epoch is gone for ever before any of its mail left. Another one writes under it and goes too. Who was away reads that
// with nothing but mailboxes; who was removed is sent no key.
func TestKeyOfAnEpochWhoseMakerIsGone(t *testing.T) {
	for _, c := range []struct {
		name  string
		log   bool
		hurry bool
	}{{"log", true, false}, {"log, going at once", true, true}, {"mail", false, false}} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := newVillage(t, 6)
				box, _ := v.office(0, mailbox.ServerLimits{})
				alice, bob, carol, eve := v.villager("alice", 1, box), v.villager("bob", 2, box), v.villager("carol", 3, box), v.villager("eve", 4, box)
				conv := v.found(alice.up(), bob.up(), carol.up(), eve.up())
				if !c.log {
					require.NoError(t, alice.g.Set(context.Background(), conv, SettingMailbox, "none"))
					v.until("all know", time.Minute, func() bool {
						return len(bob.info(conv).Mailboxes)+len(carol.info(conv).Mailboxes)+len(eve.info(conv).Mailboxes) == 0
					})
				}
				bob.text(conv, "good morning")
				v.until("carol reads", time.Minute, func() bool { return carol.has(conv, "good morning") && eve.has(conv, "good morning") })
				time.Sleep(time.Minute)
				carol.down()
				eve.down()
				alice.lost = true
				before := bob.keyedFor(eve)
				require.NoError(t, alice.g.Remove(context.Background(), conv, eve.self.Account))
				v.until("bob has the key", time.Minute, func() bool { return bob.holdsCurrent(conv, 3) })
				epoch, _ := bob.keysOf(conv)
				alice.down()

				e := bob.text(conv, "alice is gone")
				if !c.hurry {
					v.until("it waits for carol", 2*time.Minute, func() bool {
						if c.log {
							return bob.inLog(e) && bob.keyedFor(carol) > 0
						}
						return bob.mailedTo(carol, e)
					})
				}
				bob.down()
				require.Equal(t, before, bob.keyedFor(eve), "who was removed was mailed keys")

				carol.up()
				v.until("carol reads it", time.Minute, func() bool { return carol.has(conv, "alice is gone") && carol.size(conv) == 3 })
				eve.up()
				time.Sleep(2 * time.Minute)
				_, keys := eve.keysOf(conv)
				require.NotContains(t, keys, epoch)
				require.False(t, eve.has(conv, "alice is gone"))
			})
		})
	}
}

// Who leaves and is gone before the leaving left is an ancestor of the next epoch, which whoever writes makes: that mail brings
// the leaving too.
func TestEpochStandsUponALeavingThatNobodyMailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVillage(t, 6)
		box, _ := v.office(0, mailbox.ServerLimits{})
		alice, bob, carol, dave := v.villager("alice", 1, box), v.villager("bob", 2, box), v.villager("carol", 3, box), v.villager("dave", 4, box)
		conv := v.found(alice.up(), bob.up(), carol.up(), dave.up())
		require.NoError(t, bob.g.Set(context.Background(), conv, SettingNickname, "bob")) // she knows him
		time.Sleep(time.Minute)
		carol.down()
		dave.lost = true
		require.NoError(t, dave.g.Leave(context.Background(), conv))
		v.until("bob knows", time.Minute, func() bool { return bob.size(conv) == 3 })
		dave.down()
		alice.down()
		bob.text(conv, "dave is gone")
		time.Sleep(2 * time.Minute)
		bob.down()
		carol.up()
		v.until("carol reads it", time.Minute, func() bool { return carol.has(conv, "dave is gone") && carol.size(conv) == 3 })
	})
}

// A key goes to a device by mail once, however much is written; and not at all to one that showed that it holds it.
func TestKeyIsMailedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVillage(t, 6)
		box, _ := v.office(0, mailbox.ServerLimits{})
		alice, bob, carol := v.villager("alice", 1, box), v.villager("bob", 2, box), v.villager("carol", 3, box)
		conv := v.found(alice.up(), bob.up(), carol.up())
		bob.text(conv, "good morning")
		time.Sleep(time.Minute)
		v.w.Connect(2, 3) // they show each other their keys
		time.Sleep(time.Minute)
		carol.down()
		n := bob.keyedFor(carol)
		bob.text(conv, "she has this key")
		time.Sleep(5 * time.Minute)
		require.Equal(t, n, bob.keyedFor(carol), "a key was mailed to who has it")

		alice.lost = true
		require.NoError(t, alice.g.do(t.Context(), "making an epoch", func(tx *storage.Tx) error { return alice.g.newEpoch(tx, conv) }))
		epoch, _ := alice.keysOf(conv)
		v.until("bob has the key", time.Minute, func() bool { now, _ := bob.keysOf(conv); return now == epoch })
		alice.down()
		for range 20 {
			bob.text(conv, "once more")
			time.Sleep(time.Minute)
		}
		require.Equal(t, n+1, bob.keyedFor(carol))
		bob.down()
		bob.up() // which is not forgotten
		bob.text(conv, "and again")
		time.Sleep(20 * time.Minute)
		require.Equal(t, n+1, bob.keyedFor(carol))
		bob.down()
		carol.up()
		v.until("carol reads all", time.Minute, func() bool { return carol.has(conv, "and again") && len(carol.texts(conv)) == 24 })
	})
}

// lacks says to whom of these devices p would mail the key.
func (p *peer) lacks(conv ID, acked uint64, others ...*peer) (out []string, mails bool) {
	p.w.t.Helper()
	p.view(func(tx *storage.Tx) error {
		what, err := p.g.Lacking(tx, conv)
		if err != nil || what.Key == nil {
			return err
		}
		for _, o := range others {
			if is, err := what.Key(o.self, acked); err != nil {
				return err
			} else if is {
				out = append(out, o.name)
			}
		}
		mails = what.Mails
		return nil
	})
	return out, mails
}

// shows lets p hand its keys over to another device, as a session does, and waits until that is noted.
func (p *peer) showsKeys(to *peer) {
	p.givesKeys(to)
	to.update(func(*storage.Tx) error { return nil })
}

// Keys go by mail to whom they would go in a session, and to nobody else.
func TestWhoLacksAKey(t *testing.T) {
	w := begin(t)
	alice, bob, carol, dora, eve := w.person("alice"), w.person("bob"), w.person("carol"), w.person("dora"), w.person("eve")
	conv := alice.create(Options{History: "none"}, bob, carol, eve)
	second := w.person("bob")
	second.name = "bob's second"
	stranger := w.person("mallory")
	all := []*peer{alice, bob, carol, dora, eve, second, stranger}
	lost := w.person("carol")
	lost.name = "carol's lost"

	_, mails := bob.lacks(conv, 0, all...)
	require.False(t, mails, "he wrote nothing")
	alice.says(conv, "hello")
	w.meet(alice, bob, carol, eve)
	e := bob.says(conv, "good morning")
	// Alice and carol showed him that they have the key, as did eve; his own other device did not.
	got, mails := bob.lacks(conv, 0, append(all, lost)...)
	require.Equal(t, []string{"bob's second", "carol's lost"}, got)
	require.True(t, mails)
	w.revoke(lost)
	got, _ = bob.lacks(conv, 0, append(all, lost)...)
	require.Equal(t, []string{"bob's second"}, got, "a device that is revoked is mailed the key")
	got, _ = bob.lacks(conv, e.Seq, second)
	require.Empty(t, got, "it read what was written under the key")

	// A new epoch that leaves eve out, made by alice and not heard of by carol.
	require.NoError(t, alice.g.Remove(context.Background(), conv, eve.self.Account))
	w.meet(alice, bob)
	e = bob.says(conv, "without eve")
	got, mails = bob.lacks(conv, e.Seq-1, all...)
	require.Equal(t, []string{"carol", "bob's second"}, got)
	require.True(t, mails)
	_, mails = alice.lacks(conv, 0, all...)
	require.True(t, mails, "who makes an epoch mails its key")
	w.meet(alice, bob)

	// A newcomer who may have nothing of before is told nothing of before.
	alice.letsIn(conv, dora)
	w.meet(alice, bob)
	got, _ = bob.lacks(conv, e.Seq-1, dora)
	require.Empty(t, got)
	require.Empty(t, dora.keysHeld(conv))

	// A mailbox has it: until that ends.
	epoch := roster.ID(e.Epoch)
	until := w.now.Add(time.Hour)
	bob.update(func(tx *storage.Tx) error {
		keys := []*pb.GroupKeys{{Group: conv[:], Keys: []*pb.GroupKey{{Epoch: epoch[:], Key: make([]byte, 32)}}}}
		return bob.g.MailedKeys(tx, carol.self, keys, until)
	})
	got, _ = bob.lacks(conv, e.Seq-1, carol, second)
	require.Equal(t, []string{"bob's second"}, got)
	bob.view(func(tx *storage.Tx) error {
		what, err := bob.g.Lacking(tx, conv)
		require.NoError(t, err)
		require.Zero(t, what.Until(), "nobody was asked about")
		for _, p := range []*peer{second, carol} {
			_, err = what.Key(p.self, e.Seq-1)
			require.NoError(t, err)
		}
		require.Equal(t, until.UnixMilli(), what.Until().UnixMilli())
		return nil
	})
	w.now = w.now.Add(2 * time.Hour)
	got, _ = bob.lacks(conv, e.Seq-1, carol)
	require.Equal(t, []string{"carol"}, got)
	w.meet(bob, carol)
	carol.showsKeys(bob)
	got, _ = bob.lacks(conv, e.Seq-1, carol)
	require.Empty(t, got, "she showed it")
}

// What goes along is what the epoch stands upon, above what the device must hold.
func TestActsOfALackingDevice(t *testing.T) {
	w := begin(t)
	alice, bob, carol := w.person("alice"), w.person("bob"), w.person("carol")
	conv := alice.create(Options{}, bob, carol)
	bob.says(conv, "hello")
	w.meet()
	head := func(p *peer) (h feed.Head) {
		p.view(func(tx *storage.Tx) (err error) {
			h, _, err = p.rep.Head(tx, p.rep.OwnFeed(conv, feed.Control))
			return err
		})
		return h
	}
	before := head(alice)
	require.NoError(t, alice.g.Set(context.Background(), conv, "description", "green"))
	require.NoError(t, alice.g.do(t.Context(), "making an epoch", func(tx *storage.Tx) error { return alice.g.newEpoch(tx, conv) }))
	need := head(alice)
	w.meet(alice, bob)
	bob.says(conv, "under the new key")
	require.NoError(t, alice.g.Set(context.Background(), conv, "description", "black")) // the epoch does not stand upon that
	w.meet(alice, bob)
	acts := func(of *peer) (out []replica.Span) {
		bob.view(func(tx *storage.Tx) error {
			what, err := bob.g.Lacking(tx, conv)
			if err == nil {
				out, err = what.Acts(of.self, 0)
			}
			return err
		})
		return out
	}
	id := alice.rep.OwnFeed(conv, feed.Control)
	lacks := []replica.Span{{Feed: id, From: before.Last + 1, Last: need.Last, Lazy: true}}
	require.Equal(t, lacks, acts(carol))
	// That its account was let in says nothing of what a device holds of which nothing was ever heard.
	require.Equal(t, []replica.Span{{Feed: id, From: 1, Last: need.Last, Lazy: true}}, acts(w.person("carol")))

	// Who signs acts may give one the highest number there is, which waits for what nobody has.
	gr, _, err := open(bob, conv)
	require.NoError(t, err)
	gr.mu.Lock()
	gr.put(roster.ID{9}, place{device: carol.self.Device, account: carol.self.Account, seq: 1 << 29})
	gr.mu.Unlock()
	began := time.Now()
	require.Equal(t, lacks, acts(carol))
	require.Less(t, time.Since(began), time.Second, "it took as long as the number is high")
}

// Only the first who write under an epoch mail its key for its own sake.
func TestFewMailAKey(t *testing.T) {
	w := begin(t)
	alice, away := w.person("alice"), w.person("away")
	var others []*peer
	for _, name := range []string{"b", "c", "d", "e", "f"} {
		others = append(others, w.person(name))
	}
	conv := alice.create(Options{}, append(others, away)...)
	there := append([]*peer{alice}, others...)
	require.NoError(t, alice.g.do(t.Context(), "making an epoch", func(tx *storage.Tx) error { return alice.g.newEpoch(tx, conv) }))
	w.meet(there...)
	n := 0
	for _, p := range there {
		p.says(conv, "hello")
		w.meet(there...)
		lacks, mails := p.lacks(conv, 0, away)
		require.Equal(t, []string{"away"}, lacks, "their chat, should it go by mail, brings the key")
		if mails {
			n++
		}
	}
	require.Equal(t, 1+maxMailers, n)
}

var _ replica.Keys = (*Groups)(nil)
