package groups

import (
	"slices"
	"strconv"

	"hima/groups/roster"
	"hima/storage"
)

// historyFor returns the first epoch whose entries somebody may have who is let in now, as the group's setting says (R30).
// "none" makes an epoch first if something was said under the present one; a number of messages is rounded up to whole
// epochs.
func (g *Groups) historyFor(tx *storage.Tx, conv ID, s *snapshot) (roster.ID, error) {
	if err := g.countOwn(tx, conv); err != nil {
		return roster.ID{}, err
	}
	epochs := slices.Clone(s.view.Epochs)
	slices.SortFunc(epochs, compareEpochs)
	if len(epochs) == 0 {
		return roster.ID{}, nil // nothing was said yet
	}
	setting := s.view.Settings[roster.SettingHistory]
	if setting == "all" {
		return epochs[0].ID, nil
	}
	if setting == "none" {
		return g.freshEpoch(tx, conv, s)
	}
	want, err := strconv.ParseUint(setting, 10, 32)
	if err != nil {
		return g.freshEpoch(tx, conv, s)
	}
	for _, e := range slices.Backward(epochs) {
		n, err := readNumber(tx, key(keyEpoch, conv[:], e.ID[:]))
		if err != nil {
			return roster.ID{}, err
		}
		if n >= want {
			return e.ID, nil
		}
		want -= n
	}
	return epochs[0].ID, nil
}

// freshEpoch returns an epoch under which nothing was said, as far as is known here: the present one, or a new one. A member
// may not make one while the present one is usable, and takes that.
func (g *Groups) freshEpoch(tx *storage.Tx, conv ID, s *snapshot) (roster.ID, error) {
	if e, ok := s.view.Current(); ok {
		n, err := readNumber(tx, key(keyEpoch, conv[:], e.ID[:]))
		if err != nil || n == 0 || s.view.Role(g.self.Account) < roster.Admin {
			return e.ID, err
		}
	}
	if err := g.newEpoch(tx, conv); err != nil {
		return roster.ID{}, err
	}
	_, after, err := g.open(tx, conv, true)
	if err != nil {
		return roster.ID{}, err
	}
	e, _ := after.view.Current()
	return e.ID, nil
}
