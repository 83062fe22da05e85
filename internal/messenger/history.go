package messenger

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/storage"
)

// history reads conversations. There is no table of messages in order: within a feed the clock grows with the number, so
// the order of a conversation is the merge of its feeds, read from the newest end as far as a page needs.
type history struct {
	m *Messenger

	mu     sync.Mutex // owns the rest
	pages  map[string]place
	marks  map[string]map[localFeed]mark // where feeds go on behind these ends
	marked int                           // marks in all
}

// maxPages is how many ends of pages are remembered, so that turning pages need not search for them.
const maxPages = 1024

// remember notes where the oldest message of a page is: the next page is asked for by its ID.
func (h *history) remember(lines []line, m *merge) {
	for i := len(lines) - 1; i >= 0; i-- {
		l := &lines[i]
		if l.entry.Seq == 0 {
			m = nil // the feeds stand behind something else
			continue
		}
		marks := m.marks(l.key)
		h.mu.Lock()
		defer h.mu.Unlock()
		if len(h.pages) >= maxPages || h.marks == nil || h.marked+len(marks) > maxMarks {
			clear(h.pages)
			h.marks, h.marked = make(map[string]map[localFeed]mark), 0
		}
		id := l.entry.ID.String()
		h.marked += len(marks) - len(h.marks[id])
		h.pages[id], h.marks[id] = place{feed: l.row.local, seq: l.entry.Seq}, marks
		return
	}
}

// remembered reads the entry of a message ID that ended a page.
func (h *history) remembered(tx *storage.Tx, id string) (e feed.Entry, ok bool) {
	h.mu.Lock()
	p, ok := h.pages[id]
	h.mu.Unlock()
	if !ok {
		return e, false
	}
	fid, err := h.m.tables.name(tx, p.feed)
	if err == nil {
		e, err = h.m.env.feeds.Entry(tx, fid, p.seq)
	}
	return e, err == nil && e.ID.String() == id
}

// line is one line of history before it is rendered.
type line struct {
	key   feed.OrderKey
	row   *feedRow
	entry feed.Entry
	hole  int   // entry is none, so many are missing
	note  int64 // entry is none, Unix ms of a change of devices
}

// feedSource walks one feed backwards.
type feedSource struct {
	m     *Messenger
	row   *feedRow
	next  uint64 // number to be read next
	floor uint64 // what is missing below it is not missed (R2)
	after feed.OrderKey
	holes []replica.Hole
	asked bool         // holes were read
	chunk uint64       // how many entries are read next
	ahead []feed.Entry // read already: consecutive numbers, the highest is the next
	cur   line
	have  bool

	before *feed.OrderKey // what does not stand before it is passed over; nil: nothing is
	whole  bool           // nothing is missing of it, and it ends at the clock newest
	newest uint64
	mark   mark
}

func (s *feedSource) take() {
	s.have = false
	s.mark.next, s.mark.clock, s.mark.seq = s.cur.key.Seq-1, s.cur.key.Clock, s.cur.key.Seq
}

func (s *feedSource) peek(tx *storage.Tx) (line, bool, error) {
	for !s.have && s.next > 0 {
		if err := s.step(tx); err != nil {
			return line{}, false, err
		}
	}
	return s.cur, s.have, nil
}

// step reads one number, which gives a line or nothing.
func (s *feedSource) step(tx *storage.Tx) error {
	seq := s.next
	e, err := s.entry(tx, seq)
	if errors.Is(err, replica.ErrNoEntry) {
		if seq < s.floor {
			return s.jump(tx, seq)
		}
		return s.stepHole(tx, seq)
	}
	if err != nil {
		return fmt.Errorf("reading history: %w", err)
	}
	s.next, s.after = seq-1, e.Order()
	if seq == s.mark.next {
		s.mark.clock, s.mark.seq = e.Clock, e.Seq
	}
	if s.before != nil && !feed.Less(s.after, *s.before) {
		return nil
	}
	show, hole, err := s.m.history.visible(tx, &e, s.row)
	if err != nil || !show && !hole {
		return err
	}
	s.cur, s.have = line{key: e.Order(), row: s.row, entry: e}, true
	if hole {
		s.cur.hole = 1
	}
	return nil
}

// readAhead is how many entries are read at a time at most. Neighbours often lie in one row, so one alone costs as much as a dozen.
const readAhead = 32

// entry reads an entry and those before it, which are asked for next.
func (s *feedSource) entry(tx *storage.Tx, seq uint64) (feed.Entry, error) {
	if n := len(s.ahead); n == 0 || s.ahead[n-1].Seq != seq {
		s.ahead = s.ahead[:0]
		from := seq - min(seq-1, s.chunk-1)
		s.chunk = min(2*s.chunk, readAhead)
		err := s.m.env.feeds.Entries(tx, s.row.id, from, seq, func(e feed.Entry) (bool, error) {
			if n := len(s.ahead); n > 0 && s.ahead[n-1].Seq+1 != e.Seq {
				s.ahead = s.ahead[:0]
			}
			s.ahead = append(s.ahead, e)
			return true, nil
		})
		if err != nil {
			return feed.Entry{}, err
		}
	}
	last := len(s.ahead) - 1
	if last < 0 || s.ahead[last].Seq != seq {
		return feed.Entry{}, replica.ErrNoEntry
	}
	e := s.ahead[last]
	s.ahead = s.ahead[:last]
	return e, nil
}

// jump goes from a missing number below the floor to the next lower one that is held, by looking at ranges that double.
func (s *feedSource) jump(tx *storage.Tx, seq uint64) error {
	for span := uint64(1); seq > 0; span *= 2 {
		from, found := seq-min(span, seq)+1, uint64(0)
		err := s.m.env.feeds.Entries(tx, s.row.id, from, seq, func(e feed.Entry) (bool, error) {
			found = e.Seq
			return true, nil
		})
		if err != nil || found > 0 {
			s.next = found
			return err
		}
		seq = from - 1
	}
	s.next = 0
	return nil
}

// stepHole gives one line for all that is missing in one place. It stands right before the entry behind the hole.
func (s *feedSource) stepHole(tx *storage.Tx, seq uint64) error {
	if !s.asked {
		s.asked = true
		var err error
		if s.holes, err = s.m.env.feeds.Holes(tx, s.row.id); err != nil {
			return fmt.Errorf("reading holes: %w", err)
		}
	}
	from := seq
	for _, h := range s.holes {
		if h.From <= seq && seq <= h.To {
			from = max(h.From, s.floor)
		}
	}
	s.next = from - 1
	key := s.after
	key.Account, key.Device, key.Number, key.Seq = s.row.account, s.row.id.Device, s.row.id.Number, seq
	s.cur, s.have = line{key: key, row: s.row, hole: int(seq - from + 1)}, true
	return nil
}

// visible tells whether an entry is a line, or a missing body to be shown as a hole.
func (h *history) visible(tx *storage.Tx, e *feed.Entry, row *feedRow) (show, hole bool, err error) {
	if row.many {
		// Beyond a cut nothing is shown, not even that something is missing.
		if counts, err := h.m.counts(tx, e); err != nil || !counts {
			return false, false, err
		}
	}
	if h.m.former(row.id) {
		if again, err := tx.Has(againKey(e.ID)); err != nil || again {
			return false, false, err
		}
	}
	if e.HasBody() {
		return h.m.shown(e), false, nil
	}
	own := row.own(h.m.env.account)
	if own && e.Number == feed.Control && e.Kind == feed.KindRequest && e.Conversation != h.m.env.self {
		return true, false, nil // withdrawn
	}
	if feed.Known(e.Number, e.Kind) && (e.Number == feed.Control || e.Kind != feed.KindText) {
		return false, false, nil
	}
	if own {
		return true, false, nil
	}
	recalled, err := tx.Has(recalledKey(e.ID))
	if err != nil || !recalled {
		return false, err == nil, err
	}
	a, ok, err := h.m.arrivals.get(tx, row.local, e.Seq)
	return ok && !a.bare, false, err
}

// noteSource walks the lines that are no entries.
type noteSource struct {
	lines []line
}

func (s *noteSource) take() { s.lines = s.lines[1:] }

func (s *noteSource) peek(*storage.Tx) (line, bool, error) {
	if len(s.lines) == 0 {
		return line{}, false, nil
	}
	return s.lines[0], true, nil
}

func noteKey(conv feed.ConversationID, clock uint64) []byte {
	return binary.BigEndian.AppendUint64(append([]byte(keyNote), conv[:]...), clock)
}

// notes reads the newest lines that are no entries and stand before a place.
func (h *history) notes(tx *storage.Tx, conv feed.ConversationID, before *feed.OrderKey, limit int) (*noteSource, error) {
	s := &noteSource{}
	o := storage.ScanOptions{Prefix: noteKey(conv, 0)[:len(keyNote)+len(conv)], Reverse: true, Limit: limit}
	err := tx.Scan(o, func(key, _ []byte) (bool, error) {
		rest := key[len(o.Prefix):]
		if len(rest) != 16 {
			return false, errRow
		}
		k := feed.OrderKey{Clock: binary.BigEndian.Uint64(rest), Number: feed.Chat}
		for i := range k.Account {
			k.Account[i] = 0xff
		}
		if before == nil || feed.Less(k, *before) {
			s.lines = append(s.lines, line{key: k, note: int64(binary.BigEndian.Uint64(rest[8:]))})
		}
		return true, nil
	})
	return s, err
}

// noteDevices adds a line that says that the other side's devices changed.
func (m *Messenger) noteDevices(tx *storage.Tx, conv feed.ConversationID) error {
	row, ok, err := m.convs.get(tx, conv)
	if err != nil || !ok {
		return err
	}
	key := binary.BigEndian.AppendUint64(noteKey(conv, row.last.Clock), uint64(m.env.now().UnixMilli()))
	return tx.Set(key, nil)
}

// lastBefore finds the highest number of a feed that stands before a place, or also at it. Clocks grow with numbers, so
// it is a binary search; a hole is judged by the entry behind it.
func (h *history) lastBefore(tx *storage.Tx, row *feedRow, place feed.OrderKey, at bool) (uint64, error) {
	lo, hi := uint64(0), row.last
	for lo < hi {
		mid := lo + (hi-lo+1)/2
		e, ok, err := h.atOrAfter(tx, row.id, mid, hi)
		if err != nil {
			return 0, err
		}
		if ok && (feed.Less(e.Order(), place) || at && e.Order() == place) {
			lo = e.Seq
			continue
		}
		hi = mid - 1
	}
	return lo, nil
}

func (h *history) atOrAfter(tx *storage.Tx, id feed.FeedID, from, to uint64) (e feed.Entry, ok bool, err error) {
	e, err = h.m.env.feeds.Entry(tx, id, from)
	if err == nil || !errors.Is(err, replica.ErrNoEntry) {
		return e, err == nil, err
	}
	err = h.m.env.feeds.Entries(tx, id, from, to, func(next feed.Entry) (bool, error) {
		e, ok = next, true
		return false, nil
	})
	return e, ok, err
}

// find reads the entry of a message ID, or of an unambiguous beginning of one of at least eight digits.
func (h *history) find(tx *storage.Tx, id string) (found feed.Entry, err error) {
	id = strings.ToLower(strings.TrimSpace(id))
	if len(id) < 2*idBytes || len(id) > 64 || strings.Trim(id, "0123456789abcdef") != "" {
		return found, refuse(ErrInvalid, "this is not a message ID", "give at least 8 hexadecimal digits")
	}
	if e, ok := h.remembered(tx, id); ok {
		return e, nil
	}
	n := 0
	err = h.m.arrivals.search(tx, 0, id, 0, func(p place) (bool, error) {
		fid, err := h.m.tables.name(tx, p.feed)
		if err != nil {
			return false, err
		}
		e, err := h.m.env.feeds.Entry(tx, fid, p.seq)
		if errors.Is(err, replica.ErrNoEntry) {
			return true, nil
		}
		if err == nil && strings.HasPrefix(e.ID.String(), id) {
			found = e
			n++
		}
		// A whole ID names one entry.
		return n < 2 && (n == 0 || len(id) < 64), err
	})
	switch {
	case err != nil:
		return feed.Entry{}, err
	case n == 0:
		return feed.Entry{}, refuse(ErrNotFound, "there is no message with this ID", "message IDs are shown by `hima history`")
	case n > 1:
		return feed.Entry{}, refuse(ErrAmbiguous, "several messages begin like this", "give more of the ID")
	}
	return found, nil
}

// page reads lines from the newest end, newest first.
func (h *history) page(tx *storage.Tx, m *merge, limit int, since time.Time) (lines []line, more bool, err error) {
	older := 0
	for {
		l, ok, err := m.peek(tx)
		if err != nil || !ok {
			return lines, false, err
		}
		// Authors' clocks are not in order, so one early line does not end the search; many in a row do.
		if !since.IsZero() && l.hole == 0 && l.note == 0 && l.entry.Time().Before(since) {
			if older++; older > 200 {
				return lines, false, nil
			}
			m.take()
			continue
		}
		if len(lines) == limit {
			return lines, true, nil
		}
		older = 0
		lines = append(lines, *l)
		m.take()
	}
}

// History reads one page of a conversation.
func (m *Messenger) History(ctx context.Context, q HistoryQuery) (History, error) {
	limit := q.Limit
	switch {
	case limit < 0 || limit > maxPage:
		return History{}, refuse(ErrInvalid, "a page has 1 to 1000 lines", "")
	case limit == 0:
		limit = defaultPage
	}
	conv, err := m.Conversation(ctx, q.Who)
	if err != nil {
		return History{}, err
	}
	out := History{Conversation: conv}
	err = m.env.db.View(func(tx *storage.Tx) error {
		var before *feed.Entry
		if q.Before != "" {
			e, err := m.history.find(tx, q.Before)
			if err != nil {
				return err
			}
			if e.Conversation != out.Conversation {
				return refuse(ErrNotFound, "this message is in another conversation", "")
			}
			before = &e
		}
		merge, err := m.history.merge(tx, out.Conversation, before, limit)
		if err != nil {
			return err
		}
		lines, more, err := m.history.page(tx, merge, limit, q.Since)
		if err != nil {
			return err
		}
		out.More = more
		if !q.Since.IsZero() {
			merge = nil // what was passed over is not on the page
		}
		m.history.remember(lines, merge)
		out.Messages, err = m.render(tx, out.Conversation, lines)
		return err
	})
	return out, err
}

// render makes messages of lines and turns them round, oldest first.
func (m *Messenger) render(tx *storage.Tx, conv feed.ConversationID, lines []line) ([]Message, error) {
	r, err := m.renderer(tx, conv)
	if err != nil {
		return nil, err
	}
	out := make([]Message, 0, len(lines))
	for i := range lines {
		msg, err := r.line(&lines[i])
		if err != nil {
			return nil, err
		}
		out = append(out, msg)
	}
	slices.Reverse(out)
	return out, nil
}

// ownName is what we are called in our own history.
func (m *Messenger) ownName() string {
	if n := m.settings.now(profileNickname); n != "" {
		return n
	}
	return m.settings.username()
}

// OwnName is what this account calls itself: its nickname, or else its username. It is how somebody is shown in a group
// whose members are no contacts.
func (m *Messenger) OwnName() string { return m.ownName() }

func accountPointer(a identity.AccountID) *identity.AccountID { return &a }
