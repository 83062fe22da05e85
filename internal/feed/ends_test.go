package feed_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/identity"
	"hima/internal/feed"
)

func TestRunEndsAfterARemoval(t *testing.T) {
	const admit, remove, epoch, set = feed.KindGroupAdmit, feed.KindGroupRemove, feed.KindGroupEpoch, feed.KindGroupSet
	for _, x := range []struct {
		kinds []feed.Kind
		fit   int
	}{
		{[]feed.Kind{admit, set, epoch, set}, 4},
		{[]feed.Kind{admit, remove}, 2},
		{[]feed.Kind{admit, remove, set}, 2},
		{[]feed.Kind{admit, remove, remove, epoch}, 2},
		{[]feed.Kind{remove, epoch, set}, 2},
		{[]feed.Kind{remove, epoch, epoch}, 2},
		{[]feed.Kind{epoch, set, set}, 3},
	} {
		var entries []feed.Entry
		for _, k := range x.kinds {
			entries = append(entries, feed.Entry{Header: feed.Header{Number: feed.Control, Kind: k}})
		}
		require.Equal(t, x.fit, feed.Fit(entries), "%v", x.kinds)
	}
}

// Where a run ends is its author's to keep to. One that goes on all the same is sound, and whoever holds it can read it back.
func TestRunGoesOnAfterARemoval(t *testing.T) {
	account, device := identity.AccountKeyFromSeed([32]byte{1}), identity.DeviceKeyFromSeed([32]byte{2})
	author := feed.NewAuthor(account.ID(), device.ID(), identity.NewCertificate(account, device.ID(), time.UnixMilli(1e12)))
	var tip feed.Tip
	var entries []feed.Entry
	for _, k := range []feed.Kind{feed.KindGroupRemove, feed.KindGroupSet} {
		e, err := author.Next(tip, feed.ConversationID{1}, feed.Control, k, tip.Clock+1, 1e12, []byte("x"))
		require.NoError(t, err)
		entries, tip = append(entries, e), e.Tip()
	}
	require.Equal(t, 1, feed.Fit(entries))
	run, err := feed.Assemble(entries, feed.SignRun(device, entries[1]))
	require.NoError(t, err)
	_, err = feed.CheckDetached(run.PB())
	require.NoError(t, err)
}
