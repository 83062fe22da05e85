package messenger

import (
	"context"
	"fmt"
	gosync "sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/groups"
	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/text"
	"hima/node"
	"hima/node/nodetest"
	"hima/storage"
)

// book is a directory in memory that all sides of a test share.
type book struct {
	mu      gosync.Mutex // owns both
	records map[identity.AccountID]identity.AccountRecord
	devices map[identity.AccountID][]identity.DeviceID
}

func (b *book) Record(a identity.AccountID) (identity.AccountRecord, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r, ok := b.records[a]
	return r, ok
}

func (b *book) Admit(_ context.Context, raw []byte) (identity.AccountRecord, error) {
	r, err := identity.ParseAccountRecord(raw)
	if err != nil {
		return r, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if old, ok := b.records[r.Account]; ok && old.Seq >= r.Seq {
		return old, nil
	}
	b.records[r.Account] = r
	return r, nil
}

// enter lists an account with its one device.
func (b *book) enter(r identity.AccountRecord, device identity.DeviceID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.records[r.Account], b.devices[r.Account] = r, []identity.DeviceID{device}
}

func (b *book) Devices(a identity.AccountID) []identity.DeviceID {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.devices[a]
}

func (b *book) Seen(identity.Certificate, string, time.Time)         {}
func (b *book) LastSeen(identity.DeviceID) time.Time                 { return time.Time{} }
func (b *book) Nearby() ([]Person, bool)                             { return nil, true }
func (b *book) Hint(identity.AccountID, identity.DeviceID, []string) {}

// side is one real profile: node on loopback, replica, messenger.
type side struct {
	t    testing.TB
	p    *person // keys
	node *node.Node
	book *book
	dir  string
	db   *storage.DB
	rep  *replica.Replica
	m    *Messenger
	g    *groups.Groups
	stop func()
}

// groupFeeds is the replica as package groups has it: own acts stand in the messenger's history.
type groupFeeds struct {
	*replica.Replica
	m *Messenger
}

func (f groupFeeds) Append(tx *storage.Tx, drafts ...replica.Draft) ([]feed.Entry, error) {
	return f.m.AppendGroup(tx, drafts...)
}

func newSide(t testing.TB, name string, b *book, dir string) *side {
	t.Helper()
	s := &side{t: t, book: b, dir: dir, p: newPerson(t, name)}
	s.p.cert = identity.NewCertificate(s.p.acct, s.p.device, time.Now())
	rec, err := identity.NewAccountRecord(s.p.acct, identity.RecordConfig{Now: time.Now(), Devices: []identity.Certificate{s.p.cert}})
	require.NoError(t, err)
	b.enter(rec, s.p.device)
	s.node = nodetest.LoopbackKey(t, s.p.key)
	s.start()
	t.Cleanup(func() { s.halt() })
	return s
}

func (s *side) start() {
	c := storage.Config{Dir: s.dir}
	if s.dir != "" {
		c.Key = make([]byte, 32)
	}
	db, err := storage.Open(c)
	require.NoError(s.t, err)
	m, err := New(Config{DB: db, Account: s.p.account, Device: s.p.device, Username: s.p.name})
	require.NoError(s.t, err)
	g, err := groups.New(groups.Config{
		DB: db, Account: s.p.account, Key: s.p.key, Certificate: s.p.cert, Records: s.book.Record, News: m.GroupNews, Fold: text.FoldName,
	})
	require.NoError(s.t, err)
	rep, err := replica.New(replica.Config{
		DB: db, Node: s.node, Account: s.p.account, Key: s.p.key, Certificate: s.p.cert,
		Records: s.book, Members: m, Gate: m, Hooks: m, Keys: g, OnStored: g.OnStored,
	})
	require.NoError(s.t, err)
	m.Bind(Parts{Feeds: rep, People: s.book, Groups: g})
	g.Bind(groups.Parts{Feeds: groupFeeds{rep, m}, Say: m.Say, Note: m.NoteLink, Devices: s.book.Devices})
	s.db, s.rep, s.m, s.g = db, rep, m, g
	ctx, cancel := context.WithCancel(context.Background())
	var wg gosync.WaitGroup
	for _, run := range []func(context.Context) error{rep.Run, m.Run, g.Run} {
		wg.Go(func() {
			if err := run(ctx); err != nil && ctx.Err() == nil {
				s.t.Error(err)
			}
		})
	}
	s.stop = func() {
		cancel()
		wg.Wait()
		require.NoError(s.t, db.Close())
	}
}

func (s *side) halt() {
	if s.stop != nil {
		s.stop()
		s.stop = nil
	}
}

func (s *side) open(o *side) {
	s.t.Helper()
	nodetest.Connect(s.t, s.node, o.node)
	require.Eventually(s.t, func() bool { return s.rep.Open(context.Background(), o.p.device) == nil }, time.Minute, 20*time.Millisecond)
}

func (s *side) send(o *side, text string) Message {
	s.t.Helper()
	msg, err := s.m.Send(context.Background(), SendInput{Who: o.p.id(), Text: text})
	require.NoError(s.t, err)
	return msg
}

func (s *side) texts(o *side) (out []string) {
	for _, msg := range s.lines(o) {
		if msg.Kind == MessageText {
			out = append(out, msg.Text)
		}
	}
	return out
}

func (s *side) lines(o *side) []Message {
	h, err := s.m.History(context.Background(), HistoryQuery{Who: o.p.id(), Limit: maxPage})
	if err != nil {
		return nil
	}
	return h.Messages
}

func (s *side) states(o *side) (out []State) {
	for _, msg := range s.lines(o) {
		if msg.Own && msg.Kind == MessageText {
			out = append(out, msg.State)
		}
	}
	return out
}

func (s *side) relation(o *side) Relation {
	c, err := s.m.contact(o.p.account)
	require.NoError(s.t, err)
	return c.Relation
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	require.Eventually(t, f, time.Minute, 5*time.Millisecond, what)
}

func realFriends(t testing.TB, dirA, dirB string) (a, b *side) {
	t.Helper()
	bk := &book{records: make(map[identity.AccountID]identity.AccountRecord), devices: make(map[identity.AccountID][]identity.DeviceID)}
	a, b = newSide(t, "alice", bk, dirA), newSide(t, "bob", bk, dirB)
	ctx := context.Background()
	_, _, err := a.m.AddContact(ctx, AddContact{Who: b.p.id(), Message: "hi"})
	require.NoError(t, err)
	a.open(b)
	eventually(t, "the request arrives", func() bool { return b.relation(a) == RelationRequest })
	_, err = b.m.Accept(ctx, a.p.id())
	require.NoError(t, err)
	eventually(t, "the acceptance arrives", func() bool { return a.relation(b) == RelationContact })
	return a, b
}

// The whole road with real replicas: ask, accept, chat, read, block, unblock, restart.
func TestTwoPeopleOverReplicas(t *testing.T) {
	ctx := context.Background()
	a, b := realFriends(t, t.TempDir(), t.TempDir())
	eventually(t, "b is seen online", func() bool { return a.m.presence.online(b.p.account) })
	a.send(b, "one")
	eventually(t, "one arrives", func() bool { return len(b.texts(a)) == 1 })
	eventually(t, "one is delivered", func() bool { return a.states(b)[0] == StateDelivered })
	_, err := b.m.MarkRead(ctx, a.p.id(), "")
	require.NoError(t, err)
	eventually(t, "one is read", func() bool { return a.states(b)[0] == StateRead })
	b.send(a, "two")
	eventually(t, "two arrives", func() bool { return len(a.texts(b)) == 2 })

	_, err = b.m.Block(ctx, a.p.id())
	require.NoError(t, err)
	lost := a.send(b, "three")
	eventually(t, "three is refused", func() bool {
		w, err := a.m.Why(ctx, lost.ID.String())
		return err == nil && w.Summary == WhyDenied
	})
	require.False(t, a.rep.Diverged())
	_, err = b.m.Unblock(ctx, a.p.id())
	require.NoError(t, err)
	eventually(t, "three is not taken", func() bool { return a.states(b)[1] == StateNotTaken })
	a.send(b, "four")
	eventually(t, "four arrives", func() bool { return fmt.Sprint(b.texts(a)) == "[one two four]" })
	eventually(t, "four is delivered", func() bool { return a.states(b)[2] == StateDelivered })

	// b goes away; what is said meanwhile waits, and may be cancelled as long as nobody was offered it.
	b.halt()
	eventually(t, "b is gone", func() bool { return !a.rep.Connected(b.p.device) })
	five := a.send(b, "five")
	a.send(b, "six")
	require.NoError(t, a.m.Cancel(ctx, five.ID.String()))
	a.halt()
	a.start()
	b.start()
	a.open(b)
	eventually(t, "six arrives", func() bool { return fmt.Sprint(b.texts(a)) == "[one two four six]" })
	eventually(t, "six is delivered", func() bool { return a.states(b)[3] == StateDelivered })
	counts, err := a.m.Counts(ctx)
	require.NoError(t, err)
	require.Zero(t, counts.Pending)
	require.Equal(t, []feed.EntryID{lost.ID}, idsIn(a.lines(b), StateNotTaken))
}

func idsIn(msgs []Message, s State) (out []feed.EntryID) {
	for _, m := range msgs {
		if m.Own && m.State == s {
			out = append(out, m.ID)
		}
	}
	return out
}

func TestOneWayOverReplicas(t *testing.T) {
	ctx := context.Background()
	bk := &book{records: make(map[identity.AccountID]identity.AccountRecord), devices: make(map[identity.AccountID][]identity.DeviceID)}
	a, b := newSide(t, "alice", bk, ""), newSide(t, "bob", bk, "")
	_, err := b.m.SetSetting(ctx, settingStrangers, strangersDeny)
	require.NoError(t, err)
	_, _, err = a.m.AddContact(ctx, AddContact{Who: b.p.id(), OneWay: true, Message: "refused"})
	require.NoError(t, err)
	a.open(b)
	eventually(t, "it is refused", func() bool {
		w, err := a.m.Why(ctx, a.lines(b)[0].ID.String())
		return err == nil && w.Summary == WhyDenied
	})
	require.Equal(t, RelationNone, b.relation(a))
	inv, err := b.m.CreateInvite(ctx)
	require.NoError(t, err)
	_, _, err = a.m.AddContact(ctx, AddContact{Who: inv.Link, Message: "please"})
	require.NoError(t, err)
	eventually(t, "the request passes by its token", func() bool { return b.relation(a) == RelationRequest })
	_, err = b.m.Accept(ctx, a.p.id())
	require.NoError(t, err)
	eventually(t, "both are contacts", func() bool { return a.relation(b) == RelationContact })
	a.send(b, "taken")
	// The refused text may have been on its way again while b accepted. Whatever became of it, both sides know it.
	eventually(t, "both agree", func() bool {
		texts, states := fmt.Sprint(b.texts(a)), fmt.Sprint(a.states(b))
		return texts == "[taken]" && states == "[not_taken delivered]" ||
			texts == "[refused taken]" && states == "[delivered delivered]"
	})
}
