package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// endSlow is from when on an end that goes on is worth a line in the log, which says what it waits for.
	endSlow = 5 * time.Second
	// endLimit is when the process ends regardless: before `hima node stop` gives up waiting, and a service manager kills.
	endLimit = 15 * time.Second
	// maxStacks bounds what is logged of the goroutines then.
	maxStacks = 256 << 10
	// crashFile holds what the Go runtime says of a crash; a node in the background has no other stderr.
	crashFile = "crash"
)

// ending knows which parts of a node have not ended yet.
type ending struct {
	log  *slog.Logger
	exit func(code int) // nil: the process is not the node's alone, and is never ended

	mu    sync.Mutex
	parts map[string]int // how many of the name run
}

func newEnding(log *slog.Logger, ownProcess bool) *ending {
	e := &ending{log: log, parts: map[string]int{}}
	if ownProcess {
		e.exit = os.Exit
	}
	return e
}

// enter notes a part that runs until leave is called.
func (e *ending) enter(name string) (leave func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.parts[name]++
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.parts[name]--; e.parts[name] == 0 {
			delete(e.parts, name)
		}
	}
}

// left names the parts that run.
func (e *ending) left() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var names []string
	for name := range e.parts {
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// watch begins to measure when ctx ends, and stops when the function that it returns is called. An end that takes too long
// is told of, and at last cut off: whatever was acknowledged was synced to disk before, so that it costs no more than the
// next start after a loss of power would.
func (e *ending) watch(ctx context.Context) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-done:
			return
		case <-ctx.Done():
		}
		start := time.Now()
		slow, limit := time.NewTimer(endSlow), time.NewTimer(endLimit)
		defer slow.Stop()
		defer limit.Stop()
		for {
			select {
			case <-done:
				return
			case <-slow.C:
				e.log.Warn("the node is slow to end", "after", time.Since(start), "waits_for", e.left())
			case <-limit.C:
				stacks := make([]byte, maxStacks)
				stacks = stacks[:runtime.Stack(stacks, true)]
				e.log.Error("the node does not end", "after", time.Since(start), "waits_for", e.left(), "cut_off", e.exit != nil, "goroutines", string(stacks))
				if e.exit != nil {
					e.exit(1)
				}
				return
			}
		}
	})
	return func() {
		close(done)
		wg.Wait()
	}
}

// keepCrashes has the Go runtime write what it says of a crash, or when asked by SIGQUIT, into a file of the profile as
// well. The function returned ends that and leaves no empty file.
func keepCrashes(dir string) (stop func(), err error) {
	path := filepath.Join(dir, crashFile)
	flags := os.O_CREATE | os.O_APPEND | os.O_WRONLY
	if info, err := os.Stat(path); err == nil && info.Size() > maxLog {
		flags |= os.O_TRUNC
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("looking for the crash file: %w", err)
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the crash file: %w", err)
	}
	defer func() { _ = f.Close() }() // the runtime has a descriptor of its own
	if err := debug.SetCrashOutput(f, debug.CrashOptions{}); err != nil {
		return nil, fmt.Errorf("keeping crashes: %w", err)
	}
	return func() {
		_ = debug.SetCrashOutput(nil, debug.CrashOptions{})
		if info, err := os.Stat(path); err == nil && info.Size() == 0 {
			_ = os.Remove(path) // an empty one does no harm
		}
	}, nil
}
