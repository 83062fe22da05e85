package groups

import (
	"context"
	"errors"
	"fmt"
	"time"

	"hima/groups/roster"
	"hima/identity"
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
		l := identity.GroupLink{Group: identity.GroupID(conv), Name: s.view.Settings[roster.SettingName], Token: token, Asks: g.asks(s)[0]}
		row := linkRow{Created: now.UnixMilli(), Uses: uses}
		if expires > 0 {
			l.Expires = now.Add(expires)
			row.Expires = l.Expires.UnixMilli()
		}
		if g.parts.Networks != nil {
			l.Networks = g.parts.Networks()
		}
		row.Text = l.String()
		out = row.link(token)
		return putRow(tx, linkKey(conv, token[:]), row)
	})
	return out, err
}

func (r linkRow) link(token identity.InviteToken) Link {
	return Link{Token: token, Text: r.Text, Created: atMS(r.Created), Expires: atMS(r.Expires), Uses: r.Uses, Used: r.Used, Revoked: r.Revoked}
}

// live tells whether a link is still a right to ask.
func (r linkRow) live(now time.Time) bool {
	return r.Text != "" && !r.Revoked && (r.Expires == 0 || now.UnixMilli() < r.Expires) && (r.Uses == 0 || r.Used < r.Uses)
}

// Links lists our links to a group.
func (g *Groups) Links(tx *storage.Tx, conv ID) ([]Link, error) {
	var out []Link
	err := eachRow(tx, key(keyLink, conv[:]), func(rest []byte, row linkRow) (bool, error) {
		if len(rest) != 16 {
			return false, fmt.Errorf("listing links: %w", errRow)
		}
		out = append(out, row.link(identity.InviteToken(rest)))
		return true, nil
	})
	return out, err
}

// RevokeLink ends a link.
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
		row.Revoked = true
		// Nobody comes by it any more, so who did need not be known. Of a link that was posted somewhere that may be more than one
		// transaction takes, and the rest does no harm.
		used := storage.ScanOptions{Prefix: key(keyUsed, conv[:], token[:]), KeysOnly: true, Limit: maxForgotten}
		err = tx.Scan(used, func(k, _ []byte) (bool, error) {
			return true, tx.Delete(k)
		})
		if err != nil {
			return err
		}
		out = row.link(token)
		return putRow(tx, linkKey(conv, token[:]), row)
	})
	return out, err
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
