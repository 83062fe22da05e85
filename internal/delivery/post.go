package delivery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/mailbox"
	"hima/internal/replica"
	"hima/storage"
)

const (
	// badFor is how long a mailbox is not used that lied.
	badFor = time.Hour
	// spareTime is how long the other mailboxes of a device may take after the first one has the item.
	spareTime = 2 * time.Second
	// exportRoom is what one mail carries beside certificate, account record, offer and signature.
	exportRoom = 46 << 10
	// freshKey is how old a rotating prekey may be before the network is asked for a newer one.
	freshKey = 14 * 24 * time.Hour
	// lookTimeout is how long that may take.
	lookTimeout = 10 * time.Second
	// postsInRow is how many items one device gets before others have their turn.
	postsInRow = 32
)

// errNoRoad: nothing is known of where the device takes its mail.
var errNoRoad = errors.New("device takes no mail that is known of")

// poster is one device that something is owed to. mu of Mail guards it.
type poster struct {
	peer     replica.Peer
	debt     []replica.Span // what it lacks
	receipt  time.Time      // since when it lacks a receipt; zero: it does not
	later    bool           // of groups alone
	since    time.Time      // since when it is owed something and is not connected
	failed   bool           // the direct road was tried since, in vain
	busy     bool
	lazy     bool // busy for the sake of groups
	tries    int
	next     time.Time
	granting time.Time // keys alone are not mailed before
}

// Failed hears that a device could not be reached directly: it is posted to without waiting. Wire it to Config.OnFailed.
func (m *Mail) Failed(device identity.DeviceID) {
	m.mu.Lock()
	p := m.posters[device]
	if p != nil {
		p.failed = true
	}
	m.mu.Unlock()
	if p != nil {
		m.poke()
	}
}

// refresh asks who is owed something, and forgets receipts for what was acknowledged.
func (m *Mail) refresh(ctx context.Context) error {
	owed, err := m.cfg.Feeds.Owed()
	if err != nil {
		return fmt.Errorf("asking who is owed something: %w", err)
	}
	receipts, err := m.cfg.Feeds.ReceiptsDue()
	if err != nil {
		return fmt.Errorf("asking who lacks a receipt: %w", err)
	}
	later, err := m.cfg.Feeds.LazyReceiptsDue()
	if err != nil {
		return fmt.Errorf("asking who lacks a receipt: %w", err)
	}
	now := m.cfg.Now()
	var gone []holding
	m.mu.Lock()
	seen := map[identity.DeviceID]bool{}
	lacks := map[identity.DeviceID]map[feed.FeedID]uint64{{}: {}} // the zero device stands for whoever lacks most
	for _, d := range owed {
		seen[d.Device] = true
		p := m.poster(d.Peer)
		p.debt = d.Feeds
		lacks[d.Device] = map[feed.FeedID]uint64{}
		for _, s := range d.Feeds {
			lacks[d.Device][s.Feed] = s.From
			if from, ok := lacks[identity.DeviceID{}][s.Feed]; !ok || s.From < from {
				lacks[identity.DeviceID{}][s.Feed] = s.From
			}
		}
	}
	for dev, feeds := range m.ledger {
		for id := range feeds {
			from, ok := lacks[dev][id]
			if !ok {
				from = 1<<63 - 1 // everything is acknowledged, or nothing is owed any more
			}
			gone = append(gone, m.ledger.drop(dev, id, from-1)...)
		}
	}
	due := map[identity.DeviceID]bool{}
	lacksReceipt := func(r replica.Peer, lazy bool) {
		if lazy && due[r.Device] {
			return
		}
		due[r.Device] = true
		p := m.poster(r)
		if !seen[r.Device] {
			p.debt = nil
		}
		if seen[r.Device] = true; p.receipt.IsZero() {
			p.receipt = now
		}
		p.later = lazy
	}
	for _, r := range receipts {
		lacksReceipt(r, false)
	}
	for _, r := range later {
		lacksReceipt(r, true)
	}
	for dev, p := range m.posters {
		if !due[dev] {
			p.receipt = time.Time{}
		}
		if !seen[dev] && !p.busy {
			delete(m.posters, dev)
		}
	}
	m.mu.Unlock()
	return m.forget(ctx, gone)
}

// poster returns that of a device, making it. Called with mu held.
func (m *Mail) poster(p replica.Peer) *poster {
	x := m.posters[p.Device]
	if x == nil {
		x = &poster{}
		m.posters[p.Device] = x
	}
	x.peer = p
	return x
}

// start posts to whoever is due, and says when the next is.
func (m *Mail) start(ctx context.Context, wg *sync.WaitGroup, now time.Time) (next time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	type turn struct {
		p    *poster
		at   time.Time
		lazy int
	}
	var list []turn
	for _, p := range m.posters {
		if p.busy {
			continue
		}
		switch at, lazy := m.due(p, now); {
		case at.IsZero():
		case at.After(now):
			if next.IsZero() || at.Before(next) {
				next = at
			}
		default:
			list = append(list, turn{p, at, int(boolByte(lazy))})
		}
	}
	slices.SortFunc(list, func(a, b turn) int { return cmp.Or(cmp.Compare(a.lazy, b.lazy), a.at.Compare(b.at)) })
	for _, t := range list {
		// Whoever is ready pokes Run.
		if m.posting >= m.cfg.Limits.Posts || t.lazy == 1 && m.lazyPosts >= max(1, m.cfg.Limits.Posts/2) {
			break
		}
		m.posting++
		m.lazyPosts += t.lazy
		t.p.busy, t.p.lazy = true, t.lazy == 1
		peer, o := t.p.peer, replica.ExportOptions{MaxBytes: exportRoom, Control: t.p.newcomer(), Grant: t.p.grants()}
		wg.Go(func() {
			tried, err := m.post(ctx, peer, o, wg)
			m.posted(t.p, err, len(o.Grant) > 0 && (tried || err != nil))
		})
	}
	return next
}

// posted plans the next try.
func (m *Mail) posted(p *poster, err error, granted bool) {
	now := m.cfg.Now()
	m.mu.Lock()
	m.posting--
	if p.lazy {
		m.lazyPosts--
	}
	p.busy, p.lazy = false, false
	if err == nil {
		p.tries, p.next = 0, time.Time{}
		p.receipt = time.Time{} // asked for anew by refresh
	} else {
		l := m.cfg.Limits
		p.next = now.Add(jitter(min(l.Retry<<min(p.tries, 12), l.RetryCap)))
		p.tries++
	}
	if granted {
		p.granted(err, now)
	}
	m.stalePosts = true
	device := p.peer.Device
	m.mu.Unlock()
	if err != nil && !errors.Is(err, context.Canceled) {
		m.log.Debug("posting", "device", device.Short(), "error", err)
	}
	m.poke()
}

// post leaves what a device lacks in its mailboxes. One that fails is nothing but a road that did not work: the entries stay
// pending and are tried again, here or directly. tried: it was looked at what there is to go, and that went, should there be no error;
// else a session came up before.
func (m *Mail) post(ctx context.Context, peer replica.Peer, o replica.ExportOptions, wg *sync.WaitGroup) (tried bool, err error) {
	for range postsInRow {
		if m.cfg.Feeds.Connected(peer.Device) {
			return tried, nil
		}
		// What is exported counts as offered from then on and cannot be withdrawn any more: without a road it stays here.
		r, err := m.route(ctx, peer)
		if err != nil {
			return tried, err
		}
		ex, err := m.export(ctx, peer.Device, o)
		if tried = true; err != nil || ex.Empty() {
			return tried, err
		}
		ex.Keys = keysOf(ex)
		if len(ex.Runs) == 0 && len(ex.Keys) == 0 && r.work > 0 && !m.takesMailOf(peer.Account) {
			return tried, nil // a receipt alone is not worth a stranger's place
		}
		if err := m.pickKey(ctx, peer.Device, &r); err != nil {
			return tried, err
		}
		item, err := m.seal(ctx, ex, r)
		if err != nil {
			return tried, err
		}
		if err := m.fail("before-deposit"); err != nil {
			return tried, err
		}
		if err := m.leaveAt(ctx, ex, r, item, wg); err != nil || !ex.More {
			return tried, err
		}
	}
	return tried, nil
}

// export gathers what no mailbox holds.
func (m *Mail) export(ctx context.Context, dev identity.DeviceID, o replica.ExportOptions) (replica.Export, error) {
	acked := func(id feed.FeedID) (n uint64) {
		err := m.cfg.DB.View(func(tx *storage.Tx) (err error) {
			n, err = m.cfg.Feeds.Acked(tx, id, dev)
			return err
		})
		if err != nil {
			m.log.Warn("reading what is acknowledged", "error", err)
		}
		return n
	}
	carried, err := m.carried(dev)
	if err != nil {
		return replica.Export{}, err
	}
	skips := map[feed.FeedID]uint64{}
	now := m.cfg.Now()
	m.mu.Lock()
	feeds := slices.Collect(maps.Keys(m.ledger[dev]))
	for id := range m.ledger[identity.DeviceID{}] {
		if m.ledger[dev][id] == nil && id.Number == feed.Chat {
			feeds = append(feeds, id)
		}
	}
	m.mu.Unlock()
	for _, id := range feeds {
		from := acked(id) + 1
		m.mu.Lock()
		skips[id] = m.covered(dev, id, from, now)
		m.mu.Unlock()
	}
	o.Skip = func(id feed.FeedID, from uint64) uint64 { return max(skips[id], carried.upto(id, from)) }
	return m.cfg.Feeds.Export(ctx, dev, o)
}

// way is how a device's mail is sealed and where it is left.
type way struct {
	inboxes []identity.MailInbox
	work    int // bits; 0: none
	hint    identity.Hint
	key     identity.Prekey
}

// route finds where a device takes its mail: the inboxes that it gave us, or its inbox for strangers. It uses nothing up.
func (m *Mail) route(ctx context.Context, peer replica.Peer) (way, error) {
	dev := peer.Device
	var offer peerOffer
	known := false
	err := m.cfg.DB.View(func(tx *storage.Tx) (err error) {
		offer, known, err = loadPeer(tx, dev)
		return err
	})
	if err != nil {
		return way{}, err
	}
	m.mu.Lock()
	stale := m.stale[dev]
	m.mu.Unlock()
	known = known && !stale
	record, kept := m.cfg.Records.DeviceRecord(dev)
	newest := time.UnixMilli(int64(max(offer.offer.Seq, record.Seq)))
	// A record that is kept may be from before the device had a place for strangers: one that leads nowhere is no reason
	// not to ask for a newer one.
	w := m.wayTo(peer, offer, known, record, kept)
	if !w.ok() || stale || m.cfg.Now().Sub(newest) > freshKey {
		looking, cancel := context.WithTimeout(ctx, lookTimeout)
		if r, err := m.cfg.Records.FetchDevice(looking, dev); err == nil {
			w = m.wayTo(peer, offer, known, r, true)
		}
		cancel()
	}
	if !w.ok() {
		return way{}, errNoRoad
	}
	return w, nil
}

func (w way) ok() bool { return len(w.inboxes) > 0 && !w.key.IsZero() }

// wayTo is the road that an offer, unless its inboxes are not to be used, and a device record lead to; perhaps none.
func (m *Mail) wayTo(peer replica.Peer, offer peerOffer, known bool, record identity.DeviceRecord, kept bool) way {
	kept = kept && !record.Expired(m.cfg.Now()) && record.Certificate.Account == peer.Account
	w := way{hint: identity.NewHint(), key: offer.offer.Prekey}
	if kept && !record.Prekey.IsZero() && (record.Seq > offer.offer.Seq || w.key.IsZero()) {
		w.key = record.Prekey
	}
	if known {
		w.inboxes = m.honest(offer.offer.Inboxes)
	}
	if len(w.inboxes) > 0 {
		return w
	}
	if kept && !record.Request.IsZero() {
		for _, ref := range record.Mailboxes {
			if ref.Device == record.Request.Mailbox {
				w.inboxes = []identity.MailInbox{{Mailbox: ref, Inbox: record.Request.Inbox}}
			}
		}
		w.work = max(record.Request.WorkBits, 1)
	}
	return w
}

// pickKey takes a one-time prekey for an item to a device that gave us some.
func (m *Mail) pickKey(ctx context.Context, dev identity.DeviceID, w *way) error {
	if w.work > 0 {
		return nil
	}
	id, key, ok, err := m.useOneTime(ctx, dev)
	if ok {
		w.hint, w.key = id, key
	}
	return err
}

// honest leaves out mailboxes that lied of late, unless no other is left.
func (m *Mail) honest(list []identity.MailInbox) []identity.MailInbox {
	now := m.cfg.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(list), func(in identity.MailInbox) bool {
		return m.bad[in.Mailbox.Device].After(now)
	})
}

// seal makes the item. The same bytes go to all mailboxes, so that the recipient knows the second for what it is.
func (m *Mail) seal(ctx context.Context, ex replica.Export, w way) ([]byte, error) {
	offer, err := m.mailedOffer(ctx, ex.Peer, ex.Knock || w.work > 0)
	if err != nil {
		return nil, err
	}
	mail := identity.Mail{
		Certificate: m.cfg.Certificate, Recipient: ex.Peer.Device, Time: m.cfg.Now(), Runs: ex.Runs, Receipts: ex.Receipts, Offer: offer,
		Token: ex.Token, Work: ex.Work, Keys: ex.Keys,
	}
	if rec, ok := m.cfg.Records.Record(m.cfg.Account); ok {
		mail.AccountRecord = rec
	}
	raw, err := identity.NewMail(m.cfg.Key, mail)
	if err != nil {
		return nil, err
	}
	return identity.SealMail(w.key, ex.Peer.Device, w.hint, raw)
}

// leaveAt leaves an item at all mailboxes at once. It returns when the first has it and the others had a little more time,
// or when all have failed.
func (m *Mail) leaveAt(ctx context.Context, ex replica.Export, w way, item []byte, wg *sync.WaitGroup) error {
	results := make(chan error, len(w.inboxes))
	for _, in := range w.inboxes {
		wg.Go(func() { results <- m.leaveIn(ctx, ex, in, w.work, item) })
	}
	var first error
	missing := 0
	var spare <-chan time.Time
	kept := false
	for range w.inboxes {
		select {
		case err := <-results:
			switch {
			case err == nil && !kept:
				kept = true
				t := time.NewTimer(spareTime)
				defer t.Stop()
				spare = t.C
			case err != nil:
				if errors.Is(err, mailbox.ErrNoInbox) {
					missing++
				}
				first = cmp.Or(first, err)
			}
		case <-spare:
			return nil // what the others say is still noted
		}
	}
	if kept {
		return nil
	}
	if missing == len(w.inboxes) && w.work == 0 {
		// The inboxes that it gave us are gone: its record may name others.
		m.mu.Lock()
		m.stale[ex.Peer.Device] = true
		m.mu.Unlock()
	}
	return first
}

// leaveIn leaves an item in one inbox and keeps the receipt.
func (m *Mail) leaveIn(ctx context.Context, ex replica.Export, in identity.MailInbox, work int, item []byte) error {
	d := mailbox.Deposit{Inbox: in.Inbox, Item: item}
	if work > 0 {
		if d.Work = identity.ItemWork(ctx, in.Inbox, item, work); d.Work == nil {
			return fmt.Errorf("working for a place: %w", mailbox.ErrWork)
		}
	}
	calling, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	receipt, err := m.cfg.Client.Deposit(calling, in.Mailbox, d)
	m.judge(in.Mailbox.Device, err)
	if err != nil {
		m.noteFailed(ctx, ex.Peer.Device, in.Mailbox.Device.Short(), err)
		return err
	}
	if err := m.keep(ctx, ex, in.Mailbox.Device, m.promised(receipt)); err != nil {
		return err
	}
	m.log.Debug("left an item", "device", ex.Peer.Device.Short(), "runs", len(ex.Runs), "receipts", len(ex.Receipts))
	return noteAttempt(m.cfg.DB, ex.Peer.Device, Attempt{Time: m.cfg.Now(), Road: RoadMailbox, Addr: in.Mailbox.Device.Short()})
}

// promised is until when a receipt counts. A mailbox's clock need not be ours: what counts is for how long it promises.
func (m *Mail) promised(receipt identity.Custody) time.Time {
	until := m.cfg.Now().Add(receipt.Until.Sub(receipt.Time))
	if receipt.Until.Before(until) {
		return receipt.Until
	}
	return until
}

func (m *Mail) noteFailed(ctx context.Context, dev identity.DeviceID, box string, err error) {
	if ctx.Err() != nil {
		return
	}
	if e := noteAttempt(m.cfg.DB, dev, Attempt{Time: m.cfg.Now(), Road: RoadMailbox, Addr: box, Error: err.Error()}); e != nil {
		m.log.Warn("noting an attempt", "error", e)
	}
}

// maxJudged bounds how many mailboxes of others are remembered by what they last did.
const maxJudged = 4096

// judge tells of a mailbox that is full, lost, or lies, once until it does something else.
func (m *Mail) judge(dev identity.DeviceID, err error) {
	detail := "back"
	switch {
	case err == nil:
	case errors.Is(err, mailbox.ErrFull), errors.Is(err, mailbox.ErrNoRoom):
		detail = "full"
	case errors.Is(err, mailbox.ErrBadReceipt), errors.Is(err, mailbox.ErrProtocol):
		detail = "lying"
	case errors.Is(err, mailbox.ErrNoInbox), errors.Is(err, mailbox.ErrWork), errors.Is(err, mailbox.ErrDenied), errors.Is(err, context.Canceled):
		return // about the inbox, not the mailbox
	default:
		detail = "lost"
	}
	m.mu.Lock()
	if len(m.judged) >= maxJudged {
		clear(m.judged)
	}
	last, known := m.judged[dev]
	m.judged[dev] = detail
	switch detail {
	case "lying":
		m.bad[dev] = m.cfg.Now().Add(badFor)
	case "back":
		delete(m.bad, dev)
	}
	m.mu.Unlock()
	if last != detail && (known || detail != "back") {
		m.cfg.Hooks.MailboxEvent(dev, detail)
	}
}
