package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"hima/identity"
	"hima/internal/feed"
	"hima/node"
)

// loopbackClub is a group whose members are nodes of this process on loopback, with databases on the disk of dir.
func loopbackClub(ctx context.Context, dir string, n int) (*club, error) {
	reg := newRegister()
	var members []*member
	closeAll := func(err error) error {
		for _, m := range members {
			err = errors.Join(err, m.close())
		}
		return err
	}
	for i := range n {
		key := identity.DeviceKeyFromSeed(sha256.Sum256(fmt.Appendf(nil, "bench device %d", i)))
		nd, err := node.New(node.Config{Key: key, Listen: []string{"/ip4/127.0.0.1/tcp/0"}})
		if err != nil {
			return nil, closeAll(err)
		}
		m, err := newMember(reg, dir, fmt.Sprint("member", i), key, nd)
		if err != nil {
			return nil, closeAll(errors.Join(err, nd.Close()))
		}
		members = append(members, m)
		if err := m.open(); err != nil {
			return nil, closeAll(err)
		}
	}
	for _, m := range members {
		m.run()
	}
	c, err := found(ctx, members)
	if err != nil {
		return nil, closeAll(err)
	}
	return c, nil
}

func (c *club) close() error {
	var errs []error
	for _, m := range c.members {
		errs = append(errs, m.close())
	}
	return errors.Join(errs...)
}

// watch calls has whenever a member made a chat entry of the group durable.
func (c *club) watch(has func(m *member, e *feed.Entry)) {
	for _, m := range c.members {
		f := func(conv feed.ConversationID, entries []feed.Entry) {
			for i := range entries {
				if conv == c.id && entries[i].Number == feed.Chat {
					has(m, &entries[i])
				}
			}
		}
		m.stored.Store(&f)
	}
}

// tracker says when entries are everywhere.
type tracker struct {
	mu     sync.Mutex
	n      int
	left   map[feed.EntryID]int
	done   map[feed.EntryID]time.Time
	wanted chan struct{} // one slot
}

func (c *club) track() *tracker {
	t := &tracker{n: len(c.members), left: map[feed.EntryID]int{}, done: map[feed.EntryID]time.Time{}, wanted: make(chan struct{}, 1)}
	c.watch(func(_ *member, e *feed.Entry) {
		t.mu.Lock()
		defer t.mu.Unlock()
		if _, ok := t.left[e.ID]; !ok {
			t.left[e.ID] = t.n
		}
		if t.left[e.ID]--; t.left[e.ID] == 0 {
			t.done[e.ID] = time.Now()
			select {
			case t.wanted <- struct{}{}:
			default:
			}
		}
	})
	return t
}

// wait waits until an entry is everywhere.
func (t *tracker) wait(ctx context.Context, id feed.EntryID, limit time.Duration) (time.Time, error) {
	late := time.After(limit)
	for {
		t.mu.Lock()
		at, ok := t.done[id]
		left, seen := t.left[id]
		t.mu.Unlock()
		if ok {
			return at, nil
		}
		select {
		case <-t.wanted:
		case <-late:
			return time.Time{}, fmt.Errorf("an entry is not with all after %v: %d lack it (known: %v)", limit, left, seen)
		case <-ctx.Done():
			return time.Time{}, ctx.Err()
		}
	}
}

// settle says things until they reach all quickly: links, keys and topics are there.
func (c *club) settle(ctx context.Context, t *tracker) error {
	quick := 0
	for i := 0; quick < 2*len(c.members) || i < 20; i++ {
		if i > 40*len(c.members)+400 {
			return errors.New("the group does not settle")
		}
		start := time.Now()
		msg, err := c.say(ctx, c.members[i%len(c.members)], text(i))
		if err != nil {
			return err
		}
		if _, err := t.wait(ctx, msg.ID, 60*time.Second); err != nil {
			return fmt.Errorf("settling, message %d: %w", i, err)
		}
		if quick++; time.Since(start) > 400*time.Millisecond {
			quick = 0
		}
	}
	return nil
}

// groupLatency measures how long a message takes until all members hold it durably, one at a time, in turn with the floor.
// The floor syncs nothing and is quicker with as many threads as the runtime chose: it gets those.
func groupLatency(ctx context.Context, r report, dir string, n, count, chosen int) error {
	if alone, err := inNamespace(ctx); !alone {
		return err
	}
	c, err := loopbackClub(ctx, dir, n)
	if err != nil {
		return err
	}
	defer c.close()
	tr := c.track()
	began := time.Now()
	if err := c.settle(ctx, tr); err != nil {
		return err
	}
	r.add(row{Name: "settled after", Value: time.Since(began).String()})
	floor, err := openGossipFloor(ctx, n, 10)
	if err != nil {
		return err
	}
	defer floor.close()
	var ours, plain samples
	var bytes, floorBytes, disk float64
	lost := 0
	for round := range 5 {
		perSecond, err := syncs(dir, 400)
		if err != nil {
			return err
		}
		disk += perSecond / 5
		before, err := loopbackBytes()
		if err != nil {
			return err
		}
		threads := runtime.GOMAXPROCS(chosen)
		for i := range count / 5 {
			d, err := floor.send(ctx, round*count+i, 700)
			if err != nil {
				return err
			}
			if d == 0 {
				lost++
				continue
			}
			plain = append(plain, d)
		}
		runtime.GOMAXPROCS(threads)
		time.Sleep(500 * time.Millisecond)
		between, err := loopbackBytes()
		if err != nil {
			return err
		}
		for i := range count / 5 {
			start := time.Now()
			msg, err := c.say(ctx, c.members[i%n], text(i))
			if err != nil {
				return err
			}
			at, err := tr.wait(ctx, msg.ID, 30*time.Second)
			if err != nil {
				return err
			}
			ours = append(ours, at.Sub(start))
			if os.Getenv("HIMA_BENCH_PAUSE") != "" {
				time.Sleep(20 * time.Millisecond)
			}
		}
		time.Sleep(1500 * time.Millisecond) // what is passed on lazily, receipts
		after, err := loopbackBytes()
		if err != nil {
			return err
		}
		floorBytes += float64(between - before)
		bytes += float64(after - between)
	}
	deliveries := float64(count/5*5) * float64(n-1)
	allowed := 1.5*float64(plain.at(.5)) + float64(n)/disk*1e9
	label := fmt.Sprintf("%d members, a message durable at all", n)
	r.most(label+", p50", float64(ours.at(.5))/1e6, allowed/1e6, "ms", fmt.Sprintf("%.2f ms", float64(plain.at(.5))/1e6))
	r.add(row{Name: label + ", p95", Value: fmt.Sprintf("%.2f ms", float64(ours.at(.95))/1e6), Floor: fmt.Sprintf("%.2f ms", float64(plain.at(.95))/1e6)})
	r.add(row{Name: "not with all", Value: "0", Floor: strconv.Itoa(lost)})
	r.add(row{Name: "syncs a second", Value: fmt.Sprintf("%.0f", disk)})
	r.add(row{Name: "bytes on the wire per delivered message", Value: fmt.Sprintf("%.0f", bytes/deliveries), Floor: fmt.Sprintf("%.0f", floorBytes/deliveries)})
	r.add(row{Name: "load", Value: load()})
	return nil
}

// cpu is what this process has used.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
