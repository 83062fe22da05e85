package messenger

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hima/identity"
	"hima/internal/delivery"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// mail carries what to lacks as an item of a mailbox does, without the two ever meeting. It returns the answer of the
// other side's gate, which the sender never sees.
func (s *side) mail(to *side) pb.Code {
	s.t.Helper()
	ctx := context.Background()
	var code pb.Code
	for more := true; more; {
		out, err := s.rep.Export(ctx, to.p.device, replica.ExportOptions{})
		require.NoError(s.t, err)
		if out.Empty() {
			return code
		}
		more = out.More
		// The mailbox signs for it before its owner comes.
		require.NoError(s.t, s.db.Update(ctx, func(tx *storage.Tx) error {
			for _, span := range out.Spans {
				if err := s.m.InCustody(tx, delivery.Held{Peer: to.p.peer(), Feed: span.Feed, From: span.From, Last: span.Last, Holder: box("one")}); err != nil {
					return err
				}
			}
			return s.rep.Posted(tx, out, time.Now().Add(time.Hour))
		}))
		record, _ := s.book.Record(s.p.account)
		for range 2 { // an item may come twice
			in, err := to.rep.Import(ctx, replica.Mailed{
				Peer: s.p.peer(), Record: record, Runs: out.Runs, Receipts: out.Receipts, Token: out.Token, Work: out.Work,
			}, nil)
			require.NoError(s.t, err)
			if code == 0 {
				code = in.Refused
			}
		}
	}
	return code
}

func apart(t *testing.T) (a, b *side) {
	t.Helper()
	bk := &book{records: make(map[identity.AccountID]identity.AccountRecord), devices: make(map[identity.AccountID][]identity.DeviceID)}
	return newSide(t, "alice", bk, ""), newSide(t, "bob", bk, "")
}

func (s *side) ask(o *side, who string) {
	s.t.Helper()
	_, _, err := s.m.AddContact(context.Background(), AddContact{Who: who, Message: "hi"})
	require.NoError(s.t, err)
}

// link is an invite, which spares the asking side its proof of work.
func (s *side) link() string {
	s.t.Helper()
	inv, err := s.m.CreateInvite(context.Background())
	require.NoError(s.t, err)
	return inv.Link
}

func TestRequestAndAnswerByMail(t *testing.T) {
	ctx := context.Background()
	a, b := apart(t)
	a.ask(b, b.p.id())
	require.Zero(t, a.mail(b))
	require.Equal(t, RelationRequest, b.relation(a), "a request by mail is a knock")
	out, err := a.m.Requests(ctx)
	require.NoError(t, err)
	require.Equal(t, RequestWaiting, out[0].State)
	require.Equal(t, StateSent, a.lines(b)[0].State)
	_, err = b.m.Accept(ctx, a.p.id())
	require.NoError(t, err)
	b.send(a, "welcome")
	require.Zero(t, b.mail(a))
	require.Equal(t, RelationContact, a.relation(b))
	require.Equal(t, []string{"welcome"}, a.texts(b))
	eventually(t, "the receipt is made and goes by mail", func() bool {
		b.mail(a)
		return a.lines(b)[0].State == StateDelivered
	})
	a.send(b, "thanks")
	require.Zero(t, a.mail(b))
	require.Equal(t, []State{StateSent}, a.states(b))
	eventually(t, "the next receipt goes by mail", func() bool {
		b.mail(a)
		return a.states(b)[0] == StateDelivered
	})
	eventually(t, "both ways", func() bool {
		a.mail(b)
		return b.states(a)[0] == StateDelivered
	})
}

func TestCrossingRequestsByMailAreAnAcceptance(t *testing.T) {
	a, b := apart(t)
	a.ask(b, b.link())
	b.ask(a, a.link())
	require.Zero(t, a.mail(b))
	require.Equal(t, RelationContact, b.relation(a))
	require.Zero(t, b.mail(a))
	require.Equal(t, RelationContact, a.relation(b))
	a.send(b, "so we are")
	require.Zero(t, a.mail(b))
	require.Equal(t, []string{"so we are"}, b.texts(a))
}

func TestDeclineByMail(t *testing.T) {
	ctx := context.Background()
	a, b := apart(t)
	a.ask(b, b.link())
	a.mail(b)
	_, err := b.m.Decline(ctx, a.p.id())
	require.NoError(t, err)
	require.Zero(t, b.mail(a))
	require.Equal(t, RelationDeclined, a.relation(b))
	// R16: whoever was declined may ask again.
	a.ask(b, b.p.id())
	require.Zero(t, a.mail(b))
	require.Equal(t, RelationRequest, b.relation(a))
}

// R16 by mail: under deny strangers get nothing in, a token passes, and to somebody blocked it is as under deny.
func TestPolicyByMail(t *testing.T) {
	ctx := context.Background()
	a, b := apart(t)
	_, err := b.m.SetSetting(ctx, settingStrangers, strangersDeny)
	require.NoError(t, err)
	a.ask(b, b.p.id())
	require.Equal(t, pb.Code_CODE_DENIED, a.mail(b))
	require.Equal(t, RelationNone, b.relation(a))
	_, err = a.m.Remove(ctx, b.p.id())
	require.NoError(t, err)
	inv, err := b.m.CreateInvite(ctx)
	require.NoError(t, err)
	require.True(t, b.m.RequestPolicy())
	a.ask(b, inv.Link)
	require.Zero(t, a.mail(b))
	require.Equal(t, RelationRequest, b.relation(a))
	_, err = b.m.Block(ctx, a.p.id())
	require.NoError(t, err)
	_, _, err = a.m.AddContact(ctx, AddContact{Who: b.p.id(), OneWay: true, Message: "let me in"})
	require.NoError(t, err)
	require.NotZero(t, a.mail(b))
	_, err = b.m.Unblock(ctx, a.p.id())
	require.NoError(t, err)
	require.Empty(t, b.texts(a))
}

// A request that was withdrawn before anybody was offered it does not go out with the next one (R1).
func TestWithdrawnRequestIsNotMailed(t *testing.T) {
	ctx := context.Background()
	a, b := apart(t)
	_, _, err := a.m.AddContact(ctx, AddContact{Who: b.p.id(), Message: "I take this back"})
	require.NoError(t, err)
	_, err = a.m.Remove(ctx, b.p.id())
	require.NoError(t, err)
	require.Equal(t, MessageCancelled, a.lines(b)[0].Kind)
	a.ask(b, b.link())
	require.Zero(t, a.mail(b))
	require.Len(t, b.lines(a), 1)
	require.Equal(t, "hi", b.lines(a)[0].Text)
	require.Equal(t, RelationRequest, b.relation(a))
}
