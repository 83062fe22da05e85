package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"hima/internal/control"
	"hima/internal/control/pb"
	"hima/internal/daemon"
	"hima/internal/text"
)

func (a *app) nodeCommand() *cobra.Command {
	start := a.command(spec{use: "start", id: "node.start", run: func(ctx context.Context, _ []string) error {
		return a.nodeStart(ctx)
	}})
	stop := a.command(spec{use: "stop", id: "node.stop", run: func(ctx context.Context, _ []string) error {
		p, _, err := a.registered()
		if err != nil {
			return err
		}
		if !answers(p.socket) {
			a.done("node.was_stopped", "Profile", p.profile)
			return a.stopped(p)
		}
		if err := a.stop(ctx, p, false); err != nil {
			return err
		}
		a.done("node.stopped", "Profile", a.bold(p.profile))
		return a.stopped(p)
	}})
	status := a.command(spec{use: "status", id: "node.status", run: func(ctx context.Context, _ []string) error {
		return a.nodeStatus(ctx)
	}})
	return a.group("node", "node", a.nodeRunCommand(), start, stop, status, a.nodeLogsCommand())
}

// runFlags are the flags of "hima node run"; those that are not set leave the configuration file its say.
type runFlags struct {
	listen, announce      []string
	port                  int
	mdns                  bool
	logLevel, memoryLimit string
	passwordFile          string
	background, create    bool
}

func (a *app) nodeRunCommand() *cobra.Command {
	var f runFlags
	var c *cobra.Command
	c = a.command(spec{
		use: "run", id: "node.run",
		example: "  hima node run\n  hima node run --listen /ip4/127.0.0.1/tcp/4001 --mdns=false\n  HIMA_LOG_LEVEL=debug hima node run",
		run: func(ctx context.Context, _ []string) error {
			return a.nodeRun(ctx, f, c.Flags().Changed("mdns"))
		},
	})
	c.Flags().StringSliceVar(&f.listen, "listen", nil, "flag.node.listen")
	c.Flags().StringSliceVar(&f.announce, "announce", nil, "flag.node.announce")
	c.Flags().IntVar(&f.port, "port", 0, "flag.node.port")
	c.Flags().BoolVar(&f.mdns, "mdns", true, "flag.node.mdns")
	c.Flags().StringVar(&f.logLevel, "log-level", "", "flag.node.log-level")
	c.Flags().StringVar(&f.memoryLimit, "memory-limit", "", "flag.node.memory-limit")
	c.Flags().StringVar(&f.passwordFile, "password-file", "", "flag.password-file")
	c.Flags().BoolVar(&f.background, "background", false, "flag.node.background")
	c.Flags().BoolVar(&f.create, "create", false, "flag.node.create")
	_ = c.Flags().MarkHidden("background")
	_ = c.Flags().MarkHidden("create")
	return c
}

// settings merges flags and environment over the configuration file.
func (f *runFlags) settings(home string, mdnsSet bool) (daemon.Settings, error) {
	s, err := daemon.LoadSettings(home)
	if err != nil {
		return s, err
	}
	if len(f.listen) > 0 {
		s.Listen = f.listen
	}
	if len(f.announce) > 0 {
		s.Announce = f.announce
	}
	if f.port != 0 {
		s.Port = f.port
	}
	if mdnsSet {
		s.MDNS = &f.mdns
	}
	s.LogLevel = firstOf(f.logLevel, s.LogLevel)
	s.MemoryLimit = firstOf(f.memoryLimit, s.MemoryLimit)
	return s, s.Check()
}

func (a *app) nodeRun(ctx context.Context, f runFlags, mdnsSet bool) error {
	if f.background {
		// Whoever started us reads one line from our stdout and may be gone by then.
		signal.Ignore(syscall.SIGPIPE, syscall.SIGHUP)
	}
	err := a.nodeServe(ctx, f, mdnsSet)
	if f.background && err != nil {
		v := a.describe(err)
		b, _ := json.Marshal(started{Error: v.Error, Message: v.Message, Hint: v.Hint})
		_, _ = a.out.Write(append(b, '\n'))
		return &silent{exitCode(err)}
	}
	return err
}

func (a *app) nodeServe(ctx context.Context, f runFlags, mdnsSet bool) error {
	p, err := a.where()
	if err != nil {
		return err
	}
	c := daemon.Config{Home: p.home, Profile: p.profile, Create: f.create, OwnProcess: true}
	if c.Settings, err = f.settings(p.home, mdnsSet); err != nil {
		return daemonError(err)
	}
	if f.passwordFile != "" {
		if c.Password, err = a.passwordFromFile(f.passwordFile); err != nil {
			return err
		}
	}
	c.Ready = func() {
		if f.background {
			b, _ := json.Marshal(started{Ready: true})
			_, _ = a.out.Write(append(b, '\n'))
			return
		}
		if a.flags.json {
			_ = a.emit(struct {
				Profile string `json:"profile"`
				PID     int    `json:"pid"`
				Running bool   `json:"running"`
			}{p.profile, os.Getpid(), true})
		}
	}
	if !f.background {
		c.Logger = a.foregroundLogger(c.Settings.LogLevel)
	}
	return daemonError(daemon.Run(ctx, c))
}

// foregroundLogger writes to stderr, for a terminal or a service manager that adds the time itself.
func (a *app) foregroundLogger(level string) *slog.Logger {
	var l slog.Level
	_ = l.UnmarshalText([]byte(firstOf(level, "info"))) // checked with the settings
	if a.flags.quiet && l < slog.LevelWarn {
		l = slog.LevelWarn
	}
	return slog.New(slog.NewTextHandler(a.errOut, &slog.HandlerOptions{Level: l}))
}

func (a *app) nodeStart(ctx context.Context) error {
	p, _, err := a.registered()
	if err != nil {
		return err
	}
	if !answers(p.socket) {
		if a.flags.noStart {
			return fail(control.NotRunning, "error.not_running_named", "Profile", p.profile).withHint("hint.no_start")
		}
		if err := a.start(ctx, p, false); err != nil {
			return err
		}
	}
	node := a.client(p)
	defer node.Close()
	resp, err := node.Status(ctx, &pb.StatusRequest{})
	if err != nil {
		return err
	}
	v := statusOf(resp)
	if a.flags.json {
		return a.emit(v)
	}
	a.done("node.started", "Profile", a.bold(p.profile), "PID", int(v.PID))
	if v.State == stateLocked {
		a.hint(a.t("hint.locked"))
	}
	return nil
}

// States of a node.
const (
	stateEmpty    = "empty"
	stateLocked   = "locked"
	stateUnlocked = "unlocked"
	stateStopped  = "stopped" // said by this program: no node answers
)

func (a *app) nodeStatus(ctx context.Context) error {
	p, _, err := a.registered()
	if err != nil {
		return err
	}
	node := a.client(p)
	defer node.Close()
	resp, err := node.Status(ctx, &pb.StatusRequest{})
	if errors.Is(err, control.NotRunning) {
		if a.flags.json {
			if err := a.emit(statusOf(&pb.StatusResponse{State: stateStopped, Profile: p.profile})); err != nil {
				return err
			}
			return &silent{exitNotRunning}
		}
		return fail(control.NotRunning, "error.not_running_named", "Profile", p.profile).withHint("hint.not_running")
	}
	if err != nil {
		return err
	}
	v := statusOf(resp)
	if a.flags.json {
		return a.emit(v)
	}
	a.showStatus(v)
	return nil
}

func (a *app) showStatus(v statusView) {
	a.fields(a.out,
		a.t("field.profile"), a.bold(v.Profile)+"  "+a.word("node_state", v.State),
		a.t("field.process"), a.t("node.process", "PID", int(v.PID), "Uptime", duration(time.Duration(v.UptimeMS)*time.Millisecond)),
		a.t("field.version"), strings.TrimSpace(v.Version+" "+v.Commit),
		a.t("field.account"), v.Account,
		a.t("field.device"), v.Device,
		a.t("field.addresses"), strings.Join(v.Addresses, "\n"),
		a.t("field.networks"), strings.Join(a.networkLines(v.Networks), "\n"),
		a.t("field.memory"), humanize.IBytes(v.MemoryBytes),
		a.t("field.database"), humanize.IBytes(v.DatabaseBytes),
		a.t("field.queue"), a.tn("node.queue", int(v.PendingMessages), "Devices", int(v.WaitingDevices)),
		a.t("field.unread"), strconv.Itoa(int(v.Unread)),
		a.t("field.requests"), strconv.Itoa(int(v.Requests)),
		a.t("field.protocols"), strings.Join(v.Protocols, " "),
	)
	if len(v.Peers) > 0 {
		a.printf("\n")
		t := a.newTable("column.peer", "column.id", "column.transport", "column.rtt", "column.since", "column.address")
		for _, p := range v.Peers {
			t.row(firstOf(p.Name, "–"), shortAccount(p.Account), p.Transport, duration(time.Duration(p.RTTMicros)*time.Microsecond),
				localStamp(p.Since, time.Now()), p.Address)
		}
		t.print(a.out)
	}
	for _, w := range v.Warnings {
		a.warn(a.word("warning", w))
	}
	if v.State == stateLocked {
		a.hint(a.t("hint.locked"))
	}
}

// networkLines are the joined networks, a line each.
func (a *app) networkLines(all []networkView) []string {
	var out []string
	for _, n := range all {
		out = append(out, n.Name+"  "+a.onlineWord(n.Online)+"  "+a.shortName(n.Username))
	}
	return out
}

func (a *app) nodeLogsCommand() *cobra.Command {
	var lines int
	var follow bool
	c := a.command(spec{use: "logs [--lines N] [--follow]", id: "node.logs", run: func(ctx context.Context, _ []string) error {
		if lines < 0 {
			return usage("usage.lines")
		}
		return a.nodeLogs(ctx, lines, follow)
	}})
	c.Flags().IntVarP(&lines, "lines", "n", 50, "flag.node.lines")
	c.Flags().BoolVarP(&follow, "follow", "f", false, "flag.node.follow")
	return c
}

// followPause is how often a log that is followed is looked at.
const followPause = 200 * time.Millisecond

func (a *app) nodeLogs(ctx context.Context, lines int, follow bool) error {
	p, _, err := a.registered()
	if err != nil {
		return err
	}
	path, err := nodeLog(p.home, p.profile)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			a.note("node.no_log", "Path", path)
			return nil
		}
		return fail(control.NotFound, "error.file", "Path", path, "Detail", plainError(err))
	}
	defer func() { _ = f.Close() }()
	r := bufio.NewReader(f)
	var tail []string
	for {
		s, err := r.ReadString('\n')
		if s != "" && lines > 0 {
			if tail = append(tail, s); len(tail) > lines {
				tail = tail[1:]
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("reading log: %w", err)
		}
	}
	for _, s := range tail {
		if err := a.logLine(s); err != nil {
			return err
		}
	}
	for follow {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(followPause):
		}
		for {
			s, err := r.ReadString('\n')
			if s != "" {
				if err := a.logLine(s); err != nil {
					return err
				}
			}
			if err != nil {
				break
			}
		}
	}
	return nil
}

func (a *app) logLine(s string) error {
	s = text.OneLine(strings.TrimRight(s, "\r\n"), 2000)
	if a.flags.json {
		return a.emit(struct {
			Line string `json:"line"`
		}{s})
	}
	a.printf("%s\n", s)
	return nil
}
