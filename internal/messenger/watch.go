package messenger

import (
	"context"
	"fmt"

	"hima/identity"
	"hima/internal/feed"
	"hima/storage"
)

// watchBatch is how many events are read in one transaction.
const watchBatch = 256

// Watch calls each for events in order, first the stored ones after q.Since, then what happens, until ctx ends or each
// returns an error, which Watch returns. Resuming with the last sequence number loses and repeats nothing; if what
// follows it was trimmed already, a gap event says so first. Each is called by one goroutine and may take its time: the
// store remembers where the watcher is.
func (m *Messenger) Watch(ctx context.Context, q WatchQuery, each func(Event) error) error {
	w := watcher{m: m, at: q.Since}
	if q.Conversation != "" {
		conv, err := m.Conversation(ctx, q.Conversation)
		if err != nil {
			return err
		}
		w.only = &conv
	}
	sub := m.events.subscribe()
	defer m.events.unsubscribe(sub)
	if q.FromNow {
		if err := w.skipToEnd(); err != nil {
			return err
		}
	}
	ready := false
	for {
		list, more, err := w.read()
		if err != nil {
			return fmt.Errorf("reading events: %w", err)
		}
		for _, e := range list {
			if err := each(e); err != nil {
				return err
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if more {
			continue
		}
		if !ready {
			ready = true
			if err := each(Event{Seq: w.at, Time: m.env.now(), Type: EventReady}); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-sub.wake:
		case e := <-sub.live:
			if w.wants(e.Conversation) {
				if err := each(e); err != nil {
					return err
				}
			}
		}
	}
}

// watcher is one reader's place in the sequence.
type watcher struct {
	m    *Messenger
	at   uint64 // last event that was given, or passed over
	only *feed.ConversationID
}

func (w *watcher) wants(conv *feed.ConversationID) bool {
	return w.only == nil || conv != nil && *conv == *w.only
}

func (w *watcher) skipToEnd() error {
	return w.m.env.db.View(func(tx *storage.Tx) error {
		next, _, err := w.m.events.bounds(tx)
		w.at = next - 1
		return err
	})
}

// read gives the next events; more tells whether others are waiting.
func (w *watcher) read() (list []Event, more bool, err error) {
	err = w.m.env.db.View(func(tx *storage.Tx) error {
		next, first, err := w.m.events.bounds(tx)
		if err != nil {
			return err
		}
		// Behind the end: the database is an older one than the watcher saw. Before the beginning: trimmed.
		if w.at >= next || w.at+1 < first && w.at > 0 {
			list = append(list, Event{Seq: first - 1, Time: w.m.env.now(), Type: EventGap})
			w.at = first - 1
		}
		w.at = max(w.at, first-1)
		for w.at+1 < next && len(list) < watchBatch {
			rec, ok, err := w.m.events.at(tx, w.at+1)
			if err != nil {
				return err
			}
			if !ok {
				return errRow
			}
			limit := watchBatch - len(list)
			events, err := w.m.expand(tx, &rec, w.at+1, limit, w.wants)
			if err != nil {
				return err
			}
			list = append(list, events...)
			w.at = min(w.at+uint64(limit), rec.seq+rec.count-1)
			if n := len(events); n > 0 && events[n-1].Seq > 0 {
				w.at = events[n-1].Seq
			}
		}
		more = w.at+1 < next
		return nil
	})
	return list, more, err
}

// expand makes events of a record, from event seq on, at most limit.
func (m *Messenger) expand(tx *storage.Tx, rec *record, seq uint64, limit int, wants func(*feed.ConversationID) bool) ([]Event, error) {
	if rec.kind != recordMessages && rec.kind != recordStates {
		e := Event{Seq: rec.seq, Time: eventTime(rec), Type: rec.event, Detail: rec.detail}
		if rec.account != (identity.AccountID{}) {
			e.Account = &rec.account
		}
		if !rec.conv.IsZero() {
			e.Conversation = &rec.conv
		}
		if !wants(e.Conversation) {
			return nil, nil
		}
		e.Network, e.Name, e.Holder = rec.network, rec.name, rec.holder
		if err := m.nameEvent(tx, rec, &e); err != nil {
			return nil, err
		}
		if !rec.holder.IsZero() {
			var err error
			if e.Name, err = m.holderName(tx, rec.holder); err != nil {
				return nil, err
			}
		}
		return []Event{e}, nil
	}
	row, err := m.feeds.local(tx, rec.feed)
	if err != nil {
		return nil, err
	}
	conv := row.id.Conversation
	if !wants(&conv) {
		return nil, nil
	}
	r, err := m.renderer(tx, conv)
	if err != nil {
		return nil, err
	}
	if rec.kind == recordMessages {
		return m.expandMessages(rec, seq, limit, r, &row)
	}
	return m.expandStates(rec, seq, limit, r, &row)
}

// nameEvent says what those are called whom an event of a group concerns.
func (m *Messenger) nameEvent(tx *storage.Tx, rec *record, e *Event) (err error) {
	switch rec.event {
	case EventGroup, EventInvitation, EventApplication:
	default:
		return nil
	}
	n := m.names(tx, rec.conv)
	if !rec.subject.IsZero() {
		e.Subject = &rec.subject
		if e.SubjectName, err = n.of(rec.subject); err != nil {
			return err
		}
	}
	e.AccountName, err = n.of(rec.account)
	return err
}

// event begins an event of a conversation.
func (r *renderer) event(rec *record, seq uint64, t EventType) Event {
	conv := r.conv.id
	ev := Event{Seq: seq, Time: eventTime(rec), Type: t, Conversation: &conv}
	if !r.conv.group() {
		ev.Account = accountPointer(r.conv.peer)
	}
	return ev
}

// expandMessages gives one event per entry of the run; the entry says by its present state what became of it.
func (m *Messenger) expandMessages(rec *record, seq uint64, limit int, r *renderer, row *feedRow) ([]Event, error) {
	from := rec.from + (seq - rec.seq)
	to := min(rec.to, from+uint64(limit)-1)
	out := make([]Event, 0, to-from+1)
	err := m.env.feeds.Entries(r.tx, row.id, from, to, func(e feed.Entry) (bool, error) {
		if r.conv.group() {
			if counts, err := m.counts(r.tx, &e); err != nil || !counts {
				return err == nil, err
			}
		}
		msg, err := r.message(&e, row)
		if err != nil {
			return false, err
		}
		ev := r.event(rec, rec.seq+e.Seq-rec.from, EventMessage)
		ev.Message = &msg
		if r.conv.group() {
			ev.Account, ev.AccountName = &msg.Author, msg.AuthorName
			if !msg.Subject.IsZero() {
				ev.Subject, ev.SubjectName = &msg.Subject, msg.SubjectName
			}
		}
		out = append(out, ev)
		return true, nil
	})
	return out, err
}

func (m *Messenger) expandStates(rec *record, seq uint64, limit int, r *renderer, row *feedRow) ([]Event, error) {
	var out []Event
	for ; seq < rec.seq+rec.count && len(out) < limit; seq++ {
		from := rec.from + (seq-rec.seq)*stateIDs
		to := min(rec.to, from+stateIDs-1)
		ev := r.event(rec, seq, EventState)
		ev.Detail = string(rec.state)
		err := m.env.feeds.Entries(r.tx, row.id, from, to, func(e feed.Entry) (bool, error) {
			kind, _ := says(&e)
			if !m.shown(&e) && kind != MessageCancelled {
				return true, nil
			}
			ev.MessageIDs = append(ev.MessageIDs, e.ID)
			msg, err := r.message(&e, row)
			// The event is about what happened then, which may be less than what is so by now.
			if msg.State != StateCancelled {
				msg.State = rec.state
			}
			ev.Message = &msg
			return true, err
		})
		if err != nil {
			return nil, err
		}
		if len(ev.MessageIDs) > 0 {
			out = append(out, ev)
		}
	}
	return out, nil
}

// Warn stores a warning, by its code.
func (m *Messenger) Warn(ctx context.Context, code string) error {
	return m.env.update(ctx, func(tx *storage.Tx) error {
		return m.events.add(tx, plain(EventWarning, identity.AccountID{}, feed.ConversationID{}, code))
	})
}
