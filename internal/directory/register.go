package directory

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/wire"
	"hima/internal/wire/pb"
	"hima/node"
	"hima/storage"
)

// Protocols that a bootstrap node answers.
const (
	NetworkProtocol = "/hima/network/1"
	NamesProtocol   = "/hima/names/1"
)

// What a bootstrap node may serve, as its card says.
const (
	ServeDHT     = "dht"
	ServeRelay   = "relay"
	ServeMailbox = "mailbox"
	ServeNames   = "names"
)

// RegisterConfig is what a Register needs.
type RegisterConfig struct {
	DB   *storage.DB
	Node *node.Node
	Key  identity.DeviceKey
	// Link is the network's present link, this node among the bootstrap nodes. Their keys stamp names.
	Link func() identity.NetworkLink
	// Serves is what the card says; names are answered for only if ServeNames is among them.
	Serves []string
	// Fresh: the network is new, so that an empty register is right. Otherwise a register that begins empty stamps
	// nothing for 24 hours, in which owners and contacts return what it may have known before (R19).
	Fresh  bool
	Agent  string           // empty: "hima"
	Now    func() time.Time // nil: time.Now
	Logger *slog.Logger     // nil: nothing is logged
}

// Register answers for a network: which it is, and who has which name. Make it with NewRegister.
type Register struct {
	cfg  RegisterConfig
	log  *slog.Logger
	now  func() time.Time
	asks asker // sisters
	bits int   // of the proof of work over a claim

	writing sync.Mutex // one stamp after the other: first come, first served

	mu     sync.Mutex
	opens  time.Time // from when on it stamps
	names  int
	stats  RegisterStats
	limits map[identity.DeviceID]*rate.Limiter // at most maxAskers
	all    *rate.Limiter
}

// RegisterStats are counts since the start, and the state of the register.
type RegisterStats struct {
	Names      int       // stamped and known
	Rebuilding bool      // stamps nothing yet
	Until      time.Time // when it will; zero unless Rebuilding
	Stamped    uint64
	Looked     uint64
	Returned   uint64 // stamps that came back and were not known
	Refused    uint64
	Cards      uint64
}

// Keys of the register, written durably:
//
//	d/g/n/ name             the signed bytes of the stamp that counts
//	d/g/a/ account name     empty: a name of this account
//	d/g/b                   from when on it stamps (8 bytes, Unix milliseconds)
func registeredKey(name string) []byte { return append([]byte("d/g/n/"), name...) }

func holdsKey(a identity.AccountID, name string) []byte {
	return append(append([]byte("d/g/a/"), a[:]...), name...)
}

func opensKey() []byte { return []byte("d/g/b") }

// NewRegister reads what is registered and answers from then on.
func NewRegister(c RegisterConfig) (*Register, error) {
	if c.DB == nil || c.Node == nil || c.Link == nil {
		return nil, errors.New("register: no database, node or link")
	}
	r, err := newRegister(c)
	if err != nil {
		return nil, err
	}
	r.asks = streams{c.Node}
	c.Node.Handle(NetworkProtocol, r.serveCard)
	if slices.Contains(c.Serves, ServeNames) {
		c.Node.Handle(NamesProtocol, r.serveName)
	}
	return r, nil
}

// newRegister makes one that nobody can ask yet.
func newRegister(c RegisterConfig) (*Register, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Agent == "" {
		c.Agent = "hima"
	}
	r := &Register{
		cfg: c, log: c.Logger, now: c.Now, bits: claimBits,
		limits: map[identity.DeviceID]*rate.Limiter{}, all: rate.NewLimiter(registerRate, registerBurst),
	}
	return r, r.load()
}

// load counts the names and finds out from when on the register may stamp. That is written down at the first start: a
// restart neither shortens the silence nor begins it anew.
func (r *Register) load() error {
	known := false
	err := r.cfg.DB.View(func(tx *storage.Tx) error {
		n, err := count(tx, registeredKey(""))
		if err != nil {
			return err
		}
		r.names = int(n)
		b, err := tx.Get(opensKey())
		if errors.Is(err, storage.ErrNotFound) {
			return nil
		}
		if err == nil && len(b) == 8 {
			known, r.opens = true, time.UnixMilli(int64(binary.BigEndian.Uint64(b)))
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("reading the register: %w", err)
	}
	now := r.now()
	if known && (!r.cfg.Fresh || !now.Before(r.opens)) {
		return nil
	}
	r.opens = now
	if !r.cfg.Fresh {
		r.opens = now.Add(registerSilence)
	}
	b := binary.BigEndian.AppendUint64(nil, uint64(r.opens.UnixMilli()))
	err = r.cfg.DB.Update(context.Background(), func(tx *storage.Tx) error { return tx.Set(opensKey(), b) })
	if err != nil {
		return fmt.Errorf("beginning the register: %w", err)
	}
	return nil
}

// Run keeps the register until ctx ends.
func (r *Register) Run(ctx context.Context) error {
	for sleep(ctx, time.Minute) {
		now := r.now()
		r.mu.Lock()
		for dev, l := range r.limits {
			if l.TokensAt(now) >= askerBurst {
				delete(r.limits, dev)
			}
		}
		r.mu.Unlock()
	}
	return nil
}

// Stats tells how the register is doing.
func (r *Register) Stats() RegisterStats {
	now := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.stats
	s.Names = r.names
	if s.Rebuilding = now.Before(r.opens); s.Rebuilding {
		s.Until = r.opens
	}
	return s
}

func (r *Register) rebuilding() bool {
	now := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	return now.Before(r.opens)
}

func (r *Register) note(f func(*RegisterStats)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.stats)
}

// allow spends a token of a device and one of everybody.
func (r *Register) allow(dev identity.DeviceID) bool {
	now := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.limits[dev]
	if l == nil {
		if len(r.limits) >= maxAskers {
			r.stats.Refused++
			return false // a crowd of new devices: they wait until the sweep
		}
		l = rate.NewLimiter(askerRate, askerBurst)
		r.limits[dev] = l
	}
	ok := l.AllowN(now, 1) && r.all.AllowN(now, 1)
	if !ok {
		r.stats.Refused++
	}
	return ok
}

func (r *Register) serveCard(s *node.Stream) {
	if !r.allow(s.Remote()) {
		s.Reset()
		return
	}
	var q pb.NetworkQuestion
	var failed error
	err := serveOne(s, wire.MaxNetworkFrame, &q, func() proto.Message {
		var m *pb.Signed
		m, failed = r.signedCard()
		return m
	})
	if err = errors.Join(err, failed); err != nil {
		r.log.Debug("answering for the network", "device", s.Remote().Short(), "error", err)
		s.Reset()
	}
}

// signedCard makes a card. It is signed anew for everybody who asks: its time is also how they see that their clock is wrong.
func (r *Register) signedCard() (*pb.Signed, error) {
	link := r.cfg.Link()
	var addrs []string
	for _, b := range link.Bootstraps {
		if b.Device == r.cfg.Key.ID() {
			addrs = b.Addrs
		}
	}
	r.note(func(s *RegisterStats) { s.Cards++ })
	m := &pb.Signed{}
	c, err := identity.NewNetworkCard(r.cfg.Key, identity.NetworkCard{
		Name: link.Name, Founder: link.Founder, Serves: r.cfg.Serves, Time: r.now(), Agent: r.cfg.Agent, Addrs: addrs,
	})
	if err != nil {
		return m, err
	}
	return m, proto.Unmarshal(c.Raw(), m)
}

func (r *Register) serveName(s *node.Stream) {
	if !r.allow(s.Remote()) {
		_ = serveOne(s, wire.MaxNamesFrame, &pb.NameRequest{}, func() proto.Message {
			return &pb.NameAnswer{Code: pb.NameAnswer_CODE_BUSY, TimeMs: r.now().UnixMilli()}
		})
		return
	}
	var q pb.NameRequest
	err := serveOne(s, wire.MaxNamesFrame, &q, func() proto.Message {
		ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
		defer cancel()
		return r.answer(ctx, &q)
	})
	if err != nil {
		r.log.Debug("answering about a name", "device", s.Remote().Short(), "error", err)
		s.Reset()
	}
}
