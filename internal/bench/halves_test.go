package main

import (
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"hima/groups"
	"hima/node/nodetest"
)

// TestTwoHalvesForADay: a group falls into two halves that cannot reach each other for a day. Both talk, the one lets somebody in
// and removes somebody, the other removes somebody else and changes what the group says of itself. Then the network heals.
//
// Everybody is off for most of the day, because the databases of a dozen nodes cost a minute otherwise; HIMA_GROUP makes it a group
// of that size in which nobody ever is.
func TestTwoHalvesForADay(t *testing.T) {
	n := sizeFromEnv(12) / 2 * 2
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		d := newDay(t, dir, n)
		d.pass(os.Getenv("HIMA_GROUP") == "")
		d.heal()
	})
}

// day is what happens in that test. The owner is the first of the left half, the other admin the first of the right one; each
// removes the second of the other's half.
type day struct {
	*tallies
	f           *farClub
	left, right []*member
	late        *member              // is let in by the left
	secret      map[*member][]spoken // what somebody who was removed must not read
}

func newDay(t *testing.T, dir string, n int) *day {
	f := newFarClub(t, nodetest.New(t, 0), dir, n+1, plain)
	d := &day{f: f, left: f.all[:n/2], right: f.all[n/2 : n], late: f.all[n], secret: map[*member][]spoken{}}
	c, err := found(t.Context(), f.all[:n])
	if err != nil {
		t.Fatal(err)
	}
	d.tallies = newTallies(t, c, f.all)
	if err := d.left[0].groups.Promote(t.Context(), c.id, d.right[0].account); err != nil {
		t.Fatal(err)
	}
	d.warm(c.members)
	return d
}

// cut severs, or heals, every link between the halves.
func (d *day) cut(set func(a, b int)) {
	for i, a := range d.f.all {
		for j, b := range d.f.all {
			if slices.Contains(d.right, b) && !slices.Contains(d.right, a) {
				set(d.f.at[i], d.f.at[j])
			}
		}
	}
}

// talk lets everybody of a half say something, which the half hears. It is nothing for those whom the half has removed.
func (d *day) talk(half []*member, removed ...*member) {
	d.t.Helper()
	for i, m := range half {
		s := d.say(m, text(i))
		for _, out := range removed {
			d.secret[out] = append(d.secret[out], s)
		}
		d.until(time.Minute, "their half hears "+m.name, func() bool { return d.everywhere(s, half) })
	}
}

func (d *day) pass(sleep bool) {
	ctx, begun := d.t.Context(), time.Now()
	d.cut(d.f.w.Cut)
	time.Sleep(time.Minute) // connections are found dead
	d.talk(d.left)
	d.talk(d.right)
	owner, admin := d.left[0], d.right[0]
	check := func(err error) {
		d.t.Helper()
		if err != nil {
			d.t.Fatal(err)
		}
	}
	check(owner.groups.Remove(ctx, d.c.id, d.right[1].account))
	check(admin.groups.Remove(ctx, d.c.id, d.left[1].account))
	check(admin.groups.Set(ctx, d.c.id, "description", "what the right half says"))
	check(d.c.letIn(ctx, d.late))
	check(d.late.locate(ctx, owner.key.ID())) // as the retry table would, which is not there
	check(d.late.replica.Open(ctx, owner.key.ID()))
	d.until(time.Minute, "the newcomer is in", func() bool { return d.state(d.late) == groups.StateMember })
	left := append(slices.Clone(d.left), d.late)
	d.talk(left, d.right[1])
	d.talk(d.right, d.left[1])
	if sleep {
		d.sleep(begun.Add(24*time.Hour - 5*time.Minute))
	}
	time.Sleep(time.Until(begun.Add(24*time.Hour - 3*time.Minute)))
	d.talk(left, d.right[1])
	d.talk(d.right, d.left[1])
	time.Sleep(time.Until(begun.Add(24 * time.Hour)))
}

// sleep switches everybody off.
func (d *day) sleep(until time.Time) {
	for i, m := range d.f.all {
		d.f.down(i)
		if err := m.db.Close(); err != nil {
			d.t.Fatal(err)
		}
		m.db = nil
	}
	time.Sleep(time.Until(until))
	for i := range d.f.all {
		d.f.up(i)
	}
}

// heal brings the halves together and looks at what becomes of the group.
func (d *day) heal() {
	t := d.t
	in := slices.Concat(d.left[:1], d.left[2:], d.right[:1], d.right[2:], []*member{d.late})
	out := []*member{d.left[1], d.right[1]}
	d.cut(d.f.w.Heal)
	// Nobody is told that the network is whole: the mesh of each member tries one more of the others every 5 to 15 minutes, of
	// whom some pause for as long.
	took := d.until(20*time.Minute, "one roster and one history", func() bool {
		roster, words := d.roster(in[0]), d.words(in[0])
		return !slices.ContainsFunc(in[1:], func(m *member) bool { return d.roster(m) != roster || !slices.Equal(d.words(m), words) })
	})
	told := d.until(5*time.Minute, "the removed know", func() bool {
		return d.state(out[0]) == groups.StateRemoved && d.state(out[1]) == groups.StateRemoved
	})
	t.Logf("%d messages; one roster and one history %v after the network healed, the removed knew %v later", len(d.said), took, told)
	if n := d.info(in[0]).Size; n != len(in) {
		t.Errorf("%d members are in, not %d", n, len(in))
	}
	d.once(slices.DeleteFunc(slices.Clone(d.said), func(s spoken) bool { return slices.Contains(out, s.by) }), in)

	epochs := map[string]bool{}
	for i, m := range in {
		s := d.say(m, text(i))
		d.until(time.Minute, "all hear "+m.name, func() bool { return d.everywhere(s, in) })
		epochs[d.epochOf(s)] = true
		d.secret[out[0]], d.secret[out[1]] = append(d.secret[out[0]], s), append(d.secret[out[1]], s)
	}
	if len(epochs) != 1 {
		t.Errorf("they speak under %d epochs", len(epochs))
	}
	for _, m := range out {
		words := d.words(m)
		for _, s := range d.secret[m] {
			if d.times(s, m) > 0 || slices.Contains(words, s.id) {
				t.Errorf("%s, who was removed, has what %s said afterwards", m.name, s.by.name)
			}
		}
	}
}
