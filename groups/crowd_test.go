package groups

import (
	"context"
	"crypto/sha256"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"hima/groups/roster"
	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// An account makes device keys in no time. Of one member's so many feeds are taken as can be cut, and nobody else is kept out.
func TestFeedsOfAnAccountAreBounded(t *testing.T) {
	w := begin(t)
	alice, bob, mallory := w.person("alice"), w.person("bob"), w.person("mallory")
	conv := alice.create(Options{}, bob, mallory)
	epoch := alice.says(conv, "hello").Epoch
	w.meet()
	gr, _, err := open(alice, conv)
	require.NoError(t, err)
	parents := []feed.EntryID{feed.EntryID(gr.roster.Heads()[0])}
	kind, nick, err := encodeAct(roster.Act{Kind: roster.Nickname, Value: "m"}, nil)
	require.NoError(t, err)
	made := func(i int) (identity.DeviceKey, feed.Author) {
		key := identity.DeviceKeyFromSeed(sha256.Sum256(fmt.Appendf(nil, "mallory's %d", i)))
		a := mallory.self.Account
		return key, feed.NewAuthor(a, key.ID(), identity.NewCertificate(w.keys[a], key.ID(), w.now))
	}
	says := func(i int, n feed.Number, after ...feed.Entry) feed.Entry {
		_, author := made(i)
		k, content, in := feed.KindText, []byte("hi"), feed.Group{Epoch: epoch}
		if n == feed.Control {
			k, content, in = kind, nick, feed.Group{Parents: parents}
		}
		tip, clock := feed.Tip{Account: mallory.self.Account}, uint64(1<<20)
		for _, e := range after {
			tip, clock = e.Tip(), clock+1
		}
		e, err := author.NextInGroup(tip, conv, n, k, clock, w.now.UnixMilli(), content, in)
		require.NoError(t, err)
		return e
	}
	takes := func(i int, e feed.Entry) bool {
		key, _ := made(i)
		run, err := feed.Assemble([]feed.Entry{e}, feed.SignRun(key, e))
		require.NoError(t, err)
		err = alice.rep.Take(t.Context(), mallory.self, run.PB())
		if err != nil {
			require.ErrorIs(t, err, replica.ErrRefused)
		}
		return err == nil
	}
	var first, last feed.Entry
	for _, n := range []feed.Number{feed.Chat, feed.Control} {
		taken := 0
		for i := range maxFeeds + 10 {
			last = says(i, n)
			if takes(i, last) {
				taken++
			}
			if i == 0 && n == feed.Chat {
				first = last
			}
		}
		require.Equal(t, maxFeeds, taken)
		require.False(t, takes(maxFeeds, says(maxFeeds, n)), "later it is the same")
	}
	require.True(t, takes(0, says(0, feed.Chat, first)), "a feed that is held goes on")
	// Others hold other feeds of hers, and built upon them.
	bob.forge(conv, roster.Act{Kind: roster.Nickname, Value: "b"}, []roster.ID{roster.ID(last.ID)}, nil)
	bob.gives(alice)
	require.True(t, takes(maxFeeds+9, last))
	second := w.person("bob")
	w.meet(bob, second)
	second.says(conv, "so do I")
	w.meet(alice, bob, second)
	require.Contains(t, alice.texts(conv), "so do I")
	gr, _, err = open(alice, conv)
	require.NoError(t, err)
	require.Zero(t, gr.roster.Waiting())
}

// counting counts how often all feeds of a group are asked for.
type counting struct {
	Feeds
	n *int
}

func (c counting) Ends(tx *storage.Tx, conv feed.ConversationID) ([]feed.Head, error) {
	*c.n++
	return c.Feeds.Ends(tx, conv)
}

// Who joins a big group looks at all feeds of it once, and not once for each.
func TestCrowdsAreCountedOnce(t *testing.T) {
	w := begin(t)
	alice, dave := w.person("alice"), w.person("dave")
	var members []*peer
	for i := range 6 {
		members = append(members, w.person(fmt.Sprint("member ", i)))
	}
	conv := alice.create(Options{History: "all"}, members...)
	for _, p := range members {
		p.says(conv, "hello")
		require.NoError(t, p.g.Set(t.Context(), conv, SettingNickname, p.name))
	}
	w.meet(append(members, alice)...)
	n := 0
	dave.g.parts.Feeds = counting{dave.g.parts.Feeds, &n}
	gr := &group{id: conv}
	dave.update(func(tx *txn) error {
		ends, err := alice.ends(conv)
		for _, h := range ends {
			var raw *pb.Run
			if raw, err = alice.rep.ReadRun(feed.FeedID{Conversation: conv, Number: h.Number, Device: h.Device}, 1); err != nil {
				return err
			}
			run, err := feed.CheckDetached(raw)
			require.NoError(t, err)
			crowded, err := dave.g.crowded(tx, gr, run)
			require.NoError(t, err)
			require.False(t, crowded)
		}
		require.Greater(t, len(ends), len(members))
		return err
	})
	require.Equal(t, 1, n)
}

func (p *peer) ends(conv ID) (out []feed.Head, err error) {
	err = p.db.View(func(tx *storage.Tx) error { out, err = p.rep.Ends(tx, conv); return err })
	return out, err
}

// A member with several devices has no more room for acts than one with a single device, and others have theirs.
func TestActFloodOfManyDevices(t *testing.T) {
	w := begin(t)
	ctx := context.Background()
	l := Limits{Acts: 1000, MemberActs: 3 * fewActs, ActRate: 1000}
	alice, bob, mallory := w.person("alice", l), w.person("bob", l), w.person("mallory", l)
	conv := alice.create(Options{}, bob, mallory)
	devices := []*peer{mallory}
	for range 3 {
		more := w.person("mallory", l)
		mallory.gives(more)
		devices = append(devices, more)
	}
	for i, d := range devices {
		d.g.cfg.Limits.MemberActs, d.g.cfg.Limits.Acts = 1<<20, 1<<20
		for n := range 2 * fewActs {
			require.NoError(t, d.g.Set(ctx, conv, SettingNickname, fmt.Sprint("m", i, n)))
			d.gives(alice)
		}
	}
	gr, _, err := open(alice, conv)
	require.NoError(t, err)
	taken := map[identity.DeviceID]int{}
	for _, p := range gr.places {
		taken[p.device]++
	}
	n := fewActs
	require.Equal(t, []int{2 * n, n, n, n}, []int{taken[devices[0].self.Device], taken[devices[1].self.Device], taken[devices[2].self.Device], taken[devices[3].self.Device]})
	require.NoError(t, bob.g.Set(ctx, conv, SettingNickname, "quiet bob"))
	bob.gives(alice)
	name := ""
	alice.view(func(tx *storage.Tx) error { name, err = alice.g.Nickname(tx, conv, bob.self.Account); return err })
	require.Equal(t, "quiet bob", name)

	// Who writes knows it too. Somebody who holds three of the devices does not keep the fourth from acting.
	require.ErrorIs(t, devices[3].limited(l, alice).g.Set(ctx, conv, SettingNickname, "once more"), ErrFull)
	more := w.person("mallory", l)
	devices[3].gives(more)
	require.NoError(t, more.g.RevokeDevice(ctx, mallory.self.Device))
	more.gives(alice)
	v := alice.rosterView(conv)
	_, revoked := v.Revokes(mallory.self.Account, mallory.self.Device)
	require.True(t, revoked)
}

// limited gives a peer its limits back after it heard what somebody holds.
func (p *peer) limited(l Limits, from *peer) *peer {
	from.gives(p)
	p.g.cfg.Limits.MemberActs, p.g.cfg.Limits.Acts = l.MemberActs, l.Acts
	return p
}
