package messenger

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"hima/identity"
	"hima/internal/delivery"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/storage"
)

func (p *person) keep(h delivery.Held) {
	p.t.Helper()
	require.NoError(p.t, p.db.Update(context.Background(), func(tx *storage.Tx) error { return p.m.InCustody(tx, h) }))
}

func TestWhatAMailboxHoldsIsSent(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	a.people.devices[b.account] = []identity.DeviceID{b.device}
	one, two := a.send(b, "one"), a.send(b, "two")
	_, err := a.m.Counts(ctx)
	require.NoError(t, err)
	since := a.events(0)
	h := a.held(b, one.Seq, one.Seq)
	until := a.clock.Add(30 * 24 * time.Hour)
	a.mail.custody[b.device] = []delivery.Custody{{Holder: h.Holder, Since: a.clock, Until: until}}
	a.keep(h)
	require.Equal(t, []State{StateSent, StatePending}, a.states(b))
	news := a.events(since[len(since)-1].Seq)
	require.Len(t, news, 1)
	require.Equal(t, EventState, news[0].Type)
	require.Equal(t, string(StateSent), news[0].Detail)
	require.Equal(t, []feed.EntryID{one.ID}, news[0].MessageIDs)
	counts, err := a.m.Counts(ctx)
	require.NoError(t, err)
	require.Equal(t, 1, counts.Pending, "what a mailbox holds waits for nobody here")

	w, err := a.m.Why(ctx, one.ID.String())
	require.NoError(t, err)
	require.Equal(t, WhyInMailbox, w.Summary)
	require.Equal(t, []Custody{{Mailbox: h.Holder, Since: a.clock, Until: until}}, w.Devices[0].Custody)

	// R14: what was once sent cannot be cancelled, whether or not the mailbox still has it.
	require.ErrorIs(t, a.m.Cancel(ctx, one.ID.String()), ErrTooLate)
	a.mail.custody[b.device][0].Expired = true
	require.NoError(t, a.db.Update(ctx, func(tx *storage.Tx) error { return a.m.CustodyEnded(tx, h) }))
	require.ErrorIs(t, a.m.Cancel(ctx, one.ID.String()), ErrTooLate)
	require.NoError(t, a.m.Cancel(ctx, two.ID.String()))
	require.Equal(t, []State{StateSent, StateCancelled}, a.states(b))
	w, err = a.m.Why(ctx, one.ID.String())
	require.NoError(t, err)
	require.Equal(t, WhyNotOffered, w.Summary, "expired: it is offered again")
	require.True(t, w.Devices[0].Custody[0].Expired)

	// The state survives a restart, and a delivery replaces it.
	a.open(a.db)
	require.Equal(t, []State{StateSent, StateCancelled}, a.states(b))
	meet(t, a, b)
	require.Equal(t, StateDelivered, a.states(b)[0])
	w, err = a.m.Why(ctx, one.ID.String())
	require.NoError(t, err)
	require.Equal(t, WhyDelivered, w.Summary)
	require.Empty(t, w.Devices[0].Custody)
}

func TestCustodyForOwnDevicesAndForStrangersSaysNothing(t *testing.T) {
	a, b := friends(t)
	other := newPerson(t, "carol")
	msg := a.send(b, "one")
	h := a.held(b, msg.Seq, msg.Seq)
	h.Peer = replica.Peer{Account: a.account, Device: box("own laptop")}
	a.keep(h)
	h.Peer = other.peer() // not of this conversation
	a.keep(h)
	h = a.held(b, msg.Seq, msg.Seq)
	h.Feed.Device = b.device // not an own feed
	a.keep(h)
	require.Equal(t, []State{StatePending}, a.states(b))
}

// A receipt that covers more than was written, or the same again, makes no message sent that is none.
func TestCustodyIsKeptInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		row := feedRow{local: 1, last: 40}
		held := make(map[uint64]bool)
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			from := rapid.Uint64Range(1, 45).Draw(t, "from")
			to := rapid.Uint64Range(from, 45).Draw(t, "to")
			if rapid.Bool().Draw(t, "deliver") {
				row.deliver(row.delivered+1, min(row.delivered+1, row.last))
			} else {
				for _, s := range row.keep(from, to) {
					for n := s.from; n <= s.to; n++ {
						if held[n] || n <= row.delivered || n > row.last {
							t.Fatalf("%d is no news", n)
						}
						held[n] = true
					}
				}
			}
			back, err := parseFeedRow(row.id, row.append(nil))
			if err != nil || !slices.Equal(back.kept, row.kept) {
				t.Fatalf("kept %v, stored %v: %v", row.kept, back.kept, err)
			}
			pending := 0
			for n := uint64(1); n <= row.last; n++ {
				want := StatePending
				switch {
				case n <= row.delivered:
					want = StateDelivered
				case held[n]:
					want = StateSent
				default:
					pending++
				}
				if got := row.state(n); got != want {
					t.Fatalf("%d is %s, not %s", n, got, want)
				}
			}
			if got := row.pending(); got != pending {
				t.Fatalf("%d pending, not %d", got, pending)
			}
			for i, s := range row.kept {
				if s.from > s.to || i > 0 && s.from <= row.kept[i-1].to+1 {
					t.Fatalf("kept %v", row.kept)
				}
			}
		}
	})
}

func TestMailboxEventsNameTheNode(t *testing.T) {
	a, b := friends(t)
	n := newNetwork("home")
	a.networks.add(n)
	a.m.MailboxEvent(n.link.Founder, "full")
	a.m.MailboxEvent(box("unknown"), "lost")
	require.NoError(t, a.m.NetworkChanged(context.Background(), "home", "offline"))
	require.NoError(t, a.m.NameChanged(context.Background(), NameState{NetworkName: "home", Name: "alice", State: NameLost, Holder: b.account}))
	list := a.events(0)
	list = list[len(list)-4:]
	require.Equal(t, []EventType{EventMailbox, EventMailbox, EventNetwork, EventName}, []EventType{list[0].Type, list[1].Type, list[2].Type, list[3].Type})
	require.Equal(t, "home", list[0].Name, "a bootstrap node is called like its network")
	require.Empty(t, list[1].Name)
	require.Equal(t, box("unknown"), list[1].Holder)
	require.Equal(t, "home", list[2].Network)
	require.Equal(t, "alice", list[3].Name)
	require.Equal(t, b.account, *list[3].Account)
	require.Equal(t, NameLost, list[3].Detail)
}

func TestRequestInboxFollowsPolicy(t *testing.T) {
	ctx := context.Background()
	a := newPerson(t, "alice")
	require.True(t, a.m.RequestPolicy())
	changes := a.policy
	a.set(settingStrangers, strangersDeny)
	require.False(t, a.m.RequestPolicy(), "R16: under deny strangers get no room")
	inv, err := a.m.CreateInvite(ctx)
	require.NoError(t, err)
	require.True(t, a.m.RequestPolicy(), "whoever holds a token may ask")
	require.NoError(t, a.m.RevokeInvite(ctx, inv.Link))
	require.False(t, a.m.RequestPolicy())
	require.Equal(t, changes+3, a.policy, "told of each change")
}

func TestAcceptedAreThoseTheOwnerChose(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	c, d := newPerson(t, "carol"), newPerson(t, "dave")
	a.add(c)
	meet(t, d, a)
	d.add(a)
	meet(t, d, a)
	require.True(t, a.m.Accepted(b.account))
	require.True(t, a.m.Accepted(c.account), "their answer must find a way")
	require.False(t, a.m.Accepted(d.account), "somebody who asked us was not accepted yet")
	_, err := a.m.Block(ctx, b.id())
	require.NoError(t, err)
	require.False(t, a.m.Accepted(b.account))
}
