package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"time"

	"hima/storage"
)

type flags struct {
	dir     string
	n       int
	window  int
	members int
	pause   time.Duration
	watch   time.Duration
	json    bool
	profile string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench: error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	var o flags
	set := flag.NewFlagSet("bench", flag.ContinueOnError)
	set.StringVar(&o.dir, "dir", "", "folder for the run, on the disk that is meant; default: a new one here, removed afterwards")
	set.IntVar(&o.n, "n", 0, "messages, for lookup nodes; default depends on the measurement")
	set.IntVar(&o.window, "window", 1024, "pipeline: messages under way")
	set.IntVar(&o.members, "members", 50, "group: how many")
	set.DurationVar(&o.pause, "pause", 5*time.Millisecond, "latency: pause around each message, as between those of people")
	set.DurationVar(&o.watch, "watch", 2*time.Minute, "million, mailbox, traffic, joined: how long to look at an idle node")
	set.BoolVar(&o.json, "json", false, "one JSON object a line")
	set.StringVar(&o.profile, "cpuprofile", "", "write a CPU profile of this process; HIMA_BENCH_PEER_PROFILE names a file for the other")
	if err := set.Parse(args); err != nil {
		return err
	}
	if set.NArg() != 1 {
		return errors.New("say what to measure: latency, pipeline, catchup, million, command, lookup, mailbox, group, grouprate, groupback, groupfar, groupsize, roster, traffic, joined")
	}
	what := set.Arg(0)
	chosen := storage.RaiseProcessors() // as the daemon does
	if o.profile != "" {
		end, err := profileTo(o.profile)
		if err != nil {
			return err
		}
		defer end()
	}
	switch what {
	case "peer":
		return servePeer(o.dir)
	case "badger":
		return serveBadger(o.dir)
	case "box":
		return serveBox(o.dir)
	}
	dir, err := scratch(o.dir)
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	r := report{json: o.json, out: os.Stdout}
	def := func(n int) int {
		if o.n > 0 {
			return o.n
		}
		return n
	}
	switch what {
	case "latency":
		return latency(ctx, r, dir, def(2000), o.pause)
	case "pipeline":
		return pipeline(ctx, r, dir, def(300_000), o.window)
	case "catchup":
		return catchup(ctx, r, dir, def(100_000))
	case "million":
		return million(ctx, r, dir, def(1_000_000), o.watch)
	case "command":
		return command(ctx, r, dir, def(60))
	case "lookup":
		if o.n > 0 {
			return lookup(ctx, r, []int{o.n})
		}
		return lookup(ctx, r, []int{100, 300})
	case "mailbox":
		return mailboxes(ctx, r, dir, def(100_000), o.watch)
	case "group":
		return groupLatency(ctx, r, dir, o.members, def(500), chosen)
	case "grouprate":
		return groupRate(ctx, r, dir, def(20_000))
	case "groupback":
		return groupBack(ctx, r, dir, def(20_000))
	case "groupfar":
		return groupFar(ctx, r)
	case "groupsize":
		if o.n > 0 {
			return groupSizes(ctx, r, []int{o.n})
		}
		return groupSizes(ctx, r, []int{50, 200, 500, 1000})
	case "roster":
		return rosterFold(ctx, r)
	case "traffic":
		return traffic(ctx, r, dir, o.watch)
	case "joined":
		return joined(ctx, r, dir, o.watch)
	}
	return fmt.Errorf("nothing is called %q", what)
}

// scratch makes a folder for the run.
func scratch(parent string) (string, error) {
	if parent == "" {
		parent = "."
	}
	dir, err := os.MkdirTemp(parent, "bench-")
	if err != nil {
		return "", err
	}
	return filepath.Abs(dir)
}

func profileTo(name string) (func(), error) {
	f, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, err
	}
	return func() {
		pprof.StopCPUProfile()
		f.Close()
	}, nil
}
