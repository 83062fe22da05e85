package groups

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"hima/groups/roster"
	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// showsForks does what sessions do about forks: proofs go to whoever lists a feed beyond the place, and two who hold different
// entries with one number find out.
func (p *peer) showsForks(to *peer, conv ID) {
	p.w.t.Helper()
	var heads []feed.Head
	to.view(func(tx *storage.Tx) (err error) { heads, err = to.rep.Heads(tx, conv); return err })
	for _, h := range heads {
		id := feed.FeedID{Conversation: conv, Number: h.Number, Device: h.Device}
		if h.Number != feed.Control || h.Last == 0 || h.Device == to.self.Device {
			continue
		}
		if proof := p.proofOf(id); proof != nil {
			if parted(*proof) <= h.Last {
				to.update(func(tx *storage.Tx) error { return to.rep.Prove(tx, *proof) })
			}
			continue
		}
		mine, ok := p.entryAt(id, h.Last)
		theirs, _ := to.entryAt(id, h.Last)
		if !ok || mine.ID == theirs.ID {
			continue
		}
		var err error
		for from := uint64(1); err == nil && from <= h.Last; { // where they part may lie behind the end of the first run
			run, bad := p.rep.ReadRun(id, from)
			require.NoError(p.w.t, bad)
			err = to.rep.Take(context.Background(), p.self, run)
			from += uint64(len(run.GetEntries()))
		}
		require.ErrorIs(p.w.t, err, feed.ErrFork)
		proof := to.proofOf(id)
		require.NotNil(p.w.t, proof)
		p.update(func(tx *storage.Tx) error { return p.rep.Prove(tx, *proof) })
	}
}

func (p *peer) proofOf(id feed.FeedID) (proof *feed.ForkProof) {
	p.w.t.Helper()
	p.view(func(tx *storage.Tx) (err error) { proof, err = p.rep.Proof(tx, id); return err })
	return proof
}

func (p *peer) entryAt(id feed.FeedID, seq uint64) (e feed.Entry, ok bool) {
	p.w.t.Helper()
	p.view(func(tx *storage.Tx) (err error) {
		e, err = p.rep.Entry(tx, id, seq)
		ok = err == nil
		if errors.Is(err, replica.ErrNoEntry) {
			return nil
		}
		return err
	})
	return e, ok
}

// forker writes several feeds under one key. It takes no part otherwise: an honest device that finds this out stops.
type forker struct {
	*peer
	conv   ID
	common []feed.Entry // its feed before it forks
	clock  uint64
}

// goesBad takes a peer out of the world.
func (p *peer) goesBad(conv ID) *forker {
	p.w.t.Helper()
	f := &forker{peer: p, conv: conv, clock: 1 << 20}
	id := p.rep.OwnFeed(conv, feed.Control)
	p.view(func(tx *storage.Tx) error {
		return p.rep.Entries(tx, id, 1, 0, func(e feed.Entry) (bool, error) {
			f.common = append(f.common, e)
			return true, nil
		})
	})
	p.w.nodes = slices.DeleteFunc(p.w.nodes, func(q *peer) bool { return q == p })
	return f
}

// outsider makes somebody who wants to be in and hears all members, and their consent.
func (q *quarrel) outsider(name string) (*peer, []byte) {
	q.world.t.Helper()
	p, others := q.person(name), slices.Clone(q.nodes)
	p.joins(q.conv, others...)
	c, err := p.g.consents(q.conv, false, "", p.g.now())
	require.NoError(q.world.t, err)
	return p, c.Raw()
}

// joins puts somebody into the state that follows an accepted invitation.
func (p *peer) joins(conv ID, members ...*peer) {
	p.w.t.Helper()
	p.update(func(tx *storage.Tx) error {
		for _, m := range members {
			if err := tx.Set(memberKey(m.self.Account, conv), nil); err != nil {
				return err
			}
		}
		return putRow(tx, groupKey(conv), groupRow{State: StateJoining, Began: p.w.now.UnixMilli()})
	})
}

// next writes an act after some entries of its own, built upon what somebody holds.
func (f *forker) next(branch []feed.Entry, a roster.Act, upon *peer, proof []byte) []feed.Entry {
	f.w.t.Helper()
	kind, content, err := encodeAct(a, proof)
	require.NoError(f.w.t, err)
	gr, _, err := open(upon, f.conv)
	require.NoError(f.w.t, err)
	var g feed.Group
	for _, id := range gr.roster.Heads() {
		g.Parents = append(g.Parents, feed.EntryID(id))
	}
	tip := feed.Tip{Account: f.self.Account}
	if len(branch) > 0 {
		tip = branch[len(branch)-1].Tip()
	}
	f.clock++
	author := feed.NewAuthor(f.self.Account, f.self.Device, f.w.certs[f.self.Account][0])
	e, err := author.NextInGroup(tip, f.conv, feed.Control, kind, f.clock, f.w.now.UnixMilli(), content, g)
	require.NoError(f.w.t, err)
	return append(slices.Clone(branch), e)
}

// shows brings a branch to somebody, who may refuse it.
func (f *forker) shows(branch []feed.Entry, to *peer) {
	f.w.t.Helper()
	for some := range slices.Chunk(branch, 8) { // as many as surely fit
		run, err := feed.Assemble(some, feed.SignRun(f.key, some[len(some)-1]))
		require.NoError(f.w.t, err)
		if err := to.rep.Take(context.Background(), f.self, run.PB()); err != nil {
			require.ErrorIs(f.w.t, err, replica.ErrRefused)
			return
		}
	}
}

// folded is what counts in somebody's roster, and what waits there.
func (p *peer) folded(conv ID) (counts []string, waiting int) {
	p.w.t.Helper()
	gr, s, err := open(p, conv)
	require.NoError(p.w.t, err)
	for i := range gr.roster.Len() {
		if a := gr.roster.At(i); s.view.Void[a.ID] == "" {
			counts = append(counts, a.ID.String())
		}
	}
	slices.Sort(counts)
	return counts, gr.roster.Waiting()
}

// One member writes two feeds under one key and shows one half of the group the one, the other half the other. Both halves act
// upon what they were shown. Everybody comes to the same: what was written twice is void, what honest members did is not.
func TestForkedParents(t *testing.T) {
	w := begin(t)
	ctx := context.Background()
	alice, bob, carol, dave, mallory := w.person("alice"), w.person("bob"), w.person("carol"), w.person("dave"), w.person("mallory")
	conv := alice.create(Options{}, bob, carol, dave, mallory)
	for _, p := range []*peer{bob, carol, mallory} {
		require.NoError(t, alice.g.Promote(ctx, conv, p.self.Account))
	}
	w.meet()
	require.NoError(t, mallory.g.Set(ctx, conv, SettingNickname, "m"))
	w.meet()
	m := mallory.goesBad(conv)
	left, right := m.common, m.common
	for i := range 3 {
		left = m.next(left, roster.Act{Kind: roster.Nickname, Value: fmt.Sprint("left ", i)}, bob, nil)
		m.shows(left, bob)
		right = m.next(right, roster.Act{Kind: roster.Set, Key: roster.SettingDescription, Value: fmt.Sprint("right ", i)}, carol, nil)
		m.shows(right, carol)
	}
	require.NoError(t, bob.g.Remove(ctx, conv, dave.self.Account))
	require.NoError(t, carol.g.Set(ctx, conv, "name", "honest"))
	require.Equal(t, "right 2", carol.info(conv).Description)

	// Alice and dave held neither. When they hear of what the others did, nobody serves what that stands upon any more.
	bob.gives(carol)
	carol.gives(bob)
	bob.givesGroup(alice, conv)
	carol.givesGroup(alice, conv)
	_, waiting := alice.folded(conv)
	require.Positive(t, waiting)
	w.meet()
	w.meet()
	want, waiting := bob.folded(conv)
	require.Zero(t, waiting)
	for _, p := range []*peer{alice, carol} {
		counts, waiting := p.folded(conv)
		require.Zero(t, waiting, p.name)
		require.Equal(t, want, counts, p.name)
	}
	w.same(conv, alice, bob, carol)
	v := alice.rosterView(conv)
	require.Equal(t, roster.None, v.Role(dave.self.Account))
	require.Equal(t, "honest", alice.info(conv).Name)
	require.Empty(t, alice.info(conv).Description)
	require.Equal(t, StateRemoved, dave.info(conv).State)

	// Neither what alice reads of her own disk, nor what somebody gets of her who comes when those who held the branches are
	// gone, is another.
	alice.g.cache.groups = map[ID]*group{}
	w.nodes = []*peer{alice}
	erin := w.person("erin")
	alice.letsIn(conv, erin)
	w.meet(alice, erin)
	w.meet(alice, erin)
	w.same(conv, alice, erin)
	counts, waiting := erin.folded(conv)
	require.Zero(t, waiting)
	require.Subset(t, counts, want)

	// Nobody builds upon a branch any more.
	gr, _, err := open(erin, conv)
	require.NoError(t, err)
	for _, id := range gr.roster.Heads() {
		a, _ := gr.roster.Act(id)
		require.NotEqual(t, mallory.self.Account, a.Author)
	}
}

// Of the headers that come those are kept that acts name, and no others: whoever named a few in good faith is not charged with all
// that the forker signed together with them.
func TestBranchesCostWhatIsNamed(t *testing.T) {
	w := begin(t)
	alice, bob, mallory := w.person("alice"), w.person("bob"), w.person("mallory")
	conv := alice.create(Options{}, bob, mallory)
	m := mallory.goesBad(conv)
	left := m.common
	for i := range 40 {
		left = m.next(left, roster.Act{Kind: roster.Nickname, Value: fmt.Sprint("left ", i)}, alice, nil)
	}
	right := m.next(m.common, roster.Act{Kind: roster.Nickname, Value: "right"}, alice, nil)
	m.shows(left, bob)
	named := left[len(m.common)+10]
	bob.forge(conv, roster.Act{Kind: roster.Nickname, Value: "x"}, []roster.ID{roster.ID(named.ID)}, nil)
	m.shows(right, alice)
	w.meet(alice, bob)
	w.meet(alice, bob)
	gr, _, err := open(alice, conv)
	require.NoError(t, err)
	require.Equal(t, map[roster.ID]identity.AccountID{roster.ID(named.ID): bob.self.Account}, gr.paid)
	_, waiting := alice.folded(conv)
	require.Zero(t, waiting)

	// A header that nobody signed is known by its hash, and so is what it is part of.
	alice.g.cache.groups = map[ID]*group{}
	again, _, err := open(alice, conv)
	require.NoError(t, err)
	require.Equal(t, gr.paid, again.paid)
	carol := w.person("carol")
	alice.letsIn(conv, carol)
	w.nodes = []*peer{alice, carol}
	w.meet()
	w.meet()
	_, waiting = carol.folded(conv)
	require.Zero(t, waiting)
	w.same(conv, alice, carol)
}

// A key is made in no time, and two entries under it prove a fork. Who names such things is charged with the proofs that are kept, and
// nobody is told that an account forked whose device it need not be.
func TestProofsAreCharged(t *testing.T) {
	w := begin(t)
	alice, bob, mallory := w.person("alice"), w.person("bob"), w.person("mallory")
	conv := alice.create(Options{}, bob, mallory)
	gr, _, err := open(alice, conv)
	require.NoError(t, err)
	parents := gr.roster.Heads()
	for i := range maxHeadersOf / proofCost {
		key := identity.DeviceKeyFromSeed(sha256.Sum256(fmt.Appendf(nil, "nobody's %d", i)))
		branch := func(value string) feed.Run {
			kind, content, err := encodeAct(roster.Act{Kind: roster.Nickname, Value: value}, nil)
			require.NoError(t, err)
			author := feed.NewAuthor(bob.self.Account, key.ID(), w.certs[bob.self.Account][0])
			tip := feed.Tip{Account: bob.self.Account, Seq: 7, Hash: feed.EntryID{1}, Clock: 1 << 20}
			e, err := author.NextInGroup(tip, conv, feed.Control, kind, 1<<21, w.now.UnixMilli(), content, feed.Group{Parents: []feed.EntryID{feed.EntryID(parents[0])}})
			require.NoError(t, err)
			run, err := feed.Assemble([]feed.Entry{e}, feed.SignRun(key, e))
			require.NoError(t, err)
			return run
		}
		left, right := branch("left"), branch("right")
		proof, err := feed.NewForkProof(left, right)
		require.NoError(t, err)
		mallory.forge(conv, roster.Act{Kind: roster.Nickname, Value: "x"}, []roster.ID{roster.ID(left.First().ID)}, nil)
		mallory.gives(alice)
		for _, k := range []*pb.GroupKeys{{Forks: []*pb.ForkProof{proof.PB()}}, {Branches: []*pb.Run{left.PB()}}} {
			k.Group = conv[:]
			require.NoError(t, alice.g.TookKeys(context.Background(), mallory.self, k))
		}
	}
	gr, _, err = open(alice, conv)
	require.NoError(t, err)
	require.Len(t, gr.paid, maxHeadersOf/(1+proofCost))
	require.Len(t, gr.forks, maxHeadersOf/(1+proofCost))
	require.Zero(t, alice.heard(NewsFork))
}

// Somebody was let in by an act on a branch, and an honest member who held it built upon what they did. To all others they are
// nobody, and still what honest members did counts everywhere.
func TestLetInOnBranch(t *testing.T) {
	w := begin(t)
	ctx := context.Background()
	alice, bob, carol, mallory, erin := w.person("alice"), w.person("bob"), w.person("carol"), w.person("mallory"), w.person("erin")
	conv := alice.create(Options{}, bob, carol, mallory)
	for _, p := range []*peer{bob, carol, mallory} {
		require.NoError(t, alice.g.Promote(ctx, conv, p.self.Account))
	}
	w.meet(alice, bob, carol, mallory)
	require.NoError(t, mallory.g.Set(ctx, conv, SettingNickname, "m"))
	w.meet(alice, bob, carol, mallory)
	m := mallory.goesBad(conv)
	erin.joins(conv, alice, bob, carol)
	c, err := erin.g.consents(conv, false, "", erin.g.now())
	require.NoError(t, err)
	m.shows(m.next(m.common, roster.Act{Kind: roster.Admit, Account: erin.self.Account}, bob, c.Raw()), bob)
	m.shows(m.next(m.common, roster.Act{Kind: roster.Nickname, Value: "right"}, carol, nil), carol)
	bob.gives(erin)
	require.Equal(t, StateMember, erin.info(conv).State)
	for i := range 300 { // more than one run
		require.NoError(t, erin.g.Set(ctx, conv, SettingNickname, fmt.Sprint("e", i)))
		if i%50 == 0 {
			erin.gives(bob)
		}
	}
	erin.gives(bob)
	require.NoError(t, bob.g.Set(ctx, conv, "name", "honest"))

	w.meet()
	w.meet()
	want, waiting := bob.folded(conv)
	require.Zero(t, waiting)
	for _, p := range []*peer{alice, carol} {
		counts, waiting := p.folded(conv)
		require.Zero(t, waiting, p.name)
		require.Equal(t, want, counts, p.name)
		require.Equal(t, "honest", p.info(conv).Name)
		v := p.rosterView(conv)
		require.Equal(t, roster.None, v.Role(erin.self.Account))
	}
	w.same(conv, alice, bob, carol)
	require.Equal(t, StateRemoved, erin.info(conv).State)
}

// Two acts with one number are two acts (R3): history asks for the one that it holds.
func TestCountsByEntry(t *testing.T) {
	w := begin(t)
	alice, bob, mallory := w.person("alice"), w.person("bob"), w.person("mallory")
	conv := alice.create(Options{}, bob, mallory)
	m := mallory.goesBad(conv)
	left := m.next(m.common, roster.Act{Kind: roster.Nickname, Value: "left"}, bob, nil)
	right := m.next(m.common, roster.Act{Kind: roster.Nickname, Value: "right"}, bob, nil)
	m.shows(left, bob)
	counts := func(e feed.Entry) (ok bool) {
		bob.view(func(tx *storage.Tx) (err error) { ok, err = bob.g.Counts(tx, e); return err })
		return ok
	}
	require.True(t, counts(left[len(left)-1]))
	require.False(t, counts(right[len(right)-1]))
	m.shows(right, bob)
	require.False(t, counts(left[len(left)-1]))
}

// Headers are taken where acts wait for them and a proof says that nobody serves them, and nowhere else.
func TestBranchesNobodyWaitsFor(t *testing.T) {
	w := begin(t)
	alice, bob, mallory := w.person("alice"), w.person("bob"), w.person("mallory")
	conv := alice.create(Options{}, bob, mallory)
	m := mallory.goesBad(conv)
	left := m.next(m.common, roster.Act{Kind: roster.Nickname, Value: "left"}, bob, nil)
	right := m.next(m.common, roster.Act{Kind: roster.Nickname, Value: "right"}, bob, nil)
	run, err := feed.Assemble(left, feed.SignRun(m.key, left[len(left)-1]))
	require.NoError(t, err)
	other, err := feed.Assemble(right, feed.SignRun(m.key, right[len(right)-1]))
	require.NoError(t, err)
	proof, err := feed.NewForkProof(run, other)
	require.NoError(t, err)
	take := func(k *pb.GroupKeys) error {
		k.Group = conv[:]
		return alice.g.TookKeys(context.Background(), mallory.self, k)
	}
	size := func() int {
		gr, _, err := open(alice, conv)
		require.NoError(t, err)
		return gr.size()
	}
	before := size()
	require.NoError(t, take(&pb.GroupKeys{Forks: []*pb.ForkProof{proof.PB()}}))
	require.NoError(t, take(&pb.GroupKeys{Branches: []*pb.Run{run.PB()}}))
	require.Equal(t, before, size(), "nothing waits")
	bob.forge(conv, roster.Act{Kind: roster.Nickname, Value: "x"}, []roster.ID{roster.ID(left[len(left)-1].ID)}, nil)
	bob.gives(alice)
	clear(alice.g.forks.proofs)
	require.NoError(t, take(&pb.GroupKeys{Branches: []*pb.Run{run.PB()}}))
	require.Equal(t, before+1, size(), "nothing says that it forked")
	require.NoError(t, take(&pb.GroupKeys{Forks: []*pb.ForkProof{proof.PB()}}))
	require.NoError(t, take(&pb.GroupKeys{Branches: []*pb.Run{run.PB()}}))
	_, waiting := alice.folded(conv)
	require.Zero(t, waiting)
	require.Equal(t, before+2, size())

	bad := proof.PB()
	bad.SignatureA = make([]byte, 64)
	require.ErrorIs(t, take(&pb.GroupKeys{Forks: []*pb.ForkProof{bad}}), replica.ErrProtocol)
	spoilt := run.PB()
	spoilt.Entries[0].Header = spoilt.Entries[0].Header[1:]
	require.ErrorIs(t, take(&pb.GroupKeys{Branches: []*pb.Run{spoilt}}), replica.ErrProtocol)
	require.ErrorIs(t, take(&pb.GroupKeys{Wants: [][]byte{{1}}}), replica.ErrProtocol)
}

// Honest members act, remove each other and talk in partitions that change, while one writes any number of feeds under one key.
func TestForksAgree(outer *testing.T) {
	runs, most := 0, 8
	if os.Getenv("HIMA_LONG") != "" {
		most = 1 << 20
	}
	rapid.Check(outer, func(t *rapid.T) {
		if runs++; runs > most {
			return
		}
		sameAgain(outer, t)
		q := &quarrel{world: newWorld(t), t: t}
		defer q.close()
		alice, bob, carol, dave, mallory := q.person("alice"), q.person("bob"), q.person("carol"), q.person("dave"), q.person("mallory")
		q.conv = alice.create(Options{}, bob, carol, dave, mallory)
		erin, consent := q.outsider("erin")
		for _, p := range []*peer{bob, mallory} {
			require.NoError(t, alice.g.Promote(context.Background(), q.conv, p.self.Account))
		}
		require.NoError(t, mallory.g.Set(context.Background(), q.conv, SettingNickname, "m"))
		q.meet()
		m := mallory.goesBad(q.conv)
		branches := [][]feed.Entry{m.common}
		for i := range rapid.IntRange(10, 30).Draw(t, "steps") {
			q.now = q.now.Add(time.Second)
			p := q.nodes[rapid.IntRange(0, len(q.nodes)-1).Draw(t, "who")]
			other := q.nodes[rapid.IntRange(0, len(q.nodes)-1).Draw(t, "other")]
			switch step := rapid.IntRange(0, 7).Draw(t, "step"); {
			case step < 2 && p != other:
				p.gives(other)
			case step == 2:
				q.act(p, other)
			case step == 3:
				q.speak(p, i)
			case step == 4:
				m.shows(branches[rapid.IntRange(0, len(branches)-1).Draw(t, "branch")], p)
			default:
				b := branches[rapid.IntRange(0, len(branches)-1).Draw(t, "branch")]
				b = b[:rapid.IntRange(max(1, len(m.common)-1), len(b)).Draw(t, "from")]
				if p == erin {
					p = alice // erin may know of nothing yet
				}
				a, proof := roster.Act{Kind: roster.Nickname, Value: fmt.Sprint(i)}, []byte(nil)
				switch step {
				case 6:
					a = roster.Act{Kind: roster.Remove, Account: other.self.Account}
				case 7:
					a, proof = roster.Act{Kind: roster.Admit, Account: erin.self.Account}, consent
				}
				b = m.next(b, a, p, proof)
				branches = append(branches, b)
				m.shows(b, p)
			}
		}
		q.meet()
		q.meet()
		q.meet()
		first := q.nodes[0] // the owner, who stays unless they hand over and go
		want, waiting := first.folded(q.conv)
		require.Zero(t, waiting)
		for _, p := range q.nodes[1:] {
			if v := first.rosterView(q.conv); v.Role(p.self.Account) == roster.None || v.Role(first.self.Account) == roster.None {
				continue
			}
			counts, waiting := p.folded(q.conv)
			if !slices.Equal(want, counts) || waiting > 0 {
				t.Fatalf("two rosters: %s%s", first.dump(q.conv), p.dump(q.conv))
			}
			a, b := first.rosterView(q.conv), p.rosterView(q.conv)
			require.Equal(t, a.Digest(), b.Digest(), p.name)
		}
	})
	require.Positive(outer, runs)
}
