package messenger

import (
	"errors"

	"hima/identity"
	"hima/internal/feed"
)

// The kinds of refusals. Every error a method returns because of what was asked wraps one of them; anything else is an
// internal error. They stand one to one for the codes of the local API.
var (
	// ErrInvalid: the input is malformed, empty, or not one of the allowed values.
	ErrInvalid = errors.New("invalid")
	// ErrNotFound: nobody and nothing has that name or ID.
	ErrNotFound = errors.New("not found")
	// ErrAmbiguous: a name means several people or groups; errors.As to *Error gives the candidates.
	ErrAmbiguous = errors.New("ambiguous")
	// ErrExists: it is there already, as a contact that is added twice.
	ErrExists = errors.New("exists")
	// ErrNotContact: the act needs a contact, or a request to answer.
	ErrNotContact = errors.New("not a contact")
	// ErrWaitingForAccept: the other side has not accepted yet.
	ErrWaitingForAccept = errors.New("waiting for accept")
	// ErrTooLate: the message was offered to somebody and can no longer be cancelled.
	ErrTooLate = errors.New("too late")
	// ErrTooLarge: the text is beyond the limit of one message.
	ErrTooLarge = errors.New("too large")
	// ErrDenied: the owner blocked that account.
	ErrDenied = errors.New("denied")
	// ErrFull: a bound of this profile is reached, as of live invites.
	ErrFull = errors.New("full")
	// ErrConflict: the state changed meanwhile, or the account found is not the one that was confirmed.
	ErrConflict = errors.New("conflict")
	// ErrReadOnly: a control entry of a newer version was seen; the conversation can be read but not written (R10).
	ErrReadOnly = errors.New("read only")
	// ErrUnavailable: the part that would do it is not running.
	ErrUnavailable = errors.New("unavailable")
	// ErrNotMember: the act needs a member of the group.
	ErrNotMember = errors.New("not a member")
	// ErrNotAllowed: the own role in the group does not give the right.
	ErrNotAllowed = errors.New("not allowed")
	// ErrLastOwner: an owner hands the group over or dissolves it, and cannot just go.
	ErrLastOwner = errors.New("last owner")
	// ErrDissolved: the group ended.
	ErrDissolved = errors.New("dissolved")
	// ErrMuted: only admins write in the group now.
	ErrMuted = errors.New("muted")
	// ErrExpired: an invitation, application or link is over.
	ErrExpired = errors.New("expired")
	// ErrNoSeed: this device does not hold the account's seed (R17).
	ErrNoSeed = errors.New("no account seed on this device")
)

// Error is a refusal with what the user can do about it.
type Error struct {
	Kind       error // one of the sentinels
	Message    string
	Hint       string // what to do next, English; may be empty
	Candidates []Candidate
}

// Candidate is one of several people or groups a name may mean.
type Candidate struct {
	Account  identity.AccountID
	Username string
	Nickname string
	Source   Source
	Group    feed.ConversationID // a group: then Account is zero and Nickname is its name
}

// Error implements error.
func (e *Error) Error() string {
	if e.Message == "" {
		return e.Kind.Error()
	}
	return e.Message
}

// Unwrap gives the kind.
func (e *Error) Unwrap() error { return e.Kind }

func refuse(kind error, message, hint string) *Error {
	return &Error{Kind: kind, Message: message, Hint: hint}
}
