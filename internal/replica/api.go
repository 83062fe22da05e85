package replica

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"time"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/node"
	"hima/storage"
)

// Protocol is the name of the stream protocol.
const Protocol = "/hima/sync/1"

// Errors of this package.
var (
	// ErrDiverged: this device's own feed is longer or different elsewhere (R3). Nothing more is written under its key.
	ErrDiverged = errors.New("own feed diverged: the device key must be replaced")
	// ErrClosed: the replica does not run, or is stopping.
	ErrClosed = errors.New("replica is not running")
	// ErrNoEntry: the entry is not held.
	ErrNoEntry = errors.New("entry not held")
	// ErrNotAdmitted: the other side is not a valid device of the account it names.
	ErrNotAdmitted = errors.New("peer is not a valid device of its account")
	// ErrBusy: the other side, or this one, has no room for another session now.
	ErrBusy = errors.New("no room for another session")
	// ErrRefused: entries were not taken; the reason went to the hooks.
	ErrRefused = errors.New("entries not taken")
	// ErrProtocol: the other side broke a rule of docs/spec/sync.md.
	ErrProtocol = errors.New("protocol broken by the other side")
)

// Peer is an authenticated device and the account that certified it.
type Peer struct {
	Account identity.AccountID
	Device  identity.DeviceID
}

// Records answers what is known of accounts and their devices. Package directory implements it. Methods are cheap
// (memory) unless they say otherwise.
type Records interface {
	// Record returns the newest account record ever seen, also the own one.
	Record(identity.AccountID) (identity.AccountRecord, bool)
	// Admit checks a record and keeps it if its sequence is higher than that of any seen before (R11). It returns the
	// record that now counts, after it is durable. A lower or equal one is not an error.
	Admit(ctx context.Context, raw []byte) (identity.AccountRecord, error)
	// Devices lists the devices known for an account: those of its record, or those that were heard of.
	Devices(identity.AccountID) []identity.DeviceID
	// Seen notes that a device was met at an address. Unsynced.
	Seen(cert identity.Certificate, addr string, at time.Time)
}

// Members says who takes part in which conversation. Package messenger implements it. The tx may be read-only.
type Members interface {
	// Shared lists the conversations that this node shares with an account, as far as this node is concerned: not
	// those with somebody blocked, and not those a stranger merely claims. The own account shares everything.
	Shared(tx *storage.Tx, account identity.AccountID) ([]feed.ConversationID, error)
	// Readers lists the accounts that may read a conversation, besides the own one.
	Readers(tx *storage.Tx, conv feed.ConversationID) ([]identity.AccountID, error)
	// KnockToken returns the invite token for a first contact, nil if there is none.
	KnockToken(tx *storage.Tx, conv feed.ConversationID) ([]byte, error)
	// Read returns up to which number the user has read a feed of somebody else and lets its author know; 0: not said.
	Read(tx *storage.Tx, id feed.FeedID) (uint64, error)
	// Window says what an account may have of a conversation's feeds. Of the own account it says what may be taken: a
	// newcomer's chat feeds may begin above 1.
	Window(tx *storage.Tx, conv feed.ConversationID, account identity.AccountID) (Window, error)
	// Lazy says whether a conversation is one of many, a group: entries of others are passed on after a pause, because
	// other roads usually bring them, and what came over any road is told to every session.
	Lazy(tx *storage.Tx, conv feed.ConversationID) bool
}

// Window says which numbers of a feed an account may have; last 0: nothing of it, feed.MaxSeq: no end. A first of 0, for
// the own account only, says that where it begins is not known here. The nil Window is everything. It answers as of the
// moment it was asked for, takes no locks of its caller and is cheap; call Reannounce when another one would be given.
type Window func(id feed.FeedID) (first, last uint64)

// Incoming is a run that verified and would extend what is held.
type Incoming struct {
	Peer     Peer // who brought it, not always its author
	Run      feed.Run
	Knock    *Knock // set if it came as a knock
	Detached bool   // it stands ahead of a gap (R9)
}

// Knock is what a stranger showed besides the run.
type Knock struct {
	Token []byte // invite token, may be empty, not checked
	Work  bool   // the proof of work verified
}

// Gate judges what comes in. Package messenger implements it.
type Gate interface {
	// Listening is asked before a knock is parsed: CODE_TAKEN to go on, else the answer. It must be cheap.
	Listening(account identity.AccountID) pb.Code
	// Admit is asked once per incoming run, inside the transaction that would store it. It says how many of the
	// entries may come in: all of them, or fewer with the reason; then nothing of the run is stored and the author may
	// offer a shorter one. What Admit writes to tx is kept in both cases. Authorship and signatures are checked already.
	Admit(tx *storage.Tx, in Incoming) (take int, code pb.Code, err error)
	// Excused says whether a missing body counts as present, by the author's recall or the own retention rule (R9).
	Excused(tx *storage.Tx, e feed.Entry) (bool, error)
}

// Applied tells of entries that were stored. Every entry is told of exactly once.
type Applied struct {
	Peer     Peer // who brought them
	Entries  []feed.Entry
	Backlog  bool // part of catching up, not of the live stream
	Detached bool // they stand after a hole (R9)
}

// Ack tells that a device holds an own feed, or one that was relayed to it, durably up to Last; From is the first
// number that is new in it.
type Ack struct {
	Peer Peer
	Feed feed.FeedID
	From uint64
	Last uint64
}

// Refusal tells that a device did not take entries from From on.
type Refusal struct {
	Peer Peer
	Feed feed.FeedID
	From uint64
	Code pb.Code
}

// NotTaken tells that a device set its floor above own entries: From..To will never be taken by it (R16).
type NotTaken struct {
	Peer     Peer
	Feed     feed.FeedID
	From, To uint64
}

// Receipt is a checked receipt of another device (R15).
type Receipt struct {
	Peer         Peer
	Conversation feed.ConversationID
	Seq          uint64
	Items        []ReceiptItem
}

// ReceiptItem says what a device holds and has read of one feed.
type ReceiptItem struct {
	Feed  feed.FeedID
	Acked uint64
	Read  uint64 // 0: not said
	First uint64 // 0, or its floor: of what lies below only that is acknowledged which was before (R16)
}

// Fork tells that a feed has two branches (R3). Entries from At on do not count.
type Fork struct {
	Feed feed.FeedID
	At   uint64
}

// Hooks hears what happened. Those with a tx run inside the transaction that makes it durable, and an error discards
// the whole change. The others run on a session's goroutine, must not block, and tell of things that are never stored.
type Hooks interface {
	Applied(tx *storage.Tx, a Applied) error
	Acked(tx *storage.Tx, a Ack) error
	Refused(tx *storage.Tx, r Refusal) error
	NotTaken(tx *storage.Tx, n NotTaken) error
	Receipt(tx *storage.Tx, r Receipt) error
	Forked(tx *storage.Tx, f Fork) error

	// OwnFeedDiverged: a peer proved entries of this device's own feed that it does not hold (R3).
	OwnFeedDiverged(id feed.FeedID)
	Typing(from Peer, conv feed.ConversationID, on bool)
	Presence(from Peer, online bool)
	SessionUp(s SessionInfo)
	SessionDown(s SessionInfo)
}

// Config is what a Replica needs. All fields without a stated zero value are required.
type Config struct {
	DB          *storage.DB
	Node        *node.Node // nil: store only, Run and Open refuse
	Account     identity.AccountID
	Key         identity.DeviceKey
	Certificate identity.Certificate // of Key
	Former      []identity.DeviceID  // keys under which this database was written before (R3)
	Records     Records
	Members     Members
	Gate        Gate
	Hooks       Hooks
	Side        Side                     // nil: nothing is said beside the entries
	Keys        Keys                     // nil: no keys of groups are handed over
	Logger      *slog.Logger             // nil: nothing is logged
	Now         func() time.Time         // nil: time.Now
	Agent       string                   // shown to peers; empty: "hima"
	Limits      Limits                   // zero fields: the defaults
	Fail        func(point string) error // tests: an error at a named point ends the step as a crash would
	OnAck       func(Ack)                // measurements: an acknowledgement arrived, not yet stored; nil: not told

	// OnStored is told of entries that became durable here, own ones too, which this device itself brings. It runs on
	// the committer's goroutine, in commit order, and must not block. nil: nobody is told.
	OnStored func(conv feed.ConversationID, entries []feed.Entry, from Peer)

	// OnReplaced is told, inside the transaction, of entries under a former key that nobody had and that are void, because others
	// hold something else under their numbers (R3): in order, in parts, and it may be told of one again. nil: nobody is told.
	OnReplaced func(tx *storage.Tx, entries []feed.Entry) error
	// OnDropped is told, inside the transaction, that what was void of a feed, or contradicts what came before it, is gone from a number
	// on: it is held for as long as the call lasts. Other entries may come under the same numbers. nil: nobody is told.
	OnDropped func(tx *storage.Tx, id feed.FeedID, from uint64) error
	// AfterReplaced is told that something under a former key is not being replaced any more, so that what was refused for its
	// sake in a conversation can be taken. It runs on a goroutine of Run and must not block. nil: nobody is told.
	AfterReplaced func(conv feed.ConversationID)
}

// Limits bounds what peers may cost. A zero field takes the value of DefaultLimits.
type Limits struct {
	Sessions         int           // all sessions
	StrangerSessions int           // of these, with accounts that share no conversation
	Window           int           // bytes of runs sent and not yet acknowledged, per session
	StrangerRate     float64       // knocks and refused runs a second, per session of a stranger
	Ping             time.Duration // silence after which a ping goes out
	GroupPing        time.Duration // the same where only groups are shared and nothing is under way
	Dead             time.Duration // Dead - Ping after a ping the session is given up if nothing came
	Receipt          time.Duration // pause after the last change before a receipt goes out
	ReceiptMax       time.Duration // longest wait for a receipt under load
	Detached         int           // entries kept ahead of a gap, per feed (R9)
	Lazy             time.Duration // pause before entries of others are passed on in groups
	Batch            time.Duration // pause in which what is said to every session of a group is gathered
	GroupReceipt     time.Duration // Receipt in groups
	GroupReceiptMax  time.Duration // ReceiptMax in groups
}

// DefaultLimits returns the limits of a normal node.
func DefaultLimits() Limits {
	return Limits{
		Sessions:         512,
		StrangerSessions: 32,
		Window:           2 << 20,
		StrangerRate:     4,
		Ping:             6 * time.Second,
		GroupPing:        45 * time.Second,
		Dead:             12 * time.Second,
		Receipt:          500 * time.Millisecond,
		ReceiptMax:       2 * time.Second,
		Detached:         256,
		Lazy:             700 * time.Millisecond,
		Batch:            200 * time.Millisecond,
		GroupReceipt:     2 * time.Second,
		GroupReceiptMax:  8 * time.Second,
	}
}

// SessionInfo describes a live session.
type SessionInfo struct {
	Peer
	Addr      string
	Transport string
	Outbound  bool
	Since     time.Time
	RTT       time.Duration // of the last ping, 0 before the first
	Skew      time.Duration // the other side's clock minus ours, as of the hello
}

// Draft is an entry to be written to this device's own feed.
type Draft struct {
	Conversation feed.ConversationID
	Number       feed.Number
	Kind         feed.Kind
	Content      []byte    // unpadded
	Time         time.Time // zero: now

	// Of groups. A draft with a Genesis, 32 random bytes, has no Conversation: it is the first control entry of a new
	// one, whose ID is that of the entry.
	Parents []feed.EntryID
	Epoch   []byte
	Genesis []byte
}

func (c Config) withDefaults() Config {
	d := DefaultLimits()
	c.Limits.Sessions = cmp.Or(c.Limits.Sessions, d.Sessions)
	c.Limits.StrangerSessions = cmp.Or(c.Limits.StrangerSessions, d.StrangerSessions)
	c.Limits.Window = cmp.Or(c.Limits.Window, d.Window)
	c.Limits.StrangerRate = cmp.Or(c.Limits.StrangerRate, d.StrangerRate)
	c.Limits.Ping = cmp.Or(c.Limits.Ping, d.Ping)
	c.Limits.GroupPing = cmp.Or(c.Limits.GroupPing, d.GroupPing)
	c.Limits.Dead = cmp.Or(c.Limits.Dead, d.Dead)
	c.Limits.Receipt = cmp.Or(c.Limits.Receipt, d.Receipt)
	c.Limits.ReceiptMax = cmp.Or(c.Limits.ReceiptMax, d.ReceiptMax)
	c.Limits.Detached = cmp.Or(c.Limits.Detached, d.Detached)
	c.Limits.Lazy = cmp.Or(c.Limits.Lazy, d.Lazy)
	c.Limits.Batch = cmp.Or(c.Limits.Batch, d.Batch)
	c.Limits.GroupReceipt = cmp.Or(c.Limits.GroupReceipt, d.GroupReceipt)
	c.Limits.GroupReceiptMax = cmp.Or(c.Limits.GroupReceiptMax, d.GroupReceiptMax)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Agent == "" {
		c.Agent = "hima"
	}
	return c
}

func (c Config) check() error {
	switch {
	case c.DB == nil:
		return errors.New("replica: no database")
	case c.Account.IsZero():
		return errors.New("replica: no account")
	case c.Records == nil || c.Members == nil || c.Gate == nil || c.Hooks == nil:
		return errors.New("replica: records, members, gate and hooks are required")
	case c.Certificate.Device != c.Key.ID() || c.Certificate.Account != c.Account:
		return errors.New("replica: the certificate is not of this account and device")
	}
	return nil
}
