package chaos

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"hima/identity"
	controlpb "hima/internal/control/pb"
	"hima/internal/daemon"
	"hima/internal/feed"
	"hima/internal/wire"
	"hima/internal/wire/pb"
	"hima/node"
)

// Strangers against a whole running node, over real connections. Meanwhile two honest people keep talking, and the
// node's memory stays where it was to the megabyte class.

// mostMemory is what a node may take while it is attacked: its limit for the heap, the database's mapped files, and
// what the network libraries hold for hundreds of streams.
const mostMemory = 260 << 20

const syncProtocol = "/hima/sync/1"

// stranger is a device with an account nobody knows, and a node of its own.
type stranger struct {
	*node.Node
	acct identity.AccountKey
	key  identity.DeviceKey
	cert identity.Certificate
	rec  identity.AccountRecord
}

func newStranger(t testing.TB, name string) *stranger {
	t.Helper()
	s := &stranger{
		acct: identity.AccountKeyFromSeed(sha256.Sum256([]byte("account " + name))),
		key:  identity.DeviceKeyFromSeed(sha256.Sum256([]byte("device " + name))),
	}
	s.cert = identity.NewCertificate(s.acct, s.key.ID(), time.Now())
	var err error
	s.rec, err = identity.NewAccountRecord(s.acct, identity.RecordConfig{Now: time.Now(), Devices: []identity.Certificate{s.cert}})
	require.NoError(t, err)
	s.Node, err = node.New(node.Config{Key: s.key, Listen: []string{"/ip4/127.0.0.1/tcp/0"}})
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// target is where and what the victim is.
type target struct {
	device  identity.DeviceID
	account identity.AccountID
	invite  identity.Invite
	addrs   []string
}

func (p *person) target(t testing.TB) target {
	t.Helper()
	st := p.ready()
	dev, err := identity.ParseDeviceID(st.GetDevice())
	require.NoError(t, err)
	acct, err := identity.ParseAccountID(p.account)
	require.NoError(t, err)
	link, err := p.api().CreateInvite(p.ctx(), &controlpb.CreateInviteRequest{})
	require.NoError(t, err)
	inv, err := identity.ParseInvite(link.GetInvite().GetLink())
	require.NoError(t, err)
	return target{device: dev, account: acct, invite: inv, addrs: []string{fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", p.port)}}
}

func (s *stranger) open(v target, protocol string) (*node.Stream, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := s.Connect(ctx, v.device, v.addrs); err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	return s.Open(ctx, v.device, protocol)
}

func (s *stranger) hello() *pb.Frame {
	return &pb.Frame{Of: &pb.Frame_Hello{Hello: &pb.Hello{
		Versions: []uint32{1}, AccountRecord: s.rec.Raw(), Certificate: s.cert.Raw(), TimeMs: time.Now().UnixMilli(),
	}}}
}

// say writes a frame; that the victim hung up is no concern of the attack.
func say(st *node.Stream, f *pb.Frame) error {
	_ = st.SetWriteDeadline(time.Now().Add(5 * time.Second))
	return wire.Write(st, wire.MaxSyncFrame, f)
}

// request is the run by which a stranger asks.
func (s *stranger) request(t testing.TB, v target) *pb.Run {
	t.Helper()
	content, err := proto.Marshal(&pb.Request{Message: "let me in", Card: &pb.Card{Nickname: "stranger"}})
	require.NoError(t, err)
	author := feed.NewAuthor(s.acct.ID(), s.key.ID(), s.cert)
	e, err := author.Next(feed.Tip{}, feed.DirectConversation(s.acct.ID(), v.account), feed.Control, feed.KindRequest, 1, time.Now().UnixMilli(), content)
	require.NoError(t, err)
	run, err := feed.Assemble([]feed.Entry{e}, feed.SignRun(s.key, e))
	require.NoError(t, err)
	return run.PB()
}

// besieged runs an attack on alice's node while alice and bob talk, and then checks that the node is whole.
func besieged(t *testing.T, attack func(ctx context.Context, v target)) (alice, bob *person) {
	t.Helper()
	alice, bob = pair(t)
	v := alice.target(t)
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	over := make(chan struct{})
	go func() {
		defer close(over)
		attack(ctx, v)
	}()
	worst, slowest, n := uint64(0), time.Duration(0), 0
	for under := true; under || n < 10; n++ {
		begun := time.Now()
		from, to := alice, bob
		if n%2 == 1 {
			from, to = bob, alice
		}
		text := fmt.Sprint("in spite of it ", n)
		_, err := from.api().Send(from.ctx(), &controlpb.SendRequest{Who: to.account, Text: text})
		require.NoError(t, err)
		eventually(t, "an honest message arrives during the attack", func() bool {
			h, err := to.api().History(to.ctx(), &controlpb.HistoryRequest{Who: from.account, Limit: 1})
			return err == nil && len(h.GetMessages()) == 1 && h.GetMessages()[0].GetText() == text
		})
		slowest = max(slowest, time.Since(begun))
		st := alice.ready()
		worst = max(worst, resident(t, st.GetPid()))
		select {
		case <-over:
			under = false
		default:
		}
	}
	t.Logf("%d honest messages, slowest %v, at most %d MiB", n, slowest, worst>>20)
	require.Less(t, slowest, 10*time.Second, "an honest message waited too long")
	require.Less(t, worst, uint64(mostMemory), "the attack cost memory")
	require.Len(t, texts(alice.history(bob.account)), n)
	return alice, bob
}

// resident is the memory of a process that is in RAM, 0 where the system does not tell it.
func resident(t testing.TB, pid int32) uint64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	var size, rss uint64
	_, err = fmt.Sscan(string(b), &size, &rss)
	require.NoError(t, err)
	return rss * uint64(os.Getpagesize())
}

// Garbage, endless and oversized frames on every protocol, from many devices.
func TestGarbageOnEveryProtocol(t *testing.T) {
	besieged(t, func(ctx context.Context, v target) {
		var g errgroup.Group
		for i := range 4 {
			s := newStranger(t, fmt.Sprint("garbage ", i))
			rnd := rand.New(rand.NewPCG(1, uint64(i)))
			g.Go(func() error {
				for round := range 30 {
					for _, protocol := range daemon.Protocols() {
						st, err := s.open(v, protocol)
						if err != nil {
							continue // refused: as it should be, sooner or later
						}
						junk := make([]byte, 1+rnd.IntN(100<<10))
						for j := range junk {
							junk[j] = byte(rnd.Uint32())
						}
						switch round % 3 {
						case 0: // a length no frame may have
							copy(junk, []byte{0xff, 0xff, 0xff, 0xff, 0x7f})
						case 1: // a good beginning first
							_ = say(st, s.hello())
						}
						_ = st.SetWriteDeadline(time.Now().Add(2 * time.Second))
						_, _ = st.Write(junk)
						if round%2 == 0 {
							st.Reset()
						} else {
							_ = st.Close()
						}
						if ctx.Err() != nil {
							return nil
						}
					}
				}
				return nil
			})
		}
		_ = g.Wait() // none returns one
	})
}

// Thousands of streams are opened and left alone, by many devices at once.
func TestThousandsOfStreams(t *testing.T) {
	opened := 0
	besieged(t, func(ctx context.Context, v target) {
		var mu sync.Mutex
		var g errgroup.Group
		for i := range 8 {
			s := newStranger(t, fmt.Sprint("streams ", i))
			g.Go(func() error {
				for range 250 {
					if st, err := s.open(v, syncProtocol); err == nil {
						_, _ = st.Write([]byte{0x30}) // the stream is there once something was written
						mu.Lock()
						opened++
						mu.Unlock()
					}
					if ctx.Err() != nil {
						return nil
					}
				}
				return nil
			})
		}
		_ = g.Wait() // none returns one
	})
	t.Logf("%d streams were begun", opened)
	require.Greater(t, opened, 20)
}

// Admitted strangers who provoke answers and never read them.
func TestSlowReaders(t *testing.T) {
	var sent, sessions atomic.Int64
	besieged(t, func(ctx context.Context, v target) {
		var g errgroup.Group
		for i := range 6 {
			s := newStranger(t, fmt.Sprint("slow ", i))
			g.Go(func() error {
				for range 5 {
					st, err := s.open(v, syncProtocol)
					if err != nil || say(st, s.hello()) != nil {
						continue
					}
					sessions.Add(1)
					conv := make([]byte, 32)
					for n := range uint64(200_000) {
						f := &pb.Frame{Of: &pb.Frame_Ping{Ping: &pb.Ping{Nonce: n}}}
						if i%2 == 1 && n%64 == 0 {
							conv[0], conv[1] = byte(n>>6), byte(n>>14)
							f = &pb.Frame{Of: &pb.Frame_Heads{Heads: &pb.Heads{Conversation: conv, Done: n%128 == 0}}}
						}
						if ctx.Err() != nil || say(st, f) != nil {
							break
						}
						sent.Add(1)
					}
					st.Reset()
				}
				return nil
			})
		}
		_ = g.Wait() // none returns one
	})
	t.Logf("%d frames in %d sessions", sent.Load(), sessions.Load())
	require.Greater(t, sent.Load(), int64(1000), "hardly an attack")
}

// Knocks without work, with bad work, with good work and with a real invite token, from many accounts, and again and again
// the same. What a stranger can leave behind is bounded, and a request by invite is still seen.
func TestKnockFlood(t *testing.T) {
	const strangers = 16
	alice, _ := besieged(t, func(ctx context.Context, v target) {
		var g errgroup.Group
		g.SetLimit(8)
		for i := range strangers {
			g.Go(func() error {
				if ctx.Err() == nil {
					newStranger(t, fmt.Sprint("knock ", i)).knock(t, v, i)
				}
				return nil
			})
		}
		_ = g.Wait() // none returns one
	})
	r, err := alice.api().ListRequests(alice.ctx(), &controlpb.ListRequestsRequest{})
	require.NoError(t, err)
	invited, others := 0, 0
	for _, x := range r.GetRequests() {
		if !x.GetIncoming() || x.GetState() != "waiting" {
			continue
		}
		if x.GetInvited() {
			invited++
		} else {
			others++
		}
	}
	t.Logf("%d requests by invite, %d others", invited, others)
	require.Positive(t, invited, "an invite no longer lets anybody in")
	require.LessOrEqual(t, invited, strangers/4)
	require.LessOrEqual(t, others, strangers/4, "requests without work came in")
	c, err := alice.api().ListContacts(alice.ctx(), &controlpb.ListContactsRequest{})
	require.NoError(t, err)
	for _, x := range c.GetContacts() {
		if x.GetUsername() != "bob" {
			require.NotEqual(t, "contact", x.GetRelation(), "a stranger was accepted")
		}
	}
}

// knock asks, in one of four ways, many times.
func (s *stranger) knock(t testing.TB, v target, way int) {
	conv := feed.DirectConversation(s.acct.ID(), v.account)
	run := s.request(t, v)
	k := &pb.Knock{Conversation: conv[:], Run: run}
	switch way % 4 {
	case 1:
		k.Work = []byte("not work")
	case 2:
		k.Work = feed.Work(s.acct.ID(), v.account, sha256.Sum256(run.Entries[0].Header), feed.WorkBits)
	case 3:
		k.Token = v.invite.Token[:]
	}
	for range 3 {
		st, err := s.open(v, syncProtocol)
		if err != nil {
			continue
		}
		rd := bufio.NewReader(st)
		var f pb.Frame
		_ = st.SetReadDeadline(time.Now().Add(3 * time.Second))
		if say(st, s.hello()) == nil && wire.Read(rd, wire.MaxSyncFrame, &f) == nil {
			for range 50 {
				if say(st, &pb.Frame{Of: &pb.Frame_Knock{Knock: k}}) != nil {
					break
				}
			}
			for wire.Read(rd, wire.MaxSyncFrame, &f) == nil && f.GetKnockAnswer() == nil {
			}
		}
		st.Reset()
	}
}
