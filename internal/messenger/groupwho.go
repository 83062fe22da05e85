package messenger

import (
	"context"
	"errors"
	"slices"
	"strings"

	"hima/groups"
	"hima/identity"
	"hima/internal/text"
	"hima/storage"
)

// groupPrefix says that a name is meant to be a group's.
const groupPrefix = "group:"

// conversing tells whether a group has, or may have, a history here. Who was in keeps it, whatever is asked of them or by them
// meanwhile: an invitation or an application of somebody who went says nothing of what they have.
func conversing(info *groups.Info) bool {
	switch info.State {
	case groups.StateMember, groups.StateLeft, groups.StateRemoved, groups.StateDissolved:
		return true
	}
	return !info.Joined.IsZero()
}

// talk resolves a name to somebody known or to a group. Of a name that both bear neither is meant silently (R20).
func (w *who) talk(name string) (target, error) {
	generation := w.m.contacts.generation() + w.groups.Load()
	w.mu.Lock()
	t, ok := w.talks[name]
	ok = ok && w.talkGeneration == generation
	w.mu.Unlock()
	if ok {
		return t, nil
	}
	t, err := w.converse(name)
	if err != nil || t.source == SourceNearby {
		return t, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.talkGeneration != generation || len(w.talks) >= whoCache {
		w.talkGeneration = generation
		clear(w.talks)
	}
	w.talks[name] = t
	return t, nil
}

func (w *who) converse(name string) (target, error) {
	if _, only := strings.CutPrefix(strings.TrimSpace(name), groupPrefix); only {
		info, err := w.group(name, conversing)
		if errors.Is(err, ErrNotFound) {
			err = w.silent(name, err)
		}
		return target{group: info.ID, source: SourceGroup}, err
	}
	person, personErr := w.known(name)
	if personErr != nil && !errors.Is(personErr, ErrNotFound) && !errors.Is(personErr, ErrAmbiguous) {
		return target{}, personErr
	}
	if personErr == nil && (person.account == w.m.env.account || isID(name)) {
		return person, nil
	}
	info, err := w.group(name, conversing)
	noPerson, noGroup := errors.Is(personErr, ErrNotFound), errors.Is(err, ErrNotFound)
	switch {
	case err != nil && !noGroup && !errors.Is(err, ErrAmbiguous):
		return target{}, err
	case noPerson && noGroup:
		return target{}, w.silent(name, refuse(ErrNotFound, "nobody you know and no group of yours has this name",
			"`hima contact list` and `hima group list` show names"))
	case noPerson:
		return target{group: info.ID, source: SourceGroup}, err
	case noGroup, err == nil && !namedSo(&info, name):
		return person, personErr // a group's ID may begin like that; a name beats it
	}
	both := refuse(ErrAmbiguous, "the name means people and groups", "write group:NAME, user:NAME, or an ID")
	both.Candidates = slices.Concat(candidatesOf(personErr), candidatesOf(err))
	if personErr == nil {
		both.Candidates = append(both.Candidates, ambiguous([]target{person}).Candidates...)
	}
	if err == nil {
		both.Candidates = append(both.Candidates, groupCandidate(&info))
	}
	return target{}, both
}

// silent says why nothing can be said under a name: there is such a group, which this account is invited to or asks to be let
// into, or else there is nothing of that name.
func (w *who) silent(name string, nothing error) error {
	if _, err := w.group(name, anyGroup); err != nil && !errors.Is(err, ErrAmbiguous) {
		return nothing
	}
	return groupRefusal(groups.ErrNotMember)
}

func candidatesOf(err error) []Candidate {
	if refusal, ok := errors.AsType[*Error](err); ok {
		return refusal.Candidates
	}
	return nil
}

// isID tells whether what was typed is an account ID, or a beginning of one.
func isID(name string) bool {
	return strings.HasPrefix(strings.ToLower(strings.TrimSpace(name)), idPrefix)
}

// namedSo tells whether a group was found by its name and not by its ID.
func namedSo(info *groups.Info, name string) bool {
	folded := text.FoldName(name)
	return folded != "" && text.FoldName(info.Name) == folded
}

func groupCandidate(info *groups.Info) Candidate {
	return Candidate{Group: info.ID, Nickname: shownGroupName(info), Source: SourceGroup}
}

// group resolves what was typed for a group among those that fit.
func (w *who) group(name string, fits func(*groups.Info) bool) (found groups.Info, err error) {
	err = w.m.env.db.View(func(tx *storage.Tx) error {
		found, err = w.groupIn(tx, name, fits)
		return err
	})
	return found, err
}

func (w *who) groupIn(tx *storage.Tx, name string, fits func(*groups.Info) bool) (groups.Info, error) {
	name = strings.TrimSpace(name)
	if rest, ok := strings.CutPrefix(name, groupPrefix); ok {
		name = strings.TrimSpace(rest)
	}
	if name == "" {
		return groups.Info{}, refuse(ErrInvalid, "there is no name of a group", "")
	}
	if looksLikeGroupLink(name) {
		link, err := identity.ParseGroupLink(name)
		if err != nil {
			return groups.Info{}, brokenGroupLink()
		}
		info, err := w.m.env.groups.Info(tx, groups.ID(link.Group))
		if err != nil || !fits(&info) {
			if err = ignoreUnknown(err); err != nil {
				return groups.Info{}, err
			}
			return groups.Info{}, noSuchGroup()
		}
		return info, nil
	}
	list, err := w.m.env.groups.Find(tx, name)
	if err != nil {
		return groups.Info{}, groupRefusal(err)
	}
	list = slices.DeleteFunc(slices.Clone(list), func(i groups.Info) bool { return !fits(&i) })
	return oneGroup(name, list)
}

// oneGroup picks the only group: one that bears the name before one whose ID begins so, and one that this account is in
// before those of the past.
func oneGroup(name string, list []groups.Info) (groups.Info, error) {
	for _, better := range []func(*groups.Info) bool{
		func(i *groups.Info) bool { return namedSo(i, name) },
		func(i *groups.Info) bool { return i.State == groups.StateMember },
	} {
		if len(list) > 1 && slices.ContainsFunc(list, func(i groups.Info) bool { return better(&i) }) {
			list = slices.DeleteFunc(list, func(i groups.Info) bool { return !better(&i) })
		}
	}
	switch len(list) {
	case 0:
		return groups.Info{}, noSuchGroup()
	case 1:
		return list[0], nil
	}
	err := refuse(ErrAmbiguous, "the name means several groups", "use the ID of the group, or a beginning of it")
	for i := range list {
		err.Candidates = append(err.Candidates, groupCandidate(&list[i]))
	}
	slices.SortFunc(err.Candidates, func(a, b Candidate) int { return strings.Compare(a.Group.String(), b.Group.String()) })
	return groups.Info{}, err
}

func noSuchGroup() *Error {
	return refuse(ErrNotFound, "no group of yours has this name", "`hima group list` shows them, `hima search --groups` finds others")
}

func brokenGroupLink() *Error {
	return refuse(ErrInvalid, "this group link is not complete", "copy it again, from `hima-group:` to its end")
}

func looksLikeGroupLink(s string) bool {
	const scheme = "hima-group:"
	return len(s) > len(scheme) && strings.EqualFold(s[:len(scheme)], scheme)
}

// among resolves what was typed for a person among some accounts: members of a group, or those who applied. nick gives what
// somebody is called there; nil: nothing. A name that none of them bears here may be one that a network knows.
func (w *who) among(ctx context.Context, name string, accounts []identity.AccountID, nick func(identity.AccountID) string, none *Error) (a identity.AccountID, err error) {
	err = w.m.env.db.View(func(tx *storage.Tx) error {
		a, err = w.amongIn(tx, name, accounts, nick)
		return err
	})
	if !errors.Is(err, ErrNotFound) {
		return a, err
	}
	t, err := w.outward(ctx, name)
	switch {
	case ctx.Err() != nil:
		return a, ctx.Err()
	case err == nil && !t.disagreement && slices.Contains(accounts, t.account):
		return t.account, nil
	}
	return a, none
}

// amongIn is among for names that are known here.
func (w *who) amongIn(tx *storage.Tx, name string, accounts []identity.AccountID, nick func(identity.AccountID) string) (identity.AccountID, error) {
	if err := typed(name); err != nil {
		return identity.AccountID{}, err
	}
	q := newMatcher(name)
	folded := text.FoldName(name)
	var found []target
	near := w.nearby(&q)
	for _, a := range accounts {
		row, _, err := w.m.contacts.get(tx, a)
		if err != nil {
			return identity.AccountID{}, err
		}
		own := a == w.m.env.account
		if own {
			row.Card.Username = w.m.settings.username()
		}
		t := target{account: a, username: row.username(), source: SourceMember}
		if nick != nil {
			t.nickname = nick(a)
		}
		switch {
		case q.account(a), q.name(t.username), q.remark != "" && row.Remark == q.remark,
			folded != "" && t.nickname != "" && text.FoldName(t.nickname) == folded,
			slices.ContainsFunc(near, func(n target) bool { return n.account == a }),
			own && strings.TrimSpace(name) == selfName:
			found = append(found, t)
		}
	}
	if len(found) == 0 {
		return identity.AccountID{}, refuse(ErrNotFound, "nobody of this name is among them", "`hima group members` shows who is in")
	}
	t, err := one(name, found)
	return t.account, err
}

// typed refuses what can name nobody.
func typed(name string) error {
	name = strings.TrimSpace(name)
	if name == "" {
		return refuse(ErrInvalid, "there is no name", "give a name, or an account ID")
	}
	if isID(name) {
		if _, err := identity.ParseAccountID(name); err != nil && len(strings.TrimSuffix(name, "…")) < len(idPrefix)+minPrefix {
			return refuse(ErrInvalid, "this beginning of an account ID is too short", "give at least 9 characters of it")
		}
	}
	return nil
}
