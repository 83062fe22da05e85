package delivery

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// Inboxes for those who share only a group are few, and those with whom none is shared any more make room.
func TestComembersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTown(t, 3)
		box := c.office(0, nil)
		var sharing atomic.Bool // read by the mail that runs
		sharing.Store(true)
		r := c.resident("r", 1)
		friend := accountOf("friend").ID()
		r.friends[friend] = true
		r.change = func(m *MailConfig) {
			m.Comember = func(a identity.AccountID) bool { return sharing.Load() && a != r.id() }
			m.Limits.Comembers = 3
		}
		r.up(box)
		taken := 0
		for i := range 10 {
			a := accountOf(string(rune('a' + i))).ID()
			if r.mail.takesMailOf(a) {
				taken++
				must(t, r.mail.wantInboxes(context.Background(), a))
			}
		}
		if taken != 3 || !r.mail.takesMailOf(friend) {
			t.Fatalf("%d accounts got an inbox for the sake of a group, a friend: %v", taken, r.mail.takesMailOf(friend))
		}
		c.until("they are open", time.Minute, func() bool { return box.server.Stats().Inboxes == 3+1 })
		r.down()
		r.up(box) // what there is counts after a restart too
		if r.mail.takesMailOf(accountOf("somebody").ID()) {
			t.Error("a restart made room")
		}
		sharing.Store(false)
		must(t, r.mail.shed(context.Background()))
		c.until("they are closed", time.Minute, func() bool { return box.server.Stats().Inboxes == 1 })
		sharing.Store(true)
		if !r.mail.takesMailOf(accountOf("somebody").ID()) {
			t.Error("those who went made no room")
		}
	})
}

// Nobody is promised more than there is.
func TestGrantBeyondWhatIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTown(t, 2)
		r := c.resident("r", 1)
		r.change = func(m *MailConfig) { m.Keeps = func() uint64 { return 1 << 30 } }
		r.up()
		a := accountOf("a").ID()
		_, err := r.mail.SetGrant(context.Background(), a, 1<<40)
		tooMuch, ok := errors.AsType[*QuotaError](err)
		if !ok || tooMuch.Most != 1<<30 || tooMuch.Quota != 1<<40 {
			t.Fatalf("a terabyte: %v", err)
		}
		if list, err := r.mail.Grants(); err != nil || len(list) != 0 {
			t.Errorf("noted all the same: %v, %v", list, err)
		}
		if _, err := r.mail.SetGrant(context.Background(), a, 1<<30); err != nil {
			t.Error(err)
		}
	})
}

// The keys in a mail are never so many that it would not fit.
func TestKeysOfAMail(t *testing.T) {
	conv := feed.ConversationID{1}
	keys := func(conv feed.ConversationID, n int) *pb.GroupKeys {
		g := &pb.GroupKeys{Group: conv[:]}
		for range n {
			g.Keys = append(g.Keys, &pb.GroupKey{Epoch: make([]byte, 32), Key: make([]byte, 32)})
		}
		return g
	}
	ex := replica.Export{
		Spans: []replica.Span{{Feed: feed.FeedID{Conversation: conv, Number: feed.Control}, From: 1, Last: 2, Lazy: true}},
		Keys:  []*pb.GroupKeys{keys(conv, 40), keys(conv, 40), keys(conv, 40), keys(conv, 40)},
	}
	got := keysOf(ex)
	if len(got) != 3 {
		t.Fatalf("%d groups", len(got))
	}
	for _, g := range got {
		if len(g.Keys) != identity.MaxGroupKeys || feed.ConversationID(g.Group) != conv {
			t.Errorf("%d keys of %x", len(g.Keys), g.Group[:1])
		}
	}
}

// A key that is owed beside what the group's log holds waits for the direct road, and is not sent again and again.
func TestKeyDebtIsPatient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTown(t, 2)
		r := c.resident("r", 1)
		r.up()
		m, now := r.mail, time.Now()
		id := feed.FeedID{Conversation: feed.ConversationID{1}, Number: feed.Chat, Device: r.key.ID()}
		p := &poster{peer: replica.Peer{Account: accountOf("a").ID(), Device: identity.DeviceID{1}}}
		due := func() time.Duration {
			m.mu.Lock()
			defer m.mu.Unlock()
			at, lazy := m.due(p, now)
			if at.IsZero() {
				return 0
			}
			if !lazy {
				t.Error("it is for the sake of a group")
			}
			return at.Sub(now)
		}
		m.mu.Lock()
		m.ledger.put(holding{feed: id, from: 1, last: 1, until: now.Add(24 * time.Hour)})
		m.mu.Unlock()
		p.debt = []replica.Span{{Feed: id, From: 1, Last: 1, Lazy: true}}
		if d := due(); d != 0 || p.grants() != nil {
			t.Errorf("what lies in the log is due in %v", d)
		}
		p.debt[0].Keyless = true
		if d := due(); d != m.cfg.Limits.GroupKeys || len(p.grants()) != 1 {
			t.Errorf("a key is due in %v", d)
		}
		now = now.Add(time.Minute)
		p.granted(nil, now)
		if d := due(); d != grantPause {
			t.Errorf("after a mail it is due in %v", d)
		}
		p.granting = time.Time{}
		var pauses []time.Duration
		for p.tries = 1; p.tries < 20; p.tries++ {
			p.granted(errors.New("full"), now)
			pauses = append(pauses, max(due(), 0))
		}
		if pauses[0] != 0 || pauses[4] != 0 || pauses[5] != grantPause || pauses[6] != 2*grantPause || pauses[18] != 32*grantPause {
			t.Errorf("pauses while it fails: %v", pauses)
		}
		m.mu.Lock()
		m.leaving = true
		m.mu.Unlock()
		if d := due(); d != 32*grantPause {
			t.Errorf("at the end what failed is due in %v", d)
		}
		p.granting = time.Time{}
		if d := due(); d > 0 {
			t.Errorf("at the end it is due in %v", d)
		}
	})
}

// exports hears what is to be left out of an export, and says whom there is a session with.
type exports struct {
	MailFeeds
	skip      func(feed.FeedID, uint64) uint64
	connected func() bool
}

func (e *exports) Export(_ context.Context, _ identity.DeviceID, o replica.ExportOptions) (replica.Export, error) {
	e.skip = o.Skip
	return replica.Export{}, nil
}

func (e *exports) Connected(identity.DeviceID) bool { return e.connected() }

// What begins above what a device holds is on its way; what is below is not.
func TestCarriedInPieces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTown(t, 2)
		r := c.resident("r", 1)
		r.up()
		r.down()
		m, feeds := r.mail, &exports{MailFeeds: r.rep}
		m.cfg.Feeds = feeds
		to := replica.Peer{Account: accountOf("a").ID(), Device: identity.DeviceID{1}}
		id := feed.FeedID{Conversation: feed.ConversationID{1}, Number: feed.Control, Device: identity.DeviceID{2}}
		goes := func(from, last uint64) {
			t.Helper()
			ex := replica.Export{Peer: to, Carried: []replica.Span{{Feed: id, From: from, Last: last}}}
			must(t, m.cfg.DB.Update(t.Context(), func(tx *storage.Tx) error { return m.carry(tx, ex, time.Now().Add(time.Hour)) }))
		}
		skips := func(want ...uint64) {
			t.Helper()
			_, err := m.export(t.Context(), to.Device, replica.ExportOptions{})
			must(t, err)
			if got := []uint64{feeds.skip(id, 1), feeds.skip(id, 3), feeds.skip(id, 7)}; !slices.Equal(got, want) {
				t.Errorf("from 1, 3 and 7 on there went everything up to %d, want %d", got, want)
			}
		}
		skips(0, 2, 6)
		goes(5, 8)
		skips(0, 2, 8)
		goes(1, 3)
		skips(3, 3, 8)
		goes(4, 4)
		skips(8, 8, 8)
		time.Sleep(2 * time.Hour)
		skips(0, 2, 6)
		must(t, m.forgetCarried(t.Context()))
		old := keyOf(keyCarried, to.Device[:], id.Conversation[:], id.Device[:]) // of an earlier build
		must(t, m.cfg.DB.Update(t.Context(), func(tx *storage.Tx) error {
			return tx.Set(old, append(u64(8), millis(time.Now().Add(time.Hour))...))
		}))
		skips(0, 2, 6)
	})
}

// Where a session came up before anything was exported, no key went: the next time it need not wait.
func TestNoPauseAfterKeyThatDidNotGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTown(t, 2)
		r := c.resident("r", 1)
		r.up()
		r.down()
		m := r.mail
		asked := 0
		m.cfg.Feeds = &exports{MailFeeds: r.rep, connected: func() bool { asked++; return asked > 1 }}
		id := feed.FeedID{Conversation: feed.ConversationID{1}, Number: feed.Chat, Device: r.key.ID()}
		p := &poster{
			peer: replica.Peer{Account: accountOf("a").ID(), Device: identity.DeviceID{1}}, since: time.Now().Add(-time.Hour),
			debt: []replica.Span{{Feed: id, From: 1, Last: 1, Lazy: true, Keyless: true}},
		}
		m.posters = map[identity.DeviceID]*poster{p.peer.Device: p}
		m.ledger.put(holding{feed: id, from: 1, last: 1, until: time.Now().Add(24 * time.Hour)})
		var wg sync.WaitGroup
		m.start(t.Context(), &wg, time.Now())
		wg.Wait()
		if asked != 2 || !p.granting.IsZero() {
			t.Errorf("asked %d times, paused for %v", asked, time.Until(p.granting))
		}
	})
}
