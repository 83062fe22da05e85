package replica_test

import (
	"maps"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
)

// scene is who is there when a lie is told.
type scene struct {
	t         *testing.T
	victim    *device
	liar      *device // a member
	third     *device // no member
	chain     []feed.Entry
	signedByA *pb.Run
}

// lieRun is a run that must not be stored.
type lieRun struct {
	run  func(s scene) *pb.Run
	ends bool // the session is ended: these bytes are worth nothing
}

// resign changes the last header of a run and signs it anew.
func resign(d *device, run *pb.Run, change func(h *pb.Header)) *pb.Run {
	out := proto.Clone(run).(*pb.Run)
	last := out.Entries[len(out.Entries)-1]
	var h pb.Header
	require.NoError(d.rig.t, proto.Unmarshal(last.Header, &h))
	change(&h)
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(&h)
	require.NoError(d.rig.t, err)
	last.Header = b
	out.Signature = d.key.Sign(identity.DomainEntry, b)
	return out
}

func brokenRuns() map[string]lieRun {
	return map[string]lieRun{
		"bad signature": {func(s scene) *pb.Run {
			r := s.liar.sign(s.t, s.chain)
			r.Signature[5] ^= 1
			return r
		}, true},
		"signed by another key": {func(s scene) *pb.Run {
			r := s.liar.sign(s.t, s.chain)
			r.Signature = s.third.key.Sign(identity.DomainEntry, r.Entries[len(r.Entries)-1].Header)
			return r
		}, true},
		"signed for another purpose": {func(s scene) *pb.Run {
			r := s.liar.sign(s.t, s.chain)
			r.Signature = s.liar.key.Sign(identity.DomainReceipt, r.Entries[len(r.Entries)-1].Header)
			return r
		}, true},
		"body changed": {func(s scene) *pb.Run {
			r := s.liar.sign(s.t, s.chain)
			r.Entries[1].Body[20] ^= 1
			return r
		}, true},
		"header changed": {func(s scene) *pb.Run {
			r := s.liar.sign(s.t, s.chain)
			r.Entries[1].Header[3] ^= 1
			return r
		}, true},
		"entries swapped": {func(s scene) *pb.Run {
			r := s.liar.sign(s.t, s.chain)
			r.Entries[0], r.Entries[1] = r.Entries[1], r.Entries[0]
			return r
		}, true},
		"entry left out": {func(s scene) *pb.Run {
			r := s.liar.sign(s.t, s.chain)
			r.Entries = append(r.Entries[:1], r.Entries[2:]...)
			return r
		}, true},
	}
}

func forgedRuns() map[string]lieRun {
	return map[string]lieRun{
		"number 0": {func(s scene) *pb.Run {
			return resign(s.liar, s.liar.sign(s.t, s.chain[:1]), func(h *pb.Header) { h.Seq = 0 })
		}, true},
		"number beyond all": {func(s scene) *pb.Run {
			return resign(s.liar, s.liar.sign(s.t, s.chain[:1]), func(h *pb.Header) { h.Seq = 1 << 60; h.Prev = make([]byte, 32) })
		}, true},
		"first clock beyond all": {func(s scene) *pb.Run {
			return resign(s.liar, s.liar.sign(s.t, s.chain[:1]), func(h *pb.Header) { h.Clock = 1<<62 + 1 })
		}, true},
		"clock jumps": {func(s scene) *pb.Run {
			return resign(s.liar, s.liar.sign(s.t, s.chain[:2]), func(h *pb.Header) { h.Clock += 1<<32 + 1 })
		}, true},
		"clock stands still": {func(s scene) *pb.Run {
			return resign(s.liar, s.liar.sign(s.t, s.chain[:2]), func(h *pb.Header) { h.Clock-- })
		}, true},
		"no certificate": {func(s scene) *pb.Run {
			return resign(s.liar, s.liar.sign(s.t, s.chain[:1]), func(h *pb.Header) { h.Certificate = nil })
		}, true},
		"certificate of another": {func(s scene) *pb.Run {
			return resign(s.liar, s.liar.sign(s.t, s.chain[:1]), func(h *pb.Header) { h.Certificate = s.third.cert.Raw() })
		}, true},
		"in the victim's name": {func(s scene) *pb.Run {
			return resign(s.liar, s.liar.sign(s.t, s.chain[:1]), func(h *pb.Header) { h.Account = s.victim.person.ID().Bytes() })
		}, true},
		"as the victim's device": {func(s scene) *pb.Run {
			return resign(s.liar, s.signedByA, func(h *pb.Header) { h.TimeMs++ })
		}, true},
		"account of another after the start": {func(s scene) *pb.Run {
			return resign(s.liar, s.liar.sign(s.t, s.chain[1:2]), func(h *pb.Header) { h.Account = s.third.person.ID().Bytes() })
		}, false},
		"a third one's words": {func(s scene) *pb.Run { return s.third.sign(s.t, s.third.compose(s.t, feed.Tip{}, 2)) }, false},
		"nothing":             {func(s scene) *pb.Run { return &pb.Run{} }, true},
		"too many entries": {func(s scene) *pb.Run {
			r := s.liar.sign(s.t, s.chain[:1])
			for len(r.Entries) <= feed.MaxRunEntries {
				r.Entries = append(r.Entries, &pb.Entry{})
			}
			return r
		}, true},
	}
}

// TestHostileRuns: whatever a member says that its keys do not bear out is not stored.
func TestHostileRuns(t *testing.T) {
	lies := brokenRuns()
	maps.Copy(lies, forgedRuns())
	for name, l := range lies {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, 2)
				a, b := r.devices[0], r.devices[1]
				a.start()
				own := a.mustWrite(2)
				s := scene{t: t, victim: a, liar: b, third: r.outsider(0), chain: b.compose(t, feed.Tip{}, 4), signedByA: a.sign(t, own)}
				tap := b.dial(t, a)
				require.NoError(t, tap.begin())
				require.NoError(t, tap.send(runFrame(l.run(s))))
				if l.ends {
					require.True(t, tap.ended(10*time.Second), "the session goes on")
				} else {
					require.NotNil(t, tap.next(10*time.Second, func(f *pb.Frame) bool { return f.GetRefuse() != nil }), "no refusal")
				}
				a.mu.Lock()
				require.Empty(t, a.applied)
				require.False(t, a.diverged, "a forgery is no proof against ourselves")
				a.mu.Unlock()
				head, _ := a.stored(a.feed())
				require.Equal(t, own[1].ID, head.Hash)
				tap.st.Reset()
				b.start()
				honest(t, a, b)
			})
		})
	}
}
