package mailbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"hima/storage"
)

// Timing of the keeping side.
const (
	// sweepEvery is how often items whose time is over are looked for; until then they are not handed out.
	sweepEvery = 10 * time.Minute
	// idleEvery is how often inboxes are looked for that nobody renewed.
	idleEvery = 24 * time.Hour
	// renewEvery is how exact the time of the last renewal is: a watch at every start must not cost a write each.
	renewEvery = 24 * time.Hour
)

// depositRoom bounds the bytes of deposits that wait for the disk, of all streams together.
const depositRoom = 16 << 20

// Server keeps items for others. Make it with NewServer, let Run work.
type Server struct {
	cfg    ServerConfig
	log    *slog.Logger
	rates  *rates
	shares *shares
	watch  hub                 // own lock
	totals totals              // own lock
	gate   *semaphore.Weighted // of depositRoom

	deposits, fetches, refused atomic.Uint64

	mu      sync.Mutex
	running bool                 // guarded by mu
	open    map[*stream]struct{} // guarded by mu
	streams sync.WaitGroup
}

// NewServer checks the configuration. It starts nothing.
func NewServer(c ServerConfig) (*Server, error) {
	if c.DB == nil || c.Node == nil || c.Key.IsZero() {
		return nil, errors.New("mailbox: database, node and key are required")
	}
	if c.Key.ID() != c.Node.ID() {
		return nil, errors.New("mailbox: the key is not the node's")
	}
	return newServer(c), nil
}

func newServer(c ServerConfig) *Server {
	c = c.withDefaults()
	s := &Server{cfg: c, log: c.Logger, gate: semaphore.NewWeighted(depositRoom), open: map[*stream]struct{}{}}
	s.rates = newRates(c.Limits, c.Now)
	s.shares = newShares(c.Limits, c.Now)
	s.totals.grants = map[string]usage{}
	s.watch.init()
	return s
}

func (c ServerConfig) withDefaults() ServerConfig {
	d := DefaultServerLimits()
	l := &c.Limits
	l.TotalBytes = cmp.Or(l.TotalBytes, d.TotalBytes)
	l.TotalItems = cmp.Or(l.TotalItems, d.TotalItems)
	l.Inboxes = cmp.Or(l.Inboxes, d.Inboxes)
	l.InboxBytes = cmp.Or(l.InboxBytes, d.InboxBytes)
	l.InboxItems = cmp.Or(l.InboxItems, d.InboxItems)
	l.RequestBytes = cmp.Or(l.RequestBytes, d.RequestBytes)
	l.RequestItems = cmp.Or(l.RequestItems, d.RequestItems)
	l.LogBytes = cmp.Or(l.LogBytes, d.LogBytes)
	l.LogItems = cmp.Or(l.LogItems, d.LogItems)
	l.LogDeviceBytes = cmp.Or(l.LogDeviceBytes, d.LogDeviceBytes)
	l.LogDeviceItems = cmp.Or(l.LogDeviceItems, d.LogDeviceItems)
	l.Expiry = cmp.Or(l.Expiry, d.Expiry)
	l.InboxIdle = cmp.Or(l.InboxIdle, d.InboxIdle)
	l.WorkBits = cmp.Or(l.WorkBits, d.WorkBits)
	l.Watched = cmp.Or(l.Watched, d.Watched)
	l.Rate = cmp.Or(l.Rate, d.Rate)
	l.Burst = cmp.Or(l.Burst, d.Burst)
	l.ByteRate = cmp.Or(l.ByteRate, d.ByteRate)
	l.ByteBurst = cmp.Or(l.ByteBurst, d.ByteBurst)
	l.OpenRate = cmp.Or(l.OpenRate, d.OpenRate)
	l.OpenBurst = cmp.Or(l.OpenBurst, d.OpenBurst)
	l.WorkBits = max(l.WorkBits, 0)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// now is the time to the millisecond, as receipts and keys have it.
func (s *Server) now() time.Time { return s.cfg.Now().Truncate(time.Millisecond) }

func (s *Server) fail(point string) error {
	if s.cfg.Fail == nil {
		return nil
	}
	return s.cfg.Fail(point)
}

// Run serves until ctx ends and all streams returned. It is called once.
func (s *Server) Run(ctx context.Context) error {
	if err := s.cfg.DB.View(s.totals.count); err != nil {
		return fmt.Errorf("counting what the mailbox holds: %w", err)
	}
	s.mu.Lock()
	s.running = true
	s.mu.Unlock()
	defer s.stop()
	s.cfg.Node.Handle(Protocol, s.serve)
	expired, idle := time.NewTicker(sweepEvery), time.NewTicker(idleEvery)
	defer expired.Stop()
	defer idle.Stop()
	if err := s.sweep(ctx, true); err != nil && ctx.Err() == nil {
		s.log.Warn("removing what ended", "error", err)
	}
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-expired.C:
			err = s.sweep(ctx, false)
		case <-idle.C:
			err = s.sweep(ctx, true)
		}
		if err != nil && ctx.Err() == nil {
			s.log.Warn("removing what ended", "error", err)
		}
	}
}

// stop ends all streams and waits for them.
func (s *Server) stop() {
	s.mu.Lock()
	s.running = false
	for st := range s.open {
		st.stream.Reset()
	}
	s.mu.Unlock()
	s.streams.Wait()
}

// enter counts a stream unless the server stops.
func (s *Server) enter(st *stream) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.running {
		return false
	}
	s.open[st] = struct{}{}
	s.streams.Add(1)
	return true
}

func (s *Server) leave(st *stream) {
	s.mu.Lock()
	delete(s.open, st)
	s.mu.Unlock()
	s.streams.Done()
}

// submit runs f on the committer, in the order of the calls, and tells done after the sync. What f did to the totals counts
// at once, so that what runs after it in the same group sees it, and is taken back if nothing of it was kept.
func (s *Server) submit(f func(tx *storage.Tx) ([]change, error), done func(error)) {
	var did []change
	s.cfg.DB.Submit(func(tx *storage.Tx) error {
		list, err := f(tx)
		if err != nil {
			return err
		}
		did = list
		s.totals.apply(did...)
		return nil
	}, func(err error) {
		if err != nil {
			s.totals.apply(negate(did)...)
		}
		done(err)
	})
}

// update is submit that waits.
func (s *Server) update(ctx context.Context, f func(tx *storage.Tx) ([]change, error)) error {
	done := make(chan error, 1)
	s.submit(f, func(err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// sweep removes what ended, in small transactions between which deposits get their turn.
func (s *Server) sweep(ctx context.Context, idle bool) error {
	for more := true; more; {
		err := s.update(ctx, func(tx *storage.Tx) (did []change, err error) {
			did, more, err = s.sweepExpired(tx, s.now())
			return did, err
		})
		if err != nil {
			return err
		}
	}
	for start := []byte(nil); idle; {
		err := s.update(ctx, func(tx *storage.Tx) ([]change, error) {
			did, next, err := s.sweepIdle(tx, start, s.now())
			start = next
			return []change{did}, err
		})
		if err != nil {
			return err
		}
		if start == nil {
			break
		}
	}
	for more := true; more; {
		err := s.update(ctx, func(tx *storage.Tx) ([]change, error) {
			did, again, err := s.sweepGone(tx)
			more = again
			return []change{did}, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Stats counts what is held and was done.
func (s *Server) Stats() ServerStats {
	bytes, items := s.totals.sum()
	return ServerStats{
		Inboxes: s.totals.inboxes(), Items: items, Bytes: bytes,
		Deposits: s.deposits.Load(), Fetches: s.fetches.Load(), Refused: s.refused.Load(),
	}
}

// Usage says what the inboxes under a grant hold.
func (s *Server) Usage(grant []byte) (bytes uint64, items int) { return s.totals.usage(grant) }

// terms are the conditions of this mailbox.
func (s *Server) terms() Terms {
	l := s.cfg.Limits
	return Terms{
		Open: s.cfg.Open, InboxBytes: l.InboxBytes, InboxItems: l.InboxItems, RequestBytes: l.RequestBytes, RequestItems: l.RequestItems,
		Expiry: l.Expiry, InboxIdle: l.InboxIdle, WorkBits: l.WorkBits, MaxItem: maxItem, Time: s.now(),
	}
}
