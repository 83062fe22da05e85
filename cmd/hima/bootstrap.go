package main

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"hima/internal/daemon"
	"hima/internal/text"
)

func (a *app) bootstrapCommand() *cobra.Command {
	return a.group("bootstrap", "bootstrap", a.bootstrapRunCommand())
}

// bootstrapFlags are the flags of "hima bootstrap run". Sizes and lengths of time stay as they were written until the
// command runs.
type bootstrapFlags struct {
	dir                    string
	listen, announce       []string
	network                string
	serve                  []string
	fresh                  bool
	metrics                string
	logLevel, memoryLimit  string
	limits                 daemon.BootstrapLimits
	circuitTime, keep      string
	circuitBytes           string
	mailboxBytes, oneInbox string
}

func (a *app) bootstrapRunCommand() *cobra.Command {
	f := bootstrapFlags{limits: daemon.DefaultBootstrapLimits()}
	c := a.command(spec{
		use: "run [--listen ADDR]… [--announce ADDR]… [--network NAME] [--serve dht,relay,mailbox,names] [--metrics ADDR]",
		id:  "bootstrap.run",
		example: "  hima bootstrap run\n" +
			"  hima bootstrap run --network friends --announce /dns4/hima.example.org/tcp/7447\n" +
			"  hima bootstrap run --dir /var/lib/hima --metrics 127.0.0.1:9464 --mailbox-bytes 20GiB",
		run: func(ctx context.Context, _ []string) error { return a.bootstrapRun(ctx, f) },
	})
	l := &f.limits
	c.Flags().StringVar(&f.dir, "dir", "", "flag.bootstrap.dir")
	c.Flags().StringSliceVar(&f.listen, "listen", nil, "flag.bootstrap.listen")
	c.Flags().StringSliceVar(&f.announce, "announce", nil, "flag.bootstrap.announce")
	c.Flags().StringVar(&f.network, "network", "", "flag.bootstrap.network")
	c.Flags().StringSliceVar(&f.serve, "serve", bootstrapServices(), "flag.bootstrap.serve")
	c.Flags().BoolVar(&f.fresh, "fresh", false, "flag.bootstrap.fresh")
	c.Flags().StringVar(&f.metrics, "metrics", "", "flag.bootstrap.metrics")
	c.Flags().StringVar(&f.logLevel, "log-level", "info", "flag.node.log-level")
	c.Flags().StringVar(&f.memoryLimit, "memory-limit", "", "flag.node.memory-limit")
	c.Flags().IntVar(&l.Reservations, "max-reservations", l.Reservations, "flag.bootstrap.max-reservations")
	c.Flags().IntVar(&l.ReservationsPerIP, "max-reservations-per-ip", l.ReservationsPerIP, "flag.bootstrap.max-reservations-per-ip")
	c.Flags().IntVar(&l.Circuits, "max-circuits", l.Circuits, "flag.bootstrap.max-circuits")
	c.Flags().IntVar(&l.Connections, "max-connections", l.Connections, "flag.bootstrap.max-connections")
	c.Flags().IntVar(&l.ConnectionsPerIP, "max-connections-per-ip", l.ConnectionsPerIP, "flag.bootstrap.max-connections-per-ip")
	c.Flags().StringVar(&f.circuitTime, "circuit-time", "0", "flag.bootstrap.circuit-time")
	c.Flags().StringVar(&f.circuitBytes, "circuit-bytes", "0", "flag.bootstrap.circuit-bytes")
	c.Flags().StringVar(&f.mailboxBytes, "mailbox-bytes", sizeText(l.MailboxBytes), "flag.bootstrap.mailbox-bytes")
	c.Flags().IntVar(&l.MailboxItems, "mailbox-items", l.MailboxItems, "flag.bootstrap.mailbox-items")
	c.Flags().StringVar(&f.oneInbox, "inbox-bytes", sizeText(l.InboxBytes), "flag.bootstrap.inbox-bytes")
	c.Flags().IntVar(&l.InboxItems, "inbox-items", l.InboxItems, "flag.bootstrap.inbox-items")
	c.Flags().StringVar(&f.keep, "mailbox-expiry", lengthText(l.MailboxExpiry), "flag.bootstrap.mailbox-expiry")
	_ = c.RegisterFlagCompletionFunc("serve", cobra.FixedCompletions(bootstrapServices(), cobra.ShellCompDirectiveNoFileComp))
	_ = c.MarkFlagDirname("dir")
	return c
}

// bootstrapServices are what a bootstrap node can do for others.
func bootstrapServices() []string { return []string{"dht", "relay", "mailbox", "names"} }

// sizeText writes a size as parseSize reads it.
func sizeText(n uint64) string {
	return strings.NewReplacer(".0 ", "", " ", "").Replace(humanize.IBytes(n))
}

// lengthText writes a length of time as parseLength reads it: whole days as days.
func lengthText(d time.Duration) string {
	const day = 24 * time.Hour
	if d > 0 && d%day == 0 {
		return strconv.FormatInt(int64(d/day), 10) + "d"
	}
	return d.String()
}

// parseLength understands 30d, 2h30m and 0.
func parseLength(flag, s string) (time.Duration, error) {
	wrong := usage("usage.length", "Flag", flag, "Value", text.OneLine(s, 40))
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil {
			return 0, wrong
		}
		return time.Duration(n) * 24 * time.Hour, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, wrong
	}
	return d, nil
}

// config reads the flags that are written with units.
func (f *bootstrapFlags) config(home string) (daemon.BootstrapConfig, error) {
	l := f.limits
	for flag, n := range map[string]int{
		"--max-reservations": l.Reservations, "--max-reservations-per-ip": l.ReservationsPerIP, "--max-circuits": l.Circuits,
		"--max-connections": l.Connections, "--max-connections-per-ip": l.ConnectionsPerIP, "--mailbox-items": l.MailboxItems,
		"--inbox-items": l.InboxItems,
	} {
		if n <= 0 {
			return daemon.BootstrapConfig{}, usage("usage.positive", "Flag", flag)
		}
	}
	c := daemon.BootstrapConfig{
		Dir: f.dir, Listen: f.listen, Announce: f.announce, Network: strings.TrimSpace(f.network), Serve: f.serve, Fresh: f.fresh,
		Metrics: f.metrics, MemoryLimit: f.memoryLimit, OwnProcess: true,
	}
	if c.Dir == "" {
		c.Dir = filepath.Join(home, "bootstrap")
	}
	var err error
	read := func(flag, s string, to func(uint64)) {
		var n uint64
		if err == nil {
			n, err = parseSize(flag, s)
			to(n)
		}
	}
	read("--circuit-bytes", f.circuitBytes, func(n uint64) { l.CircuitBytes = int64(min(n, math.MaxInt64)) })
	read("--mailbox-bytes", f.mailboxBytes, func(n uint64) { l.MailboxBytes = n })
	read("--inbox-bytes", f.oneInbox, func(n uint64) { l.InboxBytes = n })
	if err == nil {
		l.CircuitTime, err = parseLength("--circuit-time", f.circuitTime)
	}
	if err == nil {
		l.MailboxExpiry, err = parseLength("--mailbox-expiry", f.keep)
	}
	c.Limits = l
	return c, err
}

// bootstrapRunView is the line that "bootstrap run --json" prints when it serves.
type bootstrapRunView struct {
	Link      string   `json:"link"`
	Network   string   `json:"network"`
	NetworkID string   `json:"network_id"`
	Device    string   `json:"device"`
	Addresses []string `json:"addresses"`
	Serves    []string `json:"serves"`
	Metrics   string   `json:"metrics"`
	Dir       string   `json:"dir"`
	PID       int      `json:"pid"`
}

func (a *app) bootstrapRun(ctx context.Context, f bootstrapFlags) error {
	home, err := nodeHome(a.flags.home)
	if err != nil {
		return err
	}
	c, err := f.config(home)
	if err != nil {
		return err
	}
	if err := (daemon.Settings{LogLevel: f.logLevel}).Check(); err != nil {
		return daemonError(err)
	}
	c.Logger = a.foregroundLogger(f.logLevel)
	shown := make(chan error, 1) // what became of telling the link; without it nobody can join
	c.Ready = func(i daemon.BootstrapInfo) {
		shown <- a.showBootstrap(bootstrapRunView{
			Link: i.Link, Network: name(i.Network), NetworkID: i.NetworkID, Device: i.Device, Addresses: i.Addresses, Serves: i.Serves,
			Metrics: i.Metrics, Dir: c.Dir, PID: os.Getpid(),
		})
	}
	if err := daemonError(daemon.RunBootstrap(ctx, c)); err != nil {
		return err
	}
	select {
	case err := <-shown:
		return err
	default:
		return nil // interrupted before it was ready
	}
}

func (a *app) showBootstrap(v bootstrapRunView) error {
	if a.flags.json {
		return a.emit(v)
	}
	if a.flags.quiet {
		a.printf("%s\n", v.Link)
		return nil
	}
	a.printf("%s\n\n%s\n\n", a.t("bootstrap.ready", "Network", a.bold(v.Network)), v.Link)
	a.fields(a.out,
		a.t("field.device"), v.Device,
		a.t("field.addresses"), strings.Join(v.Addresses, "\n"),
		a.t("field.serves"), strings.Join(v.Serves, ", "),
		a.t("field.metrics"), v.Metrics,
		a.t("field.folder"), v.Dir,
	)
	a.hint(a.t("hint.bootstrap_link"))
	return nil
}
