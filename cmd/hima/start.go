package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"time"

	"hima/internal/control"
	"hima/internal/control/pb"
	"hima/internal/text"
)

const (
	// startPatience bounds the start of a node in the background: a large database after a crash takes seconds.
	startPatience = 30 * time.Second
	// probeTimeout bounds a look at the socket.
	probeTimeout = 2 * time.Second
	// probePause is the pause between two looks at a socket that somebody else is about to open.
	probePause = 10 * time.Millisecond
)

// place names the profile a command works on.
type place struct {
	home    string // parent of all profiles, resolved
	profile string // canonical username
	socket  string
}

// where finds the profile: flag or environment, else the one last logged in, else the only one.
func (a *app) where() (place, error) {
	home, err := nodeHome(a.flags.home)
	if err != nil {
		return place{}, err
	}
	p := place{home: home}
	if a.flags.profile != "" {
		if p.profile, err = a.username(a.flags.profile); err != nil {
			return place{}, err
		}
	} else if p.profile, err = a.defaultProfile(home); err != nil {
		return place{}, err
	}
	p.socket, err = nodeSocket(home, p.profile)
	return p, err
}

// username brings a name into its canonical form.
func (a *app) username(s string) (string, error) {
	u, err := text.Username(s)
	if err == nil {
		return u, nil
	}
	reason := text.ReasonCharacter
	if e, ok := errors.AsType[*text.UsernameError](err); ok {
		reason = e.Reason
	}
	return "", usage("username." + string(reason))
}

// connect returns a client of the node of the profile, starting the node if it does not run.
func (a *app) connect(ctx context.Context) (*control.Client, error) {
	p, err := a.where()
	if err != nil {
		return nil, err
	}
	return a.connectTo(ctx, p)
}

func (a *app) connectTo(ctx context.Context, p place) (*control.Client, error) {
	if !answers(p.socket) {
		if err := a.mayStart(p); err != nil {
			return nil, err
		}
		if err := a.start(ctx, p, false); err != nil {
			return nil, err
		}
	}
	return a.client(p), nil
}

func (a *app) client(p place) *control.Client {
	return control.New(control.Config{Socket: p.socket, Mismatch: a.mismatch})
}

// mayStart refuses to start a node that could do nothing: one that may not be, has no profile, or stays locked.
func (a *app) mayStart(p place) error {
	profiles, err := nodeProfiles(p.home)
	if err != nil {
		return err
	}
	for _, known := range profiles {
		if known.name != p.profile {
			continue
		}
		if a.flags.noStart {
			return fail(control.NotRunning, "error.not_running_named", "Profile", p.profile).withHint("hint.no_start")
		}
		if known.hasPassword {
			return fail(control.Locked, "error.locked_named", "Profile", p.profile).withHint("hint.locked")
		}
		return nil
	}
	return a.unknownProfile(p.profile, profiles)
}

// answers reports whether a node listens on the socket. That somebody takes the connection says nothing: the socket of a
// node that was just killed still does, until the system has cleaned up. So it asks, and any answer will do. A node too
// busy to answer in time is there all the same.
func answers(socket string) bool {
	conn, err := net.DialTimeout("unix", socket, probeTimeout)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(probeTimeout))
	if _, err := io.WriteString(conn, "HEAD / HTTP/1.1\r\nHost: hima\r\nConnection: close\r\n\r\n"); err != nil {
		return false
	}
	_, err = conn.Read(make([]byte, 1))
	return err == nil || errors.Is(err, os.ErrDeadlineExceeded)
}

// started is the one line that a node in the background writes to its stdout: that it is ready, or why not.
type started struct {
	Ready   bool   `json:"ready"`
	Error   string `json:"error"`
	Message string `json:"message"`
	Hint    string `json:"hint"`
}

// start makes the node of a profile run and waits until it answers. A node that is just ending, or that another command
// is just starting, holds the profile's lock: then the next attempt finds one or the other.
func (a *app) start(ctx context.Context, p place, create bool) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	for {
		err := a.startOnce(ctx, p, create)
		if codeOf(err) != control.Conflict {
			return err
		}
		if a.ready(ctx, p) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fail(control.Unavailable, "error.start_slow").withHint("hint.logs")
		case <-time.After(probePause):
		}
	}
}

// startOnce runs this program again as the node, in a session of its own.
func (a *app) startOnce(ctx context.Context, p place, create bool) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := []string{"--home", p.home, "--profile", p.profile, "node", "run", "--background"}
	if create {
		args = append(args, "--create")
	}
	cmd := exec.Command(self, args...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), "HIMA_JSON=", "HIMA_QUIET=", "HIMA_NO_START=", "HIMA_PASSWORD_FILE=", "HIMA_HOME=", "HIMA_PROFILE=")
	detach(cmd)
	// Its stderr is for a crash only; what it has to say it logs itself. /dev/null would lose the crash.
	if logs, err := nodeLog(p.home, p.profile); err == nil {
		if f, err := os.OpenFile(logs, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600); err == nil {
			defer func() { _ = f.Close() }()
			cmd.Stderr = f
		}
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fail(control.Internal, "error.start", "Detail", plainError(err))
	}
	line := make(chan string, 1)
	go func() { // ends with the child's line, or with the child
		s, _ := bufio.NewReader(io.LimitReader(out, 64<<10)).ReadString('\n')
		line <- s
	}()
	select {
	case s := <-line:
		var said started
		if json.Unmarshal([]byte(s), &said) != nil {
			_ = cmd.Wait()
			return fail(control.Internal, "error.start_silent").withHint("hint.logs")
		}
		if said.Ready {
			return cmd.Process.Release()
		}
		_ = cmd.Wait()
		return &control.Error{Code: control.Code(said.Error), Message: said.Message, Hint: said.Hint}
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return fail(control.Unavailable, "error.start_slow").withHint("hint.logs")
		}
		return ctx.Err()
	}
}

// ready reports whether a node answers calls.
func (a *app) ready(ctx context.Context, p place) bool {
	node := a.client(p)
	defer node.Close()
	_, err := node.Status(ctx, &pb.StatusRequest{})
	return err == nil
}
