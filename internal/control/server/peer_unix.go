//go:build linux || darwin

package server

import (
	"errors"
	"fmt"
	"net"
)

// peerUID returns the user ID of the process at the other end, as it was when it connected.
func peerUID(c net.Conn) (int, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return -1, errors.New("not a Unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("asking who connected: %w", err)
	}
	uid, sockErr := -1, error(nil)
	if err := raw.Control(func(fd uintptr) { uid, sockErr = socketUID(int(fd)) }); err != nil {
		return -1, fmt.Errorf("asking who connected: %w", err)
	}
	if sockErr != nil {
		return -1, fmt.Errorf("asking who connected: %w", sockErr)
	}
	return uid, nil
}
