package replica

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/node"
	"hima/storage"
)

// person is an account with one device, made from a number so that runs are alike. Device i has the key of node i of
// package nodetest.
type person struct {
	accountKey identity.AccountKey
	deviceKey  identity.DeviceKey
	cert       identity.Certificate
	record     identity.AccountRecord
}

var begin = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func newPerson(t testing.TB, i int) person {
	t.Helper()
	return newPersonWith(t, i, identity.DeviceKeyFromSeed(sha256.Sum256(fmt.Appendf(nil, "nodetest device %d", i))))
}

func newPersonWith(t testing.TB, i int, device identity.DeviceKey) person {
	t.Helper()
	p := person{
		accountKey: identity.AccountKeyFromSeed(sha256.Sum256(fmt.Appendf(nil, "replica account %d", i))),
		deviceKey:  device,
	}
	p.cert = identity.NewCertificate(p.accountKey, device.ID(), begin)
	var err error
	p.record, err = identity.NewAccountRecord(p.accountKey, identity.RecordConfig{Now: time.Now(), Devices: []identity.Certificate{p.cert}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (p person) account() identity.AccountID { return p.accountKey.ID() }
func (p person) device() identity.DeviceID   { return p.deviceKey.ID() }
func (p person) peer() Peer                  { return Peer{p.account(), p.device()} }

// fakes plays directory and messenger: it remembers what it was told and answers what the test set.
type fakes struct {
	mu       sync.Mutex
	changed  *sync.Cond
	self     identity.AccountID
	records  map[identity.AccountID]identity.AccountRecord
	members  map[feed.ConversationID][]identity.AccountID // readers besides self
	groups   map[feed.ConversationID]bool
	token    []byte
	read     map[feed.FeedID]uint64
	admit    func(tx *storage.Tx, in Incoming) (int, pb.Code) // nil: members are taken, others not
	listen   pb.Code                                          // 0: taken
	applied  []feed.Entry
	batches  []Applied
	acked    []Ack
	refused  []Refusal
	notTaken []NotTaken
	receipts []Receipt
	forks    []Fork
	diverged []feed.FeedID
	typing   []bool
	presence []bool
	up, down int
	calls    int                      // runs the gate was asked about
	shown    []identity.AccountRecord // what Records was asked to admit
}

func newFakes(self person, others ...person) *fakes {
	f := &fakes{
		self:    self.account(),
		records: map[identity.AccountID]identity.AccountRecord{self.account(): self.record},
		members: map[feed.ConversationID][]identity.AccountID{},
		read:    map[feed.FeedID]uint64{},
	}
	f.changed = sync.NewCond(&f.mu)
	for _, o := range others {
		f.befriend(o)
	}
	return f
}

// befriend makes the direct conversation with somebody one that both take part in.
func (f *fakes) befriend(o person) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.records[o.account()] = o.record
	f.members[feed.DirectConversation(f.self, o.account())] = []identity.AccountID{o.account()}
}

func (f *fakes) forget(o person) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.members, feed.DirectConversation(f.self, o.account()))
}

// Records.

func (f *fakes) Record(a identity.AccountID) (identity.AccountRecord, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, ok := f.records[a]
	return r, ok
}

func (f *fakes) Admit(_ context.Context, raw []byte) (identity.AccountRecord, error) {
	rec, err := identity.ParseAccountRecord(raw)
	if err != nil {
		return rec, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.shown = append(f.shown, rec)
	f.changed.Broadcast()
	if identity.Supersedes(f.records[rec.Account], rec) {
		f.records[rec.Account] = rec
	}
	return f.records[rec.Account], nil
}

func (f *fakes) Devices(a identity.AccountID) []identity.DeviceID {
	rec, _ := f.Record(a)
	var out []identity.DeviceID
	for _, c := range rec.Devices {
		out = append(out, c.Device)
	}
	return out
}

func (f *fakes) Seen(identity.Certificate, string, time.Time) {}

// Members.

func (f *fakes) Shared(_ *storage.Tx, a identity.AccountID) ([]feed.ConversationID, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []feed.ConversationID
	for conv, list := range f.members {
		for _, m := range list {
			if m == a || a == f.self {
				out = append(out, conv)
				break
			}
		}
	}
	return out, nil
}

func (f *fakes) Readers(_ *storage.Tx, conv feed.ConversationID) ([]identity.AccountID, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.members[conv], nil
}

func (f *fakes) KnockToken(*storage.Tx, feed.ConversationID) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.token, nil
}

func (f *fakes) Window(*storage.Tx, feed.ConversationID, identity.AccountID) (Window, error) {
	return nil, nil
}

func (f *fakes) Lazy(_ *storage.Tx, conv feed.ConversationID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.groups[conv]
}

// enter makes a conversation a group of these.
func (f *fakes) enter(conv feed.ConversationID, all ...person) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.groups == nil {
		f.groups = map[feed.ConversationID]bool{}
	}
	f.groups[conv] = true
	for _, p := range all {
		f.records[p.account()] = p.record
		if p.account() != f.self {
			f.members[conv] = append(f.members[conv], p.account())
		}
	}
}

func (f *fakes) Read(_ *storage.Tx, id feed.FeedID) (uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.read[id], nil
}

// Gate.

func (f *fakes) Listening(identity.AccountID) pb.Code {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.listen != 0 {
		return f.listen
	}
	return pb.Code_CODE_TAKEN
}

func (f *fakes) Admit2(tx *storage.Tx, in Incoming) (int, pb.Code, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	if f.admit != nil {
		n, code := f.admit(tx, in)
		return n, code, nil
	}
	conv := in.Run.Feed().Conversation
	if in.Knock != nil {
		f.members[conv] = []identity.AccountID{in.Peer.Account}
	}
	if in.Run.Account() == f.self {
		return in.Run.Len(), pb.Code_CODE_TAKEN, nil
	}
	for _, m := range f.members[conv] {
		if m == in.Run.Account() {
			return in.Run.Len(), pb.Code_CODE_TAKEN, nil
		}
	}
	return 0, pb.Code_CODE_NOT_MEMBER, nil
}

func (f *fakes) Excused(*storage.Tx, feed.Entry) (bool, error) { return false, nil }

// gate gives fakes the methods of Gate, whose Admit would clash with that of Records.
type gate struct{ *fakes }

func (g gate) Admit(tx *storage.Tx, in Incoming) (int, pb.Code, error) { return g.fakes.Admit2(tx, in) }

// Hooks. What is told inside a transaction is remembered after its commit.

func (f *fakes) after(tx *storage.Tx, g func()) error {
	tx.OnCommit(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		g()
		f.changed.Broadcast()
	})
	return nil
}

// hooks gives fakes the methods of Hooks.
type hooks struct{ f *fakes }

func (h hooks) Applied(tx *storage.Tx, a Applied) error {
	return h.f.after(tx, func() { h.f.applied = append(h.f.applied, a.Entries...); h.f.batches = append(h.f.batches, a) })
}

func (h hooks) Acked(tx *storage.Tx, a Ack) error {
	return h.f.after(tx, func() { h.f.acked = append(h.f.acked, a) })
}

func (h hooks) Refused(tx *storage.Tx, r Refusal) error {
	return h.f.after(tx, func() { h.f.refused = append(h.f.refused, r) })
}

func (h hooks) NotTaken(tx *storage.Tx, n NotTaken) error {
	return h.f.after(tx, func() { h.f.notTaken = append(h.f.notTaken, n) })
}

func (h hooks) Receipt(tx *storage.Tx, r Receipt) error {
	return h.f.after(tx, func() { h.f.receipts = append(h.f.receipts, r) })
}

func (h hooks) Forked(tx *storage.Tx, k Fork) error {
	return h.f.after(tx, func() { h.f.forks = append(h.f.forks, k) })
}

func (h hooks) note(g func()) {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	g()
	h.f.changed.Broadcast()
}

func (h hooks) OwnFeedDiverged(id feed.FeedID) {
	h.note(func() { h.f.diverged = append(h.f.diverged, id) })
}

func (h hooks) Typing(_ Peer, _ feed.ConversationID, on bool) {
	h.note(func() { h.f.typing = append(h.f.typing, on) })
}

func (h hooks) Presence(_ Peer, on bool) {
	h.note(func() { h.f.presence = append(h.f.presence, on) })
}
func (h hooks) SessionUp(SessionInfo)   { h.note(func() { h.f.up++ }) }
func (h hooks) SessionDown(SessionInfo) { h.note(func() { h.f.down++ }) }

// wait blocks until a condition holds, which is looked at after every hook. Real tests fail after a minute, as the proof of work
// of a knock alone can take ten seconds under the race detector; in a synctest bubble it passes at once when nothing moves any
// more.
func (f *fakes) wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	late := false
	timer := time.AfterFunc(time.Minute, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		late = true
		f.changed.Broadcast()
	})
	defer timer.Stop()
	f.mu.Lock()
	defer f.mu.Unlock()
	for !ok() {
		if late {
			t.Fatalf("waited in vain for %s", what)
		}
		f.changed.Wait()
	}
}

// side is one replica with its fakes.
type side struct {
	*fakes
	person
	t    testing.TB
	db   *storage.DB
	node *node.Node
	rep  *Replica
	stop func() // ends Run
}

// newSide makes a replica on a database in memory. With a node it runs until the test ends or stop is called.
func newSide(t testing.TB, p person, n *node.Node, change func(*Config), others ...person) *side {
	t.Helper()
	db, err := storage.Open(storage.Config{Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return newSideOn(t, p, n, db, newFakes(p, others...), change)
}

func quiet() *slog.Logger {
	var w io.Writer = io.Discard
	if os.Getenv("HIMA_TEST_LOG") != "" {
		w = os.Stderr
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func newSideOn(t testing.TB, p person, n *node.Node, db *storage.DB, f *fakes, change func(*Config)) *side {
	t.Helper()
	s := &side{fakes: f, person: p, t: t, db: db, node: n}
	c := Config{
		DB: db, Node: n, Account: p.account(), Key: p.deviceKey, Certificate: p.cert,
		Records: f, Members: f, Gate: gate{f}, Hooks: hooks{f}, Logger: quiet(),
	}
	if change != nil {
		change(&c)
	}
	var err error
	if s.rep, err = New(c); err != nil {
		t.Fatal(err)
	}
	if n == nil {
		return s
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.rep.Run(ctx); err != nil {
			t.Errorf("running: %v", err)
		}
	}()
	s.stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(s.stop)
	return s
}

// say appends texts to the chat of the direct conversation with somebody and waits until they are durable.
func (s *side) say(to person, texts ...string) []feed.Entry {
	s.t.Helper()
	var drafts []Draft
	for _, text := range texts {
		drafts = append(drafts, Draft{
			Conversation: feed.DirectConversation(s.account(), to.account()), Number: feed.Chat, Kind: feed.KindText, Content: []byte(text),
		})
	}
	return s.append(drafts...)
}

func (s *side) append(drafts ...Draft) (entries []feed.Entry) {
	s.t.Helper()
	err := s.db.Update(context.Background(), func(tx *storage.Tx) (err error) {
		entries, err = s.rep.Append(tx, drafts...)
		return err
	})
	if err != nil {
		s.t.Fatalf("appending: %v", err)
	}
	return entries
}

// open lets s open a session with another side.
func (s *side) open(o *side) {
	s.t.Helper()
	if err := s.tryOpen(o); err != nil {
		s.t.Fatalf("opening a session: %v", err)
	}
}

func (s *side) tryOpen(o *side) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := s.rep.Open(ctx, o.device())
	for range 100 {
		if !errors.Is(err, node.ErrNotSpoken) && !errors.Is(err, ErrClosed) {
			break
		}
		time.Sleep(10 * time.Millisecond) // one of the two does not run yet
		err = s.rep.Open(ctx, o.device())
	}
	return err
}

// texts returns what was applied, in order.
func (f *fakes) texts() []string {
	var out []string
	for _, e := range f.applied {
		c, err := e.Content()
		if err != nil {
			out = append(out, "?")
			continue
		}
		out = append(out, string(c))
	}
	return out
}

// waitTexts waits until so many entries were applied and returns their texts.
func (f *fakes) waitTexts(t testing.TB, n int) []string {
	t.Helper()
	f.wait(t, fmt.Sprintf("%d entries", n), func() bool { return len(f.applied) >= n })
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.texts()
}

// waitAcked waits until a device acknowledged own entries up to a number.
func (f *fakes) waitAcked(t testing.TB, id feed.FeedID, last uint64) {
	t.Helper()
	f.wait(t, fmt.Sprintf("acknowledgement of %d", last), func() bool {
		for _, a := range f.acked {
			if a.Feed == id && a.Last >= last {
				return true
			}
		}
		return false
	})
}

func (s *side) chat(o person) feed.FeedID {
	return s.rep.OwnFeed(feed.DirectConversation(s.account(), o.account()), feed.Chat)
}
