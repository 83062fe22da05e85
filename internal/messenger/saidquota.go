package messenger

import (
	"time"

	"hima/identity"
	"hima/internal/replica"
	"hima/storage"
)

// What somebody says about groups who is no contact is kept for ever, as control feeds have no floor, and so has to be bounded. A bound
// that nothing ever lifts would part two admins for good who are no contacts of each other, and one that a restart lifts would be none. So
// what was used comes back with time, and how much is used stands in the row of the account, written with the entry that used it.

const (
	// saidBack is the time in which all of a quota comes back.
	saidBack = 16 * 24 * time.Hour
	// fellowBack is the same between two admins of a group: each tells the other of every application.
	fellowBack = 24 * time.Hour
)

// saidQuota is how much of that an account may say.
type saidQuota struct {
	burst int           // bytes at once, as entries weigh on the wire; no run weighs more than that of a stranger by default
	back  time.Duration // in which as much comes back
}

// saidQuota gives the quota of somebody who is no contact. It follows what they are to us now: who is an admin no longer is heard more slowly.
func (m *Messenger) saidQuota(tx *storage.Tx, a identity.AccountID) (saidQuota, error) {
	q := saidQuota{burst: m.config.Limits.TempSaid, back: saidBack}
	shared, err := m.env.groups.Shared(tx, a)
	if err != nil || len(shared) == 0 {
		return q, err
	}
	q.burst *= comemberFactor
	fellow, err := m.env.groups.Fellow(tx, a)
	if fellow {
		q.back = fellowBack
	}
	return q, err
}

// said tells whether anything about groups was ever taken of them.
func (c *strangerCost) said() bool { return c.Said > 0 || c.SaidMS > 0 }

// drain lets come back what time gave back since the quota was used last. Less than a byte is left for the next time. A clock that was put
// back gives nothing, and time counts from there: what was noted under the later clock must not keep somebody silent until it comes again.
// One that was put forward gives at most all of it, once.
func (c *strangerCost) drain(q saidQuota, now time.Time) {
	at := now.UnixMilli()
	since, back := at-c.SaidMS, q.back.Milliseconds()
	switch {
	case since <= 0:
		c.SaidMS = at
		return
	case since > back:
		c.Said, c.SaidMS = max(0, c.Said-q.burst), at
		return
	}
	freed := since * int64(q.burst) / back
	if freed >= int64(c.Said) {
		c.Said, c.SaidMS = 0, at
		return
	}
	c.Said -= int(freed)
	c.SaidMS += (freed*back + int64(q.burst) - 1) / int64(q.burst)
}

// charge notes that an entry was taken.
func (c *strangerCost) charge(q saidQuota, bytes int, now time.Time) {
	c.drain(q, now)
	c.Said += bytes
}

// fits tells whether an entry may be taken after what was drained. One that is larger than everything may be taken when nothing is used.
func (c *strangerCost) fits(q saidQuota, bytes int) bool {
	return c.Said == 0 || c.Said+bytes <= q.burst
}

// waits notes that something said about groups was refused which may be taken later. The other side sends it again when it is shown heads
// anew, so that is done after a while. A clock that was put back is noted too, or the wait would begin anew each time.
func (m *Messenger) waits(tx *storage.Tx, in replica.Incoming) error {
	m.env.groups.Later(in.Run.Feed().Conversation)
	row, known, err := m.contacts.get(tx, in.Run.Account())
	if err != nil || !known || row.Cost.SaidMS <= m.env.now().UnixMilli() {
		return err
	}
	row.Cost.SaidMS = m.env.now().UnixMilli()
	return m.contacts.put(tx, in.Run.Account(), row)
}
