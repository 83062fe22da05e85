package daemon

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/identity"
	"hima/internal/control"
	"hima/internal/control/pb"
)

// station is a bootstrap node and, while it runs, its place in this process.
type station struct {
	t      *testing.T
	dir    string
	config func(*BootstrapConfig) // changes what the next start uses; nil: nothing

	info   BootstrapInfo
	stop   context.CancelFunc
	result chan error
	log    *lockedBuffer
}

func newStation(t *testing.T) *station {
	t.Helper()
	s := &station{t: t, dir: filepath.Join(t.TempDir(), "bootstrap"), log: &lockedBuffer{}}
	t.Cleanup(func() {
		if s.stop != nil {
			s.halt()
		}
		if t.Failed() {
			t.Logf("log of the bootstrap node:\n%s", s.log)
		}
	})
	return s
}

// run starts the node and returns once it serves, or with the error that it ended with.
func (s *station) run() error {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, result := make(chan BootstrapInfo, 1), make(chan error, 1)
	c := BootstrapConfig{
		Dir: s.dir, Listen: []string{"/ip4/127.0.0.1/tcp/0"},
		Logger: slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Ready:  func(i BootstrapInfo) { ready <- i },
	}
	if s.config != nil {
		s.config(&c)
	}
	go func() { result <- RunBootstrap(ctx, c) }()
	select {
	case err := <-result:
		cancel()
		return err
	case s.info = <-ready:
	}
	s.stop, s.result = cancel, result
	return nil
}

func (s *station) start() *station {
	s.t.Helper()
	require.NoError(s.t, s.run())
	return s
}

func (s *station) halt() {
	s.t.Helper()
	s.stop()
	require.NoError(s.t, <-s.result)
	s.stop = nil
}

// address is where the node is dialled by somebody who has no link.
func (s *station) address() string { return s.info.Addresses[0] + "/p2p/" + s.info.Device }

func TestBootstrapLife(t *testing.T) {
	s := newStation(t).start()
	first := s.info
	l, err := identity.ParseNetworkLink(first.Link)
	require.NoError(t, err)
	require.Equal(t, DefaultNetwork, l.Name)
	require.Equal(t, first.Device, l.Founder.String())
	require.Equal(t, first.Device, l.Bootstraps[0].Device.String())
	require.Equal(t, first.Addresses, l.Bootstraps[0].Addrs)
	require.Equal(t, l.ID().String(), first.NetworkID)
	require.Equal(t, []string{"dht", "relay", "mailbox", "names"}, first.Serves)
	key, err := os.Stat(filepath.Join(s.dir, bootstrapKeyFile))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), key.Mode().Perm())

	second := newStation(t)
	second.dir = s.dir
	err = second.run()
	require.ErrorIs(t, err, ErrRunning)
	refused(t, err, control.Conflict)

	s.halt()
	s.start()
	require.Equal(t, first, s.info, "key, network, port and link are those of the first start")
	s.halt()

	// The same network by name and by link is no change; another one is refused, and nothing is changed by asking.
	for _, same := range []string{DefaultNetwork, first.Link} {
		s.config = func(c *BootstrapConfig) { c.Network = same }
		s.start()
		require.Equal(t, first.Link, s.info.Link)
		s.halt()
	}
	foreign := identity.NetworkLink{Name: DefaultNetwork, Founder: identity.GenerateDeviceKey().ID()}
	foreign.Bootstraps = []identity.InviteDevice{{Device: foreign.Founder, Addrs: []string{"/ip4/127.0.0.1/tcp/1"}}}
	for _, other := range []string{"another", foreign.String()} {
		s.config = func(c *BootstrapConfig) { c.Network = other }
		refused(t, s.run(), control.Conflict)
	}
	s.config = nil
	s.start()
	require.Equal(t, first, s.info)
}

func TestBootstrapRefusesWhatCannotWork(t *testing.T) {
	for name, change := range map[string]func(*BootstrapConfig){
		"no folder":    func(c *BootstrapConfig) { c.Dir = "" },
		"service":      func(c *BootstrapConfig) { c.Serve = []string{"dht", "coffee"} },
		"memory":       func(c *BootstrapConfig) { c.MemoryLimit = "1KiB" },
		"long name":    func(c *BootstrapConfig) { c.Network = string(make([]byte, 65)) },
		"cut link":     func(c *BootstrapConfig) { c.Network = "hima-net:abcd" },
		"listen":       func(c *BootstrapConfig) { c.Listen = []string{"nowhere"} },
		"announce":     func(c *BootstrapConfig) { c.Announce = []string{"here:80"} },
		"below zero":   func(c *BootstrapConfig) { c.Limits.Circuits = -1 },
		"circuit time": func(c *BootstrapConfig) { c.Limits.CircuitTime = -time.Second },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStation(t)
			s.config = change
			refused(t, s.run(), control.Invalid)
		})
	}
	s := newStation(t)
	require.NoError(t, os.MkdirAll(s.dir, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(s.dir, bootstrapKeyFile), []byte("device 00\n"), 0o600))
	err := s.run()
	refused(t, err, control.Damaged)
	require.NotContains(t, err.Error(), "00", "the error shows nothing of a key")
}

// TestBootstrapKeepsItsNetworkWithoutItsDatabase: the key is what a network hangs on, the database can be lost (R19).
func TestBootstrapKeepsItsNetworkWithoutItsDatabase(t *testing.T) {
	s := newStation(t)
	s.config = func(c *BootstrapConfig) { c.Network = "home"; c.Metrics = "127.0.0.1:0" }
	s.start()
	first := s.info
	require.Equal(t, "home", first.Network)
	require.Zero(t, s.figure("hima_names_rebuilding"), "a new network's register is empty and right")
	s.halt()
	s.start()
	require.Zero(t, s.figure("hima_names_rebuilding"))
	s.halt()
	require.NoError(t, os.RemoveAll(filepath.Join(s.dir, databaseFolder)))
	s.start()
	require.Equal(t, first.Link, s.info.Link)
	require.EqualValues(t, 1, s.figure("hima_names_rebuilding"), "an empty register stamps nothing until names came back")
	s.halt()

	// The key cannot: nobody would believe a node with another one.
	require.NoError(t, os.Remove(filepath.Join(s.dir, bootstrapKeyFile)))
	refused(t, s.run(), control.Damaged)
	require.NoFileExists(t, filepath.Join(s.dir, bootstrapKeyFile))
}

func TestBootstrapServesASubset(t *testing.T) {
	s := newStation(t)
	s.config = func(c *BootstrapConfig) { c.Serve = []string{"names", "dht"} }
	s.start()
	require.Equal(t, []string{"dht", "names"}, s.info.Serves)
	alice := newPerson(t, "alice")
	alice.register()
	_, err := alice.JoinNetwork(t.Context(), &pb.JoinNetworkRequest{Link: s.info.Link})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		b := alice.network().GetBootstraps()
		return len(b) == 1 && slices.Equal(b[0].GetServes(), []string{"dht", "names"})
	}, patience, 20*time.Millisecond)
	boxes, err := alice.ListMailboxes(t.Context(), &pb.ListMailboxesRequest{})
	require.NoError(t, err)
	require.Empty(t, boxes.GetMailboxes())
}

// TestSecondBootstrapOfANetwork: a further node joins by the link, and its own link names both.
func TestSecondBootstrapOfANetwork(t *testing.T) {
	first, second := newStation(t).start(), newStation(t)
	second.config = func(c *BootstrapConfig) { c.Network = first.info.Link; c.Metrics = "127.0.0.1:0" }
	second.start()
	require.Equal(t, first.info.NetworkID, second.info.NetworkID)
	l, err := identity.ParseNetworkLink(second.info.Link)
	require.NoError(t, err)
	require.Equal(t, first.info.Device, l.Founder.String())
	require.Len(t, l.Bootstraps, 2)
	require.Eventually(t, func() bool { return second.figure("hima_dht_peers") >= 1 }, patience, 50*time.Millisecond, "the two do not meet")
	second.halt()
	second.config = nil
	second.start()
	require.Equal(t, l.String(), second.info.Link, "the other node is remembered")

	// The first learns of the second by the second's link.
	first.halt()
	first.config = func(c *BootstrapConfig) { c.Network = second.info.Link }
	first.start()
	both, err := identity.ParseNetworkLink(first.info.Link)
	require.NoError(t, err)
	require.Len(t, both.Bootstraps, 2)
	require.ElementsMatch(t, l.Keys(), both.Keys())
}

func (s *station) get(path string) (int, string) {
	s.t.Helper()
	r, err := http.Get("http://" + s.info.Metrics + path)
	require.NoError(s.t, err)
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	require.NoError(s.t, err)
	return r.StatusCode, string(b)
}

// network is the only one that a person joined.
func (p *person) network() *pb.Network {
	p.t.Helper()
	l, err := p.ListNetworks(p.t.Context(), &pb.ListNetworksRequest{})
	require.NoError(p.t, err)
	require.Len(p.t, l.GetNetworks(), 1)
	return l.GetNetworks()[0]
}

// registerOn starts the node and registers with a network.
func (p *person) registerOn(link string) (*pb.RegisterResponse, error) {
	p.t.Helper()
	p.start()
	return p.Register(p.t.Context(), &pb.RegisterRequest{Username: p.name, NoPassword: true, Network: link})
}

func (p *person) eventuallyName(state string) {
	p.t.Helper()
	require.Eventually(p.t, func() bool { return p.network().GetUsername().GetState() == state }, patience, 20*time.Millisecond,
		"the name of %s did not become %s", p.name, state)
}
