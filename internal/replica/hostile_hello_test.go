package replica_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"hima/identity"
	"hima/internal/wire/pb"
	"hima/node/nodetest"
)

// lieHello is a first frame with which nobody may come in.
type lieHello func(t *testing.T, victim, liar *device) *pb.Frame

func hellos() map[string]lieHello {
	other := identity.NewCertificate(identity.AccountKeyFromSeed([32]byte{77}), nodetest.Key(900).ID(), time.Now())
	return map[string]lieHello{
		"nothing":        func(*testing.T, *device, *device) *pb.Frame { return &pb.Frame{} },
		"another frame":  func(*testing.T, *device, *device) *pb.Frame { return &pb.Frame{Of: &pb.Frame_Ping{Ping: &pb.Ping{}}} },
		"empty hello":    func(*testing.T, *device, *device) *pb.Frame { return hello(nil, nil) },
		"no certificate": func(t *testing.T, _, l *device) *pb.Frame { return hello(l.record(t, l.cert), nil) },
		"no record":      func(_ *testing.T, _, l *device) *pb.Frame { return hello(nil, l.cert.Raw()) },
		"no version": func(t *testing.T, _, l *device) *pb.Frame {
			f := hello(l.record(t, l.cert), l.cert.Raw())
			f.GetHello().Versions = []uint32{2, 3}
			return f
		},
		"the victim's papers": func(t *testing.T, v, _ *device) *pb.Frame { return v.helloFrame() },
		"a member's papers":   func(t *testing.T, v, _ *device) *pb.Frame { return v.rig.devices[1].helloFrame() },
		"own certificate, member's record": func(t *testing.T, v, l *device) *pb.Frame {
			rec, _ := v.rig.Record(v.rig.devices[1].person.ID())
			return hello(rec.Raw(), l.cert.Raw())
		},
		"device not listed": func(t *testing.T, _, l *device) *pb.Frame {
			return hello(l.record(t, identity.NewCertificate(l.person, nodetest.Key(901).ID(), time.Now())), l.cert.Raw())
		},
		"device revoked": func(t *testing.T, _, l *device) *pb.Frame {
			rec, err := identity.NewAccountRecord(l.person, identity.RecordConfig{
				Now: time.Now(), Revoked: []identity.DeviceID{l.key.ID()},
				Devices: []identity.Certificate{identity.NewCertificate(l.person, nodetest.Key(901).ID(), time.Now())},
			})
			require.NoError(t, err)
			return hello(rec.Raw(), l.cert.Raw())
		},
		"certificate of another": func(t *testing.T, _, l *device) *pb.Frame { return hello(l.record(t, l.cert), other.Raw()) },
		"forged certificate": func(t *testing.T, v, l *device) *pb.Frame {
			// Signed by the liar, in the name of the member.
			forged := strings.Replace(string(l.cert.Raw()), string(l.person.ID().Bytes()), string(v.rig.devices[1].person.ID().Bytes()), 1)
			rec, _ := v.rig.Record(v.rig.devices[1].person.ID())
			return hello(rec.Raw(), []byte(forged))
		},
		"forged record": func(t *testing.T, v, l *device) *pb.Frame {
			rec := l.record(t, l.cert)
			rec[len(rec)-1] ^= 1
			return hello(rec, l.cert.Raw())
		},
		"garbage": func(*testing.T, *device, *device) *pb.Frame { return hello([]byte("garbage"), []byte("garbage")) },
	}
}

func TestHostileHello(t *testing.T) {
	for name, l := range hellos() {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, 2)
				a, b := r.devices[0], r.devices[1]
				a.start()
				b.start()
				p := r.outsider(0)
				tap := p.dial(t, a)
				_ = tap.send(l(t, a, p))
				require.True(t, tap.ended(15*time.Second), "the stream stays open")
				require.Zero(t, a.sessions())
				honest(t, a, b)
			})
		})
	}
}

// For comparison: the same stranger with good papers is let in, also with an expired record; and shares nothing.
func TestStrangerIsLetInAndToldNothing(t *testing.T) {
	expired := func(d *device) []byte {
		rec, err := identity.NewAccountRecord(d.person, identity.RecordConfig{Now: time.Now().Add(-3 * identity.RecordLifetime), Devices: []identity.Certificate{d.cert}})
		require.NoError(d.rig.t, err)
		return rec.Raw()
	}
	for _, old := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, 2)
			a := r.devices[0]
			a.start()
			p := r.outsider(0)
			rec := p.record(t, p.cert)
			if old {
				rec = expired(p)
			}
			tap := p.dial(t, a)
			require.NoError(t, tap.send(hello(rec, p.cert.Raw())))
			f := tap.next(time.Second, func(f *pb.Frame) bool { return f.GetDigests() != nil })
			require.NotNil(t, f)
			require.Empty(t, f.GetDigests().Digests)
			require.Equal(t, 1, a.sessions())
		})
	}
}
