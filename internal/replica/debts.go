package replica

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"hima/identity"
	"hima/internal/feed"
	"hima/storage"
)

// Debt is a device that lacks entries of this device.
type Debt struct {
	Peer
	Entries uint64 // how many
	Feeds   []Span // which; at most two of a conversation, in no particular order of conversations
}

// Lazy says that nothing is owed but entries of groups, which other members pass on too.
func (d Debt) Lazy() bool {
	return !slices.ContainsFunc(d.Feeds, func(s Span) bool { return !s.Lazy })
}

// debts keeps who is owed something. It is derived from own heads and acknowledged heads: there is no outbox. It is
// computed anew for those conversations that changed since it was last asked for.
type debts struct {
	mu     sync.Mutex
	ready  bool                                     // all conversations were looked at once
	dirty  map[feed.ConversationID]bool             // to be computed anew
	owed   map[feed.ConversationID][]Debt           // only conversations with debts
	until  map[feed.ConversationID]time.Time        // to be computed anew then, though nothing changes
	whose  map[identity.DeviceID]identity.AccountID // of the devices that were looked at
	ticked chan struct{}                            // one slot

	watchMu  sync.Mutex
	watchers map[chan struct{}]bool // guarded by watchMu; one slot each
}

func (d *debts) init() {
	d.dirty = map[feed.ConversationID]bool{}
	d.owed = map[feed.ConversationID][]Debt{}
	d.until = map[feed.ConversationID]time.Time{}
	d.whose = map[identity.DeviceID]identity.AccountID{}
	d.ticked = make(chan struct{}, 1)
	d.watchers = map[chan struct{}]bool{}
}

// mark says that own entries or acknowledgements of a conversation changed.
func (d *debts) mark(conv feed.ConversationID) {
	d.mu.Lock()
	known := d.dirty[conv]
	d.dirty[conv] = true
	d.mu.Unlock()
	if !known {
		d.tick()
	}
}

func (d *debts) tick() {
	tick := func(c chan struct{}) {
		select {
		case c <- struct{}{}:
		default:
		}
	}
	tick(d.ticked)
	d.watchMu.Lock()
	defer d.watchMu.Unlock()
	for c := range d.watchers {
		tick(c)
	}
}

func (d *debts) belongs(device identity.DeviceID, account identity.AccountID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.whose[device] = account
}

// account says whose a device is that was looked at.
func (d *debts) account(device identity.DeviceID) (identity.AccountID, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	account, ok := d.whose[device]
	return account, ok
}

// OwedChanged ticks after the answer of Owed may have changed. One reader.
func (r *Replica) OwedChanged() <-chan struct{} { return r.debts.ticked }

// WatchOwed returns a channel that ticks after the answer of Owed or ReceiptsDue may have changed, and a function that
// ends that. There may be any number of them.
func (r *Replica) WatchOwed() (<-chan struct{}, func()) {
	d := &r.debts
	c := make(chan struct{}, 1)
	d.watchMu.Lock()
	defer d.watchMu.Unlock()
	d.watchers[c] = true
	return c, func() {
		d.watchMu.Lock()
		defer d.watchMu.Unlock()
		delete(d.watchers, c)
	}
}

// DevicesChanged says that an account may have other devices than before, e.g. because its record came: what they lack is
// worked out anew. Without it, what was written to somebody of whom no device was known yet stays owed to nobody.
func (r *Replica) DevicesChanged(account identity.AccountID) error {
	var convs []feed.ConversationID
	err := r.view(func(tx *storage.Tx) (err error) {
		convs, err = r.cfg.Members.Shared(tx, account)
		return err
	})
	if err != nil {
		return fmt.Errorf("asking who shares what: %w", err)
	}
	for _, conv := range convs {
		r.debts.mark(conv)
	}
	return nil
}

// Owed lists the devices that lack entries of this device: those that are listed for the readers of a conversation and
// have not acknowledged its own feeds (R13). A device whose account record expired is owed nothing until it is seen.
// It is to be asked now and then also without a tick: what is kept for a device in a mailbox ends without one.
func (r *Replica) Owed() ([]Debt, error) {
	d := &r.debts
	d.mu.Lock()
	defer d.mu.Unlock()
	err := r.view(func(tx *storage.Tx) error {
		if !d.ready {
			err := scanFeeds(tx, []byte(keyFeed), func(id feed.FeedID, _ feedState) (bool, error) {
				if r.owes(id) {
					d.dirty[id.Conversation] = true
				}
				return true, nil
			})
			if err != nil {
				return err
			}
			d.ready = true
		}
		now := r.cfg.Now()
		for conv, at := range d.until {
			if !at.After(now) {
				d.dirty[conv] = true
			}
		}
		for conv := range d.dirty {
			list, err := r.owedIn(tx, conv)
			if err != nil {
				return err
			}
			delete(d.dirty, conv)
			if len(list) == 0 {
				delete(d.owed, conv)
			} else {
				d.owed[conv] = list
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	sum := map[identity.DeviceID]int{}
	var all []Debt
	for _, list := range d.owed {
		for _, debt := range list {
			if i, ok := sum[debt.Device]; ok {
				all[i].Entries += debt.Entries
				all[i].Feeds = append(all[i].Feeds, debt.Feeds...)
				continue
			}
			sum[debt.Device] = len(all)
			debt.Feeds = slices.Clone(debt.Feeds) // the list it stands in is kept
			all = append(all, debt)
		}
	}
	slices.SortFunc(all, func(a, b Debt) int {
		if a.Device.Less(b.Device) {
			return -1
		}
		return 1
	})
	return all, nil
}

// owedIn computes the debts of one conversation. Called with the lock of debts held.
func (r *Replica) owedIn(tx *storage.Tx, conv feed.ConversationID) ([]Debt, error) {
	delete(r.debts.until, conv)
	readers, err := r.cfg.Members.Readers(tx, conv)
	if err != nil {
		return nil, err
	}
	own, err := r.ownFeeds(tx, conv)
	if err != nil || len(own) == 0 {
		return nil, err
	}
	now := r.cfg.Now()
	var list []Debt
	keys := keyDebts{r: r, tx: tx, conv: conv}
	for _, account := range append([]identity.AccountID{r.cfg.Account}, readers...) {
		if rec, ok := r.cfg.Records.Record(account); ok && rec.Expired(now) {
			continue
		}
		sc, err := r.scope(tx, conv, account)
		if err != nil {
			return nil, err
		}
		for _, device := range r.cfg.Records.Devices(account) {
			if device == r.self {
				continue
			}
			r.debts.whose[device] = account
			debt := Debt{Peer: Peer{Account: account, Device: device}}
			for _, f := range own {
				if f.id.Device == device {
					continue // a former key of this device, should it still live somewhere
				}
				first, last, ok := sc.window.clip(f.id, f.st)
				if from := max(f.acked[device]+1, first); ok && from <= last {
					debt.Entries += last - from + 1
					span := Span{Feed: f.id, From: from, Last: last, Lazy: sc.lazy}
					if span.Keyless, err = keys.owed(debt.Peer, span, f.acked[device]); err != nil {
						return nil, err
					}
					debt.Feeds = append(debt.Feeds, span)
				}
			}
			if debt.Entries > 0 {
				list = append(list, debt)
			}
		}
	}
	if keys.what.Until != nil {
		if at := keys.what.Until(); !at.IsZero() {
			r.debts.until[conv] = at
		}
	}
	return list, nil
}

// keyDebts finds out, in one transaction and of one conversation, who is to be mailed the key under which this device writes. It
// is a debt of its own: what is written may lie in the group's log, where whoever lacks the key does not find it.
type keyDebts struct {
	r     *Replica
	tx    *storage.Tx
	conv  feed.ConversationID
	asked bool
	what  Lacking
}

// owed tells whether a device that lacks a span is to be mailed the key; acked is up to where it has that feed.
func (k *keyDebts) owed(p Peer, span Span, acked uint64) (bool, error) {
	if !span.Lazy || span.Feed.Number != feed.Chat || span.Feed.Device != k.r.self || k.r.cfg.Keys == nil {
		return false, nil
	}
	if !k.asked {
		var err error
		if k.what, err = k.r.cfg.Keys.Lacking(k.tx, k.conv); err != nil {
			return false, fmt.Errorf("asking who lacks a key: %w", err)
		}
		k.asked = true
	}
	if !k.what.Mails || k.what.Key == nil {
		return false, nil
	}
	return k.what.Key(p, acked)
}

// ownFeed is a feed of this device and who acknowledged how much of it.
type ownFeed struct {
	id    feed.FeedID
	st    feedState
	acked map[identity.DeviceID]uint64
}

// ownFeeds reads the feeds of this device in a conversation, with the tails of those under former keys. All acknowledgements are read in one go: a group has many.
func (r *Replica) ownFeeds(tx *storage.Tx, conv feed.ConversationID) (own []ownFeed, err error) {
	ids := append([]feed.FeedID{r.OwnFeed(conv, feed.Control), r.OwnFeed(conv, feed.Chat)}, r.former.tails[conv]...)
	for _, id := range ids {
		f := ownFeed{id: id, acked: map[identity.DeviceID]uint64{}}
		var ok bool
		if f.st, ok, err = loadFeed(tx, f.id); err != nil {
			return nil, err
		}
		if !ok || f.st.last == 0 {
			continue
		}
		f.st.first = max(1, r.former.owed[id]) // what was acknowledged before a floor is no debt, what was not still is one
		err = r.AckedBy(tx, f.id, func(device identity.DeviceID, last uint64) (bool, error) {
			f.acked[device] = last
			return true, nil
		})
		if err != nil {
			return nil, err
		}
		own = append(own, f)
	}
	return own, nil
}
