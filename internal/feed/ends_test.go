package feed_test

import (
	"testing"

	"github.com/stretchr/testify/require"

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
