package messenger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"hima/groups"
	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/internal/wire/pb"
	"hima/storage"
)

// inviteRow is one token of ours.
type inviteRow struct {
	Created int64 `json:"c"`
	Revoked bool  `json:"r,omitempty"`
	Used    int   `json:"u,omitempty"`
	Stamp   stamp `json:"s"`
}

// invites is the table of invite tokens.
type invites struct {
	env   *env
	alive atomic.Int64 // tokens not revoked, as of the last commit; for Listening
}

func inviteKey(t []byte) []byte { return append([]byte(keyInvite), t...) }

func (v *invites) get(tx *storage.Tx, token []byte) (row inviteRow, ok bool, err error) {
	b, ok, err := getRow(tx, inviteKey(token))
	if err != nil || !ok {
		return inviteRow{}, false, err
	}
	if err := json.Unmarshal(b, &row); err != nil {
		return inviteRow{}, false, fmt.Errorf("reading invite: %w: %w", errRow, err)
	}
	return row, true, nil
}

func (v *invites) put(tx *storage.Tx, token []byte, row inviteRow) error {
	b, err := json.Marshal(row)
	if err != nil {
		return fmt.Errorf("writing invite: %w", err)
	}
	return tx.Set(inviteKey(token), b)
}

// each calls f for every token, the revoked ones too.
func (v *invites) each(tx *storage.Tx, f func(identity.InviteToken, inviteRow) error) error {
	return tx.Scan(storage.ScanOptions{Prefix: []byte(keyInvite)}, func(key, val []byte) (bool, error) {
		var t identity.InviteToken
		var row inviteRow
		if copy(t[:], key[len(keyInvite):]) != len(t) || json.Unmarshal(val, &row) != nil {
			return false, errRow
		}
		return true, f(t, row)
	})
}

// load counts the live tokens. Their number is bounded by Limits.Invites, and revoked ones are few.
func (v *invites) load(tx *storage.Tx) error {
	n := int64(0)
	err := v.each(tx, func(_ identity.InviteToken, row inviteRow) error {
		if !row.Revoked {
			n++
		}
		return nil
	})
	v.alive.Store(n)
	return err
}

func (v *invites) live() int64 { return v.alive.Load() }

// valid tells whether a token is ours and not revoked.
func (v *invites) valid(tx *storage.Tx, token []byte) (bool, error) {
	if len(token) != len(identity.InviteToken{}) {
		return false, nil
	}
	row, ok, err := v.get(tx, token)
	return ok && !row.Revoked, err
}

// use counts a request that came with a token.
func (v *invites) use(tx *storage.Tx, token []byte) error {
	row, ok, err := v.get(tx, token)
	if err != nil || !ok {
		return err
	}
	row.Used++
	return v.put(tx, token, row)
}

// fold applies an InviteState entry. Revoking is for ever, whatever order the entries come in.
func (v *invites) fold(tx *storage.Tx, e *feed.Entry, s *pb.InviteState) error {
	if len(s.GetGroup()) > 0 {
		err := v.env.groups.LinkSaid(tx, s)
		if errors.Is(err, groups.ErrInvalid) {
			return errIgnored
		}
		return err
	}
	if len(s.GetToken()) != len(identity.InviteToken{}) {
		return errIgnored
	}
	row, ok, err := v.get(tx, s.GetToken())
	if err != nil {
		return err
	}
	was := ok && !row.Revoked
	row.Revoked = row.Revoked || s.GetRevoked()
	if !ok || e.TimeMS < row.Created {
		row.Created = e.TimeMS
	}
	row.Stamp = stampOf(e)
	if is := !row.Revoked; is != was {
		delta := int64(1)
		if was {
			delta = -1
		}
		tx.OnCommit(func() {
			v.alive.Add(delta)
			v.env.policyChanged()
		})
	}
	return v.put(tx, s.GetToken(), row)
}

// CreateInvite makes a link that lets its holder ask. It accepts nothing by itself.
func (m *Messenger) CreateInvite(ctx context.Context) (Invite, error) {
	token := identity.NewInviteToken()
	err := m.env.update(ctx, func(tx *storage.Tx) error {
		live := 0
		err := m.invites.each(tx, func(_ identity.InviteToken, row inviteRow) error {
			if !row.Revoked {
				live++
			}
			return nil
		})
		if err != nil {
			return err
		}
		if live >= m.config.Limits.Invites {
			return refuse(ErrFull, "there are too many live invites", "revoke one with `hima invite revoke`")
		}
		return m.writeInvite(tx, token, false)
	})
	if err != nil {
		return Invite{}, err
	}
	return m.inviteView(token, inviteRow{Created: m.env.now().UnixMilli()}), nil
}

func (m *Messenger) writeInvite(tx *storage.Tx, token identity.InviteToken, revoked bool) error {
	return m.NoteLink(tx, &pb.InviteState{Token: token[:], Revoked: revoked})
}

// NoteLink writes what became of a link of ours into the self conversation. It is groups.Parts.Note.
func (m *Messenger) NoteLink(tx *storage.Tx, s *pb.InviteState) error {
	content, err := proto.Marshal(s)
	if err != nil {
		return fmt.Errorf("writing invite: %w", err)
	}
	_, err = m.write(tx, replica.Draft{
		Conversation: m.env.self, Number: feed.Control, Kind: feed.KindInviteState, Content: content,
	})
	return err
}

// Invites lists all tokens, newest first.
func (m *Messenger) Invites(ctx context.Context) ([]Invite, error) {
	var out []Invite
	err := m.env.db.View(func(tx *storage.Tx) error {
		return m.invites.each(tx, func(t identity.InviteToken, row inviteRow) error {
			out = append(out, m.inviteView(t, row))
			return nil
		})
	})
	slices.SortFunc(out, func(a, b Invite) int { return b.Created.Compare(a.Created) })
	return out, err
}

// RevokeInvite ends a token, given in hexadecimal or by the whole link.
func (m *Messenger) RevokeInvite(ctx context.Context, text string) error {
	token, err := identity.ParseInviteToken(text)
	if err != nil {
		in, linkErr := identity.ParseInvite(text)
		if linkErr != nil || in.Token.IsZero() {
			return refuse(ErrInvalid, "this is neither a token nor an invite link", "`hima invite list` shows the tokens")
		}
		token = in.Token
	}
	return m.env.update(ctx, func(tx *storage.Tx) error {
		row, ok, err := m.invites.get(tx, token[:])
		switch {
		case err != nil:
			return err
		case !ok:
			return refuse(ErrNotFound, "there is no such invite", "`hima invite list` shows the tokens")
		case row.Revoked:
			return nil
		}
		return m.writeInvite(tx, token, true)
	})
}

func (m *Messenger) inviteView(t identity.InviteToken, row inviteRow) Invite {
	link := identity.Invite{
		Account: m.env.account, Token: t, Username: m.settings.username(),
		Devices:  []identity.InviteDevice{{Device: m.env.device, Addrs: m.config.Addrs()}},
		Networks: m.inviteNetworks(),
	}
	return Invite{
		Link: link.String(), Token: t, Created: time.UnixMilli(row.Created), Revoked: row.Revoked, Used: row.Used,
	}
}
