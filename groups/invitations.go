package groups

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"hima/groups/roster"
	"hima/identity"
	"hima/internal/feed"
	"hima/internal/wire/pb"
	"hima/storage"
)

// Invite asks somebody into a group. The state is waiting, or approved if they had applied and are in now.
func (g *Groups) Invite(ctx context.Context, conv ID, account identity.AccountID) (state string, err error) {
	err = g.do(ctx, "inviting", func(tx *storage.Tx) error {
		s, err := g.standing(tx, conv)
		switch {
		case err != nil:
			return err
		case account.IsZero() || account == g.self.Account:
			return ErrInvalid
		case s.view.Role(account) != roster.None:
			return ErrExists
		case !g.mayLetIn(s, false):
			return ErrNotAllowed
		}
		if app, ok, err := getRow[applicationRow](tx, applyKey(conv, account)); err != nil {
			return err
		} else if ok && app.State == Waiting && g.mayLetIn(s, true) {
			state = Approved
			_, err := g.decide(tx, conv, account, true, "")
			return err
		}
		state = Waiting
		return g.invite(tx, conv, s, account)
	})
	return state, err
}

func (g *Groups) invite(tx *storage.Tx, conv ID, s *snapshot, account identity.AccountID) error {
	now := g.now()
	row := invitationRow{
		Name: s.view.Settings[roster.SettingName], Description: s.view.Settings[roster.SettingDescription], Size: len(s.view.People),
		Time: now.UnixMilli(), Expires: now.Add(g.cfg.Limits.Invitation).UnixMilli(),
	}
	row.State, _ = advance(anInvitation, "", ask, inviter)
	m := &pb.GroupInvitation{
		Group: conv[:], Name: row.Name, Description: clip(row.Description, MaxMessage), Size: uint32(row.Size), ExpiresMs: row.Expires,
		Members: identity.GroupContactsPB(g.asks(s)),
	}
	if g.parts.Networks != nil {
		m.Networks = identity.NetworkLinksPB(g.parts.Networks())
	}
	content, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("inviting: %w", err)
	}
	if err := putRow(tx, inviteKey(outgoing, conv, account), row); err != nil {
		return err
	}
	return g.say(tx, account, feed.KindGroupInvitation, content)
}

// clip shortens a text to whole runes.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xc0 == 0x80 {
		n--
	}
	return s[:n]
}

// asks names members who can be asked for the group's entries: this account first, then who may let others in.
func (g *Groups) asks(s *snapshot) []Contact {
	own := Contact{Account: g.self.Account, Devices: []identity.InviteDevice{{Device: g.self.Device}}}
	if g.parts.Addrs != nil {
		own.Devices[0].Addrs = g.parts.Addrs()
	}
	out := []Contact{own}
	for _, p := range s.view.People {
		if p.Account == g.self.Account || len(out) == identity.MaxGroupContacts {
			continue
		}
		c := Contact{Account: p.Account}
		if g.parts.Devices != nil {
			for _, d := range g.parts.Devices(p.Account) {
				if len(c.Devices) < identity.MaxInviteDevices {
					c.Devices = append(c.Devices, identity.InviteDevice{Device: d})
				}
			}
		}
		out = append(out, c)
	}
	return out
}

// Asks names members of a group who can be asked for it.
func (g *Groups) Asks(tx *storage.Tx, conv ID) ([]Contact, error) {
	_, s, err := g.open(tx, conv, false)
	if err != nil {
		return nil, err
	}
	return g.asks(s), nil
}

// Withdraw takes an invitation back.
func (g *Groups) Withdraw(ctx context.Context, conv ID, account identity.AccountID) error {
	return g.do(ctx, "withdrawing an invitation", func(tx *storage.Tx) error {
		k := inviteKey(outgoing, conv, account)
		row, ok, err := getRow[invitationRow](tx, k)
		if err != nil {
			return err
		}
		to, may := advance(anInvitation, row.State, takeBack, inviter)
		if !ok || !may {
			return ErrNotFound
		}
		row.State = to
		content, err := proto.Marshal(&pb.GroupInvitation{Group: conv[:], Withdrawn: true})
		if err != nil {
			return err
		}
		if err := putRow(tx, k, row); err != nil {
			return err
		}
		return g.say(tx, account, feed.KindGroupInvitation, content)
	})
}

// Invitations lists all invitations, into groups of others and by us.
func (g *Groups) Invitations(tx *storage.Tx) ([]Invitation, error) {
	var out []Invitation
	err := eachRow(tx, []byte(keyInvite), func(rest []byte, row invitationRow) (bool, error) {
		if len(rest) != 1+32+32 {
			return false, fmt.Errorf("listing invitations: %w", errRow)
		}
		in := Invitation{
			Group: ID(rest[1:33]), Name: row.Name, Description: row.Description, Size: row.Size, From: g.self.Account,
			To: identity.AccountID(rest[33:]), Outgoing: rest[0] == outgoing, Time: atMS(row.Time), Expires: atMS(row.Expires), State: row.State,
		}
		if !in.Outgoing {
			in.From, in.To = in.To, in.From
		}
		if in.State == Waiting && !g.now().Before(in.Expires) {
			in.State = Expired
		}
		out = append(out, in)
		return true, nil
	})
	return out, err
}

// Answer accepts or declines what we were invited to, towards everybody who asked.
func (g *Groups) Answer(ctx context.Context, conv ID, accept bool) (Info, error) {
	var info Info
	err := g.do(ctx, "answering an invitation", func(tx *storage.Tx) error {
		row, known, err := getRow[groupRow](tx, groupKey(conv))
		if err != nil {
			return err
		}
		if known && !outside(row.State) {
			return ErrExists
		}
		if err := g.answer(tx, conv, &row, accept); err != nil {
			return err
		}
		if err := putRow(tx, groupKey(conv), row); err != nil {
			return err
		}
		info, err = g.Info(tx, conv)
		return err
	})
	return info, err
}

func (g *Groups) answer(tx *storage.Tx, conv ID, row *groupRow, accept bool) error {
	do, content := refuse, []byte(nil)
	m := &pb.GroupAnswer{Group: conv[:]}
	if accept {
		c, err := g.consents(conv, false, "", g.now())
		if err != nil {
			return err
		}
		do, m.Consent = agree, c.Raw()
	}
	content, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	answered, late, told := false, false, false
	var deaf error
	prefix := key(keyInvite, []byte{incoming}, conv[:])
	err = eachRow(tx, prefix, func(rest []byte, in invitationRow) (bool, error) {
		if accept && in.State == Waiting && g.now().UnixMilli() >= in.Expires {
			late = true
			return true, nil
		}
		to, may := advance(anInvitation, in.State, do, candidate)
		if !may {
			return true, nil
		}
		answered, in.State = true, to
		from := identity.AccountID(rest)
		if err := putRow(tx, inviteKey(incoming, conv, from), in); err != nil {
			return false, err
		}
		if accept {
			if err := g.follow(tx, conv, row, from, in); err != nil {
				return false, err
			}
		}
		if err := g.say(tx, from, feed.KindGroupAnswer, content); err != nil {
			if !unfit(err) {
				return false, err
			}
			deaf = err
			return true, nil
		}
		told = true
		return true, nil
	})
	switch {
	case err != nil:
		return err
	case accept && deaf != nil && !told:
		return deaf // nobody hears that we agree
	case !answered && late:
		return ErrExpired
	case !answered:
		return ErrNotFound
	case accept:
		row.State, row.Ours = StateJoining, true
	case row.State == StateInvited:
		row.State = row.idle()
	}
	return nil
}

// follow notes whom an accepted invitation names, so that they can be found and asked.
func (g *Groups) follow(tx *storage.Tx, conv ID, row *groupRow, from identity.AccountID, in invitationRow) error {
	row.Asks = mergeAsks(append([]contactRow{{Account: from}}, in.Asks...), row.Asks)
	if in.Name != "" { // else the invitation is gone, and only its answer came
		row.Name, row.Description, row.Size = in.Name, in.Description, in.Size
	}
	hint := invitationHint{contacts: unpackContacts(in.Asks)}
	for _, text := range in.Networks {
		if link, err := identity.ParseNetworkLink(text); err == nil {
			hint.networks = append(hint.networks, link)
		}
	}
	tx.OnCommit(func() { g.hint(hint) })
	return g.shareWith(tx, conv, row.Asks)
}

// mergeAsks joins two lists of people, the first one first, each once.
func mergeAsks(a, b []contactRow) []contactRow {
	var out []contactRow
	at := map[identity.AccountID]int{}
	for _, c := range append(a, b...) {
		if i, ok := at[c.Account]; ok {
			if len(out[i].Devices) == 0 {
				out[i] = c
			}
			continue
		}
		if len(out) < 2*identity.MaxGroupContacts {
			at[c.Account] = len(out)
			out = append(out, c)
		}
	}
	return out
}

// saidInvitation takes an invitation, or one taken back.
func (g *Groups) saidInvitation(tx *storage.Tx, from, to identity.AccountID, content []byte, at time.Time) error {
	var m pb.GroupInvitation
	if err := proto.Unmarshal(content, &m); err != nil || len(m.Group) != 32 {
		return fmt.Errorf("reading an invitation: %w", ErrInvalid)
	}
	contacts, err := identity.GroupContactsFromPB(m.Members)
	if err != nil {
		return err
	}
	networks, err := identity.NetworkLinksFromPB(m.Networks)
	if err != nil {
		return err
	}
	if len(m.Name) > MaxName || len(m.Description) > MaxDescription || !m.Withdrawn && m.Name == "" {
		return fmt.Errorf("reading an invitation: %w", ErrInvalid)
	}
	now := g.now()
	row := invitationRow{
		Name: m.Name, Description: m.Description, Size: int(m.Size), Asks: packContacts(contacts), Time: at.UnixMilli(),
		Expires: min(m.ExpiresMs, now.Add(identity.ConsentLifetime).UnixMilli()),
	}
	for _, l := range networks {
		row.Networks = append(row.Networks, l.String())
	}
	conv := ID(m.Group)
	if from == g.self.Account { // another own device asked
		row.State, _ = advance(anInvitation, "", ask, inviter)
		if m.Withdrawn {
			row.State = Withdrawn
		}
		return putRow(tx, inviteKey(outgoing, conv, to), row)
	}
	if m.Withdrawn {
		return g.uninvited(tx, conv, from)
	}
	return g.invited(tx, conv, from, row)
}

func (g *Groups) invited(tx *storage.Tx, conv ID, from identity.AccountID, in invitationRow) error {
	group, known, err := getRow[groupRow](tx, groupKey(conv))
	if err != nil || known && !outside(group.State) {
		return err // we are in
	}
	if in.Expires <= g.now().UnixMilli() {
		return fmt.Errorf("an invitation: %w", ErrExpired)
	}
	before, again, err := getRow[invitationRow](tx, inviteKey(incoming, conv, from))
	if err != nil {
		return err
	}
	if !again {
		if err := g.roomForInvitation(tx, from); err != nil {
			return err
		}
	}
	in.State, _ = advance(anInvitation, before.State, ask, inviter)
	if err := putRow(tx, inviteKey(incoming, conv, from), in); err != nil {
		return err
	}
	switch group.State {
	case StateApplied, StateJoining:
	default:
		group.State = StateInvited
	}
	if !known {
		group.Began = g.now().UnixMilli()
	}
	group.Name, group.Description, group.Size = in.Name, in.Description, in.Size
	if err := putRow(tx, groupKey(conv), group); err != nil {
		return err
	}
	return g.tell(tx, News{Group: conv, Kind: NewsInvitation, Account: from, Subject: g.self.Account, Text: in.Name})
}

// roomForInvitation makes room for one more that came in. What was answered long ago goes first.
func (g *Groups) roomForInvitation(tx *storage.Tx, from identity.AccountID) error {
	prefix := key(keyInvite, []byte{incoming})
	n, same := 0, 0
	err := eachRow(tx, prefix, func(rest []byte, row invitationRow) (bool, error) {
		if row.State == Waiting && g.now().UnixMilli() < row.Expires {
			n++
			if len(rest) == 64 && identity.AccountID(rest[32:]) == from {
				same++
			}
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	if limit := g.cfg.Limits.Invitations; n >= limit || same >= max(1, limit/16) {
		return fmt.Errorf("an invitation: %w", ErrFull)
	}
	return trim(tx, prefix, 4*g.cfg.Limits.Invitations, func(row invitationRow) (bool, int64) { return row.State != Waiting, row.Time })
}

// trim deletes the oldest of those rows that are over until fewer than a number are left.
func trim[T any](tx *storage.Tx, prefix []byte, most int, over func(T) (bool, int64)) error {
	type old struct {
		k  []byte
		at int64
	}
	var ended []old
	n := 0
	err := eachRow(tx, prefix, func(rest []byte, row T) (bool, error) {
		n++
		if is, at := over(row); is {
			ended = append(ended, old{key(string(prefix), rest), at})
		}
		return true, nil
	})
	slices.SortFunc(ended, func(a, b old) int { return cmp.Compare(a.at, b.at) })
	for i := 0; err == nil && i < len(ended) && n-i >= most; i++ {
		err = tx.Delete(ended[i].k)
	}
	return err
}

func (g *Groups) uninvited(tx *storage.Tx, conv ID, from identity.AccountID) error {
	k := inviteKey(incoming, conv, from)
	row, ok, err := getRow[invitationRow](tx, k)
	if err != nil {
		return err
	}
	to, may := advance(anInvitation, row.State, takeBack, inviter)
	if !ok || !may {
		return nil
	}
	row.State = to
	if err := putRow(tx, k, row); err != nil {
		return err
	}
	if err := g.noneWaits(tx, conv); err != nil {
		return err
	}
	return g.tell(tx, News{Group: conv, Kind: NewsInvitationWithdrawn, Account: from, Subject: g.self.Account, Text: row.Name})
}

// noneWaits takes a group out of the state invited if no invitation waits any more.
func (g *Groups) noneWaits(tx *storage.Tx, conv ID) error {
	group, known, err := getRow[groupRow](tx, groupKey(conv))
	if err != nil || !known || group.State != StateInvited {
		return err
	}
	waits := false
	err = eachRow(tx, key(keyInvite, []byte{incoming}, conv[:]), func(_ []byte, row invitationRow) (bool, error) {
		waits = waits || row.State == Waiting
		return true, nil
	})
	if err != nil || waits {
		return err
	}
	group.State = group.idle()
	return putRow(tx, groupKey(conv), group)
}

// saidAnswer takes what somebody answered whom we invited, or what another own device answered.
func (g *Groups) saidAnswer(tx *storage.Tx, from, to identity.AccountID, content []byte) error {
	var m pb.GroupAnswer
	if err := proto.Unmarshal(content, &m); err != nil || len(m.Group) != 32 {
		return fmt.Errorf("reading an answer: %w", ErrInvalid)
	}
	conv := ID(m.Group)
	if from == g.self.Account {
		return g.answeredElsewhere(tx, conv, to, len(m.Consent) > 0)
	}
	k := inviteKey(outgoing, conv, from)
	row, ok, err := getRow[invitationRow](tx, k)
	if err != nil {
		return err
	}
	do, news := refuse, NewsInvitationDeclined
	if len(m.Consent) > 0 {
		do, news = agree, NewsInvitationAccepted
	}
	next, may := advance(anInvitation, row.State, do, candidate)
	if !ok || !may || g.now().UnixMilli() >= row.Expires {
		return fmt.Errorf("an answer to nothing: %w", ErrNotFound)
	}
	row.State = next
	if err := putRow(tx, k, row); err != nil {
		return err
	}
	if do == agree {
		c, err := g.consentOf(m.Consent, conv, from, false)
		if err != nil {
			return err
		}
		if err := g.admit(tx, conv, c); err != nil && !errors.Is(err, ErrExists) {
			return g.turnDown(tx, conv, from, err)
		}
	}
	return g.tell(tx, News{Group: conv, Kind: news, Account: from, Subject: from, Text: row.Name})
}

// turnDown lets somebody know whom we cannot let in any more.
func (g *Groups) turnDown(tx *storage.Tx, conv ID, account identity.AccountID, why error) error {
	for _, known := range []error{ErrNotMember, ErrNotAllowed, ErrDissolved, ErrReadOnly, ErrExpired, ErrFull, ErrInvalid} {
		if errors.Is(why, known) {
			content, err := proto.Marshal(&pb.GroupVerdict{Group: conv[:], Reason: known.Error()})
			if err != nil {
				return err
			}
			return g.say(tx, account, feed.KindGroupVerdict, content)
		}
	}
	return why
}

func (g *Groups) answeredElsewhere(tx *storage.Tx, conv ID, inviter identity.AccountID, accepted bool) error {
	k := inviteKey(incoming, conv, inviter)
	in, _, err := getRow[invitationRow](tx, k)
	if err != nil {
		return err
	}
	in.State = Declined
	if accepted {
		in.State = Accepted
	}
	if err := putRow(tx, k, in); err != nil {
		return err
	}
	if !accepted {
		return g.noneWaits(tx, conv)
	}
	row, _, err := getRow[groupRow](tx, groupKey(conv))
	if err != nil || !outside(row.State) && row.State != "" {
		return err
	}
	row.State = StateJoining
	if err := g.follow(tx, conv, &row, inviter, in); err != nil {
		return err
	}
	return putRow(tx, groupKey(conv), row)
}
