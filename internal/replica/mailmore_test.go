package replica

import (
	"context"
	"slices"
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
		a.receive(b.mailed(b.export(a, ExportOptions{MaxBytes: 23 << 10, Skip: func(feed.FeedID, uint64) uint64 { return 1 }})))
		a.open(b)
		a.waitTexts(t, n)
		b.waitAcked(t, b.chat(a.person), n)
		if a.count() != n || b.down != 0 {
			t.Errorf("told of %d entries; %d sessions ended", a.count(), b.down)
		}
	})
}

// TestReceiptsLeaveAtOnceByMail: the pause that batches receipts is for sessions; by mail there may be no second chance.
func TestReceiptsLeaveAtOnceByMail(t *testing.T) {
	a, b := friendsApart(t, nil)
	a.say(b.person, "one")
	b.receive(a.mailed(a.export(b, ExportOptions{})))
	if due, err := b.rep.ReceiptsDue(); err != nil || !slices.Equal(due, []Peer{a.peer()}) {
		t.Fatalf("receipts due to %v, %v", due, err)
	}
	e := b.export(a, ExportOptions{})
	if len(e.Receipts) != 1 {
		t.Fatalf("%d receipts", len(e.Receipts))
	}
	a.receive(b.mailed(e))
	if got := a.ackedBy(a.chat(b.person), b); got != 1 {
		t.Errorf("acknowledged up to %d", got)
	}
	// What the user has read since then goes along too.
	hooks{b.fakes}.note(func() { b.read[a.chat(b.person)] = 1 })
	b.rep.PushReceipt(a.conv(b.person))
	a.receive(b.mailed(b.export(a, ExportOptions{})))
	if n := len(a.receipts); n != 2 || a.receipts[1].Items[0].Read != 1 {
		t.Errorf("receipts %+v", a.receipts)
	}
}

// TestReceiptsOfBeforeTheEnd: a receipt that waited when the process ended is made when it begins again.
func TestReceiptsOfBeforeTheEnd(t *testing.T) {
	pa, pb := newPerson(t, 0), newPerson(t, 1)
	a := newSide(t, pa, nil, nil, pb)
	b := newSide(t, pb, nil, nil, pa)
	a.say(pb, "one")
	if err := b.rep.Take(context.Background(), a.peer(), a.export(b, ExportOptions{}).Runs[0]); err != nil {
		t.Fatal(err)
	}
	if _, ok := b.rep.OwnReceipt(a.conv(pb)); ok {
		t.Fatal("made already")
	}
	again := newSideOn(t, pb, nil, b.db, newFakes(pb, pa), nil)
	if err := again.rep.staleReceipts(); err != nil {
		t.Fatal(err)
	}
	if err := again.rep.FlushReceipts(context.Background()); err != nil {
		t.Fatal(err)
	}
	raw, ok := again.rep.OwnReceipt(a.conv(pb))
	if !ok {
		t.Fatal("no receipt")
	}
	a.receive(Mailed{Peer: b.peer(), Receipts: [][]byte{raw}})
	if got := a.ackedBy(a.chat(pb), b); got != 1 {
		t.Errorf("acknowledged up to %d", got)
	}
}
