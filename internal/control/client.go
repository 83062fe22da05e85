package control

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	"hima/internal/control/pb/pbconnect"
)

const (
	// maxResponse bounds one answer: 1,000 messages of history, the largest page there is, at 32 KiB each, and some room.
	maxResponse = 64 << 20
	// dialTimeout is long for a socket on the same machine: it only ends the wait for a node that is stopped dead.
	dialTimeout = 5 * time.Second
)

// Config says which node a Client speaks to.
type Config struct {
	// Socket is the path of the node's socket.
	Socket string
	// Mismatch, if set, is called once, with the node's version, when that differs from Release.
	Mismatch func(node string)
}

// Client speaks to one node. Its zero value is not usable; see Dial and New.
type Client struct {
	pbconnect.HimaClient
	http *http.Client
}

// Dial returns a client for the node at socket. It does no I/O: the first call finds out whether anybody is there.
func Dial(socket string) *Client { return New(Config{Socket: socket}) }

// New is Dial with all choices.
func New(c Config) *Client {
	dialer := net.Dialer{Timeout: dialTimeout}
	hc := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", c.Socket)
		},
		DisableCompression: true,
	}}
	rpc := pbconnect.NewHimaClient(hc, "http://hima",
		connect.WithInterceptors(clientInterceptor(c.Mismatch)),
		connect.WithReadMaxBytes(maxResponse),
		connect.WithAcceptCompression("gzip", nil, nil), // nil removes it: the bytes never leave the machine
	)
	return &Client{HimaClient: rpc, http: hc}
}

// Close gives back the idle connections. Calls still running are not touched.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// clientInterceptor turns every error into an *Error and compares versions.
func clientInterceptor(mismatch func(string)) connect.UnaryInterceptorFunc {
	var once sync.Once
	note := func(h http.Header) {
		node := h.Get(VersionHeader)
		if node != "" && node != Release && mismatch != nil {
			once.Do(func() { mismatch(node) })
		}
	}
	return func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
			req.Header().Set(VersionHeader, Release)
			resp, err := next(ctx, req)
			if err != nil {
				return nil, FromConnect(ctx, err)
			}
			note(resp.Header())
			return resp, nil
		}
	}
}

// ServerInterceptor is the other end of the client's: it gives every handler's error its detail and every answer the
// version of the node.
func ServerInterceptor() connect.Interceptor { return serverInterceptor{} }

type serverInterceptor struct{}

func (serverInterceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, req)
		if err != nil {
			return nil, ToConnect(err)
		}
		resp.Header().Set(VersionHeader, Release)
		return resp, nil
	}
}

func (serverInterceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (serverInterceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		conn.ResponseHeader().Set(VersionHeader, Release)
		return ToConnect(next(ctx, conn))
	}
}
