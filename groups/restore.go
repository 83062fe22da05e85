package groups

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"hima/groups/roster"
	"hima/identity"
	"hima/storage"
)

// A device made from the recovery phrase has no roster. A snapshot names the groups and some who are in them; those are
// asked, like after an accepted invitation, and from then on only acts say what the group is to this account (R21).

const (
	// seekSoon is how long after the start members of such groups are looked for: the network is joined first.
	seekSoon = 2 * time.Second
	// seekPause is how often they are, after that.
	seekPause = 10 * time.Minute
	// maxRemembered is how many members of a group Remembered names.
	maxRemembered = 64
)

// Remembered is a group that the account is in, as one of its devices tells another.
type Remembered struct {
	Group   ID
	Name    string               // a hint
	Members []identity.AccountID // others who are in, strongest first
}

// Remembered lists the groups that a new device of the account has to know of: those with others in them, and those that
// this device was told of so and got nothing of yet.
func (g *Groups) Remembered(tx *storage.Tx) ([]Remembered, error) {
	var out []Remembered
	err := eachRow(tx, []byte(keyGroup), func(rest []byte, row groupRow) (bool, error) {
		one := Remembered{Group: ID(rest), Name: row.Name}
		switch {
		case row.State == StateMember:
			_, s, err := g.open(tx, one.Group, false)
			if err != nil {
				return false, fmt.Errorf("remembering group %s: %w", one.Group.Short(), err)
			}
			one.Name = s.view.Settings[roster.SettingName]
			for _, p := range s.view.People {
				if p.Account != g.self.Account && len(one.Members) < maxRemembered {
					one.Members = append(one.Members, p.Account)
				}
			}
		case row.lost():
			for _, c := range row.Asks {
				one.Members = append(one.Members, c.Account)
			}
		}
		if len(one.Members) > 0 {
			out = append(out, one)
		}
		return true, nil
	})
	return out, err
}

// Restore takes the word of another device of the account that it is in a group, and lets the members it names be asked.
// It tells whether that was news: what is known here of a group stands, but for having heard of it or being asked in.
func (g *Groups) Restore(tx *storage.Tx, r Remembered) (bool, error) {
	row, known, err := getRow[groupRow](tx, groupKey(r.Group))
	if err != nil || known && row.State != StateNone && row.State != StateInvited {
		return false, err
	}
	var asks []contactRow
	for _, a := range r.Members {
		if !a.IsZero() && a != g.self.Account && len(asks) < identity.MaxGroupContacts {
			asks = append(asks, contactRow{Account: a})
		}
	}
	if r.Group.IsZero() || len(asks) == 0 {
		return false, nil // nobody could bring it
	}
	if !known {
		row.Began = g.now().UnixMilli()
	}
	row.State, row.Restored, row.Name, row.Asks = StateJoining, true, clip(r.Name, MaxName), mergeAsks(asks, row.Asks)
	if err := putRow(tx, groupKey(r.Group), row); err != nil {
		return false, err
	}
	tx.OnCommit(func() {
		g.changed(r.Group)
		poke(g.lost)
	})
	return true, g.shareWith(tx, r.Group, row.Asks)
}

// lost tells whether this account is said to be in and nothing came that shows it.
func (r *groupRow) lost() bool { return r.Restored && r.State == StateJoining }

// lostGroups lists those groups, with whom to ask.
func (g *Groups) lostGroups(tx *storage.Tx) (map[ID][]identity.AccountID, error) {
	out := map[ID][]identity.AccountID{}
	err := eachRow(tx, []byte(keyGroup), func(rest []byte, row groupRow) (bool, error) {
		if row.lost() {
			for _, c := range row.Asks {
				out[ID(rest)] = append(out[ID(rest)], c.Account)
			}
		}
		return true, nil
	})
	return out, err
}

// seek looks for members of lost groups of whom no device is known, one after another, until the context ends.
func (g *Groups) seek(ctx context.Context) error {
	if g.parts.Seek == nil {
		return nil
	}
	timer := time.NewTimer(seekSoon)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-g.lost:
		case <-timer.C:
		}
		var groups map[ID][]identity.AccountID
		err := g.cfg.DB.View(func(tx *storage.Tx) (err error) {
			groups, err = g.lostGroups(tx)
			return err
		})
		if err != nil && ctx.Err() == nil {
			g.log.Warn("looking for members", "error", err)
		}
		g.seekAll(ctx, groups)
		timer.Reset(seekPause/2 + rand.N(seekPause))
	}
}

// seekAll asks for one member of each group before it asks for a second one of any.
func (g *Groups) seekAll(ctx context.Context, groups map[ID][]identity.AccountID) {
	sought := map[identity.AccountID]bool{}
	for i := range 2 * identity.MaxGroupContacts {
		for conv, members := range groups {
			if i >= len(members) || sought[members[i]] || len(g.devices(members[i])) > 0 {
				continue
			}
			if ctx.Err() != nil {
				return
			}
			sought[members[i]] = true
			g.parts.Seek(ctx, members[i])
			g.changed(conv)
		}
	}
}

func (g *Groups) devices(a identity.AccountID) []identity.DeviceID {
	if g.parts.Devices == nil {
		return nil
	}
	return g.parts.Devices(a)
}

// endUnseen ends a group whose first acts show that we are not in any more: we were let in and went again before this
// device heard of either.
func (g *Groups) endUnseen(tx *storage.Tx, c *change) error {
	gone := c.after.view.Gone[g.self.Account]
	for i := range slices.Backward(c.acts) {
		a := &c.acts[i]
		if !slices.Contains(gone, a.ID) {
			continue
		}
		c.row.State = StateRemoved
		if a.Kind == roster.Leave {
			c.row.State = StateLeft
		}
		c.row.Went = c.row.State
		n := describe(a)
		n.Group = c.conv
		at, _ := c.gr.place(a.ID)
		return g.tellAct(tx, c, n, at)
	}
	return nil
}
