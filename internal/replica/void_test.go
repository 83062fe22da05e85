package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"hima/identity"
	"hima/internal/feed"
	"hima/node/nodetest"
	"hima/storage"
)

// The copy of a profile in which thousands of messages waited, on a disk of a device that dies every few commits.
type wornOut struct {
	*copied
	t     testing.TB
	texts []string
	dir   string
	key   [32]byte
	left  int // commits until the process dies; 0: it does not
	died  int
	db    *storage.DB
}

var errDied = errors.New("died")

// newWornOut lets a device write texts that b does not get, b having the feed up to its first entry.
func newWornOut(t *testing.T, texts []string) *wornOut {
	t.Helper()
	pa, pb := newPerson(t, 0), newPerson(t, 1)
	w := &wornOut{copied: &copied{next: renewed(t, &pa)}, t: t, dir: t.TempDir(), texts: texts}
	w.reopen(0)
	w.old, w.b = newSideOn(t, pa, nil, w.db, newFakes(pa, pb), nil), newSide(t, pb, nil, nil, pa)
	t.Cleanup(func() { _ = w.db.Close() })
	w.feed = w.old.chat(pb)
	w.old.say(pb, "one")
	w.old.post(w.b, ExportOptions{})
	w.b.receipt(pa)
	w.b.post(w.old, ExportOptions{})
	if got := w.old.ackedBy(w.feed, w.b); got != 1 {
		t.Fatalf("acknowledged up to %d", got)
	}
	for rest := texts; len(rest) > 0; {
		n := min(len(rest), max(1, 256<<10/(len(rest[0])*2+400)))
		w.old.say(pb, rest[:n]...)
		rest = rest[n:]
	}
	return w
}

// reopen opens the disk for a process that dies at its commit number n, the second time with it on disk, 0: not at all.
func (w *wornOut) reopen(n int) {
	w.t.Helper()
	if w.db != nil {
		_ = w.db.Close() // that of a dead process says so
	}
	w.left = n
	var err error
	w.db, err = storage.Open(storage.Config{Dir: w.dir, Key: w.key[:], Logger: quiet(), Fail: func(point string) error {
		if at := [2]string{"before-commit", "after-commit"}[w.died%2]; point != at || w.left == 0 {
			return nil
		}
		if w.left--; w.left == 0 {
			w.died++
			return errDied
		}
		return nil
	}})
	if err != nil {
		w.t.Fatal(err)
	}
}

// live lets one process after the other go on with what it does, until one gets through.
func (w *wornOut) live(step int, f func() error) {
	w.t.Helper()
	for range 1000 {
		w.reopen(step)
		err := f()
		if err == nil {
			return
		}
		if !errors.Is(err, errDied) && !errors.Is(err, storage.ErrFailed) {
			w.t.Fatal(err)
		}
	}
	w.t.Fatal("no end")
}

// open starts the device under its new key. What was replaced it says again as the messenger does: each once, in the same
// transaction.
func (w *wornOut) open(change func(*Config)) *side {
	w.t.Helper()
	var a *side
	a = newSideOn(w.t, w.next, nil, w.db, w.old.fakes, func(conf *Config) {
		conf.Former = []identity.DeviceID{w.old.device()}
		conf.OnReplaced = func(tx *storage.Tx, entries []feed.Entry) error { return sayAgain(tx, a.rep, entries) }
		if change != nil {
			change(conf)
		}
	})
	return a
}

func sayAgain(tx *storage.Tx, r *Replica, entries []feed.Entry) error {
	var drafts []Draft
	for _, e := range entries {
		key := append([]byte("again/"), e.ID[:]...)
		if done, err := tx.Has(key); err != nil || done {
			return errors.Join(err, fmt.Errorf("entry %d is said again twice", e.Seq))
		}
		content, err := e.Content()
		if err = errors.Join(err, tx.Set(key, nil)); err != nil {
			return err
		}
		drafts = append(drafts, Draft{Conversation: e.Conversation, Number: e.Number, Kind: e.Kind, Content: content})
	}
	_, err := r.Append(tx, drafts...)
	return err
}

func waiting(n, size int) []string {
	texts := make([]string, n)
	for i := range texts {
		texts[i] = fmt.Sprintf("%05d %s", i, strings.Repeat("x", size-6))
	}
	return texts
}

// many are what may wait for somebody who is away.
var many = map[string][]string{"short": waiting(10_000, 200), "long": waiting(150, 16<<10)}

// large are mails of which a few bring all that.
var large = ExportOptions{MaxBytes: 512 << 10}

// TestThousandsWaitUnderAFormerKey: what is noticed at once is signed and served, however much it is and wherever that is interrupted.
func TestThousandsWaitUnderAFormerKey(t *testing.T) {
	if testing.Short() {
		t.Skip("thousands take minutes under the race detector, and nothing here runs beside anything else")
	}
	for name, texts := range many {
		t.Run(name, func(t *testing.T) {
			w := newWornOut(t, texts)
			w.live(2, func() error { return Seal(context.Background(), w.db, w.old.account(), w.old.deviceKey, nil) })
			if w.died == 0 {
				t.Fatal("nothing was interrupted")
			}
			w.reopen(0)
			w.open(nil)
			w.open(nil).post(w.b, large)
			if got := w.b.texts(); !slices.Equal(got, append([]string{"one"}, texts...)) {
				t.Errorf("%d texts arrived, or in another order", len(got))
			}
		})
	}
}

// others are what the former key wrote elsewhere behind what b has.
func (w *wornOut) others(t testing.TB, texts ...string) []feed.Entry {
	t.Helper()
	who := feed.NewAuthor(w.old.account(), w.old.device(), w.old.cert)
	h := w.b.head(w.feed)
	tip := feed.Tip{Account: w.old.account(), Seq: h.Last, Hash: h.Hash, Clock: 1}
	var entries []feed.Entry
	for i, text := range texts {
		e, err := who.NextInGroup(tip, w.feed.Conversation, feed.Chat, feed.KindText, 2+uint64(i), time.Now().UnixMilli(), []byte(text), feed.Group{})
		if err != nil {
			t.Fatal(err)
		}
		entries, tip = append(entries, e), e.Tip()
	}
	return entries
}

// TestThousandsAreReplaced: what others hold something else in the place of is said again once and in order, however much it is and
// wherever that is interrupted.
func TestThousandsAreReplaced(t *testing.T) {
	if testing.Short() {
		t.Skip("thousands take minutes under the race detector, and nothing here runs beside anything else")
	}
	for name, texts := range many {
		t.Run(name, func(t *testing.T) {
			w := newWornOut(t, texts)
			theirs := w.others(t, "TWO")
			run := runPB(theirs, feed.SignRun(w.old.deviceKey, theirs[0]))
			if err := w.b.take(w.old.peer(), run); err != nil {
				t.Fatal(err)
			}
			dropped := uint64(0)
			w.live(3, func() error {
				a := w.open(func(conf *Config) {
					conf.OnDropped = func(_ *storage.Tx, _ feed.FeedID, from uint64) error { dropped = from; return nil }
				})
				err := a.take(w.b.peer(), run)
				if errors.Is(err, ErrRefused) {
					if err := a.rep.replaceVoid(context.Background()); err != nil {
						return err
					}
					err = a.take(w.b.peer(), run)
				}
				return err
			})
			if w.died < 4 {
				t.Fatalf("interrupted %d times", w.died)
			}
			w.reopen(0)
			a := w.open(nil)
			if h := a.head(w.feed); h.Last != 2 || dropped != 2 {
				t.Errorf("the feed ends at %d, dropped from %d on", h.Last, dropped)
			}
			a.look(func(tx *storage.Tx) error {
				st, _, err := loadFeed(tx, w.feed)
				if _, noted, _ := loadVoid(tx, w.feed); noted || st.ahead != 0 {
					t.Errorf("noted %v, %d ahead", noted, st.ahead)
				}
				return err
			})
			a.post(w.b, large)
			if got := w.b.texts(); !slices.Equal(got, append([]string{"one", "TWO"}, texts...)) {
				t.Errorf("%d texts arrived, or in another order", len(got))
			}
		})
	}
}

// TestReplacingInASession: whoever shows what is there instead is refused while a long tail is replaced, and shows it again then. A step that
// fails is tried again.
func TestReplacingInASession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := nodetest.New(t, 3)
		pa, pb := newPerson(t, 0), newPerson(t, 1)
		next := newPersonWith(t, 0, nodetest.Key(2))
		record, err := identity.NewAccountRecord(pa.accountKey, identity.RecordConfig{
			Now: time.Now(), Devices: []identity.Certificate{pa.cert, next.cert},
		})
		if err != nil {
			t.Fatal(err)
		}
		pa.record, next.record = record, record
		texts := waiting(1000, 20)
		old, b := newSide(t, pa, nil, nil, pb), newSide(t, pb, net.Node(1), nil, pa)
		w := &wornOut{copied: &copied{old: old, b: b, next: next, feed: old.chat(pb)}}
		old.say(pb, "one")
		old.post(b, ExportOptions{})
		old.say(pb, texts...)
		theirs := w.others(t, "TWO", "THREE")
		if err := b.take(old.peer(), runPB(theirs, feed.SignRun(old.deviceKey, theirs[1]))); err != nil {
			t.Fatal(err)
		}
		var a *side
		a = newSideOn(t, next, net.Node(2), old.db, old.fakes, func(conf *Config) {
			conf.Former = []identity.DeviceID{old.device()}
			full := true // for a moment
			conf.OnReplaced = func(tx *storage.Tx, entries []feed.Entry) error {
				if full {
					full = false
					return errors.New("disk is full")
				}
				return sayAgain(tx, a.rep, entries)
			}
		})
		// A note that cannot be read keeps no other feed from going on.
		err = a.db.Update(t.Context(), func(tx *storage.Tx) error { return tx.Set(voidKey(feed.FeedID{Number: feed.Chat}), []byte("?")) })
		if err != nil {
			t.Fatal(err)
		}
		net.Connect(1, 2)
		a.open(b)
		want := append([]string{"one", "TWO", "THREE"}, texts...)
		if got := b.waitTexts(t, len(want)); !slices.Equal(got, want) {
			t.Errorf("%d texts arrived, or in another order", len(got))
		}
		a.wait2(func() bool { return slices.Contains(a.texts(), "THREE") })
		if h := a.head(w.feed); h.Last != 3 || a.down != 0 {
			t.Errorf("the feed ends at %d, %d sessions ended", h.Last, a.down)
		}
		a.stop()
		b.stop()
		old.db.Close()
		b.db.Close()
	})
}
