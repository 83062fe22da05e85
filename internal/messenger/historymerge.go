package messenger

import (
	"container/heap"
	"math"

	"hima/internal/feed"
	"hima/internal/replica"
	"hima/storage"
)

// In a large group a page is of few feeds out of a thousand, and to open one costs more than all else that a line does. So a
// feed is opened only when something of it may stand next: where the newest entry of one stands is in the row that the
// replica keeps of it, all of which are read in one go.

// source gives lines from the newest to the oldest.
type source interface {
	// peek returns the next line without taking it; ok is false at the end.
	peek(tx *storage.Tx) (l line, ok bool, err error)
	take()
}

// strand is a source in a merge.
type strand struct {
	source
	at    feed.OrderKey // no line that is left of it stands behind this
	next  line          // if known, and then it stands there
	known bool
	place int // among the strands; of lines with equal keys the first comes first
}

// strands is a heap by where they stand, the newest first.
type strands []*strand

func (h strands) Len() int      { return len(h) }
func (h strands) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *strands) Push(s any)   { *h = append(*h, s.(*strand)) }

func (h strands) Less(i, j int) bool {
	a, b := h[i], h[j]
	if c := a.at.Compare(b.at); c != 0 {
		return c > 0
	}
	if a.known != b.known {
		return b.known // what is not known yet may turn out to be the first of those with this key
	}
	return a.place < b.place
}

func (h *strands) Pop() any {
	last := len(*h) - 1
	s := (*h)[last]
	*h = (*h)[:last]
	return s
}

// merge gives the lines of several sources in one order, from the newest to the oldest.
type merge struct {
	heap  strands
	feeds []*feedSource
}

// add takes a source whose lines stand nowhere behind a place. The heap is made when all are there.
func (m *merge) add(s source, at feed.OrderKey) {
	m.heap = append(m.heap, &strand{source: s, at: at, place: len(m.heap)})
}

// nowhere is a place that stands behind all others: that of a source of which nothing is known.
func nowhere() feed.OrderKey { return feed.OrderKey{Clock: math.MaxUint64} }

// peek returns the next line of all without taking it; ok is false at the end.
func (m *merge) peek(tx *storage.Tx) (l *line, ok bool, err error) {
	for len(m.heap) > 0 {
		s := m.heap[0]
		if s.known {
			return &s.next, true, nil
		}
		if s.next, s.known, err = s.source.peek(tx); err != nil {
			return nil, false, err
		}
		if !s.known {
			heap.Pop(&m.heap)
			continue
		}
		s.at = s.next.key
		heap.Fix(&m.heap, 0)
	}
	return nil, false, nil
}

// take takes what peek returned.
func (m *merge) take() {
	s := m.heap[0]
	s.take()
	s.known = false
	heap.Fix(&m.heap, 0)
}

// maxMarks bounds the marks of all pages that are remembered.
const maxMarks = 1 << 15

// mark is where a feed goes on behind a page, so that the next page need not search for that. What is held of a feed of which
// nothing is missing does not change any more, and what is written later stands behind it. Only what was written under a former key
// may be taken back.
type mark struct {
	last       uint64 // where the feed ended
	next       uint64 // all above stands behind the end of the page
	clock, seq uint64 // nothing from next on stands behind that
}

// marks says where the feeds go on before the last line that was taken. Of those that end before it nobody needs to be told.
func (m *merge) marks(at feed.OrderKey) map[localFeed]mark {
	if m == nil {
		return nil
	}
	out := make(map[localFeed]mark)
	for _, s := range m.feeds {
		if s.whole && !s.m.former(s.row.id) && !feed.Less(s.row.place(s.newest, s.mark.last), at) {
			out[s.row.local] = s.mark
		}
	}
	return out
}

// merge reads a conversation from right before an entry, or from its end.
func (h *history) merge(tx *storage.Tx, conv feed.ConversationID, before *feed.Entry, limit int) (*merge, error) {
	rows, err := h.m.feeds.of(tx, conv)
	if err != nil {
		return nil, err
	}
	var place *feed.OrderKey
	var marks map[localFeed]mark
	if before != nil {
		k := before.Order()
		place = &k
		h.mu.Lock()
		marks = h.marks[before.ID.String()] // which nobody changes
		h.mu.Unlock()
	}
	notes, err := h.notes(tx, conv, place, limit)
	if err != nil {
		return nil, err
	}
	group, err := h.m.isGroup(tx, conv)
	if err != nil {
		return nil, err
	}
	ends := make(map[feed.FeedID]replica.End, len(rows))
	err = h.m.env.feeds.FeedEnds(tx, conv, func(id feed.FeedID, end replica.End) error {
		ends[id] = end
		return nil
	})
	if err != nil {
		return nil, err
	}
	m := &merge{heap: make(strands, 0, len(rows)+1)}
	m.add(notes, nowhere())
	// Of many feeds each gives few lines.
	chunk := min(max(2, 2*uint64(limit)/uint64(len(rows)+1)), readAhead)
	for i := range rows {
		row := &rows[i]
		row.many = group
		if conv == h.m.env.self && row.id.Number == feed.Control {
			continue
		}
		s, at := h.feedSource(row, ends[row.id])
		s.chunk = chunk
		if place != nil {
			if at, err = s.from(tx, at, place, marks); err != nil {
				return nil, err
			}
		}
		m.add(s, at)
		m.feeds = append(m.feeds, s)
	}
	heap.Init(&m.heap)
	return m, nil
}

// feedSource walks a feed from its end. No line of it stands behind the place that is returned too. Where something is missing,
// what is shown of that stands where the entry behind it does, so nothing is known of such a feed, nor of one with two branches.
func (h *history) feedSource(row *feedRow, end replica.End) (*feedSource, feed.OrderKey) {
	s := &feedSource{
		m: h.m, row: row, next: row.shownTo(), floor: max(end.First, 1), after: feed.OrderKey{Clock: 1<<63 - 1},
		whole: end.Clock != 0 && end.Last == row.shownTo(), newest: end.Clock,
	}
	s.mark = mark{last: s.next, next: s.next, clock: end.Clock, seq: s.next}
	if !s.whole {
		return s, nowhere()
	}
	return s, row.place(end.Clock, end.Last)
}

// from lets a source begin right before a place.
func (s *feedSource) from(tx *storage.Tx, at feed.OrderKey, place *feed.OrderKey, marks map[localFeed]mark) (feed.OrderKey, error) {
	s.after = *place
	if feed.Less(at, *place) {
		return at, nil
	}
	if mark, ok := marks[s.row.local]; ok && s.whole && mark.last <= s.mark.last {
		s.mark, s.next, s.before = mark, mark.next, place
		if at = s.row.place(mark.clock, mark.seq); !feed.Less(at, *place) {
			at = *place
		}
		return at, nil
	}
	last, err := s.m.history.lastBefore(tx, s.row, *place, false)
	s.next = min(last, s.next)
	s.mark.next, s.mark.clock, s.mark.seq = s.next, place.Clock, s.next
	return nowhere(), err
}

// place is where an entry of a feed stands.
func (f *feedRow) place(clock, seq uint64) feed.OrderKey {
	return feed.OrderKey{Clock: clock, Account: f.account, Device: f.id.Device, Number: f.id.Number, Seq: seq}
}
