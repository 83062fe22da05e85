package replica_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire"
	"hima/internal/wire/pb"
	"hima/node/nodetest"
)

// Hostile peers. In each test the victim is device 0, the liar has a real connection and keys of its own, and at the end
// nothing of the lie is stored and an honest peer still gets through.

// outsider is a device on the rig's network that is no member of anything and has no record anywhere yet.
func (r *rig) outsider(i int) *device {
	i += len(r.devices)
	for r.world.Len() <= i {
		r.world.Add()
	}
	d := &device{rig: r, index: i, key: nodetest.Key(i)}
	d.person = identity.AccountKeyFromSeed([32]byte{9, byte(i), byte(i >> 8)})
	d.cert = identity.NewCertificate(d.person, d.key.ID(), time.Now())
	r.world.Node(i).Remember(r.devices[0].key.ID(), r.world.Addrs(0))
	return d
}

// record is what an account says of its devices, kept nowhere.
func (d *device) record(t testing.TB, certs ...identity.Certificate) []byte {
	t.Helper()
	rec, err := identity.NewAccountRecord(d.person, identity.RecordConfig{Now: time.Now(), Devices: certs})
	require.NoError(t, err)
	return rec.Raw()
}

func hello(record, cert []byte) *pb.Frame {
	return &pb.Frame{Of: &pb.Frame_Hello{Hello: &pb.Hello{
		Versions: []uint32{1}, AccountRecord: record, Certificate: cert, TimeMs: time.Now().UnixMilli(),
	}}}
}

// honest lets b write and waits until a has it: whatever happened before, the node works.
func honest(t *testing.T, a, b *device) {
	t.Helper()
	before, _ := b.stored(b.feed())
	b.mustWrite(3)
	require.NoError(t, b.open(a))
	a.rig.await("an honest peer gets through", func() bool { return b.ackedBy(a) == before.Last+3 })
}

func (d *device) sessions() int { return len(d.rep.Sessions()) }

// TestHostileClocksInHello: any time a peer claims is survived.
func TestHostileClocksInHello(t *testing.T) {
	for _, ms := range []int64{0, -1, 1 << 62, -1 << 62, 1<<63 - 1, -1 << 63} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, 2)
			a := r.devices[0]
			a.start()
			p := r.outsider(0)
			f := hello(p.record(t, p.cert), p.cert.Raw())
			f.GetHello().TimeMs = ms
			tap := p.dial(t, a)
			require.NoError(t, tap.send(f))
			r.await("the session is up", func() bool { return a.sessions() == 1 })
			skew := a.rep.Sessions()[0].Skew
			require.Equal(t, ms > 1e15, skew > 0, "%d ms is %v", ms, skew)
		})
	}
}

// TestHostileBytes: what is no frame ends the session and changes nothing, whenever it comes.
func TestHostileBytes(t *testing.T) {
	big := binary.AppendUvarint(nil, wire.MaxSyncFrame+1)
	for name, raw := range map[string][]byte{
		"oversized length": big, "huge length": {0xff, 0xff, 0xff, 0xff, 0xff}, "prefix not minimal": {0x80, 0x00},
		"garbage": []byte("\x08garbage!"), "bad utf-8": []byte("\x09\x0a\x07\x32\x05\xff\xfe\xfd\xfc\xfb"),
		"endless frame": append(binary.AppendUvarint(nil, wire.MaxSyncFrame), make([]byte, 100)...),
		"half a frame":  {0x20, 0x01},
	} {
		for _, greeted := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " greeted ", greeted), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := newRig(t, 3)
					a, b := r.devices[0], r.devices[2]
					a.start()
					b.start()
					tap := r.devices[1].dial(t, a)
					if greeted {
						require.NoError(t, tap.begin())
					}
					_, err := tap.st.Write(raw)
					require.NoError(t, err)
					require.True(t, tap.ended(time.Minute), "the stream stays open")
					r.await("the session is gone", func() bool { return a.sessions() == 0 })
					honest(t, a, b)
				})
			})
		}
	}
}

// TestReplayChangesNothing: the same run a hundred times, whole and in parts, is stored once.
func TestReplayChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2)
		a, b := r.devices[0], r.devices[1]
		a.start()
		chain := b.compose(t, feed.Tip{}, 6)
		tap := b.dial(t, a)
		require.NoError(t, tap.begin())
		for i := range 100 {
			require.NoError(t, tap.send(runFrame(b.sign(t, chain[:1+i%6]))))
		}
		r.await("all are in", func() bool { h, _ := a.stored(b.feed()); return h.Last == 6 })
		time.Sleep(5 * time.Second)
		a.mu.Lock()
		defer a.mu.Unlock()
		require.Len(t, a.applied, 6)
	})
}

// TestFarFutureClockDoesNotSilenceUs: a member begins with the highest clock there may be. We can still write, others
// still take it, and the clock of nobody runs over (R7).
func TestFarFutureClockDoesNotSilenceUs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 3)
		a, c := r.devices[0], r.devices[1]
		liar := r.devices[2]
		a.start()
		c.start()
		a.mustWrite(1)
		e, err := liar.author().Next(feed.Tip{}, r.conv, feed.Chat, feed.KindText, feed.MaxFirstClock, 1<<47, text("x"))
		require.NoError(t, err)
		tap := liar.dial(t, a)
		require.NoError(t, tap.begin())
		require.NoError(t, tap.send(runFrame(liar.sign(t, []feed.Entry{e}))))
		r.await("it is in", func() bool { h, _ := a.stored(liar.feed()); return h.Last == 1 })
		a.mustWrite(20)
		require.NoError(t, c.open(a))
		r.await("an honest one takes what was written after it", func() bool { return a.ackedBy(c) == 21 })
		c.mustWrite(2)
		r.await("and answers", func() bool { return c.ackedBy(a) == 2 })
	})
}

// TestRevokedInMidSession: the account's newer record no longer lists the device, and reaches us by any road. From then
// on it is served nothing (R11).
func TestRevokedInMidSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2)
		a, b := r.devices[0], r.devices[1]
		a.start()
		a.mustWrite(1)
		tap := b.dial(t, a)
		require.NoError(t, tap.begin())
		run, err := feed.CheckDetached(tap.run(10 * time.Second))
		require.NoError(t, err)
		last := run.Last().Tip()
		id := a.feed()
		require.NoError(t, tap.send(&pb.Frame{Of: &pb.Frame_Ack{Ack: &pb.Ack{Items: []*pb.AckItem{{
			Conversation: id.Conversation[:], Feed: uint32(id.Number), Device: id.Device[:], Last: last.Seq, Hash: last.Hash[:],
		}}}}}))
		r.await("the road is open", func() bool { return a.ackedBy(b) == 1 })
		a.mustWrite(1)
		require.NotNil(t, tap.run(10*time.Second))
		b.certify(identity.NewCertificate(b.person, nodetest.Key(500).ID(), time.Now()))
		a.mustWrite(5)
		f := tap.next(30*time.Second, func(f *pb.Frame) bool { return f.GetRun() != nil || f.GetBye() != nil })
		require.Nil(t, f.GetRun(), "a revoked device was served")
		r.await("the session ends", func() bool { return a.sessions() == 0 })
		require.Error(t, func() error {
			p := b.dial(t, a)
			_ = p.begin()
			if f := p.next(10*time.Second, func(f *pb.Frame) bool { return f.GetDigests() != nil }); f != nil {
				return nil
			}
			return replica.ErrNotAdmitted
		}(), "and does not come back")
	})
}

// TestRevokedWhileIdle is the same with nothing to send: the session ends by itself within seconds.
func TestRevokedWhileIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2)
		a, b := r.devices[0], r.devices[1]
		a.start()
		b.start()
		require.NoError(t, b.open(a))
		time.Sleep(time.Second)
		b.certify(identity.NewCertificate(b.person, nodetest.Key(500).ID(), time.Now()))
		time.Sleep(15 * time.Second)
		require.Zero(t, a.sessions())
	})
}

// TestRewritingAheadOfAGap: an author sends 3 of one branch ahead of a gap, then 1 to 4 of another. Two signed entries
// with one number are a fork, not a correction (R3).
func TestRewritingAheadOfAGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2)
		a, b := r.devices[0], r.devices[1]
		a.start()
		one := b.compose(t, feed.Tip{}, 3)
		other := b.compose(t, one[0].Tip(), 3) // parts after number 1
		other = append([]feed.Entry{one[0]}, other...)
		tap := b.dial(t, a)
		require.NoError(t, tap.begin())
		require.NoError(t, tap.send(runFrame(b.sign(t, one[2:3]))))
		r.await("it stands after a hole", func() bool {
			a.mu.Lock()
			defer a.mu.Unlock()
			return len(a.detached) == 1
		})
		require.NoError(t, tap.send(runFrame(b.sign(t, other))))
		f := tap.next(10*time.Second, func(f *pb.Frame) bool { return f.GetFork() != nil || f.GetAck() != nil })
		require.NotNil(t, f.GetFork(), "the other branch was taken instead")
		_, err := feed.CheckForkProof(f.GetFork())
		require.NoError(t, err)
	})
}

// TestSlowReader: a member never reads nor acknowledges while hundreds of entries wait for it, and asks questions without
// end, whose answers it does not read either. Another one is served meanwhile, and when it falls silent it is given up.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 3)
		a, b := r.devices[0], r.devices[2]
		a.start()
		b.start()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		st, err := r.world.Node(1).Open(ctx, a.key.ID(), replica.Protocol)
		require.NoError(t, err)
		defer st.Reset()
		slow := &tap{device: r.devices[1], st: st}
		require.NoError(t, slow.begin())
		r.await("its session is up", func() bool { return a.sessions() == 1 })
		a.mustWrite(300)
		for range 10 {
			for range 500 {
				require.NoError(t, slow.send(&pb.Frame{Of: &pb.Frame_Ping{Ping: &pb.Ping{Nonce: 1}}}))
			}
			time.Sleep(time.Second)
		}
		require.NoError(t, b.open(a))
		r.await("the other one has all", func() bool { return a.ackedBy(b) == 300 })
		require.Zero(t, a.ackedBy(r.devices[1]))
		time.Sleep(time.Minute)
		require.Equal(t, 1, a.sessions(), "the silent one is still there")
		honest(t, a, b)
	})
}

// TestManyStreams: thousands of streams, most of them silent, leave room for an honest peer.
func TestManyStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2)
		a, b := r.devices[0], r.devices[1]
		a.start()
		b.start()
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		opened := 0
		for i := range 24 {
			p := r.outsider(i)
			for range 100 {
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				st, err := r.world.Node(p.index).Open(ctx, a.key.ID(), replica.Protocol)
				cancel()
				if err != nil {
					break
				}
				opened++
				defer st.Reset()
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		t.Logf("%d streams opened, heap grew by %d KiB in all nodes", opened, (int64(after.HeapAlloc)-int64(before.HeapAlloc))>>10)
		honest(t, a, b)
	})
}

// TestStrangersDoNotFillTheHouse: strangers hold every place there is for strangers, and another stranger still gets in,
// as does a friend.
func TestStrangersDoNotFillTheHouse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2)
		a, b := r.devices[0], r.devices[1]
		a.start()
		b.start()
		n := replica.DefaultLimits().StrangerSessions
		enter := func(i int) *tap {
			p := r.outsider(i)
			tap := p.dial(t, a)
			require.NoError(t, tap.send(hello(p.record(t, p.cert), p.cert.Raw())))
			return tap
		}
		for i := range n {
			enter(i)
		}
		r.await("all places are taken", func() bool { return a.sessions() == n })
		time.Sleep(6 * time.Second)
		late := enter(n)
		require.NotNil(t, late.next(10*time.Second, func(f *pb.Frame) bool { return f.GetDigests() != nil }), "no room for one more")
		require.LessOrEqual(t, a.sessions(), n+1)
		honest(t, a, b)
	})
}

// TestKnockFlood: knocks without end get few answers and cost nothing on disk; the session ends.
func TestKnockFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2)
		a, b := r.devices[0], r.devices[1]
		a.start()
		b.start()
		p := r.outsider(0)
		tap := p.dial(t, a)
		require.NoError(t, tap.send(hello(p.record(t, p.cert), p.cert.Raw())))
		conv := feed.DirectConversation(a.person.ID(), p.person.ID())
		e, err := p.author().Next(feed.Tip{}, conv, feed.Chat, feed.KindText, 1, time.Now().UnixMilli(), text("x"))
		require.NoError(t, err)
		knock := &pb.Frame{Of: &pb.Frame_Knock{Knock: &pb.Knock{Conversation: conv[:], Run: p.sign(t, []feed.Entry{e}), Token: []byte("no token")}}}
		for range 1000 {
			if tap.send(knock) != nil {
				break
			}
		}
		require.True(t, tap.ended(10*time.Second))
		r.await("the session is gone", func() bool { return a.sessions() == 0 })
		a.mu.Lock()
		require.Empty(t, a.applied)
		a.mu.Unlock()
		honest(t, a, b)
	})
}

// TestFloodOfUselessFrames: every kind of frame that means nothing, as fast as it goes, from a stranger.
func TestFloodOfUselessFrames(t *testing.T) {
	conv := make([]byte, 32)
	ack := &pb.Ack{Items: []*pb.AckItem{{Conversation: conv, Feed: 2, Device: conv, Last: 1, Hash: conv}}}
	for name, f := range map[string]*pb.Frame{
		"unknown": {}, "ping": {Of: &pb.Frame_Ping{Ping: &pb.Ping{}}}, "ack": {Of: &pb.Frame_Ack{Ack: ack}},
		"heads":        {Of: &pb.Frame_Heads{Heads: &pb.Heads{Conversation: conv, Done: true}}},
		"refuse":       {Of: &pb.Frame_Refuse{Refuse: &pb.Refuse{Conversation: conv, Feed: 2, Device: conv, From: 1, Code: 3}}},
		"knock answer": {Of: &pb.Frame_KnockAnswer{KnockAnswer: &pb.KnockAnswer{Conversation: conv, Code: 1}}},
		"typing":       {Of: &pb.Frame_Typing{Typing: &pb.Typing{Conversation: conv, On: true}}},
		"presence":     {Of: &pb.Frame_Presence{Presence: &pb.Presence{Online: true}}},
		"digests":      {Of: &pb.Frame_Digests{Digests: &pb.Digests{}}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, 2)
				a := r.devices[0]
				a.start()
				p := r.outsider(0)
				tap := p.dial(t, a)
				require.NoError(t, tap.send(hello(p.record(t, p.cert), p.cert.Raw())))
				taken := 0
				for ; taken < 20_000; taken++ {
					if tap.send(f) != nil {
						break
					}
				}
				require.True(t, tap.ended(10*time.Second), "%d frames were taken", taken)
			})
		})
	}
	// Records of an account that are newer and newer.
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2)
		a, b := r.devices[0], r.devices[1]
		a.start()
		tap := b.dial(t, a)
		require.NoError(t, tap.begin())
		for i := range 200 {
			rec, err := identity.NewAccountRecord(b.person, identity.RecordConfig{
				LastSeq: uint64(time.Now().UnixMilli()) + uint64(i), Now: time.Now(), Devices: []identity.Certificate{b.cert},
			})
			require.NoError(t, err)
			if tap.send(&pb.Frame{Of: &pb.Frame_Record{Record: &pb.Record{AccountRecord: rec.Raw()}}}) != nil {
				break
			}
		}
		require.True(t, tap.ended(10*time.Second))
	})
}
