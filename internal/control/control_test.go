package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"hima/internal/control/pb"
	"hima/internal/control/pb/pbconnect"
)

// fake is a node whose answers a test sets.
type fake struct {
	pbconnect.UnimplementedHimaHandler
	send  func(*pb.SendRequest) (*pb.SendResponse, error)
	watch func(context.Context, *pb.WatchRequest, func(*pb.Event) error) error
}

func (f *fake) Send(_ context.Context, r *pb.SendRequest) (*pb.SendResponse, error) { return f.send(r) }

func (f *fake) Watch(ctx context.Context, r *pb.WatchRequest, s *connect.ServerStream[pb.WatchResponse]) error {
	return f.watch(ctx, r, func(e *pb.Event) error { return s.Send(&pb.WatchResponse{Event: e}) })
}

// serve runs f on a socket until stop is called or the test ends.
func serve(t *testing.T, socket string, f *fake, wrap ...func(http.Handler) http.Handler) (stop func()) {
	t.Helper()
	listener, err := net.Listen("unix", socket)
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.Handle(pbconnect.NewHimaHandler(f, connect.WithInterceptors(ServerInterceptor())))
	var h http.Handler = mux
	for _, w := range wrap {
		h = w(h)
	}
	srv := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(listener)
	}()
	var once sync.Once
	stop = func() { once.Do(func() { _ = srv.Close(); <-done }) }
	t.Cleanup(stop)
	return stop
}

func socketIn(t *testing.T) string { return filepath.Join(t.TempDir(), "s") }

func TestErrorsCrossTheSocket(t *testing.T) {
	socket := socketIn(t)
	f := &fake{}
	serve(t, socket, f)
	c := Dial(socket)
	defer c.Close()

	for _, code := range Codes() {
		want := &Error{
			Code: code, Message: "what happened: " + string(code), Hint: "do this",
			Candidates: []Candidate{{Account: "hima1a", Username: "bob", Nickname: "Bob", Source: "contact"}},
		}
		f.send = func(*pb.SendRequest) (*pb.SendResponse, error) {
			return nil, fmt.Errorf("sending: %w", want)
		}
		_, err := c.Send(t.Context(), &pb.SendRequest{})
		require.ErrorIs(t, err, code)
		require.Equal(t, code, CodeOf(err))
		got, ok := errors.AsType[*Error](err)
		require.True(t, ok)
		require.Empty(t, cmp.Diff(want, got))
	}
}

func TestErrorsWithoutCode(t *testing.T) {
	socket := socketIn(t)
	f := &fake{}
	serve(t, socket, f)
	c := Dial(socket)
	defer c.Close()

	f.send = func(*pb.SendRequest) (*pb.SendResponse, error) { return nil, errors.New("a defect") }
	_, err := c.Send(t.Context(), &pb.SendRequest{})
	require.Equal(t, Internal, CodeOf(err))
	require.EqualError(t, err, "a defect")

	f.send = func(*pb.SendRequest) (*pb.SendResponse, error) { return nil, fmt.Errorf("reading: %w", Full) }
	_, err = c.Send(t.Context(), &pb.SendRequest{})
	require.ErrorIs(t, err, Full)

	_, err = c.Cancel(t.Context(), &pb.CancelRequest{}) // not implemented by the fake: a node older than the client
	require.Equal(t, Version, CodeOf(err))
}

func TestUnknownCodeIsAFailure(t *testing.T) {
	require.Equal(t, Internal, fromDetail("x", &pb.ErrorDetail{Code: "from_the_future"}).Code)
}

func TestNobodyThere(t *testing.T) {
	c := Dial(socketIn(t))
	defer c.Close()
	_, err := c.Status(t.Context(), &pb.StatusRequest{})
	require.ErrorIs(t, err, NotRunning)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = c.Status(ctx, &pb.StatusRequest{})
	require.ErrorIs(t, err, context.Canceled, "an interrupt is not a refusal")

	err = c.Watch(t.Context(), WatchOptions{}, func(*pb.Event) error { return nil })
	require.ErrorIs(t, err, NotRunning, "a first attempt is not repeated")
}

func TestNodeDiesDuringACall(t *testing.T) {
	socket := socketIn(t)
	f := &fake{}
	serve(t, socket, f)
	f.send = func(*pb.SendRequest) (*pb.SendResponse, error) { panic(http.ErrAbortHandler) }
	c := Dial(socket)
	defer c.Close()
	_, err := c.Send(t.Context(), &pb.SendRequest{})
	require.Equal(t, Unavailable, CodeOf(err))
	require.EqualError(t, err, "the node went away during the call")
	refusal, ok := errors.AsType[*Error](err)
	require.True(t, ok)
	require.NotEmpty(t, refusal.Hint, "what was asked may be done")
}

func TestVersionMismatchIsToldOnce(t *testing.T) {
	socket := socketIn(t)
	f := &fake{send: func(*pb.SendRequest) (*pb.SendResponse, error) {
		return &pb.SendResponse{Message: &pb.Message{Id: "1"}}, nil
	}}
	var node string
	other := func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h.ServeHTTP(&versionWriter{ResponseWriter: w, version: node}, r)
		})
	}
	serve(t, socket, f, other)
	for _, v := range []string{Release, "9.9.9"} {
		node = v
		var seen []string
		c := New(Config{Socket: socket, Mismatch: func(n string) { seen = append(seen, n) }})
		for range 3 {
			_, err := c.Send(t.Context(), &pb.SendRequest{})
			require.NoError(t, err)
		}
		c.Close()
		if v == Release {
			require.Empty(t, seen)
		} else {
			require.Equal(t, []string{v}, seen)
		}
	}
}

// versionWriter makes a node look like another version.
type versionWriter struct {
	http.ResponseWriter
	version string
}

func (w *versionWriter) WriteHeader(code int) {
	w.Header().Set(VersionHeader, w.version)
	w.ResponseWriter.WriteHeader(code)
}

func (w *versionWriter) Write(b []byte) (int, error) {
	w.Header().Set(VersionHeader, w.version)
	return w.ResponseWriter.Write(b)
}

func TestCodesAreKnown(t *testing.T) {
	seen := map[Code]bool{}
	for _, c := range Codes() {
		require.False(t, seen[c], "%s stands twice", c)
		seen[c] = true
		require.NotZero(t, connectCode(c))
	}
	require.Len(t, seen, 27, "the list is closed: a new code is a change of the contract")
}

// A node that dies in the middle of an answer went away; it did not break. Watch goes on after the one and not after the other.
func TestCutOffMeansAway(t *testing.T) {
	cut := connect.NewError(connect.CodeInternal, fmt.Errorf("protocol error: incomplete envelope: %w", io.ErrUnexpectedEOF))
	require.Equal(t, Unavailable, CodeOf(FromConnect(t.Context(), cut)))
	broken := connect.NewError(connect.CodeInternal, errors.New("protocol error: invalid envelope"))
	require.Equal(t, Internal, CodeOf(FromConnect(t.Context(), broken)))
}
