package feed

import "strconv"

// Number tells the two feeds apart that a device has in each conversation (R5).
type Number uint32

// The feeds of a device. Control is kept whole and for ever, chat may have a floor and erased bodies.
const (
	Control Number = 1
	Chat    Number = 2
)

// Valid tells whether the number is one of the two.
func (n Number) Valid() bool { return n == Control || n == Chat }

// String names the feed for logs.
func (n Number) String() string {
	switch n {
	case Control:
		return "control"
	case Chat:
		return "chat"
	}
	return "feed " + strconv.FormatUint(uint64(n), 10)
}

// Kind says what an entry is; with the feed number it decides what its content is.
type Kind uint32

// The kinds of chat entries. KindReadPosition belongs to the self conversation and is never shown.
const (
	KindText         Kind = 1
	KindRecall       Kind = 2
	KindReadPosition Kind = 34
)

// The kinds of control entries: those of direct conversations, then those of the self conversation.
const (
	KindRequest      Kind = 16
	KindAccept       Kind = 17
	KindDecline      Kind = 18
	KindCardUpdate   Kind = 19
	KindMailboxGrant Kind = 20
	// Invitations into groups and applications are not state of the group (R27): they are said between two accounts.
	KindGroupInvitation  Kind = 21
	KindGroupAnswer      Kind = 22
	KindGroupApplication Kind = 23
	KindGroupVerdict     Kind = 24
	KindContactState     Kind = 32
	KindSetting          Kind = 33
	KindInviteState      Kind = 35
)

// The kinds of control entries of groups: the acts of docs/spec/groups.md.
const (
	KindGroupCreate   Kind = 64
	KindGroupAdmit    Kind = 65
	KindGroupLeave    Kind = 66
	KindGroupRemove   Kind = 67
	KindGroupRole     Kind = 68
	KindGroupTransfer Kind = 69
	KindGroupSet      Kind = 70
	KindGroupNickname Kind = 71
	KindGroupEpoch    Kind = 72
	KindGroupRevoke   Kind = 73
	KindGroupDissolve Kind = 74
)

// Known tells whether this version knows what such an entry says. Unknown kinds are valid and kept: an unknown chat
// entry is shown as needing a newer version, an unknown control entry makes its conversation read-only (R10).
func Known(n Number, k Kind) bool {
	switch n {
	case Chat:
		return k == KindText || k == KindRecall || k == KindReadPosition
	case Control:
		switch k {
		case KindRequest, KindAccept, KindDecline, KindCardUpdate, KindMailboxGrant, KindContactState, KindSetting, KindInviteState:
			return true
		}
		return k >= KindGroupInvitation && k <= KindGroupVerdict || k >= KindGroupCreate && k <= KindGroupDissolve
	}
	return false
}
