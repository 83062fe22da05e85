package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"

	"hima/identity"
	"hima/internal/control/pb"
)

// conversations is how many the profile of the million benchmark has; each is full of messages of both sides.
const conversations = 40

// million measures the real program with a large profile: its start, the newest screen, its memory and its idle CPU.
func million(ctx context.Context, r report, dir string, n int, watch time.Duration) error {
	bin, err := build(ctx, dir)
	if err != nil {
		return err
	}
	p, err := newProgram(ctx, bin, "alice", "HIMA_LISTEN=/ip4/127.0.0.1/tcp/0", "HIMA_MDNS=false")
	if err != nil {
		return err
	}
	defer p.remove()
	if _, err := p.start(ctx); err != nil {
		return err
	}
	begun := time.Now()
	whos, err := p.grow(ctx, n)
	if err != nil {
		return err
	}
	r.add(row{Name: fmt.Sprintf("%d messages in %d conversations, made in", n, conversations), Value: time.Since(begun).Round(time.Second).String()})
	if err := p.settle(ctx); err != nil {
		return err
	}
	if err := p.stop(ctx); err != nil {
		return err
	}
	debug.FreeOSMemory() // what the peers held would be collected while the node is measured
	if keep := os.Getenv("HIMA_BENCH_KEEP"); keep != "" {
		return os.CopyFS(keep, os.DirFS(p.home))
	}
	if err := p.starts(ctx, r); err != nil {
		return err
	}
	if err := p.screens(ctx, r, whos); err != nil {
		return err
	}
	if err := p.resting(ctx, r, watch); err != nil {
		return err
	}
	r.add(row{Name: "load", Value: load()})
	return p.stop(ctx)
}

// grow fills the profile: nine tenths of the messages come in, one tenth goes out.
func (p *program) grow(ctx context.Context, n int) ([]string, error) {
	me, err := p.client.Whoami(ctx, &pb.WhoamiRequest{})
	if err != nil {
		return nil, err
	}
	account, err := identity.ParseAccountID(me.GetProfile().GetAccount())
	if err != nil {
		return nil, err
	}
	var whos []string
	for c := range conversations {
		s, err := p.befriend(ctx, fmt.Sprintf("peer%d", c))
		if err != nil {
			return nil, err
		}
		who := s.account.String()
		whos = append(whos, who)
		if err := p.fill(ctx, s, account, n/conversations*9/10); err != nil {
			return nil, err
		}
		err = parallel(n/conversations/10, 32, func(i int) error {
			_, err := p.client.Send(ctx, &pb.SendRequest{Who: who, Text: text(i)})
			return err
		})
		if err != nil {
			return nil, err
		}
		for ctx.Err() == nil {
			st, err := p.client.Status(ctx, &pb.StatusRequest{})
			if err != nil {
				return nil, err
			}
			if st.GetPendingMessages() == 0 {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if err := s.close(); err != nil {
			return nil, err
		}
	}
	return whos, ctx.Err()
}

// settle waits until the database has put in order what the filling left behind, which in life is years of evenings.
func (p *program) settle(ctx context.Context) error {
	for quiet := 0; quiet < 5; {
		use, err := idle(ctx, p.cmd.Process.Pid, time.Second)
		if err != nil {
			return err
		}
		if quiet++; use > .1 {
			quiet = 0
		}
	}
	return nil
}

// starts measures how long until the node answers, beside Badger opening the same files.
func (p *program) starts(ctx context.Context, r report) error {
	key, err := p.databaseKey()
	if err != nil {
		return err
	}
	var ready, floor samples
	for range 7 {
		begun := time.Now()
		db, err := openBadger(filepath.Join(p.folder(), "db"), key)
		if err != nil {
			return fmt.Errorf("opening the database alone: %w", err)
		}
		floor = append(floor, time.Since(begun))
		if err := db.Close(); err != nil {
			return err
		}
		took, err := p.start(ctx)
		if err != nil {
			return err
		}
		ready = append(ready, took)
		if err := p.stop(ctx); err != nil {
			return err
		}
	}
	r.most("process start to ready p50", float64(ready.at(.5))/1e6, 400, "ms", fmt.Sprintf("%.1f ms", float64(floor.at(.5))/1e6))
	return nil
}

// screens measures the newest 50 messages of every conversation, the first time after a start and later.
func (p *program) screens(ctx context.Context, r report, whos []string) error {
	if _, err := p.start(ctx); err != nil {
		return err
	}
	var first, later samples
	for round := range 6 {
		for _, who := range whos {
			begun := time.Now()
			h, err := p.client.History(ctx, &pb.HistoryRequest{Who: who, Limit: 50})
			if err != nil {
				return err
			}
			if len(h.GetMessages()) != 50 {
				return fmt.Errorf("a screen of %d messages", len(h.GetMessages()))
			}
			if round == 0 {
				first = append(first, time.Since(begun))
			} else {
				later = append(later, time.Since(begun))
			}
		}
	}
	r.most("newest 50, first time after the start, p50", float64(first.at(.5))/1e6, 5, "ms", "")
	r.most("newest 50, later, p50", float64(later.at(.5))/1e6, 5, "ms", "")
	r.add(row{Name: "newest 50, later, p99", Value: fmt.Sprintf("%.2f ms", float64(later.at(.99))/1e6)})
	return nil
}

// resting measures memory and CPU of the node when nothing happens, beside Badger alone with a copy of the files.
func (p *program) resting(ctx context.Context, r report, watch time.Duration) error {
	pid := p.cmd.Process.Pid
	select {
	case <-time.After(watch / 2): // what the start and the screens left behind is given back meanwhile
	case <-ctx.Done():
		return ctx.Err()
	}
	cpu, err := idle(ctx, pid, watch)
	if err != nil {
		return err
	}
	mem, err := rss(pid)
	if err != nil {
		return err
	}
	floorCPU, floorMem, err := p.badgerAlone(ctx, watch)
	if err != nil {
		return err
	}
	r.most("resident memory, idle", mem, 80, "MB", fmt.Sprintf("%.1f MB", floorMem))
	r.most("CPU, idle, % of a core", cpu*100, floorCPU*100+.5, "%", fmt.Sprintf("%.2f %%", floorCPU*100))
	return nil
}

// badgerAlone runs another process that has nothing but a copy of the database open.
func (p *program) badgerAlone(ctx context.Context, watch time.Duration) (cpu, mem float64, err error) {
	copied, err := os.MkdirTemp(p.home, "copy")
	if err != nil {
		return 0, 0, err
	}
	// The node is idle and everything is synced; what a copy of the open files misses at most is a write of the moment.
	if err := os.CopyFS(filepath.Join(copied, "db"), os.DirFS(filepath.Join(p.folder(), "db"))); err != nil {
		return 0, 0, err
	}
	key, err := p.databaseKey()
	if err != nil {
		return 0, 0, err
	}
	self, err := os.Executable()
	if err != nil {
		return 0, 0, err
	}
	cmd := exec.CommandContext(ctx, self, "-dir", filepath.Join(copied, "db"), "badger")
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, 0, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, 0, err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return 0, 0, err
	}
	defer func() { in.Close(); err = errors.Join(err, cmd.Wait()) }()
	fmt.Fprintln(in, hex.EncodeToString(key))
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return 0, 0, fmt.Errorf("opening the copy: %w", err)
	}
	time.Sleep(watch / 4)
	if cpu, err = idle(ctx, cmd.Process.Pid, watch); err != nil {
		return 0, 0, err
	}
	mem, err = rss(cmd.Process.Pid)
	return cpu, mem, err
}

// serveBadger is the main of the process that holds a database open and does nothing.
func serveBadger(dir string) error {
	in := bufio.NewReader(os.Stdin)
	line, err := in.ReadString('\n')
	if err != nil {
		return err
	}
	key, err := hex.DecodeString(strings.TrimSpace(line))
	if err != nil {
		return err
	}
	db, err := openBadger(dir, key)
	if err != nil {
		return err
	}
	// One screen, as the node has shown some.
	err = db.View(func(tx *badger.Txn) error {
		it := tx.NewIterator(badger.DefaultIteratorOptions)
		defer it.Close()
		n := 0
		for it.Rewind(); it.Valid() && n < 2000; it.Next() {
			n++
		}
		return nil
	})
	if err != nil {
		return err
	}
	fmt.Println("open")
	_, _ = io.Copy(io.Discard, in) // until the other side ends
	return db.Close()
}

// command measures `hima send` from the call of the program to its end.
func command(ctx context.Context, r report, dir string, n int) error {
	bin, err := build(ctx, dir)
	if err != nil {
		return err
	}
	p, err := newProgram(ctx, bin, "alice", "HIMA_LISTEN=/ip4/127.0.0.1/tcp/0", "HIMA_MDNS=false")
	if err != nil {
		return err
	}
	defer p.remove()
	if _, err := p.start(ctx); err != nil {
		return err
	}
	s, err := p.befriend(ctx, "bob")
	if err != nil {
		return err
	}
	defer s.close()
	var send, version samples
	for i := range n {
		begun := time.Now()
		if out, err := p.run(ctx, "version"); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		version = append(version, time.Since(begun))
		begun = time.Now()
		if out, err := p.run(ctx, "send", s.account.String(), text(i)); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		send = append(send, time.Since(begun))
	}
	floor := fmt.Sprintf("%.1f ms", float64(version.at(.5))/1e6)
	r.most("`hima send`, whole command, p50", float64(send.at(.5))/1e6, 80, "ms", floor)
	r.add(row{Name: "`hima send`, whole command, p99", Value: fmt.Sprintf("%.1f ms", float64(send.at(.99))/1e6)})
	r.add(row{Name: "load", Value: load()})
	return p.stop(ctx)
}

// traffic measures what two connected nodes that have nothing to say to each other send, headers and all, discovery
// included. It counts the bytes of the loopback interface, so it runs in a network namespace of its own, into which it
// takes this program by unshare.
func traffic(ctx context.Context, r report, dir string, watch time.Duration) error {
	if alone, err := inNamespace(ctx); !alone {
		return err
	}
	bin, err := build(ctx, dir)
	if err != nil {
		return err
	}
	var people []*program
	for _, name := range []string{"alice", "bob"} {
		p, err := newProgram(ctx, bin, name)
		if err != nil {
			return err
		}
		defer p.remove()
		if _, err := p.start(ctx); err != nil {
			return err
		}
		people = append(people, p)
	}
	alice, bob := people[0], people[1]
	if out, err := try(ctx, func() (string, error) { return alice.run(ctx, "contact", "add", "bob", "--yes") }); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if out, err := try(ctx, func() (string, error) { return bob.run(ctx, "contact", "accept", "alice") }); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if out, err := alice.run(ctx, "send", "bob", "hello", "--wait", "delivered", "--timeout", "30s"); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	time.Sleep(watch / 4)
	before, err := loopbackBytes()
	if err != nil {
		return err
	}
	select {
	case <-time.After(watch):
	case <-ctx.Done():
		return ctx.Err()
	}
	after, err := loopbackBytes()
	if err != nil {
		return err
	}
	r.most("two idle connected nodes, all packets", float64(after-before)/watch.Seconds(), 200, "bytes/s", "")
	return errors.Join(alice.stop(ctx), bob.stop(ctx))
}

// inNamespace says whether this program has a network of its own, in which it counts bytes; if not, it runs itself there.
func inNamespace(ctx context.Context) (bool, error) {
	if os.Getenv("HIMA_BENCH_ALONE") != "" {
		return true, nil
	}
	self, err := os.Executable()
	if err != nil {
		return false, err
	}
	sh := `ip link set lo up && ip link set lo multicast on && exec "$0" "$@"`
	args := append([]string{"-n", "sh", "-c", sh, self}, os.Args[1:]...)
	cmd := exec.CommandContext(ctx, "unshare", args...)
	cmd.Env = append(os.Environ(), "HIMA_BENCH_ALONE=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return false, cmd.Run()
}

// try repeats what the network may not have made possible yet.
func try(ctx context.Context, f func() (string, error)) (out string, err error) {
	for range 100 {
		if out, err = f(); err == nil || ctx.Err() != nil {
			return out, err
		}
		time.Sleep(100 * time.Millisecond)
	}
	return out, err
}

// loopbackBytes counts what the loopback interface of this namespace sent; the files under /sys are those of another.
func loopbackBytes() (int64, error) {
	b, err := os.ReadFile("/proc/net/dev")
	if err != nil {
		return 0, err
	}
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) > 9 && f[0] == "lo:" {
			return strconv.ParseInt(f[9], 10, 64)
		}
	}
	return 0, errors.New("there is no loopback interface")
}
