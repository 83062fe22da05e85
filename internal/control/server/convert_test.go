package server

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/identity"
	"hima/internal/control"
	"hima/internal/messenger"
)

// A line that is no entry has no ID; zeros would look like one.
func TestLinesWithoutID(t *testing.T) {
	out := messageOf(messenger.Message{Kind: messenger.MessageDevicesChanged})
	require.Empty(t, out.Id)
	require.Empty(t, out.Device)
	out = messageOf(messenger.Message{ID: [32]byte{1}, Device: [32]byte{2}})
	require.Len(t, out.Id, 64)
	require.NotEmpty(t, out.Device)
}

// A group whose owner is disputed is one to be careful with; whoever shows it has to know.
func TestDisputedGroupInAnswers(t *testing.T) {
	require.True(t, foundGroupOf(messenger.FoundGroup{Disputed: true}).GetDisputed())
	require.False(t, foundGroupOf(messenger.FoundGroup{}).GetDisputed())
}

func TestNetworksAndMailboxesInAnswers(t *testing.T) {
	device := identity.DeviceKeyFromSeed([32]byte{1}).ID()
	at := time.UnixMilli(1_700_000_000_123)
	w := whyOf(messenger.Why{Summary: messenger.WhyInMailbox, Devices: []messenger.WhyDevice{{
		Device: device, Custody: []messenger.Custody{{Mailbox: device, Name: "home", Since: at, Until: at.Add(time.Hour), Expired: true}},
	}}})
	require.Equal(t, "in_mailbox", w.GetSummary())
	c := w.GetDevices()[0].GetCustody()[0]
	require.Equal(t, device.String(), c.GetMailbox())
	require.Equal(t, "home", c.GetName())
	require.Equal(t, ms(at), c.GetSinceMs())
	require.Equal(t, ms(at.Add(time.Hour)), c.GetUntilMs())
	require.True(t, c.GetExpired())

	e := eventOf(messenger.Event{Type: messenger.EventMailbox, Detail: "full", Name: "home", Holder: device})
	require.Equal(t, device.String(), e.GetDevice())
	require.Equal(t, "home", e.GetName())
	e = eventOf(messenger.Event{Type: messenger.EventName, Network: "home", Name: "alice"})
	require.Equal(t, "home", e.GetNetwork())
	require.Empty(t, e.GetDevice(), "no device is empty, not an ID")

	network := identity.NewNetworkID("home", device)
	p := Profile(messenger.Profile{Names: []messenger.NameState{{Network: network, NetworkName: "home", Name: "alice", State: messenger.NamePending}}}, "", false)
	require.Len(t, p.GetNames(), 1)
	require.Equal(t, network.String(), p.GetNames()[0].GetNetworkId())
	require.Equal(t, "pending", p.GetNames()[0].GetState())
	require.Empty(t, p.GetNames()[0].GetHolder())
}

func TestTakenNameNamesItsHolder(t *testing.T) {
	var holder identity.AccountID
	holder[3] = 7
	err := Translate(&messenger.Error{
		Kind: messenger.ErrExists, Message: "taken", Hint: "another",
		Candidates: []messenger.Candidate{{Account: holder, Username: "alice", Source: messenger.SourceNetwork}},
	})
	refusal, ok := errors.AsType[*control.Error](err)
	require.True(t, ok)
	require.Equal(t, control.Exists, refusal.Code)
	require.Equal(t, []control.Candidate{{Account: holder.String(), Username: "alice", Source: "network"}}, refusal.Candidates)
}
