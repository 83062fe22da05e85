package messenger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"hima/groups"
	"hima/identity"
	"hima/internal/text"
	"hima/storage"
)

// What a user does with groups. Package groups decides and writes; here names are resolved, accounts get names, words of
// others are neutralised, and refusals are put into words.

// groupRefusal makes a refusal of what package groups said.
func groupRefusal(err error) error {
	if err == nil {
		return nil
	}
	if e := (*Error)(nil); errors.As(err, &e) {
		return err // in words already: the conversation with somebody takes nothing, and not the group
	}
	for _, r := range []struct {
		is, kind      error
		message, hint string
	}{
		{groups.ErrNotFound, ErrNotFound, "there is no such group, invitation, application or link", "`hima group list` shows your groups"},
		{groups.ErrNotMember, ErrNotMember, "you are not in this group", "`hima group info` shows how you stand; an admin can invite you, and `hima group apply` asks to be let in"},
		{groups.ErrNotAllowed, ErrNotAllowed, "your role in the group does not allow this", "`hima group members` shows the roles"},
		{groups.ErrExists, ErrExists, "this is so already", ""},
		{groups.ErrInvalid, ErrInvalid, "this value is not allowed", ""},
		{groups.ErrLastOwner, ErrLastOwner, "the owner cannot just leave", "`hima group transfer` hands the group over, `hima group dissolve` ends it"},
		{groups.ErrDissolved, ErrDissolved, "the group was dissolved", "its history stays"},
		{groups.ErrReadOnly, ErrReadOnly, "a newer version of hima acted in this group", "update hima to write here again"},
		{groups.ErrMuted, ErrMuted, "only admins write in this group now", ""},
		{groups.ErrFull, ErrFull, "there are too many of these already", ""},
		{groups.ErrExpired, ErrExpired, "this is over", "ask for a new one"},
		{groups.ErrConflict, ErrConflict, "something else happened in the group at the same time", "look again"},
		{groups.ErrAlone, ErrConflict, "nobody else is in the group", ""},
	} {
		if errors.Is(err, r.is) {
			return refuse(r.kind, r.message, r.hint)
		}
	}
	return err
}

// ignoreUnknown passes over a group that is not known.
func ignoreUnknown(err error) error {
	if errors.Is(err, groups.ErrNotFound) {
		return nil
	}
	return err
}

func anyGroup(*groups.Info) bool { return true }

// member tells whether this account is in.
func member(i *groups.Info) bool { return i.State == groups.StateMember }

// groupID resolves what was typed among the groups that fit, and then among all: of those that do not fit package groups
// says why.
func (m *Messenger) groupID(name string, fits func(*groups.Info) bool) (groups.ID, error) {
	info, err := m.who.group(name, fits)
	if errors.Is(err, ErrNotFound) {
		info, err = m.who.group(name, anyGroup)
	}
	return info.ID, err
}

// groupView makes what callers see of a group.
func (m *Messenger) groupInfo(tx *storage.Tx, info *groups.Info) (Group, error) {
	g := Group{
		ID: info.ID, Name: shownGroupName(info), Description: text.Message(info.Description), Announcement: text.Message(info.Announcement),
		AnnouncedBy: info.AnnouncedBy, AnnouncedAt: info.AnnouncedAt, Public: info.Public, Join: info.Join, Invite: info.Invite,
		History: info.History, Mute: info.Mute, Role: roleName(info.Role), State: string(info.State), Size: info.Size, Owner: info.Owner,
		Joined: info.Joined, ReadOnly: info.ReadOnly, Applications: info.Applications, Nickname: text.Nickname(info.Nickname),
	}
	for _, box := range info.Mailboxes {
		g.Mailboxes = append(g.Mailboxes, box.Device)
	}
	n := m.names(tx, info.ID)
	var err error
	if g.OwnerName, err = n.of(info.Owner); err != nil {
		return Group{}, err
	}
	g.AnnouncedByName, err = n.of(info.AnnouncedBy)
	return g, err
}

// viewed gives the present view of a group after an act.
func (m *Messenger) viewed(id groups.ID) (g Group, err error) {
	err = m.env.db.View(func(tx *storage.Tx) error {
		info, err := m.env.groups.Info(tx, id)
		if err != nil {
			return groupRefusal(err)
		}
		g, err = m.groupInfo(tx, &info)
		return err
	})
	return g, err
}

// CreateGroup makes a group whose owner is this account.
func (m *Messenger) CreateGroup(ctx context.Context, o GroupOptions) (Group, error) {
	if err := cmp.Or(checkWords(o.Name, groups.MaxName), checkWords(o.Description, groups.MaxDescription)); err != nil {
		return Group{}, err
	}
	if text.OneLine(o.Name, maxField) == "" {
		return Group{}, refuse(ErrInvalid, "a group needs a name", "")
	}
	info, err := m.env.groups.Create(ctx, groups.Options{
		Name: strings.TrimSpace(o.Name), Description: o.Description, Public: o.Public, Join: o.Join, History: o.History,
	})
	if err != nil {
		return Group{}, groupRefusal(err)
	}
	return m.viewed(info.ID)
}

// checkWords refuses words of the user's own that are longer than may be, in bytes, or no text.
func checkWords(s string, limit int) error {
	switch {
	case len(s) > limit:
		return refuse(ErrTooLarge, fmt.Sprintf("at most %d bytes fit here, this has %d", limit, len(s)), "say it shorter")
	case text.Valid(s) != nil:
		return refuse(ErrInvalid, "the text is not valid UTF-8", "")
	}
	return nil
}

// settingBytes is how long a value may be.
func settingBytes(key string) int {
	switch key {
	case groups.SettingNickname:
		return groups.MaxNickname
	case "name":
		return groups.MaxName
	}
	return groups.MaxDescription
}

// Group says what is known of one group, by its name, group:NAME, its ID or a beginning of it, or a link to it.
func (m *Messenger) Group(ctx context.Context, name string) (Group, error) {
	id, err := m.groupID(name, conversing)
	if errors.Is(err, ErrNotFound) {
		return m.beheld(name, err)
	}
	if err != nil {
		return Group{}, err
	}
	g, err := m.viewed(id)
	if found := joinCards(m.found.byID(id.String())); err == nil && g.Owner.IsZero() && len(found) == 1 {
		card, err := m.carded(&found[0])
		g.Description, g.Size, g.Owner, g.OwnerName = card.Description, card.Size, card.Owner, card.OwnerName
		return g, err
	}
	return g, err
}

// Groups lists all groups that this account has to do with, by name.
func (m *Messenger) Groups(ctx context.Context) ([]Group, error) {
	var out []Group
	err := m.env.db.View(func(tx *storage.Tx) error {
		list, err := m.env.groups.List(tx)
		if err != nil {
			return groupRefusal(err)
		}
		for i := range list {
			g, err := m.groupInfo(tx, &list[i])
			if err != nil {
				return err
			}
			out = append(out, g)
		}
		return nil
	})
	slices.SortStableFunc(out, func(a, b Group) int { return strings.Compare(strings.ToLower(a.Name), strings.ToLower(b.Name)) })
	return out, err
}

// GroupMembers lists who is in a group, strongest first.
func (m *Messenger) GroupMembers(ctx context.Context, group string) (Group, []GroupMember, error) {
	id, err := m.groupID(group, conversing)
	if err != nil {
		return Group{}, nil, err
	}
	var g Group
	var out []GroupMember
	err = m.env.db.View(func(tx *storage.Tx) error {
		info, err := m.env.groups.Info(tx, id)
		if err != nil {
			return groupRefusal(err)
		}
		if g, err = m.groupInfo(tx, &info); err != nil {
			return err
		}
		list, err := m.env.groups.Members(tx, id)
		if err != nil {
			return groupRefusal(err)
		}
		n := m.names(tx, id)
		for i := range list {
			v, err := m.memberView(tx, n, &list[i])
			if err != nil {
				return err
			}
			out = append(out, v)
		}
		return nil
	})
	return g, out, err
}

func (m *Messenger) memberView(tx *storage.Tx, n *names, member *groups.Member) (GroupMember, error) {
	row, _, err := m.contacts.get(tx, member.Account)
	if err != nil {
		return GroupMember{}, err
	}
	c := m.contactView(member.Account, &row)
	v := GroupMember{
		Account: member.Account, Nickname: text.Nickname(member.Nickname), Username: c.Username, Role: roleName(member.Role),
		Relation: c.Relation, Online: c.Online, LastSeen: c.LastSeen, Joined: member.Joined,
	}
	if member.Account == m.env.account {
		v.Username, v.Relation, v.Online = m.settings.username(), RelationSelf, true
	}
	v.Name, err = n.of(member.Account)
	return v, err
}

// ActOnGroup does what one member does to another, or to the group.
func (m *Messenger) ActOnGroup(ctx context.Context, group string, act GroupAct, who string) (Group, error) {
	id, err := m.groupID(group, member)
	if err != nil {
		return Group{}, err
	}
	g := m.env.groups
	var do func(context.Context, groups.ID, identity.AccountID) error
	switch act {
	case GroupLeave:
		err = g.Leave(ctx, id)
	case GroupDissolve:
		err = g.Dissolve(ctx, id)
	case GroupRemove:
		do = g.Remove
	case GroupPromote:
		do = g.Promote
	case GroupDemote:
		do = g.Demote
	case GroupTransfer:
		do = g.Transfer
	default:
		return Group{}, refuse(ErrInvalid, "there is no such act", "")
	}
	if do != nil {
		var account identity.AccountID
		if account, err = m.memberNamed(ctx, id, who); err == nil {
			err = do(ctx, id, account)
			if account == m.env.account && errors.Is(err, groups.ErrInvalid) {
				err = refuse(ErrInvalid, "nobody does this to themselves", "`hima group leave` leaves a group, `hima group transfer` hands it over")
			}
			if errors.Is(err, groups.ErrNotFound) { // gone since the name was found
				err = refuse(ErrNotFound, "nobody of this name is among them", "`hima group members` shows who is in")
			}
		}
	}
	if err != nil {
		return Group{}, groupRefusal(err)
	}
	return m.viewed(id)
}

// memberNamed resolves what was typed for somebody among the members of a group.
func (m *Messenger) memberNamed(ctx context.Context, id groups.ID, who string) (a identity.AccountID, err error) {
	nicks := make(map[identity.AccountID]string)
	var accounts []identity.AccountID
	err = m.env.db.View(func(tx *storage.Tx) error {
		list, err := m.env.groups.Members(tx, id)
		for i := range list {
			accounts = append(accounts, list[i].Account)
			nicks[list[i].Account] = text.Nickname(list[i].Nickname)
		}
		return groupRefusal(err)
	})
	if err != nil {
		return a, err
	}
	return m.who.among(ctx, who, accounts, func(a identity.AccountID) string { return nicks[a] },
		refuse(ErrNotFound, "nobody of this name is among them", "`hima group members` shows who is in"))
}

// SetGroup changes a setting of a group, or the own nickname there.
func (m *Messenger) SetGroup(ctx context.Context, group, key, value string) (Group, error) {
	if err := checkWords(value, settingBytes(key)); err != nil {
		return Group{}, err
	}
	id, err := m.groupID(group, member)
	if err != nil {
		return Group{}, err
	}
	if err := m.env.groups.Set(ctx, id, key, value); err != nil {
		return Group{}, groupRefusal(err)
	}
	return m.viewed(id)
}

// CreateGroupLink makes a link whose holder may ask to be let in. expires 0 is never, uses 0 any number.
func (m *Messenger) CreateGroupLink(ctx context.Context, group string, expires time.Duration, uses int) (GroupLink, error) {
	id, err := m.groupID(group, member)
	if err != nil {
		return GroupLink{}, err
	}
	l, err := m.env.groups.NewLink(ctx, id, expires, uses)
	return linkView(&l), groupRefusal(err)
}

func linkView(l *groups.Link) GroupLink {
	return GroupLink{
		Link: l.Text, Token: l.Token, Created: l.Created, Expires: l.Expires, Uses: l.Uses, Used: l.Used, Revoked: l.Revoked,
	}
}

// GroupLinks lists the links of a group that this account made, newest first.
func (m *Messenger) GroupLinks(ctx context.Context, group string) ([]GroupLink, error) {
	id, err := m.groupID(group, member)
	if err != nil {
		return nil, err
	}
	var out []GroupLink
	err = m.env.db.View(func(tx *storage.Tx) error {
		list, err := m.env.groups.Links(tx, id)
		for i := range list {
			out = append(out, linkView(&list[i]))
		}
		return groupRefusal(err)
	})
	slices.SortStableFunc(out, func(a, b GroupLink) int { return b.Created.Compare(a.Created) })
	return out, err
}

// RevokeGroupLink ends a link, given whole or by its token.
func (m *Messenger) RevokeGroupLink(ctx context.Context, group, token string) (GroupLink, error) {
	id, err := m.groupID(group, member)
	if err != nil {
		return GroupLink{}, err
	}
	t, err := identity.ParseInviteToken(strings.TrimSpace(token))
	if err != nil {
		link, linkErr := identity.ParseGroupLink(strings.TrimSpace(token))
		if linkErr != nil || len(link.Token) != len(t) {
			return GroupLink{}, refuse(ErrInvalid, "this is neither a token nor a group link", "`hima group link list GROUP` shows the tokens")
		}
		copy(t[:], link.Token[:])
	}
	l, err := m.env.groups.RevokeLink(ctx, id, t)
	if errors.Is(err, groups.ErrNotFound) {
		err = refuse(ErrNotFound, "no link of this group has this token", "`hima group link list GROUP` shows the tokens")
	}
	return linkView(&l), groupRefusal(err)
}
