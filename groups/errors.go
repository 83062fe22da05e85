package groups

import "errors"

// What a user may do wrong, or meet. Nothing has changed when one of these is returned.
var (
	ErrNotFound   = errors.New("no such group, invitation, application or link")
	ErrNotMember  = errors.New("not a member of the group")
	ErrNotAllowed = errors.New("not allowed with this role")
	ErrExists     = errors.New("already so")
	ErrInvalid    = errors.New("not a valid value")
	ErrLastOwner  = errors.New("the owner hands the group over or dissolves it")
	ErrDissolved  = errors.New("the group was dissolved")
	ErrReadOnly   = errors.New("a newer version acted in the group: it can only be read")
	ErrMuted      = errors.New("only admins write in this group now")
	ErrFull       = errors.New("too many of these")
	ErrExpired    = errors.New("expired")
	ErrConflict   = errors.New("something else happened at the same time")
	ErrAlone      = errors.New("nobody else is in the group")
)

// ErrAct: the content of a control entry is not what its kind prescribes. The entry stays in its feed and counts for nothing.
var ErrAct = errors.New("malformed act")
