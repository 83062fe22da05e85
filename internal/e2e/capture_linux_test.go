package e2e

import (
	"bufio"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// recordVariable names the file into which this test binary, run again in a namespace, writes what it hears.
const recordVariable = "HIMA_TEST_RECORD"

// marker goes over the wire in plain, so that a capture that hears nothing is noticed.
const marker = "this stands on the wire for all to read"

// record captures every packet of a host until the returned function is called, which gives their bytes.
func record(t *testing.T, host string) func() string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "packets")
	cmd := exec.Command("ip", "netns", "exec", labPrefix+"-"+host, os.Args[0], "-test.run=^TestRecordPackets$", "-test.v")
	cmd.Env = append(os.Environ(), recordVariable+"="+file)
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "recording" {
	}
	require.Equal(t, "recording", lines.Text())
	return func() string {
		require.NoError(t, in.Close())
		rest, _ := io.ReadAll(out)
		require.NoError(t, cmd.Wait(), "%s", rest)
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Contains(t, string(b), marker, "the capture hears nothing")
		return string(b)
	}
}

// TestRecordPackets is no test: record runs it in the namespace of a host. It writes every packet of every interface into
// a file until its input ends.
func TestRecordPackets(t *testing.T) {
	name := os.Getenv(recordVariable)
	if name == "" {
		t.Skip("is run by others")
	}
	everything := uint16(unix.ETH_P_ALL>>8 | unix.ETH_P_ALL<<8&0xff00) // network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(everything))
	require.NoError(t, err)
	defer unix.Close(fd)
	require.NoError(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20))
	// Reading gives up now and then to see whether the input has ended.
	require.NoError(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000}))
	f, err := os.Create(name)
	require.NoError(t, err)
	defer f.Close()
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	_, err = os.Stdout.WriteString("\nrecording\n")
	require.NoError(t, err)
	// The broadcast address of the lab's Internet: nobody has to answer for it before anything goes out.
	conn, err := net.DialTimeout("udp", "192.0.0.255:9", time.Second)
	require.NoError(t, err)
	_, err = conn.Write([]byte(marker))
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	w := bufio.NewWriter(f)
	packet := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(fd, packet, 0)
		switch err {
		case nil:
			_, err = w.Write(packet[:n])
			require.NoError(t, err)
		case unix.EAGAIN, unix.EINTR:
			select {
			case <-ended:
				require.NoError(t, w.Flush())
				return
			default:
			}
		default:
			require.NoError(t, err)
		}
	}
}
