package daemon

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"hima/groups"
	"hima/identity"
	"hima/internal/control/pb"
	"hima/internal/mailbox"
	"hima/internal/messenger"
)

// TestGroupFindings: one finding for each trouble, with the worst of each group, and a count of the groups without.
func TestGroupFindings(t *testing.T) {
	var list []messenger.Group
	health := map[groups.ID]groups.Health{}
	add := func(name string, state groups.State, h groups.Health) *messenger.Group {
		h.Group = groups.ID{byte(len(list) + 1)}
		health[h.Group] = h
		list = append(list, messenger.Group{ID: h.Group, Name: name, State: string(state)})
		return &list[len(list)-1]
	}
	find := func() []*pb.Check {
		x := &examination{}
		x.groupFindings(list, health)
		return x.checks
	}
	add("heard", groups.StateNone, groups.Health{})
	add("over", groups.StateDissolved, groups.Health{Unreached: true})
	require.Len(t, find(), 1)
	require.Equal(t, "none", find()[0].GetDetail())

	add("well", groups.StateMember, groups.Health{})
	add("kept", groups.StateMember, groups.Health{Unreached: true}).Mailboxes = []identity.DeviceID{{1}}
	require.Len(t, find(), 1)
	require.Equal(t, values{"count": "2"}, find()[0].GetValues())

	add("locked", groups.StateMember, groups.Health{Keyless: true, Unreached: true})
	add("newer", groups.StateMember, groups.Health{Keyless: true}).ReadOnly = true
	add("full", groups.StateMember, groups.Health{Log: fmt.Errorf("leaving: %w", mailbox.ErrNoRoom)})
	add("silent", groups.StateMember, groups.Health{Log: errors.New("timeout")})
	add("waiting", groups.StateJoining, groups.Health{})
	for i := range namedGroups + 2 {
		add(fmt.Sprint("g", i), groups.StateMember, groups.Health{Unreached: true})
	}
	got := map[string]*pb.Check{}
	for _, c := range find() {
		require.Equal(t, "group", c.GetId())
		got[c.GetDetail()] = c
	}
	require.Len(t, got, 7)
	for detail, name := range map[string]string{"no_key": "locked", "read_only": "newer", "log_full": "full", "log_failed": "silent", "joining": "waiting"} {
		require.Equal(t, name, got[detail].GetValues()["name"], detail)
		require.Equal(t, checkWarning, got[detail].GetState())
		require.Equal(t, "1", got[detail].GetValues()["count"])
	}
	require.Equal(t, "timeout", got["log_failed"].GetValues()["error"])
	require.Equal(t, "g0, g1, g2, g3, g4, g5, g6, g7, …", got["unreached"].GetValues()["name"])
	require.Equal(t, "10", got["unreached"].GetValues()["count"])
	require.Equal(t, checkOK, got["work"].GetState())
}
