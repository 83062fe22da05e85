package groups

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"unicode/utf8"

	"hima/groups/roster"
	"hima/identity"
	"hima/internal/feed"
	"hima/internal/replica"
	"hima/storage"
)

// Create begins a group that this account owns.
func (g *Groups) Create(ctx context.Context, o Options) (Info, error) {
	if o.Join == "" {
		o.Join = "invite"
		if o.Public {
			o.Join = "apply"
		}
	}
	given := [][2]string{{roster.SettingName, o.Name}, {roster.SettingJoin, o.Join}}
	if o.Description != "" {
		given = append(given, [2]string{roster.SettingDescription, o.Description})
	}
	if o.Public {
		given = append(given, [2]string{roster.SettingPublic, "yes"})
	}
	if o.History != "" {
		given = append(given, [2]string{roster.SettingHistory, o.History})
	}
	for _, s := range given {
		if !validSetting(s[0], s[1]) {
			return Info{}, fmt.Errorf("creating a group: %s: %w", s[0], ErrInvalid)
		}
	}
	nonce := make([]byte, 32)
	if _, err := rand.Read(nonce); err != nil {
		return Info{}, fmt.Errorf("creating a group: %w", err)
	}
	kind, content, err := encodeAct(roster.Act{Kind: roster.Create}, nil)
	if err != nil {
		return Info{}, err
	}
	var info Info
	err = g.cfg.DB.Update(ctx, func(tx *storage.Tx) error {
		entries, err := g.parts.Feeds.Append(tx, replica.Draft{Number: feed.Control, Kind: kind, Content: content, Genesis: nonce})
		if err != nil {
			return err
		}
		conv := entries[0].Conversation
		if err := putRow(tx, groupKey(conv), groupRow{State: StateMember, Began: g.now().UnixMilli()}); err != nil {
			return err
		}
		if err := g.fold(tx, conv, entries); err != nil {
			return err
		}
		for _, s := range given {
			if err := g.act(tx, conv, roster.Act{Kind: roster.Set, Key: s[0], Value: s[1]}, nil); err != nil {
				return err
			}
		}
		if err := g.introduce(tx, conv); err != nil {
			return err
		}
		info, err = g.Info(tx, conv)
		return err
	})
	if err != nil {
		return Info{}, fmt.Errorf("creating a group: %w", err)
	}
	return info, nil
}

// act writes an own act after everything that is known. It returns ErrNotAllowed, with nothing written, if it would be void.
func (g *Groups) act(tx *storage.Tx, conv ID, a roster.Act, proof []byte) error {
	_, err := g.actID(tx, conv, a, proof)
	return err
}

func (g *Groups) actID(tx *storage.Tx, conv ID, a roster.Act, proof []byte) (roster.ID, error) {
	row, ok, err := getRow[groupRow](tx, groupKey(conv))
	switch {
	case err != nil:
		return roster.ID{}, err
	case !ok:
		return roster.ID{}, ErrNotFound
	case row.ReadOnly:
		return roster.ID{}, ErrReadOnly
	}
	gr, s, err := g.open(tx, conv, true)
	if err != nil {
		return roster.ID{}, err
	}
	a.Author, a.Device = g.self.Account, g.self.Device
	gr.mu.Lock()
	heads, allowed, full := gr.roster.Heads(), gr.roster.Allowed(a), false
	if !gr.roster.WasAdmin(g.self.Account) && a.Kind != roster.Leave {
		// Nobody would take more of us. Others' acts never keep us from acting.
		_, full = gr.numbers[number{g.self.Device, uint64(g.cfg.Limits.MemberActs)}]
		full = full || gr.last[g.self.Device] >= fewActs && gr.fills(g.self.Account, g.cfg.Limits.MemberActs-1)
	}
	gr.mu.Unlock()
	switch {
	case s.view.Role(g.self.Account) == roster.None:
		return roster.ID{}, ErrNotMember
	case s.view.Dissolved:
		return roster.ID{}, ErrDissolved
	case !allowed:
		return roster.ID{}, ErrNotAllowed
	case full:
		return roster.ID{}, ErrFull
	}
	if len(heads) > roster.MaxParents {
		// More heads than one act may name are joined by acts that change nothing else.
		if err := g.join(tx, conv, s, heads); err != nil {
			return roster.ID{}, err
		}
		return g.actID(tx, conv, a, proof)
	}
	return g.write(tx, conv, a, proof, heads)
}

// join names as many heads as one act may, so that afterwards there are fewer.
func (g *Groups) join(tx *storage.Tx, conv ID, s *snapshot, heads []roster.ID) error {
	p, _ := person(&s.view, g.self.Account)
	_, err := g.write(tx, conv, roster.Act{Kind: roster.Nickname, Value: p.Nickname}, nil, heads[:roster.MaxParents])
	return err
}

func (g *Groups) write(tx *storage.Tx, conv ID, a roster.Act, proof []byte, parents []roster.ID) (roster.ID, error) {
	kind, content, err := encodeAct(a, proof)
	if err != nil {
		return roster.ID{}, err
	}
	d := replica.Draft{Conversation: conv, Number: feed.Control, Kind: kind, Content: content}
	for _, p := range parents {
		d.Parents = append(d.Parents, feed.EntryID(p))
	}
	entries, err := g.parts.Feeds.Append(tx, d)
	if err != nil {
		return roster.ID{}, err
	}
	return roster.ID(entries[0].ID), g.fold(tx, conv, entries)
}

// do runs one act of a user in a transaction of its own.
func (g *Groups) do(ctx context.Context, what string, f func(tx *storage.Tx) error) error {
	if err := g.cfg.DB.Update(ctx, f); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// standing returns the present state of a group that we are in.
func (g *Groups) standing(tx *storage.Tx, conv ID) (*snapshot, error) {
	ok, err := g.Is(tx, conv)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, ErrNotFound
	}
	_, s, err := g.open(tx, conv, true)
	switch {
	case err != nil:
		return nil, err
	case s.view.Role(g.self.Account) == roster.None:
		return nil, ErrNotMember
	case s.view.Dissolved:
		return nil, ErrDissolved
	}
	return s, nil
}

// other returns the present state and the role of somebody else in it, who must be in.
func (g *Groups) other(tx *storage.Tx, conv ID, account identity.AccountID, need roster.Role) (*snapshot, roster.Role, error) {
	s, err := g.standing(tx, conv)
	switch {
	case err != nil:
		return nil, 0, err
	case s.view.Role(g.self.Account) < need:
		return nil, 0, ErrNotAllowed
	case account == g.self.Account:
		return nil, 0, fmt.Errorf("oneself: %w", ErrInvalid)
	case s.view.Role(account) == roster.None:
		return nil, 0, fmt.Errorf("not in the group: %w", ErrNotFound)
	}
	return s, s.view.Role(account), nil
}

// Remove puts somebody out. What they wrote until now stays; the new epoch is in the same commit (R28).
func (g *Groups) Remove(ctx context.Context, conv ID, account identity.AccountID) error {
	return g.do(ctx, "removing a member", func(tx *storage.Tx) error {
		_, role, err := g.other(tx, conv, account, roster.Admin)
		if err != nil {
			return err
		}
		if role == roster.Owner {
			return ErrNotAllowed
		}
		cuts, err := g.cuts(tx, conv, func(h feed.Head) bool { return h.Account == account })
		if err != nil {
			return err
		}
		if err := g.act(tx, conv, roster.Act{Kind: roster.Remove, Account: account, Cuts: cuts}, nil); err != nil {
			return err
		}
		return g.newEpoch(tx, conv)
	})
}

// cuts names the last entries of some feeds as they are held here (R25). Chat feeds of which we hold nothing count as empty.
func (g *Groups) cuts(tx *storage.Tx, conv ID, of func(feed.Head) bool) ([]roster.Cut, error) {
	heads, err := g.parts.Feeds.Ends(tx, conv)
	if err != nil {
		return nil, err
	}
	// If not all feeds can be named, those without which something said would be lost.
	slices.SortStableFunc(heads, func(a, b feed.Head) int { return cmp.Compare(b.Number, a.Number) })
	var out []roster.Cut
	for _, h := range heads {
		if of(h) && h.Last > 0 && len(out) < roster.MaxCuts {
			out = append(out, roster.Cut{Device: h.Device, Feed: uint32(h.Number), Seq: h.Last, Hash: h.Hash})
		}
	}
	return out, nil
}

// Promote makes a member an admin.
func (g *Groups) Promote(ctx context.Context, conv ID, account identity.AccountID) error {
	return g.setRole(ctx, conv, account, roster.Admin)
}

// Demote makes an admin a member.
func (g *Groups) Demote(ctx context.Context, conv ID, account identity.AccountID) error {
	return g.setRole(ctx, conv, account, roster.Member)
}

func (g *Groups) setRole(ctx context.Context, conv ID, account identity.AccountID, to roster.Role) error {
	return g.do(ctx, "giving a role", func(tx *storage.Tx) error {
		_, role, err := g.other(tx, conv, account, roster.Owner)
		if err != nil {
			return err
		}
		if role == to {
			return ErrExists
		}
		return g.act(tx, conv, roster.Act{Kind: roster.SetRole, Account: account, Role: to}, nil)
	})
}

// Transfer makes somebody else the owner, and this account an admin.
func (g *Groups) Transfer(ctx context.Context, conv ID, account identity.AccountID) error {
	return g.do(ctx, "handing over a group", func(tx *storage.Tx) error {
		if _, _, err := g.other(tx, conv, account, roster.Owner); err != nil {
			return err
		}
		proof, err := identity.NewTransferProof(g.cfg.Key, identity.TransferProof{
			Group: identity.GroupID(conv), To: account, Certificate: g.cfg.Certificate, Time: g.now(),
		})
		if err != nil {
			return err
		}
		return g.act(tx, conv, roster.Act{Kind: roster.Transfer, Account: account}, proof.Raw())
	})
}

// Leave goes. Who owns the group hands it over or dissolves it instead.
func (g *Groups) Leave(ctx context.Context, conv ID) error {
	return g.do(ctx, "leaving a group", func(tx *storage.Tx) error {
		s, err := g.standing(tx, conv)
		if err != nil {
			return err
		}
		if s.view.Role(g.self.Account) == roster.Owner {
			return ErrLastOwner
		}
		// Nobody says later where the feeds of devices end that are lost from now on.
		cuts, err := g.cuts(tx, conv, func(h feed.Head) bool { return h.Account == g.self.Account })
		if err != nil {
			return err
		}
		return g.act(tx, conv, roster.Act{Kind: roster.Leave, Cuts: cuts}, nil)
	})
}

// Dissolve ends the group.
func (g *Groups) Dissolve(ctx context.Context, conv ID) error {
	return g.do(ctx, "dissolving a group", func(tx *storage.Tx) error {
		if _, err := g.standing(tx, conv); err != nil {
			return err
		}
		return g.act(tx, conv, roster.Act{Kind: roster.Dissolve}, nil)
	})
}

// Set gives a setting of the group, or the own nickname in it. "mailbox" takes "own", "none", or what EncodeMailboxes makes.
func (g *Groups) Set(ctx context.Context, conv ID, name, value string) error {
	if name == SettingMailbox {
		var err error
		if value, err = g.mailboxes(value); err != nil {
			return fmt.Errorf("setting %s: %w", name, err)
		}
	}
	a := roster.Act{Kind: roster.Set, Key: name, Value: value}
	if name == SettingNickname {
		a = roster.Act{Kind: roster.Nickname, Value: value}
	}
	if !validSetting(name, value) {
		return fmt.Errorf("setting %s: %w", name, ErrInvalid)
	}
	return g.do(ctx, "setting "+name, func(tx *storage.Tx) error {
		s, err := g.standing(tx, conv)
		if err != nil {
			return err
		}
		p, _ := person(&s.view, g.self.Account)
		if name == SettingNickname && p.Nickname == value || name != SettingNickname && s.view.Settings[name] == value {
			return nil // so already
		}
		return g.act(tx, conv, a, nil)
	})
}

func validSetting(name, value string) bool {
	if !utf8.ValidString(value) {
		return false
	}
	if name == SettingNickname {
		return len(value) <= MaxNickname
	}
	return roster.ValidSetting(name, value)
}

// RevokeDevice takes one of the own devices away in every group: what it wrote until now stays, and a new epoch leaves it out.
func (g *Groups) RevokeDevice(ctx context.Context, device identity.DeviceID) error {
	if device == g.self.Device {
		return fmt.Errorf("revoking a device in groups: this device: %w", ErrInvalid)
	}
	var all []ID
	err := g.cfg.DB.View(func(tx *storage.Tx) (err error) {
		all, err = g.live(tx)
		return err
	})
	for _, conv := range all {
		if err != nil {
			break
		}
		err = g.do(ctx, "revoking a device in a group", func(tx *storage.Tx) error { return g.revoke(tx, conv, device) })
	}
	return err
}

func (g *Groups) revoke(tx *storage.Tx, conv ID, device identity.DeviceID) error {
	s, err := g.standing(tx, conv)
	if err != nil {
		return err
	}
	if _, done := s.view.Revokes(g.self.Account, device); done {
		return nil
	}
	cuts, err := g.cuts(tx, conv, func(h feed.Head) bool { return h.Device == device })
	if err != nil {
		return err
	}
	if err := g.act(tx, conv, roster.Act{Kind: roster.Revoke, Revoked: device, Cuts: cuts}, nil); err != nil {
		return err
	}
	return g.newEpoch(tx, conv)
}

// live lists the groups that we are in.
func (g *Groups) live(tx *storage.Tx) ([]ID, error) {
	var out []ID
	err := eachRow(tx, []byte(keyGroup), func(rest []byte, row groupRow) (bool, error) {
		if row.State == StateMember {
			out = append(out, ID(rest))
		}
		return true, nil
	})
	slices.SortFunc(out, func(a, b ID) int { return slices.Compare(a[:], b[:]) })
	return out, err
}
