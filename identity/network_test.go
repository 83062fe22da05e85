package identity_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"hima/identity"
	"hima/internal/wire/pb"
)

// signDevice is sign with a device's key.
func signDevice(seedByte byte, d identity.Domain, payload proto.Message) []byte {
	b, err := proto.Marshal(payload)
	if err != nil {
		panic(err)
	}
	out, err := proto.Marshal(&pb.Signed{Payload: b, Signature: deviceKey(seedByte).Sign(d, b)})
	if err != nil {
		panic(err)
	}
	return out
}

func deviceKey(b byte) identity.DeviceKey { return identity.DeviceKeyFromSeed(seed(b)) }

func aLink() identity.NetworkLink {
	return identity.NetworkLink{
		Name: "home", Founder: device(20),
		Bootstraps: []identity.InviteDevice{
			{Device: device(20), Addrs: []string{"/ip4/203.0.113.5/tcp/4500", "/dns4/hima.example/udp/4500/quic-v1"}},
			{Device: device(21)},
		},
	}
}

func TestNetworkIDIsOfNameAndFounder(t *testing.T) {
	id := aLink().ID()
	require.Equal(t, identity.NewNetworkID("home", device(20)), id)
	require.NotEqual(t, identity.NewNetworkID("home", device(21)), id)
	require.NotEqual(t, identity.NewNetworkID("hom", device(20)), id)
	require.Len(t, id.String(), 52)
	got, err := identity.ParseNetworkID(id.String())
	require.NoError(t, err)
	require.Equal(t, id, got)
	var text identity.NetworkID
	require.NoError(t, text.UnmarshalText([]byte(id.String())))
	require.Equal(t, id, text)
	for _, s := range []string{"", id.String()[1:], id.String() + "a", strings.ToUpper(id.String()), id.String()[:51] + "b", "0" + id.String()[1:]} {
		_, err := identity.ParseNetworkID(s)
		require.ErrorIs(t, err, identity.ErrMalformed, s)
	}
	_, err = identity.NetworkIDFromBytes(make([]byte, 31))
	require.ErrorIs(t, err, identity.ErrMalformed)
}

func TestNetworkLinkRoundTrip(t *testing.T) {
	l := aLink()
	s := l.String()
	t.Logf("a link with two nodes has %d characters: %s", len(s), s)
	for _, text := range []string{s, strings.ToUpper(s), " " + s[:30] + "\n  " + s[30:] + "\u200b\n"} {
		got, err := identity.ParseNetworkLink(text)
		require.NoError(t, err)
		require.Equal(t, l, got)
	}
	require.Equal(t, []identity.DeviceID{device(20), device(21)}, l.Keys())
	l.Founder = device(22)
	require.Equal(t, []identity.DeviceID{device(22), device(20), device(21)}, l.Keys())
}

func TestNetworkLinkRoundTripAny(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := identity.NetworkLink{
			Name:    rapid.StringN(1, 16, identity.MaxNetworkName).Draw(t, "name"),
			Founder: identity.DeviceKeyFromSeed(genSeed(t, "founder")).ID(),
		}
		for i := range rapid.IntRange(1, identity.MaxBootstraps).Draw(t, "nodes") {
			d := identity.InviteDevice{Device: device(byte(40 + i))}
			for range rapid.IntRange(0, identity.MaxInviteAddrs).Draw(t, "addrs") {
				d.Addrs = append(d.Addrs, fmt.Sprintf("/ip4/10.0.%d.1/tcp/%d", rapid.Byte().Draw(t, "b"), rapid.Uint16().Draw(t, "port")))
			}
			l.Bootstraps = append(l.Bootstraps, d)
		}
		got, err := identity.ParseNetworkLink(l.String())
		require.NoError(t, err)
		require.Equal(t, l, got)
		in := identity.Invite{Account: key(1).ID(), Networks: []identity.NetworkLink{l}}
		back, err := identity.ParseInvite(in.String())
		require.NoError(t, err)
		require.Equal(t, in, back)
	})
}

func TestNetworkLinkTampered(t *testing.T) {
	s := aLink().String()
	for i := range s {
		bad := []byte(s)
		if bad[i]++; bad[i] == '{' {
			bad[i] = 'a'
		}
		_, err := identity.ParseNetworkLink(string(bad))
		require.ErrorIs(t, err, identity.ErrMalformed, "character %d", i)
		_, err = identity.ParseNetworkLink(s[:i])
		require.ErrorIs(t, err, identity.ErrMalformed, "cut at %d", i)
	}
	// One kind of link with the scheme of the other is neither.
	_, err := identity.ParseNetworkLink("hima-net:" + strings.TrimPrefix(anInvite().String(), "hima:"))
	require.ErrorIs(t, err, identity.ErrMalformed)
	_, err = identity.ParseInvite("hima:" + strings.TrimPrefix(s, "hima-net:"))
	require.ErrorIs(t, err, identity.ErrMalformed)
}

func TestNetworkLinkRefuses(t *testing.T) {
	d := device(20).Bytes()
	node := &pb.InviteDevice{Device: d}
	for name, m := range map[string]*pb.NetworkLink{
		"no name":       {Founder: d, Bootstraps: []*pb.InviteDevice{node}},
		"long name":     {Name: strings.Repeat("a", 65), Founder: d, Bootstraps: []*pb.InviteDevice{node}},
		"no founder":    {Name: "a", Bootstraps: []*pb.InviteDevice{node}},
		"no node":       {Name: "a", Founder: d},
		"node twice":    {Name: "a", Founder: d, Bootstraps: []*pb.InviteDevice{node, node}},
		"no key":        {Name: "a", Founder: d, Bootstraps: []*pb.InviteDevice{{}}},
		"five nodes":    {Name: "a", Founder: d, Bootstraps: []*pb.InviteDevice{node, node, node, node, node}},
		"nine addrs":    {Name: "a", Founder: d, Bootstraps: []*pb.InviteDevice{{Device: d, Addrs: make([][]byte, 9)}}},
		"empty address": {Name: "a", Founder: d, Bootstraps: []*pb.InviteDevice{{Device: d, Addrs: [][]byte{{}}}}},
	} {
		b, err := proto.Marshal(m)
		require.NoError(t, err)
		_, err = identity.ParseNetworkLink(identity.NetworkLinkText(append([]byte{1}, b...)))
		require.ErrorIs(t, err, identity.ErrMalformed, name)
	}
	require.Empty(t, identity.NetworkLink{Name: "a", Founder: device(1)}.String(), "no bootstrap node")
	many := identity.Invite{Account: key(1).ID(), Networks: []identity.NetworkLink{aLink(), aLink(), aLink()}}
	got, err := identity.ParseInvite(many.String())
	require.NoError(t, err)
	require.Len(t, got.Networks, identity.MaxInviteNetworks)
}

// TestFullLinksAreRead: the bound on text has to leave room for the largest link that String writes.
func TestFullLinksAreRead(t *testing.T) {
	long := "/dns4/" + strings.Repeat("a", 60) + "." + strings.Repeat("b", 60) + "." + strings.Repeat("c", 50) + "/udp/65535/quic-v1"
	nodes := func() (out []identity.InviteDevice) {
		for i := range byte(identity.MaxBootstraps) {
			d := identity.InviteDevice{Device: device(50 + i)}
			for range identity.MaxInviteAddrs {
				d.Addrs = append(d.Addrs, long)
			}
			out = append(out, d)
		}
		return out
	}
	l := identity.NetworkLink{Name: strings.Repeat("n", 64), Founder: device(9), Bootstraps: nodes()}
	in := identity.Invite{
		Account: key(1).ID(), Token: identity.NewInviteToken(), Username: strings.Repeat("u", 128),
		Devices: nodes(), Networks: []identity.NetworkLink{l, l},
	}
	s := in.String()
	t.Logf("the largest invite link has %d characters", len(s))
	got, err := identity.ParseInvite(s)
	require.NoError(t, err)
	require.Equal(t, in, got)
}

func aCard(t require.TestingT) identity.NetworkCard {
	c, err := identity.NewNetworkCard(deviceKey(21), identity.NetworkCard{
		Name: "home", Founder: device(20), Serves: []string{"dht", "relay", "mailbox", "names"}, Time: day, Agent: "hima/0.1",
		Addrs: []string{"/ip4/203.0.113.5/tcp/4500", "nonsense"},
	})
	require.NoError(t, err)
	return c
}

func TestNetworkCard(t *testing.T) {
	c := aCard(t)
	got, err := identity.ParseNetworkCard(c.Raw())
	require.NoError(t, err)
	require.Equal(t, c, got)
	require.Equal(t, device(21), got.Device)
	require.Equal(t, aLink().ID(), got.Network())
	require.Equal(t, identity.NetworkLink{
		Name: "home", Founder: device(20),
		Bootstraps: []identity.InviteDevice{{Device: device(21), Addrs: []string{"/ip4/203.0.113.5/tcp/4500"}}},
	}, got.Link())
	raw := c.Raw()
	for i := range raw {
		bad := bytes.Clone(raw)
		bad[i] ^= 1
		_, err := identity.ParseNetworkCard(bad)
		require.Error(t, err, "byte %d", i)
	}
	for name, x := range map[string]identity.NetworkCard{
		"no name":      {Founder: device(20)},
		"nine serves":  {Name: "a", Founder: device(20), Serves: make([]string, 9)},
		"empty serves": {Name: "a", Founder: device(20), Serves: []string{""}},
		"long agent":   {Name: "a", Founder: device(20), Agent: strings.Repeat("a", 65)},
		"bad agent":    {Name: "a", Founder: device(20), Agent: "\xff"},
	} {
		_, err := identity.NewNetworkCard(deviceKey(21), x)
		require.ErrorIs(t, err, identity.ErrMalformed, name)
	}
	m := &pb.NetworkCard{Name: "a", Founder: device(20).Bytes(), Device: device(21).Bytes()}
	_, err = identity.ParseNetworkCard(signDevice(20, identity.DomainNetworkCard, m))
	require.ErrorIs(t, err, identity.ErrBadSignature, "signed by another")
	_, err = identity.ParseNetworkCard(signDevice(21, identity.DomainCustody, m))
	require.ErrorIs(t, err, identity.ErrBadSignature, "for another purpose")
	m.TimeMs = -1
	_, err = identity.ParseNetworkCard(signDevice(21, identity.DomainNetworkCard, m))
	require.ErrorIs(t, err, identity.ErrMalformed)
	require.True(t, identity.NetworkCard{}.IsZero())
	require.WithinDuration(t, day, got.Time, time.Millisecond)
}
