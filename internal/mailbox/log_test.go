package mailbox

import (
	"bytes"
	"context"
	"testing"
	"time"

	"hima/identity"
	"hima/storage"
)

// A log is read by many, each with a cursor of its own: nothing that one of them says takes anything from the others.
func TestLogIsReadByMany(t *testing.T) {
	b := newBox(t, nil)
	alice, bob, carol := b.client(1), b.client(2), b.client(3)
	secret := open(t, alice, b.ref(), Log)
	var items [][]byte
	for i := range 5 {
		items = append(items, randomItem(100+i))
		must(alice.Deposit(bg(t), b.ref(), Deposit{Inbox: secret.ID(), Item: items[i]}))(t)
	}
	again := must(bob.Deposit(bg(t), b.ref(), Deposit{Inbox: secret.ID(), Item: items[0]}))(t)
	if again.Item != identity.ItemHash(items[0]) {
		t.Error("a receipt for something else")
	}
	for _, c := range []*Client{bob, carol} {
		got := all(t, c, b.ref(), secret)
		if len(got) != len(items) || !bytes.Equal(bytes.Join(got, nil), bytes.Join(items, nil)) {
			t.Fatalf("read %d items", len(got))
		}
		if err := c.Done(bg(t), b.ref(), secret, [][32]byte{identity.ItemHash(items[0])}); err != nil {
			t.Fatal(err)
		}
		want(t, c.CloseInbox(bg(t), b.ref(), secret), ErrDenied)
	}
	_, _, err := carol.Fetch(bg(t), b.ref(), identity.NewInboxSecret(), 0, 0)
	want(t, err, ErrNoInbox)
	b.clock.add(b.server.cfg.Limits.Expiry + time.Second)
	if got := all(t, bob, b.ref(), secret); len(got) != 0 {
		t.Errorf("%d items are still there after their time", len(got))
	}
}

// Who watches a log that nobody opened yet hears of the first envelope in it.
func TestLogIsWatchedBeforeItIs(t *testing.T) {
	b := newBox(t, nil)
	alice, bob := b.client(1), b.client(2)
	secret := identity.NewInboxSecret()
	told, first := make(chan identity.InboxID, 4), make(chan struct{})
	ctx, stop := context.WithCancel(bg(t))
	ended := make(chan error, 1)
	go func() {
		ended <- bob.Watch(ctx, b.ref(), []identity.InboxSecret{secret}, func(waiting, missing []identity.InboxID) {
			if len(missing) > 0 {
				close(first)
			}
			for _, id := range waiting {
				told <- id
			}
		})
	}()
	<-first
	_, err := alice.Deposit(bg(t), b.ref(), Deposit{Inbox: secret.ID(), Item: randomItem(9)})
	want(t, err, ErrNoInbox)
	must(alice.OpenInbox(bg(t), b.ref(), InboxConfig{Secret: secret, Kind: Log}))(t)
	must(alice.Deposit(bg(t), b.ref(), Deposit{Inbox: secret.ID(), Item: randomItem(9)}))(t)
	if id := <-told; id != secret.ID() {
		t.Errorf("told of %v", id)
	}
	stop()
	want(t, <-ended, context.Canceled)
}

// One member cannot fill the log for the others, all together can; what is there already is no new item.
func TestLogSharesAndTotal(t *testing.T) {
	b := newBox(t, func(c *ServerConfig) {
		c.Limits.LogBytes, c.Limits.LogItems, c.Limits.LogDeviceBytes, c.Limits.LogDeviceItems = 5000, 100, 2000, 100
	})
	secret := open(t, b.client(1), b.ref(), Log)
	leave := func(c *Client, item []byte) error {
		_, err := c.Deposit(bg(t), b.ref(), Deposit{Inbox: secret.ID(), Item: item})
		return err
	}
	flood, other, third := b.client(2), b.client(3), b.client(4)
	kept := randomItem(1000)
	want(t, leave(flood, kept), nil)
	want(t, leave(flood, kept), nil) // the same again costs nothing
	want(t, leave(flood, randomItem(1000)), nil)
	want(t, leave(flood, randomItem(1000)), ErrFull)
	want(t, leave(flood, kept), nil)
	want(t, leave(other, randomItem(1000)), nil)
	want(t, leave(other, randomItem(1000)), nil)
	want(t, leave(third, randomItem(1000)), nil)
	want(t, leave(third, randomItem(1)), ErrFull) // of the log
	// What was refused took nothing of a share: half the time later half a share is back, and the log is empty after all.
	b.clock.add(b.server.cfg.Limits.Expiry / 2)
	must(other.OpenInbox(bg(t), b.ref(), InboxConfig{Secret: secret, Kind: Log}))(t)
	b.clock.add(b.server.cfg.Limits.Expiry/2 + time.Second)
	if err := b.server.sweep(bg(t), false); err != nil {
		t.Fatal(err)
	}
	want(t, leave(flood, randomItem(1900)), nil)
}

// The number of items is bounded for each device too.
func TestLogShareOfItems(t *testing.T) {
	b := newBox(t, func(c *ServerConfig) { c.Limits.LogDeviceItems, c.Limits.LogItems = 3, 5 })
	c := b.client(1)
	secret := open(t, c, b.ref(), Log)
	for i := range 4 {
		_, err := c.Deposit(bg(t), b.ref(), Deposit{Inbox: secret.ID(), Item: randomItem(20)})
		if i < 3 {
			want(t, err, nil)
		} else {
			want(t, err, ErrFull)
		}
	}
}

// Whoever opens a log later changes nothing of it, a log never becomes an inbox, and one for chosen people is opened by one
// of them for all.
func TestLogOpenedTwice(t *testing.T) {
	grant := bytes.Repeat([]byte{9}, 16)
	quota := uint64(3000)
	b := newBox(t, func(c *ServerConfig) {
		c.Open = false
		c.Grant = func(_ *storage.Tx, g []byte) (uint64, bool, error) {
			return quota, bytes.Equal(g, grant) && quota > 0, nil
		}
	})
	owner, member := b.client(1), b.client(2)
	secret := identity.NewInboxSecret()
	_, err := member.OpenInbox(bg(t), b.ref(), InboxConfig{Secret: secret, Kind: Log})
	want(t, err, ErrDenied)
	st := must(owner.OpenInbox(bg(t), b.ref(), InboxConfig{Secret: secret, Kind: Log, Grant: grant, Quota: 1}))(t)
	if st.Quota != quota {
		t.Errorf("quota %d", st.Quota)
	}
	must(member.Deposit(bg(t), b.ref(), Deposit{Inbox: secret.ID(), Item: randomItem(1000)}))(t)
	st = must(member.OpenInbox(bg(t), b.ref(), InboxConfig{Secret: secret, Kind: Log}))(t)
	if st.Quota != quota || st.Items != 1 {
		t.Errorf("opened again: %+v", st)
	}
	_, err = member.OpenInbox(bg(t), b.ref(), InboxConfig{Secret: secret, Kind: Contact, Grant: grant})
	want(t, err, ErrBadRequest)
	quota = 0 // taken back
	_, err = member.Deposit(bg(t), b.ref(), Deposit{Inbox: secret.ID(), Item: randomItem(10)})
	want(t, err, ErrNoInbox)
	if got := all(t, member, b.ref(), secret); len(got) != 1 {
		t.Errorf("what is there is not handed out: %d items", len(got))
	}
}

// A log that a mailbox lost and has again has cursors above those of before, or its readers would miss what is in it.
func TestLogCursorsAfterLoss(t *testing.T) {
	b := newBox(t, nil)
	c := b.client(1)
	secret := open(t, c, b.ref(), Log)
	must(c.Deposit(bg(t), b.ref(), Deposit{Inbox: secret.ID(), Item: randomItem(10)}))(t)
	items, _, err := c.Fetch(bg(t), b.ref(), secret, 0, 0)
	if err != nil || len(items) != 1 {
		t.Fatal(len(items), err)
	}
	b.halt() // its database was in memory
	b.clock.add(time.Minute)
	b.start(nil)
	d := b.client(2)
	must(d.OpenInbox(bg(t), b.ref(), InboxConfig{Secret: secret, Kind: Log}))(t)
	must(d.Deposit(bg(t), b.ref(), Deposit{Inbox: secret.ID(), Item: randomItem(11)}))(t)
	items, _, err = d.Fetch(bg(t), b.ref(), secret, items[0].Cursor, 0)
	if err != nil || len(items) != 1 {
		t.Errorf("after the loss %d items are read, %v", len(items), err)
	}
}

// A log that nobody renewed goes when what was in it ended; what is renewed stays.
func TestLogGoesWhenIdle(t *testing.T) {
	b := newBox(t, nil)
	c := b.client(1)
	old, used := open(t, c, b.ref(), Log), open(t, c, b.ref(), Log)
	must(c.Deposit(bg(t), b.ref(), Deposit{Inbox: old.ID(), Item: randomItem(10)}))(t)
	for range 2 {
		b.clock.add(b.server.cfg.Limits.Expiry/2 + time.Hour)
		if missing := must(c.Renew(bg(t), b.ref(), []identity.InboxSecret{used}))(t); len(missing) > 0 {
			t.Fatal("a log that is renewed is missing")
		}
	}
	_, err := c.Deposit(bg(t), b.ref(), Deposit{Inbox: old.ID(), Item: randomItem(10)})
	want(t, err, ErrNoInbox)
	if err := b.server.sweep(bg(t), true); err != nil {
		t.Fatal(err)
	}
	if st := b.server.Stats(); st.Inboxes != 1 || st.Items != 0 {
		t.Errorf("%+v", st)
	}
}
