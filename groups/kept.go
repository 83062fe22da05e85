package groups

import (
	"context"
	"fmt"

	"hima/groups/roster"
	"hima/identity"
	"hima/storage"
)

// A verdict may arrive before what it stands upon: before the application, which another own device made, or before the act by which
// whoever gave it, or this account, became an admin. It is said once, so it is kept until that comes. Anybody may say anything of any
// group, so what is kept is bounded by account: nobody pushes out what others said.

const (
	// maxKeptOf is how many verdicts of one account are kept, its oldest giving way. Who was just promoted may decide all that waits.
	maxKeptOf = 64
	// maxKept is how many are kept of all. Beyond it the account that has most gives way, so that it takes as many accounts as are
	// heard to keep any of them out.
	maxKept = 1024
)

// verdictRow is what somebody said of an application.
type verdictRow struct {
	Time      int64  `json:"t"` // of the application
	Reason    string `json:"r,omitempty"`
	Decided   bool   `json:"d,omitempty"` // by somebody; else the link was over
	Withdrawn bool   `json:"w,omitempty"` // the applicant took it back
	At        int64  `json:"a,omitempty"` // ms, when it came

	Of identity.AccountID `json:"f,omitzero"` // whose word is passed on; zero: the author's own
}

func verdictKey(from identity.AccountID, conv ID, account identity.AccountID) []byte {
	return key(keyVerdict, from[:], conv[:], account[:])
}

// keepVerdict keeps what somebody says of an account's application until it can be judged.
func (g *Groups) keepVerdict(tx *storage.Tx, conv ID, from, account identity.AccountID, v verdictRow) error {
	if v.Time <= 0 || v.Time > g.now().Add(maxAhead).UnixMilli() {
		return fmt.Errorf("a verdict on nothing: %w", ErrInvalid)
	}
	k := verdictKey(from, conv, account)
	before, again, err := getRow[verdictRow](tx, k)
	if err != nil || again && before.Time > v.Time {
		return err
	}
	if !again {
		if err := roomForVerdict(tx, from); err != nil {
			return err
		}
	}
	v.At = g.now().UnixMilli()
	return putRow(tx, k, v)
}

// roomForVerdict makes room for one more of an account. ErrFull: there is none.
func roomForVerdict(tx *storage.Tx, from identity.AccountID) error {
	of, total := map[identity.AccountID]int{}, 0
	err := tx.Scan(storage.ScanOptions{Prefix: []byte(keyVerdict), KeysOnly: true}, func(k, _ []byte) (bool, error) {
		rest := k[len(keyVerdict):]
		if len(rest) != 3*32 {
			return true, tx.Delete(k) // of an earlier build
		}
		of[identity.AccountID(rest[:32])]++
		total++
		return true, nil
	})
	if err != nil || total < maxKept && of[from] < maxKeptOf {
		return err
	}
	most, n := from, of[from]+1 // with this one
	for a, m := range of {
		if of[from] < maxKeptOf && (m > n || m == n && most != from && a.Less(most)) {
			most, n = a, m
		}
	}
	var oldest []byte
	at := int64(0)
	err = eachRow(tx, key(keyVerdict, most[:]), func(rest []byte, v verdictRow) (bool, error) {
		if oldest == nil || v.At < at {
			oldest, at = key(keyVerdict, most[:], rest), v.At
		}
		return true, nil
	})
	switch {
	case err != nil:
		return err
	case oldest == nil:
		return fmt.Errorf("a verdict: %w", ErrFull)
	}
	return tx.Delete(oldest)
}

// hearAgain judges what was kept of those who are admins now, or of all admins, if this account has become one.
func (g *Groups) hearAgain(tx *storage.Tx, c *change) error {
	self := g.self.Account
	if c.after == nil || c.after.view.Role(self) < roster.Admin {
		return nil
	}
	fresh := c.before.view.Role(self) < roster.Admin
	for _, p := range c.after.view.People { // strongest first
		if p.Role < roster.Admin {
			break
		}
		// What another device of ours decided is kept only before we know of being in.
		if !fresh && (p.Account == self || c.before.view.Role(p.Account) >= roster.Admin) {
			continue
		}
		if err := g.hearKept(tx, c.conv, p.Account); err != nil {
			return err
		}
	}
	return nil
}

// hearKept judges what was kept of what an admin said of applications to a group.
func (g *Groups) hearKept(tx *storage.Tx, conv ID, from identity.AccountID) error {
	type kept struct {
		account identity.AccountID
		verdict verdictRow
	}
	var all []kept
	err := eachRow(tx, key(keyVerdict, from[:], conv[:]), func(rest []byte, v verdictRow) (bool, error) {
		if account := identity.AccountID(rest); account != g.self.Account { // that one waits for what another own device applied for
			all = append(all, kept{account, v})
		}
		return true, nil
	})
	for i := 0; err == nil && i < len(all); i++ {
		if err = tx.Delete(verdictKey(from, conv, all[i].account)); err != nil {
			break
		}
		// The act that brought us here stands, whatever was said before it.
		if bad := g.judged(tx, conv, from, all[i].account, all[i].verdict); bad != nil && !unfit(bad) {
			err = bad
		}
	}
	return err
}

// forgetVerdicts drops what was kept for longer than an application waits.
func (g *Groups) forgetVerdicts(ctx context.Context) error {
	old := g.now().Add(-g.cfg.Limits.Invitation).UnixMilli()
	var over [][]byte
	err := g.cfg.DB.View(func(tx *storage.Tx) error {
		return eachRow(tx, []byte(keyVerdict), func(rest []byte, v verdictRow) (bool, error) {
			if v.At < old {
				over = append(over, key(keyVerdict, rest))
			}
			return true, nil
		})
	})
	if err != nil || len(over) == 0 {
		return err
	}
	return g.cfg.DB.Update(ctx, func(tx *storage.Tx) error {
		for _, k := range over {
			if err := tx.Delete(k); err != nil {
				return err
			}
		}
		return nil
	})
}
