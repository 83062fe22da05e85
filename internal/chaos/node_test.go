package chaos

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/internal/control"
	"hima/internal/control/pb"
	"hima/internal/daemon"
)

// patience is how long anything may take that should take a moment, on a machine that has other things to do.
const patience = 60 * time.Second

// long tells whether the long form of the tests was asked for.
func long() bool { return os.Getenv("HIMA_LONG") == "1" }

// program is the path of the binary under test; TestMain builds it.
func program() string { return os.Getenv("HIMA_CHAOS_PROGRAM") }

func TestMain(m *testing.M) {
	if runtime.GOOS == "windows" {
		return // nodes there are not killed by signals; nothing to test
	}
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "hima-chaos")
	if err != nil {
		fmt.Fprintln(os.Stderr, "making a folder:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin := filepath.Join(dir, "hima")
	build := exec.Command("go", "build", "-o", bin, "hima/cmd/hima")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "building hima:", err)
		return 1
	}
	if err := os.Setenv("HIMA_CHAOS_PROGRAM", bin); err != nil {
		return 1
	}
	return m.Run()
}

// person is a profile and the process that runs it, if one does.
type person struct {
	t       testing.TB
	name    string
	home    string
	port    int
	account string

	mu     sync.Mutex // guards what follows
	cmd    *exec.Cmd
	exited chan struct{}
	client *control.Client
	log    bytes.Buffer // of all processes, one after another
}

// newPerson prepares a profile on a free port of the loopback interface. Nothing runs yet.
func newPerson(t testing.TB, name string) *person {
	t.Helper()
	// Short, for a socket's path is at most about 100 bytes long.
	home, err := os.MkdirTemp("", "hc")
	require.NoError(t, err)
	p := &person{t: t, name: name, home: home, port: freePort(t)}
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("log of %s:\n%s", name, p.tail())
		}
		_ = os.RemoveAll(home)
	})
	return p
}

// freePort finds a port that is free for TCP now. Nodes keep their ports over restarts, so it has to be known before.
func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// start runs the node in the foreground and returns once it answers.
func (p *person) start(extra ...string) {
	p.t.Helper()
	p.launch(extra...)
	p.ready()
}

func (p *person) launch(extra ...string) {
	p.t.Helper()
	args := append([]string{"--home", p.home, "--profile", p.name, "node", "run"}, extra...)
	cmd := exec.Command(program(), args...)
	cmd.Env = append(os.Environ(),
		fmt.Sprintf("HIMA_LISTEN=/ip4/127.0.0.1/tcp/%d", p.port), "HIMA_MDNS=false", "HIMA_LOG_LEVEL=info", "LANG=C")
	cmd.Stdout, cmd.Stderr = p, p
	require.NoError(p.t, cmd.Start())
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // killed, mostly
		close(exited)
	}()
	socket, err := daemon.SocketPath(p.home, p.name)
	require.NoError(p.t, err)
	p.mu.Lock()
	p.cmd, p.exited, p.client = cmd, exited, control.Dial(socket)
	p.mu.Unlock()
}

// Write takes the log of the processes.
func (p *person) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(b)
}

func (p *person) tail() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.log.Bytes()
	return string(b[max(0, len(b)-6000):])
}

// ready waits until the node answers.
func (p *person) ready() *pb.StatusResponse {
	p.t.Helper()
	var last error
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		st, err := p.api().Status(ctx, &pb.StatusRequest{})
		cancel()
		if err == nil {
			return st
		}
		last = err
		select {
		case <-p.gone():
			p.t.Fatalf("%s: the node ended by itself:\n%s", p.name, p.tail())
		case <-time.After(10 * time.Millisecond):
		}
	}
	p.t.Fatalf("%s: the node does not answer: %v\n%s", p.name, last, p.tail())
	return nil
}

func (p *person) api() *control.Client {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.client
}

func (p *person) gone() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.exited
}

// kill ends the process as a power cut would, and waits until it is gone.
func (p *person) kill() {
	p.mu.Lock()
	cmd, exited, client := p.cmd, p.exited, p.client
	p.cmd = nil
	p.mu.Unlock()
	if cmd == nil {
		return
	}
	_ = cmd.Process.Kill()
	<-exited
	client.Close()
}

// stop ends the node in good order.
func (p *person) stop() {
	p.t.Helper()
	_, err := p.api().Stop(p.ctx(), &pb.StopRequest{})
	require.NoError(p.t, err)
	select {
	case <-p.gone():
	case <-time.After(patience):
		p.t.Fatalf("%s does not stop:\n%s", p.name, p.tail())
	}
	p.kill()
}

// ctx bounds one call.
func (p *person) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	p.t.Cleanup(cancel)
	return ctx
}

// register makes the profile; the node must run with --create.
func (p *person) register() {
	p.t.Helper()
	r, err := p.api().Register(p.ctx(), &pb.RegisterRequest{Username: p.name, Nickname: strings.ToUpper(p.name), NoPassword: true})
	require.NoError(p.t, err)
	p.account = r.GetProfile().GetAccount()
}

// befriend makes two people contacts, by invite link and request.
func befriend(t testing.TB, a, b *person) {
	t.Helper()
	inv, err := a.api().CreateInvite(a.ctx(), &pb.CreateInviteRequest{})
	require.NoError(t, err)
	_, err = b.api().AddContact(b.ctx(), &pb.AddContactRequest{Who: inv.GetInvite().GetLink(), Message: "hello", ExpectAccount: a.account})
	require.NoError(t, err)
	eventually(t, "the request arrives", func() bool {
		r, err := a.api().ListRequests(a.ctx(), &pb.ListRequestsRequest{})
		return err == nil && len(r.GetRequests()) == 1
	})
	_, err = a.api().ActOnContact(a.ctx(), &pb.ActOnContactRequest{Who: b.account, Act: pb.ActOnContactRequest_ACT_ACCEPT})
	require.NoError(t, err)
	eventually(t, "the answer arrives", func() bool {
		r, err := b.api().ListContacts(b.ctx(), &pb.ListContactsRequest{})
		return err == nil && len(r.GetContacts()) == 1 && r.GetContacts()[0].GetRelation() == "contact"
	})
}

// pair returns two running nodes whose people are contacts.
func pair(t testing.TB) (a, b *person) {
	t.Helper()
	if testing.Short() {
		t.Skip("the nodes are other processes: the race detector sees nothing of them")
	}
	a, b = newPerson(t, "alice"), newPerson(t, "bob")
	for _, p := range []*person{a, b} {
		p.start("--create")
		p.register()
	}
	befriend(t, a, b)
	return a, b
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("waiting until %s: it does not happen", what)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// history returns the whole conversation with somebody, oldest first, page by page.
func (p *person) history(who string) []*pb.Message {
	p.t.Helper()
	var all []*pb.Message
	before := ""
	for {
		r, err := p.api().History(p.ctx(), &pb.HistoryRequest{Who: who, Limit: 500, Before: before})
		require.NoError(p.t, err)
		all = append(append([]*pb.Message(nil), r.GetMessages()...), all...)
		if !r.GetMore() {
			return all
		}
		require.NotEmpty(p.t, r.GetMessages(), "a page with nothing on it and more behind it")
		before = r.GetMessages()[0].GetId()
	}
}

// texts keeps the messages that people wrote.
func texts(all []*pb.Message) []*pb.Message {
	var out []*pb.Message
	for _, m := range all {
		if m.GetKind() == "text" {
			out = append(out, m)
		}
	}
	return out
}
