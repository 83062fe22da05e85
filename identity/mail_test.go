package identity_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"hima/identity"
	"hima/internal/wire/pb"
)

func TestSealMail(t *testing.T) {
	key, to, hint := identity.GeneratePrekey(), device(2), identity.NewHint()
	sizes := map[int]bool{}
	for _, n := range []int{0, 1, 508, 509, 2044, 2045, 8000, 16380, 40000, 60000, identity.MaxMailPlain} {
		plain := bytes.Repeat([]byte{0xa5}, n)
		item, err := identity.SealMail(key.Public(), to, hint, plain)
		require.NoError(t, err)
		require.LessOrEqual(t, len(item), identity.MaxMailItem)
		sizes[len(item)] = true
		got, err := identity.MailHint(item)
		require.NoError(t, err)
		require.Equal(t, hint, got)
		open, err := identity.OpenMail(item, to, key)
		require.NoError(t, err)
		require.True(t, bytes.Equal(plain, open))
		require.False(t, bytes.Contains(item, bytes.Repeat([]byte{0xa5}, 16)))
		require.False(t, bytes.Contains(item, to[:]), "the item names its recipient")
		_, err = identity.OpenMail(item, device(3), key)
		require.ErrorIs(t, err, identity.ErrNotSealedForKey)
		_, err = identity.OpenMail(item, to, identity.GeneratePrekey())
		require.ErrorIs(t, err, identity.ErrNotSealedForKey)
	}
	require.Len(t, sizes, 7, "an item tells one of few sizes")
	_, err := identity.SealMail(key.Public(), to, hint, make([]byte, identity.MaxMailPlain+1))
	require.ErrorIs(t, err, identity.ErrMalformed)
	_, err = identity.SealMail(identity.Prekey{}, to, hint, nil)
	require.ErrorIs(t, err, identity.ErrMalformed)
	_, err = identity.OpenMail(nil, to, identity.PrekeySecret{})
	require.ErrorIs(t, err, identity.ErrMalformed)
}

// TestSealedItemIsWhole: no byte of an item can be changed, and no two items are alike. A mailbox can neither make a
// second item of one that it keeps nor tell that two hold the same.
func TestSealedItemIsWhole(t *testing.T) {
	key, to := identity.GeneratePrekey(), device(2)
	item, err := identity.SealMail(key.Public(), to, identity.Hint{1}, []byte("hello"))
	require.NoError(t, err)
	for i := range item {
		bad := bytes.Clone(item)
		bad[i] ^= 1
		_, err := identity.OpenMail(bad, to, key)
		require.Error(t, err, "byte %d", i)
	}
	for _, n := range []int{0, 1, 16, 17, 1000, len(item) - 1} {
		_, err := identity.OpenMail(item[:n], to, key)
		require.ErrorIs(t, err, identity.ErrMalformed)
		_, err = identity.MailHint(item[:n])
		require.ErrorIs(t, err, identity.ErrMalformed)
	}
	_, err = identity.OpenMail(append(bytes.Clone(item), 0), to, key)
	require.ErrorIs(t, err, identity.ErrMalformed)
	again, err := identity.SealMail(key.Public(), to, identity.Hint{1}, []byte("hello"))
	require.NoError(t, err)
	require.NotEqual(t, identity.ItemHash(item), identity.ItemHash(again))
}

// TestErasedPrekeyClosesItems plays R24: items were captured, the key is replaced, erased when the rule allows it, and the
// device's whole state is stolen afterwards. Nothing that is left opens them.
func TestErasedPrekeyClosesItems(t *testing.T) {
	const expiry = 30 * 24 * time.Hour
	to := device(2)
	keys := []identity.PrekeySecret{identity.GeneratePrekey()}
	oneTime := map[identity.Hint]identity.PrekeySecret{{9}: identity.GeneratePrekey()}
	captured := make([][]byte, 2)
	var err error
	captured[0], err = identity.SealMail(keys[0].Public(), to, identity.NewHint(), []byte("to the rotating key"))
	require.NoError(t, err)
	captured[1], err = identity.SealMail(oneTime[identity.Hint{9}].Public(), to, identity.Hint{9}, []byte("to a one-time key"))
	require.NoError(t, err)

	keys = append(keys, identity.GeneratePrekey()) // rotation
	replaced := day
	emptied := []time.Time{day.Add(time.Hour), day.Add(2 * time.Hour)}
	for name, no := range map[string]bool{
		"never replaced":       identity.MayErasePrekey(time.Time{}, day.AddDate(1, 0, 0), expiry, emptied),
		"an item may lie yet":  identity.MayErasePrekey(replaced, replaced.Add(expiry), expiry, emptied),
		"not seven days more":  identity.MayErasePrekey(replaced, replaced.Add(expiry+identity.PrekeySlack), expiry, emptied),
		"a mailbox not asked":  identity.MayErasePrekey(replaced, day.AddDate(1, 0, 0), expiry, append(emptied, time.Time{})),
		"emptied before, only": identity.MayErasePrekey(replaced, day.AddDate(1, 0, 0), expiry, append(emptied, day)),
	} {
		require.False(t, no, name)
	}
	now := replaced.Add(expiry + identity.PrekeySlack + time.Millisecond)
	require.True(t, identity.MayErasePrekey(replaced, now, expiry, emptied))
	require.True(t, identity.MayErasePrekey(replaced, now, expiry, nil), "no mailbox was ever named")

	opens := func() (n int) {
		for _, item := range captured {
			hint, err := identity.MailHint(item)
			require.NoError(t, err)
			tries := slices.Clone(keys)
			if k, ok := oneTime[hint]; ok {
				tries = append(tries, k)
			}
			for _, k := range tries {
				if _, err := identity.OpenMail(item, to, k); err == nil {
					n++
				}
			}
		}
		return n
	}
	require.Equal(t, 2, opens(), "before the erasure the test's own thief would have read them")
	delete(oneTime, identity.Hint{9}) // with the item's content, in one transaction
	require.Equal(t, 1, opens())
	keys = keys[1:]
	require.Zero(t, opens())
}

func aMail() identity.Mail {
	return identity.Mail{
		Certificate: cert(1, 2), Recipient: device(3), Time: day,
		Runs:     []*pb.Run{{Signature: bytes.Repeat([]byte{1}, 64), Entries: []*pb.Entry{{Header: []byte("h"), Body: []byte("b")}}}},
		Receipts: [][]byte{[]byte("receipt")},
		Offer: &identity.MailOffer{
			Seq: 4, Prekey: prekeyOf(60).Public(),
			Inboxes: []identity.MailInbox{{Mailbox: identity.MailboxRef{Device: device(20), Addrs: []string{"/ip4/203.0.113.5/tcp/4500"}}, Inbox: seed(8)}},
		},
		Work: []byte("12345678"),
	}
}

// mailOfKeys hands two keys of a group over and says nothing else.
func mailOfKeys() identity.Mail {
	word := func(n byte) []byte { b := seed(n); return b[:] }
	return identity.Mail{
		Certificate: cert(1, 2), Recipient: device(3), Time: day,
		Keys: []*pb.GroupKeys{{Group: word(30), Keys: []*pb.GroupKey{{Epoch: word(31), Key: word(32)}, {Epoch: word(33), Key: word(34)}}}},
	}
}

func TestMailHandsKeysOver(t *testing.T) {
	m := mailOfKeys()
	raw, err := identity.NewMail(deviceKey(2), m)
	require.NoError(t, err)
	got, err := identity.ParseMail(raw, device(3))
	require.NoError(t, err)
	require.Len(t, got.Keys, 1)
	require.True(t, proto.Equal(m.Keys[0], got.Keys[0]))
	printed, err := json.Marshal(got)
	require.NoError(t, err)
	for _, text := range []string{fmt.Sprintf("%v %+v %#v %s %x", got, got, got.Keys, got.Keys, got.Keys), string(printed)} {
		require.NotContains(t, text, "20202020", "a key in what is printed")
		require.NotContains(t, text, "ICAgIC", "a key in what is printed")
		require.NotContains(t, text, "32 32 32")
	}
	for name, spoil := range map[string]func(m *identity.Mail){
		"too many groups":   func(m *identity.Mail) { m.Keys = slices.Repeat(m.Keys, identity.MaxMailGroups+1) },
		"too many keys":     func(m *identity.Mail) { m.Keys[0].Keys = slices.Repeat(m.Keys[0].Keys, identity.MaxGroupKeys/2+1) },
		"no keys":           func(m *identity.Mail) { m.Keys[0].Keys = nil },
		"a group cut":       func(m *identity.Mail) { m.Keys[0].Group = m.Keys[0].Group[1:] },
		"an epoch too long": func(m *identity.Mail) { m.Keys[0].Keys[1].Epoch = make([]byte, 33) },
		"no key at all":     func(m *identity.Mail) { m.Keys[0].Keys[1].Key = nil },
	} {
		t.Run(name, func(t *testing.T) {
			m := mailOfKeys()
			spoil(&m)
			_, err := identity.NewMail(deviceKey(2), m)
			require.ErrorIs(t, err, identity.ErrMalformed)
		})
	}
}

func TestMail(t *testing.T) {
	m := aMail()
	m.AccountRecord = fullRecord(t)
	raw, err := identity.NewMail(deviceKey(2), m)
	require.NoError(t, err)
	got, err := identity.ParseMail(raw, device(3))
	require.NoError(t, err)
	require.Len(t, got.Runs, 1)
	require.Equal(t, "b", string(got.Runs[0].Entries[0].Body))
	got.Runs, m.Runs = nil, nil
	require.Equal(t, m, got)
	_, err = identity.ParseMail(raw, device(4))
	require.ErrorIs(t, err, identity.ErrMalformed, "sealed anew for somebody else")
	rapid.Check(t, func(t *rapid.T) {
		bad := bytes.Clone(raw)
		bad[rapid.IntRange(0, len(raw)-1).Draw(t, "at")] ^= rapid.ByteRange(1, 255).Draw(t, "xor")
		_, err := identity.ParseMail(bad, device(3))
		require.Error(t, err)
	})
}

func TestMailRefuses(t *testing.T) {
	other, err := identity.NewAccountRecord(key(3), identity.RecordConfig{Now: day, Devices: []identity.Certificate{cert(3, 4)}})
	require.NoError(t, err)
	for name, change := range map[string]func(*identity.Mail){
		"no certificate":   func(m *identity.Mail) { m.Certificate = identity.Certificate{} },
		"another's":        func(m *identity.Mail) { m.Certificate = cert(1, 5) },
		"no recipient":     func(m *identity.Mail) { m.Recipient = identity.DeviceID{} },
		"another's record": func(m *identity.Mail) { m.AccountRecord = other },
		"too many runs":    func(m *identity.Mail) { m.Runs = slices.Repeat(m.Runs, identity.MaxMailRuns+1) },
		"too many receipts": func(m *identity.Mail) {
			m.Receipts = slices.Repeat(m.Receipts, identity.MaxMailReceipts+1)
		},
		"long receipt": func(m *identity.Mail) { m.Receipts = [][]byte{make([]byte, identity.MaxMailReceipt+1)} },
		"long token":   func(m *identity.Mail) { m.Token = make([]byte, 17) },
		"long work":    func(m *identity.Mail) { m.Work = make([]byte, 9) },
		"too large":    func(m *identity.Mail) { m.Runs[0].Entries[0].Body = make([]byte, identity.MaxMailPlain) },
		"one-time keys": func(m *identity.Mail) {
			m.Offer.OneTime = []identity.OneTimePrekey{{ID: identity.NewHint(), Key: prekeyOf(61).Public()}}
		},
	} {
		m := aMail()
		change(&m)
		_, err := identity.NewMail(deviceKey(2), m)
		require.ErrorIs(t, err, identity.ErrMalformed, name)
	}
	m := &pb.Mail{Certificate: cert(1, 2).Raw(), Recipient: device(3).Bytes(), TimeMs: 1}
	_, err = identity.ParseMail(signDevice(2, identity.DomainMail, m), device(3))
	require.NoError(t, err)
	_, err = identity.ParseMail(signDevice(5, identity.DomainMail, m), device(3))
	require.ErrorIs(t, err, identity.ErrBadSignature)
	_, err = identity.ParseMail(signDevice(2, identity.DomainReceipt, m), device(3))
	require.ErrorIs(t, err, identity.ErrBadSignature)
}

func TestMailOffer(t *testing.T) {
	o := identity.MailOffer{Seq: identity.MaxSeq, Prekey: prekeyOf(60).Public()}
	for i := range byte(identity.MaxMailboxes) {
		o.Inboxes = append(o.Inboxes, identity.MailInbox{Mailbox: identity.MailboxRef{Device: device(20 + i)}, Inbox: seed(i)})
	}
	for i := range byte(identity.MaxOneTime) {
		o.OneTime = append(o.OneTime, identity.OneTimePrekey{ID: identity.Hint{i}, Key: prekeyOf(70 + i).Public()})
	}
	got, err := identity.MailOfferFromPB(o.PB())
	require.NoError(t, err)
	require.Equal(t, o, got)
	for name, change := range map[string]func(*pb.MailOffer){
		"number":         func(m *pb.MailOffer) { m.Seq = 1 << 63 },
		"five inboxes":   func(m *pb.MailOffer) { m.Inboxes = append(m.Inboxes, m.Inboxes[0]) },
		"mailbox twice":  func(m *pb.MailOffer) { m.Inboxes[1] = m.Inboxes[0] },
		"nil inbox":      func(m *pb.MailOffer) { m.Inboxes[0] = nil },
		"short inbox":    func(m *pb.MailOffer) { m.Inboxes[0].Inbox = make([]byte, 31) },
		"cut key":        func(m *pb.MailOffer) { m.Prekey = m.Prekey[1:] },
		"no point":       func(m *pb.MailOffer) { m.Prekey = bytes.Repeat([]byte{0xff}, identity.PrekeySize) },
		"17 one-time":    func(m *pb.MailOffer) { m.OneTime = append(m.OneTime, m.OneTime[0]) },
		"one-time twice": func(m *pb.MailOffer) { m.OneTime[1] = m.OneTime[0] },
		"nil one-time":   func(m *pb.MailOffer) { m.OneTime[0] = nil },
		"short ID":       func(m *pb.MailOffer) { m.OneTime[0].Id = make([]byte, 15) },
	} {
		m := o.PB()
		change(m)
		_, err := identity.MailOfferFromPB(m)
		require.ErrorIs(t, err, identity.ErrMalformed, name)
	}
	got, err = identity.MailOfferFromPB(nil)
	require.NoError(t, err)
	require.Equal(t, identity.MailOffer{}, got, "nothing is offered")
}

func TestInboxAndCustody(t *testing.T) {
	s := identity.NewInboxSecret()
	back, err := identity.InboxSecretFromBytes(s.Bytes())
	require.NoError(t, err)
	require.Equal(t, s.ID(), back.ID())
	require.NotEqual(t, s.ID(), identity.NewInboxSecret().ID())
	id, err := identity.ParseInboxID(s.ID().String())
	require.NoError(t, err)
	require.Equal(t, s.ID(), id)
	for _, bad := range []string{"", "00", strings.Repeat("g", 64)} {
		_, err := identity.ParseInboxID(bad)
		require.ErrorIs(t, err, identity.ErrMalformed)
	}

	want := identity.Custody{Inbox: s.ID(), Item: seed(5), Size: identity.MaxMailItem, Until: day.AddDate(0, 1, 0), Time: day}
	c, err := identity.NewCustody(deviceKey(20), want)
	require.NoError(t, err)
	got, err := identity.ParseCustody(c.Raw())
	require.NoError(t, err)
	require.Equal(t, c, got)
	require.Equal(t, device(20), got.Mailbox)
	t.Logf("a custody receipt has %d bytes", len(c.Raw()))
	for i := range c.Raw() {
		bad := c.Raw()
		bad[i] ^= 1
		_, err := identity.ParseCustody(bad)
		require.Error(t, err, "byte %d", i)
	}
	want.Size++
	_, err = identity.NewCustody(deviceKey(20), want)
	require.ErrorIs(t, err, identity.ErrMalformed)
	m := &pb.Custody{Mailbox: device(20).Bytes(), Inbox: make([]byte, 32), Item: make([]byte, 31)}
	_, err = identity.ParseCustody(signDevice(20, identity.DomainCustody, m))
	require.ErrorIs(t, err, identity.ErrMalformed)
	m.Item = make([]byte, 32)
	_, err = identity.ParseCustody(signDevice(21, identity.DomainCustody, m))
	require.ErrorIs(t, err, identity.ErrBadSignature, "a receipt in the name of another mailbox")
}

func TestSnapshot(t *testing.T) {
	inbox, k := identity.SnapshotSecrets(key(1))
	inbox2, k2 := identity.SnapshotSecrets(key(1))
	require.Equal(t, inbox.ID(), inbox2.ID())
	other, k3 := identity.SnapshotSecrets(key(2))
	require.NotEqual(t, inbox.ID(), other.ID())
	require.NotEqual(t, fmt.Sprintf("%x", inbox.Bytes()), fmt.Sprintf("%x", k.Bytes()))
	plain := []byte("contacts")
	b, err := identity.SealSnapshot(k, plain)
	require.NoError(t, err)
	got, err := identity.OpenSnapshot(k2, b)
	require.NoError(t, err)
	require.Equal(t, plain, got)
	_, err = identity.OpenSnapshot(k3, b)
	require.ErrorIs(t, err, identity.ErrNotSealedForKey)
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 1
		_, err := identity.OpenSnapshot(k, bad)
		require.Error(t, err, "byte %d", i)
	}
	_, err = identity.OpenSnapshot(k, b[:20])
	require.ErrorIs(t, err, identity.ErrMalformed)
	full, err := identity.SealSnapshot(k, make([]byte, identity.MaxMailPlain))
	require.NoError(t, err)
	require.LessOrEqual(t, len(full), identity.MaxMailItem)
	_, err = identity.SealSnapshot(k, make([]byte, identity.MaxMailPlain+1))
	require.ErrorIs(t, err, identity.ErrMalformed)
	_, err = identity.SealSnapshot(identity.SnapshotKey{}, plain)
	require.ErrorIs(t, err, identity.ErrMalformed)
	_, err = identity.OpenSnapshot(identity.SnapshotKey{}, b)
	require.ErrorIs(t, err, identity.ErrMalformed)
}
