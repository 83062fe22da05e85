package messenger

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/identity"
)

// groupState is what a group is to somebody, empty: not known.
func (s *side) groupState(name string) string {
	g, err := s.m.Group(context.Background(), name)
	if err != nil {
		return ""
	}
	return g.State
}

// said lists what was said in a group.
func (s *side) said(group string) (out []string) {
	s.t.Helper()
	h, err := s.m.History(context.Background(), HistoryQuery{Who: group, Limit: maxPage})
	require.NoError(s.t, err)
	for _, msg := range h.Messages {
		if msg.Kind == MessageText {
			out = append(out, msg.Text)
		}
	}
	return out
}

// Three people who never had to do with each other: one makes a group, invites, they talk, one applies, one is removed.
func TestGroupOverSessions(t *testing.T) {
	ctx := t.Context()
	b := &book{records: make(map[identity.AccountID]identity.AccountRecord), devices: make(map[identity.AccountID][]identity.DeviceID)}
	alice, bob, carol := newSide(t, "alice", b, ""), newSide(t, "bob", b, ""), newSide(t, "carol", b, "")
	for _, pair := range [][2]*side{{alice, bob}, {alice, carol}, {bob, carol}} {
		pair[0].open(pair[1])
	}
	g, err := alice.m.CreateGroup(ctx, GroupOptions{Name: "Hikers", History: "none", Join: "apply"})
	require.NoError(t, err)
	require.Equal(t, RoleOwner, g.Role)
	for key, value := range map[string]string{"name": strings.Repeat("x", 257), "description": strings.Repeat("x", 4097), "nickname": strings.Repeat("x", 257)} {
		_, err = alice.m.SetGroup(ctx, "Hikers", key, value)
		require.ErrorIs(t, err, ErrTooLarge, key)
		require.ErrorContains(t, err, strconv.Itoa(len(value)-1))
	}
	_, err = alice.m.CreateGroup(ctx, GroupOptions{Name: strings.Repeat("x", 257)})
	require.ErrorIs(t, err, ErrTooLarge)
	_, err = alice.m.SetGroup(ctx, "Hikers", "description", "\xff")
	require.ErrorIs(t, err, ErrInvalid)
	alone, err := alice.m.Send(ctx, SendInput{Who: "Hikers", Text: "anybody?"})
	require.NoError(t, err)
	require.Zero(t, alone.Members)

	_, invited, err := alice.m.InviteToGroup(ctx, "Hikers", []string{bob.p.id()}, false)
	require.NoError(t, err)
	require.NoError(t, invited[0].Err)
	eventually(t, "the invitation", func() bool {
		list, err := bob.m.GroupInvitations(ctx)
		return err == nil && len(list) == 1
	})
	_, err = bob.m.AnswerGroupInvitation(ctx, "Hikers", true)
	require.NoError(t, err)
	eventually(t, "being in", func() bool { return bob.groupState("Hikers") == "member" })
	msg, err := alice.m.Send(ctx, SendInput{Who: "Hikers", Text: "welcome"})
	require.NoError(t, err)
	eventually(t, "the first text", func() bool { return len(bob.said("Hikers")) > 0 })
	_, err = bob.m.MarkRead(ctx, "Hikers", "")
	require.NoError(t, err)
	eventually(t, "read by bob", func() bool {
		w, err := alice.m.Why(ctx, msg.ID.String())
		return err == nil && w.Message.State == StateRead && w.Message.ReadBy == 1 && w.Message.Members == 1
	})

	// Carol has a link.
	link, err := alice.m.CreateGroupLink(ctx, "Hikers", time.Hour, 1)
	require.NoError(t, err)
	_, err = carol.m.ApplyToGroup(ctx, link.Link, "let me in")
	require.NoError(t, err)
	eventually(t, "the application", func() bool {
		list, err := alice.m.GroupApplications(ctx, "Hikers")
		return err == nil && len(list) == 1 && list[0].State == "waiting"
	})
	_, err = alice.m.DecideApplication(ctx, "Hikers", carol.p.id(), true, "")
	require.NoError(t, err)
	eventually(t, "being in", func() bool { return carol.groupState("Hikers") == "member" })
	hello, err := bob.m.Send(ctx, SendInput{Who: "Hikers", Text: "hello carol"})
	require.NoError(t, err)
	for _, s := range []*side{alice, carol} {
		eventually(t, "bob's text", func() bool {
			list := s.said("Hikers")
			return len(list) > 0 && list[len(list)-1] == "hello carol"
		})
	}
	eventually(t, "two of two", func() bool {
		w, err := bob.m.Why(ctx, hello.ID.String())
		return err == nil && w.Message.DeliveredTo == 2 && w.Message.Members == 2
	})
	require.Equal(t, []string{"hello carol"}, carol.said("Hikers"), "history none")

	// Nobody became a contact by that, and bob's leaving is a line.
	for _, s := range []*side{alice, bob, carol} {
		list, err := s.m.Contacts(ctx, true)
		require.NoError(t, err)
		require.Empty(t, list)
		convs, err := s.m.Conversations(ctx)
		require.NoError(t, err)
		require.Len(t, convs, 1)
	}
	_, err = alice.m.ActOnGroup(ctx, "Hikers", GroupRemove, bob.p.id())
	require.NoError(t, err)
	eventually(t, "being told", func() bool { return bob.groupState("Hikers") == "removed" })
	_, err = bob.m.Send(ctx, SendInput{Who: "Hikers", Text: "but"})
	require.ErrorIs(t, err, ErrNotMember)
	_, err = alice.m.Send(ctx, SendInput{Who: "Hikers", Text: "among us"})
	require.NoError(t, err)
	eventually(t, "what bob does not read", func() bool { return len(carol.said("Hikers")) == 2 })
	require.NotContains(t, bob.said("Hikers"), "among us")
}
