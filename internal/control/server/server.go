package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"connectrpc.com/connect"

	"hima/internal/control"
	"hima/internal/control/pb/pbconnect"
)

const (
	// maxRequest bounds one request: the largest is a text that is refused for its length with a proper code, and some room.
	maxRequest = 1 << 20
	// headerTimeout ends a connection that says nothing; the other end is on this machine.
	headerTimeout = 10 * time.Second
	// maxHeader bounds the HTTP header of a request.
	maxHeader = 16 << 10
	// closing is how long handlers may take to end once the node stops.
	closing = 5 * time.Second
	// maxSocketPath is what the smallest kernel we run on takes, with its end mark.
	maxSocketPath = 103
)

// ErrSocketPath is returned by Listen for a path that no kernel would take.
var ErrSocketPath = errors.New("the socket's path is too long")

// Config is what a Server needs. All fields are required but Logger.
type Config struct {
	Backend Backend
	Logger  *slog.Logger // nil: nothing is logged
}

// Server answers the local API.
type Server struct {
	backend Backend
	logger  *slog.Logger
}

// New returns a server that does nothing before Serve.
func New(c Config) *Server {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{backend: c.Backend, logger: c.Logger}
}

// Listen makes the socket at path with mode 0600 in a folder of mode 0700 and returns a listener that hands out only
// connections of this process's own user. A socket file that is there already is replaced: whoever calls holds the
// profile's lock, so nobody serves it.
func Listen(path string, logger *slog.Logger) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("listening on %s: %w", path, ErrSocketPath)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("making the socket's folder: %w", err)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode()&os.ModeSocket != 0 {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("removing the old socket: %w", err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening on the local socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close() // the chmod error says more
		return nil, fmt.Errorf("closing the socket to others: %w", err)
	}
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &ownListener{Listener: l, logger: logger}, nil
}

// ownListener drops connections of other users. The socket's mode keeps them out already where the file system honours
// it; this holds where it does not.
type ownListener struct {
	net.Listener
	logger *slog.Logger
}

func (l *ownListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		uid, err := peerUID(c)
		if err == nil && uid == os.Getuid() {
			return c, nil
		}
		l.logger.Warn("refused a local connection of another user", "uid", uid, "err", err)
		_ = c.Close() // nothing to save: nothing was said
	}
}

// Handler returns the whole API as an HTTP handler.
func (s *Server) Handler() http.Handler {
	path, rpc := pbconnect.NewHimaHandler(&handlers{b: s.backend},
		connect.WithInterceptors(control.ServerInterceptor(), translate{}),
		connect.WithReadMaxBytes(maxRequest),
		connect.WithRecover(s.recovered),
	)
	mux := http.NewServeMux()
	mux.Handle(path, rpc)
	return localOnly(mux)
}

func (s *Server) recovered(_ context.Context, spec connect.Spec, _ http.Header, p any) error {
	s.logger.Error("a call of the local API panicked", "call", spec.Procedure, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	return &control.Error{
		Code: control.Internal, Message: "the node hit a defect in " + spec.Procedure,
		Hint: "see `hima node logs` and report it",
	}
}

// Serve answers on l until ctx ends, then closes l, ends the streams and waits for the handlers.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	streams, endStreams := context.WithCancel(ctx)
	defer endStreams()
	h := &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: headerTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return streams },
	}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		end, cancel := context.WithTimeout(context.Background(), closing)
		defer cancel()
		stopped <- h.Shutdown(end)
	}()
	err := h.Serve(l)
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving the local API: %w", err)
	}
	if err := <-stopped; err != nil {
		_ = h.Close() // the handlers that are left had their time
	}
	return nil
}

// localOnly refuses what only a browser sends. A page of some web site cannot reach a Unix socket by itself, but tools
// that forward one to a TCP port exist.
func localOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		switch {
		case host != "hima" && host != "localhost" && host != "127.0.0.1" && host != "::1":
			http.Error(w, "this is a local API: use the host name hima", http.StatusForbidden)
		case r.Header.Get("Origin") != "" || r.Header.Get("Referer") != "" || r.Header.Get("Sec-Fetch-Site") != "":
			http.Error(w, "this API is not for web pages", http.StatusForbidden)
		default:
			next.ServeHTTP(w, r)
		}
	})
}
