package groups

import (
	"context"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"hima/identity"
	"hima/internal/wire/pb"
)

// follow makes devices of one account hear what each of them says of links. What they say waits until the function returned
// is called.
func follow(devices ...*peer) (bring func()) {
	type note struct {
		from *peer
		of   *pb.InviteState
	}
	var under []note
	for _, p := range devices {
		p.g.parts.Note = func(tx *txn, s *pb.InviteState) error {
			s = proto.CloneOf(s)
			tx.OnCommit(func() { under = append(under, note{p, s}) })
			return p.g.LinkSaid(tx, s) // as an entry that is written is folded
		}
	}
	return func() {
		for ; len(under) > 0; under = under[1:] {
			for _, p := range devices {
				if n := under[0]; p != n.from {
					p.update(func(tx *txn) error { return p.g.LinkSaid(tx, n.of) })
				}
			}
		}
	}
}

func (p *peer) links(conv ID) (out []Link) {
	p.w.t.Helper()
	p.view(func(tx *txn) (err error) { out, err = p.g.Links(tx, conv); return err })
	return out
}

// A link that one device of an account made is listed, serves and is revoked on the others.
func TestLinksOfAllDevices(t *testing.T) {
	w := begin(t)
	ctx := context.Background()
	alice, alice2, bob, carol, dave := w.person("alice"), w.person("alice"), w.person("bob"), w.person("carol"), w.person("dave")
	bring := follow(alice, alice2)
	conv := alice.create(Options{})
	w.meet(alice, alice2)
	made, err := alice.g.NewLink(ctx, conv, time.Hour, 1)
	require.NoError(t, err)
	require.Empty(t, alice2.links(conv))
	bring()
	there := alice2.links(conv)
	require.Len(t, there, 1)
	parsed, err := identity.ParseGroupLink(there[0].Text)
	require.NoError(t, err)
	require.Equal(t, made.Token, parsed.Token)
	require.Equal(t, "tea", parsed.Name)
	require.Equal(t, made.Expires.UnixMilli(), parsed.Expires.UnixMilli())
	require.Equal(t, alice2.self.Device, parsed.Asks.Devices[0].Device, "who is given it here can come here")
	require.Equal(t, []any{made.Uses, made.Created, made.Expires}, []any{there[0].Uses, there[0].Created, there[0].Expires})

	// The device that made it is away.
	apply := func(p *peer) {
		t.Helper()
		to := Target{Group: conv, Name: parsed.Name, Token: parsed.Token[:], Asks: []Contact{parsed.Asks}}
		_, err := p.g.Apply(ctx, to, "")
		require.NoError(t, err)
	}
	w.nodes = slices.DeleteFunc(w.nodes, func(p *peer) bool { return p == alice })
	apply(bob)
	w.deliver()
	require.Equal(t, 1, alice2.info(conv).Applications)
	require.Equal(t, 1, alice2.links(conv)[0].Used)
	apply(carol)
	missed := slices.Clone(w.mail)
	w.deliver()
	require.Equal(t, 1, alice2.info(conv).Applications)
	require.Equal(t, StateApplied, carol.info(conv).State, "who was too late says the device that made the link, which may have heard of her first")
	w.nodes = append(w.nodes, alice)
	for _, l := range missed {
		alice.hear(l)
	}
	require.Equal(t, 1, alice.info(conv).Applications)
	require.Equal(t, 1, alice.links(conv)[0].Used)

	// Revoked by the one that did not make it.
	more, err := alice.g.NewLink(ctx, conv, 0, 0)
	require.NoError(t, err)
	bring()
	got, err := alice2.g.RevokeLink(ctx, conv, more.Token)
	require.NoError(t, err)
	require.True(t, got.Revoked)
	bring()
	parsed.Token = more.Token
	apply(dave)
	w.deliver()
	require.Equal(t, StateRejected, dave.info(conv).State)
	for _, p := range []*peer{alice, alice2} {
		require.False(t, slices.ContainsFunc(p.links(conv), func(l Link) bool { return l.Token == more.Token && !l.Revoked }), p.name)
		var live []*pb.InviteState
		p.view(func(tx *txn) (err error) { live, err = p.g.LiveLinks(tx, 64); return err })
		for _, l := range live {
			require.NotEqual(t, more.Token[:], l.GetToken(), "a new device is told of live ones only")
		}
	}
}

// Whatever order devices hear in, they end with the same link.
func TestLinksAreTheSameInAnyOrder(t *testing.T) {
	w := begin(t)
	alice := w.person("alice")
	conv := alice.create(Options{})
	rapid.Check(t, func(t *rapid.T) {
		token := identity.NewInviteToken()
		var said []*pb.InviteState
		for range rapid.IntRange(1, 6).Draw(t, "entries") {
			said = append(said, &pb.InviteState{
				Token: token[:], Group: conv[:], Revoked: rapid.Bool().Draw(t, "revoked"), CreatedMs: rapid.Int64Range(0, 5).Draw(t, "created"),
				ExpiresMs: rapid.Int64Range(0, 5).Draw(t, "expires"), Uses: rapid.Uint32Range(0, 5).Draw(t, "uses"),
			})
		}
		var ends [2]linkRow
		for i := range ends {
			alice.update(func(tx *txn) error {
				if err := tx.Delete(linkKey(conv, token[:])); err != nil {
					return err
				}
				for _, s := range rapid.Permutation(said).Draw(t, "order") {
					if err := alice.g.LinkSaid(tx, s); err != nil {
						return err
					}
				}
				var err error
				ends[i], _, err = getRow[linkRow](tx, linkKey(conv, token[:]))
				return err
			})
		}
		require.Equal(t, ends[0], ends[1])
		require.Equal(t, slices.ContainsFunc(said, func(s *pb.InviteState) bool { return s.GetRevoked() }), ends[0].Revoked)
	})
}

func TestLinksThatAreNone(t *testing.T) {
	w := begin(t)
	alice := w.person("alice")
	conv := alice.create(Options{})
	token := identity.NewInviteToken()
	for name, s := range map[string]*pb.InviteState{
		"no token":     {Group: conv[:]},
		"short token":  {Group: conv[:], Token: token[:15]},
		"short group":  {Group: conv[:31], Token: token[:]},
		"made before":  {Group: conv[:], Token: token[:], CreatedMs: -1},
		"over before":  {Group: conv[:], Token: token[:], ExpiresMs: -1},
		"uses without": {Group: conv[:], Token: token[:], Uses: math.MaxUint32},
	} {
		require.ErrorIs(t, alice.db.Update(context.Background(), func(tx *txn) error { return alice.g.LinkSaid(tx, s) }), ErrInvalid, name)
	}
	require.Empty(t, alice.links(conv))
}
