package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// step is one line of the tour and the terminal it is pasted into.
type step struct {
	terminal int // 0: both
	line     string
}

// tour reads the steps from a README: the blocks of its shell code, each for the terminal named in the text before it or in a
// comment line.
func tour(t *testing.T, file string) []step {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../..", file))
	require.NoError(t, err)
	named := regexp.MustCompile(`(?i)(?:terminal|终端) ?([12])`)
	both := regexp.MustCompile(`both terminals|两个终端都`)
	var steps []step
	terminal, inside := 0, false
	for _, line := range strings.Split(string(b), "\n") {
		m := named.FindStringSubmatch(line)
		switch {
		case line == "```sh":
			inside = true
		case line == "```":
			inside = false
		case (!inside || strings.HasPrefix(line, "#")) && m != nil:
			terminal = int(m[1][0] - '0')
		case !inside && both.MatchString(line):
			terminal = 0
		case inside && line != "" && !strings.HasPrefix(line, "#"):
			steps = append(steps, step{terminal, line})
		}
	}
	return steps
}

// shell is a terminal of the tour: a folder with the binary, and what was exported in it.
type shell struct {
	t       *testing.T
	dir     string
	exports []string
}

// paste runs one line as bash would. stdin is what is typed into it.
func (s *shell) paste(line, stdin string) result {
	s.t.Helper()
	if strings.HasPrefix(line, "export ") {
		s.exports = append(s.exports, line)
		return result{}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-ec", strings.Join(append(s.exports, line), "\n"))
	cmd.Dir = s.dir
	cmd.Env = environment("HIMA_LISTEN=/ip4/127.0.0.1/tcp/0", "HIMA_MDNS=false", "PATH="+os.Getenv("PATH"))
	return run(s.t, cmd, stdin)
}

// Both READMEs promise a tour that works when pasted.
func TestTour(t *testing.T) {
	for file, want := range map[string]struct{ request, later string }{
		"README.md":       {"Bob here. Shall we talk?", "for later"},
		"README.zh-CN.md": {"我是 Bob，聊聊？", "留给你的话"},
	} {
		t.Run(file, func(t *testing.T) {
			if _, err := exec.LookPath("bash"); err != nil {
				t.Skip("no bash")
			}
			dir := shortDir(t)
			require.NoError(t, os.Symlink(binary(t), filepath.Join(dir, "hima")))
			shells := []*shell{{t: t, dir: dir}, {t: t, dir: dir}}
			for i, s := range shells {
				t.Cleanup(func() {
					if r := s.paste("./hima node stop", ""); r.code != 0 {
						t.Logf("stopping %d: %v", i, r)
					}
				})
			}
			// What a person sees a moment later, the test looks for until it is there.
			shown := map[string]string{"./hima contact requests": want.request, "./hima history alice": want.later}
			typed := map[string]string{"./hima chat bob": "one more\n", "./hima chat alice": "yes\n"}
			seen := 0
			for _, step := range tour(t, file) {
				line := strings.ReplaceAll(step.line, "/tmp/hima-tour", dir+"/tour")
				if strings.HasPrefix(line, "go build -o hima ./cmd/hima") {
					continue // TestMain did
				}
				for i, s := range shells {
					if step.terminal != 0 && step.terminal != i+1 {
						continue
					}
					if text, ok := shown[line]; ok {
						require.Eventually(t, func() bool { return strings.Contains(s.paste(line, "").stdout, text) }, patience, tick, line)
						seen++
						continue
					}
					r := s.paste(line, typed[line])
					require.Zero(t, r.code, "terminal %d: %s: %v", i+1, line, r)
					if line == "./hima history bob" {
						require.Contains(t, r.stdout, want.later)
						require.Contains(t, r.stdout, "one more")
					}
				}
			}
			require.Equal(t, len(shown), seen, "the tour has lost its steps")
			left, err := filepath.Glob(dir + "/tour-alice/*")
			require.NoError(t, err)
			require.Empty(t, left)
		})
	}
}

// The first command of the README, with nobody at the keyboard: it starts two nodes, echoes, and leaves nothing.
func TestDemo(t *testing.T) {
	tmp := shortDir(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary(t), "demo")
	cmd.Env = environment("TMPDIR="+tmp, "HOME="+tmp, "XDG_DATA_HOME=", "XDG_STATE_HOME=", "XDG_CONFIG_HOME=")
	r := run(t, cmd, "hello 葵\n")
	require.Zero(t, r.code, "%v", r)
	require.GreaterOrEqual(t, strings.Count(r.stdout, "hello 葵"), 2, "what was typed, and its echo: %v", r)
	left, err := os.ReadDir(tmp)
	require.NoError(t, err)
	require.Empty(t, left)
}
