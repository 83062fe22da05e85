package groups

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"hima/groups/roster"
	"hima/internal/feed"
)

// An act that stood ahead of a gap, and does not follow what fills it, is no act any more: nobody else can be shown it, and whoever
// built upon it would act for nobody.
func TestActOfDroppedEntry(t *testing.T) {
	w := begin(t)
	ctx := context.Background()
	alice, bob, mallory := w.person("alice"), w.person("bob"), w.person("mallory")
	conv := alice.create(Options{}, bob, mallory)
	require.NoError(t, alice.g.Promote(ctx, conv, mallory.self.Account))
	require.NoError(t, mallory.g.Set(ctx, conv, SettingNickname, "m"))
	w.meet()
	m := mallory.goesBad(conv)
	left := m.next(m.common, roster.Act{Kind: roster.Nickname, Value: "x"}, bob, nil)
	left = m.next(left, roster.Act{Kind: roster.Set, Key: roster.SettingDescription, Value: "left"}, bob, nil)
	right := m.next(m.common, roster.Act{Kind: roster.Nickname, Value: "right"}, bob, nil)
	show := func(e feed.Entry) {
		run, err := feed.Assemble([]feed.Entry{e}, feed.SignRun(m.key, e))
		require.NoError(t, err)
		require.NoError(t, alice.rep.Take(ctx, m.self, run.PB()))
	}
	show(left[len(left)-1]) // and not what comes before it
	require.Equal(t, "left", alice.info(conv).Description)
	size, _ := alice.folded(conv)
	show(right[len(right)-1])
	require.Empty(t, alice.info(conv).Description)
	again, waiting := alice.folded(conv)
	require.Zero(t, waiting)
	require.Len(t, again, len(size)) // one came, one went
	require.NoError(t, alice.g.Set(ctx, conv, "name", "on"))
	w.meet(alice, bob)
	require.Equal(t, "on", bob.info(conv).Name)
	w.same(conv, alice, bob)

	// What is read from disk is the same.
	want := alice.rosterView(conv)
	alice.g.cache.groups = map[ID]*group{}
	got := alice.rosterView(conv)
	require.Equal(t, want.Digest(), got.Digest())
}
