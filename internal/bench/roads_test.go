package main

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"

	"hima/groups"
	"hima/internal/feed"
	"hima/node/nodetest"
)

// flood lets members say many things, as fast as they are made durable.
func (a *tallies) flood(who []*member, each int, words func(i int) string) {
	a.t.Helper()
	eg, ctx := errgroup.WithContext(a.t.Context())
	eg.SetLimit(512)
	for i := range each {
		for _, m := range who {
			eg.Go(func() error {
				now := time.Now()
				msg, err := a.c.say(ctx, m, words(i))
				a.mu.Lock()
				defer a.mu.Unlock()
				a.said = append(a.said, spoken{msg.ID, m, now})
				return err
			})
		}
	}
	if err := eg.Wait(); err != nil {
		a.t.Fatal(err)
	}
}

// has tells whether all that was said is there at a member.
func (a *tallies) has(m *member) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return !slices.ContainsFunc(a.said, func(s spoken) bool { return len(a.at[s.id][m]) == 0 })
}

// TestFirstWord: what is said the moment a group is there, when nobody has a link and nobody heard of any topic, reaches all.
func TestFirstWord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFarClub(t, nodetest.New(t, 0), "", 6, plain)
		c, err := found(t.Context(), f.all)
		if err != nil {
			t.Fatal(err)
		}
		a := newTallies(t, c, f.all)
		for i, m := range f.all {
			if n := len(m.replica.Sessions()); n > 0 {
				t.Fatalf("%s has %d sessions before the first word", m.name, n)
			}
			a.say(m, text(i))
		}
		// The mesh looks every ten seconds.
		a.until(15*time.Second, "all hear the first word of each", func() bool { return !slices.ContainsFunc(f.all, func(m *member) bool { return !a.has(m) }) })
		a.once(a.said, f.all)
	})
}

// TestBurst: two say more at one moment than gossip carries: it publishes 16 runs of a feed at once, and each of these texts is a
// run.
func TestBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFarClub(t, nodetest.New(t, 0), "", 5, plain)
		c, err := found(t.Context(), f.all)
		if err != nil {
			t.Fatal(err)
		}
		a := newTallies(t, c, f.all)
		a.warm(f.all)
		long := strings.Repeat("x", 30<<10)
		a.flood(f.all[:2], 60, func(i int) string { return text(i) + long })
		took := a.until(time.Minute, "all have all of it", func() bool { return !slices.ContainsFunc(f.all, func(m *member) bool { return !a.has(m) }) })
		t.Logf("%d messages were everywhere after %v", len(a.said), took)
		a.once(a.said, f.all)
	})
}

// TestAwayFor20000: somebody comes back after 20,000 messages and finds one of the two who wrote them.
func TestAwayFor20000(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFarClub(t, nodetest.New(t, 0), "", 3, plain)
		c, err := found(t.Context(), f.all)
		if err != nil {
			t.Fatal(err)
		}
		a := newTallies(t, c, f.all)
		a.warm(f.all)
		f.down(2)
		a.flood(f.all[:2], 10_000, text)
		a.until(2*time.Minute, "who stayed have all", func() bool { return a.has(f.all[0]) && a.has(f.all[1]) })
		f.down(0)
		f.up(2)
		took := a.until(2*time.Minute, "who was away has all", func() bool { return a.has(f.all[2]) })
		t.Logf("%d messages were there after %v", len(a.said), took)
		a.once(a.said, f.all)
		f.up(0)
	})
}

// TestNewcomers: what somebody has of the past who is let in under each policy. A number is rounded up to whole epochs.
func TestNewcomers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFarClub(t, nodetest.New(t, 0), "", 5, plain)
		for _, x := range []struct {
			history     string
			from, wants int // of six messages, the first half under an epoch of its own
		}{{"none", 6, 1}, {"2", 3, 4}, {"all", 0, 7}} {
			tryNewcomer(t, f, x.history, x.from, x.wants)
		}
	})
}

func tryNewcomer(t *testing.T, f *farClub, history string, from, wants int) {
	ctx := t.Context()
	members, late := f.all[:4], f.all[4]
	c, err := found(ctx, members)
	if err != nil {
		t.Fatal(err)
	}
	owner := members[0]
	if err := owner.groups.Set(ctx, c.id, "history", history); err != nil {
		t.Fatal(err)
	}
	a := newTallies(t, c, f.all)
	half := func(who []*member) {
		for i := range 3 {
			s := a.say(who[i%len(who)], text(i))
			a.until(time.Minute, "the members hear "+s.by.name, func() bool { return a.everywhere(s, who) })
		}
	}
	half(members)
	if err := owner.groups.Remove(ctx, c.id, members[3].account); err != nil {
		t.Fatal(err)
	}
	in := members[:3]
	a.until(time.Minute, "all know who went", func() bool { return a.info(in[1]).Size == 3 && a.info(in[2]).Size == 3 })
	half(in)
	if err := c.letIn(ctx, late); err != nil {
		t.Fatal(err)
	}
	if err := late.locate(ctx, owner.key.ID()); err != nil {
		t.Fatal(err)
	}
	if err := late.replica.Open(ctx, owner.key.ID()); err != nil {
		t.Fatal(err)
	}
	a.until(time.Minute, "the newcomer is in", func() bool { return a.info(late).State == groups.StateMember })
	a.until(time.Minute, "all know the newcomer", func() bool { return a.info(in[1]).Size == 4 && a.info(in[2]).Size == 4 })
	s := a.say(in[1], "welcome")
	a.until(time.Minute, "the newcomer hears", func() bool { return a.everywhere(s, append(slices.Clone(in), late)) })
	time.Sleep(time.Minute)
	var want []feed.EntryID
	for _, s := range a.said[from:] {
		want = append(want, s.id)
	}
	if got := a.words(late); len(want) != wants || !slices.Equal(got, want) {
		t.Errorf("history %s: the newcomer reads %d messages, not the last %d of %d", history, len(got), wants, len(a.said))
	}
	a.once(a.said[from:], []*member{late})
	a.once(a.said, in)
}
