package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"hima/internal/control"
	"hima/internal/control/pb"
)

// TestMain lets the scripts run this very program: the test binary, called "hima", is the real main.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"hima": main})
}

// scriptPatience bounds every wait of a script for something that happens by itself.
const scriptPatience = 60 * time.Second

// TestScripts runs one script per command, with real nodes in processes of their own, on loopback only.
func TestScripts(t *testing.T) {
	if testing.Short() {
		t.Skip("starts dozens of nodes")
	}
	// A short path: the socket of every profile must lie in its folder.
	root, err := os.MkdirTemp("", "hm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		WorkdirRoot:         root,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setupScript,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code":    scriptCode,
			"golden":  scriptGolden,
			"until":   scriptUntil,
			"people":  scriptPeople,
			"friends": scriptFriends,
			"save":    scriptSave,
			"meet":    scriptBootstrap,
			"halt":    scriptHalt,
		},
	})
}

func setupScript(env *testscript.Env) error {
	home := filepath.Join(env.WorkDir, "h")
	env.Setenv("HIMA_HOME", home)
	env.Setenv("HIMA_LISTEN", "/ip4/127.0.0.1/tcp/0")
	env.Setenv("HIMA_MDNS", "false")
	env.Setenv("HOME", env.WorkDir)
	env.Setenv("LANG", "en_US.UTF-8")
	env.Setenv("TZ", "UTC")
	env.Values[meetingPoints{}] = map[string]*exec.Cmd{}
	env.Defer(func() { stopAll(env.WorkDir) })
	return nil
}

// stopAll ends every node that a script left behind.
func stopAll(dir string) {
	sockets, _ := filepath.Glob(filepath.Join(dir, "*", "profiles", "*", "socket"))
	for _, s := range sockets {
		c := control.Dial(s)
		ctx, cancel := context.WithTimeout(context.Background(), scriptPatience)
		if _, err := c.Stop(ctx, &pb.StopRequest{}); err == nil {
			for answers(s) && ctx.Err() == nil {
				time.Sleep(probePause)
			}
		}
		cancel()
		c.Close()
	}
}

// scriptCode runs a command and checks its exit code: code 77 hima login.
func scriptCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N command…")
	}
	want, err := strconv.Atoi(args[0])
	if err != nil {
		ts.Fatalf("code %q is no number", args[0])
	}
	got := run(ts, args[1:])
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func run(ts *testscript.TestScript, args []string) int {
	err := ts.Exec(args[0], args[1:]...)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	ts.Fatalf("running %s: %v", args[0], err)
	return -1
}

// scriptUntil repeats a command until its output matches: until 'delivered' hima why ID.
func scriptUntil(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: until [!] pattern command…")
	}
	re, err := regexp.Compile("(?m)" + args[0])
	if err != nil {
		ts.Fatalf("pattern: %v", err)
	}
	for deadline := time.Now().Add(scriptPatience); ; time.Sleep(20 * time.Millisecond) {
		run(ts, args[1:])
		if re.MatchString(ts.ReadFile("stdout")) != neg {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%q did not come in time", args[0])
		}
	}
}

// scriptSave puts the first group of a pattern, found in the last output, into a variable: save ID '^(\w+)'.
func scriptSave(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: save VARIABLE pattern")
	}
	m := regexp.MustCompile("(?m)" + args[1]).FindStringSubmatch(ts.ReadFile("stdout"))
	if m == nil {
		ts.Fatalf("%q is not in the output", args[1])
	}
	ts.Setenv(args[0], m[1])
}

// scriptPeople registers profiles in the home of the script and leaves their nodes running.
func scriptPeople(ts *testscript.TestScript, _ bool, names []string) {
	for _, name := range names {
		if c := run(ts, []string{"hima", "register", "--quiet", "--username", name, "--nickname", strings.ToUpper(name), "--no-password"}); c != 0 {
			ts.Fatalf("registering %s: exit code %d", name, c)
		}
	}
}

// scriptFriends makes two registered people contacts of each other.
func scriptFriends(ts *testscript.TestScript, _ bool, names []string) {
	if len(names) != 2 {
		ts.Fatalf("usage: friends A B")
	}
	ctx, cancel := context.WithTimeout(context.Background(), scriptPatience)
	defer cancel()
	var nodes []*control.Client
	for _, name := range names {
		socket, err := nodeSocket(ts.Getenv("HIMA_HOME"), name)
		ts.Check(err)
		c := control.Dial(socket)
		defer c.Close()
		nodes = append(nodes, c)
	}
	ts.Check(demoMeet(ctx, nodes[0], nodes[1], names[1]))
}

// volatile are the parts of an output that differ from run to run.
var volatile = []struct {
	re   *regexp.Regexp
	name string
}{
	{regexp.MustCompile(`hima1[0-9a-z]{20,}`), "ACCOUNT"},
	{regexp.MustCompile(`12D3Koo[0-9A-Za-z]{20,}`), "DEVICE"},
	{regexp.MustCompile(`hima:[0-9A-Za-z/._-]{30,}`), "LINK"},
	{regexp.MustCompile(`hima-net:[a-z2-7]{30,}`), "NETLINK"},
	{regexp.MustCompile(`\b[a-z2-7]{52}\b`), "NETWORK"},
	{regexp.MustCompile(`\b[0-9a-f]{64}\b`), "ID"},
	{regexp.MustCompile(`\b[0-9a-f]{32}\b`), "TOKEN"},
}

var (
	volatileTime   = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z`)
	volatileNumber = regexp.MustCompile(`"(pid|uptime_ms|memory_bytes|database_bytes|rtt_us|clock_skew_ms|clock|last_event|seq)":-?\d+`)
	volatileText   = regexp.MustCompile(`"(phrase|digits|qr|commit|go|system)":"[^"]+"`)
	volatilePort   = regexp.MustCompile(`/tcp/\d+`)
	// Whether somebody is online at this moment, and how often they were tried, is a matter of milliseconds.
	volatileSeen    = regexp.MustCompile(`"online":(true|false),"last_seen":"[^"]*"`)
	volatileAttempt = regexp.MustCompile(`(\{"time":"TIME","road":"direct","address":"[^"]*","error":"(?:[^"\\]|\\.)*"\},?)+`)
)

// normalise replaces what differs from run to run, giving equal things equal names.
func normalise(s string) string {
	for _, v := range volatile {
		names := map[string]string{}
		s = v.re.ReplaceAllStringFunc(s, func(found string) string {
			if names[found] == "" {
				names[found] = fmt.Sprintf("%s%d", v.name, len(names)+1)
			}
			return names[found]
		})
	}
	s = volatileTime.ReplaceAllString(s, "TIME")
	s = volatileNumber.ReplaceAllString(s, `"$1":0`)
	s = volatileText.ReplaceAllString(s, `"$1":"TEXT"`)
	s = volatileSeen.ReplaceAllString(s, `"online":BOOL,"last_seen":"TIME"`)
	s = volatileAttempt.ReplaceAllString(s, `{"time":"TIME","road":"direct","address":"TEXT","error":"TEXT"}`)
	return volatilePort.ReplaceAllString(s, "/tcp/PORT")
}

// scriptGolden compares the last output with testdata/golden/NAME.json. UPDATE_GOLDEN=1 writes the file instead.
func scriptGolden(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: golden NAME [stdout|stderr]")
	}
	stream := "stdout"
	if len(args) == 2 {
		stream = args[1]
	}
	got := normalise(ts.ReadFile(stream))
	path := filepath.Join(goldenFolder, args[0]+".json")
	if os.Getenv("UPDATE_GOLDEN") != "" {
		ts.Check(os.WriteFile(path, []byte(got), 0o644))
		return
	}
	want, err := os.ReadFile(path)
	ts.Check(err)
	if got != string(want) {
		ts.Fatalf("%s differs:\n--- want\n%s--- got\n%s", path, want, got)
	}
}

// goldenFolder holds the JSON of every command. Fields may be added there, never taken out or renamed.
var goldenFolder = func() string {
	dir, err := filepath.Abs("testdata/golden")
	if err != nil {
		panic(err)
	}
	return dir
}()
