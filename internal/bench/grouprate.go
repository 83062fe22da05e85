package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"hima/internal/feed"
)

// tally counts what each member holds of the group's chat.
type tally struct {
	each []atomic.Int64
	want int64
	full chan int // a member that holds all
}

func (c *club) tally(want int) *tally {
	t := &tally{each: make([]atomic.Int64, len(c.members)), want: int64(want), full: make(chan int, len(c.members))}
	index := map[*member]int{}
	for i, m := range c.members {
		index[m] = i
	}
	seen := make([]map[feed.EntryID]bool, len(c.members))
	for i := range seen {
		seen[i] = map[feed.EntryID]bool{}
	}
	var mu sync.Mutex
	c.watch(func(m *member, e *feed.Entry) {
		i := index[m]
		mu.Lock()
		again := seen[i][e.ID]
		seen[i][e.ID] = true
		mu.Unlock()
		if !again && t.each[i].Add(1) == t.want {
			t.full <- i
		}
	})
	return t
}

// wait waits until so many members hold all.
func (t *tally) wait(ctx context.Context, members int, limit time.Duration) error {
	late := time.After(limit)
	for range members {
		select {
		case <-t.full:
		case <-late:
			var have []int64
			for i := range t.each {
				have = append(have, t.each[i].Load())
			}
			return fmt.Errorf("after %v the members hold %v of %d", limit, have, t.want)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// flood lets authors say n texts in all, with so many calls under way at a time.
func (c *club) flood(ctx context.Context, authors, n, window int) error {
	var wg sync.WaitGroup
	var next atomic.Int64
	var mu sync.Mutex
	var failed error
	for i := range window {
		wg.Go(func() {
			for {
				k := int(next.Add(1)) - 1
				if k >= n || ctx.Err() != nil {
					return
				}
				if _, err := c.say(ctx, c.members[(k+i)%authors], text(k)); err != nil {
					mu.Lock()
					failed = errors.Join(failed, err)
					mu.Unlock()
					return
				}
			}
		})
	}
	wg.Wait()
	return failed
}

// groupRate measures messages a second into a group of ten, until all copies are durable: from one author, and from all.
func groupRate(ctx context.Context, r report, dir string, n int) error {
	const size = 10
	c, err := loopbackClub(ctx, dir, size)
	if err != nil {
		return err
	}
	defer c.close()
	if err := c.settle(ctx, c.track()); err != nil {
		return err
	}
	floor, err := openGossipFloor(ctx, size, size)
	if err != nil {
		return err
	}
	plain, err := floor.rate(ctx, n/4, 64)
	if err = errors.Join(err, floor.close()); err != nil {
		return err
	}
	for _, authors := range []int{1, size} {
		t := c.tally(n)
		used := cpu()
		start := time.Now()
		if err := c.flood(ctx, authors, n, 512); err != nil {
			return err
		}
		said := time.Since(start)
		if err := t.wait(ctx, size, 5*time.Minute); err != nil {
			return err
		}
		took := time.Since(start)
		used = cpu() - used
		label := fmt.Sprintf("ten members, %d author(s), all ten copies durable", authors)
		r.least(label, float64(n)/took.Seconds(), 2000, "messages/s", fmt.Sprintf("%.0f/s", plain))
		r.add(row{Name: "  durable at the author(s)", Value: fmt.Sprintf("%.0f/s", float64(n)/said.Seconds())})
		r.add(row{Name: "  processor per message; cores busy", Value: fmt.Sprintf("%.0f us; %.2f", used.Seconds()*1e6/float64(n), used.Seconds()/took.Seconds())})
	}
	r.add(row{Name: "load", Value: load()})
	return nil
}

// rate publishes n messages with at most window of them not everywhere, and says how many a second that made.
func (g *gossipFloor) rate(ctx context.Context, n, window int) (float64, error) {
	places := make(chan struct{}, window)
	errs := make(chan error, n)
	start := time.Now()
	for i := range n {
		places <- struct{}{}
		go func() {
			_, err := g.send(ctx, 1<<24+i, 700)
			errs <- err
			<-places
		}()
	}
	var err error
	for range n {
		err = errors.Join(err, <-errs)
	}
	return float64(n) / time.Since(start).Seconds(), err
}

// groupBack measures how long a member that missed n messages of the nine others needs until it holds them all.
func groupBack(ctx context.Context, r report, dir string, n int) error {
	const size = 10
	c, err := loopbackClub(ctx, dir, size)
	if err != nil {
		return err
	}
	defer c.close()
	if err := c.settle(ctx, c.track()); err != nil {
		return err
	}
	away := c.members[size-1]
	if err := away.stop(); err != nil {
		return err
	}
	rest := &club{id: c.id, members: c.members[:size-1]}
	t := rest.tally(n)
	if err := rest.flood(ctx, size-1, n, 512); err != nil {
		return err
	}
	if err := t.wait(ctx, size-1, 5*time.Minute); err != nil {
		return err
	}
	whole := (&club{id: c.id, members: []*member{away}}).tally(n)
	if err := away.open(); err != nil {
		return err
	}
	used := cpu()
	start := time.Now()
	away.run()
	if err := whole.wait(ctx, 1, 2*time.Minute); err != nil {
		return err
	}
	took := time.Since(start)
	floor, err := storeFloor(dir, n)
	if err != nil {
		return err
	}
	r.most(fmt.Sprintf("a member back after %d messages of nine authors holds all, from its start", n), took.Seconds(), 3, "s", fmt.Sprintf("%.2f s", floor.Seconds()))
	r.add(row{Name: "  processor", Value: (cpu() - used).String()})
	r.add(row{Name: "load", Value: load()})
	return nil
}

// storeFloor is how long Badger alone needs to make as many messages durable.
func storeFloor(dir string, n int) (time.Duration, error) {
	f, err := openFloor(dir + "/floor-back")
	if err != nil {
		return 0, err
	}
	took, err := f.groups(n)
	return took, errors.Join(err, f.db.Close())
}

// rosterFold measures folding a roster of 1,000 members and 5,000 changes; it is a benchmark of package roster.
func rosterFold(ctx context.Context, r report) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-run=^$", "-bench=^BenchmarkFold", "-benchtime=20x", "hima/groups/roster")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("folding: %w\n%s", err, out)
	}
	for _, m := range regexp.MustCompile(`(?m)^Benchmark(\S+?)(?:-\d+)?\s+\d+\s+(\d+) ns/op`).FindAllStringSubmatch(string(out), -1) {
		ns, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			return err
		}
		if m[1] == "Fold/1000-members-5000-changes" {
			r.most("folding a roster: "+m[1], ns/1e6, 50, "ms", "")
		} else {
			r.add(row{Name: "folding a roster: " + m[1], Value: fmt.Sprintf("%.1f ms", ns/1e6)})
		}
	}
	r.add(row{Name: "load", Value: load()})
	return nil
}
