package delivery

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"hima/identity"
	"hima/internal/mailbox"
	"hima/node/nodetest"
	"hima/storage"
)

// each calls f for every key of a database.
func each(t *testing.T, db *storage.DB, prefix string, f func(k, v []byte)) {
	t.Helper()
	must(t, db.View(func(tx *storage.Tx) error {
		return tx.Scan(storage.ScanOptions{Prefix: []byte(prefix)}, func(k, v []byte) (bool, error) {
			f(k, v)
			return true, nil
		})
	}))
}

// items lists the sealed bytes that a mailbox holds.
func (p *postOffice) items() (out [][]byte) {
	each(p.c.t, p.db, "b/m/", func(_, v []byte) { out = append(out, v[8:]) })
	return out
}

// opens says whether any prekey that a device has on its disk opens an item.
func (r *resident) opens(item []byte) bool {
	ok := false
	try := func(_, v []byte) {
		secret, err := identity.PrekeySecretFromBytes(v[1:33])
		if err != nil {
			r.c.t.Error(err)
		}
		if _, err := identity.OpenMail(item, r.key.ID(), secret); err == nil {
			ok = true
		}
	}
	each(r.c.t, r.db, keyRotating, try)
	each(r.c.t, r.db, keyOneTime, try)
	return ok
}

// The disk of a mailbox holds no account, no device and no plaintext, in no form; a mailbox is what strangers run.
func TestMailboxDiskTellsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTown(t, 4)
		box := c.office(0, nil)
		a, b, s := c.resident("a", 1), c.resident("b", 2), c.resident("stranger", 3)
		befriend(a, b)
		a.up(box)
		b.up(box)
		meet(c, a, b)
		a.say(b, "attack at dawn")
		s.know(b)
		s.mu.Lock()
		s.friends[b.id()] = true
		s.members[s.with(b)] = []identity.AccountID{b.id()}
		s.mu.Unlock()
		s.up(box)
		s.say(b, "attack at noon")
		c.until("both items", time.Minute, func() bool { return len(box.items()) == 2 })
		must(t, a.mail.PutSnapshot(t.Context(), []byte("sealed elsewhere")))
		box.stop() // whatever it writes at its end is on the disk too
		secrets := map[string][]byte{"a text": []byte("attack at"), "another": []byte("meet")}
		for _, r := range []*resident{a, b, s} {
			acc, dev := r.id(), r.key.ID()
			secrets[r.name+"'s account"], secrets[r.name+"'s device"] = acc[:], dev[:]
			secrets[r.name+"'s account as text"], secrets[r.name+"'s device as text"] = []byte(acc.String()), []byte(dev.String())
			secrets[r.name+"'s peer ID"] = []byte(dev.PeerID())
			conv := r.with(b)
			secrets[r.name+"'s conversation"] = conv[:]
		}
		n := 0
		each(t, box.db, "", func(k, v []byte) {
			n++
			for what, secret := range secrets {
				for _, of := range [][]byte{k, v} {
					if bytes.Contains(of, secret) || bytes.Contains(of, secret[:min(len(secret), 16)]) {
						t.Errorf("%s is on the disk of the mailbox, under %q", what, k[:min(len(k), 4)])
					}
				}
			}
		})
		if n < 10 {
			t.Errorf("only %d keys were looked at", n)
		}
	})
}

// What was captured at a mailbox is not opened by a device that is stolen later: a one-time prekey goes when its item was
// read, a rotating one when it was replaced long enough (R24).
func TestStolenLater(t *testing.T) {
	for _, kind := range []string{"one-time", "rotating"} {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newTown(t, 3)
				box := c.office(0, func(s *mailbox.ServerConfig) { s.Limits.Expiry = 10 * time.Minute })
				a, b := c.resident("a", 1), c.resident("b", 2)
				befriend(a, b)
				if kind == "rotating" {
					a.change = func(m *MailConfig) { m.Limits.OneTimeOf = time.Nanosecond }
				}
				b.change = func(m *MailConfig) {
					m.Limits.Rotation, m.Limits.Slack = 30*time.Minute, time.Minute
					m.OnDevice = func(d DeviceInfo) {
						b.publish(d)
						must(t, b.mail.Published(t.Context(), d.Prekey, time.Now()))
					}
				}
				a.up(box)
				b.up(box)
				meet(c, a, b)
				a.say(b, "secret")
				c.until("the item", time.Minute, func() bool { return len(box.items()) == 1 })
				captured := box.items()[0]
				a.down()
				if !b.opens(captured) {
					t.Fatal("the test is wrong: nobody opens the item")
				}
				b.up(box)
				c.until("the message", time.Minute, func() bool { return slices.Contains(b.heard(), "secret") })
				if kind == "one-time" {
					if b.opens(captured) {
						t.Error("the item still opens after it was read")
					}
					return
				}
				if !b.opens(captured) {
					t.Error("the rotating prekey went too early")
				}
				for range 12 {
					if time.Sleep(10 * time.Minute); !b.opens(captured) {
						break
					}
				}
				if b.opens(captured) {
					t.Error("the rotating prekey was not erased within two hours")
				}
				keys := 0
				each(t, b.db, keyRotating, func(_, _ []byte) { keys++ })
				if keys == 0 {
					t.Error("no prekey is left")
				}
			})
		})
	}
}

// A prekey is kept while its successor is not published, and while a mailbox was not emptied since.
func TestPrekeyIsKept(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	db, err := storage.Open(storage.Config{})
	must(t, err)
	defer db.Close()
	m := &Mail{cfg: MailConfig{DB: db, Now: func() time.Time { return now }}.withDefaults(), boxes: map[identity.DeviceID]*box{}}
	b := newBox(identity.MailboxRef{Device: identity.DeviceID{1}})
	m.boxes[b.ref.Device] = b
	day := 24 * time.Hour
	ctx := context.Background()
	rotate := func() {
		t.Helper()
		if fresh, err := m.rotate(ctx); !fresh || err != nil {
			t.Fatalf("no new prekey: %v", err)
		}
	}
	rotate()
	must(t, m.Published(t.Context(), m.prekeys[0].public, now))
	now = now.Add(7 * day)
	rotate()
	check := func(what string, want int) {
		t.Helper()
		must(t, m.erasePrekeys(ctx))
		if len(m.prekeys) != want {
			t.Errorf("%s: %d prekeys, want %d", what, len(m.prekeys), want)
		}
	}
	now = now.Add(60 * day)
	b.emptied = now
	check("the new one was not published", 2)
	must(t, m.Published(t.Context(), m.prekeys[1].public, now))
	now = now.Add(30*day + 7*day)
	b.emptied = now
	check("published exactly as long as an item may lie there, and a week", 2)
	now = now.Add(time.Hour)
	b.emptied = now.Add(-40 * day)
	check("the mailbox was not emptied since", 2)
	b.emptied = now
	check("all is well", 1)
	again := &Mail{}
	must(t, db.View(again.loadPrekeys))
	if len(again.prekeys) != 1 || again.prekeys[0].public != m.prekeys[0].public {
		t.Error("the disk holds other prekeys")
	}
}

// Storing what an item says and erasing the one-time prekey that opens it are one transaction: when it fails, both are as
// before, and the item is taken later.
func TestImportFailsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTown(t, 3)
		box := c.office(0, nil)
		a, b := c.resident("a", 1), c.resident("b", 2)
		befriend(a, b)
		a.up(box)
		b.up(box)
		meet(c, a, b)
		a.say(b, "precious")
		c.until("the item", time.Minute, func() bool { return len(box.items()) == 1 })
		captured := box.items()[0]
		a.down()
		failures, held := 0, 0
		b.mu.Lock()
		b.failApplied = func() error {
			b.mu.Lock()
			failures++
			tired := failures <= 2
			b.mu.Unlock()
			if !tired {
				return nil
			}
			if b.opens(captured) {
				b.mu.Lock()
				held++
				b.mu.Unlock()
			}
			return errors.New("the disk is tired")
		}
		b.mu.Unlock()
		b.up(box)
		c.until("the message after failures", 2*time.Minute, func() bool { return slices.Contains(b.heard(), "precious") })
		b.mu.Lock()
		defer b.mu.Unlock()
		if failures != 3 || held != 2 {
			t.Errorf("%d tries, the key was there in %d of 2", failures, held)
		}
		if b.opens(captured) {
			t.Error("the one-time prekey is still there")
		}
	})
}

// A stop between any two steps loses nothing and shows nothing twice.
func TestStopInTheMiddle(t *testing.T) {
	for _, point := range []string{"before-deposit", "before-custody", "before-done"} {
		t.Run(point, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newTown(t, 3)
				box := c.office(0, nil)
				a, b := c.resident("a", 1), c.resident("b", 2)
				befriend(a, b)
				var mu sync.Mutex
				failed := 0
				fail := func(p string) error {
					mu.Lock()
					defer mu.Unlock()
					if p == point && failed < 2 {
						failed++
						return errors.New("stopped")
					}
					return nil
				}
				a.change = func(m *MailConfig) { m.Fail = fail }
				b.change = a.change
				a.up(box)
				b.up(box)
				meet(c, a, b)
				id, seq := a.say(b, "one")
				c.until("custody", time.Minute, func() bool { why, _ := a.mail.Custody(b.key.ID(), id, seq); return len(why) == 1 })
				a.down()
				b.up(box)
				c.until("the message", time.Minute, func() bool { return len(b.heard()) == 2 })
				time.Sleep(time.Minute)
				mu.Lock()
				defer mu.Unlock()
				if failed != 2 || len(b.heard()) != 2 {
					t.Errorf("failed %d times, heard %v", failed, b.heard())
				}
				for range box.items() { // the receipt for a may lie there; what b had is gone
					if st := box.server.Stats(); st.Items > 1 {
						t.Errorf("%d items are left", st.Items)
					}
				}
			})
		})
	}
}

// Junk in the inbox for strangers holds nothing up and does not fill it for good.
func TestJunkForStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTown(t, 4)
		box := c.office(0, func(s *mailbox.ServerConfig) { s.Limits.RequestItems = 12 })
		b, s := c.resident("b", 2), c.resident("stranger", 3)
		b.up(box)
		var rec identity.DeviceRecord
		c.until("an inbox for strangers", time.Minute, func() (ok bool) {
			rec, _ = b.FetchDevice(t.Context(), b.key.ID())
			return !rec.Request.IsZero()
		})
		client, err := mailbox.NewClient(mailbox.ClientConfig{Node: c.w.Node(1)})
		must(t, err)
		defer client.Close()
		other := identity.GeneratePrekey().Public()
		for range 30 {
			junk, err := identity.SealMail(other, b.key.ID(), identity.NewHint(), []byte("junk"))
			must(t, err)
			d := mailbox.Deposit{Inbox: rec.Request.Inbox, Item: junk, Work: identity.ItemWork(t.Context(), rec.Request.Inbox, junk, rec.Request.WorkBits)}
			_, err = client.Deposit(t.Context(), box.ref(), d)
			must(t, err)
			time.Sleep(time.Second)
		}
		b.down()
		s.know(b)
		s.members[s.with(b)] = []identity.AccountID{b.id()}
		s.friends[b.id()] = true
		s.up(box)
		id, seq := s.say(b, "may I?")
		c.until("custody among the junk", time.Minute, func() bool { why, _ := s.mail.Custody(b.key.ID(), id, seq); return len(why) == 1 })
		s.down()
		b.up(box)
		c.until("the request", time.Minute, func() bool { return slices.Contains(b.heard(), "may I?") })
	})
}

// A friend's node keeps mail under a grant, and a snapshot lies at the account's mailboxes.
func TestFriendKeepsMail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTown(t, 4)
		a, b, f := c.resident("a", 1), c.resident("b", 2), c.resident("friend", 3)
		befriend(a, b)
		f.up()
		server, err := mailbox.NewServer(mailbox.ServerConfig{DB: f.db, Node: c.w.Node(3), Key: f.key, Grant: f.mail.GrantQuota})
		must(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- server.Run(ctx) }()
		defer func() { cancel(); must(t, <-done) }()
		ref := identity.MailboxRef{Device: nodetest.Key(3).ID(), Addrs: c.w.Addrs(3)}
		grant, err := f.mail.SetGrant(ctx, b.id(), 1<<20)
		must(t, err)
		a.up()
		b.up()
		time.Sleep(time.Second)
		if _, err := b.mail.Add(ctx, ref, nil, SourceContact); !errors.Is(err, mailbox.ErrDenied) {
			t.Errorf("without a grant: %v", err)
		}
		st, err := b.mail.Add(ctx, ref, grant[:], SourceContact)
		must(t, err)
		if st.Source != SourceContact || st.Device != ref.Device {
			t.Errorf("status %+v", st)
		}
		must(t, b.mail.PutSnapshot(ctx, []byte("old")))
		must(t, b.mail.PutSnapshot(ctx, []byte("new")))
		got, err := b.mail.FetchSnapshot(ctx)
		must(t, err)
		if len(got) != 1 || string(got[0]) != "new" {
			t.Errorf("snapshots %q", got)
		}
		meet(c, a, b)
		a.say(b, "by way of a friend")
		c.until("the friend holds it", time.Minute, func() bool { n, items := server.Usage(grant[:]); return items == 2 && n > 0 })
		a.down()
		b.up()
		c.until("the message", time.Minute, func() bool { return slices.Contains(b.heard(), "by way of a friend") })
		list, err := f.mail.Grants()
		must(t, err)
		if len(list) != 1 || list[0].Account != b.id() || list[0].Quota != 1<<20 {
			t.Errorf("grants %+v", list)
		}
		again, err := f.mail.SetGrant(ctx, b.id(), 2<<20)
		must(t, err)
		if again != grant {
			t.Error("another quota made another grant")
		}
		_, err = f.mail.SetGrant(ctx, b.id(), 0)
		must(t, err)
		if _, err := b.mail.Add(ctx, ref, nil, SourceContact); !errors.Is(err, mailbox.ErrDenied) {
			t.Errorf("after it was taken back: %v", err)
		}
	})
}
