package main

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"
)

// meetingPoints is the key under which a script keeps its bootstrap nodes, by the variable that has their link.
type meetingPoints struct{}

// scriptBootstrap runs a bootstrap node on loopback and puts its link into a variable: meet LINK [FLAG…]. Its folder is
// named after the variable, so that a second call after "halt" starts the same node again.
func scriptBootstrap(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 1 {
		ts.Fatalf("usage: meet VARIABLE [flag…]")
	}
	args = append([]string{args[0], "--json", "bootstrap", "run", "--dir", ts.MkAbs(args[0]), "--log-level", "warn"}, args[1:]...)
	var path string
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		if p := filepath.Join(dir, "hima"); path == "" && fileExists(p) {
			path = p
		}
	}
	cmd := exec.Command(path, args[1:]...)
	for _, name := range []string{"PATH", "HOME", "HIMA_HOME", "HIMA_LISTEN", "LANG", "TZ", "TMPDIR"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	log, err := os.Create(ts.MkAbs(args[0] + ".log"))
	ts.Check(err)
	defer log.Close()
	cmd.Stderr = log
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	ts.Value(meetingPoints{}).(map[string]*exec.Cmd)[args[0]] = cmd
	ts.Defer(func() { _ = halt(ts, args[0]) })
	var ready struct{ Link string }
	if err := json.NewDecoder(out).Decode(&ready); err != nil || ready.Link == "" {
		ts.Fatalf("the bootstrap node did not say its link: %v\n%s", err, ts.ReadFile(args[0]+".log"))
	}
	go func() { _, _ = io.Copy(io.Discard, out) }() // ends with the process
	ts.Setenv(args[0], ready.Link)
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// scriptHalt ends a bootstrap node as a service manager does: halt LINK. It has to end well.
func scriptHalt(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: halt VARIABLE")
	}
	ts.Check(halt(ts, args[0]))
}

func halt(ts *testscript.TestScript, name string) error {
	all := ts.Value(meetingPoints{}).(map[string]*exec.Cmd)
	cmd := all[name]
	if cmd == nil {
		return nil
	}
	delete(all, name)
	_ = cmd.Process.Signal(syscall.SIGTERM)
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		return err
	case <-time.After(scriptPatience):
		_ = cmd.Process.Kill()
		<-done
		return errors.New("the bootstrap node did not end when asked")
	}
}

// TestLengths: what is shown as a default is read back as the same.
func TestLengths(t *testing.T) {
	for _, d := range []time.Duration{0, time.Second, 90 * time.Minute, 24 * time.Hour, 30 * 24 * time.Hour} {
		got, err := parseLength("--x", lengthText(d))
		require.NoError(t, err)
		require.Equal(t, d, got)
	}
	for _, n := range []uint64{1 << 10, 16 << 20, 4 << 30} {
		require.NotContains(t, sizeText(n), " ")
		got, err := parseSize("--x", sizeText(n))
		require.NoError(t, err)
		require.Equal(t, n, got)
	}
	for _, wrong := range []string{"", "d", "1w", "-1h", "99999999d", "soon"} {
		_, err := parseLength("--x", wrong)
		require.Error(t, err, wrong)
		require.Equal(t, exitUsage, exitCode(err))
	}
	require.True(t, strings.HasSuffix(lengthText(48*time.Hour), "d"))
}
