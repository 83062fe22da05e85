package identity_test

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/wire/pb"
)

// netVectors is one of docs/spec/vectors/{network,records,names,prekeys,groups}.json. Everything in it follows from the seeds,
// except what was sealed at random once and has to go on opening.
type netVectors struct {
	Comment   string          `json:"comment"`
	Keys      []keyVector     `json:"keys"`
	Good      []bytesVector   `json:"good"`
	Texts     []textVector    `json:"texts,omitempty"`
	Hashes    []hashVector    `json:"hashes,omitempty"`
	Rejected  []bytesVector   `json:"rejected,omitempty"`
	Validates []verdictVector `json:"validates,omitempty"`
	Selects   []selectVector  `json:"selects,omitempty"`
	Work      []workVector    `json:"work,omitempty"`
	Sealed    []sealedVector  `json:"sealed,omitempty"`
}

type bytesVector struct {
	Kind  string `json:"kind"`
	What  string `json:"what"`
	Bytes string `json:"bytes"`
}

type textVector struct {
	Kind    string `json:"kind"`
	Text    string `json:"text"`
	Content string `json:"content"`
}

type hashVector struct {
	Kind  string `json:"kind"`
	Of    string `json:"of"`
	Value string `json:"value"`
}

type verdictVector struct {
	What    string `json:"what"`
	Key     string `json:"key"`
	Value   string `json:"value"`
	NowMS   int64  `json:"now_ms"`
	Verdict string `json:"verdict"` // ok, malformed, expired, future
}

type selectVector struct {
	Key    string   `json:"key"`
	Values []string `json:"values"`
	Winner int      `json:"winner"`
}

type workVector struct {
	Kind  string `json:"kind"`
	Of    string `json:"of"`
	Inbox string `json:"inbox,omitempty"`
	Bits  int    `json:"bits"`
	Work  string `json:"work"`
}

type sealedVector struct {
	Kind      string `json:"kind"` // mail or snapshot
	Secret    string `json:"secret"`
	Recipient string `json:"recipient,omitempty"`
	Hint      string `json:"hint,omitempty"`
	Plain     string `json:"plain"`
	Sealed    string `json:"sealed"`
}

// vectorParsers are the decoders by the kind that the files name.
func vectorParsers() map[string]func([]byte) error {
	return map[string]func([]byte) error{
		"network_card":   func(b []byte) error { _, err := identity.ParseNetworkCard(b); return err },
		"account_record": func(b []byte) error { _, err := identity.ParseAccountRecord(b); return err },
		"device_record":  func(b []byte) error { _, err := identity.ParseDeviceRecord(b); return err },
		"name_claim":     func(b []byte) error { _, err := identity.ParseNameClaim(b); return err },
		"name_stamp":     func(b []byte) error { _, err := identity.ParseNameStamp(b); return err },
		"name_record":    func(b []byte) error { _, err := identity.ParseNameRecord(b); return err },
		"prekey":         func(b []byte) error { _, err := identity.ParsePrekey(b); return err },
		"mail":           func(b []byte) error { _, err := identity.ParseMail(b, device(3)); return err },
		"custody":        func(b []byte) error { _, err := identity.ParseCustody(b); return err },
		"item":           func(b []byte) error { _, err := identity.MailHint(b); return err },
		"consent":        func(b []byte) error { _, err := identity.ParseConsent(b); return err },
		"transfer_proof": func(b []byte) error { _, err := identity.ParseTransferProof(b); return err },
		"group_card":     func(b []byte) error { _, err := identity.ParseGroupCard(b); return err },
		"mail_offer": func(b []byte) error {
			var m pb.MailOffer
			if err := proto.Unmarshal(b, &m); err != nil {
				return err
			}
			_, err := identity.MailOfferFromPB(&m)
			return err
		},
	}
}

func vectorKeys(seeds ...byte) (out []keyVector) {
	for _, b := range seeds {
		s := seed(b)
		id := identity.AccountKeyFromSeed(s).ID()
		out = append(out, keyVector{hx(s[:]), hx(id[:]), id.String(), identity.DeviceID(id).String()})
	}
	return out
}

func flipped(b []byte, at int) string {
	b = bytes.Clone(b)
	b[at] ^= 1
	return hx(b)
}

func networkVectors(t *testing.T) netVectors {
	c := aCard(t)
	l := aLink()
	plain := identity.NetworkLink{Name: "葵的网络", Founder: device(22), Bootstraps: []identity.InviteDevice{{Device: device(22)}}}
	in := anInvite()
	in.Networks = []identity.NetworkLink{l, plain}
	text := func(kind, s string) textVector { return textVector{kind, s, hx(identity.LinkContent(s))} }
	id, id2 := l.ID(), plain.ID()
	return netVectors{
		Comment: "Vectors of docs/spec/network.md. Bytes are hexadecimal. The link content is version and message.",
		Keys:    vectorKeys(1, 2, 20, 21, 22),
		Hashes: []hashVector{
			{"network_id", "home " + device(20).String(), hx(id[:])},
			{"network_id_text", "home " + device(20).String(), id.String()},
			{"network_id", "葵的网络 " + device(22).String(), hx(id2[:])},
		},
		Texts: []textVector{text("network_link", l.String()), text("network_link", plain.String()), text("invite", in.String())},
		Good:  []bytesVector{{"network_card", "of the second node", hx(c.Raw())}},
		Rejected: []bytesVector{
			{"network_card", "signature changed", flipped(c.Raw(), len(c.Raw())-1)},
			{"network_card", "cut", hx(c.Raw()[:len(c.Raw())-1])},
			{"network_card", "signed by another", hx(signDevice(20, identity.DomainNetworkCard, &pb.NetworkCard{Name: "home", Founder: device(20).Bytes(), Device: device(21).Bytes()}))},
		},
	}
}

func recordVectors(t *testing.T) netVectors {
	acct := accountRecord(t, identity.RecordConfig{
		LastSeq: 7, Now: day, Devices: []identity.Certificate{cert(1, 2), cert(1, 3)},
		Names: []identity.RecordName{{Network: aLink().ID(), Name: "alice"}, {Network: seed(9), Name: "小葵2"}},
	})
	dev := deviceRecord(t, 2, deviceConfig(2))
	bare := deviceRecord(t, 2, identity.DeviceRecordConfig{Certificate: cert(1, 2), Now: day})
	v := netVectors{
		Comment: "Vectors of docs/spec/records.md. Bytes are hexadecimal. The account is of seed 01…, the device of seed 02….",
		Keys:    vectorKeys(1, 2, 3, 20, 21),
		Hashes: []hashVector{
			{"dht_key", "account", identity.AccountRecordKey(acct.Account)}, {"dht_key", "device", identity.DeviceRecordKey(dev.Device)},
		},
		Good: []bytesVector{{"account_record", "with names", hx(acct.Raw())}, {"device_record", "whole", hx(dev.Raw())}, {"device_record", "bare", hx(bare.Raw())}},
		Rejected: []bytesVector{
			{"device_record", "signature changed", flipped(dev.Raw(), len(dev.Raw())-1)},
			{"device_record", "cut", hx(dev.Raw()[:len(dev.Raw())-1])},
			{"device_record", "an account record", hx(acct.Raw())},
			{"device_record", "certificate of another device", hx(signDevice(3, identity.DomainDeviceRecord, &pb.DeviceRecord{Device: device(3).Bytes(), Certificate: cert(1, 2).Raw(), Seq: 1}))},
		},
	}
	for _, x := range []struct {
		what, key string
		value     []byte
		expires   time.Time
	}{
		{"account record", identity.AccountRecordKey(acct.Account), acct.Raw(), acct.Expires},
		{"device record", identity.DeviceRecordKey(dev.Device), dev.Raw(), dev.Expires},
	} {
		slack := identity.ClockSlack
		v.Validates = append(
			v.Validates,
			verdictVector{x.what, x.key, hx(x.value), day.UnixMilli(), "ok"},
			verdictVector{x.what + ", last moment", x.key, hx(x.value), x.expires.Add(slack).UnixMilli(), "ok"},
			verdictVector{x.what + ", too late", x.key, hx(x.value), x.expires.Add(slack).UnixMilli() + 1, "expired"},
			verdictVector{x.what + ", a day ahead", x.key, hx(x.value), day.Add(-slack).UnixMilli(), "ok"},
			verdictVector{x.what + ", further ahead", x.key, hx(x.value), day.Add(-slack).UnixMilli() - 1, "future"},
			verdictVector{x.what + ", under another key", identity.AccountRecordKey(key(2).ID()), hx(x.value), day.UnixMilli(), "malformed"},
		)
	}
	all := competitors(t)
	v.Selects = []selectVector{
		selectOf(t, identity.AccountRecordKey(key(1).ID()), all["hima-id"]),
		selectOf(t, identity.DeviceRecordKey(device(2)), all["hima-dev"]),
	}
	return v
}

func selectOf(t *testing.T, key string, values [][]byte) selectVector {
	v := selectVector{Key: key}
	for _, b := range values {
		v.Values = append(v.Values, hx(b))
	}
	var err error
	v.Winner, err = validators(day)[namespaceOf(key)].Select(key, values)
	require.NoError(t, err)
	return v
}

func nameVectors(t *testing.T) netVectors {
	c := claim(t, 1, "alice", day)
	s := stamp(t, 20, c, day.Add(time.Second))
	stamped, bare := identity.StampedName(s), identity.UnstampedName(c)
	hash := c.Hash()
	nameKey := identity.NameKey(aLink().ID(), "alice")
	field := competitors(t)["hima-name"]
	field[0], field[3] = field[3], field[0]
	both, err := proto.Marshal(&pb.NameRecord{Stamp: s.Raw(), Claim: c.Raw()})
	require.NoError(t, err)
	return netVectors{
		Comment: "Vectors of docs/spec/names.md, section Claims. Bytes are hexadecimal. The network is the first of network.json, its keys are of the seeds 14… and 15….",
		Keys:    vectorKeys(1, 2, 20, 21),
		Hashes:  []hashVector{{"claim_hash", hx(c.Raw()), hx(hash[:])}, {"dht_key", "alice", nameKey}},
		Good: []bytesVector{
			{"name_claim", "alice", hx(c.Raw())},
			{"name_stamp", "of the first node", hx(s.Raw())},
			{"name_record", "stamped", hx(stamped.Raw())},
			{"name_record", "unstamped", hx(bare.Raw())},
		},
		Rejected: []bytesVector{
			{"name_claim", "signature changed", flipped(c.Raw(), len(c.Raw())-1)},
			{"name_claim", "a stamp", hx(s.Raw())},
			{"name_stamp", "signature of the claim changed", hx(signDevice(20, identity.DomainNameStamp, &pb.Stamp{Claim: unhex(flipped(c.Raw(), len(c.Raw())-1)), Key: device(20).Bytes(), TimeMs: 1}))},
			{"name_record", "both", hx(both)},
			{"name_record", "neither", ""},
			{"name_record", "one more field", hx(append(stamped.Raw(), 0x78, 1))},
		},
		Validates: []verdictVector{
			{"stamped", nameKey, hx(stamped.Raw()), day.UnixMilli(), "ok"},
			{"claim from two days ahead", nameKey, hx(bare.Raw()), day.AddDate(0, 0, -2).UnixMilli(), "future"},
			{"ten years later", nameKey, hx(stamped.Raw()), day.AddDate(10, 0, 0).UnixMilli(), "ok"},
			{"another name's key", identity.NameKey(aLink().ID(), "bob"), hx(stamped.Raw()), day.UnixMilli(), "malformed"},
		},
		Selects: []selectVector{selectOf(t, nameKey, field)},
		Work:    []workVector{{"claim", hx(c.Raw()), "", 12, hx(identity.ClaimWork(t.Context(), c, 12))}},
	}
}

func prekeyVectors(t *testing.T) netVectors {
	m := aMail()
	raw, err := identity.NewMail(deviceKey(2), m)
	require.NoError(t, err)
	handing, err := identity.NewMail(deviceKey(2), mailOfKeys())
	require.NoError(t, err)
	short := mailOfKeys().Keys
	short[0].Keys[0].Key = short[0].Keys[0].Key[1:]
	offer, err := proto.MarshalOptions{Deterministic: true}.Marshal(m.Offer.PB())
	require.NoError(t, err)
	secret := seed(7)
	in, err := identity.InboxSecretFromBytes(secret[:])
	require.NoError(t, err)
	inbox, id := in.ID(), in.ID()
	custody, err := identity.NewCustody(deviceKey(20), identity.Custody{Inbox: inbox, Item: seed(5), Size: 1665, Until: day.AddDate(0, 0, 30), Time: day})
	require.NoError(t, err)
	snapInbox, snapKey := identity.SnapshotSecrets(key(1))
	account := seed(1)
	pre := prekeyOf(60).Bytes()
	return netVectors{
		Comment: "Vectors of docs/spec/prekeys.md. Bytes are hexadecimal. What is sealed was made once, at random. Mail is from the device of seed 02… to that of seed 03….",
		Keys:    vectorKeys(1, 2, 3, 20),
		Hashes: []hashVector{
			{"prekey", hx(pre), hx(prekeyOf(60).Public().Bytes())},
			{"inbox_id", hx(secret[:]), hx(id[:])},
			{"snapshot_inbox_secret", hx(account[:]), hx(snapInbox.Bytes())},
			{"snapshot_key", hx(account[:]), hx(snapKey.Bytes())},
		},
		Good: []bytesVector{{"mail", "from 02 to 03", hx(raw)}, {"mail", "keys of a group", hx(handing)}, {"mail_offer", "", hx(offer)}, {"custody", "", hx(custody.Raw())}, {"prekey", "", hx(prekeyOf(60).Public().Bytes())}},
		Rejected: []bytesVector{
			{"mail", "signature changed", flipped(raw, len(raw)-1)},
			{"mail", "for another device", hx(signDevice(2, identity.DomainMail, &pb.Mail{Certificate: cert(1, 2).Raw(), Recipient: device(4).Bytes()}))},
			{"mail", "a key of 31 bytes", hx(signDevice(2, identity.DomainMail, &pb.Mail{Certificate: cert(1, 2).Raw(), Recipient: device(3).Bytes(), TimeMs: day.UnixMilli(), Keys: short}))},
			{"custody", "signature changed", flipped(custody.Raw(), len(custody.Raw())-1)},
			{"prekey", "cut", hx(prekeyOf(60).Public().Bytes()[1:])},
			{"item", "of version 2", hx(append([]byte{2}, make([]byte, 16+1120+512+16)...))},
			{"item", "of no step's size", hx(append([]byte{1}, make([]byte, 16+1120+511+16)...))},
		},
		Work: []workVector{{"item", hx([]byte("item")), hx(inbox[:]), 12, hx(identity.ItemWork(t.Context(), inbox, []byte("item"), 12))}},
	}
}

// sealAnew fills in what is random, when the files are written.
func sealAnew(t *testing.T) []sealedVector {
	to, hint, plain := device(3), identity.Hint(bytes.Repeat([]byte{6}, 16)), []byte("what is said by mail")
	item, err := identity.SealMail(prekeyOf(60).Public(), to, hint, plain)
	require.NoError(t, err)
	_, k := identity.SnapshotSecrets(key(1))
	snap, err := identity.SealSnapshot(k, plain)
	require.NoError(t, err)
	return []sealedVector{
		{"mail", hx(prekeyOf(60).Bytes()), hx(to[:]), hx(hint[:]), hx(plain), hx(item)},
		{"snapshot", hx(k.Bytes()), "", "", hx(plain), hx(snap)},
	}
}

func TestNetVectors(t *testing.T) {
	for file, want := range map[string]netVectors{
		"network": networkVectors(t), "records": recordVectors(t), "names": nameVectors(t), "prekeys": prekeyVectors(t),
		"groups": groupVectors(t),
	} {
		t.Run(file, func(t *testing.T) {
			path := "../docs/spec/vectors/" + file + ".json"
			var have netVectors
			if b, err := os.ReadFile(path); err == nil {
				require.NoError(t, json.Unmarshal(b, &have))
			}
			want.Sealed = have.Sealed
			if *update {
				if file == "prekeys" && want.Sealed == nil {
					want.Sealed = sealAnew(t)
				}
				var out bytes.Buffer
				enc := json.NewEncoder(&out)
				enc.SetEscapeHTML(false)
				enc.SetIndent("", "  ")
				require.NoError(t, enc.Encode(want))
				require.NoError(t, os.WriteFile(path, out.Bytes(), 0o644))
				have = want
			}
			require.Equal(t, want, have, "run with -update if the format was meant to change")
			readNetVectors(t, have)
		})
	}
}

func readNetVectors(t *testing.T, v netVectors) {
	parsers := vectorParsers()
	for _, x := range v.Good {
		require.NoError(t, parsers[x.Kind](unhex(x.Bytes)), "%s %s", x.Kind, x.What)
	}
	for _, x := range v.Rejected {
		require.Error(t, parsers[x.Kind](unhex(x.Bytes)), "%s %s", x.Kind, x.What)
	}
	for _, x := range v.Texts {
		switch x.Kind {
		case "invite":
			_, err := identity.ParseInvite(x.Text)
			require.NoError(t, err)
		case "group_link":
			l, err := identity.ParseGroupLink(x.Text)
			require.NoError(t, err)
			require.Equal(t, x.Text, l.String())
		default:
			l, err := identity.ParseNetworkLink(x.Text)
			require.NoError(t, err)
			require.Equal(t, x.Text, l.String())
		}
	}
	for _, x := range v.Validates {
		err := validators(time.UnixMilli(x.NowMS))[namespaceOf(x.Key)].Validate(x.Key, unhex(x.Value))
		want := map[string]error{"malformed": identity.ErrMalformed, "expired": identity.ErrExpired, "future": identity.ErrFromFuture}[x.Verdict]
		if want == nil {
			require.NoError(t, err, x.What)
		} else {
			require.ErrorIs(t, err, want, x.What)
		}
	}
	for _, x := range v.Work {
		if x.Kind == "claim" {
			c, err := identity.ParseNameClaim(unhex(x.Of))
			require.NoError(t, err)
			require.True(t, identity.CheckClaimWork(c, unhex(x.Work), x.Bits))
		} else {
			require.True(t, identity.CheckItemWork(identity.InboxID(unhex(x.Inbox)), unhex(x.Of), unhex(x.Work), x.Bits))
		}
	}
	for _, x := range v.Sealed {
		var plain []byte
		var err error
		if x.Kind == "mail" {
			k, kerr := identity.PrekeySecretFromBytes(unhex(x.Secret))
			require.NoError(t, kerr)
			hint, herr := identity.MailHint(unhex(x.Sealed))
			require.NoError(t, herr)
			require.Equal(t, x.Hint, hint.String())
			plain, err = identity.OpenMail(unhex(x.Sealed), identity.DeviceID(unhex(x.Recipient)), k)
		} else {
			plain, err = identity.OpenSnapshot(identity.SnapshotKey{Secret: identity.NewSecret([32]byte(unhex(x.Secret)))}, unhex(x.Sealed))
		}
		require.NoError(t, err)
		require.Equal(t, x.Plain, hx(plain))
	}
}
