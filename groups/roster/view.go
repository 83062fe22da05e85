package roster

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"slices"

	"hima/identity"
)

// Person is somebody who is in.
type Person struct {
	Account  identity.AccountID
	Role     Role
	Nickname string
	Admitted ID // the act that let them in
	From     ID // the first epoch whose entries they may have; zero: see Act.From
}

// Epoch is a period under one key, begun by an act that counts.
type Epoch struct {
	ID         ID
	Generation uint64
	KeyHash    [32]byte
	Author     identity.AccountID
	Usable     bool
}

// View is what the graph amounts to. It does not change when the roster does.
type View struct {
	Group     ID
	People    []Person // strongest first, then in the order of their IDs
	Settings  map[string]string
	Dissolved bool
	Epochs    []Epoch // usable ones first, best first
	Revoked   []identity.DeviceID
	Void      map[ID]Reason
	By        map[ID]ID                   // which act overruled one that is void
	Given     map[string]ID               // the act that gave a setting its value
	Gone      map[identity.AccountID][]ID // who was let in once and is not in, by the acts because of which that is so
	because   map[identity.AccountID][]ID // the same with the acts because of which those count, where there are any
	ends      map[identity.AccountID][]ID // of these the removals and leavings of which no other knew
	cuts      map[identity.AccountID][]Cut
	revoked   map[deviceOf][]Cut
	roles     map[identity.AccountID]Role
}

// deviceOf is a device as one of an account: nobody revokes another's.
type deviceOf struct {
	account identity.AccountID
	device  identity.DeviceID
}

// settings are all there are, in the order in which they are listed.
func settings() []string {
	return []string{
		SettingName, SettingDescription, SettingAnnouncement, SettingPublic, SettingJoin, SettingInvite, SettingHistory, SettingMute,
		SettingMailbox,
	}
}

// View folds what is known.
func (r *Roster) View() View {
	f := r.present
	v := View{
		Group: r.group, Settings: map[string]string{}, Dissolved: len(f.dissolves) > 0, Void: map[ID]Reason{}, By: map[ID]ID{},
		Given: map[string]ID{}, Gone: map[identity.AccountID][]ID{}, ends: map[identity.AccountID][]ID{}, cuts: map[identity.AccountID][]Cut{},
		revoked: map[deviceOf][]Cut{}, roles: map[identity.AccountID]Role{},
	}
	for account, h := range f.history {
		v.person(f, account, h)
	}
	v.reasons(f)
	slices.SortFunc(v.People, func(a, b Person) int {
		return cmp.Or(cmp.Compare(b.Role, a.Role), compareIDs(ID(a.Account), ID(b.Account)))
	})
	for _, key := range settings() {
		v.Settings[key] = f.value(key, nil)
		if i := f.lowest(f.newest(f.settings[key], nil)); i >= 0 {
			v.Given[key] = r.nodes[i].ID
		}
	}
	v.epochs(f)
	revokes := map[deviceOf][]int{}
	for _, i := range f.revokes {
		n := r.nodes[i]
		v.Revoked = append(v.Revoked, n.Revoked)
		revokes[deviceOf{n.Author, n.Revoked}] = append(revokes[deviceOf{n.Author, n.Revoked}], i)
	}
	for k, list := range revokes {
		v.revoked[k] = r.lowestCuts(list)
	}
	slices.SortFunc(v.Revoked, func(a, b identity.DeviceID) int { return compareIDs(ID(a), ID(b)) })
	v.Revoked = slices.Compact(v.Revoked)
	for i, n := range r.nodes {
		why := cmp.Or(n.void, f.void[i])
		if why == "" {
			continue
		}
		v.Void[n.ID] = why
		if by, ok := f.by[i]; ok && why == Overruled {
			v.By[n.ID] = r.nodes[by].ID
		}
	}
	return v
}

// person adds an account to those who are in, or to those who were.
func (v *View) person(f *fold, account identity.AccountID, h *history) {
	r := f.r
	role := f.role(account, nil)
	if role == None {
		if len(h.tried) == 0 {
			return
		}
		// Who came back after a removal and went again said more meanwhile: the earlier cut is over.
		last := f.newest(h.out, nil)
		v.cuts[account] = r.lowestCuts(last)
		for _, i := range last {
			v.ends[account] = append(v.ends[account], r.nodes[i].ID)
		}
		for _, i := range h.out {
			v.Gone[account] = append(v.Gone[account], r.nodes[i].ID)
		}
		for _, i := range h.tried {
			if by, ok := f.by[i]; ok {
				v.Gone[account] = append(v.Gone[account], r.nodes[by].ID)
			}
		}
		return
	}
	v.roles[account] = role
	counting := slices.DeleteFunc(slices.Clone(h.in), func(i int) bool { return !f.knewOfAll(h.out, i, nil) })
	in := r.nodes[f.lowest(f.newest(counting, nil))]
	p := Person{Account: account, Role: role, Admitted: in.ID, From: in.From}
	if i := f.lowest(f.newest(f.nicknames[account], nil)); i >= 0 {
		p.Nickname = r.nodes[i].Value
	}
	v.People = append(v.People, p)
}

// reasons notes what must be known to see that those who are gone are: whoever holds an act that would overrule their removal, and
// not what overruled that one, takes them for members.
func (v *View) reasons(f *fold) {
	if len(f.by) == 0 {
		return
	}
	r := f.r
	against := map[identity.AccountID][]int{} // overruled acts, by whose right they would have taken
	for i := range f.by {
		if n := r.nodes[i]; n.takes() && f.void[i] == Overruled {
			account, _, lowers := n.lowers()
			if !lowers {
				account = n.Author
			}
			against[account] = append(against[account], i)
		}
	}
	v.because = map[identity.AccountID][]ID{}
	for account, gone := range v.Gone {
		all := slices.Clone(gone)
		for k := 0; k < len(all); k++ {
			for _, i := range against[r.nodes[r.at[all[k]]].Author] {
				if by := r.nodes[f.by[i]].ID; !slices.Contains(all, by) {
					all = append(all, by)
				}
			}
		}
		if len(all) > len(gone) {
			v.because[account] = all
		}
	}
}

// Removal returns the acts that show that somebody who was in is not: those because of which that is so, and those that overruled
// what would have overruled them. Nil: nothing put them out.
func (v *View) Removal(account identity.AccountID) []ID {
	if all, ok := v.because[account]; ok {
		return all
	}
	return v.Gone[account]
}

// epochs lists the epochs: those that may be written under first, best first.
func (v *View) epochs(f *fold) {
	usable, isUsable := f.usable(nil), set{}
	add := func(e int, ok bool) {
		n := f.r.nodes[e]
		v.Epochs = append(v.Epochs, Epoch{ID: n.ID, Generation: n.Generation, KeyHash: n.KeyHash, Author: n.Author, Usable: ok})
	}
	for _, e := range usable {
		isUsable = isUsable.add(e)
		add(e, true)
	}
	for _, e := range f.epochs {
		if !isUsable.has(e) {
			add(e, false)
		}
	}
	rest := v.Epochs[len(usable):]
	slices.SortFunc(rest, func(a, b Epoch) int { return cmp.Or(cmp.Compare(b.Generation, a.Generation), compareIDs(a.ID, b.ID)) })
}

// lowestCuts joins the cuts of removals: of two for one feed the lower counts (R25).
func (r *Roster) lowestCuts(out []int) []Cut {
	type place struct {
		device identity.DeviceID
		feed   uint32
	}
	low := map[place]Cut{}
	for _, i := range out {
		for _, c := range r.nodes[i].Cuts {
			k := place{c.Device, c.Feed}
			if have, ok := low[k]; !ok || c.Seq < have.Seq || c.Seq == have.Seq && compareIDs(c.Hash, have.Hash) < 0 {
				low[k] = c
			}
		}
	}
	// What one leaving did not know of counts for nobody, whatever another one says that was made on another device.
	for _, i := range out {
		if n := r.nodes[i]; n.Kind == Leave {
			maps.DeleteFunc(low, func(k place, _ Cut) bool {
				return !slices.ContainsFunc(n.Cuts, func(c Cut) bool { return k == place{c.Device, c.Feed} })
			})
		}
	}
	cuts := slices.Collect(maps.Values(low))
	slices.SortFunc(cuts, func(a, b Cut) int {
		return cmp.Or(compareIDs(ID(a.Device), ID(b.Device)), cmp.Compare(a.Feed, b.Feed))
	})
	return cuts
}

// Role says what an account is.
func (v *View) Role(account identity.AccountID) Role { return v.roles[account] }

// Cuts says what counts of the feeds of an account that was removed or left; feeds that are not named count as empty.
func (v *View) Cuts(account identity.AccountID) []Cut { return v.cuts[account] }

// Ends returns the removals and leavings whose cuts those are: of those of an account that is not in, the ones of which no other
// knew.
func (v *View) Ends(account identity.AccountID) []ID { return v.ends[account] }

// Revokes tells whether a device of an account was taken away, and what counts of its feeds; feeds that are not named count
// as empty.
func (v *View) Revokes(account identity.AccountID, device identity.DeviceID) ([]Cut, bool) {
	cuts, ok := v.revoked[deviceOf{account, device}]
	return cuts, ok
}

// Current is the epoch to write under; false: one has to be made first.
func (v *View) Current() (Epoch, bool) {
	if len(v.Epochs) > 0 && v.Epochs[0].Usable {
		return v.Epochs[0], true
	}
	return Epoch{}, false
}

// Digest is equal exactly for equal rosters; for tests, and for two members who compare. What is void is not part of it: an
// act beyond a cut that nobody built upon is held by those who had it before they heard of the cut, and by nobody else.
func (v *View) Digest() [32]byte {
	h := sha256.New()
	put := func(b []byte) {
		h.Write(binary.AppendUvarint(nil, uint64(len(b))))
		h.Write(b)
	}
	put(v.Group[:])
	for _, p := range v.People {
		put(append(p.Account[:], byte(p.Role)))
		put([]byte(p.Nickname))
		put(append(p.Admitted[:], p.From[:]...))
	}
	for _, key := range slices.Sorted(maps.Keys(v.Settings)) {
		put([]byte(key))
		put([]byte(v.Settings[key]))
	}
	if v.Dissolved {
		put([]byte("dissolved"))
	}
	for _, e := range v.Epochs {
		put(append(e.ID[:], byte(e.Generation)))
		if e.Usable {
			put([]byte("usable"))
		}
	}
	for _, d := range v.Revoked {
		put(d[:])
	}
	return [32]byte(h.Sum(nil))
}
