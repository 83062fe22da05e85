package replica

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/storage"
)

// rival is what a former key wrote elsewhere: a branch that parts from what is held here behind a number.
type rival struct {
	*copied
	t    *testing.T
	a    *side
	base uint64       // the last number that both have
	all  []feed.Entry // what stands behind it on the branch
	said []string     // the tail here, from number 2 on
	from []uint64     // where entries were dropped
	free []feed.ConversationID
	full func() error // what saying again fails with; nil: nothing
}

// newRival opens the copy of a profile in which n texts wait behind the one that b has, each in a row of its own.
func newRival(t *testing.T, n int, base uint64, length int) *rival {
	t.Helper()
	r := &rival{copied: newCopied(t), t: t, base: base, said: waiting(n, 20)}
	for _, text := range r.said {
		r.old.say(r.b.person, text)
	}
	r.a = newSideOn(t, r.next, nil, r.old.db, r.old.fakes, func(c *Config) {
		c.Former = []identity.DeviceID{r.old.device()}
		c.OnReplaced = func(_ *storage.Tx, entries []feed.Entry) error {
			if r.full != nil {
				return r.full()
			}
			for _, e := range entries {
				content, err := e.Content()
				if err != nil {
					return err
				}
				r.gone = append(r.gone, string(content))
			}
			return nil
		}
		c.OnDropped = func(_ *storage.Tx, _ feed.FeedID, from uint64) error {
			r.from = append(r.from, from)
			return nil
		}
		c.AfterReplaced = func(conv feed.ConversationID) {
			if r.busy() {
				t.Error("told too early")
			}
			r.free = append(r.free, conv)
		}
	})
	who := feed.NewAuthor(r.old.account(), r.old.device(), r.old.cert)
	tip := r.ours(base, base)[0].Tip()
	for i := range length {
		e, err := who.NextInGroup(tip, r.feed.Conversation, feed.Chat, feed.KindText, tip.Clock+1, time.Now().UnixMilli(), fmt.Appendf(nil, "other %d", i), feed.Group{})
		if err != nil {
			t.Fatal(err)
		}
		r.all, tip = append(r.all, e), e.Tip()
	}
	return r
}

// ours are the entries here from one number to another.
func (r *rival) ours(from, to uint64) (entries []feed.Entry) {
	r.t.Helper()
	r.a.look(func(tx *storage.Tx) error {
		return r.a.rep.Entries(tx, r.feed, from, to, func(e feed.Entry) (bool, error) {
			entries = append(entries, e)
			return true, nil
		})
	})
	return entries
}

// run signs the branch from one number to another, with what both have.
func (r *rival) run(from, to uint64) *pb.Run {
	r.t.Helper()
	var entries []feed.Entry
	if from <= r.base {
		entries = r.ours(from, min(to, r.base))
	}
	if to > r.base {
		entries = append(entries, r.all[max(from, r.base+1)-r.base-1:to-r.base]...)
	}
	return r.signed(entries)
}

func (r *rival) signed(entries []feed.Entry) *pb.Run {
	return runPB(entries, feed.SignRun(r.old.deviceKey, entries[len(entries)-1]))
}

func (r *rival) refused(what string, run *pb.Run) {
	r.t.Helper()
	if err := r.a.take(r.b.peer(), run); !errors.Is(err, ErrRefused) {
		r.t.Fatalf("%s: %v", what, err)
	}
}

// TestTailOutlivesABranchBehindIt: where others' entries stand behind the tail and do not follow it, they go, and not the tail, which nobody
// else may have.
func TestTailOutlivesABranchBehindIt(t *testing.T) {
	r := newRival(t, 9, 3, 20) // numbers 2 to 10
	if err := r.a.take(r.b.peer(), r.run(11, 12)); err != nil {
		t.Fatal(err)
	}
	if err := r.a.take(r.b.peer(), r.run(2, 3)); err != nil {
		t.Fatal(err)
	}
	if h := r.a.head(r.feed); h.Last != 3 || !slices.Equal(r.from, []uint64{11}) {
		t.Errorf("the feed ends at %d, dropped from %v on", h.Last, r.from)
	}
	if got := r.ours(4, 0); len(got) != 7 || len(r.gone) != 0 {
		t.Errorf("%d of the tail are left, %d were said again", len(got), len(r.gone))
	}
	r.a.look(func(tx *storage.Tx) error {
		st, _, err := loadFeed(tx, r.feed)
		if st.ahead != 7 {
			t.Errorf("%d ahead", st.ahead)
		}
		return err
	})
	if err := r.a.take(r.b.peer(), r.run(4, 12)); err != nil {
		t.Fatal(err)
	}
	if h := r.a.head(r.feed); h.Last != 12 || !slices.Equal(r.gone, r.said[2:]) {
		t.Errorf("the feed ends at %d, said again %q", h.Last, r.gone)
	}
}
