package directory

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"hima/identity"
	"hima/node"
	"hima/node/nodetest"
	"hima/storage"
)

func TestJoinListLeave(t *testing.T) {
	dir := t.TempDir()
	db := openDB(t, dir)
	d := newDirectory(t, db, nil)
	w := newTown(t, 2, 1)
	require.Empty(t, d.Networks())
	st, added, err := d.JoinNetwork(t.Context(), "  "+strings.ToUpper(w.link.String())+"\n")
	require.NoError(t, err)
	require.True(t, added)
	require.Equal(t, w.link.ID(), st.ID)
	require.Equal(t, "town", st.Name)
	require.False(t, st.Online)
	require.Len(t, st.Bootstraps, 2)
	require.Equal(t, w.link, st.Link)
	_, added, err = d.JoinNetwork(t.Context(), w.link.String())
	require.NoError(t, err)
	require.False(t, added)

	// The same network with another bootstrap node: the user's word adds it.
	more := w.link
	more.Bootstraps = []identity.InviteDevice{
		{Device: bootKey(2).ID(), Addrs: []string{"/ip4/11.0.0.9/tcp/9"}},
		{Device: bootKey(0).ID(), Addrs: []string{"/ip4/11.0.0.8/tcp/8"}},
	}
	// A stranger's word, as in an invite, does not: bootstrap nodes stamp names.
	st, added, err = d.MeetNetwork(t.Context(), more)
	require.NoError(t, err)
	require.False(t, added)
	require.Len(t, st.Bootstraps, 2)
	require.Equal(t, []string{"/ip4/11.0.0.1/udp/1/quic-v1", "/ip4/11.0.0.8/tcp/8"}, st.Bootstraps[0].Addrs, "an address more is welcome")
	require.NotContains(t, d.nets.get(w.link.ID()).keys(), bootKey(2).ID())
	st, added, err = d.JoinNetwork(t.Context(), more.String())
	require.NoError(t, err)
	require.False(t, added)
	require.Len(t, st.Bootstraps, 3)
	require.Contains(t, d.nets.get(w.link.ID()).keys(), bootKey(2).ID())

	other := identity.NetworkLink{Name: "other", Founder: bootKey(5).ID(), Bootstraps: w.link.Bootstraps}
	_, added, err = d.MeetNetwork(t.Context(), other)
	require.NoError(t, err)
	require.True(t, added)
	require.NoError(t, db.Close())

	// After a restart without any network it is all there, in the order of joining.
	d = newDirectory(t, openDB(t, dir), nil)
	nets := d.Networks()
	require.Len(t, nets, 2)
	require.ElementsMatch(t, []string{"town", "other"}, []string{nets[0].Name, nets[1].Name})
	for _, n := range nets {
		require.NoError(t, d.LeaveNetwork(t.Context(), n.ID))
	}
	require.Empty(t, d.Networks())
	require.ErrorIs(t, d.LeaveNetwork(t.Context(), w.link.ID()), ErrNetworkUnknown)
}

func TestBadLinks(t *testing.T) {
	d := newDirectory(t, openDB(t, ""), nil)
	w := newTown(t, 1, 1)
	link := w.link.String()
	id := bootKey(0).ID().String()
	for _, s := range []string{
		"", "hima-net:", link[:len(link)-3], link + "a", "hima:" + link[9:], "/ip4/11.0.0.1/tcp/1", "/ip4/11.0.0.1/tcp/1/p2p/",
		"/p2p/" + id, "/ip4/11.0.0.1/tcp/1/p2p/12D3", strings.Repeat("/ip4/11.0.0.1", 100) + "/p2p/" + id, "https://example.org/", "/",
	} {
		_, _, err := d.JoinNetwork(t.Context(), s)
		require.ErrorIs(t, err, ErrBadLink, s)
	}
	for _, l := range []identity.NetworkLink{{}, {Name: "x", Founder: bootKey(0).ID()}} {
		_, _, err := d.MeetNetwork(t.Context(), l)
		require.ErrorIs(t, err, ErrBadLink)
	}
	d.asks = w.boots
	_, _, err := d.JoinNetwork(t.Context(), "/ip4/11.0.0.1/tcp/1/p2p/"+id)
	require.ErrorIs(t, err, ErrUnreachable)
	require.Empty(t, d.Networks())
	w.start(0, memDB(t), true)
	st, added, err := d.JoinNetwork(t.Context(), "/ip4/11.0.0.7/tcp/7/p2p/"+id)
	require.NoError(t, err)
	require.True(t, added)
	require.Equal(t, w.link.ID(), st.ID)
	require.Equal(t, "/ip4/11.0.0.7/tcp/7", st.Bootstraps[0].Addrs[0], "where it answered comes first")
}

func TestNetworksAreBounded(t *testing.T) {
	d := newDirectory(t, openDB(t, ""), nil)
	w := newTown(t, 1, 1)
	for i := range maxNetworks {
		l := w.link
		l.Name = strings.Repeat("n", i+1)
		_, _, err := d.JoinNetwork(t.Context(), l.String())
		require.NoError(t, err)
	}
	_, _, err := d.JoinNetwork(t.Context(), w.link.String())
	require.ErrorIs(t, err, ErrTooManyNetworks)
	for i := range maxBootstraps + 3 {
		l := w.link
		l.Name = "n"
		l.Bootstraps = []identity.InviteDevice{{Device: bootKey(100 + i).ID()}}
		_, _, err := d.JoinNetwork(t.Context(), l.String())
		require.NoError(t, err)
	}
	for _, n := range d.Networks() {
		require.LessOrEqual(t, len(n.Bootstraps), maxBootstraps)
		require.NotEmpty(t, n.Link.String())
	}
}

// What is due at once is done by the loops: at the start, when the first peer appears, and when something changed; a
// network joined or left while they run is taken up and given up.
func TestLoops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTownAt(t, 1, 0, nil, time.Now)
		w.start(0, memDB(t), true)
		alice := w.dir(1, memDB(t))
		w.run(alice)
		time.Sleep(10 * time.Second)
		w.join(alice)
		time.Sleep(10 * time.Second)
		rec := alice.own.record()
		require.False(t, rec.IsZero())
		key := identity.DeviceRecordKey(rec.Device)
		require.True(t, alice.Networks()[0].Published.IsZero(), "nobody is there")
		require.Zero(t, w.cloud.countPuts(key))

		// The first peer appears.
		w.cloud.add([32]byte{1}, device(100))
		time.Sleep(2 * time.Second)
		require.Equal(t, 2, w.cloud.holders(key, rec.Raw()))
		require.False(t, alice.Networks()[0].Published.IsZero())

		// Something changes, and changes again a moment later: one new record.
		alice.SetDevice(DeviceInfo{Mailboxes: []identity.MailboxRef{{Device: bootKey(1).ID()}}})
		time.Sleep(time.Second)
		alice.SetDevice(DeviceInfo{Mailboxes: []identity.MailboxRef{{Device: bootKey(0).ID()}}})
		time.Sleep(10 * time.Second)
		rec = alice.own.record()
		require.Equal(t, bootKey(0).ID(), rec.Mailboxes[0].Device)
		require.Equal(t, 2, w.cloud.holders(key, rec.Raw()))
		require.Equal(t, 2, w.cloud.countPuts(key))

		// A name that could not be stamped is, when the bootstrap node is seen.
		reg := w.boots.get(bootKey(0).ID())
		w.boots.set(bootKey(0).ID(), nil)
		st, err := alice.ClaimName(t.Context(), w.link.ID(), "alice")
		require.NoError(t, err)
		require.Equal(t, NamePending, st.State)
		time.Sleep(10 * time.Minute)
		w.boots.set(bootKey(0).ID(), reg)
		alice.bootstrapUp(bootKey(0).ID())
		time.Sleep(5 * time.Second)
		require.Equal(t, NameConfirmed, alice.Networks()[0].Username.State)
		require.Equal(t, []string{ServeDHT, ServeNames}, alice.Networks()[0].Bootstraps[0].Serves)

		require.NoError(t, alice.LeaveNetwork(t.Context(), w.link.ID()))
		time.Sleep(time.Second)
		_, err = alice.FetchDevice(t.Context(), device(9))
		require.ErrorIs(t, err, ErrNoNetwork)
		var told []string
		published := 0
		alice.mu.Lock()
		for _, e := range alice.online {
			if e.What == "published" {
				published++
				continue
			}
			told = append(told, e.What)
		}
		alice.mu.Unlock()
		require.Equal(t, []string{"joined", "asked", "left"}, told)
		require.GreaterOrEqual(t, published, 3, "at first, after the change, and with the name")
	})
}

// A table that cannot be opened, or that ends by itself, is tried again.
func TestTableIsOpenedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTownAt(t, 1, 3, nil, time.Now)
		p := w.dir(1, memDB(t))
		fails := 0
		p.openTable = func(*joined) (dht, error) {
			fails++
			switch fails {
			case 1:
				return nil, errors.New("no room")
			case 2:
				return shortTable{p.table}, nil
			}
			return p.table, nil
		}
		w.join(p)
		w.run(p)
		time.Sleep(2*openPause + time.Second)
		require.NotNil(t, p.nets.list()[0].dht())
		require.Equal(t, 3, fails)
	})
}

type shortTable struct{ *cloudTable }

func (shortTable) Run(context.Context) error { return errors.New("broken") }

// Over real nodes: an address becomes a network, its node is asked and kept, and a name is claimed and looked up.
func TestOverTheWire(t *testing.T) {
	nodes := nodetest.Loopback(t, 3)
	founder := identity.DeviceKeyFromSeed(seed(77))
	boot := nodetest.LoopbackKey(t, founder)
	link := identity.NetworkLink{Name: "wire", Founder: founder.ID(), Bootstraps: []identity.InviteDevice{{Device: founder.ID(), Addrs: boot.Addrs()}}}
	reg, err := NewRegister(RegisterConfig{
		DB: openDB(t, ""), Node: boot, Key: founder, Link: func() identity.NetworkLink { return link },
		Serves: []string{ServeNames, ServeMailbox}, Fresh: true, Agent: "hima/test",
	})
	require.NoError(t, err)
	reg.bits = testBits
	d, err := New(Config{
		DB: openDB(t, ""), Node: nodes[0], Certificate: identity.NewCertificate(accountKey(1), nodes[0].ID(), day),
		AccountKey: func() (identity.AccountKey, bool) { return accountKey(1), true },
	})
	require.NoError(t, err)
	d.workBits = testBits
	addr := boot.Addrs()[0] + "/p2p/" + founder.ID().String()
	read, err := ReadLink(t.Context(), nodes[1], addr)
	require.NoError(t, err)
	require.Equal(t, link.ID(), read.ID())
	_, added, err := d.JoinNetwork(t.Context(), addr)
	require.NoError(t, err)
	require.True(t, added)
	require.NoError(t, CheckName(t.Context(), nodes[2], link, "ann", identity.AccountID{}))
	st, err := d.ClaimName(t.Context(), link.ID(), "ann")
	require.NoError(t, err)
	require.Equal(t, NameConfirmed, st.State)
	require.ErrorIs(t, CheckName(t.Context(), nodes[2], link, "ann", account(2)), ErrNameTaken)
	require.ErrorIs(t, CheckName(t.Context(), nodes[2], link, "Ann", account(2)), ErrBadName)
	require.EqualValues(t, 1, reg.Stats().Stamped)
	c, err := d.asks.card(t.Context(), founder.ID(), nil)
	require.NoError(t, err)
	require.Equal(t, []string{ServeNames, ServeMailbox}, c.Serves)
	require.Equal(t, "hima/test", c.Agent)

	// One that serves no names does not speak the protocol; one that is no bootstrap node at all speaks neither.
	_, err = streams{nodes[0]}.card(t.Context(), nodes[1].ID(), nodes[1].Addrs())
	require.ErrorIs(t, err, node.ErrNotSpoken)
	nobody := link
	nobody.Bootstraps = []identity.InviteDevice{{Device: nodes[1].ID(), Addrs: nodes[1].Addrs()}}
	require.ErrorIs(t, CheckName(t.Context(), nodes[2], nobody, "ann", account(2)), ErrUnreachable)
	_, _, err = d.JoinNetwork(t.Context(), nodes[1].Addrs()[0]+"/p2p/"+nodes[1].ID().String())
	require.ErrorIs(t, err, ErrUnreachable)
}

func TestTendedIsForgotten(t *testing.T) {
	w := newTown(t, 1, 1)
	p := w.come(1)
	j := p.nets.list()[0]
	p.setTended(j, "/hima-id/x", tended{fetched: w.now()})
	require.NoError(t, p.LeaveNetwork(t.Context(), j.id))
	require.NoError(t, p.db.View(func(tx *storage.Tx) error {
		for _, prefix := range []string{"d/n/", "d/m/", "d/s/", "d/t/"} {
			n, err := count(tx, []byte(prefix))
			require.NoError(t, err)
			require.Zero(t, n, prefix)
		}
		return nil
	}))
}
