package messenger

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/text"
	"hima/internal/wire/pb"
	"hima/storage"
)

// stamp orders entries that overwrite each other: the last writer by clock wins, then device and number (R22).
type stamp struct {
	Clock  uint64            `json:"c"`
	Device identity.DeviceID `json:"d"`
	Seq    uint64            `json:"s"`
}

func stampOf(e *feed.Entry) stamp { return stamp{e.Clock, e.Device, e.Seq} }

func (s stamp) before(o stamp) bool {
	if s.Clock != o.Clock {
		return s.Clock < o.Clock
	}
	if c := bytes.Compare(s.Device[:], o.Device[:]); c != 0 {
		return c < 0
	}
	return s.Seq < o.Seq
}

// card is what a contact says of themselves, neutralised.
type card struct {
	Username string `json:"u,omitempty"`
	Nickname string `json:"n,omitempty"`
	Field    string `json:"f,omitempty"`
	Bio      string `json:"b,omitempty"`
}

// readCard neutralises a peer's card. A username that breaks the rules is dropped: it could only mislead.
func readCard(c *pb.Card) card {
	name, err := text.Username(c.GetUsername())
	if err != nil {
		name = ""
	}
	return card{
		Username: name,
		Nickname: text.Nickname(c.GetNickname()),
		Field:    text.OneLine(c.GetContactField(), maxField),
		Bio:      text.Message(clip(c.GetBio(), maxBio)),
	}
}

// requestRow is a request, theirs or ours.
type requestRow struct {
	ID      feed.EntryID `json:"i"`
	Message string       `json:"m,omitempty"`
	Time    int64        `json:"t"`
	State   RequestState `json:"s"`
	Invited bool         `json:"v,omitempty"`
	Local   localFeed    `json:"l,omitempty"`
	Seq     uint64       `json:"q,omitempty"`
}

// waiting tells whether nobody answered yet.
func (r *requestRow) waiting() bool { return r != nil && r.State == RequestWaiting }

// strangerCost is what is kept of somebody who was not accepted.
type strangerCost struct {
	Messages int `json:"m,omitempty"`
	Bytes    int `json:"b,omitempty"`
	Control  int `json:"c,omitempty"`
	Said     int `json:"s,omitempty"` // bytes of what they said about groups that have not come back yet
	// SaidMS is when that was so, in ms: see drain.
	SaidMS int64 `json:"t,omitempty"`
}

// contactRow is the folded state of one other account. The first part comes from ContactState entries of the self
// conversation, the second from the direct conversation, the third is known to this device alone.
type contactRow struct {
	State         pb.ContactState_State    `json:"st,omitempty"`
	Blocked       bool                     `json:"bl,omitempty"`
	Remark        string                   `json:"re,omitempty"`
	Added         int64                    `json:"ad,omitempty"`
	Stamp         stamp                    `json:"sp,omitzero"`
	Verified      pb.ContactState_Verified `json:"ve,omitempty"`
	VerifiedStamp stamp                    `json:"vs,omitzero"`
	Rebuilt       stamp                    `json:"rb,omitzero"` // State is a guess from this entry (R21)

	Card      card        `json:"ca,omitzero"`
	CardStamp stamp       `json:"cs,omitzero"`
	In        *requestRow `json:"in,omitempty"`
	Out       *requestRow `json:"out,omitempty"`

	Hint            string              `json:"hi,omitempty"` // username as it was found, not confirmed
	Token           []byte              `json:"tk,omitempty"` // of the invite we hold
	Invited         bool                `json:"iv,omitempty"` // they showed one of our tokens
	Spoken          bool                `json:"sk,omitempty"` // we said something about a group to them
	Cost            strangerCost        `json:"co,omitzero"`
	Devices         []identity.DeviceID `json:"de,omitempty"` // of their record, as last told
	VerifiedDevices []identity.DeviceID `json:"vd,omitempty"` // when the owner confirmed
}

// relation says what the account is to us.
func (r *contactRow) relation() Relation {
	switch {
	case r.Blocked:
		return RelationBlocked
	case r.State == pb.ContactState_STATE_CONTACT:
		return RelationContact
	case r.In.waiting():
		return RelationRequest
	case r.State == pb.ContactState_STATE_ONE_WAY:
		return RelationOneWay
	case r.State == pb.ContactState_STATE_ASKED:
		if r.Out != nil && r.Out.State == RequestDeclined {
			return RelationDeclined
		}
		return RelationAsked
	case r.Cost.Messages > 0:
		return RelationTemporary
	case r.State == pb.ContactState_STATE_DECLINED:
		return RelationDeclined
	}
	return RelationNone
}

// stranger tells whether what comes from the account counts against the quotas.
func (r *contactRow) stranger() bool {
	switch r.State {
	case pb.ContactState_STATE_CONTACT, pb.ContactState_STATE_ASKED, pb.ContactState_STATE_ONE_WAY:
		return false
	}
	return true
}

// shared tells whether the direct conversation is one that this node takes part in. Towards a blocked account it is
// not, exactly as towards somebody never heard of (R16).
func (r *contactRow) shared() bool {
	return !r.Blocked && (!r.stranger() || r.In != nil || r.Cost != strangerCost{} || r.Spoken ||
		r.State == pb.ContactState_STATE_DECLINED)
}

// aside tells whether all we have to do with the account is what was said about groups: that makes nobody a contact.
func (r *contactRow) aside() bool {
	return r.relation() == RelationNone && r.Stamp == stamp{} && (r.Spoken || r.Cost.said())
}

// verified folds what the owner recorded with what the devices did since.
func (r *contactRow) verified() VerifiedState {
	switch r.Verified {
	case pb.ContactState_VERIFIED_REJECTED:
		return VerifiedRejected
	case pb.ContactState_VERIFIED_CONFIRMED:
		for _, d := range r.Devices {
			if !slices.Contains(r.VerifiedDevices, d) {
				return VerifiedChanged
			}
		}
		return VerifiedConfirmed
	}
	return VerifiedNo
}

// name is what to show for the account.
func (r *contactRow) name(account identity.AccountID) string {
	for _, s := range []string{r.Remark, r.Card.Nickname, r.Card.Username, r.Hint} {
		if s != "" {
			return s
		}
	}
	return account.Short()
}

func (r *contactRow) username() string {
	if r.Card.Username != "" {
		return r.Card.Username
	}
	return r.Hint
}

// contacts is the table of contact rows.
type contacts struct {
	env    *env
	quotas *quotas

	mu             sync.Mutex // owns all below
	decoded        map[identity.AccountID]decodedContact
	changes        uint64 // counts commits that touched the table; caches of names compare it
	peerList       []identity.AccountID
	peerGeneration uint64
}

// decodedContact spares decoding a row again as long as its bytes are the same, in whichever transaction it is read.
type decodedContact struct {
	raw []byte
	row contactRow
}

const decodedContacts = 1024

func newContacts(e *env, q *quotas) *contacts {
	return &contacts{env: e, quotas: q, decoded: make(map[identity.AccountID]decodedContact)}
}

func contactKey(a identity.AccountID) []byte { return append([]byte(keyContact), a[:]...) }

// get reads a row; ok is false for somebody never heard of. Its slices and pointers must not be changed in place.
func (c *contacts) get(tx *storage.Tx, a identity.AccountID) (row contactRow, ok bool, err error) {
	b, ok, err := getRow(tx, contactKey(a))
	if err != nil || !ok {
		return contactRow{}, false, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if d, ok := c.decoded[a]; ok && bytes.Equal(d.raw, b) {
		return d.row, true, nil
	}
	if err := json.Unmarshal(b, &row); err != nil {
		return contactRow{}, false, fmt.Errorf("reading contact: %w: %w", errRow, err)
	}
	if len(c.decoded) >= decodedContacts {
		clear(c.decoded)
	}
	c.decoded[a] = decodedContact{raw: b, row: row}
	return row, true, nil
}

// put writes a row and keeps the count of what strangers hold.
func (c *contacts) put(tx *storage.Tx, a identity.AccountID, row contactRow) error {
	before, _, err := c.get(tx, a)
	if err != nil {
		return err
	}
	if err := c.quotas.move(tx, &before, &row); err != nil {
		return err
	}
	b, err := json.Marshal(row)
	if err != nil {
		return fmt.Errorf("writing contact: %w", err)
	}
	tx.OnCommit(func() {
		c.mu.Lock()
		c.changes++
		c.mu.Unlock()
	})
	return tx.Set(contactKey(a), b)
}

// generation changes whenever any contact did.
func (c *contacts) generation() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changes
}

// each calls f for every account ever heard of.
func (c *contacts) each(tx *storage.Tx, f func(identity.AccountID, contactRow) error) error {
	return tx.Scan(storage.ScanOptions{Prefix: []byte(keyContact)}, func(key, val []byte) (bool, error) {
		a, err := identity.AccountIDFromBytes(key[len(keyContact):])
		if err != nil {
			return false, fmt.Errorf("reading contact: %w: %w", errRow, err)
		}
		var row contactRow
		if err := json.Unmarshal(val, &row); err != nil {
			return false, fmt.Errorf("reading contact: %w: %w", errRow, err)
		}
		return true, f(a, row)
	})
}

// foldState applies a ContactState entry and returns the row before and after. R22: what a device that was itself added
// later than the contact says about verification is not taken; our own device's word is the user's at this machine.
func (c *contacts) foldState(tx *storage.Tx, e *feed.Entry, s *pb.ContactState) (a identity.AccountID, before, after contactRow, err error) {
	a, err = identity.AccountIDFromBytes(s.GetAccount())
	if err != nil || a == c.env.account {
		return a, before, after, errIgnored
	}
	if before, _, err = c.get(tx, a); err != nil {
		return a, before, after, err
	}
	after = before
	if c.mayVerify(e, &before) && before.VerifiedStamp.before(stampOf(e)) {
		after.VerifiedStamp = stampOf(e)
		if after.Verified != s.GetVerified() {
			after.VerifiedDevices = c.env.people.Devices(a)
		}
		after.Verified = s.GetVerified()
	}
	if before.Stamp.before(stampOf(e)) {
		after.Stamp = stampOf(e)
		after.State = s.GetState()
		after.Blocked = s.GetBlocked()
		after.Remark = text.OneLine(s.GetRemark(), maxRemark)
		// The earliest time stands for ever, or a later device could make every contact younger than itself.
		if t := s.GetAddedMs(); after.Added == 0 || t != 0 && t < after.Added {
			after.Added = t
		}
	}
	c.settle(&before, &after)
	return a, before, after, c.put(tx, a, after)
}

// settle draws the consequences of a new state for requests and quotas.
func (c *contacts) settle(before, after *contactRow) {
	answer := func(r *requestRow, s RequestState) *requestRow {
		if !r.waiting() {
			return r
		}
		answered := *r
		answered.State = s
		return &answered
	}
	switch {
	case after.State == pb.ContactState_STATE_CONTACT:
		after.In = answer(after.In, RequestAccepted)
		after.Out = answer(after.Out, RequestAccepted)
		after.Cost = strangerCost{}
	case after.State == pb.ContactState_STATE_DECLINED && before.State != after.State:
		after.In = answer(after.In, RequestDeclined)
		after.Cost = strangerCost{}
	case after.State == pb.ContactState_STATE_NONE && before.State != after.State:
		after.In, after.Out, after.Cost, after.Token = nil, nil, strangerCost{}, nil
	case !after.stranger():
		after.Cost = strangerCost{}
	}
}

func (c *contacts) mayVerify(e *feed.Entry, row *contactRow) bool {
	if e.Device == c.env.device || row.Added == 0 {
		return true
	}
	record, ok := c.env.people.Record(c.env.account)
	if !ok {
		return false
	}
	for _, cert := range record.Devices {
		if cert.Device == e.Device {
			return cert.Created.UnixMilli() <= row.Added
		}
	}
	return false
}

// view makes what callers see of a row.
func (m *Messenger) contactView(a identity.AccountID, row *contactRow) Contact {
	c := Contact{
		Account: a, Username: row.username(), Nickname: row.Card.Nickname, ContactField: row.Card.Field,
		Bio: row.Card.Bio, Remark: row.Remark, Relation: row.relation(), Blocked: row.Blocked,
		Verified: row.verified(), Online: m.seen(a, row), Devices: m.env.people.Devices(a),
		Conversation: feed.DirectConversation(m.env.account, a),
	}
	if row.Added > 0 {
		c.Added = time.UnixMilli(row.Added)
	}
	for _, d := range c.Devices {
		if t := m.env.people.LastSeen(d); t.After(c.LastSeen) {
			c.LastSeen = t
		}
	}
	return c
}

// clip cuts a text to n bytes at a rune's boundary.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xc0 == 0x80 {
		n--
	}
	return s[:n]
}
