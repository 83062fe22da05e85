package groups

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	"hima/groups/roster"
	"hima/identity"
	"hima/internal/feed"
	"hima/storage"
)

// How somebody comes in. Two things can be under way between a group and somebody outside: an invitation, which is said by
// a member and answered by the candidate, and an application, which is said by the candidate and decided by members. Each is
// in a state, and advance is the whole table of who may take it from which state where; a step that is not in it is refused.
// Both end in the same place: a consent that the candidate signed goes into an act that lets them in (see admit), and that
// act is judged by the roster like any other.

// thing is what is under way.
type thing uint8

const (
	anInvitation thing = iota + 1
	anApplication
)

// actor is who takes a step.
type actor uint8

const (
	inviter   actor = iota + 1 // the member who asks
	candidate                  // who is asked, or asks
	decider                    // a member who may let in
	clock                      // time passed
	act                        // an admission counts
)

// deed is a step.
type deed uint8

const (
	ask      deed = iota + 1 // invite, apply
	takeBack                 // withdraw
	agree                    // accept, approve
	refuse                   // decline, reject
	lapse                    // expire
	enter                    // is in, by an act
)

// advance gives the state after a step; false: nobody like that may take it from there.
func advance(what thing, from string, do deed, by actor) (to string, ok bool) {
	if do == ask {
		// Asking begins anew, from whatever became of it before.
		if what == anInvitation && by == inviter || what == anApplication && by == candidate {
			return Waiting, true
		}
		return "", false
	}
	if what == anApplication && do == enter && by == act && slices.Contains([]string{Waiting, Rejected, Withdrawn, Expired}, from) {
		return Approved, true // the group's word, whatever was said before
	}
	if from != Waiting {
		return "", false
	}
	type row struct {
		what thing
		do   deed
		by   actor
	}
	switch (row{what, do, by}) {
	case row{anInvitation, takeBack, inviter}, row{anApplication, takeBack, candidate}:
		return Withdrawn, true
	case row{anInvitation, agree, candidate}:
		return Accepted, true
	case row{anInvitation, refuse, candidate}:
		return Declined, true
	case row{anApplication, agree, decider}:
		return Approved, true
	case row{anApplication, refuse, decider}:
		return Rejected, true
	case row{anInvitation, lapse, clock}, row{anApplication, lapse, clock}:
		return Expired, true
	}
	return "", false
}

// outside tells whether a state is one in which invitations and applications say what the group is to us. While we are in,
// only acts do.
func outside(s State) bool { return s != StateMember && s != StateDissolved }

// idle is the state of a group with which nothing is under way.
func (r *groupRow) idle() State {
	switch {
	case r.Went != "":
		return r.Went
	case r.Joined != 0:
		return StateLeft
	}
	return StateNone
}

// mayLetIn tells whether we may let somebody in with a consent of that kind.
func (g *Groups) mayLetIn(s *snapshot, applied bool) bool {
	switch role := s.view.Role(g.self.Account); {
	case role >= roster.Admin:
		return true
	case role == roster.None:
		return false
	case applied:
		return s.view.Settings[roster.SettingJoin] == "open"
	}
	return s.view.Settings[roster.SettingInvite] == "members"
}

// admit lets somebody in who consented. ErrExists: they are in. ErrExpired: the consent is too old.
func (g *Groups) admit(tx *storage.Tx, conv ID, c identity.Consent) error {
	s, err := g.standing(tx, conv)
	switch {
	case err != nil:
		return err
	case s.view.Role(c.Account) != roster.None:
		return ErrExists
	case !g.mayLetIn(s, c.Applied):
		return ErrNotAllowed
	case c.Validate(g.now()) != nil:
		return ErrExpired
	}
	if r, ok := g.cfg.Records(c.Account); ok && r.Revokes(c.Certificate.Device) {
		return fmt.Errorf("consent of a revoked device: %w", ErrInvalid)
	}
	a := roster.Act{Kind: roster.Admit, Account: c.Account, Applied: c.Applied, Consent: sha256.Sum256(c.Raw())}
	if a.From, err = g.historyFor(tx, conv, s); err != nil {
		return err
	}
	return g.act(tx, conv, a, c.Raw())
}

// consents makes our consent of a time to be in a group.
func (g *Groups) consents(conv ID, applied bool, message string, at time.Time) (identity.Consent, error) {
	c, err := identity.NewConsent(g.cfg.Key, identity.Consent{
		Group: identity.GroupID(conv), Account: g.self.Account, Certificate: g.cfg.Certificate, Applied: applied, Message: message,
		Time: at, Expires: at.Add(g.cfg.Limits.Invitation),
	})
	if err != nil {
		return identity.Consent{}, fmt.Errorf("agreeing to be in a group: %w: %w", ErrInvalid, err)
	}
	return c, nil
}

// consentOf reads the consent of an account to be in a group, as that account said it.
func (g *Groups) consentOf(raw []byte, conv ID, account identity.AccountID, applied bool) (identity.Consent, error) {
	c, err := identity.ParseConsent(raw)
	if err != nil {
		return identity.Consent{}, err
	}
	if c.Group != identity.GroupID(conv) || c.Account != account || c.Applied != applied {
		return identity.Consent{}, fmt.Errorf("consent to something else: %w", ErrInvalid)
	}
	return c, c.Validate(g.now())
}

// say writes an entry of the direct conversation with an account.
func (g *Groups) say(tx *storage.Tx, to identity.AccountID, kind feed.Kind, content []byte) error {
	if g.parts.Say == nil {
		return fmt.Errorf("saying it to %s: %w", to.Short(), ErrNotFound)
	}
	return g.parts.Say(tx, to, kind, content)
}

// sayIfHeard says something to one of those whom it concerns, or to nobody where their conversation takes nothing any more: what
// happens to a group must not depend on that, for it takes one entry of theirs to make it so (R10).
func (g *Groups) sayIfHeard(tx *storage.Tx, to identity.AccountID, kind feed.Kind, content []byte) (said bool, err error) {
	err = g.say(tx, to, kind, content)
	if err != nil && unfit(err) {
		g.log.Debug("somebody cannot be told of a group", "account", to.Short(), "kind", uint32(kind), "error", err)
		return false, nil
	}
	return err == nil, err
}

// shareWith makes a group one that is shared with those whom we asked to let us in, so that they can tell us its acts.
func (g *Groups) shareWith(tx *storage.Tx, conv ID, asks []contactRow) error {
	for _, c := range asks {
		if c.Account == g.self.Account {
			continue
		}
		if err := tx.Set(memberKey(c.Account, conv), nil); err != nil {
			return err
		}
	}
	tx.OnCommit(func() { g.parts.Feeds.Reannounce(conv) })
	return nil
}
