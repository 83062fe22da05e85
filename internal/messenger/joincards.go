package messenger

import (
	"cmp"
	"slices"

	"hima/identity"
)

// joinCards makes one card of those of two who claim to own one group, which is one group. Its admins are those of both in turns, as not
// all fit: one of the two owns a group in which nobody else is any more, and who asks only there waits for nothing.
func joinCards(found []FoundCard) []FoundCard {
	found = slices.Clone(found)
	slices.SortStableFunc(found, func(a, b FoundCard) int {
		return cmp.Or(slices.Compare(a.Card.Group[:], b.Card.Group[:]), slices.Compare(a.Card.Account[:], b.Card.Account[:]))
	})
	var out []FoundCard
	for rest := found; len(rest) > 0; {
		n := slices.IndexFunc(rest, func(f FoundCard) bool { return f.Card.Group != rest[0].Card.Group })
		if n < 0 {
			n = len(rest)
		}
		one := rest[0]
		one.Card.Admins = nil
		if slices.ContainsFunc(rest[:n], func(f FoundCard) bool { return f.Card.Account != one.Card.Account }) {
			one.Owners = map[identity.AccountID][]identity.AccountID{}
		}
		for i := range rest[:n] {
			c := &rest[i].Card
			for _, a := range c.Admins {
				if one.Owners != nil && rest[i].Owners == nil && !slices.Contains(one.Owners[a.Account], c.Account) {
					one.Owners[a.Account] = append(one.Owners[a.Account], c.Account)
				}
			}
		}
		for turn := range identity.MaxGroupContacts {
			for i := range rest[:n] {
				c := &rest[i].Card
				if one.Card.Join == "invite" {
					one.Card.Join = c.Join // where one of them lets people ask, they may
				}
				if turn < len(c.Admins) && len(one.Card.Admins) < identity.MaxGroupContacts && !slices.ContainsFunc(one.Card.Admins,
					func(a identity.GroupContact) bool { return a.Account == c.Admins[turn].Account }) {
					one.Card.Admins = append(one.Card.Admins, c.Admins[turn])
				}
			}
		}
		out, rest = append(out, one), rest[n:]
	}
	return out
}
