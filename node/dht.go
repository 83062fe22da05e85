package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	kad "github.com/libp2p/go-libp2p-kad-dht"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	kb "github.com/libp2p/go-libp2p-kbucket"
	record "github.com/libp2p/go-libp2p-record"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"

	"hima/identity"
	"hima/storage"
)

// Errors of the DHT.
var (
	// ErrAlone is returned by Put when no other node is in the table: the record is stored here, is served to those who
	// come later, and should be put again when somebody has come.
	ErrAlone = errors.New("no other node is in the table; the record is kept here")
	// ErrNoRecord is returned by Get when nobody asked has a valid record.
	ErrNoRecord = errors.New("no record")
	// ErrBadRecord is returned by Put when the validator refuses the record.
	ErrBadRecord = errors.New("record is not valid")
	// ErrOldRecord is returned by Put when this node holds a better record under the key.
	ErrOldRecord = errors.New("a better record is known")
)

const (
	// kadSuffix ends the protocol of every DHT.
	kadSuffix = "/kad/1.0.0"
	// dhtClosest is how many nodes keep each record: kad-dht's bucket size.
	dhtClosest = 20
	// dhtDial bounds dialling a node during a look-up: a dead one must not hold up the others.
	dhtDial = 3 * time.Second
	// dhtPatience is how long a look-up that has found something goes on at least, and dhtPatienceTimes how many times as
	// long as it took to find it: a node that is dead or slow costs no more than that, once dhtQuorum nodes hold what was
	// found, or a quarter of those in the table if that is less. What fewer hold may be old, or the word of a liar who was
	// quicker than dead nodes could be given up; their time ends with dhtPatienceMax, after which all who were asked at a
	// time have answered or never will.
	dhtPatience      = 2 * time.Second
	dhtPatienceTimes = 2
	dhtQuorum        = 5
	dhtPatienceMax   = dhtAnswer + dhtPatience
	// dhtGood is how many nodes are remembered over a restart, dhtRemember how often they are written down, dhtRejoin how
	// many of them are dialled at the start.
	dhtGood     = 24
	dhtRemember = 10 * time.Minute
	dhtRejoin   = 6
	// dhtLarge is from how many peers in the table on its far parts are filled. Up to the twenty that keep a record
	// everybody knows everybody.
	dhtLarge = 30
	// dhtPart is how many peers a part of the table holds at most, and dhtParts how many parts are looked at.
	dhtPart  = 20
	dhtParts = 15
	// dhtAgain is the middle of when the table is filled a second time.
	dhtAgain = time.Minute
	// dhtPoll is how often a DHT looks whether its table has become non-empty, at first; ever less often then.
	dhtPoll    = 200 * time.Millisecond
	dhtPollMax = 15 * time.Second
)

// DHTConfig says how a DHT is made.
type DHTConfig struct {
	// Prefix of the protocol: "/hima/<network id>". Nodes with other prefixes know nothing of each other.
	Prefix string
	// Server stores records of others and stands in their tables, except while this node can be reached over limited
	// relays alone. False: only asks.
	Server bool
	// Validators by namespace: "hima-id" judges keys "/hima-id/…".
	Validators map[string]identity.Validator
	// Store keeps records and the addresses of good peers over a restart. Nil: in memory.
	Store *storage.DB
	// Bootstraps are asked whenever the table is nearly empty.
	Bootstraps func() []Bootstrap
	// RecordAge is how long a record is kept after it came. Default 48 h.
	RecordAge time.Duration
	// ProviderAge is how long somebody counts as a provider after it said so. Default 24 h.
	ProviderAge time.Duration
	// Refresh is how often the table is refreshed. Default one hour.
	Refresh time.Duration
	// Records is how many records of others are kept. Default 4096, for a server 65536.
	Records int
}

// DHTAnswer is what one of the closest nodes said.
type DHTAnswer struct {
	From  identity.DeviceID
	Value []byte // nil: it has none, or none that is valid
}

// DHT is this node's part of one network's table of records. All methods may be called from any goroutine.
type DHT struct {
	n         *Node
	cfg       DHTConfig
	proto     protocol.ID
	kad       *kad.IpfsDHT
	judge     record.NamespacedValidator
	sender    *dhtSender
	store     *dhtStore
	providers *providerStore
	good      []byte // the database key of the remembered nodes

	closeOnce sync.Once
	closeErr  error
	closed    chan struct{}
}

// NewDHT makes one, which answers from then on; Run makes it join. It ends with Close, or with the node.
func (n *Node) NewDHT(c DHTConfig) (*DHT, error) {
	if c.Prefix == "" || c.Prefix[0] != '/' {
		return nil, fmt.Errorf("DHT prefix %q does not begin with a slash", c.Prefix)
	}
	if c.RecordAge <= 0 {
		c.RecordAge = 48 * time.Hour
	}
	if c.ProviderAge <= 0 {
		c.ProviderAge = dhtProviderAge
	}
	if c.Refresh <= 0 {
		c.Refresh = time.Hour
	}
	if c.Records <= 0 {
		c.Records = dhtRecords
		if n.cfg.Server != nil {
			c.Records = dhtServerRecords
		}
	}
	hash := sha256.Sum256([]byte(c.Prefix))
	keys := "n/k/" + hex.EncodeToString(hash[:8])
	d := &DHT{n: n, cfg: c, proto: protocol.ID(c.Prefix) + kadSuffix, judge: record.NamespacedValidator{}, good: []byte(keys + "/good"), closed: make(chan struct{})}
	for ns, v := range c.Validators {
		d.judge[ns] = v
	}
	var err error
	if d.store, err = newDHTStore(c.Store, keys+"/r", []byte(n.id.PeerID()), c.Records); err != nil {
		return nil, fmt.Errorf("opening record store: %w", err)
	}
	limit := dhtProviders
	if n.cfg.Server != nil {
		limit = dhtServerProviders
	}
	if d.providers, err = newProviderStore(c.Store, keys+"/p", []byte(n.id.PeerID()), limit); err != nil {
		return nil, fmt.Errorf("opening provider store: %w", err)
	}
	if err := d.start(); err != nil {
		return nil, err
	}
	if !n.addDHT(d) {
		return nil, errors.Join(ErrClosed, d.Close())
	}
	return d, nil
}

func (d *DHT) start() error {
	mode := kad.ModeClient
	if d.cfg.Server {
		mode = kad.ModeAutoServer // follows addrsChanged
	}
	var err error
	d.kad, err = kad.New(dhtHost{d.n.host, d.n}, append(d.providing(),
		kad.Mode(mode),
		kad.ProtocolPrefix(protocol.ID(d.cfg.Prefix)),
		kad.Validator(d.judge),
		kad.Datastore(d.store),
		kad.MaxRecordAge(d.cfg.RecordAge),
		kad.BucketSize(dhtClosest),
		// Its own refresh would ask around every two minutes in a network of less than ten. Run refreshes.
		kad.DisableAutoRefresh(),
		kad.RoutingTableRefreshPeriod(d.cfg.Refresh),
		kad.BootstrapPeersFunc(d.bootstraps),
		kad.WithCustomMessageSender(func(h host.Host, protos []protocol.ID) pb.MessageSenderWithDisconnect {
			d.sender = newDHTSender(h, protos)
			return d.sender
		}),
	)...)
	if err != nil {
		return fmt.Errorf("making DHT: %w", err)
	}
	return nil
}

func (d *DHT) bootstraps() []peer.AddrInfo {
	if d.cfg.Bootstraps == nil {
		return nil
	}
	var out []peer.AddrInfo
	for _, b := range d.cfg.Bootstraps() {
		if b.Device != d.n.id && !b.Device.IsZero() {
			out = append(out, peer.AddrInfo{ID: b.Device.PeerID(), Addrs: bootstrapAddrs(b.Addrs)})
		}
	}
	return out
}

// Run joins the network and keeps the table until ctx ends or the DHT is closed.
func (d *DHT) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		select {
		case <-d.closed:
			cancel()
		case <-ctx.Done():
		}
	})
	defer cancel()
	d.rejoin(ctx, &wg)
	d.awaitPeers(ctx)
	d.lookAround(ctx)
	d.fillTable(ctx)
	// Once more soon: whoever joined at the same time was in nobody's table yet.
	refresh := time.NewTimer(dhtAgain/2 + rand.N(dhtAgain))
	defer refresh.Stop()
	remember := time.NewTicker(dhtRemember)
	defer remember.Stop()
	sweep := time.NewTicker(dhtLineIdle / 2)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-remember.C:
			d.remember()
		case <-sweep.C:
			d.sender.dropIdle(dhtLineIdle)
		case <-refresh.C:
			refresh.Reset(d.refreshIn())
			if d.Peers() > 0 {
				d.lookAround(ctx)
				d.fillTable(ctx)
			}
		}
	}
}

// refreshIn is jittered, so that a network that started together does not refresh together.
func (d *DHT) refreshIn() time.Duration { return d.cfg.Refresh*3/4 + rand.N(d.cfg.Refresh/2) }

// awaitPeers returns when somebody is in the table.
func (d *DHT) awaitPeers(ctx context.Context) {
	wait := dhtPoll
	for d.Peers() == 0 {
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		wait = min(wait*5/4, dhtPollMax)
	}
}

// lookAround looks for this node's own ID: whom it meets on the way fills the table, and so others come to know it.
// kad-dht would do so for every bucket, which in a network of twelve costs ten times as much and finds nobody else;
// fillTable does in larger ones.
func (d *DHT) lookAround(ctx context.Context) {
	ctx, cancel := context.WithTimeout(dhtContext(ctx), time.Minute)
	defer cancel()
	if _, err := d.kad.GetClosestPeers(ctx, string(d.n.id.PeerID())); err != nil && ctx.Err() == nil {
		d.n.log.Debug("joining the DHT", "reason", err)
	}
}

// fillTable looks around in the far parts of the network that are thin in the table, once there are more nodes than its
// owner comes to know by looking for itself. With thin parts two nodes converge on different neighbours of one key, and a
// record that one put the other does not find: one look-up in ten of 300 nodes that had only looked for themselves. Parts
// that are full cost nothing, and behind the first that does not fill the nodes are few and near.
func (d *DHT) fillTable(ctx context.Context) {
	table := d.kad.RoutingTable()
	thin := func(part uint) bool { return table.NPeersForCpl(part) < dhtPart }
	for part := uint(0); part < dhtParts && d.Peers() >= dhtLarge && ctx.Err() == nil; part++ {
		if !thin(part) {
			continue
		}
		id, err := table.GenRandPeerID(part)
		if err == nil {
			ask, cancel := context.WithTimeout(dhtContext(ctx), time.Minute)
			_, err = d.kad.GetClosestPeers(ask, string(id))
			cancel()
		}
		if err != nil && ctx.Err() == nil {
			d.n.log.Debug("looking around in the DHT", "part", part, "reason", err)
		}
		if thin(part) {
			return
		}
	}
}

func dhtContext(ctx context.Context) context.Context {
	return network.WithDialPeerTimeout(network.WithAllowLimitedConn(ctx, "hima"), dhtDial)
}

// Put stores a record here and at the closest nodes. Nil does not prove that any of them has it: Ask.
func (d *DHT) Put(ctx context.Context, key string, value []byte) error {
	if err := d.judge.Validate(key, value); err != nil {
		return fmt.Errorf("%w: %w", ErrBadRecord, err)
	}
	if d.isClosed() {
		return ErrClosed
	}
	err := d.kad.PutValue(dhtContext(ctx), key, value)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, kb.ErrLookupFailure):
		return ErrAlone
	case ctx.Err() != nil:
		return fmt.Errorf("putting a record: %w", ctx.Err())
	case d.isClosed():
		return ErrClosed
	case errors.Is(err, errDHTStore), errors.Is(err, errDHTFull), errors.Is(err, errClosedDS):
		return fmt.Errorf("putting a record: %w", err)
	}
	return fmt.Errorf("%w: %w", ErrOldRecord, err) // all that is left
}

// Get finds the best record. A value that was found before ctx ended is returned without an error; and a look-up that has
// found something does not wait for dead nodes for long.
func (d *DHT) Get(ctx context.Context, key string) ([]byte, error) {
	if d.isClosed() {
		return nil, ErrClosed
	}
	w := newWitness(key)
	ctx, cancel := context.WithCancel(context.WithValue(dhtContext(ctx), witnessKey{}, w))
	defer cancel()
	found, err := d.kad.SearchValue(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("looking for a record: %w", err)
	}
	start := time.Now()
	quorum := max(1, min(dhtQuorum, d.Peers()/4))
	var best []byte
	var patience, late <-chan time.Time
	over, impatient := false, false
	for {
		select {
		case v, ok := <-found:
			over = over || !ok
			if ok {
				best = v
			}
			if ok && patience == nil {
				wait := max(dhtPatience, dhtPatienceTimes*time.Since(start))
				patience, late = time.After(wait), time.After(max(wait, dhtPatienceMax))
			}
		case <-patience:
			impatient = true
		case <-w.news:
		case <-late:
			over = true
		case <-ctx.Done():
			over = true
		}
		if !over && !(impatient && w.holders(best) >= quorum) {
			continue
		}
		switch {
		case best != nil:
			return best, nil
		case ctx.Err() != nil:
			return nil, fmt.Errorf("looking for a record: %w", ctx.Err())
		}
		return nil, ErrNoRecord
	}
}

// Ask asks each of the closest nodes and returns what each said, the closest first: to see disagreement, and who stored a
// record. It ends early when ctx does, with the answers until then. ErrAlone: there is nobody to ask.
func (d *DHT) Ask(ctx context.Context, key string) ([]DHTAnswer, error) {
	if d.isClosed() {
		return nil, ErrClosed
	}
	if d.Peers() == 0 {
		return nil, ErrAlone
	}
	w := newWitness(key)
	ctx, cancel := context.WithCancel(context.WithValue(dhtContext(ctx), witnessKey{}, w))
	defer cancel()
	found, err := d.kad.SearchValue(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("asking the closest nodes: %w", err)
	}
	for range found {
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.answers) == 0 {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("asking the closest nodes: %w", err)
		}
		return nil, ErrAlone
	}
	var peers []peer.ID
	for p := range w.answers {
		peers = append(peers, p)
	}
	peers = kb.SortClosestPeers(peers, kb.ConvertKey(key))
	var out []DHTAnswer
	for _, p := range peers[:min(len(peers), dhtClosest)] {
		dev, err := identity.DeviceIDFromPeer(p)
		if err != nil {
			continue
		}
		v := w.answers[p]
		if v != nil && d.judge.Validate(key, v) != nil {
			v = nil
		}
		out = append(out, DHTAnswer{From: dev, Value: bytes.Clone(v)})
	}
	return out, nil
}

// FindPeer finds addresses of a device. ErrNoAddress: nobody knows any.
func (d *DHT) FindPeer(ctx context.Context, dev identity.DeviceID) ([]string, error) {
	if d.isClosed() {
		return nil, ErrClosed
	}
	info, err := d.kad.FindPeer(dhtContext(ctx), dev.PeerID())
	if good := dialable(info.Addrs); len(good) > 0 {
		return addrStrings(good), nil
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("looking for a device: %w", ctx.Err())
	}
	return nil, errors.Join(ErrNoAddress, err)
}

// Peers is how many nodes are in the table.
func (d *DHT) Peers() int { return d.kad.RoutingTable().Size() }

// Records is how many records are kept here.
func (d *DHT) Records() int { return d.store.size() }

func (d *DHT) isClosed() bool {
	select {
	case <-d.closed:
		return true
	default:
		return false
	}
}

// Close ends it, also a Run under way. The node answers nothing under its prefix afterwards, and the database is not
// touched any more. It may be called several times.
func (d *DHT) Close() error {
	d.closeOnce.Do(func() {
		d.remember()
		close(d.closed)
		d.n.dropDHT(d)
		d.closeErr = d.kad.Close()
		// kad-dht leaves its handler in place.
		d.n.host.RemoveStreamHandler(d.proto)
		d.n.resetStreams(d.proto)
		d.sender.close()
		d.store.Close()
		d.closeErr = errors.Join(d.closeErr, d.providers.Close())
	})
	return d.closeErr
}

// remember writes down nodes of the table with their addresses, those first that are nearest: they know the others.
func (d *DHT) remember() {
	if d.cfg.Store == nil {
		return
	}
	var good []peer.AddrInfo
	near := kb.ConvertPeerID(d.n.id.PeerID())
	for _, p := range d.kad.RoutingTable().NearestPeers(near, dhtGood) {
		if addrs := dialable(d.n.host.Peerstore().Addrs(p)); len(addrs) > 0 {
			good = append(good, peer.AddrInfo{ID: p, Addrs: addrs})
		}
	}
	if len(good) == 0 {
		return // better those of last time than none
	}
	raw, err := json.Marshal(good)
	if err == nil {
		err = d.cfg.Store.Cache(func(tx *storage.Tx) error { return tx.Set(d.good, raw) })
	}
	if err != nil {
		d.n.log.Warn("remembering DHT nodes", "reason", err)
	}
}

// rejoin dials some of the remembered nodes.
func (d *DHT) rejoin(ctx context.Context, wg *sync.WaitGroup) {
	if d.cfg.Store == nil {
		return
	}
	var good []peer.AddrInfo
	err := d.cfg.Store.View(func(tx *storage.Tx) error {
		raw, err := tx.Get(d.good)
		if err != nil {
			return err
		}
		return json.Unmarshal(raw, &good)
	})
	if err != nil {
		if !errors.Is(err, storage.ErrNotFound) {
			d.n.log.Warn("reading remembered DHT nodes", "reason", err)
		}
		return
	}
	good = slices.DeleteFunc(good, func(p peer.AddrInfo) bool { return p.ID == d.n.id.PeerID() })
	rand.Shuffle(len(good), func(i, j int) { good[i], good[j] = good[j], good[i] })
	for _, p := range good[:min(len(good), dhtRejoin)] {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(dhtContext(ctx), dialTimeout)
			defer cancel()
			d.n.host.Peerstore().AddAddrs(p.ID, dialable(p.Addrs), peerstore.TempAddrTTL)
			if err := d.n.host.Connect(ctx, peer.AddrInfo{ID: p.ID}); err != nil {
				d.n.log.Debug("a remembered DHT node does not answer", "reason", err)
			}
		})
	}
}
