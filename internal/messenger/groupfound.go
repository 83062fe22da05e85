package messenger

import (
	"errors"
	"slices"
	"strings"

	"hima/groups"
	"hima/internal/text"
	"hima/storage"
)

// beheld tells what a search or a link says of a group that this account has nothing to do with yet. Nobody is asked, and
// nothing is changed; nothing is the refusal if it is not known from there either.
func (m *Messenger) beheld(name string, nothing error) (g Group, err error) {
	name = strings.TrimSpace(name)
	if looksLikeGroupLink(name) {
		l, err := readGroupLink(name, m.env.now())
		if err != nil {
			return Group{}, err
		}
		g := Group{ID: groups.ID(l.Group), Name: text.OneLine(l.Name, maxField), State: string(groups.StateNone)}
		if found := joinCards(m.found.byID(g.ID.String())); len(found) == 1 {
			return m.carded(&found[0])
		}
		return g, nil
	}
	if rest, ok := strings.CutPrefix(name, groupPrefix); ok {
		name = strings.TrimSpace(rest)
	}
	found := m.found.byID(name)
	if len(found) == 0 {
		found = m.found.byName(name, m.env.now())
	}
	switch found = joinCards(found); len(found) {
	case 0:
		return Group{}, nothing
	case 1:
		return m.carded(&found[0])
	}
	return Group{}, severalCards(found)
}

// carded is a group as its card tells.
func (m *Messenger) carded(f *FoundCard) (g Group, err error) {
	err = m.env.db.View(func(tx *storage.Tx) error {
		v, err := m.foundView(tx, m.names(tx, groups.ID{}), f)
		g = Group{
			ID: v.ID, Name: v.Name, Description: v.Description, Public: true, Join: v.Join, State: v.State, Size: v.Size,
			Owner: v.Owner, OwnerName: v.OwnerName,
		}
		return err
	})
	return g, err
}

// severalCards refuses a name that several groups have.
func severalCards(found []FoundCard) error {
	err := refuse(ErrAmbiguous, "several groups have this name", "use the ID of the group")
	for i := range found {
		c := &found[i].Card
		err.Candidates = append(err.Candidates, Candidate{
			Group: groups.ID(c.Group), Nickname: text.OneLine(c.Name, maxField), Account: c.Account, Source: SourceGroup,
		})
	}
	slices.SortFunc(err.Candidates, func(a, b Candidate) int { return strings.Compare(a.Group.String(), b.Group.String()) })
	return err
}

// applyRefusal says why nobody can be asked to be let in, which package groups tells in the words of those who are in.
func (m *Messenger) applyRefusal(t *groups.Target, err error) error {
	switch {
	case errors.Is(err, groups.ErrNotAllowed):
		return refuse(ErrNotAllowed, "this group takes only those it invites", "ask somebody in the group for an invitation or a link")
	case errors.Is(err, groups.ErrInvalid) && !slices.ContainsFunc(t.Asks, func(c groups.Contact) bool { return c.Account != m.env.account }):
		return refuse(ErrNotFound, "nobody was found who decides there", "ask somebody in the group for an invitation or a link")
	case errors.Is(err, groups.ErrExists):
		if g, err := m.viewed(t.Group); err != nil || g.State == string(groups.StateDissolved) {
			return groupRefusal(groups.ErrDissolved)
		}
		return refuse(ErrExists, "you are in this group already", "")
	}
	return groupRefusal(err)
}
