package replica

import (
	"testing"
	"time"

	"hima/internal/feed"
	"hima/internal/wire/pb"
)

// TestReceiptOfAnotherBranch: a receipt that names something else than what stands here unsettled says nothing of that. One that
// names the same does.
func TestReceiptOfAnotherBranch(t *testing.T) {
	for name, same := range map[string]bool{"same": true, "other": false} {
		t.Run(name, func(t *testing.T) {
			c := newCopied(t)
			tip := c.old.head(c.feed)
			c.old.say(c.b.person, "two")
			runs, want := c.old.export(c.b, ExportOptions{}).Runs, uint64(2)
			if !same {
				who := feed.NewAuthor(c.old.account(), c.old.device(), c.old.cert)
				e, err := who.NextInGroup(feed.Tip{Account: c.old.account(), Seq: tip.Last, Hash: tip.Hash, Clock: 2}, c.feed.Conversation, feed.Chat,
					feed.KindText, 9, time.Now().UnixMilli(), []byte("TWO"), feed.Group{})
				if err != nil {
					t.Fatal(err)
				}
				run, err := feed.Assemble([]feed.Entry{e}, feed.SignRun(c.old.deviceKey, e))
				if err != nil {
					t.Fatal(err)
				}
				runs, want = []*pb.Run{run.PB()}, 1
			}
			for _, run := range runs {
				if err := c.b.take(c.old.peer(), run); err != nil {
					t.Fatal(err)
				}
			}
			a := c.open(t)
			c.b.receipt(c.old.person)
			c.b.say(c.old.person, "hi")
			c.b.post(a, ExportOptions{})
			var got uint64
			for _, rc := range a.receipts {
				for _, i := range rc.Items {
					if i.Feed == c.feed {
						got = max(got, i.Acked)
					}
				}
			}
			if got != want {
				t.Errorf("told that entries are held up to %d, want %d", got, want)
			}
		})
	}
}
