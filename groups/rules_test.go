package groups

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"hima/groups/roster"
	"hima/identity"
)

func unmarshal(b []byte, m proto.Message) error { return proto.Unmarshal(b, m) }

// Everything a user may do wrong is refused with its reason, and changes nothing.
func TestRefusals(t *testing.T) {
	w := begin(t)
	ctx := context.Background()
	alice, bob, carol, eve := w.person("alice"), w.person("bob"), w.person("carol"), w.person("eve")
	conv := alice.create(Options{}, bob, carol)
	require.NoError(t, alice.g.Promote(ctx, conv, carol.self.Account))
	w.meet()
	nobody := identity.AccountKeyFromSeed([32]byte{1}).ID()
	a, b, c := alice.self.Account, bob.self.Account, carol.self.Account
	invite := func(p *peer, who identity.AccountID) error { _, err := p.g.Invite(ctx, conv, who); return err }
	create := func(o Options) error { _, err := alice.g.Create(ctx, o); return err }
	answer := func(p *peer, id ID) error { _, err := p.g.Answer(ctx, id, true); return err }
	apply := func(p *peer, to Target) error { _, err := p.g.Apply(ctx, to, ""); return err }
	decide := func(p *peer, who identity.AccountID) error {
		_, err := p.g.Decide(ctx, conv, who, true, "")
		return err
	}
	link := func(p *peer, d time.Duration, uses int) error { _, err := p.g.NewLink(ctx, conv, d, uses); return err }
	for name, one := range map[string]struct {
		do   func() error
		want error
	}{
		"no name":                {func() error { return create(Options{}) }, ErrInvalid},
		"long name":              {func() error { return create(Options{Name: strings.Repeat("x", MaxName+1)}) }, ErrInvalid},
		"strange join":           {func() error { return create(Options{Name: "x", Join: "perhaps"}) }, ErrInvalid},
		"strange history":        {func() error { return create(Options{Name: "x", History: "-1"}) }, ErrInvalid},
		"member invites":         {func() error { return invite(bob, nobody) }, ErrNotAllowed},
		"stranger invites":       {func() error { return invite(eve, nobody) }, ErrNotFound},
		"invite a member":        {func() error { return invite(alice, b) }, ErrExists},
		"invite oneself":         {func() error { return invite(alice, a) }, ErrInvalid},
		"withdraw nothing":       {func() error { return alice.g.Withdraw(ctx, conv, nobody) }, ErrNotFound},
		"answer as a member":     {func() error { return answer(bob, conv) }, ErrExists},
		"answer nothing":         {func() error { return answer(eve, conv) }, ErrNotFound},
		"apply as a member":      {func() error { return apply(bob, target(conv, alice)) }, ErrExists},
		"apply to nobody":        {func() error { return apply(eve, target(conv)) }, ErrInvalid},
		"apply to a closed one":  {func() error { x := target(conv, alice); x.Join = "invite"; return apply(eve, x) }, ErrNotAllowed},
		"decide nothing":         {func() error { return decide(alice, nobody) }, ErrNotFound},
		"member decides":         {func() error { return decide(bob, nobody) }, ErrNotAllowed},
		"withdraw no applicat.":  {func() error { return eve.g.WithdrawApplication(ctx, conv) }, ErrNotFound},
		"member makes a link":    {func() error { return link(bob, 0, 0) }, ErrNotAllowed},
		"link of a negative age": {func() error { return link(alice, -1, 0) }, ErrInvalid},
		"member removes":         {func() error { return bob.g.Remove(ctx, conv, c) }, ErrNotAllowed},
		"admin removes owner":    {func() error { return carol.g.Remove(ctx, conv, a) }, ErrNotAllowed},
		"remove nobody":          {func() error { return alice.g.Remove(ctx, conv, nobody) }, ErrNotFound},
		"remove oneself":         {func() error { return alice.g.Remove(ctx, conv, a) }, ErrInvalid},
		"remove elsewhere":       {func() error { return alice.g.Remove(ctx, ID{7}, b) }, ErrNotFound},
		"promote twice":          {func() error { return alice.g.Promote(ctx, conv, c) }, ErrExists},
		"demote a member":        {func() error { return alice.g.Demote(ctx, conv, b) }, ErrExists},
		"admin promotes":         {func() error { return carol.g.Promote(ctx, conv, b) }, ErrNotAllowed},
		"transfer by an admin":   {func() error { return carol.g.Transfer(ctx, conv, b) }, ErrNotAllowed},
		"transfer to nobody":     {func() error { return alice.g.Transfer(ctx, conv, nobody) }, ErrNotFound},
		"the owner leaves":       {func() error { return alice.g.Leave(ctx, conv) }, ErrLastOwner},
		"admin dissolves":        {func() error { return carol.g.Dissolve(ctx, conv) }, ErrNotAllowed},
		"member names":           {func() error { return bob.g.Set(ctx, conv, "name", "x") }, ErrNotAllowed},
		"empty name":             {func() error { return alice.g.Set(ctx, conv, "name", "") }, ErrInvalid},
		"unknown setting":        {func() error { return alice.g.Set(ctx, conv, "colour", "red") }, ErrInvalid},
		"strange mute":           {func() error { return alice.g.Set(ctx, conv, "mute", "maybe") }, ErrInvalid},
		"no UTF-8":               {func() error { return alice.g.Set(ctx, conv, "name", "\xff") }, ErrInvalid},
		"long nickname":          {func() error { return bob.g.Set(ctx, conv, "nickname", strings.Repeat("n", MaxNickname+1)) }, ErrInvalid},
		"no own mailbox":         {func() error { return alice.g.Set(ctx, conv, "mailbox", "own") }, ErrNotFound},
		"strange mailbox":        {func() error { return alice.g.Set(ctx, conv, "mailbox", "nowhere") }, ErrInvalid},
		"talk elsewhere":         {func() error { _, err := eve.text(conv, "x"); return err }, ErrNotFound},
	} {
		before := map[*peer]int{}
		for _, p := range w.nodes {
			before[p] = len(p.news)
		}
		w.mail = nil
		v := alice.rosterView(conv)
		require.ErrorIs(t, one.do(), one.want, name)
		w.meet()
		after := alice.rosterView(conv)
		require.Equal(t, v.Digest(), after.Digest(), name)
		require.Empty(t, w.mail, name)
		for _, p := range w.nodes {
			require.Len(t, p.news, before[p], name)
		}
	}
}

func TestRolesAndTheEnd(t *testing.T) {
	w := begin(t)
	ctx := context.Background()
	alice, bob, carol := w.person("alice"), w.person("bob"), w.person("carol")
	conv := alice.create(Options{}, bob, carol)
	require.NoError(t, alice.g.Transfer(ctx, conv, bob.self.Account))
	w.meet()
	require.Equal(t, roster.Owner, bob.info(conv).Role)
	require.Equal(t, roster.Admin, alice.info(conv).Role)
	require.Equal(t, bob.self.Account, carol.info(conv).Owner)
	require.NoError(t, alice.g.Leave(ctx, conv))
	w.meet()
	require.NoError(t, bob.g.Promote(ctx, conv, carol.self.Account))
	w.meet()
	require.NoError(t, carol.g.Set(ctx, conv, "mute", "yes"))
	require.NoError(t, carol.g.Set(ctx, conv, "announcement", "closed on Sunday"))
	require.NoError(t, carol.g.Set(ctx, conv, "nickname", "C"))
	w.meet()
	in := bob.info(conv)
	require.True(t, in.Mute)
	require.Equal(t, "closed on Sunday", in.Announcement)
	require.Equal(t, carol.self.Account, in.AnnouncedBy)
	require.Equal(t, w.now, in.AnnouncedAt)
	require.NoError(t, bob.g.Demote(ctx, conv, carol.self.Account))
	w.meet()
	_, err := carol.text(conv, "hush")
	require.ErrorIs(t, err, ErrMuted)
	bob.says(conv, "only I")
	var members []Member
	bob.view(func(tx *txn) (err error) { members, err = bob.g.Members(tx, conv); return err })
	require.Len(t, members, 2)
	require.Equal(t, "C", members[1].Nickname)
	require.NoError(t, bob.g.Dissolve(ctx, conv))
	w.meet()
	for _, p := range []*peer{bob, carol} {
		require.Equal(t, StateDissolved, p.info(conv).State)
		_, err := p.text(conv, "x")
		require.ErrorIs(t, err, ErrDissolved)
	}
	require.ErrorIs(t, bob.g.Dissolve(ctx, conv), ErrDissolved)
	require.Equal(t, []string{"only I"}, carol.texts(conv))
}

func TestRotation(t *testing.T) {
	w := begin(t)
	ctx := context.Background()
	small := Limits{EpochEntries: 20}
	alice, bob := w.person("alice", small), w.person("bob", small)
	conv := alice.create(Options{}, bob)
	alice.says(conv, "1")
	w.meet()
	current := func() roster.ID { v := alice.rosterView(conv); e, _ := v.Current(); return e.ID }
	first := current()
	alice.g.lookAfter(ctx)
	require.Equal(t, first, current())
	w.now = w.now.Add(7*24*time.Hour + time.Minute)
	bob.g.lookAfter(ctx)
	w.meet()
	require.Equal(t, first, current(), "interval epochs are the admins'")
	alice.g.lookAfter(ctx)
	second := current()
	require.NotEqual(t, first, second)
	for range 11 {
		alice.says(conv, "a")
		bob.gives(alice)
		alice.gives(bob)
		bob.says(conv, "b")
	}
	bob.gives(alice)
	alice.g.lookAfter(ctx)
	require.NotEqual(t, second, current())
	w.meet()
	w.same(conv, alice, bob)
	require.Len(t, bob.keysHeld(conv), 3)
}

func marshal(m proto.Message) ([]byte, error) { return proto.Marshal(m) }
