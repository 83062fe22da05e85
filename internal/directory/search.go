package directory

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"hima/identity"
	"hima/internal/text"
	"hima/internal/wire/pb"
	"hima/node"
)

// FoundName is somebody who has or claims a name on a network.
type FoundName struct {
	Account     identity.AccountID
	Name        string
	Network     identity.NetworkID
	NetworkName string
	Confirmed   bool      // stamped by the network
	Since       time.Time // of the stamp, or of the claim
}

// SearchResult is what a search for a name brought: of each network the one who has the name first.
type SearchResult struct {
	People []FoundName
	// Disagreement: on some network several accounts were named with equal right, or the name was only claimed while
	// nobody who decides could be asked. The first of the network is who wins by the rules (R19), and the user should look
	// at the ID.
	Disagreement bool
	// Unreachable are the names of networks where nobody who decides could be asked.
	Unreachable []string
}

// evidence is what was heard about one name on one network.
type evidence struct {
	records  []identity.NameRecord // each once
	asked    bool                  // somebody answered
	decided  bool                  // a register that is whole answered
	register bool                  // the network has registers, as far as is known
}

func (e *evidence) add(r identity.NameRecord) {
	if !slices.ContainsFunc(e.records, func(o identity.NameRecord) bool { return string(o.Raw()) == string(r.Raw()) }) {
		e.records = append(e.records, r)
	}
}

// judge orders what was heard: the winner first, and after it whoever has as much right to the name.
func (e *evidence) judge(j *joined, keys []identity.DeviceID) (people []FoundName, disagreement bool) {
	slices.SortFunc(e.records, func(a, b identity.NameRecord) int { return identity.CompareNames(a, b, keys) })
	for _, r := range e.records {
		stamped := r.Stamped(keys)
		if len(people) > 0 && people[0].Confirmed && !stamped {
			break // anybody can claim a name that is registered
		}
		f := FoundName{r.Claim.Account, r.Claim.Name, j.id, j.name, stamped, r.Claim.Time}
		if stamped {
			f.Since = r.Stamp.Time
		}
		if !slices.ContainsFunc(people, func(o FoundName) bool { return o.Account == f.Account }) {
			people = append(people, f)
		}
		if len(people) == maxClaimants {
			break
		}
	}
	disagreement = len(people) > 1 || len(people) == 1 && !people[0].Confirmed && e.register && !e.decided
	return people, disagreement
}

// SearchName looks for a username on every joined network: it asks the registers and each of the closest nodes, and what is
// known here counts too, so that a single liar is outvoted by anybody who shows the stamp. ErrBadName, ErrNoNetwork.
func (d *Directory) SearchName(ctx context.Context, name string) (SearchResult, error) {
	canonical, err := text.Username(name)
	if err != nil {
		return SearchResult{}, fmt.Errorf("%w: %w", ErrBadName, err)
	}
	ctx, cancel := context.WithTimeout(ctx, searchTimeout)
	defer cancel()
	nets := d.nets.list()
	heard := make([]evidence, len(nets))
	var wg sync.WaitGroup
	for i, j := range nets {
		wg.Go(func() { heard[i] = d.hear(ctx, j, canonical) })
	}
	wg.Wait()
	var res SearchResult
	asked := false
	for i, j := range nets {
		e := &heard[i]
		asked = asked || e.asked || len(e.records) > 0
		people, bad := e.judge(j, j.keys())
		res.People = append(res.People, people...)
		res.Disagreement = res.Disagreement || bad
		if !e.decided && (e.register || !e.asked) {
			res.Unreachable = append(res.Unreachable, j.name)
		}
	}
	if !asked {
		return res, ErrNoNetwork
	}
	return res, nil
}

// hear collects what there is to hear about a name on one network. It ends when everybody answered; once the closest nodes
// have, registers get only a little longer.
func (d *Directory) hear(ctx context.Context, j *joined, name string) evidence {
	var e evidence
	if r, ok := d.names.record(j.id); ok && r.Claim.Name == name {
		e.add(r)
	}
	for _, s := range d.stamps(ctx, j, name) {
		if s.Claim.Name == name && stampFits(s, j.id, name, j.keys()) {
			e.add(identity.StampedName(s))
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	regs := j.registers()
	e.register = len(regs) > 0
	answers := make(chan nameAnswer, len(regs))
	for _, reg := range regs {
		wg.Go(func() {
			a, err := d.asks.name(ctx, reg.Device, reg.Addrs, lookupName(name))
			if err != nil {
				a = nameAnswer{} // code 0: nothing was said
			}
			answers <- a
		})
	}
	fromTable := make(chan tableAnswer, 1)
	wg.Go(func() { fromTable <- d.askTable(ctx, j, name) })
	open, table := len(regs), true
	var late <-chan time.Time
	for open > 0 || table {
		select {
		case a := <-answers:
			open--
			e.answer(a, j, name)
			if open == 0 && e.decided && late == nil {
				// The register is whole and has said who has the name. The table is heard for contradiction, not for long.
				late = time.After(otherAnswers)
			}
		case t := <-fromTable:
			table = false
			e.asked = e.asked || t.asked
			for _, r := range t.records {
				e.add(r)
			}
			if late == nil {
				late = time.After(otherAnswers)
			}
		case <-late:
			cancel() // who is asked still answers with what it has
			late = make(chan time.Time)
		}
	}
	return e
}

func lookupName(name string) *pb.NameRequest {
	return &pb.NameRequest{Of: &pb.NameRequest_Lookup{Lookup: &pb.NameLookup{Name: name}}}
}

// answer takes what a register said.
func (e *evidence) answer(a nameAnswer, j *joined, name string) {
	switch a.code {
	case pb.NameAnswer_CODE_STAMPED, pb.NameAnswer_CODE_TAKEN:
		if !stampFits(a.stamp, j.id, name, j.keys()) {
			return
		}
		e.add(identity.StampedName(a.stamp))
		e.asked, e.decided = true, true
	case pb.NameAnswer_CODE_NOT_FOUND:
		e.asked = true
		e.decided = e.decided || !a.rebuilding
	}
}

// tableAnswer is what the closest nodes said, and whether any did.
type tableAnswer struct {
	records []identity.NameRecord
	asked   bool
}

// askTable asks each of the closest nodes.
func (d *Directory) askTable(ctx context.Context, j *joined, name string) tableAnswer {
	table := j.dht()
	if table == nil {
		return tableAnswer{}
	}
	answers, err := table.Ask(ctx, identity.NameKey(j.id, name))
	if err != nil && !errors.Is(err, node.ErrNoRecord) {
		d.log.Debug("asking for a name", "network", j.id.Short(), "error", err)
	}
	out := tableAnswer{asked: len(answers) > 0}
	for _, a := range answers {
		if a.Value == nil {
			continue
		}
		// Judged again: what is added here must not depend on who judged it before.
		if r, err := identity.ParseNameRecord(a.Value); err == nil && r.Claim.Network == j.id && r.Claim.Name == name {
			out.records = append(out.records, r)
		}
	}
	return out
}

// CheckName asks the registers of a network, which need not be joined, whether an account could take a name. self may
// be zero. nil: free, or self's own; *NameTakenError; ErrUnreachable: nobody can say now. It needs a node and nothing
// else, so that a name can be looked at before anything is made.
func CheckName(ctx context.Context, n *node.Node, link identity.NetworkLink, name string, self identity.AccountID) error {
	if canonical, err := text.Username(name); err != nil || canonical != name {
		return ErrBadName
	}
	return checkName(ctx, streams{n}, link, name, self)
}

func checkName(ctx context.Context, ask asker, link identity.NetworkLink, name string, self identity.AccountID) error {
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	answers := make([]nameAnswer, len(link.Bootstraps))
	var wg sync.WaitGroup
	for i, b := range link.Bootstraps {
		wg.Go(func() {
			if a, err := ask.name(ctx, b.Device, b.Addrs, lookupName(name)); err == nil {
				answers[i] = a
			}
		})
	}
	wg.Wait()
	var best identity.NameRecord
	known := false
	for _, a := range answers {
		known = known || a.code == pb.NameAnswer_CODE_NOT_FOUND && !a.rebuilding
		if !stampFits(a.stamp, link.ID(), name, link.Keys()) {
			continue
		}
		known = true
		r := identity.StampedName(a.stamp)
		if best.IsZero() || identity.CompareNames(r, best, link.Keys()) < 0 {
			best = r
		}
	}
	switch {
	case !best.IsZero() && best.Claim.Account != self:
		return &NameTakenError{link.ID(), name, best.Claim.Account, best.Stamp.Time}
	case !known:
		return ErrUnreachable
	}
	return nil
}
