package replica

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"hima/internal/feed"
	"hima/storage"
)

// rows counts the rows that the entries of a feed lie in.
func (s *side) rows(id feed.FeedID) (n int) {
	s.t.Helper()
	s.look(func(tx *storage.Tx) error {
		st, _, err := loadFeed(tx, id)
		if err != nil {
			return err
		}
		return tx.Scan(storage.ScanOptions{Prefix: localKey(keyEntry, st.local, 0)}, func(_, _ []byte) (bool, error) {
			n++
			return true, nil
		})
	})
	return n
}

// checkHeld compares what is stored of a feed with what should be: each entry by its number, and ranges of them.
func (s *side) checkHeld(t *testing.T, id feed.FeedID, want []feed.Entry, rng *rand.Rand) {
	t.Helper()
	s.look(func(tx *storage.Tx) error {
		for _, e := range want {
			got, err := s.rep.Entry(tx, id, e.Seq)
			if err != nil || got.ID != e.ID || got.HasBody() != e.HasBody() {
				t.Fatalf("entry %d: %v, %v, body %v", e.Seq, got.Seq, err, got.HasBody())
			}
		}
		for _, seq := range []uint64{0, uint64(len(want)) + 1} {
			if _, err := s.rep.Entry(tx, id, seq); !errors.Is(err, ErrNoEntry) {
				t.Fatalf("entry %d of %d: %v", seq, len(want), err)
			}
		}
		for range 20 {
			from := 1 + rng.IntN(len(want))
			to := from + rng.IntN(len(want)-from+1)
			next := from
			err := s.rep.Entries(tx, id, uint64(from), uint64(to), func(e feed.Entry) (bool, error) {
				if int(e.Seq) != next || e.ID != want[next-1].ID || e.HasBody() != want[next-1].HasBody() {
					t.Fatalf("entry %d where %d should be", e.Seq, next)
				}
				next++
				return true, nil
			})
			if err != nil || next != to+1 {
				t.Fatalf("%d..%d ended before %d: %v", from, to, next, err)
			}
		}
		return nil
	})
}

func TestBlocksHoldWhatWasWritten(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 11))
	s, o := storeSide(t)
	a := newAuthor(o, s.person)
	var own, theirs []feed.Entry
	erase := func(id feed.FeedID, entries []feed.Entry) {
		i := rng.IntN(len(entries))
		s.change(func(tx *storage.Tx) error { return s.rep.Erase(tx, id, entries[i].Seq) })
		entries[i] = entries[i].WithoutBody()
	}
	for range 60 {
		texts := make([]string, 1+rng.IntN(40))
		for i := range texts {
			texts[i] = strings.Repeat("x", 1+rng.IntN(1<<rng.IntN(14)))
		}
		texts = texts[:min(len(texts), 1+rng.IntN(40))]
		own = append(own, s.say(o, texts...)...)
		fresh := a.write(t, texts...)
		theirs = append(theirs, fresh...)
		for len(fresh) > 0 {
			n := feed.Fit(fresh)
			if err := s.take(o.peer(), a.run(int(fresh[0].Seq), int(fresh[n-1].Seq))); err != nil {
				t.Fatal(err)
			}
			fresh = fresh[n:]
		}
		erase(s.chat(o), own)
		erase(a.feed(), theirs)
	}
	s.checkHeld(t, s.chat(o), own, rng)
	s.checkHeld(t, a.feed(), theirs, rng)
	if n := s.rows(s.chat(o)); n >= len(own) {
		t.Errorf("%d rows for %d entries", n, len(own))
	}
}

// TestNeighboursShareRows: the whole point of blocks, and that none is too large.
func TestNeighboursShareRows(t *testing.T) {
	s, o := storeSide(t)
	s.say(o, numbered(200)...)
	s.look(func(tx *storage.Tx) error {
		st, _, _ := loadFeed(tx, s.chat(o))
		n := 0
		err := tx.Scan(storage.ScanOptions{Prefix: localKey(keyEntry, st.local, 0)}, func(_, v []byte) (bool, error) {
			if len(v) > maxBlock+1024 {
				t.Errorf("a block of %d bytes", len(v))
			}
			n++
			return true, nil
		})
		if n > 20 {
			t.Errorf("%d rows for 200 short entries", n)
		}
		return err
	})
}

// TestBlockKeepsSignature: a run of somebody else that lies in blocks is served as it came (R4).
func TestBlockKeepsSignature(t *testing.T) {
	s, o := storeSide(t)
	a := newAuthor(o, s.person)
	a.write(t, numbered(60)...)
	for _, r := range [][2]int{{1, 40}, {41, 60}} {
		if err := s.take(o.peer(), a.run(r[0], r[1])); err != nil {
			t.Fatal(err)
		}
	}
	s.change(func(tx *storage.Tx) error {
		return errors.Join(s.rep.Erase(tx, a.feed(), 7), s.rep.Erase(tx, a.feed(), 40))
	})
	s.look(func(tx *storage.Tx) error {
		st, _, _ := loadFeed(tx, a.feed())
		entries, sig, err := s.rep.readRun(tx, a.feed(), st, 5)
		if err != nil {
			return err
		}
		run, err := feed.CheckDetached(runPB(entries, sig))
		if err != nil || run.First().Seq != 5 || run.Last().Seq != 60 {
			t.Errorf("served %d..%d: %v", entries[0].Seq, entries[len(entries)-1].Seq, err)
		}
		s, ok, err := loadStored(tx, st.local, 40)
		if !ok || err != nil || s.signature == nil || s.body != nil {
			t.Errorf("the end of the first run lost its signature: %v, %v", ok, err)
		}
		return nil
	})
}

// TestRowsOfBefore: profiles have rows of single entries between blocks.
func TestRowsOfBefore(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	s, o := storeSide(t)
	var own []feed.Entry
	for i := range 9 {
		own = append(own, s.say(o, slices.Repeat([]string{"x"}, 1+i%3*5)...)...)
	}
	s.checkHeld(t, s.chat(o), own, rng)
	if n := s.rows(s.chat(o)); n != 9 {
		t.Errorf("%d rows for nine appends", n)
	}
}

func TestDamagedBlocksAreErrors(t *testing.T) {
	a := newAuthor(newPerson(t, 0), newPerson(t, 1))
	var raw [][]byte
	for _, e := range a.write(t, "1", "2", "3") {
		raw = append(raw, encodeEntry(e, nil))
	}
	whole := encodeBlock(raw)
	if entries, err := splitBlock(whole); err != nil || !slices.EqualFunc(entries, raw, slices.Equal[[]byte]) {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	for n := 1; n < len(whole); n++ {
		if _, err := splitBlock(whole[:n]); !errors.Is(err, errStored) {
			t.Errorf("the first %d bytes of a block: %v", n, err)
		}
	}
}
