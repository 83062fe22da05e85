package groups

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"

	"hima/groups/roster"
	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// Where a control feed has two branches its acts count for nothing, and nobody serves them (R3). But whoever held one branch
// before they knew may have acted upon it, and such an act stands in its place only where its parents are known. Therefore
// members ask each other, over the road of keys, for the ancestors that they wait for, and are answered with the proof of the
// fork and with headers: a void act is no more to the fold than its author's claim of what came before it, which the header
// holds. So everybody has the same graph, whether they held one branch, the other, or none.
//
// A header is taken only if an act waits for it, directly or through others, and is charged to the author of that act: somebody
// who names many branches stops themself alone.

const (
	maxWants     = 256     // in one message
	maxWantsOf   = 16      // of them for the acts of one account
	maxRuns      = 4       // in one answer
	maxAsking    = 1024    // devices that are remembered to have asked
	maxProofs    = 64      // that wait for the headers which go with them
	maxHeadersOf = 1 << 14 // headers of branches for the acts of one account
	maxHeaders   = 1 << 16 // headers of branches in a group
)

// branches is what this device was asked for and shown and has not used yet. It is lost with the process: both ask again.
type branches struct {
	mu     sync.Mutex
	asked  map[asking][]roster.ID         // guarded by mu; at most maxAsking
	proofs map[feed.FeedID]feed.ForkProof // guarded by mu; at most maxProofs
}

type asking struct {
	conv   ID
	device identity.DeviceID
}

// putBounded keeps one more in a bounded map. Which one makes room does not matter, it comes again.
func putBounded[K comparable, V any](m *map[K]V, k K, v V, most int) {
	if *m == nil {
		*m = map[K]V{}
	}
	if _, ok := (*m)[k]; !ok && len(*m) >= most {
		for old := range *m {
			delete(*m, old)
			break
		}
	}
	(*m)[k] = v
}

// branchRow is a header of a branch on disk.
type branchRow struct {
	payer     identity.AccountID // whose act waited for it
	next      feed.EntryID       // the one after it, zero: it is signed
	signature []byte
	entry     feed.Entry
}

func (r *branchRow) encode() []byte {
	b := append(slices.Clone(r.payer[:]), r.next[:]...)
	b = append(append(b, byte(len(r.signature))), r.signature...)
	return append(b, r.entry.RawHeader()...)
}

func readBranch(tx *storage.Tx, conv ID, id roster.ID) (r branchRow, ok bool, err error) {
	b, err := tx.Get(key(keyBranch, conv[:], id[:]))
	if errors.Is(err, storage.ErrNotFound) {
		return r, false, nil
	}
	if err != nil {
		return r, false, err
	}
	c := cursor{b: b}
	copy(r.payer[:], c.take(32))
	copy(r.next[:], c.take(32))
	r.signature = c.take(int(c.take(1)[0]))
	if !c.bad {
		r.entry, err = feed.ParseStored(c.b, nil)
	}
	if c.bad || err != nil {
		return r, false, fmt.Errorf("reading a branch: %w", errRow)
	}
	return r, true, nil
}

// lacking lists the ancestors that acts of a group wait for, as many as one message holds. No account's acts take the
// room of another's.
func (gr *group) lacking(tx *storage.Tx) ([]roster.ID, error) {
	gr.mu.Lock()
	defer gr.mu.Unlock()
	if gr.roster.Waiting() == 0 {
		return nil, nil
	}
	var out []roster.ID
	of := map[identity.AccountID]int{}
	for _, id := range gr.roster.Missing() {
		payers, err := gr.payers(tx, id)
		if err != nil || len(out) == maxWants {
			return out, err
		}
		i := slices.IndexFunc(payers, func(a identity.AccountID) bool { return of[a] < maxWantsOf })
		if i >= 0 {
			of[payers[i]]++
			out = append(out, id)
		}
	}
	return out, nil
}

// payers are the accounts whose acts wait for a missing one, directly or through headers. Called with mu held.
func (gr *group) payers(tx *storage.Tx, missing roster.ID) ([]identity.AccountID, error) {
	var out []identity.AccountID
	for _, a := range gr.roster.WaitFor(missing) {
		payer := a.Author
		row, ok, err := readBranch(tx, gr.id, a.ID)
		if err != nil {
			return nil, err
		}
		if ok {
			payer = row.payer
		}
		if !slices.Contains(out, payer) {
			out = append(out, payer)
		}
	}
	return out, nil
}

// branchesFor returns what we wait for, and what a device asked us for and we have.
func (g *Groups) branchesFor(tx *storage.Tx, conv ID, p replica.Peer) ([]*pb.GroupKeys, error) {
	gr, s, err := g.open(tx, conv, false)
	if err != nil {
		return nil, err
	}
	wants, err := gr.lacking(tx)
	if err != nil {
		return nil, err
	}
	var out []*pb.GroupKeys
	// While much comes in, what acts wait for changes with every commit; only what is missing for longer need be asked for.
	if len(wants) > 0 && g.mayTell(conv, p, true) {
		m := &pb.GroupKeys{Group: conv[:]}
		for _, id := range wants {
			m.Wants = append(m.Wants, slices.Clone(id[:]))
		}
		out = append(out, m)
	}
	g.forks.mu.Lock()
	asked := slices.Clone(g.forks.asked[asking{conv, p.Device}])
	g.forks.mu.Unlock()
	if len(asked) == 0 {
		return out, nil
	}
	gr.mu.Lock()
	in := p.Account == g.self.Account || gr.roster.LetIn(p.Account)
	gr.mu.Unlock()
	if _, revoked := s.view.Revokes(p.Account, p.Device); revoked || !in {
		return out, nil
	}
	answers, err := g.shown(tx, gr, p, asked)
	return append(out, answers...), err
}

// mayTell bounds how often somebody is asked, and how much they are shown.
func (g *Groups) mayTell(conv ID, p replica.Peer, asks bool) bool {
	rate, burst := 1.0, 256.0
	if asks {
		rate, burst = 0.2, 64
	}
	ok, _ := g.rates.take(rateKey{conv: conv, account: p.Account, branches: true, others: asks}, 1, rate, burst, g.now())
	return ok
}

// shown makes the messages that hold what was asked for, as far as we have it: the proof of each fork before its headers. What
// we do not have yet stays asked for.
func (g *Groups) shown(tx *storage.Tx, gr *group, p replica.Peer, asked []roster.ID) ([]*pb.GroupKeys, error) {
	var out []*pb.GroupKeys
	done, proven, runs := map[roster.ID]bool{}, map[identity.DeviceID]bool{}, 0
	for _, id := range asked {
		if done[id] || runs == maxRuns {
			continue
		}
		proof, run, err := g.branch(tx, gr, id)
		if err != nil {
			return nil, err
		}
		if run == nil {
			continue
		}
		if !g.mayTell(gr.id, p, false) {
			break
		}
		entries := run.Entries()
		for i := range entries {
			done[roster.ID(entries[i].ID)] = true
		}
		if device := entries[0].Device; !proven[device] {
			proven[device] = true
			out = append(out, &pb.GroupKeys{Group: gr.id[:], Forks: []*pb.ForkProof{proof.PB()}})
		}
		out = append(out, &pb.GroupKeys{Group: gr.id[:], Branches: []*pb.Run{run.PB()}})
		runs++
	}
	k := asking{gr.id, p.Device}
	g.forks.mu.Lock()
	defer g.forks.mu.Unlock()
	if rest := slices.DeleteFunc(asked, func(id roster.ID) bool { return done[id] }); len(rest) > 0 {
		putBounded(&g.forks.asked, k, rest, maxAsking)
	} else {
		delete(g.forks.asked, k)
	}
	return out, nil
}

// branch returns the proof of a fork, and headers that hold an act behind it, with some of those before it, which it will name
// itself; no run: we do not have that, or it lies on no branch.
func (g *Groups) branch(tx *storage.Tx, gr *group, id roster.ID) (proof feed.ForkProof, run *feed.Run, err error) {
	row, kept, err := readBranch(tx, gr.id, id)
	if err != nil {
		return proof, nil, err
	}
	at, held := gr.place(id)
	if !kept && !(held && gr.forked(at)) {
		return proof, nil, nil
	}
	of := feed.FeedID{Conversation: gr.id, Number: feed.Control, Device: at.device}
	if kept {
		of = row.entry.Feed()
	}
	known, err := g.proof(tx, of)
	if known == nil || err != nil {
		return proof, nil, err
	}
	for _, back := range []uint64{maxBack, 0} { // a longer run may not fit
		if kept {
			run, err = chain(tx, gr.id, row, parted(*known), back)
		} else {
			run, err = g.heldBranch(tx, of, max(parted(*known), at.seq-min(at.seq, back)), at.seq, id)
		}
		if run != nil || err != nil {
			break
		}
	}
	if run == nil || err != nil || run.First().Seq < parted(*known) {
		return proof, nil, err
	}
	return *known, run, nil
}

// maxBack is how many headers before the one that was asked for come along.
const maxBack = 63

// chain reads the headers around one which was kept.
func chain(tx *storage.Tx, conv ID, row branchRow, from, back uint64) (*feed.Run, error) {
	entries := []feed.Entry{row.entry}
	for first := row.entry; back > 0 && first.Seq > from; back-- {
		before, ok, err := readBranch(tx, conv, roster.ID(first.Prev))
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		first = before.entry
		entries = append(entries, first)
	}
	slices.Reverse(entries)
	for len(row.signature) == 0 {
		next, ok, err := readBranch(tx, conv, roster.ID(row.next))
		if err != nil {
			return nil, err
		}
		if !ok || len(entries) == feed.MaxRunEntries {
			return nil, nil
		}
		row = next
		entries = append(entries, row.entry)
	}
	run, err := feed.Assemble(entries, row.signature)
	if err != nil {
		return nil, nil // too much for one run
	}
	return &run, nil
}

// heldBranch reads the headers of a branch that the own entry store holds.
func (g *Groups) heldBranch(tx *storage.Tx, of feed.FeedID, from, seq uint64, id roster.ID) (*feed.Run, error) {
	raw, err := g.parts.Feeds.Branch(tx, of, from, seq)
	if raw == nil || err != nil {
		return nil, err
	}
	run, err := feed.CheckUnsigned(raw)
	if err != nil || run.Last().Seq < seq || run.Entries()[seq-run.First().Seq].ID != feed.EntryID(id) {
		return nil, nil // the branch that is held now is another one
	}
	return &run, nil
}

// proof returns the proof that a feed forked, the own entry store's or the one that was kept with headers; nil: there is none.
func (g *Groups) proof(tx *storage.Tx, id feed.FeedID) (*feed.ForkProof, error) {
	best, err := g.parts.Feeds.Proof(tx, id)
	if err != nil {
		return nil, err
	}
	b, err := tx.Get(key(keyProof, id.Conversation[:], id.Device[:]))
	if errors.Is(err, storage.ErrNotFound) {
		return best, nil
	}
	if err != nil {
		return nil, err
	}
	var raw pb.ForkProof
	if err := proto.Unmarshal(b, &raw); err != nil {
		return nil, fmt.Errorf("reading a fork: %w", errRow)
	}
	kept, err := feed.CheckForkProof(&raw)
	if err != nil {
		return nil, fmt.Errorf("reading a fork: %w", errRow)
	}
	if best == nil || parted(kept) < parted(*best) {
		best = &kept
	}
	return best, nil
}

func parted(p feed.ForkProof) uint64 {
	at, _ := p.Parted()
	return at
}
