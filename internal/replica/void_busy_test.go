package replica

import (
	"context"
	"slices"
	"testing"

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

func (r *rival) busy() (noted bool) {
	r.t.Helper()
	r.a.look(func(tx *storage.Tx) (err error) {
		_, noted, err = loadVoid(tx, r.feed)
		return err
	})
	return noted
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

// TestPartingIsFoundFromBelow: what comes over gossip from behind the place where the branches part does not say where that is. It is not kept,
// so that the texts are said again in their order.
func TestPartingIsFoundFromBelow(t *testing.T) {
	r := newRival(t, 100, 20, 60)
	if err := r.a.take(r.b.peer(), r.run(50, 60)); err != nil || r.busy() {
		t.Fatalf("%v, replacing %v", err, r.busy())
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
