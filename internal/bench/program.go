package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"hima/identity"
	"hima/internal/control"
	"hima/internal/control/pb"
	"hima/internal/daemon"
	"hima/internal/messenger"
	"hima/internal/replica"
)

// program is the real binary with a profile of its own, seen from outside as its owner sees it.
type program struct {
	bin, home, name string
	env             []string
	cmd             *exec.Cmd
	client          *control.Client
}

// build makes the binary; the working directory is in the module.
func build(ctx context.Context, dir string) (string, error) {
	bin := filepath.Join(dir, "hima")
	out, err := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", bin, "hima/cmd/hima").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("building hima: %w\n%s", err, out)
	}
	return bin, nil
}

// newProgram registers a profile without a password. The node does not run afterwards.
func newProgram(ctx context.Context, bin, name string, env ...string) (*program, error) {
	home, err := os.MkdirTemp("", "hb") // a socket's path is short, so it cannot lie in the folder of the run
	if err != nil {
		return nil, err
	}
	p := &program{bin: bin, home: home, name: name, env: append(os.Environ(), env...)}
	if out, err := p.run(ctx, "register", "--username", name, "--no-password"); err != nil {
		return nil, fmt.Errorf("registering: %w\n%s", err, out)
	}
	if out, err := p.run(ctx, "node", "stop"); err != nil {
		return nil, fmt.Errorf("stopping: %w\n%s", err, out)
	}
	socket, err := daemon.SocketPath(home, name)
	if err != nil {
		return nil, err
	}
	p.client = control.Dial(socket)
	return p, nil
}

func (p *program) run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, p.bin, append([]string{"--home", p.home}, args...)...)
	cmd.Env = p.env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// start runs the node in the foreground and returns how long it took until it answered, unlocked.
func (p *program) start(ctx context.Context) (time.Duration, error) {
	var err error
	for range 50 { // the one before may be closing still
		begun := time.Now()
		p.cmd = exec.Command(p.bin, "--home", p.home, "--profile", p.name, "node", "run")
		p.cmd.Env = p.env
		if err = p.cmd.Start(); err != nil {
			return 0, err
		}
		ended := make(chan struct{})
		cmd := p.cmd
		go func() {
			_ = cmd.Wait() // how it ended is of no interest: only that it answers
			close(ended)
		}()
		if err = p.ready(ctx, ended); err == nil {
			return time.Since(begun), nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return 0, err
}

func (p *program) ready(ctx context.Context, ended <-chan struct{}) error {
	for {
		s, err := p.client.Status(ctx, &pb.StatusRequest{})
		if err == nil && s.GetState() == "unlocked" {
			return nil
		}
		select {
		case <-ended:
			return errors.New("the node ended")
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}

// stop ends the node in good order.
func (p *program) stop(ctx context.Context) error {
	pid := p.cmd.Process.Pid
	if _, err := p.client.Stop(ctx, &pb.StopRequest{}); err != nil {
		return err
	}
	for ctx.Err() == nil {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err != nil {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return ctx.Err()
}

func (p *program) remove() {
	if p.cmd != nil {
		_ = p.cmd.Process.Kill() // it may have ended already
	}
	_ = os.RemoveAll(p.home)
}

// folder is where the profile's files lie.
func (p *program) folder() string { return filepath.Join(p.home, "profiles", p.name) }

// databaseKey reads the key from the vault of a profile without a password.
func (p *program) databaseKey() ([]byte, error) {
	sealed, err := os.ReadFile(filepath.Join(p.folder(), "vault.age"))
	if err != nil {
		return nil, err
	}
	key, err := os.ReadFile(filepath.Join(p.folder(), "vault.key"))
	if err != nil {
		return nil, err
	}
	v, err := identity.OpenVaultKey(sealed, key)
	return v.DatabaseKey.Bytes(), err
}

// befriend makes a stack in memory a contact of the running program, with a session.
func (p *program) befriend(ctx context.Context, name string) (*stack, error) {
	me, err := p.client.Whoami(ctx, &pb.WhoamiRequest{})
	if err != nil {
		return nil, err
	}
	device, err := identity.ParseDeviceID(me.GetProfile().GetDevice())
	if err != nil {
		return nil, err
	}
	account, err := identity.ParseAccountID(me.GetProfile().GetAccount())
	if err != nil {
		return nil, err
	}
	inv, err := p.client.CreateInvite(ctx, &pb.CreateInviteRequest{})
	if err != nil {
		return nil, err
	}
	s, err := openStack("", name)
	if err != nil {
		return nil, err
	}
	if _, _, err = s.messenger.AddContact(ctx, messenger.AddContact{Who: inv.GetInvite().GetLink()}); err == nil {
		err = s.open(ctx, device)
	}
	if err != nil {
		return s, err
	}
	accept := &pb.ActOnContactRequest{Who: s.account.String(), Act: pb.ActOnContactRequest_ACT_ACCEPT}
	for {
		if _, err = p.client.ActOnContact(ctx, accept); err == nil {
			break
		}
		if ctx.Err() != nil {
			return s, err
		}
		time.Sleep(10 * time.Millisecond)
	}
	for ctx.Err() == nil {
		contacts, err := s.messenger.Contacts(ctx, true)
		if err != nil {
			return s, err
		}
		for _, c := range contacts {
			if c.Account == account && c.Relation == messenger.RelationContact {
				return s, nil
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	return s, ctx.Err()
}

// fill lets s write n messages to the program's account and waits until it holds them.
func (p *program) fill(ctx context.Context, s *stack, account identity.AccountID, n int) error {
	acks := &ackTimes{}
	id := s.chat(account)
	s.watchAcks(func(a replica.Ack) {
		if a.Feed == id {
			acks.note(a.Last)
		}
	})
	err := parallel(n, 512, func(i int) error {
		_, err := s.messenger.Send(ctx, messenger.SendInput{Who: account.String(), Text: text(i)})
		return err
	})
	if err != nil {
		return err
	}
	select {
	case <-acks.until(uint64(n)):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// parallel runs f for 0..n-1, so many at a time, until one fails.
func parallel(n, at int, f func(int) error) error {
	var mu sync.Mutex
	next := 0
	var failed error
	var wg sync.WaitGroup
	for range at {
		wg.Go(func() {
			for {
				mu.Lock()
				i := next
				next++
				stop := i >= n || failed != nil
				mu.Unlock()
				if stop {
					return
				}
				if err := f(i); err != nil {
					mu.Lock()
					failed = err
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return failed
}

// rss is the resident memory of a process in MiB.
func rss(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) > 1 && f[0] == "VmRSS:" {
			kb, err := strconv.ParseFloat(f[1], 64)
			return kb / 1024, err
		}
	}
	return 0, errors.New("the system does not tell")
}

// busy is the CPU time that a process has used, to a nanosecond: ticks of ten milliseconds say nothing of an idle one.
func busy(pid int) (time.Duration, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, t := range tasks {
		b, err := os.ReadFile(t)
		if err != nil {
			continue // a thread ended
		}
		if f := strings.Fields(string(b)); len(f) > 0 {
			ns, err := strconv.ParseInt(f[0], 10, 64)
			if err != nil {
				return 0, err
			}
			sum += ns
		}
	}
	return time.Duration(sum), nil
}

// idle is the CPU use of a process over a time, as a part of one core.
func idle(ctx context.Context, pid int, over time.Duration) (float64, error) {
	before, err := busy(pid)
	if err != nil {
		return 0, err
	}
	select {
	case <-time.After(over):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	after, err := busy(pid)
	return float64(after-before) / float64(over), err
}
