package mailbox

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"hima/identity"
	"hima/storage"
)

func open(t testing.TB, c *Client, ref Ref, kind Kind) identity.InboxSecret {
	t.Helper()
	s := identity.NewInboxSecret()
	if _, err := c.OpenInbox(bg(t), ref, InboxConfig{Secret: s, Kind: kind}); err != nil {
		t.Fatal(err)
	}
	return s
}

// An item goes in, is told of, is fetched as often as asked for, and goes when its reader says so.
func TestDepositFetchDone(t *testing.T) {
	b := newBox(t, nil)
	alice, bob := b.client(1), b.client(2)
	secret := open(t, bob, b.ref(), Contact)

	told := make(chan identity.InboxID, 16)
	watch, stop := context.WithCancel(bg(t))
	ended := make(chan error, 1)
	first := make(chan struct{})
	var once sync.Once
	go func() {
		ended <- bob.Watch(watch, b.ref(), []identity.InboxSecret{secret}, func(waiting, missing []identity.InboxID) {
			if len(missing) > 0 {
				t.Error("an inbox that is there is missing")
			}
			once.Do(func() { close(first) })
			for _, id := range waiting {
				told <- id
			}
		})
	}()
	<-first
	item := randomItem(3000)
	receipt := must(alice.Deposit(bg(t), b.ref(), Deposit{Inbox: secret.ID(), Item: item}))(t)
	if got := receipt.Until.Sub(b.clock.Now()); got != b.server.cfg.Limits.Expiry {
		t.Errorf("kept for %v", got)
	}
	if id := <-told; id != secret.ID() {
		t.Errorf("told of %v", id)
	}
	again := must(alice.Deposit(bg(t), b.ref(), Deposit{Inbox: secret.ID(), Item: item}))(t)
	if again.Until != receipt.Until {
		t.Error("a second deposit of one item changed how long it is kept")
	}
	for range 2 {
		if got := all(t, bob, b.ref(), secret); len(got) != 1 || !bytes.Equal(got[0], item) {
			t.Fatalf("fetched %d items", len(got))
		}
	}
	if err := bob.Done(bg(t), b.ref(), secret, [][32]byte{identity.ItemHash(item)}); err != nil {
		t.Fatal(err)
	}
	if got := all(t, bob, b.ref(), secret); len(got) != 0 {
		t.Fatalf("fetched %d items after they were removed", len(got))
	}
	if st := b.server.Stats(); st.Items != 0 || st.Bytes != 0 || st.Inboxes != 1 || st.Deposits != 1 {
		t.Errorf("stats: %+v", st)
	}
	stop()
	want(t, <-ended, context.Canceled)
}

// Pages hold at most 64 KiB, come in order and lose nothing.
func TestPages(t *testing.T) {
	b := newBox(t, nil)
	c := b.client(1)
	secret := open(t, c, b.ref(), Contact)
	var items [][]byte
	for i := range 40 {
		items = append(items, randomItem(1+i*1600))
	}
	for _, it := range items {
		must(c.Deposit(bg(t), b.ref(), Deposit{Inbox: secret.ID(), Item: it}))(t)
	}
	if got := all(t, c, b.ref(), secret); !slices.EqualFunc(got, items, bytes.Equal) {
		t.Errorf("fetched %d of %d, or in another order", len(got), len(items))
	}
	page, more, err := c.Fetch(bg(t), b.ref(), secret, 0, 3)
	if err != nil || len(page) != 3 || !more {
		t.Errorf("asked for 3: %d, more %v, %v", len(page), more, err)
	}
}

func TestQuotas(t *testing.T) {
	b := newBox(t, func(c *ServerConfig) {
		c.Limits.InboxBytes, c.Limits.InboxItems = 10_000, 5
		c.Limits.RequestBytes, c.Limits.RequestItems = 5000, 2
		c.Limits.TotalBytes, c.Limits.TotalItems, c.Limits.Inboxes = 25_000, 12, 5
	})
	c := b.client(1)
	put := func(id identity.InboxID, item []byte) error {
		_, err := c.Deposit(bg(t), b.ref(), Deposit{Inbox: id, Item: item, Work: identity.ItemWork(bg(t), id, item, 8)})
		return err
	}
	want(t, put(identity.NewInboxSecret().ID(), randomItem(10)), ErrNoInbox)
	_, err := c.Deposit(bg(t), b.ref(), Deposit{Inbox: identity.InboxID{1}, Item: randomItem(maxItem + 1)})
	want(t, err, ErrTooLarge)

	one := open(t, c, b.ref(), Contact)
	for range 5 {
		want(t, put(one.ID(), randomItem(100)), nil)
	}
	want(t, put(one.ID(), randomItem(100)), ErrFull)
	two := open(t, c, b.ref(), Contact)
	want(t, put(two.ID(), randomItem(9000)), nil)
	want(t, put(two.ID(), randomItem(1001)), ErrFull)
	want(t, put(two.ID(), randomItem(1000)), nil)

	small := identity.NewInboxSecret()
	st := must(c.OpenInbox(bg(t), b.ref(), InboxConfig{Secret: small, Kind: Contact, Quota: 300}))(t)
	if st.Quota != 300 {
		t.Errorf("asked for less and got %d", st.Quota)
	}
	want(t, put(small.ID(), randomItem(301)), ErrFull)
	st = must(c.OpenInbox(bg(t), b.ref(), InboxConfig{Secret: small, Kind: Contact, Quota: 1 << 40}))(t)
	if st.Quota != 10_000 {
		t.Errorf("asked for more than there is and got %d", st.Quota)
	}
	want(t, put(small.ID(), randomItem(301)), nil)

	request := open(t, c, b.ref(), Request)
	_, err = c.Deposit(bg(t), b.ref(), Deposit{Inbox: request.ID(), Item: randomItem(10)})
	want(t, err, ErrWork)
	want(t, put(request.ID(), randomItem(100)), nil)
	want(t, put(request.ID(), randomItem(100)), nil)
	want(t, put(request.ID(), randomItem(100)), ErrFull)
	_, err = c.OpenInbox(bg(t), b.ref(), InboxConfig{Secret: request, Kind: Contact})
	want(t, err, ErrBadRequest)

	slot := open(t, c, b.ref(), Slot)
	_, err = c.Deposit(bg(t), b.ref(), Deposit{Inbox: slot.ID(), Item: randomItem(10)})
	want(t, err, ErrDenied)
	for i := range 3 {
		must(c.Deposit(bg(t), b.ref(), Deposit{Inbox: slot.ID(), Item: []byte{byte(i)}, Secret: slot}))(t)
	}
	if got := all(t, c, b.ref(), slot); len(got) != 1 || got[0][0] != 2 {
		t.Errorf("the slot holds %v", got)
	}
	_, err = c.OpenInbox(bg(t), b.ref(), InboxConfig{Secret: identity.NewInboxSecret(), Kind: Contact})
	want(t, err, ErrNoRoom)

	// 12 items: 5 + 2 + 1 + 2 + 1 so far.
	want(t, put(small.ID(), randomItem(10)), nil)
	want(t, put(small.ID(), randomItem(10)), ErrNoRoom)
	if err := c.CloseInbox(bg(t), b.ref(), one); err != nil {
		t.Fatal(err)
	}
	want(t, put(one.ID(), randomItem(10)), ErrNoInbox)
	if err := b.server.sweep(bg(t), false); err != nil {
		t.Fatal(err)
	}
	want(t, put(small.ID(), randomItem(10)), nil)
	if st := b.server.Stats(); st.Items != 8 || st.Inboxes != 4 {
		t.Errorf("stats: %+v", st)
	}
}

// What ended is not handed out, makes room, and a restart does not change what is counted.
func TestExpiry(t *testing.T) {
	b := newBox(t, func(c *ServerConfig) { c.Limits.Expiry, c.Limits.InboxIdle = time.Hour, 3*time.Hour })
	b.onDisk()
	c := b.client(1)
	secret, slot := open(t, c, b.ref(), Contact), open(t, c, b.ref(), Slot)
	early, late := randomItem(100), randomItem(200)
	receipt := must(c.Deposit(bg(t), b.ref(), Deposit{Inbox: secret.ID(), Item: early}))(t)
	must(c.Deposit(bg(t), b.ref(), Deposit{Inbox: slot.ID(), Item: randomItem(50), Secret: slot}))(t)
	b.clock.add(30 * time.Minute)
	must(c.Deposit(bg(t), b.ref(), Deposit{Inbox: secret.ID(), Item: late}))(t)
	b.clock.add(30*time.Minute - time.Millisecond)
	if err := b.server.sweep(bg(t), true); err != nil {
		t.Fatal(err)
	}
	if got := all(t, c, b.ref(), secret); len(got) != 2 {
		t.Fatalf("%d items a moment before %v", len(got), receipt.Until)
	}
	b.clock.add(time.Millisecond)
	if got := all(t, c, b.ref(), secret); len(got) != 1 || !bytes.Equal(got[0], late) {
		t.Fatal("what ended is handed out, or what did not is not")
	}
	again := must(c.Deposit(bg(t), b.ref(), Deposit{Inbox: secret.ID(), Item: early}))(t)
	if !again.Until.After(receipt.Until) {
		t.Error("an item that ended and came again has the old receipt")
	}
	b.clock.add(2 * time.Hour)
	b.halt()
	b.start(nil)
	waitFor(t, func() bool { return b.server.Stats().Items == 1 }) // swept at the start, the slot stays
	if st := b.server.Stats(); st.Bytes != 50 || st.Inboxes != 2 {
		t.Errorf("stats: %+v", st)
	}
	if missing := must(c.Renew(bg(t), b.ref(), []identity.InboxSecret{secret, identity.NewInboxSecret()}))(t); len(missing) != 1 {
		t.Errorf("%d inboxes missing, want the one that never was", len(missing))
	}
	b.clock.add(time.Hour)
	if err := b.server.sweep(bg(t), true); err != nil {
		t.Fatal(err)
	}
	if st := b.server.Stats(); st.Inboxes != 1 || st.Items != 0 {
		t.Errorf("after an idle inbox went: %+v", st)
	}
	n := 0
	err := b.db.View(func(tx *storage.Tx) error {
		return tx.Scan(storage.ScanOptions{Prefix: []byte("b/")}, func(k, _ []byte) (bool, error) { n++; return true, nil })
	})
	if err != nil || n != 3 { // the next number, one inbox and its number
		t.Errorf("%d keys are left, %v", n, err)
	}
}

// An inbox in which a receipt still counts is not forgotten, however idle, but takes nothing more.
func TestIdleInboxKeepsItsPromise(t *testing.T) {
	b := newBox(t, func(c *ServerConfig) { c.Limits.Expiry, c.Limits.InboxIdle = 2*time.Hour, 3*time.Hour })
	c := b.client(1)
	secret := open(t, c, b.ref(), Contact)
	b.clock.add(150 * time.Minute)
	must(c.Deposit(bg(t), b.ref(), Deposit{Inbox: secret.ID(), Item: randomItem(10)}))(t)
	b.clock.add(time.Hour)
	if err := b.server.sweep(bg(t), true); err != nil {
		t.Fatal(err)
	}
	_, err := c.Deposit(bg(t), b.ref(), Deposit{Inbox: secret.ID(), Item: randomItem(10)})
	want(t, err, ErrNoInbox)
	if got := all(t, c, b.ref(), secret); len(got) != 1 {
		t.Errorf("%d items", len(got))
	}
}

func TestGrants(t *testing.T) {
	quota := map[string]uint64{"friend": 1000}
	var mu sync.Mutex
	b := newBox(t, func(c *ServerConfig) {
		c.Open = false
		c.Grant = func(_ *storage.Tx, g []byte) (uint64, bool, error) {
			mu.Lock()
			defer mu.Unlock()
			q, ok := quota[string(g)]
			return q, ok, nil
		}
	})
	c := b.client(1)
	_, err := c.OpenInbox(bg(t), b.ref(), InboxConfig{Secret: identity.NewInboxSecret(), Kind: Contact})
	want(t, err, ErrDenied)
	_, err = c.OpenInbox(bg(t), b.ref(), InboxConfig{Secret: identity.NewInboxSecret(), Kind: Contact, Grant: []byte("nobody")})
	want(t, err, ErrDenied)
	var secrets []identity.InboxSecret
	for range 2 {
		s := identity.NewInboxSecret()
		secrets = append(secrets, s)
		must(c.OpenInbox(bg(t), b.ref(), InboxConfig{Secret: s, Kind: Contact, Grant: []byte("friend")}))(t)
	}
	put := func(i, n int) error {
		_, err := c.Deposit(bg(t), b.ref(), Deposit{Inbox: secrets[i].ID(), Item: randomItem(n)})
		return err
	}
	want(t, put(0, 600), nil)
	want(t, put(1, 401), ErrFull) // both count under one grant
	want(t, put(1, 400), nil)
	if n, items := b.server.Usage([]byte("friend")); n != 1000 || items != 2 {
		t.Errorf("usage %d in %d", n, items)
	}
	mu.Lock()
	delete(quota, "friend")
	quota["other"] = 5000
	mu.Unlock()
	want(t, put(1, 1), ErrNoInbox)
	if got := all(t, c, b.ref(), secrets[0]); len(got) != 1 {
		t.Error("what was taken is not handed out after the offer was taken back")
	}
	must(c.OpenInbox(bg(t), b.ref(), InboxConfig{Secret: secrets[0], Kind: Contact, Grant: []byte("other")}))(t)
	if n, _ := b.server.Usage([]byte("other")); n != 600 {
		t.Errorf("usage %d after a change of grants", n)
	}
	if n, _ := b.server.Usage([]byte("friend")); n != 400 {
		t.Errorf("usage %d of the old grant", n)
	}
}

// A kill between any two steps loses nothing that a receipt was given for, and what is counted is what is there.
func TestKillLosesNothingReceipted(t *testing.T) {
	for _, point := range []string{"before-commit", "after-commit"} {
		t.Run(point, func(t *testing.T) {
			b := newBox(t, nil)
			b.onDisk()
			c := b.client(1)
			secret := open(t, c, b.ref(), Contact)
			b.halt()
			var mu sync.Mutex
			commits := 0
			b.start(func(p string) error {
				mu.Lock()
				defer mu.Unlock()
				if p != point {
					return nil
				}
				if commits++; commits >= 7 {
					return errors.New("killed")
				}
				return nil
			})
			var receipted [][]byte
			for range 30 {
				item := randomItem(500)
				if _, err := c.Deposit(bg(t), b.ref(), Deposit{Inbox: secret.ID(), Item: item}); err != nil {
					want(t, err, ErrFailed)
					break
				}
				receipted = append(receipted, item)
			}
			if len(receipted) == 0 || len(receipted) == 30 {
				t.Fatalf("%d deposits went well", len(receipted))
			}
			b.halt()
			b.start(nil)
			got := all(t, c, b.ref(), secret)
			if len(got) < len(receipted) || !slices.EqualFunc(got[:len(receipted)], receipted, bytes.Equal) {
				t.Fatalf("%d items of %d receipted are there", len(got), len(receipted))
			}
			st := b.server.Stats()
			if st.Items != len(got) || st.Bytes != uint64(500*len(got)) {
				t.Errorf("counted %+v, there are %d", st, len(got))
			}
		})
	}
}

// A stream that dies between the commit and the receipt: the sender comes again and gets one, and nothing is there twice.
func TestLostReceipt(t *testing.T) {
	var mu sync.Mutex
	lose := true
	b := newBox(t, func(c *ServerConfig) {
		c.Fail = func(string) error {
			mu.Lock()
			defer mu.Unlock()
			if lose {
				lose = false
				return errors.New("killed")
			}
			return nil
		}
	})
	c := b.client(1)
	secret := open(t, c, b.ref(), Contact)
	d := Deposit{Inbox: secret.ID(), Item: randomItem(100)}
	if _, err := c.Deposit(bg(t), b.ref(), d); err != nil { // on a stream that was open it is tried again at once
		must(c.Deposit(bg(t), b.ref(), d))(t)
	}
	if got := all(t, c, b.ref(), secret); len(got) != 1 {
		t.Errorf("%d items", len(got))
	}
}

// Many deposits at once share the disk's syncs, come in the order in which they were made, and are all there.
func TestPipelining(t *testing.T) {
	b := newBox(t, func(c *ServerConfig) { c.Limits.ByteBurst = 1 << 30 })
	b.onDisk()
	c := b.client(1)
	secret := open(t, c, b.ref(), Contact)
	before := b.db.Stats().Commits
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			if _, err := c.Deposit(bg(t), b.ref(), Deposit{Inbox: secret.ID(), Item: randomItem(300)}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := all(t, c, b.ref(), secret); len(got) != 200 {
		t.Errorf("%d items", len(got))
	}
	if commits := b.db.Stats().Commits - before; commits > 150 {
		t.Errorf("%d commits for 200 deposits on one stream", commits)
	}
}
