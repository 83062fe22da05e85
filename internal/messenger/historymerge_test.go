package messenger

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"hima/groups"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// plainPage is a page as the rules say it: all feeds are opened, and of all their next lines the newest is taken.
func plainPage(tx *storage.Tx, h *history, conv feed.ConversationID, before *feed.OrderKey, limit int) (lines []line, more bool, err error) {
	rows, err := h.m.feeds.of(tx, conv)
	if err != nil {
		return nil, false, err
	}
	notes, err := h.notes(tx, conv, before, limit)
	if err != nil {
		return nil, false, err
	}
	sources := []source{notes}
	for i := range rows {
		row := &rows[i]
		if row.many, err = h.m.isGroup(tx, conv); err != nil {
			return nil, false, err
		}
		head, _, err := h.m.env.feeds.Head(tx, row.id)
		if err != nil {
			return nil, false, err
		}
		s := &feedSource{m: h.m, row: row, next: row.shownTo(), floor: max(head.First, 1), chunk: 1, after: feed.OrderKey{Clock: 1<<63 - 1}}
		if before != nil {
			s.after = *before
			last, err := h.lastBefore(tx, row, *before, false)
			if err != nil {
				return nil, false, err
			}
			s.next = min(s.next, last)
		}
		sources = append(sources, s)
	}
	for {
		var best source
		var next line
		for _, s := range sources {
			l, ok, err := s.peek(tx)
			if err != nil {
				return nil, false, err
			}
			if ok && (best == nil || feed.Less(next.key, l.key)) {
				best, next = s, l
			}
		}
		if best == nil || len(lines) == limit {
			return lines, best != nil, nil
		}
		lines = append(lines, next)
		best.take()
	}
}

// says is what of a line can be compared.
func (l *line) says() string {
	return fmt.Sprint(l.key, l.hole, l.note, l.entry.ID)
}

// comparePages turns all pages of a conversation, of some size, and returns how many lines they have. between is done between pages.
func comparePages(t require.TestingT, m *Messenger, conv feed.ConversationID, limit int, between func()) (n int) {
	var before *feed.Entry
	for more := true; more; {
		require.NoError(t, m.env.db.View(func(tx *storage.Tx) error {
			var at *feed.OrderKey
			if before != nil {
				k := before.Order()
				at = &k
			}
			plain, plainMore, err := plainPage(tx, m.history, conv, at, limit)
			require.NoError(t, err)
			merge, err := m.history.merge(tx, conv, before, limit)
			require.NoError(t, err)
			quick, quickMore, err := m.history.page(tx, merge, limit, time.Time{})
			require.NoError(t, err)
			require.Equal(t, plainMore, quickMore)
			m.history.remember(quick, merge)
			require.Len(t, quick, len(plain))
			more, n = false, n+len(plain)
			for i := range plain {
				require.Equal(t, plain[i].says(), quick[i].says())
				if plain[i].entry.Seq != 0 {
					before, more = &plain[i].entry, plainMore
				}
			}
			return nil
		}))
		between()
	}
	return n
}

// speaker writes feeds of a group, of which somebody else gets to see what a test brings.
type speaker struct {
	guest
	written map[feed.Number][]feed.Entry // of each feed
	brought map[feed.Number]int          // how many of these, from the first on
}

func (s *speaker) write(t *rapid.T, conv feed.ConversationID, n feed.Number, clock uint64) {
	var content proto.Message = &pb.Text{Text: "words"}
	kind := feed.KindText
	if n == feed.Control {
		// Not all acts are lines.
		kind, content = feed.KindGroupSet, &pb.GroupSet{Key: "name", Value: "x"}
		if rapid.Bool().Draw(t, "nickname") {
			kind, content = feed.KindGroupNickname, &pb.GroupNickname{Nickname: "x"}
		}
	}
	raw, err := proto.Marshal(content)
	require.NoError(t, err)
	clock = max(clock, s.tips[n].Clock+1)
	e, err := s.author.NextInGroup(s.tips[n], conv, n, kind, clock, testStart.UnixMilli(), raw, feed.Group{Epoch: make([]byte, 32)})
	require.NoError(t, err)
	s.tips[n] = e.Tip()
	s.written[n] = append(s.written[n], e)
}

// bring brings the next few entries of a feed, or one that stands ahead of a gap.
func (s *speaker) bring(t *rapid.T, p *person, n feed.Number) {
	left := s.written[n][s.brought[n]:]
	if len(left) == 0 {
		return
	}
	from := replica.Peer{Account: s.cert.Account, Device: s.key.ID()}
	count, detached := rapid.IntRange(1, len(left)).Draw(t, "count"), false
	entries := left[:count]
	if len(left) > 1 && rapid.IntRange(0, 3).Draw(t, "ahead") == 0 {
		skip := rapid.IntRange(1, len(left)-1).Draw(t, "skip")
		entries, detached = left[skip:skip+1], true
	} else {
		s.brought[n] += count
	}
	if n == feed.Chat && rapid.IntRange(0, 5).Draw(t, "bare") == 0 {
		entries = []feed.Entry{entries[0].WithoutBody()}
		if !detached {
			s.brought[n] += 1 - count
		}
	}
	require.NoError(t, p.db.Update(context.Background(), func(tx *storage.Tx) error {
		for _, e := range entries {
			if err := p.feeds.store(tx, e, !detached); err != nil {
				return err
			}
		}
		return p.m.Applied(tx, replica.Applied{Peer: from, Entries: entries, Detached: detached})
	}))
}

// Whatever came in which order, with holes, cuts, void acts, branches and floors, a page has the same lines in the same order as if
// all feeds had been opened.
func TestPageOpensWhatItNeeds(t *testing.T) {
	owner := newPerson(t, "alice")
	var pool []*person
	for i := range 5 {
		pool = append(pool, newPerson(t, fmt.Sprint("speaker", i)))
	}
	round := uint64(0)
	rapid.Check(t, func(t *rapid.T) {
		round++
		id := owner.writeAct(groups.ID{}, feed.KindGroupCreate, &pb.GroupCreate{}).Conversation
		g := owner.in(id, fmt.Sprint("Hikers ", round), uint64(rapid.IntRange(0, 20).Draw(t, "joined")), append(pool, owner)...)
		var speakers []*speaker
		for _, p := range pool {
			s := &speaker{written: map[feed.Number][]feed.Entry{}, brought: map[feed.Number]int{}}
			s.guest = guest{key: p.key, cert: p.cert, author: feed.NewAuthor(p.account, p.device, p.cert), tips: map[feed.Number]feed.Tip{}}
			speakers = append(speakers, s)
		}
		somebody := rapid.SampledFrom(speakers)
		number := rapid.SampledFrom([]feed.Number{feed.Chat, feed.Chat, feed.Control})
		clock := uint64(1)
		step := func() {
			s, n := somebody.Draw(t, "who"), number.Draw(t, "feed")
			switch rapid.IntRange(0, 9).Draw(t, "step") {
			case 0:
				owner.tells("group:"+id.String(), "own words")
			case 1:
				g.cut[s.cert.Account] = uint64(rapid.IntRange(0, 5).Draw(t, "cut"))
			case 2:
				delete(g.cut, s.cert.Account)
			case 3:
				at := place{seq: uint64(rapid.IntRange(1, 4).Draw(t, "void"))}
				g.void[at] = !g.void[at]
			case 4:
				owner.branches(t, id, s, uint64(rapid.IntRange(1, 6).Draw(t, "branch")))
			case 5, 6:
				s.bring(t, owner, n)
			default:
				// Who was away writes with clocks that others have long passed.
				clock += uint64(rapid.IntRange(0, 3).Draw(t, "later"))
				s.write(t, id, n, uint64(rapid.IntRange(1, int(clock)+1).Draw(t, "clock")))
			}
		}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			step()
		}
		for _, s := range speakers {
			for _, n := range []feed.Number{feed.Chat, feed.Control} {
				s.bring(t, owner, n)
			}
		}
		comparePages(t, owner.m, id, rapid.IntRange(1, 7).Draw(t, "limit"), step)
		comparePages(t, owner.m, id, 50, step)
	})
}

// branches tells a person that a chat feed has two branches from a number on.
func (p *person) branches(t *rapid.T, conv feed.ConversationID, s *speaker, at uint64) {
	id := feed.FeedID{Conversation: conv, Number: feed.Chat, Device: s.key.ID()}
	require.NoError(t, p.db.Update(context.Background(), func(tx *storage.Tx) error {
		row, ok, err := p.m.feeds.get(tx, id)
		if err != nil || !ok {
			return err
		}
		row.cut = at
		return p.m.feeds.put(tx, row)
	}))
}

// The same over real rosters and real feeds.
func TestCrowdPages(t *testing.T) {
	h := newHall(t, 12, 5)
	n := comparePages(t, h.m, h.conv, 7, func() {})
	require.Greater(t, n, 11*5)
	require.Equal(t, n, comparePages(t, h.m, h.conv, 50, func() {}))
}
