package messenger

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// bring carries a feed that from holds to to, whoever wrote it; key is its author's. It returns the answer of the gate.
func bring(t testing.TB, from, to *person, id feed.FeedID, key identity.DeviceKey) (code pb.Code) {
	t.Helper()
	var entries []feed.Entry
	var prev feed.Tip
	require.NoError(t, to.db.View(func(tx *storage.Tx) error { prev, _ = to.feeds.tip(tx, id); return nil }))
	require.NoError(t, from.db.View(func(tx *storage.Tx) error {
		return from.feeds.Entries(tx, id, prev.Seq+1, 0, func(e feed.Entry) (bool, error) {
			entries = append(entries, e)
			return true, nil
		})
	}))
	if len(entries) == 0 {
		return codeTaken
	}
	run, err := feed.Assemble(entries, feed.SignRun(key, entries[len(entries)-1]))
	require.NoError(t, err)
	run, err = feed.CheckRun(prev, run.PB())
	require.NoError(t, err)
	require.NoError(t, to.db.Update(context.Background(), func(tx *storage.Tx) error {
		take, c, err := to.m.Admit(tx, replica.Incoming{Peer: from.peer(), Run: run})
		if code = c; err != nil || take < len(entries) {
			return err
		}
		for _, e := range run.Entries() {
			if err := to.feeds.store(tx, e, true); err != nil {
				return err
			}
		}
		return to.m.Applied(tx, replica.Applied{Peer: from.peer(), Entries: run.Entries()})
	}))
	return code
}

// restore makes a new device of somebody who lost theirs.
func restore(t testing.TB, old *person) *person {
	t.Helper()
	p := newDevice(t, old.name, old.name+" restored")
	require.NoError(t, p.m.Restored(context.Background()))
	return p
}

// serve brings everything of the direct conversation that a contact holds to a restored device.
func serve(t testing.TB, contact, old, restored *person) {
	t.Helper()
	conv := feed.DirectConversation(old.account, contact.account)
	for range 3 {
		for _, n := range []feed.Number{feed.Control, feed.Chat} {
			bring(t, contact, restored, contact.feeds.OwnFeed(conv, n), contact.key)
			bring(t, contact, restored, old.feeds.OwnFeed(conv, n), old.key)
		}
	}
}

func shares(t testing.TB, p, o *person) bool {
	t.Helper()
	var shared []feed.ConversationID
	require.NoError(t, p.db.View(func(tx *storage.Tx) (err error) {
		shared, err = p.m.Shared(tx, o.account)
		return err
	}))
	return len(shared) > 0
}

func TestContactsAreRebuiltFromWhatOldDevicesSigned(t *testing.T) {
	for name, asker := range map[string]bool{"they had asked": false, "we had asked": true} {
		t.Run(name, func(t *testing.T) {
			ctx := context.Background()
			a, b := newPerson(t, "alice"), newPerson(t, "bob")
			from, to := b, a
			if asker {
				from, to = a, b
			}
			from.add(to)
			meet(t, a, b)
			_, err := to.m.Accept(ctx, from.id())
			require.NoError(t, err)
			meet(t, a, b)
			a.send(b, "hello")
			b.send(a, "good day")
			meet(t, a, b)
			want := a.said(b)

			plain := newDevice(t, "alice", "alice linked")
			require.False(t, shares(t, plain, b), "a device that was not restored waits for a knock")
			r := restore(t, a)
			require.True(t, shares(t, r, b))
			serve(t, b, a, r)
			require.Equal(t, RelationContact, r.relation(b))
			require.ElementsMatch(t, want, r.said(b))
			require.Equal(t, []State{StateDelivered}, r.states(b), "who brought it holds it")
			counts, err := r.m.Counts(ctx)
			require.NoError(t, err)
			require.Zero(t, counts.Pending)
			c, err := r.m.contact(b.account)
			require.NoError(t, err)
			require.Equal(t, "bob", c.Username, "the card came with it")
			require.Equal(t, VerifiedNo, c.Verified)
			r.send(b, "it is me again")
			meet(t, r, b)
			require.Contains(t, b.said(a), "alice: it is me again")
		})
	}
}

// Somebody who was never a contact, or whom an own device declined, is made none by being there after a restoration.
func TestStrangersAreNotRebuilt(t *testing.T) {
	ctx := context.Background()
	a, b, c := newPerson(t, "alice"), newPerson(t, "bob"), newPerson(t, "carol")
	b.add(a)
	meet(t, a, b)
	_, err := a.m.Decline(ctx, b.id())
	require.NoError(t, err)
	meet(t, a, b)
	c.add(a)
	meet(t, a, c)
	r := restore(t, a)
	serve(t, b, a, r)
	require.Equal(t, RelationDeclined, r.relation(b))
	serve(t, c, a, r)
	require.Equal(t, RelationRequest, r.relation(c), "they asked, and nobody answered")
	// What own devices wrote to somebody else is not theirs to bring.
	x, y := friends(t)
	mallory := newPerson(t, "mallory")
	conv := feed.DirectConversation(x.account, y.account)
	rx := restore(t, x)
	require.NoError(t, mallory.db.Update(ctx, func(tx *storage.Tx) error {
		return y.db.View(func(ytx *storage.Tx) error {
			return y.feeds.Entries(ytx, x.feeds.OwnFeed(conv, feed.Control), 1, 0, func(e feed.Entry) (bool, error) {
				return true, mallory.feeds.store(tx, e, true)
			})
		})
	}))
	require.Equal(t, pb.Code_CODE_NOT_MEMBER, bring(t, mallory, rx, x.feeds.OwnFeed(conv, feed.Control), x.key))
	require.Equal(t, RelationNone, rx.relation(y))
}

// What the self conversation or the snapshot says wins over what was rebuilt, whatever comes first: a contact who was
// removed or blocked can bring the same old entries.
func TestADecisionWinsOverWhatWasRebuilt(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	_, err := a.m.Block(ctx, b.id())
	require.NoError(t, err)
	snapshot, err := a.m.ExportSnapshot(ctx)
	require.NoError(t, err)

	first := restore(t, a)
	serve(t, b, a, first)
	require.Equal(t, RelationContact, first.relation(b), "without a snapshot nobody can know")
	_, err = first.m.ImportSnapshot(ctx, snapshot)
	require.NoError(t, err)
	require.Equal(t, RelationBlocked, first.relation(b))

	second := restore(t, a)
	_, err = second.m.ImportSnapshot(ctx, snapshot)
	require.NoError(t, err)
	serve(t, b, a, second)
	require.Equal(t, RelationBlocked, second.relation(b))
	require.False(t, shares(t, second, b))
}
