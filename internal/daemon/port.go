package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// maxPortTries bounds the search for a port that is free for TCP and UDP alike.
const maxPortTries = 64

// profilePort returns the port a profile listens on. It is chosen once and kept, so that people find the node again at
// the addresses they knew; if another program has it meanwhile, a new one is chosen and kept.
func profilePort(dir string) (int, error) {
	path := filepath.Join(dir, portFile)
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("reading the port: %w", err)
	}
	if port, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && port > 0 && port < 65536 && portFree(port) {
		return port, nil
	}
	port, err := freePort()
	if err != nil {
		return 0, err
	}
	return port, writeFileAtomic(path, []byte(strconv.Itoa(port)+"\n"))
}

// freePort finds a port that is free for TCP and UDP alike.
func freePort() (int, error) {
	for range maxPortTries {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return 0, fmt.Errorf("looking for a free port: %w", err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		_ = l.Close() // only the number was wanted
		if portFree(port) {
			return port, nil
		}
	}
	return 0, errors.New("looking for a free port: none found")
}

// portFree tries the port on loopback, which fails as well when somebody has it on all interfaces.
func portFree(port int) bool {
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return false
	}
	_ = l.Close()
	u, err := net.ListenPacket("udp", addr)
	if err != nil {
		return false
	}
	_ = u.Close()
	return true
}
