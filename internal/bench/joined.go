package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// lab is the network of namespaces with real NAT that .ci/netlab.sh makes.
const lab = "hbench"

func netlab(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "bash", append([]string{".ci/netlab.sh"}, args...)...)
	cmd.Env = append(os.Environ(), "NETLAB_PREFIX="+lab)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("netlab %v: %w\n%s", args, err, out)
	}
	return nil
}

// joined measures what a node carries that has joined a network and does nothing: it is behind a router, has one contact,
// who is online behind another, and a bootstrap node that offers everything. Each interface is the node's alone.
func joined(ctx context.Context, r report, dir string, watch time.Duration) error {
	bin, err := build(ctx, dir)
	if err != nil {
		return err
	}
	if err := netlab(ctx, "up", "-n", "2", "-m", "0", "-t", "cone,cone"); err != nil {
		return err
	}
	defer func() { _ = netlab(context.Background(), "down") }() // ends what runs in the lab, too
	boot := within(ctx, bin, "pub", "--json", "bootstrap", "run", "--dir", filepath.Join(dir, "boot"), "--fresh",
		"--listen", "/ip4/192.0.0.130/tcp/4001", "--listen", "/ip4/192.0.0.130/udp/4001/quic-v1")
	out, err := boot.StdoutPipe()
	if err != nil {
		return err
	}
	if err := boot.Start(); err != nil {
		return err
	}
	defer func() { _ = boot.Process.Signal(syscall.SIGTERM); _ = boot.Wait() }()
	var ready struct{ Link string }
	if err := json.NewDecoder(out).Decode(&ready); err != nil {
		return fmt.Errorf("the bootstrap node did not say its link: %w", err)
	}
	homes := map[string]string{}
	for i, name := range []string{"alice", "bob"} {
		home, err := os.MkdirTemp("", "hb") // a socket's path is short, so it cannot lie in the folder of the run
		if err != nil {
			return err
		}
		defer os.RemoveAll(home)
		homes[name] = home
		host := "nat" + strconv.Itoa(i+1)
		defer func() { _, _ = at(context.Background(), bin, host, home, "node", "stop") }()
		if out, err := at(ctx, bin, host, home, "register", "--username", name, "--no-password", "--network", ready.Link); err != nil {
			return fmt.Errorf("registering: %w\n%s", err, out)
		}
	}
	for _, step := range [][]string{
		{"nat1", homes["alice"], "contact", "add", "bob", "--yes", "--message", "hello"},
		{"nat2", homes["bob"], "contact", "accept", "alice"},
		{"nat1", homes["alice"], "send", "bob", "hello", "--wait", "delivered", "--timeout", "30s"},
	} {
		out, err := try(ctx, func() (string, error) { return at(ctx, bin, step[0], step[1], step[2:]...) })
		if err != nil {
			return fmt.Errorf("%v: %w\n%s", step[2:], err, out)
		}
	}
	pause := func(d time.Duration) error {
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := pause(max(watch/4, 2*time.Minute)); err != nil { // what follows from having met comes to its end
		return err
	}
	before, err := wire(ctx, "nat1")
	if err != nil {
		return err
	}
	if err := pause(watch); err != nil {
		return err
	}
	after, err := wire(ctx, "nat1")
	if err != nil {
		return err
	}
	r.most("idle joined node behind NAT, one contact online, all packets", float64(after-before)/watch.Seconds()*3600/1e6, 2, "MB/hour", "")
	r.add(row{Name: "load", Value: load()})
	return nil
}

// within is a command on a host of the lab.
func within(ctx context.Context, bin, host string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", lab + "-" + host, bin}, args...)...)
}

// at runs a command of a person on a host of the lab.
func at(ctx context.Context, bin, host, home string, args ...string) (string, error) {
	cmd := within(ctx, bin, host, append([]string{"--home", home}, args...)...)
	cmd.WaitDelay = time.Second // a node in the background must not hold the pipes
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	return string(out), err
}

// wire is what a host's interface carried, both directions.
func wire(ctx context.Context, host string) (int64, error) {
	out, err := exec.CommandContext(ctx, "ip", "netns", "exec", lab+"-"+host, "cat", "/proc/net/dev").Output()
	if err != nil {
		return 0, err
	}
	for l := range strings.Lines(string(out)) {
		if f := strings.Fields(l); len(f) > 9 && f[0] == "eth0:" {
			in, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				return 0, err
			}
			out, err := strconv.ParseInt(f[9], 10, 64)
			return in + out, err
		}
	}
	return 0, errors.New("there is no such interface")
}
