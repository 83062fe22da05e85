package identity_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/wire/pb"
)

func TestGroupCard(t *testing.T) {
	c := cardOf(t, 1, 2, 3)
	got, err := identity.ParseGroupCard(c.Raw())
	require.NoError(t, err)
	require.Equal(t, c, got)
	require.Equal(t, key(3).ID(), got.Account)
	t.Logf("a card with two transfers has %d bytes, one without %d", len(c.Raw()), len(cardOf(t, 1).Raw()))
	tampered(t, c.Raw(), func(b []byte) error { _, err := identity.ParseGroupCard(b); return err })
	require.NoError(t, c.Validate(c.Expires.Add(identity.ClockSlack)))
	require.ErrorIs(t, c.Validate(c.Expires.Add(identity.ClockSlack+1)), identity.ErrExpired)
	require.ErrorIs(t, c.Validate(day.Add(-identity.ClockSlack-1)), identity.ErrFromFuture)
}

func TestGroupCardTransfers(t *testing.T) {
	genesis := genesisOf(1, 41)
	base := cardOf(t, 1)
	make := func(owner byte, transfers ...identity.TransferProof) (identity.GroupCard, error) {
		c := base
		c.Transfers, c.Certificate = transfers, cert(owner, owner+40)
		return identity.NewGroupCard(deviceKey(owner+40), c)
	}
	// To and fro costs nothing: only the way from the founder to the present owner is in the card.
	c, err := make(3, chainOf(t, genesis, 1, 2, 4, 2, 1, 5, 3)...)
	require.NoError(t, err)
	require.Len(t, c.Transfers, 2)
	c, err = make(1, chainOf(t, genesis, 1, 2, 3, 1)...)
	require.NoError(t, err)
	require.Empty(t, c.Transfers)
	long := []byte{1}
	for i := range byte(identity.MaxTransfers) {
		long = append(long, 100+i)
	}
	full, err := make(long[len(long)-1], chainOf(t, genesis, long...)...)
	require.NoError(t, err)
	require.Len(t, full.Transfers, identity.MaxTransfers)
	_, err = identity.ParseGroupCard(full.Raw())
	require.NoError(t, err)
	t.Logf("a card with %d transfers has %d bytes", identity.MaxTransfers, len(full.Raw()))

	long = append(long, 3)
	_, err = make(3, chainOf(t, genesis, long...)...)
	require.ErrorIs(t, err, identity.ErrMalformed, "one transfer too many")
	_, err = make(2)
	require.ErrorIs(t, err, identity.ErrMalformed, "somebody who was never the owner")
	_, err = make(3, chainOf(t, genesis, 1, 2)...)
	require.ErrorIs(t, err, identity.ErrMalformed, "the chain ends elsewhere")
	_, err = make(4, transfer(t, genesis, 1, 2), transfer(t, genesis, 3, 4))
	require.ErrorIs(t, err, identity.ErrMalformed, "a link of the chain is cut out")
	_, err = make(2, transfer(t, genesisOf(1, 42), 1, 2))
	require.ErrorIs(t, err, identity.ErrMalformed, "a transfer of another group")
	_, err = make(2, transfer(t, genesis, 3, 2))
	require.ErrorIs(t, err, identity.ErrMalformed, "handed over by somebody who did not own it")
}

// cardPB is the payload of a card that is in order, to be spoilt.
func cardPB(t *testing.T, owners ...byte) *pb.GroupCard {
	var s pb.Signed
	require.NoError(t, proto.Unmarshal(cardOf(t, owners...).Raw(), &s))
	var m pb.GroupCard
	require.NoError(t, proto.Unmarshal(s.Payload, &m))
	return &m
}

func TestGroupCardRefuses(t *testing.T) {
	signed := func(m *pb.GroupCard) []byte { return signDevice(42, identity.DomainGroupCard, m) }
	_, err := identity.ParseGroupCard(signed(cardPB(t, 1, 2)))
	require.NoError(t, err)
	spoilt := func(change func(*pb.Header)) func(*pb.GroupCard) {
		return func(m *pb.GroupCard) {
			h := genesisPB(1, 41)
			change(h)
			m.Genesis, _ = proto.MarshalOptions{Deterministic: true}.Marshal(h)
			m.Group, m.Transfers = groupOf(m.Genesis).Bytes(), [][]byte{transfer(t, m.Genesis, 1, 2).Raw()}
		}
	}
	_, err = identity.ParseGroupCard(signed(func() *pb.GroupCard {
		m := cardPB(t, 1, 2)
		spoilt(func(h *pb.Header) { h.ProtoReflect().SetUnknown([]byte{0xf8, 0x01, 1}) })(m)
		return m
	}()))
	require.NoError(t, err, "a field of a newer version in the genesis")
	for name, change := range map[string]func(*pb.GroupCard){
		"no group":                    func(m *pb.GroupCard) { m.Group = nil },
		"another group":               func(m *pb.GroupCard) { m.Group[0] ^= 1 },
		"no genesis":                  func(m *pb.GroupCard) { m.Genesis = nil },
		"changed genesis":             func(m *pb.GroupCard) { m.Genesis[len(m.Genesis)-1] ^= 1 },
		"genesis of another":          func(m *pb.GroupCard) { m.Genesis = genesisOf(2, 42) },
		"no owner":                    func(m *pb.GroupCard) { m.Account = nil },
		"another owner":               func(m *pb.GroupCard) { m.Account = key(1).ID().Bytes() },
		"no certificate":              func(m *pb.GroupCard) { m.Certificate = nil },
		"cut chain":                   func(m *pb.GroupCard) { m.Transfers = nil },
		"chain twice":                 func(m *pb.GroupCard) { m.Transfers = append(m.Transfers, m.Transfers[0]) },
		"too many transfers":          func(m *pb.GroupCard) { m.Transfers = make([][]byte, identity.MaxTransfers+1) },
		"no name":                     func(m *pb.GroupCard) { m.Name = "" },
		"long name":                   func(m *pb.GroupCard) { m.Name = strings.Repeat("a", identity.MaxGroupName+1) },
		"long description":            func(m *pb.GroupCard) { m.Description = strings.Repeat("a", identity.MaxCardDescription+1) },
		"policy":                      func(m *pb.GroupCard) { m.Join = "anyhow" },
		"five admins":                 func(m *pb.GroupCard) { m.Admins = make([]*pb.GroupContact, 5) },
		"admin without account":       func(m *pb.GroupCard) { m.Admins[0].Account = nil },
		"eight days":                  func(m *pb.GroupCard) { m.ExpiresMs = m.TimeMs + identity.GroupCardLifetime.Milliseconds() + 1 },
		"over before it began":        func(m *pb.GroupCard) { m.ExpiresMs = m.TimeMs - 1 },
		"time":                        func(m *pb.GroupCard) { m.TimeMs = -1 },
		"genesis with a conversation": spoilt(func(h *pb.Header) { h.Conversation = groupOf(nil).Bytes() }),
		"genesis of chat":             spoilt(func(h *pb.Header) { h.Feed = 2 }),
		"genesis of another kind":     spoilt(func(h *pb.Header) { h.Kind = 65 }),
		"second entry as genesis":     spoilt(func(h *pb.Header) { h.Seq = 2 }),
		"genesis without nonce":       spoilt(func(h *pb.Header) { h.Nonce = nil }),
		"genesis of another's device": spoilt(func(h *pb.Header) { h.Device = device(44).Bytes() }),
		"genesis signed for another":  spoilt(func(h *pb.Header) { h.Account = key(2).ID().Bytes() }),
		"genesis in another encoding": func(m *pb.GroupCard) {
			m.Genesis = append(m.Genesis, genesisOf(1, 41)...)
			m.Group, m.Transfers = groupOf(m.Genesis).Bytes(), [][]byte{transfer(t, m.Genesis, 1, 2).Raw()}
		},
	} {
		m := cardPB(t, 1, 2)
		change(m)
		_, err := identity.ParseGroupCard(signed(m))
		require.ErrorIs(t, err, identity.ErrMalformed, name)
	}
	m := cardPB(t, 1, 2)
	m.Transfers[0][len(m.Transfers[0])-1] ^= 1
	_, err = identity.ParseGroupCard(signed(m))
	require.ErrorIs(t, err, identity.ErrBadSignature, "a forged transfer")
	_, err = identity.ParseGroupCard(signDevice(41, identity.DomainGroupCard, cardPB(t, 1, 2)))
	require.ErrorIs(t, err, identity.ErrBadSignature, "signed by another's device")
	_, err = identity.ParseGroupCard(signDevice(42, identity.DomainNetworkCard, cardPB(t, 1, 2)))
	require.ErrorIs(t, err, identity.ErrBadSignature, "signed for something else")
}

func TestGroupCardSupersedes(t *testing.T) {
	of := func(after time.Duration, owners ...byte) identity.GroupCard {
		c := cardOf(t, owners...)
		c.Time, c.Expires = c.Time.Add(after), c.Expires.Add(after)
		owner := owners[len(owners)-1]
		c, err := identity.NewGroupCard(deviceKey(owner+40), c)
		require.NoError(t, err)
		return c
	}
	require.True(t, of(time.Hour, 1).Supersedes(of(0, 1)))
	require.False(t, of(0, 1).Supersedes(of(time.Hour, 1)))
	require.False(t, of(0, 1).Supersedes(of(0, 1)))
	require.True(t, of(0, 1, 2).Supersedes(of(time.Hour, 1)), "the owner before, whatever the time on the card")
	require.False(t, of(time.Hour, 1).Supersedes(of(0, 1, 2)))
	a, b := of(0, 1, 2), of(time.Hour, 1, 3)
	require.False(t, a.Supersedes(b), "two heirs")
	require.False(t, b.Supersedes(a), "two heirs")
}
