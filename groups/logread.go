package groups

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"hima/identity"
	"hima/internal/delivery"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

const (
	// logKept is how long what was left in the log of an epoch may be there after the epoch was replaced.
	logKept = 31 * 24 * time.Hour
	// maxLogEpochs bounds the logs of one group that are read.
	maxLogEpochs = 16
	// logWatched is how many mailboxes are watched all the time; others are asked every logPoll.
	logWatched = 8
	logPoll    = 10 * time.Minute
	// boxRetry and boxRetryCap are the pauses after a mailbox did not answer.
	boxRetry, boxRetryCap = 2 * time.Second, 5 * time.Minute
	// maxRefused is how many envelopes of one log are kept in mind that were not taken, maxAsked how often each is tried.
	maxRefused, maxAsked = 64, 16
	// askAgain is the shortest time between two tries.
	askAgain = 2 * time.Second
	// logTakers is how many feeds are stored at the same time; the committer joins them to one sync of the disk.
	logTakers = 16
)

// keyLog is where it is kept up to where the log of an epoch at a mailbox was read.
const keyLog = "g/c/" // inbox 32, mailbox 32: cursor 8, then 9 for each envelope that was refused: cursor 8, tries 1

// logBox is a mailbox that keeps logs. mu of the logbook guards it.
type logBox struct {
	ref     identity.MailboxRef
	logs    map[identity.InboxID]openLog
	groups  int  // that name it
	watched bool // always
	waiting map[identity.InboxID]bool
	again   map[ID]bool   // groups whose refused envelopes are to be tried again
	asked   time.Time     // when that was last done
	changed chan struct{} // one slot: other logs are to be watched
	bell    chan struct{} // one slot: something waits
	stop    context.CancelFunc
	failed  error // why it could not be read when that was last tried
}

// openLog is a log that can be read.
type openLog struct {
	group ID
	epoch logEpoch
}

func ring(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// readers lets one reader run for each mailbox that a group names. which are the groups that changed. Called with mu held.
func (b *logbook) readers(ctx context.Context, eg *errgroup.Group, which []ID) {
	now := b.now()
	want := map[identity.DeviceID]*logBox{}
	for _, g := range b.groups {
		for _, ref := range g.boxes {
			w := want[ref.Device]
			if w == nil {
				w = &logBox{ref: ref, logs: map[identity.InboxID]openLog{}}
				want[ref.Device] = w
			}
			w.groups++
			for i, e := range g.epochs[:min(len(g.epochs), maxLogEpochs)] {
				if i > 0 && e.id != g.current && now.Sub(g.epochs[i-1].made) > logKept {
					continue
				}
				w.logs[e.key.logSecret().ID()] = openLog{g.group, e}
			}
		}
	}
	ranked := slices.SortedFunc(maps.Keys(want), func(x, y identity.DeviceID) int {
		return cmp.Or(cmp.Compare(want[y].groups, want[x].groups), slices.Compare(x[:], y[:]))
	})
	for i, dev := range ranked {
		w, have := want[dev], b.boxes[dev]
		if have == nil {
			have = &logBox{waiting: map[identity.InboxID]bool{}, again: map[ID]bool{}, changed: make(chan struct{}, 1), bell: make(chan struct{}, 1)}
			b.boxes[dev] = have
			reading, stop := context.WithCancel(ctx)
			have.stop = stop
			eg.Go(func() error {
				b.readBox(reading, have)
				return nil
			})
		}
		same := maps.EqualFunc(have.logs, w.logs, func(x, y openLog) bool { return x.group == y.group && x.epoch.id == y.epoch.id })
		have.ref, have.logs, have.watched = w.ref, w.logs, i < logWatched
		if !same {
			ring(have.changed)
		}
		for _, conv := range which {
			have.again[conv] = true
		}
		if len(which) > 0 {
			ring(have.bell)
		}
	}
	for dev, have := range b.boxes {
		if want[dev] == nil {
			have.stop()
			delete(b.boxes, dev)
		}
	}
}

// readBox reads the logs at one mailbox until ctx ends.
func (b *logbook) readBox(ctx context.Context, x *logBox) {
	tries := 0
	for ctx.Err() == nil {
		begun := b.now()
		err := b.attend(ctx, x)
		pause := logPoll
		switch {
		case err == nil:
			tries = 0
		case b.now().Sub(begun) > time.Minute:
			tries, pause = 0, boxRetry
		default:
			pause = min(boxRetry<<min(tries, 8), boxRetryCap)
			tries++
		}
		if err != nil && ctx.Err() == nil {
			b.mu.Lock()
			dev := x.ref.Device
			x.failed = err
			b.mu.Unlock()
			b.log.Debug("reading the logs of groups", "mailbox", dev.Short(), "error", err)
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-x.changed:
		}
		t.Stop()
	}
}

// attend reads what is there and, of a mailbox that is watched, what comes, until something fails. nil: everything was read.
func (b *logbook) attend(ctx context.Context, x *logBox) error {
	for {
		again, err := b.session(ctx, x)
		if err != nil || !again {
			return err
		}
	}
}

// session is attend until other logs are to be watched.
func (b *logbook) session(ctx context.Context, x *logBox) (again bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	b.mu.Lock()
	ref, watched := x.ref, x.watched
	var secrets []identity.InboxSecret
	for id, l := range x.logs {
		secrets = append(secrets, l.epoch.key.logSecret())
		x.waiting[id] = true // whatever came while nobody watched
	}
	b.mu.Unlock()
	if len(secrets) == 0 {
		watched = false
	}
	ended := make(chan error, 1)
	if watched {
		go func() {
			ended <- b.store.WatchLogs(ctx, ref, secrets, func(ids []identity.InboxID) { b.hear(x, ids) })
		}()
		defer func() { cancel(); <-ended }()
	}
	for {
		if err := b.readAll(ctx, x, ref); err != nil || !watched {
			return false, err
		}
		select {
		case err := <-ended:
			ended <- err
			return false, err
		case <-x.changed:
			return true, nil
		case <-x.bell:
		}
	}
}

// hear takes word of logs in which something is.
func (b *logbook) hear(x *logBox, ids []identity.InboxID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, id := range ids {
		if _, ours := x.logs[id]; ours {
			x.waiting[id] = true
			ring(x.bell)
		}
	}
}

// readAll reads the logs in which something waits, and tries again what was refused.
func (b *logbook) readAll(ctx context.Context, x *logBox, ref identity.MailboxRef) error {
	b.mu.Lock()
	waiting, again, logs := x.waiting, x.again, maps.Clone(x.logs)
	x.waiting = map[identity.InboxID]bool{}
	switch left := askAgain - b.now().Sub(x.asked); {
	case len(again) == 0:
		again = nil // the map goes on being filled
	case left > 0:
		again = nil
		time.AfterFunc(left, func() { ring(x.bell) })
	default:
		x.again, x.asked = map[ID]bool{}, b.now()
	}
	b.mu.Unlock()
	for id, l := range logs {
		if !waiting[id] && !again[l.group] {
			continue
		}
		if err := b.read(ctx, ref, id, l, waiting[id], again[l.group]); err != nil {
			b.mu.Lock()
			maps.Copy(x.waiting, waiting)
			maps.Copy(x.again, again)
			b.mu.Unlock()
			return err
		}
	}
	b.mu.Lock()
	x.failed = nil
	b.mu.Unlock()
	return nil
}

// logPlace is up to where a log was read.
type logPlace struct {
	after   uint64
	refused []refusedItem // in the order of cursors
}

type refusedItem struct {
	cursor uint64
	tries  byte
}

func logKey(inbox identity.InboxID, box identity.DeviceID) []byte {
	return key(keyLog, inbox[:], box[:])
}

func (b *logbook) load(k []byte) (p logPlace, err error) {
	err = b.db.View(func(tx *storage.Tx) error {
		v, err := tx.Get(k)
		if errors.Is(err, storage.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(v) < 8 || (len(v)-8)%9 != 0 {
			return fmt.Errorf("reading the place in a log: %w", errRow)
		}
		p.after = binary.BigEndian.Uint64(v)
		for v = v[8:]; len(v) > 0; v = v[9:] {
			p.refused = append(p.refused, refusedItem{binary.BigEndian.Uint64(v), v[8]})
		}
		return nil
	})
	return p, err
}

// save keeps a place. What a crash loses of it is read twice.
func (b *logbook) save(k []byte, p logPlace) error {
	v := be64(p.after)
	for _, r := range p.refused {
		v = append(binary.BigEndian.AppendUint64(v, r.cursor), r.tries)
	}
	return b.db.Cache(func(tx *storage.Tx) error { return tx.Set(k, v) })
}

// read reads one log.
func (b *logbook) read(ctx context.Context, ref identity.MailboxRef, inbox identity.InboxID, l openLog, fresh, again bool) error {
	k, secret := logKey(inbox, ref.Device), l.epoch.key.logSecret()
	p, err := b.load(k)
	if err != nil {
		return err
	}
	if again && len(p.refused) > 0 {
		if err := b.retry(ctx, ref, secret, l, &p); err != nil {
			return err
		}
		if err := b.save(k, p); err != nil {
			return err
		}
	}
	for more := fresh; more; {
		var items []delivery.LogItem
		items, more, err = b.store.ReadLog(ctx, ref, secret, p.after, 0)
		if err != nil || len(items) == 0 {
			return err
		}
		refused, err := b.takeAll(ctx, l, items)
		if err != nil {
			return err
		}
		for _, c := range refused {
			p.refused = append(p.refused, refusedItem{cursor: c})
		}
		p.refused = p.refused[max(0, len(p.refused)-maxRefused):]
		p.after = items[len(items)-1].Cursor
		if err := b.save(k, p); err != nil {
			return err
		}
	}
	return nil
}

// Freed hears that nothing under a former key stands in the way of a group's entries any more. What its logs brought meanwhile was
// refused, and nothing else tells that it can be taken now. It is replica.Config.AfterReplaced.
func (g *Groups) Freed(conv feed.ConversationID) { g.logbook.touch(conv) }

// retry fetches what was refused once more.
func (b *logbook) retry(ctx context.Context, ref identity.MailboxRef, secret identity.InboxSecret, l openLog, p *logPlace) error {
	var left []refusedItem
	for _, r := range p.refused {
		items, _, err := b.store.ReadLog(ctx, ref, secret, r.cursor-1, 1)
		if err != nil {
			return err
		}
		if len(items) == 0 || items[0].Cursor != r.cursor {
			continue // it ended
		}
		refused, err := b.takeAll(ctx, l, items)
		if err != nil {
			return err
		}
		if r.tries++; len(refused) > 0 && r.tries < maxAsked {
			left = append(left, r)
		}
	}
	p.refused = left
	return nil
}

// takeAll stores what envelopes hold: those of one feed one after another, different feeds at once. It returns the cursors
// of those that may be taken later.
func (b *logbook) takeAll(ctx context.Context, l openLog, items []delivery.LogItem) (refused []uint64, err error) {
	type part struct {
		cursors []uint64
		runs    []*pb.Run
		refused []uint64
	}
	parts := map[feed.FeedID]*part{}
	opener := newOpener(l.epoch.key, l.group, l.epoch.id)
	for _, it := range items {
		author, raw, err := opener.open(it.Bytes)
		if err != nil || author == b.self.Device {
			continue // nothing of ours: nonsense, or our own
		}
		id, _, err := feed.Peek(raw)
		if err != nil {
			continue
		}
		if parts[id] == nil {
			parts[id] = &part{}
		}
		parts[id].cursors, parts[id].runs = append(parts[id].cursors, it.Cursor), append(parts[id].runs, raw)
	}
	eg, ctx := errgroup.WithContext(ctx)
	eg.SetLimit(logTakers)
	for id, x := range parts {
		eg.Go(func() error {
			for i, raw := range x.runs {
				later, err := b.take(ctx, id, l.epoch.id, raw)
				if err != nil {
					return err
				}
				if later {
					x.refused = append(x.refused, x.cursors[i])
				}
			}
			return nil
		})
	}
	err = eg.Wait()
	for _, x := range parts {
		refused = append(refused, x.refused...)
	}
	slices.Sort(refused)
	return refused, err
}

// take stores one run; later: it was refused, and may not be when more is known. An error is one of the own database.
func (b *logbook) take(ctx context.Context, id feed.FeedID, epoch feed.EntryID, raw *pb.Run) (later bool, err error) {
	run, err := feed.CheckDetached(raw)
	if err != nil || id.Device == b.self.Device || !fitsEpoch(run, epoch) {
		return false, nil
	}
	held := false
	err = b.db.View(func(tx *storage.Tx) error {
		h, ok, err := b.feeds.Head(tx, id)
		held = ok && h.Last >= run.Last().Seq
		return err
	})
	if held || err != nil {
		return false, err
	}
	err = b.feeds.Take(ctx, replica.Peer{}, raw)
	switch {
	case err == nil:
		return false, nil
	case errors.Is(err, replica.ErrRefused):
		return !errors.Is(err, feed.ErrFork), nil
	case ctx.Err() != nil, errors.Is(err, storage.ErrClosed), errors.Is(err, storage.ErrFailed), errors.Is(err, storage.ErrDiskFull):
		return false, err
	}
	b.log.Debug("an envelope of a log says nothing", "group", id.Conversation.Short(), "error", err)
	return false, nil
}
