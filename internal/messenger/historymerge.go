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

// merge gives the lines of several sources in one order, from the newest to the oldest. It is a heap by where the sources stand.
type merge []*strand

// add takes a source whose lines stand nowhere behind a place. The heap is made when all are there.
func (m *merge) add(s source, at feed.OrderKey) {
	*m = append(*m, &strand{source: s, at: at, place: len(*m)})
}

// nowhere is a place that stands behind all others: that of a source of which nothing is known.
func nowhere() feed.OrderKey { return feed.OrderKey{Clock: math.MaxUint64} }

// peek returns the next line of all without taking it; ok is false at the end.
func (m *merge) peek(tx *storage.Tx) (l *line, ok bool, err error) {
	for len(*m) > 0 {
		s := (*m)[0]
		if s.known {
			return &s.next, true, nil
		}
		if s.next, s.known, err = s.source.peek(tx); err != nil {
			return nil, false, err
		}
		if !s.known {
			heap.Pop(m)
			continue
		}
		s.at = s.next.key
		heap.Fix(m, 0)
	}
	return nil, false, nil
}

// take takes what peek returned.
func (m *merge) take() {
	s := (*m)[0]
	s.take()
	s.known = false
	heap.Fix(m, 0)
}

func (m *merge) Len() int      { return len(*m) }
func (m *merge) Swap(i, j int) { (*m)[i], (*m)[j] = (*m)[j], (*m)[i] }
func (m *merge) Push(s any)    { *m = append(*m, s.(*strand)) }

func (m *merge) Less(i, j int) bool {
	a, b := (*m)[i], (*m)[j]
	if c := a.at.Compare(b.at); c != 0 {
		return c > 0
	}
	if a.known != b.known {
		return b.known // what is not known yet may turn out to be the first of those with this key
	}
	return a.place < b.place
}

func (m *merge) Pop() any {
	last := len(*m) - 1
	s := (*m)[last]
	*m = (*m)[:last]
	return s
}

// merge reads a conversation from right before a place, or from its end.
func (h *history) merge(tx *storage.Tx, conv feed.ConversationID, before *feed.OrderKey, limit int) (*merge, error) {
	rows, err := h.m.feeds.of(tx, conv)
	if err != nil {
		return nil, err
	}
	notes, err := h.notes(tx, conv, before, limit)
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
	m := make(merge, 0, len(rows)+1)
	m.add(notes, nowhere())
	// Of many feeds each gives few lines.
	chunk := min(max(2, 2*uint64(limit)/uint64(len(rows)+1)), readAhead)
	for i := range rows {
		row := &rows[i]
		row.many = group
		if conv == h.m.env.self && row.id.Number == feed.Control {
			continue
		}
		end := ends[row.id]
		s := &feedSource{
			m: h.m, row: row, next: row.shownTo(), floor: max(end.First, 1), chunk: chunk, after: feed.OrderKey{Clock: 1<<63 - 1},
		}
		at := row.newest(end)
		if before != nil {
			s.after = *before
			if !feed.Less(at, *before) {
				at = nowhere()
				if s.next, err = h.lastBefore(tx, row, *before, false); err != nil {
					return nil, err
				}
				s.next = min(s.next, row.shownTo())
			}
		}
		m.add(s, at)
	}
	heap.Init(&m)
	return &m, nil
}

// newest is a place behind which no line of a feed stands. Where something is missing, what is shown of that stands where the
// entry behind it does, so nothing is known of such a feed, nor of one with two branches.
func (f *feedRow) newest(end replica.End) feed.OrderKey {
	if end.Clock == 0 || end.Last != f.shownTo() {
		return nowhere()
	}
	return feed.OrderKey{Clock: end.Clock, Account: f.account, Device: f.id.Device, Number: f.id.Number, Seq: end.Last}
}
