package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"hima/identity"
	"hima/internal/feed"
	"hima/node"
	"hima/storage"
)

// Replica is the entry store and its sessions. Make it with New; the store half works at once, sessions while Run runs.
type Replica struct {
	cfg    Config
	log    *slog.Logger
	self   identity.DeviceID
	author feed.Author

	diverged atomic.Bool
	tails    tails     // own lock
	clocks   clocks    // own lock
	signing  presigned // own lock
	streams  streams   // own lock
	moves    moves     // own lock
	debts    debts     // own lock
	receipts receipts  // own lock
	lacking  lacking   // own lock
	works    works     // own lock
	former   former    // not changed after New

	mu     sync.RWMutex
	wishes map[floorWish]bool // guarded by mu; the same as the keys under r/z

	wrote func(to Peer, id feed.FeedID, from, last uint64) // tests: a run goes onto the wire; nil: nobody looks
}

// New checks the configuration and reads what has to be in memory. It starts nothing.
func New(c Config) (*Replica, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	c = c.withDefaults()
	r := &Replica{
		cfg:    c,
		log:    c.Logger,
		self:   c.Key.ID(),
		author: feed.NewAuthor(c.Account, c.Key.ID(), c.Certificate),
		wishes: map[floorWish]bool{},
	}
	r.streams.init()
	r.debts.init()
	r.receipts.init()
	r.lacking.init()
	if err := c.DB.View(r.loadWishes); err != nil {
		return nil, fmt.Errorf("opening entry store: %w", err)
	}
	if err := r.loadFormer(); err != nil {
		return nil, fmt.Errorf("opening entry store: %w", err)
	}
	return r, nil
}

// Run answers and keeps sessions until the context ends; when it returns all of them are closed and their goroutines
// have ended.
func (r *Replica) Run(ctx context.Context) error {
	if r.cfg.Node == nil {
		return errors.New("replica: no node to run on")
	}
	if !r.streams.open() {
		return errors.New("replica: already running")
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, stop := r.cfg.Node.Subscribe()
	defer stop()
	wg.Go(func() { r.runMoves(ctx, events, &wg) })
	r.cfg.Node.Handle(Protocol, func(st *node.Stream) { r.accept(ctx, st) })
	defer r.streams.close()
	wg.Go(func() { r.runReceipts(ctx) })
	wg.Go(func() { r.runVoid(ctx) })
	for {
		select {
		case d := <-r.streams.dials:
			wg.Go(func() { r.dial(ctx, d, &wg) })
		case <-ctx.Done():
			return nil
		}
	}
}

// fail is a named point at which tests let a step end as a crash would.
func (r *Replica) fail(point string) error {
	if r.cfg.Fail == nil {
		return nil
	}
	if err := r.cfg.Fail(point); err != nil {
		return fmt.Errorf("failing at %s: %w", point, err)
	}
	return nil
}

// view reads the database.
func (r *Replica) view(f func(*storage.Tx) error) error { return r.cfg.DB.View(f) }
