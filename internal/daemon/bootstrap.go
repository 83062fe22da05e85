package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/sync/errgroup"

	"hima/identity"
	"hima/internal/control"
	"hima/internal/directory"
	"hima/internal/mailbox"
	"hima/node"
	"hima/storage"
)

// bootstrap is a bootstrap node: a node that others meet at. It is made whole by openBootstrap or not at all.
type bootstrap struct {
	config BootstrapConfig
	log    *slog.Logger
	key    identity.DeviceKey
	start  time.Time

	db       *storage.DB
	node     *node.Node
	network  identity.NetworkLink // as it was set up; link adds the present addresses
	register *directory.Register
	dht      *node.DHT       // nil: not served
	mailbox  *mailbox.Server // nil: not served
	metrics  net.Listener    // nil: none
	ending   *ending
}

// RunBootstrap serves a network until ctx ends. It returns ErrRunning when another process has the folder, ErrBadConfig for
// what cannot work, and coded errors as Run does.
func RunBootstrap(ctx context.Context, c BootstrapConfig) error { return coded(runBootstrap(ctx, c)) }

func runBootstrap(ctx context.Context, c BootstrapConfig) error {
	c, err := c.check()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return fmt.Errorf("making the folder: %w", err)
	}
	release, err := lockProfile(c.Dir)
	if err != nil {
		return err
	}
	defer func() { _ = release() }() // goes with the process anyway
	if c.OwnProcess {
		limit, err := c.memory()
		if err != nil {
			return err
		}
		tuneRuntime(limit)
	}
	b := &bootstrap{config: c, log: c.Logger, start: c.Now(), ending: newEnding(c.Logger, c.OwnProcess)}
	if err := b.open(ctx); err != nil {
		return errors.Join(err, b.close())
	}
	defer b.ending.watch(ctx)()
	err = b.run(ctx)
	defer b.ending.enter("closing")()
	return errors.Join(err, b.close())
}

// open makes the parts from the bottom up.
func (b *bootstrap) open(ctx context.Context) error {
	keys, err := bootstrapKeys(b.config.Dir)
	if err != nil {
		return err
	}
	b.key = keys.device
	state, err := b.settle()
	if err != nil {
		return err
	}
	if b.db, err = storage.Open(storage.Config{Dir: filepath.Join(b.config.Dir, databaseFolder), Key: keys.database.Bytes(), Logger: b.log}); err != nil {
		return fmt.Errorf("opening the database: %w", err)
	}
	if err := b.listen(); err != nil {
		return err
	}
	b.node.SetBootstraps(b.sisters())
	b.register, err = directory.NewRegister(directory.RegisterConfig{
		DB: b.db, Node: b.node, Key: b.key, Link: b.link, Serves: b.config.Serve, Fresh: state.Fresh || b.config.Fresh,
		Agent: agent(), Now: b.config.Now, Logger: b.log,
	})
	if err != nil {
		return err
	}
	if state.Fresh { // from now on an empty register is a lost one
		state.Fresh = false
		if err := state.write(b.config.Dir); err != nil {
			return err
		}
	}
	if b.config.serves(directory.ServeDHT) {
		t := directory.TableConfig(b.network.ID(), b.network.Keys, b.config.Now)
		t.Server, t.Store, t.Bootstraps = true, b.db, b.sisters
		if b.dht, err = b.node.NewDHT(t); err != nil {
			return err
		}
	}
	if b.config.serves(directory.ServeMailbox) {
		b.mailbox, err = mailbox.NewServer(mailbox.ServerConfig{
			DB: b.db, Node: b.node, Key: b.key, Open: true, Limits: b.config.mailboxLimits(), Now: b.config.Now, Logger: b.log,
		})
		if err != nil {
			return err
		}
	}
	return b.listenMetrics(ctx)
}

// listen makes the node, on the port of the first start.
func (b *bootstrap) listen() error {
	c := b.config
	port, first, err := bootstrapPort(c.Dir, len(c.Listen) == 0)
	if err != nil {
		return err
	}
	b.node, err = node.New(node.Config{
		Key: b.key, Listen: fixedPort(c.Listen, port), Announce: c.Announce, Port: port, Internet: true, Server: c.server(),
		Version: control.Release, Logger: c.Logger,
	})
	if errors.Is(err, node.ErrPortInUse) {
		return &control.Error{
			Code: control.Conflict, Cause: err, Message: "another program listens on the port of this node: " + err.Error(),
			Hint: "end the other program, or choose another port with --listen",
		}
	}
	if err == nil && first {
		err = writeFileAtomic(filepath.Join(c.Dir, portFile), []byte(strconv.Itoa(port)+"\n"))
	}
	return err
}

// bootstrapPort returns the port of an earlier start, or chooses one, the known one if that is free. Unlike a profile's it
// is never changed afterwards: links that people hold name it.
func bootstrapPort(dir string, known bool) (port int, first bool, err error) {
	b, err := os.ReadFile(filepath.Join(dir, portFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return 0, false, fmt.Errorf("reading the port: %w", err)
	default:
		port, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil || port < 1 || port > 65535 {
			return 0, false, fmt.Errorf("the file %s holds no port: %w", portFile, ErrBadConfig)
		}
		return port, false, nil
	}
	if known && portFree(defaultBootstrapPort) {
		return defaultBootstrapPort, true, nil
	}
	port, err = freePort()
	return port, true, err
}

// sisters are the other bootstrap nodes of the network.
func (b *bootstrap) sisters() []node.Bootstrap {
	var out []node.Bootstrap
	for _, d := range b.network.Bootstraps {
		if d.Device != b.key.ID() {
			out = append(out, node.Bootstrap{Device: d.Device, Addrs: d.Addrs})
		}
	}
	return out
}

// link is the network's link with this node first, at its present addresses.
func (b *bootstrap) link() identity.NetworkLink {
	l := identity.NetworkLink{Name: b.network.Name, Founder: b.network.Founder}
	l.Bootstraps = append(l.Bootstraps, identity.InviteDevice{Device: b.key.ID(), Addrs: b.addrs()})
	for _, d := range b.network.Bootstraps {
		if d.Device != b.key.ID() && len(l.Bootstraps) < identity.MaxBootstraps {
			l.Bootstraps = append(l.Bootstraps, d)
		}
	}
	return l
}

// addrs are the addresses for the link: what was announced, then public ones, then the rest.
func (b *bootstrap) addrs() []string {
	rank := func(s string) int {
		if slices.Contains(b.config.Announce, s) {
			return 0
		}
		a, err := ma.NewMultiaddr(s)
		switch {
		case err != nil:
			return 3
		case manet.IsPublicAddr(a):
			return 1
		}
		return 2
	}
	out := b.node.Addrs()
	slices.SortStableFunc(out, func(x, y string) int { return rank(x) - rank(y) })
	if len(b.config.Announce) > 0 {
		// Somebody who announces addresses knows which ones lead here from outside.
		out = slices.DeleteFunc(out, func(s string) bool { return rank(s) > 1 })
	}
	return out[:min(len(out), identity.MaxInviteAddrs)]
}

// run serves until ctx ends or a part fails.
func (b *bootstrap) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	parts := map[string]func(context.Context) error{
		"database": b.db.RunMaintenance, "network": b.node.Run, "register": b.register.Run,
	}
	if b.dht != nil {
		parts["table of records"] = b.dht.Run
	}
	if b.mailbox != nil {
		parts["mailbox"] = b.mailbox.Run
	}
	if b.metrics != nil {
		parts["metrics"] = b.serveMetrics
	}
	if b.config.OwnProcess {
		parts["memory"] = trimMemory
	}
	for name, part := range parts {
		g.Go(func() error {
			defer b.ending.enter(name)()
			if err := part(ctx); err != nil && !errors.Is(err, context.Canceled) {
				return fmt.Errorf("running the %s: %w", name, err)
			}
			return nil
		})
	}
	info := b.info()
	b.log.Info("bootstrap node started", "network", info.Network, "device", info.Device, "serves", strings.Join(info.Serves, ","), "pid", os.Getpid())
	if err := notify("READY=1"); err != nil {
		b.log.Warn("telling the service manager", "err", err)
	}
	if b.config.Ready != nil {
		b.config.Ready(info)
	}
	g.Go(func() error {
		<-ctx.Done()
		return notify("STOPPING=1")
	})
	err := g.Wait()
	b.log.Info("bootstrap node stopped", "err", err)
	return err
}

func (b *bootstrap) info() BootstrapInfo {
	l := b.link()
	i := BootstrapInfo{
		Link: l.String(), Addresses: b.addrs(), Device: b.key.ID().String(), Network: l.Name, NetworkID: l.ID().String(),
		Serves: b.config.Serve,
	}
	if b.metrics != nil {
		i.Metrics = b.metrics.Addr().String()
	}
	return i
}

// close ends what open began, from the top down: the table before the database that it answers from.
func (b *bootstrap) close() error {
	var err error
	if b.metrics != nil {
		_ = b.metrics.Close() // closed by the server already, if that ran
	}
	if b.dht != nil {
		err = errors.Join(err, b.dht.Close())
	}
	if b.node != nil {
		err = errors.Join(err, b.node.Close())
	}
	if b.db != nil {
		err = errors.Join(err, b.db.Close())
	}
	return err
}

// bootstrapState is what lies beside the key: which network this node serves. It survives a lost database, as the key does.
type bootstrapState struct {
	Link  string `json:"link"`            // of the network, other nodes than this one included
	Fresh bool   `json:"fresh,omitempty"` // the register was never opened
}

const stateFile = "network"

func (s bootstrapState) write(dir string) error {
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("writing the network: %w", err)
	}
	return writeFileAtomic(filepath.Join(dir, stateFile), append(b, '\n'))
}

// settle finds out which network this node serves, or founds one.
func (b *bootstrap) settle() (bootstrapState, error) {
	var s bootstrapState
	raw, err := readSmall(filepath.Join(b.config.Dir, stateFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return b.found()
	case err != nil:
		return s, fmt.Errorf("reading the network: %w", err)
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return s, fmt.Errorf("reading the network from %s: %w: %w", stateFile, ErrBadConfig, err)
	}
	if b.network, err = identity.ParseNetworkLink(s.Link); err != nil {
		return s, fmt.Errorf("reading the network from %s: %w: %w", stateFile, ErrBadConfig, err)
	}
	if !slices.ContainsFunc(b.network.Bootstraps, func(d identity.InviteDevice) bool { return d.Device == b.key.ID() }) {
		return s, damagedKey() // made anew: the one that the network knows is gone
	}
	return s, b.agree(&s)
}

// agree compares the network that is asked for with the one that is served.
func (b *bootstrap) agree(s *bootstrapState) error {
	want := b.config.Network
	if want == "" || want == b.network.Name {
		return nil
	}
	if !isNetworkLink(want) {
		return b.another(want)
	}
	l, err := identity.ParseNetworkLink(want)
	if err != nil {
		return fmt.Errorf("the link of the network: %w: %w", ErrBadConfig, err)
	}
	if l.ID() != b.network.ID() {
		return b.another(l.Name)
	}
	// A link of the same network may name further nodes: the operator who gives it vouches for their keys.
	changed := false
	for _, d := range l.Bootstraps {
		i := slices.IndexFunc(b.network.Bootstraps, func(o identity.InviteDevice) bool { return o.Device == d.Device })
		switch {
		case i < 0 && len(b.network.Bootstraps) < identity.MaxBootstraps:
			b.network.Bootstraps, changed = append(b.network.Bootstraps, d), true
		case i >= 0 && d.Device != b.key.ID() && !slices.Equal(b.network.Bootstraps[i].Addrs, d.Addrs):
			b.network.Bootstraps[i], changed = d, true
		}
	}
	if !changed {
		return nil
	}
	s.Link = b.network.String()
	return s.write(b.config.Dir)
}

func (b *bootstrap) another(name string) error {
	return &control.Error{
		Code: control.Conflict, Message: fmt.Sprintf("this node serves the network %s and cannot serve %s", b.network.Name, name),
		Hint: "leave --network out, or use another folder for another network",
	}
}

// found decides on a network at the first start.
func (b *bootstrap) found() (bootstrapState, error) {
	self := identity.InviteDevice{Device: b.key.ID()}
	s := bootstrapState{Fresh: true}
	if isNetworkLink(b.config.Network) {
		l, err := identity.ParseNetworkLink(b.config.Network)
		if err != nil {
			return s, fmt.Errorf("the link of the network: %w: %w", ErrBadConfig, err)
		}
		if len(l.Bootstraps) >= identity.MaxBootstraps {
			return s, fmt.Errorf("the network has %d bootstrap nodes already: %w", len(l.Bootstraps), ErrBadConfig)
		}
		// What the network's other nodes stamped comes back to this one first, as to one that lost its register.
		s.Fresh = false
		b.network = l
		b.network.Bootstraps = append([]identity.InviteDevice{self}, l.Bootstraps...)
	} else {
		name := b.config.Network
		if name == "" {
			name = DefaultNetwork
		}
		b.network = identity.NetworkLink{Name: name, Founder: b.key.ID(), Bootstraps: []identity.InviteDevice{self}}
	}
	s.Link = b.network.String()
	if s.Link == "" {
		return s, fmt.Errorf("%q cannot be the name of a network: %w", b.network.Name, ErrBadConfig)
	}
	return s, s.write(b.config.Dir)
}

func (b *bootstrap) databaseDir() string { return filepath.Join(b.config.Dir, databaseFolder) }
