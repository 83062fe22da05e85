package identity_test

import (
	"bytes"
	"crypto/sha256"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"hima/identity"
	"hima/internal/wire/pb"
)

// genesisOf is a genesis header of account a on device d. That package feed makes the same is held by a test of groups.
func genesisOf(a, d byte) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(genesisPB(a, d))
	if err != nil {
		panic(err)
	}
	return b
}

func genesisPB(a, d byte) *pb.Header {
	hash := sha256.Sum256([]byte{a})
	nonce := seed(99)
	return &pb.Header{
		Feed: 1, Account: key(a).ID().Bytes(), Device: device(d).Bytes(), Seq: 1, Clock: 1, TimeMs: day.UnixMilli(), Kind: 64,
		BodyHash: hash[:], BodyLen: 64, Certificate: cert(a, d).Raw(), Nonce: nonce[:],
	}
}

func groupOf(genesis []byte) identity.GroupID { return sha256.Sum256(genesis) }

func aConsent(t require.TestingT) identity.Consent {
	c, err := identity.NewConsent(deviceKey(3), identity.Consent{
		Group: groupOf(genesisOf(1, 2)), Certificate: cert(4, 3), Applied: true, Message: "我是小葵", Time: day, Expires: day.AddDate(0, 0, 30),
	})
	require.NoError(t, err)
	return c
}

// transfer hands the group of the genesis over: account a, whose device is a+40, to account b.
func transfer(t require.TestingT, genesis []byte, a, b byte) identity.TransferProof {
	p, err := identity.NewTransferProof(deviceKey(a+40), identity.TransferProof{
		Group: groupOf(genesis), Certificate: cert(a, a+40), To: key(b).ID(), Time: day,
	})
	require.NoError(t, err)
	return p
}

func chainOf(t require.TestingT, genesis []byte, accounts ...byte) (out []identity.TransferProof) {
	for i := range len(accounts) - 1 {
		out = append(out, transfer(t, genesis, accounts[i], accounts[i+1]))
	}
	return out
}

// cardOf is a card of the group that account 1 founded, by the last of the owners.
func cardOf(t require.TestingT, owners ...byte) identity.GroupCard {
	genesis := genesisOf(1, 41)
	owner := owners[len(owners)-1]
	c, err := identity.NewGroupCard(deviceKey(owner+40), identity.GroupCard{
		Genesis: genesis, Transfers: chainOf(t, genesis, owners...), Certificate: cert(owner, owner+40),
		Name: "葵的群", Description: "about sunflowers", Size: 12, Join: "apply",
		Admins: []identity.GroupContact{{Account: key(owner).ID(), Devices: []identity.InviteDevice{{Device: device(owner + 40), Addrs: []string{"/ip4/192.0.2.7/tcp/4500"}}}}},
		Time:   day, Expires: day.Add(identity.GroupCardLifetime),
	})
	require.NoError(t, err)
	return c
}

func aGroupLink() identity.GroupLink {
	return identity.GroupLink{
		Group: groupOf(genesisOf(1, 2)), Name: "葵的群", Token: identity.InviteToken(bytes.Repeat([]byte{7}, 16)),
		Asks:     identity.GroupContact{Account: key(1).ID(), Devices: []identity.InviteDevice{{Device: device(2), Addrs: []string{"/ip4/192.168.1.17/tcp/4500"}}}},
		Networks: []identity.NetworkLink{aLink()}, Expires: day,
	}
}

// tampered holds that no changed byte and no cut passes.
func tampered(t *testing.T, raw []byte, parse func([]byte) error) {
	t.Helper()
	require.NoError(t, parse(raw))
	for i := range raw {
		bad := append([]byte(nil), raw...)
		bad[i] ^= 1
		require.Error(t, parse(bad), "byte %d", i)
		require.Error(t, parse(raw[:i]), "cut at %d", i)
	}
	require.Error(t, parse(append(append([]byte(nil), raw...), 0)))
}

func TestGroupID(t *testing.T) {
	id := groupOf(genesisOf(1, 2))
	got, err := identity.GroupIDFromBytes(id.Bytes())
	require.NoError(t, err)
	require.Equal(t, id, got)
	require.Len(t, id.String(), 64)
	for _, b := range [][]byte{nil, make([]byte, 32), make([]byte, 31), make([]byte, 33)} {
		_, err := identity.GroupIDFromBytes(b)
		require.ErrorIs(t, err, identity.ErrMalformed)
	}
	a, b := aLink().ID(), identity.NewNetworkID("home", device(21))
	require.NotEqual(t, identity.GroupNameKey(a, "x"), identity.GroupNameKey(b, "x"), "a name is another place on each network")
	require.NotEqual(t, identity.GroupNameKey(a, "x"), identity.GroupNameKey(a, "y"))
}

func TestConsent(t *testing.T) {
	c := aConsent(t)
	got, err := identity.ParseConsent(c.Raw())
	require.NoError(t, err)
	require.Equal(t, c, got)
	require.Equal(t, key(4).ID(), got.Account)
	t.Logf("a consent has %d bytes", len(c.Raw()))
	tampered(t, c.Raw(), func(b []byte) error { _, err := identity.ParseConsent(b); return err })

	require.NoError(t, c.Validate(c.Expires.Add(identity.ClockSlack)))
	require.ErrorIs(t, c.Validate(c.Expires.Add(identity.ClockSlack+1)), identity.ErrExpired)
	require.NoError(t, c.Validate(day.Add(-identity.ClockSlack)))
	require.ErrorIs(t, c.Validate(day.Add(-identity.ClockSlack-1)), identity.ErrFromFuture)

	for name, change := range map[string]func(*identity.Consent){
		"no group":       func(c *identity.Consent) { c.Group = identity.GroupID{} },
		"no certificate": func(c *identity.Consent) { c.Certificate = identity.Certificate{} },
		"another device": func(c *identity.Consent) { c.Certificate = cert(4, 5) },
		"long message":   func(c *identity.Consent) { c.Message = strings.Repeat("a", identity.MaxConsentMessage+1) },
		"no UTF-8":       func(c *identity.Consent) { c.Message = "\xff" },
		"31 days":        func(c *identity.Consent) { c.Expires = day.Add(identity.ConsentLifetime + time.Millisecond) },
		"over at once":   func(c *identity.Consent) { c.Expires = day.Add(-time.Millisecond) },
	} {
		bad := aConsent(t)
		change(&bad)
		_, err := identity.NewConsent(deviceKey(3), bad)
		require.ErrorIs(t, err, identity.ErrMalformed, name)
	}
	long := c
	long.Message = strings.Repeat("葵", identity.MaxConsentMessage/3)
	long, err = identity.NewConsent(deviceKey(3), long)
	require.NoError(t, err)
	_, err = identity.ParseConsent(long.Raw())
	require.NoError(t, err, "the longest sentence fits")
}

func TestConsentRefuses(t *testing.T) {
	good := func() *pb.Consent {
		return &pb.Consent{Group: groupOf(nil).Bytes(), Account: key(4).ID().Bytes(), Certificate: cert(4, 3).Raw(), TimeMs: 5, ExpiresMs: 6}
	}
	signed := func(m *pb.Consent) []byte { return signDevice(3, identity.DomainGroupConsent, m) }
	_, err := identity.ParseConsent(signed(good()))
	require.NoError(t, err)
	for name, change := range map[string]func(*pb.Consent){
		"no group":           func(m *pb.Consent) { m.Group = nil },
		"zero group":         func(m *pb.Consent) { m.Group = make([]byte, 32) },
		"another account":    func(m *pb.Consent) { m.Account = key(1).ID().Bytes() },
		"no account":         func(m *pb.Consent) { m.Account = nil },
		"no certificate":     func(m *pb.Consent) { m.Certificate = nil },
		"time":               func(m *pb.Consent) { m.TimeMs = -1 },
		"no expiry":          func(m *pb.Consent) { m.ExpiresMs = 0 },
		"expiry far":         func(m *pb.Consent) { m.ExpiresMs = 5 + identity.ConsentLifetime.Milliseconds() + 1 },
		"long message":       func(m *pb.Consent) { m.Message = strings.Repeat("a", identity.MaxConsentMessage+1) },
		"broken certificate": func(m *pb.Consent) { m.Certificate = cert(4, 3).Raw()[1:] },
	} {
		m := good()
		change(m)
		_, err := identity.ParseConsent(signed(m))
		require.ErrorIs(t, err, identity.ErrMalformed, name)
	}
	_, err = identity.ParseConsent(signDevice(2, identity.DomainGroupConsent, good()))
	require.ErrorIs(t, err, identity.ErrBadSignature, "signed by a device that is not the certified one")
	_, err = identity.ParseConsent(signDevice(3, identity.DomainGroupTransfer, good()))
	require.ErrorIs(t, err, identity.ErrBadSignature, "signed for something else")
}

func TestTransferProof(t *testing.T) {
	p := transfer(t, genesisOf(1, 41), 1, 2)
	got, err := identity.ParseTransferProof(p.Raw())
	require.NoError(t, err)
	require.Equal(t, p, got)
	require.Equal(t, key(1).ID(), got.From)
	t.Logf("a transfer proof has %d bytes", len(p.Raw()))
	tampered(t, p.Raw(), func(b []byte) error { _, err := identity.ParseTransferProof(b); return err })
	for name, bad := range map[string]identity.TransferProof{
		"no group":   {Certificate: cert(1, 41), To: key(2).ID(), Time: day},
		"to nobody":  {Group: p.Group, Certificate: cert(1, 41), Time: day},
		"to oneself": {Group: p.Group, Certificate: cert(1, 41), To: key(1).ID(), Time: day},
		"other key":  {Group: p.Group, Certificate: cert(1, 2), To: key(2).ID(), Time: day},
	} {
		_, err := identity.NewTransferProof(deviceKey(41), bad)
		require.ErrorIs(t, err, identity.ErrMalformed, name)
	}
	_, err = identity.ParseTransferProof(signDevice(41, identity.DomainGroupTransfer, &pb.TransferProof{
		Group: p.Group.Bytes(), Certificate: cert(1, 41).Raw(), To: key(1).ID().Bytes(),
	}))
	require.ErrorIs(t, err, identity.ErrMalformed)
}

func TestGroupLink(t *testing.T) {
	l := aGroupLink()
	s := l.String()
	t.Logf("a group link has %d characters: %s", len(s), s)
	for _, text := range []string{s, strings.ToUpper(s), " " + s[:40] + "\n  " + s[40:] + "\u200b"} {
		got, err := identity.ParseGroupLink(text)
		require.NoError(t, err)
		require.Equal(t, l, got)
	}
	bare := identity.GroupLink{Group: l.Group, Asks: identity.GroupContact{Account: key(1).ID()}}
	got, err := identity.ParseGroupLink(bare.String())
	require.NoError(t, err)
	require.Equal(t, bare, got)
	long := l
	long.Name = strings.Repeat("a", identity.MaxGroupName+1)
	got, err = identity.ParseGroupLink(long.String())
	require.NoError(t, err)
	require.Empty(t, got.Name, "a hint that is too long is left out")
	require.Empty(t, identity.GroupLink{Asks: l.Asks}.String())
	require.Empty(t, identity.GroupLink{Group: l.Group}.String())

	for i := range s {
		bad := []byte(s)
		if bad[i]++; bad[i] == '{' {
			bad[i] = 'a'
		}
		_, err := identity.ParseGroupLink(string(bad))
		require.ErrorIs(t, err, identity.ErrMalformed, "character %d", i)
	}
	_, err = identity.ParseGroupLink("hima-group:" + strings.TrimPrefix(anInvite().String(), "hima:"))
	require.ErrorIs(t, err, identity.ErrMalformed)
	_, err = identity.ParseInvite("hima:" + strings.TrimPrefix(s, "hima-group:"))
	require.ErrorIs(t, err, identity.ErrMalformed)

	ask, net := &pb.GroupContact{Account: key(1).ID().Bytes()}, &pb.NetworkLink{Name: "a"}
	g := l.Group.Bytes()
	for name, m := range map[string]*pb.GroupLink{
		"no group":     {Asks: ask},
		"nobody":       {Group: g},
		"long name":    {Group: g, Asks: ask, Name: strings.Repeat("a", 257)},
		"token":        {Group: g, Asks: ask, Token: make([]byte, 15)},
		"long token":   {Group: g, Asks: ask, Token: make([]byte, 17)},
		"devices":      {Group: g, Asks: &pb.GroupContact{Account: ask.Account, Devices: make([]*pb.InviteDevice, 5)}},
		"bad network":  {Group: g, Asks: ask, Networks: []*pb.NetworkLink{net}},
		"networks":     {Group: g, Asks: ask, Networks: []*pb.NetworkLink{net, net, net}},
		"negative end": {Group: g, Asks: ask, ExpiresMs: -1},
	} {
		b, err := proto.Marshal(m)
		require.NoError(t, err)
		_, err = identity.ParseGroupLink(identity.GroupLinkText(append([]byte{1}, b...)))
		require.ErrorIs(t, err, identity.ErrMalformed, name)
	}
}

func TestGroupContacts(t *testing.T) {
	all := make([]identity.GroupContact, 6)
	for i := range all {
		all[i] = identity.GroupContact{Account: key(byte(i + 1)).ID(), Devices: []identity.InviteDevice{{Device: device(byte(i + 20))}}}
	}
	got, err := identity.GroupContactsFromPB(identity.GroupContactsPB(all))
	require.NoError(t, err)
	require.Equal(t, all[:identity.MaxGroupContacts], got)
	_, err = identity.GroupContactsFromPB(make([]*pb.GroupContact, identity.MaxGroupContacts+1))
	require.ErrorIs(t, err, identity.ErrMalformed)
	_, err = identity.GroupContactsFromPB([]*pb.GroupContact{nil})
	require.ErrorIs(t, err, identity.ErrMalformed)
	links, err := identity.NetworkLinksFromPB(identity.NetworkLinksPB([]identity.NetworkLink{aLink(), {Name: "x"}, aLink()}))
	require.NoError(t, err)
	require.Equal(t, []identity.NetworkLink{aLink()}, links)
}

func TestGroupLinkRoundTripAny(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := identity.GroupLink{
			Group: groupOf(rapid.SliceOf(rapid.Byte()).Draw(t, "genesis")), Name: rapid.StringN(0, 64, identity.MaxGroupName).Draw(t, "name"),
			Token: identity.InviteToken(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "token")),
			Asks:  identity.GroupContact{Account: identity.AccountKeyFromSeed(genSeed(t, "account")).ID()},
		}
		if rapid.Bool().Draw(t, "expires") {
			l.Expires = time.UnixMilli(rapid.Int64Range(1, 1<<42).Draw(t, "ms")).UTC()
		}
		got, err := identity.ParseGroupLink(l.String())
		require.NoError(t, err)
		require.Equal(t, l, got)
	})
}

func groupVectors(t *testing.T) netVectors {
	consent, proof, card, founders := aConsent(t), transfer(t, genesisOf(1, 41), 1, 2), cardOf(t, 1, 2), cardOf(t, 1)
	group, name, name2 := groupOf(genesisOf(1, 41)), identity.GroupNameKey(aLink().ID(), "葵的群"), identity.GroupNameKey(aLink().ID(), "go users")
	text := func(l identity.GroupLink) textVector {
		return textVector{"group_link", l.String(), hx(identity.LinkContent(l.String()))}
	}
	cut := cardPB(t, 1, 2)
	cut.Transfers = nil
	other := cardPB(t, 1, 2)
	other.Genesis = genesisOf(2, 42)
	week := cardPB(t, 1, 2)
	week.ExpiresMs++
	return netVectors{
		Comment: "Vectors of docs/spec/groups.md and groups-discovery.md. Bytes are hexadecimal. The network is the first of network.json. The group is founded by the account of seed 01… on the device of seed 29….",
		Keys:    vectorKeys(1, 2, 3, 4, 41, 42),
		Hashes: []hashVector{
			{"group_id", hx(genesisOf(1, 41)), hx(group[:])}, {"group_name_key", "葵的群", hx(name[:])}, {"group_name_key", "go users", hx(name2[:])},
		},
		Texts: []textVector{text(aGroupLink()), text(identity.GroupLink{Group: group, Asks: identity.GroupContact{Account: key(1).ID()}})},
		Good: []bytesVector{
			{"consent", "an application of account 04", hx(consent.Raw())},
			{"transfer_proof", "from 01 to 02", hx(proof.Raw())},
			{"group_card", "of the founder", hx(founders.Raw())},
			{"group_card", "of the second owner", hx(card.Raw())},
		},
		Rejected: []bytesVector{
			{"consent", "signature changed", flipped(consent.Raw(), len(consent.Raw())-1)},
			{"consent", "a transfer proof", hx(proof.Raw())},
			{"consent", "of another account than the certificate's", hx(signDevice(3, identity.DomainGroupConsent, &pb.Consent{Group: group[:], Account: key(1).ID().Bytes(), Certificate: cert(4, 3).Raw(), TimeMs: 1, ExpiresMs: 2}))},
			{"transfer_proof", "signature changed", flipped(proof.Raw(), len(proof.Raw())-1)},
			{"transfer_proof", "to oneself", hx(signDevice(41, identity.DomainGroupTransfer, &pb.TransferProof{Group: group[:], Certificate: cert(1, 41).Raw(), To: key(1).ID().Bytes(), TimeMs: 1}))},
			{"group_card", "signature changed", flipped(card.Raw(), len(card.Raw())-1)},
			{"group_card", "no transfer to its signer", hx(signDevice(42, identity.DomainGroupCard, cut))},
			{"group_card", "genesis of another group", hx(signDevice(42, identity.DomainGroupCard, other))},
			{"group_card", "longer than 7 days", hx(signDevice(42, identity.DomainGroupCard, week))},
		},
	}
}
