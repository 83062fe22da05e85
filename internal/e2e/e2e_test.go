package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	_ "hima/internal/daemon" // with sources(), so that a changed program is never answered from the test cache
)

const (
	// patience bounds one command. A machine under load starts a node in seconds.
	patience = 90 * time.Second
	// tick is the pause between two looks at something that is about to become true.
	tick = 150 * time.Millisecond
)

// build makes the binary once for all tests.
var build = sync.OnceValues(func() (string, error) {
	if err := sources(); err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "hima-e2e")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "hima")
	out, err := exec.Command("go", "build", "-o", bin, "../../cmd/hima").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("building hima: %w\n%s", err, out)
	}
	return bin, err
})

// sources looks at the files of the command, which go test then takes for something the result depends on.
func sources() error {
	files, err := filepath.Glob("../../cmd/hima/*.go")
	if err != nil || len(files) == 0 {
		return fmt.Errorf("finding the command: %d files, %w", len(files), err)
	}
	for _, f := range files {
		if _, err := os.Stat(f); err != nil {
			return err
		}
	}
	return nil
}

func TestMain(m *testing.M) {
	code := m.Run()
	if bin, err := build(); err == nil {
		_ = os.RemoveAll(filepath.Dir(bin))
	}
	os.Exit(code)
}

func binary(t *testing.T) string {
	t.Helper()
	bin, err := build()
	require.NoError(t, err)
	return bin
}

// shortDir is a temporary folder with a short path: the path of a Unix socket may have 100 bytes.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "h")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// environment is that of a person without any settings of their own.
func environment(extra ...string) []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "HIMA_") && !strings.HasPrefix(kv, "LC_") && !strings.HasPrefix(kv, "LANG=") {
			env = append(env, kv)
		}
	}
	return append(append(env, "LC_ALL=C.UTF-8", "NO_COLOR=1"), extra...)
}

// result is how a command ended.
type result struct {
	code           int
	stdout, stderr string
}

func (r result) String() string { return fmt.Sprintf("exit %d\n%s%s", r.code, r.stdout, r.stderr) }

func run(t *testing.T, cmd *exec.Cmd, stdin string) result {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errOut
	cmd.WaitDelay = time.Second // a node in the background must not hold the pipes
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) {
		require.NoError(t, err, "%v\n%s", cmd.Args, errOut.String())
	}
	return result{code: cmd.ProcessState.ExitCode(), stdout: out.String(), stderr: errOut.String()}
}

// person is somebody with a home of their own and, in the lab, a host.
type person struct {
	t    *testing.T
	name string
	home string
	host []string // what to put before the command, to run it on the host
	env  []string
}

func (p person) command(ctx context.Context, args ...string) *exec.Cmd {
	all := append(append([]string{}, p.host...), binary(p.t), "--home", p.home)
	all = append(all, args...)
	cmd := exec.CommandContext(ctx, all[0], all[1:]...)
	cmd.Env = environment(p.env...)
	return cmd
}

// try runs a command and returns how it ended.
func (p person) try(args ...string) result {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return run(p.t, p.command(ctx, args...), "")
}

// must runs a command that succeeds and returns what it printed.
func (p person) must(args ...string) string {
	p.t.Helper()
	r := p.try(args...)
	require.Zero(p.t, r.code, "%s: hima %v: %v", p.name, args, r)
	return r.stdout
}

// list runs a command with --json and returns its objects.
func (p person) list(args ...string) []map[string]any {
	p.t.Helper()
	var all []map[string]any
	d := json.NewDecoder(strings.NewReader(p.must(append([]string{"--json"}, args...)...)))
	for d.More() {
		var v map[string]any
		require.NoError(p.t, d.Decode(&v))
		all = append(all, v)
	}
	return all
}

func (p person) one(args ...string) map[string]any {
	p.t.Helper()
	all := p.list(args...)
	require.Len(p.t, all, 1, "%v", args)
	return all[0]
}

// until waits for ok, looking again and again.
func (p person) until(what string, ok func() bool) {
	p.t.Helper()
	require.Eventually(p.t, ok, patience, tick, "%s: waited in vain for: %s", p.name, what)
}

// texts lists what the history with who holds, in order, with the state of own messages.
func (p person) texts(who string) (texts []string, states map[string]string) {
	states = map[string]string{}
	for _, m := range p.list("history", who, "--limit", "1000") {
		if m["kind"] != "text" {
			continue
		}
		text := m["text"].(string)
		texts = append(texts, text)
		if m["own"] == true {
			states[text] = m["state"].(string)
		}
	}
	return texts, states
}

// stopAtEnd leaves no node behind, and shows what it logged if the test failed.
func (p person) stopAtEnd() {
	p.t.Cleanup(func() {
		p.try("node", "stop")
		if p.t.Failed() {
			log, _ := os.ReadFile(filepath.Join(p.home, "profiles", p.name, "log"))
			p.t.Logf("%s's node:\n%s", p.name, log[max(0, len(log)-8<<10):])
		}
	})
}
