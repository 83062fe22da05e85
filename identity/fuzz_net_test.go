package identity_test

import (
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/wire/pb"
)

func netSeeds(f *testing.F, file string) (v netVectors) {
	b, err := os.ReadFile("../docs/spec/vectors/" + file + ".json")
	if err != nil {
		f.Fatal(err)
	}
	if err := json.Unmarshal(b, &v); err != nil {
		f.Fatal(err)
	}
	return v
}

// fuzzSigned fuzzes a decoder of signed bytes with the vectors of its kind: what it takes is the very bytes, and one of
// the vectors: nothing else was ever signed.
func fuzzSigned(f *testing.F, file, kind string, parse func([]byte) ([]byte, error)) {
	v := netSeeds(f, file)
	var good [][]byte
	for _, x := range v.Good {
		if x.Kind == kind {
			good = append(good, unhex(x.Bytes))
			f.Add(unhex(x.Bytes))
		}
	}
	for _, x := range v.Rejected {
		if x.Kind == kind {
			f.Add(unhex(x.Bytes))
		}
	}
	if len(good) == 0 {
		f.Fatalf("no vector of kind %s", kind)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		raw, err := parse(b)
		if err != nil {
			known(t, err, identity.ErrMalformed, identity.ErrBadSignature)
			return
		}
		if !bytes.Equal(raw, b) {
			t.Fatal("other bytes than were read")
		}
		if !slices.ContainsFunc(good, func(g []byte) bool { return bytes.Equal(g, b) }) {
			t.Fatal("something that nobody signed passes")
		}
	})
}

func FuzzParseNetworkCard(f *testing.F) {
	fuzzSigned(f, "network", "network_card", func(b []byte) ([]byte, error) {
		c, err := identity.ParseNetworkCard(b)
		return c.Raw(), err
	})
}

func FuzzParseDeviceRecord(f *testing.F) {
	fuzzSigned(f, "records", "device_record", func(b []byte) ([]byte, error) {
		r, err := identity.ParseDeviceRecord(b)
		return r.Raw(), err
	})
}

func FuzzParseNameClaim(f *testing.F) {
	fuzzSigned(f, "names", "name_claim", func(b []byte) ([]byte, error) {
		c, err := identity.ParseNameClaim(b)
		return c.Raw(), err
	})
}

func FuzzParseNameStamp(f *testing.F) {
	fuzzSigned(f, "names", "name_stamp", func(b []byte) ([]byte, error) {
		s, err := identity.ParseNameStamp(b)
		return s.Raw(), err
	})
}

func FuzzParseNameRecord(f *testing.F) {
	fuzzSigned(f, "names", "name_record", func(b []byte) ([]byte, error) {
		r, err := identity.ParseNameRecord(b)
		return r.Raw(), err
	})
}

func FuzzParseCustody(f *testing.F) {
	fuzzSigned(f, "prekeys", "custody", func(b []byte) ([]byte, error) {
		c, err := identity.ParseCustody(b)
		return c.Raw(), err
	})
}

func FuzzParseMail(f *testing.F) {
	fuzzSigned(f, "prekeys", "mail", func(b []byte) ([]byte, error) {
		_, err := identity.ParseMail(b, device(3))
		return b, err
	})
}

func FuzzParseNetworkLink(f *testing.F) {
	for _, x := range netSeeds(f, "network").Texts {
		f.Add(x.Text)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l, err := identity.ParseNetworkLink(s)
		if err != nil {
			known(t, err, identity.ErrMalformed)
			return
		}
		again, err := identity.ParseNetworkLink(l.String())
		if err != nil || again.String() != l.String() {
			t.Fatalf("does not read its own link: %v", err)
		}
	})
}

// FuzzNetworkLinkContent gets behind the checksum.
func FuzzNetworkLinkContent(f *testing.F) {
	for _, x := range netSeeds(f, "network").Texts {
		f.Add(unhex(x.Content))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := identity.ParseNetworkLink(identity.NetworkLinkText(b))
		if err != nil {
			known(t, err, identity.ErrMalformed)
			return
		}
		if len(l.Bootstraps) == 0 || len(l.Bootstraps) > identity.MaxBootstraps || len(l.Name) > identity.MaxNetworkName {
			t.Fatal("out of bounds")
		}
		if again, err := identity.ParseNetworkLink(l.String()); err != nil || again.ID() != l.ID() {
			t.Fatalf("does not read its own link: %v", err)
		}
	})
}

func FuzzParseNetworkID(f *testing.F) {
	f.Add(aLink().ID().String())
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := identity.ParseNetworkID(s); err != nil {
			known(t, err, identity.ErrMalformed)
		} else if id.String() != s {
			t.Fatal("two texts for one network")
		}
	})
}

func FuzzMailOffer(f *testing.F) {
	for _, x := range netSeeds(f, "prekeys").Good {
		if x.Kind == "mail_offer" {
			f.Add(unhex(x.Bytes))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m pb.MailOffer
		if proto.Unmarshal(b, &m) != nil {
			return
		}
		o, err := identity.MailOfferFromPB(&m)
		if err != nil {
			known(t, err, identity.ErrMalformed)
			return
		}
		if _, err := identity.MailOfferFromPB(o.PB()); err != nil {
			t.Fatalf("does not read its own offer: %v", err)
		}
	})
}

func FuzzOpenMail(f *testing.F) {
	v := netSeeds(f, "prekeys")
	good := unhex(v.Sealed[0].Sealed)
	k := prekeyOf(60)
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := identity.MailHint(b); err != nil {
			known(t, err, identity.ErrMalformed)
		}
		if _, err := identity.OpenMail(b, device(3), k); err != nil {
			known(t, err, identity.ErrMalformed, identity.ErrNotSealedForKey)
		} else if !bytes.Equal(b, good) {
			t.Fatal("an item that nobody sealed opens")
		}
	})
}

// FuzzUnpad gets behind the seal.
func FuzzUnpad(f *testing.F) {
	for _, n := range []int{0, 1, 508, 509, 5000} {
		f.Add(identity.Pad(make([]byte, n)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		plain, err := identity.Unpad(b)
		if err != nil {
			known(t, err, identity.ErrMalformed)
			return
		}
		if !bytes.Equal(identity.Pad(plain), b) {
			t.Fatal("two paddings of one plaintext")
		}
	})
}

func FuzzOpenSnapshot(f *testing.F) {
	good := unhex(netSeeds(f, "prekeys").Sealed[1].Sealed)
	_, k := identity.SnapshotSecrets(key(1))
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := identity.OpenSnapshot(k, b); err != nil {
			known(t, err, identity.ErrMalformed, identity.ErrNotSealedForKey)
		} else if !bytes.Equal(b, good) {
			t.Fatal("a snapshot that nobody sealed opens")
		}
	})
}

// FuzzValidators gives any bytes under any key to what decides about the DHT: it must refuse or take them, and what it
// takes it also selects.
func FuzzValidators(f *testing.F) {
	for _, file := range []string{"records", "names"} {
		for _, x := range netSeeds(f, file).Validates {
			f.Add(x.Key, unhex(x.Value), x.NowMS)
		}
	}
	f.Fuzz(func(t *testing.T, key string, value []byte, ms int64) {
		for _, v := range validators(time.UnixMilli(ms)) {
			if err := v.Validate(key, value); err != nil {
				known(t, err, identity.ErrMalformed, identity.ErrBadSignature, identity.ErrExpired, identity.ErrFromFuture)
				continue
			}
			if i, err := v.Select(key, [][]byte{[]byte("x"), value, value}); err != nil || i != 1 {
				t.Fatalf("taken and not selected: %d %v", i, err)
			}
		}
	})
}
