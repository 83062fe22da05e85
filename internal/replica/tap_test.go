package replica_test

import (
	"bufio"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire"
	"hima/internal/wire/pb"
)

// dial opens a stream by hand. Reading goes on in the background until the stream ends.
func (d *device) dial(t testing.TB, to *device) *tap {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	st, err := d.rig.world.Node(d.index).Open(ctx, to.key.ID(), replica.Protocol)
	require.NoError(t, err)
	p := &tap{device: d, st: st, in: make(chan *pb.Frame, 1<<14)}
	go func() {
		defer close(p.in)
		rd := bufio.NewReader(st)
		for {
			f := &pb.Frame{}
			if wire.Read(rd, wire.MaxSyncFrame, f) != nil {
				return
			}
			p.in <- f
		}
	}()
	t.Cleanup(st.Reset)
	return p
}

// send writes frames; the error is a matter of the test.
func (p *tap) send(frames ...*pb.Frame) error {
	for _, f := range frames {
		_ = p.st.SetWriteDeadline(time.Now().Add(10 * time.Second))
		if err := wire.Write(p.st, wire.MaxSyncFrame, f); err != nil {
			return fmt.Errorf("writing: %w", err)
		}
	}
	return nil
}

func (d *device) helloFrame() *pb.Frame {
	rec, _ := d.rig.Record(d.person.ID())
	return &pb.Frame{Of: &pb.Frame_Hello{Hello: &pb.Hello{
		Versions: []uint32{1}, AccountRecord: rec.Raw(), Certificate: d.cert.Raw(), TimeMs: time.Now().UnixMilli(),
	}}}
}

// begin says hello and shows the heads of one conversation.
func (p *tap) begin(heads ...feed.Head) error { return p.send(p.beginning(heads...)...) }

func (d *device) beginning(heads ...feed.Head) []*pb.Frame {
	page := &pb.Heads{Conversation: d.rig.conv[:], Done: true}
	for _, h := range heads {
		page.Heads = append(page.Heads, h.PB())
	}
	digest := feed.Digest(heads)
	return []*pb.Frame{
		d.helloFrame(),
		{Of: &pb.Frame_Digests{Digests: &pb.Digests{Done: true, Digests: []*pb.Digest{{Conversation: d.rig.conv[:], Digest: digest[:]}}}}},
		{Of: &pb.Frame_Heads{Heads: page}},
	}
}

func runFrame(r *pb.Run) *pb.Frame { return &pb.Frame{Of: &pb.Frame_Run{Run: &pb.RunFrame{Run: r}}} }

// next returns the next frame that take accepts, nil after the patience or when the stream ended.
func (p *tap) next(patience time.Duration, take func(*pb.Frame) bool) *pb.Frame {
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for {
		select {
		case f, ok := <-p.in:
			if !ok {
				return nil
			}
			if take(f) {
				return f
			}
		case <-limit.C:
			return nil
		}
	}
}

// run returns the next run on the wire, nil if there is none within the patience.
func (p *tap) run(patience time.Duration) *pb.Run {
	f := p.next(patience, func(f *pb.Frame) bool { return f.GetRun() != nil })
	return f.GetRun().GetRun()
}

// ended waits until the other side closed the stream.
func (p *tap) ended(patience time.Duration) bool {
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for {
		select {
		case _, ok := <-p.in:
			if !ok {
				return true
			}
		case <-limit.C:
			return false
		}
	}
}

// author makes and signs entries as the device would, without storing them.
func (d *device) author() feed.Author { return feed.NewAuthor(d.person.ID(), d.key.ID(), d.cert) }

// compose makes n entries of the device's chat after a tip.
func (d *device) compose(t testing.TB, tip feed.Tip, n int) []feed.Entry {
	t.Helper()
	var out []feed.Entry
	for range n {
		e, err := d.author().Next(tip, d.rig.conv, feed.Chat, feed.KindText, tip.Clock+1, time.Now().UnixMilli(), text("x"))
		require.NoError(t, err)
		out = append(out, e)
		tip = e.Tip()
	}
	return out
}

// sign makes an encoded run.
func (d *device) sign(t testing.TB, entries []feed.Entry) *pb.Run {
	t.Helper()
	run, err := feed.Assemble(entries, feed.SignRun(d.key, entries[len(entries)-1]))
	require.NoError(t, err)
	return run.PB()
}

func headOf(e feed.Entry) feed.Head {
	return feed.Head{Number: e.Number, Account: e.Account, Device: e.Device, First: 1, Last: e.Seq, Hash: e.ID}
}
