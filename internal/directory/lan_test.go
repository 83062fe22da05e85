package directory

import (
	"bufio"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"hima/identity"
	"hima/internal/text"
	"hima/internal/wire"
	"hima/internal/wire/pb"
	"hima/node"
	"hima/node/nodetest"
	"hima/storage"
)

// lanWorld is nodes on a simulated LAN, each with a directory that runs.
type lanWorld struct {
	*nodetest.World
	t    *testing.T
	dirs []*Directory
	mu   sync.Mutex
	seen map[int][]Person // what OnNearby told
	show map[int]profile
}

type profile struct {
	username, nickname string
	hidden             bool
}

// lanCert is the certificate of the i-th simulated device, of account i.
func lanCert(i int) identity.Certificate {
	return identity.NewCertificate(accountKey(i), nodetest.Key(i).ID(), day)
}

func newLAN(t *testing.T, profiles ...profile) *lanWorld {
	w := &lanWorld{World: nodetest.New(t, len(profiles)), t: t, seen: map[int][]Person{}, show: map[int]profile{}}
	for i, p := range profiles {
		w.show[i] = p
		w.dirs = append(w.dirs, w.start(i))
	}
	return w
}

func (w *lanWorld) start(i int) *Directory {
	db, err := storage.Open(storage.Config{})
	require.NoError(w.t, err)
	d, err := New(Config{
		DB: db, Node: w.Node(i), Certificate: lanCert(i),
		Profile: func() (string, string, bool) {
			w.mu.Lock()
			defer w.mu.Unlock()
			p := w.show[i]
			return p.username, p.nickname, !p.hidden
		},
		OnNearby: func(p Person) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.seen[i] = append(w.seen[i], p)
		},
	})
	require.NoError(w.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		require.NoError(w.t, <-done)
		db.Close()
	})
	return d
}

func (w *lanWorld) set(i int, p profile) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.show[i] = p
}

func names(people []Person) []string {
	var out []string
	for _, p := range people {
		out = append(out, p.Username)
	}
	return out
}

func TestPeopleOnALAN(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newLAN(t, profile{"alice", "Alice 葵", false}, profile{"bob", "Bob\x1b[31m\u202e", false}, profile{"carol", "C", true})
		time.Sleep(10 * time.Second)
		require.Equal(t, []string{"bob"}, names(w.dirs[0].Nearby()))
		require.Equal(t, []string{"alice"}, names(w.dirs[1].Nearby()))
		require.Equal(t, []string{"alice", "bob"}, names(w.dirs[2].Nearby()), "who hides may look")
		b := w.dirs[0].Nearby()[0]
		require.Equal(t, account(1), b.Account)
		require.Equal(t, nodetest.Key(1).ID(), b.Device)
		require.NotContains(t, b.Nickname, "\x1b")
		require.NotContains(t, b.Nickname, "\u202e")
		require.Contains(t, b.Address, "/ip4/")
		require.Len(t, w.dirs[0].Lookup("BOB"), 1)
		require.Empty(t, w.dirs[0].Lookup("dave"))
		require.Empty(t, w.dirs[0].Lookup("not a name!"))
		w.mu.Lock()
		require.Equal(t, []string{"bob"}, names(w.seen[0]), "the hook is called once")
		w.mu.Unlock()
		// Being asked is also being met.
		require.Contains(t, w.dirs[0].Devices(account(1)), nodetest.Key(1).ID())
		require.False(t, w.dirs[0].LastSeen(nodetest.Key(1).ID()).IsZero())
		require.NotEmpty(t, w.dirs[0].Addrs(nodetest.Key(1).ID()))

		// Bob leaves: his connection ends, he does not answer, he is off the list, long before he would expire.
		w.Stop(1)
		time.Sleep(45 * time.Second)
		require.Empty(t, w.dirs[0].Nearby())
	})
}

func TestTwoPeopleWithOneName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newLAN(t, profile{username: "alice"}, profile{username: "bob"}, profile{username: "ＢＯＢ"})
		time.Sleep(10 * time.Second)
		people := w.dirs[0].Lookup("bob")
		require.Len(t, people, 2, "full-width letters fold to the same name")
		require.NotEqual(t, people[0].Account, people[1].Account)
	})
}

func TestHidingTakesEffect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newLAN(t, profile{username: "alice"}, profile{username: "bob"})
		time.Sleep(10 * time.Second)
		require.Len(t, w.dirs[0].Nearby(), 1)
		w.set(1, profile{username: "bob", hidden: true})
		time.Sleep(askAgain)
		w.Cut(0, 1)
		w.Heal(0, 1) // announces anew
		time.Sleep(time.Minute)
		require.Empty(t, w.dirs[0].Nearby())
		w.set(1, profile{username: "bobby"})
		w.Heal(0, 1)
		time.Sleep(time.Minute)
		require.Equal(t, []string{"bobby"}, names(w.dirs[0].Nearby()))
	})
}

func TestCutOffAndBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newLAN(t, profile{username: "alice"}, profile{username: "bob"})
		time.Sleep(10 * time.Second)
		w.Cut(0, 1)
		time.Sleep(unseenAfter + 2*time.Minute)
		require.Empty(t, w.dirs[0].Nearby())
		w.Heal(0, 1)
		time.Sleep(time.Minute)
		require.Equal(t, []string{"bob"}, names(w.dirs[0].Nearby()))
		w.mu.Lock()
		defer w.mu.Unlock()
		require.Len(t, w.seen[0], 2, "the hook tells of who came back")
	})
}

// TestHostileAnswers: a device on the LAN that answers with anything at all is not listed, costs nothing lasting, and
// the honest one beside it is found.
func TestHostileAnswers(t *testing.T) {
	frame := func(m *pb.LanProfile) func(*node.Stream) {
		return func(s *node.Stream) {
			b, err := wire.Append(nil, m)
			if err == nil {
				s.Write(b)
			}
			s.Close()
		}
	}
	raw := func(b string) func(*node.Stream) {
		return func(s *node.Stream) { s.Write([]byte(b)); s.Close() }
	}
	const bad = 1 // index of the hostile node
	for name, answer := range map[string]func(*node.Stream){
		"nothing":          raw(""),
		"reset":            func(s *node.Stream) { s.Reset() },
		"silence":          nil, // never answers
		"garbage":          raw(strings.Repeat("\xff", 5000)),
		"oversized length": raw("\xff\xff\x7f"),
		"oversized frame":  frame(&pb.LanProfile{Certificate: lanCert(bad).Raw(), Nickname: strings.Repeat("a", 10_000)}),
		"endless": func(s *node.Stream) {
			for {
				if _, err := s.Write(make([]byte, 1024)); err != nil {
					return
				}
			}
		},
		"slow drip": func(s *node.Stream) {
			for {
				if _, err := s.Write([]byte{0x80}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		},
		"half a frame":          raw("\x20\x0a"),
		"no certificate":        frame(&pb.LanProfile{Username: "bob"}),
		"forged certificate":    frame(&pb.LanProfile{Certificate: append(lanCert(bad).Raw()[:142], 0), Username: "bob"}),
		"another's certificate": frame(&pb.LanProfile{Certificate: lanCert(2).Raw(), Username: "carol"}),
		"ours":                  frame(&pb.LanProfile{Certificate: lanCert(0).Raw(), Username: "alice"}),
		"our account": frame(&pb.LanProfile{
			Username:    "alice",
			Certificate: identity.NewCertificate(accountKey(0), nodetest.Key(bad).ID(), day).Raw(),
		}),
		"long agent":  frame(&pb.LanProfile{Certificate: lanCert(bad).Raw(), Agent: strings.Repeat("a", maxAgent+1)}),
		"bad unicode": raw("\x06\x12\x04\xff\xfe\xfd\xfc"),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newLAN(t, profile{username: "alice"}, profile{}, profile{username: "carol"})
				end := make(chan struct{})
				t.Cleanup(func() { close(end) })
				w.Node(bad).Handle(LanProtocol, func(s *node.Stream) {
					if answer == nil {
						<-end
						return
					}
					answer(s)
				})
				time.Sleep(40 * time.Second)
				require.Equal(t, []string{"carol"}, names(w.dirs[0].Nearby()))
				require.Empty(t, w.dirs[0].Devices(account(bad)))
				if name != "our account" {
					require.Empty(t, w.dirs[0].Addrs(nodetest.Key(bad).ID()))
				}
			})
		})
	}
}

// TestHostileNames: what a peer calls itself cannot move a cursor, take a screen, or look like a registered name.
func TestHostileNames(t *testing.T) {
	dev := nodetest.Key(1).ID()
	for _, n := range []string{
		"\x1b[2J\x1b]0;owned\a", "\u202egnp.exe\u202c", "a\r\nb", "\u200b\u200b\u200b", strings.Repeat("Z̴͓͍͎", 200),
		strings.Repeat("a", 3000), "\x00", "\u0085\u2028\u2029", "аlice", "12D3KooWGZQ", "hima1qqqqqqqqq", "user:bob", "ＡＬＩＣＥ",
	} {
		_, p, err := checkProfile(&pb.LanProfile{Certificate: lanCert(1).Raw(), Username: n, Nickname: n}, dev)
		require.NoError(t, err)
		require.Equal(t, text.Nickname(p.Nickname), p.Nickname, "%q", n)
		require.False(t, strings.ContainsAny(p.Nickname, "\x1b\a\r\n\x00\u202e\u0085\u2028"), "%q", p.Nickname)
		require.LessOrEqual(t, len(p.Nickname), 2000)
		if p.Username != "" {
			again, err := text.Username(p.Username)
			require.NoError(t, err)
			require.Equal(t, again, p.Username)
		}
	}
}

// TestRevokedDeviceIsNotListed: a certificate is worth nothing once the account revoked the device (R11).
func TestRevokedDeviceIsNotListed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newLAN(t, profile{username: "alice"}, profile{username: "bob"})
		other := identity.NewCertificate(accountKey(1), device(77), day)
		r, err := identity.NewAccountRecord(accountKey(1), identity.RecordConfig{
			Now:     day,
			Devices: []identity.Certificate{other}, Revoked: []identity.DeviceID{nodetest.Key(1).ID()},
		})
		require.NoError(t, err)
		_, err = w.dirs[0].Admit(t.Context(), r.Raw())
		require.NoError(t, err)
		time.Sleep(time.Minute)
		w.dirs[0].recheck()
		time.Sleep(time.Minute)
		require.Empty(t, w.dirs[0].Nearby())
	})
}

func askRaw(ctx context.Context, n *node.Node, to identity.DeviceID, question string) (*pb.LanProfile, error) {
	s, err := n.Open(ctx, to, LanProtocol)
	if err != nil {
		return nil, err
	}
	defer s.Reset()
	s.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := s.Write([]byte(question)); err != nil {
		return nil, err
	}
	s.CloseWrite()
	var m pb.LanProfile
	return &m, wire.Read(bufio.NewReader(s), wire.MaxLanFrame, &m)
}

const goodQuestion = "\x02\x08\x01"

// TestHostileQuestions: garbage gets no answer, a flood gets few, and afterwards honest ones get theirs.
func TestHostileQuestions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := nodetest.New(t, 3)
		db, err := storage.Open(storage.Config{})
		require.NoError(t, err)
		defer db.Close()
		_, err = New(Config{
			DB: db, Node: w.Node(0), Certificate: lanCert(0),
			Profile: func() (string, string, bool) { return "alice", "Alice", true },
		})
		require.NoError(t, err)
		to := nodetest.Key(0).ID()
		// Not running and not announced, with an address that is none of a LAN: no answer.
		w.Connect(1, 0)
		_, err = askRaw(t.Context(), w.Node(1), to, goodQuestion)
		require.Error(t, err)
	})
	synctest.Test(t, func(t *testing.T) {
		w := newLAN(t, profile{username: "alice"}, profile{username: "bob"}, profile{username: "carol"})
		time.Sleep(time.Minute)
		to := nodetest.Key(0).ID()
		for _, q := range []string{"", "\x00", "\x02\x08\x00", "\xff\xff\xff\x7f", "\x02\xff\xff", "\x05\x08"} {
			_, err := askRaw(t.Context(), w.Node(1), to, q)
			require.Error(t, err, "%q", q)
			time.Sleep(15 * time.Second) // the limit is another test
		}
		m, err := askRaw(t.Context(), w.Node(1), to, goodQuestion)
		require.NoError(t, err)
		require.Equal(t, "alice", m.Username)
		time.Sleep(time.Minute)
		answered := 0
		for range 100 {
			if _, err := askRaw(t.Context(), w.Node(1), to, goodQuestion); err == nil {
				answered++
			}
		}
		require.LessOrEqual(t, answered, peerBurst+2)
		require.NotZero(t, answered)
		_, err = askRaw(t.Context(), w.Node(2), to, goodQuestion)
		require.NoError(t, err, "others are not made to wait")
	})
}

// anyDevice is an ID where nobody asks for a key behind it.
func anyDevice(i int) identity.DeviceID { return identity.DeviceID{byte(i), byte(i >> 8), 1} }

func TestAnswerLimitTablesAreBounded(t *testing.T) {
	var l lan
	l.init()
	allowed := 0
	for i := range 10 * maxNearby {
		if l.allowAnswer(anyDevice(i%2000), day) {
			allowed++
		}
	}
	require.LessOrEqual(t, len(l.peers), maxNearby)
	require.LessOrEqual(t, allowed, answerBurst)
}

func TestNearbyIsBounded(t *testing.T) {
	d := newDirectory(t, openDB(t, ""), nil)
	for i := range 2 * maxNearby {
		d.appear(Person{Account: identity.AccountID(anyDevice(i)), Device: anyDevice(i), Username: fmt.Sprint("u", i), Seen: day.Add(time.Duration(i) * time.Millisecond)})
	}
	require.Len(t, d.Nearby(), maxNearby)
	for i := range 10 * maxQueue {
		d.enqueue(anyDevice(i), false)
	}
	require.LessOrEqual(t, len(d.lan.queued), maxQueue)
	for i := range 10 * maxNearby {
		d.settle(anyDevice(i), i%2 == 0)
	}
	require.LessOrEqual(t, len(d.lan.asked), 2*maxNearby)
}

func TestOneEntryPerAccount(t *testing.T) {
	d := newDirectory(t, openDB(t, ""), nil)
	d.appear(Person{Account: account(1), Device: device(1), Seen: day.Add(-time.Minute)})
	d.appear(Person{Account: account(1), Device: device(2), Seen: day})
	d.appear(Person{Account: account(2), Device: device(3), Seen: day.Add(-unseenAfter)})
	require.Equal(t, []Person{{Account: account(1), Device: device(2), Seen: day}}, d.Nearby())
	d.sweep()
	require.Len(t, d.lan.people, 2)
}

func TestOnLAN(t *testing.T) {
	own := []string{"/ip4/203.0.113.7/tcp/1", "/ip6/2001:db8:1:2::7/tcp/1"}
	for addr, want := range map[string]bool{
		"/ip4/192.168.1.1/tcp/1":                       true,
		"/ip4/10.1.2.3/udp/1/quic-v1":                  true,
		"/ip4/172.31.0.1/tcp/1":                        true,
		"/ip4/169.254.3.4/tcp/1":                       true,
		"/ip4/127.0.0.1/tcp/1":                         true,
		"/ip6/::1/tcp/1":                               true,
		"/ip6/fd00::1/tcp/1":                           true,
		"/ip6/fe80::1/tcp/1":                           true,
		"/ip6/::ffff:10.0.0.1/tcp/1":                   true,
		"/ip4/203.0.113.200/tcp/1":                     true,
		"/ip6/2001:db8:1:2:ffff::1/tcp/1":              true,
		"/ip4/203.0.114.7/tcp/1":                       false,
		"/ip6/2001:db8:1:3::7/tcp/1":                   false,
		"/ip4/8.8.8.8/tcp/1":                           false,
		"/ip4/10.0.0.1/tcp/1/p2p/12D3KooW/p2p-circuit": false,
		"/dns4/localhost/tcp/1":                        false,
		"":                                             false,
		"/ip4":                                         false,
		"10.0.0.1":                                     false,
	} {
		require.Equal(t, want, onLAN(addr, own), addr)
	}
}

func TestNewChecks(t *testing.T) {
	_, err := New(Config{Certificate: cert(0, 0)})
	require.Error(t, err)
	_, err = New(Config{DB: openDB(t, "")})
	require.Error(t, err)
	// Without a network Run waits for its end.
	d := newDirectory(t, openDB(t, ""), nil)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	require.NoError(t, d.Run(ctx))
}

func FuzzCheckProfile(f *testing.F) {
	good, err := wire.Append(nil, &pb.LanProfile{Certificate: lanCert(1).Raw(), Username: "bob", Nickname: "Bob", Agent: "hima"})
	require.NoError(f, err)
	f.Add(good)
	f.Add([]byte{0})
	f.Add([]byte("\x06\x12\x04\xff\xfe\xfd\xfc"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m pb.LanProfile
		if wire.Read(bufio.NewReader(strings.NewReader(string(b))), wire.MaxLanFrame, &m) != nil {
			return
		}
		_, p, err := checkProfile(&m, nodetest.Key(1).ID())
		if err == nil && (p.Account != account(1) || text.Nickname(p.Nickname) != p.Nickname) {
			t.Fatalf("believed: %+v", p)
		}
	})
}
