package delivery

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// busyFeeds is a replica that cannot take mail because it replaces what a former key wrote.
type busyFeeds struct {
	MailFeeds

	mu    sync.Mutex
	busy  bool
	tries int // to take a mail meanwhile
}

func (f *busyFeeds) Import(ctx context.Context, in replica.Mailed, also func(*storage.Tx) error) (replica.Imported, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.busy {
		f.tries++
		return replica.Imported{Later: true, Refused: pb.Code_CODE_FULL}, nil
	}
	return f.MailFeeds.Import(ctx, in, also)
}

func (f *busyFeeds) Replacing() (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.busy, nil
}

func (f *busyFeeds) set(busy bool) (tries int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.busy = busy
	return f.tries
}

// Mail that cannot be taken yet stays where it lies, over a restart too, is not asked for all the time, and is taken when it can be.
func TestMailThatIsToBeTakenLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTown(t, 4)
		offices := []*postOffice{c.office(0, nil), c.office(3, nil)}
		a, b := c.resident("a", 1), c.resident("b", 2)
		befriend(a, b)
		a.up(offices...)
		b.up(offices...)
		meet(c, a, b)
		for _, text := range []string{"one", "two"} {
			a.say(b, text)
			time.Sleep(10 * time.Second)
		}
		a.down()
		feeds := &busyFeeds{}
		b.change = func(m *MailConfig) { feeds.MailFeeds, m.Feeds = m.Feeds, feeds }
		feeds.set(true)
		b.up(offices...)
		time.Sleep(time.Hour)
		waiting := func() (n uint64) {
			for _, o := range offices {
				n += uint64(o.server.Stats().Items)
			}
			return n
		}
		if waiting() < 4 {
			t.Fatalf("%d items are left at the mailboxes", waiting())
		}
		if tries := feeds.set(true); tries == 0 || tries > 8 {
			t.Errorf("tried %d times in an hour", tries)
		}
		if got := b.told(); slices.Contains(got, "lost") {
			t.Errorf("events: %v", got)
		}
		b.down()
		b.up(offices...)
		time.Sleep(time.Minute)
		feeds.set(false)
		took := c.until("the mail", 15*time.Second, func() bool { return slices.Contains(b.heard(), "two") })
		t.Logf("taken %v after it could be", took)
		if got := b.heard()[1:]; !slices.Equal(got, []string{"one", "two"}) {
			t.Errorf("heard %v", got)
		}
		c.until("that the mailboxes are emptied", 20*time.Second, func() bool { return waiting() <= 2 }) // but for receipts
	})
}
