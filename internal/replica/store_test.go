package replica

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/storage"
)

// storeSide is a replica without a network.
func storeSide(t *testing.T) (*side, person) {
	t.Helper()
	p, o := newPerson(t, 0), newPerson(t, 1)
	return newSide(t, p, nil, nil, o), o
}

func (s *side) look(f func(tx *storage.Tx) error) {
	s.t.Helper()
	if err := s.db.View(f); err != nil {
		s.t.Fatal(err)
	}
}

func (s *side) change(f func(tx *storage.Tx) error) {
	s.t.Helper()
	if err := s.db.Update(context.Background(), f); err != nil {
		s.t.Fatal(err)
	}
}

// author makes entries of somebody who has no replica in the test.
type author struct {
	person
	conv   feed.ConversationID
	number feed.Number
	tip    feed.Tip
	all    []feed.Entry
}

func newAuthor(p, to person) *author {
	return &author{person: p, conv: feed.DirectConversation(p.account(), to.account()), number: feed.Chat}
}

func (a *author) write(t testing.TB, texts ...string) []feed.Entry {
	t.Helper()
	by := feed.NewAuthor(a.account(), a.device(), a.cert)
	begin := len(a.all)
	for _, text := range texts {
		e, err := by.Next(a.tip, a.conv, a.number, feed.KindText, feed.NextClock(a.tip, 0), 1, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		a.tip = e.Tip()
		a.all = append(a.all, e)
	}
	return a.all[begin:]
}

// run signs entries from..to, counted from 1.
func (a *author) run(from, to int) *pb.Run {
	entries := a.all[from-1 : to]
	return runPB(entries, feed.SignRun(a.deviceKey, entries[len(entries)-1]))
}

func (a *author) feed() feed.FeedID {
	return feed.FeedID{Conversation: a.conv, Number: a.number, Device: a.device()}
}

func (s *side) take(from Peer, run *pb.Run) error {
	return s.rep.Take(context.Background(), from, run)
}

func (s *side) head(id feed.FeedID) (h feed.Head) {
	s.t.Helper()
	s.look(func(tx *storage.Tx) (err error) {
		h, _, err = s.rep.Head(tx, id)
		return err
	})
	return h
}

func TestAppendAllotsNumbersAndClocks(t *testing.T) {
	s, o := storeSide(t)
	conv := feed.DirectConversation(s.account(), o.account())
	draft := func(n feed.Number, k feed.Kind) Draft {
		return Draft{Conversation: conv, Number: n, Kind: k, Content: []byte("x")}
	}
	entries := s.append(draft(feed.Control, feed.KindRequest), draft(feed.Chat, feed.KindText), draft(feed.Chat, feed.KindText), draft(feed.Control, feed.KindAccept))
	var seqs, clocks []uint64
	for _, e := range entries {
		seqs, clocks = append(seqs, e.Seq), append(clocks, e.Clock)
	}
	if !slices.Equal(seqs, []uint64{1, 1, 2, 2}) || !slices.Equal(clocks, []uint64{1, 2, 3, 4}) {
		t.Errorf("numbers %v, clocks %v", seqs, clocks)
	}
	// A higher clock of the other side is overtaken.
	a := newAuthor(o, s.person)
	a.tip = feed.Tip{}
	by := feed.NewAuthor(o.account(), o.device(), o.cert)
	e, err := by.Next(feed.Tip{}, conv, feed.Chat, feed.KindText, 1000, 1, []byte("high"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.take(o.peer(), runPB([]feed.Entry{e}, feed.SignRun(o.deviceKey, e))); err != nil {
		t.Fatal(err)
	}
	if e := s.say(o, "y")[0]; e.Clock != 1001 || e.Seq != 3 {
		t.Errorf("next own entry has clock %d, number %d", e.Clock, e.Seq)
	}
}

func TestDiscardedAppendUsesNoNumber(t *testing.T) {
	s, o := storeSide(t)
	s.say(o, "one")
	boom := errors.New("boom")
	err := s.db.Update(context.Background(), func(tx *storage.Tx) error {
		_, err := s.rep.Append(tx, Draft{Conversation: feed.DirectConversation(s.account(), o.account()), Number: feed.Chat, Kind: feed.KindText, Content: []byte("no")})
		return errors.Join(err, boom)
	})
	if !errors.Is(err, boom) {
		t.Fatal(err)
	}
	if e := s.say(o, "two")[0]; e.Seq != 2 {
		t.Errorf("number %d after a discarded one", e.Seq)
	}
}

func TestEraseKeepsTheChain(t *testing.T) {
	s, o := storeSide(t)
	s.say(o, "one", "two", "three")
	id := s.chat(o)
	s.change(func(tx *storage.Tx) error { return s.rep.Erase(tx, id, 2) })
	s.look(func(tx *storage.Tx) error {
		var seen []bool
		err := s.rep.Entries(tx, id, 1, 0, func(e feed.Entry) (bool, error) {
			seen = append(seen, e.HasBody())
			return true, nil
		})
		if !slices.Equal(seen, []bool{true, false, true}) {
			t.Errorf("bodies %v", seen)
		}
		if n, err := s.rep.Offered(tx, id); n != 0 || err != nil {
			t.Errorf("offered %d, %v though nobody is there", n, err)
		}
		st, _, _ := loadFeed(tx, id)
		entries, sig, err2 := s.rep.readRun(tx, id, st, 1)
		if _, err3 := feed.CheckDetached(runPB(entries, sig)); err3 != nil || err2 != nil || len(entries) != 3 {
			t.Errorf("%d entries, %v, %v", len(entries), err2, err3)
		}
		if _, err := s.rep.Entry(tx, id, 4); !errors.Is(err, ErrNoEntry) {
			t.Errorf("reading what is not held: %v", err)
		}
		return err
	})
}

func TestEntriesAheadOfAGap(t *testing.T) {
	s, o := storeSide(t)
	a := newAuthor(o, s.person)
	a.write(t, "1", "2", "3", "4", "5", "6")
	other := Peer{Account: o.account(), Device: identity.DeviceID{9}}
	s.take(o.peer(), a.run(1, 2))
	if err := s.take(o.peer(), a.run(4, 4)); err != nil {
		t.Fatal(err)
	}
	if h := s.head(a.feed()); h.Last != 2 {
		t.Errorf("head %d though 3 is missing", h.Last)
	}
	bodyless := a.run(6, 6)
	bodyless.Entries[0].Body = nil
	if err := s.take(other, bodyless); err != nil {
		t.Fatal(err)
	}
	s.look(func(tx *storage.Tx) error {
		holes, err := s.rep.Holes(tx, a.feed())
		if !slices.Equal(holes, []Hole{{3, 3}, {5, 6}}) {
			t.Errorf("holes %v", holes)
		}
		return err
	})
	if err := s.take(o.peer(), a.run(3, 3)); err != nil {
		t.Fatal(err)
	}
	if h := s.head(a.feed()); h.Last != 4 || h.Hash != a.all[3].ID {
		t.Errorf("head %d after the gap was filled", h.Last)
	}
	s.take(other, a.run(5, 5))
	if h := s.head(a.feed()); h.Last != 5 {
		t.Errorf("head %d, but 6 has no body", h.Last)
	}
	s.take(other, a.run(6, 6))
	if h := s.head(a.feed()); h.Last != 6 {
		t.Errorf("head %d", h.Last)
	}
	if got := s.waitTexts(t, 7); !slices.Equal(got, []string{"1", "2", "4", "?", "3", "5", "6"}) {
		t.Errorf("told of %q", got)
	}
	s.look(func(tx *storage.Tx) error {
		holes, err := s.rep.Holes(tx, a.feed())
		if st, _, _ := loadFeed(tx, a.feed()); len(holes) != 0 || st.ahead != 0 {
			t.Errorf("holes %v, %d ahead", holes, st.ahead)
		}
		return err
	})
}

// TestDroppedBranchIsTold: whoever was told of entries that stand ahead of a gap is told when they go, because what filled the gap is of another
// branch or the feed begins behind them by now. A device that forks its feed over and over leaves no trace of that.
func TestDroppedBranchIsTold(t *testing.T) {
	pa, o := newPerson(t, 0), newPerson(t, 1)
	var dropped []uint64
	var held int
	var s *side
	s = newSide(t, pa, nil, func(c *Config) {
		c.OnDropped = func(tx *storage.Tx, id feed.FeedID, from uint64) error {
			dropped, held = append(dropped, from), 0
			return s.rep.Entries(tx, id, from, 0, func(feed.Entry) (bool, error) {
				held++
				return true, nil
			})
		}
	}, o)
	left, right := newAuthor(o, s.person), newAuthor(o, s.person)
	left.write(t, "1")
	right.tip, right.all = left.tip, slices.Clone(left.all)
	left.write(t, "2", "3", "4")
	right.write(t, "TWO", "THREE", "FOUR", "FIVE")
	for _, run := range []*pb.Run{left.run(1, 1), left.run(3, 4), right.run(2, 2)} {
		if err := s.take(o.peer(), run); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(dropped, []uint64{3}) || held != 2 {
		t.Errorf("told of what is gone from %v on, %d entries", dropped, held)
	}
	if err := s.take(o.peer(), right.run(4, 4)); err != nil {
		t.Fatal(err)
	}
	s.change(func(tx *storage.Tx) error {
		return s.rep.raiseFloor(tx, left.feed(), feed.Head{Number: feed.Chat, Account: o.account(), Device: o.device(), Last: 5, Hash: right.all[4].ID}, 0)
	})
	if !slices.Equal(dropped, []uint64{3, 3}) || held != 1 {
		t.Errorf("told of what is gone from %v on, %d entries", dropped, held)
	}
}

// Where a feed ends is known only of a chain without a gap: who reads histories looks no further then.
func TestFeedEnds(t *testing.T) {
	s, o := storeSide(t)
	a := newAuthor(o, s.person)
	a.write(t, "1", "2", "3", "4")
	ends := func(want End) {
		t.Helper()
		got := map[feed.FeedID]End{}
		s.look(func(tx *storage.Tx) error {
			return s.rep.FeedEnds(tx, a.conv, func(id feed.FeedID, e End) error {
				got[id] = e
				return nil
			})
		})
		if len(got) != 1 || got[a.feed()] != want {
			t.Errorf("ends %v, not %v", got, want)
		}
	}
	s.take(o.peer(), a.run(1, 2))
	ends(End{First: 1, Last: 2, Clock: a.all[1].Clock})
	s.take(o.peer(), a.run(4, 4))
	ends(End{First: 1, Last: 2})
	s.take(o.peer(), a.run(3, 3))
	ends(End{First: 1, Last: 4, Clock: a.all[3].Clock})
	if err := s.db.Update(context.Background(), func(tx *storage.Tx) error { return s.rep.SetFloor(tx, a.feed(), 5) }); err != nil {
		t.Fatal(err)
	}
	ends(End{First: 5, Last: 4})
}

func TestOnlySoManyAheadOfAGap(t *testing.T) {
	s, o := storeSide(t)
	a := newAuthor(o, s.person)
	a.write(t, numbered(600)...)
	s.take(o.peer(), a.run(1, 1))
	for i := 3; i < 600; i += 10 {
		s.take(o.peer(), a.run(i, min(i+8, 600)))
	}
	s.look(func(tx *storage.Tx) error {
		st, _, err := loadFeed(tx, a.feed())
		if st.ahead > 256 || st.ahead < 240 {
			t.Errorf("%d kept ahead of a gap", st.ahead)
		}
		return err
	})
}

func TestAuthorsOwnDeviceHasNoHoles(t *testing.T) {
	s, o := storeSide(t)
	a := newAuthor(o, s.person)
	a.write(t, "1", "2")
	run := a.run(1, 2)
	run.Entries[0].Body = nil
	if err := s.take(o.peer(), run); err != nil {
		t.Fatal(err)
	}
	if h := s.head(a.feed()); h.Last != 2 {
		t.Errorf("head %d: what the author erased nobody can have", h.Last)
	}
}

func TestRefusedRunLeavesNothing(t *testing.T) {
	s, o := storeSide(t)
	a := newAuthor(o, s.person)
	a.write(t, "1", "2", "3")
	s.admit = func(_ *storage.Tx, in Incoming) (int, pb.Code) { return 1, pb.Code_CODE_FULL }
	if err := s.take(o.peer(), a.run(1, 3)); !errors.Is(err, ErrRefused) {
		t.Fatal(err)
	}
	s.look(func(tx *storage.Tx) error {
		return tx.Scan(storage.ScanOptions{Prefix: []byte("r/")}, func(k, _ []byte) (bool, error) {
			t.Errorf("key %q is left", k)
			return true, nil
		})
	})
}

func TestRevokedAuthorIsRefused(t *testing.T) {
	s, o := storeSide(t)
	a := newAuthor(o, s.person)
	a.write(t, "1")
	rec, err := identity.NewAccountRecord(o.accountKey, identity.RecordConfig{
		LastSeq: o.record.Seq, Now: begin, Devices: []identity.Certificate{newPersonWith(t, 1, identity.GenerateDeviceKey()).cert},
		Revoked: []identity.DeviceID{o.device()},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Admit(context.Background(), rec.Raw())
	if err := s.take(o.peer(), a.run(1, 1)); !errors.Is(err, ErrRefused) {
		t.Errorf("taken: %v", err)
	}
}

func TestForkEndsTheFeedForEverybody(t *testing.T) {
	s, o := storeSide(t)
	third := newPerson(t, 2)
	a := newAuthor(o, s.person)
	a.write(t, "1", "2")
	b := &author{person: a.person, conv: a.conv, number: a.number, tip: a.tip, all: slices.Clone(a.all)}
	a.write(t, "3", "4")
	b.write(t, "three", "four", "five")
	s.take(o.peer(), a.run(1, 4))
	// The other branch above our end, then the part that overlaps.
	if err := s.take(third.peer(), b.run(5, 5)); err != nil {
		t.Fatal(err)
	}
	if err := s.take(third.peer(), b.run(3, 5)); !errors.Is(err, feed.ErrFork) {
		t.Fatalf("taken: %v", err)
	}
	s.wait(t, "the fork", func() bool { return len(s.forks) == 1 })
	if f := s.forks[0]; f.At != 3 || f.Feed != a.feed() {
		t.Errorf("forked at %d", f.At)
	}
	a.write(t, "5")
	if err := s.take(o.peer(), a.run(5, 5)); err == nil {
		t.Error("a forked feed goes on")
	}
	s.look(func(tx *storage.Tx) error {
		heads, err := s.rep.Heads(tx, a.conv)
		if len(heads) != 0 {
			t.Errorf("heads %v", heads)
		}
		st, _, _ := loadFeed(tx, a.feed())
		if p, err := loadProof(tx, st.local); p == nil || err != nil {
			t.Errorf("no proof: %v", err)
		}
		return err
	})
}

func TestOwnFeedLongerElsewhere(t *testing.T) {
	s, o := storeSide(t)
	s.say(o, "1")
	lost := newAuthor(s.person, o)
	lost.write(t, "1", "2", "3")
	if err := s.take(o.peer(), lost.run(2, 3)); !errors.Is(err, ErrDiverged) {
		t.Fatalf("taken: %v", err)
	}
	s.wait(t, "the news", func() bool { return len(s.diverged) == 1 })
	err := s.db.Update(context.Background(), func(tx *storage.Tx) error {
		_, err := s.rep.Append(tx, Draft{Conversation: lost.conv, Number: feed.Chat, Kind: feed.KindText, Content: []byte("x")})
		return err
	})
	if !errors.Is(err, ErrDiverged) {
		t.Errorf("written under a diverged key: %v", err)
	}
	// Signed bytes of others prove nothing about our feed.
	forged := newAuthor(s.person, o)
	forged.write(t, "1", "2", "3", "4")
	run := forged.run(2, 4)
	run.Signature = feed.SignRun(o.deviceKey, forged.all[3])
	if err := s.take(o.peer(), run); !errors.Is(err, feed.ErrBadSignature) {
		t.Errorf("forged run: %v", err)
	}
}

func TestDebts(t *testing.T) {
	s, o := storeSide(t)
	owed := func() []Debt {
		t.Helper()
		list, err := s.rep.Owed()
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	if len(owed()) != 0 {
		t.Error("debts before anything was said")
	}
	s.say(o, "1", "2", "3")
	<-s.rep.OwedChanged()
	if list := owed(); len(list) != 1 || list[0].Peer != o.peer() || list[0].Entries != 3 {
		t.Errorf("owed %v", list)
	}
	s.change(func(tx *storage.Tx) error { return s.rep.storeAck(tx, o.peer(), s.chat(o), 2) })
	if list := owed(); len(list) != 1 || list[0].Entries != 1 {
		t.Errorf("owed %v", list)
	}
	s.change(func(tx *storage.Tx) error { return s.rep.storeAck(tx, o.peer(), s.chat(o), 99) })
	if list := owed(); len(list) != 0 {
		t.Errorf("owed %v", list)
	}
	s.look(func(tx *storage.Tx) error {
		n, err := s.rep.Acked(tx, s.chat(o), o.device())
		if n != 3 {
			t.Errorf("acknowledged %d of 3", n)
		}
		return err
	})
}

func TestStoredFormsReadBack(t *testing.T) {
	st := feedState{local: 7, account: identity.AccountID{1}, first: 2, last: 3, hash: feed.EntryID{4}, clock: 5, offered: 6, forkAt: 7, touched: -8, ahead: 9}
	var got feedState
	if err := got.decode(st.encode()); err != nil || got != st {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := got.decode(st.encode()[1:]); !errors.Is(err, errStored) {
		t.Errorf("short state: %v", err)
	}
	a := newAuthor(newPerson(t, 0), newPerson(t, 1))
	e := a.write(t, "x")[0]
	sig := bytes.Repeat([]byte{7}, 64)
	for _, s := range [][]byte{nil, sig} {
		for _, e := range []feed.Entry{e, e.WithoutBody()} {
			d, err := decodeEntry(encodeEntry(e, s))
			if err != nil || !bytes.Equal(d.signature, s) || !bytes.Equal(d.header, e.RawHeader()) || !bytes.Equal(d.body, e.RawBody()) {
				t.Errorf("got %v, %v", d, err)
			}
		}
	}
	if _, err := decodeEntry([]byte{flagSigned, 1}); !errors.Is(err, errStored) {
		t.Errorf("short entry: %v", err)
	}
}

// TestSignedAhead: the signature made during the sync is the one that would be made on demand, whichever entry a run ends with.
func TestSignedAhead(t *testing.T) {
	a := newAuthor(newPerson(t, 0), newPerson(t, 1))
	entries := a.write(t, "1", "2", "3")
	var p presigned
	for _, e := range entries[1:] {
		p.begin(a.deviceKey, e)
	}
	for _, e := range entries {
		if !bytes.Equal(p.sign(a.deviceKey, e), feed.SignRun(a.deviceKey, e)) {
			t.Errorf("another signature of entry %d", e.Seq)
		}
	}
}

// TestBadSignatureUndoesWhatWasPrepared: what the committer did while the signature was checked is discarded with it.
func TestBadSignatureUndoesWhatWasPrepared(t *testing.T) {
	s, o := storeSide(t)
	a := newAuthor(o, s.person)
	a.write(t, "1", "2")
	run, err := feed.CheckUnsigned(a.run(1, 2))
	if err != nil {
		t.Fatal(err)
	}
	in := arrived{peer: o.peer(), run: run, check: &checking{done: make(chan struct{})}}
	prepared := make(chan struct{})
	done := make(chan error, 1)
	s.db.Submit(func(tx *storage.Tx) error {
		_, err := s.rep.apply(tx, in)
		close(prepared)
		return errors.Join(err, in.settle())
	}, func(err error) { done <- err })
	<-prepared
	in.check.err = ErrProtocol
	close(in.check.done)
	if err := <-done; !errors.Is(err, ErrProtocol) {
		t.Fatal(err)
	}
	if h := s.head(a.feed()); h.Last != 0 {
		t.Errorf("head %d", h.Last)
	}
	if err := s.take(o.peer(), a.run(1, 2)); err != nil {
		t.Errorf("the same run with its signature: %v", err)
	}
}
