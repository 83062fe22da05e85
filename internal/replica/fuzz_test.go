package replica

import (
	"encoding/hex"
	"testing"

	"hima/identity"
	"hima/internal/feed"
	"hima/storage"
)

// FuzzSession lets an admitted friend send anything. Nothing panics or hangs, and whatever is stored afterwards is a
// verified run: what is held of a feed can be served, and verifies.
func FuzzSession(f *testing.F) {
	v := readVectors(f)
	var all []byte
	for _, c := range v.Frames {
		raw, err := hex.DecodeString(c.Bytes)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
		if c.Name != "hello" {
			all = append(all, raw...)
		}
	}
	f.Add(all)
	for _, c := range v.Refused {
		raw, _ := hex.DecodeString(c.Bytes)
		f.Add(raw)
	}
	side := newSide(f, vectorPerson(f, 1), nil, nil, vectorPerson(f, 0))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s := bareSession(t, side)
		_, _ = s.readFrom(raw)
		if len(s.answers) > maxAnswers || s.inFlight != 0 || s.incoming != 0 {
			t.Errorf("%d answers, %d bytes in flight, %d incoming", len(s.answers), s.inFlight, s.incoming)
		}
		checkServed(t, side)
	})
}

// checkServed reads every feed from every number on and verifies what would be sent.
func checkServed(t *testing.T, s *side) {
	t.Helper()
	err := s.db.View(func(tx *storage.Tx) error {
		return scanFeeds(tx, []byte(keyFeed), func(id feed.FeedID, st feedState) (bool, error) {
			for from := st.first; from <= min(st.last, st.first+10); from++ {
				entries, sig, err := s.rep.readRun(tx, id, st, from)
				if err != nil {
					return false, err
				}
				if len(entries) == 0 {
					t.Errorf("number %d cannot be served", from)
					continue
				}
				if _, err := feed.CheckDetached(runPB(entries, sig)); err != nil {
					t.Errorf("what is held from %d on does not verify: %v", from, err)
				}
			}
			return true, nil
		})
	})
	if err != nil {
		t.Error(err)
	}
}

// FuzzReceipt: a receipt that parses is signed by the device it names.
func FuzzReceipt(f *testing.F) {
	for _, c := range readVectors(f).Receipts {
		raw, err := hex.DecodeString(c.Signed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := parseReceipt(raw)
		if err != nil {
			return
		}
		if r.device == (identity.DeviceID{}) || r.seq == 0 || len(r.items) > maxReceiptItems {
			t.Errorf("took %+v", r)
		}
	})
}

// FuzzStored: what the own disk holds is not trusted to be whole.
func FuzzStored(f *testing.F) {
	a := newAuthor(newPerson(f, 0), newPerson(f, 1))
	e := a.write(f, "x")[0]
	f.Add(encodeEntry(e, make([]byte, 64)))
	f.Add(encodeEntry(e.WithoutBody(), nil))
	f.Add(encodeBlock([][]byte{encodeEntry(e, nil), encodeEntry(e, make([]byte, 64))}))
	st := feedState{local: 1, first: 1}
	f.Add(st.encode())
	f.Fuzz(func(_ *testing.T, raw []byte) {
		var st feedState
		_ = st.decode(raw)
		if s, err := decodeEntry(raw); err == nil {
			_, _ = s.entry()
		}
		if isBlock(raw) {
			_, _ = splitBlock(raw)
			_, _, _ = inBlock(raw, 9, 7)
		}
		_, _ = parseFeedKey(raw)
	})
}
