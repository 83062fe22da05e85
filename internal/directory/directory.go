package directory

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"hima/identity"
	"hima/node"
	"hima/storage"
)

// Config is what a Directory needs.
type Config struct {
	DB          *storage.DB
	Node        *node.Node           // nil: no LAN, no addresses from the network
	Certificate identity.Certificate // of this device; who answers on the LAN

	// Profile says what is told to whoever asks on the LAN, and whether anything is. Nil: nothing is told.
	Profile func() (username, nickname string, visible bool)
	// Keep says whether an account matters to the user (a contact, a request, a conversation), so that its record and
	// addresses are kept whatever strangers do. It must be cheap and must not call the directory. Nil: only the own
	// account does.
	Keep func(identity.AccountID) bool
	// OnNearby is called when somebody appears on the LAN, or comes back after having been gone. It must not block. Nil:
	// nobody is told.
	OnNearby func(Person)

	// Key signs this device's record, AccountKey what the account says. Without a Key nothing is published; ok is false on
	// a linked device, which cannot sign for its account (R17).
	Key        identity.DeviceKey
	AccountKey func() (key identity.AccountKey, ok bool)
	// OnName, OnNetwork and OnOwnRecord are told of changes and must not block; nil: nobody is told. OnOwnRecord gets a
	// record of the own account that is older than the one here and lists devices that this one neither lists nor revokes:
	// what a restored device does not know of itself (R21).
	OnName      func(NameEvent)
	OnNetwork   func(NetworkEvent)
	OnOwnRecord func(identity.AccountRecord)
	// OnRecord is called after a newer record of an account was admitted and is durable, whatever road brought it, in the
	// goroutine that brought it. It may ask the directory. Nil: nobody is told.
	OnRecord func(identity.AccountRecord)

	Agent  string           // told on the LAN; empty: "hima"
	Logger *slog.Logger     // nil: nothing is logged
	Now    func() time.Time // nil: time.Now
}

// Directory knows others' records, addresses and the LAN. Make it with New.
type Directory struct {
	cfg  Config
	log  *slog.Logger
	now  func() time.Time
	self identity.AccountID

	records recordCache
	counts  counts
	lan     lan

	nets    networks
	names   ownNames
	own     ownDevice
	devs    deviceRecords
	flights flights
	places  locations
	groups  groupShares

	asks      asker
	askGroups groupAsker
	openTable func(*joined) (dht, error)
	workBits  int           // of the proof of work over a claim
	pace      time.Duration // between two records of contacts

	savedMu sync.Mutex
	saved   map[identity.DeviceID]savedState // what the book last wrote of connected devices; bounded by connections
}

// counts are how many keys there are of the bounded kinds. They steer eviction and need not be exact.
type counts struct {
	records, devices atomic.Int64
}

// New reads the address book into the node and registers the LAN protocol; it starts nothing.
func New(c Config) (*Directory, error) {
	if c.DB == nil {
		return nil, errors.New("directory: no database")
	}
	if c.Certificate.IsZero() {
		return nil, errors.New("directory: no certificate")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Agent == "" {
		c.Agent = "hima"
	}
	d := &Directory{
		cfg:   c,
		log:   c.Logger,
		now:   c.Now,
		self:  c.Certificate.Account,
		saved: map[identity.DeviceID]savedState{},
	}
	d.records.init()
	d.lan.init()
	d.nets.init(c.DB)
	d.names.init(c.DB)
	d.own.init()
	d.devs.init(c.DB)
	d.flights.init()
	d.places.init()
	d.groups.init()
	d.asks, d.openTable, d.workBits, d.pace = streams{c.Node}, d.openNodeTable, claimBits, tendPace
	d.askGroups = streams{c.Node}.groupCards
	if err := c.DB.View(d.load); err != nil {
		return nil, err
	}
	if c.Node != nil {
		c.Node.Handle(LanProtocol, d.answer)
		c.Node.Handle(GroupProtocol, d.answerGroups)
	}
	return d, nil
}

// load counts what is kept, and tells the node the addresses of those met last.
func (d *Directory) load(tx *storage.Tx) error {
	n, err := count(tx, recordKey(identity.AccountID{})[:4])
	if err != nil {
		return err
	}
	d.counts.records.Store(n)
	if err := d.loadBook(tx); err != nil {
		return err
	}
	if err := errors.Join(d.nets.load(tx), d.names.load(tx), d.own.load(tx)); err != nil {
		return err
	}
	return d.devs.load(tx, func(dev identity.DeviceID, addrs []string) {
		if d.cfg.Node != nil && len(addrs) > 0 {
			d.cfg.Node.Remember(dev, addrs)
		}
	})
}

func count(tx *storage.Tx, prefix []byte) (n int64, err error) {
	err = tx.Scan(storage.ScanOptions{Prefix: prefix, KeysOnly: true}, func(_, _ []byte) (bool, error) {
		n++
		return true, nil
	})
	return n, err
}

// Run follows the network until ctx ends.
func (d *Directory) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		<-ctx.Done()
		close(d.names.ended)
		return nil
	})
	if d.cfg.Node != nil {
		events, cancel := d.cfg.Node.Subscribe()
		defer cancel()
		for range lanWorkers {
			g.Go(func() error { return d.askLoop(ctx) })
		}
		g.Go(func() error { return d.follow(ctx, events) })
		defer d.savePeers(true)
	}
	g.Go(func() error { return d.renewOwn(ctx) })
	g.Go(func() error { return d.runDevice(ctx) })
	g.Go(func() error { return d.runNetworks(ctx) })
	return g.Wait()
}

// follow turns events into questions and notes.
func (d *Directory) follow(ctx context.Context, events <-chan node.Event) error {
	t := time.NewTicker(tick)
	defer t.Stop()
	for _, dev := range d.cfg.Node.Announced() {
		d.foundOnLAN(dev)
	}
	for _, p := range d.cfg.Node.Peers() {
		d.metOnLAN(p.Device, p.Addr)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			d.savePeers(false)
			d.sweep()
		case e, ok := <-events:
			if !ok {
				<-ctx.Done()
				return nil
			}
			switch e := e.(type) {
			case node.Found:
				d.foundOnLAN(e.Device)
			case node.PeerUp:
				d.metOnLAN(e.Device, e.Info.Addr)
			case node.PeerDown:
				d.savePeer(e.Device, d.now(), true)
				d.lostOnLAN(e.Device)
			case node.NetworkChanged:
				d.recheck()
			case node.BootstrapUp:
				d.bootstrapUp(e.Device)
				d.tellOnline()
			case node.BootstrapDown, node.OnlineChanged:
				d.tellOnline()
			case node.AddrsChanged:
				d.own.nudge()
			}
		}
	}
}

// keep says whether an account is kept whatever strangers do.
func (d *Directory) keep(a identity.AccountID) bool {
	return a == d.self || d.cfg.Keep != nil && d.cfg.Keep(a)
}
