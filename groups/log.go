package groups

import (
	"context"

	"hima/identity"
	"hima/internal/delivery"
	"hima/internal/feed"
	"hima/internal/mailbox"
)

// Log is what a group needs of mailboxes: its log, a list of envelopes per epoch, which every member can read and add to.
// delivery.Mail implements it.
type Log interface {
	// LeaveInLog leaves an envelope at all mailboxes of the group. nil: a receipt is durable, and the entries are in custody.
	LeaveInLog(ctx context.Context, d delivery.LogDeposit) error
	// ReadLog returns what lies in a log after a cursor.
	ReadLog(ctx context.Context, at identity.MailboxRef, secret identity.InboxSecret, after uint64) (items []mailbox.Item, more bool, err error)
	// WatchLogs tells which logs at one mailbox have something, until ctx or the stream ends.
	WatchLogs(ctx context.Context, at identity.MailboxRef, secrets []identity.InboxSecret, tell func([]identity.InboxID)) error
	// InLog is up to where, from one number of an own feed on, everything lies in logs.
	InLog(id feed.FeedID, from uint64) uint64
}

var _ Log = (*delivery.Mail)(nil)
