package replica

import (
	"slices"
	"testing"
	"time"

	"hima/internal/feed"
)

// TestReplacedIsWhatStoodHere: what others wrote further on under the key came here ahead of the gap. It is theirs and is not said again.
func TestReplacedIsWhatStoodHere(t *testing.T) {
	for name, gap := range map[string]int{"behind a gap": 3, "without a gap": 2} {
		t.Run(name, func(t *testing.T) {
			c := newCopied(t)
			head := c.old.head(c.feed)
			c.old.say(c.b.person, "two", "three")
			who := feed.NewAuthor(c.old.account(), c.old.device(), c.old.cert)
			tip := feed.Tip{Account: c.old.account(), Seq: head.Last, Hash: head.Hash, Clock: 2}
			var entries []feed.Entry
			for i, text := range []string{"TWO", "THREE", "FOUR", "FIVE", "SIX"} {
				e, err := who.NextInGroup(tip, c.feed.Conversation, feed.Chat, feed.KindText, 9+uint64(i), time.Now().UnixMilli(), []byte(text), feed.Group{})
				if err != nil {
					t.Fatal(err)
				}
				entries, tip = append(entries, e), e.Tip()
			}
			a := c.open(t)
			for _, part := range [][]feed.Entry{entries[gap:], entries[:gap], entries} {
				run, err := feed.Assemble(part, feed.SignRun(c.old.deviceKey, part[len(part)-1]))
				if err != nil {
					t.Fatal(err)
				}
				if err := a.take(c.b.peer(), run.PB()); err != nil {
					t.Fatal(err)
				}
			}
			if want := []string{"two", "three"}; !slices.Equal(c.gone, want) {
				t.Errorf("replaced %q, want %q", c.gone, want)
			}
			if h := a.head(c.feed); h.Last != 6 {
				t.Errorf("the feed ends at %d", h.Last)
			}
		})
	}
}
