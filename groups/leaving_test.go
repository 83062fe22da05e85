package groups

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/groups/roster"
	"hima/internal/feed"
	"hima/internal/replica"
)

// A run of one device that begins before its account left and ends after it, on another device, is everybody's too: some took it
// before they heard of it, and nobody but its author can cut it. What the leaving did not know of counts for nobody.
func TestRunAcrossALeaving(t *testing.T) {
	w := begin(t)
	alice, bob, carol := w.person("alice"), w.person("bob"), w.person("carol")
	bob2 := w.person("bob")
	conv := alice.create(Options{History: "all"}, bob, carol)
	bob.gives(bob2)
	w.meet()
	bob2.says(conv, "from the second")
	bob.says(conv, "before")
	bob.gives(bob2)
	require.NoError(t, bob2.g.Leave(context.Background(), conv))
	bob.says(conv, "unheard")
	bob.says(conv, "after")
	bob.gives(alice) // who takes all of it in one run
	require.Equal(t, []string{"after", "before", "unheard"}, alice.texts(conv))
	bob2.gives(alice)
	require.Equal(t, StateLeft, bob2.info(conv).State)
	require.Equal(t, []string{"before", "from the second"}, alice.texts(conv))
	w.nodes = []*peer{alice, carol}
	w.meet()
	require.Equal(t, alice.texts(conv), carol.texts(conv))
}

// A device of somebody who left was stolen. With somebody who did not hear of the leaving its thief says what seems to be from
// before.
func TestLostDeviceSaysNothingOlder(t *testing.T) {
	w := begin(t)
	alice, bob, carol := w.person("alice"), w.person("bob"), w.person("carol")
	bob2 := w.person("bob")
	conv := alice.create(Options{History: "all"}, bob, carol)
	bob.gives(bob2)
	w.meet()
	bob.says(conv, "before")
	bob.gives(bob2)
	for range 3 {
		alice.says(conv, "talk")
		alice.gives(bob2)
	}
	require.NoError(t, bob2.g.Leave(context.Background(), conv))
	forged := bob.says(conv, "forged")
	require.Less(t, forged.Clock, bob2.rosterClock(conv))
	bob2.gives(alice)
	bob.gives(carol)
	require.Contains(t, carol.texts(conv), "forged") // she could not know
	w.meet(alice, carol)
	for _, p := range []*peer{alice, carol} {
		require.Equal(t, []string{"before", "talk", "talk", "talk"}, p.texts(conv), p.name)
	}
	_, held := alice.entryAt(forged.Feed(), forged.Seq)
	require.False(t, held)
	bob.gives(alice)
	require.NotContains(t, alice.texts(conv), "forged")
}

// rosterClock is the clock of the last act that somebody holds.
func (p *peer) rosterClock(conv ID) (clock uint64) {
	p.w.t.Helper()
	gr, _, err := open(p, conv)
	require.NoError(p.w.t, err)
	for _, at := range gr.places {
		clock = max(clock, at.clock)
	}
	return clock
}

// What somebody said right before they went is taken of them, also by who heard of the going first.
func TestLastWords(t *testing.T) {
	w := begin(t)
	alice, bob, carol := w.person("alice"), w.person("bob"), w.person("carol")
	conv := alice.create(Options{}, bob, carol)
	bob.says(conv, "one")
	w.meet()
	bob.says(conv, "farewell")
	require.NoError(t, bob.g.Leave(context.Background(), conv))
	bob.gives(alice) // acts first
	require.Equal(t, []string{"farewell", "one"}, alice.texts(conv))
	w.meet(alice, carol)
	require.Equal(t, alice.texts(conv), carol.texts(conv))
}

// Whoever comes back and goes again said something meanwhile, which the first going does not take away.
func TestGoingTwice(t *testing.T) {
	for name, goes := range map[string]func(alice, bob *peer, conv ID) error{
		"left": func(_, bob *peer, conv ID) error { return bob.g.Leave(context.Background(), conv) },
		"removed": func(alice, bob *peer, conv ID) error {
			return alice.g.Remove(context.Background(), conv, bob.self.Account)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := begin(t)
			alice, bob, carol := w.person("alice"), w.person("bob"), w.person("carol")
			conv := alice.create(Options{History: "all"}, bob, carol)
			for _, text := range []string{"first", "second"} {
				bob.says(conv, text)
				w.meet()
				require.NoError(t, goes(alice, bob, conv))
				w.meet()
				if text == "first" {
					w.now = w.now.Add(time.Minute) // a consent lets in once
					alice.letsIn(conv, bob)
					w.meet()
				}
			}
			v := alice.rosterView(conv)
			require.Equal(t, roster.None, v.Role(bob.self.Account))
			for _, p := range []*peer{alice, carol} {
				require.Equal(t, []string{"first", "second"}, p.texts(conv), p.name)
			}
		})
	}
}

// branch is a run of one text that follows an entry, whatever else does.
func (p *peer) branch(after feed.Entry, text string) feed.Run {
	p.w.t.Helper()
	author := feed.NewAuthor(p.self.Account, p.self.Device, p.w.certs[p.self.Account][0])
	e, err := author.NextInGroup(after.Tip(), after.Conversation, feed.Chat, feed.KindText, after.Clock+1, p.w.now.UnixMilli(), []byte(text), feed.Group{Epoch: after.Epoch})
	require.NoError(p.w.t, err)
	run, err := feed.Assemble([]feed.Entry{e}, feed.SignRun(p.key, e))
	require.NoError(p.w.t, err)
	return run
}

// Whoever stole the device before anybody had those last words cannot put others in their place.
func TestLastWordsAreThoseNamed(t *testing.T) {
	w := begin(t)
	alice, bob := w.person("alice"), w.person("bob")
	conv := alice.create(Options{}, bob)
	one := bob.says(conv, "one")
	w.meet()
	bob.says(conv, "farewell")
	require.NoError(t, bob.g.Leave(context.Background(), conv))
	acts, err := bob.rep.ReadRun(bob.rep.OwnFeed(conv, feed.Control), 1)
	require.NoError(t, err)
	require.NoError(t, alice.rep.Take(context.Background(), bob.self, acts))
	require.ErrorIs(t, alice.rep.Take(context.Background(), bob.self, bob.branch(one, "forged").PB()), replica.ErrRefused)
	bob.gives(alice)
	require.Equal(t, []string{"farewell", "one"}, alice.texts(conv))
}

// A removal and a leaving leave what somebody said before their chat forked (R3).
func TestCutOfForkedChat(t *testing.T) {
	w := begin(t)
	alice, bob := w.person("alice"), w.person("bob")
	conv := alice.create(Options{History: "all"}, bob)
	first := bob.says(conv, "first")
	bob.gives(alice)
	id := first.Feed()
	require.NoError(t, alice.rep.Take(context.Background(), bob.self, bob.branch(first, "left").PB()))
	require.ErrorIs(t, alice.rep.Take(context.Background(), bob.self, bob.branch(first, "right").PB()), feed.ErrFork)
	require.NoError(t, alice.g.Remove(context.Background(), conv, bob.self.Account))
	v := alice.rosterView(conv)
	cut := find(v.Cuts(bob.self.Account), id)
	require.Equal(t, first.Seq, cut.Seq)
	require.Equal(t, [32]byte(first.ID), cut.Hash)
}

// A device of somebody who left was stolen, which had said nothing. Its thief leaves as well, as if nobody had left yet, and
// names what was said with it since.
func TestThiefLeavesToo(t *testing.T) {
	w := begin(t)
	alice, bob, carol := w.person("alice"), w.person("bob"), w.person("carol")
	bob2 := w.person("bob")
	conv := alice.create(Options{History: "all"}, bob, carol)
	bob.gives(bob2)
	w.meet()
	for range 3 {
		alice.says(conv, "talk")
		alice.gives(bob2)
	}
	require.NoError(t, bob2.g.Leave(context.Background(), conv))
	bob2.gives(alice)
	w.meet(alice, carol)
	bob.says(conv, "forged")
	require.NoError(t, bob.g.Leave(context.Background(), conv))
	bob.givesGroup(alice, conv)
	bob.givesGroup(carol, conv)
	bob.givesGroup(alice, conv)
	w.meet(alice, carol)
	for _, p := range []*peer{alice, carol} {
		require.Equal(t, []string{"talk", "talk", "talk"}, p.texts(conv), p.name)
	}
}
