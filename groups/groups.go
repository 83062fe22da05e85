package groups

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
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

// Feeds is what groups need of the entry store and its sessions; *replica.Replica is the real one, with the messenger's
// Append, so that own acts stand in the history. It is an interface because the tests need many accounts in one process
// without a network.
type Feeds interface {
	Append(tx *storage.Tx, drafts ...replica.Draft) ([]feed.Entry, error)
	Entry(tx *storage.Tx, id feed.FeedID, seq uint64) (feed.Entry, error)
	Entries(tx *storage.Tx, id feed.FeedID, from, to uint64, f func(feed.Entry) (more bool, err error)) error
	Head(tx *storage.Tx, id feed.FeedID) (feed.Head, bool, error)
	Ends(tx *storage.Tx, conv feed.ConversationID) ([]feed.Head, error)
	AckedBy(tx *storage.Tx, id feed.FeedID, f func(device identity.DeviceID, last uint64) (more bool, err error)) error
	OwnFeed(conv feed.ConversationID, n feed.Number) feed.FeedID
	ReadRun(id feed.FeedID, from uint64) (*pb.Run, error)
	Take(ctx context.Context, from replica.Peer, raw *pb.Run) error
	SubmitRun(from replica.Peer, run feed.Run, live bool, done func(error))
	Prove(tx *storage.Tx, proof feed.ForkProof) error
	Proof(tx *storage.Tx, id feed.FeedID) (*feed.ForkProof, error)
	Branch(tx *storage.Tx, id feed.FeedID, from, last uint64) ([]feed.Entry, error)

	Connected(device identity.DeviceID) bool
	Open(ctx context.Context, device identity.DeviceID) error
	Sessions() []replica.SessionInfo
	Reannounce(conv feed.ConversationID)
	PushKeys(conv feed.ConversationID)
	PushKeysTo(device identity.DeviceID)
}

// Parts are the other packages, which need Groups to exist before they do.
type Parts struct {
	Feeds Feeds // required
	// Say writes an entry of the direct conversation with an account, also a stranger's; nil: nothing can be said.
	Say func(tx *storage.Tx, to identity.AccountID, kind feed.Kind, content []byte) error
	// Note writes an entry of kind 35 of the self conversation, by which the account's other devices hear of a link; nil: they
	// do not.
	Note func(tx *storage.Tx, link *pb.InviteState) error
	// DefaultNickname is the name under which this account shows itself in a group from the beginning; nil or empty: none.
	DefaultNickname func() string
	// Devices lists the devices known of an account; nil: none are.
	Devices func(identity.AccountID) []identity.DeviceID
	// Networks, Addrs and Mailboxes say where this device is found, for invitations and links, and who keeps its mail; nil:
	// nothing is said.
	Networks  func() []identity.NetworkLink
	Addrs     func() []string
	Mailboxes func() []identity.MailboxRef
	// Hint notes where a device of an account may be, Join that a network may lead there. Nothing of it is proven. They run
	// on goroutines of Run. nil: not noted.
	Hint func(account identity.AccountID, device identity.DeviceID, addrs []string)
	Join func(ctx context.Context, link identity.NetworkLink)
	// Seek asks the network for the devices of an account of which none is known; nil: it is not asked.
	Seek func(ctx context.Context, account identity.AccountID)

	Log       Log       // the groups' mailboxes; nil: none
	Directory Directory // tells of public groups; nil: nobody does

	// PubSub is the fast road; Run runs it. nil: there is none.
	PubSub *node.PubSub
	// Locate asks the network where a device is and lets the node know; nil: it is not asked.
	Locate func(ctx context.Context, device identity.DeviceID) error
	// Release ends a session that this package opened and no group needs; nil: it stays.
	Release func(device identity.DeviceID)
}

// Groups are the groups of one account on one device. Make it with New, give it the other parts with Bind.
type Groups struct {
	cfg     Config
	parts   Parts
	log     *slog.Logger
	now     func() time.Time
	self    replica.Peer
	gossip  *gossip
	mesh    *mesh
	logbook *logbook
	board   *noticeboard
	forks   branches // see branches.go
	cache   cache
	rates   rates
	states  states

	mu     sync.Mutex
	hooks  []func(conv ID)  // guarded by mu; see onChanged
	wants  chan struct{}    // ticks when the loop of keep has something to do
	lost   chan struct{}    // ticks when the loop of seek does
	hints  []invitationHint // guarded by mu; what Run tells Parts.Hint and Parts.Join
	full   map[ID]struct{}  // guarded by mu; where something was refused as too much
	waits  map[ID]waiting   // guarded by mu; see keyless
	crowds map[crowd]bool   // guarded by mu; see crowded
	ripe   bool             // guarded by mu; verdicts that were kept can be judged
}

// New checks the configuration. It starts nothing.
func New(c Config) (*Groups, error) {
	if c.DB == nil || c.Account.IsZero() || c.Key.IsZero() || c.Certificate.IsZero() || c.Records == nil {
		return nil, errors.New("making groups: incomplete configuration")
	}
	if c.Certificate.Device != c.Key.ID() || c.Certificate.Account != c.Account {
		return nil, fmt.Errorf("making groups: certificate of another device: %w", ErrInvalid)
	}
	c = c.withDefaults()
	g := &Groups{
		cfg: c, log: c.Logger, now: c.Now, self: replica.Peer{Account: c.Account, Device: c.Key.ID()},
		cache: cache{groups: map[ID]*group{}, max: c.Limits.Cached}, rates: rates{limits: c.Limits, at: map[rateKey]*bucket{}},
		wants: make(chan struct{}, 1), lost: make(chan struct{}, 1), full: map[ID]struct{}{}, waits: map[ID]waiting{},
	}
	g.gossip = newGossip(g.self, c.DB, g.log, g.now)
	g.mesh = newMesh(g.self.Device, g.log, g.now, g.gossip)
	g.board = newNoticeboard()
	g.logbook = newLogbook(g.self, c.Key, c.Certificate, c.DB, g.log, g.now)
	return g, nil
}

func (c Config) withDefaults() Config {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Fold == nil {
		c.Fold = func(s string) string { return strings.ToLower(strings.Join(strings.Fields(s), " ")) }
	}
	if c.News == nil {
		c.News = func(*storage.Tx, News) error { return nil }
	}
	l, d := &c.Limits, DefaultLimits()
	l.Acts, l.Burst, l.ActBurst, l.Waiting = cmp.Or(l.Acts, d.Acts), cmp.Or(l.Burst, d.Burst), cmp.Or(l.ActBurst, d.ActBurst), cmp.Or(l.Waiting, d.Waiting)
	l.MemberActs, l.AdminActs, l.Automatic = cmp.Or(l.MemberActs, d.MemberActs), cmp.Or(l.AdminActs, d.AdminActs), cmp.Or(l.Automatic, d.Automatic)
	l.Rate, l.ActRate = cmp.Or(l.Rate, d.Rate), cmp.Or(l.ActRate, d.ActRate)
	l.Applications, l.Invitations, l.Links = cmp.Or(l.Applications, d.Applications), cmp.Or(l.Invitations, d.Invitations), cmp.Or(l.Links, d.Links)
	l.Cached, l.EpochEntries = cmp.Or(l.Cached, d.Cached), cmp.Or(l.EpochEntries, d.EpochEntries)
	l.EpochAge, l.Invitation = cmp.Or(l.EpochAge, d.EpochAge), min(cmp.Or(l.Invitation, d.Invitation), identity.ConsentLifetime)
	return c
}

// Bind gives the other parts. It is called once, before anything else.
func (g *Groups) Bind(p Parts) {
	g.parts = p
	g.bindRoads()
	g.bindLog()
	g.onChanged(g.board.touch)
}

// Run does what goes on by itself until the context ends: see the functions it starts.
func (g *Groups) Run(ctx context.Context) error {
	eg, ctx := errgroup.WithContext(ctx)
	eg.Go(func() error { return g.keep(ctx) })
	eg.Go(func() error { return g.seek(ctx) })
	eg.Go(func() error { return g.gossip.run(ctx) })
	eg.Go(func() error { return g.mesh.run(ctx) })
	eg.Go(func() error { return g.runLog(ctx) })
	eg.Go(func() error { return g.runCards(ctx) })
	return eg.Wait()
}
