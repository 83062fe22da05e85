package replica_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
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
	"hima/node"
	"hima/node/nodetest"
	"hima/storage"
)

var errCrash = errors.New("crashed by the test")

// rig is a number of devices on a simulated network, one account each, and what they know of each other. It stands in
// for the packages above replica: everybody in it shares one conversation, of as many members as there are devices.
type rig struct {
	t     *testing.T
	world *nodetest.World
	conv  feed.ConversationID

	mu      sync.Mutex
	devices []*device
	records map[identity.AccountID]identity.AccountRecord
}

// newRig makes n devices; none of them runs. Call it inside a bubble.
func newRig(t *testing.T, n int) *rig {
	t.Helper()
	var nodes []int
	for i := range n {
		nodes = append(nodes, i)
	}
	r := newRigOn(t, nodetest.New(t, n), nodes...)
	for i := range r.devices {
		for j := range r.devices {
			if i != j {
				r.world.Node(i).Remember(nodetest.Key(j).ID(), r.world.Addrs(j))
			}
		}
	}
	return r
}

// newRigOn makes devices of some nodes of a world.
func newRigOn(t *testing.T, w *nodetest.World, nodes ...int) *rig {
	t.Helper()
	r := &rig{t: t, world: w, records: map[identity.AccountID]identity.AccountRecord{}}
	for _, i := range nodes {
		d := &device{rig: r, index: i, key: nodetest.Key(i), dir: filepath.Join(t.TempDir(), "db")}
		d.person = identity.AccountKeyFromSeed(sha256.Sum256(fmt.Appendf(nil, "account %d", i)))
		d.cert = identity.NewCertificate(d.person, d.key.ID(), time.Now())
		d.certify(d.cert)
		r.devices = append(r.devices, d)
	}
	r.conv = feed.DirectConversation(r.devices[0].person.ID(), r.devices[len(nodes)-1].person.ID())
	for _, d := range r.devices {
		t.Cleanup(d.stop)
	}
	return r
}

// device is one of them: keys, disk, and, while it runs, a replica.
type device struct {
	rig    *rig
	index  int
	person identity.AccountKey
	key    identity.DeviceKey
	cert   identity.Certificate
	dir    string

	db    *storage.DB
	rep   *replica.Replica
	halt  func()
	group *groupView // nil: the conversation is a direct one

	mu       sync.Mutex // guards what follows
	crashAt  func(point string) bool
	dead     bool
	points   map[string]int
	applied  []feed.Entry
	detached []uint64
	acked    []replica.Ack
	refused  []replica.Refusal
	receipts []replica.Receipt
	forks    []replica.Fork
	diverged bool
	admit    func(replica.Incoming) (int, pb.Code)
	excused  map[uint64]bool
	now      func() time.Time
}

// certify gives the account a record with these devices and no others.
func (d *device) certify(certs ...identity.Certificate) {
	d.rig.mu.Lock()
	defer d.rig.mu.Unlock()
	last := d.rig.records[d.person.ID()].Seq
	rec, err := identity.NewAccountRecord(d.person, identity.RecordConfig{LastSeq: last, Now: time.Now(), Devices: certs})
	require.NoError(d.rig.t, err)
	d.rig.records[d.person.ID()] = rec
}

// start opens the disk and runs the replica.
func (d *device) start() {
	t := d.rig.t
	t.Helper()
	d.mu.Lock()
	d.dead, d.crashAt, d.points = false, nil, map[string]int{}
	d.mu.Unlock()
	key := sha256.Sum256(fmt.Appendf(nil, "disk %d", d.index))
	db, err := storage.Open(storage.Config{Dir: d.dir, Key: key[:], Fail: d.fail})
	require.NoError(t, err)
	rep, err := replica.New(replica.Config{
		DB: db, Node: d.rig.world.Node(d.index), Account: d.person.ID(), Key: d.key, Certificate: d.cert,
		Records: d.rig, Members: d, Gate: d, Hooks: d, Fail: d.fail, Logger: testLog(), Keys: d.keysOf(),
		Now: func() time.Time {
			if d.now != nil {
				return d.now()
			}
			return time.Now()
		},
	})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = rep.Run(ctx)
	}()
	synctest.Wait() // until Run takes sessions
	d.db, d.rep = db, rep
	d.halt = func() {
		cancel()
		<-done
		_ = db.Close() // a crashed one says so
	}
}

// testLog is silent unless somebody wants to see.
func testLog() *slog.Logger {
	if os.Getenv("HIMA_TEST_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// stop ends the replica, if it runs, and closes the disk.
func (d *device) stop() {
	if d.halt != nil {
		d.halt()
		d.halt = nil
	}
}

// crash arms a crash at the first point for which when is true. From then on nothing is committed, sent or answered, as
// if the process were gone; restart brings the device back from its disk.
func (d *device) crash(when func(point string) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.crashAt = when
}

func (d *device) restart() {
	d.rig.t.Helper()
	d.stop()
	d.start()
}

func (d *device) fail(point string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.points[point]++
	if !d.dead && d.crashAt != nil && d.crashAt(point) {
		d.dead = true
	}
	if d.dead {
		return errCrash
	}
	return nil
}

func (d *device) isDead() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.dead
}

// peer is how others see the device.
func (d *device) peer() replica.Peer {
	return replica.Peer{Account: d.person.ID(), Device: d.key.ID()}
}

func (d *device) feed() feed.FeedID {
	return feed.FeedID{Conversation: d.rig.conv, Number: feed.Chat, Device: d.key.ID()}
}

func text(s string) []byte {
	b, err := proto.Marshal(&pb.Text{Text: s})
	if err != nil {
		panic(err) // a string always encodes
	}
	return b
}

// write appends texts, each in a transaction of its own, and returns the entries.
func (d *device) write(texts ...string) ([]feed.Entry, error) {
	var all []feed.Entry
	for _, s := range texts {
		var got []feed.Entry
		err := d.db.Update(context.Background(), func(tx *storage.Tx) (err error) {
			got, err = d.rep.Append(tx, replica.Draft{Conversation: d.rig.conv, Number: feed.Chat, Kind: feed.KindText, Content: text(s)})
			return err
		})
		if err != nil {
			return all, err
		}
		all = append(all, got...)
	}
	return all, nil
}

func (d *device) mustWrite(n int) []feed.Entry {
	d.rig.t.Helper()
	var texts []string
	for i := range n {
		texts = append(texts, fmt.Sprintf("%d of %d", i, d.index))
	}
	all, err := d.write(texts...)
	require.NoError(d.rig.t, err)
	return all
}

// cancel erases an own entry if it was never offered, as messenger does, and says whether it did.
func (d *device) cancel(seq uint64) (ok bool, err error) {
	err = d.db.Update(context.Background(), func(tx *storage.Tx) error {
		offered, err := d.rep.Offered(tx, d.feed())
		if err != nil || offered >= seq {
			return err
		}
		ok = true
		return d.rep.Erase(tx, d.feed(), seq)
	})
	return ok && err == nil, err
}

// stored reads what is held of a feed, without what stands ahead of a gap.
func (d *device) stored(id feed.FeedID) (head feed.Head, entries []feed.Entry) {
	d.rig.t.Helper()
	require.NoError(d.rig.t, d.db.View(func(tx *storage.Tx) (err error) {
		if head, _, err = d.rep.Head(tx, id); err != nil {
			return err
		}
		return d.rep.Entries(tx, id, 1, head.Last, func(e feed.Entry) (bool, error) {
			entries = append(entries, e)
			return e.Seq < head.Last, nil
		})
	}))
	return head, entries
}

// ackedBy is up to where another device acknowledged this device's chat.
func (d *device) ackedBy(other *device) (last uint64) {
	d.rig.t.Helper()
	require.NoError(d.rig.t, d.db.View(func(tx *storage.Tx) (err error) {
		last, err = d.rep.Acked(tx, d.feed(), other.key.ID())
		return err
	}))
	return last
}

// open brings up a session; an error is a matter of the test.
func (d *device) open(other *device) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return d.rep.Open(ctx, other.key.ID())
}

// await waits in virtual time until a condition holds.
func (r *rig) await(what string, cond func() bool) {
	r.t.Helper()
	for range 3000 {
		if cond() {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	r.t.Fatalf("waiting until %s: a minute went by", what)
}

// Records.

func (r *rig) Record(a identity.AccountID) (identity.AccountRecord, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec, ok := r.records[a]
	return rec, ok
}

func (r *rig) Admit(_ context.Context, raw []byte) (identity.AccountRecord, error) {
	rec, err := identity.ParseAccountRecord(raw)
	if err != nil {
		return rec, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if have, ok := r.records[rec.Account]; ok && !identity.Supersedes(have, rec) {
		return have, nil
	}
	r.records[rec.Account] = rec
	return rec, nil
}

func (r *rig) Devices(a identity.AccountID) []identity.DeviceID {
	rec, _ := r.Record(a)
	var out []identity.DeviceID
	for _, c := range rec.Devices {
		out = append(out, c.Device)
	}
	return out
}

func (r *rig) Seen(identity.Certificate, string, time.Time) {}

// member tells whether an account is one of the rig's.
func (r *rig) member(a identity.AccountID) bool {
	for _, d := range r.devices {
		if d.person.ID() == a {
			return true
		}
	}
	return false
}

// Members, Gate and Hooks of a device.

func (d *device) Shared(_ *storage.Tx, a identity.AccountID) ([]feed.ConversationID, error) {
	if d.group != nil {
		return d.group.shared(a), nil
	}
	if d.rig.member(a) {
		return []feed.ConversationID{d.rig.conv}, nil
	}
	return nil, nil
}

func (d *device) Readers(_ *storage.Tx, conv feed.ConversationID) (out []identity.AccountID, err error) {
	if d.group != nil {
		return d.group.readers(), nil
	}
	for _, other := range d.rig.devices {
		if other != d && conv == d.rig.conv {
			out = append(out, other.person.ID())
		}
	}
	return out, nil
}

func (d *device) KnockToken(*storage.Tx, feed.ConversationID) ([]byte, error) { return nil, nil }

func (d *device) Read(*storage.Tx, feed.FeedID) (uint64, error) { return 0, nil }

func (d *device) Window(_ *storage.Tx, _ feed.ConversationID, a identity.AccountID) (replica.Window, error) {
	if d.group != nil {
		return d.group.window(a), nil
	}
	return nil, nil
}

func (d *device) Lazy(*storage.Tx, feed.ConversationID) bool { return d.group != nil }

func (d *device) Listening(identity.AccountID) pb.Code { return pb.Code_CODE_TAKEN }

func (d *device) Admit(_ *storage.Tx, in replica.Incoming) (int, pb.Code, error) {
	d.mu.Lock()
	admit := d.admit
	d.mu.Unlock()
	if d.group != nil {
		n, code := d.group.admit(in)
		return n, code, nil
	}
	if !d.rig.member(in.Run.Account()) {
		return 0, pb.Code_CODE_NOT_MEMBER, nil
	}
	if admit != nil {
		n, code := admit(in)
		return n, code, nil
	}
	return in.Run.Len(), pb.Code_CODE_TAKEN, nil
}

func (d *device) Excused(_ *storage.Tx, e feed.Entry) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.excused[e.Seq], nil
}

func (d *device) Applied(tx *storage.Tx, a replica.Applied) error {
	if d.group != nil {
		tx.OnCommit(func() { d.group.apply(a.Entries) })
	}
	tx.OnCommit(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.applied = append(d.applied, a.Entries...)
		if a.Detached {
			for _, e := range a.Entries {
				d.detached = append(d.detached, e.Seq)
			}
		}
	})
	return nil
}

func (d *device) Acked(tx *storage.Tx, a replica.Ack) error {
	tx.OnCommit(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.acked = append(d.acked, a)
	})
	return nil
}

func (d *device) Refused(tx *storage.Tx, r replica.Refusal) error {
	tx.OnCommit(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.refused = append(d.refused, r)
	})
	return nil
}

func (d *device) NotTaken(*storage.Tx, replica.NotTaken) error { return nil }

func (d *device) Receipt(tx *storage.Tx, r replica.Receipt) error {
	tx.OnCommit(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.receipts = append(d.receipts, r)
	})
	return nil
}

func (d *device) Forked(tx *storage.Tx, f replica.Fork) error {
	tx.OnCommit(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.forks = append(d.forks, f)
	})
	return nil
}

func (d *device) OwnFeedDiverged(feed.FeedID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.diverged = true
}

func (d *device) Typing(replica.Peer, feed.ConversationID, bool) {}

func (d *device) Presence(replica.Peer, bool) {}

func (d *device) SessionUp(replica.SessionInfo) {}

func (d *device) SessionDown(replica.SessionInfo) {}

// tap is a device without a replica: it speaks the protocol by hand, over a node of the rig, and writes down what it sees.
type tap struct {
	*device
	st *node.Stream
	in chan *pb.Frame // closed when the stream ended
}

// copyDir copies a database as somebody who makes a backup would.
func copyDir(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	require.NoError(t, os.CopyFS(to, os.DirFS(dir)))
	return to
}

func textOf(t *testing.T, e feed.Entry) string {
	t.Helper()
	content, err := e.Content()
	require.NoError(t, err)
	var x pb.Text
	require.NoError(t, proto.Unmarshal(content, &x))
	return x.Text
}
