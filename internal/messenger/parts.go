package messenger

import (
	"context"
	"log/slog"
	"time"

	"hima/identity"
	"hima/internal/delivery"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/storage"
)

// Feeds is what the messenger needs of the entry store and its sessions; *replica.Replica is the real one. It is an
// interface because the tests of this package need many accounts in one process without a network.
type Feeds interface {
	Append(tx *storage.Tx, drafts ...replica.Draft) ([]feed.Entry, error)
	Entry(tx *storage.Tx, id feed.FeedID, seq uint64) (feed.Entry, error)
	Entries(tx *storage.Tx, id feed.FeedID, from, to uint64, f func(feed.Entry) (more bool, err error)) error
	Erase(tx *storage.Tx, id feed.FeedID, seq uint64) error
	Head(tx *storage.Tx, id feed.FeedID) (feed.Head, bool, error)
	FeedEnds(tx *storage.Tx, conv feed.ConversationID, f func(feed.FeedID, replica.End) error) error
	Acked(tx *storage.Tx, id feed.FeedID, device identity.DeviceID) (uint64, error)
	Offered(tx *storage.Tx, id feed.FeedID) (uint64, error)
	Holes(tx *storage.Tx, id feed.FeedID) ([]replica.Hole, error)
	FloorToShown(tx *storage.Tx, conv feed.ConversationID, account identity.AccountID) error
	OwnFeed(conv feed.ConversationID, n feed.Number) feed.FeedID

	Connected(device identity.DeviceID) bool
	SendTyping(conv feed.ConversationID, on bool)
	SendPresence(account identity.AccountID, on bool)
	PushReceipt(conv feed.ConversationID)
	Reannounce(conv feed.ConversationID)
}

// Roads is what the messenger needs of the retry table; *delivery.Delivery is the real one.
type Roads interface {
	Why(device identity.DeviceID) ([]delivery.Attempt, error)
	Next(device identity.DeviceID) time.Time
}

// Person is somebody on this LAN, in their own unconfirmed words.
type Person struct {
	Account  identity.AccountID
	Device   identity.DeviceID
	Username string
	Nickname string
	Address  string
	Seen     time.Time
}

// People is what the messenger needs to know of others' devices. The daemon makes it from the directory and the node.
type People interface {
	// Record returns the newest account record ever seen.
	Record(identity.AccountID) (identity.AccountRecord, bool)
	// Devices lists the devices known for an account.
	Devices(identity.AccountID) []identity.DeviceID
	// LastSeen says when a device was last met; zero: never.
	LastSeen(identity.DeviceID) time.Time
	// Nearby lists the people on this LAN; multicast is false when the LAN cannot be seen.
	Nearby() (people []Person, multicast bool)
	// Hint notes where a device of an account may be, as an invite link says. Nothing of it is proven.
	Hint(account identity.AccountID, device identity.DeviceID, addrs []string)
}

// Parts are the lower packages, which need the messenger to exist before they do.
type Parts struct {
	Feeds  Feeds  // required
	Roads  Roads  // nil: no attempts are known
	People People // nil: nobody is known

	Networks Networks // nil: no network
	Mail     Mail     // nil: no mailbox
	Groups   Groups   // nil: no groups
	// FindGroups asks the networks and the people nearby for public groups of a name; it returns before ctx ends, with what
	// it has and the networks that could not be asked. Nil: nobody is asked.
	FindGroups func(ctx context.Context, name string) (found []FoundCard, unreachable []string, err error)
	// PolicyChanged runs after RequestPolicy may have changed its answer; nil: nobody asks. It must not block.
	PolicyChanged func()
	// GrantsChanged runs after Grants changed; nil: nobody asks. It must not block.
	GrantsChanged func()
	// Befriended runs after an account became a contact: what only contacts are told can be told now, also in the session
	// in which they were a stranger. Nil: nobody asks. It must not block.
	Befriended func(identity.AccountID)
}

// env is what all parts of the messenger stand on. Bind fills the second part before anything else runs.
type env struct {
	db      *storage.DB
	account identity.AccountID
	device  identity.DeviceID
	self    feed.ConversationID
	now     func() time.Time
	log     *slog.Logger

	feeds    Feeds
	roads    Roads
	people   People
	networks Networks
	mail     Mail
	groups   Groups

	findGroups    func(context.Context, string) ([]FoundCard, []string, error)
	policyChanged func()
	grantsChanged func()
	befriended    func(identity.AccountID)
}

// update runs f durably.
func (e *env) update(ctx context.Context, f func(*storage.Tx) error) error {
	return e.db.Update(ctx, f)
}

// noRoads and noPeople stand in for parts that a test or a node without network does not have.
type noRoads struct{}

func (noRoads) Why(identity.DeviceID) ([]delivery.Attempt, error) { return nil, nil }
func (noRoads) Next(identity.DeviceID) time.Time                  { return time.Time{} }

type noPeople struct{}

func (noPeople) Record(identity.AccountID) (identity.AccountRecord, bool) {
	return identity.AccountRecord{}, false
}
func (noPeople) Devices(identity.AccountID) []identity.DeviceID       { return nil }
func (noPeople) LastSeen(identity.DeviceID) time.Time                 { return time.Time{} }
func (noPeople) Nearby() ([]Person, bool)                             { return nil, false }
func (noPeople) Hint(identity.AccountID, identity.DeviceID, []string) {}
