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
// A header is taken only if an act waits for it, directly or through others, which name it by its hash: whoever brings it, it can
// be no other. It is charged to the author of that act: somebody who names many branches stops themself alone.

const (
	maxWants     = 256     // in one message
	maxWantsOf   = 16      // of them for the acts of one account
	maxRuns      = 4       // in one answer
	maxAsking    = 1024    // devices that are remembered to have asked
	maxProofs    = 64      // that wait for the headers which go with them
	maxHeadersOf = 1 << 11 // what headers of branches for the acts of one account may cost, see charges
	maxHeaders   = 1 << 13 // what those in a group may cost
)

// branches is what this device was asked for and shown and has not used yet. It is lost with the process: both ask again.
type branches struct {
	mu     sync.Mutex
	asked  map[asking]*asked          // guarded by mu; at most maxAsking
	proofs map[showing]feed.ForkProof // guarded by mu; at most maxProofs
}

// showing is a feed and who showed a proof of its fork: nobody's takes the place of another's.
type showing struct {
	feed feed.FeedID
	by   identity.DeviceID
}

type asking struct {
	conv   ID
	device identity.DeviceID
}

// asked is what a device said at once that it waits for.
type asked struct {
	ids []roster.ID // what was not answered yet; replaced, not changed
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

// branchRow is a header of a branch on disk: 32 bytes say whose act waited for it, then it follows.
func branchRow(payer identity.AccountID, e *feed.Entry) []byte {
	return append(slices.Clone(payer[:]), e.RawHeader()...)
}

func readBranch(tx *storage.Tx, conv ID, id roster.ID) (e feed.Entry, ok bool, err error) {
	b, err := tx.Get(key(keyBranch, conv[:], id[:]))
	if errors.Is(err, storage.ErrNotFound) {
		return e, false, nil
	}
	if err == nil {
		e, err = feed.ParseStored(b[min(32, len(b)):], nil)
	}
	if err != nil {
		return e, false, fmt.Errorf("reading a branch: %w", err)
	}
	return e, true, nil
}

// loadPaid reads who is charged with the headers that are kept.
func loadPaid(tx *storage.Tx, gr *group) error {
	prefix := key(keyBranch, gr.id[:])
	return tx.Scan(storage.ScanOptions{Prefix: prefix}, func(k, b []byte) (bool, error) {
		if len(k) != len(prefix)+32 || len(b) < 32 {
			return false, fmt.Errorf("loading branches: %w", errRow)
		}
		gr.paid[roster.ID(k[len(prefix):])] = identity.AccountID(b[:32])
		return true, nil
	})
}

// lacking lists the ancestors that acts of a group wait for, as many as one message holds. No account's acts take the
// room of another's.
func (gr *group) lacking() []roster.ID {
	gr.mu.Lock()
	defer gr.mu.Unlock()
	if gr.roster.Waiting() == 0 {
		return nil
	}
	var out []roster.ID
	of := map[identity.AccountID]int{}
	for _, id := range gr.roster.Missing() {
		if len(out) == maxWants {
			break
		}
		payers := gr.payers(id)
		i := slices.IndexFunc(payers, func(a identity.AccountID) bool { return of[a] < maxWantsOf })
		if i >= 0 {
			of[payers[i]]++
			out = append(out, id)
		}
	}
	return out
}

// payers are the accounts whose acts wait for a missing one, directly or through headers. Called with mu held.
func (gr *group) payers(missing roster.ID) []identity.AccountID {
	var out []identity.AccountID
	for _, a := range gr.roster.WaitFor(missing) {
		payer, kept := gr.paid[a.ID]
		if !kept {
			payer = a.Author
		}
		if !slices.Contains(out, payer) {
			out = append(out, payer)
		}
	}
	return out
}

// BranchesFor returns what we wait for in the groups shared with a device, and what it asked us for and we have. One group keeps
// nobody from what is to be told of others: an answer that was made is told.
func (g *Groups) BranchesFor(tx *storage.Tx, p replica.Peer) ([]*pb.GroupKeys, error) {
	if !g.validDevice(p) {
		return nil, nil
	}
	convs, err := g.Shared(tx, p.Account)
	var out []*pb.GroupKeys
	for _, conv := range convs {
		more, bad := g.branchesFor(tx, conv, p)
		out, err = append(out, more...), errors.Join(err, bad)
	}
	return out, err
}

func (g *Groups) branchesFor(tx *storage.Tx, conv ID, p replica.Peer) ([]*pb.GroupKeys, error) {
	gr, s, err := g.open(tx, conv, false)
	if err != nil {
		return nil, err
	}
	wants := gr.lacking()
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
	of := g.forks.asked[asking{conv, p.Device}]
	var ids []roster.ID
	if of != nil {
		ids = slices.Clone(of.ids)
	}
	g.forks.mu.Unlock()
	if _, revoked := s.view.Revokes(p.Account, p.Device); revoked || len(ids) == 0 {
		return out, nil
	}
	if p.Account != g.self.Account && s.view.Role(p.Account) == roster.None {
		// Whoever is not in any more has the acts up to their going, and so what those name (R33).
		before := map[roster.ID]bool{}
		gr.mu.Lock()
		gr.roster.Ancestors(s.view.Removal(p.Account), func(a *roster.Act) { before[a.ID] = true })
		gr.mu.Unlock()
		ids = slices.DeleteFunc(ids, func(id roster.ID) bool { return !before[id] })
	}
	answers, done, err := g.shown(tx, gr, p, ids)
	k := asking{conv, p.Device}
	g.forks.mu.Lock()
	defer g.forks.mu.Unlock()
	if g.forks.asked[k] != of {
		return append(out, answers...), err // they asked again meanwhile, perhaps in another session than the one that gets this
	}
	of.ids = slices.DeleteFunc(slices.Clone(of.ids), func(id roster.ID) bool { return done[id] })
	if len(of.ids) == 0 {
		delete(g.forks.asked, k)
	}
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

// shown makes the messages that hold what was asked for, as far as we have it: the proof of each fork before its headers. It says what
// they hold; what we do not have yet stays asked for.
func (g *Groups) shown(tx *storage.Tx, gr *group, p replica.Peer, asked []roster.ID) (out []*pb.GroupKeys, done map[roster.ID]bool, err error) {
	done = map[roster.ID]bool{}
	proven, runs := map[identity.DeviceID]bool{}, 0
	for _, id := range asked {
		if done[id] || runs == maxRuns {
			continue
		}
		var proof feed.ForkProof
		var entries []feed.Entry
		if proof, entries, err = g.branch(tx, gr, id); err != nil {
			break // what was read before is told
		}
		if len(entries) == 0 {
			continue
		}
		if !g.mayTell(gr.id, p, false) {
			break
		}
		run := &pb.Run{}
		for i := range entries {
			done[roster.ID(entries[i].ID)] = true
			run.Entries = append(run.Entries, &pb.Entry{Header: entries[i].RawHeader()})
		}
		if device := entries[0].Device; !proven[device] {
			proven[device] = true
			out = append(out, &pb.GroupKeys{Group: gr.id[:], Forks: []*pb.ForkProof{proof.PB()}})
		}
		out = append(out, &pb.GroupKeys{Group: gr.id[:], Branches: []*pb.Run{run}})
		runs++
	}
	return out, done, err
}

// branch returns the proof of a fork, and the header of an act behind it, last, with some of those before it, which it will name
// itself; no headers: we do not have that, or it lies on no branch.
func (g *Groups) branch(tx *storage.Tx, gr *group, id roster.ID) (proof feed.ForkProof, entries []feed.Entry, err error) {
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
		of = row.Feed()
	}
	known, err := g.proof(tx, of)
	if known == nil || err != nil {
		return proof, nil, err
	}
	from := parted(*known)
	if kept {
		entries, err = keptBranch(tx, row, from)
	} else {
		entries, err = g.heldBranch(tx, of, max(from, at.seq-min(at.seq, maxBack)), at.seq)
	}
	// Of what has no room in a frame, the end goes. What is held by that number now may lie on another branch.
	size := 0
	first := len(entries)
	for first > 0 && entries[first-1].Seq >= from {
		if size += entries[first-1].WireSize(); size > feed.MaxWireRun {
			break
		}
		first--
	}
	if entries = entries[first:]; err != nil || len(entries) == 0 || entries[len(entries)-1].ID != feed.EntryID(id) {
		return proof, nil, err
	}
	return *known, entries, nil
}

// maxBack is how many headers before the one that was asked for come along.
const maxBack = 63

// keptBranch reads a header that was kept and those before it that were.
func keptBranch(tx *storage.Tx, last feed.Entry, from uint64) ([]feed.Entry, error) {
	entries := []feed.Entry{last}
	for first := last; len(entries) <= maxBack && first.Seq > from; {
		before, ok, err := readBranch(tx, last.Conversation, roster.ID(first.Prev))
		if err != nil {
			return nil, err
		}
		if !ok || before.Seq != first.Seq-1 || before.Feed() != last.Feed() {
			break
		}
		first = before
		entries = append(entries, first)
	}
	slices.Reverse(entries)
	return entries, nil
}

// heldBranch reads the headers of a branch that the own entry store holds.
func (g *Groups) heldBranch(tx *storage.Tx, of feed.FeedID, from, last uint64) ([]feed.Entry, error) {
	entries, err := g.parts.Feeds.Branch(tx, of, from, last)
	if err != nil {
		return nil, err
	}
	for i := len(entries) - 1; i > 0; i-- {
		if entries[i].Prev != entries[i-1].ID || entries[i].Seq != entries[i-1].Seq+1 {
			return entries[i:], nil // it is put together of several branches
		}
	}
	return entries, nil
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
