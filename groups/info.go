package groups

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"hima/groups/roster"
	"hima/identity"
	"hima/storage"
)

// Info describes a group; ErrNotFound if none is known by that ID.
func (g *Groups) Info(tx *storage.Tx, conv ID) (Info, error) {
	row, ok, err := getRow[groupRow](tx, groupKey(conv))
	if err != nil {
		return Info{}, err
	}
	if !ok {
		return Info{}, ErrNotFound
	}
	return g.info(tx, conv, row)
}

func (g *Groups) info(tx *storage.Tx, conv ID, row groupRow) (Info, error) {
	out := Info{
		ID: conv, Name: row.Name, Description: row.Description, Join: row.Join, Size: row.Size, State: row.State, ReadOnly: row.ReadOnly,
		Joined: atMS(row.Joined),
	}
	gr, s, err := g.open(tx, conv, false)
	if err != nil {
		return Info{}, err
	}
	if s.version == 0 {
		return out, nil
	}
	v := &s.view
	for key, to := range map[string]*string{
		roster.SettingName: &out.Name, roster.SettingDescription: &out.Description, roster.SettingAnnouncement: &out.Announcement,
		roster.SettingJoin: &out.Join, roster.SettingInvite: &out.Invite, roster.SettingHistory: &out.History,
	} {
		*to = cmp.Or(v.Settings[key], *to)
	}
	if at, ok := gr.place(v.Given[roster.SettingAnnouncement]); ok && out.Announcement != "" {
		out.AnnouncedBy, out.AnnouncedAt = at.account, atMS(at.timeMS)
	}
	out.Public, out.Mute = v.Settings[roster.SettingPublic] == "yes", v.Settings[roster.SettingMute] == "yes"
	out.Mailboxes = DecodeMailboxes(v.Settings[SettingMailbox])
	out.Role, out.Size = v.Role(g.self.Account), len(v.People)
	if len(v.People) > 0 && v.People[0].Role == roster.Owner {
		out.Owner = v.People[0].Account
	}
	if p, in := person(v, g.self.Account); in {
		out.Nickname = p.Nickname
	}
	out.Applications, err = g.countApplications(tx, conv)
	return out, err
}

// List describes all groups, in the order of their names.
func (g *Groups) List(tx *storage.Tx) ([]Info, error) {
	var out []Info
	err := eachRow(tx, []byte(keyGroup), func(rest []byte, row groupRow) (bool, error) {
		in, err := g.info(tx, ID(rest), row)
		out = append(out, in)
		return true, err
	})
	slices.SortFunc(out, func(a, b Info) int { return cmp.Or(cmp.Compare(a.Name, b.Name), slices.Compare(a.ID[:], b.ID[:])) })
	return out, err
}

// Members lists who is in, strongest first.
func (g *Groups) Members(tx *storage.Tx, conv ID) ([]Member, error) {
	if ok, err := g.Is(tx, conv); err != nil || !ok {
		return nil, cmp.Or(err, ErrNotFound)
	}
	gr, s, err := g.open(tx, conv, false)
	if err != nil {
		return nil, err
	}
	out := make([]Member, 0, len(s.view.People))
	for _, p := range s.view.People {
		at, _ := gr.place(p.Admitted)
		out = append(out, Member{Account: p.Account, Nickname: p.Nickname, Role: p.Role, Joined: atMS(at.timeMS)})
	}
	return out, nil
}

// minPrefix is how many digits of an ID name a group.
const minPrefix = 4

// Find lists the groups of a name, or with an ID that begins so.
func (g *Groups) Find(tx *storage.Tx, name string) ([]Info, error) {
	all, err := g.List(tx)
	if err != nil {
		return nil, err
	}
	want, digits := g.cfg.Fold(name), strings.ToLower(strings.TrimSpace(name))
	hexadecimal := len(digits) >= minPrefix && len(digits) <= 2*len(ID{}) && !strings.ContainsFunc(digits, func(r rune) bool {
		return !strings.ContainsRune("0123456789abcdef", r)
	})
	return slices.DeleteFunc(all, func(in Info) bool {
		named := want != "" && g.cfg.Fold(in.Name) == want
		return !named && !(hexadecimal && strings.HasPrefix(hex.EncodeToString(in.ID[:]), digits))
	}), nil
}

// EncodeMailboxes makes the value of the setting "mailbox": a line per mailbox, its device and its addresses.
func EncodeMailboxes(refs []identity.MailboxRef) string {
	var b strings.Builder
	for _, r := range refs[:min(len(refs), MaxMailboxes)] {
		line := r.Device.String()
		for _, a := range r.Addrs {
			line += " " + a
		}
		if b.Len()+len(line)+1 > roster.MaxValue {
			break
		}
		b.WriteString(line + "\n")
	}
	return b.String()
}

// DecodeMailboxes reads what EncodeMailboxes made; what does not read is left out.
func DecodeMailboxes(value string) []identity.MailboxRef {
	var out []identity.MailboxRef
	for line := range strings.Lines(value) {
		w := strings.Fields(line)
		if len(w) == 0 || len(out) == MaxMailboxes {
			continue
		}
		device, err := identity.ParseDeviceID(w[0])
		if err != nil {
			continue
		}
		ref := identity.MailboxRef{Device: device, Addrs: w[1:]}
		// Only addresses that would stand in a record, too, so that a group sends nobody anywhere else.
		if ref, err = identity.MailboxRefFromPB(ref.PB()); err == nil {
			out = append(out, ref)
		}
	}
	return out
}

// mailboxes turns what a user says into the value of the setting.
func (g *Groups) mailboxes(value string) (string, error) {
	switch value {
	case "", "none", "off":
		return "", nil
	case "own":
		if g.parts.Mailboxes == nil {
			return "", fmt.Errorf("no own mailbox: %w", ErrNotFound)
		}
		refs := g.parts.Mailboxes()
		if len(refs) == 0 {
			return "", fmt.Errorf("no own mailbox: %w", ErrNotFound)
		}
		return EncodeMailboxes(refs), nil
	}
	refs := DecodeMailboxes(value)
	if len(refs) == 0 {
		return "", ErrInvalid
	}
	return EncodeMailboxes(refs), nil
}
