package directory

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"hima/identity"
	"hima/storage"
)

// DeviceInfo is what a device tells the world about itself in its record, besides its addresses.
type DeviceInfo struct {
	Prekey        identity.Prekey
	PrekeyCreated time.Time
	Mailboxes     []identity.MailboxRef
	Request       identity.RequestInbox // zero: strangers can leave nothing
}

// ownDevice is this device's own record and what goes into the next one.
type ownDevice struct {
	mu      sync.Mutex
	last    identity.DeviceRecord // newest that was made; zero: none yet
	seen    uint64                // highest number met anywhere: a restored disk may know less than the world (R18)
	info    DeviceInfo
	set     bool   // SetDevice was called
	stale   bool   // a newer record than last is about
	news    uint64 // counts what may make a new record
	settled uint64 // news up to which last is what is to be said
	changed chan struct{}
}

// init leaves one look at it all pending, the first.
func (o *ownDevice) init() { o.changed, o.news = make(chan struct{}, 1), 1 }

func (o *ownDevice) load(tx *storage.Tx) error {
	raw, err := tx.Get(ownRecordKey())
	if errors.Is(err, storage.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	rec, err := identity.ParseDeviceRecord(raw)
	if err != nil {
		return fmt.Errorf("reading the own device record: %w", err)
	}
	o.last, o.seen = rec, rec.Seq
	return nil
}

func (o *ownDevice) record() identity.DeviceRecord {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.last
}

// pending tells whether a newer record may be made in a moment.
func (o *ownDevice) pending() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.settled != o.news
}

func (o *ownDevice) nudge() {
	o.mu.Lock()
	o.news++
	o.mu.Unlock()
	select {
	case o.changed <- struct{}{}:
	default:
	}
}

// met takes note of a record of this device that somebody showed. One that is newer than ours was made by this device
// before it lost its disk; the next is made above it.
func (o *ownDevice) met(rec identity.DeviceRecord) {
	o.mu.Lock()
	newer := rec.Seq > o.seen || !o.last.IsZero() && identity.CompareDeviceRecords(rec, o.last) > 0
	if newer {
		o.seen = max(rec.Seq, o.seen)
		o.stale = true // everybody prefers the other
	}
	o.mu.Unlock()
	if newer {
		o.nudge()
	}
}

// SetDevice says what the device record is to hold. It returns at once; the record is signed, made durable and published by
// Run, a moment later, so that several changes become one.
func (d *Directory) SetDevice(info DeviceInfo) {
	info.Mailboxes = slices.Clone(info.Mailboxes)
	d.own.mu.Lock()
	d.own.info, d.own.set = info, true
	d.own.mu.Unlock()
	d.own.nudge()
}

// signs tells whether the device record can be made: without a key, or with that of another device, nothing can be said.
func (d *Directory) signs() bool { return d.cfg.Key.ID() == d.cfg.Certificate.Device }

// runDevice keeps the own record in step with what it has to say.
func (d *Directory) runDevice(ctx context.Context) error {
	if !d.signs() {
		<-ctx.Done()
		return nil
	}
	// Who has something to say about mailboxes says it soon after the start; a record without them would be replaced at once.
	if !sleep(ctx, devicePause) {
		return nil
	}
	for {
		if err := d.renewDevice(ctx); err != nil && ctx.Err() == nil {
			d.log.Error("making the device record", "error", err)
		}
		t := time.NewTimer(republish)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		case <-d.own.changed:
			t.Stop()
			if !sleep(ctx, devicePause) { // relays come in pairs, and mailboxes after them
				return nil
			}
		}
	}
}

// renewDevice signs a new record if the last one says something else or ends soon.
func (d *Directory) renewDevice(ctx context.Context) error {
	now := d.now()
	var addrs []string
	if d.cfg.Node != nil {
		addrs = publicAddrs(d.cfg.Node.Addrs())
	}
	o := &d.own
	o.mu.Lock()
	last, seen, info, set, stale, news := o.last, o.seen, o.info, o.set, o.stale, o.news
	o.mu.Unlock()
	if !set && !last.IsZero() {
		// Nobody said anything since the start: what was said before it still stands.
		info = DeviceInfo{Prekey: last.Prekey, PrekeyCreated: last.PrekeyCreated, Mailboxes: last.Mailboxes, Request: last.Request}
	}
	next, err := identity.NewDeviceRecord(d.cfg.Key, identity.DeviceRecordConfig{
		Certificate: d.cfg.Certificate, LastSeq: seen, Now: now, Prekey: info.Prekey, PrekeyCreated: info.PrekeyCreated,
		Mailboxes: info.Mailboxes, Addrs: addrs, Request: info.Request,
	})
	if err != nil {
		return err
	}
	if !stale && sameDevice(last, next) && last.Expires.Sub(now) > identity.DeviceRecordLifetime/2 {
		o.settle(news)
		d.nudgeAll() // who waited for a new record need not wait for it
		return nil
	}
	if err := d.cfg.DB.Update(ctx, func(tx *storage.Tx) error { return tx.Set(ownRecordKey(), next.Raw()) }); err != nil {
		return fmt.Errorf("storing the own device record: %w", err)
	}
	o.mu.Lock()
	o.last, o.seen, o.stale = next, max(o.seen, next.Seq), next.Seq <= o.seen
	o.mu.Unlock()
	o.settle(news)
	d.nudgeAll()
	return nil
}

// settle notes that the last record says all up to news.
func (o *ownDevice) settle(news uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.settled = max(o.settled, news)
}

// sameDevice tells whether two records say the same, whenever they were made.
func sameDevice(a, b identity.DeviceRecord) bool {
	return !a.IsZero() && a.Certificate == b.Certificate && a.Prekey == b.Prekey &&
		a.PrekeyCreated.Equal(b.PrekeyCreated) && a.Request == b.Request && slices.Equal(a.Addrs, b.Addrs) &&
		slices.EqualFunc(a.Mailboxes, b.Mailboxes, func(x, y identity.MailboxRef) bool {
			return x.Device == y.Device && slices.Equal(x.Addrs, y.Addrs)
		})
}

// publicAddrs are the addresses that are worth telling the world: through relays first, then public ones. Private ones
// say nothing to a stranger but what the home network looks like.
func publicAddrs(addrs []string) []string {
	var relayed, direct []string
	for _, s := range addrs {
		if strings.Contains(s, "/p2p-circuit") {
			relayed = append(relayed, s)
			continue
		}
		if a, err := ma.NewMultiaddr(s); err == nil && manet.IsPublicAddr(a) {
			direct = append(direct, s)
		}
	}
	// A relay at hand has several addresses; some room is kept for the direct ones.
	if n := identity.MaxRecordAddrs - min(len(direct), identity.MaxRecordAddrs/4); len(relayed) > n {
		relayed = relayed[:n]
	}
	out := append(relayed, direct...)
	return out[:min(len(out), identity.MaxRecordAddrs)]
}

// textAddrs writes binary addresses as text; those that do not parse are left out.
func textAddrs(addrs [][]byte) []string {
	var out []string
	for _, b := range addrs[:min(len(addrs), maxAddrs)] {
		if a, err := ma.NewMultiaddrBytes(b); err == nil {
			out = append(out, a.String())
		}
	}
	return out
}

// sleep waits, and tells whether the time passed before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
