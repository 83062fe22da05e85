package directory

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/wire"
	"hima/internal/wire/pb"
	"hima/node"
	"hima/node/nodetest"
)

// owner is account n with a device of its own for cards.
func ownerKey(n int) identity.DeviceKey { return identity.DeviceKeyFromSeed(seed(1<<22 + n)) }

func ownerCert(n int) identity.Certificate {
	return identity.NewCertificate(accountKey(n), ownerKey(n).ID(), day)
}

// genesisBy is the genesis of the i-th group that account n founds.
func genesisBy(n, i int) []byte {
	hash, nonce := sha256.Sum256(nil), sha256.Sum256(fmt.Append(nil, n, i))
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(&pb.Header{
		Feed: 1, Account: account(n).Bytes(), Device: ownerKey(n).ID().Bytes(), Seq: 1, Clock: 1, TimeMs: 1, Kind: 64,
		BodyHash: hash[:], BodyLen: 64, Certificate: ownerCert(n).Raw(), Nonce: nonce[:],
	})
	if err != nil {
		panic(err)
	}
	return b
}

// groupCard is a card of a group that the first of the owners founded, by the last.
func groupCard(t testing.TB, i int, name string, at time.Time, owners ...int) identity.GroupCard {
	t.Helper()
	genesis := genesisBy(owners[0], i)
	last := owners[len(owners)-1]
	c := identity.GroupCard{
		Genesis: genesis, Certificate: ownerCert(last), Name: name, Description: "about it", Size: 3, Join: "apply",
		Time: at, Expires: at.Add(identity.GroupCardLifetime),
		Admins: []identity.GroupContact{{Account: account(last), Devices: []identity.InviteDevice{{Device: ownerKey(last).ID()}}}},
	}
	for k := range len(owners) - 1 {
		p, err := identity.NewTransferProof(ownerKey(owners[k]), identity.TransferProof{
			Group: sha256.Sum256(genesis), Certificate: ownerCert(owners[k]), To: account(owners[k+1]), Time: at,
		})
		require.NoError(t, err)
		c.Transfers = append(c.Transfers, p)
	}
	c, err := identity.NewGroupCard(ownerKey(last), c)
	require.NoError(t, err)
	return c
}

func TestMergeGroups(t *testing.T) {
	old, newer := groupCard(t, 0, "n", day, 1), groupCard(t, 0, "n", day.Add(time.Hour), 1)
	heir, other := groupCard(t, 0, "n", day, 1, 2), groupCard(t, 0, "n", day, 1, 3)
	second := groupCard(t, 1, "n", day, 1)
	j := &joined{id: identity.NewNetworkID("town", device(1)), name: "town"}
	hear := func(c identity.GroupCard, from, rank int) heardGroup { return heardGroup{c, device(from), rank, j} }
	cards := func(fs []FoundGroup) (out []identity.GroupCard) {
		for _, f := range fs {
			out = append(out, f.Card)
		}
		return out
	}

	got := mergeGroups([]heardGroup{hear(old, 1, 0), hear(newer, 2, 0), hear(old, 3, 0), hear(second, 3, 1)}, nil)
	require.Equal(t, []identity.GroupCard{newer, second}, cards(got), "the newest card, and the group of which more told first")
	require.Equal(t, 3, got[0].Heard)
	require.Equal(t, "town", got[0].NetworkName)
	require.False(t, got[0].Disputed)

	// Who handed the group over may show the old card for ever.
	got = mergeGroups([]heardGroup{hear(newer, 1, 0), hear(newer, 2, 0), hear(heir, 3, 0)}, nil)
	require.Equal(t, []identity.GroupCard{heir}, cards(got))
	got = mergeGroups([]heardGroup{hear(heir, 3, 0), hear(newer, 1, 0)}, nil)
	require.Equal(t, []identity.GroupCard{heir}, cards(got))

	// Two heirs: both are shown, and that they contradict each other.
	got = mergeGroups([]heardGroup{hear(heir, 1, 0), hear(other, 2, 0), hear(heir, 3, 0)}, nil)
	require.ElementsMatch(t, []identity.GroupCard{heir, other}, cards(got))
	require.True(t, got[0].Disputed && got[1].Disputed)

	got = mergeGroups([]heardGroup{hear(old, 1, 0)}, []identity.GroupCard{old})
	require.Equal(t, SourceOwn, got[0].Source)
	require.Equal(t, 1, got[0].Heard)

	// One owner makes heir after heir: few are shown.
	var many []heardGroup
	for i := range 3 * maxGroupOwners {
		many = append(many, hear(groupCard(t, 0, "n", day, 1, 10+i), i, 0))
	}
	require.Len(t, mergeGroups(many, nil), maxGroupOwners)
}

// A device that answers with as much as fits pushes nobody out, and one that says the same twice counts once.
func TestMergeGroupsIsFair(t *testing.T) {
	j := &joined{name: "town"}
	var heard []heardGroup
	for liar := range maxGroupProviders {
		for i := range maxGroupCards {
			heard = append(heard, heardGroup{groupCard(t, i, "n", day, 100+liar), device(liar), i, j})
		}
	}
	honest := groupCard(t, 0, "n", day, 1)
	heard = append(heard, heardGroup{honest, device(500), 0, j}, heardGroup{honest, device(500), 1, j}, heardGroup{honest, device(501), 0, j})
	got := mergeGroups(heard, nil)
	require.Len(t, got, maxFoundGroups)
	require.Equal(t, honest, got[0].Card, "two told of it")
	require.Equal(t, 2, got[0].Heard)
}

func TestGroupAnswerLimits(t *testing.T) {
	var s groupShares
	s.init()
	n := 0
	for range 2 * groupAskerBurst {
		if s.allow(device(1), day) {
			n++
		}
	}
	require.Equal(t, groupAskerBurst, n)
	require.True(t, s.allow(device(2), day), "another device is not held back")
	n = 0
	for i := range 2 * maxGroupAskers {
		if s.allow(device(10+i), day) {
			n++
		}
	}
	require.LessOrEqual(t, n, groupBurst)
	require.LessOrEqual(t, len(s.peers), maxGroupAskers)
	later := day.Add(time.Hour)
	require.True(t, s.allow(device(1), later))
	require.True(t, s.allow(device(1<<16), later), "those who were quiet are forgotten")

	// What is told of and what is heard is bounded.
	for i := range 2 * maxShares {
		err := s.put(share{card: identity.GroupCard{Group: sha256.Sum256(fmt.Append(nil, i))}})
		require.Equal(t, i >= maxShares, err != nil)
	}
	for i := range 2 * maxHeardGroups {
		g := identity.GroupCard{Group: sha256.Sum256(fmt.Append(nil, i))}
		s.note(sha256.Sum256(fmt.Append(nil, i)), g)
		s.hear([]FoundGroup{{Card: g}})
	}
	require.Len(t, s.good, maxHeardGroups)
	require.Len(t, s.heard, maxHeardGroups)
}

func TestGroupAnswers(t *testing.T) {
	w := newTown(t, 1, 0)
	p := w.dir(1, memDB(t))
	require.ErrorIs(t, p.PublishGroup(identity.GroupCard{}), ErrBadGroupName)
	require.ErrorIs(t, p.PublishGroup(groupCard(t, 0, "\u200b", w.now(), 1)), ErrBadGroupName)
	require.ErrorIs(t, p.PublishGroup(groupCard(t, 0, "n", w.now().AddDate(0, 0, -9), 1)), identity.ErrExpired)
	ask := func(name string) [][]byte {
		return p.groupAnswer(&pb.GroupQuestion{Version: 1, Name: name}).Cards
	}
	require.Empty(t, ask("go users"))
	c := groupCard(t, 0, "Go Users", w.now(), 1)
	require.NoError(t, p.AnswerGroup(c))
	require.Equal(t, [][]byte{c.Raw()}, ask("go users"))
	require.Empty(t, ask("Go Users"), "the question is folded")
	require.Empty(t, p.groupAnswer(&pb.GroupQuestion{Name: "go users"}).Cards, "no version")
	known, ok := p.KnownGroup(c.Group)
	require.True(t, ok)
	require.Equal(t, c, known)
	renamed := groupCard(t, 0, "Rust Users", w.now(), 1)
	require.NoError(t, p.AnswerGroup(renamed))
	require.Empty(t, ask("go users"))
	require.Len(t, ask("rust users"), 1)
	w.clock.add(identity.GroupCardLifetime + identity.ClockSlack + time.Second)
	require.Empty(t, ask("rust users"), "a card that expired is not shown")
	_, ok = p.KnownGroup(c.Group)
	require.False(t, ok)
	p.UnpublishGroup(c.Group)

	// As many as fit one frame.
	for i := range 2 * maxGroupCards {
		require.NoError(t, p.PublishGroup(groupCard(t, i, "n", w.now(), 1)))
	}
	require.Len(t, ask("n"), maxGroupCards)
}

func TestCheckGroupCards(t *testing.T) {
	w := newTown(t, 1, 0)
	p := w.dir(1, memDB(t))
	now := w.now()
	good := groupCard(t, 0, "n", now, 2, 3)
	expired, future := groupCard(t, 1, "n", now.AddDate(0, 0, -9), 2), groupCard(t, 2, "n", now.AddDate(0, 0, 2), 2)
	forged := good.Raw()
	forged[len(forged)-1] ^= 1
	var s pb.Signed
	require.NoError(t, proto.Unmarshal(good.Raw(), &s))
	sign := func(change func(*pb.GroupCard)) []byte {
		var m pb.GroupCard
		require.NoError(t, proto.Unmarshal(s.Payload, &m))
		change(&m)
		b, err := proto.Marshal(&m)
		require.NoError(t, err)
		raw, err := proto.Marshal(&pb.Signed{Payload: b, Signature: ownerKey(3).Sign(identity.DomainGroupCard, b)})
		require.NoError(t, err)
		return raw
	}
	check := func(raw ...[]byte) []identity.GroupCard { return p.checkGroupCards(&pb.GroupCards{Cards: raw}, "n") }
	require.Equal(t, []identity.GroupCard{good}, check(sign(func(*pb.GroupCard) {})))
	for what, raw := range map[string][]byte{
		"expired": expired.Raw(), "from the future": future.Raw(), "forged": forged, "nothing": nil,
		"another name":  groupCard(t, 3, "m", now, 2).Raw(),
		"wrong genesis": sign(func(m *pb.GroupCard) { m.Genesis = genesisBy(2, 7) }),
		"cut chain":     sign(func(m *pb.GroupCard) { m.Transfers = nil }),
		"eight days":    sign(func(m *pb.GroupCard) { m.ExpiresMs += 86_400_000 }),
	} {
		require.Empty(t, check(raw), what)
		require.Equal(t, []identity.GroupCard{good}, check(raw, good.Raw(), raw), what)
	}
	require.Len(t, check(good.Raw(), good.Raw()), 1)
	// A device that its account revoked signs nothing.
	r, err := identity.NewAccountRecord(accountKey(3), identity.RecordConfig{
		Now: now, Devices: []identity.Certificate{cert(3, 3)}, Revoked: []identity.DeviceID{ownerKey(3).ID()},
	})
	require.NoError(t, err)
	_, err = p.Admit(t.Context(), r.Raw())
	require.NoError(t, err)
	require.Empty(t, check(good.Raw()))
}

// FuzzGroupCards: an answer of /hima/group/1 is refused, or good cards of the name that was asked for.
func FuzzGroupCards(f *testing.F) {
	db := memDB(f)
	d, err := New(Config{DB: db, Certificate: cert(1, 1), Now: func() time.Time { return day }})
	require.NoError(f, err)
	good := groupCard(f, 0, "n", day, 2, 3)
	f.Add(frame(f, &pb.GroupCards{Cards: [][]byte{good.Raw(), groupCard(f, 1, "m", day, 2).Raw()}}))
	f.Add(frame(f, &pb.GroupCards{}))
	f.Add([]byte{0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var m pb.GroupCards
		if wire.Read(bufio.NewReader(bytes.NewReader(b)), wire.MaxGroupFrame, &m) != nil {
			return
		}
		for _, c := range d.checkGroupCards(&m, "n") {
			if !bytes.Equal(c.Raw(), good.Raw()) {
				t.Fatal("a card that nobody signed")
			}
		}
	})
}

// FuzzGroupQuestion: whatever is asked, the answer can be read.
func FuzzGroupQuestion(f *testing.F) {
	d, err := New(Config{DB: memDB(f), Certificate: cert(1, 1), Now: func() time.Time { return day }})
	require.NoError(f, err)
	for i := range 9 {
		require.NoError(f, d.PublishGroup(groupCard(f, i, "n", day, 2)))
	}
	f.Add(frame(f, &pb.GroupQuestion{Version: 1, Name: "n"}))
	f.Add(frame(f, &pb.GroupQuestion{Version: 2, Name: "N "}))
	f.Add([]byte{0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var q pb.GroupQuestion
		if wire.Read(bufio.NewReader(bytes.NewReader(b)), wire.MaxGroupFrame, &q) != nil {
			return
		}
		a := d.groupAnswer(&q)
		if _, err := wire.Append(nil, a); err != nil || wire.Size(a) > wire.MaxGroupFrame || len(a.Cards) > maxGroupCards {
			t.Fatalf("an answer of %d bytes: %v", wire.Size(a), err)
		}
	})
}

// People nearby tell each other of public groups without any network; who hides on the LAN does not.
func TestGroupsNearby(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newLAN(t, profile{"alice", "A", false}, profile{"bob", "B", false}, profile{"carol", "C", true}, profile{"dave", "D", false})
		time.Sleep(10 * time.Second)
		c := groupCard(t, 0, "Go Users", time.Now(), 1)
		require.NoError(t, w.dirs[1].PublishGroup(c))
		require.NoError(t, w.dirs[3].AnswerGroup(c))
		require.NoError(t, w.dirs[2].PublishGroup(groupCard(t, 1, "Go Users", time.Now(), 2)))
		start := time.Now()
		found, unreachable, err := w.dirs[0].FindGroups(t.Context(), " go  USERS")
		require.NoError(t, err)
		require.Empty(t, unreachable)
		require.Len(t, found, 1)
		require.Equal(t, c, found[0].Card)
		require.Equal(t, SourceNearby, found[0].Source)
		require.Equal(t, 2, found[0].Heard, "the owner and a member")
		t.Logf("found nearby in %v", time.Since(start))
		_, err = w.dirs[0].AskGroup(t.Context(), nodetest.Key(2).ID(), "Go Users")
		require.Error(t, err, "who hides does not answer")
		cards, err := w.dirs[0].AskGroup(t.Context(), nodetest.Key(1).ID(), "Go Users")
		require.NoError(t, err)
		require.Equal(t, []identity.GroupCard{c}, cards)

		w.dirs[1].UnpublishGroup(c.Group)
		w.dirs[3].UnpublishGroup(c.Group)
		found, _, err = w.dirs[0].FindGroups(t.Context(), "go users")
		require.NoError(t, err)
		require.Empty(t, found)
		known, ok := w.dirs[0].KnownGroup(c.Group)
		require.True(t, ok, "what a search showed can be named")
		require.Equal(t, c, known)
		_, _, err = w.dirs[0].FindGroups(t.Context(), " \u200b")
		require.ErrorIs(t, err, ErrBadGroupName)
	})
}

// On several networks: what is told of is found on each, by somebody who knows nobody, and what is told of no more is not.
func TestGroupsOnNetworks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 1, 50*time.Millisecond)
		other := s.beside("other")
		owner, _ := s.person()
		_, _, err := owner.JoinNetwork(s.ctx, other.link.String())
		require.NoError(t, err)
		admin, _ := other.person()
		here, _ := s.person()
		there, _ := other.person()
		s.fill(4)
		now := time.Now()
		c := groupCard(t, 0, "葵的群", now, 1, 2)
		require.NoError(t, owner.PublishGroup(c))
		require.NoError(t, admin.PublishGroup(groupCard(t, 0, "葵的群", now.Add(-time.Hour), 1)), "an old card of before the group changed hands")
		require.NoError(t, admin.AnswerGroup(groupCard(t, 1, "quiet", now, 3)))
		time.Sleep(time.Minute)

		for _, d := range []*Directory{here, there} {
			start := time.Now()
			found, unreachable, err := d.FindGroups(t.Context(), "葵的群")
			require.NoError(t, err)
			require.Empty(t, unreachable)
			require.Len(t, found, 1)
			require.Equal(t, c, found[0].Card)
			require.Equal(t, SourceNetwork, found[0].Source)
			t.Logf("found on network %s by %d in %v", found[0].NetworkName, found[0].Heard, time.Since(start))
		}
		start := time.Now()
		found, _, err := there.FindGroups(t.Context(), "quiet")
		require.NoError(t, err)
		require.Empty(t, found, "what is answered only is not said in the table")
		found, _, err = here.FindGroups(t.Context(), "nobody's name")
		require.NoError(t, err)
		require.Empty(t, found)
		t.Logf("two names that nobody has took %v", time.Since(start))

		// The owner makes it private: others may still say where to ask, and nobody says anything.
		owner.UnpublishGroup(c.Group)
		admin.UnpublishGroup(c.Group)
		found, _, err = here.FindGroups(t.Context(), "葵的群")
		require.NoError(t, err)
		require.Empty(t, found)

		// A network whose table nobody answers is said.
		lonely := identity.NetworkLink{Name: "gone", Founder: device(1), Bootstraps: []identity.InviteDevice{{Device: device(1), Addrs: []string{"/ip4/11.99.0.1/tcp/1"}}}}
		_, _, err = here.JoinNetwork(s.ctx, lonely.String())
		require.NoError(t, err)
		_, unreachable, err := here.FindGroups(t.Context(), "葵的群")
		require.NoError(t, err)
		require.Equal(t, []string{"gone"}, unreachable)
	})
}

// beside is another network in the same world.
func (s *sim) beside(name string) *sim {
	o := &sim{t: s.t, w: s.w, conns: s.conns, ctx: s.ctx}
	b := s.w.AddBootstrap(node.RelayLimits{})
	o.boots = []int{b}
	o.link = identity.NetworkLink{Name: name, Founder: nodetest.Key(b).ID(), Bootstraps: []identity.InviteDevice{{Device: nodetest.Key(b).ID(), Addrs: s.w.Addrs(b)}}}
	o.tables = []*standing{o.table(b, nil)}
	return o
}

// Liars say that they answer for the name: with forged and foreign cards, with too much, or with nothing ever. The group
// is found all the same, in bounded time, and what they say is not shown.
func TestGroupsAmongLiars(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, 1, 50*time.Millisecond)
		now := time.Now()
		c := groupCard(t, 0, "n", now, 1)
		expired, foreign := groupCard(t, 1, "n", now.AddDate(0, 0, -10), 2), groupCard(t, 2, "m", now, 2)
		forged := c.Raw()
		forged[40] ^= 1
		var junk [][]byte
		for range 1000 {
			junk = append(junk, forged)
		}
		key := identity.GroupNameKey(s.link.ID(), "n")
		for i := range 12 {
			at := s.w.AddPlain(s.conns)
			st := s.table(at, nil)
			s.w.Node(at).Handle(GroupProtocol, func(str *node.Stream) {
				switch i % 4 {
				case 0: // never a word
					<-s.ctx.Done()
				case 1:
					_ = wire.Write(str, wire.MaxGroupFrame, &pb.GroupCards{Cards: [][]byte{forged, expired.Raw(), foreign.Raw(), nil}})
				case 2:
					_ = wire.Write(str, 1<<30, &pb.GroupCards{Cards: junk})
				case 3:
					_, _ = str.Write([]byte{5, 1, 2, 3})
				}
				str.Reset()
			})
			s.w.Connect(at, s.boots[0])
			time.Sleep(time.Second)
			require.NoError(t, st.table.Provide(t.Context(), key))
		}
		owner, _ := s.person()
		finder, _ := s.person()
		require.NoError(t, owner.PublishGroup(c))
		time.Sleep(time.Minute)
		start := time.Now()
		found, _, err := finder.FindGroups(t.Context(), "n")
		took := time.Since(start)
		require.NoError(t, err)
		require.Len(t, found, 1)
		require.Equal(t, c, found[0].Card)
		require.LessOrEqual(t, took, searchTimeout+time.Second)
		t.Logf("found among 12 liars in %v", took)
	})
}

// Said again every twelve hours, at once when somebody has come, and no more when it is told of no more.
func TestGroupsAreSaidAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTownAt(t, 1, 30, nil, time.Now)
		// No database: in virtual time one costs half a second for each hour.
		p, j := &Directory{now: time.Now, log: slog.New(slog.DiscardHandler)}, newJoined(savedNetwork{Name: w.link.Name, Founder: w.link.Founder})
		p.groups.init()
		table := &cloudTable{w.cloud, w.cloud.add([32]byte{1}, device(1))}
		p.nets.all = []*joined{j}
		j.setDHT(table)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { p.provideLoop(ctx, j, table) })
		defer wg.Wait()
		defer cancel()
		said := func() int {
			w.cloud.mu.Lock()
			defer w.cloud.mu.Unlock()
			return w.cloud.provides
		}
		time.Sleep(time.Second)
		c := groupCard(t, 0, "n", time.Now(), 1)
		require.NoError(t, p.AnswerGroup(groupCard(t, 1, "m", time.Now(), 1)))
		synctest.Wait()
		require.Zero(t, said())
		require.NoError(t, p.PublishGroup(c))
		synctest.Wait()
		require.Equal(t, 1, said())
		time.Sleep(republish + time.Minute)
		require.Equal(t, 2, said())
		require.NoError(t, p.PublishGroup(groupCard(t, 0, "renamed", time.Now(), 1)))
		synctest.Wait()
		require.Equal(t, 3, said())
		who := func(name string) []identity.DeviceID {
			w.cloud.mu.Lock()
			defer w.cloud.mu.Unlock()
			return slices.Clone(w.cloud.provided[identity.GroupNameKey(w.link.ID(), name)])
		}
		require.Empty(t, who("n"))
		require.Len(t, who("renamed"), 1)
		p.UnpublishGroup(c.Group)
		synctest.Wait()
		require.Empty(t, who("renamed"))
		time.Sleep(republish + time.Minute)
		require.Equal(t, 3, said())
	})
}

func TestFindGroupsAlone(t *testing.T) {
	w := newTown(t, 1, 0)
	p := w.dir(1, memDB(t))
	p.askGroups = func(context.Context, identity.DeviceID, []string, string) (*pb.GroupCards, error) {
		return nil, node.ErrUnreachable
	}
	_, _, err := p.FindGroups(t.Context(), "n")
	require.ErrorIs(t, err, ErrNoNetwork)
	c := groupCard(t, 0, "n", w.now(), 1)
	require.NoError(t, p.AnswerGroup(c))
	found, _, err := p.FindGroups(t.Context(), "n")
	require.NoError(t, err)
	require.Equal(t, c, found[0].Card, "what this node tells of itself")
}
