package main

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// A node that was killed a moment ago still has a socket that takes connections and drops them.
func TestAnswersAsks(t *testing.T) {
	dir, err := os.MkdirTemp("", "h") // short: the path of a socket is bounded
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	require.False(t, answers(socket), "no socket")

	listener, err := net.Listen("unix", socket)
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	alive := make(chan bool, 1)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			if <-alive {
				_, _ = conn.Read(make([]byte, 512))
				_, _ = conn.Write([]byte("HTTP/1.1 404 Not Found\r\n\r\n"))
			}
			_ = conn.Close()
		}
	}()
	alive <- false
	require.False(t, answers(socket), "taken and dropped")
	alive <- true
	require.True(t, answers(socket))
}
