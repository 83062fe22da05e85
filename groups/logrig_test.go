package groups

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/identity"
	"hima/internal/delivery"
	"hima/internal/feed"
	"hima/internal/mailbox"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/node"
	"hima/node/nodetest"
	"hima/storage"
)

// village is a simulated network with mailboxes, and people with all that groups stand upon but a messenger.
type village struct {
	t *testing.T
	w *nodetest.World

	mu      sync.Mutex
	records map[identity.AccountID]identity.AccountRecord // everybody's, known to everybody
	devices map[identity.DeviceID]identity.DeviceRecord
}

func newVillage(t *testing.T, n int) *village {
	return &village{t: t, w: nodetest.New(t, n), records: map[identity.AccountID]identity.AccountRecord{}, devices: map[identity.DeviceID]identity.DeviceRecord{}}
}

func (v *village) log(name string) *slog.Logger {
	if os.Getenv("HIMA_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("who", name)
}

// until waits, in virtual time, for a condition.
func (v *village) until(what string, limit time.Duration, ok func() bool) {
	v.t.Helper()
	for begin := time.Now(); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Since(begin) > limit {
			v.t.Fatalf("waited %v in vain: %s", limit, what)
		}
	}
}

// node is node i, which is started if it is not up.
func (v *village) node(i int) *node.Node {
	if n := v.w.Node(i); n != nil {
		return n
	}
	return v.w.Start(i)
}

// office starts a mailbox on a node.
func (v *village) office(i int, limits mailbox.ServerLimits) (identity.MailboxRef, *mailbox.Server) {
	v.t.Helper()
	db, err := storage.Open(storage.Config{})
	require.NoError(v.t, err)
	limits.WorkBits = 4
	s, err := mailbox.NewServer(mailbox.ServerConfig{DB: db, Node: v.node(i), Key: nodetest.Key(i), Open: true, Limits: limits})
	require.NoError(v.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	v.t.Cleanup(func() { cancel(); <-done; db.Close() })
	return identity.MailboxRef{Device: nodetest.Key(i).ID(), Addrs: v.w.Addrs(i)}, s
}

// villager is one device of an account. It may come and go; its database stays.
type villager struct {
	v     *village
	i     int
	name  string
	key   identity.DeviceKey
	cert  identity.Certificate
	self  replica.Peer
	db    *storage.DB
	boxes []identity.MailboxRef
	lost  bool // no mail of it leaves
	parts func(*Parts)

	g    *Groups
	rep  *replica.Replica
	mail *delivery.Mail
	stop func()

	mu      sync.Mutex
	friends map[identity.AccountID]bool // with whom there is a direct conversation
	held    []delivery.Held
	stored  map[feed.EntryID]int
	news    map[NewsKind]int
	keyed   map[identity.DeviceID]int // mails with keys that mailboxes took, by whom they are for
}

func (v *village) villager(name string, i int, boxes ...identity.MailboxRef) *villager {
	v.t.Helper()
	ak := identity.AccountKeyFromSeed(sha256.Sum256([]byte("village " + name)))
	key := nodetest.Key(i)
	p := &villager{
		v: v, i: i, name: name, key: key, boxes: boxes, self: replica.Peer{Account: ak.ID(), Device: key.ID()},
		friends: map[identity.AccountID]bool{}, stored: map[feed.EntryID]int{}, news: map[NewsKind]int{},
		keyed: map[identity.DeviceID]int{},
	}
	p.cert = identity.NewCertificate(ak, key.ID(), time.Now().Add(-time.Hour))
	rec, err := identity.NewAccountRecord(ak, identity.RecordConfig{Now: time.Now(), Devices: []identity.Certificate{p.cert}})
	require.NoError(v.t, err)
	v.mu.Lock()
	v.records[rec.Account] = rec
	v.mu.Unlock()
	p.db, err = storage.Open(storage.Config{})
	require.NoError(v.t, err)
	v.t.Cleanup(func() { p.down(); p.db.Close() })
	return p
}

// up starts the device.
func (p *villager) up() *villager {
	t := p.v.t
	t.Helper()
	n := p.v.node(p.i)
	client, err := mailbox.NewClient(mailbox.ClientConfig{Node: n})
	require.NoError(t, err)
	side := &villageSide{}
	p.g, err = New(Config{
		DB: p.db, Account: p.self.Account, Key: p.key, Certificate: p.cert, Logger: p.v.log(p.name),
		Records: func(a identity.AccountID) (identity.AccountRecord, bool) { return p.Record(a) },
		News: func(tx *storage.Tx, n News) error {
			tx.OnCommit(func() {
				p.mu.Lock()
				defer p.mu.Unlock()
				p.news[n.Kind]++
			})
			return nil
		},
	})
	require.NoError(t, err)
	p.rep, err = replica.New(replica.Config{
		DB: p.db, Node: n, Account: p.self.Account, Key: p.key, Certificate: p.cert, Records: p, Members: p, Gate: villageGate{p},
		Hooks: villageHooks{p}, Side: side, Keys: p.g, OnStored: p.g.OnStored, Logger: p.v.log(p.name + " sync"),
	})
	require.NoError(t, err)
	p.mail, err = delivery.NewMail(delivery.MailConfig{
		DB: p.db, Key: p.key, Account: p.self.Account, Certificate: p.cert, Feeds: villageFeeds{p.rep, p}, Client: client, Records: p, Hooks: villageHooks{p},
		Fail: func(point string) error {
			if p.lost && point == "before-deposit" {
				return errors.New("no mail leaves")
			}
			return nil
		},
		Accepted: func(identity.AccountID) bool { return false }, Comember: p.comember, Keys: p.g, OnDevice: p.publish,
		Logger: p.v.log(p.name + " mail"),
	})
	require.NoError(t, err)
	side.mail = p.mail
	p.mail.SetRequests(true)
	require.NoError(t, p.mail.SetNetworkBoxes(t.Context(), p.boxes))
	table, err := delivery.New(delivery.Config{DB: p.db, Self: p.self.Device, Sessions: p.rep, Events: n.Subscribe, OnFailed: p.mail.Failed})
	require.NoError(t, err)
	parts := Parts{Feeds: p.rep, Say: p.say, Devices: p.Devices, Mailboxes: func() []identity.MailboxRef { return p.boxes }, Log: p.mail}
	if p.parts != nil {
		p.parts(&parts)
	}
	p.g.Bind(parts)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{p.rep.Run, p.mail.Run, table.Run, p.g.Run} {
		wg.Go(func() {
			if err := run(ctx); err != nil && ctx.Err() == nil {
				t.Errorf("%s: %v", p.name, err)
			}
		})
	}
	p.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		_ = client.Close()
		p.v.w.Stop(p.i)
	})
	return p
}

// down ends it; its node leaves the network.
func (p *villager) down() {
	if p.stop != nil {
		p.stop()
	}
}

// villageFeeds counts the mails that carry keys.
type villageFeeds struct {
	*replica.Replica
	p *villager
}

func (f villageFeeds) Posted(tx *storage.Tx, e replica.Export, until time.Time) error {
	if len(e.Keys) > 0 {
		tx.OnCommit(func() {
			f.p.mu.Lock()
			defer f.p.mu.Unlock()
			f.p.keyed[e.Peer.Device]++
		})
	}
	return f.Replica.Posted(tx, e, until)
}

// villageSide is the side of a replica that exists before its mail does.
type villageSide struct{ mail *delivery.Mail }

func (s *villageSide) Offer(ctx context.Context, p replica.Peer) (*pb.MailOffer, error) {
	return s.mail.Offer(ctx, p)
}

func (s *villageSide) Offered(ctx context.Context, p replica.Peer, o *pb.MailOffer) error {
	return s.mail.Offered(ctx, p, o)
}

func (p *villager) with(a identity.AccountID) feed.ConversationID {
	return feed.DirectConversation(p.self.Account, a)
}

// say is Parts.Say.
func (p *villager) say(tx *storage.Tx, to identity.AccountID, kind feed.Kind, content []byte) error {
	p.befriend(to)
	_, err := p.rep.Append(tx, replica.Draft{Conversation: p.with(to), Number: feed.Control, Kind: kind, Content: content})
	return err
}

func (p *villager) befriend(a identity.AccountID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.friends[a] = true
}

func (p *villager) knows(a identity.AccountID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.friends[a]
}

// friend is whose direct conversation one is; zero: nobody's.
func (p *villager) friend(conv feed.ConversationID) (a identity.AccountID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for f := range p.friends {
		if p.with(f) == conv {
			return f
		}
	}
	return a
}

func (p *villager) comember(a identity.AccountID) bool {
	if p.knows(a) {
		return true
	}
	shared := false
	err := p.db.View(func(tx *storage.Tx) error {
		list, err := p.g.Shared(tx, a)
		shared = len(list) > 0
		return err
	})
	return err == nil && shared
}

// publish plays the directory.
func (p *villager) publish(d delivery.DeviceInfo) {
	rec, err := identity.NewDeviceRecord(p.key, identity.DeviceRecordConfig{
		Certificate: p.cert, Now: time.Now(), Prekey: d.Prekey, PrekeyCreated: d.PrekeyCreated, Mailboxes: d.Mailboxes, Request: d.Request,
	})
	if err != nil {
		p.v.t.Errorf("publishing: %v", err)
		return
	}
	p.v.mu.Lock()
	defer p.v.mu.Unlock()
	p.v.devices[p.self.Device] = rec
}

// Records.

func (p *villager) Record(a identity.AccountID) (identity.AccountRecord, bool) {
	p.v.mu.Lock()
	defer p.v.mu.Unlock()
	rec, ok := p.v.records[a]
	return rec, ok
}

func (p *villager) Admit(_ context.Context, raw []byte) (identity.AccountRecord, error) {
	return identity.ParseAccountRecord(raw)
}

func (p *villager) Devices(a identity.AccountID) (out []identity.DeviceID) {
	rec, _ := p.Record(a)
	for _, c := range rec.Devices {
		out = append(out, c.Device)
	}
	return out
}

func (p *villager) Seen(identity.Certificate, string, time.Time) {}

func (p *villager) DeviceRecord(d identity.DeviceID) (identity.DeviceRecord, bool) {
	p.v.mu.Lock()
	defer p.v.mu.Unlock()
	rec, ok := p.v.devices[d]
	return rec, ok
}

func (p *villager) FetchDevice(_ context.Context, d identity.DeviceID) (identity.DeviceRecord, error) {
	if rec, ok := p.DeviceRecord(d); ok {
		return rec, nil
	}
	return identity.DeviceRecord{}, delivery.ErrNoBox
}

// Members.

func (p *villager) Shared(tx *storage.Tx, a identity.AccountID) ([]feed.ConversationID, error) {
	out, err := p.g.Shared(tx, a)
	p.mu.Lock()
	defer p.mu.Unlock()
	for f := range p.friends {
		if f == a || a == p.self.Account {
			out = append(out, p.with(f))
		}
	}
	return out, err
}

func (p *villager) Readers(tx *storage.Tx, conv feed.ConversationID) ([]identity.AccountID, error) {
	if f := p.friend(conv); !f.IsZero() {
		return []identity.AccountID{f}, nil
	}
	return p.g.Readers(tx, conv)
}

func (p *villager) KnockToken(*storage.Tx, feed.ConversationID) ([]byte, error) {
	return []byte("token"), nil
}

func (p *villager) Read(*storage.Tx, feed.FeedID) (uint64, error) { return 0, nil }

func (p *villager) Window(tx *storage.Tx, conv feed.ConversationID, a identity.AccountID) (replica.Window, error) {
	if is, err := p.g.Is(tx, conv); err != nil || !is {
		return nil, err
	}
	return p.g.Window(tx, conv, a)
}

func (p *villager) Lazy(tx *storage.Tx, conv feed.ConversationID) bool {
	is, err := p.g.Is(tx, conv)
	return err == nil && is
}

type villageGate struct{ p *villager }

func (villageGate) Listening(identity.AccountID) pb.Code          { return pb.Code_CODE_TAKEN }
func (villageGate) Excused(*storage.Tx, feed.Entry) (bool, error) { return false, nil }

func (x villageGate) Admit(tx *storage.Tx, in replica.Incoming) (int, pb.Code, error) {
	from, conv := in.Run.Account(), in.Run.Feed().Conversation
	if is, err := x.p.g.Is(tx, conv); err != nil || is {
		if err != nil {
			return 0, 0, err
		}
		return x.p.g.Admit(tx, in)
	}
	if x.p.knows(from) || in.Knock != nil && conv == x.p.with(from) {
		x.p.befriend(from)
		return in.Run.Len(), pb.Code_CODE_TAKEN, nil
	}
	return 0, pb.Code_CODE_NOT_MEMBER, nil
}

type villageHooks struct{ p *villager }

func (h villageHooks) Applied(tx *storage.Tx, a replica.Applied) error {
	p, first := h.p, a.Entries[0]
	for _, e := range a.Entries {
		id := e.ID
		tx.OnCommit(func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.stored[id]++
		})
	}
	if is, err := p.g.Is(tx, first.Conversation); err != nil || is {
		if err != nil {
			return err
		}
		return p.g.Applied(tx, a)
	}
	for _, e := range a.Entries {
		content, err := e.Content()
		if err != nil {
			return err
		}
		if err := p.g.Said(tx, e.Account, p.self.Account, e.Kind, content, time.UnixMilli(e.TimeMS)); err != nil {
			return err
		}
	}
	return nil
}

func (villageHooks) Acked(*storage.Tx, replica.Ack) error           { return nil }
func (villageHooks) Refused(*storage.Tx, replica.Refusal) error     { return nil }
func (villageHooks) NotTaken(*storage.Tx, replica.NotTaken) error   { return nil }
func (villageHooks) Receipt(*storage.Tx, replica.Receipt) error     { return nil }
func (villageHooks) OwnFeedDiverged(feed.FeedID)                    {}
func (villageHooks) Typing(replica.Peer, feed.ConversationID, bool) {}
func (villageHooks) Presence(replica.Peer, bool)                    {}
func (villageHooks) SessionUp(replica.SessionInfo)                  {}
func (villageHooks) SessionDown(replica.SessionInfo)                {}

func (h villageHooks) Forked(tx *storage.Tx, f replica.Fork) error { return h.p.g.Forked(tx, f) }

func (h villageHooks) InCustody(tx *storage.Tx, x delivery.Held) error {
	tx.OnCommit(func() {
		h.p.mu.Lock()
		defer h.p.mu.Unlock()
		h.p.held = append(h.p.held, x)
	})
	return nil
}

func (villageHooks) CustodyEnded(*storage.Tx, delivery.Held) error { return nil }
func (villageHooks) MailboxEvent(identity.DeviceID, string)        {}

// inLog tells whether a group's log holds an own entry.
func (p *villager) inLog(e feed.Entry) bool {
	list, err := p.g.Custody(nil, e.Feed(), e.Seq)
	return err == nil && len(list) > 0
}

// mailedTo tells whether a mailbox holds an own entry for a device.
func (p *villager) mailedTo(o *villager, e feed.Entry) bool {
	list, err := p.mail.Custody(o.self.Device, e.Feed(), e.Seq)
	return err == nil && len(list) > 0
}

// text writes a message to a group.
func (p *villager) text(conv ID, s string) (out feed.Entry) {
	p.v.t.Helper()
	require.NoError(p.v.t, p.db.Update(context.Background(), func(tx *storage.Tx) error {
		d, err := p.g.Draft(tx, conv, feed.KindText, []byte(s))
		if err != nil {
			return err
		}
		e, err := p.rep.Append(tx, d)
		if err == nil {
			out = e[0]
		}
		return err
	}))
	return out
}

// texts is what is here of a group.
func (p *villager) texts(conv ID) (out []string) {
	err := p.db.View(func(tx *storage.Tx) error {
		heads, err := p.rep.Heads(tx, conv)
		for _, h := range heads {
			if h.Number != feed.Chat {
				continue
			}
			id := feed.FeedID{Conversation: conv, Number: h.Number, Device: h.Device}
			err = p.rep.Entries(tx, id, max(h.First, 1), 0, func(e feed.Entry) (bool, error) {
				b, err := e.Content()
				out = append(out, string(b))
				return true, err
			})
			if err != nil {
				return err
			}
		}
		return err
	})
	if err != nil {
		p.v.t.Error(err)
	}
	slices.Sort(out)
	return out
}

func (p *villager) has(conv ID, text string) bool { return slices.Contains(p.texts(conv), text) }

func (p *villager) state(conv ID) State {
	var in Info
	_ = p.db.View(func(tx *storage.Tx) (err error) { in, err = p.g.Info(tx, conv); return err })
	return in.State
}

// size is how many p takes for members.
func (p *villager) size(conv ID) int {
	var list []Member
	_ = p.db.View(func(tx *storage.Tx) (err error) { list, err = p.g.Members(tx, conv); return err })
	return len(list)
}

// found makes a group of people who are all there.
func (v *village) found(first *villager, others ...*villager) ID {
	v.t.Helper()
	in, err := first.g.Create(context.Background(), Options{Name: "tea"})
	require.NoError(v.t, err)
	for _, p := range others {
		first.befriend(p.self.Account)
		p.befriend(first.self.Account)
		v.w.Connect(first.i, p.i)
		_, err := first.g.Invite(context.Background(), in.ID, p.self.Account)
		require.NoError(v.t, err)
		v.until(p.name+" is asked", time.Minute, func() bool { return p.state(in.ID) == StateInvited })
		_, err = p.g.Answer(context.Background(), in.ID, true)
		require.NoError(v.t, err)
		v.until(p.name+" is in", time.Minute, func() bool { return p.state(in.ID) == StateMember })
	}
	if len(first.boxes) > 0 {
		require.NoError(v.t, first.g.Set(context.Background(), in.ID, SettingMailbox, "own"))
	}
	hello := first.text(in.ID, "hello")
	for _, p := range others {
		v.until(p.name+" reads", time.Minute, func() bool { return p.has(in.ID, "hello") && len(p.info(in.ID).Mailboxes) == len(first.boxes) })
		v.until(p.name+" acknowledges", time.Minute, func() bool {
			var n uint64
			_ = first.db.View(func(tx *storage.Tx) (err error) {
				n, err = first.rep.Acked(tx, hello.Feed(), p.self.Device)
				return err
			})
			return n >= hello.Seq
		})
	}
	return in.ID
}

func (p *villager) info(conv ID) (in Info) {
	_ = p.db.View(func(tx *storage.Tx) (err error) { in, err = p.g.Info(tx, conv); return err })
	return in
}
