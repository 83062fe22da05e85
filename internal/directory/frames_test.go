package directory

import (
	"bufio"
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/wire"
	"hima/internal/wire/pb"
	"hima/storage"
)

func frame(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := wire.Append(nil, m)
	require.NoError(t, err)
	return b
}

func seedStamp(f testing.TB) (identity.NetworkLink, identity.NameStamp) {
	f.Helper()
	link := identity.NetworkLink{Name: "town", Founder: bootKey(0).ID(), Bootstraps: []identity.InviteDevice{{Device: bootKey(0).ID()}}}
	c, err := identity.NewNameClaim(accountKey(1), link.ID(), "ann", day)
	require.NoError(f, err)
	s, err := identity.NewNameStamp(bootKey(0), c, day)
	require.NoError(f, err)
	return link, s
}

// FuzzNetworkFrame: an answer of /hima/network/1 is refused, or a card of who signed it whose network fits its link.
func FuzzNetworkFrame(f *testing.F) {
	c, err := identity.NewNetworkCard(bootKey(0), identity.NetworkCard{
		Name: "town", Founder: bootKey(0).ID(), Serves: []string{ServeNames}, Time: day, Addrs: []string{"/ip4/11.0.0.1/tcp/1"},
	})
	require.NoError(f, err)
	var m pb.Signed
	require.NoError(f, proto.Unmarshal(c.Raw(), &m))
	f.Add(frame(f, &m))
	f.Add(frame(f, &m)[:40])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		var m pb.Signed
		if wire.Read(bufio.NewReader(bytes.NewReader(b)), wire.MaxNetworkFrame, &m) != nil {
			return
		}
		c, err := decodeCard(&m)
		if err != nil {
			return
		}
		if l := c.Link(); l.ID() != c.Network() || l.String() == "" || l.Bootstraps[0].Device != c.Device {
			t.Fatalf("card %+v makes link %+v", c, l)
		}
	})
}

// FuzzNamesAnswer: an answer of /hima/names/1 is refused, or says of a claim nothing that is not signed by the network.
func FuzzNamesAnswer(f *testing.F) {
	link, s := seedStamp(f)
	f.Add(frame(f, &pb.NameAnswer{Code: pb.NameAnswer_CODE_STAMPED, Stamp: s.Raw()}))
	f.Add(frame(f, &pb.NameAnswer{Code: pb.NameAnswer_CODE_TAKEN, Stamp: s.Raw(), Rebuilding: true}))
	f.Add(frame(f, &pb.NameAnswer{Code: pb.NameAnswer_CODE_REBUILDING}))
	f.Add([]byte{0})
	claim, err := identity.NewNameClaim(accountKey(2), link.ID(), "ann", day)
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, b []byte) {
		var m pb.NameAnswer
		if wire.Read(bufio.NewReader(bytes.NewReader(b)), wire.MaxNamesFrame, &m) != nil {
			return
		}
		a, err := checkNameAnswer(&m)
		if err != nil {
			return
		}
		if got, err := judgeClaim(a, claim, link.Keys()); err == nil && !stampFits(got, link.ID(), "ann", link.Keys()) {
			t.Fatal("a stamp that does not fit")
		}
	})
}

// FuzzNamesRequest: whatever is asked, a register answers, and stamps nothing without work.
func FuzzNamesRequest(f *testing.F) {
	link, s := seedStamp(f)
	f.Add(frame(f, lookupName("ann")))
	f.Add(frame(f, registerRequest(s.Claim)))
	f.Add(frame(f, returnRequest(s)))
	f.Add(frame(f, returnRequest(s, s)))
	f.Add([]byte{0})
	db, err := storage.Open(storage.Config{})
	require.NoError(f, err)
	f.Cleanup(func() { db.Close() })
	r, err := newRegister(RegisterConfig{
		DB: db, Key: bootKey(0), Link: func() identity.NetworkLink { return link }, Fresh: true,
		Now: func() time.Time { return day },
	})
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, b []byte) {
		var q pb.NameRequest
		if wire.Read(bufio.NewReader(bytes.NewReader(b)), wire.MaxNamesFrame, &q) != nil {
			return
		}
		before := r.Stats()
		a := r.answer(context.Background(), &q)
		if _, err := checkNameAnswer(a); err != nil {
			t.Fatalf("an answer that nobody can read: %v", err)
		}
		if frame := wire.Size(a); frame > wire.MaxNamesFrame {
			t.Fatalf("an answer of %d bytes", frame)
		}
		if after := r.Stats(); after.Stamped != before.Stamped {
			t.Fatal("stamped without work")
		}
		if a.Code == pb.NameAnswer_CODE_UNSPECIFIED {
			t.Fatal("an answer without a code")
		}
	})
}

// FuzzSplitAddr: what is taken for an address of a bootstrap node can be written again.
func FuzzSplitAddr(f *testing.F) {
	f.Add("/ip4/11.0.0.1/tcp/1/p2p/" + bootKey(0).ID().String())
	f.Add("/p2p/x")
	f.Fuzz(func(t *testing.T, s string) {
		dev, addr, err := splitAddr(s)
		if err != nil {
			return
		}
		again, where, err := splitAddr(addr + "/p2p/" + dev.String())
		if err != nil || again != dev || where != addr {
			t.Fatalf("%q: %v, %q, %v", s, again, where, err)
		}
	})
}
