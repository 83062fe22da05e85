package delivery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"hima/identity"
	"hima/internal/replica"
	"hima/storage"
)

// Mail is the road by way of mailboxes: it posts what is owed to devices that cannot be reached, and collects what was
// left for this one. Make it with NewMail, let Run work. mu guards everything below it; it is never held while the database,
// a mailbox or a hook is waited for.
type Mail struct {
	cfg  MailConfig
	log  *slog.Logger
	self identity.DeviceID
	wake chan struct{} // one slot

	mu         sync.Mutex
	boxes      map[identity.DeviceID]*box
	prekeys    []rotating // newest last
	ledger     ledger
	posters    map[identity.DeviceID]*poster
	posting    int                             // posts under way
	lazyPosts  int                             // of these, those for groups
	again      bool                            // entries of groups came since what was left was last looked at
	leaving    bool                            // the node ends
	side       map[identity.AccountID]bool     // accounts with an inbox that are no contacts; nil: not counted yet
	offering   map[identity.DeviceID]time.Time // offers of which it is not known yet that they arrived
	stale      map[identity.DeviceID]bool      // devices whose inboxes are gone
	bad        map[identity.DeviceID]time.Time // mailboxes that lied, until when they are not used
	judged     map[identity.DeviceID]string    // what mailboxes last did
	requests   bool                            // strangers may leave first requests
	dirty      bool                            // boxes, inboxes or keys changed
	stalePosts bool                            // who is owed what is to be asked anew
	sessions   map[identity.DeviceID]bool      // devices that asked for an offer, perhaps gone since
	news       chan struct{}                   // closed and made anew when inboxes were opened
	told       *DeviceInfo                     // what the device record was last asked to say
}

var (
	_ replica.Side = (*Mail)(nil)
	_ MailFeeds    = (*replica.Replica)(nil)
)

const (
	// mailRefresh is the shortest time between two looks at who is owed something.
	mailRefresh = 100 * time.Millisecond
	// mailCheck is the longest time until what changes without a tick is looked at.
	mailCheck = time.Minute
	// tidyEvery is how often keys, notes and retired mailboxes are looked through.
	tidyEvery = 20 * time.Minute
)

// NewMail checks the configuration and reads what is kept. It starts nothing.
func NewMail(c MailConfig) (*Mail, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	c = c.withDefaults()
	m := &Mail{
		cfg: c, log: c.Logger, self: c.Key.ID(), wake: make(chan struct{}, 1),
		boxes: map[identity.DeviceID]*box{}, ledger: ledger{}, posters: map[identity.DeviceID]*poster{},
		offering: map[identity.DeviceID]time.Time{}, stale: map[identity.DeviceID]bool{}, bad: map[identity.DeviceID]time.Time{},
		judged: map[identity.DeviceID]string{}, sessions: map[identity.DeviceID]bool{}, news: make(chan struct{}), dirty: true, stalePosts: true,
	}
	err := c.DB.View(func(tx *storage.Tx) error {
		for _, load := range []func(*storage.Tx) error{m.loadBoxes, m.loadPrekeys, m.loadLedger} {
			if err := load(tx); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading what is known of mail: %w", err)
	}
	return m, nil
}

func (m *Mail) poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func (m *Mail) fail(point string) error {
	if m.cfg.Fail == nil {
		return nil
	}
	return m.cfg.Fail(point)
}

func jitter(t time.Duration) time.Duration { return t - time.Duration(rand.Int64N(int64(t)/4+1)) }

// Run posts and collects until ctx ends and everything that it began returned.
func (m *Mail) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	owed, stop := m.cfg.Feeds.WatchOwed()
	defer stop()
	collectors := map[*box]bool{}
	timer := time.NewTimer(0)
	defer timer.Stop()
	var refreshed, tidied time.Time
	for {
		now := m.cfg.Now()
		if now.Sub(tidied) >= tidyEvery || now.Before(tidied) {
			m.tidy(ctx)
			tidied = now
		}
		m.reconcile(ctx, collectors, &wg)
		wait := mailCheck
		m.mu.Lock()
		stale := m.stalePosts || now.Sub(refreshed) >= mailCheck
		m.mu.Unlock()
		if since := now.Sub(refreshed); stale && since >= 0 && since < mailRefresh {
			wait = mailRefresh - since
		} else if stale {
			m.mu.Lock()
			m.stalePosts = false
			m.mu.Unlock()
			m.check(ctx, "looking at what is owed", m.refresh(ctx))
			refreshed = now
		}
		if next := m.step(ctx, &wg, now); !next.IsZero() {
			wait = min(wait, max(next.Sub(m.cfg.Now()), time.Millisecond))
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			m.farewell(ctx)
			return nil
		case <-timer.C:
		case <-owed:
			m.mu.Lock()
			m.stalePosts = true
			m.mu.Unlock()
		case <-m.wake:
		}
	}
}

// farewellTime is how long the end may be held up for what can still be left in mailboxes.
const farewellTime = time.Second

// farewell posts what is owed to devices that are away, also receipts that would have waited a little: who reads, answers
// and goes leaves the acknowledgement behind, and not only when it comes again.
func (m *Mail) farewell(ended context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ended), farewellTime)
	defer cancel()
	if err := m.cfg.Feeds.FlushReceipts(ctx); err != nil {
		m.log.Debug("making the last receipts", "error", err)
		return
	}
	// What a group's log takes meanwhile need not go to each of its members.
	for _, last := range []bool{false, true} {
		if err := m.refresh(ctx); err != nil {
			m.log.Debug("looking at what is owed", "error", err)
			return
		}
		m.mu.Lock()
		m.leaving = last
		now := m.cfg.Now()
		for _, p := range m.posters {
			p.failed = true // there is no time left to try directly
			if !p.receipt.IsZero() && !p.later {
				p.receipt = now.Add(-m.cfg.Limits.Receipt)
			}
		}
		m.mu.Unlock()
		var wg sync.WaitGroup
		m.start(ctx, &wg, now)
		wg.Wait()
	}
}

func (m *Mail) check(ctx context.Context, what string, err error) {
	if err != nil && ctx.Err() == nil {
		m.log.Warn(what, "error", err)
	}
}

// step does what is due and says when something is next.
func (m *Mail) step(ctx context.Context, wg *sync.WaitGroup, now time.Time) time.Time {
	m.check(ctx, "noting offers that arrived", m.confirm(ctx))
	m.mu.Lock()
	over, next := m.ledger.over(now)
	if len(m.offering) > 0 {
		next = sooner(next, now.Add(confirmAfter/4))
	}
	m.mu.Unlock()
	if len(over) > 0 {
		m.check(ctx, "ending custody", m.endCustody(ctx, over))
	}
	return sooner(next, m.start(ctx, wg, now))
}

func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// reconcile lets a collector run for every mailbox in use, and tells what the device record is to say.
func (m *Mail) reconcile(ctx context.Context, collectors map[*box]bool, wg *sync.WaitGroup) {
	m.mu.Lock()
	if !m.dirty {
		m.mu.Unlock()
		return
	}
	m.dirty = false
	requests := m.requests
	var begin []*box
	living := map[*box]bool{}
	for _, b := range m.boxes {
		living[b] = true
		if !collectors[b] {
			begin = append(begin, b)
		}
	}
	m.mu.Unlock()
	for _, b := range begin {
		collectors[b] = true
		wg.Go(func() {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			go func() { // one that is not used any more ends
				select {
				case <-ctx.Done():
				case <-b.gone:
					cancel()
				}
			}()
			m.runBox(ctx, b)
		})
	}
	for b := range collectors {
		if !living[b] {
			delete(collectors, b)
			close(b.gone)
		}
	}
	if requests {
		m.check(ctx, "making an inbox for requests", m.wantInboxes(ctx, identity.AccountID{}))
	}
	m.mu.Lock()
	info := m.deviceInfo()
	var heard []identity.DeviceID
	if m.told != nil && !sameInfo(*m.told, info) {
		heard = m.connectedLocked()
	}
	same := m.told != nil && sameInfo(*m.told, info) && m.told.Request == info.Request
	m.told = &info
	m.mu.Unlock()
	if !same {
		m.cfg.OnDevice(info)
	}
	for _, dev := range heard {
		m.cfg.Feeds.PushOffer(dev)
	}
}

// tidy rotates and erases keys and forgets what is over.
func (m *Mail) tidy(ctx context.Context) {
	fresh, err := m.rotate(ctx)
	m.check(ctx, "rotating prekeys", err)
	if fresh {
		m.mu.Lock()
		m.dirty = true
		m.mu.Unlock()
	}
	m.check(ctx, "noting empty mailboxes", m.noteResting(ctx))
	m.check(ctx, "erasing prekeys", m.erasePrekeys(ctx))
	m.check(ctx, "forgetting items", m.forgetTaken(ctx))
	m.check(ctx, "retiring mailboxes", m.retire(ctx))
	m.check(ctx, "closing inboxes", m.shed(ctx))
	m.check(ctx, "forgetting what was carried", m.forgetCarried(ctx))
}

func (c MailConfig) withDefaults() MailConfig {
	d := DefaultMailLimits()
	l := &c.Limits
	l.Grace = cmp.Or(l.Grace, d.Grace)
	l.Posts = cmp.Or(l.Posts, d.Posts)
	l.Retry = cmp.Or(l.Retry, d.Retry)
	l.RetryCap = cmp.Or(l.RetryCap, d.RetryCap)
	l.Receipt = cmp.Or(l.Receipt, d.Receipt)
	l.Rotation = cmp.Or(l.Rotation, d.Rotation)
	l.OneTime = cmp.Or(l.OneTime, d.OneTime)
	l.OneTimeOf = cmp.Or(l.OneTimeOf, d.OneTimeOf)
	l.Slack = cmp.Or(l.Slack, d.Slack)
	l.Left = cmp.Or(l.Left, d.Left)
	l.GroupGrace = cmp.Or(l.GroupGrace, d.GroupGrace)
	l.GroupChat = cmp.Or(l.GroupChat, d.GroupChat)
	l.GroupKeys = cmp.Or(l.GroupKeys, d.GroupKeys)
	l.GroupReceipt = cmp.Or(l.GroupReceipt, d.GroupReceipt)
	l.Comembers = cmp.Or(l.Comembers, d.Comembers)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.OnDevice == nil {
		c.OnDevice = func(DeviceInfo) {}
	}
	if c.Snapshot == nil {
		c.Snapshot = func() (identity.InboxSecret, bool) { return identity.InboxSecret{}, false }
	}
	return c
}

func (c MailConfig) check() error {
	switch {
	case c.DB == nil || c.Feeds == nil || c.Client == nil || c.Records == nil || c.Hooks == nil || c.Accepted == nil:
		return errors.New("delivery: database, feeds, client, records, hooks and the judge of contacts are required")
	case c.Certificate.Device != c.Key.ID() || c.Certificate.Account != c.Account:
		return errors.New("delivery: the certificate is not of this account and device")
	}
	return nil
}
