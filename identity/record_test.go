package identity_test

import (
	"bytes"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"hima/identity"
	"hima/internal/wire/pb"
)

// sign makes Signed bytes the honest way around any content, so that tests can say what no program of ours would.
func sign(key identity.AccountKey, d identity.Domain, payload proto.Message) []byte {
	b, err := proto.Marshal(payload)
	if err != nil {
		panic(err)
	}
	out, err := proto.Marshal(&pb.Signed{Payload: b, Signature: key.Sign(d, b)})
	if err != nil {
		panic(err)
	}
	return out
}

func key(b byte) identity.AccountKey  { return identity.AccountKeyFromSeed(seed(b)) }
func device(b byte) identity.DeviceID { return identity.DeviceKeyFromSeed(seed(b)).ID() }
func cert(a, d byte) identity.Certificate {
	return identity.NewCertificate(key(a), device(d), day)
}

func TestCertificateRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := identity.AccountKeyFromSeed(genSeed(t, "account"))
		d := identity.DeviceKeyFromSeed(genSeed(t, "device")).ID()
		if [32]byte(k.ID()) == [32]byte(d) {
			return
		}
		at := time.UnixMilli(rapid.Int64().Draw(t, "ms"))
		c := identity.NewCertificate(k, d, at)
		require.LessOrEqual(t, len(c.Raw()), identity.MaxCertificate)
		again, err := identity.ParseCertificate(c.Raw())
		require.NoError(t, err)
		require.Equal(t, c, again)
		require.Equal(t, k.ID(), again.Account)
		require.Equal(t, d, again.Device)
	})
}

func TestCertificateTampered(t *testing.T) {
	raw := cert(1, 2).Raw()
	for i := range raw {
		for bit := range 8 {
			bad := bytes.Clone(raw)
			bad[i] ^= 1 << bit
			_, err := identity.ParseCertificate(bad)
			require.Error(t, err, "byte %d bit %d", i, bit)
		}
		_, err := identity.ParseCertificate(raw[:i])
		require.ErrorIs(t, err, identity.ErrMalformed)
	}
	_, err := identity.ParseCertificate(append(bytes.Clone(raw), 0x18, 0x01)) // one more field in the envelope
	require.ErrorIs(t, err, identity.ErrMalformed)
	_, err = identity.ParseCertificate(append(bytes.Clone(raw), raw...)) // last one wins in protobuf; not here
	require.ErrorIs(t, err, identity.ErrMalformed)
	_, err = identity.ParseCertificate(nil)
	require.ErrorIs(t, err, identity.ErrMalformed)
}

func TestCertificateRefuses(t *testing.T) {
	a := key(1).ID()
	d := device(2)
	for name, m := range map[string]*pb.Certificate{
		"no account":      {Device: d[:], CreatedMs: 1},
		"no device":       {Account: a[:], CreatedMs: 1},
		"short account":   {Account: a[:31], Device: d[:], CreatedMs: 1},
		"long device":     {Account: a[:], Device: append(d.Bytes(), 0), CreatedMs: 1},
		"zero device":     {Account: a[:], Device: make([]byte, 32), CreatedMs: 1},
		"same key":        {Account: a[:], Device: a[:], CreatedMs: 1},
		"before 1970":     {Account: a[:], Device: d[:], CreatedMs: -1},
		"after year 9999": {Account: a[:], Device: d[:], CreatedMs: math.MaxInt64},
	} {
		_, err := identity.ParseCertificate(sign(key(1), identity.DomainCertificate, m))
		require.ErrorIs(t, err, identity.ErrMalformed, name)
	}
	m := &pb.Certificate{Account: a[:], Device: d[:], CreatedMs: 1}
	_, err := identity.ParseCertificate(sign(key(1), identity.DomainCertificate, m))
	require.NoError(t, err)
	_, err = identity.ParseCertificate(sign(key(3), identity.DomainCertificate, m))
	require.ErrorIs(t, err, identity.ErrBadSignature, "signed by somebody else")
	_, err = identity.ParseCertificate(sign(key(1), identity.DomainAccountRecord, m))
	require.ErrorIs(t, err, identity.ErrBadSignature, "signed for another purpose")
	// A later version may add fields; they do not hurt.
	m.ProtoReflect().SetUnknown([]byte{0x78, 0x01})
	_, err = identity.ParseCertificate(sign(key(1), identity.DomainCertificate, m))
	require.NoError(t, err)
	m.ProtoReflect().SetUnknown(append([]byte{0x7a, 0xe8, 0x07}, make([]byte, 1000)...))
	_, err = identity.ParseCertificate(sign(key(1), identity.DomainCertificate, m))
	require.ErrorIs(t, err, identity.ErrMalformed, "too large")
}

func fullRecord(t require.TestingT) identity.AccountRecord {
	c := identity.RecordConfig{Now: day}
	for i := range byte(identity.MaxDevices) {
		c.Devices = append(c.Devices, cert(1, 10+i))
	}
	for i := range byte(identity.MaxRevoked) {
		c.Revoked = append(c.Revoked, device(100+i))
	}
	for i := range byte(identity.MaxNames) {
		c.Names = append(c.Names, identity.RecordName{Network: seed(i + 1), Name: strings.Repeat("葵", 21)})
	}
	r, err := identity.NewAccountRecord(key(1), c)
	require.NoError(t, err)
	return r
}

func TestAccountRecordRoundTrip(t *testing.T) {
	r := fullRecord(t)
	require.LessOrEqual(t, len(r.Raw()), identity.MaxAccountRecord)
	t.Logf("a full record has %d bytes, a certificate %d", len(r.Raw()), len(cert(1, 2).Raw()))
	again, err := identity.ParseAccountRecord(r.Raw())
	require.NoError(t, err)
	require.Equal(t, r, again)
	require.EqualValues(t, day.UnixMilli(), again.Seq)
	require.Equal(t, day.Add(identity.RecordLifetime), again.Expires)
	require.True(t, again.Lists(device(10)))
	require.False(t, again.Lists(device(100)))
	require.True(t, again.Revokes(device(100)))
	require.False(t, again.Lists(device(99)))
	require.Equal(t, strings.Repeat("葵", 21), again.Name(seed(3)))
	require.Empty(t, again.Name(seed(99)))
	c, ok := again.Certificate(device(25))
	require.True(t, ok)
	require.Equal(t, cert(1, 25), c)
	require.False(t, again.Expired(again.Expires.Add(identity.ClockSlack)))
	require.True(t, again.Expired(again.Expires.Add(identity.ClockSlack+time.Millisecond)))
}

func TestAccountRecordTampered(t *testing.T) {
	small, err := identity.NewAccountRecord(key(1), identity.RecordConfig{
		Now:     day,
		Devices: []identity.Certificate{cert(1, 2)}, Revoked: []identity.DeviceID{device(3)},
	})
	require.NoError(t, err)
	raw := small.Raw()
	for i := range raw {
		bad := bytes.Clone(raw)
		bad[i] ^= 0x01
		_, err := identity.ParseAccountRecord(bad)
		require.Error(t, err, "byte %d", i)
		_, err = identity.ParseAccountRecord(raw[:i])
		require.ErrorIs(t, err, identity.ErrMalformed)
	}
	full := fullRecord(t).Raw()
	rapid.Check(t, func(t *rapid.T) {
		bad := bytes.Clone(full)
		bad[rapid.IntRange(0, len(bad)-1).Draw(t, "at")] ^= rapid.ByteRange(1, 255).Draw(t, "xor")
		_, err := identity.ParseAccountRecord(bad)
		require.Error(t, err)
	})
}

func recordName(network int, name string) []*pb.NameClaim {
	return []*pb.NameClaim{{Network: make([]byte, network), Name: name}}
}

func TestAccountRecordRefuses(t *testing.T) {
	a := key(1).ID()
	good := func() *pb.AccountRecord {
		return &pb.AccountRecord{Account: a[:], Seq: 5, Devices: [][]byte{cert(1, 2).Raw()}, ExpiresMs: day.UnixMilli()}
	}
	_, err := identity.ParseAccountRecord(sign(key(1), identity.DomainAccountRecord, good()))
	require.NoError(t, err)
	for name, change := range map[string]func(m *pb.AccountRecord){
		"no account":              func(m *pb.AccountRecord) { m.Account = nil },
		"seq 0":                   func(m *pb.AccountRecord) { m.Seq = 0 },
		"seq too high":            func(m *pb.AccountRecord) { m.Seq = identity.MaxSeq + 1 },
		"no device":               func(m *pb.AccountRecord) { m.Devices = nil },
		"device twice":            func(m *pb.AccountRecord) { m.Devices = append(m.Devices, m.Devices[0]) },
		"garbage device":          func(m *pb.AccountRecord) { m.Devices[0] = []byte("garbage") },
		"another's device":        func(m *pb.AccountRecord) { m.Devices[0] = cert(3, 2).Raw() },
		"forged certificate":      func(m *pb.AccountRecord) { m.Devices[0][len(m.Devices[0])-1] ^= 1 },
		"revoked and listed":      func(m *pb.AccountRecord) { m.Revoked = [][]byte{device(2).Bytes()} },
		"revoked twice":           func(m *pb.AccountRecord) { m.Revoked = [][]byte{device(3).Bytes(), device(3).Bytes()} },
		"short revoked":           func(m *pb.AccountRecord) { m.Revoked = [][]byte{{1}} },
		"expires before 1970":     func(m *pb.AccountRecord) { m.ExpiresMs = -1 },
		"expires after year 9999": func(m *pb.AccountRecord) { m.ExpiresMs = math.MaxInt64 },
		"17 devices": func(m *pb.AccountRecord) {
			for i := range byte(identity.MaxDevices) {
				m.Devices = append(m.Devices, cert(1, 50+i).Raw())
			}
		},
		"65 revoked": func(m *pb.AccountRecord) {
			for i := range byte(identity.MaxRevoked + 1) {
				m.Revoked = append(m.Revoked, device(50+i).Bytes())
			}
		},
		"9 names": func(m *pb.AccountRecord) {
			for range identity.MaxNames + 1 {
				m.Names = append(m.Names, &pb.NameClaim{Network: append(make([]byte, 31), byte(len(m.Names))), Name: "x"})
			}
		},
		"long name":     func(m *pb.AccountRecord) { m.Names = recordName(32, string(make([]byte, 129))) },
		"no name":       func(m *pb.AccountRecord) { m.Names = recordName(32, "") },
		"long network":  func(m *pb.AccountRecord) { m.Names = recordName(33, "x") },
		"short network": func(m *pb.AccountRecord) { m.Names = recordName(31, "x") },
		"two on one network": func(m *pb.AccountRecord) {
			m.Names = append(recordName(32, "x"), recordName(32, "y")...)
		},
		"8 KiB and one": func(m *pb.AccountRecord) {
			m.ProtoReflect().SetUnknown(append([]byte{0x7a, 0x80, 0x40}, make([]byte, 8<<10)...))
		},
	} {
		m := good()
		change(m)
		_, err := identity.ParseAccountRecord(sign(key(1), identity.DomainAccountRecord, m))
		require.Error(t, err, name)
	}
	_, err = identity.ParseAccountRecord(sign(key(2), identity.DomainAccountRecord, good()))
	require.ErrorIs(t, err, identity.ErrBadSignature)
	_, err = identity.ParseAccountRecord(sign(key(1), identity.DomainCertificate, good()))
	require.ErrorIs(t, err, identity.ErrBadSignature)
}

func TestNewAccountRecordChecks(t *testing.T) {
	for name, c := range map[string]identity.RecordConfig{
		"no device":          {Now: day},
		"another's":          {Now: day, Devices: []identity.Certificate{cert(3, 2)}},
		"listed and revoked": {Now: day, Devices: []identity.Certificate{cert(1, 2)}, Revoked: []identity.DeviceID{device(2)}},
		"no number left":     {Now: day, Devices: []identity.Certificate{cert(1, 2)}, LastSeq: identity.MaxSeq},
		"number overflows":   {Now: day, Devices: []identity.Certificate{cert(1, 2)}, LastSeq: math.MaxUint64},
	} {
		_, err := identity.NewAccountRecord(key(1), c)
		require.ErrorIs(t, err, identity.ErrMalformed, name)
	}
	// The number grows also when the clock went back.
	r, err := identity.NewAccountRecord(key(1), identity.RecordConfig{
		Now: day, LastSeq: uint64(day.UnixMilli()) + 1000,
		Devices: []identity.Certificate{cert(1, 2)},
	})
	require.NoError(t, err)
	require.EqualValues(t, day.UnixMilli()+1001, r.Seq)
}

// TestNewestRecord: whatever order records arrive in, and however often, everybody keeps the same one (R11, R18).
func TestNewestRecord(t *testing.T) {
	var all []identity.AccountRecord
	for i := range byte(6) {
		r, err := identity.NewAccountRecord(key(1), identity.RecordConfig{
			Now:     time.UnixMilli(1000 + int64(i/2)),
			Devices: []identity.Certificate{cert(1, 10+i)},
		})
		require.NoError(t, err)
		all = append(all, r)
	}
	for _, a := range all {
		require.Zero(t, identity.CompareRecords(a, a))
		require.False(t, identity.Supersedes(a, a))
		for _, b := range all {
			require.Equal(t, identity.CompareRecords(a, b), -identity.CompareRecords(b, a))
		}
	}
	var winner identity.AccountRecord
	rapid.Check(t, func(t *rapid.T) {
		var have identity.AccountRecord
		for _, r := range rapid.Permutation(append(all, all...)).Draw(t, "order") {
			if identity.Supersedes(have, r) {
				have = r
			}
		}
		if winner.IsZero() {
			winner = have
		}
		require.Equal(t, winner, have)
	})
	other, err := identity.NewAccountRecord(key(2), identity.RecordConfig{Now: day, Devices: []identity.Certificate{cert(2, 3)}})
	require.NoError(t, err)
	require.False(t, identity.Supersedes(all[0], other), "of another account")
	require.False(t, identity.Supersedes(all[0], identity.AccountRecord{}))
	require.True(t, identity.Supersedes(identity.AccountRecord{}, all[0]))
}
