package node

import (
	"fmt"
	"strings"
	"testing"

	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	"github.com/multiformats/go-base32"

	"hima/storage"
)

func providerAt(k, p string) ds.Key {
	text := base32.RawStdEncoding.EncodeToString
	return ds.NewKey(joinProvider(text([]byte(k)), text([]byte(p))))
}

func listProviders(t *testing.T, s *providerStore, k string) (out []query.Entry) {
	t.Helper()
	prefix := "/providers/"
	if k != "" {
		prefix += base32.RawStdEncoding.EncodeToString([]byte(k))
	}
	res, err := s.Query(t.Context(), query.Query{Prefix: prefix})
	if err != nil {
		t.Fatal(err)
	}
	out, err = res.Rest()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A crowd that says to answer for a key neither fills the store nor pushes everybody else out on every node.
func TestProviderCrowd(t *testing.T) {
	const nodes, crowd = 20, 200
	kept := 0
	for i := range nodes {
		s, err := newProviderStore(nil, "", []byte(fmt.Sprint(i)), 1000)
		if err != nil {
			t.Fatal(err)
		}
		refused := 0
		put := func(p string) {
			if s.Put(t.Context(), providerAt("key", p), []byte("now")) != nil {
				refused++
			}
		}
		for j := range crowd / 2 {
			put(fmt.Sprint("first ", j))
		}
		put("honest")
		for j := range crowd / 2 {
			put(fmt.Sprint("later ", j))
		}
		if n := len(listProviders(t, s, "key")); n != dhtProvidersEach || s.size() != n {
			t.Fatalf("%d of a key, %d in all", n, s.size())
		}
		if refused == 0 {
			t.Error("nobody was refused")
		}
		if ok, _ := s.Has(t.Context(), providerAt("key", "honest")); ok {
			kept++
			before := s.size()
			put("honest") // said again: nothing has to go
			if ok, _ := s.Has(t.Context(), providerAt("key", "honest")); !ok || s.size() != before {
				t.Error("lost by saying it again")
			}
		}
	}
	// 32 of 201 stay on each node; that all twenty draw without the one is less likely than 1 in 30, that all draw it absurd.
	if kept == nodes {
		t.Error("the order is no secret of each node")
	}
	t.Logf("%d of %d nodes kept the one among %d", kept, nodes, crowd)
}

func TestProviderStoreIsBounded(t *testing.T) {
	const limit = 50
	s, err := newProviderStore(nil, "", []byte("self"), limit)
	if err != nil {
		t.Fatal(err)
	}
	far := ""
	for i := range 4 * limit {
		k := fmt.Sprint("key ", i)
		_ = s.Put(t.Context(), providerAt(k, "p"), []byte("x"))
		if s.size() > limit {
			t.Fatalf("%d records", s.size())
		}
	}
	for k := range s.keys {
		if d := s.distance(k); far == "" || string(d[:]) > far {
			far = string(d[:])
		}
	}
	nearer := 0
	for i := range 4 * limit {
		if d := s.distance(base32.RawStdEncoding.EncodeToString(fmt.Append(nil, "key ", i))); string(d[:]) <= far {
			nearer++
		}
	}
	if nearer != limit {
		t.Errorf("%d keys are as near as those that were kept, want %d", nearer, limit)
	}
}

func TestProviderStoreOverRestart(t *testing.T) {
	db, err := storage.Open(storage.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	open := func() *providerStore {
		s, err := newProviderStore(db, "n/k/x/p", []byte("self"), 10)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	for _, p := range []string{"a", "b"} {
		if err := s.Put(t.Context(), providerAt("key", p), []byte(p)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Delete(t.Context(), providerAt("key", "a")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s.Put(t.Context(), providerAt("key", "c"), nil) == nil || s.Delete(t.Context(), providerAt("key", "b")) == nil {
		t.Error("writes after it was closed")
	}
	s = open()
	if all := listProviders(t, s, ""); len(all) != 1 || string(all[0].Value) != "b" || all[0].Key != providerAt("key", "b").String() {
		t.Errorf("kept %v", all)
	}
	if v, err := s.Get(t.Context(), providerAt("key", "b")); err != nil || string(v) != "b" {
		t.Errorf("%q, %v", v, err)
	}
	if _, err := s.Get(t.Context(), providerAt("key", "a")); err != ds.ErrNotFound {
		t.Errorf("a deleted record: %v", err)
	}
	if s.Put(t.Context(), ds.NewKey("/other/key"), nil) == nil {
		t.Error("takes what is no provider")
	}
}

func TestFewAddrs(t *testing.T) {
	var all []string
	for i := range 2 * dhtAddrs {
		all = append(all, fmt.Sprintf("/ip4/192.168.1.%d/tcp/1", i))
	}
	all = append(all, "/ip4/11.0.0.1/udp/1/quic-v1", "/dns4/"+strings.Repeat("a.", 100)+"example/tcp/1")
	got := fewAddrs(addrs(all...))
	if len(got) != dhtAddrs || got[0].String() != "/ip4/11.0.0.1/udp/1/quic-v1" {
		t.Errorf("kept %v", got)
	}
	if got := fewAddrs(addrs(all[:2]...)); len(got) != 2 || got[0].String() != all[0] {
		t.Errorf("changed %v", got)
	}
}
