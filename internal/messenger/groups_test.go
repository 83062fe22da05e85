package messenger

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/groups"
	"hima/identity"
	"hima/internal/delivery"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/text"
	"hima/internal/wire/pb"
	"hima/storage"
)

// A group is one more conversation: acts and texts are its lines, each shown by the name that somebody has here.
func TestGroupHistory(t *testing.T) {
	id, people := crowd(t, "alice", "bob", "carol")
	alice, bob, carol := people[0], people[1], people[2]
	alice.groups.groups[id].members[2].Nickname = "the\u202ecook"
	carol.set(settingPresence, "off")
	bob.tells("Hikers", "good morning")
	gather(t, people...)
	alice.tells("group:hikers", "hello")
	alice.writeAct(id, feed.KindGroupRole, &pb.GroupRole{Account: carol.account.Bytes(), Role: pb.GroupRole_ROLE_ADMIN})
	gather(t, people...)
	carol.writeAct(id, feed.KindGroupSet, &pb.GroupSet{Key: "name", Value: "Climb\u202eers"})
	carol.writeAct(id, feed.KindGroupNickname, &pb.GroupNickname{Nickname: "x"})
	gather(t, people...)
	require.Equal(t, []string{
		"alice group-created", "alice group-admitted " + bob.account.Short(), "alice group-admitted thecook",
		bob.account.Short() + ": good morning", "alice: hello", "alice group-role thecook admin", "thecook group-set name=Climbers",
	}, alice.lines("Hikers"))
	require.Len(t, carol.lines(id.String()[:8]), 7)

	list, err := alice.m.Conversations(t.Context())
	require.NoError(t, err)
	require.Len(t, list, 1)
	c := list[0]
	require.Equal(t, Conversation{
		ID: id, Kind: KindGroup, Name: "Hikers", Relation: RelationNone, Unread: 1, Last: c.Last, Members: 3, Role: RoleMember,
	}, c)
	require.Equal(t, MessageGroupSet, c.Last.Kind)
	// Every act of another went to package groups once; own ones did not, own texts did.
	var own, others int
	for _, a := range carol.groups.applied {
		if a.Peer == carol.peer() {
			own += len(a.Entries)
		} else {
			others += len(a.Entries)
		}
	}
	require.Equal(t, []int{0, 6}, []int{own, others})
}

// An own message is counted per member: an account has it when one of its devices has.
func TestGroupStates(t *testing.T) {
	id, people := crowd(t, "alice", "bob", "carol")
	alice, bob, carol := people[0], people[1], people[2]
	state := func(msg Message) (State, [3]int) {
		w, err := alice.m.Why(t.Context(), msg.ID.String())
		require.NoError(t, err)
		return w.Message.State, [3]int{w.Message.DeliveredTo, w.Message.ReadBy, w.Message.Members}
	}
	msg := alice.tells("Hikers", "one")
	require.Equal(t, StatePending, msg.State)
	require.Equal(t, 2, msg.Members)
	expect := func(s State, n ...int) {
		t.Helper()
		got, counts := state(msg)
		require.Equal(t, s, got)
		require.Equal(t, [3]int(n), counts)
	}
	expect(StatePending, 0, 0, 2)
	list, err := alice.m.Conversations(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, list[0].Pending)

	// A mailbox makes it sent: for one member, or in the group's log for all.
	own := alice.feeds.OwnFeed(id, feed.Chat)
	require.NoError(t, alice.db.Update(t.Context(), func(tx *storage.Tx) error {
		return alice.m.InCustody(tx, delivery.Held{Feed: own, From: 1, Last: 1, Holder: bob.device})
	}))
	expect(StateSent, 0, 0, 2)
	meet(t, alice, bob)
	expect(StateDelivered, 1, 0, 2)
	_, err = bob.m.MarkRead(t.Context(), "Hikers", "")
	require.NoError(t, err)
	meet(t, alice, bob)
	expect(StateRead, 1, 1, 2)
	meet(t, alice, carol)
	expect(StateRead, 2, 1, 2)
	// Whoever does not tell what they read is believed.
	carol.set(settingReceipts, "off")
	_, err = carol.m.MarkRead(t.Context(), "Hikers", "")
	require.NoError(t, err)
	meet(t, alice, carol)
	expect(StateRead, 2, 1, 2)
	carol.set(settingReceipts, "on")
	meet(t, alice, carol)
	expect(StateRead, 2, 2, 2)

	// The first who has it is told of with the change, the others together a little later.
	var states []string
	tell := func() {
		require.NoError(t, alice.m.flushCounts(t.Context()))
		states = nil
		for _, e := range alice.events(0) {
			if e.Type == EventState {
				require.Nil(t, e.Account)
				require.Equal(t, id, *e.Conversation)
				states = append(states, e.Detail)
			}
		}
	}
	tell()
	require.Equal(t, []string{"sent", "delivered", "read", "delivered", "read"}, states)
	tell()
	require.Len(t, states, 5)
}

// Who is gone counts no more; what was once held by somebody stays sent.
func TestGroupStateOfTheGone(t *testing.T) {
	id, people := crowd(t, "alice", "bob")
	alice, bob := people[0], people[1]
	msg := alice.tells("Hikers", "one")
	meet(t, alice, bob)
	g := alice.groups.groups[id]
	g.members = g.members[:1]
	w, err := alice.m.Why(t.Context(), msg.ID.String())
	require.NoError(t, err)
	require.Equal(t, StateSent, w.Message.State)
	require.Zero(t, w.Message.Members)
	require.Empty(t, w.Devices)
	// A newcomer begins above: what was said to nobody stays with nobody.
	two := alice.tells("Hikers", "two")
	three := alice.tells("Hikers", "three")
	dave := newPerson(t, "dave")
	g.members = append(g.members, groups.Member{Account: dave.account})
	require.NoError(t, alice.db.Update(t.Context(), func(tx *storage.Tx) error {
		return alice.m.Acked(tx, replica.Ack{Peer: dave.peer(), Feed: alice.feeds.OwnFeed(id, feed.Chat), From: three.Seq, Last: three.Seq})
	}))
	list := alice.history("Hikers")
	require.Equal(t, two.ID, list[len(list)-2].ID)
	conv, err := alice.m.Conversations(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, conv[0].Pending, "two")
	require.Equal(t, StateDelivered, list[len(list)-1].State)
}

func TestGroupWhy(t *testing.T) {
	id, people := crowd(t, "alice", "bob", "carol")
	alice, bob, carol := people[0], people[1], people[2]
	for _, p := range people {
		alice.people.devices[p.account] = []identity.DeviceID{p.device}
	}
	msg := alice.tells("Hikers", "one")
	w, err := alice.m.Why(t.Context(), msg.ID.String())
	require.NoError(t, err)
	require.Equal(t, WhyNotOffered, w.Summary)
	meet(t, alice, bob)
	w, err = alice.m.Why(t.Context(), msg.ID.String())
	require.NoError(t, err)
	require.Equal(t, WhyPartly, w.Summary, "bob has it, and carol not")
	alice.mail.custody[identity.DeviceID{}] = []delivery.Custody{{Holder: carol.device, Until: testStart}}
	w, err = alice.m.Why(t.Context(), msg.ID.String())
	require.NoError(t, err)
	require.Equal(t, WhyInMailbox, w.Summary)
	require.Len(t, w.Custody, 1)
	states := map[identity.AccountID]DeviceState{}
	for _, d := range w.Devices {
		states[d.Account] = d.State
	}
	require.Equal(t, map[identity.AccountID]DeviceState{bob.account: DeviceDelivered, carol.account: DeviceWaiting}, states)
	meet(t, alice, carol)
	w, err = alice.m.Why(t.Context(), msg.ID.String())
	require.NoError(t, err)
	require.Equal(t, WhyDelivered, w.Summary)
	require.Equal(t, id, w.Message.Conversation)
}

// What was withdrawn waits for nobody, an act cannot be withdrawn, and where nobody else is nothing will go anywhere.
func TestGroupWhyOfWhatGoesNowhere(t *testing.T) {
	id, people := crowd(t, "alice", "bob")
	alice, bob := people[0], people[1]
	for _, p := range people {
		alice.people.devices[p.account] = []identity.DeviceID{p.device}
	}
	why := func(want WhySummary, message feed.EntryID) {
		t.Helper()
		w, err := alice.m.Why(t.Context(), message.String())
		require.NoError(t, err)
		require.Equal(t, want, w.Summary)
	}
	act := alice.writeAct(id, feed.KindGroupSet, &pb.GroupSet{Key: "announcement", Value: "hear ye"})
	why(WhyWaitingForPeer, act.ID)
	msg := alice.tells("Hikers", "no")
	why(WhyNotOffered, msg.ID)
	require.NoError(t, alice.m.Cancel(t.Context(), msg.ID.String()))
	why(WhyCancelled, msg.ID)
	g := alice.groups.groups[id]
	all := g.members
	g.members = g.members[:1]
	why(WhyAlone, alice.tells("Hikers", "anybody?").ID)
	why(WhyAlone, act.ID)
	g.members = all
	meet(t, alice, bob)
	why(WhyDelivered, act.ID)
}

// What stands beyond a cut is neither shown nor unread nor missing; void acts are no lines.
func TestGroupCut(t *testing.T) {
	id, people := crowd(t, "alice", "bob", "carol")
	alice, bob := people[0], people[1]
	for _, s := range []string{"one", "two", "three"} {
		bob.tells("Hikers", s)
	}
	void := bob.writeAct(id, feed.KindGroupRemove, &pb.GroupRemove{Account: people[2].account.Bytes()})
	gather(t, people...)
	unread := func() int {
		list, err := alice.m.Conversations(t.Context())
		require.NoError(t, err)
		return list[0].Unread
	}
	require.Equal(t, 3, unread())
	g := alice.groups.groups[id]
	g.cut[bob.account], g.void[place{seq: void.Seq}] = 1, true
	require.NoError(t, alice.db.Update(t.Context(), func(tx *storage.Tx) error {
		return alice.m.GroupNews(tx, groups.News{Group: id, Kind: groups.NewsRemoved, Account: alice.account, Subject: bob.account})
	}))
	require.Equal(t, 1, unread())
	require.Equal(t, []string{bob.account.Short() + ": one"}, alice.lines("Hikers")[3:])
	list, err := alice.m.Conversations(t.Context())
	require.NoError(t, err)
	require.Equal(t, "one", list[0].Last.Text)
	marked, err := alice.m.MarkRead(t.Context(), "Hikers", "")
	require.NoError(t, err)
	require.Equal(t, 1, marked)
	// The events of what does not count any more are passed over, and nothing is lost with them.
	var texts []string
	for _, e := range alice.events(0) {
		if e.Type == EventMessage && e.Message.Kind == MessageText {
			texts = append(texts, e.Message.Text)
		}
		if e.Type == EventGroup {
			texts = append(texts, e.Detail+" "+e.Name+" "+e.AccountName+" "+e.SubjectName)
			require.Equal(t, bob.account, *e.Subject)
		}
	}
	require.Equal(t, []string{"one", "removed Hikers alice " + bob.account.Short()}, texts)
}

// What was said before somebody came in is shown as that, and nobody waits for it to be read.
func TestGroupBacklog(t *testing.T) {
	id, people := crowd(t, "alice", "bob")
	alice, bob := people[0], people[1]
	alice.tells("Hikers", "old")
	gather(t, people...)
	carol := newPerson(t, "carol")
	for _, p := range people {
		p.groups.groups[id].members = append(p.groups.groups[id].members, groups.Member{Account: carol.account})
	}
	admit := alice.writeAct(id, feed.KindGroupAdmit, &pb.GroupAdmit{Consent: carol.consentOf(id)})
	carol.in(id, "Hikers", admit.Clock, alice, bob, carol)
	gather(t, alice, bob, carol)
	bob.tells("Hikers", "new")
	gather(t, alice, bob, carol)
	a, b := alice.account.Short(), bob.account.Short()
	require.Equal(t, []string{
		"(" + a + " group-created)", "(" + a + " group-admitted " + b + ")", "(" + a + ": old)",
		a + " group-admitted carol", b + ": new",
	}, carol.lines("Hikers"))
	for _, msg := range carol.history("Hikers") {
		require.False(t, msg.Late && msg.Backlog)
	}
	list, err := carol.m.Conversations(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, list[0].Unread)
}

// A forked feed of acts is for package groups to judge; of a chat the part behind the fork is not shown.
func TestGroupForks(t *testing.T) {
	id, people := crowd(t, "alice", "bob")
	alice, bob := people[0], people[1]
	bob.tells("Hikers", "one")
	bob.tells("Hikers", "two")
	gather(t, people...)
	fork := func(n feed.Number) replica.Fork { return replica.Fork{Feed: bob.feeds.OwnFeed(id, n), At: 2} }
	require.NoError(t, alice.db.Update(t.Context(), func(tx *storage.Tx) error {
		return errors.Join(alice.m.Forked(tx, fork(feed.Control)), alice.m.Forked(tx, fork(feed.Chat)))
	}))
	require.Equal(t, []replica.Fork{fork(feed.Control)}, alice.groups.forks)
	require.Equal(t, []string{bob.account.Short() + ": one"}, alice.lines("Hikers")[2:])
}

func TestGroupSendRefused(t *testing.T) {
	id, people := crowd(t, "alice", "bob")
	alice := people[0]
	for _, c := range []struct{ is, want error }{
		{groups.ErrNotMember, ErrNotMember},
		{groups.ErrMuted, ErrMuted},
		{groups.ErrReadOnly, ErrReadOnly},
		{groups.ErrDissolved, ErrDissolved},
	} {
		alice.groups.groups[id].draft = c.is
		_, err := alice.m.Send(t.Context(), SendInput{Who: "Hikers", Text: "x"})
		require.ErrorIs(t, err, c.want)
		var refusal *Error
		require.ErrorAs(t, err, &refusal)
	}
	broken := errors.New("broken")
	alice.groups.groups[id].draft = broken
	_, err := alice.m.Send(t.Context(), SendInput{Who: "Hikers", Text: "x"})
	require.ErrorIs(t, err, broken)
	alice.groups.groups[id].draft = nil
	first, err := alice.m.Send(t.Context(), SendInput{Who: "Hikers", Text: "x", IdempotencyKey: "k"})
	require.NoError(t, err)
	again, err := alice.m.Send(t.Context(), SendInput{Who: "Hikers", Text: "x", IdempotencyKey: "k"})
	require.NoError(t, err)
	require.Equal(t, first.ID, again.ID)
	require.NoError(t, alice.m.Cancel(t.Context(), first.ID.String()))
	require.Equal(t, StateCancelled, alice.history("Hikers")[2].State)
	// A newer version acted: nothing is written any more (R10).
	alice.writeAct(id, 99, &pb.GroupCreate{})
	_, err = alice.m.Send(t.Context(), SendInput{Who: "Hikers", Text: "x"})
	require.ErrorIs(t, err, ErrReadOnly)
}

// What others hold something else in the place of, and may be said in its group no more, is kept for its author.
func TestReplacedInAGroupThatIsClosed(t *testing.T) {
	id, people := crowd(t, "alice", "bob")
	alice := people[0]
	msg := alice.tells("Hikers", "what I meant to say")
	alice.groups.groups[id].draft = groups.ErrDissolved
	since := alice.events(0)
	for range 2 {
		require.NoError(t, alice.db.Update(t.Context(), func(tx *storage.Tx) error {
			e, err := alice.feeds.Entry(tx, alice.feeds.OwnFeed(id, feed.Chat), msg.Seq)
			if err != nil {
				return err
			}
			return alice.m.Replaced(tx, []feed.Entry{e})
		}))
	}
	notes := alice.history("self")
	require.Len(t, notes, 1)
	require.Equal(t, "what I meant to say", notes[0].Text)
	var warned int
	for _, e := range alice.events(since[len(since)-1].Seq) {
		if e.Type == EventWarning {
			require.Equal(t, "kept_as_note", e.Detail)
			require.Equal(t, id, *e.Conversation)
			warned++
		}
	}
	require.Equal(t, 1, warned)
}

// Members answers replica: groups are asked of package groups, the rest stays as it was.
func TestGroupMembersAndGate(t *testing.T) {
	id, people := crowd(t, "alice", "bob")
	alice, bob := people[0], people[1]
	require.NoError(t, alice.db.View(func(tx *storage.Tx) error {
		shared, err := alice.m.Shared(tx, bob.account)
		require.NoError(t, err)
		require.Equal(t, []feed.ConversationID{id}, shared)
		readers, err := alice.m.Readers(tx, id)
		require.NoError(t, err)
		require.Equal(t, []identity.AccountID{bob.account}, readers)
		w, err := alice.m.Window(tx, id, bob.account)
		require.NoError(t, err)
		first, last := w(feed.FeedID{})
		require.Equal(t, []uint64{7, 9}, []uint64{first, last})
		require.True(t, alice.m.Lazy(tx, id))
		direct := feed.DirectConversation(alice.account, bob.account)
		w, err = alice.m.Window(tx, direct, bob.account)
		require.NoError(t, err)
		require.Nil(t, w)
		require.False(t, alice.m.Lazy(tx, direct))
		return nil
	}))
	require.True(t, alice.m.Keeps(bob.account))
	require.True(t, alice.m.Comember(bob.account))
	require.False(t, alice.m.Comember(newPerson(t, "mallory").account))
	require.Empty(t, alice.m.PeerAccounts(), "co-members are the mesh's business")
	// Blocked people stay in the group; they are told nothing, and heard of only there.
	_, err := bob.m.Send(t.Context(), SendInput{Who: "Hikers", Text: "hi"})
	require.NoError(t, err)
	gather(t, people...)
	_, err = alice.m.MarkRead(t.Context(), "Hikers", "")
	require.NoError(t, err)
	read := func() (n uint64) {
		require.NoError(t, alice.db.View(func(tx *storage.Tx) (err error) {
			n, err = alice.m.Read(tx, bob.feeds.OwnFeed(id, feed.Chat))
			return err
		}))
		return n
	}
	require.Equal(t, uint64(1), read())
	require.NoError(t, alice.db.Update(context.Background(), func(tx *storage.Tx) error {
		return alice.m.writeState(tx, bob.account, func(s *pb.ContactState) { s.Blocked = true })
	}))
	require.Zero(t, read())
	require.False(t, alice.m.Comember(bob.account))
	require.NotEmpty(t, alice.lines("Hikers"))
}

// A name that somebody chose for themselves in a group never reads like somebody else in it.
func TestGroupNicknamesOfOthers(t *testing.T) {
	alice, bob := friends(t)
	carol := newPerson(t, "carol")
	id := groups.ID{1}
	members := alice.in(id, "Hikers", 0, alice, bob, carol).members
	_, err := alice.m.Remark(t.Context(), bob.id(), "Robert")
	require.NoError(t, err)
	called := func(nick string) string {
		t.Helper()
		for i := range members {
			if members[i].Account == carol.account {
				members[i].Nickname = nick
			}
		}
		require.NoError(t, alice.db.Update(t.Context(), func(tx *storage.Tx) error {
			return alice.m.GroupNews(tx, groups.News{Group: id, Kind: groups.NewsNickname})
		}))
		var name string
		require.NoError(t, alice.db.View(func(tx *storage.Tx) (err error) {
			name, err = alice.m.names(tx, id).of(carol.account)
			return err
		}))
		return name
	}
	short := " (" + carol.account.Short() + ")"
	for _, own := range []string{"cook", "carol", "bob", "Robert Smith"} {
		require.Equal(t, own, called(own), "nobody here is called so")
	}
	for _, others := range []string{"Robert", "ＲＯＢＥＲＴ", "ro\u200bbert", "alice", "Alice"} {
		require.Equal(t, text.Nickname(others)+short, called(others))
	}
	mimic := "Robert (" + bob.account.Short() + ")"
	require.Equal(t, mimic+short, called(mimic), "an ID in a name is not theirs")
	for i := range members {
		if members[i].Account == bob.account {
			members[i].Nickname = "Cook"
		}
	}
	require.Equal(t, "cook"+short, called("cook"))
	// The names are kept for the next line, but not for long: a line may be read while they change.
	require.Equal(t, "driver", called("driver"))
	members[1].Nickname = "Driver"
	line := func() (name string) {
		require.NoError(t, alice.db.View(func(tx *storage.Tx) (err error) {
			name, err = alice.m.names(tx, id).of(carol.account)
			return err
		}))
		return name
	}
	require.Equal(t, "driver", line())
	alice.clock = alice.clock.Add(takenAge + time.Second)
	require.Equal(t, "driver"+short, line())
}
