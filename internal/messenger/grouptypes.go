package messenger

import (
	"time"

	"hima/identity"
	"hima/internal/feed"
)

// The kinds of history lines that groups have besides texts: the acts of their members.
const (
	MessageGroupCreated     MessageKind = "group-created"
	MessageGroupAdmitted    MessageKind = "group-admitted"
	MessageGroupLeft        MessageKind = "group-left"
	MessageGroupRemoved     MessageKind = "group-removed"
	MessageGroupRole        MessageKind = "group-role"
	MessageGroupTransferred MessageKind = "group-transferred"
	MessageGroupSet         MessageKind = "group-set"
	MessageGroupDissolved   MessageKind = "group-dissolved"
)

// KindGroup is a conversation of many.
const KindGroup ConversationKind = "group"

// The event types of groups. A group event says in its detail what happened, and names the group, the account that did it
// and the one it concerns. Invitation and application events say what became of one.
const (
	EventGroup       EventType = "group"
	EventInvitation  EventType = "invitation"
	EventApplication EventType = "application"
)

// SourceMember says that somebody, or a group, was found through a group that both are in, SourceGroup that what was found
// is a group.
const (
	SourceMember Source = "member"
	SourceGroup  Source = "group"
)

// RoleName is what somebody may do in a group; empty: not in it.
type RoleName string

// The roles.
const (
	RoleNone   RoleName = ""
	RoleMember RoleName = "member"
	RoleAdmin  RoleName = "admin"
	RoleOwner  RoleName = "owner"
)

// Group is a group as this account sees it.
type Group struct {
	ID              feed.ConversationID
	Name            string
	Description     string
	Announcement    string
	AnnouncedBy     identity.AccountID // zero: nobody
	AnnouncedByName string
	AnnouncedAt     time.Time
	Public          bool
	Join            string // invite, apply, open
	Invite          string // who may invite: admins, members
	History         string // what newcomers get: none, all, or a number of messages
	Mute            bool   // only admins write
	Role            RoleName
	State           string // none, invited, applied, joining, member, left, removed, rejected, dissolved
	Size            int
	Owner           identity.AccountID // zero: unknown, or gone
	OwnerName       string
	Joined          time.Time
	ReadOnly        bool   // a newer version acted (R10)
	Applications    int    // waiting, for admins
	Nickname        string // own, in this group
	Mailboxes       []identity.DeviceID
}

// GroupMember is one of those who are in a group.
type GroupMember struct {
	Account  identity.AccountID
	Name     string // remark, nickname in the group, nickname, username or short ID
	Nickname string // in the group
	Username string
	Role     RoleName
	Relation Relation
	Online   bool
	LastSeen time.Time // zero: never
	Joined   time.Time
}

// GroupOptions is what a new group begins with.
type GroupOptions struct {
	Name        string
	Description string
	Public      bool
	Join        string // empty: invite, of public groups apply
	History     string // empty: none
}

// GroupInvited says what became of one invitation that was asked for.
type GroupInvited struct {
	Who     string // as it was typed
	Account identity.AccountID
	Name    string
	State   string // invited, admitted (had applied), already_member, already_invited, withdrawn, failed
	Err     error  // state failed: why
}

// GroupInvitation is one into a group, to this account or from it.
type GroupInvitation struct {
	Group    Group // as the inviter told
	From     identity.AccountID
	FromName string
	To       identity.AccountID
	ToName   string
	Outgoing bool
	Time     time.Time
	Expires  time.Time
	State    string // waiting, accepted, declined, withdrawn, expired
}

// GroupApplication asks to be let into a group: somebody's into one that this account decides for, or its own.
type GroupApplication struct {
	Group     feed.ConversationID
	GroupName string
	Account   identity.AccountID
	Name      string
	Own       bool
	Message   string
	Time      time.Time
	Expires   time.Time
	State     string             // waiting, approved, rejected, withdrawn, expired
	Reason    string             // of a rejection
	By        identity.AccountID // who turned it down; zero: nobody known
	ByName    string
	ByLink    bool
	Answers   []GroupAnswer // own: who said no; while it is waiting others may still let us in
}

// GroupAnswer is a no to an own application.
type GroupAnswer struct {
	By      identity.AccountID
	ByName  string
	Reason  string
	Decided bool // an admin turned it down; else their link was over
}

// GroupLink is a revocable right to ask to be let into a group.
type GroupLink struct {
	Link    string
	Token   identity.InviteToken
	Created time.Time
	Expires time.Time // zero: never
	Uses    int       // 0: any number
	Used    int       // about
	Revoked bool
}

// FoundGroup is a public group that somebody tells of. Its size and its words are claimed.
type FoundGroup struct {
	ID          feed.ConversationID
	Name        string
	Description string
	Size        int
	Join        string
	Owner       identity.AccountID
	OwnerName   string // as known here; empty: not known
	Source      Source // network, nearby, member
	Network     string // empty: not on a network
	State       string // own, as of Group
	Expires     time.Time
	Disputed    bool // two accounts show that they own it
}

// GroupSearch is every public group that was found by a name.
type GroupSearch struct {
	Groups      []FoundGroup
	Unreachable []string // networks that could not be asked
}

// GroupAct is what one member does to another, or to the group.
type GroupAct int

// The acts; those that name nobody come last.
const (
	GroupRemove GroupAct = iota + 1
	GroupPromote
	GroupDemote
	GroupTransfer
	GroupLeave
	GroupDissolve
)
