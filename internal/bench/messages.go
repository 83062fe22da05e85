package main

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"hima/internal/messenger"
	"hima/internal/replica"
	"hima/storage"
)

// ackTimes collects when the acknowledgements of one feed arrived.
type ackTimes struct {
	mu   sync.Mutex
	last uint64
	wait chan struct{} // closed when last reaches want
	want uint64
}

func (a *ackTimes) note(last uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last = max(a.last, last)
	if a.wait != nil && a.last >= a.want {
		close(a.wait)
		a.wait = nil
	}
}

// until returns a channel that is closed when seq is acknowledged.
func (a *ackTimes) until(seq uint64) <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := make(chan struct{})
	if a.last >= seq {
		close(c)
		return c
	}
	a.want, a.wait = seq, c
	return c
}

// listen follows the acknowledgements of the chat with the other process.
func (p *pair) listen() *ackTimes {
	a := &ackTimes{}
	id := p.chat(p.other.account)
	p.watchAcks(func(k replica.Ack) {
		if k.Feed == id {
			a.note(k.Last)
		}
	})
	return a
}

func (p *pair) say(ctx context.Context, i int) (messenger.Message, error) {
	return p.messenger.Send(ctx, messenger.SendInput{Who: p.other.account.String(), Text: text(i)})
}

// latency measures one message at a time: from the call of Send to the other's acknowledgement, beside a round trip
// and two commits taken just before.
func latency(ctx context.Context, r report, dir string, n int, pause time.Duration) error {
	p, err := newPair(ctx, dir)
	if err != nil {
		return err
	}
	defer p.close()
	f, err := openFloor(filepath.Join(dir, "floor-alice"))
	if err != nil {
		return err
	}
	defer f.db.Close()
	fc, err := dialFloor(ctx, p.node, p.other.device, f)
	if err != nil {
		return err
	}
	acks := p.listen()
	var total, durable, floor, trips, commits samples
	before := p.db.Stats()
	for i := range n + n/10 {
		trip, here, there, err := fc.once()
		if err != nil {
			return err
		}
		time.Sleep(pause)
		start := time.Now()
		m, err := p.say(ctx, i)
		if err != nil {
			return err
		}
		stored := time.Since(start)
		<-acks.until(m.Seq)
		took := time.Since(start)
		time.Sleep(pause)
		if i < n/10 { // warming up
			continue
		}
		total, durable = append(total, took), append(durable, stored)
		floor = append(floor, trip+here+there)
		trips, commits = append(trips, trip), append(commits, here, there)
	}
	r.add(row{Name: "network round trip p50", Value: us(trips.at(.5))})
	r.add(row{Name: "synced commit p50", Value: us(commits.at(.5))})
	p.commits(r, before, n+n/10)
	r.add(row{Name: "durable here p50", Value: us(durable.at(.5)), Floor: us(commits.at(.5))})
	r.ratio("send to acknowledged p50", total.at(.5), floor.at(.5), 1.6)
	r.ratio("send to acknowledged p99", total.at(.99), floor.at(.99), 3)
	r.add(row{Name: fmt.Sprintf("messages %d, pause %v, load", n, pause), Value: load()})
	_, err = p.other.do(request{Do: "verify", Who: p.device.String(), From: 1, N: n + n/10})
	return err
}

// commits tells what the sender's database did for n messages since before.
func (p *pair) commits(r report, before storage.Stats, n int) {
	after := p.db.Stats()
	count := max(after.Commits-before.Commits, 1)
	r.add(row{Name: "commits per message at the sender", Value: fmt.Sprintf("%.4f", float64(count)/float64(n))})
	r.add(row{Name: "keys per message at the sender", Value: fmt.Sprintf("%.2f", float64(after.Writes-before.Writes)/float64(n))})
	r.add(row{Name: "mean commit at the sender", Value: us((after.CommitTime - before.CommitTime) / time.Duration(count))})
}

// pipeline measures how many messages a second go from one process to the other with many under way.
func pipeline(ctx context.Context, r report, dir string, n, window int) error {
	p, err := newPair(ctx, dir)
	if err != nil {
		return err
	}
	defer p.close()
	acks := p.listen()
	if err := p.write(ctx, 0, n/10, window); err != nil { // warming up
		return err
	}
	<-acks.until(uint64(n / 10))
	before := p.db.Stats()
	start := time.Now()
	if err := p.write(ctx, n/10, n, window); err != nil {
		return err
	}
	written := time.Since(start)
	select {
	case <-acks.until(uint64(n)):
	case <-ctx.Done():
		return ctx.Err()
	}
	took := time.Since(start)
	p.commits(r, before, n-n/10)
	if _, err := p.other.do(request{Do: "verify", Who: p.device.String(), From: 1, N: n}); err != nil {
		return err
	}
	count := float64(n - n/10)
	floor, err := p.floor(ctx, n/3)
	if err != nil {
		return err
	}
	r.add(row{Name: "written durably", Value: fmt.Sprintf("%.0f msg/s", count/written.Seconds())})
	r.least(fmt.Sprintf("pipelined, window %d, acknowledged and checked", window), count/took.Seconds(), 30000, "msg/s", floor)
	r.add(row{Name: fmt.Sprintf("messages %d, load", n), Value: load()})
	return nil
}

// floor is what Badger alone does with n messages of this size, in both processes at once.
func (p *pair) floor(ctx context.Context, n int) (string, error) {
	f, err := openFloor(filepath.Join(p.dir, "floor-alice"))
	if err != nil {
		return "", err
	}
	defer f.db.Close()
	c, err := dialFloor(ctx, p.node, p.other.device, f)
	if err != nil {
		return "", err
	}
	defer c.s.Reset()
	rate, err := c.both(n)
	return fmt.Sprintf("%.0f msg/s", rate), err
}

// write sends the texts from..to-1 with so many calls under way at a time.
func (p *pair) write(ctx context.Context, from, to, window int) error {
	var next atomic.Int64
	next.Store(int64(from))
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	for range window {
		wg.Go(func() {
			for failed.Load() == nil {
				i := int(next.Add(1)) - 1
				if i >= to {
					return
				}
				if _, err := p.say(ctx, i); err != nil {
					failed.Store(&err)
				}
			}
		})
	}
	wg.Wait()
	if e := failed.Load(); e != nil {
		return *e
	}
	return nil
}

// catchup measures how fast messages are made up for that were written while the other was away.
func catchup(ctx context.Context, r report, dir string, n int) error {
	p, err := newPair(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { p.close() }()
	if err := p.other.stop(); err != nil {
		return err
	}
	p.node.Disconnect(p.other.device)
	before, begun := p.db.Stats(), time.Now()
	if err := p.write(ctx, 0, n, 1024); err != nil {
		return err
	}
	r.add(row{Name: "written durably while the other is away", Value: fmt.Sprintf("%.0f msg/s", float64(n)/time.Since(begun).Seconds())})
	p.commits(r, before, n)
	if p.other, err = startPeer(dir); err != nil {
		return err
	}
	acks := p.listen()
	start := time.Now()
	if err := p.connect(ctx); err != nil {
		return err
	}
	select {
	case <-acks.until(uint64(n)):
	case <-ctx.Done():
		return ctx.Err()
	}
	took := time.Since(start)
	if _, err := p.other.do(request{Do: "verify", Who: p.device.String(), From: 1, N: n}); err != nil {
		return err
	}
	floor, err := p.floor(ctx, n/2)
	if err != nil {
		return err
	}
	r.least(fmt.Sprintf("catching up on %d messages, checked", n), float64(n)/took.Seconds(), 40000, "msg/s", floor)
	r.add(row{Name: "load", Value: load()})
	return nil
}
