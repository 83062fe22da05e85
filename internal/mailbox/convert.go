package mailbox

import (
	"fmt"
	"time"

	"hima/identity"
	"hima/internal/wire/pb"
)

func (t Terms) pb() *pb.MailboxTerms {
	return &pb.MailboxTerms{
		Open: t.Open, InboxBytes: t.InboxBytes, InboxItems: uint32(t.InboxItems), RequestBytes: t.RequestBytes, RequestItems: uint32(t.RequestItems),
		ExpiryMs: t.Expiry.Milliseconds(), WorkBits: uint32(t.WorkBits), MaxItem: uint32(t.MaxItem), TimeMs: t.Time.UnixMilli(),
		InboxIdleMs: t.InboxIdle.Milliseconds(),
	}
}

// maxTime bounds the durations that a mailbox may name, so that no arithmetic goes over.
const maxTime = 10 * 365 * 24 * time.Hour

func termsFromPB(m *pb.MailboxTerms) (Terms, error) {
	if m == nil || m.ExpiryMs <= 0 || m.ExpiryMs > maxTime.Milliseconds() || m.InboxIdleMs <= 0 || m.InboxIdleMs > maxTime.Milliseconds() ||
		m.WorkBits > identity.MaxWorkBits || m.InboxItems > 1<<30 || m.RequestItems > 1<<30 || m.MaxItem > 1<<30 {
		return Terms{}, fmt.Errorf("reading terms: %w", ErrProtocol)
	}
	return Terms{
		Open: m.Open, InboxBytes: m.InboxBytes, InboxItems: int(m.InboxItems), RequestBytes: m.RequestBytes, RequestItems: int(m.RequestItems),
		Expiry: time.Duration(m.ExpiryMs) * time.Millisecond, InboxIdle: time.Duration(m.InboxIdleMs) * time.Millisecond,
		WorkBits: int(m.WorkBits), MaxItem: int(m.MaxItem), Time: time.UnixMilli(m.TimeMs),
	}, nil
}

// errorOf is the error that a code stands for; nil for OK.
func errorOf(c pb.MailboxReply_Code) error {
	switch c {
	case pb.MailboxReply_CODE_OK:
		return nil
	case pb.MailboxReply_CODE_FULL:
		return ErrFull
	case pb.MailboxReply_CODE_NO_ROOM:
		return ErrNoRoom
	case pb.MailboxReply_CODE_NO_INBOX:
		return ErrNoInbox
	case pb.MailboxReply_CODE_DENIED:
		return ErrDenied
	case pb.MailboxReply_CODE_TOO_LARGE:
		return ErrTooLarge
	case pb.MailboxReply_CODE_WORK:
		return ErrWork
	case pb.MailboxReply_CODE_BUSY:
		return ErrBusy
	case pb.MailboxReply_CODE_BAD:
		return ErrBadRequest
	case pb.MailboxReply_CODE_FAILED:
		return ErrFailed
	}
	return fmt.Errorf("answer with unknown code %d: %w", c, ErrProtocol)
}

// inboxesOf reads IDs that a mailbox sent; those that were not asked about are its mistake.
func inboxesOf(raw [][]byte) ([]identity.InboxID, error) {
	if len(raw) > maxSecrets {
		return nil, fmt.Errorf("reading inboxes: %w", ErrProtocol)
	}
	ids := make([]identity.InboxID, 0, len(raw))
	for _, b := range raw {
		id, err := identity.InboxIDFromBytes(b)
		if err != nil {
			return nil, fmt.Errorf("reading inboxes: %w: %w", ErrProtocol, err)
		}
		ids = append(ids, id)
	}
	return ids, nil
}
