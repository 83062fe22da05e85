package mailbox

import (
	"sync"

	"hima/identity"
)

// maxWatchedAll bounds the watched inboxes of all streams together.
const maxWatchedAll = 1 << 19

// hub knows which streams watch which inboxes, in memory alone.
type hub struct {
	mu  sync.Mutex
	of  map[identity.InboxID]map[*stream]struct{}
	all int
}

func (h *hub) init() { h.of = map[identity.InboxID]map[*stream]struct{}{} }

// add lets a stream watch an inbox; false: too many are watched.
func (h *hub) add(st *stream, id identity.InboxID, max int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, known := st.watched[id]; known {
		return true
	}
	if len(st.watched) >= max || h.all >= maxWatchedAll {
		return false
	}
	set := h.of[id]
	if set == nil {
		set = map[*stream]struct{}{}
		h.of[id] = set
	}
	set[st] = struct{}{}
	st.watched[id] = struct{}{}
	h.all++
	return true
}

// remove forgets a stream.
func (h *hub) remove(st *stream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id := range st.watched {
		set := h.of[id]
		if delete(set, st); len(set) == 0 {
			delete(h.of, id)
		}
		h.all--
	}
	clear(st.watched)
}

// ring tells all who watch an inbox that something is in it.
func (h *hub) ring(id identity.InboxID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for st := range h.of[id] {
		st.rung[id] = struct{}{} // of what it watches, so bounded like that
		select {
		case st.bell <- struct{}{}:
		default:
		}
	}
}

// take returns at most max inboxes that were rung for, and whether there are more.
func (h *hub) take(st *stream, max int) (ids [][]byte, more bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id := range st.rung {
		if len(ids) == max {
			return ids, true
		}
		ids = append(ids, id.Bytes())
		delete(st.rung, id)
	}
	return ids, false
}
