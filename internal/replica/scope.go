package replica

import (
	"fmt"

	"hima/identity"
	"hima/internal/feed"
	"hima/storage"
)

// scope is how a conversation is with one account, as of one moment.
type scope struct {
	lazy   bool
	window Window // nil: everything
}

// scope asks Members. Devices of the own account are served all that is held: what they may keep is theirs to know.
func (r *Replica) scope(tx *storage.Tx, conv feed.ConversationID, account identity.AccountID) (s scope, err error) {
	s.lazy = r.cfg.Members.Lazy(tx, conv)
	if account == r.cfg.Account {
		return s, nil
	}
	if s.window, err = r.cfg.Members.Window(tx, conv, account); err != nil {
		return s, fmt.Errorf("asking what may be read: %w", err)
	}
	return s, nil
}

// bounds returns which numbers of a feed may be had; a last below first: none.
func (w Window) bounds(id feed.FeedID) (first, last uint64) {
	if w == nil {
		return 1, feed.MaxSeq
	}
	first, last = w(id)
	return max(first, 1), last
}

// clip returns the part of what is held that may be had; ok is false if there is none.
func (w Window) clip(id feed.FeedID, st feedState) (first, last uint64, ok bool) {
	if w == nil {
		return st.first, st.last, st.last > 0
	}
	first, last = w.bounds(id)
	first, last = max(first, st.first), min(last, st.last)
	return first, last, last > 0 && first <= last
}

// headsFor returns the heads of a conversation as somebody with a window sees them.
func (r *Replica) headsFor(tx *storage.Tx, conv feed.ConversationID, w Window) ([]feed.Head, error) {
	var heads []feed.Head
	err := scanFeeds(tx, convFeedsPrefix(conv), func(id feed.FeedID, st feedState) (bool, error) {
		h, ok, err := r.headFor(tx, id, st, w)
		if ok && err == nil {
			heads = append(heads, h)
		}
		return true, err
	})
	return heads, err
}

// headFor returns the head of one feed; ok is false if it takes no part in sync. A feed that forked does not (R3), except
// for the common part of a control feed of a group, nor one of which nothing contiguous is held: everybody who lacks it
// holds the same of it.
func (r *Replica) headFor(tx *storage.Tx, id feed.FeedID, st feedState, w Window) (h feed.Head, ok bool, err error) {
	h, end := st.head(id), st.last
	if st, ok = r.uptoFork(tx, id, st); !ok {
		return h, false, nil
	}
	if h.First, h.Last, ok = w.clip(id, st); !ok || h.Last == end {
		return h, ok, nil
	}
	s, ok, err := loadStored(tx, st.local, h.Last)
	if !ok || err != nil {
		return h, false, err
	}
	e, err := s.entry()
	h.Hash = e.ID
	return h, err == nil, err
}
