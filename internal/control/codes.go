package control

// Code says what kind of refusal an error is. The list is closed: faces translate codes, scripts match them, and neither
// ever looks at the text. A Code is an error itself, so errors.Is(err, control.NotFound) asks for it at any depth.
type Code string

const (
	// Invalid: the request itself is wrong (a malformed name, an unknown setting, an empty text).
	Invalid Code = "invalid"
	// NotFound: what was named does not exist here.
	NotFound Code = "not_found"
	// Ambiguous: a name means several people; the error lists them.
	Ambiguous Code = "ambiguous"
	// Exists: what was to be made is there already.
	Exists Code = "exists"
	// Locked: the node runs without its keys; log in first.
	Locked Code = "locked"
	// WrongPassword: the password does not open the vault.
	WrongPassword Code = "wrong_password"
	// NoProfile: nobody is registered here under that name.
	NoProfile Code = "no_profile"
	// NotRunning: no node answers on the socket. Made by the client only.
	NotRunning Code = "not_running"
	// NotContact: the person is not a contact and the act needs one.
	NotContact Code = "not_contact"
	// WaitingForAccept: the request has not been answered yet.
	WaitingForAccept Code = "waiting_for_accept"
	// TooLate: the message was offered to somebody and cannot be withdrawn.
	TooLate Code = "too_late"
	// TooLarge: a text or a request is above its limit.
	TooLarge Code = "too_large"
	// Denied: the owner's own rules forbid it, a blocked contact for example.
	Denied Code = "denied"
	// Full: a bounded store or quota has no room.
	Full Code = "full"
	// Conflict: the state changed meanwhile; ask again.
	Conflict Code = "conflict"
	// ReadOnly: the conversation holds things that this version does not understand and takes no new ones.
	ReadOnly Code = "read_only"
	// Version: client, node or peer are too old for this.
	Version Code = "version"
	// DiskFull: nothing was written.
	DiskFull Code = "disk_full"
	// Damaged: the vault or the database does not read back.
	Damaged Code = "damaged"
	// Internal: a defect of hima.
	Internal Code = "internal"
	// Unavailable: the node is starting or stopping, or went away during the call.
	Unavailable Code = "unavailable"
	// NotMember: the act needs somebody who is in the group.
	NotMember Code = "not_member"
	// NotAllowed: the role in the group does not give the right.
	NotAllowed Code = "not_allowed"
	// LastOwner: an owner hands a group over or dissolves it, and cannot just go.
	LastOwner Code = "last_owner"
	// Dissolved: the group ended.
	Dissolved Code = "dissolved"
	// Muted: only admins write in the group now.
	Muted Code = "muted"
	// Expired: an invitation, application or link is over.
	Expired Code = "expired"
)

// Codes returns the whole list, in a fixed order.
func Codes() []Code {
	return []Code{
		Invalid, NotFound, Ambiguous, Exists, Locked, WrongPassword, NoProfile, NotRunning, NotContact, WaitingForAccept,
		TooLate, TooLarge, Denied, Full, Conflict, ReadOnly, Version, DiskFull, Damaged, Internal, Unavailable,
		NotMember, NotAllowed, LastOwner, Dissolved, Muted, Expired,
	}
}

// Error makes a Code an error; it is what errors.Is compares with.
func (c Code) Error() string { return string(c) }

// known reports whether c stands in the list.
func (c Code) known() bool {
	for _, k := range Codes() {
		if c == k {
			return true
		}
	}
	return false
}
