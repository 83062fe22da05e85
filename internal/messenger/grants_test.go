package messenger

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/delivery"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// say writes a control entry to the conversation with o as it is, which an honest messenger would not.
func (p *person) say(o *person, kind feed.Kind, content proto.Message) {
	p.t.Helper()
	b, err := proto.Marshal(content)
	require.NoError(p.t, err)
	require.NoError(p.t, p.db.Update(context.Background(), func(tx *storage.Tx) error {
		_, err := p.m.write(tx, replica.Draft{
			Conversation: feed.DirectConversation(p.account, o.account), Number: feed.Control, Kind: kind, Content: b,
		})
		return err
	}))
}

func (p *person) grants() []Grant {
	p.t.Helper()
	list, err := p.m.Grants(context.Background())
	require.NoError(p.t, err)
	return list
}

func TestAContactKeepsMail(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	_, err := b.m.Grant(ctx, a.id())
	require.ErrorIs(t, err, ErrNotFound)
	a.m.config.Addrs = func() []string { return []string{"/ip4/192.0.2.9/tcp/4001"} }
	offer, err := a.m.OfferMailbox(ctx, b.id(), 1<<20)
	require.NoError(t, err)
	require.Equal(t, MailboxOffer{Account: b.account, Name: "bob", Quota: 1 << 20}, offer)
	require.Equal(t, uint64(1<<20), a.mail.grants[b.account])
	told := b.granted
	meet(t, a, b)
	g, err := b.m.Grant(ctx, a.id())
	require.NoError(t, err)
	require.Equal(t, a.device, g.Device)
	require.Equal(t, uint64(1<<20), g.Quota)
	require.Equal(t, [16]byte(b.account[:16]), g.Grant)
	require.Equal(t, []string{"/ip4/192.0.2.9/tcp/4001"}, g.Addrs)
	require.Greater(t, b.granted, told)
	list := b.events(0)
	last := list[len(list)-1]
	require.Equal(t, EventMailbox, last.Type)
	require.Equal(t, "offered", last.Detail)
	require.Equal(t, "alice", last.Name)
	require.Empty(t, a.grants(), "an own offer is none to use")

	// A's record names another device instead: what the old one offered is worth nothing.
	fresh := newDevice(t, "alice", "alice anew")
	rec, err := identity.NewAccountRecord(a.acct, identity.RecordConfig{Now: a.clock, Devices: []identity.Certificate{fresh.cert}})
	require.NoError(t, err)
	b.people.records[a.account] = rec
	require.Empty(t, b.grants())
	delete(b.people.records, a.account)
	require.Len(t, b.grants(), 1)

	_, err = a.m.OfferMailbox(ctx, b.id(), 0)
	require.NoError(t, err)
	require.Empty(t, a.mail.grants)
	meet(t, a, b)
	require.Empty(t, b.grants())
	list = b.events(0)
	require.Equal(t, "withdrawn", list[len(list)-1].Detail)
	_, err = a.m.OfferMailbox(ctx, b.id(), 0)
	require.NoError(t, err, "there is nothing to take back")
	c := newPerson(t, "carol")
	a.add(c)
	_, err = a.m.OfferMailbox(ctx, c.id(), 5)
	require.ErrorIs(t, err, ErrNotContact)
}

func TestNobodyIsPromisedMoreThanThereIs(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	a.mail.err = &delivery.QuotaError{Quota: 1 << 40, Most: 1 << 30}
	_, err := a.m.OfferMailbox(ctx, b.id(), 1<<40)
	require.ErrorIs(t, err, ErrTooLarge)
	require.ErrorContains(t, err, "1024 MiB")
	require.NoError(t, a.db.View(func(tx *storage.Tx) error {
		_, given, err := a.m.grants.given(tx, b.account)
		require.False(t, given, "it is noted that something was offered")
		return err
	}))
	a.mail.err = nil
	_, err = a.m.OfferMailbox(ctx, b.id(), 1<<20)
	require.NoError(t, err)
	a.mail.err = &delivery.QuotaError{Quota: 1 << 40, Most: 1 << 30}
	_, err = a.m.OfferMailbox(ctx, b.id(), 1<<40)
	require.ErrorIs(t, err, ErrTooLarge)
	require.NoError(t, a.db.View(func(tx *storage.Tx) error {
		row, _, err := a.m.grants.given(tx, b.account)
		require.Equal(t, uint64(1<<20), row.Quota, "what was offered before stands")
		return err
	}))
}

func TestWhatIsOfferedEndsWithTheContact(t *testing.T) {
	ctx := context.Background()
	for _, end := range []func(a, b *person) error{
		func(a, b *person) error { _, err := a.m.Remove(ctx, b.id()); return err },
		func(a, b *person) error { _, err := a.m.Block(ctx, b.id()); return err },
	} {
		a, b := friends(t)
		_, err := a.m.OfferMailbox(ctx, b.id(), 1<<20)
		require.NoError(t, err)
		meet(t, a, b)
		require.NoError(t, end(a, b))
		a.mail.err = errors.New("the disk is full")
		require.Error(t, a.m.takeBack(ctx))
		a.mail.err = nil
		a.open(a.db) // noted durably: a restart does not forget it
		require.NoError(t, a.m.takeBack(ctx))
		require.Empty(t, a.mail.grants)
	}
	// On the other side an offer counts as long as its giver is a contact.
	a, b := friends(t)
	_, err := a.m.OfferMailbox(ctx, b.id(), 1<<20)
	require.NoError(t, err)
	meet(t, a, b)
	require.Len(t, b.grants(), 1)
	_, err = b.m.Block(ctx, a.id())
	require.NoError(t, err)
	require.Empty(t, b.grants())
}

func TestForgedGrants(t *testing.T) {
	a, b := friends(t)
	grant := make([]byte, 16)
	for _, g := range []*pb.MailboxGrant{
		{Device: box("third").Bytes(), Grant: grant, QuotaBytes: 1 << 30}, // sends our mail to somebody else's node
		{Device: a.device.Bytes(), Grant: grant[:3], QuotaBytes: 1},
		{Device: a.device.Bytes()[:5], Grant: grant},
		{Device: a.device.Bytes(), Grant: grant, Addrs: [][]byte{[]byte("no address")}},
		{Device: a.device.Bytes(), Grant: grant, Addrs: make([][]byte, 40)},
		{},
	} {
		a.say(b, feed.KindMailboxGrant, g)
	}
	meet(t, a, b)
	require.Empty(t, b.grants())
	// A stranger's offer says nothing, and costs them.
	c := newPerson(t, "carol")
	c.add(b)
	c.say(b, feed.KindMailboxGrant, &pb.MailboxGrant{Device: c.device.Bytes(), Grant: grant, QuotaBytes: 5})
	meet(t, c, b)
	require.Empty(t, b.grants())
	require.Equal(t, RelationRequest, b.relation(c))
	_, err := b.m.Accept(context.Background(), c.id())
	require.NoError(t, err)
	require.Empty(t, b.grants())
}

func TestGrantsOfOneContactAreBounded(t *testing.T) {
	a, b := friends(t)
	for i := range maxGrants + 3 {
		var e feed.Entry
		e.Account, e.Conversation = a.account, feed.DirectConversation(a.account, b.account)
		e.Device[0], e.Device[1], e.Clock, e.Seq = 9, byte(i), uint64(1000+i), 1
		var err error
		if e.Device, err = identity.DeviceIDFromBytes(box(string(rune('a' + i))).Bytes()); err != nil {
			t.Fatal(err)
		}
		g := &pb.MailboxGrant{Device: e.Device.Bytes(), Grant: make([]byte, 16), QuotaBytes: 1}
		err = b.db.Update(context.Background(), func(tx *storage.Tx) error { return b.m.foldGrant(tx, &e, g) })
		require.Equal(t, i >= maxGrants, errors.Is(err, errIgnored), "%d: %v", i, err)
	}
	require.Len(t, b.grants(), maxGrants)
}
