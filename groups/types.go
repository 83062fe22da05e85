package groups

import (
	"log/slog"
	"time"

	"hima/groups/roster"
	"hima/identity"
	"hima/internal/feed"
	"hima/storage"
)

// ID names a group: the hash of the header of its genesis.
type ID = feed.ConversationID

// Role is what an account may do in a group.
type Role = roster.Role

// The roles, weakest first.
const (
	RoleNone   = roster.None
	RoleMember = roster.Member
	RoleAdmin  = roster.Admin
	RoleOwner  = roster.Owner
)

// State is what a group is to this account.
type State string

// The states.
const (
	StateNone      State = "none"      // only heard of
	StateInvited   State = "invited"   // somebody in it asks
	StateApplied   State = "applied"   // an application of ours waits
	StateJoining   State = "joining"   // we agreed, and wait to be let in
	StateMember    State = "member"    // in
	StateLeft      State = "left"      // we went
	StateRemoved   State = "removed"   // we were removed, or what let us in does not count
	StateRejected  State = "rejected"  // our application was turned down
	StateDissolved State = "dissolved" // the group ended while we were in it
)

// Settings that are no roster settings but are given through Set.
const (
	// SettingNickname is the own name in the group.
	SettingNickname = "nickname"
	// SettingMailbox names where the group's log is kept: see EncodeMailboxes.
	SettingMailbox = roster.SettingMailbox
)

// Longest texts, in bytes.
const (
	MaxName         = 256
	MaxDescription  = roster.MaxValue
	MaxAnnouncement = roster.MaxValue
	MaxNickname     = 256
	MaxReason       = 1024
	MaxMessage      = identity.MaxConsentMessage
	// MaxMailboxes is how many mailboxes may keep a group's log.
	MaxMailboxes = 4
)

// Info is a group as this account sees it.
type Info struct {
	ID           ID
	Name         string
	Description  string
	Announcement string
	AnnouncedBy  identity.AccountID // zero: nobody
	AnnouncedAt  time.Time
	Public       bool
	Join         string // invite, apply, open
	Invite       string // admins, members
	History      string // none, all, or a number of messages
	Mute         bool
	Role         Role
	State        State
	Size         int                // claimed, while we are not in
	Owner        identity.AccountID // zero: not known, or gone
	Joined       time.Time
	ReadOnly     bool // a newer version acted (R10)
	Applications int  // that wait for us to decide
	Nickname     string
	Mailboxes    []identity.MailboxRef
}

// Member is somebody who is in.
type Member struct {
	Account  identity.AccountID
	Nickname string
	Role     Role
	Joined   time.Time
}

// The states of invitations and applications.
const (
	Waiting   = "waiting"
	Accepted  = "accepted"
	Declined  = "declined"
	Approved  = "approved"
	Rejected  = "rejected"
	Withdrawn = "withdrawn"
	Expired   = "expired"
)

// Invitation asks somebody into a group.
type Invitation struct {
	Group       ID
	Name        string
	Description string
	Size        int // claimed
	From, To    identity.AccountID
	Outgoing    bool
	Time        time.Time
	Expires     time.Time
	State       string // waiting, accepted, declined, withdrawn, expired
}

// Application asks to be let in.
type Application struct {
	Group     ID
	GroupName string
	Account   identity.AccountID
	Own       bool
	Message   string
	Time      time.Time
	Expires   time.Time
	State     string             // waiting, approved, rejected, withdrawn, expired
	Reason    string             // of a rejection
	By        identity.AccountID // who turned it down; zero: nobody known
	ByLink    bool
	Answers   []Answer // own: who said no, while others may not have, or at the end
}

// Answer is a no to an own application.
type Answer struct {
	By      identity.AccountID
	Reason  string
	Decided bool // an admin turned it down; else their link was over
}

// Link is a revocable right to ask.
type Link struct {
	Token   identity.InviteToken
	Text    string // hima-group:…
	Created time.Time
	Expires time.Time // zero: never
	Uses    int       // 0: any number
	Used    int       // about (R27)
	Revoked bool
}

// Options is what a new group begins with.
type Options struct {
	Name        string
	Description string
	Public      bool
	Join        string // empty: invite, of public groups apply
	History     string // empty: none
}

// Contact is a member who can be asked, and where.
type Contact = identity.GroupContact

// Target is a group to apply to, as a link, a card or a search result tells of it.
type Target struct {
	Group ID
	Name  string // claimed
	Token []byte // of a link; empty: none
	Asks  []Contact
	Join  string // claimed: invite, apply, open
	// Owners says under whom each of Asks is an admin, where several accounts show that they own the group. nil: nobody disputes it.
	Owners map[identity.AccountID][]identity.AccountID
}

// NewsKind says what happened.
type NewsKind string

// The kinds of news.
const (
	NewsCreated              NewsKind = "created"
	NewsAdmitted             NewsKind = "admitted"
	NewsJoined               NewsKind = "joined" // this account came in
	NewsLeft                 NewsKind = "left"
	NewsRemoved              NewsKind = "removed"
	NewsRole                 NewsKind = "role"
	NewsTransferred          NewsKind = "transferred"
	NewsSet                  NewsKind = "set"
	NewsNickname             NewsKind = "nickname"
	NewsEpoch                NewsKind = "epoch"
	NewsRevoked              NewsKind = "revoked" // a device
	NewsDissolved            NewsKind = "dissolved"
	NewsVoid                 NewsKind = "void"       // an act does not count; Text is the reason
	NewsReadOnly             NewsKind = "read-only"  // a newer version acted (R10)
	NewsInvitation           NewsKind = "invitation" // came in; Text is the group's name
	NewsInvitationWithdrawn  NewsKind = "invitation-withdrawn"
	NewsInvitationAccepted   NewsKind = "invitation-accepted" // by somebody we invited
	NewsInvitationDeclined   NewsKind = "invitation-declined"
	NewsInvitationExpired    NewsKind = "invitation-expired"
	NewsApplication          NewsKind = "application" // came in; Text is what the applicant says
	NewsApplicationWithdrawn NewsKind = "application-withdrawn"
	NewsApplicationExpired   NewsKind = "application-expired"
	NewsApplicationAnswered  NewsKind = "application-answered" // Account said no to ours, and others may still let us in; Text is the reason
	NewsApproved             NewsKind = "approved"             // an application, ours or one we were to decide
	NewsRejected             NewsKind = "rejected"             // likewise; Text is the reason
	NewsFlood                NewsKind = "flood"                // Account writes more than the limits let in
	NewsFork                 NewsKind = "fork"                 // two entries of Account with one number (R3)
)

// News is what others are told of, inside the transaction of the change.
type News struct {
	Group   ID
	Kind    NewsKind
	Account identity.AccountID // who did it
	Subject identity.AccountID // whom it concerns; zero: nobody
	Text    string             // role: the new role; set: key=value; nickname: the name; else as the kind says
	Entry   *feed.Entry        // the act; nil: there is none
	Self    bool               // Subject is this account, or it is what makes our own state
}

// Limits bounds what members and strangers may cost. A zero field takes the value of DefaultLimits.
type Limits struct {
	Acts         int           // control entries of one group, beyond which those of members only count if admins build upon them
	MemberActs   int           // control entries of a member, of one feed and of all together
	AdminActs    int           // likewise, of somebody who was ever an admin
	Rate         float64       // chat entries a second of one author, beyond Burst
	Burst        int           // chat entries of one author at once
	ActRate      float64       // control entries a second of one member, beyond ActBurst; admins ten times as many
	ActBurst     int           // control entries of one member at once; admins ten times as many
	Waiting      int           // acts of one feed that wait for ancestors
	Applications int           // waiting, of one group; four times as many in all
	Invitations  int           // waiting ones that came in, a sixteenth of them from one account
	Automatic    int           // admissions an hour into open groups that nobody decides
	Links        int           // live ones, of one group
	Cached       int           // acts of all rosters that are kept in memory together
	EpochAge     time.Duration // after which an admin makes a new epoch
	EpochEntries int           // chat entries after which an admin does
	Invitation   time.Duration // how long an invitation or an application waits
}

// DefaultLimits returns the limits of a normal node.
func DefaultLimits() Limits {
	return Limits{
		Acts: 24 << 10, MemberActs: 2 << 10, AdminActs: 16 << 10, Rate: 100, Burst: 50_000, ActRate: 1.0 / 30, ActBurst: 512, Waiting: 512, Applications: 256,
		Invitations: 256, Automatic: 30, Links: 64, Cached: 60_000, EpochAge: 7 * 24 * time.Hour, EpochEntries: 10_000,
		Invitation: identity.ConsentLifetime,
	}
}

// Config is what Groups need to exist. All fields without a stated zero value are required.
type Config struct {
	DB          *storage.DB
	Account     identity.AccountID
	Key         identity.DeviceKey
	Certificate identity.Certificate // of Key
	// Records returns the newest account record ever seen of an account.
	Records func(identity.AccountID) (identity.AccountRecord, bool)
	// News is told what happens; an error discards the change. nil: nobody is told.
	News func(tx *storage.Tx, n News) error
	// Fold brings the name of a group into the form in which names are compared; nil: lower case and single blanks.
	Fold   func(string) string
	Now    func() time.Time // nil: time.Now
	Logger *slog.Logger     // nil: nothing is logged
	Limits Limits           // zero fields: the defaults
}
