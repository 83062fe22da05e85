package replica

import (
	"bytes"
	"context"
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

// friendsApart makes two friends who never meet: only mail goes between them.
func friendsApart(t testing.TB, change func(*Config)) (a, b *side) {
	t.Helper()
	pa, pb := newPerson(t, 0), newPerson(t, 1)
	return newSide(t, pa, nil, change, pb), newSide(t, pb, nil, change, pa)
}

// export takes what a device lacks.
func (s *side) export(to *side, o ExportOptions) Export {
	s.t.Helper()
	e, err := s.rep.Export(context.Background(), to.device(), o)
	if err != nil {
		s.t.Fatalf("exporting: %v", err)
	}
	return e
}

// mailed is what a mailbox would hand over of an export.
func (s *side) mailed(e Export) Mailed {
	return Mailed{Peer: s.peer(), Record: s.record, Runs: e.Runs, Receipts: e.Receipts, Token: e.Token, Work: e.Work}
}

func (s *side) receive(m Mailed) Imported {
	s.t.Helper()
	in, err := s.rep.Import(context.Background(), m, nil)
	if err != nil {
		s.t.Fatalf("importing: %v", err)
	}
	return in
}

// post brings to somebody what he lacks, in as many mails as it takes, and says how many.
func (s *side) post(to *side, o ExportOptions) (mails int) {
	s.t.Helper()
	sent := map[feed.FeedID]uint64{}
	o.Skip = func(id feed.FeedID, _ uint64) uint64 { return sent[id] }
	for {
		e := s.export(to, o)
		if e.Empty() {
			return mails
		}
		mails++
		for _, span := range e.Spans {
			sent[span.Feed] = span.Last
		}
		to.receive(s.mailed(e))
		if err := s.db.Update(context.Background(), func(tx *storage.Tx) error { return s.rep.Posted(tx, e, time.Now().Add(time.Hour)) }); err != nil {
			s.t.Fatal(err)
		}
		if mails > 100 {
			s.t.Fatal("exports do not end")
		}
	}
}

func (s *side) conv(o person) feed.ConversationID {
	return feed.DirectConversation(s.account(), o.account())
}

// receipt makes the receipt that Run would make.
func (s *side) receipt(o person) {
	s.t.Helper()
	if err := s.rep.makeReceipt(context.Background(), readyReceipt{conv: s.conv(o)}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *side) ackedBy(id feed.FeedID, o *side) (last uint64) {
	s.t.Helper()
	if err := s.rep.view(func(tx *storage.Tx) (err error) {
		last, err = s.rep.Acked(tx, id, o.device())
		return err
	}); err != nil {
		s.t.Fatal(err)
	}
	return last
}

func TestMailBringsEntriesAndReceipts(t *testing.T) {
	a, b := friendsApart(t, nil)
	a.say(b.person, numbered(3)...)
	e := a.export(b, ExportOptions{})
	if e.Peer != b.peer() || len(e.Runs) != 1 || e.Spans[0] != (Span{Feed: a.chat(b.person), From: 1, Last: 3}) || e.More || e.Knock != true {
		t.Fatalf("exported %+v", e)
	}
	ran := 0
	in, err := b.rep.Import(context.Background(), a.mailed(e), func(*storage.Tx) error { ran++; return nil })
	if err != nil || in.Entries != 3 || in.Refused != 0 || !slices.Equal(in.Conversations, []feed.ConversationID{a.conv(b.person)}) || ran != 1 {
		t.Fatalf("imported %+v, %v, also ran %d times", in, err, ran)
	}
	if got := b.texts(); !slices.Equal(got, numbered(3)) || !b.batches[0].Backlog {
		t.Fatalf("got %q", got)
	}
	// The same mail again, from another mailbox, tells nobody of anything.
	if in := b.receive(a.mailed(e)); in.Entries != 0 || in.Refused != 0 || len(b.applied) != 3 {
		t.Fatalf("a mail that comes twice: %+v, %d entries told of", in, len(b.applied))
	}
	// What was acknowledged comes back the same way.
	b.read[a.chat(b.person)] = 2
	b.receipt(a.person)
	if due, err := b.rep.ReceiptsDue(); err != nil || !slices.Equal(due, []Peer{a.peer()}) {
		t.Fatalf("receipts due to %v, %v", due, err)
	}
	b.say(a.person, "an answer")
	if n := b.post(a, ExportOptions{}); n != 1 {
		t.Fatalf("%d mails", n)
	}
	if got := a.ackedBy(a.chat(b.person), b); got != 3 {
		t.Errorf("acknowledged up to %d", got)
	}
	if len(a.receipts) != 1 || a.receipts[0].Items[0].Read != 2 || a.receipts[0].Peer != b.peer() {
		t.Errorf("receipts %+v", a.receipts)
	}
	if owed, _ := a.rep.Owed(); len(owed) != 0 {
		t.Errorf("still owed %+v", owed)
	}
	if due, err := b.rep.ReceiptsDue(); err != nil || len(due) != 0 {
		t.Errorf("receipts due to %v, %v", due, err)
	}
	if e := b.export(a, ExportOptions{}); len(e.Receipts) != 0 || e.Knock {
		t.Errorf("a receipt in custody is exported again, or to a friend as to a stranger: %+v", e)
	}
}

func TestReceiptAloneGoesByMail(t *testing.T) {
	a, b := friendsApart(t, nil)
	a.say(b.person, "one")
	b.say(a.person, "two")
	a.post(b, ExportOptions{})
	b.post(a, ExportOptions{})
	a.receipt(b.person)
	b.receipt(a.person)
	a.post(b, ExportOptions{})
	b.post(a, ExportOptions{})
	if a.ackedBy(a.chat(b.person), b) != 1 || b.ackedBy(b.chat(a.person), a) != 1 {
		t.Fatal("delivered is not known")
	}
	a.say(b.person, "three")
	a.post(b, ExportOptions{})
	b.receipt(a.person)
	e := b.export(a, ExportOptions{})
	if len(e.Runs) != 0 || len(e.Receipts) != 1 {
		t.Fatalf("exported %d runs and %d receipts", len(e.Runs), len(e.Receipts))
	}
	// As long as nobody holds it, it is exported again.
	if e := b.export(a, ExportOptions{}); len(e.Receipts) != 1 {
		t.Fatal("a receipt that nobody holds was forgotten")
	}
	a.receive(b.mailed(e))
	if got := a.ackedBy(a.chat(b.person), b); got != 2 {
		t.Errorf("acknowledged up to %d", got)
	}
}

func TestExportIsBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("much data, one goroutine")
	}
	a, b := friendsApart(t, nil)
	const n = 700
	a.say(b.person, numbered(n)...)
	e := a.export(b, ExportOptions{MaxBytes: 20 << 10})
	if len(e.Runs) != 1 || !e.More {
		t.Fatalf("%d runs, more %v", len(e.Runs), e.More)
	}
	e = a.export(b, ExportOptions{MaxBytes: 60 << 10, Skip: func(feed.FeedID, uint64) uint64 { return 100 }})
	size := 0
	for i, run := range e.Runs {
		checked, err := feed.CheckDetached(run)
		if err != nil {
			t.Fatal(err)
		}
		size += checked.WireSize()
		if s := e.Spans[i]; checked.First().Seq != s.From || checked.Last().Seq != s.Last {
			t.Errorf("run %d..%d in span %+v", checked.First().Seq, checked.Last().Seq, s)
		}
	}
	if len(e.Runs) < 2 || size > 60<<10 || size < 50<<10 || !e.More || e.Spans[0].From != 101 {
		t.Fatalf("%d runs of %d bytes from %d, more %v", len(e.Runs), size, e.Spans[0].From, e.More)
	}
	a.post(b, ExportOptions{})
	if got := b.texts(); !slices.Equal(got, numbered(n)) {
		t.Fatalf("%d of %d arrived", len(got), n)
	}
}

func TestOldestFirstAndOnlyToWhoMayRead(t *testing.T) {
	pa, pb, pc := newPerson(t, 0), newPerson(t, 1), newPerson(t, 2)
	now := time.UnixMilli(1e12)
	a := newSide(t, pa, nil, func(c *Config) { c.Now = func() time.Time { now = now.Add(time.Second); return now } }, pb, pc)
	b := newSide(t, pb, nil, nil, pa)
	c := newSide(t, pc, nil, nil, pa)
	a.say(pb, "for b")
	a.say(pc, "for c")
	if e := a.export(b, ExportOptions{}); len(e.Runs) != 1 || e.Spans[0].Feed != a.chat(pb) {
		t.Fatalf("exported to b: %+v", e.Spans)
	}
	if err := a.rep.view(func(tx *storage.Tx) error {
		toB, err := a.rep.Offered(tx, a.chat(pb))
		if err != nil {
			return err
		}
		toC, err := a.rep.Offered(tx, a.chat(pc))
		if toB != 1 || toC != 0 {
			t.Errorf("offered up to %d and %d", toB, toC)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	a.forget(pc)
	if e, err := a.rep.Export(context.Background(), c.device(), ExportOptions{}); err == nil && !e.Empty() {
		t.Errorf("exported to who may not read: %+v", e)
	}
	if _, err := a.rep.Export(context.Background(), newPerson(t, 7).device(), ExportOptions{}); !errors.Is(err, ErrNotAdmitted) {
		t.Errorf("exported to a device nobody knows: %v", err)
	}
	// Two own conversations on the way to another own device: what was written first goes first.
	other := newPersonWith(t, 0, newPerson(t, 9).deviceKey)
	var err error
	a.records[pa.account()], err = identity.NewAccountRecord(pa.accountKey, identity.RecordConfig{
		Now: time.Now(), LastSeq: pa.record.Seq, Devices: []identity.Certificate{pa.cert, other.cert},
	})
	if err != nil {
		t.Fatal(err)
	}
	a.befriend(pc)
	a.rep.debts.mark(a.conv(pb))
	e, err := a.rep.Export(context.Background(), other.device(), ExportOptions{})
	if err != nil || e.Knock || len(e.Spans) != 2 || e.Spans[0].Feed != a.chat(pb) || e.Spans[1].Feed != a.chat(pc) {
		t.Errorf("exported to an own device: %+v, %v", e.Spans, err)
	}
}

// TestExportMarksBeforeItReturns: whatever the caller gets can no longer be cancelled, also if the process dies right
// then (R1).
func TestExportMarksBeforeItReturns(t *testing.T) {
	for _, point := range []string{"before-offered", "export"} {
		crash := errors.New("crash")
		at := ""
		a, b := friendsApart(t, func(c *Config) {
			c.Fail = func(p string) error {
				if p == at {
					return crash
				}
				return nil
			}
		})
		a.say(b.person, "one", "two")
		at = point
		if _, err := a.rep.Export(context.Background(), b.device(), ExportOptions{}); !errors.Is(err, crash) {
			t.Fatalf("%s: %v", point, err)
		}
		want := map[string]uint64{"before-offered": 0, "export": 2}[point]
		at = ""
		check := func(want uint64) {
			t.Helper()
			if err := a.rep.view(func(tx *storage.Tx) error {
				got, err := a.rep.Offered(tx, a.chat(b.person))
				if err == nil && got != want {
					t.Errorf("%s: offered up to %d, not %d", point, got, want)
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		check(want)
		a.export(b, ExportOptions{})
		check(2)
	}
}

func TestKnockByMail(t *testing.T) {
	stranger := func(t *testing.T, token string) (a, b *side) {
		a, b = friendsApart(t, nil)
		b.forget(a.person)
		delete(b.records, a.account())
		a.token = []byte(token)
		return a, b
	}
	t.Run("work", func(t *testing.T) {
		a, b := stranger(t, "")
		a.say(b.person, "hello", "stranger")
		e := a.export(b, ExportOptions{})
		if !e.Knock || len(e.Token) != 0 || len(e.Work) == 0 {
			t.Fatalf("exported %+v", e)
		}
		m := a.mailed(e)
		for name, change := range map[string]func(*Mailed){
			"no work":     func(m *Mailed) { m.Work = nil },
			"other work":  func(m *Mailed) { m.Work = bytes.Repeat([]byte{1}, 8) },
			"shorter run": func(m *Mailed) { m.Runs = []*pb.Run{{Entries: e.Runs[0].Entries[:1], Signature: e.Runs[0].Signature}} },
			"no record":   func(m *Mailed) { m.Record = identity.AccountRecord{} },
			"of another":  func(m *Mailed) { m.Peer, m.Record = b.peer(), b.record },
		} {
			bad := m
			change(&bad)
			in, err := b.rep.Import(context.Background(), bad, nil)
			if err == nil && in.Refused == 0 || len(b.applied) != 0 {
				t.Errorf("%s: %+v, %v", name, in, err)
			}
		}
		in := b.receive(m)
		if in.Entries != 2 || in.Refused != 0 {
			t.Fatalf("imported %+v", in)
		}
		if rec, ok := b.Record(a.account()); !ok || !rec.Lists(a.device()) {
			t.Error("the record of whoever knocked was not kept")
		}
		a.say(b.person, "more")
		a.post(b, ExportOptions{})
		if got := b.texts(); len(got) != 3 {
			t.Errorf("got %q", got)
		}
	})
	t.Run("token", func(t *testing.T) {
		a, b := stranger(t, "0123456789abcdef")
		var shown []Knock
		b.admit = func(_ *storage.Tx, in Incoming) (int, pb.Code) {
			if in.Knock != nil {
				shown = append(shown, *in.Knock)
				b.members[in.Run.Feed().Conversation] = []identity.AccountID{in.Peer.Account}
			}
			return in.Run.Len(), pb.Code_CODE_TAKEN
		}
		a.append(Draft{Conversation: a.conv(b.person), Number: feed.Control, Kind: feed.KindRequest, Content: []byte("please")})
		a.say(b.person, "hello")
		e := a.export(b, ExportOptions{})
		if len(e.Work) != 0 || string(e.Token) != "0123456789abcdef" || len(e.Runs) != 2 || e.Spans[0].Feed.Number != feed.Control {
			t.Fatalf("exported %+v", e)
		}
		if in := b.receive(a.mailed(e)); in.Entries != 2 {
			t.Fatalf("imported %+v", in)
		}
		if len(shown) != 1 || string(shown[0].Token) != "0123456789abcdef" {
			t.Errorf("knocks %+v", shown)
		}
	})
	t.Run("not listening", func(t *testing.T) {
		a, b := stranger(t, "")
		b.listen = denied
		a.say(b.person, "hello")
		also := false
		in, err := b.rep.Import(context.Background(), a.mailed(a.export(b, ExportOptions{})), func(*storage.Tx) error { also = true; return nil })
		if err != nil || in.Refused != denied || b.calls != 0 || !also {
			t.Errorf("%+v, %v, gate asked %d times, also ran: %v", in, err, b.calls, also)
		}
	})
	t.Run("room for a few", func(t *testing.T) {
		a, b := stranger(t, "")
		b.admit = func(_ *storage.Tx, in Incoming) (int, pb.Code) { return 1, pb.Code_CODE_FULL }
		a.say(b.person, numbered(3)...)
		if in := b.receive(a.mailed(a.export(b, ExportOptions{}))); in.Refused != pb.Code_CODE_FULL || in.Entries != 0 {
			t.Errorf("imported %+v", in)
		}
	})
}

// TestMailsOutOfOrder: what stands ahead of a gap is kept, shown, and acknowledged only once the gap is filled (R9).
func TestMailsOutOfOrder(t *testing.T) {
	a, b := friendsApart(t, nil)
	a.say(b.person, numbered(2)...)
	early := a.mailed(a.export(b, ExportOptions{}))
	a.say(b.person, "three", "four")
	late := a.mailed(a.export(b, ExportOptions{Skip: func(feed.FeedID, uint64) uint64 { return 2 }}))
	if in := b.receive(late); in.Entries != 2 || !b.batches[0].Detached {
		t.Fatalf("imported %+v", in)
	}
	b.receipt(a.person)
	if due, err := b.rep.ReceiptsDue(); len(due) != 0 || err != nil {
		t.Fatal("a receipt was made of what stands ahead of a gap")
	}
	if in := b.receive(early); in.Entries != 2 {
		t.Fatalf("imported %+v", in)
	}
	b.receipt(a.person)
	b.say(a.person, "thanks")
	b.post(a, ExportOptions{})
	if got := a.ackedBy(a.chat(b.person), b); got != 4 {
		t.Errorf("acknowledged up to %d", got)
	}
}

func TestOneBadRunSpoilsTheMail(t *testing.T) {
	a, b := friendsApart(t, nil)
	a.append(Draft{Conversation: a.conv(b.person), Number: feed.Control, Kind: feed.KindRequest, Content: []byte("please")})
	a.say(b.person, "one")
	m := a.mailed(a.export(b, ExportOptions{}))
	m.Runs[1].Signature = bytes.Repeat([]byte{7}, 64)
	ran := false
	_, err := b.rep.Import(context.Background(), m, func(*storage.Tx) error { ran = true; return nil })
	if !errors.Is(err, ErrProtocol) || ran || len(b.applied) != 0 {
		t.Errorf("%v, also ran: %v, %d entries", err, ran, len(b.applied))
	}
	m.Runs = m.Runs[:1]
	m.Receipts = [][]byte{{1, 2, 3}}
	if _, err = b.rep.Import(context.Background(), m, nil); !errors.Is(err, ErrProtocol) || len(b.applied) != 0 {
		t.Errorf("%v, %d entries", err, len(b.applied))
	}
}

func TestWhatFailsBesideTheMailUndoesIt(t *testing.T) {
	a, b := friendsApart(t, nil)
	a.say(b.person, "one")
	m := a.mailed(a.export(b, ExportOptions{}))
	broken := errors.New("broken")
	if _, err := b.rep.Import(context.Background(), m, func(*storage.Tx) error { return broken }); !errors.Is(err, broken) || len(b.applied) != 0 {
		t.Fatalf("%v, %d entries", err, len(b.applied))
	}
	if in := b.receive(m); in.Entries != 1 || len(b.applied) != 1 {
		t.Errorf("imported %+v", in)
	}
}

func TestMailOfADeviceThatIsNotListed(t *testing.T) {
	a, b := friendsApart(t, nil)
	a.say(b.person, "one")
	m := a.mailed(a.export(b, ExportOptions{}))
	newest, err := identity.NewAccountRecord(a.accountKey, identity.RecordConfig{
		Now: time.Now(), LastSeq: a.record.Seq, Devices: []identity.Certificate{newPersonWith(t, 0, newPerson(t, 9).deviceKey).cert},
		Revoked: []identity.DeviceID{a.device()},
	})
	if err != nil {
		t.Fatal(err)
	}
	// The newest counts wherever it came from: from the network, or along with the mail.
	along := m
	along.Record = newest
	if _, err := b.rep.Import(context.Background(), along, nil); !errors.Is(err, ErrNotAdmitted) {
		t.Errorf("with the mail: %v", err)
	}
	if _, err := b.rep.Import(context.Background(), m, nil); !errors.Is(err, ErrNotAdmitted) || len(b.applied) != 0 {
		t.Errorf("known already: %v", err)
	}
}

// TestFloorByMail: what somebody wrote before he was let in is not taken when it comes by mail later, and he is told; what
// he wrote since is (R16).
func TestFloorByMail(t *testing.T) {
	now := time.UnixMilli(1e12)
	a, b := friendsApart(t, func(c *Config) { c.Now = func() time.Time { return now } })
	a.say(b.person, "taken")
	b.say(a.person, "yes")
	a.post(b, ExportOptions{})
	b.post(a, ExportOptions{})
	b.receipt(a.person)
	b.post(a, ExportOptions{})
	a.say(b.person, "said while blocked", "said while blocked")
	now = now.Add(time.Minute)
	if err := b.db.Update(context.Background(), func(tx *storage.Tx) error {
		return b.rep.FloorToShown(tx, a.conv(b.person), a.account())
	}); err != nil {
		t.Fatal(err)
	}
	first := a.mailed(a.export(b, ExportOptions{}))
	now = now.Add(time.Minute)
	a.append(Draft{Conversation: a.conv(b.person), Number: feed.Control, Kind: feed.KindCardUpdate, Content: []byte("card")})
	a.say(b.person, "said after that")
	if in := b.receive(first); in.Entries != 0 || in.Refused != 0 {
		t.Errorf("imported %+v", in)
	}
	a.post(b, ExportOptions{})
	if got := b.texts(); !slices.Equal(got, []string{"taken", "card", "said after that"}) {
		t.Errorf("got %q", got)
	}
	b.receipt(a.person)
	b.post(a, ExportOptions{})
	if want := []NotTaken{{b.peer(), a.chat(b.person), 2, 3}}; !slices.Equal(a.notTaken, want) {
		t.Errorf("not taken %+v", a.notTaken)
	}
	if got := a.ackedBy(a.chat(b.person), b); got != 4 {
		t.Errorf("acknowledged up to %d", got)
	}
	if b.rep.wished(floorWish{a.conv(b.person), a.account()}) {
		t.Error("the wish stands, and would cut what is said later")
	}
}

func TestForkByMail(t *testing.T) {
	a, b := friendsApart(t, nil)
	twin := newSide(t, a.person, nil, nil, b.person)
	a.say(b.person, "one")
	twin.say(b.person, "another")
	b.receive(a.mailed(a.export(b, ExportOptions{})))
	in := b.receive(a.mailed(twin.export(b, ExportOptions{})))
	if in.Entries != 0 || len(b.forks) != 1 || b.forks[0].At != 1 {
		t.Errorf("imported %+v, forks %+v", in, b.forks)
	}
}

func TestOwnDivergenceByMail(t *testing.T) {
	pa := newPerson(t, 0)
	second := newPersonWith(t, 0, newPerson(t, 9).deviceKey)
	var err error
	pa.record, err = identity.NewAccountRecord(pa.accountKey, identity.RecordConfig{
		Now: time.Now(), Devices: []identity.Certificate{pa.cert, second.cert},
	})
	if err != nil {
		t.Fatal(err)
	}
	second.record = pa.record
	friend := newPerson(t, 1)
	old := newSide(t, pa, nil, nil, friend) // restored from a disk of before
	lost := newSide(t, pa, nil, nil, friend)
	lost.say(friend, "one")
	e := lost.export(&side{person: second}, ExportOptions{})
	m := Mailed{Peer: second.peer(), Runs: e.Runs}
	ran := false
	_, err = old.rep.Import(context.Background(), m, func(*storage.Tx) error { ran = true; return nil })
	if !errors.Is(err, ErrDiverged) || !ran || len(old.diverged) != 1 || !old.rep.Diverged() {
		t.Errorf("%v, also ran: %v, diverged %v", err, ran, old.diverged)
	}
	if _, err := old.rep.Export(context.Background(), friend.device(), ExportOptions{}); !errors.Is(err, ErrDiverged) {
		t.Errorf("a device that diverged exports: %v", err)
	}
}

func TestWatchOwed(t *testing.T) {
	a, b := friendsApart(t, nil)
	one, stopOne := a.rep.WatchOwed()
	two, stopTwo := a.rep.WatchOwed()
	stopTwo()
	defer stopOne()
	a.say(b.person, "one", "two")
	select {
	case <-one:
	case <-time.After(time.Minute):
		t.Fatal("no tick")
	}
	select {
	case <-two:
		t.Error("a tick after the end")
	default:
	}
	owed, err := a.rep.Owed()
	if want := []Span{{Feed: a.chat(b.person), From: 1, Last: 2}}; err != nil || len(owed) != 1 || !slices.Equal(owed[0].Feeds, want) {
		t.Errorf("owed %s, %v", fmt.Sprint(owed), err)
	}
}

// TestDevicesKnownLater: what is written to somebody of whom no device is known yet is owed to the devices that are found.
func TestDevicesKnownLater(t *testing.T) {
	a, b := friendsApart(t, nil)
	record := a.records[b.account()]
	delete(a.records, b.account())
	ticks, stop := a.rep.WatchOwed()
	defer stop()
	a.say(b.person, "are you somewhere?")
	<-ticks
	if owed, err := a.rep.Owed(); err != nil || len(owed) != 0 {
		t.Fatalf("owed %v, %v", owed, err)
	}
	a.records[b.account()] = record
	if err := a.rep.DevicesChanged(b.account()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ticks:
	case <-time.After(time.Minute):
		t.Fatal("no tick")
	}
	if owed, err := a.rep.Owed(); err != nil || len(owed) != 1 || owed[0].Device != b.device() {
		t.Errorf("owed %v, %v", owed, err)
	}
}
