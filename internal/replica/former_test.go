package replica

import (
	"context"
	"slices"
	"testing"
	"time"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/storage"
)

// renewed gives an account another device key, with a record that lists both.
func renewed(t *testing.T, p *person) person {
	t.Helper()
	next := newPersonWith(t, 0, newPerson(t, 9).deviceKey)
	record, err := identity.NewAccountRecord(p.accountKey, identity.RecordConfig{
		Now: time.Now(), Devices: []identity.Certificate{p.cert, next.cert},
	})
	if err != nil {
		t.Fatal(err)
	}
	p.record, next.record = record, record
	return next
}

// copied is a device that goes on under a new key over what another wrote, of which b has the first entry.
type copied struct {
	old, b *side
	next   person
	feed   feed.FeedID
	gone   []string // what was replaced
}

func newCopied(t *testing.T) *copied {
	pa, pb := newPerson(t, 0), newPerson(t, 1)
	c := &copied{next: renewed(t, &pa)}
	c.old, c.b = newSide(t, pa, nil, nil, pb), newSide(t, pb, nil, nil, pa)
	c.feed = c.old.chat(pb)
	c.b.say(pa, "hello")
	c.b.post(c.old, ExportOptions{})
	c.old.say(pb, "one")
	c.old.post(c.b, ExportOptions{})
	c.b.receipt(pa)
	c.b.post(c.old, ExportOptions{})
	if got := c.old.ackedBy(c.feed, c.b); got != 1 {
		t.Fatalf("acknowledged up to %d", got)
	}
	return c
}

// open starts the device under its new key.
func (c *copied) open(t *testing.T) *side {
	return newSideOn(t, c.next, nil, c.old.db, c.old.fakes, func(conf *Config) {
		conf.Former = []identity.DeviceID{c.old.device()}
		conf.OnReplaced = func(_ *storage.Tx, entries []feed.Entry) error {
			for _, e := range entries {
				content, err := e.Content()
				if err != nil {
					return err
				}
				c.gone = append(c.gone, string(content))
			}
			return nil
		}
	})
}

// TestSealedTailIsServed: what waited under a former key is owed, goes by mail and is acknowledged like what this device
// writes itself, also after another start.
func TestSealedTailIsServed(t *testing.T) {
	c := newCopied(t)
	c.old.say(c.b.person, "two", "three")
	if err := Seal(context.Background(), c.old.db, c.old.account(), c.old.deviceKey, nil); err != nil {
		t.Fatal(err)
	}
	c.open(t)
	a := c.open(t)
	owed, err := a.rep.Owed()
	if err != nil || len(owed) != 1 || !slices.Equal(owed[0].Feeds, []Span{{Feed: c.feed, From: 2, Last: 3}}) {
		t.Fatalf("owed %+v, %v", owed, err)
	}
	a.say(c.b.person, "four")
	a.post(c.b, ExportOptions{})
	if got := c.b.texts(); !slices.Equal(got, []string{"one", "two", "three", "four"}) {
		t.Errorf("%q arrived", got)
	}
	c.b.receipt(c.old.person)
	c.b.post(a, ExportOptions{})
	if got := a.ackedBy(c.feed, c.b); got != 3 {
		t.Errorf("acknowledged up to %d", got)
	}
	owed, err = a.rep.Owed()
	if err != nil || slices.ContainsFunc(owed, func(d Debt) bool { return d.Device == c.b.device() }) {
		t.Errorf("still owed %+v, %v", owed, err)
	}
	if !slices.ContainsFunc(a.acked, func(k Ack) bool { return k.Feed == c.feed && k.Last == 3 }) {
		t.Errorf("told of %+v", a.acked)
	}
}

// TestUnsettledTail: what no signature vouches for is not owed and not in the head. Others show what follows: the same, and it
// is as if they had served it all along, or something else, which then counts.
func TestUnsettledTail(t *testing.T) {
	for name, want := range map[string][]string{"same": nil, "other": {"two", "three"}} {
		t.Run(name, func(t *testing.T) {
			c := newCopied(t)
			tip := c.old.head(c.feed)
			c.old.say(c.b.person, "two", "three")
			runs, last := c.old.export(c.b, ExportOptions{}).Runs, uint64(3)
			if want != nil {
				who := feed.NewAuthor(c.old.account(), c.old.device(), c.old.cert)
				e, err := who.NextInGroup(feed.Tip{Account: c.old.account(), Seq: tip.Last, Hash: tip.Hash, Clock: 2}, c.feed.Conversation, feed.Chat, feed.KindText, 9,
					time.Now().UnixMilli(), []byte("TWO"), feed.Group{})
				if err != nil {
					t.Fatal(err)
				}
				run, err := feed.Assemble([]feed.Entry{e}, feed.SignRun(c.old.deviceKey, e))
				if err != nil {
					t.Fatal(err)
				}
				runs, last = []*pb.Run{run.PB()}, 2
			}
			a := c.open(t)
			if h := a.head(c.feed); h.Last != 1 {
				t.Errorf("the head claims %d", h.Last)
			}
			if owed, err := a.rep.Owed(); err != nil || len(owed) != 0 {
				t.Errorf("owed %+v, %v", owed, err)
			}
			for _, run := range runs {
				if err := a.take(c.b.peer(), run); err != nil {
					t.Fatal(err)
				}
			}
			if h := a.head(c.feed); h.Last != last {
				t.Errorf("the feed ends at %d", h.Last)
			}
			if !slices.Equal(c.gone, want) {
				t.Errorf("replaced %q", c.gone)
			}
		})
	}
}

// TestOwnDevicesSettleNoTail: what another own device acknowledged, and nobody else, is owed to others all the same (R14), also when that device
// is one no more.
func TestOwnDevicesSettleNoTail(t *testing.T) {
	for name, revoked := range map[string]bool{"listed": false, "revoked": true} {
		t.Run(name, func(t *testing.T) {
			c := newCopied(t)
			phone := newPersonWith(t, 0, newPerson(t, 8).deviceKey)
			record := identity.RecordConfig{Now: time.Now().Add(time.Second), Devices: []identity.Certificate{c.old.cert, c.next.cert, phone.cert}}
			if revoked {
				record.Devices, record.Revoked = record.Devices[:2], []identity.DeviceID{phone.device()}
			}
			newest, err := identity.NewAccountRecord(c.old.accountKey, record)
			if err != nil {
				t.Fatal(err)
			}
			c.old.records[c.old.account()] = newest
			c.old.say(c.b.person, "two", "three")
			c.old.change(func(tx *storage.Tx) error {
				st, _, err := loadFeed(tx, c.feed)
				if err != nil {
					return err
				}
				return saveAcked(tx, st.local, phone.device(), 3)
			})
			if err := Seal(t.Context(), c.old.db, c.old.account(), c.old.deviceKey, []identity.DeviceID{phone.device()}); err != nil {
				t.Fatal(err)
			}
			a := c.open(t)
			owed, err := a.rep.Owed()
			owed = slices.DeleteFunc(owed, func(d Debt) bool { return d.Device != c.b.device() })
			if err != nil || len(owed) != 1 || !slices.Equal(owed[0].Feeds, []Span{{Feed: c.feed, From: 2, Last: 3}}) {
				t.Errorf("owed %+v, %v", owed, err)
			}
			a.post(c.b, ExportOptions{})
			if got := c.b.texts(); !slices.Equal(got, []string{"one", "two", "three"}) {
				t.Errorf("%q arrived", got)
			}
		})
	}
}
