package replica

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/storage"
)

func (r *rival) step() (more bool) {
	r.t.Helper()
	r.a.change(func(tx *storage.Tx) (err error) {
		more, err = r.a.rep.voidStep(tx, r.feed)
		return err
	})
	return more
}

func (r *rival) busy() bool {
	r.t.Helper()
	busy, err := r.a.rep.Replacing()
	if err != nil {
		r.t.Fatal(err)
	}
	return busy
}

// TestNothingIsTakenWhereATailIsReplaced: neither what stands behind it, which would go with it, nor the tail itself, which would end the
// replacing half way, nor what comes where some of it is gone already.
func TestNothingIsTakenWhereATailIsReplaced(t *testing.T) {
	r := newRival(t, 300, 1, 320)
	r.refused("what is there instead", r.run(2, 2))
	told := len(r.a.applied)
	steps := 0
	for more := true; more; steps++ {
		r.refused("what stands behind the tail", r.run(310, 312))
		r.refused("what stands at its end", r.run(300, 301))
		if own := r.ours(2, 3); len(own) == 2 {
			r.refused("the tail", r.signed(own))
		}
		if !r.busy() {
			t.Fatal("nothing is being replaced")
		}
		more = r.step()
	}
	if steps < 4 || r.busy() {
		t.Errorf("%d steps, busy %v", steps, r.busy())
	}
	if len(r.a.applied) != told {
		t.Errorf("told of %d entries meanwhile", len(r.a.applied)-told)
	}
	if !slices.Equal(r.gone, r.said) {
		t.Errorf("%d texts were said again, or in another order", len(r.gone))
	}
	for _, part := range [][2]uint64{{2, 100}, {101, 200}, {201, 321}} {
		if err := r.a.take(r.b.peer(), r.run(part[0], part[1])); err != nil {
			t.Fatal(err)
		}
	}
	if h := r.a.head(r.feed); h.Last != 321 {
		t.Errorf("the feed ends at %d", h.Last)
	}
}

// TestMailWaitsForWhatIsReplaced: a mail that shows what is there instead is to be taken later, whole: nothing marks it as taken before.
func TestMailWaitsForWhatIsReplaced(t *testing.T) {
	r := newRival(t, 100, 1, 5)
	marked := 0
	mail := func() Imported {
		t.Helper()
		in, err := r.a.rep.Import(context.Background(), Mailed{Peer: r.b.peer(), Record: r.b.record, Runs: []*pb.Run{r.run(2, 6)}},
			func(*storage.Tx) error { marked++; return nil })
		if err != nil {
			t.Fatal(err)
		}
		return in
	}
	for range 2 {
		if in := mail(); !in.Later || in.Refused != pb.Code_CODE_FULL || in.Entries != 0 || marked != 0 || !r.busy() {
			t.Fatalf("%+v, marked %d times", in, marked)
		}
	}
	if err := r.a.rep.replaceVoid(context.Background()); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(r.free, []feed.ConversationID{r.feed.Conversation}) {
		t.Errorf("told of %d conversations", len(r.free))
	}
	if in := mail(); in.Later || in.Refused != 0 || in.Entries != 5 || marked != 1 || r.busy() {
		t.Errorf("%+v, marked %d times", in, marked)
	}
	// What the gate refuses nobody waits for.
	r.a.admit = func(*storage.Tx, Incoming) (int, pb.Code) { return 0, pb.Code_CODE_FULL }
	r.b.say(r.old.person, "more")
	in := r.a.receive(r.b.mailed(r.b.export(r.a, ExportOptions{})))
	if in.Later || in.Refused != pb.Code_CODE_FULL {
		t.Errorf("%+v", in)
	}
}

// TestOneMailShowsManyTails: each of them is short, and all together are more than a transaction takes. The first ones are replaced at once.
func TestOneMailShowsManyTails(t *testing.T) {
	pa := newPerson(t, 0)
	next := renewed(t, &pa)
	var others []person
	for i := range 24 {
		others = append(others, newPerson(t, 10+i))
	}
	old := newSide(t, pa, nil, nil, others...)
	said := waiting(14, 4000)
	who := feed.NewAuthor(old.account(), old.device(), old.cert)
	mail := Mailed{Peer: old.peer(), Record: pa.record}
	for _, o := range others {
		old.say(o, said...)
		e, err := who.NextInGroup(feed.Tip{Account: old.account()}, old.chat(o).Conversation, feed.Chat, feed.KindText, 1, time.Now().UnixMilli(), []byte("other"), feed.Group{})
		if err != nil {
			t.Fatal(err)
		}
		mail.Runs = append(mail.Runs, runPB([]feed.Entry{e}, feed.SignRun(old.deviceKey, e)))
	}
	replaced := 0
	var a *side
	a = newSideOn(t, next, nil, old.db, old.fakes, func(c *Config) {
		c.Former = []identity.DeviceID{old.device()}
		c.OnReplaced = func(tx *storage.Tx, entries []feed.Entry) error {
			replaced += len(entries)
			return sayAgain(tx, a.rep, entries)
		}
	})
	in, err := a.rep.Import(t.Context(), mail, nil)
	if err != nil || !in.Later || len(in.Conversations) == 0 {
		t.Fatalf("%+v: %v", in, err)
	}
	if replaced != len(in.Conversations)*len(said) || replaced > voidAtOnce {
		t.Errorf("%d were replaced at once, in %d feeds", replaced, len(in.Conversations))
	}
	if err := a.rep.replaceVoid(t.Context()); err != nil {
		t.Fatal(err)
	}
	if in, err = a.rep.Import(t.Context(), mail, nil); err != nil || in.Later || in.Refused != 0 {
		t.Fatalf("%+v: %v", in, err)
	}
	for _, o := range others {
		if h := a.head(old.chat(o)); h.Last != 1 {
			t.Errorf("a feed ends at %d", h.Last)
		}
	}
	if replaced != len(others)*len(said) {
		t.Errorf("%d were said again", replaced)
	}
}

// TestPartingIsFoundFromBelow: what comes over gossip from behind the place where the branches part does not say where that is. It is not kept,
// so that the texts are said again in their order.
func TestPartingIsFoundFromBelow(t *testing.T) {
	r := newRival(t, 100, 20, 60)
	r.refused("what comes behind that", r.run(50, 60))
	if r.busy() {
		t.Fatal("it is replaced from there on")
	}
	r.refused("where they part", r.run(21, 30))
	if err := r.a.rep.replaceVoid(context.Background()); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(r.gone, r.said[19:]) {
		t.Errorf("said again: %d, the first %.1q", len(r.gone), r.gone)
	}
	// It may also show by what it follows that it is that place.
	r = newRival(t, 100, 20, 5)
	r.refused("what follows the last that both have", r.run(21, 25))
	if !r.busy() {
		t.Error("nothing is replaced")
	}
}

// TestNobodyHurriesWhatFailed: whoever shows the same over and over while nothing can be written does not let it be tried all the time.
func TestNobodyHurriesWhatFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRival(t, 100, 1, 5)
		var tries atomic.Int32
		r.full = func() error {
			tries.Add(1)
			return errors.New("disk is full")
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			r.a.rep.runVoid(ctx)
		}()
		for range 10 {
			r.refused("what is there instead", r.run(2, 6))
			synctest.Wait()
		}
		if n := tries.Load(); n != 1 {
			t.Errorf("tried %d times at once", n)
		}
		time.Sleep(voidRetry + time.Second)
		if n := tries.Load(); n != 2 {
			t.Errorf("tried %d times after a pause", n)
		}
		// What is found meanwhile is tried at once, and what failed is tried again no later for it.
		for range 10 {
			r.a.rep.former.wakeVoid()
			synctest.Wait()
		}
		found := tries.Load()
		time.Sleep(2 * voidRetry)
		if n := tries.Load(); n != found+1 {
			t.Errorf("tried %d times after the next pause", n-found)
		}
		cancel()
		<-done
	})
}
