package replica

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/node/nodetest"
)

// restored is an account that was made anew from its recovery phrase: same account, another device, and a record that
// knows nothing of the one before.
func restored(t *testing.T, old person, i int, revoke bool) person {
	t.Helper()
	p := newPersonWith(t, 0, nodetest.Key(i))
	p.accountKey = old.accountKey
	p.cert = identity.NewCertificate(p.accountKey, p.device(), time.Now())
	c := identity.RecordConfig{Now: time.Now().Add(time.Second), Devices: []identity.Certificate{p.cert}}
	if revoke {
		c.Revoked = []identity.DeviceID{old.device()}
	}
	var err error
	if p.record, err = identity.NewAccountRecord(p.accountKey, c); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestRestoredDeviceGetsItsPast: a contact serves it both sides of their conversation, with what its own old device
// wrote, and shows it the record in which that device stands (R21).
func TestRestoredDeviceGetsItsPast(t *testing.T) {
	for _, revoked := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := nodetest.New(t, 3)
			pa, pb := newPerson(t, 0), newPerson(t, 1)
			a := newSide(t, pa, w.Node(0), nil, pb)
			b := newSide(t, pb, w.Node(1), nil, pa)
			w.Node(0).Remember(pb.device(), w.Addrs(1))
			w.Node(2).Remember(pb.device(), w.Addrs(1))
			synctest.Wait()
			a.append(Draft{Conversation: a.conv(pb), Number: feed.Control, Kind: feed.KindAccept, Content: []byte("accept")})
			a.say(pb, "mine")
			b.say(pa, "theirs")
			a.open(b)
			a.waitTexts(t, 1)
			b.waitTexts(t, 2)
			a.stop()

			pn := restored(t, pa, 2, revoked)
			n := newSide(t, pn, w.Node(2), nil, pb)
			synctest.Wait()
			n.open(b)
			want := []string{"accept", "mine", "theirs"}
			if revoked {
				want = want[2:] // what a revoked device wrote nobody takes any more
			}
			got := n.waitTexts(t, len(want))
			time.Sleep(time.Second)
			slices.Sort(got)
			if !slices.Equal(got, want) || n.count() != len(want) {
				t.Errorf("restored %q", got)
			}
			older := slices.ContainsFunc(n.shown, func(r identity.AccountRecord) bool { return r.Account == pa.account() && r.Lists(pa.device()) })
			if older == revoked {
				t.Errorf("old device revoked: %v; the record that lists it was shown: %v", revoked, older)
			}
			// It goes on where its account left off.
			entry := n.say(pb, "back again")[0]
			b.waitTexts(t, 3)
			if entry.Clock <= uint64(len(want)/2+1) {
				t.Errorf("clock %d stands among what was said before", entry.Clock)
			}
			if owed, err := b.rep.Owed(); err != nil || len(owed) != 0 {
				t.Errorf("owed %v, %v", owed, err)
			}
		})
	}
}

// TestContactsArePaced: heads and receipts of somebody who sends nothing else are read no faster than they are worth.
func TestContactsArePaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, _ := pairIn(t, nil)
		b.say(a.person, "one")
		a.open(b)
		a.waitTexts(t, 1)
		s := a.session(b)
		conv := a.conv(b.person)
		const n = stepBurst + 1000
		begun := time.Now()
		for i := range n {
			s.push(signedReceipt(t, a, &pb.Receipt{Conversation: conv[:], Device: a.device().Bytes(), Seq: uint64(10 + i)}))
			for a.queued(s) > maxAnswers/2 {
				time.Sleep(10 * time.Millisecond)
			}
		}
		b.wait(t, "the last receipt", func() bool {
			return len(b.receipts) > 0 && b.receipts[len(b.receipts)-1].Seq == n+9
		})
		if took := time.Since(begun); took < 9*time.Second || took > 30*time.Second {
			t.Errorf("%d receipts were taken in %v", n, took)
		}
		if b.session(a) == nil || s.isEnding() {
			t.Error("the session ended")
		}
	})
}

func signedReceipt(t *testing.T, by *side, r *pb.Receipt) *pb.Frame {
	return &pb.Frame{Of: &pb.Frame_Receipt{Receipt: &pb.ReceiptFrame{Receipt: signReceipt(t, by.person, r)}}}
}

func (s *side) queued(x *session) int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.answers)
}
