package node_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"hima/identity"
	"hima/node"
	"hima/node/nodetest"
)

// Who says that it answers for a key is found by others, for a while, or until it says so no more and is gone.
func TestProviders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := nodetest.New(t, 0)
		w.DelayAll(50 * time.Millisecond)
		boot := w.AddBootstrap(node.RelayLimits{})
		const age = 10 * time.Minute
		table(t, w.Node(boot), node.DHTConfig{Server: true, ProviderAge: age})
		var ds []*node.DHT
		var at []int
		for i := range 9 {
			j := w.AddRemote([]nodetest.NAT{nodetest.Cone, nodetest.Symmetric, nodetest.Open}[i%3])
			w.Join(j, boot)
			d, _ := table(t, w.Node(j), node.DHTConfig{Server: true, ProviderAge: age, Bootstraps: func() []node.Bootstrap { return []node.Bootstrap{w.Bootstrap(boot)} }})
			ds, at = append(ds, d), append(at, j)
		}
		time.Sleep(time.Minute)
		key, other := sha256.Sum256([]byte("a name")), sha256.Sum256([]byte("another"))
		for _, i := range []int{0, 1, 2} {
			if err := ds[i].Provide(t.Context(), key); err != nil {
				t.Fatal(err)
			}
		}
		ask := func(d *node.DHT, key [32]byte) (out []identity.DeviceID) {
			t.Helper()
			start := time.Now()
			ps, err := d.Providers(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range ps {
				out = append(out, p.Device)
			}
			slices.SortFunc(out, func(a, b identity.DeviceID) int { return slices.Compare(a[:], b[:]) })
			t.Logf("found %d in %v", len(out), time.Since(start))
			return out
		}
		want := func(is ...int) (out []identity.DeviceID) {
			for _, i := range is {
				out = append(out, nodetest.Key(at[i]).ID())
			}
			slices.SortFunc(out, func(a, b identity.DeviceID) int { return slices.Compare(a[:], b[:]) })
			return out
		}
		if got := ask(ds[7], key); !slices.Equal(got, want(0, 1, 2)) {
			t.Errorf("found %v", got)
		}
		if got := ask(ds[0], key); !slices.Equal(got, want(1, 2)) {
			t.Errorf("one of them found %v: not itself", got)
		}
		if got := ask(ds[7], other); got != nil {
			t.Errorf("found %v for a key that nobody has", got)
		}
		ds[0].Unprovide(key)
		time.Sleep(age / 2)
		if err := ds[2].Provide(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		time.Sleep(age/2 + time.Minute)
		if got := ask(ds[5], key); !slices.Equal(got, want(2)) {
			t.Errorf("after its time found %v, want the one who said it again", got)
		}
		over, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := ds[5].Providers(over, other); !errors.Is(err, context.Canceled) {
			t.Errorf("a search that was broken off: %v", err)
		}
	})
}

func TestProvideAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := nodetest.New(t, 2)
		d, _ := table(t, w.Node(0), node.DHTConfig{Server: true})
		key := sha256.Sum256([]byte("a name"))
		if err := d.Provide(t.Context(), key); !errors.Is(err, node.ErrAlone) {
			t.Errorf("providing alone: %v", err)
		}
		if _, err := d.Providers(t.Context(), key); !errors.Is(err, node.ErrAlone) {
			t.Errorf("searching alone: %v", err)
		}
		// Whoever comes learns of it all the same.
		w.Connect(0, 1)
		e, _ := table(t, w.Node(1), node.DHTConfig{Server: true})
		time.Sleep(10 * time.Second)
		ps, err := e.Providers(t.Context(), key)
		if err != nil || len(ps) != 1 || ps[0].Device != w.Node(0).ID() {
			t.Errorf("found %v, %v", ps, err)
		}
		d.Unprovide(key)
		if ps, err := e.Providers(t.Context(), key); err != nil || len(ps) != 0 {
			t.Errorf("after it said so no more: %v, %v", ps, err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if err := d.Provide(t.Context(), key); !errors.Is(err, node.ErrClosed) {
			t.Errorf("providing after the end: %v", err)
		}
		if _, err := d.Providers(t.Context(), key); !errors.Is(err, node.ErrClosed) {
			t.Errorf("searching after the end: %v", err)
		}
	})
}
