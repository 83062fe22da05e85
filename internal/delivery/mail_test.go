package delivery

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"hima/identity"
	"hima/internal/mailbox"
	"hima/storage"
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

// meet lets two contacts tell each other where they take their mail, and then takes the second away.
func meet(c *town, a, b *resident) {
	c.t.Helper()
	n := len(b.heard())
	a.say(b, "meet")
	c.until("a meeting", time.Minute, func() bool { return len(b.heard()) > n })
	time.Sleep(time.Minute)
	b.down()
	time.Sleep(20 * time.Second)
}

// A custody that ends before the recipient came is told of, and the entries are offered again (R14, test B).
func TestCustodyEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTown(t, 3)
		box := c.office(0, func(s *mailbox.ServerConfig) { s.Limits.Expiry = 10 * time.Minute })
		a, b := c.resident("a", 1), c.resident("b", 2)
		befriend(a, b)
		a.up(box)
		b.up(box)
		meet(c, a, b)
		id, seq := a.say(b, "patience")
		c.until("a receipt", 10*time.Second, func() bool { held, _ := a.custodies(); return len(held) > 0 })
		time.Sleep(9 * time.Minute)
		if held, ended := a.custodies(); len(held) != 1 || len(ended) != 0 {
			t.Fatalf("before its end: %d held, %d ended", len(held), len(ended))
		}
		time.Sleep(2 * time.Minute)
		held, ended := a.custodies()
		if len(ended) != 1 || ended[0].From != seq || ended[0].Feed != id {
			t.Fatalf("ended: %+v", ended)
		}
		if len(held) != 2 || held[1].From > seq || held[1].Last < seq {
			t.Fatalf("not offered again: %+v", held)
		}
		b.up(box)
		c.until("the message", time.Minute, func() bool { return slices.Contains(b.heard(), "patience") })
	})
}

// A mailbox that is full, and one that is gone, are events for the sender; another one takes the message.
func TestAnotherMailboxTakesIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTown(t, 5)
		full := c.office(0, func(s *mailbox.ServerConfig) { s.Limits.InboxItems = 1 })
		gone, good := c.office(3, nil), c.office(4, nil)
		a, b := c.resident("a", 1), c.resident("b", 2)
		befriend(a, b)
		a.up()
		b.up(full, gone, good)
		meet(c, a, b)
		gone.stop()
		c.w.Stop(3)
		id, last := a.say(b, "one")
		c.until("a receipt", 30*time.Second, func() bool { held, _ := a.custodies(); return len(held) >= 2 })
		c.until("word of the lost mailbox", 2*time.Minute, func() bool { return slices.Contains(a.told(), "lost") })
		id, last = a.say(b, "two")
		c.until("custody of the second", 30*time.Second, func() bool {
			why, _ := a.mail.Custody(b.key.ID(), id, last)
			return len(why) == 1 && why[0].Holder == good.ref().Device
		})
		if !slices.Contains(a.told(), "full") {
			t.Errorf("events: %v", a.told())
		}
		b.up(full, gone, good)
		c.until("both, once", time.Minute, func() bool { return len(b.heard()) == 3 })
		time.Sleep(time.Minute)
		if got := b.heard(); len(got) != 3 {
			t.Errorf("heard %v", got)
		}
		c.until("the lost one noticed by its owner too", time.Minute, func() bool { return slices.Contains(b.told(), "lost") })
		gone.open(nil)
		c.until("it is back", time.Minute, func() bool { return slices.Contains(b.told(), "back") })
	})
}

// All mailboxes are gone: the message stays at its author and goes when one is back.
func TestNoMailboxAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTown(t, 3)
		box := c.office(0, nil)
		a, b := c.resident("a", 1), c.resident("b", 2)
		befriend(a, b)
		a.up()
		b.up(box)
		meet(c, a, b)
		box.stop()
		c.w.Stop(0)
		id, seq := a.say(b, "wait")
		time.Sleep(10 * time.Minute)
		if held, _ := a.custodies(); len(held) > 0 {
			t.Fatal("custody without a mailbox")
		}
		box.open(nil)
		c.until("custody", 6*time.Minute, func() bool { why, _ := a.mail.Custody(b.key.ID(), id, seq); return len(why) == 1 })
	})
}

// A first request to somebody who is away goes to the inbox for strangers, within its quota and for work; the answer comes
// back by mail as well.
func TestFirstRequestByMail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTown(t, 5)
		box := c.office(0, func(s *mailbox.ServerConfig) { s.Limits.RequestItems = 1 })
		a, b, third := c.resident("a", 1), c.resident("b", 2), c.resident("third", 3)
		b.up(box)
		c.until("a device record with an inbox for strangers", time.Minute, func() bool {
			rec, err := b.FetchDevice(t.Context(), b.key.ID())
			return err == nil && !rec.Request.IsZero()
		})
		b.down()
		for _, x := range []*resident{a, third} {
			x.know(b)
			x.members[x.with(b)] = nil
			x.friends[b.id()] = true // whom one writes to may answer
			x.members[x.with(b)] = append(x.members[x.with(b)], b.id())
		}
		a.up(box)
		id, seq := a.say(b, "do you know me?")
		c.until("custody of the request", time.Minute, func() bool { why, _ := a.mail.Custody(b.key.ID(), id, seq); return len(why) == 1 })
		third.up(box)
		third.say(b, "me too")
		c.until("the inbox for strangers is full", time.Minute, func() bool { return slices.Contains(third.told(), "full") })
		a.down()
		third.down()

		b.up(box)
		c.until("the request", time.Minute, func() bool { return slices.Contains(b.heard(), "do you know me?") })
		b.mu.Lock()
		b.friends[a.id()] = true
		b.mu.Unlock()
		back, n := b.say(a, "of course")
		c.until("custody of the answer", time.Minute, func() bool { why, _ := b.mail.Custody(a.key.ID(), back, n); return len(why) == 1 })
		time.Sleep(10 * time.Second) // a receipt follows
		b.down()
		a.up(box)
		c.until("the answer", time.Minute, func() bool { return slices.Contains(a.heard(), "of course") })
		c.until("delivered", time.Minute, func() bool { return a.delivered(id, b.key.ID()) == seq })
	})
}

// What has no road is not offered, so that it can still be withdrawn (R1); and a record from before its device had a place
// for strangers is no reason not to ask again.
func TestNothingIsOfferedWithoutARoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTown(t, 3)
		box := c.office(0, nil)
		a, b := c.resident("a", 1), c.resident("b", 2)
		befriend(a, b)
		b.up() // without any mailbox
		time.Sleep(time.Minute)
		c.mu.Lock()
		before, known := c.records[b.key.ID()]
		c.mu.Unlock()
		if !known || !before.Request.IsZero() {
			t.Fatalf("the record: %v, %+v", known, before.Request)
		}
		b.down()
		a.older = map[identity.DeviceID]identity.DeviceRecord{b.key.ID(): before}
		a.up()
		id, seq := a.say(b, "where are you?")
		time.Sleep(5 * time.Minute)
		var offered uint64
		must(t, a.db.View(func(tx *storage.Tx) (err error) {
			offered, err = a.rep.Offered(tx, id)
			return err
		}))
		if offered != 0 {
			t.Errorf("offered up to %d without a road", offered)
		}
		log, err := (&Delivery{cfg: Config{DB: a.db}}).Why(b.key.ID())
		if err != nil || slices.ContainsFunc(log, func(at Attempt) bool { return at.Road == RoadMailbox }) {
			t.Errorf("attempts %+v, %v", log, err)
		}
		a.down()

		b.up(box)
		c.until("a record with an inbox for strangers", time.Minute, func() bool {
			rec, err := b.FetchDevice(t.Context(), b.key.ID())
			return err == nil && !rec.Request.IsZero()
		})
		b.down()
		a.up()
		c.until("custody", time.Minute, func() bool { why, _ := a.mail.Custody(b.key.ID(), id, seq); return len(why) == 1 })
	})
}

// Each device of an account gets everything, in inboxes of its own.
func TestEachDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTown(t, 4)
		box := c.office(0, nil)
		a, b1, b2 := c.resident("a", 1), c.resident("b", 2), c.resident("b", 3)
		record(t, b1, b2)
		befriend(a, b1)
		befriend(a, b2)
		a.up(box)
		b1.up(box)
		b2.up(box)
		a.say(b1, "hello")
		c.until("both have it", time.Minute, func() bool { return len(b1.heard()) == 1 && len(b2.heard()) == 1 })
		time.Sleep(time.Minute)
		b1.down()
		b2.down()
		time.Sleep(20 * time.Second)
		id, seq := a.say(b1, "news")
		for _, d := range []*resident{b1, b2} {
			c.until("custody for each", time.Minute, func() bool { why, _ := a.mail.Custody(d.key.ID(), id, seq); return len(why) == 1 })
		}
		a.down()
		b1.up(box)
		c.until("the first has it", time.Minute, func() bool { return len(b1.heard()) == 2 })
		b1.down()
		time.Sleep(time.Minute)
		b2.up(box)
		c.until("the second has it", time.Minute, func() bool { return len(b2.heard()) == 2 })
	})
}

// A retired mailbox is not named any more, is emptied of what senders who did not hear of it left, and goes when nothing can
// come any more.
func TestRetiring(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTown(t, 4)
		old, next := c.office(0, func(s *mailbox.ServerConfig) { s.Limits.Expiry = 10 * time.Minute }), c.office(3, nil)
		a, b := c.resident("a", 1), c.resident("b", 2)
		b.change = func(m *MailConfig) { m.Limits.Slack = 5 * time.Minute }
		befriend(a, b)
		a.up()
		b.up(old)
		meet(c, a, b)
		a.say(b, "before")
		c.until("custody", time.Minute, func() bool { held, _ := a.custodies(); return len(held) == 1 })
		a.down()
		b.up(next) // the network names another one now
		c.until("what lay in the old one", time.Minute, func() bool { return slices.Contains(b.heard(), "before") })
		states := func() (out []string) {
			for _, s := range b.mail.Boxes() {
				out = append(out, s.State)
			}
			slices.Sort(out)
			return out
		}
		if got := states(); !slices.Equal(got, []string{BoxOK, BoxRetiring}) {
			t.Errorf("mailboxes are %v", got)
		}
		rec, _ := b.FetchDevice(t.Context(), b.key.ID())
		if len(rec.Mailboxes) != 1 || rec.Mailboxes[0].Device != next.ref().Device {
			t.Errorf("named: %+v", rec.Mailboxes)
		}
		b.down()
		a.up() // has not heard of it
		a.say(b, "after")
		c.until("custody of the second", time.Minute, func() bool { held, _ := a.custodies(); return len(held) >= 2 })
		a.down()
		b.up(next)
		c.until("what was left in the retired one", time.Minute, func() bool { return slices.Contains(b.heard(), "after") })
		c.until("the retired one goes", 2*time.Hour, func() bool { return len(states()) == 1 })
		if got := states(); !slices.Equal(got, []string{BoxOK}) {
			t.Errorf("mailboxes are %v", got)
		}
		if st := old.server.Stats(); st.Inboxes != 0 {
			t.Errorf("%d inboxes are left at the old one", st.Inboxes)
		}
	})
}

// Who takes what lay there and goes at once leaves the acknowledgement behind.
func TestFarewell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTown(t, 3)
		box := c.office(0, nil)
		a, b := c.resident("a", 1), c.resident("b", 2)
		befriend(a, b)
		a.up(box)
		b.up(box)
		meet(c, a, b)
		id, seq := a.say(b, "short visit")
		c.until("custody", time.Minute, func() bool { why, _ := a.mail.Custody(b.key.ID(), id, seq); return len(why) == 1 })
		a.down()
		b.up(box)
		c.until("the message", time.Minute, func() bool { return len(b.heard()) == 2 })
		begin := time.Now()
		b.down()
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("the farewell took %v", took)
		}
		a.up(box)
		c.until("delivered", time.Minute, func() bool { return a.delivered(id, b.key.ID()) == seq })
	})
}
