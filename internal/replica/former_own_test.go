package replica

import (
	"context"
	"slices"
	"testing"

	"hima/identity"
	"hima/storage"
)

// TestTailThatOnlyOwnDevicesHave: own devices never count (R14), so what only they acknowledged still goes out.
func TestTailThatOnlyOwnDevicesHave(t *testing.T) {
	c := newCopied(t)
	other := newPersonWith(t, 0, newPerson(t, 8).deviceKey)
	c.old.say(c.b.person, "two", "three")
	peer := Peer{Account: c.old.account(), Device: other.device()}
	if err := c.old.db.Update(context.Background(), func(tx *storage.Tx) error { return c.old.rep.storeAck(tx, peer, c.feed, 3) }); err != nil {
		t.Fatal(err)
	}
	if err := Seal(context.Background(), c.old.db, c.old.account(), c.old.deviceKey, []identity.DeviceID{other.device()}); err != nil {
		t.Fatal(err)
	}
	a := newSideOn(t, c.next, nil, c.old.db, c.old.fakes, func(conf *Config) {
		conf.Former = []identity.DeviceID{other.device(), c.old.device()}
	})
	owed, err := a.rep.Owed()
	if err != nil || !slices.ContainsFunc(owed, func(d Debt) bool {
		return d.Device == c.b.device() && slices.Equal(d.Feeds, []Span{{Feed: c.feed, From: 2, Last: 3}})
	}) {
		t.Fatalf("owed %+v, %v", owed, err)
	}
	a.post(c.b, ExportOptions{})
	if got := c.b.texts(); !slices.Equal(got, []string{"one", "two", "three"}) {
		t.Errorf("%q arrived", got)
	}
}
