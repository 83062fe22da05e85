package identity_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"testing"

	"hima/identity"
)

// Every decoder of the package takes any bytes: it either refuses them with one of its own errors, or what it returns
// says the same when it is written and read again. Further seeds stand in testdata/fuzz.

func loadVectors(f *testing.F) (v vectors) {
	b, err := os.ReadFile(vectorFile)
	if err != nil {
		f.Fatal(err)
	}
	if err := json.Unmarshal(b, &v); err != nil {
		f.Fatal(err)
	}
	return v
}

func known(t *testing.T, err error, kinds ...error) {
	t.Helper()
	for _, k := range kinds {
		if errors.Is(err, k) {
			return
		}
	}
	t.Fatalf("an error of another kind: %v", err)
}

func FuzzParseAccountID(f *testing.F) {
	v := loadVectors(f)
	f.Add(v.Keys[0].Account)
	for _, s := range v.BadAccounts {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := identity.ParseAccountID(s)
		if err != nil {
			known(t, err, identity.ErrMalformed)
			return
		}
		if b, err := identity.ParseAccountID(a.String()); err != nil || a != b {
			t.Fatal("does not read its own text")
		}
	})
}

func FuzzParseDeviceID(f *testing.F) {
	f.Add(loadVectors(f).Keys[2].Device)
	f.Fuzz(func(t *testing.T, s string) {
		d, err := identity.ParseDeviceID(s)
		if err != nil {
			known(t, err, identity.ErrMalformed)
			return
		}
		if d.String() != s {
			t.Fatal("two texts for one device")
		}
	})
}

func FuzzParseCertificate(f *testing.F) {
	v := loadVectors(f)
	f.Add(unhex(v.Certificate.Bytes))
	for _, r := range v.Rejected {
		f.Add(unhex(r.Bytes))
	}
	good := unhex(v.Certificate.Bytes)
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := identity.ParseCertificate(b)
		if err != nil {
			known(t, err, identity.ErrMalformed, identity.ErrBadSignature)
			return
		}
		if !bytes.Equal(c.Raw(), b) {
			t.Fatal("other bytes than were read")
		}
		if c.Account.String() == v.Keys[0].Account && !bytes.Equal(b, good) {
			t.Fatal("a certificate that this account never signed")
		}
	})
}

func FuzzParseAccountRecord(f *testing.F) {
	v := loadVectors(f)
	f.Add(unhex(v.Record.Bytes))
	for _, r := range v.Rejected {
		f.Add(unhex(r.Bytes))
	}
	good := unhex(v.Record.Bytes)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := identity.ParseAccountRecord(b)
		if err != nil {
			known(t, err, identity.ErrMalformed, identity.ErrBadSignature)
			return
		}
		if !bytes.Equal(r.Raw(), b) {
			t.Fatal("other bytes than were read")
		}
		if r.Account.String() == v.Keys[0].Account && !bytes.Equal(b, good) {
			t.Fatal("a record that this account never signed")
		}
	})
}

func FuzzParseInvite(f *testing.F) {
	for _, i := range loadVectors(f).Invites {
		f.Add(i.Link)
	}
	f.Fuzz(func(t *testing.T, s string) {
		in, err := identity.ParseInvite(s)
		if err != nil {
			known(t, err, identity.ErrMalformed)
			return
		}
		again, err := identity.ParseInvite(in.String())
		if err != nil {
			t.Fatalf("does not read its own link: %v", err)
		}
		if again.String() != in.String() {
			t.Fatal("the link changes when it is written again")
		}
	})
}

// FuzzInviteContent gets behind the checksum, which random bytes never pass.
func FuzzInviteContent(f *testing.F) {
	v := loadVectors(f)
	in, err := identity.ParseInvite(v.Invites[1].Link)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(identity.InviteContent(in))
	f.Fuzz(func(t *testing.T, b []byte) {
		in, err := identity.ParseInvite(identity.InviteLink(b))
		if err != nil {
			known(t, err, identity.ErrMalformed)
			return
		}
		if len(in.Devices) > identity.MaxInviteDevices || len(in.Username) > identity.MaxUsernameBytes {
			t.Fatal("out of bounds")
		}
		if _, err := identity.ParseInvite(in.String()); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzOpenVaultKey(f *testing.F) {
	v := loadVectors(f)
	keyFile := []byte(v.Vault.KeyFile)
	f.Add(unhex(v.Vault.Sealed), keyFile)
	f.Fuzz(func(t *testing.T, b, k []byte) {
		if _, err := identity.OpenVaultKey(b, k); err != nil {
			known(t, err, identity.ErrWrongPassword, identity.ErrDamagedVault)
		} else if !bytes.Equal(b, unhex(v.Vault.Sealed)) {
			t.Fatal("a vault that was never sealed opens")
		}
		identity.VaultNeedsPassword(b)
	})
}

// FuzzDecodeVault gets behind the seal.
func FuzzDecodeVault(f *testing.F) {
	f.Add(unhex(loadVectors(f).Vault.Content))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := identity.DecodeVault(b)
		if err != nil {
			known(t, err, identity.ErrMalformed, identity.ErrBadSignature, identity.ErrNewerVault)
			return
		}
		again, err := v.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := identity.DecodeVault(again); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzRestoreVault(f *testing.F) {
	f.Add(loadVectors(f).Phrase.Phrase)
	f.Fuzz(func(t *testing.T, s string) {
		if _, err := identity.RestoreVault(s, "a", day); err != nil {
			known(t, err, identity.ErrBadPhrase)
		}
	})
}
