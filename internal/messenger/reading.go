package messenger

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// MarkRead marks what others said as read, all of it or up to a message, and returns how many lines that were.
func (m *Messenger) MarkRead(ctx context.Context, who, until string) (int, error) {
	conv, err := m.Conversation(ctx, who)
	if err != nil {
		return 0, err
	}
	marked := 0
	err = m.env.update(ctx, func(tx *storage.Tx) error {
		row, ok, err := m.convs.get(tx, conv)
		if err != nil || !ok || row.last.Seq == 0 {
			return err
		}
		position := row.last
		if until != "" {
			e, err := m.history.find(tx, until)
			if err != nil {
				return err
			}
			if e.Conversation != conv {
				return refuse(ErrNotFound, "this message is in another conversation", "")
			}
			position = e.Order()
		}
		if marked, err = m.readTo(tx, conv, position, until == ""); err != nil {
			return err
		}
		tx.OnCommit(func() { m.positions.note(conv, position) })
		return nil
	})
	return marked, err
}

// positions are read positions that other own devices were not told of yet. They are written some seconds later, one
// per conversation: the feed of the self conversation is kept for long, and only the newest position counts. Losing them
// in a crash costs other devices an unread mark; what this device shows is durable already.
type positions struct {
	mu    sync.Mutex // owns dirty
	dirty map[feed.ConversationID]feed.OrderKey
}

func (p *positions) note(conv feed.ConversationID, at feed.OrderKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if feed.Less(p.dirty[conv], at) {
		p.dirty[conv] = at
	}
}

func (p *positions) flush(ctx context.Context, m *Messenger) error {
	p.mu.Lock()
	dirty := p.dirty
	p.dirty = make(map[feed.ConversationID]feed.OrderKey)
	p.mu.Unlock()
	if len(dirty) == 0 {
		return nil
	}
	return m.env.update(ctx, func(tx *storage.Tx) error {
		for conv, at := range dirty {
			if err := m.sayRead(tx, conv, at); err != nil {
				return err
			}
		}
		return nil
	})
}

// sayRead notes a position in the self conversation. A read-only one is left as it is.
func (m *Messenger) sayRead(tx *storage.Tx, conv feed.ConversationID, position feed.OrderKey) error {
	if conv == m.env.self || m.writable(tx, m.env.self) != nil {
		return nil
	}
	p := &pb.ReadPosition{Conversation: conv[:], Clock: position.Clock}
	id := feed.FeedID{Conversation: conv, Number: position.Number, Device: position.Device}
	if e, err := m.env.feeds.Entry(tx, id, position.Seq); err == nil {
		p.Entry = e.ID[:]
	}
	content, err := proto.Marshal(p)
	if err != nil {
		return fmt.Errorf("writing read position: %w", err)
	}
	_, err = m.write(tx, replica.Draft{
		Conversation: m.env.self, Number: feed.Chat, Kind: feed.KindReadPosition, Content: content,
	})
	return err
}

// foldRead follows what another own device read.
func (m *Messenger) foldRead(tx *storage.Tx, e *feed.Entry, p *pb.ReadPosition) error {
	if e.Device == m.env.device || len(p.GetConversation()) != len(feed.ConversationID{}) {
		return errIgnored
	}
	conv := feed.ConversationID(p.GetConversation())
	if _, ok, err := m.convs.get(tx, conv); err != nil || !ok {
		return err
	}
	var end feed.OrderKey
	end.Clock = p.GetClock()
	for i := range end.Account {
		end.Account[i] = 0xff
	}
	_, err := m.readTo(tx, conv, end, false)
	return err
}

// readTo moves the read numbers of all feeds of others to the last entry that stands not after position, and returns how
// many lines became read. The numbers only grow.
func (m *Messenger) readTo(tx *storage.Tx, conv feed.ConversationID, position feed.OrderKey, all bool) (int, error) {
	row, _, err := m.convs.get(tx, conv)
	if err != nil {
		return 0, err
	}
	rows, err := m.feeds.of(tx, conv)
	if err != nil {
		return 0, err
	}
	var unread uint64
	changed := false
	for i := range rows {
		f := &rows[i]
		if f.own(m.env.account) {
			continue
		}
		to := f.last
		if !all && to > f.read {
			if to, err = m.history.lastBefore(tx, f, position, true); err != nil {
				return 0, err
			}
		}
		if to > f.read {
			f.read, changed = to, true
			if err := m.feeds.put(tx, *f); err != nil {
				return 0, err
			}
		}
		n, err := m.countUnread(tx, f, row.group())
		if err != nil {
			return 0, err
		}
		unread += n
	}
	marked := int(row.unread) - int(unread)
	if !changed && marked == 0 {
		return 0, nil
	}
	row.unread = unread
	if err := m.convs.put(tx, row); err != nil {
		return 0, err
	}
	tx.OnCommit(func() { m.env.feeds.PushReceipt(conv) })
	var peer identity.AccountID
	if row.peer != m.env.account {
		peer = row.peer
	}
	return max(marked, 0), m.events.add(tx, plain(EventRead, peer, conv, ""))
}

// countUnread counts the lines behind the read number. Beyond scanCap it counts numbers, which is right unless there
// are recalls among them.
func (m *Messenger) countUnread(tx *storage.Tx, f *feedRow, group bool) (uint64, error) {
	if f.id.Number != feed.Chat || f.last <= f.read {
		return 0, nil
	}
	if group {
		last, err := m.lastCounting(tx, f)
		if err != nil || last <= f.read {
			return 0, err
		}
		cut := *f
		cut.last, f = last, &cut
	}
	if f.last-f.read > scanCap {
		return f.last - f.read, nil
	}
	var n uint64
	err := m.env.feeds.Entries(tx, f.id, f.read+1, f.last, func(e feed.Entry) (bool, error) {
		if m.shown(&e) {
			n++
		}
		return true, nil
	})
	return n, err
}

// lastCounting is the last number of a feed of a group that counts: a removal may have cut it since it came.
func (m *Messenger) lastCounting(tx *storage.Tx, f *feedRow) (uint64, error) {
	counts := func(e *feed.Entry) (bool, error) { return m.counts(tx, e) }
	e, err := m.env.feeds.Entry(tx, f.id, f.last)
	if err == nil {
		if ok, err := counts(&e); err != nil || ok {
			return f.last, err
		}
	} else if !errors.Is(err, replica.ErrNoEntry) {
		return 0, err
	}
	// What a cut leaves is a beginning of the feed.
	lo, hi := f.read, f.last
	for lo < hi {
		mid := lo + (hi-lo+1)/2
		e, ok, err := m.history.atOrAfter(tx, f.id, mid, hi)
		if err != nil {
			return 0, err
		}
		if ok {
			if ok, err = counts(&e); err != nil {
				return 0, err
			}
		}
		if ok {
			lo = e.Seq
		} else {
			hi = mid - 1
		}
	}
	return lo, nil
}

// conversationID names the conversation with an account, or with oneself.
func (m *Messenger) conversationID(a identity.AccountID) feed.ConversationID {
	if a == m.env.account {
		return m.env.self
	}
	return feed.DirectConversation(m.env.account, a)
}
