package replica

import (
	"fmt"
	"slices"
	"testing"

	"hima/node/nodetest"
)

// pairOn makes two friends on loopback, connected and not yet in a session.
func pairOn(t testing.TB, change func(*Config)) (a, b *side) {
	t.Helper()
	nodes := nodetest.Loopback(t, 2)
	pa, pb := newPerson(t, 0), newPerson(t, 1)
	a = newSide(t, pa, nodes[0], change, pb)
	b = newSide(t, pb, nodes[1], change, pa)
	nodetest.Connect(t, nodes[0], nodes[1])
	nodetest.Connect(t, nodes[1], nodes[0])
	return a, b
}

func numbered(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprint("message ", i)
	}
	return out
}

func TestTwoFriendsChat(t *testing.T) {
	a, b := pairOn(t, nil)
	a.say(b.person, "before")
	a.open(b)
	if got := b.waitTexts(t, 1); !slices.Equal(got, []string{"before"}) {
		t.Fatalf("got %q", got)
	}
	a.waitAcked(t, a.chat(b.person), 1)
	a.say(b.person, "live 1")
	a.say(b.person, "live 2", "live 3")
	if got := b.waitTexts(t, 4); !slices.Equal(got, []string{"before", "live 1", "live 2", "live 3"}) {
		t.Fatalf("got %q", got)
	}
	b.say(a.person, "answer")
	if got := a.waitTexts(t, 1); got[0] != "answer" {
		t.Fatalf("got %q", got)
	}
	a.waitAcked(t, a.chat(b.person), 4)
	b.waitAcked(t, b.chat(a.person), 1)
	if !a.applied[0].HasBody() || a.applied[0].Clock <= 4 {
		t.Errorf("the answer has clock %d, which is not above what was seen", a.applied[0].Clock)
	}
	if b.batches[0].Backlog == b.batches[len(b.batches)-1].Backlog {
		t.Error("what was written before the session is not told apart from what is live")
	}
	owed, err := a.rep.Owed()
	if err != nil || len(owed) != 0 {
		t.Errorf("owed %v, %v", owed, err)
	}
}

func TestBacklogBothWays(t *testing.T) {
	a, b := pairOn(t, nil)
	const n = 1500
	a.say(b.person, numbered(n)...)
	b.say(a.person, numbered(n)...)
	b.open(a)
	if got := a.waitTexts(t, n); !slices.Equal(got, numbered(n)) {
		t.Fatal("a holds something else than b said")
	}
	if got := b.waitTexts(t, n); !slices.Equal(got, numbered(n)) {
		t.Fatal("b holds something else than a said")
	}
	a.waitAcked(t, a.chat(b.person), n)
	b.waitAcked(t, b.chat(a.person), n)
	for _, x := range b.batches {
		if !x.Backlog || x.Detached {
			t.Error("what was written before the session is backlog, and nothing stands ahead of a gap")
		}
	}
}

func TestBothOpenAtOnce(t *testing.T) {
	a, b := pairOn(t, nil)
	a.say(b.person, "one")
	b.say(a.person, "two")
	done := make(chan error, 2)
	go func() { done <- a.tryOpen(b) }()
	go func() { done <- b.tryOpen(a) }()
	for range 2 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	a.waitTexts(t, 1)
	b.waitTexts(t, 1)
	a.waitAcked(t, a.chat(b.person), 1)
	a.say(b.person, "three")
	if got := b.waitTexts(t, 2); !slices.Equal(got, []string{"one", "three"}) {
		t.Fatalf("got %q", got)
	}
	if len(a.rep.Sessions()) != 1 || len(b.rep.Sessions()) != 1 {
		t.Errorf("%d and %d sessions", len(a.rep.Sessions()), len(b.rep.Sessions()))
	}
}

func TestReconnectRepeatsNothing(t *testing.T) {
	a, b := pairOn(t, nil)
	a.open(b)
	a.say(b.person, "one")
	b.waitTexts(t, 1)
	a.waitAcked(t, a.chat(b.person), 1)
	for i := range 3 {
		for _, s := range a.rep.streams.all() {
			s.end(0, nil)
		}
		a.wait(t, "end of the session", func() bool { return a.down > i })
		b.wait(t, "end of the session", func() bool { return b.down > i })
		a.say(b.person, fmt.Sprint("while away ", i))
		a.open(b)
		b.waitTexts(t, 2+i)
	}
	if got := len(b.waitTexts(t, 4)); got != 4 {
		t.Errorf("%d entries applied instead of 4", got)
	}
}
