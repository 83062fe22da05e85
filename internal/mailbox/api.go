package mailbox

import (
	"errors"
	"log/slog"
	"time"

	"hima/identity"
	"hima/internal/wire/pb"
	"hima/node"
	"hima/storage"
)

// Protocol is the name of the stream protocol.
const Protocol = "/hima/mailbox/1"

// Errors of this package. The client returns those that a mailbox answered with.
var (
	// ErrFull: the inbox has no room for the item.
	ErrFull = errors.New("inbox is full")
	// ErrNoRoom: the whole mailbox has no room.
	ErrNoRoom = errors.New("mailbox has no room")
	// ErrNoInbox: there is no such inbox; it was closed, expired, or its node lost its disk.
	ErrNoInbox = errors.New("no such inbox")
	// ErrDenied: the node keeps no mail for the one who asks.
	ErrDenied = errors.New("mailbox keeps no mail for this node")
	// ErrTooLarge: the item is larger than the mailbox takes.
	ErrTooLarge = errors.New("item too large")
	// ErrWork: the proof of work is missing or too small.
	ErrWork = errors.New("proof of work missing or too small")
	// ErrBusy: too many requests; try again later.
	ErrBusy = errors.New("mailbox is busy")
	// ErrBadRequest: the mailbox says that it does not understand the request.
	ErrBadRequest = errors.New("mailbox does not understand the request")
	// ErrFailed: the disk of the mailbox did not do its work; nothing was kept.
	ErrFailed = errors.New("mailbox failed to keep the item")
	// ErrBadReceipt: the mailbox lies: its receipt is signed by another, is about other bytes, or ended already.
	ErrBadReceipt = errors.New("receipt of the mailbox is not good")
	// ErrProtocol: the other side broke a rule of docs/spec/mailbox.md.
	ErrProtocol = errors.New("protocol broken by the other side")
	// ErrClosed: the client was closed.
	ErrClosed = errors.New("mailbox client is closed")
)

// Ref names a mailbox: its device and where it is dialled.
type Ref = identity.MailboxRef

// Kind says what an inbox is for.
type Kind uint8

// The kinds of inboxes, numbered as on the wire.
const (
	Contact Kind = Kind(pb.MailboxOpen_KIND_CONTACT) // whoever knows its ID may deposit
	Request Kind = Kind(pb.MailboxOpen_KIND_REQUEST) // for strangers: proof of work, small quota
	Slot    Kind = Kind(pb.MailboxOpen_KIND_SLOT)    // only the owner writes, and the newest item alone is kept
	Log     Kind = Kind(pb.MailboxOpen_KIND_LOG)     // many know its secret and read it; an item goes when its time is over
)

// ServerConfig is what a Server needs. DB, Node and Key are required.
type ServerConfig struct {
	DB   *storage.DB
	Node *node.Node
	Key  identity.DeviceKey // of the node; signs receipts
	Open bool               // keeps mail for everybody; else only for those with a grant
	// Grant looks a grant up and says how many bytes its inboxes may hold together; nil: there are none. It must be cheap.
	Grant  func(tx *storage.Tx, grant []byte) (quota uint64, ok bool, err error)
	Limits ServerLimits
	Now    func() time.Time         // nil: time.Now
	Logger *slog.Logger             // nil: nothing is logged
	Fail   func(point string) error // tests: an error at a named point ends the step as a crash would
}

// ServerLimits bounds what a mailbox keeps. A zero field takes the value of DefaultServerLimits.
type ServerLimits struct {
	TotalBytes     uint64        // of all items
	TotalItems     int           // of all inboxes
	Inboxes        int           // of all owners
	InboxBytes     uint64        // of one contact inbox
	InboxItems     int           // of one contact inbox
	RequestBytes   uint64        // of one request inbox
	RequestItems   int           // of one request inbox
	LogBytes       uint64        // of one log
	LogItems       int           // of one log
	LogDeviceBytes uint64        // of one log, left by one device
	LogDeviceItems int           // of one log, left by one device
	Expiry         time.Duration // how long an item is kept
	InboxIdle      time.Duration // how long an inbox is kept that nobody renewed
	WorkBits       int           // owed for a deposit in a request inbox; negative: none
	Watched        int           // inboxes that one stream may watch
	Rate           float64       // requests a second of one device
	Burst          int           // requests of one device at once
	ByteRate       float64       // bytes a second that one device may deposit
	ByteBurst      int           // bytes that one device may deposit at once
	OpenRate       float64       // new inboxes a second of one device
	OpenBurst      int           // new inboxes of one device at once
}

// DefaultServerLimits returns the limits of a bootstrap node.
func DefaultServerLimits() ServerLimits {
	return ServerLimits{
		TotalBytes:     4 << 30,
		TotalItems:     1 << 20,
		Inboxes:        1 << 18,
		InboxBytes:     16 << 20,
		InboxItems:     2048,
		RequestBytes:   1 << 20,
		RequestItems:   64,
		LogBytes:       64 << 20,
		LogItems:       16384,
		LogDeviceBytes: 16 << 20,
		LogDeviceItems: 4096,
		Expiry:         30 * 24 * time.Hour,
		InboxIdle:      180 * 24 * time.Hour,
		WorkBits:       18,
		Watched:        4096,
		Rate:           100,
		Burst:          2000,
		ByteRate:       256 << 10,
		ByteBurst:      16 << 20,
		OpenRate:       1,
		OpenBurst:      1024,
	}
}

// ServerStats counts what a Server holds, and what it did since it was made.
type ServerStats struct {
	Inboxes  int
	Items    int
	Bytes    uint64
	Deposits uint64 // items kept
	Fetches  uint64 // items handed out
	Refused  uint64 // requests answered by anything but OK
}

// ClientConfig is what a Client needs. Node is required.
type ClientConfig struct {
	Node   *node.Node
	Logger *slog.Logger     // nil: nothing is logged
	Now    func() time.Time // nil: time.Now
	Limits ClientLimits     // zero fields: the defaults
}

// ClientLimits shapes the streams of a client. A zero field takes the value of DefaultClientLimits.
type ClientLimits struct {
	Answer time.Duration // how long a mailbox may take for one answer
	Idle   time.Duration // silence after which a stream with no watch is closed
	Ping   time.Duration // silence after which a stream with a watch is tried
	Window int           // requests under way on one stream
}

// DefaultClientLimits returns the limits of a normal node.
func DefaultClientLimits() ClientLimits {
	return ClientLimits{Answer: 20 * time.Second, Idle: 30 * time.Second, Ping: time.Minute, Window: 32}
}

// Deposit is an item to be left in an inbox.
type Deposit struct {
	Inbox  identity.InboxID
	Item   []byte
	Work   []byte               // for request inboxes
	Secret identity.InboxSecret // for slots; zero for others
}

// InboxConfig says how an inbox is to be.
type InboxConfig struct {
	Secret identity.InboxSecret
	Kind   Kind
	Quota  uint64 // bytes; 0: what the terms say
	Grant  []byte // of a node that keeps mail for chosen people
}

// State is what an inbox holds.
type State struct {
	Bytes uint64
	Items int
	Quota uint64
}

// Terms are the conditions of a mailbox.
type Terms struct {
	Open         bool
	InboxBytes   uint64
	InboxItems   int
	RequestBytes uint64
	RequestItems int
	Expiry       time.Duration
	InboxIdle    time.Duration
	WorkBits     int
	MaxItem      int
	Time         time.Time // the mailbox's clock
}

// Item is something that was left in an inbox.
type Item struct {
	Cursor uint64
	Bytes  []byte
	Until  time.Time
}
