package node

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-base32"

	"hima/identity"
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
		_ = s.Put(t.Context(), providerAt(k, fmt.Sprint("p ", i)), []byte("x"))
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

// One device that answers for everything fills nobody's store.
func TestProviderOfEverything(t *testing.T) {
	s, err := newProviderStore(nil, "", []byte("self"), 10*dhtProvidersOf)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 * dhtProvidersOf {
		err := s.Put(t.Context(), providerAt(fmt.Sprint("key ", i), "greedy"), []byte("x"))
		if (err == nil) != (i < dhtProvidersOf) {
			t.Fatalf("record %d: %v", i, err)
		}
	}
	if err := s.Put(t.Context(), providerAt("key", "other"), []byte("x")); err != nil {
		t.Error(err)
	}
	if err := s.Delete(t.Context(), providerAt("key 0", "greedy")); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), providerAt("another", "greedy"), []byte("x")); err != nil {
		t.Errorf("after one was forgotten: %v", err)
	}
}

// A node that names a crowd is heard like any other: those whom several name come first.
func TestTellers(t *testing.T) {
	id := func(i int) peer.ID { return identity.DeviceKeyFromSeed([32]byte{byte(i), byte(i >> 8)}).ID().PeerID() }
	w := &tellers{told: map[peer.ID]int{}, info: map[peer.ID]peer.AddrInfo{}, news: make(chan struct{}, 1)}
	say := func(ids ...int) {
		m := &pb.Message{}
		for _, i := range ids {
			m.ProviderPeers = append(m.ProviderPeers, &pb.Message_Peer{Id: []byte(id(i))})
		}
		w.heard(m)
	}
	var crowd []int
	for i := range 500 {
		crowd = append(crowd, 100+i)
	}
	say(crowd...)
	say(1, 1, 1)
	say(2, 1)
	say()
	say(crowd[400:]...)
	say(3, 1)
	w.own([]peer.AddrInfo{{ID: id(4)}, {ID: id(1)}})
	got := w.best(identity.DeviceID{})
	if len(got) != maxProviders || got[0].Device.PeerID() != id(1) {
		t.Errorf("%d, %v first", len(got), got[0])
	}
	if n := w.told[id(1)]; n != 3 {
		t.Errorf("named by %d nodes, counted %d", 3, n)
	}
	if len(w.told) > 4+2*dhtProvidersEach {
		t.Errorf("heard of %d", len(w.told))
	}
	self, err := identity.DeviceIDFromPeer(id(1))
	if err != nil || slices.ContainsFunc(w.best(self), func(p Provider) bool { return p.Device == self }) {
		t.Errorf("finds itself: %v", err)
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
