package groups

import (
	"cmp"
	"context"
	"fmt"
	"slices"

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

// ownVerdictKey is where one on an own application is kept: each of them may be answered by itself, as where two links were over.
func (g *Groups) ownVerdictKey(from identity.AccountID, conv ID, at int64) []byte {
	return append(verdictKey(from, conv, g.self.Account), be64(uint64(at))...)
}

// keepVerdict keeps what somebody says of an account's application until it can be judged.
func (g *Groups) keepVerdict(tx *storage.Tx, conv ID, from, account identity.AccountID, v verdictRow) error {
	if v.Time <= 0 || v.Time > g.now().Add(maxAhead).UnixMilli() {
		return fmt.Errorf("a verdict on nothing: %w", ErrInvalid)
	}
	k := verdictKey(from, conv, account)
	if account == g.self.Account {
		k = g.ownVerdictKey(from, conv, v.Time)
	}
	before, again, err := getRow[verdictRow](tx, k)
	if err != nil || again && (before.Time > v.Time || before.Time == v.Time && before.Decided && !v.Decided) {
		return err
	}
	if !again {
		if err := roomForVerdict(tx, from); err != nil {
			return err
		}
	}
	v.At = cmp.Or(v.At, g.now().UnixMilli())
	return putRow(tx, k, v)
}

// roomForVerdict makes room for one more of an account. ErrFull: there is none.
func roomForVerdict(tx *storage.Tx, from identity.AccountID) error {
	of, total := map[identity.AccountID]int{}, 0
	err := tx.Scan(storage.ScanOptions{Prefix: []byte(keyVerdict), KeysOnly: true}, func(k, _ []byte) (bool, error) {
		rest := k[len(keyVerdict):]
		if len(rest) != 3*32 && len(rest) != 3*32+8 {
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

// hearAgain has what was kept judged when a change made its authors admins, or this account. That is never done in the transaction of the
// change: what somebody said, however much it is, must not keep an act out.
func (g *Groups) hearAgain(tx *storage.Tx, c *change) {
	self := g.self.Account
	if c.after == nil || c.after.view.Role(self) < roster.Admin {
		return
	}
	fresh := c.before.view.Role(self) < roster.Admin
	for _, p := range c.after.view.People { // strongest first
		if p.Role < roster.Admin {
			return
		}
		if fresh || p.Account != self && c.before.view.Role(p.Account) < roster.Admin {
			tx.OnCommit(func() {
				g.mu.Lock()
				g.ripe = true
				g.mu.Unlock()
				g.poke()
			})
			return
		}
	}
}

// maxJudged is how many verdicts are judged in one transaction. Each changes a row and is told of, to the applicant too.
const maxJudged = 16

// judgeKept judges what was kept and can be judged now.
func (g *Groups) judgeKept(ctx context.Context) error {
	g.mu.Lock()
	g.ripe = false
	g.mu.Unlock()
	for {
		var some []keptVerdict
		err := g.cfg.DB.View(func(tx *storage.Tx) (err error) { some, err = g.ripeVerdicts(tx); return err })
		if err != nil || len(some) == 0 {
			return err
		}
		err = g.cfg.DB.Update(ctx, func(tx *storage.Tx) error {
			some, err := g.ripeVerdicts(tx)
			for i := 0; err == nil && i < len(some); i++ {
				err = g.judgeOne(tx, some[i])
			}
			return err
		})
		if err != nil {
			return err
		}
	}
}

// keptVerdict names a verdict that was kept.
type keptVerdict struct {
	key           []byte
	conv          ID
	from, account identity.AccountID
}

// ripeVerdicts lists verdicts of admins, of groups where this account is one, as many as are judged at once.
func (g *Groups) ripeVerdicts(tx *storage.Tx) (out []keptVerdict, err error) {
	var all []keptVerdict
	err = tx.Scan(storage.ScanOptions{Prefix: []byte(keyVerdict), KeysOnly: true}, func(k, _ []byte) (bool, error) {
		rest := k[len(keyVerdict):]
		if len(rest) != 3*32 {
			return true, nil // on an own application
		}
		v := keptVerdict{slices.Clone(k), ID(rest[32:64]), identity.AccountID(rest[:32]), identity.AccountID(rest[64:])}
		if v.account != g.self.Account { // that one waits for what another own device applied for
			all = append(all, v)
		}
		return true, nil
	})
	// What own devices passed on comes behind the words of those whose it was.
	own := func(v keptVerdict) bool { return v.from == g.self.Account }
	all = append(slices.DeleteFunc(slices.Clone(all), own), slices.DeleteFunc(all, func(v keptVerdict) bool { return !own(v) })...)
	views := map[ID]*snapshot{}
	for i := 0; err == nil && i < len(all) && len(out) < maxJudged; i++ {
		s, ok := views[all[i].conv]
		if !ok {
			if _, s, err = g.open(tx, all[i].conv, false); err != nil {
				break
			}
			views[all[i].conv] = s
		}
		if s.view.Role(g.self.Account) >= roster.Admin && s.view.Role(all[i].from) >= roster.Admin {
			out = append(out, all[i])
		}
	}
	return out, err
}

func (g *Groups) judgeOne(tx *storage.Tx, k keptVerdict) error {
	v, ok, err := getRow[verdictRow](tx, k.key)
	if err != nil || !ok {
		return err
	}
	if err := tx.Delete(k.key); err != nil {
		return err
	}
	if err := g.judged(tx, k.conv, k.from, k.account, v); !unfit(err) {
		return err
	}
	return nil // it is about nothing any more
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
