package messenger

import (
	"encoding/json"
	"errors"
	"fmt"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// quotas counts what all strangers together cost.
type quotas struct{ limits Limits }

// quotaRow is the count, kept exact by contacts.put.
type quotaRow struct {
	Chats   int `json:"c"` // temporary chats
	Waiting int `json:"w"` // undecided incoming requests without a token
	Invited int `json:"i"` // and with one
}

func (q *quotas) get(tx *storage.Tx) (row quotaRow, err error) {
	b, ok, err := getRow(tx, []byte(keyQuota))
	if err != nil || !ok {
		return quotaRow{}, err
	}
	if err := json.Unmarshal(b, &row); err != nil {
		return quotaRow{}, fmt.Errorf("reading quotas: %w: %w", errRow, err)
	}
	return row, nil
}

// weigh says what one contact row adds to the count.
func weigh(r *contactRow) (w quotaRow) {
	if r.Blocked {
		return w
	}
	if r.stranger() && r.Cost.Messages > 0 {
		w.Chats = 1
	}
	if r.stranger() && r.In.waiting() {
		if r.In.Invited {
			w.Invited = 1
		} else {
			w.Waiting = 1
		}
	}
	return w
}

// move follows a change of one contact row.
func (q *quotas) move(tx *storage.Tx, before, after *contactRow) error {
	was, is := weigh(before), weigh(after)
	if was == is {
		return nil
	}
	row, err := q.get(tx)
	if err != nil {
		return err
	}
	row.Chats += is.Chats - was.Chats
	row.Waiting += is.Waiting - was.Waiting
	row.Invited += is.Invited - was.Invited
	b, err := json.Marshal(row)
	if err != nil {
		return fmt.Errorf("writing quotas: %w", err)
	}
	return tx.Set([]byte(keyQuota), b)
}

// Listening implements replica.Gate: somebody who may only come in with a token is not even read while there is no live
// token. A blocked account gets the very answer of a stranger under deny (R16).
func (m *Messenger) Listening(account identity.AccountID) pb.Code {
	if m.invites.live() > 0 {
		return pb.Code_CODE_TAKEN
	}
	deaf, open, noted := m.settings.strangers() == strangersDeny, false, false
	err := m.env.db.View(func(tx *storage.Tx) error {
		row, known, err := m.contacts.get(tx, account)
		deaf = deaf || known && row.Blocked
		if err != nil || !deaf {
			return err
		}
		// Somebody may apply to a group, or answer what we said about one; what it is shows when it is read. Whether it is
		// somebody blocked must not make a difference.
		if open, err = m.listening(tx); err != nil || open {
			return err
		}
		noted, err = tx.Has(refusedKey(account))
		return err
	})
	if err == nil && !deaf {
		return pb.Code_CODE_TAKEN
	}
	if err == nil && open {
		return pb.Code_CODE_TAKEN
	}
	if err == nil && !noted {
		// What it wanted to say is not known; should it be let in later, what it wrote before is not taken.
		m.env.db.Submit(func(tx *storage.Tx) error { return m.rememberRefused(tx, account, false) }, func(err error) {
			if err != nil {
				m.env.log.Debug("noting a refusal", "error", err)
			}
		})
	}
	return pb.Code_CODE_DENIED
}

// Excused implements replica.Gate: a body may be missing where its author took the entry back.
func (m *Messenger) Excused(tx *storage.Tx, e feed.Entry) (bool, error) {
	return tx.Has(append([]byte(keyRecalled), e.ID[:]...))
}

// Admit implements replica.Gate.
func (m *Messenger) Admit(tx *storage.Tx, in replica.Incoming) (take int, code pb.Code, err error) {
	id, author := in.Run.Feed(), in.Run.Account()
	all := len(in.Run.Entries())
	group, err := m.isGroup(tx, id.Conversation)
	if err != nil {
		return 0, 0, err
	}
	if group || m.mayBeGroup(in) {
		return m.env.groups.Admit(tx, in)
	}
	if author == m.env.account {
		return m.admitOwn(tx, in, all)
	}
	// In a direct conversation only its two accounts speak, and each for itself: what a third brings is not looked at.
	if feed.DirectConversation(m.env.account, author) != id.Conversation ||
		(in.Peer.Account != author && in.Peer.Account != m.env.account) {
		return 0, pb.Code_CODE_NOT_MEMBER, nil
	}
	row, known, err := m.contacts.get(tx, author)
	if err != nil {
		return 0, 0, err
	}
	if !row.Blocked && !row.stranger() {
		return all, pb.Code_CODE_TAKEN, nil
	}
	take, code, err = m.admitStranger(tx, in, row, known)
	if err == nil && take < all && id.Number == feed.Chat {
		err = m.rememberRefused(tx, author, known)
	}
	return take, code, err
}

// admitOwn judges what another own device wrote: in the self conversation, or in a conversation we know of.
func (m *Messenger) admitOwn(tx *storage.Tx, in replica.Incoming, all int) (int, pb.Code, error) {
	conv := in.Run.Feed().Conversation
	if conv == m.env.self {
		if in.Peer.Account != m.env.account {
			return 0, pb.Code_CODE_NOT_MEMBER, nil
		}
		return all, pb.Code_CODE_TAKEN, nil
	}
	row, ok, err := m.convs.get(tx, conv)
	if err != nil {
		return 0, 0, err
	}
	switch {
	case in.Peer.Account == m.env.account && ok, ok && in.Peer.Account == row.peer:
		return all, pb.Code_CODE_TAKEN, nil
	case !ok && conv == feed.DirectConversation(m.env.account, in.Peer.Account):
		// What an own device once wrote to them; what they are to us now may be rebuilt from it (R21).
		return all, pb.Code_CODE_TAKEN, nil
	}
	return 0, pb.Code_CODE_NOT_MEMBER, nil
}

// admitStranger applies policy and quota to somebody who was not accepted, or who was blocked.
func (m *Messenger) admitStranger(tx *storage.Tx, in replica.Incoming, row contactRow, known bool) (int, pb.Code, error) {
	policy := m.settings.strangersAt(tx)
	invited, err := m.invited(tx, in, &row)
	switch {
	case err != nil:
		return 0, 0, err
	case row.Blocked:
		// To the blocked one nothing may differ from a stranger under deny; a token of theirs is void.
		return 0, pb.Code_CODE_DENIED, nil
	case in.Detached:
		return 0, pb.Code_CODE_FULL, nil
	}
	total, err := m.quotas.get(tx)
	if err != nil {
		return 0, 0, err
	}
	v := verdict{
		limits: m.config.Limits, policy: policy, invited: invited, row: row, total: total,
		acquainted: known && m.acquainted(tx, in.Run.Feed().Conversation),
	}
	if take, code, err := m.judgeRun(tx, &v, in); err != nil || code != pb.Code_CODE_TAKEN {
		return take, code, err
	}
	if invited && in.Knock != nil && !row.Invited {
		row.Invited = true
		if err := m.invites.use(tx, in.Knock.Token); err != nil {
			return 0, 0, err
		}
		if err := m.contacts.put(tx, in.Run.Account(), row); err != nil {
			return 0, 0, err
		}
	}
	return len(in.Run.Entries()), pb.Code_CODE_TAKEN, nil
}

// judgeRun judges entries one after another.
func (m *Messenger) judgeRun(tx *storage.Tx, v *verdict, in replica.Incoming) (take int, code pb.Code, err error) {
	entries := in.Run.Entries()
	for i := range entries {
		e := &entries[i]
		if !aboutGroup(e.Number, e.Kind) {
			if code = v.judge(e); code != pb.Code_CODE_TAKEN {
				return i, code, nil
			}
			continue
		}
		if code, err = m.hears(tx, v, e); err != nil {
			return 0, 0, err
		}
		// What is over by now stands before what is not: a control feed has no floor, so it has to be taken with it.
		if code != pb.Code_CODE_TAKEN && (i+1 == len(entries) && !v.acquainted || v.policy == strangersDeny && !v.invited) {
			return i, code, nil
		}
		if v.said == nil {
			q, err := m.saidQuota(tx, in.Run.Account())
			if err != nil {
				return 0, 0, err
			}
			v.said = &q
			v.row.Cost.drain(q, m.env.now())
		}
		if code = v.judgeSaid(e); code != pb.Code_CODE_TAKEN {
			return i, code, m.waits(tx, in)
		}
	}
	return len(entries), pb.Code_CODE_TAKEN, nil
}

func (m *Messenger) invited(tx *storage.Tx, in replica.Incoming, row *contactRow) (bool, error) {
	if row.Invited {
		return true, nil
	}
	if in.Knock == nil {
		return false, nil
	}
	return m.invites.valid(tx, in.Knock.Token)
}

// acquainted tells whether we ever wrote or kept anything in the conversation.
func (m *Messenger) acquainted(tx *storage.Tx, conv feed.ConversationID) bool {
	_, ok, err := m.convs.get(tx, conv)
	return err == nil && ok
}

// verdict judges the entries of one stranger's run one after another, counting what it would already have taken.
type verdict struct {
	limits     Limits
	policy     string
	invited    bool
	acquainted bool
	row        contactRow
	total      quotaRow
	said       *saidQuota // nil: nothing about groups was judged yet
}

func (v *verdict) judge(e *feed.Entry) pb.Code {
	switch {
	case e.Number == feed.Chat && e.Kind == feed.KindText:
		return v.judgeText(e)
	case e.Number == feed.Control && e.Kind == feed.KindRequest:
		return v.judgeRequest()
	case e.Number == feed.Control && v.acquainted && inertKind(e.Kind):
		// Left over from when we were acquainted; a control feed has no floor, so what stands before a new request
		// must be taken for the request to come in at all.
		if v.policy == strangersDeny && !v.invited {
			return pb.Code_CODE_DENIED
		}
		return v.control()
	}
	if v.policy == strangersDeny {
		return pb.Code_CODE_DENIED
	}
	return pb.Code_CODE_UNSUPPORTED
}

func inertKind(k feed.Kind) bool {
	return k == feed.KindAccept || k == feed.KindDecline || k == feed.KindCardUpdate || k == feed.KindMailboxGrant
}

func (v *verdict) control() pb.Code {
	if v.row.Cost.Control >= v.limits.TempControl {
		return pb.Code_CODE_FULL
	}
	v.row.Cost.Control++
	return pb.Code_CODE_TAKEN
}

// judgeSaid is the quota of what a stranger says about groups. It is apart from that of other control entries, so that a
// busy applicant can still ask to be a contact.
func (v *verdict) judgeSaid(e *feed.Entry) pb.Code {
	if !v.row.Cost.fits(*v.said, e.WireSize()) {
		return pb.Code_CODE_FULL
	}
	v.row.Cost.Said += e.WireSize()
	return pb.Code_CODE_TAKEN
}

func (v *verdict) judgeRequest() pb.Code {
	if v.policy == strangersDeny && !v.invited {
		return pb.Code_CODE_DENIED
	}
	if !v.row.In.waiting() {
		if v.invited && v.total.Invited >= v.limits.Requests || !v.invited && v.total.Waiting >= v.limits.Requests {
			return pb.Code_CODE_FULL
		}
		v.row.In = &requestRow{State: RequestWaiting, Invited: v.invited}
	}
	return v.control()
}

func (v *verdict) judgeText(e *feed.Entry) pb.Code {
	// Whoever was declined may ask again, and that is all.
	if v.policy != strangersAllow || v.row.State == pb.ContactState_STATE_DECLINED {
		return pb.Code_CODE_DENIED
	}
	cost := &v.row.Cost
	if cost.Messages == 0 && v.total.Chats >= v.limits.TempChats ||
		cost.Messages >= v.limits.TempMessages || cost.Bytes+int(e.BodyLen) > v.limits.TempBytes {
		return pb.Code_CODE_FULL
	}
	cost.Messages++
	cost.Bytes += int(e.BodyLen)
	return pb.Code_CODE_TAKEN
}

// rememberRefused notes that texts of an account were refused, so that an acceptance or a looser policy sets the floor of
// its feeds (R16). Of accounts that we know nothing else of a bounded number is kept.
func (m *Messenger) rememberRefused(tx *storage.Tx, account identity.AccountID, known bool) error {
	key := refusedKey(account)
	if had, err := tx.Has(key); err != nil || had {
		return err
	}
	if !known {
		n := 0
		o := storage.ScanOptions{Prefix: []byte(keyRefused), KeysOnly: true}
		err := tx.Scan(o, func(_, _ []byte) (bool, error) {
			n++
			return n < maxRefused, nil
		})
		if err != nil || n >= maxRefused {
			return err
		}
	}
	return tx.Set(key, nil)
}

func refusedKey(account identity.AccountID) []byte { return append([]byte(keyRefused), account[:]...) }

// mayBeGroup tells whether a run of a conversation that is not known is one of a group that is not known: another own
// device may bring it.
func (m *Messenger) mayBeGroup(in replica.Incoming) bool {
	id := in.Run.Feed()
	for _, a := range []identity.AccountID{in.Run.Account(), in.Peer.Account} {
		if id.Conversation == m.conversationID(a) {
			return false
		}
	}
	e := in.Run.First()
	if e.Number == feed.Control {
		return e.Kind >= feed.KindGroupCreate && e.Kind <= feed.KindGroupDissolve
	}
	return len(e.Epoch) > 0
}

// floor sets the floor of an account's feed to its present head: what was refused stays refused. Without always it does
// so only if something was refused.
func (m *Messenger) floor(tx *storage.Tx, account identity.AccountID, always bool) error {
	key := refusedKey(account)
	had, err := tx.Has(key)
	if err != nil || !had && !always {
		return err
	}
	if err := tx.Delete(key); err != nil {
		return err
	}
	conv := feed.DirectConversation(m.env.account, account)
	if err := m.env.feeds.FloorToShown(tx, conv, account); err != nil {
		return err
	}
	tx.OnCommit(func() { m.env.feeds.Reannounce(conv) })
	return nil
}

// errIgnored marks an entry that says nothing we act on: it is stored like any other and otherwise left alone.
var errIgnored = errors.New("entry says nothing")
