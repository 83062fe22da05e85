package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"hima/internal/control"
	"hima/internal/directory"
	"hima/internal/mailbox"
	"hima/node"
	"hima/storage"
)

// gauge is one figure of a bootstrap node, read when it is asked for.
type gauge struct {
	name    string
	help    string
	counter bool // only grows
	value   func(s *reading) float64
}

// reading is one look at all parts, so that the figures of one scrape fit each other.
type reading struct {
	relay               node.ServerStats
	peers               int
	records, tablePeers int
	register            directory.RegisterStats
	mailbox             mailbox.ServerStats
	database, free      uint64
	memory              uint64
	uptime              time.Duration
}

// gauges lists every metric there is. The dashboard in docs/grafana names them, and a test compares the two.
func gauges() []gauge {
	flag := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	return []gauge{
		{"hima_connections", "Connections with other nodes.", false, func(s *reading) float64 { return float64(s.relay.Conns) }},
		{"hima_peers", "Nodes that are connected.", false, func(s *reading) float64 { return float64(s.peers) }},
		{"hima_relay_reservations", "Nodes that are reached through this one.", false, func(s *reading) float64 { return float64(s.relay.Reservations) }},
		{"hima_relay_circuits", "Circuits that lead through this node.", false, func(s *reading) float64 { return float64(s.relay.Circuits) }},
		{"hima_relay_bytes_total", "Bytes carried for others since the start.", true, func(s *reading) float64 { return float64(s.relay.RelayedBytes) }},
		{"hima_relay_refused_total", "Reservations and circuits refused since the start.", true, func(s *reading) float64 { return float64(s.relay.Refused) }},
		{"hima_dht_records", "Records kept for the network.", false, func(s *reading) float64 { return float64(s.records) }},
		{"hima_dht_peers", "Nodes in the routing table.", false, func(s *reading) float64 { return float64(s.tablePeers) }},
		{"hima_mailbox_inboxes", "Inboxes kept.", false, func(s *reading) float64 { return float64(s.mailbox.Inboxes) }},
		{"hima_mailbox_items", "Sealed items kept.", false, func(s *reading) float64 { return float64(s.mailbox.Items) }},
		{"hima_mailbox_bytes", "Bytes of sealed items kept.", false, func(s *reading) float64 { return float64(s.mailbox.Bytes) }},
		{"hima_mailbox_deposits_total", "Items taken since the start.", true, func(s *reading) float64 { return float64(s.mailbox.Deposits) }},
		{"hima_mailbox_fetches_total", "Items handed out since the start.", true, func(s *reading) float64 { return float64(s.mailbox.Fetches) }},
		{"hima_mailbox_refused_total", "Requests refused since the start.", true, func(s *reading) float64 { return float64(s.mailbox.Refused) }},
		{"hima_names", "Names in the register.", false, func(s *reading) float64 { return float64(s.register.Names) }},
		{"hima_names_rebuilding", "1 while the register was found empty and stamps nothing.", false, func(s *reading) float64 { return flag(s.register.Rebuilding) }},
		{"hima_names_stamped_total", "Names confirmed since the start.", true, func(s *reading) float64 { return float64(s.register.Stamped) }},
		{"hima_names_lookups_total", "Names looked up since the start.", true, func(s *reading) float64 { return float64(s.register.Looked) }},
		{"hima_names_returned_total", "Names that came back to the register since the start.", true, func(s *reading) float64 { return float64(s.register.Returned) }},
		{"hima_names_refused_total", "Requests to the register refused since the start.", true, func(s *reading) float64 { return float64(s.register.Refused) }},
		{"hima_network_cards_total", "Nodes told of the network since the start.", true, func(s *reading) float64 { return float64(s.register.Cards) }},
		{"hima_database_bytes", "Disk space of the database.", false, func(s *reading) float64 { return float64(s.database) }},
		{"hima_disk_free_bytes", "Free space where the database is.", false, func(s *reading) float64 { return float64(s.free) }},
		{"hima_memory_bytes", "Memory that the runtime holds.", false, func(s *reading) float64 { return float64(s.memory) }},
		{"hima_goroutines", "Goroutines.", false, func(*reading) float64 { return float64(runtime.NumGoroutine()) }},
		{"hima_uptime_seconds", "Time since the start.", false, func(s *reading) float64 { return s.uptime.Seconds() }},
	}
}

// infoMetric says which node this is; its value is always 1.
const infoMetric = "hima_info"

// collector hands the figures to Prometheus.
type collector struct {
	read  func() *reading
	descs []*prometheus.Desc
	info  prometheus.Metric
}

func newCollector(b *bootstrap) *collector {
	c := &collector{read: b.read}
	for _, g := range gauges() {
		c.descs = append(c.descs, prometheus.NewDesc(g.name, g.help, nil, nil))
	}
	desc := prometheus.NewDesc(infoMetric, "Which node this is.", []string{"version", "network", "network_id", "device"}, nil)
	c.info = prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, 1, control.Release, b.network.Name, b.network.ID().String(), b.key.ID().String())
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		out <- d
	}
	out <- c.info.Desc()
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	s := c.read()
	for i, g := range gauges() {
		kind := prometheus.GaugeValue
		if g.counter {
			kind = prometheus.CounterValue
		}
		out <- prometheus.MustNewConstMetric(c.descs[i], kind, g.value(s))
	}
	out <- c.info
}

// read looks at all parts.
func (b *bootstrap) read() *reading {
	s := &reading{
		register: b.register.Stats(), memory: memoryInUse(), uptime: b.config.Now().Sub(b.start),
		database: folderSize(b.databaseDir()), free: freeSpace(b.config.Dir),
	}
	s.fillNode(b)
	if b.mailbox != nil {
		s.mailbox = b.mailbox.Stats()
	}
	return s
}

// listenMetrics opens the address, so that a wrong one is an error of the start.
func (b *bootstrap) listenMetrics(ctx context.Context) error {
	if b.config.Metrics == "" {
		return nil
	}
	var lc net.ListenConfig
	var err error
	if b.metrics, err = lc.Listen(ctx, "tcp", b.config.Metrics); err != nil {
		return &control.Error{
			Code: control.Conflict, Cause: err, Message: "the address for metrics cannot be listened at: " + err.Error(),
			Hint: "give --metrics a free address, as 127.0.0.1:9464",
		}
	}
	return nil
}

const (
	metricsTimeout = 10 * time.Second
	// leastFree is the free space below which the node says that it is not ready: the next deposits would fail.
	leastFree = 64 << 20
)

// serveMetrics answers HTTP until ctx ends. Everything it tells is figures; no name, account or inbox is in them.
func (b *bootstrap) serveMetrics(ctx context.Context) error {
	registry := prometheus.NewRegistry()
	if err := registry.Register(newCollector(b)); err != nil {
		return fmt.Errorf("registering metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: metricsTimeout}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answerText(w, nil) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { answerText(w, b.ready()) })
	s := &http.Server{
		Handler: mux, ReadHeaderTimeout: metricsTimeout, ReadTimeout: metricsTimeout, WriteTimeout: 2 * metricsTimeout,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if s.Shutdown(late) != nil {
			_ = s.Close() // what is still asked gets no answer
		}
	}()
	err := s.Serve(b.metrics)
	if errors.Is(err, http.ErrServerClosed) {
		<-stopped
		return nil
	}
	return err
}

func answerText(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = fmt.Fprintln(w, err) // who asked may be gone
		return
	}
	_, _ = fmt.Fprintln(w, "ok")
}

// ready says what keeps the node from serving; nil: nothing.
func (b *bootstrap) ready() error {
	if err := b.db.View(func(*storage.Tx) error { return nil }); err != nil {
		return fmt.Errorf("the database does not answer: %w", err)
	}
	if freeSpace(b.config.Dir) < leastFree {
		return errors.New("the disk is full")
	}
	if len(b.node.Addrs()) == 0 {
		return errors.New("no network interface is up")
	}
	return nil
}

// fillNode looks at the network.
func (s *reading) fillNode(b *bootstrap) {
	s.relay, s.peers = b.node.ServerStats(), len(b.node.Peers())
	if b.dht != nil {
		s.tablePeers, s.records = b.dht.Peers(), b.dht.Records()
	}
}
