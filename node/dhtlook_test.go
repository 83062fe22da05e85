package node_test

import (
	"bytes"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"hima/identity"
	"hima/node"
	"hima/node/nodetest"
)

// stubborn takes everything and keeps what it has.
type stubborn struct{}

func (stubborn) Validate(string, []byte) error { return nil }

func (stubborn) Select(_ string, values [][]byte) (int, error) { return len(values) - 1, nil }

// crowd adds n nodes to a world that stand in the table, and lets them get to know each other.
func crowd(t *testing.T, w *nodetest.World, boot, n int) (ds []*node.DHT) {
	t.Helper()
	for range n {
		i := w.AddPlain(0)
		d, _ := table(t, w.Node(i), node.DHTConfig{Server: true})
		w.Connect(i, boot)
		ds = append(ds, d)
		time.Sleep(100 * time.Millisecond)
	}
	time.Sleep(100 * time.Second) // everybody has looked around twice
	return ds
}

// A node that may have few connections looks for one record after the other, and finds all of them: the connections that
// one look-up leaves do not keep the next from dialling whom it must.
func TestLookupsWithFewConnections(t *testing.T) {
	if testing.Short() {
		t.Skip("many nodes")
	}
	synctest.Test(t, func(t *testing.T) {
		w := nodetest.New(t, 0)
		boot := w.AddBootstrap(node.RelayLimits{})
		server, _ := table(t, w.Node(boot), node.DHTConfig{Server: true})
		crowd(t, w, boot, 45)
		const records = 20
		for i := range records {
			if err := server.Put(t.Context(), fmt.Sprintf("/test/%d", i), rec(1, "one")); err != nil {
				t.Fatal(err)
			}
		}
		me := w.AddPlain(24)
		d, _ := table(t, w.Node(me), node.DHTConfig{Server: true})
		w.Connect(me, boot)
		time.Sleep(100 * time.Second)
		known := d.Peers()
		for i := range records {
			key := fmt.Sprintf("/test/%d", i)
			if v, err := d.Get(t.Context(), key); err != nil || !bytes.Equal(v, rec(1, "one")) {
				t.Errorf("%s: got %q, %v", key, v, err)
			}
			answers, err := d.Ask(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			held := 0
			for _, a := range answers {
				if a.Value != nil {
					held++
				}
			}
			if held < len(answers)*3/4 {
				t.Errorf("%s: %d of the %d that were taken for the closest hold it", key, held, len(answers))
			}
		}
		if d.Peers() < known*3/4 {
			t.Errorf("of %d nodes in the table %d are left", known, d.Peers())
		}
	})
}

// A liar who answers at once does not keep those from being heard who hold the newest record and are slow.
func TestSlowTruthBeatsAQuickLie(t *testing.T) {
	if testing.Short() {
		t.Skip("many nodes")
	}
	synctest.Test(t, func(t *testing.T) {
		w := nodetest.New(t, 0)
		boot := w.AddBootstrap(node.RelayLimits{})
		server, _ := table(t, w.Node(boot), node.DHTConfig{Server: true})
		const key = "/test/a"
		liar := w.AddPlain(0)
		lies, _ := table(t, w.Node(liar), node.DHTConfig{
			Server: true, Validators: map[string]identity.Validator{"test": stubborn{}},
		})
		_ = lies.Put(t.Context(), key, rec(1, "old")) // nobody is there yet
		w.Connect(liar, boot)
		crowd(t, w, boot, 30)
		if err := server.Put(t.Context(), key, rec(2, "new")); err != nil {
			t.Fatal(err)
		}
		me := w.AddPlain(0)
		d, _ := table(t, w.Node(me), node.DHTConfig{Server: true})
		w.Connect(me, boot)
		w.Connect(me, liar)
		time.Sleep(100 * time.Second)
		for i := range w.Len() {
			if i != me && i != liar {
				w.Delay(me, i, 800*time.Millisecond)
			}
		}
		start := time.Now()
		v, err := d.Get(t.Context(), key)
		if err != nil || !bytes.Equal(v, rec(2, "new")) {
			t.Errorf("got %q, %v after %v", v, err, time.Since(start))
		}
	})
}
