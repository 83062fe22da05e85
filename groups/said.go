package groups

import (
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	"hima/groups/roster"
	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/storage"
)

// Said takes an entry of kinds 21 to 24 of a direct conversation, also one that another own device wrote, inside the
// transaction that stores it. What is malformed or fits nothing is logged and changes nothing.
func (g *Groups) Said(tx *storage.Tx, from, to identity.AccountID, kind feed.Kind, content []byte, at time.Time) error {
	var err error
	switch kind {
	case feed.KindGroupInvitation:
		err = g.saidInvitation(tx, from, to, content, at)
	case feed.KindGroupAnswer:
		err = g.saidAnswer(tx, from, to, content)
	case feed.KindGroupApplication:
		err = g.saidApplication(tx, from, to, content)
	case feed.KindGroupVerdict:
		err = g.saidVerdict(tx, from, to, content)
	}
	if err != nil && unfit(err) {
		g.log.Debug("what was said of a group fits nothing", "from", from.Short(), "kind", uint32(kind), "error", err)
		return nil
	}
	return err
}

// unfit tells whether an error is about what somebody said, and not one of our own.
func unfit(err error) bool {
	for _, of := range []error{
		ErrNotFound, ErrNotMember, ErrNotAllowed, ErrExists, ErrInvalid, ErrDissolved, ErrReadOnly, ErrFull, ErrExpired, ErrConflict,
		identity.ErrMalformed, identity.ErrBadSignature, identity.ErrExpired, identity.ErrFromFuture,
	} {
		if errors.Is(err, of) {
			return true
		}
	}
	return false
}

// Listens tells whether a stranger may begin with an entry of kinds 21 to 24: CODE_TAKEN, or why not. Whether strangers may
// invite is a question of who may write at all: then it is CODE_UNSPECIFIED.
func (g *Groups) Listens(tx *storage.Tx, from identity.AccountID, kind feed.Kind, content []byte) (pb.Code, error) {
	switch kind {
	case feed.KindGroupInvitation:
		return pb.Code_CODE_UNSPECIFIED, nil
	case feed.KindGroupAnswer:
		var m pb.GroupAnswer
		if proto.Unmarshal(content, &m) != nil || len(m.Group) != 32 {
			return pb.Code_CODE_DENIED, nil
		}
		_, ok, err := getRow[invitationRow](tx, inviteKey(outgoing, ID(m.Group), from))
		return welcome(ok), err
	case feed.KindGroupApplication:
		var m pb.GroupApplication
		if proto.Unmarshal(content, &m) != nil || len(m.Group) != 32 {
			return pb.Code_CODE_DENIED, nil
		}
		return g.listensToApplication(tx, from, &m)
	case feed.KindGroupVerdict:
		var m pb.GroupVerdict
		if proto.Unmarshal(content, &m) != nil || len(m.Group) != 32 {
			return pb.Code_CODE_DENIED, nil
		}
		return g.listensToVerdict(tx, from, &m)
	}
	return pb.Code_CODE_DENIED, nil
}

// listensToVerdict: whom we asked may answer, and other admins say what became of somebody's application.
func (g *Groups) listensToVerdict(tx *storage.Tx, from identity.AccountID, m *pb.GroupVerdict) (pb.Code, error) {
	conv := ID(m.Group)
	row, ok, err := getRow[groupRow](tx, groupKey(conv))
	if err != nil || !ok || row.State != StateMember {
		return welcome(row.asked(from)), err
	}
	_, s, err := g.open(tx, conv, false)
	if err != nil {
		return 0, err
	}
	// Whoever is in may have become an admin, and so may we, by an act that is under way: what they say is kept until it comes.
	return welcome(s.view.Role(from) != roster.None && len(m.Account) == 32 && m.ApplicationMs > 0), nil
}

// Fellow tells whether an account and this one are both admins of some group: then they tell each other of every application to it.
func (g *Groups) Fellow(tx *storage.Tx, account identity.AccountID) (bool, error) {
	shared, err := g.Shared(tx, account)
	if err != nil {
		return false, err
	}
	for _, conv := range shared {
		state, _, err := g.state(tx, conv)
		if err != nil {
			return false, err
		}
		if state != StateMember {
			continue
		}
		_, s, err := g.open(tx, conv, false)
		if err != nil {
			return false, err
		}
		if s.view.Role(account) >= roster.Admin && s.view.Role(g.self.Account) >= roster.Admin {
			return true, nil
		}
	}
	return false, nil
}

// Later has the heads of a conversation told anew within a quarter of an hour, so that what was refused as too much is sent again.
func (g *Groups) Later(conv feed.ConversationID) { g.flooded(conv) }

func welcome(ok bool) pb.Code {
	if ok {
		return pb.Code_CODE_TAKEN
	}
	return pb.Code_CODE_DENIED
}

func (g *Groups) listensToApplication(tx *storage.Tx, from identity.AccountID, m *pb.GroupApplication) (pb.Code, error) {
	conv := ID(m.Group)
	row, known, err := getRow[groupRow](tx, groupKey(conv))
	if err != nil || !known || row.State != StateMember {
		return pb.Code_CODE_DENIED, err
	}
	_, s, err := g.open(tx, conv, false)
	if err != nil {
		return 0, err
	}
	if s.view.Role(from) >= roster.Admin {
		return pb.Code_CODE_TAKEN, nil // hands one on
	}
	if len(m.Consent) == 0 {
		ok, err := tx.Has(applyKey(conv, from))
		return welcome(ok), err
	}
	live, over, err := g.liveToken(tx, conv, m.Token, from)
	if err != nil {
		return 0, err
	}
	if over != "" && s.view.Settings[roster.SettingJoin] == "invite" && g.mayLetIn(s, true) {
		return welcome(g.mayTellOver(conv)), nil // to be told so
	}
	if s.view.Settings[roster.SettingJoin] == "invite" && !live || !g.mayLetIn(s, true) && s.view.Role(g.self.Account) < roster.Admin {
		return pb.Code_CODE_DENIED, nil
	}
	n, err := g.countApplications(tx, conv)
	if err == nil && n >= g.cfg.Limits.Applications && !live || n >= 2*g.cfg.Limits.Applications {
		return pb.Code_CODE_FULL, nil
	}
	return pb.Code_CODE_TAKEN, err
}
