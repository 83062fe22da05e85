package roster

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"hima/identity"
)

func account(i int) identity.AccountID {
	return identity.AccountID(sha256.Sum256(fmt.Appendf(nil, "account %d", i)))
}

func device(i, d int) identity.DeviceID {
	return identity.DeviceID(sha256.Sum256(fmt.Appendf(nil, "device %d %d", i, d)))
}

// maker makes acts with IDs of their own.
type maker struct{ n int }

func (m *maker) act(author int, kind Kind, parents []ID) Act {
	m.n++
	parents = slices.Clone(parents)
	slices.SortFunc(parents, compareIDs)
	return Act{
		ID: ID(sha256.Sum256(fmt.Appendf(nil, "act %d", m.n))), Parents: slices.Compact(parents), Author: account(author), Device: device(author, 0), Kind: kind,
	}
}

// story is a group whose acts are written in a test by hand.
type story struct {
	t *testing.T
	maker
	acts []Act
	r    *Roster
}

func begin(t *testing.T) *story {
	s := &story{t: t}
	a := s.act(0, Create, nil)
	s.r = New(a.ID)
	s.take(a)
	return s
}

func (s *story) take(a Act) ID {
	s.t.Helper()
	s.acts = append(s.acts, a)
	require.NoError(s.t, s.r.Add(a))
	return a.ID
}

// do adds an act after the named ones; none: after everything.
func (s *story) do(author int, kind Kind, target int, edit func(*Act), after ...ID) ID {
	s.t.Helper()
	if len(after) == 0 {
		after = s.r.Heads()
	}
	a := s.act(author, kind, after)
	if a.targets() {
		a.Account = account(target)
	}
	if edit != nil {
		edit(&a)
	}
	return s.take(a)
}

func (s *story) admin(i int) ID {
	s.t.Helper()
	s.do(0, Admit, i, nil)
	return s.do(0, SetRole, i, func(a *Act) { a.Role = Admin })
}

func (s *story) view() View {
	v := s.r.View()
	return v
}

func (s *story) is(who int, want Role) {
	s.t.Helper()
	v := s.view()
	require.Equal(s.t, want, v.Role(account(who)), "account %d", who)
}

func TestOneAfterTheOther(t *testing.T) {
	s := begin(t)
	s.do(0, Set, 0, func(a *Act) { a.Key, a.Value = SettingName, "tea" })
	s.do(0, Admit, 1, nil)
	s.is(1, Member)
	s.do(1, Set, 0, func(a *Act) { a.Key, a.Value = SettingName, "coffee" })
	require.Equal(t, "tea", s.view().Settings[SettingName], "members name nothing")
	s.do(0, SetRole, 1, func(a *Act) { a.Role = Admin })
	s.do(1, Admit, 2, nil)
	s.do(2, Admit, 3, nil)
	s.is(3, None)
	s.do(1, Remove, 2, nil)
	s.is(2, None)
	s.do(2, Nickname, 0, func(a *Act) { a.Value = "ghost" })
	s.do(1, Admit, 2, nil)
	s.is(2, Member)
	s.do(1, Remove, 0, nil)
	s.is(0, Owner)
	s.do(0, Leave, 0, nil)
	s.is(0, Owner)
	s.do(0, Transfer, 1, nil)
	s.is(0, Admin)
	s.is(1, Owner)
	s.do(0, Leave, 0, nil)
	s.is(0, None)
	require.Len(t, s.view().Void, 5)
	s.do(1, Dissolve, 0, nil)
	require.True(t, s.view().Dissolved)
	s.do(1, Admit, 4, nil)
	s.is(4, None)
}

// Two admins remove each other at the same time: the one admitted earlier stays (R26).
func TestMutualRemoval(t *testing.T) {
	s := begin(t)
	s.admin(1)
	top := s.admin(2)
	s.do(2, Remove, 1, nil, top)
	s.do(1, Remove, 2, nil, top)
	s.is(1, Admin)
	s.is(2, None)
}

// The owner removes an admin who at the same time removes a member and lets a friend in: neither of it counts.
func TestTheRemovedActsForNobody(t *testing.T) {
	s := begin(t)
	s.do(0, Admit, 2, nil)
	top := s.admin(1)
	a := s.do(1, Admit, 3, nil, top)
	b := s.do(3, Nickname, 0, func(a *Act) { a.Value = "sock" }, a)
	c := s.do(1, Remove, 2, nil, top)
	s.is(2, None)
	s.is(3, Member)
	s.do(0, Remove, 1, nil, top)
	s.is(1, None)
	s.is(2, Member)
	s.is(3, None)
	v := s.view()
	require.Equal(t, map[ID]Reason{a: Overruled, c: Overruled, b: Unfounded}, v.Void)
	// What the removal knew of stands.
	s.do(0, Admit, 1, nil)
	s.is(1, Member)
}

// A removal beside a new admission of the same person wins; an admission that knew of it brings them back.
func TestRemovalBesideAdmission(t *testing.T) {
	s := begin(t)
	s.admin(1)
	out := s.do(0, Admit, 2, nil)
	s.do(0, Remove, 2, nil, out)
	gone := s.r.Heads()
	in := s.do(0, Admit, 2, nil, gone...)
	s.is(2, Member)
	again := s.do(1, Admit, 2, nil, gone...)
	s.is(2, Member)
	s.do(0, Remove, 2, nil, in)
	s.is(2, None)
	s.do(1, Nickname, 0, func(a *Act) { a.Value = "x" }, again)
	s.is(2, None)
	s.do(0, Admit, 2, nil)
	s.is(2, Member)
}

// One account transfers from two devices at once: the lower hash, and there is one owner.
func TestOneOwner(t *testing.T) {
	s := begin(t)
	s.do(0, Admit, 1, nil)
	top := s.do(0, Admit, 2, nil)
	x := s.do(0, Transfer, 1, nil, top)
	y := s.do(0, Transfer, 2, nil, top)
	want := 1
	if y.less(x) {
		want = 2
	}
	s.is(want, Owner)
	s.is(3-want, Member)
	s.is(0, Admin)
}

// An epoch is usable while nobody who was in when it began has gone, and while it leaves out every revoked device.
func TestEpochs(t *testing.T) {
	s := begin(t)
	epoch := func(author int, generation uint64, after ...ID) ID {
		return s.do(author, NewEpoch, 0, func(a *Act) { a.Generation, a.KeyHash = generation, sha256.Sum256([]byte{byte(s.n)}) }, after...)
	}
	s.do(0, Admit, 1, nil)
	s.do(0, Admit, 2, nil)
	first := epoch(1, 1) // anybody, for there was none
	current := func() ID { v := s.view(); e, _ := v.Current(); return e.ID }
	require.Equal(t, first, current())
	epoch(2, 2)
	require.Equal(t, first, current(), "a member makes no epoch while there is a usable one")
	s.do(0, Admit, 3, nil)
	require.Equal(t, first, current(), "a newcomer spoils nothing")
	s.do(2, Leave, 0, nil)
	require.Equal(t, ID{}, current())
	top := s.r.Heads()
	a, b := epoch(1, 2, top...), epoch(3, 2, top...)
	require.Equal(t, slices.MinFunc([]ID{a, b}, compareIDs), current())
	s.do(1, Revoke, 0, func(a *Act) { a.Revoked = device(1, 9) })
	require.Equal(t, ID{}, current())
	third := epoch(3, 3)
	require.Equal(t, third, current())
	s.do(0, Admit, 4, nil, first)
	require.Equal(t, third, current(), "who came in beside it is in now")
}

func TestCuts(t *testing.T) {
	s := begin(t)
	s.admin(1)
	top := s.do(0, Admit, 2, nil)
	cut := func(seq uint64) func(*Act) {
		return func(a *Act) { a.Cuts = []Cut{{Device: device(2, 0), Feed: 2, Seq: seq, Hash: [32]byte{byte(seq)}}} }
	}
	s.do(0, Remove, 2, cut(9), top)
	s.do(1, Remove, 2, cut(7), top)
	v := s.view()
	require.Equal(t, []Cut{{Device: device(2, 0), Feed: 2, Seq: 7, Hash: [32]byte{7}}}, v.Cuts(account(2)))
	require.Len(t, v.Ends(account(2)), 2)
	// Whoever was let in again and goes says where that ends.
	s.do(0, Admit, 2, nil)
	v = s.view()
	require.Empty(t, v.Cuts(account(2)))
	out := s.do(2, Leave, 0, cut(12))
	v = s.view()
	require.Equal(t, []Cut{{Device: device(2, 0), Feed: 2, Seq: 12, Hash: [32]byte{12}}}, v.Cuts(account(2)))
	require.Equal(t, []ID{out}, v.Ends(account(2)))
	require.Len(t, v.Gone[account(2)], 3)
}

func TestMalformed(t *testing.T) {
	s := begin(t)
	ok := s.act(0, Admit, s.r.Heads())
	ok.Account = account(5)
	require.NoError(t, ok.check())
	for name, edit := range map[string]func(*Act){
		"no id":           func(a *Act) { a.ID = ID{} },
		"no author":       func(a *Act) { a.Author = identity.AccountID{} },
		"no kind":         func(a *Act) { a.Kind = 0 },
		"unknown kind":    func(a *Act) { a.Kind = Dissolve + 1 },
		"no parents":      func(a *Act) { a.Parents = nil },
		"own parent":      func(a *Act) { a.Parents = []ID{a.ID} },
		"parents twice":   func(a *Act) { a.Parents = append(a.Parents, a.Parents[0]) },
		"no target":       func(a *Act) { a.Account = identity.AccountID{} },
		"another genesis": func(a *Act) { a.Kind, a.Parents = Create, nil },
		"removes self":    func(a *Act) { a.Kind, a.Account = Remove, a.Author },
		"role":            func(a *Act) { a.Kind, a.Role = SetRole, Owner },
		"setting":         func(a *Act) { a.Kind, a.Key, a.Value = Set, "colour", "red" },
		"history":         func(a *Act) { a.Kind, a.Key, a.Value = Set, SettingHistory, "007" },
		"epoch":           func(a *Act) { a.Kind = NewEpoch },
		"revokes itself":  func(a *Act) { a.Kind, a.Revoked = Revoke, a.Device },
	} {
		bad := ok
		bad.Parents = slices.Clone(ok.Parents)
		edit(&bad)
		require.ErrorIs(t, s.r.Add(bad), ErrMalformed, name)
	}
}

func TestWaiting(t *testing.T) {
	s := begin(t)
	a := s.act(0, Admit, s.r.Heads())
	a.Account = account(1)
	b := s.act(0, SetRole, []ID{a.ID})
	b.Account, b.Role = account(1), Admin
	c := s.act(1, Admit, []ID{b.ID})
	c.Account = account(2)
	require.NoError(t, s.r.Add(c))
	require.NoError(t, s.r.Add(b))
	require.Equal(t, []ID{a.ID}, s.r.Missing())
	require.NoError(t, s.r.Add(a))
	require.Empty(t, s.r.Missing())
	s.is(2, Member)
	for range MaxWaiting {
		x := s.act(0, Nickname, []ID{{1}})
		require.NoError(t, s.r.Add(x))
	}
	require.ErrorIs(t, s.r.Add(s.act(0, Nickname, []ID{{1}})), ErrTooMany)
}

// world draws what several members, who hear of each other's acts late and in any order, and some of whom cheat, write.
func world(t *rapid.T) []Act {
	const people = 6
	m := &maker{}
	genesis := m.act(0, Create, nil)
	all := []Act{genesis}
	held := make([][]ID, people) // what each believes to be the heads
	for i := range held {
		held[i] = []ID{genesis.ID}
	}
	kinds := []Kind{Admit, Admit, Admit, SetRole, SetRole, Remove, Remove, Leave, Transfer, Set, NewEpoch, Revoke, Nickname, Dissolve}
	for range rapid.IntRange(1, 40).Draw(t, "acts") {
		who := rapid.IntRange(0, people-1).Draw(t, "who")
		if rapid.IntRange(0, 2).Draw(t, "hear") > 0 {
			held[who] = append(held[who], held[rapid.IntRange(0, people-1).Draw(t, "of")]...)
		}
		if rapid.IntRange(0, 9).Draw(t, "cheat") == 0 { // names any parents, also long gone ones
			held[who] = []ID{all[rapid.IntRange(0, len(all)-1).Draw(t, "parent")].ID}
		}
		held[who] = lastOf(held[who])
		a := m.act(who, kinds[rapid.IntRange(0, len(kinds)-1).Draw(t, "kind")], held[who])
		on := rapid.IntRange(0, 4).Draw(t, "device") / 4
		a.Device = device(who, on)
		if a.Kind == Dissolve && rapid.IntRange(0, 5).Draw(t, "really") > 0 {
			a.Kind = Nickname
		}
		a.Value = "v"
		switch a.Kind {
		case Admit, SetRole, Remove, Transfer:
			a.Account = account((who + rapid.IntRange(1, people-1).Draw(t, "target")) % people)
			a.Role = Role(rapid.IntRange(1, 2).Draw(t, "role"))
		case Set:
			a.Key, a.Value = SettingInvite, []string{"admins", "members"}[rapid.IntRange(0, 1).Draw(t, "value")]
		case NewEpoch:
			a.Generation, a.KeyHash = uint64(rapid.IntRange(1, 4).Draw(t, "generation")), [32]byte{1}
			if rapid.IntRange(0, 3).Draw(t, "honest") > 0 {
				a.Generation = 1
				for _, e := range all {
					if e.Kind == NewEpoch {
						a.Generation = max(a.Generation, e.Generation+1)
					}
				}
			}
		case Revoke:
			a.Revoked = device(who, 1-on)
		}
		if of := who; a.Kind == Remove || a.Kind == Leave || a.Kind == Revoke {
			if a.Kind == Remove {
				for of = 0; account(of) != a.Account; {
					of++
				}
			}
			for d := range rapid.IntRange(0, 2).Draw(t, "cuts") {
				a.Cuts = append(a.Cuts, Cut{Device: device(of, d), Feed: 2, Seq: uint64(rapid.IntRange(1, 5).Draw(t, "seq"))})
			}
		}
		all = append(all, a)
		held[who] = []ID{a.ID}
	}
	return all
}

// lastOf keeps at most MaxParents different heads.
func lastOf(ids []ID) []ID {
	out := []ID{}
	for _, id := range slices.Backward(ids) {
		if !slices.Contains(out, id) && len(out) < MaxParents {
			out = append(out, id)
		}
	}
	return out
}

func load(t require.TestingT, acts []Act) *Roster {
	r := New(acts[0].ID)
	for _, a := range acts {
		require.NoError(t, r.Add(a))
	}
	return r
}

// Whatever the order in which acts arrive, and however often, everybody has the same roster and the same usable epoch; and
// what was folded step by step is what is folded at once.
func TestAnyOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		acts := world(t)
		first := load(t, acts)
		want := first.View()
		shuffled := append(slices.Clone(acts), acts[len(acts)/2])
		rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "order"), 1))
		rnd.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		r := New(acts[0].ID)
		for _, a := range shuffled {
			require.NoError(t, r.Add(a))
			v := r.View()
			again := *r
			again.present = r.build(r.all)
			once := again.View()
			require.Equal(t, once.Digest(), v.Digest(), "step by step and at once")
		}
		got := r.View()
		require.Equal(t, want.Void, got.Void)
		require.Equal(t, want.Digest(), got.Digest())
		require.Equal(t, want.cuts, got.cuts)
		require.Equal(t, want.revoked, got.revoked)
		a, ok := want.Current()
		b, same := got.Current()
		require.Equal(t, ok, same)
		require.Equal(t, a, b)
	})
}

// No sequence of acts gives a right that nobody granted: judged by a second, slow reading of the rules that looks at what
// counts in the end.
func TestNoRightIsTaken(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		acts := world(t)
		r := load(t, acts)
		v := r.View()
		owners := 0
		for _, p := range v.People {
			if p.Role == Owner {
				owners++
			}
			if p.Account == account(0) {
				continue
			}
			in := acts[slices.IndexFunc(acts, func(a Act) bool { return a.ID == p.Admitted })]
			require.Equal(t, Admit, in.Kind)
			require.Equal(t, p.Account, in.Account)
			require.Empty(t, v.Void[in.ID])
		}
		require.LessOrEqual(t, owners, 1)
		for i, n := range r.nodes {
			if v.Void[n.ID] != "" || n.Kind == Create {
				continue
			}
			// Whoever acted was in, by acts that count, at the moment of the act.
			require.NotEqual(t, None, r.present.role(n.Author, n.anc), "act %d, kind %d", i, n.Kind)
			if n.Kind != Remove {
				continue
			}
			for _, p := range v.People {
				if p.Account == n.Account {
					require.True(t, r.nodes[r.at[p.Admitted]].anc.has(i), "removed, and not let in again")
				}
			}
		}
	})
}

// Nobody who is not in can have the key of an epoch that is written under: whoever holds an epoch holds its ancestors, and
// with these, whatever else they hold, they never took an outsider for a member (R28, R29).
func TestUsableEpochsAreSecret(t *testing.T) {
	seen := 0
	rapid.Check(t, func(t *rapid.T) {
		acts := world(t)
		r := load(t, acts)
		v := r.View()
		e, ok := v.Current()
		if !ok {
			return
		}
		seen++
		// A holder of the epoch: its ancestors, and any other acts with theirs.
		held := r.nodes[r.at[e.ID]].anc.clone().add(r.at[e.ID])
		for range rapid.IntRange(0, 4).Draw(t, "more") {
			i := rapid.IntRange(0, len(r.nodes)-1).Draw(t, "of")
			held = held.join(r.nodes[i].anc).add(i)
		}
		some := r.build(held)
		for i := range 6 {
			if some.role(account(i), nil) != None {
				require.NotEqual(t, None, v.Role(account(i)), "account %d got the key of an epoch that it must not have", i)
			}
		}
		for _, i := range r.present.revokes {
			require.True(t, r.nodes[r.at[e.ID]].anc.has(i), "a revoked device has the key")
		}
	})
	if !testing.Short() { // of a fifth of the cases there may be none
		require.Positive(t, seen)
	}
}

// A device that was taken away counts for nothing any more, whoever has it: neither what it does knowing that, nor what it
// did at the same time.
func TestRevokedDeviceActsForNobody(t *testing.T) {
	s := begin(t)
	s.admin(1)
	top := s.do(0, Admit, 2, nil)
	thief := func(a *Act) { a.Device = device(1, 1) }
	beside := s.do(1, Remove, 2, thief, top)
	s.is(2, None)
	revoke := s.do(1, Revoke, 0, func(a *Act) { a.Revoked = device(1, 1) }, top)
	s.is(2, Member)
	after := s.do(1, Remove, 2, thief, revoke)
	v := s.view()
	require.Equal(t, map[ID]Reason{beside: Overruled, after: NotAllowed}, v.Void)
	require.Equal(t, revoke, v.By[beside])
	_, revoked := v.Revokes(account(1), device(1, 1))
	require.True(t, revoked)
	_, revoked = v.Revokes(account(0), device(1, 1))
	require.False(t, revoked)
	// Nobody revokes another's device.
	s.do(2, Revoke, 0, func(a *Act) { a.Revoked = device(1, 0) })
	s.do(1, Remove, 2, nil)
	s.is(2, None)
}

// A consent lets its account in once.
func TestConsentIsSpent(t *testing.T) {
	s := begin(t)
	once := func(a *Act) { a.Consent = [32]byte{7} }
	s.do(0, Admit, 1, once)
	s.do(0, Remove, 1, nil)
	s.do(0, Admit, 1, once)
	s.is(1, None)
	s.do(0, Admit, 1, func(a *Act) { a.Consent = [32]byte{8} })
	s.is(1, Member)
}

// Somebody who came in under an epoch and went again has its key, although they were not in when it began.
func TestNewcomersKey(t *testing.T) {
	s := begin(t)
	s.do(0, Admit, 1, nil)
	s.do(0, NewEpoch, 0, func(a *Act) { a.Generation, a.KeyHash = 1, [32]byte{1} })
	s.do(0, Admit, 2, nil)
	v := s.view()
	_, ok := v.Current()
	require.True(t, ok, "a newcomer spoils no epoch")
	s.do(2, Leave, 0, nil)
	v = s.view()
	_, ok = v.Current()
	require.False(t, ok)
}

// What an act was worth when only its ancestors were known stays not allowed for ever.
func TestVerdictOfAncestorsStays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		acts := world(t)
		r := load(t, acts)
		for _, n := range r.nodes {
			alone := New(acts[0].ID)
			for j, m := range r.nodes {
				if n.anc.has(j) {
					require.NoError(t, alone.Add(m.Act))
				}
			}
			if len(alone.nodes) == 0 {
				continue
			}
			require.Equal(t, n.void == "", alone.Allowed(n.Act))
		}
	})
}

// large makes a group of members and changes, in a line but for every tenth change, which two make at once.
func large(members, changes int) []Act {
	m := &maker{}
	genesis := m.act(0, Create, nil)
	acts, heads := []Act{genesis}, []ID{genesis.ID}
	add := func(a Act) { acts, heads = append(acts, a), []ID{a.ID} }
	for i := 1; i < members; i++ {
		a := m.act(0, Admit, heads)
		a.Account = account(i)
		add(a)
		if i < 10 {
			a := m.act(0, SetRole, heads)
			a.Account, a.Role = account(i), Admin
			add(a)
		}
	}
	generation := uint64(1)
	for i := len(acts); i < changes; i++ {
		author := i % 10
		if i%10 == 0 {
			x, y := m.act(author, Set, heads), m.act((author+1)%10, Nickname, heads)
			x.Key, x.Value, y.Value = SettingName, fmt.Sprint("name ", i), "n"
			acts, heads = append(acts, x, y), []ID{x.ID, y.ID}
			i++
			continue
		}
		switch who := account(10 + i%(members-10)); i % 4 {
		case 0, 1:
			a := m.act(author, Remove, heads)
			a.Account = who
			add(a)
			a = m.act(author, NewEpoch, heads)
			a.Generation, a.KeyHash = generation, [32]byte{1}
			generation++
			add(a)
			a = m.act(author, Admit, heads)
			a.Account = who
			add(a)
			i += 2
		default:
			a := m.act(author, Nickname, heads)
			a.Value = fmt.Sprint("name ", i)
			add(a)
		}
	}
	return acts
}

// sequel makes two partitions of a large group that write many acts each, beside an old quarrel, and meet.
func sequel(members, changes int) []Act {
	acts := large(members, members+100)
	m := &maker{n: 1 << 20}
	top := acts[len(acts)-1].ID
	x, y := m.act(1, Remove, []ID{top}), m.act(2, Remove, []ID{top})
	x.Account, y.Account = account(2), account(1)
	acts = append(acts, x, y)
	heads := [][]ID{{x.ID, y.ID}, {x.ID, y.ID}}
	for i := range changes - len(acts) {
		side := i % 2
		parents := slices.Clone(heads[side])
		a := m.act(3+side, Set, parents)
		a.Key, a.Value = SettingName, "n"
		switch i % 40 {
		case 0, 21: // with the epoch that it makes necessary, here left out
			a.Kind, a.Account = Remove, account(20+i/20)
		}
		acts = append(acts, a)
		heads[side] = []ID{a.ID}
	}
	return acts
}

func BenchmarkFoldPartitions(b *testing.B) {
	acts := sequel(1000, 5000)
	for b.Loop() {
		r := load(b, acts)
		if v := r.View(); len(v.People) >= 1000 {
			b.Fatal(len(v.People))
		}
	}
}

func BenchmarkFold(b *testing.B) {
	for _, n := range []struct{ members, changes int }{{100, 500}, {1000, 5000}} {
		acts := large(n.members, n.changes)
		b.Run(fmt.Sprintf("%d-members-%d-changes", n.members, len(acts)), func(b *testing.B) {
			for b.Loop() {
				r := load(b, acts)
				if v := r.View(); len(v.People) != n.members {
					b.Fatal(len(v.People))
				}
			}
		})
	}
}
