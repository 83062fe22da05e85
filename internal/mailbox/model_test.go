package mailbox

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"hima/identity"
	"hima/internal/wire/pb"
	"hima/storage"
)

// A server is a map of inboxes to lists of items, whatever is done to it in whatever order, and its totals are what the
// map holds.
func TestServerIsAMap(t *testing.T) {
	const inboxBytes, inboxItems, logBytes, logItems, totalBytes, expiry = 2000, 6, 2500, 7, 6000, time.Hour
	rapid.Check(t, func(t *rapid.T) {
		db, err := storage.Open(storage.Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		now := newClock()
		s := &Server{cfg: ServerConfig{DB: db, Open: true, Now: now.Now, Limits: ServerLimits{
			TotalBytes: totalBytes, InboxBytes: inboxBytes, InboxItems: inboxItems, LogBytes: logBytes, LogItems: logItems, Expiry: expiry, InboxIdle: 100 * expiry, WorkBits: -1,
		}}.withDefaults()}
		s.totals.grants = map[string]usage{}
		type entry struct {
			item  []byte
			until time.Time
		}
		model := map[identity.InboxID][]entry{}
		var secrets []identity.InboxSecret
		for range 4 {
			secrets = append(secrets, identity.NewInboxSecret())
		}
		logs := map[identity.InboxID]bool{secrets[2].ID(): true, secrets[3].ID(): true}
		renewed := map[identity.InboxID]time.Time{}
		kindOf := func(id identity.InboxID) (kind Kind, bytes, items int) {
			if logs[id] {
				return Log, logBytes, logItems
			}
			return Contact, inboxBytes, inboxItems
		}
		pick := func(t *rapid.T) identity.InboxID { return rapid.SampledFrom(secrets).Draw(t, "inbox").ID() }
		sum := func() (n uint64, items int) {
			for _, list := range model {
				for _, e := range list {
					n += uint64(len(e.item))
					items++
				}
			}
			return n, items
		}
		do := func(t *rapid.T, f func(tx *storage.Tx) ([]change, error)) {
			done := make(chan error)
			s.submit(f, func(err error) { done <- err })
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		// swept brings model and server to the same point: what ended may lie there until it is removed.
		swept := func(t *rapid.T) {
			for id, list := range model {
				model[id] = slices.DeleteFunc(list, func(e entry) bool { return !e.until.After(now.Now()) })
			}
			for id, list := range model { // a log that nobody renewed goes when it is empty
				if logs[id] && now.Now().Sub(renewed[id]) > expiry && len(list) == 0 {
					delete(model, id)
				}
			}
			if err := s.sweep(t.Context(), true); err != nil {
				t.Fatal(err)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"open": func(t *rapid.T) {
				id := pick(t)
				kind, quota, _ := kindOf(id)
				renewed[id] = now.Now()
				do(t, func(tx *storage.Tx) ([]change, error) {
					c, st, did, err := s.openInbox(tx, id, kind, 0, nil)
					if err == nil && (c != pb.MailboxReply_CODE_OK || st.QuotaBytes != uint64(quota)) {
						t.Fatalf("open: %v %v", c, st)
					}
					return did, err
				})
				if _, ok := model[id]; !ok {
					model[id] = nil
				}
			},
			"deposit": func(t *rapid.T) {
				swept(t)
				id := pick(t)
				item := bytes.Repeat([]byte{byte(rapid.IntRange(0, 9).Draw(t, "item"))}, rapid.SampledFrom([]int{1, 300, 900}).Draw(t, "size"))
				list, there := model[id]
				known := slices.IndexFunc(list, func(e entry) bool { return bytes.Equal(e.item, item) })
				used := 0
				for _, e := range list {
					used += len(e.item)
				}
				all, _ := sum()
				_, quota, items := kindOf(id)
				expect := pb.MailboxReply_CODE_OK
				switch {
				case !there, logs[id] && now.Now().Sub(renewed[id]) > expiry:
					expect = pb.MailboxReply_CODE_NO_INBOX
				case known >= 0:
				case used+len(item) > quota || len(list) >= items:
					expect = pb.MailboxReply_CODE_FULL
				case all+uint64(len(item)) > totalBytes:
					expect = pb.MailboxReply_CODE_NO_ROOM
				}
				do(t, func(tx *storage.Tx) ([]change, error) {
					out, err := s.deposit(tx, id, item, identity.ItemHash(item), func(localInbox) bool { return true })
					if err == nil && out.code != expect {
						t.Fatalf("deposit: %v, want %v", out.code, expect)
					}
					return []change{out.did}, err
				})
				if expect == pb.MailboxReply_CODE_OK && known < 0 {
					model[id] = append(list, entry{item, now.Now().Add(expiry)})
				}
			},
			"done": func(t *rapid.T) {
				id := pick(t)
				var hashes [][]byte
				for _, e := range model[id] {
					if rapid.Bool().Draw(t, "this one") {
						h := identity.ItemHash(e.item)
						hashes = append(hashes, h[:])
					}
				}
				do(t, func(tx *storage.Tx) ([]change, error) {
					_, did, err := s.done(tx, id, hashes)
					return []change{did}, err
				})
				if list, ok := model[id]; ok && !logs[id] {
					model[id] = slices.DeleteFunc(list, func(e entry) bool {
						h := identity.ItemHash(e.item)
						return slices.ContainsFunc(hashes, func(x []byte) bool { return bytes.Equal(x, h[:]) })
					})
				}
			},
			"close": func(t *rapid.T) {
				id := pick(t)
				do(t, func(tx *storage.Tx) ([]change, error) {
					_, did, err := s.closeInbox(tx, id)
					return []change{did}, err
				})
				if !logs[id] { // what many read nobody can take away
					delete(model, id)
				}
			},
			"time passes": func(t *rapid.T) { now.add(time.Duration(rapid.IntRange(1, 40).Draw(t, "minutes")) * time.Minute) },
			"": func(t *rapid.T) {
				swept(t)
				for _, secret := range secrets {
					var got [][]byte
					for after, more := uint64(0), true; more; {
						items, again, _, err := s.page(secret.ID(), after, 2)
						if err != nil {
							t.Fatal(err)
						}
						for _, it := range items {
							got, after = append(got, it.Item), it.Cursor
						}
						more = again
					}
					var expect [][]byte
					for _, e := range model[secret.ID()] {
						expect = append(expect, e.item)
					}
					if !slices.EqualFunc(got, expect, bytes.Equal) {
						t.Fatalf("an inbox holds %d items, want %d", len(got), len(expect))
					}
				}
				n, items := sum()
				st := s.Stats()
				if st.Bytes != n || st.Items != items || st.Inboxes != len(model) {
					t.Fatalf("totals %+v, want %d inboxes, %d items, %d bytes", st, len(model), items, n)
				}
				again := totals{grants: map[string]usage{}}
				if err := db.View(again.count); err != nil {
					t.Fatal(err)
				}
				if b, i := again.sum(); b != n || i != items || again.inboxes() != len(model) {
					t.Fatalf("counted anew: %d bytes, %d items, %d inboxes", b, i, again.inboxes())
				}
			},
		})
	})
}
