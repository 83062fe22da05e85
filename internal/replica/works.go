package replica

import (
	"sync"

	"hima/identity"
	"hima/internal/feed"
)

// maxWorks is how many proofs of work are remembered: one for each first entry that somebody has not taken yet.
const maxWorks = 64

// works does the work that knocks owe, one after another, and remembers it: whoever we knock at may come and go as
// often as he likes, and must not be able to keep our processor busy with that.
type works struct {
	mu   sync.Mutex // guards done, and is held during the work, so that it takes one core at most
	done map[feed.EntryID][]byte
}

func (w *works) of(from, to identity.AccountID, entry feed.EntryID) []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	if proof, ok := w.done[entry]; ok {
		return proof
	}
	if w.done == nil || len(w.done) >= maxWorks {
		w.done = make(map[feed.EntryID][]byte)
	}
	proof := feed.Work(from, to, entry, feed.WorkBits)
	w.done[entry] = proof
	return proof
}
