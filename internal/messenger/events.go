package messenger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"hima/identity"
	"hima/internal/feed"
	"hima/storage"
)

// recordKind says what a stored record covers.
type recordKind byte

const (
	recordMessages recordKind = 1 // entries from.. of one feed, one event each
	recordStates   recordKind = 2 // entries from..to of one own feed, one event for each stateIDs of them
	recordPlain    recordKind = 3 // one event, given in full
)

// record is what is stored of events: a run of k messages is one small record and k events, so that the cost of the
// event sequence is per run and not per message.
type record struct {
	seq   uint64 // of its first event
	count uint64 // how many events it covers
	kind  recordKind
	time  int64 // Unix ms

	feed     localFeed // messages, states
	from, to uint64
	state    State // states

	event   EventType // plain
	account identity.AccountID
	conv    feed.ConversationID
	detail  string
	network string             // plain: name, network
	name    string             // plain: name
	holder  identity.DeviceID  // plain: mailbox
	subject identity.AccountID // plain: groups
}

func (r *record) append(b []byte) []byte {
	b = append(b, byte(r.kind))
	b = binary.AppendUvarint(b, r.count)
	b = binary.AppendUvarint(b, uint64(r.time))
	switch r.kind {
	case recordMessages, recordStates:
		b = binary.AppendUvarint(b, uint64(r.feed))
		b = binary.AppendUvarint(binary.AppendUvarint(b, r.from), r.to)
		b = putText(b, string(r.state))
	default:
		b = putText(b, string(r.event))
		b = append(append(b, r.account[:]...), r.conv[:]...)
		b = putText(b, r.detail)
		if r.network != "" || r.name != "" || !r.holder.IsZero() || !r.subject.IsZero() {
			b = append(putText(putText(b, r.network), r.name), r.holder[:]...)
		}
		if !r.subject.IsZero() {
			b = append(b, r.subject[:]...)
		}
	}
	return b
}

func parseRecord(seq uint64, b []byte) (record, error) {
	if len(b) == 0 {
		return record{}, errRow
	}
	rec := record{seq: seq, kind: recordKind(b[0])}
	r := reader{b: b[1:]}
	rec.count, rec.time = r.uint(), int64(r.uint())
	switch rec.kind {
	case recordMessages, recordStates:
		rec.feed, rec.from, rec.to = localFeed(r.uint()), r.uint(), r.uint()
		rec.state = State(r.text())
	default:
		rec.event = EventType(r.text())
		r.fixed(rec.account[:])
		r.fixed(rec.conv[:])
		rec.detail = r.text()
		if len(r.b) > 0 {
			rec.network, rec.name = r.text(), r.text()
			r.fixed(rec.holder[:])
		}
		if len(r.b) > 0 {
			r.fixed(rec.subject[:])
		}
	}
	if err := r.done(); err != nil || rec.count == 0 {
		return record{}, fmt.Errorf("reading event %d: %w", seq, errRow)
	}
	return rec, nil
}

// events is the stored sequence and the list of those who follow it. A record is written in the transaction of the
// change it tells of. Watchers read from the store and are only woken here, so a slow one costs nothing and loses nothing.
type events struct {
	env   *env
	limit uint64

	mu   sync.Mutex // owns subs
	subs map[*subscriber]struct{}
}

// subscriber is one watcher. wake has one slot: many commits while it is busy are one wake-up. live holds what is never
// stored; when it is full the newest is dropped, because typing and presence are worth nothing late.
type subscriber struct {
	wake chan struct{}
	live chan Event
}

const liveEvents = 64

func newEvents(e *env, l Limits) *events {
	return &events{env: e, limit: l.Events, subs: make(map[*subscriber]struct{})}
}

func (ev *events) subscribe() *subscriber {
	s := &subscriber{wake: make(chan struct{}, 1), live: make(chan Event, liveEvents)}
	ev.mu.Lock()
	defer ev.mu.Unlock()
	ev.subs[s] = struct{}{}
	return s
}

func (ev *events) unsubscribe(s *subscriber) {
	ev.mu.Lock()
	defer ev.mu.Unlock()
	delete(ev.subs, s)
}

func (ev *events) wake() {
	ev.mu.Lock()
	defer ev.mu.Unlock()
	for s := range ev.subs {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// tell hands out an event that is never stored.
func (ev *events) tell(e Event) {
	ev.mu.Lock()
	defer ev.mu.Unlock()
	for s := range ev.subs {
		select {
		case s.live <- e:
		default:
		}
	}
}

func eventKey(seq uint64) []byte { return binary.BigEndian.AppendUint64([]byte(keyEvent), seq) }

// bounds returns the number the next event gets and the first one kept.
func (ev *events) bounds(tx *storage.Tx) (next, first uint64, err error) {
	b, ok, err := getRow(tx, []byte(keyEventEnd))
	if err != nil || !ok {
		return 1, 1, err
	}
	if len(b) != 16 {
		return 0, 0, errRow
	}
	return binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:]), nil
}

// add stores records in the running transaction.
func (ev *events) add(tx *storage.Tx, records ...record) error {
	if len(records) == 0 {
		return nil
	}
	next, first, err := ev.bounds(tx)
	if err != nil {
		return fmt.Errorf("storing event: %w", err)
	}
	now := ev.env.now().UnixMilli()
	for i := range records {
		r := &records[i]
		r.seq, r.time = next, now
		r.count = max(r.count, 1)
		if err := tx.Set(eventKey(next), r.append(nil)); err != nil {
			return fmt.Errorf("storing event: %w", err)
		}
		next += r.count
	}
	if first, err = ev.trim(tx, next, first, len(records)+1); err != nil {
		return fmt.Errorf("trimming events: %w", err)
	}
	b := binary.BigEndian.AppendUint64(nil, next)
	if err := tx.Set([]byte(keyEventEnd), binary.BigEndian.AppendUint64(b, first)); err != nil {
		return fmt.Errorf("storing event: %w", err)
	}
	tx.OnCommit(ev.wake)
	return nil
}

// trim removes at most max old records. Each names how many events it covers, so the next one is found without a scan.
func (ev *events) trim(tx *storage.Tx, next, first uint64, max int) (uint64, error) {
	for ; max > 0 && next-first > ev.limit; max-- {
		b, err := tx.Get(eventKey(first))
		if err != nil {
			return first, err
		}
		r, err := parseRecord(first, b)
		if err != nil {
			return first, err
		}
		if next-(first+r.count) < ev.limit/2 {
			return first, nil
		}
		if err := tx.Delete(eventKey(first)); err != nil {
			return first, err
		}
		first += r.count
	}
	return first, nil
}

// at reads the record that covers event seq; ok is false behind the end.
func (ev *events) at(tx *storage.Tx, seq uint64) (rec record, ok bool, err error) {
	b, err := tx.Get(eventKey(seq))
	if err == nil {
		rec, err = parseRecord(seq, b)
		return rec, err == nil, err
	}
	if !errors.Is(err, storage.ErrNotFound) {
		return record{}, false, err
	}
	o := storage.ScanOptions{Prefix: []byte(keyEvent), Start: eventKey(seq), Reverse: true, Limit: 1}
	err = tx.Scan(o, func(key, val []byte) (bool, error) {
		start := binary.BigEndian.Uint64(key[len(keyEvent):])
		rec, err = parseRecord(start, val)
		ok = err == nil && seq < start+rec.count
		return false, err
	})
	return rec, ok, err
}

// plain makes a record of an event that is given in full.
func plain(t EventType, account identity.AccountID, conv feed.ConversationID, detail string) record {
	return record{kind: recordPlain, event: t, account: account, conv: conv, detail: detail}
}

// messageRecords covers entries of one feed, leaving out those that are not shown.
func messageRecords(local localFeed, entries []feed.Entry, shown func(*feed.Entry) bool) []record {
	var out []record
	for i := range entries {
		e := &entries[i]
		if !shown(e) {
			continue
		}
		if n := len(out); n > 0 && out[n-1].to+1 == e.Seq {
			out[n-1].to, out[n-1].count = e.Seq, out[n-1].count+1
			continue
		}
		out = append(out, record{kind: recordMessages, feed: local, from: e.Seq, to: e.Seq, count: 1})
	}
	return out
}

// stateRecord covers a range of own entries.
func stateRecord(local localFeed, from, to uint64, s State) record {
	return record{
		kind: recordStates, feed: local, from: from, to: to, state: s,
		count: (to - from + stateIDs) / stateIDs,
	}
}

func eventTime(r *record) time.Time { return time.UnixMilli(r.time) }
