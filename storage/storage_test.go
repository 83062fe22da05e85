package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func testKey() []byte { return []byte("0123456789abcdef0123456789abcdef") }

func openAt(t *testing.T, c Config) *DB {
	t.Helper()
	if c.Dir != "" && c.Key == nil {
		c.Key = testKey()
	}
	db, err := Open(c)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}

func set(t *testing.T, db *DB, key, value string) {
	t.Helper()
	require.NoError(t, db.Update(t.Context(), func(tx *Tx) error { return tx.Set([]byte(key), []byte(value)) }))
}

// get returns the value, or "-" when there is none.
func get(t *testing.T, db *DB, key string) string {
	t.Helper()
	value := "-"
	require.NoError(t, db.View(func(tx *Tx) error {
		v, err := tx.Get([]byte(key))
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		value = string(v)
		return err
	}))
	return value
}

func TestOpenRefuses(t *testing.T) {
	newDir := func(t *testing.T) string {
		dir := t.TempDir()
		db, err := Open(Config{Dir: dir, Key: testKey()})
		require.NoError(t, err)
		set(t, db, "a", "1")
		require.NoError(t, db.Close())
		return dir
	}
	wrong := []byte("ffffffffffffffffffffffffffffffff")
	tests := []struct {
		name string
		dir  func(t *testing.T) string
		c    Config
		want error
	}{
		{"second opener", func(t *testing.T) string {
			dir := newDir(t)
			openAt(t, Config{Dir: dir})
			return dir
		}, Config{Key: testKey()}, ErrLocked},
		{"wrong key", newDir, Config{Key: wrong}, ErrWrongKey},
		{"newer schema", func(t *testing.T) string {
			dir := newDir(t)
			db, err := Open(Config{Dir: dir, Key: testKey()})
			require.NoError(t, err)
			require.NoError(t, db.Update(t.Context(), func(tx *Tx) error { return setVersion(tx, 7) }))
			require.NoError(t, db.Close())
			return dir
		}, Config{Key: testKey()}, ErrNewer},
		{"lost manifest", func(t *testing.T) string {
			dir := newDir(t)
			require.NoError(t, os.Remove(filepath.Join(dir, "MANIFEST")))
			return dir
		}, Config{Key: testKey()}, ErrDamaged},
		{"garbled manifest", func(t *testing.T) string {
			dir := newDir(t)
			require.NoError(t, os.WriteFile(filepath.Join(dir, "MANIFEST"), []byte("not a manifest at all"), 0o600))
			return dir
		}, Config{Key: testKey()}, ErrDamaged},
		{"lost table", func(t *testing.T) string {
			dir := newDir(t)
			tables, err := filepath.Glob(filepath.Join(dir, "*.sst"))
			require.NoError(t, err)
			require.NotEmpty(t, tables)
			require.NoError(t, os.Remove(tables[0]))
			return dir
		}, Config{Key: testKey()}, ErrDamaged},
		{"disk full", newDir, Config{Key: testKey(), MinFree: 1 << 62}, ErrDiskFull},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.c.Dir = tt.dir(t)
			before := fileSizes(t, tt.c.Dir)
			_, err := Open(tt.c)
			require.ErrorIs(t, err, tt.want)
			if tt.want != ErrNewer && tt.want != ErrLocked {
				require.Subset(t, fileSizes(t, tt.c.Dir), before, "files were touched")
			}
		})
	}
}

func fileSizes(t *testing.T, dir string) map[string]int64 {
	t.Helper()
	sizes := map[string]int64{}
	names, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, n := range names {
		info, err := n.Info()
		require.NoError(t, err)
		sizes[n.Name()] = info.Size()
	}
	return sizes
}

func TestNothingPlainOnDisk(t *testing.T) {
	dir := t.TempDir()
	db, err := Open(Config{Dir: dir, Key: testKey()})
	require.NoError(t, err)
	set(t, db, "very-secret-key", "very-secret-value")
	look := func() {
		names, err := filepath.Glob(filepath.Join(dir, "*"))
		require.NoError(t, err)
		for _, n := range names {
			raw, err := os.ReadFile(n)
			require.NoError(t, err)
			require.NotContains(t, string(raw), "very-secret", n)
		}
	}
	look()
	require.NoError(t, db.Close())
	look()
}

func TestUpdateErrors(t *testing.T) {
	db := openAt(t, Config{})
	own := errors.New("own")
	big := func(tx *Tx) error {
		for i := range 40 {
			if err := tx.Set(fmt.Appendf(nil, "big/%d", i), make([]byte, 32<<10)); err != nil {
				return err
			}
		}
		return nil
	}
	tests := []struct {
		name string
		f    func(*Tx) error
		want error
	}{
		{"its own error", func(tx *Tx) error { return errors.Join(tx.Set([]byte("x"), nil), own) }, own},
		{"a panic", func(tx *Tx) error { _ = tx.Set([]byte("x"), nil); panic("no") }, ErrPanic},
		{"too large", big, ErrTooLarge},
		{"too large, ignored", func(tx *Tx) error { _ = big(tx); return nil }, ErrTooLarge},
		{"too many", func(tx *Tx) error {
			for i := range maxGroupKeys + 1 {
				_ = tx.Set(fmt.Appendf(nil, "big/%d", i), nil)
			}
			return nil
		}, ErrTooLarge},
		{"empty key", func(tx *Tx) error { return tx.Set(nil, nil) }, ErrTooLarge},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			require.ErrorIs(t, db.Update(t.Context(), tt.f), tt.want)
			require.Equal(t, "-", get(t, db, "x"))
			require.Equal(t, "-", get(t, db, "big/0"))
		})
	}
	require.ErrorIs(t, db.View(func(tx *Tx) error { return tx.Set([]byte("x"), nil) }), ErrReadOnly)
	var leaked *Tx
	require.NoError(t, db.Update(t.Context(), func(tx *Tx) error { leaked = tx; return nil }))
	require.ErrorIs(t, leaked.Set([]byte("x"), nil), ErrReadOnly)
	set(t, db, "x", "still works")
}

// blockCommitter keeps the committer busy until the returned function is called, so that a test decides what meets in
// one group.
func blockCommitter(db *DB) (release func()) {
	begun, gate := make(chan struct{}), make(chan struct{})
	db.Submit(func(*Tx) error { close(begun); <-gate; return nil }, nil)
	<-begun
	return sync.OnceFunc(func() { close(gate) })
}

func TestErrorInOneOverlayOfAGroup(t *testing.T) {
	db := openAt(t, Config{Dir: t.TempDir()})
	own := errors.New("own")
	before := db.Stats().Commits
	release := blockCommitter(db)
	var order []string
	results := map[string]error{}
	var wg sync.WaitGroup
	submit := func(name string, f func(tx *Tx) error) {
		wg.Add(1)
		db.Submit(func(tx *Tx) error {
			tx.OnCommit(func() { order = append(order, "hook "+name) })
			return f(tx)
		}, func(err error) {
			order = append(order, "done "+name)
			results[name] = err
			wg.Done()
		})
	}
	submit("a", func(tx *Tx) error { return tx.Set([]byte("k"), []byte("a")) })
	submit("b", func(tx *Tx) error {
		require.NoError(t, errors.Join(tx.Set([]byte("k"), []byte("b")), tx.Set([]byte("only b"), nil), tx.Delete([]byte("k"))))
		return own
	})
	submit("c", func(tx *Tx) error {
		v, err := tx.Get([]byte("k"))
		if err != nil {
			return err
		}
		if has, err := tx.Has([]byte("only b")); has || err != nil {
			return errors.New("sees what was discarded")
		}
		return tx.Set([]byte("k"), append(v, 'c'))
	})
	release()
	wg.Wait()
	require.NoError(t, results["a"])
	require.ErrorIs(t, results["b"], own)
	require.NoError(t, results["c"])
	require.Equal(t, []string{"hook a", "done a", "done b", "hook c", "done c"}, order)
	require.Equal(t, "ac", get(t, db, "k"))
	require.Equal(t, "-", get(t, db, "only b"))
	require.Equal(t, before+1, db.Stats().Commits, "one sync for the group")
}

func TestGroupsAreBounded(t *testing.T) {
	db := openAt(t, Config{})
	release := blockCommitter(db)
	var wg sync.WaitGroup
	const n, size = 100, 60 << 10 // several groups' worth of bytes
	ran := make([]int, n)
	for i := range n {
		wg.Add(1)
		db.Submit(func(tx *Tx) error {
			ran[i]++
			if i > 0 {
				if ok, err := tx.Has(fmt.Appendf(nil, "k%03d", i-1)); !ok || err != nil {
					return fmt.Errorf("previous write not seen: %w", err)
				}
			}
			return tx.Set(fmt.Appendf(nil, "k%03d", i), make([]byte, size))
		}, func(err error) {
			if err != nil {
				t.Error(err)
			}
			wg.Done()
		})
	}
	release()
	wg.Wait()
	require.Equal(t, slices.Repeat([]int{1}, n), ran)
	require.Greater(t, db.Stats().Commits, uint64(n*size/maxGroupBytes))
	count := 0
	require.NoError(t, db.View(func(tx *Tx) error {
		return tx.Scan(ScanOptions{Prefix: []byte("k")}, func(_, v []byte) (bool, error) {
			require.Len(t, v, size)
			count++
			return true, nil
		})
	}))
	require.Equal(t, n, count)
}

// TestSmallMemTable: what Badger would not take is refused before it gets there, and an epoch of the journal is not.
func TestSmallMemTable(t *testing.T) {
	_, err := Open(Config{MemTable: minMemTable - 1})
	require.Error(t, err)
	db := openAt(t, Config{Dir: t.TempDir(), MemTable: minMemTable})
	from := 0
	rows := func(n, size int) error {
		from += n
		return db.Update(t.Context(), func(tx *Tx) error {
			for i := range n {
				if err := tx.Set(fmt.Append(nil, "row", from+i), make([]byte, size)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	require.ErrorIs(t, rows(1, minMemTable/7), ErrTooLarge)
	require.ErrorIs(t, rows(maxGroupKeys, 1), ErrTooLarge)
	require.NoError(t, rows(1, minMemTable/8))
	require.NoError(t, rows(2*journalKeys, 1))
	for epoch := db.journal.epoch; db.journal.epoch < epoch+2; {
		require.NoError(t, rows(200, 1)) // each row another one
	}
	require.NoError(t, db.Close())
}

func TestUpdateContext(t *testing.T) {
	db := openAt(t, Config{})
	release := blockCommitter(db)
	defer release()
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error)
	go func() {
		result <- db.Update(ctx, func(tx *Tx) error { return tx.Set([]byte("x"), nil) })
	}()
	cancel()
	require.ErrorIs(t, <-result, context.Canceled)
	release()
	require.Equal(t, "-", get(t, db, "x"))
}

func TestCloseWaitsAndRefuses(t *testing.T) {
	db, err := Open(Config{})
	require.NoError(t, err)
	release := blockCommitter(db)
	written := make(chan error, 1)
	db.Submit(func(tx *Tx) error { return tx.Set([]byte("x"), nil) }, func(err error) { written <- err })
	closed := make(chan error)
	go func() { closed <- db.Close() }()
	for db.View(func(*Tx) error { return nil }) == nil { // until Close has begun
		runtime.Gosched()
	}
	release()
	require.NoError(t, <-closed)
	require.NoError(t, <-written)
	require.ErrorIs(t, db.Update(t.Context(), nil), ErrClosed)
	require.ErrorIs(t, db.View(nil), ErrClosed)
	require.ErrorIs(t, db.Cache(nil), ErrClosed)
	db.Submit(nil, func(err error) { written <- err })
	require.ErrorIs(t, <-written, ErrClosed)
	require.NoError(t, db.Close())
	db.Stats()
}

// Who submits may hold a lock that the callback takes. A closed database must not turn that into a deadlock.
func TestSubmitNeverCallsBackOnItsCaller(t *testing.T) {
	db, err := Open(Config{})
	require.NoError(t, err)
	require.NoError(t, db.Close())
	var mu sync.Mutex
	called := make(chan error, 1)
	mu.Lock()
	db.Submit(func(*Tx) error { return nil }, func(err error) {
		mu.Lock()
		defer mu.Unlock()
		called <- err
	})
	mu.Unlock()
	require.ErrorIs(t, <-called, ErrClosed)
}

func TestFailPoints(t *testing.T) {
	for point, after := range map[string]string{"before-commit": "1", "after-commit": "2"} {
		t.Run(point, func(t *testing.T) {
			dir, on, crash := t.TempDir(), false, errors.New("crash")
			db := openAt(t, Config{Dir: dir, Fail: func(p string) error {
				if on && p == point {
					return crash
				}
				return nil
			}})
			set(t, db, "k", "1")
			on = true
			called := false
			err := db.Update(t.Context(), func(tx *Tx) error {
				tx.OnCommit(func() { called = true })
				return tx.Set([]byte("k"), []byte("2"))
			})
			require.ErrorIs(t, err, crash)
			require.False(t, called)
			on = false
			require.ErrorIs(t, db.Update(t.Context(), func(*Tx) error { return nil }), ErrFailed)
			require.NoError(t, db.Close())
			require.Equal(t, after, get(t, openAt(t, Config{Dir: dir}), "k"))
		})
	}
}

func TestDiskFullLater(t *testing.T) {
	db := openAt(t, Config{Dir: t.TempDir()})
	set(t, db, "k", "1")
	db.config.MinFree, db.spaceAt = 1<<62, time.Time{}
	require.ErrorIs(t, db.Update(t.Context(), func(tx *Tx) error { return tx.Set([]byte("k"), nil) }), ErrDiskFull)
	require.Equal(t, "1", get(t, db, "k"))
	db.config.MinFree, db.spaceAt = 1, time.Time{}
	set(t, db, "k", "2")
}

func TestMigrations(t *testing.T) {
	dir := t.TempDir()
	open := func(c Config) (*DB, error) {
		c.Dir, c.Key = dir, testKey()
		return Open(c)
	}
	db, err := open(Config{})
	require.NoError(t, err)
	set(t, db, "k", "1")
	require.NoError(t, db.Close())

	var ran []int
	step := func(v int, fail error) Migration {
		return Migration{Version: v, Name: "test", Apply: func(tx *Tx) error {
			ran = append(ran, v)
			return errors.Join(tx.Set([]byte("k"), fmt.Append(nil, v)), fail)
		}}
	}
	own := errors.New("own")
	_, err = open(Config{Migrations: []Migration{step(2, nil), step(5, own)}})
	require.ErrorIs(t, err, own)
	db, err = open(Config{Migrations: []Migration{step(2, nil), step(5, nil)}})
	require.NoError(t, err)
	require.Equal(t, []int{2, 5, 5}, ran, "what is done is not done again")
	require.Equal(t, "5", get(t, db, "k"))
	require.NoError(t, db.Close())
	_, err = open(Config{Migrations: []Migration{step(2, nil)}})
	require.ErrorIs(t, err, ErrNewer)

	fresh := openAt(t, Config{Migrations: []Migration{step(9, own)}})
	require.Equal(t, "-", get(t, fresh, "k"))
	_, err = Open(Config{Migrations: []Migration{step(3, nil), step(3, nil)}})
	require.ErrorContains(t, err, "out of order")
}

func TestCache(t *testing.T) {
	dir := t.TempDir()
	db, err := Open(Config{Dir: dir, Key: testKey()})
	require.NoError(t, err)
	commits := db.Stats().Commits
	cache := func(key, value string) {
		require.NoError(t, db.Cache(func(tx *Tx) error { return tx.Set([]byte(key), []byte(value)) }))
	}
	cache("n/a", "1")
	cache("n/b", "1")
	cache("n/a", "2")
	require.NoError(t, db.Cache(func(tx *Tx) error { return tx.Delete([]byte("n/b")) }))
	own := errors.New("own")
	require.ErrorIs(t, db.Cache(func(tx *Tx) error { return errors.Join(tx.Set([]byte("n/a"), nil), own) }), own)
	require.Equal(t, "2", get(t, db, "n/a"))
	require.Equal(t, "-", get(t, db, "n/b"))
	require.Equal(t, commits, db.Stats().Commits, "no sync")
	set(t, db, "k", "1") // takes the cache along
	require.Nil(t, db.cached.Load())
	require.Equal(t, commits+1, db.Stats().Commits)
	require.Equal(t, "2", get(t, db, "n/a"))
	cache("n/c", "3")
	require.NoError(t, db.Close())
	db = openAt(t, Config{Dir: dir})
	require.Equal(t, "2", get(t, db, "n/a"))
	require.Equal(t, "3", get(t, db, "n/c"))
}

func TestCacheFlushesItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db, err := Open(Config{})
		require.NoError(t, err)
		require.NoError(t, db.Cache(func(tx *Tx) error { return tx.Set([]byte("n/a"), nil) }))
		time.Sleep(cacheDelay + time.Second) // virtual
		synctest.Wait()
		require.Nil(t, db.cached.Load())
		require.Equal(t, "", get(t, db, "n/a"))
		require.NoError(t, db.Close())
	})
}

func TestCacheAndUpdateTogether(t *testing.T) {
	db := openAt(t, Config{})
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 200 {
				key, value := fmt.Appendf(nil, "n/%d", w), fmt.Append(nil, i)
				if err := db.Cache(func(tx *Tx) error { return tx.Set(key, value) }); err != nil {
					t.Error(err)
				}
				if got := get(t, db, string(key)); got != string(value) {
					t.Errorf("wrote %s, read %s", value, got)
				}
				if err := db.Update(t.Context(), func(tx *Tx) error { return tx.Set([]byte("k"), value) }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// goroutine names the running goroutine.
func goroutine() string {
	buf := make([]byte, 64)
	return strings.Fields(string(buf[:runtime.Stack(buf, false)]))[1]
}

// rested waits until nobody is at work.
func rested(db *DB) {
	for busy := true; busy; runtime.Gosched() {
		db.mu.Lock()
		busy = db.running
		db.mu.Unlock()
	}
}

func TestSubmitHere(t *testing.T) {
	db := openAt(t, Config{})
	var ran, called string
	here := func(err error) { require.NoError(t, err); called = goroutine() }
	for i := range 3 {
		rested(db) // from the second time on the committer waits on its goroutine
		db.SubmitHere(func(tx *Tx) error { ran = goroutine(); return tx.Set([]byte("x"), fmt.Append(nil, i)) }, here)
		require.Equal(t, goroutine(), ran)
		require.Equal(t, goroutine(), called)
		require.Equal(t, fmt.Sprint(i), get(t, db, "x"))
		set(t, db, "y", "beside")
	}
	// With somebody at work it waits like any other.
	release := blockCommitter(db)
	done := make(chan error)
	go func() {
		db.SubmitHere(func(tx *Tx) error { return tx.Set([]byte("x"), []byte("later")) }, func(err error) { done <- err })
	}()
	release()
	require.NoError(t, <-done)
	require.Equal(t, "later", get(t, db, "x"))
	// What comes while it runs is not left lying.
	db.SubmitHere(func(*Tx) error {
		db.Submit(func(tx *Tx) error { return tx.Set([]byte("x"), []byte("inside")) }, func(err error) { done <- err })
		return nil
	}, nil)
	require.NoError(t, <-done)
	require.Equal(t, "inside", get(t, db, "x"))
	require.NoError(t, db.Close())
	go db.SubmitHere(nil, func(err error) { done <- err })
	require.ErrorIs(t, <-done, ErrClosed)
}

// TestSubmitHereByMany: one committer at a time, whoever it is, and nothing lost between two of them.
func TestSubmitHereByMany(t *testing.T) {
	db := openAt(t, Config{})
	count := func(tx *Tx) error {
		n := 0
		if raw, err := tx.Get([]byte("n")); err == nil {
			if n, err = strconv.Atoi(string(raw)); err != nil {
				return err
			}
		}
		return tx.Set([]byte("n"), strconv.AppendInt(nil, int64(n+1), 10))
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 250 {
				done := make(chan error, 1)
				if i%2 == 0 {
					db.SubmitHere(count, func(err error) { done <- err })
				} else {
					db.Submit(count, func(err error) { done <- err })
				}
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	require.Equal(t, "2000", get(t, db, "n"))
}

func TestFunctionThatLeavesItsCaller(t *testing.T) {
	db := openAt(t, Config{})
	results := make(chan error, 1)
	go db.SubmitHere(func(*Tx) error { runtime.Goexit(); return nil }, func(err error) { results <- err })
	require.ErrorIs(t, <-results, ErrFailed)
	db.Submit(func(*Tx) error { return nil }, func(err error) { results <- err })
	require.ErrorIs(t, <-results, ErrFailed)
}

func TestFunctionThatLeavesTheCommitter(t *testing.T) {
	db := openAt(t, Config{})
	release := blockCommitter(db)
	results := make(chan error, 2)
	db.Submit(func(*Tx) error { return errors.New(strings.Repeat("x", 1)) }, func(err error) { results <- err })
	release()
	require.Error(t, <-results)
	db.Submit(func(*Tx) error { runtime.Goexit(); return nil }, func(err error) { results <- err })
	require.ErrorIs(t, <-results, ErrFailed)
	db.Submit(func(*Tx) error { return nil }, func(err error) { results <- err })
	require.ErrorIs(t, <-results, ErrFailed)
}
