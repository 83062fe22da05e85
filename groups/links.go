package groups

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"hima/groups/roster"
	"hima/identity"
	"hima/internal/wire/pb"
	"hima/storage"
)

func linkKey(conv ID, token []byte) []byte { return key(keyLink, conv[:], token) }

// NewLink makes a link: a right to ask this account to be let in, never a key. Zero: it does not expire, or holds for any
// number of uses.
func (g *Groups) NewLink(ctx context.Context, conv ID, expires time.Duration, uses int) (Link, error) {
	token := identity.NewInviteToken()
	var out Link
	err := g.do(ctx, "making a link", func(tx *storage.Tx) error {
		s, err := g.standing(tx, conv)
		switch {
		case err != nil:
			return err
		case expires < 0 || uses < 0:
			return ErrInvalid
		case !g.mayLetIn(s, true):
			return ErrNotAllowed
		}
		live, now := 0, g.now()
		err = eachRow(tx, key(keyLink, conv[:]), func(_ []byte, row linkRow) (bool, error) {
			if row.live(now) {
				live++
			}
			return true, nil
		})
		if err != nil {
			return err
		}
		if live >= g.cfg.Limits.Links {
			return ErrFull
		}
		row := linkRow{Created: now.UnixMilli(), Uses: uses}
		if expires > 0 {
			row.Expires = now.Add(expires).UnixMilli()
		}
		row.Text = g.linkText(conv, s, token, row)
		out = row.link(token)
		return errors.Join(putRow(tx, linkKey(conv, token[:]), row), g.noteLink(tx, conv, token, row))
	})
	return out, err
}

// linkText is a link as it is given away. It names this device, whichever of the account's made it: who comes asks the account.
func (g *Groups) linkText(conv ID, s *snapshot, token identity.InviteToken, row linkRow) string {
	l := identity.GroupLink{
		Group: identity.GroupID(conv), Name: s.view.Settings[roster.SettingName], Token: token, Asks: g.asks(s)[0],
		Expires: atMS(row.Expires),
	}
	if g.parts.Networks != nil {
		l.Networks = g.parts.Networks()
	}
	return l.String()
}

// noteLink tells the account's other devices of a link.
func (g *Groups) noteLink(tx *storage.Tx, conv ID, token identity.InviteToken, row linkRow) error {
	if g.parts.Note == nil {
		return nil
	}
	return g.parts.Note(tx, row.state(conv, token))
}

func (r linkRow) state(conv ID, token identity.InviteToken) *pb.InviteState {
	return &pb.InviteState{
		Token: token[:], Group: conv[:], Revoked: r.Revoked, CreatedMs: r.Created, ExpiresMs: r.Expires, Uses: uint32(r.Uses),
	}
}

// LinkSaid takes what a device of this account says of a link in the self conversation (kind 35), inside the transaction that
// stores it. Whatever order such entries come in, all devices end with the same: what is revoked stays so, and of two that say
// different things of one link the narrower counts. ErrInvalid: it is not about a link of a group.
func (g *Groups) LinkSaid(tx *storage.Tx, s *pb.InviteState) error {
	if len(s.GetToken()) != len(identity.InviteToken{}) || len(s.GetGroup()) != len(ID{}) || s.GetCreatedMs() < 0 || s.GetExpiresMs() < 0 ||
		s.GetUses() > math.MaxInt32 {
		return fmt.Errorf("taking what is said of a link: %w", ErrInvalid)
	}
	k := linkKey(ID(s.GetGroup()), s.GetToken())
	row, ok, err := getRow[linkRow](tx, k)
	if err != nil {
		return err
	}
	row.Created = least(row.Created, s.GetCreatedMs())
	row.Expires, row.Uses = least(row.Expires, s.GetExpiresMs()), int(least(int64(row.Uses), int64(s.GetUses())))
	if s.GetRevoked() && !row.Revoked && ok {
		if err := g.forgetUses(tx, ID(s.GetGroup()), s.GetToken()); err != nil {
			return err
		}
	}
	row.Revoked = row.Revoked || s.GetRevoked()
	return putRow(tx, k, row)
}

// LinkKnown tells whether anything is known of a link.
func (g *Groups) LinkKnown(tx *storage.Tx, conv ID, token identity.InviteToken) (bool, error) {
	return tx.Has(linkKey(conv, token[:]))
}

// least is the lower of two of which zero is none.
func least(a, b int64) int64 {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// LiveLinks are the links that a new device of the account has to know of, newest first and at most so many.
func (g *Groups) LiveLinks(tx *storage.Tx, most int) ([]*pb.InviteState, error) {
	var out []*pb.InviteState
	now := g.now()
	err := eachRow(tx, []byte(keyLink), func(rest []byte, row linkRow) (bool, error) {
		if len(rest) != len(ID{})+len(identity.InviteToken{}) {
			return false, fmt.Errorf("listing links: %w", errRow)
		}
		if row.live(now) {
			out = append(out, row.state(ID(rest[:32]), identity.InviteToken(rest[32:])))
		}
		return true, nil
	})
	slices.SortStableFunc(out, func(a, b *pb.InviteState) int { return cmp.Compare(b.GetCreatedMs(), a.GetCreatedMs()) })
	return out[:min(len(out), most)], err
}

func (r linkRow) link(token identity.InviteToken) Link {
	return Link{Token: token, Text: r.Text, Created: atMS(r.Created), Expires: atMS(r.Expires), Uses: r.Uses, Used: r.Used, Revoked: r.Revoked}
}

// live tells whether a link is still a right to ask.
func (r linkRow) live(now time.Time) bool {
	return !r.Revoked && (r.Expires == 0 || now.UnixMilli() < r.Expires) && (r.Uses == 0 || r.Used < r.Uses)
}

// Links lists our links to a group, whichever device of ours made them.
func (g *Groups) Links(tx *storage.Tx, conv ID) ([]Link, error) {
	_, s, err := g.open(tx, conv, false)
	if err != nil {
		return nil, err
	}
	var out []Link
	err = eachRow(tx, key(keyLink, conv[:]), func(rest []byte, row linkRow) (bool, error) {
		if len(rest) != 16 {
			return false, fmt.Errorf("listing links: %w", errRow)
		}
		l := row.link(identity.InviteToken(rest))
		if l.Text == "" {
			l.Text = g.linkText(conv, s, l.Token, row)
		}
		out = append(out, l)
		return true, nil
	})
	return out, err
}

// RevokeLink ends a link, on all devices of ours.
func (g *Groups) RevokeLink(ctx context.Context, conv ID, token identity.InviteToken) (Link, error) {
	var out Link
	err := g.do(ctx, "revoking a link", func(tx *storage.Tx) error {
		row, ok, err := getRow[linkRow](tx, linkKey(conv, token[:]))
		if err != nil {
			return err
		}
		if !ok {
			return ErrNotFound
		}
		if out = row.link(token); row.Revoked {
			return nil
		}
		row.Revoked, out.Revoked = true, true
		return errors.Join(g.forgetUses(tx, conv, token[:]), putRow(tx, linkKey(conv, token[:]), row), g.noteLink(tx, conv, token, row))
	})
	return out, err
}

// forgetUses forgets who came by a link by which nobody comes any more. Of one that was posted somewhere that may be more than one
// transaction takes, and the rest does no harm.
func (g *Groups) forgetUses(tx *storage.Tx, conv ID, token []byte) error {
	used := storage.ScanOptions{Prefix: key(keyUsed, conv[:], token), KeysOnly: true, Limit: maxForgotten}
	return tx.Scan(used, func(k, _ []byte) (bool, error) { return true, tx.Delete(k) })
}

// maxForgotten is how many uses of a link are forgotten when it is revoked.
const maxForgotten = 2048

// The reasons that an applicant is given who came by a link that is over. Faces know them, to say them in their user's language.
const (
	ReasonRevoked = "the link was revoked"
	ReasonExpired = "the link has expired"
	ReasonUsedUp  = "the link was used as often as it may be"
)

// over says why a link is no right to ask any more; empty: it is.
func (r linkRow) over(now time.Time) string {
	switch {
	case r.live(now):
		return ""
	case r.Revoked:
		return ReasonRevoked
	case r.Expires != 0 && now.UnixMilli() >= r.Expires:
		return ReasonExpired
	}
	return ReasonUsedUp
}

// liveToken tells whether a token is that of a live link of ours, or why it is that of one which is over; neither: we know no such
// link. Whose use was counted may come again by a link that is used up.
func (g *Groups) liveToken(tx *storage.Tx, conv ID, token []byte, from identity.AccountID) (live bool, over string, err error) {
	if len(token) == 0 {
		return false, "", nil
	}
	row, ok, err := getRow[linkRow](tx, linkKey(conv, token))
	if err != nil || !ok {
		return false, "", err
	}
	if over = row.over(g.now()); over != ReasonUsedUp {
		return over == "", over, nil
	}
	if counted, err := tx.Has(usedKey(conv, token, from)); err != nil || counted {
		return counted, "", err
	}
	if row.Text == "" {
		// Devices count in the order in which they hear. Which of two came too late says the one that made the link.
		return false, "", nil
	}
	return false, over, nil
}

// mayTellOver bounds how many strangers a group's link that is over lets in for an answer: each costs an entry or two for ever.
func (g *Groups) mayTellOver(conv ID) bool {
	const burst, perHour = 20, 20
	ok, _ := g.rates.take(rateKey{conv: conv, account: g.self.Account, over: true}, 1, perHour/3600.0, burst, g.now())
	return ok
}

func usedKey(conv ID, token []byte, account identity.AccountID) []byte {
	return key(keyUsed, conv[:], token, account[:])
}

// useLink counts a use of the link that an application came by: one of an account, however often and by whatever other links it
// comes in between. Counts are about: each device of ours has its own. What is kept for that is as much as the link was used,
// which is less than the applications themselves leave.
func (g *Groups) useLink(tx *storage.Tx, conv ID, token []byte, account identity.AccountID) error {
	row, ok, err := getRow[linkRow](tx, linkKey(conv, token))
	if err != nil || !ok {
		return err
	}
	k := usedKey(conv, token, account)
	if counted, err := tx.Has(k); err != nil || counted {
		return err
	}
	row.Used++
	return errors.Join(tx.Set(k, nil), putRow(tx, linkKey(conv, token), row))
}
