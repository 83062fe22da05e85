package delivery

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"hima/identity"
	"hima/internal/feed"
	"hima/internal/mailbox"
	"hima/internal/replica"
	"hima/storage"
)

// Errors of Mail.
var (
	// ErrNoBox: this node uses no such mailbox.
	ErrNoBox = errors.New("no such mailbox")
	// ErrTooManyBoxes: as many mailboxes are used already as a device record can name.
	ErrTooManyBoxes = errors.New("too many mailboxes")
	// ErrNoSnapshot: no mailbox holds a snapshot, or this device has no secret for it.
	ErrNoSnapshot = errors.New("no snapshot")
)

// MailFeeds is what Mail needs of package replica.
type MailFeeds interface {
	Connected(device identity.DeviceID) bool
	// Export gathers what a device lacks, oldest first, and marks it as offered durably before it returns (R1).
	Export(ctx context.Context, device identity.DeviceID, o replica.ExportOptions) (replica.Export, error)
	// Import applies what came by mail in one transaction, in which also runs.
	Import(ctx context.Context, in replica.Mailed, also func(*storage.Tx) error) (replica.Imported, error)
	// Replacing says whether what Import left for later cannot be taken yet.
	Replacing() (bool, error)
	// Posted notes that a mailbox holds an export until then.
	Posted(tx *storage.Tx, e replica.Export, until time.Time) error
	// Owed lists the devices that lack entries, ReceiptsDue those that lack a receipt; WatchOwed ticks when they changed.
	Owed() ([]replica.Debt, error)
	ReceiptsDue() ([]replica.Peer, error)
	// LazyReceiptsDue is ReceiptsDue for groups.
	LazyReceiptsDue() ([]replica.Peer, error)
	WatchOwed() (<-chan struct{}, func())
	// FlushReceipts makes receipts now that wait for more of their kind.
	FlushReceipts(ctx context.Context, convs ...feed.ConversationID) error
	// Acked is up to where a device acknowledged a feed.
	Acked(tx *storage.Tx, id feed.FeedID, device identity.DeviceID) (uint64, error)
	// PushOffer asks Offer anew for a device with a session.
	PushOffer(device identity.DeviceID)
}

// MailClient is what Mail needs of mailbox.Client.
type MailClient interface {
	Terms(ctx context.Context, ref mailbox.Ref) (mailbox.Terms, error)
	OpenInbox(ctx context.Context, ref mailbox.Ref, c mailbox.InboxConfig) (mailbox.State, error)
	Deposit(ctx context.Context, ref mailbox.Ref, d mailbox.Deposit) (identity.Custody, error)
	Fetch(ctx context.Context, ref mailbox.Ref, secret identity.InboxSecret, after uint64, max int) (items []mailbox.Item, more bool, err error)
	Done(ctx context.Context, ref mailbox.Ref, secret identity.InboxSecret, items [][32]byte) error
	CloseInbox(ctx context.Context, ref mailbox.Ref, secret identity.InboxSecret) error
	Renew(ctx context.Context, ref mailbox.Ref, secrets []identity.InboxSecret) (missing []identity.InboxID, err error)
	AddWatch(ctx context.Context, ref mailbox.Ref, secrets []identity.InboxSecret) (waiting, missing []identity.InboxID, err error)
	Watch(ctx context.Context, ref mailbox.Ref, secrets []identity.InboxSecret, tell func(waiting, missing []identity.InboxID)) error
	Connected(dev identity.DeviceID) bool
}

// MailRecords is what Mail needs of package directory. Record, Devices and DeviceRecord are cheap.
type MailRecords interface {
	Record(identity.AccountID) (identity.AccountRecord, bool)
	Devices(identity.AccountID) []identity.DeviceID
	Admit(ctx context.Context, raw []byte) (identity.AccountRecord, error)
	// DeviceRecord returns the newest device record that is kept.
	DeviceRecord(identity.DeviceID) (identity.DeviceRecord, bool)
	// FetchDevice asks the network for a device record; it may take seconds and is rate-limited by its owner.
	FetchDevice(ctx context.Context, device identity.DeviceID) (identity.DeviceRecord, error)
}

// Held is a part of an own feed that a mailbox holds for a device, or, with the zero Peer, in the log of a group for all.
type Held struct {
	Peer   replica.Peer
	Feed   feed.FeedID
	From   uint64
	Last   uint64
	Holder identity.DeviceID
	Until  time.Time
}

// MailHooks hears what mailboxes hold. Those with a tx run inside the transaction that makes it durable.
type MailHooks interface {
	// InCustody: a signed receipt says that the mailbox holds these entries until then (R14).
	InCustody(tx *storage.Tx, h Held) error
	// CustodyEnded: the last receipt ended before the entries were acknowledged; they are offered again.
	CustodyEnded(tx *storage.Tx, h Held) error
	// MailboxEvent tells of a mailbox, an own one or one that keeps mail for others: "added", "removed", "full", "lost",
	// "lying" or "back". It must not block.
	MailboxEvent(dev identity.DeviceID, detail string)
}

// Custody says that a mailbox holds what is owed to a device.
type Custody struct {
	Holder  identity.DeviceID
	Since   time.Time
	Until   time.Time
	Expired bool
}

// DeviceInfo is what the own device record says of mail.
type DeviceInfo struct {
	Prekey        identity.Prekey
	PrekeyCreated time.Time
	Mailboxes     []identity.MailboxRef
	Request       identity.RequestInbox // zero: none
}

// MailConfig is what a Mail needs. All fields without a stated zero value are required.
type MailConfig struct {
	DB          *storage.DB
	Key         identity.DeviceKey
	Account     identity.AccountID
	Certificate identity.Certificate // of Key
	Feeds       MailFeeds
	Client      MailClient
	Records     MailRecords
	Hooks       MailHooks
	// Accepted says who is told where this device takes its mail: contacts. It must be cheap.
	Accepted func(identity.AccountID) bool
	// Comember says who is told too, as far as there is room: those in a group with this account, or about to be. It must be
	// cheap; nil: nobody.
	Comember func(identity.AccountID) bool
	// Keys takes the keys of groups that mail brings; nil: nobody does.
	Keys replica.Keys
	// Keeps says what this node can keep for others in all: no single one is promised more. nil: any amount.
	Keeps func() uint64
	// OnDevice is called when the own device record must say something else; nil: nobody publishes it.
	OnDevice func(DeviceInfo)
	// Snapshot returns the secret of the account's snapshot slot, which only a device with the account seed knows (R21).
	Snapshot func() (identity.InboxSecret, bool)
	Now      func() time.Time         // nil: time.Now
	Logger   *slog.Logger             // nil: nothing is logged
	Limits   MailLimits               // zero fields: the defaults
	Fail     func(point string) error // tests: an error at a named point ends the step as a crash would
}

// MailLimits shapes what Mail does. A zero field takes the value of DefaultMailLimits.
type MailLimits struct {
	Grace     time.Duration // how long the direct road has before the mailbox is used
	Posts     int           // devices posted to at the same time
	Retry     time.Duration // the first pause after a mailbox failed
	RetryCap  time.Duration // the longest
	Receipt   time.Duration // pause before a receipt goes by mail
	Rotation  time.Duration // of the rotating prekey
	OneTime   int           // one-time prekeys that a device of a contact holds of ours
	OneTimeOf time.Duration // how old a one-time prekey may be that is used for sealing
	Slack     time.Duration // beyond the longest expiry, before a replaced prekey is erased (R24)
	Left      int           // items of a request inbox that did not open and are kept

	GroupGrace   time.Duration // how long members have before control entries of a group go by mail
	GroupChat    time.Duration // how long members and the group's log have before its chat does
	GroupKeys    time.Duration // how long members have before the key does under which chat lies in the group's log
	GroupReceipt time.Duration // pause before a receipt of a group goes by mail
	Comembers    int           // accounts that have an inbox here without being contacts
}

// DefaultMailLimits returns the limits of a normal node.
func DefaultMailLimits() MailLimits {
	return MailLimits{
		Grace:     time.Second,
		Posts:     4,
		Retry:     2 * time.Second,
		RetryCap:  5 * time.Minute,
		Receipt:   2 * time.Second,
		Rotation:  7 * 24 * time.Hour,
		OneTime:   8,
		OneTimeOf: 30 * 24 * time.Hour,
		Slack:     7 * 24 * time.Hour,
		Left:      8,

		GroupGrace:   8 * time.Second,
		GroupChat:    25 * time.Second,
		GroupKeys:    40 * time.Second,
		GroupReceipt: time.Minute,
		Comembers:    64,
	}
}

// The sources of a mailbox.
const (
	SourceNetwork = "network" // a bootstrap node of a joined network
	SourceContact = "contact" // a contact's node that keeps mail for this account
	SourceAdded   = "added"   // by hand
)

// The states of a mailbox.
const (
	BoxOK          = "ok"
	BoxUnreachable = "unreachable"
	BoxFull        = "full"
	BoxDenied      = "denied"
	BoxRetiring    = "retiring" // not named any more, still emptied
)

// BoxStatus is a mailbox that this node uses.
type BoxStatus struct {
	Device    identity.DeviceID
	Addrs     []string
	Source    string
	State     string
	Connected bool
	Inboxes   int
	Waiting   int // items there, as last seen
	Used      uint64
	Quota     uint64
	Expiry    time.Duration
	Emptied   time.Time // when everything was last fetched
	Error     string
}

// GrantStatus is mail that this node keeps for an account.
type GrantStatus struct {
	Account identity.AccountID
	Grant   [16]byte
	Quota   uint64
}
