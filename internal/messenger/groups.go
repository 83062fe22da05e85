package messenger

import (
	"context"
	"time"

	"hima/groups"
	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// Groups is what the messenger needs of the groups; *groups.Groups is the real one. What the roster says is asked of it every
// time and kept nowhere here. Methods with a tx run inside it; acts are durable when they return.
type Groups interface {
	// Is tells whether a conversation is a group known here, in whatever state.
	Is(tx *storage.Tx, conv feed.ConversationID) (bool, error)
	Shared(tx *storage.Tx, account identity.AccountID) ([]feed.ConversationID, error)
	Readers(tx *storage.Tx, conv feed.ConversationID) ([]identity.AccountID, error)
	Window(tx *storage.Tx, conv feed.ConversationID, account identity.AccountID) (replica.Window, error)
	Admit(tx *storage.Tx, in replica.Incoming) (take int, code pb.Code, err error)
	Applied(tx *storage.Tx, a replica.Applied) error
	// Forked takes the news that a feed has two branches (R3): acts from there on count for nothing.
	Forked(tx *storage.Tx, f replica.Fork) error
	// Draft makes a chat entry, and the epoch it is written under if there is none.
	Draft(tx *storage.Tx, conv feed.ConversationID, kind feed.Kind, content []byte) (replica.Draft, error)
	// Audience lists the members to whom an entry goes, without its author.
	Audience(tx *storage.Tx, conv feed.ConversationID, h feed.Header) ([]identity.AccountID, error)
	// Backlog tells whether an entry was said before this account was let in.
	Backlog(tx *storage.Tx, h feed.Header) (bool, error)
	// Counts tells whether an entry stands before every cut, and of an act whether it is neither void nor waiting for others.
	Counts(tx *storage.Tx, e feed.Entry) (bool, error)
	// Said takes an entry of kinds 21 to 24 of a direct conversation, Listens says whether a stranger may begin with one.
	Said(tx *storage.Tx, from, to identity.AccountID, kind feed.Kind, content []byte, at time.Time) error
	Listens(tx *storage.Tx, from identity.AccountID, kind feed.Kind, content []byte) (pb.Code, error)
	// Fellow tells whether an account decides with this one who comes into some group.
	Fellow(tx *storage.Tx, account identity.AccountID) (bool, error)
	// Later has the heads of a conversation told anew after a while: something was refused in it that may be taken then.
	Later(conv feed.ConversationID)

	// Remembered lists the groups that a new device of the account has to know of; Restore takes what another one told of one.
	Remembered(tx *storage.Tx) ([]groups.Remembered, error)
	Restore(tx *storage.Tx, g groups.Remembered) (bool, error)

	Info(tx *storage.Tx, id groups.ID) (groups.Info, error)
	List(tx *storage.Tx) ([]groups.Info, error)
	Members(tx *storage.Tx, id groups.ID) ([]groups.Member, error)
	// Nickname is what somebody is called, or was, in a group; empty: nothing.
	Nickname(tx *storage.Tx, id groups.ID, account identity.AccountID) (string, error)
	Find(tx *storage.Tx, name string) ([]groups.Info, error)
	Invitations(tx *storage.Tx) ([]groups.Invitation, error)
	Applications(tx *storage.Tx, id groups.ID) ([]groups.Application, error)
	Links(tx *storage.Tx, id groups.ID) ([]groups.Link, error)
	// LiveLinks are the links to groups that a new device of the account has to know of, LinkSaid takes what one says of a link,
	// and LinkKnown tells whether anything was.
	LiveLinks(tx *storage.Tx, most int) ([]*pb.InviteState, error)
	LinkSaid(tx *storage.Tx, s *pb.InviteState) error
	LinkKnown(tx *storage.Tx, id groups.ID, token identity.InviteToken) (bool, error)

	Create(ctx context.Context, o groups.Options) (groups.Info, error)
	Invite(ctx context.Context, id groups.ID, account identity.AccountID) (state string, err error)
	Withdraw(ctx context.Context, id groups.ID, account identity.AccountID) error
	Answer(ctx context.Context, id groups.ID, accept bool) (groups.Info, error)
	NewLink(ctx context.Context, id groups.ID, expires time.Duration, uses int) (groups.Link, error)
	RevokeLink(ctx context.Context, id groups.ID, token identity.InviteToken) (groups.Link, error)
	Apply(ctx context.Context, t groups.Target, message string) (groups.Info, error)
	WithdrawApplication(ctx context.Context, id groups.ID) error
	Decide(ctx context.Context, id groups.ID, account identity.AccountID, approve bool, reason string) (groups.Application, error)
	Remove(ctx context.Context, id groups.ID, account identity.AccountID) error
	Promote(ctx context.Context, id groups.ID, account identity.AccountID) error
	Demote(ctx context.Context, id groups.ID, account identity.AccountID) error
	Transfer(ctx context.Context, id groups.ID, account identity.AccountID) error
	Leave(ctx context.Context, id groups.ID) error
	Dissolve(ctx context.Context, id groups.ID) error
	Set(ctx context.Context, id groups.ID, key, value string) error
}

var _ Groups = (*groups.Groups)(nil)

// noGroups stands in for groups that a node does not have.
type noGroups struct{ Groups }

func (noGroups) Is(*storage.Tx, feed.ConversationID) (bool, error) { return false, nil }

func (noGroups) Shared(*storage.Tx, identity.AccountID) ([]feed.ConversationID, error) {
	return nil, nil
}

func (noGroups) Admit(*storage.Tx, replica.Incoming) (int, pb.Code, error) {
	return 0, pb.Code_CODE_NOT_MEMBER, nil
}

func (noGroups) Said(*storage.Tx, identity.AccountID, identity.AccountID, feed.Kind, []byte, time.Time) error {
	return errIgnored
}

func (noGroups) Listens(*storage.Tx, identity.AccountID, feed.Kind, []byte) (pb.Code, error) {
	return pb.Code_CODE_UNSUPPORTED, nil
}

func (noGroups) Fellow(*storage.Tx, identity.AccountID) (bool, error)  { return false, nil }
func (noGroups) Later(feed.ConversationID)                             {}
func (noGroups) List(*storage.Tx) ([]groups.Info, error)               { return nil, nil }
func (noGroups) Remembered(*storage.Tx) ([]groups.Remembered, error)   { return nil, nil }
func (noGroups) Restore(*storage.Tx, groups.Remembered) (bool, error)  { return false, nil }
func (noGroups) LiveLinks(*storage.Tx, int) ([]*pb.InviteState, error) { return nil, nil }
func (noGroups) LinkSaid(*storage.Tx, *pb.InviteState) error           { return errIgnored }
func (noGroups) LinkKnown(*storage.Tx, groups.ID, identity.InviteToken) (bool, error) {
	return true, nil
}
func (noGroups) Find(*storage.Tx, string) ([]groups.Info, error)      { return nil, nil }
func (noGroups) Invitations(*storage.Tx) ([]groups.Invitation, error) { return nil, nil }

func findNoGroups(context.Context, string) ([]FoundCard, []string, error) { return nil, nil, nil }
