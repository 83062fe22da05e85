package identity_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"hima/identity"
	"hima/internal/wire/pb"
)

func anInvite() identity.Invite {
	return identity.Invite{
		Account:  key(1).ID(),
		Token:    identity.InviteToken(bytes.Repeat([]byte{7}, 16)),
		Username: "alice",
		Devices: []identity.InviteDevice{{Device: device(2), Addrs: []string{
			"/ip4/192.168.1.17/tcp/4500", "/ip4/192.168.1.17/udp/4500/quic-v1",
			"/ip6/fd00:1234::17/tcp/4500", "/ip6/fd00:1234::17/udp/4500/quic-v1",
		}}},
	}
}

func TestInviteRoundTrip(t *testing.T) {
	in := anInvite()
	s := in.String()
	t.Logf("a typical link has %d characters: %s", len(s), s)
	require.LessOrEqual(t, len(s), 400)
	got, err := identity.ParseInvite(s)
	require.NoError(t, err)
	require.Equal(t, in, got)
	require.Equal(t, s, got.String())
	bare := identity.Invite{Account: key(1).ID()}
	got, err = identity.ParseInvite(bare.String())
	require.NoError(t, err)
	require.Equal(t, bare, got)
	require.True(t, got.Token.IsZero())
}

func TestInviteRoundTripAny(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := identity.Invite{
			Account:  identity.AccountKeyFromSeed(genSeed(t, "account")).ID(),
			Token:    identity.InviteToken(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "token")),
			Username: rapid.StringN(0, 32, 128).Draw(t, "username"),
		}
		for i := range rapid.IntRange(0, identity.MaxInviteDevices).Draw(t, "devices") {
			d := identity.InviteDevice{Device: identity.DeviceKeyFromSeed(genSeed(t, fmt.Sprint("device ", i))).ID()}
			for range rapid.IntRange(0, identity.MaxInviteAddrs).Draw(t, "addrs") {
				d.Addrs = append(d.Addrs, fmt.Sprintf("/ip4/10.%d.%d.1/tcp/%d", rapid.Byte().Draw(t, "b"), rapid.Byte().Draw(t, "c"),
					rapid.Uint16().Draw(t, "port")))
			}
			in.Devices = append(in.Devices, d)
		}
		got, err := identity.ParseInvite(in.String())
		require.NoError(t, err)
		require.Equal(t, in, got)
	})
}

// TestInviteTolerance: what mail programs, terminals and QR codes do to a link does not matter.
func TestInviteTolerance(t *testing.T) {
	s := anInvite().String()
	for name, text := range map[string]string{
		"upper":   strings.ToUpper(s),
		"around":  " \t\r\n" + s + "\n",
		"wrapped": s[:40] + "\r\n  " + s[40:80] + "\u00a0\u3000" + s[80:100] + "\u200b" + s[100:] + "\ufeff",
		"scheme":  "Hima:" + s[5:],
		"spaced":  strings.Join(strings.Split(s, ""), " "),
	} {
		got, err := identity.ParseInvite(text)
		require.NoError(t, err, name)
		require.Equal(t, anInvite(), got, name)
	}
}

func TestInviteTampered(t *testing.T) {
	s := anInvite().String()
	for i := range s {
		bad := []byte(s)
		if bad[i]++; bad[i] == '{' {
			bad[i] = 'a'
		}
		_, err := identity.ParseInvite(string(bad))
		require.ErrorIs(t, err, identity.ErrMalformed, "character %d", i)
		_, err = identity.ParseInvite(s[:i])
		require.ErrorIs(t, err, identity.ErrMalformed, "cut at %d", i)
	}
}

// link makes a link of any content, with a right checksum.
func link(version byte, m *pb.Invite) string {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	b = append([]byte{version}, b...)
	sum := sha256.Sum256(append([]byte("hima/invite/1\x00"), b...))
	return "hima:" + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(append(b, sum[:4]...)))
}

func TestParseInviteRefuses(t *testing.T) {
	a, d := key(1).ID().Bytes(), device(2).Bytes()
	_, err := identity.ParseInvite(link(1, &pb.Invite{Account: a}))
	require.NoError(t, err)
	many := &pb.Invite{Account: a}
	for range identity.MaxInviteDevices + 1 {
		many.Devices = append(many.Devices, &pb.InviteDevice{Device: d})
	}
	addrs := func(b ...[]byte) *pb.Invite {
		return &pb.Invite{Account: a, Devices: []*pb.InviteDevice{{Device: d, Addrs: b}}}
	}
	tcp := []byte{4, 10, 0, 0, 1, 6, 0x10, 0x00}
	for name, s := range map[string]string{
		"empty": "", "scheme only": "hima:", "other scheme": "http://x", "not base32": "hima:01890", "no scheme": anInvite().String()[5:],
		"huge":           "hima:" + strings.Repeat("a", 1<<20),
		"version 2":      link(2, &pb.Invite{Account: a}),
		"no account":     link(1, &pb.Invite{}),
		"zero account":   link(1, &pb.Invite{Account: make([]byte, 32)}),
		"short token":    link(1, &pb.Invite{Account: a, Token: a[:15]}),
		"long token":     link(1, &pb.Invite{Account: a, Token: a[:17]}),
		"long name":      link(1, &pb.Invite{Account: a, Username: strings.Repeat("a", 129)}),
		"5 devices":      link(1, many),
		"no device":      link(1, &pb.Invite{Account: a, Devices: []*pb.InviteDevice{{}}}),
		"9 addresses":    link(1, addrs(tcp, tcp, tcp, tcp, tcp, tcp, tcp, tcp, tcp)),
		"empty address":  link(1, addrs([]byte{})),
		"garbage":        link(1, addrs([]byte{0xff, 0xff, 0xff})),
		"cut address":    link(1, addrs(tcp[:6])),
		"long address":   link(1, addrs(bytes.Repeat(tcp, 30))),
		"garbage inside": "hima:" + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString([]byte("garbage"))),
	} {
		_, err := identity.ParseInvite(s)
		require.ErrorIs(t, err, identity.ErrMalformed, name)
	}
}

func TestInviteStringStaysInBounds(t *testing.T) {
	in := anInvite()
	in.Username = strings.Repeat("a", 200)
	in.Devices[0].Addrs = []string{"nonsense", "/ip4/1.2.3.4/tcp/1"}
	for i := range 20 {
		in.Devices[0].Addrs = append(in.Devices[0].Addrs, fmt.Sprintf("/ip4/1.2.3.4/tcp/%d", i+2))
	}
	for len(in.Devices) < 10 {
		in.Devices = append(in.Devices, in.Devices[0])
	}
	got, err := identity.ParseInvite(in.String())
	require.NoError(t, err)
	require.Len(t, got.Devices, identity.MaxInviteDevices)
	require.Len(t, got.Devices[0].Addrs, identity.MaxInviteAddrs)
	require.Equal(t, "/ip4/1.2.3.4/tcp/1", got.Devices[0].Addrs[0])
	require.Empty(t, got.Username)
}

func TestInviteToken(t *testing.T) {
	tok := identity.NewInviteToken()
	require.NotEqual(t, tok, identity.NewInviteToken())
	got, err := identity.ParseInviteToken(tok.String())
	require.NoError(t, err)
	require.Equal(t, tok, got)
	for _, s := range []string{"", "00", strings.Repeat("0", 33), strings.Repeat("g", 32)} {
		_, err := identity.ParseInviteToken(s)
		require.ErrorIs(t, err, identity.ErrMalformed)
	}
}

func TestSafety(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := identity.AccountKeyFromSeed(genSeed(t, "a")).ID()
		b := identity.AccountKeyFromSeed(genSeed(t, "b")).ID()
		c := identity.AccountKeyFromSeed(genSeed(t, "c")).ID()
		digits := identity.SafetyDigits(a, b)
		require.Regexp(t, `^\d{5}( \d{5}){11}$`, digits)
		require.Equal(t, digits, identity.SafetyDigits(b, a))
		require.Equal(t, identity.SafetyQR(a, b), identity.SafetyQR(b, a))
		if c != a && c != b {
			require.NotEqual(t, digits, identity.SafetyDigits(a, c))
			require.NotEqual(t, identity.SafetyQR(a, b), identity.SafetyQR(a, c))
		}
		require.Regexp(t, `^HIMA-VERIFY:HIMA1[A-Z0-9]{58}\+HIMA1[A-Z0-9]{58}$`, identity.SafetyQR(a, b))
	})
}
