package groups

import (
	"context"
	"encoding/hex"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"hima/groups/roster"
	"hima/internal/feed"
	"hima/internal/mailbox"
	"hima/internal/replica"
)

// roleOf is what p takes somebody for.
func (p *villager) roleOf(conv ID, o *villager) (role roster.Role) {
	_ = p.db.View(func(tx *txn) error {
		_, s, err := p.g.open(tx, conv, false)
		if err == nil {
			role = s.view.Role(o.self.Account)
		}
		return err
	})
	return role
}

// apart cuts all roads between some people, and waits until they noticed.
func (v *village) apart(people ...*villager) {
	v.t.Helper()
	for i, a := range people {
		for _, b := range people[:i] {
			v.w.Cut(a.i, b.i)
		}
	}
	for i, a := range people {
		for _, b := range people[:i] {
			v.until(a.name+" misses "+b.name, 5*time.Minute, func() bool { return !a.meets(b) && !b.meets(a) })
		}
	}
}

// told lets two people meet, and waits until the one knows all acts of the other that may be known.
func (v *village) told(conv ID, a, b *villager) {
	v.t.Helper()
	v.together(a, b)
	v.until(a.name+" tells "+b.name, time.Minute, func() bool {
		for _, id := range a.parents(conv) {
			if !b.acted(conv, roster.ID(id)) {
				return false
			}
		}
		return true
	})
}

// acted tells whether an act is in a roster, or waits for another one.
func (p *villager) acted(conv ID, act roster.ID) (known bool) {
	_ = p.db.View(func(tx *txn) error {
		gr, _, err := p.g.open(tx, conv, false)
		if err == nil {
			gr.mu.Lock()
			defer gr.mu.Unlock()
			_, known = gr.places[act]
		}
		return err
	})
	return known
}

// together heals one road and waits for a session on it: whoever was dialled in vain is for a while not dialled again.
func (v *village) together(a, b *villager) {
	v.t.Helper()
	v.w.Heal(a.i, b.i)
	v.until(a.name+" meets "+b.name, 5*time.Minute, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = v.node(a.i).Connect(ctx, b.self.Device, v.w.Addrs(b.i))
		return a.meets(b) && b.meets(a)
	})
}

// meets tells whether there is a session.
func (p *villager) meets(o *villager) bool {
	return slices.ContainsFunc(p.rep.Sessions(), func(s replica.SessionInfo) bool { return s.Device == o.self.Device })
}

// Dave was removed by bob, holds that carol removed bob, and not that the owner removed carol, which overrules that. Whoever he has
// a session with learns of one after the other while it lasts, and so does he.
func TestRemovedHearsWhyInTheSameSession(t *testing.T) {
	for name, order := range map[string][]string{
		"the reason last":  {"carol dave", "bob frank", "alice frank"},
		"the removal last": {"carol dave", "alice frank", "bob frank"},
		"the doubt last":   {"bob frank", "alice frank", "carol dave"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := newVillage(t, 6)
				_, _ = v.office(0, mailbox.ServerLimits{})
				who := map[string]*villager{}
				var all []*villager
				for i, name := range []string{"alice", "bob", "carol", "dave", "frank"} {
					p := v.villager(name, i+1).up()
					who[name], all = p, append(all, p)
				}
				alice, bob, carol, dave, frank := all[0], all[1], all[2], all[3], all[4]
				conv := v.found(alice, all[1:]...)
				ctx := context.Background()
				for _, p := range []*villager{bob, carol} {
					require.NoError(t, alice.g.Promote(ctx, conv, p.self.Account))
				}
				for _, p := range all {
					v.until(p.name+" knows the admins", time.Minute, func() bool {
						return p.size(conv) == 5 && p.roleOf(conv, bob) == roster.Admin && p.roleOf(conv, carol) == roster.Admin
					})
				}
				v.apart(all...)
				v.together(dave, frank)
				begun := frank.rep.Sessions()
				require.Len(t, begun, 1)
				require.NoError(t, bob.g.Remove(ctx, conv, dave.self.Account))
				require.NoError(t, carol.g.Remove(ctx, conv, bob.self.Account))
				require.NoError(t, alice.g.Remove(ctx, conv, carol.self.Account))
				for _, step := range order {
					var a, b string
					for i := range step {
						if step[i] == ' ' {
							a, b = step[:i], step[i+1:]
						}
					}
					v.told(conv, who[a], who[b])
				}
				require.Equal(t, roster.None, frank.roleOf(conv, dave))
				v.until("dave knows that he is out", time.Minute, func() bool { return dave.state(conv) == StateRemoved })
				require.Equal(t, begun[0].Since, frank.rep.Sessions()[0].Since)
			})
		})
	}
}

// twoFaced is a device that writes several feeds under one key. Nobody reaches it.
type twoFaced struct {
	*villager
	conv   ID
	common []feed.Entry
	clock  uint64
}

// turns takes a device away and keeps one of its feeds as it is.
func (p *villager) turns(conv ID, n feed.Number) *twoFaced {
	p.v.t.Helper()
	p.down()
	f := &twoFaced{villager: p, conv: conv, clock: 1 << 20}
	require.NoError(p.v.t, p.db.View(func(tx *txn) error {
		return p.rep.Entries(tx, p.rep.OwnFeed(conv, n), 1, 0, func(e feed.Entry) (bool, error) {
			f.common = append(f.common, e)
			return true, nil
		})
	}))
	return f
}

// next continues a branch with acts that give names.
func (f *twoFaced) next(branch []feed.Entry, upon *villager, names ...string) []feed.Entry {
	f.v.t.Helper()
	for _, name := range names {
		branch = f.acts(branch, upon, roster.Act{Kind: roster.Nickname, Value: name})
	}
	return branch
}

// acts continues a branch with an act.
func (f *twoFaced) acts(branch []feed.Entry, upon *villager, a roster.Act) []feed.Entry {
	f.v.t.Helper()
	kind, content, err := encodeAct(a, nil)
	require.NoError(f.v.t, err)
	return append(slices.Clone(branch), f.entry(branch, feed.Control, kind, content, feed.Group{Parents: upon.parents(f.conv)}))
}

// says continues a branch of what was said.
func (f *twoFaced) says(branch []feed.Entry, texts ...string) []feed.Entry {
	f.v.t.Helper()
	branch = slices.Clone(branch)
	for _, s := range texts {
		branch = append(branch, f.entry(branch, feed.Chat, feed.KindText, []byte(s), feed.Group{Epoch: branch[0].Epoch}))
	}
	return branch
}

func (f *twoFaced) entry(branch []feed.Entry, n feed.Number, kind feed.Kind, content []byte, of feed.Group) feed.Entry {
	f.v.t.Helper()
	f.clock++
	author := feed.NewAuthor(f.self.Account, f.self.Device, f.cert)
	e, err := author.NextInGroup(branch[len(branch)-1].Tip(), f.conv, n, kind, f.clock, time.Now().UnixMilli(), content, of)
	require.NoError(f.v.t, err)
	return e
}

// parents are the heads that somebody would name.
func (p *villager) parents(conv ID) (out []feed.EntryID) {
	p.v.t.Helper()
	require.NoError(p.v.t, p.db.View(func(tx *txn) error {
		gr, _, err := p.g.open(tx, conv, false)
		if err != nil {
			return err
		}
		gr.mu.Lock()
		defer gr.mu.Unlock()
		for _, id := range gr.roster.Heads() {
			out = append(out, feed.EntryID(id))
		}
		return nil
	}))
	return out
}

// shows gives somebody what comes after the common part, in one run.
func (f *twoFaced) shows(branch []feed.Entry, to *villager) {
	f.v.t.Helper()
	fresh := branch[len(f.common):]
	run, err := feed.Assemble(fresh, feed.SignRun(f.key, fresh[len(fresh)-1]))
	require.NoError(f.v.t, err)
	require.NoError(f.v.t, to.rep.Take(context.Background(), f.self, run.PB()))
}

// account is what counts of a group for somebody: the roster, and whatever was said up to where it has two branches.
func (p *villager) account(conv ID) (out []string, waiting int) {
	p.v.t.Helper()
	require.NoError(p.v.t, p.db.View(func(tx *txn) error {
		gr, s, err := p.g.open(tx, conv, false)
		if err != nil {
			return err
		}
		gr.mu.Lock()
		waiting = gr.roster.Waiting()
		gr.mu.Unlock()
		digest := s.view.Digest()
		out = append(out, "0 "+hex.EncodeToString(digest[:])) // before all that was said
		ends, err := p.rep.Ends(tx, conv)
		for _, h := range ends {
			if err != nil || h.Number != feed.Chat || h.Last == 0 {
				continue
			}
			id := feed.FeedID{Conversation: conv, Number: h.Number, Device: h.Device}
			err = p.rep.Entries(tx, id, 1, h.Last, func(e feed.Entry) (bool, error) {
				b, err := e.Content()
				if ok, bad := p.g.Counts(tx, e); bad != nil || !ok {
					return true, bad
				}
				out = append(out, string(b))
				return true, err
			})
		}
		return err
	}))
	slices.Sort(out)
	return out, waiting
}

func (p *villager) heard(kind NewsKind) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.news[kind]
}

// forkedVillage is a group in which bob holds one branch of mallory's control feed and carol the other, acted upon them, and have
// met nobody since.
func forkedVillage(t *testing.T, v *village) (conv ID, mallory *twoFaced, alice, bob, carol, dave *villager) {
	t.Helper()
	_, _ = v.office(0, mailbox.ServerLimits{})
	alice, bob, carol, dave = v.villager("alice", 1).up(), v.villager("bob", 2).up(), v.villager("carol", 3).up(), v.villager("dave", 4).up()
	m := v.villager("mallory", 5).up()
	conv = v.found(alice, bob, carol, dave, m)
	require.NoError(t, m.g.Set(context.Background(), conv, SettingNickname, "m"))
	for _, p := range []*villager{bob, carol} {
		require.NoError(t, alice.g.Promote(context.Background(), conv, p.self.Account))
	}
	for _, p := range []*villager{alice, bob, carol, dave} {
		v.until(p.name+" knows the admins", time.Minute, func() bool {
			list, err := p.names(conv)
			return err == nil && slices.Contains(list, "m") && p.roleOf(conv, bob) == roster.Admin && p.roleOf(conv, carol) == roster.Admin
		})
	}
	v.apart(alice, bob, carol, dave)
	mallory = m.turns(conv, feed.Control)
	mallory.shows(mallory.next(mallory.common, bob, "left", "left again"), bob)
	mallory.shows(mallory.next(mallory.common, carol, "right"), carol)
	require.NoError(t, bob.g.Set(context.Background(), conv, roster.SettingDescription, "bob's"))
	require.NoError(t, carol.g.Set(context.Background(), conv, roster.SettingName, "carol's"))
	return conv, mallory, alice, bob, carol, dave
}

func (p *villager) names(conv ID) (out []string, err error) {
	err = p.db.View(func(tx *txn) error {
		list, err := p.g.Members(tx, conv)
		for _, m := range list {
			out = append(out, m.Nickname)
		}
		return err
	})
	return out, err
}

// agree waits until some people have the same history of a group and were told of the fork.
func (v *village) agree(conv ID, limit time.Duration, people ...*villager) {
	v.t.Helper()
	v.until("the same history", limit, func() bool {
		want, _ := people[0].account(conv)
		for _, p := range people {
			got, waiting := p.account(conv)
			if waiting > 0 || !slices.Equal(got, want) || p.heard(NewsFork) == 0 {
				return false
			}
		}
		return true
	})
}

// Members who hold different branches of a feed, and one who holds neither, come to the same over their sessions, in whatever order
// they meet, and are told that the feed has two branches.
func TestForkOverSessions(t *testing.T) {
	for name, meet := range map[string]func(v *village, conv ID, alice, bob, carol, dave *villager){
		"through one who holds neither": func(v *village, conv ID, alice, bob, carol, dave *villager) {
			v.told(conv, bob, dave)
			v.together(dave, carol)
			v.together(dave, alice)
		},
		"one after the other": func(v *village, conv ID, alice, bob, carol, dave *villager) {
			v.told(conv, bob, dave)
			v.apart(bob, dave)
			v.told(conv, carol, alice)
			v.told(conv, alice, dave)
			v.together(alice, bob)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := newVillage(t, 6)
				conv, _, alice, bob, carol, dave := forkedVillage(t, v)
				meet(v, conv, alice, bob, carol, dave)
				v.agree(conv, 15*time.Minute, bob, carol, dave, alice)
				in := alice.info(conv)
				require.Equal(t, "carol's", in.Name)
				require.Equal(t, "bob's", in.Description)
			})
		})
	}
}

// What was said twice under one number ends for everybody where the branches part (R3).
func TestForkedChatOverSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVillage(t, 6)
		_, _ = v.office(0, mailbox.ServerLimits{})
		bob, carol, dave := v.villager("bob", 1).up(), v.villager("carol", 2).up(), v.villager("dave", 3).up()
		m := v.villager("mallory", 4).up()
		conv := v.found(bob, carol, dave, m)
		m.text(conv, "common")
		for _, p := range []*villager{bob, carol, dave} {
			v.until(p.name+" reads", time.Minute, func() bool { return p.has(conv, "common") })
		}
		v.apart(bob, carol, dave)
		mallory := m.turns(conv, feed.Chat)
		mallory.shows(mallory.says(mallory.common, "left", "left again"), bob)
		mallory.shows(mallory.says(mallory.common, "right"), carol)
		v.together(bob, dave)
		v.until("dave reads", time.Minute, func() bool { return dave.has(conv, "left again") })
		v.together(dave, carol)
		v.until("the same history", time.Minute, func() bool {
			for _, p := range []*villager{bob, carol, dave} {
				if got, _ := p.account(conv); !slices.Equal(got[1:], []string{"common", "hello"}) {
					return false
				}
			}
			return true
		})
	})
}

// Dave was removed on one branch, and so was not. Whoever told him so tells him the rest in the same session.
func TestForkBringsBackInTheSameSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVillage(t, 6)
		_, _ = v.office(0, mailbox.ServerLimits{})
		bob, carol, dave := v.villager("bob", 1).up(), v.villager("carol", 2).up(), v.villager("dave", 3).up()
		m := v.villager("mallory", 4).up()
		conv := v.found(bob, carol, dave, m)
		require.NoError(t, m.g.Set(context.Background(), conv, SettingNickname, "m"))
		require.NoError(t, bob.g.Promote(context.Background(), conv, m.self.Account))
		all := []*villager{bob, carol, dave}
		for _, p := range all {
			v.until(p.name+" knows the admins", time.Minute, func() bool {
				list, err := p.names(conv)
				return err == nil && slices.Contains(list, "m") && p.roleOf(conv, m) == roster.Admin
			})
		}
		v.apart(all...)
		mallory := m.turns(conv, feed.Control)
		v.together(bob, dave)
		mallory.shows(mallory.acts(mallory.common, bob, roster.Act{Kind: roster.Remove, Account: dave.self.Account}), bob)
		mallory.shows(mallory.next(mallory.common, carol, "right"), carol)
		v.until("dave is told that he is out", time.Minute, func() bool { return dave.state(conv) == StateRemoved })
		bob.text(conv, "meanwhile")
		begun := dave.rep.Sessions()
		v.together(bob, carol)
		v.until("dave is in again", time.Minute, func() bool { return dave.state(conv) == StateMember && bob.roleOf(conv, dave) == roster.Member })
		v.until("dave reads what he missed", time.Minute, func() bool { return dave.has(conv, "meanwhile") })
		carol.text(conv, "welcome back")
		v.until("dave reads", time.Minute, func() bool { return dave.has(conv, "welcome back") })
		require.Equal(t, begun[0].Since, dave.rep.Sessions()[0].Since)
	})
}
