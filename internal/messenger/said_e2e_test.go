package messenger

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/storage"
)

// What was refused as too much is sent again in the session that is there, from where it was refused, when heads are told anew.
func TestSaidAgainInTheSameSession(t *testing.T) {
	ctx := t.Context()
	b := &book{records: make(map[identity.AccountID]identity.AccountRecord), devices: make(map[identity.AccountID][]identity.DeviceID)}
	alice, bob := newSide(t, "alice", b, ""), newSide(t, "bob", b, "")
	bob.m.config.Limits.TempSaid = 1 << 10
	g, err := alice.m.CreateGroup(ctx, GroupOptions{Name: "Hikers"})
	require.NoError(t, err)
	alice.open(bob)
	_, _, err = alice.m.InviteToGroup(ctx, "Hikers", []string{bob.p.id()}, false)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return bob.groupState("Hikers") == "invited" }, time.Minute, 10*time.Millisecond)
	_, err = bob.m.AnswerGroupInvitation(ctx, "Hikers", true)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return bob.groupState("Hikers") == "member" }, time.Minute, 10*time.Millisecond)
	conv := feed.DirectConversation(alice.p.account, bob.p.account)
	id := alice.rep.OwnFeed(conv, feed.Control)
	held := func() (n uint64) {
		require.NoError(t, bob.db.View(func(tx *storage.Tx) error {
			h, _, err := bob.rep.Head(tx, id)
			n = h.Last
			return err
		}))
		return n
	}
	before := held()
	const many = 60
	require.NoError(t, alice.db.Update(ctx, func(tx *storage.Tx) error {
		for i := range many {
			account := identity.AccountKeyFromSeed([32]byte{byte(i), 1}).ID()
			content, err := proto.Marshal(&pb.GroupVerdict{Group: g.ID[:], Account: account[:], ApplicationMs: 1})
			if err == nil {
				err = alice.m.Say(tx, bob.p.account, feed.KindGroupVerdict, content)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}))
	require.Eventually(t, func() bool { return held() > before }, time.Minute, 10*time.Millisecond, "the author cuts the run")
	require.Less(t, held(), before+many)
	for held() < before+many {
		some := held()
		require.NoError(t, bob.db.Update(ctx, func(tx *storage.Tx) error {
			row, _, err := bob.m.contacts.get(tx, alice.p.account)
			if err != nil {
				return err
			}
			row.Cost.Said = 0 // as time does
			return bob.m.contacts.put(tx, alice.p.account, row)
		}))
		bob.rep.Reannounce(conv)
		require.Eventually(t, func() bool { return held() > some }, time.Minute, 10*time.Millisecond)
	}
}
