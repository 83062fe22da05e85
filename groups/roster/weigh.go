package roster

import (
	"cmp"
	"slices"

	"hima/identity"
)

// build folds a set from the beginning. Acts that take rights away are decided first, for they void what their targets
// did at the same time; then everything else follows in order. An act that took rights away and turns out to have had no
// foundation is left out and all is done again, which ends because each round leaves one more out.
func (r *Roster) build(in set) *fold {
	unfounded := map[int]bool{}
	for {
		f := newFold(r)
		decided := r.decide(in, unfounded, f)
		again := false
		in.each(func(i int) bool {
			n := r.nodes[i]
			switch {
			case n.void != "":
			case f.void[i] != "":
				f.pass(i, f.void[i])
			case unfounded[i]:
				f.pass(i, Unfounded)
			case decided.overrules(r, i, f.by):
				f.pass(i, Overruled)
			case len(f.void) > 0 && f.role(n.Author, n.anc) < n.need:
				f.pass(i, Unfounded)
				if n.takes() {
					unfounded[i], again = true, true
				}
			default:
				f.apply(i)
			}
			return true
		})
		if !again {
			return f
		}
	}
}

// decisions are the acts that take something away and count, by whose account it was.
type decisions map[identity.AccountID][]int

// overrules tells whether a decision voids an act, and notes which: its author lost the right at the same time, or the
// device it was written on was revoked. What the decision knew of stands; what knew of the decision was judged by it
// already.
func (d decisions) overrules(r *Roster, i int, note map[int]int) bool {
	n := r.nodes[i]
	if n.Kind == Dissolve {
		return false // dissolving beats all
	}
	for _, by := range d[n.Author] {
		if by == i || r.nodes[by].anc.has(i) || n.anc.has(by) {
			continue
		}
		if n.Kind == Leave && r.nodes[by].Kind == Leave {
			continue // of one account: both say where its feeds end, one of them perhaps on a stolen device
		}
		_, left, lowers := r.nodes[by].lowers()
		if lowers && n.need > left || !lowers && r.nodes[by].Revoked == n.Device {
			note[i] = by
			return true
		}
	}
	return false
}

// decide weighs the acts of a set that take something away. Those that stand beside each other, directly or through others,
// are decided together: ancestors first, then by the seniority of their authors, the strongest first; one whose author
// was overruled by an earlier one is void.
func (r *Roster) decide(in set, unfounded map[int]bool, f *fold) decisions {
	d := decisions{}
	for _, together := range r.together(in, unfounded) {
		for _, i := range r.bySeniority(together) {
			if d.overrules(r, i, f.by) {
				f.void[i] = Overruled
				continue
			}
			account, _, lowers := r.nodes[i].lowers()
			if !lowers {
				account = r.nodes[i].Author
			}
			d[account] = append(d[account], i)
		}
	}
	return d
}

// together parts the acts of a set that take something away: two are in one part if neither knew of the other, or if there
// is a chain of such between them. The parts come out in the order of the graph: all of one are ancestors of all of the
// next.
func (r *Roster) together(in set, unfounded map[int]bool) [][]int {
	var parts [][]int
	var so set
	r.takers.each(func(i int) bool {
		if !in.has(i) || unfounded[i] {
			return true
		}
		// The first part that holds one that i did not know of, and all after it, become one with i.
		first := len(parts)
		so.without(r.nodes[i].anc, func(j int) bool {
			first = slices.IndexFunc(parts, func(p []int) bool { return slices.Contains(p, j) })
			return false
		})
		parts = append(parts[:first:first], append(slices.Concat(parts[first:]...), i))
		so = so.add(i)
		return true
	})
	return parts
}

// bySeniority orders acts that stand beside each other: ancestors before descendants, and among those that may come next
// the one of the strongest author at the ancestors that all of them share: the owner, then who was admitted earliest,
// then the lower hash (R26). Of one author, who takes a device away comes first: it may be in the wrong hands.
func (r *Roster) bySeniority(acts []int) []int {
	if len(acts) == 1 {
		return acts
	}
	shared := r.nodes[acts[0]].anc.clone()
	for _, i := range acts[1:] {
		shared = shared.meet(r.nodes[i].anc)
	}
	then := r.build(shared)
	rank := func(i int) (int, int) {
		author := r.nodes[i].Author
		switch then.role(author, nil) {
		case None:
			return 2, 0 // came in later than all of this began
		case Owner:
			return 0, 0
		}
		earliest := -1
		for _, a := range then.of(author).in {
			if d := r.nodes[a].depth; earliest < 0 || d < earliest {
				earliest = d
			}
		}
		return 1, earliest
	}
	device := func(i int) int {
		if r.nodes[i].Kind == Revoke {
			return 0
		}
		return 1
	}
	left := slices.Clone(acts)
	slices.SortFunc(left, func(a, b int) int {
		ka, da := rank(a)
		kb, db := rank(b)
		return cmp.Or(cmp.Compare(ka, kb), cmp.Compare(da, db), cmp.Compare(device(a), device(b)), compareIDs(r.nodes[a].ID, r.nodes[b].ID))
	})
	out := make([]int, 0, len(acts))
	for len(left) > 0 {
		k := slices.IndexFunc(left, func(i int) bool {
			return !slices.ContainsFunc(left, func(j int) bool { return r.nodes[i].anc.has(j) })
		})
		out = append(out, left[k])
		left = slices.Delete(left, k, k+1)
	}
	return out
}
