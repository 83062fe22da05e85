package messenger

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"hima/groups"
	"hima/identity"
	"hima/internal/text"
	"hima/storage"
)

// The ways into a group: invitations, links, applications, and looking groups up by name.

// FoundCard is the card of a public group that a network or somebody nearby showed. The daemon makes it of what the
// directory finds; the card was checked, what it says is claimed.
type FoundCard struct {
	Card    identity.GroupCard
	Source  Source // SourceNetwork, SourceNearby
	Network string // empty: not on a network
	// Disputed: two accounts show that they own the group; both cards are in the list.
	Disputed bool
	// Owners says under which of them somebody is an admin, once the cards of a group that is disputed were made one.
	Owners map[identity.AccountID][]identity.AccountID
}

// maxFoundCards is how many cards are remembered, so that a group can be applied to by the ID that a search showed.
const maxFoundCards = 512

// foundCards remembers what searches showed.
type foundCards struct {
	mu    sync.Mutex // owns cards
	cards map[groups.ID]FoundCard
}

func (f *foundCards) keep(list []FoundCard) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range joinCards(list) {
		if len(f.cards) >= maxFoundCards {
			clear(f.cards)
		}
		f.cards[groups.ID(c.Card.Group)] = c
	}
}

// byID finds cards whose group has an ID, or one that begins so.
func (f *foundCards) byID(prefix string) (out []FoundCard) {
	prefix = strings.ToLower(prefix)
	if len(prefix) < minPrefix || strings.Trim(prefix, "0123456789abcdef") != "" {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, c := range f.cards {
		if strings.HasPrefix(id.String(), prefix) {
			out = append(out, c)
		}
	}
	return out
}

// byName finds cards of a name that have not run out.
func (f *foundCards) byName(name string, now time.Time) (out []FoundCard) {
	folded := text.FoldName(name)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.cards {
		if folded != "" && text.FoldName(c.Card.Name) == folded && c.Card.Expires.After(now) {
			out = append(out, c)
		}
	}
	return out
}

// findCards asks networks and neighbours for public groups of a name.
func (m *Messenger) findCards(ctx context.Context, name string) ([]FoundCard, []string, error) {
	if text.FoldName(name) == "" {
		return nil, nil, refuse(ErrInvalid, "there is no name to look for", "")
	}
	bounded, cancel := context.WithTimeout(ctx, namesTimeout)
	defer cancel()
	found, unreachable, err := m.env.findGroups(bounded, name)
	if ctx.Err() != nil {
		return nil, nil, ctx.Err()
	}
	if err != nil {
		return nil, nil, err
	}
	for i := range found {
		found[i].Network = networkName(found[i].Network)
	}
	for i := range unreachable {
		unreachable[i] = networkName(unreachable[i])
	}
	m.found.keep(found)
	return found, unreachable, nil
}

// SearchGroups looks for public groups by name: on the networks, nearby, and among those of this account. It changes nothing.
func (m *Messenger) SearchGroups(ctx context.Context, name string) (GroupSearch, error) {
	found, unreachable, err := m.findCards(ctx, name)
	if err != nil {
		return GroupSearch{}, err
	}
	out := GroupSearch{Unreachable: unreachable}
	err = m.env.db.View(func(tx *storage.Tx) error {
		n := m.names(tx, groups.ID{})
		for i := range found {
			v, err := m.foundView(tx, n, &found[i])
			if err != nil {
				return err
			}
			out.Groups = append(out.Groups, v)
		}
		own, err := m.env.groups.Find(tx, name)
		if err != nil {
			return groupRefusal(err)
		}
		for i := range own {
			info := &own[i]
			if !member(info) || !namedSo(info, name) || slices.ContainsFunc(out.Groups, func(g FoundGroup) bool { return g.ID == info.ID }) {
				continue
			}
			g, err := m.groupInfo(tx, info)
			if err != nil {
				return err
			}
			out.Groups = append(out.Groups, FoundGroup{
				ID: g.ID, Name: g.Name, Description: g.Description, Size: g.Size, Join: g.Join, Owner: g.Owner, OwnerName: g.OwnerName,
				Source: SourceMember, State: g.State,
			})
		}
		return nil
	})
	return out, err
}

func (m *Messenger) foundView(tx *storage.Tx, n *names, f *FoundCard) (FoundGroup, error) {
	c := &f.Card
	v := FoundGroup{
		ID: groups.ID(c.Group), Name: text.OneLine(c.Name, maxField), Description: text.Message(c.Description), Size: int(c.Size),
		Join: text.OneLine(c.Join, maxField), Owner: c.Account, Source: f.Source, Network: f.Network, Expires: c.Expires, Disputed: f.Disputed,
		State: string(groups.StateNone),
	}
	row, known, err := m.contacts.get(tx, c.Account)
	if err != nil {
		return v, err
	}
	if known && row.name(c.Account) != c.Account.Short() || c.Account == m.env.account {
		if v.OwnerName, err = n.of(c.Account); err != nil {
			return v, err
		}
	}
	info, err := m.env.groups.Info(tx, v.ID)
	if err == nil {
		v.State = string(info.State)
	}
	return v, ignoreUnknown(err)
}

// ApplyToGroup asks to be let into a group: by a link, by the name of a public group, or by the ID that a search showed.
func (m *Messenger) ApplyToGroup(ctx context.Context, group, message string) (Group, error) {
	if err := checkRequestText(message); err != nil {
		return Group{}, err
	}
	t, err := m.groupTarget(ctx, strings.TrimSpace(group))
	if err != nil {
		return Group{}, err
	}
	for _, c := range t.Asks {
		for _, d := range c.Devices {
			m.env.people.Hint(c.Account, d.Device, d.Addrs)
		}
	}
	info, err := m.env.groups.Apply(ctx, t, message)
	if err != nil {
		return Group{}, m.applyRefusal(&t, err)
	}
	return m.viewed(info.ID)
}

// CheckGroupLink tells what can be told of a group link before anything is done for it: whether it is whole, and has not run out.
func CheckGroupLink(link string, now time.Time) error {
	_, err := readGroupLink(link, now)
	return err
}

func readGroupLink(link string, now time.Time) (identity.GroupLink, error) {
	l, err := identity.ParseGroupLink(link)
	if err != nil {
		return l, brokenGroupLink()
	}
	if !l.Expires.IsZero() && !now.Before(l.Expires) {
		return l, refuse(ErrExpired, "this group link has run out", "ask for a new one, or mend the clock of this machine if it is wrong")
	}
	return l, nil
}

// groupTarget finds the group that is meant by what was typed.
func (m *Messenger) groupTarget(ctx context.Context, name string) (groups.Target, error) {
	if looksLikeGroupLink(name) {
		// Who made it decides, and would say no: nobody is asked, and no network joined for nothing.
		l, err := readGroupLink(name, m.env.now())
		if err != nil {
			return groups.Target{}, err
		}
		m.join(ctx, identity.Invite{Networks: l.Networks}, nil)
		t := groups.Target{Group: groups.ID(l.Group), Name: l.Name, Asks: []groups.Contact{l.Asks}}
		if !l.Token.IsZero() {
			t.Token = l.Token[:]
		}
		return t, nil
	}
	if rest, ok := strings.CutPrefix(name, groupPrefix); ok {
		name = strings.TrimSpace(rest)
	}
	found := m.found.byID(name)
	if len(found) == 0 {
		var unreachable []string
		var err error
		if found, unreachable, err = m.findCards(ctx, name); err != nil {
			return groups.Target{}, err
		}
		if len(found) == 0 { // not every look-up finds everybody: what was shown a moment ago still counts
			found = m.found.byName(name, m.env.now())
		}
		if len(found) == 0 {
			// One that is known already may be asked again, through those it is known from.
			info, err := m.who.group(name, anyGroup)
			if err == nil || !errors.Is(err, ErrNotFound) {
				return groups.Target{Group: info.ID, Name: info.Name, Join: info.Join}, err
			}
		}
		if len(found) == 0 && len(unreachable) > 0 {
			return groups.Target{}, refuse(ErrUnavailable, "no group of this name was found, and not all networks could be asked: "+
				strings.Join(unreachable, ", "), "`hima network status` shows why")
		}
	}
	found = joinCards(found)
	switch len(found) {
	case 0:
		return groups.Target{}, refuse(ErrNotFound, "no public group of this name was found", "a private group is entered by invitation or link only")
	case 1:
		c := &found[0].Card
		return groups.Target{Group: groups.ID(c.Group), Name: c.Name, Asks: c.Admins, Join: c.Join, Owners: found[0].Owners}, nil
	}
	return groups.Target{}, severalCards(found)
}

// WithdrawApplication takes an own application back.
func (m *Messenger) WithdrawApplication(ctx context.Context, group string) (Group, error) {
	id, err := m.groupID(group, func(i *groups.Info) bool {
		return i.State == groups.StateApplied || i.State == groups.StateJoining
	})
	if err != nil {
		return Group{}, err
	}
	err = m.env.groups.WithdrawApplication(ctx, id)
	if errors.Is(err, groups.ErrNotFound) {
		err = refuse(ErrNotFound, "no application of yours waits there", "`hima group applications` shows what became of it")
	}
	if err != nil {
		return Group{}, groupRefusal(err)
	}
	return m.viewed(id)
}

// GroupApplications lists applications, newest first: to groups that this account decides for, and its own. group empty: all.
func (m *Messenger) GroupApplications(ctx context.Context, group string) ([]GroupApplication, error) {
	var id groups.ID
	if strings.TrimSpace(group) != "" {
		var err error
		if id, err = m.groupID(group, anyGroup); err != nil {
			return nil, err
		}
	}
	var out []GroupApplication
	err := m.env.db.View(func(tx *storage.Tx) error {
		list, err := m.env.groups.Applications(tx, id)
		if err != nil {
			return groupRefusal(err)
		}
		for i := range list {
			v, err := m.applicationView(tx, &list[i])
			if err != nil {
				return err
			}
			out = append(out, v)
		}
		return nil
	})
	slices.SortStableFunc(out, func(a, b GroupApplication) int { return b.Time.Compare(a.Time) })
	return out, err
}

func (m *Messenger) applicationView(tx *storage.Tx, a *groups.Application) (GroupApplication, error) {
	v := GroupApplication{
		Group: a.Group, GroupName: text.OneLine(a.GroupName, maxField), Account: a.Account, Own: a.Own,
		Message: text.Message(clip(a.Message, maxRequestText)), Time: a.Time, Expires: a.Expires, State: a.State,
		Reason: text.Message(clip(a.Reason, maxRequestText)), By: a.By, ByLink: a.ByLink,
	}
	if v.GroupName == "" {
		v.GroupName = a.Group.Short()
	}
	n := m.names(tx, a.Group)
	var err error
	if v.Name, err = n.of(a.Account); err == nil && !a.By.IsZero() {
		v.ByName, err = n.of(a.By)
	}
	for i := 0; err == nil && i < len(a.Answers); i++ {
		from := &a.Answers[i]
		no := GroupAnswer{By: from.By, Reason: text.Message(clip(from.Reason, maxRequestText)), Decided: from.Decided}
		no.ByName, err = n.of(from.By)
		v.Answers = append(v.Answers, no)
	}
	return v, err
}

// DecideApplication lets somebody in who applied, or turns them down.
func (m *Messenger) DecideApplication(ctx context.Context, group, who string, approve bool, reason string) (GroupApplication, error) {
	if err := checkRequestText(reason); err != nil {
		return GroupApplication{}, err
	}
	id, err := m.groupID(group, member)
	if err != nil {
		return GroupApplication{}, err
	}
	var accounts []identity.AccountID
	err = m.env.db.View(func(tx *storage.Tx) error {
		list, err := m.env.groups.Applications(tx, id)
		for i := range list {
			if !list[i].Own && !slices.Contains(accounts, list[i].Account) {
				accounts = append(accounts, list[i].Account)
			}
		}
		return groupRefusal(err)
	})
	if err != nil {
		return GroupApplication{}, err
	}
	account, err := m.who.among(ctx, who, accounts, nil,
		refuse(ErrNotFound, "nobody of this name applied", "`hima group applications` lists them"))
	if err != nil {
		return GroupApplication{}, err
	}
	a, failed := m.env.groups.Decide(ctx, id, account, approve, reason)
	over := errors.Is(failed, groups.ErrConflict)
	if failed != nil && !over {
		return GroupApplication{}, groupRefusal(failed)
	}
	var v GroupApplication
	err = m.env.db.View(func(tx *storage.Tx) error {
		v, err = m.applicationView(tx, &a)
		return err
	})
	if err == nil && over {
		return GroupApplication{}, m.decided(&v)
	}
	return v, err
}

// decided refuses to decide an application that does not wait any more. One that was turned down is not approved behind the back of the
// applicant, who was told: there are two ways on, and both ask them.
func (m *Messenger) decided(v *GroupApplication) error {
	switch {
	case v.State != groups.Rejected || v.By.IsZero():
		return refuse(ErrConflict, "this application does not wait any more", "`hima group applications` shows what became of it")
	case v.By == m.env.account:
		return refuse(ErrConflict, "you turned this application down", "they can apply again, or be asked in with `hima group invite`")
	}
	return refuse(ErrConflict, strconv.Quote(v.ByName)+" turned this application down", "they can apply again, or be asked in with `hima group invite`")
}

// InviteToGroup asks people into a group, or takes invitations back. What became of each stands in the answer; one that
// failed does not end the others.
func (m *Messenger) InviteToGroup(ctx context.Context, group string, who []string, withdraw bool) (Group, []GroupInvited, error) {
	id, err := m.groupID(group, member)
	if err != nil {
		return Group{}, nil, err
	}
	out := make([]GroupInvited, 0, len(who))
	for _, name := range who {
		v := GroupInvited{Who: name}
		v.Account, v.State, v.Err = m.inviteOne(ctx, id, name, withdraw)
		if v.Err != nil {
			v.State = "failed"
		}
		if !v.Account.IsZero() {
			if v.Name, err = m.NameOf(ctx, v.Account); err != nil {
				return Group{}, nil, err
			}
		}
		if ctx.Err() != nil {
			return Group{}, nil, ctx.Err()
		}
		out = append(out, v)
	}
	g, err := m.viewed(id)
	return g, out, err
}

func (m *Messenger) inviteOne(ctx context.Context, id groups.ID, name string, withdraw bool) (identity.AccountID, string, error) {
	if withdraw {
		a, err := m.invitedNamed(ctx, id, name)
		if err == nil {
			err = groupRefusal(m.env.groups.Withdraw(ctx, id, a))
		}
		return a, "withdrawn", err
	}
	t, err := m.who.known(name)
	if errors.Is(err, ErrNotFound) {
		t, err = m.who.outward(ctx, name)
	}
	switch {
	case err != nil:
		return t.account, "", err
	case t.account == m.env.account:
		return t.account, "already_member", nil
	case t.disagreement:
		return t.account, "", ambiguous(append(t.others, t))
	}
	if err := m.notBlocked(t.account); err != nil {
		return t.account, "", err
	}
	if err := m.hint(ctx, &t); err != nil {
		return t.account, "", err
	}
	if _, err := m.invitedNamed(ctx, id, t.account.String()); err == nil {
		return t.account, "already_invited", nil
	}
	state, err := m.env.groups.Invite(ctx, id, t.account)
	switch {
	case errors.Is(err, groups.ErrExists):
		return t.account, "already_member", nil
	case err != nil:
		return t.account, "", groupRefusal(err)
	case state == groups.Approved:
		return t.account, "admitted", nil // they had applied
	}
	return t.account, "invited", nil
}

// hint notes under which name somebody was found, so that they are shown by it.
func (m *Messenger) hint(ctx context.Context, t *target) error {
	for _, d := range t.invite.Devices {
		m.env.people.Hint(t.account, d.Device, d.Addrs)
	}
	if t.username == "" {
		return nil
	}
	return m.env.update(ctx, func(tx *storage.Tx) error {
		row, _, err := m.contacts.get(tx, t.account)
		if err != nil || row.username() != "" {
			return err
		}
		row.Hint = t.username
		return m.contacts.put(tx, t.account, row)
	})
}

// invitedNamed resolves what was typed among those who were invited and did not answer yet.
func (m *Messenger) invitedNamed(ctx context.Context, id groups.ID, who string) (a identity.AccountID, err error) {
	var accounts []identity.AccountID
	err = m.env.db.View(func(tx *storage.Tx) error {
		list, err := m.env.groups.Invitations(tx)
		for i := range list {
			if v := &list[i]; v.Outgoing && v.Group == id && v.State == groups.Waiting && !slices.Contains(accounts, v.To) {
				accounts = append(accounts, v.To)
			}
		}
		return groupRefusal(err)
	})
	if err != nil {
		return a, err
	}
	return m.who.among(ctx, who, accounts, nil,
		refuse(ErrNotFound, "nobody of this name has an invitation that waits", "`hima group invitations` lists them"))
}

// GroupInvitations lists invitations both ways, newest first.
func (m *Messenger) GroupInvitations(ctx context.Context) ([]GroupInvitation, error) {
	var out []GroupInvitation
	err := m.env.db.View(func(tx *storage.Tx) error {
		list, err := m.env.groups.Invitations(tx)
		if err != nil {
			return groupRefusal(err)
		}
		for i := range list {
			v, err := m.invitationView(tx, &list[i])
			if err != nil {
				return err
			}
			out = append(out, v)
		}
		return nil
	})
	slices.SortStableFunc(out, func(a, b GroupInvitation) int { return b.Time.Compare(a.Time) })
	return out, err
}

func (m *Messenger) invitationView(tx *storage.Tx, in *groups.Invitation) (GroupInvitation, error) {
	v := GroupInvitation{
		From: in.From, To: in.To, Outgoing: in.Outgoing, Time: in.Time, Expires: in.Expires, State: in.State,
		Group: Group{ID: in.Group, Name: text.OneLine(in.Name, maxField), Description: text.Message(in.Description), Size: in.Size},
	}
	if v.Group.Name == "" {
		v.Group.Name = in.Group.Short()
	}
	info, err := m.env.groups.Info(tx, in.Group)
	switch {
	case err == nil:
		v.Group.State, v.Group.Role = string(info.State), roleName(info.Role)
	case ignoreUnknown(err) != nil:
		return v, err
	}
	n := m.names(tx, in.Group)
	if v.FromName, err = n.of(in.From); err != nil {
		return v, err
	}
	v.ToName, err = n.of(in.To)
	return v, err
}

// AnswerGroupInvitation accepts or declines an invitation, named by its group.
func (m *Messenger) AnswerGroupInvitation(ctx context.Context, group string, accept bool) (Group, error) {
	id, err := m.invitationTo(group)
	if err != nil {
		return Group{}, err
	}
	info, err := m.env.groups.Answer(ctx, id, accept)
	if err != nil {
		return Group{}, groupRefusal(err)
	}
	g, err := m.viewed(id)
	if errors.Is(err, ErrNotFound) {
		// A declined group may be forgotten at once.
		return Group{ID: info.ID, Name: shownGroupName(&info), State: string(info.State), Size: info.Size}, nil
	}
	return g, err
}

// invitationTo resolves what was typed among the groups that wait for an answer.
func (m *Messenger) invitationTo(name string) (id groups.ID, err error) {
	name = strings.TrimSpace(name)
	if rest, ok := strings.CutPrefix(name, groupPrefix); ok {
		name = strings.TrimSpace(rest)
	}
	if name == "" {
		return id, refuse(ErrInvalid, "there is no name of a group", "")
	}
	err = m.env.db.View(func(tx *storage.Tx) error {
		list, err := m.env.groups.Invitations(tx)
		if err != nil {
			return groupRefusal(err)
		}
		var fit []groups.Info
		for i := range list {
			v := &list[i]
			info := groups.Info{ID: v.Group, Name: v.Name}
			begins := len(name) >= minPrefix && strings.HasPrefix(v.Group.String(), strings.ToLower(name))
			if v.Outgoing || v.State != groups.Waiting || !begins && !namedSo(&info, name) ||
				slices.ContainsFunc(fit, func(o groups.Info) bool { return o.ID == v.Group }) {
				continue
			}
			fit = append(fit, info)
		}
		if len(fit) == 0 {
			return refuse(ErrNotFound, "no invitation to a group of this name waits for an answer", "`hima group invitations` lists them")
		}
		info, err := oneGroup(name, fit)
		id = info.ID
		return err
	})
	return id, err
}
