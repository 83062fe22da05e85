package groups

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
)

// cannotTell makes the direct conversations of a peer with some take nothing.
func (p *peer) cannotTell(whom ...*peer) {
	p.g.parts.Say = func(tx *txn, to identity.AccountID, kind feed.Kind, content []byte) error {
		for _, q := range whom {
			if q.self.Account == to {
				return fmt.Errorf("a newer version acted: %w", ErrReadOnly)
			}
		}
		return p.say(tx, to, kind, content)
	}
}

// An admin who cannot be told keeps no application out, and others are told instead.
func TestApplicationWhereAnAdminCannotBeTold(t *testing.T) {
	d := beginDeciders(t)
	dave := d.dave.self.Account
	d.bob.cannotTell(d.alice)
	d.applies([]*peer{d.bob}, []*peer{d.bob})
	require.Equal(t, Waiting, d.bob.application(d.conv, dave).State)
	require.NoError(t, d.alice.g.Promote(t.Context(), d.conv, d.carol.self.Account))
	d.alice.gives(d.bob)
	d.alice.gives(d.carol)
	d.applies([]*peer{d.bob}, []*peer{d.bob})
	d.deliver()
	require.Equal(t, Waiting, d.carol.application(d.conv, dave).State)
	// Neither it nor the applicant keeps anybody from deciding.
	d.bob.cannotTell(d.alice, d.dave)
	d.decides(d.bob, false, "no")
	d.deliver()
	require.Equal(t, Rejected, d.bob.application(d.conv, dave).State)
	require.Equal(t, Rejected, d.carol.application(d.conv, dave).State)
}

// Nor does an applicant who cannot be told keep an act out, upon which what another admin said is believed.
func TestActWhereAnApplicantCannotBeTold(t *testing.T) {
	d := beginDeciders(t)
	dave := d.dave.self.Account
	d.applies([]*peer{d.bob}, []*peer{d.bob})
	d.deliver()
	require.NoError(t, d.alice.g.Promote(t.Context(), d.conv, d.carol.self.Account))
	content, err := proto.Marshal(&pb.GroupVerdict{Group: d.conv[:], Account: dave[:], ApplicationMs: d.bob.application(d.conv, dave).Time.UnixMilli()})
	require.NoError(t, err)
	d.bob.hear(letter{d.carol.self.Account, d.bob.self.Account, d.carol.self.Device, feed.KindGroupVerdict, content, d.now})
	d.bob.cannotTell(d.dave)
	d.alice.gives(d.bob)
	view := d.bob.rosterView(d.conv)
	require.Equal(t, RoleAdmin, view.Role(d.carol.self.Account))
	require.Equal(t, Rejected, d.bob.application(d.conv, dave).State)
}

// Who is asked besides is asked, and told that it is taken back, whoever of them cannot be told.
func TestApplyingWhereSomeCannotBeTold(t *testing.T) {
	d := beginDeciders(t)
	ctx, dave := t.Context(), d.dave.self.Account
	d.dave.cannotTell(d.alice)
	_, err := d.dave.g.Apply(ctx, target(d.conv, d.alice), "")
	require.ErrorIs(t, err, ErrReadOnly, "nobody is asked")
	require.Zero(t, d.dave.application(d.conv, dave))
	d.applies([]*peer{d.alice, d.bob}, []*peer{d.bob})
	require.Equal(t, Waiting, d.bob.application(d.conv, dave).State)
	d.dave.cannotTell()
	d.applies([]*peer{d.alice, d.bob}, nil)
	d.dave.cannotTell(d.alice)
	require.NoError(t, d.dave.g.WithdrawApplication(ctx, d.conv))
	d.deliver()
	require.Equal(t, Withdrawn, d.bob.application(d.conv, dave).State)
}

// Of several who invited, those who can be told hear the answer.
func TestAnsweringWhereAnInviterCannotBeTold(t *testing.T) {
	w := begin(t)
	alice, bob, dave := w.person("alice"), w.person("bob"), w.person("dave")
	conv := alice.create(Options{}, bob)
	require.NoError(t, alice.g.Promote(t.Context(), conv, bob.self.Account))
	w.meet(alice, bob)
	for _, p := range []*peer{alice, bob} {
		_, err := p.g.Invite(t.Context(), conv, dave.self.Account)
		require.NoError(t, err)
	}
	w.deliver()
	dave.cannotTell(alice, bob)
	_, err := dave.g.Answer(t.Context(), conv, true)
	require.ErrorIs(t, err, ErrReadOnly)
	dave.cannotTell(alice)
	_, err = dave.g.Answer(t.Context(), conv, true)
	require.NoError(t, err)
	w.meet()
	require.Equal(t, StateMember, dave.info(conv).State)
}
