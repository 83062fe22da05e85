package messenger

import (
	"context"
	"crypto/sha256"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// R20: a name that two people bear is never decided silently; the ID decides.
func TestAmbiguousNames(t *testing.T) {
	ctx := context.Background()
	a := newPerson(t, "alice")
	x, y := newPerson(t, "x"), newPerson(t, "y")
	a.people.nearby = []Person{
		{Account: x.account, Device: x.device, Username: "sam"},
		{Account: y.account, Device: y.device, Username: "SAM"},
	}
	_, err := a.m.Find(ctx, "sam")
	require.ErrorIs(t, err, ErrAmbiguous)
	var refusal *Error
	require.True(t, errors.As(err, &refusal))
	require.Len(t, refusal.Candidates, 2)
	_, _, err = a.m.AddContact(ctx, AddContact{Who: "Sam"})
	require.ErrorIs(t, err, ErrAmbiguous)
	f, err := a.m.Find(ctx, x.id()[:14])
	require.NoError(t, err)
	require.Equal(t, x.account, f.Account)
	require.Equal(t, SourceNearby, f.Source)

	_, _, err = a.m.AddContact(ctx, AddContact{Who: x.id(), Remark: "sammy"})
	require.NoError(t, err)
	// A contact of that name does not hide the other one from whoever looks outward.
	_, err = a.m.Find(ctx, "user:sam")
	require.ErrorIs(t, err, ErrAmbiguous)
	_, err = a.m.Find(ctx, "nobody")
	require.ErrorIs(t, err, ErrNotFound)
	_, err = a.m.Find(ctx, "hima:qqqq")
	require.ErrorIs(t, err, ErrInvalid)
	_, _, err = a.m.AddContact(ctx, AddContact{Who: a.id()})
	require.ErrorIs(t, err, ErrInvalid)
}

func TestNamesOfTheKnown(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	conv := feed.DirectConversation(a.account, b.account)
	for _, name := range []string{"bob", "BOB", "user:bob", " bob ", b.id(), b.id()[:12], b.account.Short()} {
		got, err := a.m.Conversation(ctx, name)
		require.NoError(t, err, name)
		require.Equal(t, conv, got, name)
	}
	// A remark counts at once, and the cache of names follows it.
	_, err := a.m.Conversation(ctx, "小明")
	require.ErrorIs(t, err, ErrNotFound)
	_, err = a.m.Remark(ctx, "bob", "小明")
	require.NoError(t, err)
	_, err = a.m.Conversation(ctx, "小明")
	require.NoError(t, err)
	// A remark that is another's username makes that name ambiguous, but not user:NAME.
	c := newPerson(t, "carol")
	a.add(c, func(in *AddContact) { in.Remark = "bob" })
	_, err = a.m.Conversation(ctx, "bob")
	require.ErrorIs(t, err, ErrAmbiguous)
	got, err := a.m.Conversation(ctx, "user:bob")
	require.NoError(t, err)
	require.Equal(t, conv, got)
	_, err = a.m.Conversation(ctx, b.id()[:8])
	require.ErrorIs(t, err, ErrInvalid, "too short for an ID")
	// What stands for something else is no remark.
	for _, bad := range []string{"self", " SELF ", "user:x", "hima1abc", "Hima:x", "\xff"} {
		_, err = a.m.Remark(ctx, b.id(), bad)
		require.ErrorIs(t, err, ErrInvalid, bad)
		_, _, err = a.m.AddContact(ctx, AddContact{Who: newPerson(t, "dora").id(), Remark: bad})
		require.ErrorIs(t, err, ErrInvalid, bad)
	}
	name, err := a.m.NameOf(ctx, b.account)
	require.NoError(t, err)
	require.Equal(t, "小明", name)
	require.True(t, a.m.Keeps(b.account))
	require.False(t, a.m.Keeps(newPerson(t, "stranger").account))
	require.ElementsMatch(t, []identity.AccountID{b.account, c.account}, a.m.PeerAccounts())
}

// record gives an account a record with devices and lets p know it.
func (p *person) learn(o *person, devices ...*person) {
	p.t.Helper()
	var certs []identity.Certificate
	var ids []identity.DeviceID
	for _, d := range devices {
		certs = append(certs, d.cert)
		ids = append(ids, d.device)
	}
	old := p.people.records[o.account]
	rec, err := identity.NewAccountRecord(o.acct, identity.RecordConfig{LastSeq: old.Seq, Now: testStart, Devices: certs})
	require.NoError(p.t, err)
	p.people.records[o.account], p.people.devices[o.account] = rec, ids
}

// settle waits until what was submitted before is durable.
func (p *person) settle() {
	p.t.Helper()
	require.NoError(p.t, p.db.Update(context.Background(), func(*storage.Tx) error { return nil }))
}

func TestVerify(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	a.learn(b, b)
	va, err := a.m.Verify(ctx, "bob", VerifyShow)
	require.NoError(t, err)
	vb, err := b.m.Verify(ctx, "alice", VerifyShow)
	require.NoError(t, err)
	require.Equal(t, va.Digits, vb.Digits)
	require.Equal(t, va.QR, vb.QR)
	require.Equal(t, VerifiedNo, va.Contact.Verified)
	va, err = a.m.Verify(ctx, "bob", VerifyConfirm)
	require.NoError(t, err)
	require.Equal(t, VerifiedConfirmed, va.Contact.Verified)

	// A change of devices is seen: event, line of history, and a doubt about what was verified.
	a.m.SessionUp(replica.SessionInfo{Peer: b.peer()})
	a.settle()
	require.Empty(t, ofType(a.events(0), EventDevices), "the first record is no change")
	b2 := newDevice(t, "bob", "bob2")
	a.learn(b, b, b2)
	a.m.SessionUp(replica.SessionInfo{Peer: b2.peer()})
	a.settle()
	require.Len(t, ofType(a.events(0), EventDevices), 1)
	lines := a.history("bob")
	require.Equal(t, MessageDevicesChanged, lines[len(lines)-1].Kind)
	va, err = a.m.Verify(ctx, "bob", VerifyShow)
	require.NoError(t, err)
	require.Equal(t, VerifiedChanged, va.Contact.Verified)
	va, err = a.m.Verify(ctx, "bob", VerifyConfirm)
	require.NoError(t, err)
	require.Equal(t, VerifiedConfirmed, va.Contact.Verified)
	va, err = a.m.Verify(ctx, "bob", VerifyReject)
	require.NoError(t, err)
	require.Equal(t, VerifiedRejected, va.Contact.Verified)
	// A later line stands behind the change.
	a.send(b, "hm")
	lines = a.history("bob")
	require.Equal(t, "hm", lines[len(lines)-1].Text)
}

func ofType(list []Event, t EventType) (out []Event) {
	for _, e := range list {
		if e.Type == t {
			out = append(out, e)
		}
	}
	return out
}

// bringSelf carries the self conversation of one own device to another.
func bringSelf(t *testing.T, from, to *person) {
	t.Helper()
	for _, n := range []feed.Number{feed.Control, feed.Chat} {
		id := from.feeds.OwnFeed(from.m.env.self, n)
		var have uint64
		require.NoError(t, to.db.View(func(tx *storage.Tx) error {
			tip, _ := to.feeds.tip(tx, id)
			have = tip.Seq
			return nil
		}))
		entries := from.entries(id)
		if uint64(len(entries)) <= have {
			continue
		}
		require.NoError(t, to.db.Update(context.Background(), func(tx *storage.Tx) error {
			for _, e := range entries[have:] {
				if err := to.feeds.store(tx, e, true); err != nil {
					return err
				}
			}
			return to.m.Applied(tx, replica.Applied{Peer: from.peer(), Entries: entries[have:]})
		}))
	}
}

// Several devices of one account follow each other by the self conversation alone.
func TestOwnDevicesFollow(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	a2 := newDevice(t, "alice", "alice2")
	a.learn(a, a, a2)
	a2.learn(a, a, a2)
	bringSelf(t, a, a2)
	require.Equal(t, RelationContact, a2.relation(b))
	_, err := a2.m.Remark(ctx, b.id(), "from the second")
	require.NoError(t, err)
	a.set(settingStrangers, strangersDeny)
	inv, err := a.m.CreateInvite(ctx)
	require.NoError(t, err)
	bringSelf(t, a2, a)
	bringSelf(t, a, a2)
	c, err := a.m.contact(b.account)
	require.NoError(t, err)
	require.Equal(t, "from the second", c.Remark)
	require.Equal(t, strangersDeny, a2.m.settings.strangers())
	list, err := a2.m.Invites(ctx)
	require.NoError(t, err)
	require.Equal(t, inv.Token, list[0].Token)

	// What one device read is read on the other.
	b.send(a, "hello")
	meet(t, a, b)
	id := b.feeds.OwnFeed(feed.DirectConversation(a.account, b.account), feed.Chat)
	entries := b.entries(id)
	require.NoError(t, a2.db.Update(ctx, func(tx *storage.Tx) error {
		if err := a2.feeds.store(tx, entries[0], true); err != nil {
			return err
		}
		return a2.m.Applied(tx, replica.Applied{Peer: b.peer(), Entries: entries})
	}))
	counts, err := a2.m.Counts(ctx)
	require.NoError(t, err)
	require.Equal(t, 1, counts.Unread)
	_, err = a.m.MarkRead(ctx, b.id(), "")
	require.NoError(t, err)
	require.NoError(t, a.m.positions.flush(ctx, a.m))
	bringSelf(t, a, a2)
	counts, err = a2.m.Counts(ctx)
	require.NoError(t, err)
	require.Zero(t, counts.Unread)
	require.Empty(t, a2.history("self"), "read positions are not lines of the self conversation")
}

// R22: "verified" is never taken from a device that was added later than the contact, whatever that device says of when
// the contact was added.
func TestVerifiedByALaterDevice(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	thief := newDevice(t, "alice", "thief")
	thief.cert = identity.NewCertificate(thief.acct, thief.device, testStart.Add(time.Hour))
	thief.clock = testStart.Add(2 * time.Hour)
	thief.open(thief.db)
	older := newDevice(t, "alice", "older")
	for _, p := range []*person{a, thief, older} {
		p.learn(a, a, thief, older)
	}
	bringSelf(t, a, thief)
	_, err := thief.m.Verify(ctx, b.id(), VerifyConfirm)
	require.NoError(t, err)
	_, err = thief.m.Remark(ctx, b.id(), "mine now")
	require.NoError(t, err)
	_, err = thief.m.Remove(ctx, b.id())
	require.NoError(t, err)
	_, _, err = thief.m.AddContact(ctx, AddContact{Who: b.id()})
	require.NoError(t, err)
	require.NoError(t, thief.db.Update(ctx, func(tx *storage.Tx) error {
		return thief.m.writeState(tx, b.account, func(s *pb.ContactState) {
			s.AddedMs, s.Verified = thief.clock.UnixMilli(), pb.ContactState_VERIFIED_CONFIRMED
		})
	}))
	bringSelf(t, thief, a)
	c, err := a.m.contact(b.account)
	require.NoError(t, err)
	require.Equal(t, VerifiedNo, c.Verified)

	bringSelf(t, a, older)
	_, err = older.m.Verify(ctx, b.id(), VerifyConfirm)
	require.NoError(t, err)
	bringSelf(t, older, a)
	c, err = a.m.contact(b.account)
	require.NoError(t, err)
	require.Equal(t, VerifiedConfirmed, c.Verified)
	_, err = thief.m.Verify(ctx, b.id(), VerifyReject)
	require.NoError(t, err)
	bringSelf(t, thief, a)
	c, err = a.m.contact(b.account)
	require.NoError(t, err)
	require.Equal(t, VerifiedConfirmed, c.Verified)
}

// R13, R14: the first device of the other account makes a message delivered; own devices never count.
func TestWhoCountsForDelivered(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	b2, a2 := newDevice(t, "bob", "bob2"), newDevice(t, "alice", "alice2")
	msg := a.send(b, "one")
	a.send(b, "two")
	id := a.feeds.OwnFeed(feed.DirectConversation(a.account, b.account), feed.Chat)
	acked := func(by *person, from, last uint64) {
		require.NoError(t, a.db.Update(ctx, func(tx *storage.Tx) error {
			return a.m.Acked(tx, replica.Ack{Peer: by.peer(), Feed: id, From: from, Last: last})
		}))
	}
	acked(a2, 1, 2)
	require.Equal(t, []State{StatePending, StatePending}, a.states(b))
	acked(b2, 1, 1)
	require.Equal(t, []State{StateDelivered, StatePending}, a.states(b))
	acked(b, 1, 2)
	require.Equal(t, []State{StateDelivered, StateDelivered}, a.states(b))
	require.Len(t, ofType(a.events(0), EventState), 3, "the request, then two")
	a.people.devices[b.account] = []identity.DeviceID{b.device}
	w, err := a.m.Why(ctx, msg.ID.String())
	require.NoError(t, err)
	require.Equal(t, WhyDelivered, w.Summary)
}

func TestPresenceAndTyping(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	stranger := newPerson(t, "stranger")
	a.m.SessionUp(replica.SessionInfo{Peer: b.peer()})
	a.m.SessionUp(replica.SessionInfo{Peer: stranger.peer()})
	require.Equal(t, map[identity.AccountID]bool{b.account: true}, a.feeds.presence)
	a.m.Presence(b.peer(), true)
	a.m.Presence(stranger.peer(), true)
	list, err := a.m.Contacts(ctx, false)
	require.NoError(t, err)
	require.True(t, list[0].Online)
	c, err := a.m.contact(stranger.account)
	require.NoError(t, err)
	require.False(t, c.Online)
	// A new session replaces the old one, whose end is told later.
	a.m.SessionUp(replica.SessionInfo{Peer: b.peer()})
	a.m.SessionDown(replica.SessionInfo{Peer: b.peer()})
	require.True(t, a.m.presence.online(b.account))
	require.NoError(t, a.m.SetTyping(ctx, "bob", true))
	require.Equal(t, []bool{true}, a.feeds.typing)
	a.set(settingPresence, off)
	require.False(t, a.feeds.presence[b.account])
	a.m.SessionUp(replica.SessionInfo{Peer: b.peer()})
	require.False(t, a.feeds.presence[b.account])
	require.NoError(t, a.m.SetTyping(ctx, "bob", true))
	require.Len(t, a.feeds.typing, 1)
	_, err = a.m.Block(ctx, "bob")
	require.NoError(t, err)
	c, err = a.m.contact(b.account)
	require.NoError(t, err)
	require.False(t, c.Online)
	_, _, visible := a.m.LanProfile()
	require.True(t, visible)
	a.set(settingLan, off)
	_, _, visible = a.m.LanProfile()
	require.False(t, visible)
}

// R3: the chat of a forked feed ends before the fork for everybody.
func TestForkedFeed(t *testing.T) {
	a, b := friends(t)
	for _, s := range []string{"one", "two", "three"} {
		a.send(b, s)
	}
	meet(t, a, b)
	id := a.feeds.OwnFeed(feed.DirectConversation(a.account, b.account), feed.Chat)
	require.NoError(t, b.db.Update(context.Background(), func(tx *storage.Tx) error {
		return b.m.Forked(tx, replica.Fork{Feed: id, At: 3})
	}))
	require.Equal(t, []string{"alice: one", "alice: two"}, b.said(a)[2:])
	require.Len(t, ofType(b.events(0), EventWarning), 1)
}

// The gate lets in nobody's words but those of the two, and nothing else than strangers may say.
func TestGateRefuses(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	mallory := newPerson(t, "mallory")
	admit := func(from *person, author *person, conv feed.ConversationID, n feed.Number, k feed.Kind) pb.Code {
		e, err := author.feeds.author.Next(feed.Tip{}, conv, n, k, 1, 1, nil)
		require.NoError(t, err)
		run, err := feed.Assemble([]feed.Entry{e}, feed.SignRun(author.key, e))
		require.NoError(t, err)
		var code pb.Code
		require.NoError(t, b.db.Update(ctx, func(tx *storage.Tx) error {
			var err error
			_, code, err = b.m.Admit(tx, replica.Incoming{Peer: from.peer(), Run: run, Knock: &replica.Knock{Work: true}})
			return err
		}))
		return code
	}
	ab := feed.DirectConversation(a.account, b.account)
	mb := feed.DirectConversation(mallory.account, b.account)
	require.Equal(t, pb.Code_CODE_NOT_MEMBER, admit(mallory, mallory, ab, feed.Chat, feed.KindText))
	require.Equal(t, pb.Code_CODE_NOT_MEMBER, admit(mallory, a, ab, feed.Chat, feed.KindText))
	require.Equal(t, pb.Code_CODE_NOT_MEMBER, admit(mallory, mallory, b.m.env.self, feed.Control, feed.KindSetting))
	require.Equal(t, pb.Code_CODE_NOT_MEMBER, admit(a, mallory, mb, feed.Chat, feed.KindText))
	for _, k := range []feed.Kind{feed.KindAccept, feed.KindCardUpdate, feed.KindContactState, feed.KindSetting, 99} {
		require.Equal(t, pb.Code_CODE_UNSUPPORTED, admit(mallory, mallory, mb, feed.Control, k))
	}
	require.Equal(t, pb.Code_CODE_UNSUPPORTED, admit(mallory, mallory, mb, feed.Chat, 99))
	require.Equal(t, pb.Code_CODE_TAKEN, admit(mallory, mallory, mb, feed.Control, feed.KindRequest))
	// Entries of the self conversation say nothing in a direct one.
	a.write(ab, feed.Control, feed.KindSetting, []byte("\n\tstrangers\x12\x04deny"))
	meet(t, a, b)
	require.Equal(t, strangersAllow, b.m.settings.strangers())
}

// Rows are pinned: what this version writes, every later one must read.
func TestRowsArePinned(t *testing.T) {
	device := identity.DeviceID(sha256.Sum256([]byte("d")))
	account := identity.AccountID(sha256.Sum256([]byte("a")))
	conv := feed.ConversationID(sha256.Sum256([]byte("c")))
	f := feedRow{
		id: feed.FeedID{Conversation: conv, Number: feed.Chat, Device: device}, local: 300, account: account,
		last: 1000, read: 3, delivered: 900, peerRead: 800, notTaken: []span{{5, 9}}, cancelled: []uint64{950},
		cut: 7, refused: pb.Code_CODE_FULL, refusedAt: 901,
	}
	got, err := parseFeedRow(f.id, f.append(nil))
	require.NoError(t, err)
	require.Equal(t, f, got)
	c := convRow{
		id: conv, peer: account, unread: 4, activity: 1_800_000_000_000, overflow: true,
		last:    feed.OrderKey{Clock: 9, Account: account, Device: device, Number: feed.Chat, Seq: 7},
		unknown: []unknownEntry{{1, 2, 99}},
	}
	gotConv, err := parseConvRow(conv, c.append(nil))
	require.NoError(t, err)
	require.Equal(t, c, gotConv)
	it := blockItem{index: 12, id: [idBytes]byte{1, 2, 3, 4}, arrival: arrival{late: true, received: 1_800_000_000_000}}
	require.Equal(t, []byte{12, 1, 1, 2, 3, 4, 0x80, 0xa0, 0xf1, 0xc2, 0xb1, 0x34}, it.append(nil))
	require.NoError(t, eachItem(it.append(it.append(nil)), func(got blockItem) { require.Equal(t, it, got) }))
	require.ErrorIs(t, eachItem([]byte{blockLen, 0, 1, 2, 3, 4, 0}, func(blockItem) {}), errRow)
	require.Equal(t, []byte{1, 2, 5, 0xac, 0x02, 3, 4, 0}, (&record{kind: recordMessages, count: 2, time: 5, feed: 300, from: 3, to: 4}).append(nil))
	// Cut anywhere, a row is damage and not a panic.
	for _, row := range [][]byte{f.append(nil), c.append(nil), it.append(nil)} {
		for i := range row[:len(row)-1] {
			_, err1 := parseFeedRow(f.id, row[:i])
			_, err2 := parseConvRow(conv, row[:i])
			err3 := eachItem(row[:i], func(blockItem) {})
			_, err4 := parseRecord(1, row[:i])
			_ = errors.Join(err1, err2, err3, err4)
		}
	}
	_, err = parseFeedRow(f.id, f.append(nil)[:40])
	require.ErrorIs(t, err, errRow)
}
