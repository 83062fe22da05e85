package groups

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/delivery"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// Log is what a group needs of mailboxes: its log, a list of envelopes per epoch, which every member can read and add to.
// delivery.Mail implements it.
type Log interface {
	// LeaveInLog leaves an envelope at all mailboxes of the group. nil: a receipt is durable, and the entries are in custody.
	LeaveInLog(ctx context.Context, d delivery.LogDeposit) error
	// ReadLog returns what lies in a log after a cursor.
	ReadLog(ctx context.Context, at identity.MailboxRef, secret identity.InboxSecret, after uint64, max int) (items []delivery.LogItem, more bool, err error)
	// WatchLogs tells which logs at one mailbox have something, until ctx or the stream ends.
	WatchLogs(ctx context.Context, at identity.MailboxRef, secrets []identity.InboxSecret, tell func([]identity.InboxID)) error
	// InLog is up to where, from one number of an own feed on, everything lies in logs.
	InLog(id feed.FeedID, from uint64) uint64
	// Custody says who holds an entry for a device; for the zero device: in a log, for all.
	Custody(device identity.DeviceID, id feed.FeedID, seq uint64) ([]delivery.Custody, error)
}

var _ Log = (*delivery.Mail)(nil)

const (
	// logAlone is how long an own message waits for the first other member before it goes into the log, logSome how long
	// for the last one whose device is known.
	logAlone, logSome = 2 * time.Second, 10 * time.Second
	// logPast is how old a message may be that still goes there for the sake of somebody who lacks it: a device that never
	// comes back must not bring all of a history into it again and again.
	logPast = 7 * 24 * time.Hour
	// logRetry and logRetryCap are the pauses after a log did not take something; its members get it as mail meanwhile.
	logRetry, logRetryCap = 30 * time.Second, 10 * time.Minute
	// logDeposits is how many groups leave something at the same time, logRuns how many runs one leaves in a row.
	logDeposits, logRuns = 4, 64
	// logFarewell is how long the end may be held up for what can still be left.
	logFarewell = time.Second
	// logReview is how often everything is looked at without a cause.
	logReview = 5 * time.Minute
)

// logGroup is a group as its log sees it.
type logGroup struct {
	group   ID
	members []identity.AccountID // the others
	current feed.EntryID         // the epoch that is written under; zero: none, or its key is not here
	epochs  []logEpoch           // newest first
	boxes   []identity.MailboxRef
}

// logEpoch is an epoch whose key is held.
type logEpoch struct {
	id   feed.EntryID
	key  EpochKey
	made time.Time
}

// logbook looks after the logs of all groups: it leaves there what nobody else has, and reads what others left. mu guards
// what follows it.
type logbook struct {
	self  replica.Peer
	key   identity.DeviceKey
	cert  identity.Certificate // of key
	db    *storage.DB
	log   *slog.Logger
	now   func() time.Time
	store Log
	feeds logFeeds
	look  func(tx *storage.Tx, which []ID) ([]logGroup, error) // of these groups those that we are in; nil: of all
	known func(identity.AccountID) []identity.DeviceID

	wake chan struct{} // one slot

	mu     sync.Mutex
	all    bool // every group is to be looked at
	stale  map[ID]bool
	groups map[ID]logGroup
	own    map[ID]*ownLog
	busy   int
	boxes  map[identity.DeviceID]*logBox
}

// logFeeds is what the logbook needs of Feeds.
type logFeeds interface {
	OwnFeed(conv feed.ConversationID, n feed.Number) feed.FeedID
	Entry(tx *storage.Tx, id feed.FeedID, seq uint64) (feed.Entry, error)
	Head(tx *storage.Tx, id feed.FeedID) (feed.Head, bool, error)
	AckedBy(tx *storage.Tx, id feed.FeedID, f func(device identity.DeviceID, last uint64) (more bool, err error)) error
	ReadRun(id feed.FeedID, from uint64) (*pb.Run, error)
	Take(ctx context.Context, from replica.Peer, raw *pb.Run) error
}

// ownLog is what was written here to one group and may have to go into its log.
type ownLog struct {
	at    time.Time // when it is looked at; zero: not before something is written
	news  int       // counts what was written
	busy  bool
	tries int
	next  time.Time // not before

	failed error // why it was not left when that was last tried
}

func newLogbook(self replica.Peer, key identity.DeviceKey, cert identity.Certificate, db *storage.DB, log *slog.Logger, now func() time.Time) *logbook {
	return &logbook{
		self: self, key: key, cert: cert, db: db, log: log, now: now, known: func(identity.AccountID) []identity.DeviceID { return nil },
		wake: make(chan struct{}, 1), all: true, stale: map[ID]bool{}, groups: map[ID]logGroup{}, own: map[ID]*ownLog{},
		boxes: map[identity.DeviceID]*logBox{},
	}
}

func (b *logbook) poke() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// touch says that acts, keys, members or mailboxes of a group changed. What was read and stood upon what was not there is
// read again.
func (b *logbook) touch(conv ID) {
	b.mu.Lock()
	b.stale[conv] = true
	b.mu.Unlock()
	b.poke()
}

// stored hears of entries that became durable here.
func (b *logbook) stored(conv feed.ConversationID, entries []feed.Entry) {
	if len(entries) == 0 || entries[0].Device != b.self.Device || entries[0].Number != feed.Chat {
		return
	}
	b.mu.Lock()
	o := b.ownOf(conv)
	o.news++
	o.by(b.now().Add(logAlone))
	b.mu.Unlock()
	b.poke()
}

// by makes a time the next one, unless an earlier one is planned.
func (o *ownLog) by(at time.Time) {
	if o.at.IsZero() || at.Before(o.at) {
		o.at = at
	}
}

// ownOf returns what is noted of a group, making it. Called with mu held.
func (b *logbook) ownOf(conv ID) *ownLog {
	o := b.own[conv]
	if o == nil {
		o = &ownLog{}
		b.own[conv] = o
	}
	return o
}

// run works until ctx ends and what it began returned.
func (b *logbook) run(ctx context.Context) error {
	eg, work := errgroup.WithContext(ctx)
	var reviewed time.Time
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		now := b.now()
		if now.Sub(reviewed) >= logReview {
			b.mu.Lock()
			b.all = true
			b.mu.Unlock()
			reviewed = now
		}
		if err := b.refresh(work, eg); err != nil && ctx.Err() == nil {
			b.log.Warn("looking at the logs of groups", "error", err)
		}
		timer.Reset(b.start(work, eg, now))
		select {
		case <-ctx.Done():
			err := eg.Wait()
			b.farewell(ctx)
			return err
		case <-timer.C:
		case <-b.wake:
		}
	}
}

// refresh reads what changed of the groups, and lets a reader run for each mailbox.
func (b *logbook) refresh(ctx context.Context, eg *errgroup.Group) error {
	b.mu.Lock()
	all, which := b.all, make([]ID, 0, len(b.stale))
	for conv := range b.stale {
		which = append(which, conv)
	}
	b.all = false
	clear(b.stale)
	b.mu.Unlock()
	if !all && len(which) == 0 {
		return nil
	}
	changed := which // what was refused there is tried again, also when all are looked at, as at the start
	if all {
		which = nil
	}
	var list []logGroup
	err := b.db.View(func(tx *storage.Tx) (err error) {
		list, err = b.look(tx, which)
		return err
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		b.all = true
		for _, conv := range changed {
			b.stale[conv] = true
		}
		return err
	}
	old := b.groups
	if all {
		b.groups = map[ID]logGroup{}
	}
	for _, conv := range which {
		delete(b.groups, conv)
	}
	for _, g := range list {
		b.groups[g.group] = g
		if _, known := old[g.group]; all && !known { // from before the start: perhaps nobody has it
			b.ownOf(g.group).by(b.now().Add(logAlone))
		}
	}
	for conv := range b.own {
		if _, in := b.groups[conv]; !in && all {
			delete(b.own, conv)
		}
	}
	b.readers(ctx, eg, changed)
	return nil
}

// start leaves what is due, and says how long nothing is.
func (b *logbook) start(ctx context.Context, eg *errgroup.Group, now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	wait := logReview
	for conv, o := range b.own {
		at := o.at
		if !at.IsZero() && o.next.After(at) {
			at = o.next
		}
		g, ok := b.groups[conv]
		if o.busy || at.IsZero() || !ok || len(g.boxes) == 0 || g.current == (feed.EntryID{}) {
			continue
		}
		if left := at.Sub(now); left > 0 {
			wait = min(wait, left)
			continue
		}
		if b.busy >= logDeposits {
			continue // whoever is ready pokes
		}
		b.busy++
		o.busy = true
		eg.Go(func() error {
			b.deposited(conv, b.deposit(ctx, g, false))
			return nil
		})
	}
	return wait
}

// deposited plans what follows.
func (b *logbook) deposited(conv ID, err error) {
	b.mu.Lock()
	b.busy--
	o := b.ownOf(conv)
	o.busy = false
	if !errors.Is(err, context.Canceled) {
		o.failed = err
	}
	if err != nil {
		o.next = b.now().Add(min(logRetry<<min(o.tries, 8), logRetryCap))
		o.tries++
	} else {
		o.tries, o.next = 0, time.Time{}
	}
	b.mu.Unlock()
	if err != nil && !errors.Is(err, context.Canceled) {
		b.log.Debug("leaving something in the log of a group", "group", conv.Short(), "error", err)
	}
	b.poke()
}

// deposit leaves what is due of one group, and plans when it is looked at next. hurry: what nobody has is due at once.
func (b *logbook) deposit(ctx context.Context, g logGroup, hurry bool) error {
	id := b.feeds.OwnFeed(g.group, feed.Chat)
	b.mu.Lock()
	news := b.ownOf(g.group).news
	b.mu.Unlock()
	upto, again := uint64(0), time.Time{}
	for range logRuns {
		from, next, err := b.lacking(id, g, upto, hurry)
		if err != nil {
			return err
		}
		if from == 0 {
			again = next
			break
		}
		d, err := b.envelope(id, g, from)
		if err != nil {
			return err
		}
		if d.Item == nil { // the rest is of epochs that are over
			again = time.Time{}
			break
		}
		if err := b.store.LeaveInLog(ctx, d); err != nil {
			return err
		}
		upto, again = d.Holds[0].Last, b.now()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	o := b.ownOf(g.group)
	o.at = again
	if o.news != news {
		o.by(b.now().Add(logAlone))
	}
	return nil
}

// lacking says from where on, above what was just left, the own feed is to go into the log now; 0: nothing is, and next says
// when that may be otherwise.
func (b *logbook) lacking(id feed.FeedID, g logGroup, upto uint64, hurry bool) (from uint64, next time.Time, err error) {
	now := b.now()
	err = b.db.View(func(tx *storage.Tx) error {
		h, ok, err := b.feeds.Head(tx, id)
		if !ok || err != nil {
			return err
		}
		one, every, err := b.acked(tx, id, g)
		if err != nil {
			return err
		}
		for _, rule := range []struct {
			have uint64
			wait time.Duration
		}{{one, logAlone}, {every, logSome}} {
			first := max(b.store.InLog(id, rule.have+1), upto) + 1
			if first > h.Last {
				continue
			}
			e, err := b.feeds.Entry(tx, id, first)
			if err != nil && !errors.Is(err, replica.ErrNoEntry) {
				return err
			}
			due := time.UnixMilli(e.TimeMS).Add(rule.wait)
			switch {
			case err == nil && due.After(now) && !(hurry && rule.wait == logAlone):
				if next.IsZero() || due.Before(next) {
					next = due
				}
			case from == 0 || first < from:
				from = first
			}
		}
		return nil
	})
	return from, next, err
}

// acked is up to where one device of another member has an own feed, and up to where every known device of every member.
func (b *logbook) acked(tx *storage.Tx, id feed.FeedID, g logGroup) (one, every uint64, err error) {
	have := map[identity.DeviceID]uint64{}
	err = b.feeds.AckedBy(tx, id, func(device identity.DeviceID, last uint64) (bool, error) {
		have[device] = last
		return true, nil
	})
	first := true
	for _, account := range g.members {
		devices := b.known(account)
		if len(devices) == 0 {
			every, first = 0, false // somebody of whom nothing is known yet
		}
		for _, device := range devices {
			n := have[device]
			one = max(one, n)
			if first || n < every {
				every, first = n, false
			}
		}
	}
	return one, every, err
}

// envelope seals the own entries from a number on that were written under the current epoch. What was written under another
// goes to those who lack it alone: the key of an epoch that is over may be held by somebody who was removed.
func (b *logbook) envelope(id feed.FeedID, g logGroup, from uint64) (d delivery.LogDeposit, err error) {
	i := slices.IndexFunc(g.epochs, func(e logEpoch) bool { return e.id == g.current })
	if i < 0 {
		return d, nil
	}
	old := b.now().Add(-logPast).UnixMilli()
	for range logRuns {
		raw, err := b.feeds.ReadRun(id, from)
		if errors.Is(err, replica.ErrNoEntry) {
			return d, nil
		}
		if err != nil {
			return d, err
		}
		run, err := feed.CheckUnsigned(raw)
		if err != nil {
			return d, err
		}
		entries := run.Entries()
		skip := 0
		for skip < len(entries) && (string(entries[skip].Epoch) != string(g.current[:]) || entries[skip].TimeMS < old) {
			skip++
		}
		n := skip
		for n < len(entries) && string(entries[n].Epoch) == string(g.current[:]) {
			n++
		}
		if n == skip {
			from = run.Last().Seq + 1
			continue
		}
		out, run, err := b.certified(entries[skip:n])
		if err != nil {
			return d, err
		}
		item, err := sealEnvelope(g.epochs[i].key, g.group, g.current, b.self.Device, out)
		if err != nil {
			return d, fmt.Errorf("sealing for a log: %w", err)
		}
		holds := []replica.Span{{Feed: id, From: run.First().Seq, Last: run.Last().Seq, Lazy: true}}
		return delivery.LogDeposit{At: g.boxes, Secret: g.epochs[i].key.logSecret(), Item: item, Holds: holds}, nil
	}
	return d, nil
}

// certified signs entries as a run, with the own certificate for newcomers who begin the feed with it, or as many of them as
// an envelope holds.
func (b *logbook) certified(entries []feed.Entry) (*pb.Run, feed.Run, error) {
	for {
		run, err := feed.Assemble(entries, feed.SignRun(b.key, entries[len(entries)-1]))
		if err != nil {
			return nil, run, err
		}
		out := run.PB()
		if entries[0].Seq > 1 {
			out.Certificate = b.cert.Raw()
		}
		if len(entries) == 1 || proto.Size(out) <= feed.MaxWireRun {
			return out, run, nil
		}
		entries = entries[:len(entries)/2]
	}
}

// farewell leaves what nobody else has: who writes and goes leaves it behind.
func (b *logbook) farewell(ended context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ended), logFarewell)
	defer cancel()
	b.mu.Lock()
	var list []logGroup
	for conv, o := range b.own {
		if g, ok := b.groups[conv]; ok && !o.at.IsZero() && len(g.boxes) > 0 {
			list = append(list, g)
		}
	}
	b.mu.Unlock()
	var eg errgroup.Group
	eg.SetLimit(logDeposits)
	for _, g := range list {
		eg.Go(func() error {
			if err := b.deposit(ctx, g, true); err != nil {
				b.log.Debug("leaving something at the end", "error", err)
			}
			return nil
		})
	}
	_ = eg.Wait()
}

// bindLog gives the logbook the other parts. Called by Bind.
func (g *Groups) bindLog() {
	b := g.logbook
	b.store, b.feeds, b.look = g.parts.Log, g.parts.Feeds, g.logGroups
	if g.parts.Devices != nil {
		b.known = g.parts.Devices
	}
	g.onChanged(b.touch)
}

// runLog looks after the groups' logs, if there are mailboxes at all.
func (g *Groups) runLog(ctx context.Context) error {
	if g.parts.Log == nil {
		return nil
	}
	return g.logbook.run(ctx)
}

// logGroups reads groups as the logbook sees them.
func (g *Groups) logGroups(tx *storage.Tx, which []ID) (out []logGroup, err error) {
	live, err := g.live(tx)
	if err != nil {
		return nil, err
	}
	for _, conv := range live {
		if which != nil && !slices.Contains(which, conv) {
			continue
		}
		one := logGroup{group: conv}
		if one.members, err = g.members(tx, conv); err != nil {
			return nil, fmt.Errorf("reading group %s: %w", conv.Short(), err)
		}
		current, held, boxes, err := g.logEpochs(tx, conv)
		if err != nil {
			return nil, fmt.Errorf("reading group %s: %w", conv.Short(), err)
		}
		one.current, one.boxes = current.ID, boxes
		for _, e := range held {
			one.epochs = append(one.epochs, logEpoch{id: e.ID, key: e.Key, made: e.Made})
		}
		out = append(out, one)
	}
	return out, nil
}

// Custody says which mailboxes hold an own entry in the log of its group.
func (g *Groups) Custody(_ *storage.Tx, id feed.FeedID, seq uint64) ([]delivery.Custody, error) {
	if g.parts.Log == nil {
		return nil, nil
	}
	return g.parts.Log.Custody(identity.DeviceID{}, id, seq)
}
