package roster

import (
	"fmt"
	"slices"

	"hima/identity"
)

// Reason says why an act is void; empty: it counts.
type Reason string

// The reasons.
const (
	// NotAllowed: the author had not the right by the acts it knew of. This never changes.
	NotAllowed Reason = "not_allowed"
	// Overruled: the author was removed or demoted at the same time.
	Overruled Reason = "overruled"
	// Unfounded: what gave the author the right turned out to be void.
	Unfounded Reason = "unfounded"
)

// node is an act with its place in the graph.
type node struct {
	Act
	anc   set // all ancestors
	depth int // longest way to the genesis
	void  Reason
	need  Role   // what the author had to be
	gen   uint64 // highest generation of the epochs among the ancestors
}

// Roster is the graph of a group's control entries. The zero value is not usable; make one with New.
type Roster struct {
	group   ID
	nodes   []*node // ancestors before descendants
	at      map[ID]int
	all     set
	heads   []int
	takers  set // allowed acts that take something away
	present *fold

	waiting map[ID]Act  // by their own ID
	missing map[ID][]ID // ancestor that is missing: who waits for it
	folds   map[string]*fold
	people  map[identity.AccountID]int  // every account ever named, for the sets of epochs
	doubts  map[[2]int]bool             // see foundIn
	admins  map[identity.AccountID]bool // who was ever made more than a member, by an act that was allowed
	epochs  map[int]set                 // who was in when an epoch began, by the place of its act
}

// maxFolds bounds the remembered folds of earlier moments. They only save time.
const maxFolds = 64

// New makes the roster of the group with this genesis act, empty.
func New(group ID) *Roster {
	r := &Roster{
		group: group, at: map[ID]int{}, waiting: map[ID]Act{}, missing: map[ID][]ID{}, folds: map[string]*fold{},
		people: map[identity.AccountID]int{}, admins: map[identity.AccountID]bool{}, doubts: map[[2]int]bool{}, epochs: map[int]set{},
	}
	r.present = newFold(r)
	return r
}

// Add adds an act. One whose ancestors are not all there waits for them; one that is there already changes nothing. It
// returns ErrMalformed, or ErrTooMany when no more can wait. Whether an act counts says the View.
func (r *Roster) Add(a Act) error {
	if _, ok := r.at[a.ID]; ok {
		return nil
	}
	if _, ok := r.waiting[a.ID]; ok {
		return nil
	}
	if err := a.check(); err != nil {
		return fmt.Errorf("adding an act: %w", err)
	}
	if (a.Kind == Create) != (a.ID == r.group) {
		return fmt.Errorf("adding the genesis of another group: %w", ErrMalformed)
	}
	if lacks, ok := r.lacks(a); ok {
		if len(r.waiting) >= MaxWaiting {
			return ErrTooMany
		}
		r.waiting[a.ID] = a
		r.missing[lacks] = append(r.missing[lacks], a.ID)
		return nil
	}
	ready := []Act{a}
	for len(ready) > 0 {
		next := ready[0]
		ready = ready[1:]
		r.insert(next)
		waiters := r.missing[next.ID]
		delete(r.missing, next.ID)
		for _, id := range waiters {
			w := r.waiting[id]
			if lacks, ok := r.lacks(w); ok {
				r.missing[lacks] = append(r.missing[lacks], id)
				continue
			}
			delete(r.waiting, id)
			ready = append(ready, w)
		}
	}
	return nil
}

// lacks returns a parent that is not there.
func (r *Roster) lacks(a Act) (ID, bool) {
	for _, p := range a.Parents {
		if _, ok := r.at[p]; !ok {
			return p, true
		}
	}
	return ID{}, false
}

// Missing lists the ancestors that acts wait for, in the order of their IDs.
func (r *Roster) Missing() []ID {
	var out []ID
	for id := range r.missing {
		if _, ok := r.waiting[id]; !ok {
			out = append(out, id)
		}
	}
	slices.SortFunc(out, compareIDs)
	return out
}

// Lacks tells whether acts wait for one that is not here.
func (r *Roster) Lacks(id ID) bool {
	_, named := r.missing[id]
	_, here := r.waiting[id]
	return named && !here
}

// WaitFor returns the acts that wait for an ancestor.
func (r *Roster) WaitFor(id ID) []Act {
	out := make([]Act, 0, len(r.missing[id]))
	for _, w := range r.missing[id] {
		out = append(out, r.waiting[w])
	}
	return out
}

// Has tells whether an act is in the graph, ancestors and all.
func (r *Roster) Has(id ID) bool {
	_, ok := r.at[id]
	return ok
}

// Heads are the acts that no other names as parent, in the order of their IDs: the parents of the next own act. Acts of forked
// feeds are passed over, as if they were not there.
func (r *Roster) Heads() []ID {
	out := make([]ID, 0, len(r.heads))
	for _, i := range r.heads {
		out = append(out, r.nodes[i].ID)
	}
	slices.SortFunc(out, compareIDs)
	return out
}

func compareIDs(a, b ID) int {
	switch {
	case a.less(b):
		return -1
	case b.less(a):
		return 1
	}
	return 0
}

// Len is how many acts are in the graph, ancestors and all.
func (r *Roster) Len() int { return len(r.nodes) }

// Waiting is how many acts wait for ancestors.
func (r *Roster) Waiting() int { return len(r.waiting) }

// At returns an act of the graph by its place: ancestors before descendants, new ones last. It must not be changed.
func (r *Roster) At(i int) *Act { return &r.nodes[i].Act }

// Act returns an act of the graph.
func (r *Roster) Act(id ID) (*Act, bool) {
	i, ok := r.at[id]
	if !ok {
		return nil, false
	}
	return &r.nodes[i].Act, true
}

// Knew tells whether an act of the graph is a descendant of another one in it.
func (r *Roster) Knew(id, of ID) bool {
	i, ok := r.at[id]
	j, held := r.at[of]
	return ok && held && r.nodes[i].anc.has(j)
}

// Ancestors calls f for the acts of the graph that are named or ancestors of those, ancestors first.
func (r *Roster) Ancestors(of []ID, f func(*Act)) {
	all := set{}
	for _, id := range of {
		if i, ok := r.at[id]; ok {
			all = all.join(r.nodes[i].anc).add(i)
		}
	}
	all.each(func(i int) bool {
		f(&r.nodes[i].Act)
		return true
	})
}

// WasIn tells whether an account was in at the ancestors of an epoch.
func (r *Roster) WasIn(epoch ID, account identity.AccountID) bool {
	place, ok := r.people[account]
	return ok && r.epochs[r.at[epoch]].has(place)
}

// Floor returns the generation from which on an account that an admission let in may have what was written (R30).
func (r *Roster) Floor(admission ID) uint64 {
	i, ok := r.at[admission]
	if !ok {
		return 0
	}
	n := r.nodes[i]
	// What a forked act says is not known to everybody.
	if e, ok := r.at[n.From]; ok && r.nodes[e].Kind == NewEpoch && !r.nodes[e].Forked {
		return r.nodes[e].Generation
	}
	return n.gen
}

// Entitled tells whether an account may have what was written under an epoch, and write under it: it was in when the epoch
// began, or was let in later with a right to it.
func (r *Roster) Entitled(epoch ID, account identity.AccountID) bool {
	i, ok := r.at[epoch]
	h := r.present.history[account]
	if !ok || h == nil || r.nodes[i].Kind != NewEpoch || r.nodes[i].void != "" {
		return false
	}
	return r.WasIn(epoch, account) || slices.ContainsFunc(h.tried, func(a int) bool {
		return r.Floor(r.nodes[a].ID) <= r.nodes[i].Generation
	})
}

// WasAdmin tells whether an account was ever made an admin or the owner by an act that was allowed.
func (r *Roster) WasAdmin(account identity.AccountID) bool { return r.admins[account] }

// LetIn tells whether an account was ever let in by an act that was allowed, whether or not it counts now.
func (r *Roster) LetIn(account identity.AccountID) bool {
	h := r.present.history[account]
	return h != nil && len(h.tried) > 0
}

// Allowed tells whether an act with the present heads as parents would be allowed, without adding it.
func (r *Roster) Allowed(a Act) bool {
	_, why := r.present.judge(&a, nil)
	return why == ""
}

// insert adds an act whose parents are there.
func (r *Roster) insert(a Act) {
	a.Parents, a.Cuts = slices.Clone(a.Parents), slices.Clone(a.Cuts)
	n := &node{Act: a, anc: make(set, 0, len(r.all)+1)}
	for _, p := range a.Parents {
		i := r.at[p]
		n.anc = n.anc.join(r.nodes[i].anc).add(i)
		n.depth = max(n.depth, r.nodes[i].depth+1)
		n.gen = max(n.gen, r.nodes[i].gen)
		if r.nodes[i].Kind == NewEpoch && r.nodes[i].void == "" {
			n.gen = max(n.gen, r.nodes[i].Generation)
		}
	}
	for _, account := range []identity.AccountID{a.Author, a.Account} {
		if _, ok := r.people[account]; !ok && !account.IsZero() {
			r.people[account] = len(r.people)
		}
	}
	// Whoever comes last has everything that may count among the ancestors. Acts of forked feeds nobody names who knows. Beside others an act is judged by the present fold seen
	// through its ancestors, as long as none of these is void: then none was void at any moment before either, for what
	// overruled it would have to be void now. Or else as long as the ancestors hold everything that takes something away:
	// then the same was decided when there was nothing but them.
	last := true
	r.all.without(n.anc, func(i int) bool {
		last = r.nodes[i].void != "" // it is part of no fold
		return last
	})
	before, within := r.present, n.anc
	switch {
	case last:
		within = nil
	case r.present.voids.meets(n.anc) && !r.takers.inside(n.anc):
		before, within = r.foldBefore(n), nil
	}
	n.need, n.void = before.judge(&n.Act, within)
	i := len(r.nodes)
	harmless := last || n.void != "" || r.harmless(n)
	r.nodes = append(r.nodes, n)
	r.at[a.ID] = i
	r.all = r.all.add(i)
	if !n.Forked {
		// Whoever names an act of a forked feed makes others need it, who may not have it.
		r.heads = append(slices.DeleteFunc(r.heads, func(h int) bool { return n.anc.has(h) }), i)
	}
	if n.void == "" {
		if n.takes() {
			r.takers = r.takers.add(i)
		}
		switch {
		case n.Kind == Create:
			r.admins[n.Author] = true
		case n.Kind == Transfer, n.Kind == SetRole && n.Role == Admin:
			r.admins[n.Account] = true
		}
		if n.Kind == NewEpoch {
			r.epochs[i] = before.everybody(within)
		}
	}
	if !harmless {
		r.present = r.build(r.all)
		return
	}
	switch {
	case n.void != "":
	case len(r.present.void) > 0 && r.present.role(n.Author, n.anc) < n.need:
		r.present.pass(i, Unfounded)
	default:
		r.present.apply(i)
	}
}

// foundIn tells whether the one whom an admission lets in is in for somebody who knows of nothing but an epoch and it. That
// never changes.
func (r *Roster) foundIn(e, i int) bool {
	k := [2]int{e, i}
	in, ok := r.doubts[k]
	if !ok {
		f := r.build(r.nodes[e].anc.clone().join(r.nodes[i].anc).add(i))
		in = f.role(r.nodes[i].Account, nil) != None
		if len(r.doubts) >= maxDoubts*maxFolds {
			clear(r.doubts) // it only saves time
		}
		r.doubts[k] = in
	}
	return in
}

// harmless tells whether an allowed act that came beside others changes nothing of what they mean, and they overrule
// nothing of what it means, so that the present fold can take it as it is.
func (r *Roster) harmless(n *node) bool {
	if n.takes() {
		return false
	}
	ok := true
	r.takers.without(n.anc, func(i int) bool {
		account, _, lowers := r.nodes[i].lowers()
		ok = lowers && account != n.Author || !lowers && (r.nodes[i].Author != n.Author || r.nodes[i].Revoked != n.Device)
		return ok
	})
	return ok
}

// foldBefore folds the ancestors of an act.
func (r *Roster) foldBefore(n *node) *fold {
	var key []byte
	for _, p := range n.Parents {
		key = append(key, p[:]...)
	}
	if f := r.folds[string(key)]; f != nil {
		return f
	}
	if len(r.folds) >= maxFolds {
		clear(r.folds)
	}
	f := r.foldAfter(n)
	if f == nil {
		f = r.build(n.anc)
	}
	r.folds[string(key)] = f
	return f
}

// foldAfter makes the fold of an act's ancestors from that of its only parent's, if that is remembered: the parent knows of
// all the others, so it is simply taken in. It spares a long branch beside another from being folded once per act.
func (r *Roster) foldAfter(n *node) *fold {
	if len(n.Parents) != 1 {
		return nil
	}
	i := r.at[n.Parents[0]]
	p := r.nodes[i]
	var key []byte
	for _, q := range p.Parents {
		key = append(key, q[:]...)
	}
	f := r.folds[string(key)]
	if f == nil {
		return nil
	}
	delete(r.folds, string(key)) // it becomes the other one
	if p.void == "" {
		f.apply(i)
	}
	return f
}
