package replica

import (
	"testing"
	"testing/synctest"

	"hima/internal/feed"
)

// TestSessionFillsTheGapBeforeAMail: the acknowledgement then covers what came by mail too, more than the session sent.
func TestSessionFillsTheGapBeforeAMail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, _ := pairIn(t, nil)
		const n = 300
		b.say(a.person, numbered(n)...)
		a.receive(b.mailed(b.export(a, ExportOptions{MaxBytes: 23 << 10, Skip: func(feed.FeedID) uint64 { return 1 }})))
		a.open(b)
		a.waitTexts(t, n)
		b.waitAcked(t, b.chat(a.person), n)
		if a.count() != n || b.down != 0 {
			t.Errorf("told of %d entries; %d sessions ended", a.count(), b.down)
		}
	})
}
