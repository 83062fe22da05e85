package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/internal/control"
	"hima/internal/control/pb"
)

// ranks orders the states of an own message; a message never falls back.
func ranks(state string) int {
	return slices.Index([]string{"pending", "sent", "delivered", "read"}, state)
}

// book is what one side was told while it was killed again and again.
type book struct {
	mu        sync.Mutex
	accepted  map[string]string // text -> message ID, as answered to Send
	uncertain map[string]bool   // Send was cut off and never tried again
	states    map[string]string // message ID -> best state any event told of
	events    map[uint64]string // stored number -> what it was
	last      uint64
	wrong     []string
}

func newBook() *book {
	return &book{accepted: map[string]string{}, uncertain: map[string]bool{}, states: map[string]string{}, events: map[uint64]string{}}
}

// heard writes an event down and notes what may not happen.
func (b *book) heard(e *pb.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e.GetSeq() == 0 || e.GetType() == "ready" {
		return
	}
	if e.GetSeq() <= b.last {
		b.wrong = append(b.wrong, fmt.Sprintf("event %d came after %d", e.GetSeq(), b.last))
	}
	b.last = e.GetSeq()
	b.events[e.GetSeq()] = e.GetType() + " " + e.GetMessage().GetId() // a message is told of with the state it has now
	switch e.GetType() {
	case "gap":
		b.wrong = append(b.wrong, "events were lost: "+e.GetDetail())
	case "message":
		if m := e.GetMessage(); m.GetOwn() {
			b.raise(m.GetId(), m.GetState())
		}
	case "state":
		for _, id := range e.GetMessageIds() {
			b.raise(id, e.GetMessage().GetState())
		}
		if id := e.GetMessage().GetId(); id != "" {
			b.raise(id, e.GetMessage().GetState())
		}
	}
}

// raise notes a state that was told. Called with mu held.
func (b *book) raise(id, state string) {
	if was := b.states[id]; ranks(state) < ranks(was) {
		b.wrong = append(b.wrong, fmt.Sprintf("message %s fell from %s to %s", id, was, state))
	}
	b.states[id] = state
}

// talk sends one message after another until ctx ends. One that was cut off is tried again with the same key in half of
// the cases, and must still be there once; in the other half it stays unknown whether it was accepted.
func (b *book) talk(ctx context.Context, p *person, to string, rnd *rand.Rand, pause time.Duration) {
	for i := 0; ctx.Err() == nil; i++ {
		text := fmt.Sprintf("%s says %d", p.name, i)
		key := fmt.Sprintf("%s-%d", p.name, i)
		again := rnd.IntN(2) == 0
		for {
			call, cancel := context.WithTimeout(ctx, 10*time.Second)
			r, err := p.api().Send(call, &pb.SendRequest{Who: to, Text: text, IdempotencyKey: key})
			cancel()
			if err == nil {
				b.mu.Lock()
				b.accepted[text] = r.GetMessage().GetId()
				b.mu.Unlock()
				break
			}
			if !again || ctx.Err() != nil {
				b.mu.Lock()
				b.uncertain[text] = true
				b.mu.Unlock()
				break
			}
			wait(ctx, 20*time.Millisecond)
		}
		wait(ctx, time.Duration(rnd.Int64N(int64(pause))))
	}
}

// listen follows the events until ctx ends, over all deaths of the node.
func (b *book) listen(ctx context.Context, p *person) {
	for ctx.Err() == nil {
		b.mu.Lock()
		since := b.last
		b.mu.Unlock()
		err := p.api().Watch(ctx, control.WatchOptions{Since: since, Patience: -1}, func(e *pb.Event) error {
			b.heard(e)
			return nil
		})
		if errors.Is(err, context.Canceled) {
			return
		}
		wait(ctx, 20*time.Millisecond)
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// Either side is killed at random moments while messages flow both ways. What was reported as sent is on both sides
// exactly once and in the same order; everything that was accepted arrives in the end; nothing arrives twice; no state
// is ever taken back and no event lost.
func TestKilledAtAnyMoment(t *testing.T) {
	rounds := 20
	if long() {
		rounds = 200
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	alice, bob := pair(t)
	books := map[*person]*book{alice: newBook(), bob: newBook()}
	other := map[*person]*person{alice: bob, bob: alice}

	devices := map[*person]string{alice: alice.ready().GetDevice(), bob: bob.ready().GetDevice()}

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	talking, hush := context.WithCancel(ctx)
	var talkers, listeners sync.WaitGroup
	for i, p := range []*person{alice, bob} {
		rnd := rand.New(rand.NewPCG(seed, uint64(i)))
		talkers.Go(func() { books[p].talk(talking, p, other[p].account, rnd, 30*time.Millisecond) })
		listeners.Go(func() { books[p].listen(ctx, p) })
	}
	rnd := rand.New(rand.NewPCG(seed, 99))
	for range rounds {
		wait(ctx, time.Duration(50+rnd.Int64N(700))*time.Millisecond)
		victims := [][]*person{{alice}, {bob}, {alice, bob}}[rnd.IntN(3)]
		for _, p := range victims {
			p.kill()
		}
		if rnd.IntN(3) == 0 {
			wait(ctx, time.Duration(rnd.Int64N(400))*time.Millisecond)
		}
		for _, p := range victims {
			p.launch()
			if rnd.IntN(3) == 0 { // again, while it opens
				wait(ctx, time.Duration(rnd.Int64N(120))*time.Millisecond)
				p.kill()
				p.launch()
			}
		}
		for _, p := range victims {
			st := p.ready()
			require.False(t, st.GetRestored(), "%s takes itself for a copy", p.name)
			require.Equal(t, devices[p], st.GetDevice(), "%s has another device key", p.name)
		}
	}
	wait(ctx, 300*time.Millisecond)
	hush()
	talkers.Wait()

	eventually(t, "everything is delivered, and every event told", func() bool {
		for p, b := range books {
			st, err := p.api().Status(p.ctx(), &pb.StatusRequest{})
			b.mu.Lock()
			behind := err != nil || b.last < st.GetLastEvent()
			b.mu.Unlock()
			if behind {
				return false
			}
		}
		for p := range books {
			for _, m := range texts(p.history(other[p].account)) {
				if m.GetOwn() && ranks(m.GetState()) < ranks("delivered") {
					return false
				}
			}
		}
		return true
	})
	stop()
	listeners.Wait()
	compare(t, alice, bob, books)
	n := len(books[alice].accepted) + len(books[bob].accepted)
	t.Logf("%d messages accepted over %d rounds, %d + %d unknown", n, rounds, len(books[alice].uncertain), len(books[bob].uncertain))
	require.Greater(t, n, rounds, "hardly anything was sent: this shows nothing")
}

// compare holds what both sides show against what they were told.
func compare(t *testing.T, alice, bob *person, books map[*person]*book) {
	t.Helper()
	a, b := texts(alice.history(bob.account)), texts(bob.history(alice.account))
	ids := func(ms []*pb.Message) []string {
		var out []string
		for _, m := range ms {
			out = append(out, m.GetId()+" "+m.GetText())
		}
		return out
	}
	require.Equal(t, ids(a), ids(b), "the two sides show different conversations")
	seen := map[string]string{}
	for _, m := range a {
		require.Empty(t, seen[m.GetText()], "%q is there twice", m.GetText())
		seen[m.GetText()] = m.GetId()
	}
	for p, book := range books {
		require.Empty(t, book.wrong, "%s was told what may not be", p.name)
		require.Equal(t, p.recorded(), book.events, "%s was told other events than it stored", p.name)
		for text, id := range book.accepted {
			require.Equal(t, id, seen[text], "%s: %q was accepted", p.name, text)
			if ranks(book.states[id]) >= ranks("sent") {
				require.Contains(t, ids(b), id+" "+text, "%s was told that it was %s", p.name, book.states[id])
			}
			delete(seen, text)
		}
		for text := range book.uncertain {
			delete(seen, text)
		}
	}
	require.Empty(t, seen, "messages that nobody sent")
}

// recorded reads all stored events.
func (p *person) recorded() map[uint64]string {
	p.t.Helper()
	b := newBook()
	done := errors.New("ready")
	err := p.api().Watch(p.ctx(), control.WatchOptions{Patience: -1}, func(e *pb.Event) error {
		b.heard(e)
		if e.GetType() == "ready" {
			return done
		}
		return nil
	})
	require.ErrorIs(p.t, err, done)
	return b.events
}
