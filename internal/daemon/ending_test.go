package daemon

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// logText is what was logged so far. It has a lock of its own because collecting all stacks looks like waiting to a bubble:
// synctest.Wait orders nothing then.
type logText struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func TestEndThatHangsIsToldAndCutOff(t *testing.T) {
	for _, own := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			var log logText
			e := newEnding(slog.New(slog.NewTextHandler(&log, nil)), own)
			var code atomic.Int64
			if own {
				e.exit = func(c int) { code.Store(int64(c)) }
			}
			ctx, cancel := context.WithCancel(t.Context())
			stop := e.watch(ctx)
			leave := e.enter("mail")
			defer leave()
			e.enter("sync")()
			time.Sleep(time.Hour) // virtual: a node that is not asked to end may run for as long as it likes
			synctest.Wait()
			require.Empty(t, log.String())
			cancel()
			time.Sleep(endSlow)
			synctest.Wait()
			require.Contains(t, log.String(), "slow to end")
			require.Contains(t, log.String(), "waits_for=mail\n")
			require.Zero(t, code.Load())
			time.Sleep(endLimit - endSlow)
			synctest.Wait()
			stop()
			require.Contains(t, log.String(), "does not end")
			require.Contains(t, log.String(), "TestEndThatHangs", "the stacks")
			require.Equal(t, own, code.Load() == 1)
		})
	}
}

func TestEndInTimeIsNotToldOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log logText
		e := newEnding(slog.New(slog.NewTextHandler(&log, nil)), true)
		ctx, cancel := context.WithCancel(t.Context())
		stop := e.watch(ctx)
		cancel()
		time.Sleep(endSlow - time.Millisecond)
		stop()
		time.Sleep(time.Hour)
		require.Empty(t, log.String())
	})
}

func TestCrashIsKept(t *testing.T) {
	const variable = "HIMA_TEST_CRASH"
	if dir := os.Getenv(variable); dir != "" {
		_, err := keepCrashes(dir)
		require.NoError(t, err)
		done := make(chan struct{})
		go func() { panic("as was asked for") }()
		<-done
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCrashIsKept$")
	cmd.Env = append(os.Environ(), variable+"="+dir)
	require.Error(t, cmd.Run())
	said, err := os.ReadFile(filepath.Join(dir, crashFile))
	require.NoError(t, err)
	require.Contains(t, string(said), "as was asked for")

	quiet := t.TempDir()
	stop, err := keepCrashes(quiet)
	require.NoError(t, err)
	stop()
	require.NoFileExists(t, filepath.Join(quiet, crashFile))
	stop, err = keepCrashes(dir)
	require.NoError(t, err)
	stop()
	require.FileExists(t, filepath.Join(dir, crashFile), "what an earlier node said stays")
}
