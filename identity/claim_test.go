package identity_test

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"hima/identity"
	"hima/internal/wire/pb"
)

func claim(t require.TestingT, account byte, name string, at time.Time) identity.NameClaim {
	c, err := identity.NewNameClaim(key(account), aLink().ID(), name, at)
	require.NoError(t, err)
	return c
}

func stamp(t require.TestingT, by byte, c identity.NameClaim, at time.Time) identity.NameStamp {
	s, err := identity.NewNameStamp(deviceKey(by), c, at)
	require.NoError(t, err)
	return s
}

func TestNameClaimAndStamp(t *testing.T) {
	c := claim(t, 1, "alice", day)
	got, err := identity.ParseNameClaim(c.Raw())
	require.NoError(t, err)
	require.Equal(t, c, got)
	s := stamp(t, 20, c, day.Add(time.Second))
	gotStamp, err := identity.ParseNameStamp(s.Raw())
	require.NoError(t, err)
	require.Equal(t, s, gotStamp)
	require.Equal(t, device(20), s.Key)
	t.Logf("a claim has %d bytes, a stamp %d, a record %d", len(c.Raw()), len(s.Raw()), len(identity.StampedName(s).Raw()))

	for _, r := range []identity.NameRecord{identity.StampedName(s), identity.UnstampedName(c)} {
		got, err := identity.ParseNameRecord(r.Raw())
		require.NoError(t, err)
		require.Equal(t, r, got)
		for i := range r.Raw() {
			bad := r.Raw()
			bad[i] ^= 1
			_, err := identity.ParseNameRecord(bad)
			require.Error(t, err, "byte %d", i)
			_, err = identity.ParseNameRecord(r.Raw()[:i])
			require.Error(t, err)
		}
	}
	require.True(t, identity.StampedName(s).Stamped([]identity.DeviceID{device(20)}))
	require.False(t, identity.StampedName(s).Stamped([]identity.DeviceID{device(21)}), "a key of another network")
	require.False(t, identity.UnstampedName(c).Stamped([]identity.DeviceID{device(20), {}}))

	// The longest name there may be fits everywhere.
	long := claim(t, 1, strings.Repeat("a", identity.MaxClaimName), day)
	r := identity.StampedName(stamp(t, 20, long, day))
	_, err = identity.ParseNameRecord(r.Raw())
	require.NoError(t, err)
}

func TestNamesRefuse(t *testing.T) {
	for _, name := range []string{"", strings.Repeat("a", 65), "\xff"} {
		_, err := identity.NewNameClaim(key(1), aLink().ID(), name, day)
		require.ErrorIs(t, err, identity.ErrMalformed)
	}
	network, account := aLink().ID(), key(1).ID()
	good := func() *pb.Claim {
		return &pb.Claim{Network: network[:], Name: "alice", Account: account[:], TimeMs: 5}
	}
	_, err := identity.ParseNameClaim(sign(key(1), identity.DomainNameClaim, good()))
	require.NoError(t, err)
	for name, change := range map[string]func(*pb.Claim){
		"no network":   func(m *pb.Claim) { m.Network = nil },
		"long network": func(m *pb.Claim) { m.Network = make([]byte, 33) },
		"no name":      func(m *pb.Claim) { m.Name = "" },
		"long name":    func(m *pb.Claim) { m.Name = strings.Repeat("a", 65) },
		"no account":   func(m *pb.Claim) { m.Account = nil },
		"time":         func(m *pb.Claim) { m.TimeMs = -1 },
	} {
		m := good()
		change(m)
		_, err := identity.ParseNameClaim(sign(key(1), identity.DomainNameClaim, m))
		require.ErrorIs(t, err, identity.ErrMalformed, name)
	}
	_, err = identity.ParseNameClaim(sign(key(2), identity.DomainNameClaim, good()))
	require.ErrorIs(t, err, identity.ErrBadSignature)
	_, err = identity.ParseNameClaim(sign(key(1), identity.DomainCertificate, good()))
	require.ErrorIs(t, err, identity.ErrBadSignature)

	c := claim(t, 1, "alice", day)
	forged := c.Raw()
	forged[len(forged)-1] ^= 1
	m := &pb.Stamp{Claim: c.Raw(), Key: device(20).Bytes(), TimeMs: 5}
	_, err = identity.ParseNameStamp(signDevice(20, identity.DomainNameStamp, m))
	require.NoError(t, err)
	_, err = identity.ParseNameStamp(signDevice(21, identity.DomainNameStamp, m))
	require.ErrorIs(t, err, identity.ErrBadSignature, "stamped by another")
	m.Claim = forged
	_, err = identity.ParseNameStamp(signDevice(20, identity.DomainNameStamp, m))
	require.ErrorIs(t, err, identity.ErrBadSignature, "a bootstrap node cannot make claims for accounts")
	_, err = identity.NewNameStamp(deviceKey(20), identity.NameClaim{}, day)
	require.ErrorIs(t, err, identity.ErrMalformed)

	s := stamp(t, 20, c, day)
	for name, m := range map[string]*pb.NameRecord{
		"nothing": {}, "both": {Stamp: s.Raw(), Claim: c.Raw()}, "stamp as claim": {Claim: s.Raw()}, "claim as stamp": {Stamp: c.Raw()},
	} {
		b, err := proto.Marshal(m)
		require.NoError(t, err)
		_, err = identity.ParseNameRecord(b)
		require.Error(t, err, name)
	}
	// One record, one encoding: an unknown field does not make another value of it.
	_, err = identity.ParseNameRecord(append(identity.StampedName(s).Raw(), 0x78, 1))
	require.ErrorIs(t, err, identity.ErrMalformed)
}

// nameField is records of one name that compete, the winner first.
func nameField(t require.TestingT) []identity.NameRecord {
	early, late := day, day.Add(time.Millisecond)
	a, b := claim(t, 1, "alice", day.Add(time.Hour)), claim(t, 2, "alice", day.Add(-time.Hour))
	ha, hb := a.Hash(), b.Hash()
	if bytes.Compare(hb[:], ha[:]) < 0 {
		a, b = b, a
	}
	return []identity.NameRecord{
		identity.StampedName(stamp(t, 20, b, early)), // earlier, though its hash is the higher
		identity.StampedName(stamp(t, 21, a, late)),  // lower hash of the claim
		identity.StampedName(stamp(t, 20, b, late)),
		identity.UnstampedName(a),
		identity.StampedName(stamp(t, 30, b, early.Add(-time.Hour))), // by nobody of this network: an unstamped claim
	}
}

func TestNameOrder(t *testing.T) {
	keys := aLink().Keys()
	field := nameField(t)
	for i, a := range field {
		require.Zero(t, identity.CompareNames(a, a, keys))
		for j, b := range field {
			switch {
			case i < j:
				require.Negative(t, identity.CompareNames(a, b, keys), "%d %d", i, j)
			case i > j:
				require.Positive(t, identity.CompareNames(a, b, keys), "%d %d", i, j)
			}
		}
	}
	// Two stamps of one claim in one millisecond: some order, the same for everybody.
	c := claim(t, 1, "alice", day)
	x, y := identity.StampedName(stamp(t, 20, c, day)), identity.StampedName(stamp(t, 21, c, day))
	require.NotZero(t, identity.CompareNames(x, y, keys))
	require.Equal(t, identity.CompareNames(x, y, keys), -identity.CompareNames(y, x, keys))
}

// TestNameOrderIsAnOrder: whatever the records, CompareNames sorts them one way only.
func TestNameOrderIsAnOrder(t *testing.T) {
	keys := aLink().Keys()
	var all []identity.NameRecord
	for account := range byte(3) {
		for ms := range 2 {
			c := claim(t, account+1, "alice", day.Add(time.Duration(ms)*time.Millisecond))
			all = append(all, identity.UnstampedName(c))
			for by := byte(20); by < 23; by++ {
				all = append(all, identity.StampedName(stamp(t, by, c, day.Add(time.Duration(ms)*time.Millisecond))))
			}
		}
	}
	cmp := func(a, b identity.NameRecord) int { return identity.CompareNames(a, b, keys) }
	want := slices.SortedFunc(slices.Values(all), cmp)
	rapid.Check(t, func(t *rapid.T) {
		got := rapid.Permutation(all).Draw(t, "order")
		slices.SortFunc(got, cmp)
		require.Equal(t, want, got)
	})
}

func TestClaimWork(t *testing.T) {
	c := claim(t, 1, "alice", day)
	w := identity.ClaimWork(t.Context(), c, 10)
	require.True(t, identity.CheckClaimWork(c, w, 10))
	require.False(t, identity.CheckClaimWork(claim(t, 2, "alice", day), w, 10) &&
		identity.CheckClaimWork(claim(t, 3, "alice", day), w, 10), "work for another claim")
	require.False(t, identity.CheckClaimWork(c, w[:7], 0))
	require.False(t, identity.CheckClaimWork(c, nil, 0))
	require.Nil(t, identity.ClaimWork(t.Context(), c, identity.MaxWorkBits+1))
	over, cancel := context.WithCancel(t.Context())
	cancel()
	require.Nil(t, identity.ClaimWork(over, c, identity.MaxWorkBits))

	var inbox, other identity.InboxID = seed(1), seed(2)
	w = identity.ItemWork(t.Context(), inbox, []byte("item"), 12)
	require.True(t, identity.CheckItemWork(inbox, []byte("item"), w, 12))
	require.False(t, identity.CheckItemWork(other, []byte("item"), w, 12) && identity.CheckItemWork(inbox, []byte("iten"), w, 12))
	require.Nil(t, identity.ItemWork(over, inbox, nil, identity.MaxWorkBits))
}
