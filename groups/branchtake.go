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
		putBounded(&g.forks.proofs, showing{proof.Feed(), p.Device}, proof, maxProofs)
		g.forks.mu.Unlock()
	}
	for _, raw := range k.Branches {
		entries, err := feed.CheckHeaders(raw)
		if err != nil || entries[0].Conversation != conv || entries[0].Number != feed.Control {
			return fmt.Errorf("taking a branch of a group: %w", replica.ErrProtocol)
		}
		if err := g.cfg.DB.Update(ctx, func(tx *storage.Tx) error { return g.takeBranch(tx, entries, showing{entries[0].Feed(), p.Device}) }); err != nil {
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
		putBounded(&g.forks.asked, asking{conv, p.Device}, &asked{ids}, maxAsking)
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
		g.parts.Feeds.PushKeysTo(p.Device)
	}
	return err
}

// takeBranch takes those of the headers that acts wait for, if their feed has two branches there.
func (g *Groups) takeBranch(tx *storage.Tx, entries []feed.Entry, from showing) error {
	id := entries[0].Feed()
	conv := id.Conversation
	row, ok, err := getRow[groupRow](tx, groupKey(conv))
	if err != nil || !ok || row.State == StateNone || row.State == StateInvited {
		return err
	}
	gr, _, err := g.open(tx, conv, true)
	if err != nil {
		return err
	}
	g.forks.mu.Lock()
	proof, shown := g.forks.proofs[from]
	g.forks.mu.Unlock()
	seq, ok := gr.payable(entries)
	if !ok {
		return nil
	}
	known, err := g.proof(tx, id)
	if err != nil {
		return err
	}
	if shown = shown && (known == nil || parted(proof) < parted(*known)); shown {
		known = &proof
	}
	// Whose device it is a header that nobody signed could say wrongly, and a proof of a device of which nothing else is here.
	if known == nil || known.Account() != entries[0].Account {
		return nil
	}
	if account, ok := gr.accountOf(id.Device); ok && account != known.Account() {
		return nil
	}
	if seq < parted(*known) && !gr.forked(place{device: id.Device, seq: seq}) {
		return nil
	}
	if shown {
		if err := g.keepProof(tx, proof); err != nil {
			return err
		}
	}
	tx.OnCommit(func() { g.parts.Feeds.PushKeys(conv) }) // there may be more to ask for
	return g.change(tx, conv, func(c *change) (uint64, error) { return c.placeHeaders(tx, entries) })
}

// payable returns the last number of those for which acts wait whose authors may bring it; false: there is none. Called without
// mu held.
func (gr *group) payable(entries []feed.Entry) (uint64, bool) {
	gr.mu.Lock()
	defer gr.mu.Unlock()
	charged := gr.charged()
	for _, e := range slices.Backward(entries) {
		if !gr.roster.Lacks(roster.ID(e.ID)) {
			continue
		}
		if _, ok := charged.payer(gr, &e); ok {
			return e.Seq, true
		}
	}
	return 0, false
}

// charges is what the headers that are kept cost, and whom. For the first of a device a proof is kept too, which nobody else needs
// to have signed for: a key is made in no time, and forked.
type charges struct {
	total   int
	of      map[identity.AccountID]int
	devices map[paidDevice]bool
}

type paidDevice struct {
	payer  identity.AccountID
	device identity.DeviceID
}

// proofCost is as how many headers a proof counts, whose size it has at most.
const proofCost = 64

// charged adds up. Called with mu held.
func (gr *group) charged() charges {
	c := charges{of: map[identity.AccountID]int{}, devices: map[paidDevice]bool{}}
	for id, a := range gr.paid {
		c.pay(a, gr.places[id].device)
	}
	return c
}

// cost is what one more header of a device costs an account.
func (c *charges) cost(payer identity.AccountID, device identity.DeviceID) int {
	if c.devices[paidDevice{payer, device}] {
		return 1
	}
	return 1 + proofCost
}

// payer returns an account whose acts wait for a header and who may bring it. Called with mu of the group held.
func (c *charges) payer(gr *group, e *feed.Entry) (account identity.AccountID, ok bool) {
	payers := gr.payers(roster.ID(e.ID))
	i := slices.IndexFunc(payers, func(a identity.AccountID) bool {
		cost := c.cost(a, e.Device)
		return c.of[a]+cost <= maxHeadersOf && c.total+cost <= maxHeaders
	})
	if i < 0 {
		return account, false
	}
	return payers[i], true
}

func (c *charges) pay(payer identity.AccountID, device identity.DeviceID) {
	cost := c.cost(payer, device)
	c.total += cost
	c.of[payer] += cost
	c.devices[paidDevice{payer, device}] = true
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

// placeHeaders puts the headers that acts wait for into the graph, as void acts, and keeps them, so that others can have them of us
// too. One that was placed may name the next. Called with gr.mu held.
func (c *change) placeHeaders(tx *storage.Tx, entries []feed.Entry) (added uint64, err error) {
	charged := c.gr.charged()
	for again := true; again; {
		again = false
		for _, e := range slices.Backward(entries) {
			id := roster.ID(e.ID)
			if !c.gr.roster.Lacks(id) {
				continue
			}
			payer, ok := charged.payer(c.gr, &e)
			if !ok {
				continue
			}
			placed, err := c.placeHeader(tx, &e)
			if err != nil {
				return 0, err
			}
			if !placed {
				continue
			}
			c.gr.paid[id] = payer
			charged.pay(payer, e.Device)
			if err := tx.Set(key(keyBranch, c.conv[:], id[:]), branchRow(payer, &e)); err != nil {
				return 0, err
			}
			again = true
			added++
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
