package messenger

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"hima/groups"
	"hima/identity"
	"hima/internal/text"
	"hima/internal/wire/pb"
	"hima/storage"
)

const (
	snapshotVersion = 1
	// maxSnapshot is what goes into one item at a mailbox, with room for the message around it.
	maxSnapshot = identity.MaxMailPlain - 1024
	// snapshotNetworks bounds the links in a snapshot.
	snapshotNetworks = 8
	// snapshotLinks bounds the links to groups in one.
	snapshotLinks = 64
	// snapshotAhead is how far a snapshot's time may be ahead: a wrong clock once must not shut out all later ones.
	snapshotAhead = 24 * time.Hour
)

// Imported says what was taken from a snapshot.
type Imported struct {
	Contacts int
	Settings int
	Invites  int
	Groups   int
	Networks []identity.NetworkLink // that were joined
	Cut      bool                   // the snapshot does not hold everything
}

// ExportSnapshot returns what a new device of the account needs to know (R21), plain: contacts, remarks, blocks, settings,
// live invite tokens, networks and groups. A profile too large for one item leaves out those it has least to do with.
func (m *Messenger) ExportSnapshot(ctx context.Context) ([]byte, error) {
	s, err := m.snapshot()
	if err != nil {
		return nil, err
	}
	s.TimeMs = m.env.now().UnixMilli()
	return encodeSnapshot(s)
}

func encodeSnapshot(s *pb.Snapshot) ([]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("writing snapshot: %w", err)
	}
	return b, nil
}

// snapshot gathers it, without its time.
func (m *Messenger) snapshot() (*pb.Snapshot, error) {
	s := &pb.Snapshot{Version: snapshotVersion, Account: m.env.account.Bytes()}
	links := m.env.networks.Links()
	for _, l := range links[:min(len(links), snapshotNetworks)] {
		s.Networks = append(s.Networks, l.String())
	}
	// In the order of their text, or every change of which network answers first would make another snapshot.
	slices.Sort(s.Networks)
	var people []rankedContact
	var joined []rankedGroup
	err := m.env.db.View(func(tx *storage.Tx) error {
		for _, k := range snapshotSettings() {
			v := m.settings.at(tx, k)
			if has, err := tx.Has([]byte(keySetting + k)); err != nil {
				return err
			} else if has {
				s.Settings = append(s.Settings, &pb.Setting{Key: k, Value: v})
			}
		}
		err := m.invites.each(tx, func(t identity.InviteToken, row inviteRow) error {
			if !row.Revoked && len(s.Invites) < m.config.Limits.Invites {
				s.Invites = append(s.Invites, &pb.InviteState{Token: t[:], CreatedMs: row.Created})
			}
			return nil
		})
		if err != nil {
			return err
		}
		if s.Links, err = m.env.groups.LiveLinks(tx, snapshotLinks); err != nil {
			return err
		}
		if people, err = m.snapshotContacts(tx); err != nil {
			return err
		}
		joined, err = m.snapshotGroups(tx)
		return err
	})
	if err != nil {
		return nil, err
	}
	fillSnapshot(s, people, joined)
	return s, nil
}

// snapshotSettings are the keys that a new device takes over. The username is not among them: the networks say what it is.
func snapshotSettings() []string {
	keys := []string{profileNickname, profileField, profileBio}
	for _, k := range knownSettings() {
		keys = append(keys, k.Key)
	}
	return keys
}

// rankedContact is a contact with when something last happened there.
type rankedContact struct {
	contact  *pb.SnapshotContact
	account  identity.AccountID
	activity int64
}

func (m *Messenger) snapshotContacts(tx *storage.Tx) (out []rankedContact, err error) {
	err = m.contacts.each(tx, func(a identity.AccountID, row contactRow) error {
		if !row.decided() && row.Rebuilt == (stamp{}) {
			return nil // a stranger
		}
		conv, _, err := m.convs.get(tx, m.conversationID(a))
		if err != nil {
			return err
		}
		c := &pb.SnapshotContact{Username: row.username(), State: &pb.ContactState{
			Account: a.Bytes(), State: row.State, Blocked: row.Blocked, Remark: row.Remark, AddedMs: row.Added,
		}}
		// Somebody's digits were compared by a device that the new one is not (R22); a warning stands all the same.
		if row.Verified == pb.ContactState_VERIFIED_REJECTED {
			c.State.Verified = row.Verified
		}
		rank := conv.activity
		if row.Blocked {
			rank = 1<<62 - 1 // who is blocked must stay so
		}
		out = append(out, rankedContact{c, a, rank})
		return nil
	})
	return out, err
}

// fill adds as many people as fit, those with whom something happened last first, in an order that does not change with
// every message. It tells whether somebody had to be left out.
func fill(s *pb.Snapshot, people []rankedContact) (cut bool) {
	slices.SortStableFunc(people, func(a, b rankedContact) int { return int(min(max(b.activity-a.activity, -1), 1)) })
	size := proto.Size(s) + 2
	n := 0
	for n < len(people) {
		one := proto.Size(people[n].contact)
		if size += one + 4; size > maxSnapshot {
			break
		}
		n++
	}
	kept := people[:n]
	slices.SortFunc(kept, func(a, b rankedContact) int { return strings.Compare(string(a.account[:]), string(b.account[:])) })
	for _, p := range kept {
		s.Contacts = append(s.Contacts, p.contact)
	}
	return n < len(people)
}

// keepSnapshot leaves a snapshot at the mailboxes if it would say something else than the last one.
func (m *Messenger) keepSnapshot(ctx context.Context) error {
	if m.AwaitsSnapshot() {
		return nil
	}
	s, err := m.snapshot()
	if err != nil {
		return err
	}
	b, err := encodeSnapshot(s)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(b)
	var last []byte
	err = m.env.db.View(func(tx *storage.Tx) error {
		last, _, err = getRow(tx, []byte(keySnapshot))
		return err
	})
	if err != nil || slices.Equal(last, sum[:]) {
		return err
	}
	s.TimeMs = m.env.now().UnixMilli()
	if b, err = encodeSnapshot(s); err != nil {
		return err
	}
	if err := m.env.mail.PutSnapshot(ctx, b); err != nil {
		if errors.Is(err, ErrNoSeed) {
			return nil
		}
		return fmt.Errorf("leaving a snapshot: %w", err)
	}
	m.env.log.Debug("left a snapshot", "contacts", len(s.GetContacts()), "groups", len(s.GetGroups()))
	return m.env.update(ctx, func(tx *storage.Tx) error { return tx.Set([]byte(keySnapshot), sum[:]) })
}

// ImportSnapshot takes the newest of the snapshots in that the mailboxes hold, on a restored device; none says that there
// is none. Whatever this device was told since by its owner, or by other own devices, stands: only what nobody decided
// here is taken, which is why the newest must come first.
func (m *Messenger) ImportSnapshot(ctx context.Context, candidates ...[]byte) (Imported, error) {
	row := m.restored.now()
	if len(candidates) == 0 {
		row.imported = row.since != 0
		return Imported{}, m.env.update(ctx, func(tx *storage.Tx) error { return m.restored.put(tx, row) })
	}
	var s *pb.Snapshot
	var failed error
	for _, plain := range candidates {
		c, err := m.checkSnapshot(plain, row)
		switch {
		case err != nil:
			failed = err
		case s == nil || c.GetTimeMs() > s.GetTimeMs():
			s = c
		}
	}
	if s == nil {
		return Imported{}, failed
	}
	return m.takeSnapshot(ctx, s, row)
}

func (m *Messenger) takeSnapshot(ctx context.Context, s *pb.Snapshot, row restoredRow) (Imported, error) {
	out := Imported{Cut: s.GetCut()}
	var err error
	for _, link := range s.GetNetworks() {
		if l, err := identity.ParseNetworkLink(link); err == nil && len(m.unjoined(identity.Invite{Networks: []identity.NetworkLink{l}})) > 0 {
			if added, err := m.env.networks.Join(ctx, l); err != nil {
				m.env.log.Warn("joining the network of a snapshot", "network", l.Name, "error", err)
			} else if added {
				out.Networks = append(out.Networks, l)
			}
		}
	}
	err = m.env.update(ctx, func(tx *storage.Tx) error {
		out.Settings, out.Invites = 0, 0
		if err := m.writable(tx, m.env.self); err != nil {
			return err
		}
		if out.Settings, err = m.importSettings(tx, s.GetSettings()); err != nil {
			return err
		}
		if out.Invites, err = m.importInvites(tx, s.GetInvites()); err != nil {
			return err
		}
		links, err := m.importLinks(tx, s.GetLinks())
		out.Invites += links
		return err
	})
	if err != nil {
		return Imported{}, err
	}
	for chunk := range slices.Chunk(s.GetContacts(), cardsPerUpdate) {
		n := 0
		err := m.env.update(ctx, func(tx *storage.Tx) (err error) {
			n, err = m.importContacts(tx, chunk)
			return err
		})
		if err != nil {
			return out, err
		}
		out.Contacts += n
	}
	for chunk := range slices.Chunk(s.GetGroups(), cardsPerUpdate) {
		n := 0
		err := m.env.update(ctx, func(tx *storage.Tx) (err error) {
			n, err = m.importGroups(tx, chunk)
			return err
		})
		if err != nil {
			return out, err
		}
		out.Groups += n
	}
	row.imported, row.snapshot = row.since != 0, s.GetTimeMs()
	return out, m.env.update(ctx, func(tx *storage.Tx) error { return m.restored.put(tx, row) })
}

func (m *Messenger) checkSnapshot(plain []byte, row restoredRow) (*pb.Snapshot, error) {
	var s pb.Snapshot
	if len(plain) > identity.MaxMailPlain || proto.Unmarshal(plain, &s) != nil {
		return nil, refuse(ErrInvalid, "the snapshot does not read", "")
	}
	switch account, err := identity.AccountIDFromBytes(s.GetAccount()); {
	case s.GetVersion() != snapshotVersion:
		return nil, refuse(ErrInvalid, "the snapshot is of another version of hima", "update hima")
	case err != nil || account != m.env.account:
		return nil, refuse(ErrInvalid, "the snapshot is of another account", "")
	case s.GetTimeMs() > m.env.now().Add(snapshotAhead).UnixMilli():
		return nil, refuse(ErrInvalid, "the snapshot is from the future", "look at this machine's clock")
	case s.GetTimeMs() <= row.snapshot:
		return nil, refuse(ErrConflict, "a newer snapshot was taken in already", "")
	}
	return &s, nil
}

func (m *Messenger) importSettings(tx *storage.Tx, list []*pb.Setting) (n int, err error) {
	allowed := snapshotSettings()
	for _, p := range list {
		key, value := p.GetKey(), p.GetValue()
		known, err := tx.Has([]byte(keySetting + key))
		if err != nil {
			return n, err
		}
		if known || !slices.Contains(allowed, key) || text.Valid(value) != nil {
			continue
		}
		if strings.HasPrefix(key, profilePrefix) {
			value = cleanField(key, value)
		}
		if err := m.writeSetting(tx, key, value); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

func (m *Messenger) importInvites(tx *storage.Tx, list []*pb.InviteState) (n int, err error) {
	for _, p := range list {
		var token identity.InviteToken
		if copy(token[:], p.GetToken()) != len(token) || len(p.GetToken()) != len(token) || token.IsZero() {
			continue
		}
		_, known, err := m.invites.get(tx, token[:])
		if err != nil {
			return n, err
		}
		if known || n >= m.config.Limits.Invites {
			continue
		}
		if err := m.writeInvite(tx, token, false); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// importLinks writes down links to groups of which this device knows nothing. Whether one holds is a question of its group, of which
// nothing may be known yet either.
func (m *Messenger) importLinks(tx *storage.Tx, list []*pb.InviteState) (n int, err error) {
	for _, s := range list[:min(len(list), snapshotLinks)] {
		if len(s.GetGroup()) != len(groups.ID{}) || len(s.GetToken()) != len(identity.InviteToken{}) || s.GetRevoked() {
			continue
		}
		known, err := m.env.groups.LinkKnown(tx, groups.ID(s.GetGroup()), identity.InviteToken(s.GetToken()))
		if err != nil {
			return n, err
		}
		if known {
			continue
		}
		if err := m.NoteLink(tx, s); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// importContacts writes what was decided about people as entries of this device. Their clock is low on a device that
// heard of nothing else yet, so that what other own devices decided later wins when it comes (R22).
func (m *Messenger) importContacts(tx *storage.Tx, list []*pb.SnapshotContact) (n int, err error) {
	for _, p := range list {
		s := p.GetState()
		a, err := identity.AccountIDFromBytes(s.GetAccount())
		if err != nil || a == m.env.account {
			continue
		}
		row, _, err := m.contacts.get(tx, a)
		if err != nil {
			return n, err
		}
		if row.decided() {
			continue
		}
		if u, err := text.Username(p.GetUsername()); err == nil && row.Hint == "" {
			row.Hint = u
			if err := m.contacts.put(tx, a, row); err != nil {
				return n, err
			}
		}
		remark, err := cleanRemark(s.GetRemark())
		if err != nil {
			remark = ""
		}
		err = m.writeState(tx, a, func(w *pb.ContactState) {
			w.State, w.Blocked, w.Remark = s.GetState(), s.GetBlocked(), remark
			if s.GetAddedMs() > 0 {
				w.AddedMs = s.GetAddedMs()
			}
			if s.GetVerified() == pb.ContactState_VERIFIED_REJECTED {
				w.Verified = s.GetVerified()
			}
		})
		if err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}
