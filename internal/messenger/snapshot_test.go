package messenger

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"hima/identity"
	"hima/internal/wire/pb"
	"hima/storage"
)

func (p *person) export() []byte {
	p.t.Helper()
	b, err := p.m.ExportSnapshot(context.Background())
	require.NoError(p.t, err)
	return b
}

func TestARestoredDeviceKnowsWhatTheSnapshotSays(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	c, d, e := newPerson(t, "carol"), newPerson(t, "dave"), newPerson(t, "erin")
	a.add(c)
	a.add(d, func(in *AddContact) { in.OneWay = true })
	a.add(e)
	_, err := a.m.Block(ctx, e.id())
	require.NoError(t, err)
	_, err = a.m.Remark(ctx, b.id(), "Bobby")
	require.NoError(t, err)
	_, err = a.m.Verify(ctx, b.id(), VerifyConfirm)
	require.NoError(t, err)
	_, err = a.m.Verify(ctx, c.id(), VerifyReject)
	require.NoError(t, err)
	a.set(settingStrangers, strangersDeny)
	nick := "Al"
	_, err = a.m.SetProfile(ctx, ProfileChange{Nickname: &nick})
	require.NoError(t, err)
	inv, err := a.m.CreateInvite(ctx)
	require.NoError(t, err)
	gone, err := a.m.CreateInvite(ctx)
	require.NoError(t, err)
	require.NoError(t, a.m.RevokeInvite(ctx, gone.Link))
	home := onNet(a)

	r := restore(t, a)
	r.networks.world[home.link.ID()] = home
	require.True(t, r.m.AwaitsSnapshot())
	got, err := r.m.ImportSnapshot(ctx, a.export())
	require.NoError(t, err)
	require.Equal(t, 4, got.Contacts)
	require.Equal(t, 2, got.Settings)
	require.Equal(t, 1, got.Invites)
	require.Equal(t, []identity.NetworkLink{home.link}, got.Networks)
	require.False(t, got.Cut)
	require.False(t, r.m.AwaitsSnapshot())
	require.Equal(t, RelationContact, r.relation(b))
	require.Equal(t, RelationAsked, r.relation(c))
	require.Equal(t, RelationOneWay, r.relation(d))
	require.Equal(t, RelationBlocked, r.relation(e))
	v, err := r.m.contact(b.account)
	require.NoError(t, err)
	require.Equal(t, "Bobby", v.Remark)
	require.Equal(t, "bob", v.Username)
	require.Equal(t, VerifiedNo, v.Verified, "R22: a later device does not take over what was compared")
	v, err = r.m.contact(c.account)
	require.NoError(t, err)
	require.Equal(t, VerifiedRejected, v.Verified, "a warning stands")
	require.Equal(t, strangersDeny, r.m.settings.strangers())
	require.True(t, r.m.RequestPolicy(), "the token is alive")
	p, err := r.m.Profile(ctx)
	require.NoError(t, err)
	require.Equal(t, "Al", p.Nickname)
	token, err := r.m.Invites(ctx)
	require.NoError(t, err)
	require.Len(t, token, 1)
	require.Equal(t, inv.Token, token[0].Token)
	// The contact's side knows nothing of all this and goes on.
	serve(t, b, a, r)
	r.send(b, "back")
	meet(t, r, b)
	require.Contains(t, b.said(a), "alice: back")
}

func TestSnapshotsThatAreNotTaken(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	good := a.export()
	other := restore(t, b)
	_, err := other.m.ImportSnapshot(ctx, good)
	require.ErrorIs(t, err, ErrInvalid, "of another account")
	require.True(t, other.m.AwaitsSnapshot())

	r := restore(t, a)
	change := func(f func(*pb.Snapshot)) []byte {
		var s pb.Snapshot
		require.NoError(t, proto.Unmarshal(good, &s))
		f(&s)
		raw, err := proto.Marshal(&s)
		require.NoError(t, err)
		return raw
	}
	for name, raw := range map[string][]byte{
		"newer version": change(func(s *pb.Snapshot) { s.Version = 2 }),
		"no account":    change(func(s *pb.Snapshot) { s.Account = nil }),
		"the future":    change(func(s *pb.Snapshot) { s.TimeMs = r.clock.Add(48 * time.Hour).UnixMilli() }),
		"not protobuf":  []byte(strings.Repeat("\xff", 40)),
		"too large":     make([]byte, identity.MaxMailPlain+1),
	} {
		_, err := r.m.ImportSnapshot(ctx, raw)
		require.ErrorIs(t, err, ErrInvalid, name)
	}
	require.Equal(t, RelationNone, r.relation(b))

	// Nonsense inside is left out, the rest is taken.
	got, err := r.m.ImportSnapshot(ctx, change(func(s *pb.Snapshot) {
		s.Contacts = append(s.Contacts,
			&pb.SnapshotContact{}, &pb.SnapshotContact{State: &pb.ContactState{Account: a.account.Bytes(), State: pb.ContactState_STATE_CONTACT}})
		s.Contacts[0].State.Remark = "self"
		s.Contacts[0].Username = "bob\u202e"
		s.Settings = append(s.Settings, &pb.Setting{Key: profileUsername, Value: "mallory"}, &pb.Setting{Key: "x", Value: "y"}, &pb.Setting{})
		s.Invites = append(s.Invites, &pb.InviteState{Token: []byte("short")}, &pb.InviteState{Token: make([]byte, 16)})
		s.Networks = append(s.Networks, "hima-net:nonsense", newNetwork("unknown").link.String())
	}))
	require.NoError(t, err)
	require.Equal(t, Imported{Contacts: 1}, got)
	c, err := r.m.contact(b.account)
	require.NoError(t, err)
	require.Empty(t, c.Remark)
	require.Empty(t, c.Username)
	p, err := r.m.Profile(ctx)
	require.NoError(t, err)
	require.Equal(t, "alice", p.Username)
}

// A mailbox that hands out an old snapshot changes nothing that was decided since.
func TestAStaleSnapshot(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	c := newPerson(t, "carol")
	old := a.export()
	a.clock = a.clock.Add(time.Hour)
	a.add(c)
	a.set(settingStrangers, strangersDeny)
	newer := a.export()

	r := restore(t, a)
	r.clock = a.clock
	_, err := r.m.ImportSnapshot(ctx, newer)
	require.NoError(t, err)
	_, err = r.m.ImportSnapshot(ctx, old)
	require.ErrorIs(t, err, ErrConflict)
	r.open(r.db)
	_, err = r.m.ImportSnapshot(ctx, old)
	require.ErrorIs(t, err, ErrConflict, "also after a restart")

	// Of several mailboxes the one that is behind has nothing to say.
	r = restore(t, a)
	r.clock = a.clock
	_, err = r.m.ImportSnapshot(ctx, old, []byte("nonsense"), newer)
	require.NoError(t, err)
	require.Equal(t, RelationAsked, r.relation(c))
	require.Equal(t, strangersDeny, r.m.settings.strangers())

	r = restore(t, a)
	r.add(b)
	_, err = r.m.Block(ctx, b.id())
	require.NoError(t, err)
	r.set(settingStrangers, strangersRequest)
	r.clock = a.clock
	got, err := r.m.ImportSnapshot(ctx, newer)
	require.NoError(t, err)
	require.Equal(t, 1, got.Contacts)
	require.Equal(t, RelationBlocked, r.relation(b), "the owner's later word stands")
	require.Equal(t, strangersRequest, r.m.settings.strangers())
}

func TestSnapshotIsLeftWhenSomethingChanged(t *testing.T) {
	ctx := context.Background()
	a, b := friends(t)
	require.NoError(t, a.m.keepSnapshot(ctx))
	require.Len(t, a.mail.snapshots, 1)
	a.send(b, "a message is no change")
	meet(t, a, b)
	a.clock = a.clock.Add(time.Hour)
	require.NoError(t, a.m.keepSnapshot(ctx))
	a.open(a.db)
	require.NoError(t, a.m.keepSnapshot(ctx))
	require.Len(t, a.mail.snapshots, 1)

	a.mail.err = errors.New("no mailbox answers")
	_, err := a.m.Remark(ctx, b.id(), "Bobby")
	require.NoError(t, err)
	require.Error(t, a.m.keepSnapshot(ctx))
	a.mail.err = nil
	require.NoError(t, a.m.keepSnapshot(ctx))
	require.Len(t, a.mail.snapshots, 2)
	a.mail.err = ErrNoSeed
	a.set(settingPresence, off)
	require.NoError(t, a.m.keepSnapshot(ctx), "a device without seed has nothing to leave")

	// A device just restored must not put its emptiness in the place of what it waits for.
	r := restore(t, a)
	require.NoError(t, r.m.keepSnapshot(ctx))
	require.Empty(t, r.mail.snapshots)
	_, err = r.m.ImportSnapshot(ctx)
	require.NoError(t, err)
	require.NoError(t, r.m.keepSnapshot(ctx))
	require.Len(t, r.mail.snapshots, 1)
}

func TestSnapshotFitsIntoAnItem(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var people []rankedContact
		var blocked int
		for i := range rapid.IntRange(0, 1500).Draw(t, "people") {
			var a identity.AccountID
			a[0], a[1], a[2] = byte(i), byte(i>>8), 1
			c := &pb.ContactState{Account: a[:], State: pb.ContactState_STATE_CONTACT, Remark: strings.Repeat("r", i%60), AddedMs: 1_700_000_000_000}
			r := rankedContact{&pb.SnapshotContact{State: c, Username: "somebody"}, a, int64(i)}
			if i%40 == 0 {
				c.Blocked, r.activity = true, 1<<62-1
				blocked++
			}
			people = append(people, r)
		}
		n := len(people)
		s := &pb.Snapshot{Version: 1, Account: make([]byte, 32), TimeMs: 1_700_000_000_000}
		cut := fill(s, people)
		if size := proto.Size(s); size > maxSnapshot {
			t.Fatalf("%d bytes", size)
		}
		if cut != (len(s.GetContacts()) < n) || !cut && len(s.GetContacts()) != n {
			t.Fatalf("%d of %d, cut %t", len(s.GetContacts()), n, cut)
		}
		for _, c := range s.GetContacts() {
			if c.GetState().GetBlocked() {
				blocked--
			}
		}
		if blocked != 0 {
			t.Fatalf("%d blocked people are left out", blocked)
		}
	})
}

// Whatever bytes lie at a mailbox under the account's key: no panic, and nothing half taken.
func FuzzImportSnapshot(f *testing.F) {
	a := newPerson(f, "alice")
	b := newPerson(f, "bob")
	a.add(b)
	f.Add(a.export())
	r := newDevice(f, "alice", "alice restored")
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, err := r.m.ImportSnapshot(context.Background(), raw)
		if _, ok := errors.AsType[*Error](err); err != nil && !ok {
			t.Fatal(err)
		}
		_ = r.db.View(func(tx *storage.Tx) error {
			return r.m.contacts.each(tx, func(identity.AccountID, contactRow) error { return nil })
		})
	})
}
