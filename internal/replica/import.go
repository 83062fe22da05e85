package replica

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/storage"
)

// Mailed is what came over another road than a session. Who it is from was proven by a signature over all of it.
type Mailed struct {
	Peer     Peer
	Record   identity.AccountRecord // of Peer.Account, as it came along; needed of an account nothing is known of; zero: none
	Runs     []*pb.Run              // not checked
	Receipts [][]byte               // not checked
	Token    []byte                 // of a knock
	Work     []byte                 // of a knock
}

// Imported says what became of it.
type Imported struct {
	Entries       int     // that were not held before
	Refused       pb.Code // not 0: some were not taken, and this is why
	Later         bool    // they will be when what stands in their place was replaced, which Replacing tells: take the same mail again then
	Conversations []feed.ConversationID
}

// maxMailed bounds the runs and the receipts of one mail. Its size bounds them further.
const maxMailed = 256

// Import takes what a device sent by mail as a session with that device would have taken it: in one transaction, in
// which also runs, whether or not everything was taken, unless some is to be taken later. What is held already is no error.
//
// ErrNotAdmitted: the device is not listed in the newest record of its account; nothing was stored and also did not
// run. ErrProtocol: a run or a receipt does not verify; the same. ErrDiverged: it proves that the own feed diverged (R3);
// also ran. Any other error is one of the own database or of the other parts, and the same mail may succeed later.
func (r *Replica) Import(ctx context.Context, in Mailed, also func(*storage.Tx) error) (Imported, error) {
	known, err := r.admitSender(ctx, in)
	if err != nil {
		return Imported{}, fmt.Errorf("importing: %w", err)
	}
	m := &importer{r: r, in: in}
	if err := m.check(); err != nil {
		return Imported{}, fmt.Errorf("importing: %w", err)
	}
	if err := m.listen(); err != nil {
		return Imported{}, fmt.Errorf("importing: %w", err)
	}
	err = r.cfg.DB.Update(ctx, func(tx *storage.Tx) error {
		if err := m.take(tx); err != nil {
			return err
		}
		if also != nil && !m.out.Later {
			if err := also(tx); err != nil {
				return err
			}
		}
		// Its author may only learn by mail what became of it, and we may be gone in a moment.
		for _, conv := range m.out.Conversations {
			if err := r.signReceipt(tx, readyReceipt{conv: conv}); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = r.fail("import")
	}
	if err != nil {
		return Imported{}, fmt.Errorf("importing: %w", err)
	}
	if m.own != nil {
		r.diverge(*m.own)
		return m.out, fmt.Errorf("importing: %w", ErrDiverged)
	}
	if m.knocked && !known {
		// From now on its devices matter.
		if _, err := r.cfg.Records.Admit(ctx, in.Record.Raw()); err != nil {
			return m.out, fmt.Errorf("keeping account record: %w", err)
		}
	}
	return m.out, nil
}

// admitSender asks whether the account stands by the device: the newest record known of it, or, of a stranger, the one
// that came along (R11).
func (r *Replica) admitSender(ctx context.Context, in Mailed) (known bool, err error) {
	if in.Peer.Device == r.self {
		return false, fmt.Errorf("mail of this device: %w", ErrNotAdmitted)
	}
	brought := !in.Record.Account.IsZero()
	if brought && in.Record.Account != in.Peer.Account {
		return false, fmt.Errorf("record of another account: %w", ErrProtocol)
	}
	rec, known := r.cfg.Records.Record(in.Peer.Account)
	switch {
	case known && brought && identity.Supersedes(rec, in.Record):
		if rec, err = r.cfg.Records.Admit(ctx, in.Record.Raw()); err != nil {
			return true, fmt.Errorf("keeping account record: %w", err)
		}
	case !known:
		rec = in.Record
	}
	if !rec.Lists(in.Peer.Device) {
		return known, fmt.Errorf("device %s is not listed by its account: %w", in.Peer.Device.Short(), ErrNotAdmitted)
	}
	return known, nil
}

// importer takes one mail.
type importer struct {
	r        *Replica
	in       Mailed
	runs     []feed.Run
	receipts []checkedReceipt
	code     pb.Code // what a stranger is answered before its knock is looked at

	out     Imported
	refused map[feed.FeedID]bool // what follows is not looked at
	plain   pb.Code              // why something was refused, outside of groups
	lazy    pb.Code              // and in groups, to the end
	knocked bool                 // a knock was taken
	own     *feed.FeedID         // a run proves that this own feed diverged
	atOnce  atOnce               // what was replaced of former feeds
}

// check checks what can be checked without the database.
func (m *importer) check() error {
	if len(m.in.Runs) > maxMailed || len(m.in.Receipts) > maxMailed || len(m.in.Token) > maxToken || len(m.in.Work) > maxToken {
		return fmt.Errorf("more in a mail than fits: %w", ErrProtocol)
	}
	for _, raw := range m.in.Runs {
		run, err := feed.CheckDetached(raw)
		if err != nil {
			return fmt.Errorf("checking a run: %w: %w", ErrProtocol, err)
		}
		m.runs = append(m.runs, run)
	}
	for _, raw := range m.in.Receipts {
		rec, err := parseReceipt(raw)
		if err != nil {
			return err
		}
		m.receipts = append(m.receipts, rec)
	}
	return nil
}

// listen asks the gate whether it listens to the sender, if the sender wants something that is not shared with it.
func (m *importer) listen() error {
	stranger := false
	err := m.r.view(func(tx *storage.Tx) error {
		for _, run := range m.runs {
			shared, err := m.r.shares(tx, m.in.Peer, run.Feed().Conversation)
			if err != nil {
				return err
			}
			stranger = stranger || !shared
		}
		return nil
	})
	if stranger && err == nil {
		m.code = m.r.cfg.Gate.Listening(m.in.Peer.Account)
	}
	return err
}

// take runs inside the transaction. It begins anew each time.
func (m *importer) take(tx *storage.Tx) error {
	m.out, m.refused, m.knocked, m.own, m.plain, m.atOnce = Imported{}, map[feed.FeedID]bool{}, false, nil, 0, atOnce{}
	for left := m.runs; len(left) > 0; {
		again, taken, err := m.pass(tx, left)
		if err != nil {
			return err
		}
		if !taken {
			break
		}
		left = again
	}
	m.out.Refused = cmp.Or(m.plain, m.lazy)
	for _, rec := range m.receipts {
		if err := m.receipt(tx, rec); err != nil {
			return err
		}
	}
	return nil
}

// pass goes over runs once. Runs of groups whose author was not known as a member yet are to be looked at again if
// something else was taken meanwhile.
func (m *importer) pass(tx *storage.Tx, runs []feed.Run) (again []feed.Run, taken bool, err error) {
	clear(m.refused)
	m.lazy = 0
	for _, run := range runs {
		lazy := m.r.cfg.Members.Lazy(tx, run.Feed().Conversation)
		if m.refused[run.Feed()] {
			if lazy {
				again = append(again, run)
			}
			continue
		}
		code, err := m.run(tx, run)
		if err != nil {
			return nil, false, err
		}
		if code == 0 {
			taken = true
			continue
		}
		m.refused[run.Feed()] = true
		if !lazy {
			m.plain = cmp.Or(m.plain, code)
			continue
		}
		m.lazy = cmp.Or(m.lazy, code)
		again = append(again, run)
	}
	return again, taken, nil
}

// run takes one run; a code says why it was not taken.
func (m *importer) run(tx *storage.Tx, run feed.Run) (pb.Code, error) {
	id := run.Feed()
	in := arrived{peer: m.in.Peer, run: run, backlog: true, atOnce: &m.atOnce}
	shared, err := m.r.shares(tx, m.in.Peer, id.Conversation)
	if err != nil {
		return 0, err
	}
	if id.Device == m.in.Peer.Device && run.Account() == m.in.Peer.Account {
		in.knock = m.knock(run)
	}
	if !shared {
		switch {
		case in.knock == nil:
			return pb.Code_CODE_NOT_MEMBER, nil
		case m.code != 0 && m.code != pb.Code_CODE_TAKEN:
			return m.code, nil
		case len(in.knock.Token) == 0 && !in.knock.Work:
			return pb.Code_CODE_WORK, nil
		}
	} else if err := m.cut(tx, run); err != nil {
		return 0, err
	}
	held, err := m.held(tx, run)
	if err != nil {
		return 0, err
	}
	out, err := m.r.apply(tx, in)
	if err != nil {
		return 0, err
	}
	if out.own {
		m.own = &id
		return 0, nil
	}
	if out.code != 0 {
		m.out.Later = m.out.Later || out.later
		return out.code, nil
	}
	now, err := m.held(tx, run)
	if err != nil {
		return 0, err
	}
	m.out.Entries += now - held
	m.knocked = m.knocked || in.knock != nil
	m.touch(id.Conversation)
	return 0, nil
}

func (m *importer) touch(conv feed.ConversationID) {
	if !slices.Contains(m.out.Conversations, conv) {
		m.out.Conversations = append(m.out.Conversations, conv)
	}
}

// knock is what goes with the first run of a stranger's own feed, nil if the mail is none.
func (m *importer) knock(run feed.Run) *Knock {
	if m.knocked || len(m.in.Token) == 0 && len(m.in.Work) == 0 {
		return nil
	}
	return &Knock{
		Token: m.in.Token,
		Work:  feed.CheckWork(m.in.Peer.Account, m.r.cfg.Account, run.First().ID, m.in.Work, feed.WorkBits),
	}
}

// held counts the entries of a run that are held.
func (m *importer) held(tx *storage.Tx, run feed.Run) (n int, err error) {
	st, ok, err := loadFeed(tx, run.Feed())
	if !ok || err != nil {
		return 0, err
	}
	err = scanStored(tx, st.local, run.First().Seq, run.Last().Seq, func(uint64, stored) (bool, error) {
		n++
		return true, nil
	})
	return n, err
}

// cut fulfils the wish for a floor (R16) with a mail. Mail shows no heads, and may come long after the wish: what the
// author wrote before it is not taken, by the author's clock, what it wrote later is. A wish that meets nothing older is
// ended by the run itself.
func (m *importer) cut(tx *storage.Tx, run feed.Run) error {
	id, wish := run.Feed(), floorWish{run.Feed().Conversation, m.in.Peer.Account}
	if id.Number != feed.Chat || id.Device != m.in.Peer.Device || run.Account() != m.in.Peer.Account {
		return nil
	}
	since, ok, err := loadWish(tx, wish)
	if !ok || err != nil {
		return err
	}
	var last *feed.Entry
	for i, e := range run.Entries() {
		if e.TimeMS > since {
			break
		}
		last = &run.Entries()[i]
	}
	if last == nil {
		return nil
	}
	return m.r.raiseFloor(tx, id, feed.Head{Number: id.Number, Account: run.Account(), Device: id.Device, Last: last.Seq, Hash: last.ID}, last.Clock)
}

// receipt takes one receipt of the sender, or of another device that its account or ours stands by.
func (m *importer) receipt(tx *storage.Tx, rec checkedReceipt) error {
	shared, err := m.r.shares(tx, m.in.Peer, rec.conv)
	if !shared || err != nil {
		return err
	}
	from := m.in.Peer
	if rec.device != from.Device {
		from, err = m.r.deviceOf(rec.device, from.Account)
		if errors.Is(err, ErrNotAdmitted) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	m.touch(rec.conv)
	return m.r.takeReceipt(tx, from, rec)
}
