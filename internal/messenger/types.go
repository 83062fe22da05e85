package messenger

import (
	"time"

	"hima/identity"
	"hima/internal/feed"
)

// Relation says what an account is to this one.
type Relation string

// The relations. Blocked wins over every other one.
const (
	RelationNone      Relation = "none"      // a stranger, or removed
	RelationAsked     Relation = "asked"     // we asked, no answer yet
	RelationOneWay    Relation = "one-way"   // we write to them without having asked
	RelationContact   Relation = "contact"   // accepted, both ways
	RelationRequest   Relation = "request"   // they asked, we have not answered
	RelationDeclined  Relation = "declined"  // one side declined
	RelationBlocked   Relation = "blocked"   // we blocked them
	RelationTemporary Relation = "temporary" // they write to us one-way, we have not answered
	RelationSelf      Relation = "self"      // the own account, in search results
)

// VerifiedState is what the owner recorded after comparing digits.
type VerifiedState string

// The verified states. Changed means: confirmed once, and the devices of the account changed since.
const (
	VerifiedNo        VerifiedState = "no"
	VerifiedConfirmed VerifiedState = "confirmed"
	VerifiedRejected  VerifiedState = "rejected"
	VerifiedChanged   VerifiedState = "changed"
)

// MessageKind is what a line of history is.
type MessageKind string

// The kinds of history lines.
const (
	MessageText           MessageKind = "text"
	MessageRequest        MessageKind = "request"
	MessageAccepted       MessageKind = "accepted"
	MessageDeclined       MessageKind = "declined"
	MessageHole           MessageKind = "hole"
	MessageUnsupported    MessageKind = "unsupported"
	MessageCancelled      MessageKind = "cancelled"
	MessageDevicesChanged MessageKind = "devices-changed"
)

// State is how far an own message got, or whether a received one was read.
type State string

// The states. Received messages have only StateNone and StateRead.
const (
	StateNone      State = ""
	StatePending   State = "pending"
	StateSent      State = "sent"
	StateDelivered State = "delivered"
	StateRead      State = "read"
	StateNotTaken  State = "not_taken"
	StateCancelled State = "cancelled"
	StateUnknown   State = "unknown" // written under a former device key, and nobody can say whether it arrived (R3)
)

// Source says where a person was found.
type Source string

// The sources.
const (
	SourceInvite  Source = "invite"
	SourceNearby  Source = "nearby"
	SourceContact Source = "contact"
	SourceRequest Source = "request"
	SourceID      Source = "id"
	SourceNetwork Source = "network"
)

// ConversationKind is direct, self or group.
type ConversationKind string

// The kinds of conversations.
const (
	KindDirect ConversationKind = "direct"
	KindSelf   ConversationKind = "self"
)

// Profile is what the owner says of themselves.
type Profile struct {
	Account      identity.AccountID
	Device       identity.DeviceID
	Username     string
	Nickname     string
	ContactField string
	Bio          string
	Names        []NameState // how the username stands on each joined network
}

// ProfileChange changes what is not nil.
type ProfileChange struct {
	Nickname     *string
	ContactField *string
	Bio          *string
	Username     *string // the vault's copy is the daemon's to change
}

// Invite is a revocable right to ask, and the link that carries it.
type Invite struct {
	Link    string
	Token   identity.InviteToken
	Created time.Time
	Revoked bool
	Used    int // requests that came with it
}

// NearbyPerson is somebody seen on this LAN; the names are their own words and not confirmed.
type NearbyPerson struct {
	Account  identity.AccountID
	Device   identity.DeviceID
	Username string
	Nickname string
	Address  string
	Relation Relation
	Seen     time.Time
}

// Found is the answer to an outward search. Nothing was changed by it.
type Found struct {
	Account  identity.AccountID
	Username string
	Nickname string
	Source   Source
	Relation Relation

	Confirmed    bool      // the name is stamped by Network
	Since        time.Time // of the stamp, or of the claim; zero: not found on a network
	Network      string    // where the name was found; empty: not on a network
	Disagreement bool      // several accounts were named; Account is who has the name by the rules
	Others       []Candidate
	Networks     []string // names of networks that an invite link would join
}

// SearchResult is somebody who fits a name.
type SearchResult struct {
	Account   identity.AccountID
	Username  string
	Nickname  string
	Confirmed bool
	Since     time.Time
	Source    Source
	Network   string
	Relation  Relation
}

// SearchResults is everybody who fits a name, wherever they were found.
type SearchResults struct {
	Results      []SearchResult
	Disagreement bool     // the networks gave more than one answer, or may have forgotten
	Unreachable  []string // networks that could not be asked
}

// AddContact is what to add, and how.
type AddContact struct {
	Who     string // link, nearby username, account ID, or a known contact
	OneWay  bool
	Message string // text of the request, or the first one-way message
	Remark  string
	Expect  identity.AccountID // what the user confirmed; zero: not asked
	// Joined hears the names of the networks that an invite link brought and that were joined for it; nil: nobody does.
	Joined func(network string)
}

// Contact is an account as this one knows it.
type Contact struct {
	Account      identity.AccountID
	Username     string
	Nickname     string
	ContactField string
	Bio          string
	Remark       string
	Relation     Relation
	Blocked      bool
	Verified     VerifiedState
	Online       bool
	LastSeen     time.Time // zero: never
	Devices      []identity.DeviceID
	Conversation feed.ConversationID
	Added        time.Time
}

// RequestState is how far a contact request got.
type RequestState string

// The states of requests.
const (
	RequestWaiting      RequestState = "waiting"
	RequestAccepted     RequestState = "accepted"
	RequestDeclined     RequestState = "declined"
	RequestNotDelivered RequestState = "not_delivered"
)

// Request is a contact request, incoming or our own.
type Request struct {
	Account      identity.AccountID
	Username     string
	Nickname     string
	ContactField string
	Message      string
	Incoming     bool
	State        RequestState
	Time         time.Time
	Invited      bool // came with one of our invite tokens
	ID           feed.EntryID
}

// VerifyResult is what the owner found when comparing digits.
type VerifyResult int

// The results; VerifyShow records nothing.
const (
	VerifyShow VerifyResult = iota
	VerifyConfirm
	VerifyReject
)

// Verification is what both sides compare.
type Verification struct {
	Digits  string
	QR      string
	Contact Contact
}

// Setting is one owner's choice.
type Setting struct {
	Key     string
	Value   string
	Default string
	Allowed []string
}

// SendInput is one text to send.
type SendInput struct {
	Who            string
	Text           string
	IdempotencyKey string // a repeated key within a day returns the first message; empty: none
}

// Message is one line of history.
type Message struct {
	ID           feed.EntryID
	Conversation feed.ConversationID
	Peer         identity.AccountID // the other side; own account in self
	Author       identity.AccountID
	AuthorName   string
	Device       identity.DeviceID
	Number       feed.Number
	Seq          uint64
	Clock        uint64
	Time         time.Time // the author's clock
	Kind         MessageKind
	Text         string
	Own          bool
	State        State
	Late         bool
	ClockAhead   bool
	Hole         int // kind hole: how many are missing
	Received     time.Time

	// Groups.
	Members     int                // own: to how many members it goes
	DeliveredTo int                // own: how many of them have it
	ReadBy      int                // own: how many of them let it be known that they read it
	Backlog     bool               // said before this account was a member
	Subject     identity.AccountID // acts: the account it concerns; zero: none
	SubjectName string
}

// Conversation is one row of the conversation list.
type Conversation struct {
	ID       feed.ConversationID
	Kind     ConversationKind
	Peer     identity.AccountID
	Name     string // remark, nickname, username or short ID; of a group its name
	Username string
	Relation Relation
	Unread   int
	Last     *Message // nil: nothing said yet
	Online   bool
	Pending  int
	Members  int      // groups: how many are in
	Role     RoleName // groups: own; empty: not in it any more
}

// HistoryQuery is which part of a conversation to read.
type HistoryQuery struct {
	Who    string
	Limit  int       // 0: 50; at most 1000
	Before string    // message ID; empty: from the newest
	Since  time.Time // zero: no bound
}

// History is one page, oldest first.
type History struct {
	Conversation feed.ConversationID
	Messages     []Message
	More         bool
}

// WhySummary is one code for the whole answer.
type WhySummary string

// The summaries.
const (
	WhyNotOffered       WhySummary = "not_offered"
	WhyWaitingForPeer   WhySummary = "waiting_for_peer"
	WhyWaitingForAccept WhySummary = "waiting_for_accept"
	WhyDelivered        WhySummary = "delivered"
	WhyRead             WhySummary = "read"
	WhyNotTaken         WhySummary = "not_taken"
	WhyInMailbox        WhySummary = "in_mailbox"
	WhyFull             WhySummary = "full"
	WhyDenied           WhySummary = "denied"
	WhyUnknown          WhySummary = "unknown"   // see StateUnknown
	WhyCancelled        WhySummary = "cancelled" // withdrawn before anybody had it
	WhyPartly           WhySummary = "partly"    // groups: some members have it
	WhyAlone            WhySummary = "alone"     // groups: no other member may have it
)

// DeviceState is how one device stands to a message.
type DeviceState string

// The device states.
const (
	DeviceDelivered DeviceState = "delivered"
	DeviceOffered   DeviceState = "offered"
	DeviceWaiting   DeviceState = "waiting"
	DeviceNotOwed   DeviceState = "not_owed"
)

// Why says what happened to a message so far.
type Why struct {
	Message Message
	Devices []WhyDevice
	Custody []Custody // groups: mailboxes that hold it in the group's log, for every member
	Summary WhySummary
	Former  bool // written under a former device key: before this profile was restored from a copy
}

// WhyDevice is one device's part of Why.
type WhyDevice struct {
	Account   identity.AccountID
	Device    identity.DeviceID
	Name      string
	State     DeviceState
	Delivered time.Time // zero: unknown or not yet
	Connected bool
	NextTry   time.Time // zero: none planned
	LastSeen  time.Time
	Attempts  []Attempt // newest first
	Custody   []Custody // mailboxes that hold the message for this device, or did
}

// Custody is a mailbox's signed word that it holds a message.
type Custody struct {
	Mailbox identity.DeviceID
	Name    string // what it is called here; empty: nothing is known of it
	Since   time.Time
	Until   time.Time
	Expired bool // it holds it no longer: the message is offered again
}

// Attempt is one try to reach a device.
type Attempt struct {
	Time    time.Time
	Road    string
	Address string
	Error   string // empty: it worked
}

// EventType is what an event tells of.
type EventType string

// The event types. Typing and presence are never stored and have sequence 0; ready carries the newest stored one.
const (
	EventMessage  EventType = "message"
	EventState    EventType = "state"
	EventContact  EventType = "contact"
	EventRequest  EventType = "request"
	EventDevices  EventType = "devices"
	EventTyping   EventType = "typing"
	EventPresence EventType = "presence"
	EventSettings EventType = "settings"
	EventProfile  EventType = "profile"
	EventRead     EventType = "read" // the owner read a conversation, here or on another own device
	EventWarning  EventType = "warning"
	EventName     EventType = "name"    // how the own username stands on a network changed; the detail is its state
	EventNetwork  EventType = "network" // joined, left, online, offline
	EventMailbox  EventType = "mailbox" // added, removed, full, lost, lying, back, offered, withdrawn
	EventGap      EventType = "gap"     // what stood before was trimmed
	EventReady    EventType = "ready"   // everything stored was told, what follows is live
)

// Event is one thing that happened.
type Event struct {
	Seq          uint64
	Time         time.Time
	Type         EventType
	Conversation *feed.ConversationID // nil: none
	Account      *identity.AccountID  // nil: none
	Message      *Message             // message: the message; state: the last one that changed
	Detail       string
	On           bool              // typing, presence
	Network      string            // name, network: what the network is called
	Name         string            // name: the username; mailbox: what the mailbox is called, if it is known
	Holder       identity.DeviceID // mailbox: the node; zero: none
	MessageIDs   []feed.EntryID    // state: those that changed, at most 256 an event

	Subject     *identity.AccountID // group, invitation, application: the account it concerns besides; nil: none
	AccountName string              // groups: what Account is called
	SubjectName string              // groups: what Subject is called
}

// WatchQuery is where a watcher begins.
type WatchQuery struct {
	Since        uint64 // events after this one
	Conversation string // WHO; empty: all
	FromNow      bool   // begin after the newest stored event
}

// Counts are the totals of a profile.
type Counts struct {
	Pending   int
	Unread    int
	Requests  int // incoming, undecided
	LastEvent uint64
}
