package delivery

import (
	"context"
	"fmt"
	"slices"
	"time"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/storage"
)

// holding is one receipt: a mailbox holds From..Last of an own feed for a device.
type holding struct {
	peer   replica.Peer
	feed   feed.FeedID
	from   uint64
	last   uint64
	holder identity.DeviceID
	since  time.Time
	until  time.Time
	ended  bool // its end was told
}

func (h holding) key() []byte {
	return keyOf(keyCustody, h.peer.Device[:], feedBytes(h.feed), u64(h.last), h.holder[:])
}

func (h holding) value() []byte {
	b := append([]byte{1}, h.peer.Account[:]...)
	b = append(b, u64(h.from)...)
	b = append(append(b, millis(h.since)...), millis(h.until)...)
	if h.ended {
		return append(b, 1)
	}
	return append(b, 0)
}

func (h holding) held() Held {
	return Held{Peer: h.peer, Feed: h.feed, From: h.from, Last: h.last, Holder: h.holder, Until: h.until}
}

func decodeHolding(self identity.DeviceID, k, v []byte) (h holding, err error) {
	c := cutter{b: k[len(keyCustody):]}
	h.peer.Device = c.device()
	copy(h.feed.Conversation[:], c.take(32))
	h.feed.Number = feed.Number(c.take(1)[0])
	h.feed.Device = self
	h.last = c.u64()
	h.holder = c.device()
	d := cutter{b: v}
	version := d.take(1)[0]
	h.peer.Account = d.account()
	h.from = d.u64()
	h.since, h.until = d.time(), d.time()
	h.ended = d.take(1)[0] == 1
	if c.bad || d.bad || version != 1 {
		return h, fmt.Errorf("reading a receipt: %w", errMailStored)
	}
	return h, nil
}

// ledger is what mailboxes hold of what is not acknowledged yet, by device and feed. It mirrors the keys under y/c; mu of
// Mail guards it.
type ledger map[identity.DeviceID]map[feed.FeedID][]holding

func (l ledger) put(h holding) {
	feeds := l[h.peer.Device]
	if feeds == nil {
		feeds = map[feed.FeedID][]holding{}
		l[h.peer.Device] = feeds
	}
	list := slices.DeleteFunc(feeds[h.feed], func(o holding) bool { return o.last == h.last && o.holder == h.holder })
	list = append(list, h)
	slices.SortFunc(list, func(a, b holding) int {
		if a.from < b.from || a.from == b.from && a.last < b.last {
			return -1
		}
		return 1
	})
	feeds[h.feed] = list
}

// covered is up to where, from one number on, everything lies in mailboxes whose receipts count at a time.
func (l ledger) covered(dev identity.DeviceID, id feed.FeedID, from uint64, now time.Time) uint64 {
	end := from - 1
	for _, h := range l[dev][id] { // in order of from
		if h.from <= end+1 && h.last > end && h.until.After(now) {
			end = h.last
		}
	}
	return end
}

// drop removes what a device acknowledged and returns it.
func (l ledger) drop(dev identity.DeviceID, id feed.FeedID, acked uint64) (gone []holding) {
	l[dev][id] = slices.DeleteFunc(l[dev][id], func(h holding) bool {
		if h.last <= acked {
			gone = append(gone, h)
			return true
		}
		return false
	})
	if len(l[dev][id]) == 0 {
		delete(l[dev], id)
	}
	if len(l[dev]) == 0 {
		delete(l, dev)
	}
	return gone
}

// over lists those whose end nobody was told, and when the next ends.
func (l ledger) over(now time.Time) (list []holding, next time.Time) {
	for _, feeds := range l {
		for _, all := range feeds {
			for _, h := range all {
				switch {
				case h.ended:
				case !h.until.After(now):
					list = append(list, h)
				case next.IsZero() || h.until.Before(next):
					next = h.until
				}
			}
		}
	}
	return list, next
}

// loadLedger reads all receipts.
func (m *Mail) loadLedger(tx *storage.Tx) error {
	return tx.Scan(storage.ScanOptions{Prefix: []byte(keyCustody)}, func(k, v []byte) (bool, error) {
		h, err := decodeHolding(m.self, k, v)
		if err == nil {
			m.ledger.put(h)
		}
		return err == nil, err
	})
}

// keep makes a receipt durable together with what it means (R14).
func (m *Mail) keep(ctx context.Context, ex replica.Export, holder identity.DeviceID, until time.Time) error {
	var list []holding
	for _, s := range ex.Spans {
		if s.Feed.Device != m.self {
			continue // another author's, which is not ours to promise
		}
		list = append(list, holding{peer: ex.Peer, feed: s.Feed, from: s.From, last: s.Last, holder: holder, since: m.cfg.Now(), until: until})
	}
	if err := m.fail("before-custody"); err != nil {
		return err
	}
	err := m.cfg.DB.Update(ctx, func(tx *storage.Tx) error {
		for _, h := range list {
			if err := tx.Set(h.key(), h.value()); err != nil {
				return err
			}
			if err := m.cfg.Hooks.InCustody(tx, h.held()); err != nil {
				return err
			}
		}
		if err := m.carry(tx, ex, until); err != nil {
			return err
		}
		return m.cfg.Feeds.Posted(tx, ex, until)
	})
	if err != nil {
		return fmt.Errorf("keeping a receipt: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, h := range list {
		m.ledger.put(h)
	}
	return nil
}

// forget removes receipts for what was acknowledged meanwhile.
func (m *Mail) forget(ctx context.Context, list []holding) error {
	for len(list) > 0 {
		n := min(len(list), 512)
		err := m.cfg.DB.Update(ctx, func(tx *storage.Tx) error {
			for _, h := range list[:n] {
				if err := tx.Delete(h.key()); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("forgetting receipts: %w", err)
		}
		list = list[n:]
	}
	return nil
}

// endCustody tells of receipts whose time is over while the entries were not acknowledged; they are posted again.
func (m *Mail) endCustody(ctx context.Context, list []holding) error {
	for len(list) > 0 {
		n := min(len(list), 256)
		err := m.cfg.DB.Update(ctx, func(tx *storage.Tx) error {
			for _, h := range list[:n] {
				h.ended = true
				if err := tx.Set(h.key(), h.value()); err != nil {
					return err
				}
				acked, err := m.cfg.Feeds.Acked(tx, h.feed, h.peer.Device)
				if err != nil {
					return err
				}
				if acked >= h.last {
					continue
				}
				if err := m.cfg.Hooks.CustodyEnded(tx, h.held()); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("ending custody: %w", err)
		}
		m.mu.Lock()
		for _, h := range list[:n] {
			h.ended = true
			m.ledger.put(h)
		}
		m.mu.Unlock()
		list = list[n:]
	}
	return nil
}

// Custody says which mailboxes hold an entry for a device, and which did until their receipts ended.
func (m *Mail) Custody(dev identity.DeviceID, id feed.FeedID, seq uint64) ([]Custody, error) {
	now := m.cfg.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	newest := map[identity.DeviceID]holding{}
	for _, h := range m.ledger[dev][id] {
		if h.from <= seq && seq <= h.last && newest[h.holder].until.Before(h.until) {
			newest[h.holder] = h
		}
	}
	var out []Custody
	for _, h := range newest {
		out = append(out, Custody{Holder: h.holder, Since: h.since, Until: h.until, Expired: !h.until.After(now)})
	}
	slices.SortFunc(out, func(a, b Custody) int { return b.Until.Compare(a.Until) })
	return out, nil
}
