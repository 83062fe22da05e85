package groups

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"hima/groups/roster"
	"hima/identity"
	"hima/internal/feed"
	"hima/storage"
)

// keepPause is how often the own groups are looked after.
const keepPause = 10 * time.Minute

// invitationHint is where an accepted invitation says that members are.
type invitationHint struct {
	contacts []Contact
	networks []identity.NetworkLink
}

// hint lets Run tell of an invitation.
func (g *Groups) hint(h invitationHint) {
	g.mu.Lock()
	g.hints = append(g.hints, h)
	g.mu.Unlock()
	g.poke()
}

func (g *Groups) poke() {
	select {
	case g.wants <- struct{}{}:
	default:
	}
}

// flooded notes that entries were refused which their author may send later.
func (g *Groups) flooded(conv ID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.full) < maxFull {
		g.full[conv] = struct{}{}
	}
}

// maxFull bounds the groups that are noted to have been flooded at once.
const maxFull = 1024

// keep makes new epochs in time, lets invitations and applications expire, judges verdicts that were kept, and asks again for what was
// refused as too much.
func (g *Groups) keep(ctx context.Context) error {
	// Members that came up together do not act together.
	timer := time.NewTimer(time.Minute + rand.N(time.Minute))
	defer timer.Stop()
	g.hearKept(ctx) // what became ripe before this device stopped
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-g.wants:
			g.tellHints(ctx)
			g.mu.Lock()
			ripe := g.ripe
			g.mu.Unlock()
			if ripe {
				g.hearKept(ctx)
			}
		case <-timer.C:
			g.lookAfter(ctx)
			timer.Reset(keepPause/2 + rand.N(keepPause))
		}
	}
}

// hearKept judges verdicts that were kept. Errors are logged: the next time comes soon.
func (g *Groups) hearKept(ctx context.Context) {
	if err := g.judgeKept(ctx); err != nil && ctx.Err() == nil {
		g.log.Warn("judging verdicts", "error", err)
	}
}

func (g *Groups) tellHints(ctx context.Context) {
	g.mu.Lock()
	hints := g.hints
	g.hints = nil
	g.mu.Unlock()
	for _, h := range hints {
		for _, link := range h.networks {
			if g.parts.Join != nil {
				g.parts.Join(ctx, link)
			}
		}
		for _, c := range h.contacts {
			for _, d := range c.Devices {
				if g.parts.Hint != nil && c.Account != g.self.Account {
					g.parts.Hint(c.Account, d.Device, d.Addrs)
				}
			}
		}
	}
}

// lookAfter does once what keep does. Errors are logged: the next time comes soon.
func (g *Groups) lookAfter(ctx context.Context) {
	if err := g.expire(ctx); err != nil && ctx.Err() == nil {
		g.log.Warn("looking after invitations", "error", err)
	}
	g.hearKept(ctx)
	if err := g.forgetVerdicts(ctx); err != nil && ctx.Err() == nil {
		g.log.Warn("looking after verdicts", "error", err)
	}
	if err := g.rotate(ctx); err != nil && ctx.Err() == nil {
		g.log.Warn("looking after epochs", "error", err)
	}
	g.mu.Lock()
	full := g.full
	g.full = map[ID]struct{}{}
	g.mu.Unlock()
	for conv := range full {
		g.parts.Feeds.Reannounce(conv)
	}
	g.askAgain()
}

// expire ends invitations and applications whose time is over, and forgets those that ended long ago.
func (g *Groups) expire(ctx context.Context) error {
	now := g.now().UnixMilli()
	old := g.now().Add(-4 * g.cfg.Limits.Invitation).UnixMilli()
	due := false
	err := g.cfg.DB.View(func(tx *storage.Tx) error {
		err := eachRow(tx, []byte(keyInvite), func(_ []byte, row invitationRow) (bool, error) {
			due = due || row.State == Waiting && row.Expires <= now || row.Expires < old
			return !due, nil
		})
		if err == nil {
			err = eachRow(tx, []byte(keyApply), func(_ []byte, row applicationRow) (bool, error) {
				due = due || row.State == Waiting && row.Expires <= now || row.Expires < old
				return !due, nil
			})
		}
		if err == nil {
			err = eachRow(tx, []byte(keyGroup), func(_ []byte, row groupRow) (bool, error) {
				due = due || row.lapsed(now)
				return !due, nil
			})
		}
		return err
	})
	if err != nil || !due {
		return err
	}
	return g.cfg.DB.Update(ctx, func(tx *storage.Tx) error {
		if err := g.expireInvitations(tx, now, old); err != nil {
			return err
		}
		return g.expireApplications(tx, now, old)
	})
}

func (g *Groups) expireInvitations(tx *storage.Tx, now, old int64) error {
	return eachRow(tx, []byte(keyInvite), func(rest []byte, row invitationRow) (bool, error) {
		k := key(keyInvite, rest)
		if row.Expires < old {
			return true, tx.Delete(k)
		}
		to, may := advance(anInvitation, row.State, lapse, clock)
		if !may || row.Expires > now {
			return true, nil
		}
		row.State = to
		if err := putRow(tx, k, row); err != nil {
			return false, err
		}
		conv, other := ID(rest[1:33]), identity.AccountID(rest[33:])
		n := News{Group: conv, Kind: NewsInvitationExpired, Account: g.self.Account, Subject: other, Text: row.Name}
		if rest[0] == incoming {
			n.Account, n.Subject = other, g.self.Account
			if err := g.noneWaits(tx, conv); err != nil {
				return false, err
			}
		}
		return true, g.tell(tx, n)
	})
}

func (g *Groups) expireApplications(tx *storage.Tx, now, old int64) error {
	err := eachRow(tx, []byte(keyApply), func(rest []byte, row applicationRow) (bool, error) {
		k := key(keyApply, rest)
		if row.Expires < old {
			return true, tx.Delete(k)
		}
		to, may := advance(anApplication, row.State, lapse, clock)
		if !may || row.Expires > now {
			return true, nil
		}
		row.State, row.Consent = to, nil
		if err := putRow(tx, k, row); err != nil {
			return false, err
		}
		return true, g.tell(tx, News{Group: ID(rest[:32]), Kind: NewsApplicationExpired, Subject: identity.AccountID(rest[32:])})
	})
	if err != nil {
		return err
	}
	return eachRow(tx, []byte(keyGroup), func(rest []byte, row groupRow) (bool, error) {
		if !row.lapsed(now) {
			return true, nil
		}
		to, may := advance(anApplication, row.Applied.State, lapse, clock)
		if !may {
			return true, nil
		}
		row.Applied.State = to
		if row.State == StateApplied {
			row.State = row.idle()
		}
		if err := putRow(tx, groupKey(ID(rest)), row); err != nil {
			return false, err
		}
		return true, g.tell(tx, News{Group: ID(rest), Kind: NewsApplicationExpired, Subject: g.self.Account})
	})
}

// rotate makes a new epoch in groups where we are an admin and the present one is old, or much was said under it. The
// strongest admin does it first; the others wait for longer the weaker they are, in case that one is away.
func (g *Groups) rotate(ctx context.Context) error {
	var due []ID
	err := g.cfg.DB.View(func(tx *storage.Tx) error {
		all, err := g.live(tx)
		for _, conv := range all {
			is, e := g.worn(tx, conv)
			if is {
				due = append(due, conv)
			}
			err = errors.Join(err, e)
		}
		return err
	})
	for _, conv := range due {
		err = errors.Join(err, g.cfg.DB.Update(ctx, func(tx *storage.Tx) error {
			if is, err := g.worn(tx, conv); err != nil || !is {
				return err
			}
			return g.newEpoch(tx, conv)
		}))
	}
	return err
}

// keylessPause is how long an admin waits for the key of the present epoch, times their rank, before making another one:
// whoever made it may never hand it over.
const keylessPause = 15 * time.Minute

// waiting is an epoch whose key is not held, and since when it is the present one.
type waiting struct {
	epoch roster.ID
	since time.Time
}

// keyless tells whether the key of the present epoch has been missing for long.
func (g *Groups) keyless(tx *storage.Tx, conv ID, e roster.ID, after time.Duration) (bool, error) {
	held, err := tx.Has(key(keyKey, conv[:], e[:]))
	g.mu.Lock()
	defer g.mu.Unlock()
	if err != nil || held {
		delete(g.waits, conv)
		return false, err
	}
	w, ok := g.waits[conv]
	if !ok || w.epoch != e {
		if len(g.waits) < maxFull {
			g.waits[conv] = waiting{e, g.now()}
		}
		return false, nil
	}
	return g.now().Sub(w.since) >= after, nil
}

// worn tells whether a group's epoch is to be replaced by us now.
func (g *Groups) worn(tx *storage.Tx, conv ID) (bool, error) {
	gr, s, err := g.open(tx, conv, false)
	if err != nil || s.view.Dissolved || s.view.Role(g.self.Account) < roster.Admin {
		return false, err
	}
	if row, _, err := getRow[groupRow](tx, groupKey(conv)); err != nil || row.ReadOnly {
		return false, err
	}
	e, ok := s.view.Current()
	if !ok {
		return false, nil // whoever writes next makes one
	}
	rank := slices.IndexFunc(s.view.People, func(p roster.Person) bool { return p.Account == g.self.Account })
	at, _ := gr.place(e.ID)
	if keyless, err := g.keyless(tx, conv, e.ID, time.Duration(1+min(rank, 16))*keylessPause); err != nil || keyless {
		return keyless, err
	}
	age := g.now().Sub(atMS(at.timeMS))
	n, err := readNumber(tx, key(keyEpoch, conv[:], e.ID[:]))
	if err != nil {
		return false, err
	}
	own, err := readNumber(tx, key(keyOwn, conv[:]))
	if err != nil {
		return false, err
	}
	head, _, err := g.parts.Feeds.Head(tx, g.parts.Feeds.OwnFeed(conv, feed.Chat))
	if err != nil {
		return false, err
	}
	if head.Last > own {
		n += head.Last - own // not counted yet
	}
	late := time.Duration(min(rank, 48)) * time.Hour
	return age > g.cfg.Limits.EpochAge+late || n > uint64(g.cfg.Limits.EpochEntries)*uint64(4+min(rank, 8))/4, nil
}
