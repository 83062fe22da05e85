package replica

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/node/nodetest"
	"hima/storage"
)

const denied = pb.Code_CODE_DENIED

// strangers makes two people on loopback; a knows b and wants to write, b has never heard of a.
func strangers(t *testing.T) (a, b *side) {
	t.Helper()
	nodes := nodetest.Loopback(t, 2)
	pa, pb := newPerson(t, 0), newPerson(t, 1)
	a = newSide(t, pa, nodes[0], nil, pb)
	b = newSide(t, pb, nodes[1], nil)
	nodetest.Connect(t, nodes[0], nodes[1])
	nodetest.Connect(t, nodes[1], nodes[0])
	return a, b
}

func TestKnockOpensAConversation(t *testing.T) {
	for _, token := range []string{"", "0123456789abcdef"} {
		t.Run("token "+token, func(t *testing.T) {
			a, b := strangers(t)
			a.token = []byte(token)
			var shown []Knock
			b.admit = func(_ *storage.Tx, in Incoming) (int, pb.Code) {
				if in.Knock != nil {
					shown = append(shown, *in.Knock)
					b.members[in.Run.Feed().Conversation] = []identity.AccountID{in.Peer.Account}
				}
				return in.Run.Len(), pb.Code_CODE_TAKEN
			}
			a.say(b.person, "hello", "stranger")
			a.open(b)
			b.waitTexts(t, 2)
			a.waitAcked(t, a.chat(b.person), 2)
			a.say(b.person, "more")
			b.waitTexts(t, 3)
			b.say(a.person, "who is there?")
			if got := a.waitTexts(t, 1); got[0] != "who is there?" {
				t.Errorf("got %q", got)
			}
			b.waitAcked(t, b.chat(a.person), 1)
			a.rep.SendPresence(b.account(), true)
			b.wait(t, "presence", func() bool { return len(b.presence) == 1 && b.presence[0] })
			if len(shown) != 1 || string(shown[0].Token) != token || shown[0].Work != (token == "") {
				t.Errorf("knocks: %+v", shown)
			}
		})
	}
}

func TestConversationThatBeginsInALiveSession(t *testing.T) {
	a, b := strangers(t)
	a.token = []byte("0123456789abcdef")
	a.open(b)
	b.wait(t, "session", func() bool { return b.up == 1 })
	a.say(b.person, "hello")
	b.waitTexts(t, 1)
	a.waitAcked(t, a.chat(b.person), 1)
}

func TestRefusedKnockWaitsForTheOtherSide(t *testing.T) {
	a, b := strangers(t)
	a.token = []byte("0123456789abcdef")
	b.listen = pb.Code_CODE_DENIED
	a.say(b.person, "one")
	a.open(b)
	a.wait(t, "refusal", func() bool { return len(a.refused) == 1 })
	if r := a.refused[0]; r.Code != pb.Code_CODE_DENIED || r.From != 1 || r.Feed != a.chat(b.person) || r.Peer != b.peer() {
		t.Errorf("refused: %+v", r)
	}
	a.say(b.person, "two")
	// The owner of b takes a in: what was refused came before that and is not taken (R16).
	b.mu.Lock()
	b.listen = 0
	b.mu.Unlock()
	b.befriend(a.person)
	conv := a.chat(b.person).Conversation
	b.change(func(tx *storage.Tx) error {
		tx.OnCommit(func() { b.rep.Reannounce(conv) })
		return b.rep.FloorToShown(tx, conv, a.account())
	})
	a.wait(t, "not taken", func() bool { return len(a.notTaken) == 1 })
	if n := a.notTaken[0]; n.From != 1 || n.To != 2 {
		t.Errorf("not taken: %d to %d", n.From, n.To)
	}
	a.say(b.person, "three")
	if got := b.waitTexts(t, 1); !slices.Equal(got, []string{"three"}) {
		t.Errorf("got %q", got)
	}
	a.waitAcked(t, a.chat(b.person), 3)
	a.wait(t, "receipt that names the floor", func() bool {
		n := len(a.receipts)
		return n > 0 && a.receipts[n-1].Items[0].First == 3
	})
	if b.rep.wished(floorWish{conv, a.account()}) {
		t.Error("the wish for a floor stays")
	}
	b.say(a.person, "answer")
	a.waitTexts(t, 1)
}

func TestRoomForAFewOnly(t *testing.T) {
	a, b := strangers(t)
	a.token = []byte("0123456789abcdef")
	room := 5
	b.admit = func(_ *storage.Tx, in Incoming) (int, pb.Code) {
		b.members[in.Run.Feed().Conversation] = []identity.AccountID{in.Peer.Account}
		n := min(in.Run.Len(), room)
		if n < in.Run.Len() {
			return n, pb.Code_CODE_FULL
		}
		room -= n
		return n, pb.Code_CODE_TAKEN
	}
	a.say(b.person, numbered(12)...)
	a.open(b)
	if got := b.waitTexts(t, 5); !slices.Equal(got, numbered(5)) {
		t.Errorf("got %q", got)
	}
	a.wait(t, "refusal", func() bool { return len(a.refused) > 0 && a.refused[len(a.refused)-1].From == 6 })
	a.waitAcked(t, a.chat(b.person), 5)
	// More room, and no floor: the rest comes.
	b.mu.Lock()
	room = 100
	b.mu.Unlock()
	b.rep.Reannounce(a.chat(b.person).Conversation)
	if got := b.waitTexts(t, 12); !slices.Equal(got, numbered(12)) {
		t.Errorf("got %q", got)
	}
}

func TestBothKnockAtOnce(t *testing.T) {
	nodes := nodetest.Loopback(t, 2)
	pa, pb := newPerson(t, 0), newPerson(t, 1)
	a := newSide(t, pa, nodes[0], nil, pb)
	b := newSide(t, pb, nodes[1], nil, pa)
	nodetest.Connect(t, nodes[0], nodes[1])
	a.open(b)
	a.say(pb, "from a")
	b.say(pa, "from b")
	a.waitTexts(t, 1)
	b.waitTexts(t, 1)
	a.waitAcked(t, a.chat(pb), 1)
	b.waitAcked(t, b.chat(pa), 1)
}

func TestBlockedInMidSession(t *testing.T) {
	a, b := pairOn(t, nil)
	a.token = []byte("0123456789abcdef")
	a.open(b)
	a.say(b.person, "one")
	b.waitTexts(t, 1)
	a.waitAcked(t, a.chat(b.person), 1)
	b.forget(a.person)
	b.mu.Lock()
	b.listen = pb.Code_CODE_DENIED
	b.mu.Unlock()
	b.rep.Reannounce(a.chat(b.person).Conversation)
	a.say(b.person, "two")
	a.wait(t, "refusal", func() bool {
		return len(a.refused) > 0 && a.refused[len(a.refused)-1].Code == pb.Code_CODE_DENIED
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.applied) != 1 {
		t.Errorf("%d entries applied", len(b.applied))
	}
}

func TestWhatBeginsAfterItWasNotShared(t *testing.T) {
	// b lists the conversation at once, a shares it only when it writes there.
	nodes := nodetest.Loopback(t, 2)
	pa, pb := newPerson(t, 0), newPerson(t, 1)
	a, b := newSide(t, pa, nodes[0], nil), newSide(t, pb, nodes[1], nil, pa)
	nodetest.Connect(t, nodes[0], nodes[1])
	a.open(b)
	b.wait(t, "session", func() bool { return b.up == 1 })
	a.befriend(pb)
	a.say(pb, "hello")
	b.waitTexts(t, 1)
	// Everything is acknowledged, then the other side shares it no more when the next session begins.
	a.waitAcked(t, a.chat(pb), 1)
	b.forget(pa)
	b.mu.Lock()
	b.listen = denied
	b.mu.Unlock()
	for _, s := range a.rep.streams.all() {
		s.end(0, nil)
	}
	a.wait(t, "end", func() bool { return a.down == 1 })
	b.wait(t, "end", func() bool { return b.down == 1 })
	a.token = []byte("0123456789abcdef")
	a.open(b)
	b.wait(t, "session", func() bool { return b.up == 2 })
	a.say(pb, "blocked")
	a.wait(t, "refusal", func() bool { return len(a.refused) == 1 })
	b.mu.Lock()
	b.listen = 0
	b.mu.Unlock()
	b.befriend(pa)
	b.rep.Reannounce(a.chat(pb).Conversation)
	if got := b.waitTexts(t, 2); !slices.Equal(got, []string{"hello", "blocked"}) {
		t.Errorf("got %q", got)
	}
}

func TestUnblockedWhileKnocking(t *testing.T) {
	a, b := pairOn(t, nil) // without a token: the knock takes its time
	conv := a.chat(b.person).Conversation
	a.open(b)
	a.say(b.person, "one")
	b.waitTexts(t, 1)
	a.waitAcked(t, a.chat(b.person), 1)
	b.forget(a.person)
	b.rep.Reannounce(conv)
	a.rep.works.mu.Lock() // now and then the proof is found before b is done, and the knock would be taken
	a.say(b.person, "while blocked")
	a.wait(t, "refusal", func() bool { return len(a.refused) == 1 })
	b.befriend(a.person)
	b.change(func(tx *storage.Tx) error {
		tx.OnCommit(func() { b.rep.Reannounce(conv) })
		return b.rep.FloorToShown(tx, conv, a.account())
	})
	a.rep.works.mu.Unlock()
	a.wait(t, "not taken", func() bool { return len(a.notTaken) == 1 })
	a.say(b.person, "after")
	a.waitAcked(t, a.chat(b.person), 3)
	if got := b.waitTexts(t, 2); !slices.Equal(got, []string{"one", "after"}) {
		t.Errorf("got %q", got)
	}
}

func TestUnblockedInMidSession(t *testing.T) {
	for _, floor := range []bool{true, false} {
		a, b := pairOn(t, nil)
		a.token = []byte("0123456789abcdef")
		conv := a.chat(b.person).Conversation
		a.open(b)
		a.say(b.person, "one")
		b.waitTexts(t, 1)
		a.waitAcked(t, a.chat(b.person), 1)
		for i, texts := range [][]string{{"m1"}, {"m2", "m3"}} {
			b.forget(a.person)
			b.mu.Lock()
			b.listen = pb.Code_CODE_DENIED
			b.mu.Unlock()
			b.rep.Reannounce(conv)
			before := len(a.refused)
			a.say(b.person, texts...)
			a.wait(t, "refusal", func() bool {
				return len(a.refused) > before && a.refused[len(a.refused)-1].Code == pb.Code_CODE_DENIED
			})
			b.mu.Lock()
			b.listen = 0
			b.mu.Unlock()
			b.befriend(a.person)
			b.change(func(tx *storage.Tx) error {
				tx.OnCommit(func() { b.rep.Reannounce(conv) })
				if !floor {
					return nil
				}
				return b.rep.FloorToShown(tx, conv, a.account())
			})
			if floor {
				a.wait(t, "not taken", func() bool { return len(a.notTaken) == i+1 })
			}
			after := a.say(b.person, "after")[0]
			a.waitAcked(t, a.chat(b.person), after.Seq)
		}
		want := []string{"one", "after", "after"}
		if !floor {
			want = []string{"one", "m1", "after", "m2", "m3", "after"}
		}
		if got := b.waitTexts(t, len(want)); !slices.Equal(got, want) {
			t.Errorf("floor %v: got %q", floor, got)
		}
	}
}

func TestReceiptsAreMonotoneAndNewest(t *testing.T) {
	a, b := pairOn(t, func(c *Config) { c.Limits.Receipt, c.Limits.ReceiptMax = 20*time.Millisecond, 50*time.Millisecond })
	a.open(b)
	a.say(b.person, numbered(3)...)
	b.waitTexts(t, 3)
	a.wait(t, "receipt", func() bool { return len(a.receipts) == 1 })
	if r := a.receipts[0]; r.Peer != b.peer() || len(r.Items) != 1 || r.Items[0] != (ReceiptItem{Feed: a.chat(b.person), Acked: 3}) {
		t.Errorf("receipt %+v", r)
	}
	b.mu.Lock()
	b.read[a.chat(b.person)] = 2
	b.mu.Unlock()
	b.rep.PushReceipt(a.chat(b.person).Conversation)
	a.wait(t, "read receipt", func() bool { return len(a.receipts) == 2 })
	if r := a.receipts[1]; r.Seq != 2 || r.Items[0].Read != 2 {
		t.Errorf("receipt %+v", r)
	}
	// Nothing changed: nothing is sent, and an older one does not count.
	b.rep.PushReceipt(a.chat(b.person).Conversation)
	old, err := parseReceipt(rawReceipt(t, b))
	if err != nil {
		t.Fatal(err)
	}
	a.change(func(tx *storage.Tx) error { return a.rep.takeReceipt(tx, b.peer(), old) })
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.receipts) != 2 {
		t.Errorf("%d receipts", len(a.receipts))
	}
}

func rawReceipt(t *testing.T, s *side) (raw []byte) {
	t.Helper()
	s.look(func(tx *storage.Tx) error {
		return tx.Scan(storage.ScanOptions{Prefix: []byte(keyReceipt)}, func(_, v []byte) (bool, error) {
			raw = v
			return true, nil
		})
	})
	return raw
}

func TestTypingAndPresence(t *testing.T) {
	a, b := pairOn(t, nil)
	a.say(b.person, "x")
	a.open(b)
	a.waitAcked(t, a.chat(b.person), 1)
	a.rep.SendTyping(a.chat(b.person).Conversation, true)
	a.rep.SendPresence(b.account(), true)
	b.wait(t, "typing", func() bool { return len(b.typing) == 1 && b.typing[0] })
	b.wait(t, "presence", func() bool { return len(b.presence) == 1 && b.presence[0] })
}

func TestWhoMayComeIn(t *testing.T) {
	pa, pb := newPerson(t, 0), newPerson(t, 1)
	bNode := nodetest.LoopbackKey(t, pb.deviceKey)
	b := newSide(t, pb, bNode, nil, pa)
	cases := []struct {
		name   string
		change func(*person)
	}{
		{"a record without the device", func(p *person) {
			p.record = newPersonWith(t, 0, identity.GenerateDeviceKey()).record
		}},
		{"a record of another account", func(p *person) { p.record = newPerson(t, 7).record }},
		{"a certificate of another device", func(p *person) {
			p.deviceKey = identity.GenerateDeviceKey()
			p.cert.Device = p.device()
		}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			bad := pa
			c.change(&bad)
			node := nodetest.LoopbackKey(t, bad.deviceKey)
			nodetest.Connect(t, node, bNode)
			f := newFakes(bad, pb)
			db, err := storage.Open(storage.Config{Logger: quiet()})
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			a := newSideOn(t, bad, node, db, f, nil)
			defer a.stop()
			a.say(pb, "hello")
			if a.tryOpen(b) == nil {
				// Its own hello was answered before b had looked at it.
				a.wait(t, "end of the session", func() bool { return a.down == 1 })
			}
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.up != 0 || len(b.applied) != 0 {
				t.Error("let in")
			}
		})
	}
}

func TestSilenceIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := nodetest.New(t, 2)
		pa, pb := newPerson(t, 0), newPerson(t, 1)
		a := newSide(t, pa, w.Node(0), nil, pb)
		b := newSide(t, pb, w.Node(1), nil, pa)
		w.Connect(0, 1)
		a.open(b)
		a.say(pb, "one")
		b.waitTexts(t, 1)
		time.Sleep(10 * time.Minute)
		if a.down != 0 || len(a.rep.Sessions()) != 1 {
			t.Fatal("an idle session ended")
		}
		w.Cut(0, 1)
		lost := time.Now()
		a.wait2(func() bool { return a.down == 1 })
		b.wait2(func() bool { return b.down == 1 })
		if took := time.Since(lost); took > 15*time.Second {
			t.Errorf("a dead device was noticed after %v", took)
		}
		a.say(pb, "two")
		w.Heal(0, 1)
		time.Sleep(time.Second)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		w.Node(0).Remember(pb.device(), w.Addrs(1))
		if err := a.rep.Open(ctx, pb.device()); err != nil {
			t.Fatal(err)
		}
		b.waitTexts(t, 2)
		a.waitAcked(t, feed.FeedID{Conversation: a.chat(pb).Conversation, Number: feed.Chat, Device: pa.device()}, 2)
		a.stop()
		b.stop()
		a.db.Close()
		b.db.Close()
	})
}

// wait2 waits without a limit of its own.
func (f *fakes) wait2(ok func() bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for !ok() {
		f.changed.Wait()
	}
}
