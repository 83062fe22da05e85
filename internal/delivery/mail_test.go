package delivery

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// Two contacts who met once and are never there at the same time again: everything arrives, and its author learns of it.
func TestNeverOnlineTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTown(t, 3)
		box := c.office(0, nil)
		a, b := c.resident("a", 1), c.resident("b", 2)
		befriend(a, b)
		a.up(box)
		b.up(box)
		a.say(b, "hello")
		c.until("the first message, directly", time.Minute, func() bool { return len(b.heard()) == 1 })
		time.Sleep(time.Minute) // offers go both ways and count as arrived

		b.down()
		time.Sleep(20 * time.Second) // the session is seen to be dead
		id, seq := a.say(b, "one")
		took := c.until("a receipt", 10*time.Second, func() bool { held, _ := a.custodies(); return len(held) > 0 })
		t.Logf("in custody %v after it was written", took)
		if took > 2*time.Second {
			t.Errorf("the deposit took %v", took)
		}
		why, err := a.mail.Custody(b.key.ID(), id, seq)
		if err != nil || len(why) != 1 || why[0].Expired || why[0].Holder != box.ref().Device {
			t.Errorf("custody: %+v, %v", why, err)
		}
		for i := range 20 {
			a.say(b, fmt.Sprint(i))
		}
		c.until("all in custody", 10*time.Second, func() bool {
			why, _ := a.mail.Custody(b.key.ID(), id, seq+20)
			return len(why) == 1
		})
		a.down()

		b.up(box)
		took = c.until("everything", 20*time.Second, func() bool { return len(b.heard()) == 22 })
		t.Logf("collected %v after the start", took)
		if got := b.heard(); got[1] != "one" || got[21] != "19" {
			t.Errorf("in the order %v", got)
		}
		c.until("an empty mailbox but for the receipt", 20*time.Second, func() bool { return box.server.Stats().Items == 1 })
		b.down()

		a.up(box)
		c.until("delivered", 20*time.Second, func() bool { return a.delivered(id, b.key.ID()) >= seq+20 })
		c.until("no custody left to tell of", time.Minute, func() bool {
			why, _ := a.mail.Custody(b.key.ID(), id, seq)
			return len(why) == 0
		})
		if _, ended := a.custodies(); len(ended) != 0 {
			t.Errorf("told of the end of %d receipts", len(ended))
		}
		log, err := (&Delivery{cfg: Config{DB: a.db}}).Why(b.key.ID())
		if err != nil || !slices.ContainsFunc(log, func(at Attempt) bool { return at.Road == RoadMailbox && at.Error == "" }) {
			t.Errorf("the log of attempts does not know of the mailbox: %+v, %v", log, err)
		}
	})
}
