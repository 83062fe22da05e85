package groups

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/node"
	"hima/storage"
)

// Times and bounds of gossip.
const (
	// overlap is how long a topic is kept after its epoch was replaced: others hear of that later (R32).
	overlap = 10 * time.Minute
	// maxTopics is how many topics one group has at most.
	maxTopics = 4
	// gossipReview is how often members' devices and old topics are looked at without a cause.
	gossipReview = 30 * time.Second
	// publishPause is the shortest time between two publications of what is written under load: then runs travel, not
	// entries, and every member syncs its disk once for each.
	publishPause = 20 * time.Millisecond
	// maxPublish is how many runs of one feed are published at once; who writes faster is caught up with by sync.
	maxPublish = 16
	// maxTakes and maxTakeBytes bound the runs that wait for the disk; one account may have so many of them, or whoever floods
	// a group, from however many devices, would leave no room for what others say.
	maxTakes, maxTakeBytes     = 1024, 8 << 20
	maxTakesOf, maxTakeBytesOf = maxTakes / 8, maxTakeBytes / 8
	// recentFor is how long a message that plays again what is held counts as one that came by two roads.
	recentFor = time.Minute
	// maxRecent is how many entries are remembered for that, twice.
	maxRecent = 8192
	// maxEnds is how many feeds of a group are remembered with where they end.
	maxEnds = 4096
)

// circle is a group as those see it who keep it together: who is in, and under which keys they speak.
type circle struct {
	group   ID
	members []identity.AccountID                             // the others
	current feed.EntryID                                     // the epoch that is written under; zero: none
	epochs  []circleEpoch                                    // whose keys are held, newest first
	revoked func(identity.AccountID, identity.DeviceID) bool // a device that speaks no more here; nil: none
}

type circleEpoch struct {
	id   feed.EntryID
	key  EpochKey
	made time.Time // by its author's clock
}

// gossip is the fast road of a node's groups: one topic per epoch, one envelope per run. It may lose anything; what it
// brings is stored as if it had come by a session, and what it loses comes by one.
type gossip struct {
	self  replica.Peer
	db    *storage.DB
	log   *slog.Logger
	now   func() time.Time
	look  func(tx *storage.Tx, stale []ID) (map[ID]circle, error) // of these groups those that we are in; nil: of all
	feeds Feeds
	pub   *node.PubSub                                 // nil: there is no gossip
	known func(identity.AccountID) []identity.DeviceID // never nil

	changed chan struct{}  // one slot: stale, all
	fresh   chan struct{}  // one slot: own
	moved   chan struct{}  // one slot, for the mesh: rooms
	storing sync.WaitGroup // runs that wait for the disk; Add only by handlers of pubsub

	mu      sync.RWMutex // guards what follows; nobody holds it while calling pubsub or the database
	all     bool         // every group is stale
	stale   map[ID]bool
	rooms   map[ID]*room
	allowed map[identity.DeviceID]bool // devices of co-members
	own     map[feed.FeedID]uint64     // first number that is not published
	recent  [2]map[feed.EntryID]bool   // stored lately, the newer ones first
	turned  time.Time                  // when recent was turned over
	takes   queued                     // runs that wait for the disk
	takesOf map[identity.AccountID]queued
}

// queued is how much waits for the disk.
type queued struct{ runs, bytes int }

func (q queued) add(runs, bytes int) queued { return queued{q.runs + runs, q.bytes + bytes} }

func (q queued) beyond(runs, bytes int) bool { return q.runs > runs || q.bytes > bytes }

// room is one group.
type room struct {
	circle  circle
	devices map[identity.DeviceID]identity.AccountID // of the others, and of this account
	tuned   map[feed.EntryID]*tuned
	since   time.Time              // when it was looked at first
	active  time.Time              // when something was last stored; zero: not since the start
	stores  int                    // counts what was stored
	ends    map[feed.FeedID]uint64 // no feed of which this was read ends further on
}

// tuned is one joined topic.
type tuned struct {
	epoch circleEpoch
	open  *opener
	topic *node.Topic
	until time.Time // zero: as long as it is the current one
}

func newGossip(self replica.Peer, db *storage.DB, log *slog.Logger, now func() time.Time) *gossip {
	return &gossip{
		self: self, db: db, log: log, now: now, known: func(identity.AccountID) []identity.DeviceID { return nil },
		changed: make(chan struct{}, 1), fresh: make(chan struct{}, 1), moved: make(chan struct{}, 1), all: true, stale: map[ID]bool{}, rooms: map[ID]*room{},
		allowed: map[identity.DeviceID]bool{}, own: map[feed.FeedID]uint64{}, recent: [2]map[feed.EntryID]bool{{}, {}},
		takesOf: map[identity.AccountID]queued{},
	}
}

// OnStored hears of entries that became durable here, by whatever road, and of own ones. It is replica.Config.OnStored.
func (g *Groups) OnStored(conv feed.ConversationID, entries []feed.Entry, _ replica.Peer) {
	g.gossip.stored(conv, entries)
	g.logbook.stored(conv, entries)
}

// GossipAllowed says whether a device is of an account with which a group is shared. It is node.PubSubConfig.Allowed.
func (g *Groups) GossipAllowed(device identity.DeviceID) bool {
	g.gossip.mu.RLock()
	defer g.gossip.mu.RUnlock()
	return g.gossip.allowed[device]
}

func (s *gossip) stored(conv feed.ConversationID, entries []feed.Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.rooms[conv]
	if r == nil || len(entries) == 0 {
		return
	}
	now := s.now()
	r.active = now
	r.stores++
	if now.Sub(s.turned) > recentFor/2 {
		s.recent[0], s.recent[1], s.turned = map[feed.EntryID]bool{}, s.recent[0], now
	}
	for i := range entries {
		e := &entries[i]
		if len(s.recent[0]) < maxRecent {
			s.recent[0][e.ID] = true
		}
		id := e.Feed()
		if end, ok := r.ends[id]; ok {
			r.ends[id] = max(end, e.Seq)
		}
		if id.Device == s.self.Device {
			if from, ok := s.own[id]; !ok || e.Seq < from {
				s.own[id] = e.Seq
			}
			poke(s.fresh)
		}
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// touch says that a group's members, epochs or keys changed.
func (s *gossip) touch(conv ID) {
	s.mu.Lock()
	s.stale[conv] = true
	s.mu.Unlock()
	poke(s.changed)
}

// run keeps rooms and topics, publishes and stores until ctx ends. Without pubsub it keeps rooms, for the mesh.
func (s *gossip) run(ctx context.Context) error {
	if err := s.review(); err != nil { // before pubsub begins: all topics go into its first word
		return err
	}
	eg, ctx := errgroup.WithContext(ctx)
	eg.Go(func() error { return s.keep(ctx) })
	if s.pub != nil {
		eg.Go(func() error { return s.pub.Run(ctx) })
		eg.Go(func() error { return s.publishAll(ctx) })
	}
	err := eg.Wait()
	s.storing.Wait()
	s.leaveAll()
	return err
}

// keep looks at groups that changed, and at all of them now and then.
func (s *gossip) keep(ctx context.Context) error {
	t := time.NewTicker(gossipReview)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.changed:
		case <-t.C:
			s.mu.Lock()
			s.all = true
			s.mu.Unlock()
		}
		if err := s.review(); err != nil && ctx.Err() == nil {
			s.log.Warn("looking at groups for gossip", "error", err)
		}
	}
}

// review brings the rooms of stale groups up to date.
func (s *gossip) review() error {
	s.mu.Lock()
	var stale []ID
	if !s.all {
		stale = slices.Collect(maps.Keys(s.stale))
	}
	all := s.all
	s.all, s.stale = false, map[ID]bool{}
	s.mu.Unlock()
	if !all && len(stale) == 0 {
		return nil
	}
	var seen map[ID]circle
	err := s.db.View(func(tx *storage.Tx) (err error) {
		seen, err = s.look(tx, stale)
		return err
	})
	if err != nil {
		s.mu.Lock()
		s.all = true
		s.mu.Unlock()
		return fmt.Errorf("reading groups: %w", err)
	}
	if all {
		s.mu.RLock()
		stale = slices.Collect(maps.Keys(s.rooms))
		s.mu.RUnlock()
		for id := range seen {
			if !slices.Contains(stale, id) {
				stale = append(stale, id)
			}
		}
	}
	for _, id := range stale {
		c, in := seen[id]
		s.settle(id, c, in)
	}
	if s.admit() && s.pub != nil {
		s.pub.PeersChanged()
	}
	poke(s.moved)
	return nil
}

// settle makes a room what its group is now: topics are joined before others are left.
func (s *gossip) settle(id ID, c circle, in bool) {
	devices := map[identity.DeviceID]identity.AccountID{}
	for _, a := range append(slices.Clone(c.members), s.self.Account) {
		for _, d := range s.known(a) {
			if c.revoked == nil || !c.revoked(a, d) {
				devices[d] = a
			}
		}
	}
	now := s.now()
	s.mu.Lock()
	r := s.rooms[id]
	if r == nil {
		if !in {
			s.mu.Unlock()
			return
		}
		r = &room{since: now, tuned: map[feed.EntryID]*tuned{}, ends: map[feed.FeedID]uint64{}}
		s.rooms[id] = r
	}
	r.circle, r.devices = c, devices
	join, leave := r.retune(id, now, in)
	if !in {
		delete(s.rooms, id)
		for f := range s.own {
			if f.Conversation == id {
				delete(s.own, f)
			}
		}
	}
	s.mu.Unlock()
	for _, t := range join {
		if s.pub == nil {
			continue
		}
		topic, err := s.pub.Join(t.epoch.key.topic(), func(_ identity.DeviceID, data []byte) node.Verdict { return s.judge(id, t.open, data) })
		if err != nil {
			s.log.Debug("joining a topic", "group", id.Short(), "error", err)
			continue
		}
		s.mu.Lock()
		t.topic = topic
		s.mu.Unlock()
	}
	for _, t := range leave {
		if t.topic != nil {
			t.topic.Leave()
		}
	}
}

// retune says which topics to join and to leave. Called with the lock held.
func (r *room) retune(group ID, now time.Time, in bool) (join, leave []*tuned) {
	for _, e := range r.circle.epochs {
		t, current := r.tuned[e.id], e.id == r.circle.current
		switch {
		case !in:
		case t != nil && current:
			t.until = time.Time{}
		case t != nil && t.until.IsZero():
			t.until = now.Add(overlap) // replaced
		case t == nil && (current || now.Sub(e.made).Abs() < overlap && len(r.tuned) < maxTopics):
			// Of two epochs that were made at the same time others may speak under the one that loses.
			t = &tuned{epoch: e, open: newOpener(e.key, group, e.id)}
			if !current {
				t.until = now.Add(overlap)
			}
			r.tuned[e.id] = t
			join = append(join, t)
		}
	}
	for id, t := range r.tuned {
		held := slices.ContainsFunc(r.circle.epochs, func(e circleEpoch) bool { return e.id == id })
		if !in || !held || !t.until.IsZero() && now.After(t.until) {
			delete(r.tuned, id)
			leave = append(leave, t)
		}
	}
	for len(r.tuned) > maxTopics {
		var oldest *tuned
		for _, t := range r.tuned {
			if !t.until.IsZero() && (oldest == nil || t.until.Before(oldest.until)) {
				oldest = t
			}
		}
		delete(r.tuned, oldest.epoch.id)
		leave = append(leave, oldest)
	}
	return join, leave
}

// admit works out with whom pubsub is spoken, and whether that changed.
func (s *gossip) admit() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	allowed := map[identity.DeviceID]bool{}
	for _, r := range s.rooms {
		for d := range r.devices {
			allowed[d] = true
		}
	}
	delete(allowed, s.self.Device)
	if maps.Equal(allowed, s.allowed) {
		return false
	}
	s.allowed = allowed
	return true
}

func (s *gossip) leaveAll() {
	s.mu.Lock()
	rooms := s.rooms
	s.rooms, s.allowed, s.all = map[ID]*room{}, map[identity.DeviceID]bool{}, true
	s.mu.Unlock()
	for _, r := range rooms {
		for _, t := range r.tuned {
			if t.topic != nil {
				t.topic.Leave()
			}
		}
	}
}

// judge is called for each message before it is passed on. It checks all that needs no waiting, and hands the run on.
func (s *gossip) judge(group ID, epoch *opener, data []byte) node.Verdict {
	author, raw, err := epoch.open(data)
	if err != nil {
		return node.Ignore
	}
	run, err := feed.CheckUnsigned(raw)
	if err != nil {
		return node.Ignore
	}
	last := run.Last()
	s.mu.RLock()
	lately := s.recent[0][last.ID] || s.recent[1][last.ID]
	account, member, beyond := identity.AccountID{}, false, false
	if r := s.rooms[group]; r != nil {
		account, member = r.devices[author]
		end, known := r.ends[run.Feed()]
		beyond = known && last.Seq > end
	}
	s.mu.RUnlock()
	switch {
	case author == s.self.Device || !member || account != run.Account() || !fitsEpoch(run, epoch.epoch):
		return node.Ignore
	case lately:
		return node.Accept // the same bytes were checked when they were stored
	}
	if !beyond {
		if held, err := s.holds(run.Feed(), last.Seq); err != nil || held {
			return node.Ignore // played again
		}
	}
	if err := run.Verify(); err != nil {
		return node.Reject
	}
	s.hand(run)
	return node.Accept
}

// holds says whether a feed is held up to a number, and remembers where it ends: whoever passes a message on waits for the
// answer, and so does everybody behind them.
func (s *gossip) holds(id feed.FeedID, seq uint64) (held bool, err error) {
	s.mu.RLock()
	stores := 0
	if r := s.rooms[id.Conversation]; r != nil {
		stores = r.stores
	}
	s.mu.RUnlock()
	var h feed.Head
	err = s.db.View(func(tx *storage.Tx) error {
		var ok bool
		h, ok, err = s.feeds.Head(tx, id)
		held = ok && h.Last >= seq
		return err
	})
	if err != nil {
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// What was stored while the head was read may be beyond it.
	if r := s.rooms[id.Conversation]; r != nil && r.stores == stores && (len(r.ends) < maxEnds || r.ends[id] != 0) {
		r.ends[id] = max(r.ends[id], h.Last)
	}
	return held, nil
}

// hand puts a run in line for the disk, or lets it go if the line or its author's part of it is full. It does not wait: the
// message is passed on meanwhile. The committer keeps the order, and joins what waits to one sync.
func (s *gossip) hand(run feed.Run) {
	size, author := run.WireSize(), run.Account()
	if !s.queue(author, size) {
		return
	}
	s.storing.Add(1)
	s.feeds.SubmitRun(replica.Peer{}, run, true, func(err error) {
		defer s.storing.Done()
		s.unqueue(author, size)
		if err != nil && !errors.Is(err, replica.ErrRefused) && !errors.Is(err, feed.ErrKnown) && !errors.Is(err, storage.ErrClosed) {
			s.log.Debug("storing what gossip brought", "feed", run.Feed().Device.Short(), "error", err)
		}
	})
}

// queue takes a place in line for a run of an account, if there is one.
func (s *gossip) queue(author identity.AccountID, size int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, of := s.takes.add(1, size), s.takesOf[author].add(1, size)
	if all.beyond(maxTakes, maxTakeBytes) || of.beyond(maxTakesOf, maxTakeBytesOf) {
		return false
	}
	s.takes, s.takesOf[author] = all, of
	return true
}

func (s *gossip) unqueue(author identity.AccountID, size int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.takes = s.takes.add(-1, -size)
	if of := s.takesOf[author].add(-1, -size); of.runs > 0 {
		s.takesOf[author] = of
	} else {
		delete(s.takesOf, author)
	}
}

// publishAll publishes own entries as they come: at once after a pause, and under load in runs.
func (s *gossip) publishAll(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.fresh:
		}
		s.mu.Lock()
		own := s.own
		s.own = map[feed.FeedID]uint64{}
		s.mu.Unlock()
		for id, from := range own {
			if err := s.publish(ctx, id, from); err != nil && ctx.Err() == nil {
				s.log.Debug("publishing", "group", id.Conversation.Short(), "error", err)
			}
		}
		t := time.NewTimer(publishPause)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

// publish puts the entries of an own feed from a number on into envelopes: those written under the epoch that is current
// now. What was written under an earlier one may be nobody's business any more but the sessions'.
func (s *gossip) publish(ctx context.Context, id feed.FeedID, from uint64) error {
	for range maxPublish {
		s.mu.RLock()
		var t *tuned
		if r := s.rooms[id.Conversation]; r != nil {
			t = r.tuned[r.circle.current]
		}
		var topic *node.Topic
		if t != nil {
			topic = t.topic
		}
		s.mu.RUnlock()
		if topic == nil {
			return nil
		}
		raw, err := s.feeds.ReadRun(id, from)
		if errors.Is(err, replica.ErrNoEntry) {
			return nil
		}
		if err != nil {
			return err
		}
		next, err := s.send(ctx, topic, t.epoch, raw)
		if err != nil {
			return err
		}
		from = next
	}
	return nil
}

// send publishes one run and says where the next begins.
func (s *gossip) send(ctx context.Context, topic *node.Topic, epoch circleEpoch, raw *pb.Run) (next uint64, err error) {
	run, err := feed.CheckUnsigned(raw)
	if err != nil {
		return 0, err
	}
	first := run.First()
	if first.Number == feed.Chat && string(first.Epoch) != string(epoch.id[:]) {
		return first.Seq + 1, nil
	}
	next = run.Last().Seq + 1
	if !fitsEpoch(run, epoch.id) {
		return next, nil // a later epoch has begun within it, of which we shall hear
	}
	b, err := sealEnvelope(epoch.key, first.Conversation, epoch.id, s.self.Device, raw)
	if err != nil {
		return 0, err
	}
	return next, topic.Publish(ctx, b)
}
