package groups

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
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

// shelf is the entry store of one gossiper: as much of Feeds as gossip uses.
type shelf struct {
	Feeds // the rest is not there
	w     envelopeWriter

	mu    sync.Mutex
	own   []feed.Entry
	taken map[feed.FeedID][]feed.Entry
	takes int
	heads int // times that a head was read
	onNew func(entries []feed.Entry)
}

func (s *shelf) Head(_ *storage.Tx, id feed.FeedID) (feed.Head, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heads++
	n := len(s.taken[id])
	if n == 0 {
		return feed.Head{}, false, nil
	}
	return feed.Head{Last: s.taken[id][n-1].Seq}, true, nil
}

func (s *shelf) ReadRun(_ feed.FeedID, from uint64) (*pb.Run, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if from > uint64(len(s.own)) {
		return nil, replica.ErrNoEntry
	}
	all := s.own[from-1:]
	all = all[:feed.Fit(all)]
	run, err := feed.Assemble(all, feed.SignRun(s.w.key, all[len(all)-1]))
	if err != nil {
		return nil, err
	}
	return run.PB(), nil
}

func (s *shelf) SubmitRun(_ replica.Peer, run feed.Run, live bool, done func(error)) {
	go s.take(run, live, done)
}

func (s *shelf) take(run feed.Run, live bool, done func(error)) {
	if !live {
		panic("what gossip brings is live")
	}
	s.mu.Lock()
	s.takes++
	id := run.Feed()
	for _, e := range run.Entries() {
		if e.Seq == uint64(len(s.taken[id]))+1 {
			s.taken[id] = append(s.taken[id], e)
		}
	}
	s.mu.Unlock()
	s.onNew(run.Entries())
	done(nil)
}

// stores is how many runs were stored.
func (s *shelf) stores() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.takes
}

func (s *shelf) has(id feed.FeedID) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.taken[id])
}

// club is a group whose members gossip, each on a node of a simulated network.
type club struct {
	t       *testing.T
	w       *nodetest.World
	group   ID
	mu      sync.Mutex
	circle  circle
	members []*clubber
}

type clubber struct {
	*gossip
	shelf  *shelf
	writer envelopeWriter
	tip    feed.Tip
	pb     *node.PubSub
}

// newClub makes n members who are connected in a ring with chords.
func newClub(t *testing.T, n int) *club {
	c := &club{t: t, w: nodetest.New(t, 0), group: ID(testHash("club"))}
	c.epoch("first")
	for i := range n {
		c.w.AddPlain(64)
		c.add(i)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, m := range c.members {
		wg.Go(func() {
			if err := m.run(ctx); err != nil {
				t.Errorf("running gossip: %v", err)
			}
		})
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
	for i := range n {
		for _, j := range []int{(i + 1) % n, (i + 3) % n} {
			if j != i {
				c.w.Connect(i, j)
			}
		}
	}
	time.Sleep(3 * time.Second) // the mesh settles
	return c
}

func (c *club) add(i int) {
	db, err := storage.Open(storage.Config{})
	require.NoError(c.t, err)
	c.t.Cleanup(func() { db.Close() })
	m := &clubber{writer: newEnvelopeWriter(fmt.Sprint("clubber ", i))}
	m.writer.key = nodetest.Key(i)
	acct := identity.AccountKeyFromSeed(testHash(fmt.Sprint("account of clubber ", i)))
	m.writer.Author = feed.NewAuthor(acct.ID(), nodetest.Key(i).ID(), identity.NewCertificate(acct, nodetest.Key(i).ID(), time.Now()))
	self := replica.Peer{Account: acct.ID(), Device: nodetest.Key(i).ID()}
	m.gossip = newGossip(self, db, slog.New(slog.DiscardHandler), time.Now)
	m.shelf = &shelf{w: m.writer, taken: map[feed.FeedID][]feed.Entry{}, onNew: func(e []feed.Entry) { m.stored(c.group, e) }}
	m.feeds = m.shelf
	m.known = func(a identity.AccountID) []identity.DeviceID {
		for _, o := range c.members {
			if o.self.Account == a {
				return []identity.DeviceID{o.self.Device}
			}
		}
		return nil
	}
	m.look = func(*storage.Tx, []ID) (map[ID]circle, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		out := c.circle
		if out.members != nil && !slices.Contains(out.members, self.Account) {
			return nil, nil // removed
		}
		out.members = nil
		for _, o := range c.members {
			if o.self != self && (c.circle.members == nil || slices.Contains(c.circle.members, o.self.Account)) {
				out.members = append(out.members, o.self.Account)
			}
		}
		return map[ID]circle{c.group: out}, nil
	}
	pub, err := c.w.Node(i).NewPubSub(node.PubSubConfig{Allowed: func(d identity.DeviceID) bool { return (&Groups{gossip: m.gossip}).GossipAllowed(d) }})
	require.NoError(c.t, err)
	m.pub, m.pb = pub, pub
	c.members = append(c.members, m)
}

// epoch begins a new one; those who are in take it up when they look again.
func (c *club) epoch(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := circleEpoch{id: feed.EntryID(testHash(name)), key: testKey(c.t, name), made: time.Now()}
	c.circle.group, c.circle.current = c.group, e.id
	c.circle.epochs = append([]circleEpoch{e}, c.circle.epochs...)
}

// write writes entries under an epoch; gossip hears of them if tell is set.
func (c *club) write(i int, epoch string, n int, tell bool) {
	m := c.members[i]
	id := feed.EntryID(testHash(epoch))
	var all []feed.Entry
	for range n {
		content, err := proto.Marshal(&pb.Text{Text: "hello"})
		require.NoError(c.t, err)
		e, err := m.writer.NextInGroup(m.tip, c.group, feed.Chat, feed.KindText, m.tip.Clock+1, time.Now().UnixMilli(), content, feed.Group{Epoch: id[:]})
		require.NoError(c.t, err)
		m.tip = e.Tip()
		all = append(all, e)
	}
	m.shelf.mu.Lock()
	m.shelf.own = append(m.shelf.own, all...)
	m.shelf.mu.Unlock()
	if tell {
		m.stored(c.group, all)
	}
}

func (c *club) feed(i int) feed.FeedID {
	return feed.FeedID{Conversation: c.group, Number: feed.Chat, Device: c.members[i].self.Device}
}

// reach waits until all but the author have so many entries of a feed, and says how long that took.
func (c *club) reach(author, n int, limit time.Duration, who ...int) time.Duration {
	c.t.Helper()
	start := time.Now()
	for {
		done := true
		for i, m := range c.members {
			if i != author && (len(who) == 0 || slices.Contains(who, i)) && m.shelf.has(c.feed(author)) < n {
				done = false
			}
		}
		if done {
			return time.Since(start)
		}
		if time.Since(start) > limit {
			c.t.Fatalf("%d entries of %d not everywhere within %v", n, author, limit)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestGossipCarriesEntries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClub(t, 10)
		c.write(0, "first", 1, true)
		t.Logf("one entry to all: %v", c.reach(0, 1, time.Second))
		c.write(4, "first", 3, true)
		c.reach(4, 3, time.Second)

		// Written under load they travel in runs: all of them are there soon, with few messages.
		before := c.members[7].shelf.stores()
		for range 200 {
			c.write(0, "first", 2, true)
			time.Sleep(time.Millisecond)
		}
		c.reach(0, 401, 2*time.Second)
		takes := c.members[7].shelf.stores() - before
		t.Logf("400 entries in 200 ms: %d messages", takes)
		require.Less(t, takes, 40)
	})
}

// What goes on where a feed is known to end is passed on without a look at the disk; what does not is looked up, also when
// something was stored while that was done.
func TestGossipRemembersWhereFeedsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClub(t, 4)
		for n := range 6 {
			c.write(0, "first", 1, true)
			c.reach(0, n+1, time.Second)
			time.Sleep(time.Second)
		}
		me, id := c.members[2], c.feed(0)
		me.shelf.mu.Lock()
		heads := me.shelf.heads
		me.shelf.mu.Unlock()
		require.Equal(t, 1, heads)

		me.mu.Lock()
		require.Equal(t, uint64(6), me.rooms[c.group].ends[id])
		delete(me.rooms[c.group].ends, id)
		me.mu.Unlock()
		me.feeds = &meanwhile{me.shelf, func() { me.stored(c.group, c.members[0].shelf.own[:1]) }}
		held, err := me.holds(id, 6)
		require.NoError(t, err)
		require.True(t, held)
		me.mu.Lock()
		defer me.mu.Unlock()
		require.NotContains(t, me.rooms[c.group].ends, id)
	})
}

// meanwhile is a shelf to which something is added while a head is read.
type meanwhile struct {
	*shelf
	add func()
}

func (m *meanwhile) Head(tx *storage.Tx, id feed.FeedID) (feed.Head, bool, error) {
	m.add()
	return m.shelf.Head(tx, id)
}

// What was written under an old epoch is not published under any when it comes late; both topics are heard for a while.
func TestGossipChangesEpochs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClub(t, 6)
		c.write(0, "first", 1, true)
		c.reach(0, 1, time.Second)
		c.epoch("second")
		for _, m := range c.members[:3] { // half of them know of it
			m.touch(c.group)
		}
		time.Sleep(3 * time.Second)
		c.write(5, "first", 1, true)
		c.reach(5, 1, time.Second) // old topic, also to those who know the new epoch
		c.write(1, "second", 1, true)
		c.reach(1, 1, time.Second, 0, 2)
		for _, m := range c.members {
			m.touch(c.group)
		}
		time.Sleep(time.Second)
		c.write(0, "first", 1, true) // somebody was removed between writing and publishing
		time.Sleep(time.Minute)
		require.Equal(t, 1, c.members[1].shelf.has(c.feed(0)))
		c.write(0, "second", 1, true)
		time.Sleep(time.Minute)
		for _, m := range c.members {
			m.mu.RLock()
			require.Len(t, m.rooms[c.group].tuned, 2)
			m.mu.RUnlock()
		}
		time.Sleep(overlap)
		for _, m := range c.members {
			m.mu.RLock()
			require.Len(t, m.rooms[c.group].tuned, 1)
			m.mu.RUnlock()
		}
		for i := range 20 { // epochs without end: the topics are bounded
			c.epoch(fmt.Sprint("more ", i))
			c.members[0].touch(c.group)
			time.Sleep(10 * time.Millisecond)
		}
		c.members[0].mu.RLock()
		defer c.members[0].mu.RUnlock()
		require.LessOrEqual(t, len(c.members[0].rooms[c.group].tuned), maxTopics)
	})
}

// Who was removed is spoken with no more, although he keeps the old key and his connections.
func TestGossipEndsWithTheRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClub(t, 5)
		c.write(1, "first", 1, true)
		c.reach(1, 1, time.Second)
		c.mu.Lock()
		for _, m := range c.members[:4] {
			c.circle.members = append(c.circle.members, m.self.Account)
		}
		c.mu.Unlock()
		c.epoch("second")
		for _, m := range c.members[:4] { // the fifth does as if he had not heard
			m.touch(c.group)
		}
		time.Sleep(3 * time.Second)
		c.write(1, "second", 1, true)
		c.reach(1, 2, time.Second, 0, 2, 3)
		time.Sleep(time.Minute)
		require.Equal(t, 1, c.members[4].shelf.has(c.feed(1)))
		c.write(4, "first", 1, true)
		time.Sleep(time.Minute)
		require.Zero(t, c.members[0].shelf.has(c.feed(4)), "the removed one was listened to")
		for _, m := range c.members[:4] {
			require.False(t, (&Groups{gossip: m.gossip}).GossipAllowed(c.members[4].self.Device))
		}
	})
}

func TestGossipJudges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClub(t, 3)
		me, alice := c.members[0], c.members[1]
		c.mu.Lock()
		e := c.circle.epochs[0]
		c.mu.Unlock()
		c.write(1, "first", 3, false)
		run := func(from, to int) feed.Run {
			all := alice.shelf.own[from:to]
			r, err := feed.Assemble(all, feed.SignRun(alice.writer.key, all[len(all)-1]))
			require.NoError(t, err)
			return r
		}
		seal := func(key EpochKey, epoch feed.EntryID, author identity.DeviceID, raw *pb.Run) []byte {
			b, err := sealEnvelope(key, c.group, epoch, author, raw)
			require.NoError(t, err)
			return b
		}
		judge := func(b []byte) node.Verdict { return me.judge(c.group, newOpener(e.key, c.group, e.id), b) }
		dev := alice.self.Device

		good := seal(e.key, e.id, dev, run(0, 1).PB())
		falsely := run(0, 1).PB()
		falsely.Signature = make([]byte, 64)
		require.Equal(t, node.Reject, judge(seal(e.key, e.id, dev, falsely)), "false signature")
		require.Equal(t, node.Ignore, judge([]byte("noise")))
		require.Equal(t, node.Ignore, judge(seal(testKey(t, "other"), e.id, dev, run(0, 1).PB())), "another key")
		require.Equal(t, node.Ignore, judge(seal(e.key, feed.EntryID{1}, dev, run(0, 1).PB())), "another epoch")
		require.Equal(t, node.Ignore, judge(seal(e.key, e.id, c.members[2].self.Device, run(0, 1).PB())), "in another's name")
		broken := run(0, 2).PB()
		broken.Entries = []*pb.Entry{broken.Entries[1], broken.Entries[0]}
		require.Equal(t, node.Ignore, judge(seal(e.key, e.id, dev, broken)), "broken chain")
		stranger := newEnvelopeWriter("stranger")
		require.Equal(t, node.Ignore, judge(seal(e.key, e.id, stranger.key.ID(), stranger.run(t, c.group, e.id, 1).PB())), "not a member")
		// A member's own device in the name of another member's account.
		liar := feed.NewAuthor(c.members[2].self.Account, dev, identity.Certificate{})
		tip := alice.shelf.own[0].Tip()
		tip.Account = c.members[2].self.Account
		lie, err := liar.NextInGroup(tip, c.group, feed.Chat, feed.KindText, 9, 1, nil, feed.Group{Epoch: e.id[:]})
		require.NoError(t, err)
		lies, err := feed.Assemble([]feed.Entry{lie}, feed.SignRun(alice.writer.key, lie))
		require.NoError(t, err)
		require.Equal(t, node.Ignore, judge(seal(e.key, e.id, dev, lies.PB())), "another's account")
		old := alice.writer.runAfter(t, feed.Tip{}, c.group, feed.EntryID{7}, 1)
		require.Equal(t, node.Ignore, judge(seal(e.key, e.id, dev, old.PB())), "written under another epoch")
		require.Zero(t, me.shelf.has(c.feed(1)))

		require.Equal(t, node.Accept, judge(good))
		c.reach(1, 1, time.Second, 0)
		require.Equal(t, node.Accept, judge(good), "by another road at the same time")
		require.Equal(t, 1, me.shelf.stores(), "checked and stored once")
		time.Sleep(2 * recentFor)
		me.stored(c.group, nil)
		me.stored(c.group, run(1, 2).Entries()) // the memory turns over
		me.stored(c.group, run(1, 2).Entries())
		time.Sleep(2 * recentFor)
		me.stored(c.group, run(2, 3).Entries())
		require.Equal(t, node.Ignore, judge(good), "played again much later")

		// A full line costs nobody but ourselves.
		me.mu.Lock()
		me.takes.bytes = maxTakeBytes
		me.mu.Unlock()
		require.Equal(t, node.Accept, judge(seal(e.key, e.id, dev, run(1, 3).PB())))
		time.Sleep(time.Second)
		require.Equal(t, 1, me.shelf.stores())
	})
}

// A database that fails at the start is an error, later only a warning: sync goes on.
func TestGossipSurvivesFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClub(t, 2)
		m := c.members[0]
		look := m.look
		var failing atomic.Bool
		failing.Store(true)
		m.mu.Lock()
		m.look = func(tx *storage.Tx, stale []ID) (map[ID]circle, error) {
			if failing.Load() {
				return nil, errors.New("disk")
			}
			return look(tx, stale)
		}
		m.mu.Unlock()
		m.touch(c.group)
		time.Sleep(time.Second)
		m.mu.RLock()
		require.Len(t, m.rooms, 1)
		m.mu.RUnlock()
		failing.Store(false)
		time.Sleep(gossipReview)
		c.write(1, "first", 1, true)
		c.reach(1, 1, time.Second)
	})
}

// slowDisk keeps what is submitted.
type slowDisk struct {
	Feeds
	kept []kept
}

type kept struct {
	author identity.DeviceID
	done   func(error)
}

func (d *slowDisk) SubmitRun(_ replica.Peer, run feed.Run, _ bool, done func(error)) {
	d.kept = append(d.kept, kept{run.Feed().Device, done})
}

// Who floods a group uses up no more than a part of the line before the disk: what others say is stored.
func TestGossipFloodLeavesRoomForOthers(t *testing.T) {
	disk := &slowDisk{}
	g := newGossip(replica.Peer{}, nil, slog.New(slog.DiscardHandler), time.Now)
	g.feeds = disk
	group, epoch := ID(testHash("club")), feed.EntryID{1}
	// The flooder has two devices, which have one part together.
	for _, w := range []envelopeWriter{newEnvelopeWriter("flooder"), newDeviceWriter("flooder", "second"), newEnvelopeWriter("other")} {
		var tip feed.Tip
		for range 2 * maxTakesOf {
			run := w.runAfter(t, tip, group, epoch, 1)
			tip = run.Last().Tip()
			g.hand(run)
		}
	}
	require.Len(t, disk.kept, 2*maxTakesOf, "each has its part")
	flooder := disk.kept[0]
	require.NotEqual(t, flooder.author, disk.kept[maxTakesOf].author)
	flooder.done(nil)
	g.hand(newEnvelopeWriter("flooder").run(t, group, epoch, 1))
	require.Len(t, disk.kept, 2*maxTakesOf+1, "there is room again")
	for _, k := range disk.kept[1:] {
		k.done(nil)
	}
	require.Equal(t, queued{}, g.takes)
	require.Empty(t, g.takesOf)
}
