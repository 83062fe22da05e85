package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/dgraph-io/badger/v4"

	"hima/identity"
	"hima/internal/mailbox"
	"hima/node"
	"hima/storage"
)

// A mailbox is measured with items of the most frequent size: a message or a receipt, padded to 512 bytes and sealed.
const (
	mailItem    = 1665
	mailInboxes = 500
	mailAtOnce  = 128 // deposits under way, of several senders on two streams
	mailMemory  = 150 // MiB with 100,000 items

	// mailHeap is the soft limit of the mailbox's heap, as `hima bootstrap run` has one for the whole node: without any, what
	// Go and the database keep for a compaction that was is several times what the mailbox needs.
	mailHeap = 96 << 20
)

// serveBox is the main of the process that keeps mail. It prints where it is, and ends when its input does.
func serveBox(dir string) error {
	debug.SetMemoryLimit(mailHeap)
	db, err := storage.Open(storage.Config{Dir: filepath.Join(dir, "box"), Key: make([]byte, 32)})
	if err != nil {
		return err
	}
	key := identity.DeviceKeyFromSeed([32]byte{1})
	n, err := node.New(node.Config{Key: key, Listen: []string{"/ip4/127.0.0.1/tcp/0"}})
	if err != nil {
		return errors.Join(err, db.Close())
	}
	limits := mailbox.DefaultServerLimits()
	limits.Rate, limits.Burst, limits.ByteRate, limits.ByteBurst, limits.OpenBurst = 1e9, 1<<30, 1e12, 1<<40, 1<<30
	s, err := mailbox.NewServer(mailbox.ServerConfig{DB: db, Node: n, Key: key, Open: true, Limits: limits})
	if err != nil {
		return errors.Join(err, n.Close(), db.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- s.Run(ctx) }()
	go func() { done <- db.RunMaintenance(ctx) }()
	if err := json.NewEncoder(os.Stdout).Encode(answer{Addrs: n.Addrs()}); err != nil {
		cancel()
		return err
	}
	_, _ = os.Stdin.Read(make([]byte, 1))
	cancel()
	return errors.Join(<-done, n.Close(), db.Close())
}

// boxProcess is that process.
type boxProcess struct {
	cmd *exec.Cmd
	ref mailbox.Ref
	end func() error
}

func startBox(ctx context.Context, dir string) (*boxProcess, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, "-dir", dir, "box")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	b := &boxProcess{cmd: cmd, end: func() error { return errors.Join(in.Close(), cmd.Wait()) }}
	var a answer
	if err := json.NewDecoder(out).Decode(&a); err != nil {
		return nil, errors.Join(err, b.end())
	}
	b.ref = mailbox.Ref{Device: identity.DeviceKeyFromSeed([32]byte{1}).ID(), Addrs: a.Addrs}
	return b, nil
}

// mailboxes measures a node that keeps mail: deposits and fetches a second, bytes on disk, memory.
func mailboxes(ctx context.Context, r report, dir string, items int, watch time.Duration) error {
	b, err := startBox(ctx, dir)
	if err != nil {
		return err
	}
	ended := false
	defer func() {
		if !ended {
			_ = b.end()
		}
	}()
	var clients []*mailbox.Client
	for range 2 {
		n, err := node.New(node.Config{Key: identity.GenerateDeviceKey(), Listen: []string{"/ip4/127.0.0.1/tcp/0"}})
		if err != nil {
			return err
		}
		defer n.Close()
		c, err := mailbox.NewClient(mailbox.ClientConfig{Node: n, Limits: mailbox.ClientLimits{Window: mailAtOnce}})
		if err != nil {
			return err
		}
		defer c.Close()
		clients = append(clients, c)
	}
	secrets := make([]identity.InboxSecret, mailInboxes)
	err = parallel(mailInboxes, mailAtOnce, func(i int) error {
		secrets[i] = identity.NewInboxSecret()
		_, err := clients[0].OpenInbox(ctx, b.ref, mailbox.InboxConfig{Secret: secrets[i], Kind: mailbox.Contact})
		return err
	})
	if err != nil {
		return err
	}
	start := time.Now()
	err = parallel(items, mailAtOnce, func(i int) error {
		item := make([]byte, mailItem)
		_, _ = rand.Read(item)
		_, err := clients[i%2].Deposit(ctx, b.ref, mailbox.Deposit{Inbox: secrets[i%mailInboxes].ID(), Item: item})
		return err
	})
	if err != nil {
		return err
	}
	deposits := float64(items) / time.Since(start).Seconds()
	floor, err := mailFloor(filepath.Join(dir, "floor"), items)
	if err != nil {
		return err
	}
	r.add(row{
		Name: fmt.Sprintf("durable deposits of %d bytes, load %s", mailItem, load()), Value: fmt.Sprintf("%.0f /s", deposits),
		Floor: fmt.Sprintf("%.0f /s", floor), Ratio: fmt.Sprintf("%.2f", deposits/floor),
	})
	if err := r.mailMemory(ctx, b, items, watch); err != nil {
		return err
	}
	if err := r.mailFetch(ctx, b, clients, secrets, items); err != nil {
		return err
	}
	ended = true
	if err := b.end(); err != nil {
		return err
	}
	size, err := folderSize(filepath.Join(dir, "box"))
	if err != nil {
		return err
	}
	bare, err := folderSize(filepath.Join(dir, "floor"))
	if err != nil {
		return err
	}
	r.add(row{
		Name: "bytes on disk per item", Value: fmt.Sprintf("%.0f", float64(size)/float64(items)),
		Floor: fmt.Sprintf("%.0f", float64(bare)/float64(items)), Ratio: fmt.Sprintf("%.2f", float64(size)/float64(bare)),
	})
	return nil
}

// mailFetch fetches everything, without having it removed.
func (r report) mailFetch(ctx context.Context, b *boxProcess, clients []*mailbox.Client, secrets []identity.InboxSecret, items int) error {
	start := time.Now()
	fetched := make([]int, len(secrets))
	err := parallel(len(secrets), 8, func(i int) error {
		for after, more := uint64(0), true; more; {
			list, again, err := clients[i%len(clients)].Fetch(ctx, b.ref, secrets[i], after, 0)
			if err != nil {
				return err
			}
			for _, it := range list {
				after = it.Cursor
			}
			fetched[i] += len(list)
			more = again
		}
		return nil
	})
	if err != nil {
		return err
	}
	sum := 0
	for _, n := range fetched {
		sum += n
	}
	if sum != items {
		return fmt.Errorf("fetched %d of %d items", sum, items)
	}
	r.add(row{Name: "fetches of one item, in pages", Value: fmt.Sprintf("%.0f /s", float64(sum)/time.Since(start).Seconds())})
	return nil
}

// mailMemory measures the memory right after the deposits and when the process was idle for a while.
func (r report) mailMemory(ctx context.Context, b *boxProcess, items int, watch time.Duration) error {
	mem, err := rss(b.cmd.Process.Pid)
	if err != nil {
		return err
	}
	r.most(fmt.Sprintf("resident memory after %d deposits", items), mem, mailMemory, "MiB", "")
	select {
	case <-time.After(watch):
	case <-ctx.Done():
		return ctx.Err()
	}
	if mem, err = rss(b.cmd.Process.Pid); err != nil {
		return err
	}
	r.most(fmt.Sprintf("the same, idle for %v", watch), mem, mailMemory, "MiB", "")
	return nil
}

// mailFloor is Badger alone: the same values, as many in one synced transaction as deposits are under way at once.
func mailFloor(dir string, items int) (perSecond float64, err error) {
	f, err := openFloor(dir)
	if err != nil {
		return 0, err
	}
	value := make([]byte, mailItem)
	start := time.Now()
	for n := 0; n < items; n += mailAtOnce {
		err := f.db.Update(func(tx *badger.Txn) error {
			for range min(mailAtOnce, items-n) {
				f.seq++
				_, _ = rand.Read(value)
				if err := tx.Set(binary.BigEndian.AppendUint64([]byte("floor/"), f.seq), append([]byte(nil), value...)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return 0, errors.Join(err, f.db.Close())
		}
	}
	perSecond = float64(items) / time.Since(start).Seconds()
	return perSecond, f.db.Close()
}

// folderSize is what the files of a folder take, as their lengths say.
func folderSize(dir string) (sum int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			sum += info.Size()
		}
		return err
	})
	return sum, err
}
