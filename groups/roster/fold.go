package roster

import (
	"cmp"
	"slices"

	"hima/identity"
)

// fold is what a set of acts amounts to, a set that with an act holds its ancestors.
type fold struct {
	r     *Roster
	void  map[int]Reason // allowed acts of the set that do not count
	voids set            // the same
	by    map[int]int    // which act overruled one that is void

	history   map[identity.AccountID]*history
	settings  map[string][]int
	nicknames map[identity.AccountID][]int
	epochs    []int
	revokes   []int
	dissolves []int
	everyone  set // who is in, by their places in people
	gone      set // allowed admissions, also void ones, of accounts that are not in
}

// history is what happened to one account: places of acts that count.
type history struct {
	in    []int // Create and Admit
	tried []int // the same, and those that are void although they were allowed
	out   []int // Remove and Leave
	roles []int // Create, SetRole, Transfer from and to
}

func newFold(r *Roster) *fold {
	return &fold{
		r: r, void: map[int]Reason{}, by: map[int]int{}, history: map[identity.AccountID]*history{}, settings: map[string][]int{},
		nicknames: map[identity.AccountID][]int{},
	}
}

// of returns the history of an account, making it.
func (f *fold) of(account identity.AccountID) *history {
	h := f.history[account]
	if h == nil {
		h = &history{}
		f.history[account] = h
	}
	return h
}

// apply takes in an act that counts.
func (f *fold) apply(i int) {
	n := f.r.nodes[i]
	switch n.Kind {
	case Create:
		h := f.of(n.Author)
		h.in, h.tried, h.roles = append(h.in, i), append(h.tried, i), append(h.roles, i)
		f.refresh(n.Author, h)
	case Admit:
		h := f.of(n.Account)
		h.in, h.tried = append(h.in, i), append(h.tried, i)
		f.refresh(n.Account, h)
	case Leave:
		h := f.of(n.Author)
		h.out = append(h.out, i)
		f.refresh(n.Author, h)
	case Remove:
		h := f.of(n.Account)
		h.out = append(h.out, i)
		f.refresh(n.Account, h)
	case SetRole:
		f.of(n.Account).roles = append(f.of(n.Account).roles, i)
	case Transfer:
		f.of(n.Account).roles = append(f.of(n.Account).roles, i)
		f.of(n.Author).roles = append(f.of(n.Author).roles, i)
	case Set:
		f.settings[n.Key] = append(f.settings[n.Key], i)
	case Nickname:
		f.nicknames[n.Author] = append(f.nicknames[n.Author], i)
	case NewEpoch:
		f.epochs = append(f.epochs, i)
	case Revoke:
		f.revokes = append(f.revokes, i)
	case Dissolve:
		f.dissolves = append(f.dissolves, i)
	}
}

// pass leaves out an act that does not count, although it was allowed.
func (f *fold) pass(i int, why Reason) {
	f.void[i] = why
	f.voids = f.voids.add(i)
	if n := f.r.nodes[i]; n.Kind == Admit {
		h := f.of(n.Account)
		h.tried = append(h.tried, i)
		f.refresh(n.Account, h)
	}
}

// refresh works out anew whether an account is in.
func (f *fold) refresh(account identity.AccountID, h *history) {
	if f.role(account, nil) != None {
		f.everyone = f.everyone.add(f.r.people[account])
		for _, i := range h.tried {
			f.gone.drop(i)
		}
		return
	}
	f.everyone.drop(f.r.people[account])
	for _, i := range h.tried {
		f.gone = f.gone.add(i)
	}
}

// knewOfAll tells whether an act of within is a descendant of each of the removals in within: whoever was removed is in
// again only by such an act.
func (f *fold) knewOfAll(removals []int, i int, within set) bool {
	outside := func(i int) bool { return within != nil && !within.has(i) }
	return !outside(i) && !slices.ContainsFunc(removals, func(o int) bool { return !outside(o) && !f.r.nodes[i].anc.has(o) })
}

// newest returns the acts of a list, ancestors before descendants, that are ancestors of no other in it; of within alone
// if that is not nil.
func (f *fold) newest(list []int, within set) []int {
	var out []int
	for _, i := range slices.Backward(list) {
		if within != nil && !within.has(i) || slices.ContainsFunc(out, func(j int) bool { return f.r.nodes[j].anc.has(i) }) {
			continue
		}
		out = append(out, i)
	}
	return out
}

// role says what an account is, by the acts of within alone if that is not nil.
func (f *fold) role(account identity.AccountID, within set) Role {
	h := f.history[account]
	if h == nil {
		return None
	}
	counts := func(i int) bool { return f.knewOfAll(h.out, i, within) }
	if !slices.ContainsFunc(h.in, counts) {
		return None
	}
	best := -1
	for _, i := range h.roles {
		if !counts(i) {
			continue
		}
		switch {
		case best < 0, f.r.nodes[i].anc.has(best):
			best = i
		case f.r.nodes[best].anc.has(i):
		case f.r.nodes[i].ID.less(f.r.nodes[best].ID): // at the same time: the lower hash
			best = i
		}
	}
	if best < 0 {
		return Member
	}
	n := f.r.nodes[best]
	switch {
	case n.Kind == Create, n.Kind == Transfer && n.Account == account:
		return Owner
	case n.Kind == Transfer:
		return Admin
	}
	return n.Role
}

// value says what a setting is: of those given at the same time the lower hash.
func (f *fold) value(key string, within set) string {
	best := f.lowest(f.newest(f.settings[key], within))
	if best < 0 {
		return defaults(key)
	}
	return f.r.nodes[best].Value
}

func (f *fold) lowest(list []int) int {
	best := -1
	for _, i := range list {
		if best < 0 || f.r.nodes[i].ID.less(f.r.nodes[best].ID) {
			best = i
		}
	}
	return best
}

func defaults(key string) string {
	switch key {
	case SettingPublic, SettingMute:
		return "no"
	case SettingJoin:
		return "invite"
	case SettingInvite:
		return "admins"
	case SettingHistory:
		return "none"
	}
	return ""
}

// everybody is the set of accounts that are in.
func (f *fold) everybody(within set) set {
	if within == nil {
		return f.everyone.clone()
	}
	in := set{}
	for account := range f.history {
		if f.role(account, within) != None {
			in = in.add(f.r.people[account])
		}
	}
	return in
}

// admissions are the allowed admissions, also void ones, of accounts that are not in.
func (f *fold) admissions(within set) set {
	if within == nil {
		return f.gone
	}
	gone := set{}
	for account, h := range f.history {
		if f.role(account, within) != None {
			continue
		}
		for _, i := range h.tried {
			if within.has(i) {
				gone = gone.add(i)
			}
		}
	}
	return gone
}

// fits tells whether one may write under an epoch: nobody who is not in can have its key. Whoever was in when it began is in
// now; whoever was let in later, by an act that counts or one that some took for valid, is in now; and every device that is
// revoked now was revoked then (R28).
func (f *fold) fits(e int, now, gone, within set) bool {
	outside := func(i int) bool { return within != nil && !within.has(i) }
	anc := f.r.nodes[e].anc
	return !outside(e) && f.r.epochs[e].inside(now) && !f.leaks(e, gone) &&
		!slices.ContainsFunc(f.revokes, func(v int) bool { return !outside(v) && !anc.has(v) })
}

// maxDoubts is how many void admissions are looked at one by one for an epoch. With more it is given up.
const maxDoubts = 64

// leaks tells whether somebody who is not in may have been handed the key of an epoch: they were let in by an act that whoever
// held the epoch could take for valid.
func (f *fold) leaks(e int, gone set) (leaks bool) {
	doubts := 0
	gone.without(f.r.nodes[e].anc, func(i int) bool {
		if f.void[i] == "" {
			leaks = true
			return false
		}
		doubts++
		leaks = doubts > maxDoubts || f.r.foundIn(e, i)
		return !leaks
	})
	return leaks
}

// anyUsable tells whether there is an epoch to write under.
func (f *fold) anyUsable(within set) bool {
	now, gone := f.everyone, f.gone
	if within != nil {
		now, gone = f.everybody(within), f.admissions(within)
	}
	for _, e := range slices.Backward(f.epochs) {
		if f.fits(e, now, gone, within) {
			return true
		}
	}
	return false
}

// usable lists the epochs that may be written under, best first.
func (f *fold) usable(within set) []int {
	now, gone := f.everybody(within), f.admissions(within)
	out := slices.DeleteFunc(slices.Clone(f.epochs), func(e int) bool { return !f.fits(e, now, gone, within) })
	slices.SortFunc(out, func(a, b int) int {
		return cmp.Or(cmp.Compare(f.r.nodes[b].Generation, f.r.nodes[a].Generation), compareIDs(f.r.nodes[a].ID, f.r.nodes[b].ID))
	})
	return out
}

// judge says what role an act needs, and whether it is allowed after what f holds, or after within if that is not nil.
func (f *fold) judge(a *Act, within set) (need Role, why Reason) {
	need, ok := f.rights(a, within)
	over := slices.ContainsFunc(f.dissolves, func(i int) bool { return within == nil || within.has(i) })
	revoked := slices.ContainsFunc(f.revokes, func(i int) bool {
		n := f.r.nodes[i]
		return (within == nil || within.has(i)) && n.Author == a.Author && n.Revoked == a.Device
	})
	if !ok || over || revoked || a.Forked || f.role(a.Author, within) < need {
		return need, NotAllowed
	}
	return need, ""
}

// rights says what role an act needs, and whether what it does can be done at all.
func (f *fold) rights(a *Act, within set) (need Role, ok bool) {
	switch a.Kind {
	case Create:
		return None, len(f.r.nodes) == 0
	case Admit:
		return f.admission(a, within), f.role(a.Account, within) == None && !f.spent(a, within)
	case Leave:
		// The owner hands over, or dissolves.
		return Member, f.role(a.Author, within) != Owner
	case Remove:
		target := f.role(a.Account, within)
		return Admin, target == Member || target == Admin
	case SetRole:
		target := f.role(a.Account, within)
		return Owner, target != None && target != Owner && target != a.Role
	case Transfer:
		return Owner, f.role(a.Account, within) != None
	case Set:
		return Admin, true
	case Nickname, Revoke:
		return Member, true
	case NewEpoch:
		generation := uint64(0)
		for _, e := range f.epochs {
			if within == nil || within.has(e) {
				generation = max(generation, f.r.nodes[e].Generation)
			}
		}
		if !f.anyUsable(within) {
			return Member, a.Generation == generation+1
		}
		return Admin, a.Generation == generation+1
	case Dissolve:
		return Owner, true
	}
	return Owner, false
}

// spent tells whether a consent let its account in before.
func (f *fold) spent(a *Act, within set) bool {
	h := f.history[a.Account]
	return h != nil && a.Consent != [32]byte{} && slices.ContainsFunc(h.tried, func(i int) bool {
		return (within == nil || within.has(i)) && f.r.nodes[i].Consent == a.Consent
	})
}

// admission says who may let somebody in: any member where the group is open to all who apply, or lets members invite.
func (f *fold) admission(a *Act, within set) Role {
	if a.Applied && f.value(SettingJoin, within) == "open" || !a.Applied && f.value(SettingInvite, within) == "members" {
		return Member
	}
	return Admin
}
