package delivery

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"hima/internal/replica"
	"hima/storage"
)

// narrowFeeds is a replica for which the first mail that it meets is too much for a transaction.
type narrowFeeds struct {
	MailFeeds

	mu     sync.Mutex
	wide   bool // nothing is too much any more
	first  string
	tries  int // to take that mail
	passed int // mails that were taken meanwhile
}

func (f *narrowFeeds) Import(ctx context.Context, in replica.Mailed, also func(*storage.Tx) error) (replica.Imported, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	what := fmt.Sprint(in.Runs, in.Receipts)
	if f.first == "" {
		f.first = what
	}
	if f.first == what && !f.wide {
		f.tries++
		return replica.Imported{}, fmt.Errorf("importing: %w", storage.ErrTooLarge)
	}
	f.passed++
	return f.MailFeeds.Import(ctx, in, also)
}

// What is too much for a transaction keeps nothing from being taken that lies behind it, and is tried again now and then.
func TestMailThatIsTooMuch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTown(t, 4)
		office := c.office(0, nil)
		a, b := c.resident("a", 1), c.resident("b", 2)
		befriend(a, b)
		a.up(office)
		b.up(office)
		meet(c, a, b)
		for _, text := range []string{"one", "two", "three"} {
			a.say(b, text)
			time.Sleep(10 * time.Second)
		}
		a.down()
		feeds := &narrowFeeds{}
		b.change = func(m *MailConfig) { feeds.MailFeeds, m.Feeds = m.Feeds, feeds }
		b.up(office)
		time.Sleep(3*tooLargePause + time.Minute)
		feeds.mu.Lock()
		if feeds.tries != 4 || feeds.passed == 0 {
			t.Errorf("tried %d times in three pauses, took %d others", feeds.tries, feeds.passed)
		}
		feeds.wide = true
		feeds.mu.Unlock()
		if got := b.told(); slices.Contains(got, "lost") {
			t.Errorf("events: %v", got)
		}
		c.until("the rest", tooLargePause, func() bool { return slices.Contains(b.heard(), "one") })
		if got := b.heard()[1:]; !slices.Equal(got, []string{"two", "three", "one"}) {
			t.Errorf("heard %v", got)
		}
	})
}
