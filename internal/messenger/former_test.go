package messenger

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// mortal is the disk of a process that dies every few commits.
type mortal struct {
	t    testing.TB
	dir  string
	left int // commits until it dies; 0: it does not
	died int
	db   *storage.DB
}

var errDied = errors.New("died")

func (d *mortal) open(left int) *storage.DB {
	d.t.Helper()
	if d.db != nil {
		_ = d.db.Close() // that of a dead process says so
	}
	d.left = left
	var err error
	d.db, err = storage.Open(storage.Config{Dir: d.dir, Key: make([]byte, 32), Fail: func(point string) error {
		if at := [2]string{"before-commit", "after-commit"}[d.died%2]; point != at || d.left == 0 {
			return nil
		}
		if d.left--; d.left == 0 {
			d.died++
			return errDied
		}
		return nil
	}})
	require.NoError(d.t, err)
	return d.db
}

// renewed is alice, who wrote texts to bob that nobody has, in a feed that then forked, and goes on under another key.
func renewed(t *testing.T, texts []string) (next, bob *person, disk *mortal) {
	t.Helper()
	old, bob := newPerson(t, "alice"), newPerson(t, "bob")
	disk = &mortal{t: t, dir: t.TempDir()}
	require.NoError(t, old.db.Close())
	old.open(disk.open(0))
	old.add(bob)
	meet(t, old, bob)
	_, err := bob.m.Accept(t.Context(), old.id())
	require.NoError(t, err)
	meet(t, old, bob)
	conv := feed.DirectConversation(old.account, bob.account)
	for rest := texts; len(rest) > 0; {
		n := min(len(rest), max(1, 128<<10/(2*len(rest[0]))))
		var drafts []replica.Draft
		for i, s := range rest[:n] {
			content, err := textContent(s)
			require.NoError(t, err)
			at := testStart.Add(time.Duration(len(texts)-len(rest)+i) * time.Second)
			drafts = append(drafts, replica.Draft{Conversation: conv, Number: feed.Chat, Kind: feed.KindText, Content: content, Time: at})
		}
		require.NoError(t, old.db.Update(t.Context(), func(tx *storage.Tx) error {
			_, err := old.m.write(tx, drafts...)
			return err
		}))
		rest = rest[n:]
	}
	next = newDevice(t, "alice", "alice under another key")
	require.NoError(t, next.db.Close())
	next.former, next.groups = []identity.DeviceID{old.device}, old.groups
	next.open(disk.db)
	old.db = nil
	t.Cleanup(func() { old.db = next.db }) // which may be closed twice
	return next, bob, disk
}

// spoken are the texts of the feed under the present key, with the times that they were said at first.
func (p *person) spoken(o *person) (texts []string, times []time.Time) {
	p.t.Helper()
	conv := feed.DirectConversation(p.account, o.account)
	require.NoError(p.t, p.db.View(func(tx *storage.Tx) error {
		return p.feeds.Entries(tx, p.feeds.OwnFeed(conv, feed.Chat), 1, 0, func(e feed.Entry) (bool, error) {
			m, err := p.m.renderer(tx, conv)
			if err != nil {
				return false, err
			}
			line, err := m.rendered(&e, &feedRow{id: e.Feed(), account: e.Account}, arrival{})
			texts, times = append(texts, line.Text), append(times, e.Time().UTC())
			return true, err
		})
	}))
	return texts, times
}

func (p *person) forkFormer(o *person) error {
	id := feed.FeedID{Conversation: feed.DirectConversation(p.account, o.account), Number: feed.Chat, Device: p.former[0]}
	return p.db.Update(context.Background(), func(tx *storage.Tx) error {
		return p.m.Forked(tx, replica.Fork{Feed: id, At: 1})
	})
}

// TestThousandsAreSaidAgain: what stands on a branch that is shown to nobody is said again once and in order, however much it is and
// wherever that is interrupted.
func TestThousandsAreSaidAgain(t *testing.T) {
	if testing.Short() {
		t.Skip("thousands take minutes under the race detector, and nothing here runs beside anything else")
	}
	for name, c := range map[string]struct{ n, size, life int }{"short": {10_000, 200, 6}, "long": {100, 16 << 10, 3}} {
		t.Run(name, func(t *testing.T) {
			texts := make([]string, c.n)
			for i := range texts {
				texts[i] = fmt.Sprintf("%05d %s", i, strings.Repeat("x", c.size-6))
			}
			alice, bob, disk := renewed(t, texts)
			require.NoError(t, alice.forkFormer(bob))
			alive := false
			for range 100 {
				alice.open(disk.open(c.life))
				if alive = alice.m.Recover(t.Context()) == nil; alive {
					break
				}
			}
			require.True(t, alive)
			require.Greater(t, disk.died, 2)
			alice.open(disk.open(0))
			require.NoError(t, alice.m.Recover(t.Context()), "once more changes nothing")
			got, times := alice.spoken(bob)
			require.Len(t, got, len(texts))
			for i := range got {
				if got[i] != texts[i] || !times[i].Equal(testStart.Add(time.Duration(i)*time.Second)) {
					t.Fatalf("text %d is %.10q of %v", i, got[i], times[i])
				}
			}
			require.Equal(t, min(len(texts)+2, maxPage), len(alice.history(bob.id())), "each once")
			require.NoError(t, alice.db.View(func(tx *storage.Tx) error {
				n, err := alice.m.formerPending(tx, feed.DirectConversation(alice.account, bob.account))
				require.Zero(t, n)
				return err
			}))
		})
	}
}

// TestForkThatIsShownLater: a fork that a running device hears of is its last transaction's worth at once, the rest in the background.
func TestForkThatIsShownLater(t *testing.T) {
	texts := make([]string, 1000)
	for i := range texts {
		texts[i] = fmt.Sprint("text ", i)
	}
	alice, bob, _ := renewed(t, texts)
	require.NoError(t, alice.forkFormer(bob))
	got, _ := alice.spoken(bob)
	require.Equal(t, texts[:againEntries], got)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- alice.m.Run(ctx) }()
	eventually(t, "the rest is said", func() bool { got, _ := alice.spoken(bob); return len(got) == len(texts) })
	cancel()
	require.NoError(t, <-done)
	got, _ = alice.spoken(bob)
	require.Equal(t, texts, got)
}

// fullDisk fails what is appended, for as long as it is full.
type fullDisk struct {
	Feeds

	mu    sync.Mutex
	full  bool // owned by mu, like tries
	tries int
}

var errFull = errors.New("disk is full")

func (d *fullDisk) Append(tx *storage.Tx, drafts ...replica.Draft) ([]feed.Entry, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tries++; d.full {
		return nil, errFull
	}
	return d.Feeds.Append(tx, drafts...)
}

func (d *fullDisk) set(full bool) (tries int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full, tries, d.tries = full, d.tries, 0
	return tries
}

// TestBranchIsSaidAgainAfterAFailure: what could not be said again is tried again by itself, not before a pause and with no other reason.
func TestBranchIsSaidAgainAfterAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		texts := make([]string, againEntries+2)
		for i := range texts {
			texts[i] = fmt.Sprint("text ", i)
		}
		alice, bob, _ := renewed(t, texts)
		disk := &fullDisk{Feeds: alice.m.env.feeds}
		alice.m.env.feeds = disk
		require.NoError(t, alice.forkFormer(bob)) // says what fits a transaction
		disk.set(true)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- alice.m.Run(ctx) }()
		said := func(want int) {
			t.Helper()
			synctest.Wait()
			got, _ := alice.spoken(bob)
			require.Equal(t, texts[:want], got)
		}
		said(againEntries)
		require.Equal(t, 1, disk.set(true))
		time.Sleep(upkeepRetry + time.Second)
		said(againEntries)
		require.Equal(t, 1, disk.set(false), "it fails again, and is tried again")
		time.Sleep(upkeepRetry - 2*time.Second)
		said(againEntries)
		require.Zero(t, disk.set(false), "not before the pause is over")
		time.Sleep(2 * time.Second)
		said(len(texts))
		cancel()
		require.NoError(t, <-done)
	})
}

// TestCardsSaidAgainArePresent: a card that was replaced under a former key does not come back over the one that was shown since.
func TestCardsSaidAgainArePresent(t *testing.T) {
	alice, bob, _ := renewed(t, []string{"one"})
	nickname := "new"
	_, err := alice.m.SetProfile(t.Context(), ProfileChange{Nickname: &nickname})
	require.NoError(t, err)
	conv := feed.DirectConversation(alice.account, bob.account)
	old := feed.NewAuthor(alice.account, alice.former[0], alice.cert)
	stale := &pb.Card{Nickname: "old"}
	var gone []feed.Entry
	for kind, act := range map[feed.Kind]proto.Message{
		feed.KindCardUpdate: &pb.CardUpdate{Card: stale}, feed.KindAccept: &pb.Accept{Card: stale}, feed.KindRequest: &pb.Request{Message: "hello", Card: stale},
		feed.KindDecline: &pb.Decline{},
	} {
		content, err := proto.Marshal(act)
		require.NoError(t, err)
		e, err := old.NextInGroup(feed.Tip{Account: alice.account, Seq: 1, Hash: feed.EntryID{1}, Clock: 1}, conv, feed.Control, kind, 2, 1, content, feed.Group{})
		require.NoError(t, err)
		gone = append(gone, e)
	}
	require.NoError(t, alice.db.Update(t.Context(), func(tx *storage.Tx) error { return alice.m.sayAgain(tx, gone) }))
	said := map[feed.Kind]string{}
	require.NoError(t, alice.db.View(func(tx *storage.Tx) error {
		return alice.feeds.Entries(tx, alice.feeds.OwnFeed(conv, feed.Control), 1, 0, func(e feed.Entry) (bool, error) {
			content, err := e.Content()
			if err != nil {
				return false, err
			}
			switch e.Kind {
			case feed.KindRequest:
				r := &pb.Request{}
				err = proto.Unmarshal(content, r)
				said[e.Kind] = r.GetMessage() + " " + r.GetCard().GetNickname()
			case feed.KindAccept, feed.KindCardUpdate: // the same bytes
				u := &pb.CardUpdate{}
				err = proto.Unmarshal(content, u)
				said[e.Kind] = u.GetCard().GetNickname()
			default:
				said[e.Kind] = "said"
			}
			return true, err
		})
	}))
	require.Equal(t, map[feed.Kind]string{
		feed.KindRequest: "hello new", feed.KindAccept: "new", feed.KindCardUpdate: "new", feed.KindDecline: "said",
	}, said)
}
