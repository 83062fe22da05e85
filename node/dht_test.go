package node_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"hima/identity"
	"hima/node"
	"hima/node/nodetest"
	"hima/storage"
)

// numbered are records "<number>|<text>": the higher number wins, then the greater bytes; a number of 0 is not valid.
type numbered struct{}

var errNumber = errors.New("no good number")

func (numbered) Validate(_ string, v []byte) error {
	if len(v) < 8 || binary.BigEndian.Uint64(v) == 0 {
		return errNumber
	}
	return nil
}

func (numbered) Select(_ string, values [][]byte) (int, error) {
	best := 0
	for i, v := range values {
		if bytes.Compare(v, values[best]) > 0 {
			best = i
		}
	}
	return best, nil
}

func rec(n uint64, text string) []byte { return append(binary.BigEndian.AppendUint64(nil, n), text...) }

const dhtPrefix = "/hima/test"

// table makes the DHT of a node and runs it until the test ends or stop is called.
func table(t *testing.T, n *node.Node, c node.DHTConfig) (d *node.DHT, stop func()) {
	t.Helper()
	c.Prefix = dhtPrefix
	if c.Validators == nil {
		c.Validators = map[string]identity.Validator{"test": numbered{}}
	}
	d, err := n.NewDHT(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := d.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			wg.Wait()
			if err := d.Close(); err != nil {
				t.Errorf("closing: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return d, stop
}

// People behind routers and one bootstrap node; then a third of them goes without a word.
func TestDHT(t *testing.T) {
	people := 16
	if os.Getenv("HIMA_LONG") != "" {
		people = 40
	}
	synctest.Test(t, func(t *testing.T) {
		w := nodetest.New(t, 0)
		w.DelayAll(50 * time.Millisecond)
		boot := w.AddBootstrap(node.RelayLimits{})
		table(t, w.Node(boot), node.DHTConfig{Server: true})
		var ds []*node.DHT
		for i := range people {
			kind := []nodetest.NAT{nodetest.Cone, nodetest.Symmetric, nodetest.Open}[i%3]
			j := w.AddRemote(kind)
			w.Join(j, boot)
			d, _ := table(t, w.Node(j), node.DHTConfig{Server: true, Bootstraps: func() []node.Bootstrap { return []node.Bootstrap{w.Bootstrap(boot)} }})
			ds = append(ds, d)
		}
		time.Sleep(time.Minute)
		for i, d := range ds {
			if d.Peers() < 5 {
				t.Errorf("node %d knows %d nodes", i, d.Peers())
			}
		}
		start := time.Now()
		for i := range 10 {
			if err := ds[i].Put(t.Context(), fmt.Sprintf("/test/%d", i), rec(1, "one")); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("ten puts took %v", time.Since(start))
		start = time.Now()
		for i := range 10 {
			if v, err := ds[people-1-i].Get(t.Context(), fmt.Sprintf("/test/%d", i)); err != nil || !bytes.Equal(v, rec(1, "one")) {
				t.Errorf("got %q, %v", v, err)
			}
		}
		t.Logf("ten gets took %v", time.Since(start))
		start = time.Now()
		answers, err := ds[12].Ask(t.Context(), "/test/3")
		if err != nil {
			t.Fatal(err)
		}
		has := 0
		for _, a := range answers {
			if bytes.Equal(a.Value, rec(1, "one")) {
				has++
			}
		}
		t.Logf("asking took %v, %d of %d have it", time.Since(start), has, len(answers))
		if want := min(people, 20); has < want*3/4 || len(answers) < want*9/10 {
			t.Errorf("%d of %d have the record", has, len(answers))
		}
		if _, err := ds[5].Get(t.Context(), "/test/none"); !errors.Is(err, node.ErrNoRecord) {
			t.Errorf("no record: %v", err)
		}
		if err := ds[5].Put(t.Context(), "/test/3", rec(0, "bad")); !errors.Is(err, node.ErrBadRecord) {
			t.Errorf("bad record: %v", err)
		}

		for i := range people / 3 {
			w.Isolate(1 + 3*i) // as a machine that was switched off
		}
		start = time.Now()
		for i := range 10 {
			d := ds[(3*i+1)%people]
			if v, err := d.Get(t.Context(), fmt.Sprintf("/test/%d", i)); err != nil || !bytes.Equal(v, rec(1, "one")) {
				t.Errorf("after the loss: got %q, %v", v, err)
			}
		}
		t.Logf("ten gets after a third was lost took %v", time.Since(start))
	})
}

// A record put alone is kept, and served to who comes later; a put of an older one is refused; a restart keeps records
// and finds its way back without a bootstrap node.
func TestDHTAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db, err := storage.Open(storage.Config{Dir: filepath.Join(t.TempDir(), "db"), Key: bytes.Repeat([]byte{7}, 32)})
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		w := nodetest.New(t, 2)
		a, stopA := table(t, w.Node(0), node.DHTConfig{Server: true, Store: db})
		if err := a.Put(t.Context(), "/test/a", rec(2, "two")); !errors.Is(err, node.ErrAlone) {
			t.Fatalf("alone: %v", err)
		}
		if v, err := a.Get(t.Context(), "/test/a"); err != nil || !bytes.Equal(v, rec(2, "two")) {
			t.Errorf("what was put alone: %q, %v", v, err)
		}
		if _, err := a.Ask(t.Context(), "/test/a"); !errors.Is(err, node.ErrAlone) {
			t.Errorf("asking alone: %v", err)
		}
		if err := a.Put(t.Context(), "/test/a", rec(1, "one")); !errors.Is(err, node.ErrOldRecord) {
			t.Errorf("an older one: %v", err)
		}
		b, _ := table(t, w.Node(1), node.DHTConfig{Server: true})
		w.Connect(0, 1)
		time.Sleep(time.Minute)
		if v, err := b.Get(t.Context(), "/test/a"); err != nil || !bytes.Equal(v, rec(2, "two")) {
			t.Errorf("who came later got %q, %v", v, err)
		}
		if addrs, err := b.FindPeer(t.Context(), w.Node(0).ID()); err != nil || len(addrs) == 0 {
			t.Errorf("addresses %v, %v", addrs, err)
		}
		stopA()
		// The handler is gone with it.
		if _, err := w.Node(1).Open(t.Context(), w.Node(0).ID(), dhtPrefix+"/kad/1.0.0"); !errors.Is(err, node.ErrNotSpoken) {
			t.Errorf("after Close: %v", err)
		}
		if err := a.Put(t.Context(), "/test/a", rec(3, "three")); !errors.Is(err, node.ErrClosed) {
			t.Errorf("put after Close: %v", err)
		}
		w.Stop(0)
		w.Start(0)
		a, _ = table(t, w.Node(0), node.DHTConfig{Server: true, Store: db})
		time.Sleep(30 * time.Second)
		if a.Peers() != 1 {
			t.Errorf("after a restart %d nodes are in the table", a.Peers())
		}
		if v, err := a.Get(t.Context(), "/test/a"); err != nil || !bytes.Equal(v, rec(2, "two")) {
			t.Errorf("after a restart: %q, %v", v, err)
		}
	})
}

// What an idle joined node costs in an hour, and how many connections it keeps.
func TestIdleHour(t *testing.T) {
	people := 5
	if os.Getenv("HIMA_LONG") != "" {
		people = 30
	}
	synctest.Test(t, func(t *testing.T) {
		w := nodetest.New(t, 0)
		w.DelayAll(50 * time.Millisecond)
		boot := w.AddBootstrap(node.RelayLimits{})
		table(t, w.Node(boot), node.DHTConfig{Server: true})
		for i := range people {
			j := w.AddRemote([]nodetest.NAT{nodetest.Cone, nodetest.Cone, nodetest.Symmetric}[i%3])
			w.Join(j, boot)
			table(t, w.Node(j), node.DHTConfig{Server: true, Bootstraps: func() []node.Bootstrap { return []node.Bootstrap{w.Bootstrap(boot)} }})
			time.Sleep(time.Second)
		}
		time.Sleep(30 * time.Minute)
		var before, worst, sum uint64
		start := make([]uint64, w.Len())
		for i := range start {
			start[i] = w.Carried(i)
		}
		conns := 0
		for range 60 {
			time.Sleep(time.Minute)
			for i := 1; i < w.Len(); i++ {
				conns += len(w.Node(i).Peers())
			}
		}
		for i := 1; i < w.Len(); i++ {
			used := w.Carried(i) - start[i]
			sum, worst = sum+used, max(worst, used)
		}
		before = sum / uint64(people)
		t.Logf("%d people: an idle hour costs %.2f MB on average, %.2f MB at worst, with %.1f connections", people,
			float64(before)/1e6, float64(worst)/1e6, float64(conns)/60/float64(people))
		t.Logf("the bootstrap node: %.2f MB", float64(w.Carried(0)-start[0])/1e6)
		if before > 2_000_000 {
			t.Error("that is too much")
		}
	})
}

// Over limited relays a DHT only asks: nobody could ask it. With an unlimited one beside it serves again.
func TestDHTOverLimitedRelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := nodetest.New(t, 0)
		stingy := w.AddBootstrap(node.RelayLimits{Duration: 2 * time.Minute, Data: 128 << 10})
		open := w.AddBootstrap(node.RelayLimits{})
		server, _ := table(t, w.Node(stingy), node.DHTConfig{Server: true})
		ia, ib := w.AddRemote(nodetest.Symmetric), w.AddRemote(nodetest.Symmetric)
		w.Join(ia, stingy)
		w.Join(ib, stingy)
		within(t, time.Second, "slots", func() bool { return reserved(w.Node(ia)) && reserved(w.Node(ib)) })
		a, _ := table(t, w.Node(ia), node.DHTConfig{Server: true})
		b, _ := table(t, w.Node(ib), node.DHTConfig{Server: true})
		time.Sleep(time.Minute)
		if n := server.Peers(); n != 0 {
			t.Errorf("%d nodes that cannot be asked stand in the server's table", n)
		}
		if err := a.Put(t.Context(), "/test/a", rec(1, "one")); err != nil {
			t.Fatal(err)
		}
		if v, err := b.Get(t.Context(), "/test/a"); err != nil || !bytes.Equal(v, rec(1, "one")) {
			t.Errorf("got %q, %v", v, err)
		}
		w.Join(ia, stingy, open)
		time.Sleep(time.Minute)
		if n := server.Peers(); n != 1 {
			t.Errorf("%d nodes in the server's table", n)
		}
	})
}

// A node keeps a bounded number of records, those that are nearest to it.
func TestDHTIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := nodetest.New(t, 2)
		w.Connect(0, 1)
		a, _ := table(t, w.Node(0), node.DHTConfig{Server: true, Records: 8})
		b, _ := table(t, w.Node(1), node.DHTConfig{Server: true})
		time.Sleep(time.Minute)
		for i := range 50 {
			if err := b.Put(t.Context(), fmt.Sprintf("/test/%d", i), rec(1, "one")); err != nil {
				t.Fatal(err)
			}
		}
		if n, m := a.Records(), b.Records(); n != 8 || m != 50 {
			t.Errorf("%d and %d records are kept", n, m)
		}
		answers, err := b.Ask(t.Context(), "/test/1")
		if err != nil || len(answers) != 1 || answers[0].From != w.Node(0).ID() {
			t.Errorf("answers %v, %v", answers, err)
		}
	})
}
