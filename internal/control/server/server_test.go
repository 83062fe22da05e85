package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/identity"
	"hima/internal/control"
	"hima/internal/control/pb"
	"hima/internal/feed"
	"hima/internal/messenger"
	"hima/storage"
)

// fakeBackend answers every call that has no messenger with err.
type fakeBackend struct {
	err       error
	messenger *messenger.Messenger
	register  func(*pb.RegisterRequest)
	stopped   chan bool
}

func (f *fakeBackend) Status(context.Context) (*pb.StatusResponse, error) {
	if f.err != nil {
		return nil, f.err
	}
	return &pb.StatusResponse{State: "locked"}, nil
}

func (f *fakeBackend) Register(_ context.Context, in *pb.RegisterRequest) (*pb.RegisterResponse, error) {
	f.register(in)
	return &pb.RegisterResponse{}, f.err
}

func (f *fakeBackend) Login(context.Context, *pb.LoginRequest) (*pb.LoginResponse, error) {
	panic("a defect")
}

func (f *fakeBackend) Stop(_ context.Context, logout bool) error {
	f.stopped <- logout
	return f.err
}

func (f *fakeBackend) ChangePassword(context.Context, *pb.ChangePasswordRequest) error { return f.err }

func (f *fakeBackend) HasPassword() bool { return true }

func (f *fakeBackend) Network() (Network, error) { return nil, f.err }

func (f *fakeBackend) Messenger() (*messenger.Messenger, error) {
	if f.messenger != nil {
		return f.messenger, nil
	}
	return nil, f.err
}

// serve runs a server on a socket until the test ends.
func serve(t *testing.T, b Backend) (path string, c *control.Client, stop func()) {
	t.Helper()
	dir, err := os.MkdirTemp("", "hs") // short, for the socket's sake
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	path = filepath.Join(dir, "run", "s.sock")
	l, err := Listen(path, nil)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- New(Config{Backend: b}).Serve(ctx, l) }()
	c = control.Dial(path)
	done := false
	stop = func() {
		if !done {
			done = true
			cancel()
			require.NoError(t, <-ended)
			c.Close()
		}
	}
	t.Cleanup(stop)
	return path, c, stop
}

func TestSocketIsPrivate(t *testing.T) {
	path, c, stop := serve(t, &fakeBackend{})
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	info, err = os.Stat(filepath.Dir(path))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())
	_, err = c.Status(t.Context(), &pb.StatusRequest{})
	require.NoError(t, err)
	stop()
	_, err = c.Status(t.Context(), &pb.StatusRequest{})
	require.Equal(t, control.NotRunning, control.CodeOf(err))
	_, err = Listen("/tmp/"+strings.Repeat("x", 120), nil)
	require.ErrorIs(t, err, ErrSocketPath)
}

func TestStaleSocketIsReplacedAndOtherFilesAreNot(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	l.SetUnlinkOnClose(false) // as a killed process leaves it
	require.NoError(t, l.Close())
	again, err := Listen(path, nil)
	require.NoError(t, err)
	require.NoError(t, again.Close())
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, []byte("mine"), 0o600))
	_, err = Listen(file, nil)
	require.Error(t, err)
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, "mine", string(b))
}

func TestPeerUID(t *testing.T) {
	l, err := Listen(filepath.Join(t.TempDir(), "s"), nil)
	require.NoError(t, err)
	defer l.Close()
	c, err := net.Dial("unix", l.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	s, err := l.Accept()
	require.NoError(t, err, "our own user is let in")
	uid, err := peerUID(s)
	require.NoError(t, err)
	require.Equal(t, os.Getuid(), uid)
	tcp, other := net.Pipe()
	defer tcp.Close()
	defer other.Close()
	_, err = peerUID(tcp)
	require.Error(t, err)
}

func TestOnlyLocalRequests(t *testing.T) {
	h := New(Config{Backend: &fakeBackend{}}).Handler()
	tests := []struct {
		name, host, header, value string
		want                      int
	}{
		{"ours", "hima", "", "", http.StatusOK},
		{"curl", "localhost", "", "", http.StatusOK},
		{"with a port", "127.0.0.1:8080", "", "", http.StatusOK},
		{"rebound name", "evil.example", "", "", http.StatusForbidden},
		{"almost ours", "hima.evil.example", "", "", http.StatusForbidden},
		{"no host", "", "", "", http.StatusForbidden},
		{"web page", "hima", "Origin", "https://evil.example", http.StatusForbidden},
		{"web page of the same name", "hima", "Origin", "http://hima", http.StatusForbidden},
		{"link", "hima", "Referer", "https://evil.example/x", http.StatusForbidden},
		{"browser", "localhost", "Sec-Fetch-Site", "none", http.StatusForbidden},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodPost, "http://hima/hima.control.v1.Hima/Status", strings.NewReader("{}"))
			r.Host = tt.host
			r.Header.Set("Content-Type", "application/json")
			if tt.header != "" {
				r.Header.Set(tt.header, tt.value)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			require.Equal(t, tt.want, w.Code, w.Body)
		})
	}
}

func TestErrorsKeepTheirCode(t *testing.T) {
	tests := []struct {
		err  error
		want control.Code
	}{
		{&control.Error{Code: control.Locked, Message: "locked"}, control.Locked},
		{control.Conflict, control.Conflict},
		{messenger.ErrNotFound, control.NotFound},
		{messenger.ErrAmbiguous, control.Ambiguous},
		{messenger.ErrInvalid, control.Invalid},
		{messenger.ErrExists, control.Exists},
		{messenger.ErrNotContact, control.NotContact},
		{messenger.ErrWaitingForAccept, control.WaitingForAccept},
		{messenger.ErrTooLate, control.TooLate},
		{messenger.ErrTooLarge, control.TooLarge},
		{messenger.ErrDenied, control.Denied},
		{messenger.ErrFull, control.Full},
		{messenger.ErrConflict, control.Conflict},
		{messenger.ErrReadOnly, control.ReadOnly},
		{messenger.ErrUnavailable, control.Unavailable},
		{messenger.ErrNotMember, control.NotMember},
		{messenger.ErrNotAllowed, control.NotAllowed},
		{messenger.ErrLastOwner, control.LastOwner},
		{messenger.ErrDissolved, control.Dissolved},
		{messenger.ErrMuted, control.Muted},
		{messenger.ErrExpired, control.Expired},
		{identity.ErrWrongPassword, control.WrongPassword},
		{identity.ErrDamagedVault, control.Damaged},
		{storage.ErrDiskFull, control.DiskFull},
		{storage.ErrDamaged, control.Damaged},
		{storage.ErrNewer, control.Version},
		{storage.ErrClosed, control.Unavailable},
		{errors.New("never seen before"), control.Internal},
	}
	b := &fakeBackend{}
	_, c, _ := serve(t, b)
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.want, " ", tt.err), func(t *testing.T) {
			for _, err := range []error{tt.err, fmt.Errorf("doing something: %w", tt.err)} {
				b.err = err
				_, err := c.Status(t.Context(), &pb.StatusRequest{})
				require.Equal(t, tt.want, control.CodeOf(err))
				_, err = c.Whoami(t.Context(), &pb.WhoamiRequest{})
				require.Equal(t, tt.want, control.CodeOf(err))
				err = c.Watch(t.Context(), control.WatchOptions{Patience: -1}, func(*pb.Event) error { return nil })
				require.Equal(t, tt.want, control.CodeOf(err))
			}
		})
	}
}

func TestCandidatesCross(t *testing.T) {
	var account identity.AccountID
	account[3] = 7
	b := &fakeBackend{err: &messenger.Error{
		Kind: messenger.ErrAmbiguous, Message: "bob is two people", Hint: "name one by ID",
		Candidates: []messenger.Candidate{{Account: account, Username: "bob", Nickname: "Bob", Source: messenger.SourceNearby}},
	}}
	_, c, _ := serve(t, b)
	_, err := c.Find(t.Context(), &pb.FindRequest{Who: "bob"})
	var got *control.Error
	require.ErrorAs(t, err, &got)
	require.Equal(t, control.Ambiguous, got.Code)
	require.Equal(t, "name one by ID", got.Hint)
	require.Equal(t, []control.Candidate{{Account: account.String(), Username: "bob", Nickname: "Bob", Source: "nearby"}}, got.Candidates)
}

func TestPanicsAndOversizedRequests(t *testing.T) {
	b := &fakeBackend{register: func(*pb.RegisterRequest) { t.Error("an oversized request came through") }}
	path, c, _ := serve(t, b)
	_, err := c.Login(t.Context(), &pb.LoginRequest{})
	require.Equal(t, control.Internal, control.CodeOf(err))
	_, err = c.Register(t.Context(), &pb.RegisterRequest{Nickname: strings.Repeat("x", maxRequest+1)})
	require.Error(t, err)
	_, err = c.Status(t.Context(), &pb.StatusRequest{})
	require.NoError(t, err, "and it still works")

	// A client that sends a header for ever is cut off.
	conn, err := net.Dial("unix", path)
	require.NoError(t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: hima\r\nX: ")
	require.NoError(t, err)
	require.NoError(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	_, _ = io.Copy(conn, io.LimitReader(endless{}, 4<<20)) // fails as soon as the server has closed
	answer, _ := io.ReadAll(io.LimitReader(conn, 4096))
	require.True(t, len(answer) == 0 || bytes.Contains(answer, []byte(" 431 ")), "%s", answer)
}

// endless reads as one letter for ever.
type endless struct{}

func (endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 'x'
	}
	return len(b), nil
}

func TestStopIsAnsweredAndStreamsEnd(t *testing.T) {
	db, err := storage.Open(storage.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	v, _, err := identity.NewVault("alice", time.Unix(1_700_000_000, 0))
	require.NoError(t, err)
	m, err := messenger.New(messenger.Config{DB: db, Account: v.Account, Device: v.DeviceKey.ID(), Username: "alice"})
	require.NoError(t, err)
	b := &fakeBackend{messenger: m, stopped: make(chan bool, 1)}
	_, c, stop := serve(t, b)
	ready, ended := make(chan uint64, 1), make(chan error, 1)
	go func() {
		ended <- c.Watch(context.Background(), control.WatchOptions{Patience: -1}, func(e *pb.Event) error {
			if e.GetType() == "ready" {
				ready <- e.GetSeq()
			}
			return nil
		})
	}()
	<-ready
	_, err = c.Stop(t.Context(), &pb.StopRequest{Logout: true})
	require.NoError(t, err)
	require.True(t, <-b.stopped)
	stop()
	require.Equal(t, control.Unavailable, control.CodeOf(<-ended))
}

func TestFormsOfAnswers(t *testing.T) {
	var account identity.AccountID
	var conv feed.ConversationID
	conv[0] = 1
	at := time.UnixMilli(1_700_000_000_123)
	msg := messenger.Message{Conversation: conv, Author: account, Time: at, Kind: messenger.MessageText, Text: "hi", Own: true, State: messenger.StateSent}
	got := messageOf(msg)
	require.Equal(t, conv.String(), got.GetConversation())
	require.Equal(t, int64(1_700_000_000_123), got.GetTimeMs())
	require.Zero(t, got.GetReceivedMs(), "no time is 0, not the year 1")
	require.Empty(t, got.GetAuthor(), "no account is empty, not an ID")
	require.Equal(t, "sent", got.GetState())
	e := eventOf(messenger.Event{Seq: 3, Type: messenger.EventState, Message: &msg, Conversation: &conv, MessageIDs: []feed.EntryID{{1}, {2}}})
	require.Len(t, e.GetMessageIds(), 2)
	require.Equal(t, "state", e.GetType())
	require.Equal(t, at, fromMS(ms(at)))
	require.True(t, fromMS(0).IsZero())
}
