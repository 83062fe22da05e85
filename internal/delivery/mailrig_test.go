package delivery

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/mailbox"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/node/nodetest"
	"hima/storage"
)

// town is a simulated network with mailboxes and people, and the device records that they published.
type town struct {
	t *testing.T
	w *nodetest.World

	mu      sync.Mutex
	records map[identity.DeviceID]identity.DeviceRecord
}

func newTown(t *testing.T, n int) *town {
	t.Helper()
	return &town{t: t, w: nodetest.New(t, n), records: map[identity.DeviceID]identity.DeviceRecord{}}
}

func (c *town) log(name string) *slog.Logger {
	if os.Getenv("HIMA_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("who", name)
}

// until waits, in virtual time, for a condition.
func (c *town) until(what string, limit time.Duration, ok func() bool) time.Duration {
	c.t.Helper()
	begin := time.Now()
	for !ok() {
		if time.Since(begin) > limit {
			c.t.Fatalf("waited %v in vain: %s", limit, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(begin)
}

// post is a mailbox on a node of the town.
type postOffice struct {
	c      *town
	i      int
	db     *storage.DB
	server *mailbox.Server
	stop   func()
}

func (c *town) office(i int, change func(*mailbox.ServerConfig)) *postOffice {
	c.t.Helper()
	p := &postOffice{c: c, i: i}
	var err error
	if p.db, err = storage.Open(storage.Config{}); err != nil {
		c.t.Fatal(err)
	}
	p.open(change)
	c.t.Cleanup(func() { p.stop(); p.db.Close() })
	return p
}

func (p *postOffice) open(change func(*mailbox.ServerConfig)) {
	p.c.t.Helper()
	n := p.c.w.Node(p.i)
	if n == nil {
		n = p.c.w.Start(p.i)
	}
	config := mailbox.ServerConfig{
		DB: p.db, Node: n, Key: nodetest.Key(p.i), Open: true, Limits: mailbox.ServerLimits{WorkBits: 4},
		Logger: p.c.log(fmt.Sprintf("box %d", p.i)),
	}
	if change != nil {
		change(&config)
	}
	var err error
	if p.server, err = mailbox.NewServer(config); err != nil {
		p.c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.server.Run(ctx) }()
	p.stop = sync.OnceFunc(func() { cancel(); <-done })
}

func (p *postOffice) ref() identity.MailboxRef {
	return identity.MailboxRef{Device: nodetest.Key(p.i).ID(), Addrs: p.c.w.Addrs(p.i)}
}

// resident is one device of an account. It may come and go; its database stays.
type resident struct {
	c       *town
	i       int
	name    string
	account identity.AccountKey
	key     identity.DeviceKey
	cert    identity.Certificate
	db      *storage.DB
	change  func(*MailConfig)
	older   map[identity.DeviceID]identity.DeviceRecord // that it keeps

	rep  *replica.Replica
	mail *Mail
	stop func()

	mu      sync.Mutex
	records map[identity.AccountID]identity.AccountRecord
	members map[feed.ConversationID][]identity.AccountID
	friends map[identity.AccountID]bool
	full    bool // strangers have no room
	texts   []string
	acked   map[feed.FeedID]map[identity.DeviceID]uint64
	held    []Held
	ended   []Held
	events  []string
	refused []pb.Code

	failApplied func() error // fails a transaction that stores entries
}

func accountOf(name string) identity.AccountKey {
	return identity.AccountKeyFromSeed(sha256.Sum256([]byte("delivery " + name)))
}

// resident makes a device of the account with that name on node i.
func (c *town) resident(name string, i int) *resident {
	c.t.Helper()
	r := &resident{
		c: c, i: i, name: name, account: accountOf(name), key: nodetest.Key(i),
		records: map[identity.AccountID]identity.AccountRecord{}, members: map[feed.ConversationID][]identity.AccountID{},
		friends: map[identity.AccountID]bool{}, acked: map[feed.FeedID]map[identity.DeviceID]uint64{},
	}
	r.cert = identity.NewCertificate(r.account, r.key.ID(), time.Now().Add(-time.Hour))
	var err error
	if r.db, err = storage.Open(storage.Config{}); err != nil {
		c.t.Fatal(err)
	}
	record(c.t, r)
	c.t.Cleanup(func() { r.down(); r.db.Close() })
	return r
}

// record gives devices of one account their record.
func record(t *testing.T, devices ...*resident) {
	t.Helper()
	var certs []identity.Certificate
	for _, d := range devices {
		certs = append(certs, d.cert)
	}
	rec, err := identity.NewAccountRecord(devices[0].account, identity.RecordConfig{Now: time.Now(), Devices: certs})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range devices {
		d.records[rec.Account] = rec
	}
}

func (r *resident) id() identity.AccountID { return r.account.ID() }

func (r *resident) with(o *resident) feed.ConversationID {
	return feed.DirectConversation(r.id(), o.id())
}

// befriend makes two accounts contacts, with all their devices given.
func befriend(a, b *resident) {
	for _, x := range [][2]*resident{{a, b}, {b, a}} {
		x[0].know(x[1])
		x[0].mu.Lock()
		x[0].friends[x[1].id()] = true
		x[0].members[x[0].with(x[1])] = []identity.AccountID{x[1].id()}
		x[0].mu.Unlock()
	}
}

// know gives r the record of somebody.
func (r *resident) know(o *resident) {
	rec, _ := o.Record(o.id())
	r.mu.Lock()
	defer r.mu.Unlock()
	r.records[o.id()] = rec
}

// up starts the device.
func (r *resident) up(boxes ...*postOffice) *resident {
	r.c.t.Helper()
	t := r.c.t
	n := r.c.w.Node(r.i)
	if n == nil {
		n = r.c.w.Start(r.i)
	}
	client, err := mailbox.NewClient(mailbox.ClientConfig{Node: n})
	must(t, err)
	side := &lateSide{}
	r.rep, err = replica.New(replica.Config{
		DB: r.db, Node: n, Account: r.id(), Key: r.key, Certificate: r.cert, Records: r, Members: r, Gate: judge{r}, Hooks: hooked{r}, Side: side,
		Logger: r.c.log(r.name + " sync"),
	})
	must(t, err)
	config := MailConfig{
		DB: r.db, Key: r.key, Account: r.id(), Certificate: r.cert, Feeds: r.rep, Client: client, Records: r, Hooks: hooked{r},
		Accepted: r.accepts, OnDevice: r.publish, Snapshot: func() (identity.InboxSecret, bool) {
			inbox, _ := identity.SnapshotSecrets(r.account)
			return inbox, true
		}, Logger: r.c.log(r.name),
	}
	if r.change != nil {
		r.change(&config)
	}
	r.mail, err = NewMail(config)
	must(t, err)
	side.mail = r.mail
	r.mail.SetRequests(true)
	var refs []identity.MailboxRef
	for _, b := range boxes {
		refs = append(refs, b.ref())
	}
	if boxes != nil {
		must(t, r.mail.SetNetworkBoxes(t.Context(), refs))
	}
	table, err := New(Config{
		DB: r.db, Self: r.key.ID(), Sessions: r.rep, Events: n.Subscribe, OnFailed: r.mail.Failed,
		Contacts: func() (out []identity.DeviceID) {
			r.mu.Lock()
			defer r.mu.Unlock()
			for a := range r.friends {
				out = append(out, devicesOf(r.records[a])...)
			}
			return out
		},
	})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{r.rep.Run, r.mail.Run, table.Run} {
		wg.Go(func() {
			if err := run(ctx); err != nil && ctx.Err() == nil {
				t.Errorf("%s: %v", r.name, err)
			}
		})
	}
	r.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		_ = client.Close()
		r.c.w.Stop(r.i)
	})
	return r
}

// down ends it; its node leaves the network.
func (r *resident) down() {
	if r.stop != nil {
		r.stop()
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// lateSide is the side of a replica that exists before its mail does.
type lateSide struct{ mail *Mail }

func (s *lateSide) Offer(ctx context.Context, p replica.Peer) (*pb.MailOffer, error) {
	return s.mail.Offer(ctx, p)
}

func (s *lateSide) Offered(ctx context.Context, p replica.Peer, o *pb.MailOffer) error {
	return s.mail.Offered(ctx, p, o)
}

// say writes a text.
func (r *resident) say(to *resident, text string) (feed.FeedID, uint64) {
	r.c.t.Helper()
	content, err := proto.Marshal(&pb.Text{Text: text})
	must(r.c.t, err)
	var last feed.Entry
	must(r.c.t, r.db.Update(context.Background(), func(tx *storage.Tx) error {
		list, err := r.rep.Append(tx, replica.Draft{Conversation: r.with(to), Number: feed.Chat, Kind: feed.KindText, Content: content})
		if err == nil {
			last = list[0]
		}
		return err
	}))
	return last.Feed(), last.Seq
}

func (r *resident) heard() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.texts)
}

func (r *resident) delivered(id feed.FeedID, to identity.DeviceID) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.acked[id][to]
}

func (r *resident) custodies() ([]Held, []Held) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.held), slices.Clone(r.ended)
}

func (r *resident) told() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

func (r *resident) accepts(a identity.AccountID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.friends[a]
}

// publish signs the device record and puts it where all find it.
func (r *resident) publish(d DeviceInfo) {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	rec, err := identity.NewDeviceRecord(r.key, identity.DeviceRecordConfig{
		Certificate: r.cert, LastSeq: r.c.records[r.key.ID()].Seq, Now: time.Now(), Prekey: d.Prekey, PrekeyCreated: d.PrekeyCreated,
		Mailboxes: d.Mailboxes, Request: d.Request,
	})
	if err != nil {
		r.c.t.Errorf("making a device record: %v", err)
		return
	}
	r.c.records[r.key.ID()] = rec
}

// Records of both packages.

func (r *resident) Record(a identity.AccountID) (identity.AccountRecord, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec, ok := r.records[a]
	return rec, ok
}

func (r *resident) Admit(_ context.Context, raw []byte) (identity.AccountRecord, error) {
	rec, err := identity.ParseAccountRecord(raw)
	if err != nil {
		return rec, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if identity.Supersedes(r.records[rec.Account], rec) {
		r.records[rec.Account] = rec
	}
	return r.records[rec.Account], nil
}

func devicesOf(rec identity.AccountRecord) (out []identity.DeviceID) {
	for _, c := range rec.Devices {
		out = append(out, c.Device)
	}
	return out
}

func (r *resident) Devices(a identity.AccountID) []identity.DeviceID {
	rec, _ := r.Record(a)
	return devicesOf(rec)
}

func (r *resident) Seen(identity.Certificate, string, time.Time) {}

func (r *resident) DeviceRecord(d identity.DeviceID) (identity.DeviceRecord, bool) {
	rec, ok := r.older[d]
	return rec, ok
}

func (r *resident) FetchDevice(_ context.Context, d identity.DeviceID) (identity.DeviceRecord, error) {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	rec, ok := r.c.records[d]
	if !ok {
		return rec, errNoRoad
	}
	return rec, nil
}

// Members.

func (r *resident) Shared(_ *storage.Tx, a identity.AccountID) (out []feed.ConversationID, _ error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for conv, list := range r.members {
		if a == r.id() || slices.Contains(list, a) {
			out = append(out, conv)
		}
	}
	return out, nil
}

func (r *resident) Readers(_ *storage.Tx, conv feed.ConversationID) ([]identity.AccountID, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.members[conv], nil
}

func (r *resident) KnockToken(*storage.Tx, feed.ConversationID) ([]byte, error) {
	return []byte("token"), nil
}

func (r *resident) Read(*storage.Tx, feed.FeedID) (uint64, error) { return 0, nil }

func (r *resident) Window(*storage.Tx, feed.ConversationID, identity.AccountID) (replica.Window, error) {
	return nil, nil
}

func (r *resident) Lazy(*storage.Tx, feed.ConversationID) bool { return false }

// judge is the gate.
type judge struct{ r *resident }

func (j judge) Listening(identity.AccountID) pb.Code { return pb.Code_CODE_TAKEN }

func (j judge) Admit(_ *storage.Tx, in replica.Incoming) (int, pb.Code, error) {
	r := j.r
	r.mu.Lock()
	defer r.mu.Unlock()
	conv, from := in.Run.Feed().Conversation, in.Run.Account()
	if from == r.id() || slices.Contains(r.members[conv], from) {
		return in.Run.Len(), pb.Code_CODE_TAKEN, nil
	}
	switch {
	case in.Knock == nil:
		return 0, pb.Code_CODE_NOT_MEMBER, nil
	case r.full:
		return 0, pb.Code_CODE_FULL, nil
	}
	r.members[conv] = []identity.AccountID{from}
	return in.Run.Len(), pb.Code_CODE_TAKEN, nil
}

func (j judge) Excused(*storage.Tx, feed.Entry) (bool, error) { return false, nil }

// hooked hears replica and mail.
type hooked struct{ r *resident }

func (h hooked) after(tx *storage.Tx, f func()) error {
	tx.OnCommit(func() {
		h.r.mu.Lock()
		defer h.r.mu.Unlock()
		f()
	})
	return nil
}

func (h hooked) Applied(tx *storage.Tx, a replica.Applied) error {
	h.r.mu.Lock()
	fail := h.r.failApplied
	h.r.mu.Unlock()
	if fail != nil {
		if err := fail(); err != nil {
			return err
		}
	}
	return h.after(tx, func() {
		for _, e := range a.Entries {
			var m pb.Text
			if c, err := e.Content(); err == nil && proto.Unmarshal(c, &m) == nil && e.Account != h.r.id() {
				h.r.texts = append(h.r.texts, m.Text)
			}
		}
	})
}

func (h hooked) Acked(tx *storage.Tx, a replica.Ack) error {
	return h.after(tx, func() {
		if h.r.acked[a.Feed] == nil {
			h.r.acked[a.Feed] = map[identity.DeviceID]uint64{}
		}
		h.r.acked[a.Feed][a.Peer.Device] = a.Last
	})
}

func (h hooked) Refused(tx *storage.Tx, r replica.Refusal) error {
	return h.after(tx, func() { h.r.refused = append(h.r.refused, r.Code) })
}
func (h hooked) NotTaken(*storage.Tx, replica.NotTaken) error { return nil }
func (h hooked) Receipt(*storage.Tx, replica.Receipt) error   { return nil }
func (h hooked) Forked(*storage.Tx, replica.Fork) error       { return nil }
func (h hooked) OwnFeedDiverged(feed.FeedID)                  {}
func (h hooked) Typing(replica.Peer, feed.ConversationID, bool) {
}
func (h hooked) Presence(replica.Peer, bool)     {}
func (h hooked) SessionUp(replica.SessionInfo)   {}
func (h hooked) SessionDown(replica.SessionInfo) {}

func (h hooked) InCustody(tx *storage.Tx, x Held) error {
	return h.after(tx, func() { h.r.held = append(h.r.held, x) })
}

func (h hooked) CustodyEnded(tx *storage.Tx, x Held) error {
	return h.after(tx, func() { h.r.ended = append(h.r.ended, x) })
}

func (h hooked) MailboxEvent(dev identity.DeviceID, detail string) {
	h.r.mu.Lock()
	defer h.r.mu.Unlock()
	h.r.events = append(h.r.events, detail)
}
