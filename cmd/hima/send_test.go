package main

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"hima/internal/control"
	"hima/internal/control/pb"
	"hima/internal/control/pb/pbconnect"
)

// dyingNode goes away in the middle of the first message.
type dyingNode struct {
	pbconnect.UnimplementedHimaHandler
	listener net.Listener
}

func (d *dyingNode) Send(context.Context, *pb.SendRequest) (*pb.SendResponse, error) {
	_ = d.listener.Close()
	panic(http.ErrAbortHandler)
}

// TestSendWhileTheNodeDies: nobody is told that the node was not running, which says that nothing was written, when it may
// have been.
func TestSendWhileTheNodeDies(t *testing.T) {
	dir, err := os.MkdirTemp("", "hs") // short: the path of a socket is
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.Handle(pbconnect.NewHimaHandler(&dyingNode{listener: l}))
	srv := &http.Server{Handler: mux}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })

	node := control.Dial(socket)
	defer node.Close()
	_, err = sendOnce(t.Context(), node, "bob", "hello")
	require.ErrorIs(t, err, control.Unavailable)
	require.Equal(t, exitFailed, exitCode(err))
	v := testApp(t).describe(err)
	require.Contains(t, v.Hint, "look")
	_, err = sendOnce(t.Context(), node, "bob", "hello")
	require.ErrorIs(t, err, control.NotRunning, "here nothing was written")
}
