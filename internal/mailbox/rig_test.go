package mailbox

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"testing"
	"time"

	"hima/identity"
	"hima/node"
	"hima/node/nodetest"
	"hima/storage"
)

// clock is a time that tests move.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// box is a running server, which tests may stop and start again on the same database.
type box struct {
	t      testing.TB
	clock  *clock
	key    identity.DeviceKey
	config ServerConfig
	dir    string
	dbKey  []byte

	db     *storage.DB
	node   *node.Node
	server *Server
	stop   func()
}

// newBox starts a mailbox; change may be nil.
func newBox(t testing.TB, change func(*ServerConfig)) *box {
	t.Helper()
	b := &box{t: t, clock: newClock(), key: nodetest.Key(0)}
	b.config = ServerConfig{Open: true, Limits: ServerLimits{WorkBits: 8}, Now: b.clock.Now, Key: b.key}
	if change != nil {
		change(&b.config)
	}
	b.start(nil)
	t.Cleanup(func() { b.halt() })
	return b
}

// onDisk makes the box keep its database in a folder from the next start on.
func (b *box) onDisk() {
	b.halt()
	b.dir, b.dbKey = b.t.TempDir(), bytes.Repeat([]byte{7}, 32)
	b.t.Cleanup(b.halt) // before the folder goes
	b.start(nil)
}

func (b *box) start(fail func(string) error) {
	b.t.Helper()
	db, err := storage.Open(storage.Config{Dir: b.dir, Key: b.dbKey, Fail: fail})
	if err != nil {
		b.t.Fatal(err)
	}
	b.db = db
	b.node = nodetest.LoopbackKey(b.t, b.key)
	c := b.config
	c.DB, c.Node = db, b.node
	if b.server, err = NewServer(c); err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.server.Run(ctx) }()
	b.stop = func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Error(err)
		}
	}
	waitFor(b.t, func() bool {
		b.server.mu.Lock()
		defer b.server.mu.Unlock()
		return b.server.running
	})
}

func (b *box) halt() {
	if b.stop == nil {
		return
	}
	b.stop()
	b.stop = nil
	b.node.Close()
	if err := b.db.Close(); err != nil && !errors.Is(err, storage.ErrFailed) {
		b.t.Log(err)
	}
}

func (b *box) ref() Ref { return Ref{Device: b.key.ID(), Addrs: b.node.Addrs()} }

// client makes a client with a node of its own.
func (b *box) client(i int) *Client {
	b.t.Helper()
	c, err := NewClient(ClientConfig{Node: nodetest.LoopbackKey(b.t, nodetest.Key(i)), Now: b.clock.Now})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = c.Close() })
	return c
}

func waitFor(t testing.TB, what func() bool) {
	t.Helper()
	end := time.Now().Add(20 * time.Second)
	for !what() {
		if time.Now().After(end) {
			t.Fatal("waited in vain")
		}
		time.Sleep(time.Millisecond)
	}
}

func bg(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func randomItem(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func want(t testing.TB, err, is error) {
	t.Helper()
	if !errors.Is(err, is) {
		t.Fatalf("got %v, want %v", err, is)
	}
}

// all fetches everything in an inbox.
func all(t testing.TB, c *Client, ref Ref, s identity.InboxSecret) [][]byte {
	t.Helper()
	var out [][]byte
	after := uint64(0)
	for {
		items, more, err := c.Fetch(bg(t), ref, s, after, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, it := range items {
			out = append(out, it.Bytes)
			after = it.Cursor
		}
		if !more {
			return out
		}
	}
}
