package replica

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/storage"
)

// maxReceiptItems and maxReceipt bound a receipt: two feeds for each of many devices.
const (
	maxReceiptItems = 256
	maxReceipt      = 40 << 10
)

// receipts keeps which conversations are due for a new receipt (R15): some time after the last change, and not later
// than some time after the first.
type receipts struct {
	mu   sync.Mutex
	due  map[feed.ConversationID]*dueReceipt // guarded by mu
	wake chan struct{}                       // one slot
}

type dueReceipt struct {
	first, last time.Time
	lazy        bool
	whose       map[identity.AccountID]bool // of groups: whose feeds changed; nil: anybody's
}

func (q *receipts) init() {
	q.due = map[feed.ConversationID]*dueReceipt{}
	q.wake = make(chan struct{}, 1)
}

// changed notes a change of what a receipt would say of the feeds of an account; the zero one: of any.
func (q *receipts) changed(conv feed.ConversationID, lazy bool, whose identity.AccountID) {
	now := time.Now()
	q.mu.Lock()
	d := q.due[conv]
	fresh := d == nil
	if fresh {
		d = &dueReceipt{first: now, whose: map[identity.AccountID]bool{}}
		q.due[conv] = d
	}
	d.last, d.lazy = now, lazy
	switch {
	case whose.IsZero():
		d.whose = nil
	case d.whose != nil:
		d.whose[whose] = true
	}
	q.mu.Unlock()
	if fresh {
		select {
		case q.wake <- struct{}{}:
		default:
		}
	}
}

// take returns what is due now, and how long to wait for the rest; 0: nothing waits.
func (q *receipts) take(limits Limits) (ready []readyReceipt, wait time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	for conv, d := range q.due {
		pause, longest := limits.Receipt, limits.ReceiptMax
		if d.lazy {
			// One for each author: where many speak they would be more work than what was said.
			pause, longest = limits.GroupReceipt, limits.GroupReceiptMax
		}
		at := d.last.Add(pause)
		if latest := d.first.Add(longest); latest.Before(at) {
			at = latest
		}
		if left := at.Sub(now); left <= 0 {
			ready = append(ready, readyReceipt{conv, d.whose})
			delete(q.due, conv)
		} else if wait == 0 || left < wait {
			wait = left
		}
	}
	return ready, wait
}

// readyReceipt names the receipts of a conversation that are due.
type readyReceipt struct {
	conv  feed.ConversationID
	whose map[identity.AccountID]bool // of groups; nil: anybody's
}

// takeNow returns which of some conversations wait, or all that do, and lets them wait no longer.
func (q *receipts) takeNow(convs []feed.ConversationID) (ready []readyReceipt) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(convs) == 0 {
		convs = slices.Collect(maps.Keys(q.due))
	}
	for _, conv := range convs {
		if d, ok := q.due[conv]; ok {
			delete(q.due, conv)
			ready = append(ready, readyReceipt{conv, d.whose})
		}
	}
	return ready
}

// PushReceipt says that what Members.Read answers for a conversation changed.
func (r *Replica) PushReceipt(conv feed.ConversationID) {
	r.receipts.changed(conv, r.lazy(conv), identity.AccountID{})
}

// lazy asks Members outside of a transaction.
func (r *Replica) lazy(conv feed.ConversationID) (lazy bool) {
	// Without an answer the plain way is the right one, only dearer.
	_ = r.view(func(tx *storage.Tx) error {
		lazy = r.cfg.Members.Lazy(tx, conv)
		return nil
	})
	return lazy
}

// runReceipts makes receipts when they are due.
func (r *Replica) runReceipts(ctx context.Context) {
	if err := r.staleReceipts(); err != nil {
		r.log.Warn("looking for receipts that were not made", "error", err)
	}
	for {
		ready, wait := r.receipts.take(r.cfg.Limits)
		for _, conv := range ready {
			if err := r.makeReceipt(ctx, conv); err != nil && ctx.Err() == nil {
				r.log.Warn("making a receipt", "error", err)
			}
		}
		if len(ready) > 0 {
			continue
		}
		var timer <-chan time.Time
		if wait > 0 {
			timer = time.After(wait)
		}
		select {
		case <-timer:
		case <-r.receipts.wake:
		case <-ctx.Done():
			return
		}
	}
}

// makeReceipt signs what this device holds and its user has read of a conversation, if that changed.
func (r *Replica) makeReceipt(ctx context.Context, what readyReceipt) error {
	return r.cfg.DB.Update(ctx, func(tx *storage.Tx) error { return r.signReceipt(tx, what) })
}

// signReceipt makes the receipt of a conversation what it is to say now, and hands it to the sessions that have the
// conversation open once it is durable. In a group each author gets one of its own, of its own feeds.
func (r *Replica) signReceipt(tx *storage.Tx, what readyReceipt) error {
	if !r.cfg.Members.Lazy(tx, what.conv) {
		items, err := r.receiptItems(tx, what.conv)
		if err != nil {
			return err
		}
		return r.signItems(tx, receiptName{conv: what.conv, device: r.self}, items)
	}
	byAuthor, err := r.receiptsByAuthor(tx, what)
	if err != nil {
		return err
	}
	for author, items := range byAuthor {
		if err := r.signItems(tx, receiptName{what.conv, r.self, author}, items); err != nil {
			return err
		}
	}
	return nil
}

func (r *Replica) signItems(tx *storage.Tx, name receiptName, items []*pb.ReceiptItem) error {
	if len(items) == 0 {
		return nil
	}
	old, err := loadReceipt(tx, name)
	if err != nil || old != nil && sameItems(old.Items, items) {
		return err
	}
	next := &pb.Receipt{Conversation: name.conv[:], Device: r.self[:], Seq: old.GetSeq() + 1, Items: items}
	if !name.to.IsZero() {
		next.To = name.to[:]
	}
	payload, err := proto.Marshal(next)
	if err != nil {
		return fmt.Errorf("encoding a receipt: %w", err)
	}
	raw, err := proto.Marshal(&pb.Signed{Payload: payload, Signature: r.cfg.Key.Sign(identity.DomainReceipt, payload)})
	if err != nil {
		return fmt.Errorf("encoding a receipt: %w", err)
	}
	tx.OnCommit(func() { r.tellReceipt(name.conv, name.to) })
	return tx.Set(receiptKey(name), raw)
}

// tellReceipt lets everybody know that there is a new receipt who has a road for it. Of a group only devices of the
// author whose feeds it is about get it.
func (r *Replica) tellReceipt(conv feed.ConversationID, to identity.AccountID) {
	r.lacking.mark(conv)
	r.debts.tick()
	for _, s := range r.streams.having(conv) {
		if !to.IsZero() && s.peer.Account != to {
			continue
		}
		s.mu.Lock()
		if c := s.convs[conv]; c != nil && c.phase == phaseOpen {
			c.receipt = true
			s.enqueue(c)
		}
		s.mu.Unlock()
	}
}

// FlushReceipts makes the receipts that wait for more of their kind now: of these conversations, or all of them if none
// are named. What is about to leave by another road than a session does not wait.
func (r *Replica) FlushReceipts(ctx context.Context, convs ...feed.ConversationID) error {
	for _, conv := range r.receipts.takeNow(convs) {
		if err := r.makeReceipt(ctx, conv); err != nil {
			return fmt.Errorf("making a receipt: %w", err)
		}
	}
	return nil
}

// staleReceipts finds out which conversations changed and had no receipt made of that before the last end.
func (r *Replica) staleReceipts() error {
	return r.view(func(tx *storage.Tx) error {
		seen := map[feed.ConversationID]bool{}
		return scanFeeds(tx, []byte(keyFeed), func(id feed.FeedID, st feedState) (bool, error) {
			if st.account == r.cfg.Account || st.last == 0 || seen[id.Conversation] {
				return true, nil
			}
			seen[id.Conversation] = true
			if r.cfg.Members.Lazy(tx, id.Conversation) {
				// Many authors: whether anything changed is found out when they are made.
				r.receipts.changed(id.Conversation, true, identity.AccountID{})
				return true, nil
			}
			items, err := r.receiptItems(tx, id.Conversation)
			if err != nil || len(items) == 0 {
				return err == nil, err
			}
			old, err := loadReceipt(tx, receiptName{conv: id.Conversation, device: r.self})
			if err == nil && (old == nil || !sameItems(old.Items, items)) {
				r.receipts.changed(id.Conversation, false, identity.AccountID{})
			}
			return err == nil, err
		})
	})
}

func (r *Replica) receiptItems(tx *storage.Tx, conv feed.ConversationID) ([]*pb.ReceiptItem, error) {
	var items []*pb.ReceiptItem
	err := scanFeeds(tx, convFeedsPrefix(conv), func(id feed.FeedID, st feedState) (bool, error) {
		item, err := r.receiptItem(tx, id, st)
		if item != nil {
			items = append(items, item)
		}
		return len(items) < maxReceiptItems, err
	})
	return items, err
}

// receiptsByAuthor is what the receipts of a group say to its authors, or to some of them.
func (r *Replica) receiptsByAuthor(tx *storage.Tx, what readyReceipt) (map[identity.AccountID][]*pb.ReceiptItem, error) {
	out := map[identity.AccountID][]*pb.ReceiptItem{}
	err := scanFeeds(tx, convFeedsPrefix(what.conv), func(id feed.FeedID, st feedState) (bool, error) {
		if what.whose != nil && !what.whose[st.account] || len(out[st.account]) == maxReceiptItems {
			return true, nil
		}
		item, err := r.receiptItem(tx, id, st)
		if item != nil {
			out[st.account] = append(out[st.account], item)
		}
		return true, err
	})
	return out, err
}

// receiptItem is what a receipt says of one feed; nil: nothing.
func (r *Replica) receiptItem(tx *storage.Tx, id feed.FeedID, st feedState) (*pb.ReceiptItem, error) {
	if st.account == r.cfg.Account || st.forkAt != 0 || st.last == 0 {
		return nil, nil
	}
	read, err := r.cfg.Members.Read(tx, id)
	if err != nil {
		return nil, fmt.Errorf("asking what was read: %w", err)
	}
	item := &pb.ReceiptItem{
		Feed: uint32(id.Number), Device: id.Device.Bytes(), Acked: st.last, Read: min(read, st.last), AckedHash: append([]byte(nil), st.hash[:]...),
	}
	if st.first > 1 {
		item.First = st.first
	}
	return item, nil
}

func sameItems(a, b []*pb.ReceiptItem) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !proto.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}

// receiptName names a receipt: to is the author that it is for in a group, and zero elsewhere.
type receiptName struct {
	conv   feed.ConversationID
	device identity.DeviceID
	to     identity.AccountID
}

// ownReceipt names this device's receipt for an account.
func (r *Replica) ownReceipt(tx *storage.Tx, conv feed.ConversationID, to identity.AccountID) receiptName {
	name := receiptName{conv: conv, device: r.self}
	if r.cfg.Members.Lazy(tx, conv) {
		name.to = to
	}
	return name
}

func loadReceipt(tx *storage.Tx, name receiptName) (*pb.Receipt, error) {
	raw, err := tx.Get(receiptKey(name))
	if errors.Is(err, storage.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return decodeReceipt(raw)
}

// decodeReceipt reads a stored receipt.
func decodeReceipt(raw []byte) (*pb.Receipt, error) {
	var signed pb.Signed
	var rec pb.Receipt
	if err := proto.Unmarshal(raw, &signed); err != nil {
		return nil, fmt.Errorf("reading receipt: %w", err)
	}
	if err := proto.Unmarshal(signed.Payload, &rec); err != nil {
		return nil, fmt.Errorf("reading receipt: %w", err)
	}
	return &rec, nil
}

// receipt sends our newest receipt of a conversation, if there is one.
func (w *writer) receipt(c *convSync) error {
	var raw []byte
	var seq uint64
	err := w.s.r.view(func(tx *storage.Tx) (err error) {
		name := w.s.r.ownReceipt(tx, c.id, w.s.peer.Account)
		if seq, err = receiptSeq(tx, name); err != nil || seq == 0 {
			return err
		}
		raw, err = tx.Get(receiptKey(name))
		return err
	})
	if err != nil || raw == nil {
		return err
	}
	w.s.mu.Lock()
	w.s.handed[c.id] = handed{postedReceipt{c.id, seq}, time.Now().UnixNano()}
	w.s.mu.Unlock()
	return w.frame(&pb.Frame{Of: &pb.Frame_Receipt{Receipt: &pb.ReceiptFrame{Receipt: raw}}})
}

// checkedReceipt is a receipt whose shape and signature are good.
type checkedReceipt struct {
	raw    []byte
	conv   feed.ConversationID
	device identity.DeviceID
	seq    uint64
	items  []*pb.ReceiptItem
	to     identity.AccountID // zero: not said
}

func parseReceipt(raw []byte) (c checkedReceipt, err error) {
	bad := func(what string) error { return fmt.Errorf("reading a receipt: %s: %w", what, ErrProtocol) }
	var signed pb.Signed
	var rec pb.Receipt
	if len(raw) > maxReceipt {
		return c, bad("size")
	}
	if proto.Unmarshal(raw, &signed) != nil || proto.Unmarshal(signed.Payload, &rec) != nil {
		return c, bad("encoding")
	}
	if len(rec.Conversation) != 32 || len(rec.Items) > maxReceiptItems || rec.Seq == 0 || len(rec.To) != 0 && len(rec.To) != 32 {
		return c, bad("fields")
	}
	device, err := identity.DeviceIDFromBytes(rec.Device)
	if err != nil {
		return c, bad("device")
	}
	for _, i := range rec.Items {
		if len(i.GetDevice()) != 32 || len(i.AckedHash) != 32 || !feed.Number(i.Feed).Valid() || i.Read > i.Acked ||
			i.First > i.Acked+1 || i.First > 1 && feed.Number(i.Feed) != feed.Chat {
			return c, bad("item")
		}
	}
	if len(signed.Signature) != 64 || !device.Verify(identity.DomainReceipt, signed.Payload, signed.Signature) {
		return c, bad("signature")
	}
	c = checkedReceipt{raw: raw, conv: feed.ConversationID(rec.Conversation), device: device, seq: rec.Seq, items: rec.Items}
	copy(c.to[:], rec.To)
	return c, nil
}

// handleReceipt takes a receipt of the other side's device, or of another device of its account or ours.
func (s *session) handleReceipt(f *pb.ReceiptFrame) error {
	rec, err := parseReceipt(f.GetReceipt())
	if err != nil {
		return err
	}
	from := Peer{Account: s.peer.Account, Device: rec.device}
	if rec.device != s.peer.Device {
		if from, err = s.r.deviceOf(rec.device, s.peer.Account); err != nil {
			return s.tax()
		}
	}
	if !s.isOpen(rec.conv) {
		return s.tax()
	}
	if !s.pace() {
		return nil
	}
	s.submitSmall(func(tx *storage.Tx) error { return s.r.takeReceipt(tx, from, rec) })
	return s.breathe()
}

// deviceOf says whose device it is: of an account or of the own one.
func (r *Replica) deviceOf(device identity.DeviceID, account identity.AccountID) (Peer, error) {
	for _, a := range []identity.AccountID{account, r.cfg.Account} {
		if rec, ok := r.cfg.Records.Record(a); ok && rec.Lists(device) && device != r.self {
			return Peer{Account: a, Device: device}, nil
		}
	}
	return Peer{}, ErrNotAdmitted
}

// takeReceipt stores a receipt if it is newer than what is held, and tells of it. Acknowledgements of own feeds count
// as if they had come in a session, provided that they name the entry that we hold.
func (r *Replica) takeReceipt(tx *storage.Tx, from Peer, rec checkedReceipt) error {
	lazy := r.cfg.Members.Lazy(tx, rec.conv)
	if own := rec.to == r.cfg.Account; lazy != own || !lazy && !rec.to.IsZero() {
		return nil // for somebody else, or not of the kind that this conversation has
	}
	name := receiptName{rec.conv, rec.device, rec.to}
	old, err := loadReceipt(tx, name)
	if err != nil {
		return err
	}
	if old != nil && old.Seq >= rec.seq {
		return nil
	}
	before := map[feed.FeedID]*pb.ReceiptItem{}
	for _, i := range old.GetItems() {
		before[receiptFeed(rec.conv, i)] = i
	}
	told := Receipt{Peer: from, Conversation: rec.conv, Seq: rec.seq}
	for _, i := range rec.items {
		id := receiptFeed(rec.conv, i)
		if lazy && !slices.Contains(r.cfg.Records.Devices(r.cfg.Account), id.Device) {
			continue // what is said of others is not for us to know
		}
		if r.owes(id) {
			same, err := r.sameEntry(tx, id, i.Acked, feed.EntryID(i.AckedHash))
			if err != nil {
				return err
			}
			if !same {
				continue
			}
			if i.First > 1 && !lazy {
				if err := r.storeFloor(tx, from, id, i.First); err != nil {
					return err
				}
			}
			if err := r.storeAck(tx, from, id, i.Acked); err != nil {
				return err
			}
		}
		was := before[id]
		item := ReceiptItem{Feed: id, Acked: max(i.Acked, was.GetAcked()), Read: max(i.Read, was.GetRead()), First: max(i.First, was.GetFirst())}
		if r.former.keys[id.Device] && !r.owes(id) {
			end, err := r.vouched(tx, id, i)
			if err != nil {
				return err
			}
			item.Acked, item.Read = min(item.Acked, end), min(item.Read, end)
		}
		told.Items = append(told.Items, item)
	}
	if err := tx.Set(receiptKey(name), rec.raw); err != nil {
		return err
	}
	if err := r.cfg.Hooks.Receipt(tx, told); err != nil {
		return fmt.Errorf("telling of a receipt: %w", err)
	}
	return nil
}

// vouched is up to where a receipt speaks of what is held here of a former feed: what is unsettled may be something else there.
func (r *Replica) vouched(tx *storage.Tx, id feed.FeedID, i *pb.ReceiptItem) (uint64, error) {
	st, ok, err := loadFeed(tx, id)
	if !ok || err != nil || st.ahead == 0 || i.Acked <= st.last {
		return math.MaxUint64, err
	}
	s, ok, err := loadStored(tx, st.local, i.Acked)
	if !ok || err != nil {
		return st.last, err
	}
	e, err := s.entry()
	if err == nil && e.ID == feed.EntryID(i.AckedHash) {
		return math.MaxUint64, nil
	}
	return st.last, err
}

func receiptFeed(conv feed.ConversationID, i *pb.ReceiptItem) feed.FeedID {
	return feed.FeedID{Conversation: conv, Number: feed.Number(i.Feed), Device: identity.DeviceID(i.Device)}
}
