package identity_test

import (
	"testing"

	"hima/identity"
)

func FuzzParseConsent(f *testing.F) {
	fuzzSigned(f, "groups", "consent", func(b []byte) ([]byte, error) {
		c, err := identity.ParseConsent(b)
		return c.Raw(), err
	})
}

func FuzzParseTransferProof(f *testing.F) {
	fuzzSigned(f, "groups", "transfer_proof", func(b []byte) ([]byte, error) {
		p, err := identity.ParseTransferProof(b)
		return p.Raw(), err
	})
}

func FuzzParseGroupCard(f *testing.F) {
	fuzzSigned(f, "groups", "group_card", func(b []byte) ([]byte, error) {
		c, err := identity.ParseGroupCard(b)
		return c.Raw(), err
	})
}

// FuzzGroupCardContent gets behind the signature: whatever an owner signs is refused or within the bounds, and what passes
// can be signed again.
func FuzzGroupCardContent(f *testing.F) {
	for _, x := range netSeeds(f, "groups").Good {
		if x.Kind == "group_card" {
			f.Add(identity.SignedPayload(unhex(x.Bytes)))
		}
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		c, err := identity.ParseGroupCard(identity.SignedBy(deviceKey(42), identity.DomainGroupCard, payload))
		if err != nil {
			known(t, err, identity.ErrMalformed, identity.ErrBadSignature)
			return
		}
		if len(c.Transfers) > identity.MaxTransfers || len(c.Admins) > identity.MaxGroupContacts || c.Expires.Sub(c.Time) > identity.GroupCardLifetime {
			t.Fatal("out of bounds")
		}
		again, err := identity.NewGroupCard(deviceKey(42), c)
		if err != nil || again.Group != c.Group || again.Account != c.Account {
			t.Fatalf("does not sign what it reads: %v", err)
		}
	})
}

// FuzzGroupLinkContent gets behind the checksum.
func FuzzGroupLinkContent(f *testing.F) {
	for _, x := range netSeeds(f, "groups").Texts {
		f.Add(unhex(x.Content))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := identity.ParseGroupLink(identity.GroupLinkText(b))
		if err != nil {
			known(t, err, identity.ErrMalformed)
			return
		}
		if l.Group.IsZero() || l.Asks.Account.IsZero() || len(l.Networks) > identity.MaxInviteNetworks || len(l.Name) > identity.MaxGroupName {
			t.Fatal("out of bounds")
		}
		if again, err := identity.ParseGroupLink(l.String()); err != nil || again.Group != l.Group || again.Token != l.Token {
			t.Fatalf("does not read its own link: %v", err)
		}
	})
}

func FuzzParseGroupLink(f *testing.F) {
	for _, x := range netSeeds(f, "groups").Texts {
		f.Add(x.Text)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l, err := identity.ParseGroupLink(s)
		if err != nil {
			known(t, err, identity.ErrMalformed)
			return
		}
		again, err := identity.ParseGroupLink(l.String())
		if err != nil || again.String() != l.String() {
			t.Fatalf("does not read its own link: %v", err)
		}
	})
}
