package roster

import (
	"bytes"
	"encoding/hex"
	"errors"

	"hima/identity"
)

// Errors of Add.
var (
	// ErrMalformed: the act breaks a rule that needs no other act to be seen.
	ErrMalformed = errors.New("malformed act")
	// ErrTooMany: too many acts wait for ancestors.
	ErrTooMany = errors.New("too many acts wait for their ancestors")
)

// Bounds of one act and of what is kept for it.
const (
	// MaxParents is how many control heads an act may name. More heads than that are joined by one act first.
	MaxParents = 16
	// MaxCuts is how many feeds a removal may cut: two of each device an account may ever have had in a group.
	MaxCuts = 64
	// MaxWaiting is how many acts may wait for ancestors.
	MaxWaiting = 4096
	// MaxValue bounds the value of a setting, in bytes.
	MaxValue = 4 << 10
)

// ID names an act: the hash of the header of its entry.
type ID [32]byte

// String returns the hexadecimal form.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// IsZero tells whether there is no ID.
func (id ID) IsZero() bool { return id == ID{} }

func (id ID) less(other ID) bool { return bytes.Compare(id[:], other[:]) < 0 }

// Role is what an account may do in a group.
type Role uint8

// The roles, weakest first.
const (
	None Role = iota
	Member
	Admin
	Owner
)

// Kind is what an act does.
type Kind uint8

// The kinds of acts. The numbers are this package's own; those of entries stand in docs/spec/groups.md.
const (
	Create   Kind = iota + 1 // the genesis: its author is the owner
	Admit                    // Account comes in, with its signed consent
	Leave                    // the author goes, what counts of its feeds is cut
	Remove                   // Account goes, what counts of its feeds is cut
	SetRole                  // Account becomes Role, Member or Admin
	Transfer                 // Account becomes the owner, the author an admin
	Set                      // a setting of the group
	Nickname                 // the author's own name in this group
	NewEpoch                 // a new key
	Revoke                   // the author takes a device of its own account away
	Dissolve                 // the group ends
)

// The settings of a group and what they may be. Name, Description and Announcement are free text.
const (
	SettingName         = "name"
	SettingDescription  = "description"
	SettingAnnouncement = "announcement"
	SettingPublic       = "public"  // yes, no
	SettingJoin         = "join"    // invite, apply, open
	SettingInvite       = "invite"  // admins, members
	SettingHistory      = "history" // none, all, or a number of messages
	SettingMute         = "mute"    // yes: only admins write
	SettingMailbox      = "mailbox" // where the group's log is kept; who reads it says how
)

// Cut names the last entry of a feed that counts.
type Cut struct {
	Device identity.DeviceID
	Feed   uint32
	Seq    uint64
	Hash   [32]byte
}

// Act is a control entry that was checked: bounds, signature, that its author's device was certified. Fields that its
// kind has no use for are zero.
type Act struct {
	ID      ID
	Parents []ID // none: the genesis
	Author  identity.AccountID
	Device  identity.DeviceID
	Kind    Kind

	// Forked says that the feed of this act has two branches, and that the act is not before them (R3): it counts for nothing,
	// and stands in the graph for the sake of those who built upon it.
	Forked bool

	Account identity.AccountID // Admit, Remove, SetRole, Transfer
	Role    Role               // SetRole
	// Applied says that the consent of an Admit is an application of Account's own, not the answer to an invitation.
	Applied bool
	// Consent is the hash of that consent: it lets its account in once, not again after it went.
	Consent    [32]byte
	Revoked    identity.DeviceID // Revoke
	Cuts       []Cut             // Leave, Remove, Revoke
	Key, Value string            // Set, Nickname (Value)
	Generation uint64            // NewEpoch
	KeyHash    [32]byte          // NewEpoch
	// From is the first epoch whose entries an admitted account may have (R30); zero: the one that is current then.
	From ID
}

// check holds the rules that concern the act alone.
func (a *Act) check() error {
	switch {
	case a.ID.IsZero(), a.Author.IsZero(), a.Device.IsZero(), a.Kind < Create, a.Kind > Dissolve:
		return ErrMalformed
	case (a.Kind == Create) != (len(a.Parents) == 0), len(a.Parents) > MaxParents, len(a.Cuts) > MaxCuts, len(a.Value) > MaxValue:
		return ErrMalformed
	case a.targets() && a.Account.IsZero(), a.Kind == Remove && a.Account == a.Author, a.Kind == Transfer && a.Account == a.Author:
		return ErrMalformed
	case a.Kind == SetRole && a.Role != Member && a.Role != Admin:
		return ErrMalformed
	case a.Kind == Revoke && (a.Revoked.IsZero() || a.Revoked == a.Device):
		return ErrMalformed
	case a.Kind == NewEpoch && (a.Generation == 0 || a.KeyHash == [32]byte{}):
		return ErrMalformed
	case a.Kind == Set && !ValidSetting(a.Key, a.Value):
		return ErrMalformed
	}
	for i, p := range a.Parents {
		// Ascending, so that one set of parents has one form.
		if p == a.ID || i > 0 && !a.Parents[i-1].less(p) {
			return ErrMalformed
		}
	}
	return nil
}

func (a *Act) targets() bool {
	return a.Kind == Admit || a.Kind == Remove || a.Kind == SetRole || a.Kind == Transfer
}

// ValidSetting tells whether a setting may have a value.
func ValidSetting(key, value string) bool {
	switch key {
	case SettingName:
		return value != "" && len(value) <= 256
	case SettingDescription, SettingAnnouncement, SettingMailbox:
		return true
	case SettingPublic, SettingMute:
		return value == "yes" || value == "no"
	case SettingJoin:
		return value == "invite" || value == "apply" || value == "open"
	case SettingInvite:
		return value == "admins" || value == "members"
	case SettingHistory:
		if value == "none" || value == "all" {
			return true
		}
		if value == "" || len(value) > 6 || value[0] == '0' {
			return false
		}
		for _, c := range value {
			if c < '0' || c > '9' {
				return false
			}
		}
		return true
	}
	return false
}

// takes tells whether an act takes something away: rights of an account, or all rights of a device.
func (a *Act) takes() bool {
	_, _, lowers := a.lowers()
	return lowers || a.Kind == Revoke
}

// lowers says whose rights an act takes away or lessens, and what is left of them.
func (a *Act) lowers() (account identity.AccountID, left Role, ok bool) {
	switch {
	case a.Kind == Remove:
		return a.Account, None, true
	case a.Kind == Leave:
		return a.Author, None, true
	case a.Kind == SetRole && a.Role == Member:
		return a.Account, Member, true
	case a.Kind == Transfer:
		return a.Author, Admin, true
	}
	return identity.AccountID{}, None, false
}
