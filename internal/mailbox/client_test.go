package mailbox

import (
	"bufio"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/wire"
	"hima/internal/wire/pb"
	"hima/node"
	"hima/node/nodetest"
)

// liar answers every request with what answer makes of it; nil ends the stream.
func liar(t *testing.T, answer func(m *pb.MailboxRequest) *pb.MailboxReply) Ref {
	t.Helper()
	n := nodetest.LoopbackKey(t, nodetest.Key(20))
	n.Handle(Protocol, func(s *node.Stream) {
		r := bufio.NewReader(s)
		for {
			m := &pb.MailboxRequest{}
			if wire.Read(r, wire.MaxMailboxFrame, m) != nil {
				return
			}
			reply := answer(m)
			if reply == nil || wire.Write(s, wire.MaxMailboxFrame, reply) != nil {
				return
			}
		}
	})
	return Ref{Device: n.ID(), Addrs: n.Addrs()}
}

func clientOf(t *testing.T, change func(*ClientConfig)) *Client {
	t.Helper()
	config := ClientConfig{Node: nodetest.LoopbackKey(t, nodetest.Key(21))}
	if change != nil {
		change(&config)
	}
	c, err := NewClient(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// A receipt that is not exactly the one for what was left is no receipt.
func TestLyingMailbox(t *testing.T) {
	key := nodetest.Key(20)
	d := Deposit{Inbox: identity.NewInboxSecret().ID(), Item: randomItem(100)}
	good := identity.Custody{Inbox: d.Inbox, Item: identity.ItemHash(d.Item), Size: 100, Time: time.Now(), Until: time.Now().Add(time.Hour)}
	lies := map[string]func() (identity.DeviceKey, identity.Custody){
		"another signer": func() (identity.DeviceKey, identity.Custody) { return identity.GenerateDeviceKey(), good },
		"another inbox":  func() (identity.DeviceKey, identity.Custody) { c := good; c.Inbox[0] ^= 1; return key, c },
		"another item":   func() (identity.DeviceKey, identity.Custody) { c := good; c.Item[0] ^= 1; return key, c },
		"another size":   func() (identity.DeviceKey, identity.Custody) { c := good; c.Size++; return key, c },
		"in the past":    func() (identity.DeviceKey, identity.Custody) { c := good; c.Until = c.Time; return key, c },
		"long ended": func() (identity.DeviceKey, identity.Custody) {
			c := good
			c.Time = c.Time.AddDate(-1, 0, 0)
			c.Until = c.Time.Add(time.Hour)
			return key, c
		},
		"none":            nil,
		"a broken one":    nil,
		"the right one":   func() (identity.DeviceKey, identity.Custody) { return key, good },
		"no code for all": nil,
	}
	var mu sync.Mutex
	lie := ""
	ref := liar(t, func(m *pb.MailboxRequest) *pb.MailboxReply {
		mu.Lock()
		defer mu.Unlock()
		reply := &pb.MailboxReply{Id: m.Id, Code: pb.MailboxReply_CODE_OK}
		switch {
		case lies[lie] != nil:
			k, c := lies[lie]()
			c, err := identity.NewCustody(k, c)
			if err != nil {
				t.Error(err)
			}
			reply.Custody = c.Raw()
		case lie == "a broken one":
			reply.Custody = randomItem(120)
		case lie == "no code for all":
			reply.Code = 77
		}
		return reply
	})
	c := clientOf(t, nil)
	for name := range lies {
		mu.Lock()
		lie = name
		mu.Unlock()
		_, err := c.Deposit(bg(t), ref, d)
		switch name {
		case "the right one":
			want(t, err, nil)
		case "no code for all":
			want(t, err, ErrProtocol)
		default:
			if !errors.Is(err, ErrBadReceipt) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// Whatever else a mailbox answers: an error, never a panic, and never an endless fetch.
func TestBrokenAnswers(t *testing.T) {
	secret := identity.NewInboxSecret()
	for name, answer := range map[string]func(m *pb.MailboxRequest) *pb.MailboxReply{
		"ends the stream": func(*pb.MailboxRequest) *pb.MailboxReply { return nil },
		"another number":  func(m *pb.MailboxRequest) *pb.MailboxReply { return &pb.MailboxReply{Id: m.Id + 1} },
		"no code":         func(m *pb.MailboxRequest) *pb.MailboxReply { return &pb.MailboxReply{Id: m.Id} },
		"cursors stand still": func(m *pb.MailboxRequest) *pb.MailboxReply {
			return &pb.MailboxReply{Id: m.Id, Code: pb.MailboxReply_CODE_OK, More: true, Items: []*pb.MailboxItem{{Cursor: 0, Item: []byte{1}}}}
		},
		"empty items": func(m *pb.MailboxRequest) *pb.MailboxReply {
			return &pb.MailboxReply{Id: m.Id, Code: pb.MailboxReply_CODE_OK, Items: []*pb.MailboxItem{{Cursor: 1}}}
		},
		"nonsense inboxes": func(m *pb.MailboxRequest) *pb.MailboxReply {
			return &pb.MailboxReply{Id: m.Id, Code: pb.MailboxReply_CODE_OK, Missing: [][]byte{{1}}, Items: []*pb.MailboxItem{{}}}
		},
		"silence": nil,
	} {
		t.Run(name, func(t *testing.T) {
			hang := make(chan struct{})
			if name == "silence" {
				answer = func(*pb.MailboxRequest) *pb.MailboxReply { <-hang; return nil }
			}
			ref := liar(t, answer)
			t.Cleanup(func() { close(hang) }) // before the node closes, which waits for its handlers
			c := clientOf(t, func(cc *ClientConfig) { cc.Limits.Answer = 300 * time.Millisecond })
			if _, _, err := c.Fetch(bg(t), ref, secret, 0, 0); err == nil {
				t.Error("fetch believed it")
			}
			if _, err := c.Terms(bg(t), ref); err == nil {
				t.Error("terms believed it")
			}
			if name != "cursors stand still" && name != "empty items" {
				if _, err := c.Renew(bg(t), ref, []identity.InboxSecret{secret}); err == nil {
					t.Error("renew believed it")
				}
			}
		})
	}
}

// Nothing is held open for nothing: a stream without a watch is closed after a while, and the next request opens another.
func TestIdleStreamCloses(t *testing.T) {
	b := newBox(t, nil)
	c := clientOf(t, func(cc *ClientConfig) { cc.Limits.Idle = 50 * time.Millisecond })
	must(c.Terms(bg(t), b.ref()))(t)
	waitFor(t, func() bool { return !c.Connected(b.ref().Device) })
	waitFor(t, func() bool {
		b.server.mu.Lock()
		defer b.server.mu.Unlock()
		return len(b.server.open) == 0
	})
	must(c.Terms(bg(t), b.ref()))(t)
}

// A watch hears when the mailbox goes; after Close nothing is left running and everything is refused.
func TestWatchEnds(t *testing.T) {
	b := newBox(t, nil)
	c := b.client(1)
	secret := open(t, c, b.ref(), Contact)
	heard := make(chan struct{})
	var once sync.Once
	ended := make(chan error, 2)
	go func() {
		ended <- c.Watch(bg(t), b.ref(), []identity.InboxSecret{secret, identity.NewInboxSecret()}, func(_, missing []identity.InboxID) {
			if len(missing) != 1 {
				t.Errorf("%d inboxes missing, want the one that was never opened", len(missing))
			}
			once.Do(func() { close(heard) })
		})
	}()
	<-heard
	// Another part of the program watches on the same stream.
	second := make(chan struct{})
	go func() {
		ended <- c.Watch(bg(t), b.ref(), []identity.InboxSecret{secret}, func(_, _ []identity.InboxID) { close(second) })
	}()
	<-second
	b.halt()
	for range 2 {
		if err := <-ended; err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the watch ended with %v", err)
		}
	}
	_ = c.Close()
	_, err := c.Terms(bg(t), b.refGone())
	want(t, err, ErrClosed)
}

func (b *box) refGone() Ref { return Ref{Device: b.key.ID()} }

// raw speaks the protocol without the client's manners.
type raw struct {
	t *testing.T
	s *node.Stream
	r *bufio.Reader
}

func (b *box) raw(t *testing.T, i int) *raw {
	t.Helper()
	n := nodetest.LoopbackKey(t, nodetest.Key(i))
	n.Remember(b.key.ID(), b.node.Addrs())
	s, err := n.Open(bg(t), b.key.ID(), Protocol)
	if err != nil {
		t.Fatal(err)
	}
	return &raw{t, s, bufio.NewReader(s)}
}

func (r *raw) send(m proto.Message) error { return wire.Write(r.s, 1<<30, m) }

func (r *raw) ended() bool {
	_ = r.s.SetReadDeadline(time.Now().Add(10 * time.Second))
	for {
		var m pb.MailboxReply
		if err := wire.Read(r.r, wire.MaxMailboxFrame, &m); err != nil {
			var timeout interface{ Timeout() bool }
			return !(errors.As(err, &timeout) && timeout.Timeout())
		}
	}
}

// What breaks the protocol ends the stream; what is merely wrong is answered so.
func TestHostileFrames(t *testing.T) {
	b := newBox(t, nil)
	for name, send := range map[string]func(r *raw) error{
		"too long": func(r *raw) error {
			return r.send(&pb.MailboxRequest{Id: 1, Of: &pb.MailboxRequest_Deposit{Deposit: &pb.MailboxDeposit{Item: make([]byte, 67<<10)}}})
		},
		"garbage": func(r *raw) error { _, err := r.s.Write([]byte{3, 0xff, 0xff, 0xff}); return err },
		"a number twice": func(r *raw) error {
			m := &pb.MailboxRequest{Id: 1, Of: &pb.MailboxRequest_Terms{Terms: &pb.MailboxTermsRequest{}}}
			if err := r.send(m); err != nil {
				return err
			}
			return r.send(m)
		},
	} {
		r := b.raw(t, 5)
		if err := send(r); err != nil && !errors.Is(err, io.ErrClosedPipe) {
			t.Logf("%s: %v", name, err)
		}
		if !r.ended() {
			t.Errorf("%s: the stream goes on", name)
		}
	}
	r := b.raw(t, 6)
	for i, m := range []*pb.MailboxRequest{
		{},
		{Of: &pb.MailboxRequest_Open{}},
		{Of: &pb.MailboxRequest_Open{Open: &pb.MailboxOpen{Secret: make([]byte, 31), Kind: 1}}},
		{Of: &pb.MailboxRequest_Open{Open: &pb.MailboxOpen{Secret: make([]byte, 32), Kind: 9}}},
		{Of: &pb.MailboxRequest_Open{Open: &pb.MailboxOpen{Secret: make([]byte, 32), Kind: 1, Grant: make([]byte, 33)}}},
		{Of: &pb.MailboxRequest_Deposit{Deposit: &pb.MailboxDeposit{Inbox: make([]byte, 32)}}},
		{Of: &pb.MailboxRequest_Deposit{}},
		{Of: &pb.MailboxRequest_Watch{}},
		{Of: &pb.MailboxRequest_Watch{Watch: &pb.MailboxWatch{Secrets: make([][]byte, 257)}}},
		{Of: &pb.MailboxRequest_Fetch{}},
		{Of: &pb.MailboxRequest_Done{Done: &pb.MailboxDone{Secret: make([]byte, 32), Items: [][]byte{{1}}}}},
		{Of: &pb.MailboxRequest_Close{}},
		{Of: &pb.MailboxRequest_Renew{Renew: &pb.MailboxRenew{Secrets: [][]byte{{}}}}},
	} {
		m.Id = uint64(i + 1)
		if err := r.send(m); err != nil {
			t.Fatal(err)
		}
		var reply pb.MailboxReply
		if err := wire.Read(r.r, wire.MaxMailboxFrame, &reply); err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		if reply.Code != pb.MailboxReply_CODE_BAD {
			t.Errorf("request %d: %v", i, reply.Code)
		}
	}
}

// A flood is answered with BUSY within the rates, costs bounded memory, and keeps nobody else from being served.
func TestFlood(t *testing.T) {
	b := newBox(t, func(c *ServerConfig) {
		c.Limits.Burst, c.Limits.Rate = 300, 1
		c.Limits.OpenBurst, c.Limits.OpenRate = 20, 1
		c.Limits.ByteBurst, c.Limits.ByteRate = 200_000, 1
		c.Limits.Watched = 10
	})
	r := b.raw(t, 7)
	codes := map[pb.MailboxReply_Code]int{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 1000 {
			var m pb.MailboxReply
			if err := wire.Read(r.r, wire.MaxMailboxFrame, &m); err != nil {
				t.Error(err)
				return
			}
			codes[m.Code]++
		}
	}()
	var secrets [][]byte
	for i := range 1000 {
		m := &pb.MailboxRequest{Id: uint64(i + 1)}
		switch {
		case i < 40:
			secret := identity.NewInboxSecret()
			secrets = append(secrets, secret.Bytes())
			m.Of = &pb.MailboxRequest_Open{Open: &pb.MailboxOpen{Secret: secret.Bytes(), Kind: pb.MailboxOpen_KIND_CONTACT}}
		case i < 100:
			secret, _ := identity.InboxSecretFromBytes(secrets[i%20])
			m.Of = &pb.MailboxRequest_Deposit{Deposit: &pb.MailboxDeposit{Inbox: secret.ID().Bytes(), Item: randomItem(10_000)}}
		case i == 100:
			m.Of = &pb.MailboxRequest_Watch{Watch: &pb.MailboxWatch{Secrets: secrets}}
		default:
			m.Of = &pb.MailboxRequest_Terms{Terms: &pb.MailboxTermsRequest{}}
		}
		if err := r.send(m); err != nil {
			t.Fatal(err)
		}
	}
	<-done
	st := b.server.Stats()
	if st.Inboxes != 20 || st.Items != 20 || st.Bytes != 200_000 {
		t.Errorf("kept %+v", st)
	}
	if ok := codes[pb.MailboxReply_CODE_OK]; ok > 310 || ok+codes[pb.MailboxReply_CODE_BUSY] != 1000 {
		t.Errorf("answers: %v", codes)
	}
	other := b.client(1)
	open(t, other, b.ref(), Contact)
	if n := len(b.server.rates.of); n != 2 {
		t.Errorf("%d devices are remembered", n)
	}
}

// The buckets of many devices take bounded room, and full ones are forgotten.
func TestRatesAreBounded(t *testing.T) {
	now := newClock()
	r := newRates(DefaultServerLimits(), now.Now)
	for i := range maxAllowances + 100 {
		var d identity.DeviceID
		d[0], d[1], d[2] = byte(i), byte(i>>8), byte(i>>16)
		if !r.take(d, 100, 0) {
			t.Fatalf("device %d is refused", i)
		}
	}
	if len(r.of) != maxAllowances {
		t.Errorf("%d buckets", len(r.of))
	}
	now.add(time.Hour)
	r.take(identity.DeviceID{255, 255, 255}, 0, 0)
	if len(r.of) != 1 {
		t.Errorf("%d buckets after an hour", len(r.of))
	}
}
