package groups

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"hima/groups/roster"
	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// tookBranches takes what a device asks for, and what it answers.
func (g *Groups) tookBranches(ctx context.Context, conv ID, p replica.Peer, k *pb.GroupKeys) error {
	if len(k.Wants) > maxWants {
		return fmt.Errorf("taking what a group wants: %w", replica.ErrProtocol)
	}
	if err := g.tookWants(conv, p, k.Wants); err != nil {
		return err
	}
	for _, raw := range k.Forks {
		proof, err := feed.CheckForkProof(raw)
		if id := proof.Feed(); err != nil || id.Conversation != conv || id.Number != feed.Control {
			return fmt.Errorf("taking a fork of a group: %w", replica.ErrProtocol)
		}
		g.forks.mu.Lock()
		putBounded(&g.forks.proofs, proof.Feed(), proof, maxProofs)
		g.forks.mu.Unlock()
	}
	for _, raw := range k.Branches {
		run, err := feed.CheckDetached(raw)
		if err != nil || run.Feed().Conversation != conv || run.Feed().Number != feed.Control {
			return fmt.Errorf("taking a branch of a group: %w", replica.ErrProtocol)
		}
		if err := g.cfg.DB.Update(ctx, func(tx *storage.Tx) error { return g.takeBranch(tx, run) }); err != nil {
			return err
		}
	}
	return nil
}

// tookWants notes what a device waits for, and lets sessions look at once if some of it is here.
func (g *Groups) tookWants(conv ID, p replica.Peer, wants [][]byte) error {
	if len(wants) == 0 {
		return nil
	}
	var ids []roster.ID
	for _, b := range wants {
		if len(b) != 32 {
			return fmt.Errorf("taking what a group wants: %w", replica.ErrProtocol)
		}
		ids = append(ids, roster.ID(b))
	}
	here := false
	err := g.cfg.DB.View(func(tx *storage.Tx) error {
		known, err := g.Is(tx, conv)
		if err != nil || !known {
			return err
		}
		g.forks.mu.Lock()
		putBounded(&g.forks.asked, asking{conv, p.Device}, ids, maxAsking)
		g.forks.mu.Unlock()
		gr, _, err := g.open(tx, conv, false)
		for _, id := range ids {
			if err != nil || here {
				return err
			}
			at, held := gr.place(id)
			if here = held && gr.forked(at); !here {
				here, err = tx.Has(key(keyBranch, conv[:], id[:]))
			}
		}
		return err
	})
	if err == nil && here {
		g.parts.Feeds.PushKeys(conv)
	}
	return err
}

// takeBranch takes headers that acts wait for, if their feed has two branches there.
func (g *Groups) takeBranch(tx *storage.Tx, run feed.Run) error {
	id := run.Feed()
	conv := id.Conversation
	row, ok, err := getRow[groupRow](tx, groupKey(conv))
	if err != nil || !ok || row.State == StateNone || row.State == StateInvited {
		return err
	}
	gr, _, err := g.open(tx, conv, true)
	if err != nil {
		return err
	}
	at, forked := gr.forks[id.Device]
	g.forks.mu.Lock()
	proof, shown := g.forks.proofs[id]
	delete(g.forks.proofs, id)
	g.forks.mu.Unlock()
	if shown && (!forked || parted(proof) < at) {
		at, forked = parted(proof), true
	}
	entries := run.Entries()
	first := -1
	gr.mu.Lock()
	missing := gr.roster.Missing()
	gr.mu.Unlock()
	if forked {
		first = slices.IndexFunc(entries, func(e feed.Entry) bool {
			_, found := slices.BinarySearchFunc(missing, roster.ID(e.ID), func(a, b roster.ID) int { return slices.Compare(a[:], b[:]) })
			return e.Seq >= at && found
		})
	}
	if first < 0 {
		return nil
	}
	wanted := roster.ID(entries[first].ID)
	first = slices.IndexFunc(entries, func(e feed.Entry) bool { return e.Seq >= at }) // what is before it, it will name itself
	if kept, err := g.keepBranch(tx, gr, run, first, wanted); !kept || err != nil {
		return err
	}
	if shown {
		if err := g.keepProof(tx, proof); err != nil {
			return err
		}
	}
	return g.fillIn(tx, conv)
}

// keepBranch keeps the headers of a run from one on, so that others can have them of us too.
func (g *Groups) keepBranch(tx *storage.Tx, gr *group, run feed.Run, first int, wanted roster.ID) (bool, error) {
	entries := run.Entries()
	fresh := 0
	for i := first; i < len(entries); i++ {
		held, err := tx.Has(key(keyBranch, gr.id[:], entries[i].ID[:]))
		if err != nil {
			return false, err
		}
		if !held {
			fresh++
		}
	}
	payer, ok, err := gr.payer(tx, wanted, fresh)
	if err != nil {
		return false, err
	}
	if !ok {
		g.log.Warn("too many branches in a group", "group", gr.id.Short())
		return false, nil
	}
	for i := first; i < len(entries); i++ {
		k := key(keyBranch, gr.id[:], entries[i].ID[:])
		row := branchRow{payer: payer, entry: entries[i]}
		if i == len(entries)-1 {
			row.signature = run.Signature()
		} else {
			row.next = entries[i+1].ID
		}
		if held, err := tx.Has(k); err != nil {
			return false, err
		} else if held {
			continue
		}
		if err := tx.Set(k, row.encode()); err != nil {
			return false, err
		}
	}
	return true, nil
}

// payer returns an account whose acts wait for a missing one and who may bring so many headers more.
func (gr *group) payer(tx *storage.Tx, missing roster.ID, fresh int) (account identity.AccountID, ok bool, err error) {
	gr.mu.Lock()
	payers, err := gr.payers(tx, missing)
	gr.mu.Unlock()
	if err != nil {
		return account, false, err
	}
	total, of := 0, map[identity.AccountID]int{}
	err = tx.Scan(storage.ScanOptions{Prefix: key(keyBranch, gr.id[:])}, func(_, b []byte) (bool, error) {
		if len(b) < 32 {
			return false, fmt.Errorf("reading a branch: %w", errRow)
		}
		total++
		of[identity.AccountID(b[:32])]++
		return true, nil
	})
	if err != nil || total+fresh > maxHeaders {
		return account, false, err
	}
	i := slices.IndexFunc(payers, func(a identity.AccountID) bool { return of[a]+fresh <= maxHeadersOf })
	if i < 0 {
		return account, false, nil
	}
	return payers[i], true, nil
}

// keepProof keeps the proof that goes with headers, and tells of it: whoever lists more of the feed is to be shown it.
func (g *Groups) keepProof(tx *storage.Tx, proof feed.ForkProof) error {
	id := proof.Feed()
	have, err := g.proof(tx, id)
	if err != nil {
		return err
	}
	if have != nil && parted(*have) <= parted(proof) {
		return g.Forked(tx, replica.Fork{Feed: id, At: parted(*have)})
	}
	raw, err := proto.Marshal(proof.PB())
	if err != nil {
		return fmt.Errorf("encoding a fork: %w", err)
	}
	if err := tx.Set(key(keyProof, id.Conversation[:], id.Device[:]), raw); err != nil {
		return err
	}
	if err := g.parts.Feeds.Prove(tx, proof); err != nil {
		return err
	}
	return g.Forked(tx, replica.Fork{Feed: id, At: parted(proof)})
}

// proveAgain shows the entry store the proof of a fork when it takes entries behind it: as long as it held none of the feed, it
// kept none.
func (g *Groups) proveAgain(tx *storage.Tx, id feed.FeedID, last uint64) error {
	gr, _, err := g.open(tx, id.Conversation, true)
	if err != nil {
		return err
	}
	if at, ok := gr.forks[id.Device]; !ok || last < at {
		return nil
	}
	have, err := g.parts.Feeds.Proof(tx, id)
	if err != nil || have != nil {
		return err
	}
	kept, err := g.proof(tx, id)
	if kept == nil || err != nil {
		return err
	}
	return g.parts.Feeds.Prove(tx, *kept)
}

// fillIn puts the headers that are kept into the graph where acts wait for them, as void acts.
func (g *Groups) fillIn(tx *storage.Tx, conv ID) error {
	tx.OnCommit(func() { g.parts.Feeds.PushKeys(conv) }) // there may be more to ask for
	return g.change(tx, conv, func(c *change) (uint64, error) { return c.placeKept(tx) })
}

// placeKept is what fillIn does to the graph. Called with gr.mu held.
func (c *change) placeKept(tx *storage.Tx) (added uint64, err error) {
	for again := len(c.gr.forks) > 0 && c.gr.roster.Waiting() > 0; again; {
		again = false
		for _, id := range c.gr.roster.Missing() {
			row, ok, err := readBranch(tx, c.conv, id)
			if err != nil {
				return 0, err
			}
			if !ok {
				continue
			}
			placed, err := c.placeHeader(tx, &row.entry)
			if err != nil {
				return 0, err
			}
			if placed {
				again = true
				added++
			}
		}
	}
	return added, nil
}

// placeHeader adds what a header says of an act. Called with gr.mu held.
func (c *change) placeHeader(tx *storage.Tx, e *feed.Entry) (bool, error) {
	a := roster.Act{ID: roster.ID(e.ID), Author: e.Account, Device: e.Device, Kind: roster.Nickname, Forked: true}
	for _, q := range e.Parents {
		a.Parents = append(a.Parents, roster.ID(q))
	}
	p := place{device: e.Device, account: e.Account, seq: e.Seq, clock: e.Clock, timeMS: e.TimeMS}
	if _, held := c.gr.places[a.ID]; held || !c.gr.forked(p) {
		return false, nil
	}
	if err := c.gr.roster.Add(a); err != nil && !errors.Is(err, roster.ErrTooMany) {
		return false, nil // whoever holds its content has no such act either
	}
	c.gr.put(a.ID, p)
	return true, tx.Set(actKey(c.conv, e.Clock, e.ID), appendAct(nil, &a, p))
}

// askAgain lets sessions say what acts wait for. Only of groups in memory: whoever waits got something lately, and else it is
// asked when a session begins.
func (g *Groups) askAgain() {
	g.cache.mu.Lock()
	all := make([]*group, 0, len(g.cache.groups))
	for _, gr := range g.cache.groups {
		all = append(all, gr)
	}
	g.cache.mu.Unlock()
	for _, gr := range all {
		gr.mu.Lock()
		waits := gr.roster.Waiting() > 0
		gr.mu.Unlock()
		if waits {
			g.parts.Feeds.PushKeys(gr.id)
		}
	}
}
