package messenger

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/wire/pb"
	"hima/node/nodetest"
)

// restoredSide is the same account on a new machine, made from its phrase: it has no database, and its record may or may
// not name the old device.
func restoredSide(t *testing.T, old *side, listed bool) *side {
	t.Helper()
	s := &side{t: t, book: old.book, p: newDevice(t, old.p.name, old.p.name+" restored")}
	s.p.cert = identity.NewCertificate(s.p.acct, s.p.device, time.Now())
	certs := []identity.Certificate{s.p.cert}
	if listed {
		certs = append(certs, old.p.cert)
	}
	before, _ := s.book.Record(s.p.account)
	rec, err := identity.NewAccountRecord(s.p.acct, identity.RecordConfig{Now: time.Now(), LastSeq: before.Seq, Devices: certs})
	require.NoError(t, err)
	s.book.enter(rec, s.p.device)
	s.node = nodetest.LoopbackKey(t, s.p.key)
	s.start()
	t.Cleanup(func() { s.halt() })
	require.NoError(t, s.m.Restored(context.Background()))
	return s
}

// R21 over real sessions: nothing but a contact that meets the new device brings contact and history back, and a
// restored device is no stranger's way around the gate.
func TestRestoredDeviceOverReplicas(t *testing.T) {
	for _, listed := range []bool{true, false} {
		t.Run(fmt.Sprintf("old device listed %t", listed), func(t *testing.T) {
			a, b := realFriends(t, "", "")
			a.send(b, "one")
			b.send(a, "two")
			eventually(t, "both have both", func() bool { return len(a.texts(b)) == 2 && len(b.texts(a)) == 2 })
			want := a.texts(b)
			a.halt()
			require.NoError(t, a.node.Close())

			r := restoredSide(t, a, listed)
			b.open(r)
			eventually(t, "the contact is back", func() bool { return r.relation(b) == RelationContact })
			eventually(t, "history is back", func() bool { return len(r.texts(b)) == 2 })
			require.Equal(t, want, r.texts(b))
			require.Equal(t, []State{StateDelivered}, r.states(b), "who brought it holds it")
			r.send(b, "three")
			eventually(t, "the new device is heard", func() bool { return len(b.texts(a)) == 3 })
			b.send(r, "four")
			eventually(t, "and hears", func() bool { return len(r.texts(b)) == 4 })
			eventually(t, "and it is delivered", func() bool { s := b.states(a); return s[len(s)-1] == StateDelivered })
			eventually(t, "the contact's owner sees that the devices changed", func() bool {
				return slices.ContainsFunc(b.lines(a), func(l Message) bool { return l.Kind == MessageDevicesChanged })
			})

			m := newSide(t, "mallory", r.book, "")
			m.ask(r, r.p.id())
			m.open(r)
			eventually(t, "a stranger asks like everybody", func() bool { return r.relation(m) == RelationRequest })
		})
	}
}

// Groups come back too: by the snapshot, from a member who is there, whether it is a contact or not.
func TestRestoredDeviceFindsItsGroups(t *testing.T) {
	ctx := t.Context()
	b := &book{records: make(map[identity.AccountID]identity.AccountRecord), devices: make(map[identity.AccountID][]identity.DeviceID)}
	alice, bob := newSide(t, "alice", b, ""), newSide(t, "bob", b, "")
	alice.open(bob)
	_, err := bob.m.CreateGroup(ctx, GroupOptions{Name: "Hikers"})
	require.NoError(t, err)
	_, invited, err := bob.m.InviteToGroup(ctx, "Hikers", []string{alice.p.id()}, false)
	require.NoError(t, err)
	require.NoError(t, invited[0].Err)
	eventually(t, "the invitation", func() bool { return alice.groupState("Hikers") == "invited" })
	_, err = alice.m.AnswerGroupInvitation(ctx, "Hikers", true)
	require.NoError(t, err)
	eventually(t, "being in", func() bool { return alice.groupState("Hikers") == "member" })
	for s, words := range map[*side]string{alice: "mine", bob: "theirs"} {
		_, err = s.m.Send(ctx, SendInput{Who: "Hikers", Text: words})
		require.NoError(t, err)
	}
	eventually(t, "both have both", func() bool { return len(alice.said("Hikers")) == 2 && len(bob.said("Hikers")) == 2 })
	snapshot, err := alice.m.ExportSnapshot(ctx)
	require.NoError(t, err)
	alice.halt()
	require.NoError(t, alice.node.Close())

	r := restoredSide(t, alice, true)
	got, err := r.m.ImportSnapshot(ctx, snapshot)
	require.NoError(t, err)
	require.Equal(t, 1, got.Groups)
	require.Equal(t, "joining", r.groupState("Hikers"))
	bob.open(r)
	eventually(t, "being in again", func() bool { return r.groupState("Hikers") == "member" })
	eventually(t, "history is back", func() bool { return len(r.said("Hikers")) == 2 })
	require.Equal(t, bob.said("Hikers"), r.said("Hikers"))
	list, err := r.m.Conversations(ctx)
	require.NoError(t, err)
	require.True(t, slices.ContainsFunc(list, func(c Conversation) bool { return c.Kind == KindGroup && c.Name == "Hikers" }))
	_, err = r.m.Send(ctx, SendInput{Who: "Hikers", Text: "back"})
	require.NoError(t, err)
	eventually(t, "the new device is heard", func() bool { return slices.Contains(bob.said("Hikers"), "back") })
	again, err := r.m.ExportSnapshot(ctx)
	require.NoError(t, err)
	require.Equal(t, "Hikers", groupsOf(t, again)[0].GetName())
}

func groupsOf(t *testing.T, snapshot []byte) []*pb.SnapshotGroup {
	t.Helper()
	var s pb.Snapshot
	require.NoError(t, proto.Unmarshal(snapshot, &s))
	return s.GetGroups()
}
