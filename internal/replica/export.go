package replica

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/storage"
)

// Span is a range of consecutive entries of one feed.
type Span struct {
	Feed       feed.FeedID
	From, Last uint64
	Lazy       bool // the conversation is a group
	Keyless    bool // of Debt: this device is to mail the key under which it writes there, for the other one may lack it
}

// ExportOptions bounds an export.
type ExportOptions struct {
	// Skip says up to which number entries of a feed are on their way already, from the given number on without a gap; less than that
	// number: that one is not. nil: none are.
	Skip func(id feed.FeedID, from uint64) uint64
	// MaxBytes bounds the encoded runs and receipts together; 0: DefaultExportBytes. The first run always fits.
	MaxBytes int
	// Control adds the control entries that others wrote in groups, so that a newcomer can begin with a mail alone.
	Control bool
	// Grant names groups of whose chat nothing is to be exported, but the key under which it was written if the device may lack it.
	Grant []feed.ConversationID
}

// DefaultExportBytes leaves room in a mail for what goes with runs.
const DefaultExportBytes = 56 << 10

// Export is what one device lacks, in the form in which other roads than a session carry it.
type Export struct {
	Peer     Peer
	Runs     []*pb.Run       // signed
	Spans    []Span          // what the runs hold, in the same order
	Receipts [][]byte        // signed receipts of this device that the other one may lack
	Carried  []Span          // of Spans, those with the entries of others
	Keys     []*pb.GroupKeys // of groups that both are in, from Config.Keys: beside control entries, and where the device may lack them
	Knock    bool            // the first exchange with an account that has not answered: Token or Work is set
	Token    []byte
	Work     []byte
	More     bool // the bound left something out

	posted []postedReceipt // of Receipts, in the same order
}

// postedReceipt names a receipt.
type postedReceipt struct {
	conv feed.ConversationID
	seq  uint64
}

// Empty says that there is nothing to send.
func (e Export) Empty() bool { return len(e.Runs) == 0 && len(e.Receipts) == 0 && len(e.Keys) == 0 }

// Export collects what a device lacks of this device's own feeds, oldest first and as far as Members let its account
// read it, and the receipts that it may lack. Before it returns it is durable that the entries were offered (R1): they
// are read in the transaction that marks them, so that none of them was cancelled before and none can be afterwards.
//
// ErrNotAdmitted: no account that shares a conversation has this device now.
func (r *Replica) Export(ctx context.Context, device identity.DeviceID, o ExportOptions) (Export, error) {
	if r.diverged.Load() {
		return Export{}, ErrDiverged
	}
	if o.MaxBytes <= 0 {
		o.MaxBytes = DefaultExportBytes
	}
	account, err := r.accountOf(device)
	if err != nil {
		return Export{}, err
	}
	x := &exporter{r: r, o: o, to: Peer{Account: account, Device: device}}
	if err := x.flush(ctx); err != nil {
		return Export{}, fmt.Errorf("exporting: %w", err)
	}
	err = r.view(x.collect)
	if err == nil && x.fresh {
		if err = r.fail("before-offered"); err == nil {
			err = r.cfg.DB.Update(ctx, func(tx *storage.Tx) error {
				if err := x.collect(tx); err != nil {
					return err
				}
				return x.reserve(tx)
			})
		}
	}
	if err == nil {
		err = r.fail("export")
	}
	if err != nil {
		return Export{}, fmt.Errorf("exporting: %w", err)
	}
	if err := x.keys(); err != nil {
		return Export{}, fmt.Errorf("exporting: %w", err)
	}
	if x.out.Knock && len(x.out.Token) == 0 {
		x.out.Work = r.works.of(r.cfg.Account, account, x.first)
	}
	return x.out, nil
}

// keys adds the keys of groups of which acts go along, and of those under whose keys was written what the device may not be able
// to read. The latter alone are a reason for a mail.
func (x *exporter) keys() error {
	of := slices.Clone(x.lacking)
	for _, s := range x.out.Spans {
		if s.Lazy && s.Feed.Number == feed.Control {
			of = append(of, s.Feed.Conversation)
		}
	}
	if x.r.cfg.Keys == nil || len(of) == 0 || x.out.Knock {
		return nil
	}
	return x.r.view(func(tx *storage.Tx) error {
		all, err := x.r.cfg.Keys.KeysFor(tx, x.to)
		for _, k := range all {
			if len(k.GetGroup()) == 32 && slices.Contains(of, feed.ConversationID(k.Group)) {
				x.out.Keys = append(x.out.Keys, k)
			}
		}
		return err
	})
}

// accountOf says whose device it is, of the accounts that something may be owed to.
func (r *Replica) accountOf(device identity.DeviceID) (identity.AccountID, error) {
	if device == r.self {
		return identity.AccountID{}, fmt.Errorf("exporting to this device: %w", ErrNotAdmitted)
	}
	account, ok := r.debts.account(device)
	if !ok {
		// Whose it is, is found out on the way to what it lacks.
		if _, err := r.Owed(); err != nil {
			return identity.AccountID{}, err
		}
		if _, err := r.ReceiptsDue(); err != nil {
			return identity.AccountID{}, err
		}
		account, ok = r.debts.account(device)
	}
	if !ok || !slices.Contains(r.cfg.Records.Devices(account), device) {
		return identity.AccountID{}, fmt.Errorf("exporting to %s: %w", device.Short(), ErrNotAdmitted)
	}
	return account, nil
}

// exporter collects one export.
type exporter struct {
	r     *Replica
	o     ExportOptions
	to    Peer
	out   Export
	first feed.EntryID // of the first run
	size  int
	fresh bool // something of it was never offered before

	lacking []feed.ConversationID // groups whose key goes along because the device may lack it
}

// due is a conversation of which something is to be sent.
type due struct {
	conv  feed.ConversationID
	since int64 // when the oldest of it was written
	knock bool
	feeds []dueFeed
}

type dueFeed struct {
	id    feed.FeedID
	st    feedState
	from  uint64
	begun uint64 // clock of the entry with that number
	upto  uint64 // nothing needs to go beyond this number; 0: everything does
	lazy  bool
}

// ends is the rule for where a run ends before the limits.
func (f dueFeed) ends(run []feed.Entry, next *feed.Entry) bool {
	return feed.Ends(run, next) || f.upto > 0 && next.Seq > f.upto
}

// flush makes the receipts for the account that are not made yet: no better moment may come.
func (x *exporter) flush(ctx context.Context) error {
	var convs []feed.ConversationID
	err := x.r.view(func(tx *storage.Tx) (err error) {
		convs, err = x.r.cfg.Members.Shared(tx, x.to.Account)
		// Those of groups are batched for all who are there, and go when they are made.
		convs = slices.DeleteFunc(convs, func(id feed.ConversationID) bool { return x.r.cfg.Members.Lazy(tx, id) })
		return err
	})
	if err != nil || len(convs) == 0 {
		return err
	}
	return x.r.FlushReceipts(ctx, convs...)
}

// collect works the export out. It begins anew each time, for a transaction may be run again.
func (x *exporter) collect(tx *storage.Tx) error {
	x.out, x.size, x.fresh, x.lacking = Export{Peer: x.to}, 0, false, nil
	convs, err := x.r.cfg.Members.Shared(tx, x.to.Account)
	if err != nil {
		return fmt.Errorf("asking who shares what: %w", err)
	}
	var all []due
	for _, conv := range convs {
		d, err := x.due(tx, conv)
		if err != nil {
			return err
		}
		if len(d.feeds) > 0 {
			all = append(all, d)
		}
	}
	slices.SortFunc(all, func(a, b due) int {
		return cmp.Or(cmp.Compare(a.since, b.since), slices.Compare(a.conv[:], b.conv[:]))
	})
	if len(all) > 0 && all[0].knock {
		// A stranger's token or work goes with one conversation, and nothing else is said to whoever has not answered.
		x.out.Knock = true
		x.out.More = len(all) > 1
		all = all[:1]
		if x.out.Token, err = x.r.cfg.Members.KnockToken(tx, all[0].conv); err != nil {
			return fmt.Errorf("asking for an invite token: %w", err)
		}
	} else if err := x.receipts(tx, convs); err != nil {
		return err
	}
	for _, d := range all {
		if d.knock && !x.out.Knock {
			x.out.More = true
			continue
		}
		for _, f := range d.feeds {
			if more, err := x.runs(tx, f); err != nil || !more {
				return err
			}
		}
	}
	return nil
}

// due says what of a conversation is to be sent. Control feeds come first: what a chat entry is allowed by may stand
// there.
func (x *exporter) due(tx *storage.Tx, conv feed.ConversationID) (due, error) {
	d := due{conv: conv}
	sc, err := x.r.scope(tx, conv, x.to.Account)
	if err != nil {
		return d, err
	}
	add := func(id feed.FeedID, st feedState) error {
		f, e, err := x.dueFeed(tx, sc, id, st, 1)
		if err != nil || f.from == 0 {
			return err
		}
		f.begun = e.Clock
		if x.r.owes(id) && (d.since == 0 || e.TimeMS < d.since) {
			d.since = e.TimeMS
		}
		d.feeds = append(d.feeds, f)
		return nil
	}
	former := slices.DeleteFunc(slices.Clone(x.r.former.tails[conv]), func(id feed.FeedID) bool {
		return id.Device == x.to.Device || sc.lazy && x.o.Control && id.Number == feed.Control // those come below
	})
	for _, id := range append(former, x.r.OwnFeed(conv, feed.Control), x.r.OwnFeed(conv, feed.Chat)) {
		st, ok, err := loadFeed(tx, id)
		if err == nil && ok {
			err = add(id, st)
		}
		if err != nil {
			return d, err
		}
	}
	if sc.lazy {
		if err := x.grant(tx, sc, &d); err != nil {
			return d, err
		}
	}
	if sc.lazy && x.o.Control {
		err := scanFeeds(tx, convFeedsPrefix(conv), func(id feed.FeedID, st feedState) (bool, error) {
			if id.Number != feed.Control || id.Device == x.r.self || id.Device == x.to.Device {
				return true, nil
			}
			err := add(id, st)
			return err == nil, err
		})
		if err != nil {
			return d, err
		}
	}
	if sc.lazy {
		slices.SortStableFunc(d.feeds, func(a, b dueFeed) int {
			return cmp.Or(cmp.Compare(a.id.Number, b.id.Number), cmp.Compare(a.begun, b.begun))
		})
	}
	if len(d.feeds) == 0 || x.to.Account == x.r.cfg.Account || sc.lazy {
		return d, nil
	}
	answered, err := x.r.answered(tx, conv, x.to.Account)
	d.knock = !answered
	return d, err
}

// grant adds to what is to be sent of a group what others wrote and the device may lack to read what this one writes there, and
// notes that the keys go along: whoever wrote it may never be there again to say it.
func (x *exporter) grant(tx *storage.Tx, sc scope, d *due) error {
	if x.r.cfg.Keys == nil || len(d.feeds) == 0 && !slices.Contains(x.o.Grant, d.conv) {
		return nil
	}
	what, err := x.r.cfg.Keys.Lacking(tx, d.conv)
	if err != nil || what.Key == nil || len(d.feeds) == 0 && !what.Mails {
		return err
	}
	st, _, err := loadFeed(tx, x.r.OwnFeed(d.conv, feed.Chat))
	if err != nil {
		return err
	}
	acked, err := loadAcked(tx, st.local, x.to.Device)
	if err != nil {
		return err
	}
	if lacks, err := what.Key(x.to, acked); !lacks || err != nil {
		return err
	}
	x.lacking = append(x.lacking, d.conv)
	if x.o.Control {
		return nil // they all go
	}
	acts, err := what.Acts(x.to, acked)
	for _, s := range acts {
		st, ok, err := loadFeed(tx, s.Feed)
		if err != nil {
			return err
		}
		if !ok || s.Feed.Device == x.r.self || s.Feed.Device == x.to.Device {
			continue
		}
		f, e, err := x.dueFeed(tx, sc, s.Feed, st, s.From)
		if err != nil {
			return err
		}
		if f.from > 0 && f.from <= s.Last {
			f.begun, f.upto = e.Clock, s.Last
			d.feeds = append(d.feeds, f)
		}
	}
	return err
}

// dueFeed says from where on, but not below a number, a feed is to be sent, and what its first entry there is; from 0: nothing
// of it.
func (x *exporter) dueFeed(tx *storage.Tx, sc scope, id feed.FeedID, st feedState, least uint64) (f dueFeed, e feed.Entry, err error) {
	st, ok := x.r.uptoFork(tx, id, st)
	if !ok {
		return f, e, nil
	}
	acked, err := loadAcked(tx, st.local, x.to.Device)
	if err != nil {
		return f, e, err
	}
	first, last, ok := sc.window.clip(id, st)
	from := max(acked+1, first, least)
	if x.o.Skip != nil {
		from = max(from, x.o.Skip(id, from)+1)
	}
	if !ok || from > last {
		return f, e, nil
	}
	s, ok, err := loadStored(tx, st.local, from)
	if !ok || err != nil {
		return f, e, err
	}
	if e, err = s.entry(); err != nil {
		return f, e, err
	}
	st.last = last
	return dueFeed{id: id, st: st, from: from, lazy: sc.lazy}, e, nil
}

// answered says whether an account was ever heard of in a conversation: something of it came in, or one of its devices
// took something. Before that we are a stranger to it.
func (r *Replica) answered(tx *storage.Tx, conv feed.ConversationID, account identity.AccountID) (bool, error) {
	answered := false
	err := scanFeeds(tx, convFeedsPrefix(conv), func(id feed.FeedID, st feedState) (bool, error) {
		answered = st.account == account
		if answered || st.account != r.cfg.Account {
			return !answered, nil
		}
		err := r.AckedBy(tx, id, func(device identity.DeviceID, _ uint64) (bool, error) {
			answered = slices.Contains(r.cfg.Records.Devices(account), device)
			return !answered, nil
		})
		return !answered, err
	})
	return answered, err
}

// exportOverhead is what a field around a run or a receipt takes.
const exportOverhead = 4

// runs adds runs of a feed until its end or the bound.
func (x *exporter) runs(tx *storage.Tx, f dueFeed) (more bool, err error) {
	own := f.id.Device == x.r.self
	for from := f.from; from <= f.st.last && (f.upto == 0 || from <= f.upto); {
		entries, signature, err := x.r.readWhole(tx, f.id, f.st, from, f.ends)
		if err != nil || len(entries) == 0 {
			return err == nil, err
		}
		if len(x.out.Runs) > 0 {
			room := x.o.MaxBytes - x.size - runOverhead - exportOverhead
			n := 0
			for n < len(entries) && entries[n].WireSize() <= room {
				room -= entries[n].WireSize()
				n++
			}
			x.out.More = x.out.More || n < len(entries)
			if !own && n < len(entries) {
				return false, nil // it ends where its author signed it
			}
			// Runs of own feeds may end anywhere: as much goes along as there is room for.
			if entries = entries[:n]; n == 0 {
				return false, nil
			}
		} else {
			x.first = entries[0].ID
		}
		last := entries[len(entries)-1]
		if own {
			signature = feed.SignRun(x.r.cfg.Key, last)
		}
		run, span := runPB(entries, signature), Span{Feed: f.id, From: from, Last: last.Seq, Lazy: f.lazy}
		x.out.Runs = append(x.out.Runs, run)
		x.out.Spans = append(x.out.Spans, span)
		if !own {
			x.out.Carried = append(x.out.Carried, span)
		}
		x.size += proto.Size(run) + exportOverhead
		x.fresh = x.fresh || own && last.Seq > f.st.offered
		from = last.Seq + 1
	}
	return true, nil
}

// reserve makes it durable that what was collected is offered.
func (x *exporter) reserve(tx *storage.Tx) error {
	for _, span := range x.out.Spans {
		st, ok, err := loadFeed(tx, span.Feed)
		if err != nil || !ok {
			return err
		}
		if span.Feed.Device != x.r.self {
			continue
		}
		st.offered = max(st.offered, span.Last)
		if err := saveFeed(tx, span.Feed, &st); err != nil {
			return err
		}
	}
	return nil
}

// receipts adds the newest receipts that were not handed over yet. They may take a quarter of the room: entries are
// worth more, and what is left out goes with the next export.
func (x *exporter) receipts(tx *storage.Tx, convs []feed.ConversationID) error {
	for _, conv := range convs {
		name := x.r.ownReceipt(tx, conv, x.to.Account)
		seq, err := receiptSeq(tx, name)
		if err != nil || seq == 0 {
			if err != nil {
				return err
			}
			continue
		}
		posted, err := loadPosted(tx, conv, x.to.Device)
		if err != nil {
			return err
		}
		if posted >= seq {
			continue
		}
		raw, err := tx.Get(receiptKey(name))
		if err != nil {
			return err
		}
		if n := len(x.out.Receipts); n == identity.MaxMailReceipts || n > 0 && x.size+len(raw)+exportOverhead > x.o.MaxBytes/4 {
			x.out.More = true
			return nil
		}
		x.size += len(raw) + exportOverhead
		x.out.Receipts = append(x.out.Receipts, raw)
		x.out.posted = append(x.out.posted, postedReceipt{conv, seq})
	}
	return nil
}

func receiptSeq(tx *storage.Tx, name receiptName) (uint64, error) {
	rec, err := loadReceipt(tx, name)
	return rec.GetSeq(), err
}

// Posted notes that somebody who is trusted to hand it over holds an export until then, so that its receipts and keys are not
// exported again. Entries need no note: ExportOptions.Skip says where they are.
func (r *Replica) Posted(tx *storage.Tx, e Export, until time.Time) error {
	// Of what did not all fit, acts may be missing upon which the keys stand: they go once more with the last of it.
	if len(e.Keys) > 0 && !e.More && r.cfg.Keys != nil {
		if err := r.cfg.Keys.MailedKeys(tx, e.Peer, e.Keys, until); err != nil {
			return fmt.Errorf("noting that keys are on their way: %w", err)
		}
		tx.OnCommit(func() {
			for _, k := range e.Keys {
				r.debts.mark(feed.ConversationID(k.Group))
			}
		})
	}
	for _, p := range e.posted {
		if err := r.savePosted(tx, p, e.Peer.Device); err != nil {
			return err
		}
	}
	return nil
}

// keyPosted is where the number of the receipt is kept that a device was handed last.
const keyPosted = "r/o/"

func postedKey(conv feed.ConversationID, device identity.DeviceID) []byte {
	b := append(make([]byte, 0, len(keyPosted)+64), keyPosted...)
	return append(append(b, conv[:]...), device[:]...)
}

func loadPosted(tx *storage.Tx, conv feed.ConversationID, device identity.DeviceID) (uint64, error) {
	b, err := tx.Get(postedKey(conv, device))
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return 0, nil
	case err != nil:
		return 0, err
	case len(b) != 8:
		return 0, fmt.Errorf("reading what was handed over: %w", errStored)
	}
	return binary.BigEndian.Uint64(b), nil
}

func (r *Replica) savePosted(tx *storage.Tx, p postedReceipt, device identity.DeviceID) error {
	old, err := loadPosted(tx, p.conv, device)
	if err != nil || old >= p.seq {
		return err
	}
	tx.OnCommit(func() { r.lacking.mark(p.conv) })
	return tx.Set(postedKey(p.conv, device), binary.BigEndian.AppendUint64(nil, p.seq))
}

// OwnReceipt returns this device's newest signed receipt of a conversation.
func (r *Replica) OwnReceipt(conv feed.ConversationID) ([]byte, bool) {
	var raw []byte
	err := r.view(func(tx *storage.Tx) (err error) {
		raw, err = tx.Get(receiptKey(receiptName{conv: conv, device: r.self}))
		return err
	})
	return raw, err == nil
}
