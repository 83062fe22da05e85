package mailbox

import (
	"sync"

	"hima/storage"
)

// totals is what all inboxes hold together. It is counted at the start and follows every transaction; nothing of it is
// stored, so that it cannot differ from what is there.
type totals struct {
	mu     sync.Mutex
	n      int              // inboxes
	items  int              // guarded by mu, like all here
	bytes  uint64           //
	grants map[string]usage // by grant
}

type usage struct {
	items int
	bytes uint64
}

func (t *totals) apply(list ...change) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range list {
		t.n += c.inboxes
		t.items += c.items
		t.bytes = uint64(int64(t.bytes) + c.bytes)
		if len(c.grant) == 0 {
			continue
		}
		u := t.grants[string(c.grant)]
		u.items += c.items
		u.bytes = uint64(int64(u.bytes) + c.bytes)
		if u == (usage{}) {
			delete(t.grants, string(c.grant))
		} else {
			t.grants[string(c.grant)] = u
		}
	}
}

func negate(list []change) []change {
	out := make([]change, len(list))
	for i, c := range list {
		out[i] = change{inboxes: -c.inboxes, items: -c.items, bytes: -c.bytes, grant: c.grant}
	}
	return out
}

func (t *totals) inboxes() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n
}

func (t *totals) sum() (bytes uint64, items int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.bytes, t.items
}

func (t *totals) usage(grant []byte) (bytes uint64, items int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	u := t.grants[string(grant)]
	return u.bytes, u.items
}

// count reads what is there.
func (t *totals) count(tx *storage.Tx) error {
	var list []change
	err := tx.Scan(storage.ScanOptions{Prefix: []byte(keyInbox)}, func(_, v []byte) (bool, error) {
		var in inbox
		if err := in.decode(v); err != nil {
			return false, err
		}
		list = append(list, change{inboxes: 1, items: int(in.items), bytes: int64(in.used), grant: in.grant})
		if len(list) == closeBatch {
			t.apply(list...)
			list = list[:0]
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	t.apply(list...)
	return tx.Scan(storage.ScanOptions{Prefix: []byte(keyGone)}, func(k, v []byte) (bool, error) {
		g, err := decodeGone(k, v)
		t.apply(change{items: int(g.items), bytes: int64(g.used), grant: g.grant})
		return err == nil, err
	})
}
