package messenger

import (
	"bytes"
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"hima/groups"
	"hima/identity"
	"hima/internal/wire/pb"
	"hima/storage"
)

func (f *fakeGroups) LiveLinks(_ *storage.Tx, most int) ([]*pb.InviteState, error) {
	return f.links[:min(len(f.links), most)], nil
}

func (f *fakeGroups) LinkSaid(_ *storage.Tx, s *pb.InviteState) error {
	if len(s.GetToken()) != 16 {
		return groups.ErrInvalid
	}
	f.links = append(f.links, proto.CloneOf(s))
	return nil
}

func (f *fakeGroups) LinkKnown(_ *storage.Tx, id groups.ID, token identity.InviteToken) (bool, error) {
	for _, s := range f.links {
		if bytes.Equal(s.GetGroup(), id[:]) && bytes.Equal(s.GetToken(), token[:]) {
			return true, nil
		}
	}
	return false, nil
}

// A link to a group goes to the account's other devices by the self conversation, and to a restored one by a snapshot. It is no
// invite to ask for contact.
func TestGroupLinksGoToOtherDevices(t *testing.T) {
	ctx := context.Background()
	a := newPerson(t, "alice")
	a2 := newDevice(t, "alice", "alice2")
	a.learn(a, a, a2)
	a2.learn(a, a, a2)
	token, id := identity.NewInviteToken(), groups.ID{7}
	link := &pb.InviteState{Token: token[:], Group: id[:], CreatedMs: 5, ExpiresMs: 9, Uses: 3}
	for _, s := range []*pb.InviteState{link, {Token: []byte("short"), Group: id[:]}} {
		require.NoError(t, a.db.Update(ctx, func(tx *storage.Tx) error { return a.m.NoteLink(tx, s) }))
	}
	bringSelf(t, a, a2)
	for _, p := range []*person{a, a2} {
		require.Len(t, p.groups.links, 1)
		require.True(t, proto.Equal(link, p.groups.links[0]))
		list, err := p.m.Invites(ctx)
		require.NoError(t, err)
		require.Empty(t, list)
	}

	// What a snapshot of a device says that knows more.
	gone := identity.NewInviteToken()
	a.groups.links = append(a.groups.links, &pb.InviteState{Token: gone[:], Group: id[:], Revoked: true}, &pb.InviteState{Token: token[:9], Group: id[:]})
	r := restore(t, a)
	got, err := r.m.ImportSnapshot(ctx, a.export())
	require.NoError(t, err)
	require.Equal(t, 1, got.Invites)
	require.Len(t, r.groups.links, 1)
	require.True(t, proto.Equal(link, r.groups.links[0]))
	list, err := r.m.Invites(ctx)
	require.NoError(t, err)
	require.Empty(t, list)
	got, err = r.m.ImportSnapshot(ctx, a.export())
	require.True(t, err != nil || got.Invites == 0, "what is known is not written again")
}
