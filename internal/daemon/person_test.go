package daemon

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/internal/control"
	"hima/internal/control/pb"
)

// patience is how long anything may take that should take a moment, on a machine that has other things to do.
const patience = 30 * time.Second

// person is a profile and, while it runs, its node in this process.
type person struct {
	t      *testing.T
	name   string
	home   string
	config func(*Config) // changes what the next start uses; nil: nothing

	*control.Client
	stop   context.CancelFunc
	result chan error
	log    *lockedBuffer
}

// lockedBuffer keeps the log of a node for a test that fails.
type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newPerson prepares a profile in a home of its own. Nothing runs yet.
func newPerson(t *testing.T, name string) *person {
	t.Helper()
	home, err := os.MkdirTemp("", "hd") // short, for the socket's sake
	require.NoError(t, err)
	p := &person{t: t, name: name, home: home, log: &lockedBuffer{}}
	t.Cleanup(func() {
		if p.stop != nil {
			p.halt()
		}
		if t.Failed() {
			t.Logf("log of %s:\n%s", name, p.log)
		}
		require.NoError(t, os.RemoveAll(home))
	})
	return p
}

func (p *person) settings() Settings {
	off := false
	return Settings{Listen: []string{"/ip4/127.0.0.1/tcp/0"}, MDNS: &off}
}

// run starts the node and returns once it answers, or with the error that Run ended with.
func (p *person) run() error {
	p.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, result := make(chan struct{}), make(chan error, 1)
	c := Config{
		Home: p.home, Profile: p.name, Create: true, Settings: p.settings(), WorkFactor: testFactor,
		Logger: slog.New(slog.NewTextHandler(p.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Ready:  func() { close(ready) },
	}
	if p.config != nil {
		p.config(&c)
	}
	go func() { result <- Run(ctx, c) }()
	select {
	case err := <-result:
		cancel()
		return err
	case <-ready:
	}
	socket, err := SocketPath(p.home, p.name)
	require.NoError(p.t, err)
	p.Client, p.stop, p.result = control.Dial(socket), cancel, result
	return nil
}

func (p *person) start() {
	p.t.Helper()
	require.NoError(p.t, p.run())
}

// halt ends the node and returns when everything of it has ended.
func (p *person) halt() {
	p.t.Helper()
	p.stop()
	p.wait()
}

// wait returns when the node has ended by itself.
func (p *person) wait() {
	p.t.Helper()
	p.stop()
	require.NoError(p.t, <-p.result)
	p.Close()
	p.stop = nil
}

// register starts the node and registers without a password.
func (p *person) register() *pb.RegisterResponse {
	p.t.Helper()
	p.start()
	r, err := p.Register(p.t.Context(), &pb.RegisterRequest{Username: p.name, Nickname: strings.ToUpper(p.name), NoPassword: true})
	require.NoError(p.t, err)
	return r
}

// befriend lets a ask b with b's invite link, and b accept.
func befriend(t *testing.T, a, b *person) {
	t.Helper()
	link, err := b.CreateInvite(t.Context(), &pb.CreateInviteRequest{})
	require.NoError(t, err)
	_, err = a.AddContact(t.Context(), &pb.AddContactRequest{Who: link.GetInvite().GetLink(), Message: "hello, it is " + a.name})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		r, err := b.ListRequests(t.Context(), &pb.ListRequestsRequest{})
		require.NoError(t, err)
		return len(r.GetRequests()) == 1 && r.GetRequests()[0].GetIncoming() && r.GetRequests()[0].GetState() == "waiting"
	}, patience, 10*time.Millisecond, "the request did not arrive")
	_, err = b.ActOnContact(t.Context(), &pb.ActOnContactRequest{Who: a.name, Act: pb.ActOnContactRequest_ACT_ACCEPT})
	require.NoError(t, err)
	require.Eventually(t, func() bool { return a.relation(b.name) == "contact" && b.relation(a.name) == "contact" },
		patience, 10*time.Millisecond, "the acceptance did not arrive")
}

func (p *person) relation(who string) string {
	p.t.Helper()
	l, err := p.ListContacts(p.t.Context(), &pb.ListContactsRequest{})
	require.NoError(p.t, err)
	for _, c := range l.GetContacts() {
		if c.GetUsername() == who {
			return c.GetRelation()
		}
	}
	return ""
}

// send sends one text and returns its ID.
func (p *person) send(who, text string) string {
	p.t.Helper()
	r, err := p.Send(p.t.Context(), &pb.SendRequest{Who: who, Text: text})
	require.NoError(p.t, err)
	return r.GetMessage().GetId()
}

// history returns the texts of a conversation, oldest first, and the states of the own ones by text.
func (p *person) history(who string) (texts []string, states map[string]string) {
	p.t.Helper()
	h, err := p.History(p.t.Context(), &pb.HistoryRequest{Who: who, Limit: 1000})
	require.NoError(p.t, err)
	states = map[string]string{}
	for _, m := range h.GetMessages() {
		if m.GetKind() != "text" {
			continue
		}
		texts = append(texts, m.GetText())
		if m.GetOwn() {
			states[m.GetText()] = m.GetState()
		}
	}
	return texts, states
}

func (p *person) eventuallyTexts(who string, want ...string) {
	p.t.Helper()
	require.Eventually(p.t, func() bool {
		texts, _ := p.history(who)
		return len(texts) >= len(want)
	}, patience, 10*time.Millisecond, "%s did not get all of %v", p.name, want)
	texts, _ := p.history(who)
	require.Equal(p.t, want, texts)
}

func (p *person) eventuallyState(who, text, want string) {
	p.t.Helper()
	require.Eventually(p.t, func() bool {
		_, states := p.history(who)
		return states[text] == want
	}, patience, 10*time.Millisecond, "%q of %s did not become %s", text, p.name, want)
}

func (p *person) status() *pb.StatusResponse {
	p.t.Helper()
	s, err := p.Status(p.t.Context(), &pb.StatusRequest{})
	require.NoError(p.t, err)
	return s
}

// refused asserts the code of an error.
func refused(t *testing.T, err error, code control.Code) {
	t.Helper()
	require.Equal(t, code, control.CodeOf(err), "%v", err)
	require.True(t, errors.Is(err, code))
}
